"""Where the time of an update goes, part by part of the model: any fairseq-train command under torch's profiler.

    python scripts/profile_train.py [--skip 2] DATA FLAGS OF FAIRSEQ-TRAIN…

The updates after the first `--skip` are profiled, and a table is printed. An operation counts for the innermost part
that it runs in; a backward operation for the part of the forward operation that it belongs to. The profiler itself
slows training by some per cent.
"""

from __future__ import annotations

import argparse
import bisect
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch
from fairseq.trainer import Trainer
from fairseq_cli import train as fairseq_train
from torch import nn
from torch.autograd.profiler import record_function

from moe_nmt.adapters.bottleneck import Bottleneck
from moe_nmt.adapters.hyper import HyperAdapters
from moe_nmt.fairseq_plugin.criterion import MoELabelSmoothedCrossEntropyCriterion as Criterion
from moe_nmt.fairseq_plugin.layers import DenseFeedForward, MoEFeedForward
from moe_nmt.fairseq_plugin.model import TokenEmbedding
from moe_nmt.moe.experts import Experts
from moe_nmt.moe.routers import Router

PREFIX = "part: "
MODULES: dict[type[nn.Module], str] = {
    Experts: "experts' matrix products",
    Router: "router",
    MoEFeedForward: "dispatch and combine",
    DenseFeedForward: "dense feed-forward",
    TokenEmbedding: "embeddings",
    Criterion: "cross entropy and log-probabilities",
}
NAMES = {"self_attn": "attention", "encoder_attn": "attention", "output_projection": "output projection"}
METHODS = {
    (Bottleneck, "on_output"): "adapters",
    (HyperAdapters, "generate"): "generating adapters",
    (Criterion, "compute_routing_losses"): "routing losses",
    (Criterion, "routing_log"): "routing statistics",
    (Trainer, "zero_grad"): "zeroing gradients",
    (Trainer, "_reduce_and_log_stats"): "logging",
}
FAIRSEQ_RANGES = {
    "optimizer": "optimizer",
    "clip-grads": "gradient norm and clipping",
    "multiply-grads": "scaling gradients",
    "reduce-grads": "reducing gradients",
}
BACKWARD = "autograd::engine::evaluate_function: "


def part_of_module(name: str, module: nn.Module) -> str | None:
    """The part that a module is, by its kind or by its name in the model; `name` of the model itself is empty."""
    by_kind = next((part for kind, part in MODULES.items() if isinstance(module, kind)), None)
    return by_kind or NAMES.get(name.rpartition(".")[2])


def mark_module(module: nn.Module, part: str) -> None:
    """Make a range of the profile of every call of a module."""
    forward = module.forward

    @wraps(forward)
    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(PREFIX + part):
            return forward(*args, **kwargs)

    module.forward = marked  # type: ignore[method-assign]


def mark_method(owner: type, name: str, part: str) -> None:
    method = getattr(owner, name)

    @wraps(method)
    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(PREFIX + part):
            return method(*args, **kwargs)

    setattr(owner, name, marked)


class Profile:
    """Wraps `Trainer.train_step`: profiles all updates but the first `skip`, and measures what lies between them."""

    def __init__(self, skip: int):
        self.skip, self.updates, self.words = skip, 0, 0
        self.seconds = self.between = self.ended = 0.0
        self.profiler: Any = None

    def wrap(self, train_step: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(train_step)
        def profiled(trainer: Trainer, samples: list[Any], *args: Any) -> Any:
            if self.updates == 0:
                mark_module(trainer.get_model(), "norms, residuals, dropout, the rest of the model")
                for name, module in (*trainer.get_model().named_modules(), ("", trainer.get_criterion())):
                    part = part_of_module(name, module)
                    if part:
                        mark_module(module, part)
            if self.updates == self.skip:
                self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
                self.profiler.start()
                self.ended = time.perf_counter()
            self.updates += 1
            if self.profiler is None:
                return train_step(trainer, samples, *args)
            start = time.perf_counter()
            with record_function(PREFIX + "the rest of the trainer"):
                done = train_step(trainer, samples, *args)
            self.between += start - self.ended
            self.ended = time.perf_counter()
            self.seconds += self.ended - start
            self.words += sum(sample["ntokens"] for sample in samples)
            return done

        return profiled

    def table(self) -> str:
        """Milliseconds per update of each part, as Markdown."""
        if self.profiler is None:
            return f"no update was left to profile after the first {self.skip}; train for more."
        self.profiler.stop()
        spent = time_by_part(self.profiler.events())
        updates = self.updates - self.skip
        spent["waiting for data, progress log", "forward"] = self.between * 1e6
        total = (self.seconds + self.between) * 1e6
        lines = ["| part | forward ms | backward ms | share |", "| --- | ---: | ---: | ---: |"]
        parts = defaultdict(float)
        for (part, _), microseconds in spent.items():
            parts[part] += microseconds
        for part, microseconds in sorted(parts.items(), key=lambda item: -item[1]):
            cells = [f"{spent.get((part, way), 0) / updates / 1e3:.1f}" for way in ("forward", "backward")]
            lines.append(f"| {part} | {cells[0]} | {cells[1]} | {microseconds / total:.1%} |")
        lines.append(f"| all of an update | {total / updates / 1e3:.1f} | | {sum(parts.values()) / total:.1%} |")
        words = f"{self.words / updates:.0f} target words in an update, {updates} updates, "
        return "\n".join([*lines, "", words + f"torch {torch.__version__}, {torch.get_num_threads()} threads", ""])


def time_by_part(events: Iterable[Any]) -> dict[tuple[str, str], float]:
    """Microseconds by part and way (`forward`, also for what has no backward pass, or `backward`)."""
    events = sorted(events, key=lambda event: event.time_range.start)
    forward_part = {}
    for event in events:
        if event.sequence_nr >= 0 and _backward_root(event) is None:
            forward_part[event.sequence_nr] = _part(event)  # the last to show a number is the one that takes it
    numbers = sorted(forward_part)
    spent: dict[tuple[str, str], float] = defaultdict(float)
    for event in events:
        root = _backward_root(event)
        part = _part(event)
        if root is not None:
            if "AccumulateGrad" in root.name:
                part = "gradient accumulation"
            else:
                place = bisect.bisect_right(numbers, root.sequence_nr) - 1
                part = forward_part[numbers[place]] if place >= 0 else None
        if part is not None:
            spent[part, "forward" if root is None else "backward"] += event.self_cpu_time_total
    return spent


def _part(event: Any) -> str | None:
    """The innermost part around an event, None outside of training steps."""
    while event is not None:
        if event.name.startswith(PREFIX):
            return str(event.name.removeprefix(PREFIX))
        if event.name in FAIRSEQ_RANGES:
            return FAIRSEQ_RANGES[event.name]
        event = event.cpu_parent
    return None


def _backward_root(event: Any) -> Any:
    """The outermost node of the autograd engine around an event, if any."""
    root = None
    while event is not None:
        if event.name.startswith(BACKWARD):
            root = event
        event = event.cpu_parent
    return root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip", type=int, default=2, help="updates before the profile begins")
    args, rest = parser.parse_known_args()
    profile = Profile(args.skip)
    for (owner, name), part in METHODS.items():
        mark_method(owner, name, part)
    Trainer.train_step = profile.wrap(Trainer.train_step)
    sys.argv = ["fairseq-train", *rest]
    fairseq_train.cli_main()
    print(profile.table())


if __name__ == "__main__":
    main()
