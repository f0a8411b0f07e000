"""The example of adding languages: what its table says of trainings and scores."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from examples.adapters.table import markdown, read_rows
from moe_nmt.errors import UserError

ROOT = Path(__file__).parents[2]
SCORES = {"eng-deu": 90.0, "deu-eng": 80.0, "eng-nld": 30.0, "nld-eng": 50.0}


def finish(run: Path, row: str, trained: str, scores: dict[str, float]) -> None:
    """A finished training, which was interrupted once."""
    (run / row).mkdir(parents=True)
    parameters = f"num. shared model params: 1,000 (num. trained: {trained})\n"
    expert = "num. expert model params: 0 (num. trained: 0)\n"
    times = [f"{parameters}{expert}done training in {seconds} seconds\n" for seconds in (10.5, 20.5)]
    (run / row / "train.log").write_text("".join(times))
    directions = {pair: {"chrf++": score, "bleu": 0.0} for pair, score in scores.items()}
    (run / row / "scores.json").write_text(json.dumps({"directions": directions}))


def test_new_and_old_directions_are_told_apart(tmp_path, capsys):
    finish(tmp_path, "base", "1,000", SCORES)
    finish(tmp_path, "adapters", "50", SCORES | {"eng-nld": 70.0})
    base, adapters = read_rows(tmp_path, {"nld"})
    assert (base["new"], base["old"], base["seconds"], base["trained"]) == (40.0, 85.0, 31.0, 1000)
    assert (adapters["new"], adapters["new_from"], adapters["new_into"], adapters["of_full"]) == (
        60.0,
        50.0,
        70.0,
        0.05,
    )
    assert "full is not finished" in capsys.readouterr().err
    assert "| adapters | language adapters | new | 50 | 5.0% | 31 | 60.0 | 50.0 | 70.0 | 85.0 |" in markdown([adapters])


def test_without_the_base_there_is_nothing_to_compare(tmp_path):
    finish(tmp_path, "adapters", "50", SCORES)
    with pytest.raises(UserError, match="base has no scores"):
        read_rows(tmp_path, {"nld"})


def test_the_command_writes_table_numbers_and_picture(tmp_path):
    finish(tmp_path, "base", "1,000", SCORES)
    finish(tmp_path, "full", "1,000", SCORES)
    files = [tmp_path / name for name in ("results.json", "results.md", "results.png")]
    flags = zip(("--json", "--markdown", "--plot"), map(str, files), strict=True)
    command = [sys.executable, "-m", "examples.adapters.table", str(tmp_path), "--new", "nld"]
    subprocess.run([*command, *(word for flag in flags for word in flag)], cwd=ROOT, check=True, capture_output=True)
    assert all(path.stat().st_size for path in files)
