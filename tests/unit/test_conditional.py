"""CMR against its definition: mixing, gate dropout, skipping in evaluation, and the budget loss by hand.

Shape letters: N tokens, D model width.
"""

import math

import pytest
import torch

from moe_nmt.moe import BRANCHES, LOSSES, BranchGate, MoERecord, RoutingContext
from moe_nmt.registry import RegistryError
from tests.parts import DIM, make_layer, make_routing, tokens


def conditional(options="gate_dropout=0.0", bias=None):
    branch = BRANCHES.build(f"conditional({options})", dim=DIM, ffn_dim=16)
    if bias is not None:
        torch.nn.init.zeros_(branch.gate.weight)
        torch.nn.init.constant_(branch.gate.bias, bias)
    return branch


def plain(layer, x_ND):
    """What the layer's experts say without the branch."""
    branch, layer.branch = layer.branch, None
    y_ND, _ = layer(x_ND)
    layer.branch = branch
    return y_ND


def test_the_gate_mixes_the_shared_network_and_the_experts():
    layer, x_ND = make_layer(branch=conditional()), tokens()
    gate_N1 = (x_ND @ layer.branch.gate.weight.T + layer.branch.gate.bias).sigmoid()
    expected_ND = (1 - gate_N1) * layer.branch.ffn(x_ND) + gate_N1 * plain(layer, x_ND)
    y_ND, record = layer(x_ND)
    torch.testing.assert_close(y_ND, expected_ND)
    torch.testing.assert_close(record.gate.gate_N, gate_N1.squeeze(-1))
    assert record.gate.budget == 0.8


def test_an_open_gate_is_the_experts_and_a_shut_one_the_shared_network():
    x_ND = tokens()
    layer = make_layer(branch=conditional(bias=50.0))
    assert torch.equal(layer(x_ND)[0], plain(layer, x_ND))
    layer = make_layer(branch=conditional(bias=-50.0))
    torch.testing.assert_close(layer(x_ND)[0], layer.branch.ffn(x_ND))


@pytest.mark.parametrize(("rescale", "open_gate"), [(False, 0.5), (True, 0.625)])
def test_gate_dropout_shuts_the_gate_of_a_share_of_the_tokens(rescale, open_gate):
    count, p = 20_000, 0.2
    layer = make_layer(branch=conditional(f"gate_dropout={p}, rescale={rescale}", bias=0.0))
    x_ND = tokens(count)
    y_ND, record = layer(x_ND)
    shut_N = record.gate.gate_N == 0
    assert abs(shut_N.double().mean().item() - p) < 5 * math.sqrt(p * (1 - p) / count)
    assert record.gate.gate_N[~shut_N].unique().tolist() == pytest.approx([open_gate])
    torch.testing.assert_close(y_ND[shut_N], layer.branch.ffn(x_ND)[shut_N])
    torch.testing.assert_close(
        y_ND[~shut_N], (open_gate * plain(layer, x_ND) + (1 - open_gate) * layer.branch.ffn(x_ND))[~shut_N]
    )
    assert set(record.routing.token_A.tolist()) == set((~shut_N).nonzero().squeeze(-1).tolist())
    assert not (layer.eval()(x_ND)[1].gate.gate_N == 0).any()


def test_taking_shut_tokens_from_the_experts_changes_no_gradient():
    layer, x_ND = make_layer(branch=conditional("gate_dropout=0.5")), tokens().requires_grad_()
    parameters = [x_ND, *layer.parameters()]

    def gradients(mix):
        torch.manual_seed(2)
        return torch.autograd.grad(mix().square().sum(), parameters)

    def all_computed():
        routing = layer.router(x_ND, RoutingContext())
        _, gate = layer.branch.open(x_ND, routing)
        return layer.branch(x_ND, layer.dispatcher(x_ND, routing, layer.experts), gate)

    for found, expected in zip(gradients(lambda: layer(x_ND)[0]), gradients(all_computed), strict=True):
        torch.testing.assert_close(found, expected)


def test_evaluation_may_skip_what_the_gate_has_nearly_shut():
    layer, x_ND = make_layer(branch=conditional()).eval(), tokens(200)
    with torch.no_grad():
        layer.branch.gate.weight.mul_(20)
    exact_ND, exact = layer(x_ND)
    layer.branch.skip_below = 0.2
    skipped_ND, record = layer(x_ND)
    shut_N, open_N = exact.gate.gate_N < 0.2, exact.gate.gate_N > 0.8
    assert 20 < shut_N.sum() < 180 and 20 < open_N.sum() < 180
    assert not shut_N[record.routing.token_A].any()
    torch.testing.assert_close(skipped_ND[shut_N], layer.branch.ffn(x_ND)[shut_N])
    torch.testing.assert_close(skipped_ND[open_N], plain(layer, x_ND)[open_N])
    between_N = ~(shut_N | open_N)
    torch.testing.assert_close(skipped_ND[between_N], exact_ND[between_N])
    layer.train()
    assert not (layer(x_ND)[1].gate.gate_N == 0).any()


def record_of(gates, budget=0.8):
    gate_N = torch.as_tensor(gates)
    return MoERecord(make_routing([], gate_N.numel(), 4), RoutingContext(), BranchGate(gate_N, budget))


@pytest.mark.parametrize(("weight", "sign"), [((0.2, 0.5, 0.9, 0.4), -1), ((0.9, 1.0, 0.95, 0.85), 1)])
def test_the_budget_loss_by_hand(weight, sign):
    gate_N = torch.tensor(weight, requires_grad=True)
    value = LOSSES.build("gate_budget")([record_of(gate_N)])
    assert value.item() == pytest.approx(abs(sum(weight) / 4 - 0.8))
    value.backward()
    assert gate_N.grad.tolist() == pytest.approx([sign / 4] * 4)


def test_the_budget_is_one_for_all_layers_not_one_for_each():
    records = [record_of([0.6] * 6), record_of([1.0] * 2), MoERecord(make_routing([], 5, 4), RoutingContext())]
    assert LOSSES.build("gate_budget")(records).item() == pytest.approx(abs((6 * 0.6 + 2 * 1.0) / 8 - 0.8))


def test_without_a_gate_or_a_token_there_is_no_budget_loss():
    for records in ([MoERecord(make_routing([], 5, 4), RoutingContext())], [record_of([])]):
        assert LOSSES.build("gate_budget")(records).item() == 0


@pytest.mark.parametrize("option", ["budget=0.0", "budget=1.5", "gate_dropout=1.0", "skip_below=0.6", "inner_dim=0"])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(RegistryError, match=option.partition("=")[0]):
        conditional(option)


def test_the_shared_network_has_the_width_that_is_asked_for():
    assert conditional("inner_dim=5").ffn.fc1.weight.shape == (5, DIM)
