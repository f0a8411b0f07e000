"""Scoring the translations of many directions, in several processes."""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_nmt.data import Corpus, Direction
from moe_nmt.data.language_id import LanguageIdentifier
from moe_nmt.data.text import read_lines
from moe_nmt.evaluation.metrics import Score, score
from moe_nmt.evaluation.signs import Signs, find_signs
from moe_nmt.evaluation.statistics import chrf
from moe_nmt.evaluation.translations import ScoreError, read_translations

SMALL = 2_000_000  # bytes of translations that are scored before other processes would have started
EXAMPLES = 3  # of the worst translations, and of those around the median


@dataclass(frozen=True)
class Texts:
    """The files of one direction: its translations, and the references and sources where there is a corpus."""

    direction: Direction
    translations: Path
    references: Path | None
    sources: Path | None

    @classmethod
    def of(cls, direction: Direction, translations: Path, corpus: Corpus | None, split: str) -> Texts:
        """ScoreError if the corpus has no text of the direction in this split."""
        if corpus is None:
            return cls(direction, translations, None, None)
        corpus.counts(direction)
        pair = corpus.serving(direction, split)
        references, sources = (corpus.text("raw", split, pair, side) for side in (direction.target, direction.source))
        for path in (references, sources):
            if not path.is_file():
                raise ScoreError(
                    f"{path} is missing, so {direction} has no reference: choose another --split or direction"
                )
        return cls(direction, translations, references, sources)


@dataclass(frozen=True)
class Example:
    """A translation and how good it is by chrF++; `line` counts from 1."""

    line: int
    source: str | None
    reference: str
    hypothesis: str
    chrf: float


@dataclass(frozen=True)
class Evaluation:
    """What is known of the translations of one direction; `references` is a hash of what they were compared with."""

    score: Score
    signs: Signs
    worst: list[Example]
    median: list[Example]
    references: str


def evaluate_all(
    texts: Sequence[Texts], languages: Sequence[str], lid_model: Path | None, identify: bool, workers: int
) -> dict[Direction, Evaluation]:
    """Evaluates all directions, in their order; says on stderr how far it is.

    Languages are identified among `languages`, with the model of fastText or else py3langid, if `identify`.
    """
    evaluate = functools.partial(evaluate_one, languages=tuple(languages), lid_model=lid_model, identify=identify)
    start, size = time.monotonic(), sum(text.translations.stat().st_size for text in texts)
    found = {}
    for number, (direction, evaluation) in enumerate(_run(evaluate, texts, workers if size > SMALL else 1), start=1):
        found[direction] = evaluation
        left = round((time.monotonic() - start) / number * (len(texts) - number))
        about = f", about {left // 60}:{left % 60:02} left" if left else ""
        print(f"score: {number}/{len(texts)} {direction}{about}", file=sys.stderr, flush=True)
    return {text.direction: found[text.direction] for text in texts}


def _run(
    evaluate: functools.partial[Evaluation], texts: Sequence[Texts], workers: int
) -> Iterator[tuple[Direction, Evaluation]]:
    if workers == 1 or len(texts) == 1:
        for text in texts:
            yield text.direction, evaluate(text)
        return
    # Processes are started anew, because a process with threads or a GPU cannot be forked safely.
    with ProcessPoolExecutor(min(workers, len(texts)), multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(evaluate, text): text.direction for text in texts}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def evaluate_one(texts: Texts, languages: tuple[str, ...], lid_model: Path | None, identify: bool) -> Evaluation:
    """Evaluates one direction; ScoreError unless there is one reference for each translation."""
    translations = read_translations(texts.translations)
    hypotheses = translations.hypotheses
    sources = None if texts.sources is None else list(read_lines(texts.sources))
    references = translations.references if texts.references is None else list(read_lines(texts.references))
    if references is None:
        raise ScoreError(
            f"{texts.translations} comes without references: name the corpus it was translated from, --corpus"
        )
    if len(references) != len(hypotheses):
        raise ScoreError(
            f"{texts.translations} has {len(hypotheses)} translations and {texts.references} has {len(references)} "
            "references: translate the whole split again"
        )
    scored = score(hypotheses, references, texts.direction.target)
    identifier = _identifier(languages, lid_model) if identify else None
    signs = find_signs(texts.direction, hypotheses, references, sources, identifier)
    quality = chrf(scored.counts["chrf++"].astype(np.float64))
    order = np.argsort(quality, kind="stable").tolist()
    middle = len(order) // 2

    def examples(lines: list[int]) -> list[Example]:
        return [
            Example(
                line + 1, sources[line] if sources else None, references[line], hypotheses[line], float(quality[line])
            )
            for line in lines
        ]

    return Evaluation(
        scored,
        signs,
        examples(order[:EXAMPLES]),
        examples(order[max(EXAMPLES, middle - EXAMPLES // 2) :][:EXAMPLES]),
        hashlib.sha256("\n".join(references).encode("utf-8")).hexdigest(),
    )


@functools.lru_cache(maxsize=1)
def _identifier(languages: tuple[str, ...], lid_model: Path | None) -> LanguageIdentifier:
    return LanguageIdentifier.open(lid_model, languages)


def languages_of(directions: Mapping[Direction, object]) -> list[str]:
    """The languages of the directions, each once."""
    return list(dict.fromkeys(language for d in directions for language in (d.source, d.target)))
