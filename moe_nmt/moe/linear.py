"""Linear maps that are fast on every CPU.

In float32 torch multiplies with MKL, which on processors that are not Intel's uses no AVX-512; oneDNN, which torch also
carries, does (`feed_forward` against `dense` in scripts/bench_moe_layer.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

AVAILABLE = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


SMALLEST = 2**20
"""Products (rows times inputs times outputs) below which oneDNN's set-up costs more than it gains."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T + b`, as `torch.nn.functional.linear` to rounding, gradients too; float32 on a CPU goes through oneDNN."""
    plain = (
        not AVAILABLE
        or x.device.type != "cpu"
        or x.numel() * weight.shape[0] < SMALLEST
        or any(tensor is not None and tensor.dtype != torch.float32 for tensor in (x, weight, bias))
        or torch.is_autocast_enabled("cpu")
    )
    if plain:
        return functional.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in (x, weight, bias)):
        y: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return y
    return _multiply(x, weight, bias)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        ctx.shape = x.shape
        return _multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_NO = grad.reshape(-1, grad.shape[-1])
        grad_x = _multiply(grad_NO, weight.t()).view(ctx.shape) if needs_x else None
        grad_weight = None
        if needs_weight:
            x_NI = x.reshape(-1, x.shape[-1])
            wide = grad_NO.shape[1] > x_NI.shape[1]  # the shorter side first: oneDNN is twice as fast so
            grad_weight = _multiply(x_NI.t(), grad_NO.t()).t() if wide else _multiply(grad_NO.t(), x_NI.t())
        return grad_x, grad_weight, (grad_NO.sum(0) if needs_bias else None)


class Linear(nn.Linear):
    """`torch.nn.Linear` by way of `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Float32Linear(nn.Linear):
    """A linear map that multiplies in float32 whatever the dtype of weights and input, and answers in float32.

    For the small maps that decide on routes: Fedus et al. 2022 (Switch), section 2.4, selective precision.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return functional.linear(x.float(), self.weight.float(), bias)
