"""One linear map per group of rows, against one `torch.nn.functional.linear` per row.

Shape letters: A rows, E groups, I input width, O output width.
"""

import pytest
import torch

from moe_nmt.moe.grouped_linear import grouped_linear

COUNTS = [[3, 2], [0, 5, 0], [5, 0, 0], [0, 0, 4], [1, 1, 1], [0, 0, 0]]


def arguments(counts, dtype=torch.float64, device="cpu", width_in=4, width_out=3):
    shapes = [(sum(counts), width_in), (len(counts), width_in, width_out), (len(counts), width_out)]
    return [torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for shape in shapes]


def row_by_row(x_AI, weight_EIO, bias_EO, counts):
    group_A = [group for group, count in enumerate(counts) for _ in range(count)]
    rows = [x_I @ weight_EIO[group] + bias_EO[group] for x_I, group in zip(x_AI, group_A, strict=True)]
    return torch.stack(rows) if rows else x_AI @ weight_EIO[0]


def values_and_gradients(function, inputs, counts):
    y_AO = function(*inputs, counts)
    factor_AO = torch.linspace(-1, 1, y_AO.numel(), dtype=y_AO.dtype, device=y_AO.device).view_as(y_AO)
    gradients = torch.autograd.grad((y_AO * factor_AO).sum(), inputs, allow_unused=True)
    return y_AO, [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True)]


@pytest.mark.parametrize("counts", COUNTS)
def test_values_and_gradients_equal_those_row_by_row(counts):
    inputs = arguments(counts)
    found = values_and_gradients(grouped_linear, inputs, torch.tensor(counts))
    torch.testing.assert_close(found, values_and_gradients(row_by_row, inputs, counts))


@pytest.mark.parametrize("counts", COUNTS[:3])
def test_gradients_equal_finite_differences(counts):
    torch.autograd.gradcheck(lambda *inputs: grouped_linear(*inputs, torch.tensor(counts)), arguments(counts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision_of_the_input_is_kept(dtype):
    inputs = arguments([3, 0, 2], dtype)
    y_AO, gradients = values_and_gradients(grouped_linear, inputs, torch.tensor([3, 0, 2]))
    exact = row_by_row(*[x.double() for x in inputs], [3, 0, 2])
    assert y_AO.dtype == dtype and all(gradient.dtype == dtype for gradient in gradients)
    torch.testing.assert_close(y_AO.double(), exact, rtol=8 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


def test_an_expanded_gradient_is_taken():
    inputs = arguments([3, 0, 2])
    grouped_linear(*inputs, torch.tensor([3, 0, 2])).sum().backward()
    torch.testing.assert_close(inputs[2].grad, torch.tensor([3.0, 0.0, 2.0], dtype=torch.float64)[:, None].expand(3, 3))


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_needs_no_gradient_gets_none(frozen):
    inputs = arguments([3, 0, 2])
    inputs[frozen].requires_grad_(False)
    grouped_linear(*inputs, torch.tensor([3, 0, 2])).square().sum().backward()
    assert [x.grad is None for x in inputs] == [position == frozen for position in range(3)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("counts", [[40, 0, 24], [0, 0, 0], [64, 0, 0]])
def test_half_precision_on_a_gpu_equals_the_loop(counts):
    inputs = arguments(counts, torch.bfloat16, "cuda", 32, 48)
    found = values_and_gradients(grouped_linear, inputs, torch.tensor(counts, device="cuda"))
    exact = [x.detach().float().cpu().requires_grad_() for x in inputs]
    expected = values_and_gradients(grouped_linear, exact, torch.tensor(counts))
    found_flat, expected_flat = [found[0], *found[1]], [expected[0], *expected[1]]
    for value, wanted in zip(found_flat, expected_flat, strict=True):
        torch.testing.assert_close(value.float().cpu(), wanted, rtol=0.05, atol=0.1)
