"""From the raw text of a corpus to what fairseq trains on: learns the subwords, encodes and binarizes."""

from __future__ import annotations

import argparse

from data_prep import binarize, encode, learn_subwords
from data_prep.steps import add_corpus, add_workers, command, run


def prepare(args: argparse.Namespace) -> None:
    """The three steps one after the other; each skips what is up to date."""
    learn_subwords.learn_subwords(args)
    encode.encode(args)
    binarize.binarize(args)


def main() -> int:
    parser = command("prepare", __doc__)
    add_corpus(parser)
    learn_subwords.add_options(parser)
    encode.add_options(parser)
    binarize.add_options(parser)
    add_workers(parser)
    return run(parser, prepare)


if __name__ == "__main__":
    raise SystemExit(main())
