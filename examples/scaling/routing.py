"""Trainings on two processes, each its own node, that send less: do they reach the loss of plain routing?

    python examples/scaling/routing.py FOLDER [--seeds 3] [--updates 400]

Makes the embedded corpus of five languages in FOLDER, trains plain top-1 routing, gating dropout and bi-level routing
with several seeds, prints the validation loss (bits per token, mean and standard deviation over seeds) and the bytes
that a process sends across nodes per batch, out of the log. What FOLDER holds already is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "top_k(k=1)": ("--moe-router", "top_k(k=1)", "--moe-losses", "[load_balancing(weight=0.01)]"),
    "the same, gating_dropout(p=0.3, mode=gate)": (
        *("--moe-router", "top_k(k=1)", "--moe-losses", "[load_balancing(weight=0.01)]"),
        *("--moe-regularizers", "[gating_dropout(p=0.3, mode=gate)]"),
    ),
    "the same, gating_dropout(p=0.2)": (
        *("--moe-router", "top_k(k=1)", "--moe-losses", "[load_balancing(weight=0.01)]"),
        *("--moe-regularizers", "[gating_dropout(p=0.2)]"),
    ),
    "bilevel(nodes=2)": ("--moe-router", "bilevel(nodes=2)", "--moe-losses", "[bilevel_balancing(nodes=2)]"),
}


def run(*command: object) -> None:
    """Run a command; its words are shown if it fails."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(c) for c in command], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def prepare(folder: Path) -> list[str]:
    """Make the corpus; returns the flags that name it."""
    corpus = folder / "corpus"
    if not (corpus / "data-bin").is_dir():
        languages = "deu:6000,fra:6000,ell:1500,ukr:500"
        run("bash", ROOT / "data_prep/cldr.sh", corpus, "--languages", languages, "--valid", 150, "--test", 150)
        run("bash", ROOT / "data_prep/prepare.sh", corpus, "--vocab-size", 1200, "--workers", 2)
    directions = [row.split("\t")[0] for row in (corpus / "directions.tsv").read_text().splitlines()[1:]]
    return [
        *(str(corpus / "data-bin"), "--task", "multilingual_translation_moe", "--lang-pairs", ",".join(directions)),
        *("--lang-dict", str(corpus / "languages.txt"), "--encoder-langtok", "src", "--decoder-langtok"),
    ]


def train(data: list[str], flags: tuple[str, ...], folder: Path, updates: int, seed: int) -> tuple[float, float]:
    """The validation loss at the end, and the bytes sent across nodes per batch."""
    log = folder / "log.jsonl"
    if not (folder / "done").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        run(
            *("torchrun", "--nproc-per-node", 2, "-m", "moe_nmt", "train", *data, "--arch", "transformer_moe_tiny"),
            *("--moe-experts", "ffn(count=8)", "--moe-dispatch", "all_to_all", "--moe-ranks-per-node", 1, *flags),
            *("--criterion", "moe_label_smoothed_cross_entropy", "--label-smoothing", 0.1, "--optimizer", "moe_adam"),
            *("--lr", 0.003, "--lr-scheduler", "inverse_sqrt", "--warmup-updates", 100, "--max-tokens", 1000),
            *("--sampling-method", "temperature", "--sampling-temperature", 2, "--seed", seed, "--cpu"),
            *("--max-update", updates, "--no-save", "--num-workers", 0, "--log-format", "json", "--log-interval", 50),
            *("--log-file", log),
        )
        (folder / "done").touch()
    lines = [line for line in log.read_text().splitlines() if "{" in line]
    valid = [json.loads(line[line.index("{") :]) for line in lines if "| valid | {" in line or '"valid_nll' in line]
    sent = [json.loads(line[line.index("{") :]) for line in lines if '"moe_bytes_across"' in line]
    batches = [float(update["moe_bytes_across"]) for update in sent if "moe_bytes_across" in update]
    return float(valid[-1]["valid_nll_loss"]), statistics.fmean(batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=400)
    arguments = parser.parse_args()
    data = prepare(arguments.folder)
    print("| routing | validation loss | bytes across nodes | of plain routing's |")
    print("| --- | ---: | ---: | ---: |")
    plain = None
    for number, (name, flags) in enumerate(SETTINGS.items()):
        runs = []
        for seed in range(1, arguments.seeds + 1):
            folder = arguments.folder / f"{number}-{seed}-{arguments.updates}"
            runs.append(train(data, flags, folder, arguments.updates, seed))
            print(f"{name}, seed {seed}: {runs[-1][0]:.3f}", file=sys.stderr, flush=True)
        losses, sent = zip(*runs, strict=True)
        mean = statistics.fmean(sent)
        plain = plain or mean
        deviation = statistics.stdev(losses) if len(losses) > 1 else 0.0
        print(f"| `{name}` | {statistics.fmean(losses):.3f} ± {deviation:.3f} | {mean:,.0f} | {mean / plain:.2f} |")


if __name__ == "__main__":
    main()
