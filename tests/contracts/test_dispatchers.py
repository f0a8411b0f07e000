"""What every dispatcher promises: the values and gradients of the reference, which loops of the oracle confirm.

Shape letters: N tokens, E experts, A assignments, D model width.
"""

import pytest
import torch

from moe_nmt.moe import DISPATCHERS, EXPERTS
from moe_nmt.moe.routing import with_weight
from tests import oracle
from tests.parts import DIM, SUPPLIED, TOKENS, examples, make_routing, tokens

every_dispatcher = pytest.mark.parametrize("spec", list(map(str, examples(DISPATCHERS))))
every_kind = pytest.mark.parametrize("kind", list(map(str, examples(EXPERTS))))
ROUTES = {
    "two experts each": [(token, (token + shift) % 4, 0.1 * token) for shift in (0, 1) for token in range(TOKENS)],
    "any number of experts each": [
        (token, expert, 0.5) for expert in range(3) for token in range(0, TOKENS, expert + 1)
    ],
    "one expert for all": [(token, 2, 1.0 - 0.01 * token) for token in range(TOKENS)],
    "one assignment": [(5, 3, 0.5)],
    "none": [],
}


def run(spec, kind, routes, dtype):
    """Output and gradients with respect to input, weights and the experts' parameters."""
    torch.manual_seed(2)
    experts = EXPERTS.build(kind, **SUPPLIED).to(dtype)
    x_ND = tokens(dtype=dtype).requires_grad_()
    routing = make_routing(routes, TOKENS, experts.num_experts)
    weight_A = routing.weight_A.clone().requires_grad_()
    y_ND = DISPATCHERS.build(spec, num_experts=experts.num_experts)(x_ND, with_weight(routing, weight_A), experts)
    inputs = [x_ND, weight_A, *experts.parameters()]
    factor_ND = torch.linspace(-1, 1, y_ND.numel(), dtype=dtype).view_as(y_ND)
    gradients = torch.autograd.grad((y_ND * factor_ND).sum(), inputs, allow_unused=True)
    return y_ND, [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True)]


@every_dispatcher
@every_kind
@pytest.mark.parametrize("routes", ROUTES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_equal_the_reference(spec, kind, routes, dtype):
    expected = run("reference", kind, ROUTES[routes], dtype)
    torch.testing.assert_close(run(spec, kind, ROUTES[routes], dtype), expected, rtol=1e-5, atol=1e-6)


@every_dispatcher
@pytest.mark.parametrize("routes", ROUTES)
def test_values_equal_the_loops(spec, routes):
    experts = EXPERTS.build("ffn(count=4)", **SUPPLIED)
    routing, x_ND = make_routing(ROUTES[routes], TOKENS, 4), tokens()
    weights = {(token, expert): torch.tensor(weight) for token, expert, weight in ROUTES[routes]}
    stacked = (experts.weight1_EDF, experts.bias1_EF, experts.weight2_EFD, experts.bias2_ED)
    expected_ND = oracle.mixture(x_ND, weights, [[tensor[e] for tensor in stacked] for e in range(4)])
    torch.testing.assert_close(DISPATCHERS.build(spec, num_experts=4)(x_ND, routing, experts), expected_ND)


@every_dispatcher
@every_kind
def test_a_token_without_an_assignment_gets_zeros(spec, kind):
    y_ND, _ = run(spec, kind, [(3, 0, 1.0), (5, 1, 1.0)], torch.float32)
    assert y_ND.any(-1).nonzero().flatten().tolist() == [3, 5]


@every_dispatcher
@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tokens_give_no_output(spec, kind, dtype):
    experts = EXPERTS.build(kind, **SUPPLIED).to(dtype)
    x_ND = tokens(0, dtype=dtype).requires_grad_()
    y_ND = DISPATCHERS.build(spec, num_experts=experts.num_experts)(
        x_ND, make_routing([], 0, experts.num_experts), experts
    )
    assert y_ND.shape == (0, DIM) and y_ND.dtype == dtype
    y_ND.sum().backward()


@every_dispatcher
@every_kind
def test_the_precision_of_the_input_is_kept(spec, kind):
    y_ND, _ = run(spec, kind, ROUTES["two experts each"], torch.bfloat16)
    exact_ND, _ = run("reference", kind, ROUTES["two experts each"], torch.bfloat16)
    assert y_ND.dtype == torch.bfloat16
    torch.testing.assert_close(y_ND, exact_ND, rtol=0.05, atol=0.05)
