"""The benchmarks of decoding and memory run, on something tiny."""

import json
import sys

from tests.fairseq.conftest import ROOT, must_run

TINY = ("--dim", "16", "--ffn-dim", "32", "--layers", "1", "--heads", "2", "--vocabulary", "60", "--experts", "4")


def test_bench_generate(tmp_path):
    command = [sys.executable, ROOT / "scripts/bench_generate.py", *TINY, "--length", "6", "--sentences", "5"]
    done = must_run([*command, "--rounds", "1", "--json", tmp_path / "speed.json"])
    assert "| moe_nmt-moe |" in done.stdout and "| moe_nmt-dense |" in done.stdout
    assert json.loads((tmp_path / "speed.json").read_text())["moe_nmt-moe"]["sentences_per_second"]["median"] > 0


def test_bench_memory(tmp_path):
    command = [sys.executable, ROOT / "scripts/bench_memory.py", "--quick", "--experts", "4"]
    must_run([*command, "--json", tmp_path / "memory.json"])
    found = json.loads((tmp_path / "memory.json").read_text())
    assert found["training 4"]["needed"] > found["inference 4"]["needed"] > 0
