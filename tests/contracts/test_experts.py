"""What every kind of experts promises.

Shape letters: A assignments, E experts, D model width.
"""

import pytest
import torch

from moe_nmt.moe import EXPERTS
from tests.parts import DIM, SUPPLIED, examples, tokens

every_kind = pytest.mark.parametrize("spec", list(map(str, examples(EXPERTS))))


def build(spec):
    return EXPERTS.build(spec, **SUPPLIED)


def counts(experts, kind):
    """Rows per expert: all, only the last, every second, or none."""
    numbers = {"all": [3] * experts, "last": [0] * (experts - 1) + [5], "some": [2, 0] * experts, "none": [0] * experts}
    return torch.tensor(numbers[kind][:experts])


@every_kind
@pytest.mark.parametrize("kind", ["all", "last", "some", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_row_is_computed_by_its_own_expert(spec, dtype, kind):
    experts = build(spec).to(dtype).eval()
    count_E = counts(experts.num_experts, kind)
    x_AD = tokens(int(count_E.sum()), dtype=dtype)
    y_AD = experts(x_AD, count_E)
    assert y_AD.shape == (int(count_E.sum()), DIM) and y_AD.dtype == dtype
    owner_A = torch.arange(experts.num_experts).repeat_interleave(count_E)
    for row, owner in enumerate(owner_A.tolist()):
        single_E = torch.zeros(experts.num_experts, dtype=torch.int64)
        single_E[owner] = 1
        alone_AD = experts(x_AD[row : row + 1], single_E)
        tolerance = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(y_AD[row : row + 1], alone_AD, rtol=tolerance, atol=tolerance)


@every_kind
def test_all_parameters_and_the_input_learn(spec):
    experts = build(spec)
    count_E = counts(experts.num_experts, "all")
    x_AD = tokens(int(count_E.sum())).requires_grad_()
    experts(x_AD, count_E).square().sum().backward()
    for name, tensor in {"x": x_AD, **dict(experts.named_parameters())}.items():
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.abs().max() > 0, name


@every_kind
def test_the_rows_of_one_expert_leave_the_input_of_the_others_alone(spec):
    experts = build(spec)
    count_E = counts(experts.num_experts, "all")
    x_AD = tokens(int(count_E.sum())).requires_grad_()
    experts(x_AD, count_E)[:3].square().sum().backward()
    assert x_AD.grad[:3].any() and not x_AD.grad[3:].any()


@every_kind
def test_an_expert_without_rows_gets_no_gradient(spec):
    experts = build(spec)
    experts(tokens(5), counts(experts.num_experts, "last")).square().sum().backward()
    for name, parameter in experts.named_parameters():
        if parameter.shape[0] == experts.num_experts:
            assert not parameter.grad[:-1].any() and parameter.grad[-1].any(), name


@every_kind
def test_no_rows_give_no_output_and_zero_gradients(spec):
    experts = build(spec)
    y_AD = experts(tokens(0).requires_grad_(), counts(experts.num_experts, "none"))
    assert y_AD.shape == (0, DIM)
    y_AD.sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in experts.parameters())


@every_kind
def test_evaluation_is_deterministic(spec):
    experts = EXPERTS.build(spec, **SUPPLIED, dropout=0.5, activation_dropout=0.5).eval()
    count_E = counts(experts.num_experts, "all")
    x_AD = tokens(int(count_E.sum()))
    assert torch.equal(experts(x_AD, count_E), experts(x_AD, count_E))
