"""Corpus scores from summed counts are sacrebleu's."""

import random

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from moe_nmt.evaluation.metrics import score
from moe_nmt.evaluation.statistics import corpus_score, scores

WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", ".", ",", "(x)", "zzz", "'"]
METRICS = {"bleu": BLEU(), "chrf++": CHRF(word_order=2)}


def sentences(rng, number, longest):
    return [" ".join(rng.choices(WORDS, k=rng.randint(0, longest))) for _ in range(number)]


@pytest.mark.parametrize("seed", range(60))
def test_scores_of_random_texts(seed):
    """Short ones too, with n-grams that do not occur, empty lines and no match at all."""
    rng = random.Random(seed)
    number, longest = rng.randint(1, 5), rng.choice([1, 3, 9])
    hypotheses, references = sentences(rng, number, longest), sentences(rng, number, longest)
    counts = score(hypotheses, references, "eng").counts
    for name, metric in METRICS.items():
        expected = metric.corpus_score(hypotheses, [references]).score
        assert corpus_score(name, counts[name]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_many_sums_at_once(name):
    rng = random.Random(0)
    hypotheses, references = sentences(rng, 30, 8), sentences(rng, 30, 8)
    counts = score(hypotheses, references, "eng").counts[name]
    samples = [rng.choices(range(30), k=30) for _ in range(5)]
    sums = np.stack([counts[lines].sum(0) for lines in samples]).astype(float)
    for lines, value in zip(samples, scores(name, sums), strict=True):
        texts = ([side[line] for line in lines] for side in (hypotheses, references))
        assert value == pytest.approx(METRICS[name].corpus_score(next(texts), [next(texts)]).score, abs=1e-9)
