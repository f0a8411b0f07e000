"""Write the tables of README.md and the pictures anew from the JSON files of this folder: some seconds.

python -m examples.scaling.report
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable
from functools import partial

from examples.scaling.plots import plot_example, plot_validation, plot_ways
from examples.scaling.scaling import Sent, predict
from examples.scaling.validation import MODEL, compare, compare_collectives
from examples.scaling.worked_example import (
    DEVICES,
    EXAMPLE,
    FOLDER,
    NLLB,
    TOKENS,
    WAYS,
    machines,
    on_devices,
    update_times,
    without_latency,
)
from moe_nmt.data.text import write_text
from moe_nmt.errors import UserError
from scripts.benchmarking import figure, markdown_table, read_json, run_script

README = FOLDER / "README.md"


def constants() -> str:
    """The constants of all machines."""
    rows = []
    for name, machine in machines().items():
        links = [f"{x.bandwidth / 1e9:.1f} / {1e6 * x.latency:.1f}" for x in (machine.within, machine.across)]
        reduce = f"{machine.within.reduce_bandwidth / 1e9:.1f}"
        used = f"{machine.utilization:.2f} / {machine.expert_utilization:.2f}"
        cells = [f"{machine.flops / 1e12:,.2f}", used, f"{machine.memory_bandwidth / 1e9:,.0f}", *links, reduce]
        rows.append([f"`{name}.json`", *cells, "measured" if machine.measured else "published"])
    header = [
        "machine",
        "TFLOP/s",
        "dense / sparse layers reach",
        "memory GB/s",
        "within GB/s / µs",
        "across GB/s / µs",
    ]
    return markdown_table([*header, "all-reduce within GB/s", "constants"], rows)


def validation() -> str:
    """The trainings of the benchmark: predicted beside measured, and the errors in a line."""
    training = read_json(FOLDER / "training.json")
    found = compare(training, machines()["here"])
    rows = []
    for case, measured, predicted in found:
        times = [figure(1000 * seconds) for seconds in (measured["seconds"], predicted.step)]
        sent = [f"{figure(measured[x] / 1e6)} / {figure(getattr(predicted.sent, x) / 1e6)}" for x in Sent._fields]
        held = f"{measured['peak'] / 1e6:.0f} / {predicted.held / 1e6:.0f}"
        rows.append(
            [case, *times, percent(predicted.step / measured["seconds"]), figure(measured["imbalance"]), *sent, held]
        )
    header = ["ranks × dispatch", "ms measured", "predicted", "error", "imbalance"]
    header += [f"MB {place}, counted / predicted" for place in Sent._fields]
    summary = (
        f"Predicted by measured, over these {len(found)} cases: time {spread(x.time for x in found)}; "
        f"bytes sent {spread(x.traffic for x in found if x.traffic)}; memory {spread(x.memory for x in found)}. "
        f"The load average was {training['load_before']:.1f} when the trainings began (0 is a quiet machine)."
    )
    return f"{markdown_table([*header, 'MB of a rank, measured / predicted'], rows)}\n\n{summary}"


def percent(ratio: float) -> str:
    """How far a ratio is from 1."""
    return f"{100 * (ratio - 1):+.0f} %"


def spread(ratios: Iterable[float]) -> str:
    """How far ratios are from 1: the lowest, the highest, and the median size."""
    found = list(ratios)
    middle = statistics.median(abs(ratio - 1) for ratio in found)
    return f"{percent(min(found))} to {percent(max(found))} (median of the sizes {100 * middle:.1f} %)"


def collectives() -> str:
    """Collectives alone at 2 and 4 ranks: predicted beside measured."""
    taken = json.loads((FOLDER / "here.collectives.json").read_text(encoding="utf-8"))
    rows = [
        [name, figure(1000 * measured), figure(1000 * predicted), percent(predicted / measured)]
        for name, measured, predicted in compare_collectives(taken, machines()["here"])
    ]
    return markdown_table(["", "ms measured", "predicted", "error"], rows)


def parameters() -> str:
    """The parameters of the two models."""
    rows = []
    for name, model in (("benchmark", MODEL), ("`transformer_moe_nllb`", NLLB)):
        counts = (model.dense_parameters + model.expert_parameters, model.expert_parameters, model.active_parameters)
        rows.append([name, *(f"{count:,}" for count in counts)])
    return markdown_table(["", "parameters", "of experts", "active"], rows)


def worked_example(name: str) -> str:
    """54.5 billion parameters on 8 to 256 devices of a machine."""
    machine, rows = machines()[name], []
    for count in DEVICES:
        found = predict(NLLB, on_devices(count), machine)
        parts = [figure(1000 * seconds) for seconds in found.seconds.values()]
        rate = f"{count * EXAMPLE.tokens / found.step:,.0f}"
        rows.append([str(count), *parts, figure(1000 * found.step), rate, f"{found.flops_utilization:.0%}"])
    return markdown_table(["devices", *found.seconds, "update, ms", "target tokens/s", "FLOP/s by peak"], rows)


def device_memory() -> str:
    """Bytes of a device: part by part, and the sum at other precisions and without recomputation."""
    rows = []
    for count in DEVICES:
        held = predict(NLLB, on_devices(count), machines()["a100"])
        kept = predict(NLLB, on_devices(count, recompute=False), machines()["a100"])
        others = [predict(NLLB, on_devices(count, precision=name), machines()["a100"]) for name in ("bf16", "fp32")]
        parts = [figure(size / 1e9) for size in held.memory.values()]
        rows.append([str(count), *parts, *(figure(x.held / 1e9) for x in (held, kept, *others))])
    header = ["devices", *held.memory, "all, GB", "without recomputation", "--bf16", "float32"]
    return markdown_table(header, rows)


def ways() -> str:
    """What by_node and chunks give on 128 devices, by the tokens of a device."""
    rows = []
    for name in ("a100", "h100"):
        for tokens in TOKENS:
            base, *others = update_times(machines()[name], tokens)
            prompt, by_node, *_ = update_times(without_latency(machines()[name]), tokens)
            relative = [other / base for other in others] + [by_node / prompt]
            rows.append([name, f"{tokens:,}", figure(1000 * base), *map(figure, relative)])
    _, *titles = WAYS
    header = ["machine", "tokens of a device", "ms plain", *titles, "by_node, were messages free"]
    return markdown_table(header, rows)


TABLES = {
    "constants": constants,
    "parameters": parameters,
    "validation": validation,
    "collectives": collectives,
    "a100": partial(worked_example, "a100"),
    "h100": partial(worked_example, "h100"),
    "memory": device_memory,
    "ways": ways,
}


def with_tables(text: str) -> str:
    """The README's text with every table between its marks made anew.

    Raises:
        UserError: if a mark is missing.
    """
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        content = f"{begin}\n{table()}\n{end}"
        text, found = re.subn(f"{begin}.*{end}", lambda _, content=content: content, text, flags=re.DOTALL)
        if found != 1:
            raise UserError(f"README.md must have the marks {begin} and {end} once.")
    return text


def main() -> None:
    write_text(README, with_tables(README.read_text(encoding="utf-8")))
    plot_validation(FOLDER / "validation.png")
    plot_example(FOLDER / "nllb.png")
    plot_ways(FOLDER / "ways.png")


if __name__ == "__main__":
    run_script(main)
