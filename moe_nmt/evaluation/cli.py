"""`moe-nmt score`: scores translations by direction and resource bucket."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from moe_nmt.data import SPLITS, Corpus, Direction, parse_directions
from moe_nmt.data.directions import unknown
from moe_nmt.data.text import read_lines, write_text
from moe_nmt.errors import UserError
from moe_nmt.evaluation.metrics import Score, score, spbleu_model
from moe_nmt.evaluation.results import Results, Thresholds
from moe_nmt.evaluation.tables import render
from moe_nmt.evaluation.translations import ScoreError, Translations, find_translations, read_translations

DESCRIPTION = (
    "Score translations with BLEU, chrF++ and, where sacrebleu already has its model, spBLEU. Prints a table, with "
    "means over directions by bucket of training pairs. The three buckets are disjoint, whereas NLLB's averages count "
    "very low inside low."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `moe-nmt score`."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "translations",
        type=Path,
        metavar="TRANSLATIONS",
        help="folder with DIRECTION/generate-SPLIT.txt, as fairseq-generate --results-path DIRECTION "
        "--remove-bpe sentencepiece writes it, or DIRECTION.hyp, one translation a line",
    )
    parser.add_argument(
        "--corpus",
        type=Path,
        help="corpus folder, for the references as they were written and for the sizes behind the buckets; "
        "without it the T- lines of fairseq-generate are the references, in which unknown pieces are <unk>",
    )
    parser.add_argument("--directions", metavar="A-B,…", help="score these and miss none; default: all that are there")
    parser.add_argument("--split", choices=SPLITS, default="test", help="what was translated (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the scores as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables as Markdown")
    add_threshold_arguments(parser)


def add_threshold_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --high-from and --low-from, which make the buckets."""
    default = Thresholds()
    parser.add_argument(
        "--high-from",
        type=int,
        default=default.high_from,
        metavar="N",
        help="training pairs from which a direction is high-resource (default: %(default)s)",
    )
    parser.add_argument(
        "--low-from",
        type=int,
        default=default.low_from,
        metavar="N",
        help="training pairs from which it is low-resource, and below which very low (default: %(default)s)",
    )


def main(args: argparse.Namespace) -> int:
    """Runs `moe-nmt score`; returns the exit status, 2 after a sentence on stderr where something cannot be scored."""
    try:
        run(args)
    except (UserError, OSError) as error:
        print(f"moe-nmt score: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> None:
    """Scores, prints the tables and writes the files asked for; UserError where something cannot be scored."""
    thresholds = Thresholds(args.high_from, args.low_from)
    corpus = Corpus.open(args.corpus) if args.corpus else None
    files = choose(find_translations(args.translations, args.split), args.directions, args.translations)
    sizes = {direction: corpus.counts(direction)["train"] for direction in files} if corpus else {}
    scores = dict(score_all(files, corpus, args.split))
    results = Results(scores, {direction: thresholds.bucket(size) for direction, size in sizes.items()})
    notes = list(notes_on(results, corpus))
    print(render(results, notes), end="")
    if args.json:
        write_text(args.json, json.dumps(results.as_dict(), indent=2, ensure_ascii=False) + "\n")
    if args.markdown:
        write_text(args.markdown, render(results, notes, markdown=True))


def choose(found: dict[Direction, Path], wanted: str | None, folder: Path) -> dict[Direction, Path]:
    """The files of the wanted directions, or all that were found; UserError where a wanted one is missing."""
    if wanted is None:
        return found
    directions = parse_directions(wanted)
    for direction in directions:
        if direction not in found:
            raise unknown("direction", str(direction), [str(d) for d in found], str(folder))
    return {direction: found[direction] for direction in directions}


def score_all(files: dict[Direction, Path], corpus: Corpus | None, split: str) -> Iterator[tuple[Direction, Score]]:
    """Scores one direction after the other, and says on stderr how far it is."""
    for number, (direction, path) in enumerate(files.items(), start=1):
        print(f"score: {number}/{len(files)} {direction}", file=sys.stderr, flush=True)
        translations = read_translations(path)
        references = read_references(translations, direction, corpus, split)
        yield direction, score(translations.hypotheses, references, direction.target)


def read_references(translations: Translations, direction: Direction, corpus: Corpus | None, split: str) -> list[str]:
    """The references, from the raw text of the corpus if there is one; ScoreError unless there is one a translation."""
    if corpus is None:
        if translations.references is None:
            raise ScoreError(
                f"{translations.path} comes without references: name the corpus it was translated from, --corpus"
            )
        return translations.references
    path = corpus.text("raw", split, corpus.pair(direction), direction.target)
    if not path.is_file():
        raise ScoreError(f"{path} is missing, so {direction} has no reference: choose another --split or direction")
    references = list(read_lines(path))
    if len(references) != len(translations.hypotheses):
        raise ScoreError(
            f"{translations.path} has {len(translations.hypotheses)} translations and {path} has {len(references)} "
            "references: translate the whole split again"
        )
    return references


def notes_on(results: Results, corpus: Corpus | None) -> Iterator[str]:
    """What a reader must know beside the numbers."""
    if "spbleu" not in results.metrics:
        yield f"spBLEU is left out: its SentencePiece model is not at hand ({spbleu_model()})."
    if corpus is None:
        yield (
            "Without --corpus there are no buckets, and the references are the T- lines of fairseq-generate, "
            "in which unknown pieces are <unk>."
        )
    else:
        missing = [str(direction) for direction in corpus.directions if direction not in results.scores]
        if missing:
            yield f"Not scored, of the corpus's {len(corpus.directions)} directions: {', '.join(missing)}."
