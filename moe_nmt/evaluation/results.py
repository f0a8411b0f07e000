"""The scores of many directions together: resource buckets, means and signatures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from moe_nmt.data import Direction, is_english
from moe_nmt.evaluation.metrics import Score
from moe_nmt.evaluation.signs import Signs
from moe_nmt.evaluation.translations import ScoreError

METRICS = ("bleu", "chrf++", "spbleu")
BUCKETS = ("high", "low", "very_low")
GROUPS: dict[str, Callable[[Direction], bool]] = {
    "all": lambda direction: True,
    "out of English": lambda direction: is_english(direction.source),
    "into English": lambda direction: is_english(direction.target),
    "without English": lambda direction: not (is_english(direction.source) or is_english(direction.target)),
}


@dataclass(frozen=True)
class Thresholds:
    """Training pairs of a direction: `high` from the one number on, `low` from the other on, `very_low` below."""

    high_from: int = 1_000_000
    low_from: int = 100_000

    def __post_init__(self) -> None:
        if not 0 <= self.low_from <= self.high_from:
            raise ScoreError(
                f"--low-from {self.low_from} and --high-from {self.high_from} make no buckets: "
                "they must not be negative, and low must not begin above high"
            )

    def bucket(self, training_pairs: int) -> str:
        if training_pairs >= self.high_from:
            return "high"
        return "low" if training_pairs >= self.low_from else "very_low"


@dataclass(frozen=True)
class Results:
    """The score of each direction, the signs of bad translations in it, and its training pairs where they are known."""

    scores: Mapping[Direction, Score]
    signs: Mapping[Direction, Signs]
    sizes: Mapping[Direction, int]
    thresholds: Thresholds

    @property
    def buckets(self) -> dict[Direction, str]:
        """The bucket of each direction whose training pairs are known."""
        return {direction: self.thresholds.bucket(size) for direction, size in self.sizes.items()}

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics that every direction has."""
        return [name for name in METRICS if all(name in score.values for score in self.scores.values())]

    def mean(self, directions: list[Direction]) -> dict[str, float]:
        """The unweighted mean over directions by metric."""
        return {name: statistics.fmean(self.scores[d].values[name] for d in directions) for name in self.metrics}

    def group(self, group: str, bucket: str | None = None) -> list[Direction]:
        """The directions of a group of GROUPS, all or those of one bucket."""
        member, buckets = GROUPS[group], self.buckets
        return [d for d in self.scores if member(d) and (bucket is None or buckets.get(d) == bucket)]

    def signatures(self) -> dict[str, str | dict[str, str]]:
        """sacrebleu's signature by metric; that of BLEU by tokenizer, which depends on the target language."""
        bleu = {score.tokenizer: score.signatures["bleu"] for score in self.scores.values()}
        first = next(iter(self.scores.values()))
        return {"bleu": bleu, **{name: first.signatures[name] for name in self.metrics if name != "bleu"}}

    def as_dict(self) -> dict[str, object]:
        """The results as JSON holds them: scores rounded to two decimals, shares and ratios to four."""
        buckets = self.buckets
        directions = {
            str(direction): {
                **_rounded(score.values),
                "bucket": buckets.get(direction),
                "training_pairs": self.sizes.get(direction),
                "sentences": score.sentences,
                **_rounded(self.signs[direction].known(), 4),
            }
            for direction, score in self.scores.items()
        }
        members = {bucket: self.group("all", bucket) for bucket in BUCKETS}
        return {
            "directions": directions,
            "buckets": {b: {**_rounded(self.mean(ds)), "directions": len(ds)} for b, ds in members.items() if ds},
            "mean": _rounded(self.mean(list(self.scores))),
            "signatures": self.signatures(),
        }


def _rounded(values: Mapping[str, float], digits: int = 2) -> dict[str, float]:
    return {name: round(value, digits) for name, value in values.items()}
