"""How fairseq's commands start their ranks, on GPUs and on CPUs, and how a rank ends when another one has."""

from __future__ import annotations

import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

import torch
from fairseq.distributed import utils as distributed_utils
from torch import distributed, multiprocessing
from torch.multiprocessing.spawn import ProcessExitedException

from moe_nmt.distributed.processes import end_process, free_port
from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin.compat import sentence

TORCHRUN = {"MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"}
"""The variables by which torchrun tells a process who it is."""
DEFAULT_TIMEOUT = 600.0
"""Seconds, where the task has no `--moe-timeout`."""
GRACE = 5.0
"""Seconds that the other ranks of a launcher have to end by themselves when one has failed."""
LOSSES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "Application timeout caused pair closure",
    "connectFullMesh failed",
    "ncclRemoteError",
)
"""What gloo and NCCL say when another rank has ended or is silent."""
WAY_OUT = "the same command goes on from the last checkpoint."


class LostRank(UserError):
    """Another rank has ended, or is silent."""


def launching(call_main: Callable[..., Any]) -> Callable[..., Any]:
    """fairseq's `call_main`, which runs the `main` of a command on one rank or on many, with more ways to have many:

    torchrun (on any number of nodes) and fairseq's own launcher, on a CPU too, where the backend is gloo. Ranks wait
    for one another for `--moe-timeout` seconds; one that fails ends at once with one sentence, or the traceback of a
    bug. Of the processes that fairseq's launcher spawned, the first to fail is the one that is heard.
    """

    @functools.wraps(call_main)
    def call_main_on_ranks(cfg: Any, main: Callable[..., Any], **kwargs: Any) -> Any:
        settle(cfg)
        training = cfg.distributed_training
        if cfg.common.tpu or training.distributed_init_method is None:
            return call_main(cfg, main, **kwargs)
        if training.distributed_no_spawn:
            return run_rank(training.device_id, main, cfg, kwargs)
        return spawn(main, cfg, kwargs)

    return call_main_on_ranks


def on_cpu(cfg: Any) -> bool:
    """Whether the ranks compute on a CPU."""
    return bool(cfg.common.cpu) or not torch.cuda.is_available()


def settle(cfg: Any) -> None:
    """Find out how many ranks there are, which is this one, and how they meet.

    Raises:
        UserError: if there are fewer GPUs than ranks.
    """
    training = cfg.distributed_training
    if on_cpu(cfg):
        training.distributed_backend = "gloo"
        if training.ddp_backend in ("pytorch_ddp", "c10d"):  # which fairseq builds for one GPU a rank
            training.ddp_backend = "legacy_ddp"
    if cfg.common.tpu or training.distributed_init_method is not None:
        return
    if os.environ.keys() >= TORCHRUN:
        training.distributed_world_size = int(os.environ["WORLD_SIZE"])
        if training.distributed_world_size > 1:
            training.distributed_init_method = "env://"
            training.distributed_rank = int(os.environ["RANK"])
            training.device_id = int(os.environ.get("LOCAL_RANK", 0))
            training.distributed_no_spawn = True
    elif on_cpu(cfg) and training.distributed_world_size > 1:
        port = training.distributed_port if training.distributed_port > 0 else free_port()
        training.distributed_init_method = f"tcp://localhost:{port}"
    else:
        try:
            distributed_utils.infer_init_method(training)
        except AssertionError as error:
            raise UserError(
                f"--distributed-world-size {training.distributed_world_size} cannot be launched here ({error}); "
                "lower it, give --cpu, or start one process for each GPU of all nodes with torchrun."
            ) from None


def run_rank(index: int, main: Callable[..., Any], cfg: Any, kwargs: dict[str, Any], words: Any = None) -> None:
    """Be one rank. The process ends here: if it fails without the cleaning up that would wait for the others, and else
    by `end_process`.

    Args:
        index: the device, and for a spawned process also its place among them.
        words: a queue that takes what there is to say of a failure, and the exit status; None: it is printed.
    """
    limit = timeout(cfg)
    for name in ("init_process_group", "new_group"):
        setattr(distributed, name, functools.partial(getattr(distributed, name), timeout=limit))
    if on_cpu(cfg):
        distributed_utils.all_gather_list = gather_list
    try:
        distributed_utils.distributed_main(index, main, cfg, kwargs)
        if distributed.is_initialized():
            end_process()
    except Exception as error:
        _end(_as_loss(error, cfg), words)


