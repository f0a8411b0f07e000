"""Commands on the ranks that torchrun started."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any, TypeVar

from fairseq.dataclass.configs import FairseqConfig
from fairseq.distributed.utils import get_global_rank
from torch import distributed

from moe_nmt.distributed.groups import world_size
from moe_nmt.distributed.processes import end_process
from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin import launch

T = TypeVar("T")


def on_ranks(function: Callable[[], object], cpu: bool) -> None:
    """Call a function on this rank, where it finds the process group of all that torchrun started, if several.

    Several ranks end here, with status 0, or if they fail 2; of those that fail the first is heard.
    """
    if not os.environ.keys() >= launch.TORCHRUN or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        function()
        return
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a rank that is gone is an error to tell of
    cfg = FairseqConfig()
    cfg.common.cpu = cpu
    launch.settle(cfg)

    def main(_: Any) -> None:
        store = distributed.distributed_c10d._get_default_store()
        try:
            function()
            leave()
            end_process()
        except Exception as error:
            explained = _explained(error)
            if not _is_first_to_fail(store, explained):
                end_process(2)
            raise explained from None

    launch.run_rank(cfg.distributed_training.device_id, main, cfg, {})


def leave() -> bool:
    """Leave the process group when all ranks are done with it; whether this is the one that goes on alone, rank 0."""
    first: bool = get_global_rank() == 0
    if world_size() > 1:
        distributed.barrier()
        distributed.destroy_process_group()
    return first


def from_all(value: T) -> list[T]:
    """The values, which pickle can hold, of all ranks in order; every rank calls it."""
    values = [value] * world_size()
    if world_size() > 1:
        distributed.all_gather_object(values, value)
    return values


def _is_first_to_fail(store: Any, error: Exception) -> bool:
    """Where the store is gone, so is the rank that had it, and it has said why, unless it was killed."""
    try:
        return int(store.add("moe_nmt/failures", 1)) == 1
    except distributed.DistError:
        return isinstance(error, launch.LostRank)


def _explained(error: Exception) -> Exception:
    """What to tell the user of."""
    if isinstance(error, RuntimeError) and any(loss in str(error) for loss in launch.LOSSES):
        return launch.LostRank(
            "one of the processes has ended, and the others cannot go on without it; give the same command again."
        )
    return UserError(str(error)) if isinstance(error, OSError) else error
