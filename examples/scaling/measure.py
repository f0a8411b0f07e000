"""Measure the constants of this machine, at the shapes of scripts/bench_distributed.py: about 3 minutes.

    python -m examples.scaling.measure examples/scaling/here.json [--rounds 3]

As many processes as there are cores, each with one thread, do the same at the same time, so that each constant is that
of a busy machine: a product of matrices as in a dense block, a sparse layer forward and back (router, sorting, experts,
combination), a step of Adam, an all-to-all and an all-reduce over gloo. Then as many trainings of the dense model,
apart from each other, give its utilization: their FLOPs by the time of an update less that of Adam. What is written is
the median over rounds and processes. Beside it, NAME.collectives.json has how long collectives take at 2 and 4 ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing, nn

from examples.scaling.shapes import PRECISIONS
from examples.scaling.validation import MODEL
from moe_nmt.data.text import write_text
from moe_nmt.distributed.processes import end_process
from moe_nmt.memory import keep_freed_memory
from moe_nmt.moe import DISPATCHERS, EXPERTS, ROUTERS, MoELayer
from moe_nmt.moe.linear import Linear
from moe_nmt.training.expert_adam import ExpertAdam
from scripts.bench_distributed import (
    LENGTH,
    SENTENCES,
    Case,
    figures,
    finish,
    free_port,
    start,
    train_arguments,
    write_corpus,
)
from scripts.benchmarking import run_script, seconds

TOKENS = SENTENCES * LENGTH
ROWS = TOKENS * MODEL.k * MODEL.dim * 4
"""Bytes that an all-to-all of the benchmark exchanges, those that stay at home included."""
GRADIENTS = 2**25
SMALL = 1024
PARAMETERS = 2**23
TURNS = 4


def computations() -> dict[str, Callable[[], Any]]:
    """What is timed of a process alone."""
    x = torch.randn(TOKENS, MODEL.dim)
    linear = Linear(MODEL.dim, MODEL.ffn_dim)
    layer = MoELayer(
        ROUTERS.build(f"top_k(k={MODEL.k})", dim=MODEL.dim, num_experts=MODEL.experts),
        EXPERTS.build(f"ffn(count={MODEL.experts})", dim=MODEL.dim, ffn_dim=MODEL.expert_dim),
        DISPATCHERS.build("sorted"),
    )
    rows = x.clone().requires_grad_()
    parameter = nn.Parameter(torch.zeros(PARAMETERS))
    parameter.grad = torch.randn(PARAMETERS)
    adam = ExpertAdam([parameter])

    def multiply() -> None:
        with torch.no_grad():
            linear(x)

    def train_layer() -> None:
        layer.zero_grad()
        layer(rows)[0].sum().backward()

    return {"product": multiply, "sparse layer": train_layer, "adam": adam.step}


def collectives(ranks: int) -> dict[str, Callable[[], Any]]:
    """What is timed of all processes together: exchanges of so many bytes."""
    found: dict[str, Callable[[], Any]] = {}
    for size in (SMALL, ROWS):
        given, taken = torch.zeros(size // 4), torch.zeros(size // 4)
        found[f"all_to_all {size}"] = lambda g=given, t=taken: distributed.all_to_all_single(t, g)
    for size in (SMALL, GRADIENTS):
        summed = torch.zeros(size // 4)
        found[f"all_reduce {size}"] = lambda s=summed: distributed.all_reduce(s)
    return found


def time_on_rank(rank: int, ranks: int, alone: bool, port: int, path: str) -> None:
    """The median seconds of everything on this rank, of 5 calls in each turn; rank 0 writes those of all."""
    torch.set_num_threads(1)
    keep_freed_memory()
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    calls = (computations() if alone else {}) | collectives(ranks)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(TURNS + 1):
        for name, call in calls.items():
            distributed.barrier()
            taken = statistics.median(seconds(call) for _ in range(5))
            if turn:
                found[name].append(taken)
    medians = {name: statistics.median(values) for name, values in found.items()}
    everyone: list[Any] = [None] * ranks
    distributed.all_gather_object(everyone, medians)
    if rank == 0:
        together = {name: statistics.median(each[name] for each in everyone) for name in medians}
        Path(path).write_text(json.dumps(together), encoding="utf-8")
    end_process()


def timed(ranks: int, alone: bool) -> dict[str, float]:
    """Seconds by name, with so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seconds.json"
        multiprocessing.spawn(time_on_rank, (ranks, alone, free_port(), str(path)), nprocs=ranks)
        found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return found


