"""Writes a parallel corpus of dates, quantities, names and lists in some 80 languages, from the Unicode CLDR.

Every language is paired with English. Both directions of a pair share their sentences; valid and test hold the same
contents in all languages, and nothing of them occurs in training.
"""

import argparse
import signal
import sys

from data_prep.steps import add_corpus, at_least_one, command, run

from .corpus import STEP, Settings, generate, parse_sizes
from .locales import LANGUAGES
from .phrases import INVENTORIES

QUICKSTART = "deu,fra,spa,rus:6000,ell,heb,hin:1500,jpn,kat:500"


def write_corpus(args: argparse.Namespace) -> None:
    """Writes the corpus; CorpusError where the languages are unknown or cannot give as many sentences."""
    train = parse_sizes(args.languages)
    generate(Settings(train, args.valid, args.test, args.seed, args.inventory), args.corpus)


def parser() -> argparse.ArgumentParser:
    """The options of this step."""
    parser = command(STEP, __doc__)
    add_corpus(parser)
    parser.add_argument(
        "--languages",
        default=QUICKSTART,
        metavar="CODES:SIZE,...",
        help="training pairs with English of each language; a code takes the next size given",
    )
    parser.add_argument("--valid", type=at_least_one, default=100, metavar="N", help="valid pairs of each language")
    parser.add_argument("--test", type=at_least_one, default=150, metavar="N", help="test pairs of each language")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of the draw")
    parser.add_argument(
        "--inventory",
        choices=INVENTORIES,
        default="small",
        help="small: the most common names and units, each seen often; full: nearly all that CLDR has",
    )
    parser.add_argument("--list", action=_List, nargs=0, help="list the languages (code, script, name) and stop")
    return parser


class _List(argparse.Action):
    """Answers at once, like --help, so that nothing else is asked for; a reader that stops early is no error."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        print("\n".join(f"{entry.code}\t{entry.script}\t{entry.name}" for entry in LANGUAGES.values()))
        parser.exit()


if __name__ == "__main__":
    sys.exit(run(parser(), write_corpus))
