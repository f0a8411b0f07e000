"""EOM and FOM against the closed forms of their mean and variance, with stated error bounds.

With p the rate, g the weights and y the outputs of the experts of a token, both have the mean (1-p) sum g y. The
variance is p(1-p) sum (g y)^2 for EOM and p(1-p) (sum g y)^2 for FOM.
Shape letters: N tokens, A assignments, D model width.
"""

import math

import pytest
import torch

from moe_nmt.moe import LOSSES, REGULARIZERS, MoELayer, RoutingContext, with_weight
from moe_nmt.moe.dispatch.reference import ReferenceDispatcher
from moe_nmt.moe.experts import Experts
from moe_nmt.moe.routers import Router
from moe_nmt.registry import RegistryError
from tests.parts import make_layer, make_routing, tokens

COUNT, P, G, Y = 40_000, 0.2, (0.7, 0.3), (3.0, 5.0)
NAMES = ["eom", "fom"]


class FixedRouter(Router):
    """Every token to expert 0 with weight .7 and to expert 1 with weight .3."""

    experts_per_token = 2

    def forward(self, x_ND, context):
        edges = [(token, expert, G[expert]) for expert in (0, 1) for token in range(x_ND.shape[0])]
        return make_routing(edges, x_ND.shape[0], 2)


class ConstantExperts(Experts):
    """Expert 0 says 3, expert 1 says 5, whatever the token."""

    num_experts = 2

    def forward(self, x_AD, count_E):
        return torch.tensor(Y).repeat_interleave(count_E)[:, None].expand_as(x_AD)


def constant_layer(regularizer):
    regularizers = [REGULARIZERS.build(regularizer)] if regularizer else []
    return MoELayer(FixedRouter(), ConstantExperts(), ReferenceDispatcher(), regularizers)


@pytest.mark.parametrize(
    ("name", "variance", "values"), [("eom", 1.0656, [0, 1.5, 2.1, 3.6]), ("fom", 2.0736, [0, 3.6])]
)
def test_mean_and_variance(name, variance, values):
    y_ND, _ = constant_layer(f"{name}(p={P})")(torch.zeros(COUNT, 3))
    assert torch.equal(y_ND[:, :1].expand(-1, 3), y_ND), "a mask is drawn per token, not per element"
    y_N = y_ND[:, 0].double()
    assert y_N.unique().tolist() == pytest.approx(values)
    assert abs(y_N.mean().item() - 2.88) < 5 * math.sqrt(variance / COUNT)
    fourth_moment = (y_N - 2.88).pow(4).mean().item()
    assert abs(y_N.var().item() - variance) < 5 * math.sqrt((fourth_moment - variance**2) / COUNT)


def test_expert_output_masks_are_independent_for_every_token_and_expert():
    _, record = constant_layer(f"eom(p={P})")(torch.zeros(COUNT, 1))
    masked_KN = torch.ones(2, COUNT, dtype=torch.bool)
    masked_KN[record.routing.expert_A, record.routing.token_A] = False
    joint = {(0, 0): (1 - P) ** 2, (0, 1): (1 - P) * P, (1, 0): P * (1 - P), (1, 1): P**2}
    for (first, second), probability in joint.items():
        share = ((masked_KN[0] == first) & (masked_KN[1] == second)).double().mean().item()
        assert abs(share - probability) < 5 * math.sqrt(probability * (1 - probability) / COUNT)
    neighbours = (masked_KN[0, 1:] & masked_KN[0, :-1]).double().mean().item()
    assert abs(neighbours - P**2) < 5 * math.sqrt(2 * P**2 / COUNT)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_multiplies_by_the_rate_of_what_is_kept(name):
    y_ND, _ = constant_layer(f"{name}(p={P})").eval()(torch.zeros(5, 3))
    torch.testing.assert_close(y_ND, torch.full((5, 3), 2.88))


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_of_a_trained_layer_is_one_minus_p_times_the_plain_one(name):
    layer, x_ND = make_layer(regularizers=[f"{name}(p=0.25)"]).eval(), tokens()
    masked_ND, _ = layer(x_ND)
    layer.regularizers = torch.nn.ModuleList()
    torch.testing.assert_close(masked_ND, 0.75 * layer(x_ND)[0])


@pytest.mark.parametrize(
    ("kept", "output", "gradient"),
    [((True, False), 2.1, (3.0, 0.0)), ((False, True), 1.5, (0.0, 5.0)), ((False, False), 0.0, (0.0, 0.0))],
)
def test_a_masked_expert_contributes_neither_output_nor_gradient(kept, output, gradient):
    eom = REGULARIZERS.build("eom")
    eom.kept = lambda like: torch.tensor(kept)
    weight_A = torch.tensor(G, requires_grad=True)
    routing = with_weight(FixedRouter()(torch.zeros(1, 3), RoutingContext()), weight_A)
    routing = eom.on_routing(routing, RoutingContext())
    y_ND = ReferenceDispatcher()(torch.zeros(1, 3), routing, ConstantExperts())
    torch.testing.assert_close(y_ND, torch.full((1, 3), output))
    y_ND[0, 0].backward()
    assert weight_A.grad.tolist() == pytest.approx(gradient)


