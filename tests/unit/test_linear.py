"""The linear maps that go through oneDNN."""

import pytest
import torch
from torch.nn import functional

from moe_nmt.moe import linear as module
from moe_nmt.moe.linear import Linear, linear


@pytest.mark.parametrize("shape", [(40,), (5, 8)])
@pytest.mark.parametrize(("inputs", "outputs"), [(24, 40), (40, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_torch(monkeypatch, shape, inputs, outputs, bias):
    monkeypatch.setattr(module, "SMALLEST", 1)
    torch.manual_seed(0)
    tensors = [torch.randn(*shape, inputs), torch.randn(outputs, inputs), torch.randn(outputs) if bias else None]
    results = []
    for function in (linear, functional.linear):
        x, weight, b = (None if tensor is None else tensor.clone().requires_grad_() for tensor in tensors)
        y = function(x, weight, b)
        y.square().sum().backward()
        results.append([y, x.grad, weight.grad] + ([b.grad] if bias else []))
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(linear(*tensors), functional.linear(*tensors), rtol=1e-4, atol=1e-4)


def test_only_what_needs_a_gradient_gets_one(monkeypatch):
    monkeypatch.setattr(module, "SMALLEST", 1)
    layer = Linear(8, 4).requires_grad_(False)
    x = torch.randn(3, 8, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, 8))
    assert layer.weight.grad is None and layer.bias.grad is None


def test_other_precisions_empty_batches_and_autocast(monkeypatch):
    monkeypatch.setattr(module, "SMALLEST", 1)
    layer = Linear(8, 4)
    assert layer(torch.randn(0, 8)).shape == (0, 4)
    assert copy_in(layer, torch.bfloat16)(torch.randn(3, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, 8)).dtype == torch.bfloat16


def copy_in(layer: Linear, dtype: torch.dtype) -> Linear:
    return Linear(layer.in_features, layer.out_features, dtype=dtype)
