"""NLLB's 54.5 billion parameters on 8 to 256 devices: the worked example, and ways to train it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.scaling.scaling import predict
from examples.scaling.shapes import Machine, Model, Plan

FOLDER = Path(__file__).parent
DEVICES = (8, 16, 32, 64, 128, 256)
NLLB = Model(24, 24, 2048, 8192, 16, vocabulary=256206, moe_freq=4, experts=128, k=2, expert_dim=8192)
"""transformer_moe_nllb with NLLB's vocabulary: 54.5 billion parameters."""
EXAMPLE = Plan(8, 8, 8, tokens=4096, precision="memory_efficient_bf16", recompute=True)
TOKENS = (512, 1024, 2048, 4096, 8192)
WAYS = {
    "plain": {},
    "by_node": {"by_node": True},
    "chunks=2": {"chunks": 2},
    "chunks=4": {"chunks": 4},
    "by_node, chunks=4": {"by_node": True, "chunks": 4},
}


def machines() -> dict[str, Machine]:
    """The machines of this folder, by the names of their files."""
    return {name: Machine.load(FOLDER / f"{name}.json") for name in ("here", "a100", "h100")}


def on_devices(count: int, **changes: Any) -> Plan:
    """The worked example on so many devices, with an expert group of all of them, at most 128."""
    return replace(EXAMPLE, ranks=count, expert_ranks=min(count, NLLB.experts), **changes)


def without_latency(machine: Machine) -> Machine:
    """A machine on which messages cost nothing but their bytes."""
    return replace(machine, within=replace(machine.within, latency=0), across=replace(machine.across, latency=0))


def update_times(machine: Machine, tokens: int) -> list[float]:
    """Seconds of an update on 128 devices, in each of WAYS."""
    plans = (on_devices(128, tokens=tokens, **way) for way in WAYS.values())
    return [predict(NLLB, plan, machine).step for plan in plans]
