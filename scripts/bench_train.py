"""How fast a sparse model trains: words per second of fairseq-train beside a dense Transformer of equal active FLOPs.

    python scripts/bench_train.py [--data FOLDER] [--updates 8] [--rounds 3] [--json FILE] [--profile FILE] [--quick]
    python scripts/bench_train.py --cures --k 2 [...]
    python scripts/bench_train.py --adapters [...]

Both are `transformer_moe_base`: the dense one with `--moe-freq 0`, the sparse one with experts of 1/k of the width, so
that k of them compute as much. With --cures it is the sparse one alone, plain and with each cure for over-fitting; with
--adapters the dense one alone, with each kind of adapter on a frozen base, with adapters that train together with their
base, and without adapters. They train on the same batches in turn, each in a process of its own that starts anew in
every round; the words per second are fairseq's, of the updates that follow a warm-up, and the ratio to the first
(higher is better) is the median over the rounds; with --adapters the time of an update is compared too (lower is
better). Without --data, on a corpus of random words in six directions with lengths like those of real text, which
FOLDER/data-bin keeps. --profile also writes where the time of an update goes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from moe_nmt.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.benchmarking import (  # noqa: E402
    Progress,
    Results,
    figure,
    machine,
    markdown_table,
    ratios,
    run_script,
    summarize,
)

LANGUAGES = ("eng", "aaa", "bbb", "ccc")
FFN_DIM = 2048
"""Inner width of the feed-forward networks of `transformer_moe_base`."""

WORDS = 8000
PAIRS = {"train": (8000, 4000, 2000), "valid": (20, 20, 20)}
"""Sentence pairs of English with each of the other languages."""


CURES = {
    "overall dropout": "--dropout 0.3",
    "expert dropout": "--moe-expert-activation-dropout 0.4",
    "EOM": "--moe-regularizers eom(p=0.2)",
    "FOM": "--moe-regularizers fom(p=0.2)",
    "Gate-Drop": "--moe-regularizers gating_dropout(p=0.3,mode=gate,local_groups=4)",
    "Gate-Expert-Drop": "--moe-regularizers gating_dropout(p=0.2)",
    "CMR": "--moe-branch conditional --moe-losses [load_balancing,gate_budget]",
    "MoEC": "--moe-regularizers cluster_dropout(clusters=2) --moe-losses [load_balancing,cluster_variance(clusters=2)]",
}
"""The flags of each cure, beside those of the plain sparse model."""

ADAPTERS = {
    "bottleneck": "bottleneck(dim=128)",
    "hyper": "hyper(dim=128,hidden=128)",
    "mov": "mov(count=10)",
    "molora": "molora(count=4,rank=4)",
}
"""Each kind of adapter; those of `hyper` are as large as those of `bottleneck`."""

FREEZING = "train_only(parts=[adapters])"


class Update(NamedTuple):
    """One update as fairseq logs it: target words, and how many of them a second would take."""

    words: float
    words_per_second: float


def write_corpus(folder: Path) -> None:
    """Binarize random words: frequencies of rank^-1 (Zipf), lengths log-normal (median 20, 90th percentile 50).

    A target is about as long as its source, times a factor of its language.
    """
    from fairseq.data import indexed_dataset

    draft = folder.with_name(folder.name + ".part")
    draft.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    share = 1 / np.arange(1, WORDS + 1)
    share /= share.sum()
    for language in LANGUAGES:
        words = (f"w{word} {WORDS - word}\n" for word in range(WORDS))
        (draft / f"dict.{language}.txt").write_text("".join(words), encoding="utf-8")
    for split, sizes in PAIRS.items():
        for language, pairs, stretch in zip(LANGUAGES[1:], sizes, (0.9, 1.0, 1.2), strict=True):
            length = rng.lognormal(np.log(20), 0.7, pairs).clip(2, 150)
            sides = {"eng": length, language: (length * stretch * rng.lognormal(0, 0.15, pairs)).clip(2, 180)}
            for side, lengths in sides.items():
                prefix = str(draft / f"{split}.eng-{language}.{side}")
                builder = indexed_dataset.make_builder(f"{prefix}.bin", "mmap", WORDS)
                for count in lengths.astype(int):
                    tokens = np.append(rng.choice(WORDS, count, p=share) + 4, 2)  # after fairseq's 4 symbols; 2 ends
                    builder.add_item(torch.from_numpy(tokens))
                builder.finalize(f"{prefix}.idx")
    draft.rename(folder)


def directions(data: Path) -> list[str]:
    """Both directions of every pair that has training data."""
    pairs = sorted({path.name.split(".")[1] for path in data.glob("train.*-*.*.idx")})
    if not pairs:
        raise UserError(f"{data} has no training data; give a folder that fairseq-preprocess wrote, or none.")
    return [direction for pair in pairs for direction in (pair, "-".join(reversed(pair.split("-"))))]


def models(args: argparse.Namespace) -> dict[str, list[str]]:
    """The models to compare, the measure of the others first, with the flags of each."""
    moe = [
        *("--moe-freq", str(args.moe_freq), "--moe-router", f"top_k(k={args.k})"),
        *("--moe-experts", f"ffn(count={args.experts},inner_dim={FFN_DIM // args.k})"),
    ]
    if args.cures:
        return {"moe": moe} | {name: [*moe, *flags.split(" ")] for name, flags in CURES.items()}
    dense = ["--moe-freq", "0"]
    if args.adapters:
        adapted = {name: [*dense, "--adapters", spec] for name, spec in ADAPTERS.items()}
        frozen = {name: [*flags, "--freezing", FREEZING] for name, flags in adapted.items()}
        joint = {f"{name}, with its base": adapted[name] for name in ("bottleneck", "hyper")}
        return frozen | joint | {"no adapters": dense}
    return {"dense": dense, "moe": moe}


def train_arguments(args: argparse.Namespace, data: Path, model: list[str]) -> list[str]:
    """What follows `fairseq-train`, for a model with these flags."""
    return [
        *(str(data), "--user-dir", str(ROOT / "moe_nmt"), "--task", "multilingual_translation_moe"),
        *("--lang-pairs", ",".join(directions(data)), "--encoder-langtok", "src", "--decoder-langtok"),
        *("--sampling-method", "temperature", "--sampling-temperature", "5", "--arch", "transformer_moe_base"),
        *(
            "--criterion",
            "moe_label_smoothed_cross_entropy",
            "--label-smoothing",
            "0.1",
            "--dropout",
            str(args.dropout),
        ),
        *("--optimizer", args.optimizer, "--adam-betas", "(0.9, 0.98)", "--lr", "0.001", "--clip-norm", "1.0"),
        *("--lr-scheduler", "inverse_sqrt", "--warmup-updates", "4000", "--max-tokens", str(args.max_tokens)),
        *("--max-update", str(args.warm_up + args.updates), "--log-format", "json", "--log-interval", "1"),
        *("--seed", "1", "--disable-validation", "--no-save"),
        *([] if torch.cuda.is_available() else ["--cpu"]),
        *model,
        *args.flag,
    ]


def run_python(arguments: list[str], threads: int) -> str:
    """The standard output of a Python command; its last words as a `UserError` if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "1000", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UserError(f"training failed: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}")
    return done.stdout


