"""`moe-nmt evaluate` against the same work by hand: fairseq-generate for each direction, and sacrebleu.

    python scripts/bench_evaluate.py CHECKPOINT CORPUS [--rounds 3] [--json FILE]

CORPUS: a folder with raw text and data-bin, such as the quickstart makes. By hand means for every direction a run of
`fairseq-generate` with the same options, its D- lines sorted, and the command `sacrebleu` with BLEU and chrF++. All
runs start new processes; rounds are interleaved. The scores must be equal.

`decoding`: all sentences decoded in one process without start-up, by batches that mix the directions and by batches of
one direction after the other. Figures are medians in seconds, ratios are taken round by round, ± their interquartile
range; above 1 moe-nmt evaluate is faster.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import moe_nmt.fairseq_plugin  # noqa: E402, F401
from moe_nmt.data import Corpus, Direction  # noqa: E402
from moe_nmt.errors import UserError  # noqa: E402
from moe_nmt.evaluation.metrics import bleu_tokenizer  # noqa: E402
from scripts.benchmarking import (  # noqa: E402
    Progress,
    Results,
    Summary,
    figure,
    interleave,
    machine,
    markdown_table,
    ratios,
    run_script,
    seconds,
    summarize,
)

BIN = Path(sys.executable).parent
SEARCH = {"beam": 4, "max_len_a": 2, "max_len_b": 20}
BEST = re.compile(r"^D-(\d+)\t[^\t]*\t(.*)$", re.MULTILINE)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a trained checkpoint")
    parser.add_argument("corpus", type=Path, help="the corpus folder it was trained on")
    parser.add_argument("--directions", type=int, help="take only the first of this number (default: all)")
    parser.add_argument("--max-tokens", type=int, default=4000, help="tokens per batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{command[0]} failed: {done.stderr[-1500:]}")
    return done.stdout


def scores_by_hand(args: argparse.Namespace, corpus: Corpus, direction: Direction, folder: Path) -> list[float]:
    """BLEU and chrF++ of a direction."""
    limits = ["--max-len-a", str(SEARCH["max_len_a"]), "--max-len-b", str(SEARCH["max_len_b"])]
    said = run(
        *(BIN / "fairseq-generate", corpus.folder / "data-bin", "--user-dir", ROOT / "moe_nmt", "--cpu"),
        *("--task", "multilingual_translation_moe", "--lang-dict", corpus.folder / "languages.txt"),
        *("--lang-pairs", str(direction), "--encoder-langtok", "src", "--decoder-langtok"),
        *("-s", direction.source, "-t", direction.target, "--path", args.checkpoint, "--gen-subset", "test"),
        *("--beam", str(SEARCH["beam"]), *limits, "--max-tokens", str(args.max_tokens)),
        *("--remove-bpe", "sentencepiece", "--no-progress-bar"),
    )
    lines = sorted((int(number), text) for number, text in BEST.findall(said))
    hypotheses = folder / f"{direction}.by_hand"
    hypotheses.write_text("".join(f"{text}\n" for _, text in lines), encoding="utf-8")
    reference = corpus.text("raw", "test", corpus.pair(direction), direction.target)
    tokenizer = bleu_tokenizer(direction.target)
    flags = ["-m", "bleu", "chrf", "--chrf-word-order", "2", "-tok", tokenizer, "-w", "6"]
    return [metric["score"] for metric in json.loads(run(BIN / "sacrebleu", reference, "-i", hypotheses, *flags))]


def evaluate(args: argparse.Namespace, corpus: Corpus, directions: list[Direction], folder: Path) -> dict[str, Any]:
    """The scores that `moe-nmt evaluate` writes, by direction."""
    run(
        *(BIN / "moe-nmt", "evaluate", args.checkpoint, corpus.folder / "data-bin", "--output", folder, "--cpu"),
        *("--max-tokens", str(args.max_tokens), "--directions", ",".join(map(str, directions))),
    )
    scores: dict[str, Any] = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["directions"]
    return scores


def check_equal(ours: dict[str, Any], by_hand: dict[Direction, list[float]]) -> None:
    """UserError where a score differs."""
    for direction, (bleu, chrf) in by_hand.items():
        row = ours[str(direction)]
        if (row["bleu"], row["chrf++"]) != (round(bleu, 2), round(chrf, 2)):
            raise UserError(f"{direction} scores {row}, and by hand BLEU {bleu} and chrF++ {chrf}")


def decoders(args: argparse.Namespace, corpus: Corpus, directions: list[Direction]) -> dict[str, Callable[[], float]]:
    """Decoding alone, in this process: all directions together, and one after the other."""
    from fairseq.dataclass.configs import GenerationConfig

    from moe_nmt.fairseq_plugin.decoding import decode, load_test_sets
    from moe_nmt.fairseq_plugin.translation import load

    task, model = load(args.checkpoint, {"data": str(corpus.folder / "data-bin")}, directions)
    model.make_generation_fast_()
    search = GenerationConfig(**SEARCH)

    def decode_all(parts: list[list[Direction]]) -> Callable[[], float]:
        sets = [load_test_sets(task, model, "test", part, args.max_tokens) for part in parts]
        return lambda: seconds(lambda: [list(decode(task, model, one, search, args.max_tokens)) for one in sets])

    return {"mixed": decode_all([directions]), "each": decode_all([[direction] for direction in directions])}


def one_round(args: argparse.Namespace, corpus: Corpus, directions: list[Direction], number: int) -> dict[str, float]:
    """The seconds of both ways, which begin in turn; UserError where their scores differ."""
    ours: dict[str, Any] = {}
    by_hand: dict[Direction, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways = {
            "evaluate": lambda: ours.update(evaluate(args, corpus, directions, folder / "output")),
            "by_hand": lambda: by_hand.update({d: scores_by_hand(args, corpus, d, folder) for d in directions}),
        }
        order = list(ways)[:: -1 if number % 2 else 1]
        times = {way: seconds(ways[way]) for way in order}
    check_equal(ours, by_hand)
    return times


def measure(args: argparse.Namespace, corpus: Corpus, directions: list[Direction], results: Results) -> None:
    rounds = results.data.setdefault("rounds", [])
    progress = Progress([1.0] * (args.rounds - len(rounds)))
    while len(rounds) < args.rounds:
        progress.begin(f"round {len(rounds) + 1} of {args.rounds}")
        rounds.append(one_round(args, corpus, directions, len(rounds)))
        results.save()
    if "decoding" not in results.data:
        samples = decoders(args, corpus, directions)
        for sample in samples.values():
            sample()
        results.data["decoding"] = interleave(samples, args.rounds)
        results.save()


def table(data: dict[str, Any]) -> str:
    ours, by_hand = ([turn[name] for turn in data["rounds"]] for name in ("evaluate", "by_hand"))
    mixed, each = (data["decoding"][name] for name in ("mixed", "each"))
    rows = [row("start to scores", ours, by_hand), row("decoding alone", mixed, each)]
    return markdown_table(("", "moe-nmt evaluate, s", "direction by direction, s", "ratio"), rows)


def row(title: str, ours: list[float], theirs: list[float]) -> list[str]:
    ratio: Summary = ratios(theirs, ours)
    spread = f" ± {figure(ratio.spread)}" if figure(ratio.spread) else ""
    return [title, figure(summarize(ours).median), figure(summarize(theirs).median), figure(ratio.median) + spread]


def main() -> None:
    args = parse_arguments()
    logging.disable(logging.INFO)
    corpus = Corpus.open(args.corpus.absolute())
    args.checkpoint = args.checkpoint.absolute()
    directions = [direction for direction, counts in corpus.directions.items() if counts["test"]][: args.directions]
    sentences = sum(corpus.counts(direction)["test"] for direction in directions)
    settings = {"checkpoint": args.checkpoint.name, "directions": len(directions), "sentences": sentences}
    results = Results(args.json, settings | {"max_tokens": args.max_tokens, **machine()})
    measure(args, corpus, directions, results)
    print(f"{sentences:,} sentences in {len(directions)} directions, {torch.get_num_threads()} threads; scores equal\n")
    print(table(results.data))


if __name__ == "__main__":
    run_script(main)
