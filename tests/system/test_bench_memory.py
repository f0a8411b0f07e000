"""The memory benchmark: what it says of adapters on a frozen base."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from scripts import bench_memory

ROOT = Path(__file__).parents[2]
DIM = bench_memory.SIZES["quick"][0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_only_adapters_have_gradients_and_a_state_in_the_optimizer():
    full = bench_memory.measure("training", 0, 320, "quick")
    adapted = bench_memory.measure("training", 0, 320, "quick", "bottleneck(dim=8)")
    languages, layers = 4, 4
    adapter = 2 * DIM + DIM * 8 + 8 + 8 * DIM + DIM
    assert full["gradients"] == full["parameters"]
    assert adapted["gradients"] == 4 * layers * languages * adapter
    assert adapted["parameters"] == full["parameters"] + adapted["gradients"]
    steps = 4 * layers * 6  # a float32 counter for each of the six parameters of a layer
    assert adapted["optimizer"] == 2 * adapted["gradients"] + steps
    assert adapted["optimizer"] < full["optimizer"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_small_run(tmp_path):
    command = [sys.executable, ROOT / "scripts/bench_memory.py", "--adapters", "--quick", "--json", tmp_path / "f.json"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "f.json").read_text())
    assert set(found) == {"settings", bench_memory.FULL, *bench_memory.ADAPTERS}
    assert "peak to no adapters" in done.stdout
