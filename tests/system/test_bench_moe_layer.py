"""The benchmark of the layer measures, goes on where it stopped, and says what it left out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/bench_moe_layer.py"
TINY = ["--device", "cpu", "--dim", "32", "--ffn-dim", "64", "--threads", "1", "--rounds", "3"]
PEERS = ["--peers", f"sort_loop={sys.executable},megablocks"]
FIELDS = {
    *("implementation", "mode", "device", "dtype", "tokens", "experts", "k", "ms", "ratio_to_dense", "spread"),
    *("ratio_to_roofline", "calls", "peak_bytes"),
}


def bench(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, SCRIPT, *TINY, *map(str, arguments)], env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "results.json"
    run = bench("--tokens", "16", "--experts", "4", "--k", "1", *PEERS, "--json", path)
    assert run.returncode == 0, run.stderr
    assert "| 16 | 4 | 1 |" in run.stdout and "skipped megablocks: " in run.stdout
    return path


def test_rows_are_complete(file):
    data = json.loads(file.read_text())
    rows = data["rows"]
    assert all(set(row) == FIELDS for row in rows)
    assert {(row["implementation"], row["mode"]) for row in rows} == {
        (name, mode) for name in ("ours", "dense", "sort_loop") for mode in ("training", "inference")
    }
    assert all(row["calls"] == 3 and row["ms"] > 0 and row["peak_bytes"] > 0 for row in rows)
    assert all(row["ratio_to_dense"] == 1 for row in rows if row["implementation"] == "dense")
    assert data["skipped"]["megablocks"]


def test_finished_cells_are_not_measured_again(file):
    before = json.loads(file.read_text())["rows"]
    plot = file.with_suffix(".png")
    run = bench("--tokens", "16", "--experts", "4", "--k", "1", *PEERS, "--json", file, "--plot", plot)
    assert run.returncode == 0 and "2 of 2 cells are finished" in run.stderr
    assert json.loads(file.read_text())["rows"] == before
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_scaling(tmp_path):
    path, plot = tmp_path / "scaling.json", tmp_path / "scaling.png"
    run = bench("--scaling", "--tokens", "16", "--experts", "4", "--json", path, "--plot", plot)
    assert run.returncode == 0, run.stderr
    rows = [row for row in json.loads(path.read_text())["rows"] if row["implementation"] == "ours"]
    assert [(row["series"], row["tokens"]) for row in rows] == [("tokens", 16), ("experts", 16)]
    assert all(row["relative"] == 1 for row in rows)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_peer_that_is_not_known_gets_one_sentence():
    run = bench("--peers", "sort_lop")
    assert run.returncode == 2
    assert "did you mean 'sort_loop'?" in run.stderr and len(run.stderr.splitlines()) == 1


def test_results_of_other_settings_are_refused(file):
    run = bench("--dim", "48", *PEERS, "--json", file)
    assert run.returncode == 2 and "dim 32, not 48" in run.stderr
