"""The trainings of scripts/bench_distributed.py, predicted and measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from examples.scaling.scaling import Prediction, all_reduce_seconds, exchange_seconds, predict
from examples.scaling.shapes import Machine, Model, Plan
from moe_nmt.registry import parse
from scripts.bench_distributed import EXPERTS, LENGTH, MOE_FREQ, RANKS_PER_NODE, SIZE, K

MODEL = Model(
    encoder_layers=SIZE["layers"],
    decoder_layers=SIZE["layers"],
    dim=SIZE["embed-dim"],
    ffn_dim=SIZE["ffn-embed-dim"],
    heads=SIZE["attention-heads"],
    vocabulary=8006,
    moe_freq=MOE_FREQ,
    experts=EXPERTS,
    k=K,
    expert_dim=SIZE["ffn-embed-dim"],
)


def plan_of(case: str, sentences: int, balance: float = 1.0) -> Plan:
    """How a case of the benchmark, `RANKS × DISPATCH`, is trained."""
    count, _, dispatch = case.partition(" × ")
    ranks, spec = int(count), parse(dispatch)
    spread = spec.options.get("ranks", ranks) if spec.name == "all_to_all" else 1
    return Plan(
        ranks,
        expert_ranks=spread,
        ranks_per_node=min(ranks, RANKS_PER_NODE),
        tokens=sentences * LENGTH,
        sentence=LENGTH,
        chunks=spec.options.get("chunks", 1),
        by_node=spec.options.get("by_node", False),
        balance=balance,
    )


class Comparison(NamedTuple):
    """A case: medians over the rounds of what was measured, and the prediction for its imbalance."""

    case: str
    measured: Mapping[str, float]
    predicted: Prediction

    @property
    def time(self) -> float:
        """Predicted by measured."""
        return self.predicted.step / self.measured["seconds"]

    @property
    def memory(self) -> float:
        """Predicted by measured."""
        return self.predicted.held / self.measured["peak"]

    @property
    def traffic(self) -> float:
        """Predicted by counted; 0 where nothing is sent."""
        counted = self.measured["within"] + self.measured["across"]
        return sum(self.predicted.sent) / counted if counted else 0.0


def compare(training: Mapping[str, Any], machine: Machine) -> list[Comparison]:
    """All cases of the benchmark's JSON."""
    found = []
    for case, rounds in training["cases"].items():
        measured = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        plan = plan_of(case, training["settings"]["sentences"], measured["imbalance"])
        found.append(Comparison(case, measured, predict(MODEL, plan, machine)))
    return found


def compare_collectives(
    taken: Mapping[str, Mapping[str, float]], machine: Machine
) -> Sequence[tuple[str, float, float]]:
    """What was timed, its seconds, and those predicted."""
    rows = []
    for ranks, seconds in taken.items():
        plan = Plan(int(ranks), int(ranks), int(ranks), tokens=1)
        for name, measured in seconds.items():
            kind, size = name.split()
            if kind == "all_to_all":
                predicted = sum(exchange_seconds(machine, plan, int(size)))
            else:
                predicted = all_reduce_seconds(machine, int(size), plan.ranks, plan.ranks)
            rows.append((f"{kind.replace('_', '-')}, {int(size):,} bytes, {ranks} ranks", measured, predicted))
    return rows
