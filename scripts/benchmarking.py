"""What the benchmarks share: interleaved timing, the machine's limits, peak memory, and results that survive a kill.

A benchmark times its implementations in turn in every round and compares them round by round, so that what disturbs the
machine for a while disturbs all of them; the figure is the median, the spread the interquartile range.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils import mkldnn

from moe_nmt.errors import UserError

SHORTEST_SAMPLE = 0.005
"""Seconds. A shorter call is repeated within a sample until the sample lasts this long."""


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], Any], device: str = "cpu") -> float:
    """How long one call takes, until the device is done."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def repetitions(one_call: float) -> int:
    """How many calls that take `one_call` seconds make a sample."""
    return math.ceil(SHORTEST_SAMPLE / max(one_call, 1e-5))


def interleave(
    samples: Mapping[str, Callable[[], float]], rounds: int, calls: Mapping[str, int] | None = None
) -> dict[str, list[float]]:
    """Take a sample of every implementation in each round, each round beginning with the next one.

    `calls` may give an implementation fewer samples than rounds; they are spread over the rounds. Returns one figure
    per round, NaN where an implementation was left out.
    """
    names = list(samples)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % max(len(names), 1)
        for name in names[first:] + names[:first]:
            number = (calls or {}).get(name, rounds)
            found[name].append(samples[name]() if turn * number % rounds < number else math.nan)
    return found


class Summary(NamedTuple):
    """The median and the interquartile range of `calls` figures; NaN of none."""

    median: float
    spread: float
    calls: int


def summarize(values: Iterable[float]) -> Summary:
    """Summarize the figures that are not NaN."""
    values = [value for value in values if not math.isnan(value)]
    if len(values) < 2:
        return Summary(values[0] if values else math.nan, math.nan, len(values))
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(statistics.median(values), high - low, len(values))


def ratios(times: Sequence[float], baseline: Sequence[float]) -> Summary:
    """The ratio to the baseline, round by round."""
    return summarize(ours / theirs for ours, theirs in zip(times, baseline, strict=True))


class Limits(NamedTuple):
    """What the machine can do at best: matrix products, and copying (bytes read plus bytes written)."""

    flops_per_second: float
    bytes_per_second: float

    def seconds(self, flops: float, moved: float) -> float:
        """The roofline: no faster than its arithmetic, and no faster than its memory traffic."""
        return max(flops / self.flops_per_second, moved / self.bytes_per_second)


def measure_limits(device: str = "cpu", dtype: torch.dtype = torch.float32, attempts: int = 5) -> Limits:
    """The best of some big matrix products, and of some copies of 1 GiB into memory that is already mapped.

    In float32 on a CPU both libraries that torch has are tried: `torch.mm` goes to MKL, which leaves half of some
    processors unused (AVX-512 on AMD), and `torch.utils.mkldnn` to oneDNN, which does not.
    """
    size = 8192 if device.startswith("cuda") else 2048
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    products = [lambda: torch.mm(left, right, out=product)]
    if device == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        linear, packed = mkldnn.to_mkldnn(torch.nn.Linear(size, size)), left.to_mkldnn()
        products.append(lambda: linear(packed))
    with torch.no_grad():
        fastest_product = min(seconds(multiply, device) for multiply in products for _ in range(attempts))
    source, target = (torch.ones(2**28, device=device) for _ in range(2))
    fastest_copy = min(seconds(lambda: target.copy_(source), device) for _ in range(attempts))
    return Limits(2 * size**3 / fastest_product, 2 * source.nbytes / fastest_copy)


def peak_bytes(call: Callable[[], Any], device: str = "cpu") -> int:
    """How much more memory is allocated at the worst moment of a call than before it.

    On a GPU the allocator counts. On a CPU torch's profiler lists every allocation and release of a tensor, and the
    highest running sum is the peak; what a library allocates past torch, for a matrix product say, is left out.
    """
    if device.startswith("cuda"):
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def machine(device: str = "cpu") -> dict[str, Any]:
    """What a figure depends on beside the code."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if os.path.exists(path) else []


class Results:
    """A JSON object in a file that is whole at every moment, so that an interrupted run can go on.

    `settings` is what must be equal for figures to stand side by side; a file with other settings is refused. Without a
    path nothing is written.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]):
        self.path = path
        self.data: dict[str, Any] = {"settings": dict(settings)}
        if path and path.exists():
            self.data = read_json(path)
            old = self.data.get("settings", {})
            differing = [name for name in settings if old.get(name) != settings[name]]
            if differing:
                was = ", ".join(f"{name} {old.get(name)}, not {settings[name]}" for name in differing)
                raise UserError(f"{path} holds the results of other settings ({was}); name another file or remove it.")

    def save(self) -> None:
        """Write to a temporary name beside the file, and rename."""
        if self.path:
            part = self.path.with_name(self.path.name + ".part")
            part.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
            os.replace(part, self.path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); name another file or remove it.") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} does not hold a benchmark's results; name another file or remove it.")
    return data


class Progress:
    """One line per step on standard error: how far the run is, and how long it will still take.

    `costs`: how long each step takes in proportion to the others.
    """

    def __init__(self, costs: Sequence[float]):
        self.costs = list(costs)
        self.step, self.done, self.start = 0, 0.0, time.monotonic()

    def begin(self, label: str) -> None:
        """Announce the next step."""
        left = ""
        if self.done:
            remaining = (time.monotonic() - self.start) / self.done * (sum(self.costs) - self.done)
            left = f", {remaining / 60:.0f} min left" if remaining >= 90 else f", {remaining:.0f} s left"
        self.done += self.costs[self.step]
        self.step += 1
        print(f"[{self.step}/{len(self.costs)}{left}] {label}", file=sys.stderr, flush=True)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column aligns left, the others right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(value: float | None) -> str:
    """A ratio or time with two decimals, from 100 on with none; empty for None and NaN."""
    return "" if value is None or math.isnan(value) else f"{value:.{0 if value >= 100 else 2}f}"


def numbers(text: str) -> list[int]:
    """`64,512` as a list: an argparse type."""
    return [int(part) for part in text.split(",")]


def run_script(main: Callable[[], None]) -> None:
    """Run a script: a mistake of the user ends it with one sentence and status 2, an interruption with 130."""
    name = Path(sys.argv[0]).name
    try:
        main()
    except (UserError, OSError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; with --json the same command goes on.", file=sys.stderr)
        sys.exit(130)