def train(args: argparse.Namespace, data: Path, model: list[str]) -> list[Update]:
    """The updates of one training, those of the warm-up left out."""
    command = ["-c", "from fairseq_cli.train import cli_main; cli_main()", *train_arguments(args, data, model)]
    return list(logged_updates(run_python(command, args.threads)))[args.warm_up :]


def logged_updates(log: str) -> Iterator[Update]:
    """What fairseq's JSON log says of every update."""
    for line in log.splitlines():
        _, found, text = line.partition(" | INFO | train_inner | ")
        if found:
            values = json.loads(text)
            yield Update(float(values["wpb"]), float(values["wps"]))


def words_per_second(updates: list[Update]) -> float:
    """All words by all the time that they took."""
    return sum(update.words for update in updates) / sum(update.words / update.words_per_second for update in updates)


def measure(args: argparse.Namespace, data: Path, results: Results) -> dict[str, list[float]]:
    """Words per second of each model in every round; what `results` holds already is not measured again."""
    flags = models(args)
    found: dict[str, list[float]] = results.data.setdefault("words_per_second", {name: [] for name in flags})
    if list(found) != list(flags):
        raise UserError(f"{results.path} holds other models ({', '.join(found)}); name another file or remove it.")
    waiting = [(turn, name) for turn in range(args.rounds) for name in found if turn >= len(found[name])]
    progress = Progress([1.0] * len(waiting))
    for turn, name in waiting:
        progress.begin(f"{name}, round {turn + 1}")
        updates = train(args, data, flags[name])
        words = results.data.setdefault("words", [update.words for update in updates])
        if words != [update.words for update in updates]:
            raise UserError("the trainings had different batches; their speeds cannot be compared.")
        found[name].append(words_per_second(updates))
        results.save()
    return found


