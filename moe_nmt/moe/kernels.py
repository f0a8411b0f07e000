"""What a CPU computes faster in C++ than in PyTorch's own operators, each beside its PyTorch form.

The C++ (csrc/kernels.cpp) is compiled when the package is installed. Where it is missing, on other devices and at other
precisions than float32 the PyTorch form is used; values and gradients agree to rounding.

Shape letters: N tokens (no padding), E experts, A assignments, D model width, F inner width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def _load() -> bool:
    """Load the compiled operators. False: not built, or built for another torch, or more than this CPU can do."""
    for library in Path(__file__).parent.glob("_kernels*.so"):
        try:
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
        except OSError:
            return False
        return bool(torch.ops.moe_nmt.available())
    return False


LOADED = _load()


def usable(*tensors: Tensor) -> bool:
    """Whether the operators can take these tensors: all float32, on the CPU."""
    return LOADED and all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)


def sort_by_expert(expert_A: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """The stable order of the assignments by expert, int64 [A], and how many each expert has, int64 [E].

    `expert_A`: int64, below `num_experts`.
    """
    if LOADED and expert_A.device.type == "cpu":
        order_A, count_E = torch.ops.moe_nmt.sort_by_expert(expert_A, num_experts)
        return order_A, count_E
    count_E = expert_A.new_zeros(num_experts).scatter_add(0, expert_A, torch.ones_like(expert_A))
    return expert_A.argsort(stable=True), count_E  # bincount would wait for a GPU


def gather(x_ND: Tensor, token_A: Tensor) -> Tensor:
    """`x_ND[token_A]`; the gradient sums in the order of the assignments."""
    if usable(x_ND):
        gathered: Tensor = _Gather.apply(x_ND, token_A)  # type: ignore[no-untyped-call]
        return gathered
    return x_ND.index_select(0, token_A)


def combine(y_AD: Tensor, token_A: Tensor, weight_A: Tensor, num_tokens: int) -> Tensor:
    """For every token the sum over its assignments of weight times row, float [N, D] of the dtype of `y_AD`."""
    if usable(y_AD, weight_A):
        combined: Tensor = _Combine.apply(y_AD, token_A, weight_A, num_tokens)  # type: ignore[no-untyped-call]
        return combined
    weighted_AD = y_AD * weight_A.to(y_AD.dtype)[:, None]
    return weighted_AD.new_zeros(num_tokens, y_AD.shape[1]).index_add(0, token_A, weighted_AD)


def expert_ffn(
    x_AD: Tensor,
    weight1_EDF: Tensor,
    bias1_EF: Tensor,
    weight2_EFD: Tensor,
    bias2_ED: Tensor,
    count_E: Tensor,
    activation: str,
) -> Tensor:
    """`activation(x W1 + b1) W2 + b2`, float32 [A, D], each row by its expert; all tensors must be `usable`.

    `x_AD` holds the rows of expert 0 first, `count_E[0]` of them, then those of expert 1; the counts sum to A.
    `activation`: a name of `activation_function`.
    """
    tensors = (x_AD, weight1_EDF, bias1_EF, weight2_EFD, bias2_ED)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        y_AD: Tensor = _ExpertFFN.apply(*tensors, count_E, activation)  # type: ignore[no-untyped-call]
        return y_AD
    y_AD, _ = torch.ops.moe_nmt.expert_ffn(*tensors, count_E, activation, False)
    return y_AD


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, token_A: Tensor) -> Tensor:
        ctx.save_for_backward(token_A)
        ctx.num_tokens = x_ND.shape[0]
        return x_ND.index_select(0, token_A)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_AD: Tensor) -> tuple[Tensor | None, ...]:
        grad_ND: Tensor = torch.ops.moe_nmt.combine(grad_AD, ctx.saved_tensors[0], None, ctx.num_tokens)
        return grad_ND, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, y_AD: Tensor, token_A: Tensor, weight_A: Tensor, num_tokens: int) -> Tensor:
        ctx.save_for_backward(y_AD, token_A, weight_A)
        combined: Tensor = torch.ops.moe_nmt.combine(y_AD, token_A, weight_A, num_tokens)
        return combined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        grad_y_AD, grad_weight_A = torch.ops.moe_nmt.combine_backward(grad_ND, *ctx.saved_tensors)
        return grad_y_AD, None, grad_weight_A, None


class _ExpertFFN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_AD: Tensor,
        weight1_EDF: Tensor,
        bias1_EF: Tensor,
        weight2_EFD: Tensor,
        bias2_ED: Tensor,
        count_E: Tensor,
        activation: str,
    ) -> Tensor:
        y_AD: Tensor
        y_AD, inner_AF = torch.ops.moe_nmt.expert_ffn(
            x_AD, weight1_EDF, bias1_EF, weight2_EFD, bias2_ED, count_E, activation, True
        )
        ctx.save_for_backward(x_AD, inner_AF, weight1_EDF, weight2_EFD, count_E)
        ctx.activation = activation
        return y_AD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_AD: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[:5]
        grads = torch.ops.moe_nmt.expert_ffn_backward(grad_AD, *ctx.saved_tensors, ctx.activation, any(needed[1:]))
        return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), None, None


def _backward_shapes(
    grad: Tensor, x: Tensor, inner: Tensor, weight1: Tensor, weight2: Tensor, count: Tensor, activation: str, full: bool
) -> tuple[Tensor, ...]:
    experts = weight1.shape[0] if full else 0
    shapes = weight1.shape[1:], weight1.shape[2:], weight2.shape[1:], weight2.shape[2:]
    return torch.empty_like(x), *(x.new_empty(experts, *shape) for shape in shapes)


_SHAPES: dict[str, Callable[..., Any]] = {
    "sort_by_expert": lambda expert, experts: (torch.empty_like(expert), expert.new_empty(experts)),
    "combine": lambda x, token, weight, tokens: x.new_empty(tokens, x.shape[1]),
    "combine_backward": lambda grad, x, token, weight: (torch.empty_like(x), torch.empty_like(weight)),
    "expert_ffn": lambda x, weight1, bias1, weight2, bias2, count, activation, keep_inner: (
        torch.empty_like(x),
        x.new_empty(x.shape[0] if keep_inner else 0, weight1.shape[2]),
    ),
    "expert_ffn_backward": _backward_shapes,
}
"""What each operator returns, for torch.compile and torch.export."""

if LOADED:
    for _name, _function in _SHAPES.items():
        torch.library.register_fake(f"moe_nmt::{_name}", _function)
