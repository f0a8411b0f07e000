"""Losses over all ranks: two processes over gloo have the loss and the gradient of one with the whole batch.

Shape letters: N tokens, E experts.
"""

from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing

from moe_nmt.distributed.processes import end_process, free_port
from moe_nmt.moe import LOSSES, BranchGate, MoERecord, RoutingContext
from moe_nmt.moe.losses import without_tokens
from tests.parts import make_routing

LAYERWISE = {
    "load_balancing": "load_balancing(all_ranks={})",
    "z_loss": "z_loss(all_ranks={})",
    "cluster_variance": "cluster_variance(clusters=2, all_ranks={})",
    "bilevel_balancing": "bilevel_balancing(nodes=2, combine=mean, all_ranks={})",
}
SPECS = LAYERWISE | {"gate_budget": "gate_budget(all_ranks={})"}
EXPERTS = (4, 6)
"""Of each layer."""
X_ND = torch.randn(24, 5, generator=torch.Generator().manual_seed(1))
SHARES = {"unequal": (slice(0, 9), slice(9, 24)), "one without": (slice(0, 24), slice(24, 24))}
"""Which tokens each rank has."""
SIZES = (3.0, 5.0)
"""The sample size of each rank."""


def make_weights():
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(experts + 1, 5, generator=generator).requires_grad_() for experts in EXPERTS]


def make_records(weights, share, local_gradient=True):
    """Records of layers whose routers and branches are linear maps."""
    records = []
    for weight_ED in weights:
        scores_NE = X_ND[share] @ (weight_ED if local_gradient else weight_ED.detach()).T
        routing = make_routing([], *scores_NE[:, 1:].shape, logit_NE=scores_NE[:, 1:])
        records.append(MoERecord(routing, RoutingContext(), BranchGate(scores_NE[:, 0].sigmoid(), 0.8)))
    return records


def of_the_whole_batch(spec, *parts):
    """The loss of one process whose batch are the tokens of these records, and its gradients."""
    weights = make_weights()
    records = [make_records(weights, share, local_gradient) for share, local_gradient in parts]
    layers = [
        MoERecord(
            make_routing([], 0, layer[0].routing.prob_NE.shape[1])._replace(
                prob_NE=torch.cat([record.routing.prob_NE for record in layer]),
                logit_NE=torch.cat([record.routing.logit_NE for record in layer]),
            ),
            RoutingContext(),
            BranchGate(torch.cat([record.gate.gate_N for record in layer]), 0.8),
        )
        for layer in zip(*records, strict=True)
    ]
    loss = LOSSES.build(spec)(layers)
    return loss.item(), torch.autograd.grad(loss, weights)


def on_ranks(spec, records, weights, factor=1.0):
    """The loss of this rank, and the sum of both ranks' gradients by their sample sizes, as fairseq has it.

    `factor`: 0 where fairseq ignores the batch of this rank, else 1.
    """
    rank = distributed.get_rank()
    loss = LOSSES.build(spec)(records)
    (SIZES[rank] * factor * loss).backward()
    size = torch.tensor(SIZES[rank] * factor)
    distributed.all_reduce(size)
    gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    for gradient in gradients:
        distributed.all_reduce(gradient)
    return loss.item(), [gradient / size for gradient in gradients]


def on_rank(rank, port, folder):
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=300)
    )
    results = {}
    for name, spec in SPECS.items():
        spec_of_all = spec.format(True)
        for case, shares in SHARES.items():
            weights = make_weights()
            results[name, case] = on_ranks(spec_of_all, make_records(weights, shares[rank]), weights)
        weights = make_weights()
        records = make_records(weights, SHARES["unequal"][rank], local_gradient=rank == 0)
        results[name, "frozen"] = on_ranks(spec_of_all, records, weights)
        weights = make_weights()
        records = make_records(weights, SHARES["unequal"][rank])
        records = list(map(without_tokens, records)) if rank == 1 else records
        results[name, "ignored"] = on_ranks(spec_of_all, records, weights, factor=float(rank == 0))
        share = SHARES["unequal"][rank]
        results[name, "each its own"] = LOSSES.build(spec.format(False))(make_records(make_weights(), share)).item()
        with torch.no_grad():
            results[name, "evaluation"] = LOSSES.build(spec_of_all)(make_records(make_weights(), share)).item()
    torch.save(results, f"{folder}/{rank}.pt")
    end_process()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each rank found, by loss and case."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(on_rank, (free_port(), folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def assert_alike(results, name, case, wanted):
    for result in results:
        loss, gradients = result[name, case]
        assert loss == pytest.approx(wanted[0], rel=1e-6, abs=1e-6)
        torch.testing.assert_close(gradients, list(wanted[1]), rtol=1e-5, atol=1e-6)
    assert any(gradient.abs().max() > 1e-4 for gradient in wanted[1])


