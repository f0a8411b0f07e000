"""What BLEU and chrF++ count in each sentence, and the scores of any sums of it, many at once.

The counts are sacrebleu's, int32 [sentences, counts]. A corpus score is a function of their sum, so that a resampled
test set costs a sum and no new counting.
"""

# N sentences, S sums, K counts

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int32]
Sums = npt.NDArray[np.float64]
Scores = npt.NDArray[np.float64]

ORDERS = 4  # of BLEU's n-grams
BETA = 2  # how much more recall weighs than precision in chrF


def corpus_score(name: str, counts_NK: Counts) -> float:
    """The score of all sentences together, by the name of the metric; 0 to 100."""
    return float(scores(name, counts_NK.sum(0, dtype=np.float64)[None])[0])


def scores(name: str, sums_SK: Sums) -> Scores:
    """[S]: the corpus scores by the name of the metric, of sums over sentences; 0 to 100."""
    return chrf(sums_SK) if name.startswith("chrf") else bleu(sums_SK)


def bleu(sums_SK: Sums) -> Scores:
    """[S]: BLEU (Papineni et al. 2002) with sacrebleu's `exp` smoothing, from the lengths of hypothesis and reference,
    and correct and all n-grams of each order."""
    lengths, correct, total = sums_SK[:, :2].T, sums_SK[:, 2 : 2 + ORDERS], sums_SK[:, 2 + ORDERS :]
    halvings = np.cumsum(correct == 0, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precisions = np.where(correct > 0, correct, 0.5**halvings) / total
        brevity = np.exp(np.minimum(0, 1 - lengths[1] / lengths[0]))
        values: Scores = 100 * brevity * np.exp(np.log(precisions).mean(1))
    return np.where(correct.any(1) & (total > 0).all(1), values, 0)


def chrf(sums_SK: Sums) -> Scores:
    """[S]: chrF++ (Popović 2017), from the n-grams of hypothesis, of reference, and of both, of each order."""
    hypothesis, reference, both = (sums_SK[:, place::3] for place in range(3))
    counted = (hypothesis > 0) & (reference > 0)
    orders = np.maximum(counted.sum(1), 1)
    precision = (both / np.maximum(hypothesis, 1)).sum(1) / orders
    recall = (both / np.maximum(reference, 1)).sum(1) / orders
    weighted = BETA**2 * precision + recall
    values: Scores = 100 * (1 + BETA**2) * precision * recall / np.where(weighted > 0, weighted, 1)
    return values
