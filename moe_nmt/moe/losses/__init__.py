"""Losses on what the routers decided. One file, one loss.

Shape letters: N tokens (no padding), E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from moe_nmt.distributed.groups import world_size
from moe_nmt.moe.routing import MoERecord, num_tokens
from moe_nmt.registry import Registry
from moe_nmt.schedules import Schedule


class RoutingLoss:
    """The contract of every routing loss; it has no parameters and is no module.

    `weight` is its factor in the objective, in units of the task loss per target token. `loss(records)` with the
    records of all layers of a batch (at least one) returns a float32 scalar that carries gradients.
    """

    weight: float | Schedule

    def __call__(self, records: Sequence[MoERecord]) -> Tensor:
        raise NotImplementedError


class LayerwiseLoss(RoutingLoss):
    """A loss that is computed layer by layer from sums over the tokens, then summed or averaged over the layers.

    Args:
        weight: factor in the objective, a number or a schedule.
        combine: `sum` over the layers (NLLB) or `mean`.
        all_ranks: take the sums over the tokens of all data-parallel ranks, gradients included, so that N ranks have
            the loss of one rank with the whole batch, not the mean of N losses. Ranks must then call it alike; in
            evaluation, where they need not, each takes its own tokens.
    """

    def __init__(
        self,
        *,
        weight: float | Schedule = 0.01,
        combine: Literal["sum", "mean"] = "sum",
        all_ranks: bool = False,
    ):
        self.weight = weight
        self.combine = combine
        self.all_ranks = all_ranks

    def __call__(self, records: Sequence[MoERecord]) -> Tensor:
        sums = [self.sums(record) for record in records]
        tokens: list[int | Tensor] = [max(num_tokens(record.routing), 1) for record in records]
        if self.all_ranks and ranks_meet():
            counts = [total.new_tensor(num_tokens(record.routing)) for total, record in zip(sums, records, strict=True)]
            totals = sum_over_ranks([*sums, *counts])
            sums, tokens = totals[: len(records)], [count.clamp(min=1) for count in totals[len(records) :]]
        total = torch.stack([self.of_sums(*layer) for layer in zip(sums, tokens, strict=True)]).sum()
        return total / len(records) if self.combine == "mean" else total

    def sums(self, record: MoERecord) -> Tensor:
        """What the loss of one layer is made of: a float32 tensor of sums over its tokens, zeros if it saw none."""
        raise NotImplementedError

    def of_sums(self, sums: Tensor, tokens: int | Tensor) -> Tensor:
        """The loss of one layer, a float32 scalar, from its `sums` over so many tokens, at least 1."""
        raise NotImplementedError


def ranks_meet() -> bool:
    """Whether a loss over all ranks has others to hear from: in training, if there is more than one."""
    return torch.is_grad_enabled() and world_size() > 1


def sum_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sums of float32 tensors over all ranks, gradients included; all ranks call it with the same shapes.

    Every rank takes part in the backward pass too, also one whose tensors need no gradient.
    """
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    flat = flat if flat.requires_grad else flat.requires_grad_()
    parts = all_reduce(flat).split([tensor.numel() for tensor in tensors])  # type: ignore[no-untyped-call]
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def without_tokens(record: MoERecord) -> MoERecord:
    """The record of the same call as if it had seen no token; its tensors still carry (zero) gradients."""
    routing, context, gate = record
    per_token = {name: value for name, value in context._asdict().items() if name != "allowed_E" and value is not None}
    return MoERecord(
        routing._replace(
            token_A=routing.token_A[:0],
            expert_A=routing.expert_A[:0],
            weight_A=routing.weight_A[:0],
            prob_NE=routing.prob_NE[:0],
            logit_NE=routing.logit_NE[:0],
            dropped_E=None if routing.dropped_E is None else torch.zeros_like(routing.dropped_E),
        ),
        context._replace(**{name: value[:0] for name, value in per_token.items()}),
        None if gate is None else gate._replace(gate_N=gate.gate_N[:0]),
    )


LOSSES: Registry[RoutingLoss] = Registry("routing loss", __name__)
