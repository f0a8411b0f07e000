"""What every branch promises.

Shape letters: N tokens, D model width.
"""

import pytest
import torch

from moe_nmt.moe import BRANCHES
from tests.parts import DIM, EXPERT_COUNT, SUPPLIED, TOKENS, examples, make_layer, make_routing, tokens

every_branch = pytest.mark.parametrize("spec", list(map(str, examples(BRANCHES))))


def build(spec):
    return BRANCHES.build(spec, **SUPPLIED)


def mix(branch, x_ND, y_ND):
    """The branch's output and gate for experts that say `y_ND`."""
    edges = [(token, token % EXPERT_COUNT, 1.0) for token in range(x_ND.shape[0])]
    _, gate = branch.open(x_ND, make_routing(edges, x_ND.shape[0], EXPERT_COUNT))
    return branch(x_ND, y_ND, gate), gate


@every_branch
@pytest.mark.parametrize("count", [TOKENS, 1, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_form(spec, dtype, count):
    mixed_ND, gate = mix(build(spec).to(dtype), tokens(count, dtype=dtype), tokens(count, dtype=dtype))
    assert mixed_ND.shape == (count, DIM) and mixed_ND.dtype == dtype and mixed_ND.isfinite().all()
    if gate is not None:
        assert gate.gate_N.shape == (count,) and gate.gate_N.dtype == torch.float32


@every_branch
def test_all_parameters_and_both_inputs_learn(spec):
    branch, x_ND, y_ND = build(spec), tokens().requires_grad_(), tokens().requires_grad_()
    mix(branch, x_ND, y_ND)[0].square().sum().backward()
    for name, tensor in {"x": x_ND, "y": y_ND, **dict(branch.named_parameters())}.items():
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.any(), name


@every_branch
def test_a_token_is_mixed_by_itself(spec):
    branch, x_ND, y_ND = build(spec).eval(), tokens(), tokens()
    torch.testing.assert_close(mix(branch, x_ND[3:7], y_ND[3:7])[0], mix(branch, x_ND, y_ND)[0][3:7])


@every_branch
def test_evaluation_is_deterministic(spec):
    branch = BRANCHES.build(spec, **SUPPLIED, dropout=0.5, activation_dropout=0.5).eval()
    layer, x_ND = make_layer(branch=branch).eval(), tokens()
    assert torch.equal(layer(x_ND)[0], layer(x_ND)[0])


@every_branch
@pytest.mark.parametrize("training", [True, False])
def test_assignments_that_a_branch_takes_away_have_no_part_in_the_output(spec, training):
    branch, x_ND, y_ND = build(spec).train(training), tokens(), tokens()
    edges = [(token, token % EXPERT_COUNT, 1.0) for token in range(TOKENS)]
    left, gate = branch.open(x_ND, make_routing(edges, TOKENS, EXPERT_COUNT))
    gone_N = torch.ones(TOKENS, dtype=torch.bool).index_fill(0, left.token_A, False)
    torch.testing.assert_close(branch(x_ND, y_ND, gate), branch(x_ND, y_ND.masked_fill(gone_N[:, None], 7.0), gate))
