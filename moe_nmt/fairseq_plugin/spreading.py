"""Models whose experts are spread over ranks, in translation: each rank has its own sentences."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from moe_nmt.distributed.groups import world_size
from moe_nmt.distributed.lockstep import LockStep
from moe_nmt.fairseq_plugin.model import expert_group_of
from moe_nmt.moe import MoELayer, RoutingContext
from moe_nmt.registry import Spec, parse


def spread_experts(state: dict[str, Any], chosen: Collection[str] = ()) -> None:
    """Have the model of a checkpoint built with its experts spread over the ranks there are, in place.

    Nothing is changed where there is one rank, or if `chosen`, the options that the user overrides, name a dispatcher.
    """
    options = state["cfg"]["model"]
    if world_size() == 1 or "moe_dispatch" in chosen or getattr(options, "moe_dispatch", None) is None:
        return
    trained = parse(options.moe_dispatch)
    kept = trained.options if trained.name == "all_to_all" else {}
    spec = Spec("all_to_all", {name: value for name, value in kept.items() if name != "ranks"})
    options.moe_dispatch, options.moe_ranks_per_node = str(spec), None


@contextlib.contextmanager
def in_lock_step(models: Sequence[nn.Module]) -> Iterator[LockStep | None]:
    """Let each rank run encoders and decoders as often as its own sentences need, whatever else does so in between.

    Every pass takes its turn, so that all ranks run the same stack at the same time, with sentences or without; at the
    end of the block a rank serves the others until all are there. None, and no communication, where experts are not
    spread.
    """
    group = expert_group_of(nn.ModuleList(models))
    if group.size == 1:
        yield None
        return
    stacks = [stack for model in models for stack in (model.decoder, model.encoder)]  # a later one goes first
    lock_step = LockStep(group.process_group, [functools.partial(serve, stack) for stack in stacks])
    hooks = [
        stack.embedding.register_forward_pre_hook(lambda *_, stage=stage: lock_step.enter(stage))
        for stage, stack in enumerate(stacks)
    ]
    try:
        yield lock_step
        lock_step.finish()
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def serve(stack: nn.Module) -> None:
    """Run the mixture-of-experts layers of an encoder or decoder for the sentences of other ranks."""
    nothing = stack.embedding.embed_tokens.weight[:0]
    no_token = torch.empty(0, dtype=torch.int64, device=nothing.device)
    context = RoutingContext(no_token, no_token, no_token, no_token)
    for layer in stack.modules():
        if isinstance(layer, MoELayer):
            layer(nothing, context)
