"""The training benchmark: what it reads out of a log, and what its profile attributes."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from moe_nmt.errors import UserError

pytest.importorskip("fairseq")

from moe_nmt.adapters import ADAPTERS as KINDS
from scripts import bench_train, profile_train
from scripts.benchmarking import Results

ROOT = Path(__file__).parents[2]
LOG = """2026-01-01 | INFO | train_inner | {"epoch": 1, "wps": "100", "wpb": "500", "bsz": "10"}
2026-01-01 | INFO | fairseq.trainer | begin training epoch 1
2026-01-01 | INFO | train_inner | {"epoch": 1, "wps": "400", "wpb": "1000", "bsz": "20"}
2026-01-01 | INFO | train | {"epoch": 1, "train_wps": "150"}
"""


def test_words_per_second_are_all_words_by_all_time():
    updates = list(bench_train.logged_updates(LOG))
    assert updates == [(500, 100), (1000, 400)]
    assert bench_train.words_per_second(updates) == 1500 / (5 + 2.5)


def test_a_folder_without_training_data_is_refused(tmp_path):
    with pytest.raises(UserError, match="no training data"):
        bench_train.directions(tmp_path)


def test_the_profile_gives_backward_time_to_the_part_that_ran_forward():
    first, second = nn.Linear(64, 64), nn.Linear(64, 64)
    profile_train.mark_module(first, "first")
    profile_train.mark_module(second, "second")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        with torch.autograd.profiler.record_function("optimizer"):
            torch.ones(10).add_(1)
        second(torch.relu(first(torch.randn(8, 64)))).sum().backward()
    spent = profile_train.time_by_part(profiler.events())
    both = {(part, way) for part in ("first", "second") for way in ("forward", "backward")}
    assert both | {("optimizer", "forward"), ("gradient accumulation", "backward")} <= spent.keys()
    assert all(microseconds >= 0 for microseconds in spent.values())


def settings(**chosen):
    return argparse.Namespace(
        **{"moe_freq": 2, "k": 1, "experts": 2, "cures": False, "adapters": False, "rounds": 1} | chosen
    )


def test_every_kind_of_adapter_is_compared_on_a_frozen_base():
    assert set(bench_train.ADAPTERS) == set(KINDS.entries())
    models = bench_train.models(settings(adapters=True))
    assert next(iter(models)) == "bottleneck"
    for name, spec in bench_train.ADAPTERS.items():
        assert models[name][-4:] == ["--adapters", spec, "--freezing", bench_train.FREEZING]
    assert not any("--freezing" in flags for name, flags in models.items() if name not in bench_train.ADAPTERS)
    assert all(flags[:2] == ["--moe-freq", "0"] for flags in models.values())


def test_figures_of_other_models_are_refused(tmp_path):
    results = Results(tmp_path / "figures.json", {})
    results.data["words_per_second"] = {"dense": [1.0], "moe": [1.0]}
    with pytest.raises(UserError, match=r"other models \(dense, moe\)"):
        bench_train.measure(settings(adapters=True), tmp_path, results)


def test_the_time_of_an_update_is_the_inverse_of_its_speed_round_by_round():
    found = {"bottleneck": [100.0, 200.0, 400.0], "hyper": [80.0, 100.0, 400.0]}
    row = bench_train.comparison_table(found, times=True).splitlines()[-1]
    assert row == "| hyper | 100 | 160 | 80 100 400 | 0.80 | 0.25 | 1.25 | 0.50 |"
    assert bench_train.comparison_table(found, times=False).splitlines()[-1] == row.removesuffix(" 1.25 | 0.50 |")


@pytest.mark.slow
def test_a_small_run(tmp_path):
    flags = ["--quick", "--rounds", "1", "--updates", "1", "--warm-up", "1", "--max-tokens", "200", "--experts", "2"]
    outputs = ["--work", tmp_path, "--json", tmp_path / "figures.json", "--profile", tmp_path / "profile.txt"]
    command = [sys.executable, ROOT / "scripts/bench_train.py", *flags, *outputs]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ratio to dense" in done.stdout
    assert "experts' matrix products" in (tmp_path / "profile.txt").read_text()
