"""One implementation in a process of its own: `python -m bench_peers.worker NAME DEVICE THREADS`.

It reads one JSON object per line from standard input and answers each with one on standard output:
    {"do": "prepare", "cell": {...}}     -> {"seconds": how long a first call took} or {"unsupported": reason}
    {"do": "sample", "repetitions": n, "alone": bool} -> {"seconds": mean of n calls, each timed by itself}; if `alone`,
                                            one call warms up, and at the end memory goes back to the system
    {"do": "release"}                    -> {"released": whether freed memory went back to the system}
    {"do": "peak"}                       -> {"peak_bytes": extra memory at the worst moment of one call}
Before the first question it says {"ready": version} or {"missing": reason}. Other output goes to standard error.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import statistics
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from benchmarking import peak_bytes, seconds
from torch import nn

from bench_peers import Cell, Unsupported
from moe_nmt.memory import keep_freed_memory

LOSS_WEIGHT = 0.01


class Bench:
    """The prepared cell of one implementation."""

    def __init__(self, implementation: ModuleType):
        self.build: Callable[[Cell], nn.Module] = implementation.build
        self.check: Callable[[Cell], None] = getattr(implementation, "check", lambda cell: None)
        self.layer: nn.Module | None = None
        self.built_for: Cell | None = None

    def prepare(self, cell: dict[str, Any]) -> dict[str, Any]:
        """Build the layer, unless the last cell differs in tokens and mode alone, and call it once."""
        self.cell = Cell(**cell)
        shape = Cell(**{**cell, "tokens": 0, "mode": ""})
        try:
            self.cell.require_memory(self.cell.expert_bytes)
            self.check(self.cell)
            if self.built_for != shape:
                self.layer = self.built_for = None
                torch.manual_seed(0)
                self.layer = self.build(self.cell).to(self.cell.device, getattr(torch, self.cell.dtype))
                self.built_for = shape
            self.x_ND = self.cell.x_ND().requires_grad_(self.cell.mode == "training")
            self.gradient_ND = torch.randn_like(self.x_ND)
            self.layer.train(self.cell.mode == "training")
            return {"seconds": self.timed()}
        except Unsupported as reason:
            return {"unsupported": str(reason)}
        except Exception as error:  # of code that is not ours
            self.layer = self.built_for = None
            return {"unsupported": f"failed with {type(error).__name__}: {error}"}

    def call(self) -> None:
        """One step: forward, loss and backward in training, forward alone without gradients in inference."""
        if self.cell.mode == "inference":
            with torch.no_grad():
                self.layer(self.x_ND)
            return
        y_ND, balance = self.layer(self.x_ND)
        loss = (y_ND * self.gradient_ND).sum()
        (loss if balance is None else loss + LOSS_WEIGHT * balance).backward()

    def forget_gradients(self) -> None:
        """As an optimizer's `zero_grad` does; never timed."""
        self.x_ND.grad = None
        self.layer.zero_grad(set_to_none=True)

    def timed(self) -> float:
        elapsed = seconds(self.call, self.cell.device)
        self.forget_gradients()
        return elapsed

    def sample(self, repetitions: int, alone: bool) -> dict[str, Any]:
        if alone:
            self.timed()
        mean = statistics.fmean(self.timed() for _ in range(repetitions))
        if alone:
            self.release()
        return {"seconds": mean}

    def release(self) -> dict[str, Any]:
        """Give the system what was freed; between two such questions it stays with the process."""
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        return {"released": trim is not None and bool(trim(0))}

    def peak(self) -> dict[str, Any]:
        extra = peak_bytes(self.call, self.cell.device)
        self.forget_gradients()
        self.release()
        return {"peak_bytes": extra}


def main(name: str, device: str, threads: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    torch.set_num_threads(threads)
    keep_freed_memory()
    try:
        implementation = importlib.import_module(f"bench_peers.{name}")
    except ImportError as error:
        return answer({"missing": f"not installed ({error})"})
    if getattr(implementation, "NEEDS_CUDA", False) and not device.startswith("cuda"):
        return answer({"missing": "needs a GPU"})
    bench = Bench(implementation)
    answer({"ready": torch.__version__})
    for line in sys.stdin:
        question = json.loads(line)
        answer(getattr(bench, question.pop("do"))(**question))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
