"""Adam for models whose experts' weights are stacked.

Shape letters: E experts; what follows them is an expert's own shape.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moe_nmt.moe.layer import MoELayer

LOOK = 256
"""How many numbers of an expert's gradient are looked at before all of them are."""


def mark_stacked(model: nn.Module) -> None:
    """Tell `ExpertAdam` which parameters are stacked, [E, …]: each gets the attribute `num_experts`."""
    for layer in (m for m in model.modules() if isinstance(m, MoELayer)):
        for parameter in layer.experts.stacked().values():
            parameter.num_experts = layer.experts.num_experts  # type: ignore[attr-defined]


def touched_experts(gradient: Tensor) -> list[int]:
    """The experts whose slice of a stacked gradient [E, …] is not exactly zero, in order."""
    flat = gradient.flatten(1)
    at_first_look = flat[:, :LOOK].any(1).tolist()
    unsure = [expert for expert, touched in enumerate(at_first_look) if not touched]
    if unsure:
        counts = torch.stack([torch.count_nonzero(flat[expert]) for expert in unsure]).tolist()
        for expert, count in zip(unsure, counts, strict=True):
            at_first_look[expert] = count > 0
    return [expert for expert, touched in enumerate(at_first_look) if touched]


class Piece(NamedTuple):
    """What moves as one: a parameter or one expert's slice of it, with its gradient and its moments."""

    parameter: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class ExpertAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015) with decoupled weight decay (Loshchilov & Hutter 2019), by torch's fused kernels.

    With step t counted from 1, gradient g and moments m, v:

        p <- p * (1 - lr * weight_decay)
        m <- beta1 * m + (1 - beta1) * g        v <- beta2 * v + (1 - beta2) * g^2
        p <- p - lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps)

    This is fairseq's `adam`, to rounding and with the same state (`step`, `exp_avg`, `exp_avg_sq`); `torch.optim.AdamW`
    multiplies eps by sqrt(1 - beta2^t). Moments are float32; parameters of lower precision are computed in float32.

    With `touched_only`, an expert that got no gradient (its slice of a stacked parameter's gradient is exactly zero) is
    left alone: parameter, moments and step count stay as they are. It is then the Adam of the steps that touched it,
    where Adam itself would let its moments decay, go on moving it by what they hold, and decay its weights. Both are
    the same if every expert is touched in every step. Stacked parameters are those that `mark_stacked` marked; their
    `step` is an int64 tensor [E].

    Args:
        params: parameters or parameter groups.
        touched_only: see above; may be changed between the steps of a run.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        touched_only: bool = False,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.touched_only = touched_only

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, scale: Tensor | float = 1.0) -> float | None:  # type: ignore[override]
        """One step with the gradients divided by `scale`, in the same pass over memory. What has no gradient stays."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            together: dict[Any, list[Piece]] = defaultdict(list)
            for parameter in group["params"]:
                for step, piece in self._pieces(parameter):
                    alone = 0 if parameter.dtype == torch.float32 else len(together)  # spares memory for wide copies
                    together[step, parameter.device, alone].append(piece)
            for (step, *_), pieces in together.items():
                self._move(pieces, step, group, scale)
        return loss

    def _pieces(self, parameter: Tensor) -> Iterator[tuple[int, Piece]]:
        """What of a parameter is to be moved, each with the number of its step, which is counted here."""
        if parameter.grad is None:
            return
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.float32)
        for moment in ("exp_avg", "exp_avg_sq"):  # a loaded state may lie elsewhere, or be as narrow as the parameter
            state[moment] = state[moment].to(parameter.device, torch.float32)
        whole = Piece(parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
        if self.touched_only and hasattr(parameter, "num_experts") and not isinstance(state["step"], Tensor):
            state["step"] = torch.full((parameter.num_experts,), int(state["step"]))
        if not isinstance(state["step"], Tensor) or state["step"].dim() == 0:
            state["step"] += 1
            yield int(state["step"]), whole
            return
        experts = touched_experts(parameter.grad) if self.touched_only else list(range(len(parameter)))
        state["step"][experts] += 1
        steps = state["step"].tolist()
        for expert in experts:
            yield steps[expert], Piece(*(tensor[expert] for tensor in whole))

    def _move(self, pieces: list[Piece], step: int, group: dict[str, Any], scale: Tensor | float) -> None:
        beta1, beta2 = group["betas"]
        device = pieces[0].parameter.device
        wide = [piece.parameter.float() for piece in pieces]
        torch._fused_adamw_(
            wide,
            [piece.gradient.float() for piece in pieces],
            [piece.exp_avg for piece in pieces],
            [piece.exp_avg_sq for piece in pieces],
            [],
            [torch.full((), float(step), device=device)] * len(pieces),
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"] / math.sqrt(1 - beta2**step),
            amsgrad=False,
            maximize=False,
            grad_scale=_as_tensor(scale, device),
        )
        for piece, moved in zip(pieces, wide, strict=True):
            if moved is not piece.parameter:
                piece.parameter.copy_(moved)


def _as_tensor(scale: Tensor | float, device: torch.device) -> Tensor | None:
    """`scale` as the kernels take it: float32, None for 1."""
    if isinstance(scale, Tensor):
        return scale.detach().to(device, torch.float32).reshape(())
    return None if scale == 1 else torch.full((), float(scale), device=device)
