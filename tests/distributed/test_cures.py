"""What the cures agree on between ranks: two processes over gloo."""

import torch
from torch import distributed, multiprocessing

from moe_nmt.distributed.processes import end_process, free_port
from moe_nmt.moe import LOSSES, REGULARIZERS, BranchGate, MoERecord, RoutingContext
from tests.parts import make_routing

VALUES = torch.linspace(-2, 3, 24)
SHARES = (slice(0, 9), slice(9, 24))
SENTENCES = (3.0, 5.0)
"""The tokens and the sample size of each rank."""


def budget_loss(weight, tokens):
    gate_N = (weight * VALUES[tokens]).sigmoid()
    record = MoERecord(make_routing([], gate_N.numel(), 4), RoutingContext(), BranchGate(gate_N, 0.8))
    return LOSSES.build("gate_budget")([record])


def drops(steps):
    gating = REGULARIZERS.build("gating_dropout(p=0.4)", num_experts=4)
    cluster = REGULARIZERS.build("cluster_dropout(clusters=2)", num_experts=4)
    for step in range(steps):
        torch.manual_seed(7 + step)
        torch.rand(1 + distributed.get_rank() if distributed.is_initialized() else 1)
        for regularizer in (gating, cluster):
            regularizer.set_num_updates(step)
        routing = gating.on_routing(make_routing([(0, 0, 1.0)], 1, 4), RoutingContext())
        yield routing.token_A.numel() == 0, tuple(cluster.draw().tolist())


def on_rank(rank, port, folder):
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    weight = torch.tensor(0.5, requires_grad=True)
    loss = budget_loss(weight, SHARES[rank])
    (SENTENCES[rank] * loss).backward()
    distributed.all_reduce(weight.grad)
    with torch.no_grad():
        alone = budget_loss(weight, SHARES[rank])
    result = {"loss": loss.item(), "alone": alone.item(), "grad": weight.grad / sum(SENTENCES)}
    torch.save(result | {"drops": list(drops(1000))}, f"{folder}/{rank}.pt")
    end_process()


def test_two_ranks_have_the_budget_loss_of_all_tokens_and_draw_alike(tmp_path):
    multiprocessing.spawn(on_rank, (free_port(), tmp_path), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    weight = torch.tensor(0.5, requires_grad=True)
    loss = budget_loss(weight, slice(None))
    loss.backward()
    for share, result in zip(SHARES, results, strict=True):
        torch.testing.assert_close(result["loss"], loss.item())
        torch.testing.assert_close(result["grad"], weight.grad)
        torch.testing.assert_close(result["alone"], budget_loss(weight, share).item())
    assert results[0]["drops"] == results[1]["drops"] == list(drops(1000))
    assert 300 < sum(dropped for dropped, _ in results[0]["drops"]) < 500
