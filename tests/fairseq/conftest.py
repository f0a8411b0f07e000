"""A small corpus made by the real data steps, and a small model trained on it by the real command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import moe_nmt.fairseq_plugin  # noqa: F401  (what `torch.load` may read of checkpoints)

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def run(command: Sequence[str | Path], **options) -> subprocess.CompletedProcess:
    """Run a command with this Python's scripts on the path and one thread; output is captured as text."""
    environment = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": "0",
    }
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, env=environment, **options)


def must_run(command: Sequence[str | Path], **options) -> subprocess.CompletedProcess:
    """`run`, and fail with the command's own words if it fails."""
    done = run(command, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


@dataclass(frozen=True)
class SmallCorpus:
    """A corpus folder and the flags that name it to fairseq's commands."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data-bin"

    @property
    def pairs(self) -> list[str]:
        return [row.split("\t")[0] for row in (self.folder / "directions.tsv").read_text().splitlines()[1:]]

    @property
    def task_flags(self) -> list[str | Path]:
        return [
            *("--user-dir", ROOT / "moe_nmt", "--cpu", "--task", "multilingual_translation_moe"),
            *("--lang-dict", self.folder / "languages.txt", "--lang-pairs", ",".join(self.pairs)),
            *("--encoder-langtok", "src", "--decoder-langtok", "--num-workers", "0"),
        ]

    def train_command(self, save_dir: Path, updates: int, *flags: str) -> list[str | Path]:
        return [
            *("fairseq-train", self.data, *self.task_flags, "--arch", "transformer_moe_tiny"),
            *("--encoder-embed-dim", "64", "--decoder-embed-dim", "64"),
            *("--encoder-ffn-embed-dim", "128", "--decoder-ffn-embed-dim", "128"),
            *("--criterion", "moe_label_smoothed_cross_entropy", "--label-smoothing", "0.1"),
            *("--sampling-method", "temperature", "--sampling-temperature", "2"),
            *("--optimizer", "adam", "--lr", "0.005", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "20"),
            *("--max-tokens", "500", "--max-update", str(updates), "--log-format", "simple", "--log-interval", "5"),
            *("--save-dir", save_dir, *flags),
        ]

    def generate_command(self, checkpoint: Path, pair: str, *flags: str) -> list[str | Path]:
        source, target = pair.split("-")
        return [
            *("fairseq-generate", self.data, *self.task_flags, "--path", checkpoint, "-s", source, "-t", target),
            *("--gen-subset", "test", "--beam", "4", "--max-len-b", "40", "--remove-bpe", "sentencepiece", *flags),
        ]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> SmallCorpus:
    folder = tmp_path_factory.mktemp("corpus")
    languages = "deu,fra:600,ell:150"
    must_run(["bash", ROOT / "data_prep/cldr.sh", folder, "--languages", languages, "--valid", "20", "--test", "20"])
    must_run(["bash", ROOT / "data_prep/prepare.sh", folder, "--vocab-size", "400", "--workers", "1"])
    return SmallCorpus(folder)


@pytest.fixture(scope="session")
def trained(corpus, tmp_path_factory) -> Path:
    """A checkpoint that has learnt enough for its translations to end."""
    folder = tmp_path_factory.mktemp("trained")
    must_run(corpus.train_command(folder, 600, "--no-epoch-checkpoints", "--disable-validation"))
    return folder / "checkpoint_last.pt"