def dense_update(cores: int) -> float:
    """Seconds of an update of the dense model, one training on each core at the same time."""
    data = Path(tempfile.gettempdir()) / "moe_nmt_bench_distributed" / "data-bin"
    if not data.is_dir():
        write_corpus(data)
    case = Case(1, "")
    arguments = train_arguments(data, SENTENCES, 8, case)
    with ExitStack() as folders:
        places = [Path(folders.enter_context(tempfile.TemporaryDirectory())) for _ in range(cores)]
        trainings = [start(case, arguments, place) for place in places]
        done = [figures(finish(*training), 2) for training in zip(trainings, places, strict=True)]
    return statistics.median(each["seconds"] for each in done)


def timed_in_turn(cores: int, rounds: int) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Medians over rounds that time everything: seconds with a process on each core, and of collectives by ranks."""
    found: list[dict[str, float]] = []
    for turn in range(rounds):
        print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
        once = timed(cores, True) | {"dense update": dense_update(cores)}
        together = {ranks: timed(ranks, False) for ranks in (2, 4)}
        once |= {f"{ranks} {name}": taken for ranks, each in together.items() for name, taken in each.items()}
        found.append(once)
    median = {name: statistics.median(once[name] for once in found) for name in found[0]}
    return median, {str(ranks): {name: median[f"{ranks} {name}"] for name in each} for ranks, each in together.items()}


def machine_file(cores: int, taken: dict[str, float]) -> dict[str, Any]:
    """The JSON object of this machine, from seconds by name."""
    flops = 2 * TOKENS * MODEL.dim * MODEL.ffn_dim / taken["product"]
    memory_bandwidth = PARAMETERS * PRECISIONS["fp32"].moved / taken["adam"]
    dense = MODEL.without_experts()
    layers = taken["dense update"] - dense.dense_parameters * PRECISIONS["fp32"].moved / memory_bandwidth
    sent = {
        f"all_to_all {ROWS}": ROWS / cores * (cores - 1),
        f"all_reduce {GRADIENTS}": GRADIENTS * 2 / cores * (cores - 1),
    }
    bandwidth, reduce_bandwidth = (
        size / (taken[name] - taken[f"{name.split()[0]} {SMALL}"]) for name, size in sent.items()
    )
    link = {
        "bandwidth": bandwidth,
        "reduce_bandwidth": reduce_bandwidth,
        "latency": taken[f"all_to_all {SMALL}"] / (cores - 1),
    }
    here = "measured by examples/scaling/measure.py"
    return {
        "name": f"this machine, {cores} cores",
        "flops": flops,
        "utilization": 3 * sum(dense.dense_flops(TOKENS, LENGTH)) / layers / flops,
        "expert_utilization": 3 * MODEL.expert_flops(TOKENS) / taken["sparse layer"] / flops,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / cores,
        "memory_bandwidth": memory_bandwidth,
        "within": link,
        "across": link,
        "ranks_per_node": 2,
        "cores": cores,
        "overlaps": False,
        "measured": True,
        "sources": {
            "flops": f"{here}: a product of [{TOKENS}, {MODEL.dim}] and [{MODEL.dim}, {MODEL.ffn_dim}], float32",
            "utilization": f"{here}: fairseq-train with the dense model, a training on each core",
            "expert_utilization": f"{here}: a sparse layer, forward and back",
            "memory": "of the machine, by its cores",
            "memory_bandwidth": f"{here}: a step of Adam",
            "within": f"{here}: gloo, {cores} processes",
            "across": "as within: the nodes are simulated",
            "overlaps": "cores that copy rows do not compute",
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cores = max(2, os.cpu_count() or 2)
    os.environ |= {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000"}
    taken, together = timed_in_turn(cores, args.rounds)
    text = json.dumps(machine_file(cores, taken), indent=1)
    write_text(args.output, f"{text}\n")
    write_text(args.output.with_suffix(".collectives.json"), f"{json.dumps(together, indent=1)}\n")
    print(text, json.dumps(together, indent=1), sep="\n")


if __name__ == "__main__":
    sys.exit(run_script(main))
