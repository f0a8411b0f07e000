"""Commands on several ranks, started as torchrun starts them, but without its words and with a status for each."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from torch.distributed import TCPStore

from tests.fairseq.conftest import BIN, ROOT


def start(ranks: int, command: Sequence[str | Path]) -> list[subprocess.Popen]:
    """One process for each rank; what it prints is piped, as text. They meet in a store of this process."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = os.environ | {
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"},
        **{"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)},
        **{"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    }
    processes = []
    for rank in map(str, range(ranks)):
        own = shared | {"RANK": rank, "LOCAL_RANK": rank}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([str(c) for c in command], env=own, **pipes))
        processes[-1].store = store
    return processes


def finish(processes: list[subprocess.Popen]) -> list[subprocess.CompletedProcess]:
    """Wait for all; those that would wait for ever are killed, and the test fails."""
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]


def run_on_ranks(ranks: int, command: Sequence[str | Path]) -> list[subprocess.CompletedProcess]:
    """What each rank did and said."""
    return finish(start(ranks, command))


def must_run_on_ranks(ranks: int, command: Sequence[str | Path]) -> list[subprocess.CompletedProcess]:
    """`run_on_ranks`, and fail with the words of a rank that fails."""
    done = run_on_ranks(ranks, command)
    assert not any(rank.returncode for rank in done), "\n".join(rank.stderr[-3000:] for rank in done)
    return done
