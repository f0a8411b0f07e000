"""fairseq-generate by many ranks, as one would do it."""

from __future__ import annotations

import contextlib
import functools
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

from fairseq import checkpoint_utils, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed.utils import get_global_rank
from fairseq_cli import generate as command

from moe_nmt.distributed.groups import world_size
from moe_nmt.distributed.lockstep import LockStep
from moe_nmt.fairseq_plugin.ranks import from_all, on_ranks
from moe_nmt.fairseq_plugin.spreading import in_lock_step, spread_experts

fairseq_main = command.main


def main(args: Namespace) -> None:
    """fairseq-generate; on several ranks each translates a part of the batches, and rank 0 writes what one would."""
    cfg = convert_namespace_to_omegaconf(args)
    on_ranks(lambda: generate(cfg), cfg.common.cpu)


def install() -> None:
    """Make fairseq-generate run so, in this process."""
    command.main = main


def generate(cfg: Any) -> None:
    """fairseq's `main` on this rank of any number. All ranks go through all batches; those after the first are mute."""
    if world_size() == 1:
        fairseq_main(cfg)
        return
    with contextlib.ExitStack() as stack:
        load, load_file = checkpoint_utils.load_model_ensemble, checkpoint_utils.load_checkpoint_to_cpu

        def load_spread(path: str, arg_overrides: Any = None, *args: Any, **kwargs: Any) -> Any:
            settle = functools.partial(spread_experts, chosen=arg_overrides or ())
            return load_file(path, arg_overrides, *args, settle=settle, **kwargs)

        def load_in_lock_step(*args: Any, task: Any = None, **kwargs: Any) -> Any:
            models, saved = load(*args, task=task, **kwargs)
            lock_step = stack.enter_context(in_lock_step(models))
            if task is not None:
                task.inference_step = stack.enter_context(sharing_batches(task.inference_step, lock_step))
            return models, saved

        stack.enter_context(replaced(checkpoint_utils, "load_checkpoint_to_cpu", load_spread))
        stack.enter_context(replaced(checkpoint_utils, "load_model_ensemble", load_in_lock_step))
        if get_global_rank() == 0:
            fairseq_main(cfg)
        else:
            cfg.common_eval.quiet, cfg.common.log_format = True, "none"
            command._main(cfg, stack.enter_context(open(os.devnull, "w")))


@contextlib.contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Give a module another attribute for a while."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextlib.contextmanager
def sharing_batches(step: Callable[..., Any], lock_step: LockStep | None) -> Iterator[Callable[..., Any]]:
    """A task's `inference_step` for ranks that all go through the same batches: each does one of every W.

    Rank 0 gets the hypotheses of all batches, the others their own; in the place of the rest the references, which
    nobody looks at.
    """
    rank, ranks = get_global_rank(), world_size()
    number = 0
    found: list[Any] = []

    def exchange(own: Any) -> None:
        if lock_step is not None:
            lock_step.finish()
        found[:] = from_all(own)

    def shared_step(generator: Any, models: Any, sample: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal number
        whose, number = number % ranks, number + 1
        if whose == rank:
            exchange(utils.move_to_cpu(step(generator, models, sample, *args, **kwargs)))
        if whose == rank or rank == 0:
            return found[whose]
        texts = sample["net_input"]["src_tokens"] if sample["target"] is None else sample["target"]
        return [[{"tokens": tokens, "alignment": None}] for tokens in texts]

    yield shared_step
    if 0 < number % ranks <= rank:
        exchange(None)
