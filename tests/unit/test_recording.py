"""Records of a model's layers, their gradients with and without recomputation, and the statistics over them.

Shape letters: N tokens, E experts, L languages.
"""

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from moe_nmt.moe import (
    LOSSES,
    BranchGate,
    LayerRecord,
    MoERecord,
    RoutingContext,
    RoutingStatistics,
    drop_overflow,
    record_routing,
    summarize,
)
from tests.parts import make_layer, make_routing, tokens


class Stack(nn.Module):
    """Layers with residual connections, recomputed in the backward pass if asked for."""

    def __init__(self, layers, recompute=False):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.recompute = recompute

    def forward(self, x_ND):
        for layer in self.layers:
            y_ND, _ = checkpoint(layer, x_ND, use_reentrant=False) if self.recompute else layer(x_ND)
            x_ND = x_ND + y_ND
        return x_ND


def make_stack(recompute=False, **options):
    torch.manual_seed(5)
    return Stack([make_layer("top_k(k=2)", **options), make_layer("top_k(k=1)", **options)], recompute)


def hooks(model):
    return [len(module._forward_hooks) for module in model.modules()]


def test_records_come_with_the_names_of_their_layers_in_the_order_of_the_calls():
    model = make_stack()
    with record_routing(model) as records:
        model(tokens(6))
        model(tokens(3))
    assert [layer for layer, _ in records] == ["layers.0", "layers.1", "layers.0", "layers.1"]
    assert [record.routing.prob_NE.shape[0] for _, record in records] == [6, 6, 3, 3]
    assert [record.routing.token_A.numel() for _, record in records] == [12, 6, 6, 3]


def test_nothing_is_recorded_outside_the_scope():
    model = make_stack()
    before = hooks(model)
    model(tokens(6))
    with record_routing(model) as records:
        pass
    model(tokens(6))
    assert records == [] and hooks(model) == before


def test_the_hooks_are_removed_when_the_body_raises():
    model = make_stack()
    before = hooks(model)
    with pytest.raises(RuntimeError, match="out of luck"), record_routing(model):
        raise RuntimeError("out of luck")
    assert hooks(model) == before


def test_scopes_may_be_nested():
    model = make_stack()
    with record_routing(model) as outer, record_routing(model.layers[1]) as inner:
        model(tokens(6))
    assert [layer for layer, _ in outer] == ["layers.0", "layers.1"]
    assert [layer for layer, _ in inner] == [""]
    assert inner[0].record is outer[1].record


def gradients_of(model, loss, regard_output):
    x_ND = torch.linspace(-2, 2, 80).view(10, 8).requires_grad_()
    torch.manual_seed(7)
    with record_routing(model) as records:
        y_ND = model(x_ND)
    objective = LOSSES.build(loss)([record for _, record in records])
    if regard_output:
        objective = objective + y_ND.square().mean()
    objective.backward()
    assert len(records) == 2, "what is recomputed in the backward pass is not recorded again"
    return {"x": x_ND.grad, **{name: parameter.grad for name, parameter in model.named_parameters()}}


@pytest.mark.parametrize("loss", ["load_balancing", "z_loss"])
def test_a_loss_on_records_teaches_every_gate(loss):
    gradients = gradients_of(make_stack(), loss, regard_output=False)
    for layer in ("layers.0", "layers.1"):
        assert gradients[f"{layer}.router.gate.weight"].abs().max() > 0


@pytest.mark.parametrize("regard_output", [True, False])
@pytest.mark.parametrize("loss", ["load_balancing", "z_loss"])
@pytest.mark.parametrize("options", [{}, {"regularizers": ["eom(p=0.5)", "fom(p=0.2)"]}])
def test_recomputation_changes_no_gradient(options, loss, regard_output):
    plain = gradients_of(make_stack(**options), loss, regard_output)
    recomputed = gradients_of(make_stack(recompute=True, **options), loss, regard_output)
    for name, gradient in plain.items():
        assert (gradient is None) == (recomputed[name] is None), name
        assert gradient is None or torch.equal(recomputed[name], gradient), name


PROBABILITIES = [[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.25, 0.0]]
UNEVEN = make_routing(
    [(0, 0, 0.5), (1, 0, 0.5), (2, 0, 0.5), (3, 1, 0.5)],
    num_tokens=4,
    num_experts=4,
    logit_NE=torch.tensor(
        [[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.25, 0.0]]
    ).log(),
)