def gather_list(data: Any, group: Any = None, max_size: int = 0) -> list[Any]:
    """fairseq's `all_gather_list` of any data, by rank, without its buffers on a GPU, whose size is limited."""
    group = distributed_utils.get_global_group() if group is None else group
    gathered = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(gathered, data, group=group)
    return gathered


def spawn(main: Callable[..., Any], cfg: Any, kwargs: dict[str, Any]) -> None:
    """Be the launcher of a process for each rank on this machine.

    Raises:
        SystemExit: if one failed, after what it had to say.
        LostRank: if one was killed, or was silent.
        UserError: if the rank cannot be that of a launcher.
    """
    training = cfg.distributed_training
    start, world = training.distributed_rank, training.distributed_world_size
    if on_cpu(cfg) and start > 0:
        raise UserError(f"--distributed-rank {start} is one process on a CPU: add --distributed-no-spawn.")
    training.distributed_rank = None  # fairseq counts from start_rank then
    kwargs["start_rank"] = start
    words = multiprocessing.get_context("spawn").SimpleQueue()
    count = world if on_cpu(cfg) else min(torch.cuda.device_count(), world)
    log = logging.getLogger()
    style = [handler.formatter for handler in log.handlers][:1], log.level
    ranks = multiprocessing.spawn(_run_spawned, (style, main, cfg, kwargs, words), nprocs=count, join=False)
    try:
        while not ranks.join(grace_period=GRACE):
            pass
    except ProcessExitedException as error:
        if not words.empty():
            text, status = words.get()
            print(text, file=sys.stderr, flush=True)
            raise SystemExit(status) from None
        name = error.signal_name
        what = f"rank {start + error.error_index} was killed by {name}" if name else _loss(cfg)
        raise LostRank(f"{what}; {WAY_OUT}") from None


def _run_spawned(index: int, style: tuple[list[Any], int], *args: Any) -> None:
    """`run_rank` where importing fairseq's models has set up another log than that of the command."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(*style[0] or [None])
    logging.basicConfig(handlers=[handler], level=style[1], force=True)
    run_rank(index, *args)


def timeout(cfg: Any) -> timedelta:
    """How long a rank waits for another."""
    seconds = getattr(cfg.task, "moe_timeout", DEFAULT_TIMEOUT)
    if not seconds > 0:
        raise UserError(f"--moe-timeout {seconds:g} must be more than 0 seconds.")
    return timedelta(seconds=seconds)


def _loss(cfg: Any) -> str:
    ranks = cfg.distributed_training.distributed_world_size
    return (
        f"one of the {ranks} ranks has ended, or been silent for {timeout(cfg).total_seconds():g} s (--moe-timeout), "
        "and the others cannot go on without it"
    )


def _as_loss(error: Exception, cfg: Any) -> Exception:
    """A `LostRank` if that is what the error means, else the error."""
    text, meeting = str(error), cfg.distributed_training.distributed_init_method
    if "EADDRINUSE" in text:
        return UserError(f"another process listens on the port of {meeting}; choose another port.")
    lost = isinstance(error, distributed.DistNetworkError | distributed.DistStoreError)
    if lost or (isinstance(error, RuntimeError) and any(loss in text for loss in LOSSES)):
        return LostRank(f"{_loss(cfg)}; {WAY_OUT}")
    return error


def _end(error: Exception, words: Any) -> NoReturn:
    told = sentence(error)
    text = f"moe_nmt: error: {told}" if told else "".join(traceback.format_exception(error)).rstrip()
    status = 2 if told else 1
    if words is None:
        print(text, file=sys.stderr)
    elif not isinstance(error, LostRank):
        words.put((text, status))
    end_process(status)


def install() -> None:
    """Make fairseq's commands launch their ranks in this way."""
    distributed_utils.call_main = launching(distributed_utils.call_main)
