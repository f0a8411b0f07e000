"""Cuts the text of a corpus into its subwords; may drop training pairs that are too long or too unlike."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

from data_prep.corpora import Text, open_corpora, texts
from data_prep.counting import Counting, SplitCounts, as_json, counts_path, symbols_of
from data_prep.fertility import write_fertility
from data_prep.steps import Progress, Stamp, add_corpus, add_workers, at_least_one, command, outdated, run, side_by_side
from data_prep.subwords import Subwords, load_subwords
from moe_nmt.data import MAIN, Corpus, CorpusError, Direction
from moe_nmt.data.text import read_pair, rewriting, write_text

STEP = "encode"
BATCH = 10_000  # lines cut at once


@dataclass(frozen=True)
class Limits:
    """What a training pair may be: pieces of its longer side, and longer side over shorter side. None: anything."""

    max_pieces: int | None = None
    max_ratio: float | None = None

    def keep(self, first: int, second: int) -> bool:
        """Whether a pair of so many pieces stays; one with an empty side never does."""
        shorter, longer = sorted((first, second))
        return (
            shorter > 0
            and (self.max_pieces is None or longer <= self.max_pieces)
            and (self.max_ratio is None or longer <= self.max_ratio * shorter)
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this step, but for `--workers`, which other steps have too."""
    parser.add_argument(
        "--max-pieces", type=at_least_one, metavar="N", help="drop training pairs with a side longer than this"
    )
    parser.add_argument(
        "--max-ratio", type=float, metavar="R", help="drop training pairs with a side R times as long as the other"
    )


def encode(args: argparse.Namespace) -> None:
    """Writes CORPUS/encoded and CORPUS/reports/subwords.*; CorpusError where raw text or subwords do not allow it."""
    corpora = open_corpora(args.corpus)
    load_subwords(corpora[MAIN])
    limits = Limits(args.max_pieces, args.max_ratio)
    waiting = outdated(STEP, {text: _stamp(corpora[text.kind], limits, text.pair) for text in texts(corpora)})
    progress = Progress(STEP, {text: sum(corpora[text.kind].pair_counts(text.pair).values()) for text in waiting})
    for text, result in side_by_side(partial(encode_text, corpora, limits), waiting, args.workers):
        progress.finish(text, result)
    print(write_fertility(corpora))


def _stamp(corpus: Corpus, limits: Limits, pair: Direction) -> Stamp:
    sides = {
        stage: [p for split in corpus.splits(pair) for p in corpus.sides(stage, split, pair)]
        for stage in ("raw", "encoded")
    }
    inputs = [corpus.model, corpus.dictionary, *sides["raw"]]
    return Stamp.of(corpus, f"{STEP}.{pair}", asdict(limits), inputs, [*sides["encoded"], counts_path(corpus, pair)])


def encode_text(corpora: dict[str, Corpus], limits: Limits, text: Text) -> str:
    """Encodes all splits of a language pair and says how many training pairs stayed."""
    corpus, pair = corpora[text.kind], text.pair
    corpus.check_text(pair)
    subwords = load_subwords(corpus)
    splits = corpus.splits(pair)
    with _stamp(corpus, limits, pair).renewing():
        counts = {
            split: encode_split(corpus, subwords, split, pair, limits if split == "train" else None) for split in splits
        }
        write_text(counts_path(corpus, pair), as_json(counts))
    if "train" not in counts:
        return "held-out text only"
    return f"{counts['train'].kept:,} training pairs kept, {counts['train'].lines - counts['train'].kept:,} dropped"


def encode_split(corpus: Corpus, subwords: Subwords, split: str, pair: Direction, limits: Limits | None) -> SplitCounts:
    """Encodes one split of a language pair, all of it or what is within the limits; returns what it counted."""
    lines = 0
    counting = Counting(), Counting()
    with rewriting(*corpus.sides("encoded", split, pair)) as files:
        for texts, sides in _encoded(subwords, read_pair(*corpus.sides("raw", split, pair))):
            lines += 1
            if limits is None or limits.keep(*map(len, sides)):
                for file, counts, line, pieces in zip(files, counting, texts, sides, strict=True):
                    file.write(" ".join(pieces) + "\n")
                    counts.add(line, pieces)
        if not counting[0].sentences:
            raise CorpusError(f"no {split} pair of {pair} is within {limits}: raise --max-pieces or --max-ratio")
    symbols = symbols_of(corpus.dictionary)
    figures = [counts.figures(symbols) for counts in counting]
    return SplitCounts(lines, dict(zip((pair.source, pair.target), figures, strict=True)))


def _encoded(
    subwords: Subwords, pairs: Iterator[tuple[str, str]]
) -> Iterator[tuple[tuple[str, str], tuple[list[str], list[str]]]]:
    while batch := list(itertools.islice(pairs, BATCH)):
        first, second = (subwords.encode(side) for side in zip(*batch, strict=True))
        yield from zip(batch, zip(first, second, strict=True), strict=True)


def main() -> int:
    parser = command(STEP, __doc__)
    add_corpus(parser)
    add_options(parser)
    add_workers(parser)
    return run(parser, encode)


if __name__ == "__main__":
    raise SystemExit(main())