def test_summary_by_hand():
    summary = summarize(UNEVEN)
    entropies = [math.log(2), 0.0, math.log(4), 1.5 * math.log(2)]
    assert summary.entropy.item() == pytest.approx(sum(entropies) / 4)
    assert summary.balance.item() == pytest.approx(4 * (0.75**2 + 0.25**2))
    assert summary.share_E.tolist() == [0.75, 0.25, 0, 0]
    assert summary.max_load.item() == 0.75
    assert summary.unused.item() == 2
    assert summary.overflow.item() == 0


def test_summary_of_overflow_by_hand():
    summary = summarize(drop_overflow(UNEVEN, 1))
    assert summary.overflow.item() == pytest.approx(2 / 4)
    assert summary.balance.item() == pytest.approx(4 * (0.5**2 + 0.5**2))


@pytest.mark.parametrize(("experts", "balance", "unused"), [([0, 1, 2, 3], 1.0, 0), ([2, 2, 2, 2], 4.0, 3)])
def test_balance_is_one_when_uniform_and_the_number_of_experts_when_collapsed(experts, balance, unused):
    routing = make_routing([(token, expert, 1.0) for token, expert in enumerate(experts)], 4, 4)
    assert summarize(routing).balance.item() == pytest.approx(balance)
    assert summarize(routing).unused.item() == unused


def test_summary_of_nothing_is_zero():
    summary = summarize(make_routing([], 0, 4))
    assert all(not value.any() for value in vars(summary).values())


def record_with_languages(edges, source, target, experts=3):
    def languages(indices):
        return None if indices is None else torch.tensor(indices)

    context = RoutingContext(None, languages(source), languages(target))
    count = len(source or target or [])
    return MoERecord(make_routing([(t, e, 1.0) for t, e in edges], count, experts), context)


def test_statistics_count_by_language_and_layer_over_batches():
    statistics = RoutingStatistics(num_languages=3)
    first = record_with_languages([(0, 0), (0, 1), (1, 0), (1, 2)], source=[0, 2], target=[1, 1])
    second = record_with_languages([(0, 2), (1, 2), (2, 0)], source=[2, 2, 0], target=[0, 1, 1])
    other = record_with_languages([(0, 1)], source=[1], target=[0], experts=2)
    statistics.update([LayerRecord("decoder", first), LayerRecord("encoder", other)])
    statistics.update([LayerRecord("decoder", second)])
    assert statistics.layers == ["decoder", "encoder"]
    assert statistics.load("decoder", "source").tolist() == [[2, 1, 0], [0, 0, 0], [1, 0, 3]]
    assert statistics.load("decoder", "target").tolist() == [[0, 0, 1], [3, 1, 2], [0, 0, 0]]
    assert statistics.load("encoder", "source").tolist() == [[0, 0], [0, 1], [0, 0]]


def test_statistics_average_the_gates_by_language_and_layer_over_batches():
    def gated(gates, source):
        record = record_with_languages([(0, 0)], source, target=None)
        return LayerRecord("encoder", record._replace(gate=BranchGate(torch.tensor(gates), 0.8)))

    statistics = RoutingStatistics(num_languages=3)
    statistics.update([gated([0.5, 0.25, 1.0], [0, 2, 2]), LayerRecord("plain", record_with_languages([], [0], None))])
    statistics.update([gated([0.75], [2])])
    assert statistics.layers == ["encoder", "plain"] and statistics.gated_layers == ["encoder"]
    eng, deu, fra = statistics.gate("encoder", "source").tolist()
    assert (eng, fra) == (0.5, pytest.approx(2 / 3)) and math.isnan(deu)


def test_statistics_do_not_count_a_side_whose_language_is_unknown():
    statistics = RoutingStatistics(num_languages=2)
    statistics.update([LayerRecord("encoder", record_with_languages([(0, 1)], source=[1], target=None))])
    assert statistics.load("encoder", "source").tolist() == [[0, 0, 0], [0, 1, 0]]
    with pytest.raises(KeyError, match="target"):
        statistics.load("encoder", "target")


def test_statistics_of_an_empty_batch_are_zero():
    statistics = RoutingStatistics(num_languages=2)
    empty = MoERecord(make_routing([], 0, 3), RoutingContext(source_language_N=torch.zeros(0, dtype=torch.int64)))
    statistics.update([LayerRecord("encoder", empty)])
    assert statistics.load("encoder", "source").tolist() == [[0, 0, 0], [0, 0, 0]]
