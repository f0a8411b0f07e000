"""Cuts the text of a corpus into its SentencePiece pieces; may drop training pairs that are too long or too unlike."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

import sentencepiece

from data_prep.steps import Progress, Stamp, add_corpus, add_workers, at_least_one, command, outdated, run, side_by_side
from moe_nmt.data import Corpus, CorpusError, Direction
from moe_nmt.data.text import read_pair, rewriting

STEP = "encode"
BATCH = 10_000  # lines handed to SentencePiece at once


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
    """Writes CORPUS/encoded; CorpusError where the raw text or the subwords do not allow it."""
    corpus = Corpus.open(args.corpus)
    if not corpus.model.is_file():
        raise CorpusError(f"{corpus.model} is missing: run data_prep/learn_subwords.sh {corpus.folder} first")
    limits = Limits(args.max_pieces, args.max_ratio)
    waiting = outdated(STEP, {pair: _stamp(corpus, limits, pair) for pair in corpus.pairs})
    progress = Progress(STEP, {pair: sum(corpus.pair_counts(pair).values()) for pair in waiting})
    for pair, result in side_by_side(partial(encode_pair, corpus, limits), waiting, args.workers):
        progress.finish(pair, result)


def _stamp(corpus: Corpus, limits: Limits, pair: Direction) -> Stamp:
    sides = {
        stage: [p for split in corpus.splits(pair) for p in corpus.sides(stage, split, pair)]
        for stage in ("raw", "encoded")
    }
    return Stamp.of(corpus, f"{STEP}.{pair}", asdict(limits), [corpus.model, *sides["raw"]], sides["encoded"])


def encode_pair(corpus: Corpus, limits: Limits, pair: Direction) -> str:
    """Encodes all splits of a language pair and says how many training pairs stayed."""
    corpus.check_text(pair)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(corpus.model))
    kept = {}
    with _stamp(corpus, limits, pair).renewing():
        for split in corpus.splits(pair):
            kept[split] = encode_split(corpus, processor, split, pair, limits if split == "train" else None)
    train = corpus.pair_counts(pair)["train"]
    return f"{kept.get('train', 0):,} training pairs kept, {train - kept.get('train', 0):,} dropped"


def encode_split(
    corpus: Corpus,
    processor: sentencepiece.SentencePieceProcessor,
    split: str,
    pair: Direction,
    limits: Limits | None,
) -> int:
    """Encodes one split of a language pair, all of it or what is within the limits; returns how many pairs stayed."""
    kept = 0
    with rewriting(*corpus.sides("encoded", split, pair)) as files:
        for sides in _encoded(processor, read_pair(*corpus.sides("raw", split, pair))):
            if limits is None or limits.keep(*map(len, sides)):
                kept += 1
                for file, pieces in zip(files, sides, strict=True):
                    file.write(" ".join(pieces) + "\n")
        if not kept:
            raise CorpusError(f"no {split} pair of {pair} is within {limits}: raise --max-pieces or --max-ratio")
    return kept


def _encoded(
    processor: sentencepiece.SentencePieceProcessor, pairs: Iterator[tuple[str, str]]
) -> Iterator[tuple[list[str], list[str]]]:
    while batch := list(itertools.islice(pairs, BATCH)):
        first, second = (processor.encode(list(side), out_type=str) for side in zip(*batch, strict=True))
        yield from zip(first, second, strict=True)


def main() -> int:
    parser = command(STEP, __doc__)
    add_corpus(parser)
    add_options(parser)
    add_workers(parser)
    return run(parser, encode)


if __name__ == "__main__":
    raise SystemExit(main())
