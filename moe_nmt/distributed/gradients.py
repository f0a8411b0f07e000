"""Gradients of parameters that other ranks do not have.

fairseq's names rule here: `parameter.expert` marks what data parallelism must leave alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn

from moe_nmt.distributed.groups import ExpertGroup, world_size


def mark_local(parameters: Iterable[nn.Parameter]) -> None:
    """Say of parameters that this rank has them alone, or together with its replicas."""
    for parameter in parameters:
        parameter.expert = True  # type: ignore[attr-defined]


def is_local(parameter: Tensor) -> bool:
    """Whether `mark_local` marked it."""
    return hasattr(parameter, "expert")


def average_gradients(parameters: Iterable[nn.Parameter], group: ExpertGroup) -> None:
    """Do for local parameters what data parallelism does for the others: the mean over all ranks, in place.

    What a rank has is the sum over the tokens of its expert group; it is summed over the replicas and divided by the
    number of all ranks. Ranks must have gradients of the same parameters; one that is None counts as zero.
    """
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.div_(world_size())
            if group.replica_group is not None:
                distributed.all_reduce(parameter.grad, group=group.replica_group)


def global_norm(norm: Tensor, local_gradients: Iterable[Tensor], group: ExpertGroup) -> Tensor:
    """The norm of all gradients, the same on all ranks: float32 scalar.

    `norm`: that of the gradients that all ranks have. `local_gradients`: those of this rank's own parameters; replicas
    have the same, and count once.
    """
    squares = [gradient.detach().float().square().sum() for gradient in local_gradients]
    local = torch.stack(squares).sum() if squares else torch.zeros((), device=norm.device)
    distributed.all_reduce(local)
    return (norm.float().square() + local.to(norm.device) / group.replicas).sqrt()
