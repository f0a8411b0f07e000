"""One linear map per group of rows: the matrix products of all experts.

Shape letters: A rows, E groups, I input width, O output width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional


def grouped_linear(x_AI: Tensor, weight_EIO: Tensor, bias_EO: Tensor, count_E: Tensor) -> Tensor:
    """`x W_e + b_e`, where the first `count_E[0]` rows of `x_AI` belong to group 0, the next `count_E[1]` to group 1.

    In bfloat16 on a GPU this is `torch.nn.functional.grouped_mm`, which does not wait for the counts; elsewhere it is a
    loop over contiguous slices, at every precision (on a CPU the faster of the two: `sort_loop` against `grouped_mm` in
    scripts/bench_moe_layer.py). Returns float [A, O].
    """
    x_AI = x_AI.to(weight_EIO.dtype)  # they differ under autocast
    if x_AI.is_cuda and x_AI.dtype == torch.bfloat16 and _aligned(weight_EIO):
        offset_E = torch.cumsum(count_E, 0, dtype=torch.int32)
        row_A1 = torch.arange(x_AI.shape[0], device=x_AI.device)[:, None]
        member_AE = (row_A1 < offset_E) & (row_A1 >= offset_E - count_E)
        return functional.grouped_mm(x_AI, weight_EIO, offs=offset_E) + member_AE.to(x_AI.dtype) @ bias_EO
    looped: Tensor = _LoopedLinear.apply(x_AI, weight_EIO, bias_EO, count_E.tolist())  # type: ignore[no-untyped-call]
    return looped


def _aligned(weight_EIO: Tensor) -> bool:
    return all(size * weight_EIO.element_size() % 16 == 0 for size in weight_EIO.shape[1:])


def _slices(counts: list[int]) -> list[tuple[int, slice]]:
    """The non-empty groups and their rows."""
    groups, start = [], 0
    for group, count in enumerate(counts):
        if count:
            groups.append((group, slice(start, start + count)))
        start += count
    return groups


class _LoopedLinear(torch.autograd.Function):
    """The loop, with the stacked weight gradient written once (autograd through slices would write it per group)."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_AI: Tensor, weight_EIO: Tensor, bias_EO: Tensor, counts: list[int]) -> Tensor:
        y_AO = x_AI.new_empty(x_AI.shape[0], weight_EIO.shape[2])
        for group, rows in _slices(counts):
            torch.addmm(bias_EO[group], x_AI[rows], weight_EIO[group], out=y_AO[rows])
        ctx.save_for_backward(x_AI, weight_EIO)
        ctx.counts = counts  # type: ignore[attr-defined]
        return y_AO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_AI, weight_EIO = ctx.saved_tensors
        grad_AO = grads[0].contiguous()
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = torch.empty_like(x_AI) if needs_x else None
        grad_weight = torch.empty_like(weight_EIO) if needs_weight else None
        grad_bias = weight_EIO.new_zeros(weight_EIO.shape[0], weight_EIO.shape[2]) if needs_bias else None
        for group, rows in _slices(ctx.counts):
            if grad_x is not None:
                torch.mm(grad_AO[rows], weight_EIO[group].T, out=grad_x[rows])
            if grad_weight is not None:
                torch.mm(x_AI[rows].T, grad_AO[rows], out=grad_weight[group])
            if grad_bias is not None:
                torch.sum(grad_AO[rows], 0, out=grad_bias[group])
        if grad_weight is not None:
            for group, count in enumerate(ctx.counts):
                if count == 0:
                    grad_weight[group].zero_()
        return grad_x, grad_weight, grad_bias, None
