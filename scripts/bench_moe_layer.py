"""How fast and how large one MoE layer is: against a dense network, against what the machine can do, and against peers.

    python scripts/bench_moe_layer.py --json moe_layer.json --plot moe_layer.png --patience 2.5   # the grid: 20 minutes
    python scripts/bench_moe_layer.py --quick   # a part of it: 2 minutes
    python scripts/bench_moe_layer.py --scaling --k 1 --json scaling.json --plot scaling.png  # growing work: 5 minutes

What is timed: one feed-forward layer with its router, dispatch, experts and combination, on random tokens. In training
the load-balancing loss is part of it, with a backward pass to the input and to all weights; gradients are set to None
between the steps, outside the timed region, as fairseq does. In inference: without gradients. All implementations get
the same input, the same router weights and so the same assignments, random expert weights, no dropout, the same number
of threads, and the C library set to keep freed memory (`moe_nmt.memory`), as in this project's training.

Against what:
  * `dense`: Linear(D, k F), ReLU, Linear(k F, D), the dense network of equal active FLOPs.
  * the roofline: the larger of FLOPs / matmul rate and bytes / copy bandwidth, both measured when the run starts (the
    best of some big matrix products, by MKL and by oneDNN; the best of some copies of 1 GiB into mapped memory,
    counting bytes read and written).
    FLOPs: 2 * 2 N k D F for the experts and 2 N D E for the router, three times that in training.
    Bytes: weights and biases of the experts that get a token, and of the router, once; input and output once; in
    training also the gradients of all of these once, and the inner activations [N k, F], which the backward pass
    needs, once.
  * the peers in `scripts/bench_peers`, each described in its file: what they drop, what their results are worth.

How: every implementation runs in a process of its own, of which one computes at a time. All take one sample in turn in
each round, in rotated order, after one call to warm up and one to measure memory; a sample is one call, or the mean of
as many calls as last 5 ms. Ratios are taken round by round; their median is reported. A peer whose rounds would take
more than `--patience` seconds gets fewer samples, 3 at least; if a single call takes longer than that, this call is its
figure, and it is left out with more tokens.

Rows of the JSON: `implementation, mode, device, dtype, tokens, experts, k`, `ms` (median), `ratio_to_dense`, `spread`
(interquartile range of that ratio; for `dense` of its ms, as a share of the median), `ratio_to_roofline`, `calls`
(samples behind the figure), `peak_bytes` (extra memory at the worst moment of one call, the weights not included; null
if not measured). Cells that a peer cannot do are under `left_out`, peers that are not there under `skipped`, each with
the reason. An interrupted run goes on with the same command: finished cells are read from the JSON.

Peers run in other Python environments, because they do not go together: `--peers NAME=PYTHON` names an interpreter.

    for peer in transformers4 transformers5 fairscale tutel; do python -m venv peers/$peer; done
    peers/transformers4/bin/pip install torch==2.13.0 numpy transformers==4.57.6
    peers/transformers5/bin/pip install torch==2.13.0 numpy "transformers>=5"
    peers/fairscale/bin/pip install torch==2.13.0 numpy setuptools wheel
    peers/fairscale/bin/pip install --no-build-isolation fairscale==0.4.13
    peers/tutel/bin/pip install torch==2.13.0 numpy setuptools wheel
    NO_CUDA=1 peers/tutel/bin/pip install --no-build-isolation git+https://github.com/microsoft/tutel  # CPU only
    python scripts/bench_moe_layer.py --json moe_layer.json --peers "sort_loop,grouped_mm,nllb_branch,\
transformers4=peers/transformers4/bin/python,transformers5=peers/transformers5/bin/python,\
fairscale=peers/fairscale/bin/python,tutel=peers/tutel/bin/python"

MegaBlocks (`pip install megablocks[gg]`) and ScatterMoE (from github.com/shawntan/scattermoe) need a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bench_peers import NAMES, Cell
from benchmarking import (
    Limits,
    Progress,
    Results,
    figure,
    interleave,
    machine,
    markdown_table,
    measure_limits,
    numbers,
    ratios,
    repetitions,
    run_script,
    summarize,
)

from moe_nmt.errors import UserError, suggest

SCRIPTS = Path(__file__).resolve().parent
MODES = ["training", "inference"]
GRID = {"tokens": [16, 64, 512, 4096, 16384], "experts": [4, 8, 32, 128], "k": [1, 2], "modes": MODES}
QUICK = {"tokens": [64, 4096], "experts": [8, 32], "k": [2], "modes": MODES}
SCALING = {
    "tokens": [4096, 8192, 16384, 32768, 65536],
    "experts": [8, 16, 32, 64, 128],
    "k": [2],
    "modes": ["training"],
}
SCALING_LIMITS = {"tokens": (0.9, 1.1), "experts": (1.3,)}
"""What the time per token may become, as a ratio to that of the first size of the series."""
QUICK_PEERS = ["sort_loop", "grouped_mm"]
ALWAYS = ("ours", "dense")
PEERS = [name for name in NAMES if name not in ALWAYS]
FEWEST_CALLS = 3


class WorkerError(Exception):
    """An implementation is not there, or its process ended; the message says why."""


class Worker:
    """The process of one implementation; see `bench_peers/worker.py` for what it understands."""

    def __init__(self, name: str, python: str, device: str):
        environment = {"GOMP_SPINCOUNT": "1000", "TOKENIZERS_PARALLELISM": "false"} | os.environ
        environment["PYTHONPATH"] = os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent)])
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            [python, "-m", "bench_peers.worker", name, device, str(torch.get_num_threads())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
            text=True,
        )

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer."""
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        status = self.process.wait()
        self.log.seek(0)
        last = (self.log.read().strip().splitlines() or [""])[-1]
        raise WorkerError(f"its process ended with status {status}: {last}")

    def ask(self, do: str, **question: Any) -> dict[str, Any]:
        """Ask and wait for the answer."""
        with contextlib.suppress(BrokenPipeError):  # `answer` says why
            print(json.dumps({"do": do, **question}), file=self.process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.log.close()


class Workers:
    """The running workers, by any key; one that ended is started again when it is asked for."""

    def __init__(self, pythons: Mapping[str, str], device: str):
        self.pythons, self.device = pythons, device
        self.running: dict[Hashable, Worker] = {}

    def start(self, names: Mapping[Hashable, str]) -> dict[str, str]:
        """Start the implementations called `names[key]` at the same time; returns why some could not."""
        started = {
            key: Worker(name, self.pythons[name], self.device)
            for key, name in names.items()
            if key not in self.running or self.running[key].process.poll() is not None
        }
        reasons = {}
        for key, worker in started.items():
            self.running[key] = worker
            try:
                answer = worker.answer()
            except WorkerError as error:
                answer = {"missing": str(error)}
            if "missing" in answer:
                reasons[names[key]] = answer["missing"]
                self.running.pop(key).close()
        return reasons

    def close(self) -> None:
        """End all processes."""
        for worker in self.running.values():
            worker.close()
        self.running.clear()


def measure(
    workers: Mapping[Hashable, Worker],
    cells: Mapping[Hashable, Cell],
    rounds: int,
    patience: float,
    full: Iterable[Hashable],
    alone: bool = False,
) -> dict[Hashable, dict[str, Any]]:
    """Measure every worker on its cell, in turn. Those in `full` get all their samples however long they take.

    `alone`: a worker gives its memory back after each sample, and warms up before the next.

    Returns per key `times` (seconds per round, NaN where none was taken) and `peak_bytes`, or `left_out`, the reason.
    """
    found: dict[Hashable, dict[str, Any]] = {}
    repeats: dict[Hashable, int] = {}
    calls: dict[Hashable, int] = {}
    for key in cells:
        with contextlib.suppress(WorkerError):
            workers[key].ask("release")
    for key, cell in cells.items():
        try:
            answer = workers[key].ask("prepare", cell=asdict(cell))
            if "unsupported" in answer:
                found[key] = {"left_out": answer["unsupported"]}
                continue
            first = answer["seconds"]
            if first > patience and key not in full:
                found[key] = {"times": [first, *[math.nan] * (rounds - 1)], "peak_bytes": None}
                continue
            found[key] = workers[key].ask("peak")
            again = workers[key].ask("sample", repetitions=1, alone=alone)["seconds"] if first < 1 else first
        except WorkerError as error:
            found[key] = {"left_out": str(error)}
            continue
        repeats[key] = repetitions(again)
        affordable = rounds if key in full else int(patience / max(again, 1e-5))
        calls[key] = min(rounds, max(FEWEST_CALLS, affordable))

    def sample(key: Hashable) -> float:
        try:
            return (
                math.nan
                if "left_out" in found[key]
                else workers[key].ask("sample", repetitions=repeats[key], alone=alone)["seconds"]
            )
        except WorkerError as error:
            found[key] = {"left_out": str(error)}
            return math.nan

    times = interleave({key: lambda key=key: sample(key) for key in repeats}, rounds, calls)
    for key, seconds in times.items():
        if "left_out" not in found[key]:
            found[key]["times"] = seconds
    return found


def roofline(cell: Cell, limits: Limits) -> float:
    """The seconds that the machine needs at least, as the docstring of this file counts them."""
    assignments, training = cell.tokens * cell.k, cell.mode == "training"
    flops = 2 * 2 * assignments * cell.dim * cell.ffn_dim + 2 * cell.tokens * cell.dim * cell.experts
    expert = 2 * cell.dim * cell.ffn_dim + cell.dim + cell.ffn_dim
    numbers_moved = cell.needed_experts() * expert + cell.experts * cell.dim + 2 * cell.tokens * cell.dim
    if training:
        flops, numbers_moved = 3 * flops, 2 * numbers_moved + assignments * cell.ffn_dim
    return limits.seconds(flops, numbers_moved * cell.number_bytes)


def rows_of(
    found: Mapping[Hashable, dict[str, Any]],
    names: Mapping[Hashable, str],
    cells: Mapping[Hashable, Cell],
    dense_of: Mapping[Hashable, Hashable],
    limits: Limits,
) -> dict[Hashable, dict[str, Any]]:
    """The rows of the JSON. `dense_of[key]` is the key of the dense network that `key` is compared with."""
    rows = {}
    for key, result in found.items():
        if "left_out" in result:
            continue
        dense = found[dense_of[key]]["times"]
        time, ratio = summarize(result["times"]), ratios(result["times"], dense)
        rows[key] = row(names[key], cells[key]) | {
            "ms": 1000 * time.median,
            "ratio_to_dense": ratio.median,
            "spread": number(time.spread / time.median if key == dense_of[key] else ratio.spread),
            "ratio_to_roofline": time.median / roofline(cells[key], limits),
            "calls": time.calls,
            "peak_bytes": result["peak_bytes"],
        }
    return rows


def number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def row(name: str, cell: Cell) -> dict[str, Any]:
    """What a row begins with."""
    fields = asdict(cell)
    return {"implementation": name} | {
        field: fields[field] for field in ("mode", "device", "dtype", "tokens", "experts", "k")
    }


def label(cell: Cell) -> str:
    """A cell in a few words."""
    return f"{cell.mode}, {cell.tokens} tokens, {cell.experts} experts, k = {cell.k}"


def identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Which cell a row belongs to."""
    return tuple(row[field] for field in ("mode", "tokens", "experts", "k"))


def bench_grid(args: argparse.Namespace, results: Results, pythons: dict[str, str], limits: Limits) -> None:
    """Measure all cells of the grid that the results do not hold yet."""
    data = results.data
    shapes = itertools.product(args.experts, args.k, args.modes, sorted(args.tokens))
    cells = [cell_of(args, mode, tokens, experts, k) for experts, k, mode, tokens in shapes if k <= experts]
    finished = {identity(row) for row in data["rows"]}
    todo = [cell for cell in cells if identity(asdict(cell)) not in finished]
    if len(todo) < len(cells):
        print(f"{len(cells) - len(todo)} of {len(cells)} cells are finished in {results.path}.", file=sys.stderr)
    if not todo:
        return
    workers = Workers(pythons, args.device)
    try:
        data["skipped"] = workers.start({name: name for name in pythons})
        progress = Progress([cost(cell) for cell in todo])
        for cell in todo:
            progress.begin(label(cell))
            workers.start({name: name for name in pythons if name not in data["skipped"]})
            require_basics(data["skipped"])
            reasons = too_slow(data["rows"], cell)
            running = {name: worker for name, worker in workers.running.items() if name not in reasons}
            names, of_cell = {name: name for name in running}, {name: cell for name in running}
            found = measure(running, of_cell, args.rounds, args.patience, ALWAYS)
            reasons |= {name: result["left_out"] for name, result in found.items() if "left_out" in result}
            require_basics(reasons)
            data["left_out"] += [row(name, cell) | {"reason": reason} for name, reason in reasons.items()]
            data["rows"] += rows_of(found, names, of_cell, {name: "dense" for name in running}, limits).values()
            results.save()
    finally:
        workers.close()


def cost(cell: Cell) -> float:
    """How long a cell takes in proportion to others, roughly."""
    return (300 + 3 * cell.experts + cell.tokens * cell.k) * (3 if cell.mode == "training" else 1)


def too_slow(rows: Iterable[dict[str, Any]], cell: Cell) -> dict[str, str]:
    """The implementations of which one call was too long with fewer tokens, and the reason to leave them out."""
    return {
        row["implementation"]: f"one call took {row['ms'] / 1000:.0f} s with {row['tokens']} tokens"
        for row in rows
        if row["calls"] == 1 and identity(row | {"tokens": cell.tokens}) == identity(asdict(cell))
    }


def require_basics(reasons: Mapping[str, str]) -> None:
    """Nothing can be compared without this project and the dense network."""
    for name in ALWAYS:
        if name in reasons:
            raise UserError(f"{name} cannot be measured: {reasons[name]}")


def bench_scaling(args: argparse.Namespace, results: Results, pythons: dict[str, str], limits: Limits) -> None:
    """Measure cost as work grows. The sizes of a series are measured in turn, each in a process of its own.

    The series `tokens` has all of `--tokens` with the first of `--experts`, `experts` all of `--experts` with the
    middle one of `--tokens`. The rows have two more fields: `series`, and `relative`, the time per token as a ratio to
    that of the first size of the series, round by round, with its `relative_spread`.
    """
    data, tokens = results.data, args.tokens[len(args.tokens) // 2]
    series = {
        "tokens": {size: cell_of(args, "training", size, args.experts[0], args.k[0]) for size in args.tokens},
        "experts": {size: cell_of(args, "training", tokens, size, args.k[0]) for size in args.experts},
    }
    todo = [name for name in series if name not in {row["series"] for row in data["rows"]}]
    if len(todo) < len(series):
        print(f"{len(series) - len(todo)} of {len(series)} series are finished in {results.path}.", file=sys.stderr)
    progress = Progress([sum(cell.tokens for cell in series[name].values()) for name in todo])
    for name in todo:
        progress.begin(f"training, {name} {', '.join(map(str, series[name]))}")
        measure_series(name, series[name], args, data, pythons, limits)
        results.save()


def measure_series(
    series: str,
    cells: Mapping[int, Cell],
    args: argparse.Namespace,
    data: dict[str, Any],
    pythons: Mapping[str, str],
    limits: Limits,
) -> None:
    """Add the rows of one series."""
    first = next(iter(cells))
    lanes = {(name, size): cell for size, cell in cells.items() for name in pythons}
    if series == "experts":
        lanes = {(name, size): cell for (name, size), cell in lanes.items() if name != "dense" or size == first}
    names = {lane: lane[0] for lane in lanes}
    workers = Workers(pythons, args.device)
    try:
        data["skipped"] = workers.start(names)
        require_basics(data["skipped"])
        lanes = {lane: cell for lane, cell in lanes.items() if lane in workers.running}
        full = [lane for lane in lanes if names[lane] in ALWAYS]
        found = measure(workers.running, lanes, args.rounds, args.patience, full, alone=True)
    finally:
        workers.close()
    left_out = {lane: result["left_out"] for lane, result in found.items() if "left_out" in result}
    require_basics({names[lane]: reason for lane, reason in left_out.items()})
    dense_of = {lane: ("dense", first if series == "experts" else lane[1]) for lane in lanes}
    for lane, line in rows_of(found, names, lanes, dense_of, limits).items():
        per_token = [seconds * cells[first].tokens / cells[lane[1]].tokens for seconds in found[lane]["times"]]
        relative = ratios(per_token, found[names[lane], first].get("times", [math.nan] * args.rounds))
        line |= {"series": series, "relative": number(relative.median), "relative_spread": number(relative.spread)}
        data["rows"].append(line)
    data["left_out"] += [row(names[lane], lanes[lane]) | {"reason": reason} for lane, reason in left_out.items()]


def cell_of(args: argparse.Namespace, mode: str, tokens: int, experts: int, k: int) -> Cell:
    """A cell with the widths, device and dtype of this run."""
    return Cell(mode, tokens, experts, k, args.dim, args.ffn_dim, args.device, args.dtype)


def order(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The implementations in the rows: ours, dense, then the peers."""
    present = {row["implementation"] for row in rows}
    return [name for name in [*ALWAYS, *PEERS] if name in present]


def tables(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, one table per mode: ratios to `dense`, and of ours to the roofline."""
    names = [name for name in order(rows) if name != "dense"]
    parts = []
    for mode in [mode for mode in MODES if any(row["mode"] == mode for row in rows)]:
        cells: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
        for line in rows:
            if line["mode"] == mode:
                key = (line["k"], line["tokens"], line["experts"], line.get("series", ""))
                cells.setdefault(key, {})[line["implementation"]] = line
        body = []
        for (k, tokens, experts, _), of_name in sorted(cells.items()):
            ms = figure(of_name["dense"]["ms"]) if "dense" in of_name else ""
            ratio = [figure(of_name[name]["ratio_to_dense"]) if name in of_name else "" for name in names]
            to_roofline = figure(of_name["ours"]["ratio_to_roofline"])
            body.append([str(tokens), str(experts), str(k), ms, *ratio, to_roofline])
        header = ["tokens", "experts", "k", "dense ms", *names, "ours / roofline"]
        parts.append(f"{mode}, as a ratio to dense\n\n{markdown_table(header, body)}")
    return "\n\n".join(parts)


def scaling_table(rows: list[dict[str, Any]]) -> str:
    """Time per token as it grows, as Markdown."""
    header = ["series", "tokens", "experts", "implementation", "ms", "ms per 1,000 tokens", "relative", "± half spread"]
    body = [
        [
            line["series"],
            str(line["tokens"]),
            str(line["experts"]),
            line["implementation"],
            figure(line["ms"]),
            figure(1000 * line["ms"] / line["tokens"]),
            figure(line["relative"]),
            figure((line["relative_spread"] or 0) / 2),
        ]
        for line in sorted(rows, key=lambda line: (line["series"] == "experts", line["implementation"] != "ours"))
    ]
    return markdown_table(header, body)


def conditions(data: Mapping[str, Any]) -> str:
    """What the figures hold for, in a line."""
    settings, limits = data["settings"], Limits(**data["limits"])
    machine_ = data["machine"]["processor" if settings["device"] == "cpu" else "device"]
    return (
        f"{machine_}, {settings['threads']} threads, {settings['dtype']}, torch {data['machine']['torch']}, "
        f"d {settings['dim']}, FFN {settings['ffn_dim']}; "
        f"matmul {limits.flops_per_second / 1e9:.0f} GFLOP/s, copy {limits.bytes_per_second / 1e9:.1f} GB/s"
    )


def plot_grid(data: Mapping[str, Any], path: Path) -> None:
    """Ratio to dense over tokens: a row of panels per mode and k, a panel per number of experts, a line per peer.

    The grey area, below the roofline, is what the machine rules out.
    """
    rows, plt = data["rows"], pyplot()
    names = [name for name in order(rows) if name != "dense"]
    kinds = sorted({(line["mode"], line["k"]) for line in rows}, key=lambda kind: (MODES.index(kind[0]), kind[1]))
    experts, tokens = (sorted({line[field] for line in rows}) for field in ("experts", "tokens"))
    size = (2.4 + 2.9 * len(experts), 0.8 + 2.5 * len(kinds))
    chart, axes = plt.subplots(len(kinds), len(experts), sharex=True, sharey="row", squeeze=False, figsize=size)
    for (mode, k), panels in zip(kinds, axes, strict=True):
        of_kind = [line for line in rows if (line["mode"], line["k"]) == (mode, k)]
        for count, panel in zip(experts, panels, strict=True):
            of_panel = sorted((line for line in of_kind if line["experts"] == count), key=lambda line: line["tokens"])
            for name in names:
                points = [line for line in of_panel if line["implementation"] == name]
                heights = [line["ratio_to_dense"] for line in points]
                panel.plot([line["tokens"] for line in points], heights, marker="o", markersize=3, **style(name))
            dense = [line for line in of_panel if line["implementation"] == "dense"]
            floor = [1 / line["ratio_to_roofline"] for line in dense]
            panel.fill_between([line["tokens"] for line in dense], floor, color="0.87", label="below the roofline")
            panel.axhline(1, color="0.4", linestyle="--", linewidth=1, label="dense")
            panel.set(xscale="log", yscale="log", title=f"{mode}, k = {k}, {count} experts")
            readable(panel, tokens)
        heights = [line["ratio_to_dense"] for line in of_kind]
        lowest = min(line["ratio_to_dense"] / max(line["ratio_to_roofline"], 1) for line in of_kind)
        panels[0].set(ylim=(max(0.1, 0.8 * lowest), 1.3 * max(heights)), ylabel="time, as a ratio to dense")
    for panel in axes[-1]:
        panel.set_xlabel("tokens")
    chart.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    finish(chart, data, path)


def plot_scaling(data: Mapping[str, Any], path: Path) -> None:
    """Time per token over tokens and over experts, as a ratio to the first size, with the limits drawn in."""
    rows, plt = data["rows"], pyplot()
    chart, axes = plt.subplots(1, 2, figsize=(10, 4.4))
    for panel, (series, limits) in zip(axes, SCALING_LIMITS.items(), strict=True):
        of_series = [line for line in rows if line["series"] == series and line["relative"] is not None]
        for name in order(of_series):
            points = [line for line in of_series if line["implementation"] == name]
            if len(points) > 1:
                heights = [line["relative"] for line in points]
                errors = [(line["relative_spread"] or 0) / 2 for line in points]
                panel.errorbar([line[series] for line in points], heights, errors, marker="o", capsize=3, **style(name))
        for limit in limits:
            panel.axhline(limit, color="C3", linestyle="--", linewidth=1.2)
            panel.text(1, limit, f"limit {limit:.0%}", transform=panel.get_yaxis_transform(), ha="right", va="bottom")
        heights = [line["relative"] for line in of_series]
        panel.set(xscale="log", ylim=(min(0.8, 0.9 * min(heights)), max(1.4, 1.1 * max(heights))), xlabel=series)
        fixed = "experts" if series == "tokens" else "tokens"
        panel.set_title(f"training, {of_series[0][fixed]:,} {fixed}, k = {of_series[0]['k']}")
        panel.set_ylabel(f"time per token, relative to the fewest {series}")
        panel.yaxis.set_major_formatter("{x:.0%}")
        readable(panel, sorted({line[series] for line in of_series}))
        panel.legend(loc="lower left", frameon=False)
    finish(chart, data, path)


def style(name: str) -> dict[str, Any]:
    """How an implementation is drawn: ours stands out, and each keeps its color."""
    if name == "ours":
        return {"label": name, "color": "black", "linewidth": 2.2, "zorder": 5}
    if name == "feed_forward":
        return {"label": "feed_forward (our dense)", "color": "black", "linewidth": 1.2, "linestyle": ":"}
    return {"label": name, "color": "0.6" if name == "dense" else f"C{PEERS.index(name)}", "linewidth": 1.2}


def pyplot() -> Any:
    """matplotlib for files alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"figure.constrained_layout.use": True, "font.size": 9, "axes.titlesize": 9})
    return plt


