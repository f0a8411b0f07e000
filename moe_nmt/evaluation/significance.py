"""Whether one system is better than another on a test set, or only luckier: paired tests over sentences.

Both tests draw what `sacrebleu --paired-bs` and `--paired-ar` draw with their default seed, so p-values are theirs; the
corpus scores of a draw are computed from summed counts. Directions with equally many sentences are drawn from by the
same lines, so that what sentences of a multi-parallel test set have in common stays in the mean over directions.
"""

# N sentences, S draws, K counts

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moe_nmt.evaluation.statistics import Counts, Scores, corpus_score, scores

SEED = 12345  # sacrebleu's default
BLOCK = 4_000_000  # drawn sentences that are held at a time
CONFIDENCE = 0.95


class PairedTest(Protocol):
    """A way to draw test sets."""

    @property
    def draws(self) -> int:
        """How many."""
        ...

    def differences(self, metric: str, baseline_NK: Counts, system_NK: Counts) -> Scores:
        """[S]: the score of the system minus that of the baseline in each draw."""
        ...

    def p_value(self, observed: float, differences_S: Scores) -> float:
        """How likely a difference at least as large as the observed one is where there is none (two-sided)."""
        ...

    def interval(self, differences_S: Scores) -> tuple[float, float] | None:
        """Where the true difference lies with a probability of CONFIDENCE; None where the draws do not tell."""
        ...


@dataclass(frozen=True)
class Bootstrap:
    """Paired bootstrap resampling (Koehn 2004): sentences are drawn with replacement."""

    draws: int = 1000

    def differences(self, metric: str, baseline_NK: Counts, system_NK: Counts) -> Scores:
        parts = []
        for times_SN in drawn_times(len(baseline_NK), self.draws):
            parts.append(scores(metric, times_SN @ system_NK) - scores(metric, times_SN @ baseline_NK))
        return np.concatenate(parts)

    def p_value(self, observed: float, differences_S: Scores) -> float:
        sizes = np.abs(differences_S)
        return exceeding(sizes - sizes.mean(), abs(observed))

    def interval(self, differences_S: Scores) -> tuple[float, float]:
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(differences_S, (tail, 1 - tail))
        return float(low), float(high)


@dataclass(frozen=True)
class Randomization:
    """Paired approximate randomization (Riezler and Maxwell 2005): translations of a sentence are swapped by chance."""

    draws: int = 10_000

    def differences(self, metric: str, baseline_NK: Counts, system_NK: Counts) -> Scores:
        sentences = len(baseline_NK)
        kept_SN = np.random.default_rng(SEED).integers(2, size=(self.draws, sentences), dtype=bool)
        both_K, change_NK = (baseline_NK + system_NK).sum(0), (baseline_NK - system_NK).astype(np.float64)
        parts = []
        for block in np.array_split(kept_SN, max(1, kept_SN.size // BLOCK)):
            first_SK = block @ change_NK + system_NK.sum(0)
            parts.append(scores(metric, first_SK) - scores(metric, both_K - first_SK))
        return np.concatenate(parts)

    def p_value(self, observed: float, differences_S: Scores) -> float:
        return exceeding(np.abs(differences_S), abs(observed))

    def interval(self, differences_S: Scores) -> None:
        return None


TESTS: dict[str, type[Bootstrap] | type[Randomization]] = {"bootstrap": Bootstrap, "randomization": Randomization}


def drawn_times(sentences: int, draws: int) -> Iterator[npt.NDArray[np.float64]]:
    """[S, N] in blocks of draws: how often each sentence is drawn, with replacement."""
    generator = np.random.default_rng(SEED)
    at_once = max(1, BLOCK // sentences)
    for start in range(0, draws, at_once):
        number = min(at_once, draws - start)
        drawn_SN = generator.choice(sentences, size=(number, sentences), replace=True)
        drawn_SN += sentences * np.arange(number)[:, None]
        times = np.bincount(drawn_SN.ravel(), minlength=number * sentences)
        yield times.reshape(number, sentences).astype(np.float64)


def exceeding(values_S: Scores, observed: float) -> float:
    """The p-value of an observation: the share of values above it, in which the observation itself is counted."""
    return float((np.sum(values_S > observed) + 1) / (len(values_S) + 1))


@dataclass(frozen=True)
class Comparison:
    """Two scores, and what a paired test says of their difference."""

    baseline: float
    system: float
    p_value: float
    interval: tuple[float, float] | None

    @property
    def difference(self) -> float:
        return self.system - self.baseline


@dataclass(frozen=True)
class Differences:
    """The scores of two systems on a test set, and the differences of their scores in each draw from it."""

    baseline: float
    system: float
    drawn: Scores

    @classmethod
    def of(cls, test: PairedTest, metric: str, baseline_NK: Counts, system_NK: Counts) -> Differences:
        """Raises:
        ValueError: if the systems have not translated equally many sentences.
        """
        baseline, system = (corpus_score(metric, counts) for counts in (baseline_NK, system_NK))
        return cls(baseline, system, test.differences(metric, baseline_NK, system_NK))

    @classmethod
    def mean(cls, parts: Sequence[Differences]) -> Differences:
        """The unweighted mean over directions, also within each draw."""
        return cls(
            float(np.mean([part.baseline for part in parts])),
            float(np.mean([part.system for part in parts])),
            np.mean([part.drawn for part in parts], axis=0),
        )

    def compare(self, test: PairedTest) -> Comparison:
        """What the test says; without any difference the p-value is 1 (sacrebleu's would be the smallest)."""
        observed = self.system - self.baseline
        p_value = test.p_value(observed, self.drawn) if observed else 1.0
        return Comparison(self.baseline, self.system, p_value, test.interval(self.drawn))