@pytest.mark.parametrize("case", SHARES)
@pytest.mark.parametrize("name", SPECS)
def test_two_ranks_have_the_loss_and_gradient_of_the_whole_batch(results, name, case):
    assert_alike(results, name, case, of_the_whole_batch(SPECS[name].format(False), (slice(None), True)))


@pytest.mark.parametrize("name", SPECS)
def test_a_batch_that_is_ignored_adds_no_token(results, name):
    assert_alike(results, name, "ignored", of_the_whole_batch(SPECS[name].format(False), (SHARES["unequal"][0], True)))


@pytest.mark.parametrize("name", SPECS)
def test_a_rank_whose_tokens_need_no_gradient_takes_part(results, name):
    first, second = SHARES["unequal"]
    assert_alike(results, name, "frozen", of_the_whole_batch(SPECS[name].format(False), (first, True), (second, False)))


@pytest.mark.parametrize("case", ["each its own", "evaluation"])
@pytest.mark.parametrize("name", SPECS)
def test_else_each_rank_has_the_loss_of_its_own_tokens(results, name, case):
    for share, result in zip(SHARES["unequal"], results, strict=True):
        assert result[name, case] == of_the_whole_batch(SPECS[name].format(False), (share, True))[0]


class PlainOptimizer:
    def backward(self, loss):
        loss.backward()


MODEL = {"moe_router": "bilevel(nodes=2)", "moe_branch": "conditional(budget=0.3)"}
LOSSES_OF_MODEL = (
    "[load_balancing(weight=0.5, all_ranks=True), bilevel_balancing(nodes=2, all_ranks=True), gate_budget]"
)


def train_step(losses, ignored):
    """fairseq's step with our task, model and criterion: the gradients, the loss, and what it logs."""
    from moe_nmt.fairseq_plugin.task import MultilingualTranslationMoETask
    from tests.fairseq.test_model import batch, build, criterion

    torch.manual_seed(5)
    model, sample = build(**MODEL), batch(((5, 4), (3, 6), (9, 7)) if ignored else ((5, 4), (3, 6), (4, 1)))
    task = object.__new__(MultilingualTranslationMoETask)
    loss, _, log = task.train_step(sample, model, criterion(losses), PlainOptimizer(), 0, ignored)
    assert "ignored" not in sample
    return {name: p.grad for name, p in model.named_parameters()}, loss.item(), log


def step_on_rank(rank, port, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    torch.save(train_step(LOSSES_OF_MODEL, ignored=rank == 1), f"{folder}/{rank}.pt")
    end_process()


def test_a_batch_that_fairseq_fills_up_with_changes_no_gradient(tmp_path):
    pytest.importorskip("fairseq")
    multiprocessing.spawn(step_on_rank, (free_port(), tmp_path), nprocs=2)
    (real, loss, log), (filling, no_loss, ignored_log) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    wanted, wanted_loss, wanted_log = train_step(LOSSES_OF_MODEL, ignored=False)
    assert loss == pytest.approx(wanted_loss, rel=1e-6) and no_loss == 0
    assert log.keys() == ignored_log.keys(), "fairseq sums them by position"
    for name, value in wanted_log.items():
        torch.testing.assert_close(log[name], value, msg=lambda text, name=name: f"{name}: {text}")
    for name, gradient in wanted.items():
        torch.testing.assert_close(real[name], gradient, rtol=1e-5, atol=1e-6)
        assert filling[name] is None or not filling[name].any(), name
