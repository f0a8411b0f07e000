"""chrF++ over groups of directions, and whether two systems differ: sacrebleu's paired bootstrap, by test verse.

chrF++ of a group is the mean over its directions. A bootstrap sample draws test verses, each with its translations in
all directions of the group and by all seeds, and compares these means of both systems (a direction's translations by
all seeds are one text): neither a verse's many translations nor the seeds count as independent observations.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sacrebleu.metrics.chrf import CHRF, CHRFScore
from sacrebleu.significance import PairedTest

from moe_nmt.data import Corpus, Direction
from moe_nmt.data.text import read_lines, read_pair

Statistics = Mapping[Direction, np.ndarray]
"""What chrF++ counts in each test sentence of a direction: int [sentences, 24]."""


class MeanCHRF(CHRF):
    """chrF++ as a mean over parts, for sacrebleu's paired tests.

    What they call the hypotheses of a system are counts here, [verses, parts * 24]: those of a verse in every part.
    """

    def __init__(self) -> None:
        super().__init__(word_order=2)
        self.num_refs = 1

    def _extract_corpus_statistics(self, hypotheses: Any, references: Any) -> Any:
        return hypotheses

    def _compute_score_from_stats(self, stats: Any) -> CHRFScore:
        parts = np.reshape(stats, (-1, 3 * self.order)).tolist()
        return CHRFScore(
            statistics.fmean(map(self._compute_f_score, parts)), self.char_order, self.word_order, self.beta
        )


def count(corpus: Corpus, translations: Sequence[Path], direction: Direction) -> list[np.ndarray]:
    """The counts of the test set's translations in each folder; CorpusError unless they are as many as references."""
    references = corpus.text("raw", "test", corpus.pair(direction), direction.target)
    metric = CHRF(word_order=2, references=[list(read_lines(references))])
    files = [folder / f"{direction}.hyp" for folder in translations]
    texts = [[ours for ours, _ in read_pair(path, references)] for path in files]
    return [np.array(metric._extract_corpus_statistics(lines, None), dtype=np.int32) for lines in texts]


def chrf(system: Statistics, directions: Sequence[Direction]) -> float:
    """The mean over the directions of chrF++."""
    score: float = MeanCHRF()._compute_score_from_stats([system[direction].sum(0) for direction in directions]).score
    return score


def verses(corpus: Corpus, directions: Sequence[Direction]) -> dict[Direction, list[int]]:
    """For each direction the numbers of its test verses, by their English text, which is the same in all pairs."""
    numbers: dict[str, int] = {}
    english = {d: corpus.text("raw", "test", corpus.pair(d), corpus.languages[0]) for d in directions}
    return {d: [numbers.setdefault(line, len(numbers)) for line in read_lines(path)] for d, path in english.items()}


def by_verse(seeds: Sequence[Statistics], places: Mapping[Direction, Sequence[int]]) -> np.ndarray:
    """The counts of a system as `MeanCHRF` takes them, all seeds together: float32 [verses, directions * 24]."""
    total = 1 + max(max(numbers) for numbers in places.values())
    parts = []
    for direction, numbers in places.items():
        counts = sum(system[direction] for system in seeds)
        parts.append(np.zeros((total, counts.shape[1]), dtype=np.float32))
        np.add.at(parts[-1], numbers, counts)
    return np.concatenate(parts, axis=1)


def p_value(
    baseline: Sequence[Statistics], row: Sequence[Statistics], places: Mapping[Direction, Sequence[int]]
) -> float:
    """Two-sided, of the difference between two systems, each with the same seeds in the same order."""
    systems = [("baseline", by_verse(baseline, places)), ("row", by_verse(row, places))]
    _, results = PairedTest(systems, {"chrF++": MeanCHRF()}, None, test_type="bs")()
    (name,) = set(results) - {"System"}
    return float(results[name][1].p_value)