def profile(args: argparse.Namespace, data: Path) -> str:
    """Where the time of an update goes in each model, as text."""
    parts = [heading(args)]
    for name, model in models(args).items():
        print(f"profiling {name}", file=sys.stderr)
        script = [str(ROOT / "scripts/profile_train.py"), "--skip", str(args.warm_up)]
        table = run_python([*script, *train_arguments(args, data, model)], args.threads)
        parts.append(f"{name}:\n\n{table[table.index('| part') :].strip()}")
    return "\n\n".join(parts) + "\n"


def comparison_table(found: dict[str, list[float]], times: bool) -> str:
    """Words per second in every round as a ratio to those of the first model and, with `times`, its inverse."""
    first, *_ = found
    header = ["model", "words per second", "spread", "every round", f"ratio to {first}", "spread"]
    rows = []
    for name, values in found.items():
        summaries = [ratios(values, found[first])]
        if times:
            summaries.append(ratios(found[first], values))
        speed, each = summarize(values), " ".join(f"{value:.0f}" for value in values)
        cells = [figure(value) for summary in summaries for value in (summary.median, summary.spread)]
        rows.append([name, figure(speed.median), figure(speed.spread), each, *cells])
    return markdown_table([*header, "time of an update to its", "spread"] if times else header, rows)


def heading(args: argparse.Namespace) -> str:
    """What was measured, in a line."""
    experts = f"{args.experts} experts, k = {args.k}, experts in every layer whose number {args.moe_freq} divides"
    model = "no experts, adapters of a frozen base unless it says otherwise" if args.adapters else experts
    return (
        f"{model}, {args.optimizer}, --max-tokens {args.max_tokens}, torch {torch.__version__}, {args.threads} threads"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a data-bin of fairseq-preprocess to train on")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "moe_nmt_bench_train")
    parser.add_argument("--updates", type=int, default=8, help="updates that are measured, in every round")
    parser.add_argument("--warm-up", type=int, default=2, help="updates before them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--k", type=int, default=1)
    parser.add_argument("--moe-freq", type=int, default=2)
    comparison = parser.add_mutually_exclusive_group()
    comparison.add_argument("--cures", action="store_true", help="compare the cures for over-fitting to the plain MoE")
    comparison.add_argument("--adapters", action="store_true", help="compare the kinds of adapters of a dense model")
    parser.add_argument(
        "--dropout", type=float, default=0.1, help="of all models but the one with a dropout of its own"
    )
    parser.add_argument("--optimizer", default="moe_adam", help="of both models: moe_adam or fairseq's adam")
    parser.add_argument("--max-tokens", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--flag", action="append", default=[], help="one more word for fairseq-train, as --flag=--bf16")
    parser.add_argument("--json", type=Path, help="keep the figures in this file; an interrupted run goes on from it")
    parser.add_argument("--profile", type=Path, help="write where the time goes to this file")
    parser.add_argument("--quick", action="store_true", help="smaller batches, fewer updates: under three minutes")
    if parser.parse_args().quick:
        parser.set_defaults(updates=4, rounds=2, max_tokens=1000)
    args = parser.parse_args()
    if args.k < 1 or FFN_DIM % args.k or args.moe_freq < 1 or args.updates < 1:
        raise UserError(f"--k must divide {FFN_DIM}, --moe-freq and --updates be at least 1.")
    data = args.data or args.work / "data-bin"
    if not args.data and not data.is_dir():
        write_corpus(data)

    names = ("updates", "warm_up", "experts", "k", "moe_freq", "optimizer", "max_tokens", "threads", "flag", "dropout")
    settings = {name: getattr(args, name) for name in names} | {"data": str(args.data), "machine": machine()}
    results = Results(args.json, settings)
    found = measure(args, data, results)
    print(heading(args))
    print(comparison_table(found, times=args.adapters))
    if args.adapters:
        print(f"\n{statistics.mean(results.data['words']):.0f} target words in an update")
    if args.profile:
        args.profile.write_text(profile(args, data), encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