def test_masking_before_the_experts_is_masking_their_outputs():
    """Values and all gradients of the layer equal those of multiplying the weights of masked assignments by 0."""
    layer, x_ND = make_layer("top_k(k=3)", regularizers=["eom(p=0.4)"]), tokens().requires_grad_()
    eom = layer.regularizers[0]

    def run():
        torch.manual_seed(5)
        y_ND, _ = layer(x_ND)
        return y_ND, *torch.autograd.grad(y_ND.square().sum(), [x_ND, *layer.parameters()])

    taken_away = run()
    eom.on_routing = lambda routing, _: with_weight(routing, routing.weight_A * eom.kept(routing.weight_A))
    for found, expected in zip(taken_away, run(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_load_balancing_loss_does_not_see_the_masks(name):
    x_ND = tokens()

    def balance(regularizers):
        torch.manual_seed(1)
        layer = make_layer(regularizers=regularizers)
        return LOSSES.build("load_balancing")([layer(x_ND)[1]]).item()

    assert balance([f"{name}(p=0.5)"]) == balance([])


@pytest.mark.parametrize("name", NAMES)
def test_the_rescaled_variant_scales_in_training_and_leaves_evaluation_alone(name):
    layer = constant_layer(f"{name}(p={P}, rescale=True)")
    y_N = layer(torch.zeros(COUNT, 1))[0][:, 0].double()
    variance = {"eom": 1.0656, "fom": 2.0736}[name] / (1 - P) ** 2
    assert abs(y_N.mean().item() - 3.6) < 5 * math.sqrt(variance / COUNT)
    assert y_N.max().item() == pytest.approx(3.6 / (1 - P))
    torch.testing.assert_close(layer.eval()(torch.zeros(2, 1))[0], torch.full((2, 1), 3.6))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_rate_zero_is_bit_identical_to_no_masking_also_where_experts_drop_out(name, training):
    def run(regularizers):
        torch.manual_seed(1)
        layer = make_layer(regularizers=regularizers).train(training)
        layer.experts.dropout.p = 0.3
        x_ND = tokens().requires_grad_()
        y_ND, _ = layer(x_ND)
        parameters = [x_ND, *layer.parameters()]
        return y_ND, *torch.autograd.grad(y_ND.square().sum(), parameters)

    for found, expected in zip(run([f"{name}(p=0)"]), run([]), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_scheduled_rate_follows_the_updates(name):
    layer = constant_layer(f"{name}(p=linear(start=0.0, end=0.4, steps=100))")
    for step, rate in {0: 0.0, 50: 0.2, 100: 0.4, 500: 0.4}.items():
        layer.regularizers[0].set_num_updates(step)
        evaluated_ND, _ = layer.eval()(torch.zeros(2, 1))
        torch.testing.assert_close(evaluated_ND, torch.full((2, 1), 3.6 * (1 - rate)))
        trained_ND, _ = layer.train()(torch.zeros(10_000, 1))
        whole, nothing = (trained_ND > 3.5).double().mean().item(), (trained_ND == 0).double().mean().item()
        expected = ((1 - rate) ** 2, rate**2) if name == "eom" else (1 - rate, rate)
        assert (whole, nothing) == pytest.approx(expected, abs=5 * math.sqrt(0.25 / 10_000))


@pytest.mark.parametrize("name", NAMES)
def test_the_step_survives_the_checkpoint(name, tmp_path):
    spec = f"{name}(p=linear(start=0.0, end=0.4, steps=100))"
    layer = constant_layer(spec)
    layer.regularizers[0].set_num_updates(50)
    torch.save(layer.state_dict(), tmp_path / "model.pt")
    resumed = constant_layer(spec)
    resumed.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert resumed.regularizers[0].step == 50
    torch.testing.assert_close(resumed.eval()(torch.zeros(1, 1))[0], torch.full((1, 1), 3.6 * 0.8))


@pytest.mark.parametrize("p", ["1", "1.5", "-0.1", "constant(value=1)", "linear(start=-1, end=0.2, steps=10)"])
@pytest.mark.parametrize("name", NAMES)
def test_a_rate_that_is_no_probability_is_refused(name, p):
    with pytest.raises(RegistryError, match="p must be at least 0 and below 1"):
        REGULARIZERS.build(f"{name}(p={p})")


@pytest.mark.parametrize("name", NAMES)
def test_masks_keep_the_precision(name):
    layer = make_layer(regularizers=[f"{name}(p=0.2)"]).bfloat16()
    for part in (layer, layer.eval()):
        assert part(tokens(dtype=torch.bfloat16))[0].dtype == torch.bfloat16
