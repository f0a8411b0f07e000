"""Ranks of this machine, told who they are as torchrun does, forked from a process that has imported fairseq."""

import multiprocessing
import os
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

from moe_nmt.distributed.processes import free_port
from tests.fairseq.conftest import BIN

WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(["fairseq_cli.train", "moe_nmt.fairseq_plugin"])


@dataclass(frozen=True)
class Ended:
    """A rank that has ended."""

    status: int
    output: str
    errors: str


def be_rank(environment: dict[str, str], command: list[str], output: Path) -> None:
    """Be a process that runs a Python program, with its output in two files."""
    os.environ.update(environment)
    for number, path in ((1, output), (2, output.with_suffix(".errors"))):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def run(world: int, command, folder: Path, timeout: float = 300) -> list[Ended]:
    """Run a script, or a command of this Python, as so many ranks, their output in files of `folder`."""
    first, *rest = map(str, command)
    program = first if "/" in first else str(BIN / first)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    shared["OMP_NUM_THREADS"] = "1"
    outputs = [folder / f"rank{rank}.output" for rank in range(world)]
    ranks = [
        WARM.Process(
            target=be_rank, args=(shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, [program, *rest], output)
        )
        for rank, output in enumerate(outputs)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout)
        rank.kill()
    return [
        Ended(rank.exitcode, output.read_text(), output.with_suffix(".errors").read_text())
        for rank, output in zip(ranks, outputs, strict=True)
    ]


def must_run(world: int, command, folder: Path) -> list[Ended]:
    """`run`, and fail with the words of the ranks if one fails."""
    ranks = run(world, command, folder)
    words = "\n".join(f"{rank.output[-1500:]}\n{rank.errors[-3000:]}" for rank in ranks)
    assert [rank.status for rank in ranks] == [0] * world, words
    return ranks
