"""Turns the pieces of a corpus into what fairseq trains on: the work of fairseq-preprocess for every language pair."""

from __future__ import annotations

import argparse
import contextlib
import logging
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from data_prep.steps import Progress, Stamp, add_corpus, add_workers, command, outdated, run, side_by_side
from moe_nmt.data import Corpus, CorpusError, Direction
from moe_nmt.data.text import write_text

STEP = "binarize"


def binarize(args: argparse.Namespace) -> None:
    """Writes CORPUS/data-bin; CorpusError where the corpus is not encoded yet."""
    corpus = Corpus.open(args.corpus)
    if not corpus.dictionary.is_file():
        raise CorpusError(f"{corpus.dictionary} is missing: run data_prep/learn_subwords.sh {corpus.folder} first")
    stamps = {pair: _stamp(corpus, pair) for pair in corpus.pairs}
    waiting = outdated(STEP, stamps)
    progress = Progress(STEP, {pair: _size(stamps[pair].inputs) for pair in waiting})
    binarize_one = partial(binarize_pair, corpus, max(1, args.workers // max(len(waiting), 1)))
    for pair, result in side_by_side(binarize_one, waiting, args.workers):
        progress.finish(pair, result)
    for language in corpus.languages:
        write_text(corpus.folder / "data-bin" / f"dict.{language}.txt", corpus.dictionary.read_text("utf-8"))


def _stamp(corpus: Corpus, pair: Direction) -> Stamp:
    texts = [path for split in corpus.splits(pair) for path in corpus.sides("encoded", split, pair)]
    for path in texts:
        if not path.is_file():
            raise CorpusError(f"{path} is missing: run data_prep/encode.sh {corpus.folder} first")
    outputs = [corpus.folder / "data-bin" / f"{text.name}.{kind}" for text in texts for kind in ("bin", "idx")]
    return Stamp.of(corpus, f"{STEP}.{pair}", {}, [corpus.dictionary, *texts], outputs)


def _size(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def binarize_pair(corpus: Corpus, workers: int, pair: Direction) -> str:
    """Runs fairseq's preprocessing for a language pair in a folder of its own, then moves the files to data-bin."""
    stamp = _stamp(corpus, pair)
    with stamp.renewing(), _draft_folder(corpus.folder / "data-bin" / f".{pair}.tmp") as draft:
        preprocess(corpus, pair, draft, workers)
        for path in stamp.outputs:
            (draft / path.name).replace(path)
    return f"{_size(stamp.outputs):,} bytes"


@contextlib.contextmanager
def _draft_folder(folder: Path) -> Iterator[Path]:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def preprocess(corpus: Corpus, pair: Direction, destination: Path, workers: int) -> None:
    """What the command `fairseq-preprocess` does, without its seconds of start-up for each language pair."""
    from fairseq import options
    from fairseq_cli import preprocess as command_module

    prefixes = [f"--{split}pref={corpus.folder / 'encoded' / split}.{pair}" for split in corpus.splits(pair)]
    arguments = [
        *("--source-lang", pair.source, "--target-lang", pair.target),
        *("--srcdict", str(corpus.dictionary), "--joined-dictionary"),
        *("--destdir", str(destination), "--workers", str(workers)),
        *prefixes,
    ]
    with _quiet(command_module.logger):
        command_module.main(options.get_preprocessing_parser().parse_args(arguments))


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Keeps fairseq's log lines off stdout, and takes away the log file that each of its runs adds."""
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()


def main() -> int:
    parser = command(STEP, __doc__)
    add_corpus(parser)
    add_workers(parser)
    return run(parser, binarize)


if __name__ == "__main__":
    raise SystemExit(main())