def readable(panel: Any, ticks: list[int]) -> None:
    """These ticks along the logarithmic x axis, plain numbers at all ticks, and a light grid."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    plain = FuncFormatter(lambda value, _: f"{value:,g}")
    panel.set_xticks(ticks)
    panel.xaxis.set_major_formatter(plain)
    panel.xaxis.set_minor_locator(NullLocator())
    if panel.get_yscale() == "log":
        panel.yaxis.set_major_formatter(plain)
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_minor_locator(NullLocator())
    panel.grid(color="0.92")
    panel.set_axisbelow(True)


def finish(chart: Any, data: Mapping[str, Any], path: Path) -> None:
    """Say what the figures hold for, and write the picture."""
    chart.supxlabel(conditions(data).replace("; ", "\n"), fontsize=7, color="0.35")
    part = path.with_name(f".{path.name}.part")
    chart.savefig(part, dpi=130, format=path.suffix.lstrip(".") or "png")
    os.replace(part, path)


def parse_peers(text: str | None, quick: bool) -> dict[str, str]:
    """The interpreter of each implementation, ours and dense included: `a,b=/path/python`; `none` is no peer."""
    if text is None:
        chosen = QUICK_PEERS if quick else PEERS
        return dict.fromkeys([*ALWAYS, *chosen], sys.executable)
    pythons = dict.fromkeys(ALWAYS, sys.executable)
    for part in [] if text == "none" else text.split(","):
        name, _, python = part.strip().partition("=")
        if name not in PEERS:
            raise UserError(f"There is no peer '{name}'{suggest(name, PEERS)}")
        if python and not shutil.which(python):
            raise UserError(f"The interpreter of {name}, {python}, is not there; see --help for how to make it.")
        pythons[name] = shutil.which(python) if python else sys.executable
    return pythons


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a part of the grid, against two peers")
    parser.add_argument(
        "--scaling", action="store_true", help="cost as work grows instead of the grid; by default no peers"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="results; what it holds is not measured again")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the results")
    parser.add_argument(
        "--peers", metavar="NAME[=PYTHON],…", help=f"or none; default: all, which are {', '.join(PEERS)}"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--patience", type=float, default=8.0, help="seconds for one peer in one cell (default: 8)")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--ffn-dim", type=int, default=2048)
    for name in ("tokens", "experts", "k"):
        parser.add_argument(f"--{name}", type=numbers, metavar="N,…", help="a part of the grid")
    parser.add_argument(
        "--modes", type=lambda text: text.split(","), metavar=",".join(MODES), help="a part of the grid"
    )
    args = parser.parse_args()
    for name, values in (SCALING if args.scaling else QUICK if args.quick else GRID).items():
        if getattr(args, name) is None:
            setattr(args, name, values)
    if unknown := set(args.modes) - set(MODES):
        raise UserError(f"There is no mode '{min(unknown)}'{suggest(min(unknown), MODES)}")
    if args.rounds < 3 or min(*args.tokens, *args.experts, *args.k, args.dim, args.ffn_dim, args.threads) < 1:
        raise UserError("--rounds must be at least 3, and all sizes at least 1.")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("--device cuda needs a GPU that torch can use; use --device cpu.")
    return args


def main() -> None:
    args = parse_arguments()
    pythons = parse_peers(args.peers or ("none" if args.scaling else None), args.quick)
    torch.set_num_threads(args.threads)
    kind = "scaling" if args.scaling else "grid"
    settings = {"benchmark": f"moe_layer {kind}", "dim": args.dim, "ffn_dim": args.ffn_dim, "device": args.device}
    settings |= {"dtype": args.dtype, "threads": args.threads, "rounds": args.rounds, "implementations": list(pythons)}
    results = Results(args.json, settings)
    data = results.data
    data.setdefault("machine", machine(args.device))
    if "limits" not in data:
        data["limits"] = measure_limits(args.device, getattr(torch, args.dtype))._asdict()
    data |= {name: data.get(name, default) for name, default in (("rows", []), ("left_out", []), ("skipped", {}))}
    limits = Limits(**data["limits"])
    (bench_scaling if args.scaling else bench_grid)(args, results, pythons, limits)
    print(f"{conditions(data)}\n")
    print(scaling_table(data["rows"]) if args.scaling else tables(data["rows"]))
    for name, reason in data["skipped"].items():
        print(f"\nskipped {name}: {reason}")
    if data["left_out"]:
        print(f"\n{len(data['left_out'])} figures are left out; the reasons are in the JSON, under left_out")
    if args.plot:
        (plot_scaling if args.scaling else plot_grid)(data, args.plot)


if __name__ == "__main__":
    run_script(main)
