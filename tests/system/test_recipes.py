"""What the recipes show of a training, and that they do nothing twice."""

import os
import subprocess
import sys
from pathlib import Path

from scripts.show_progress import describe

ROOT = Path(__file__).parents[2]
INNER = (
    "2026-01-01 00:00:00 | INFO | train_inner | epoch 001:    100 / 241 loss=8.67, nll_loss=8.428, moe_balance=1.2, "
    "ppl=344.33, wps=2647, ups=3.22, wpb=822.1, bsz=36.8, num_updates=100, lr=0.0008, train_wall=30, wall=33"
)


def test_progress_says_how_far_and_how_long_still():
    shown = describe(INNER, updates=400)
    assert shown == "update 100 of 400, about 1:39 left; loss 8.43 bits, 2,647 words/s, expert load 1.20 (1 is even)"


def test_progress_of_a_dense_model_and_of_validation():
    assert describe(INNER.replace("moe_balance=1.2, ", ""), updates=400).endswith("2,647 words/s")
    valid = "| INFO | valid | epoch 001 | valid on 'valid' subset | loss 6.71 | nll_loss 6.142 | ppl 70.61 | wps 5749.4"
    assert describe(valid, updates=400) == "held-out loss 6.14 bits, perplexity 70.61"
    assert describe("| INFO | fairseq.trainer | begin training epoch 1", updates=400) is None


def test_what_is_trained_is_not_trained_again(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/directions.tsv").write_text("direction\ttrain\tvalid\ttest\neng-deu\t1\t1\t1\n")
    (tmp_path / "trained").touch()
    script = 'set -euo pipefail; root=$1; source "$root/scripts/recipe.sh"; train "$2" 10; echo end'
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", "-c", script, "recipe", ROOT, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines() == [f"train: {tmp_path} is trained, skipped", "end"], done.stderr
