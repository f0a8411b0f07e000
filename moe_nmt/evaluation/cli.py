"""`moe-nmt score`: scores translations by direction and resource bucket."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from moe_nmt.data import SPLITS, Corpus, Direction, parse_directions
from moe_nmt.data.directions import unknown
from moe_nmt.data.text import write_text
from moe_nmt.evaluation.metrics import fetch_spbleu_model, spbleu_model
from moe_nmt.evaluation.results import Results, Thresholds
from moe_nmt.evaluation.tables import render
from moe_nmt.evaluation.translations import find_translations

DESCRIPTION = (
    "Score translations with BLEU, chrF++ and, where sacrebleu already has its model, spBLEU, and look for signs of "
    "bad ones. Prints tables, with means over directions by bucket of training pairs. The three buckets are disjoint, "
    "whereas NLLB's averages count very low inside low."
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
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="also write scores.json, scores.md, index.html with pictures and examples, and what moe-nmt compare needs",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the scores as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables as Markdown")
    add_scoring_arguments(parser)


def add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says how to score."""
    parser.add_argument("--spbleu", action="store_true", help="let sacrebleu download its model of spBLEU")
    parser.add_argument(
        "--lid-model",
        type=Path,
        metavar="FILE",
        help="identify languages by this model of fastText, such as NLLB's lid218e.bin (default: by py3langid, where "
        "it is installed)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that score (default: %(default)s)",
    )
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


@dataclass(frozen=True)
class Scoring:
    """How to score: what the command line says, checked before any work begins."""

    corpus: Corpus | None
    split: str
    thresholds: Thresholds
    identify: bool
    lid_model: Path | None
    workers: int

    @classmethod
    def of(cls, args: argparse.Namespace, corpus: Path | None) -> Scoring:
        """UserError where the corpus or a model cannot be used."""
        thresholds = Thresholds(args.high_from, args.low_from)
        opened = Corpus.open(corpus) if corpus else None
        identify = args.lid_model is not None or importlib.util.find_spec("py3langid") is not None
        if args.lid_model:
            from moe_nmt.data.language_id import LanguageIdentifier

            LanguageIdentifier.open(args.lid_model, opened.languages if opened else ())
        if args.spbleu:
            fetch_spbleu_model()
        return cls(opened, args.split, thresholds, identify, args.lid_model, max(1, args.workers))


def main(args: argparse.Namespace) -> int:
    """Runs `moe-nmt score`; returns the exit status. UserError where something cannot be scored."""
    scoring = Scoring.of(args, args.corpus)
    files = choose(find_translations(args.translations, args.split), args.directions, args.translations)
    about = [f"Translations in {args.translations} of the split {args.split}."]
    results, notes = report(files, scoring, args.output, about)
    if args.json:
        from moe_nmt.evaluation.output import as_json

        write_text(args.json, as_json(results))
    if args.markdown:
        write_text(args.markdown, render(results, notes, markdown=True))
    return 0


def report(
    files: Mapping[Direction, Path], scoring: Scoring, output: Path | None, about: list[str]
) -> tuple[Results, list[str]]:
    """Scores the translations, prints the tables and writes the folder `output`; returns the results and notes on them.

    `about` says on the page what was translated. UserError where something cannot be scored.
    """
    from moe_nmt.evaluation.scoring import Texts, evaluate_all, languages_of

    corpus = scoring.corpus
    texts = [Texts.of(direction, path, corpus, scoring.split) for direction, path in files.items()]
    languages = corpus.languages if corpus else languages_of(files)
    evaluations = evaluate_all(texts, languages, scoring.lid_model, scoring.identify, scoring.workers)
    results = Results(
        {direction: evaluation.score for direction, evaluation in evaluations.items()},
        {direction: evaluation.signs for direction, evaluation in evaluations.items()},
        {direction: corpus.counts(direction)["train"] for direction in files} if corpus else {},
        scoring.thresholds,
    )
    notes = list(notes_on(results, scoring))
    print(render(results, notes), end="")
    if output:
        from moe_nmt.evaluation.output import write_evaluation

        write_evaluation(output, results, evaluations, about, notes)
    return results, notes


def choose(found: dict[Direction, Path], wanted: str | None, folder: Path) -> dict[Direction, Path]:
    """The files of the wanted directions, or all that were found; UserError where a wanted one is missing."""
    if wanted is None:
        return found
    directions = parse_directions(wanted)
    for direction in directions:
        if direction not in found:
            raise unknown("direction", str(direction), [str(d) for d in found], str(folder))
    return {direction: found[direction] for direction in directions}


def notes_on(results: Results, scoring: Scoring) -> Iterator[str]:
    """What a reader must know beside the numbers."""
    if "spbleu" not in results.metrics:
        yield f"spBLEU is left out: its SentencePiece model is not at hand ({spbleu_model()}); --spbleu fetches it."
    if scoring.identify:
        yield f"Languages were identified by {scoring.lid_model or 'py3langid'}."
    else:
        yield "Off-target rates are left out: no language identification is at hand (pip install 'moe_nmt[langid]')."
    if scoring.corpus is None:
        yield (
            "Without --corpus there are no buckets, and the references are the T- lines of fairseq-generate, "
            "in which unknown pieces are <unk>."
        )
    else:
        directions = scoring.corpus.directions
        missing = [str(direction) for direction in directions if direction not in results.scores]
        if missing:
            yield f"Not scored, of the corpus's {len(directions)} directions: {', '.join(missing)}."
