"""Paired tests against sacrebleu's own, on the same draws."""

import random

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from moe_nmt.evaluation import significance
from moe_nmt.evaluation.metrics import score
from moe_nmt.evaluation.significance import Bootstrap, Differences, Randomization, drawn_times

NAMES = {"bleu": "BLEU", "chrf++": "chrF2++"}
METRICS = {"bleu": BLEU(), "chrf++": CHRF(word_order=2)}
REFERENCES = [f"Sentence {n} has {n % 7} words , then {n * n} more , and at its end a {n % 3} ." for n in range(80)]


def worsened(rate, seed=1):
    """The references without some of their words."""
    rng = random.Random(seed)
    return [" ".join(word for word in line.split() if rng.random() > rate) for line in REFERENCES]


BASELINE = worsened(0.2, 0)


@pytest.fixture(scope="module")
def counts():
    systems = {rate: worsened(rate) for rate in (0.19, 0.22, 0.3)} | {0.2: BASELINE}
    return {rate: score(lines, REFERENCES, "eng").counts for rate, lines in systems.items()}


@pytest.mark.parametrize(("kind", "test"), [("bs", Bootstrap(300)), ("ar", Randomization(300))])
@pytest.mark.parametrize("rate", [0.19, 0.22, 0.3])
def test_p_values_are_those_of_sacrebleu(counts, kind, test, rate):
    systems = [("baseline", BASELINE), ("system", worsened(rate))]
    _, theirs = PairedTest(systems, METRICS, [REFERENCES], test_type=kind, n_samples=300)()
    for metric, name in NAMES.items():
        ours = Differences.of(test, metric, counts[0.2][metric], counts[rate][metric]).compare(test)
        assert ours.p_value == theirs[name][1].p_value
        assert (ours.baseline, ours.system) == pytest.approx([result.score for result in theirs[name]])


def test_the_interval_holds_95_of_100_resamples(counts):
    test = Bootstrap(1000)
    differences = Differences.of(test, "bleu", counts[0.2]["bleu"], counts[0.3]["bleu"])
    low, high = differences.compare(test).interval
    assert low < differences.system - differences.baseline < high < 0
    assert np.mean((differences.drawn > low) & (differences.drawn < high)) == pytest.approx(0.95, abs=0.002)


@pytest.mark.parametrize("test", [Bootstrap(50), Randomization(50)])
def test_a_system_does_not_differ_from_itself(counts, test):
    assert Differences.of(test, "bleu", counts[0.2]["bleu"], counts[0.2]["bleu"]).compare(test).p_value == 1


@pytest.mark.parametrize("test", [Bootstrap(40), Randomization(40)])
def test_draws_do_not_depend_on_how_many_are_held_at_a_time(counts, test, monkeypatch):
    sides = counts[0.2]["chrf++"], counts[0.3]["chrf++"]
    whole = test.differences("chrf++", *sides)
    monkeypatch.setattr(significance, "BLOCK", 7 * len(REFERENCES))
    np.testing.assert_allclose(test.differences("chrf++", *sides), whole, atol=1e-9)


def test_every_draw_has_as_many_sentences_as_the_test_set():
    times = np.concatenate(list(drawn_times(30, 20)))
    assert times.shape == (20, 30)
    assert (times.sum(1) == 30).all()


def test_means_over_directions_are_taken_within_each_draw(counts):
    test = Bootstrap(200)
    parts = [Differences.of(test, "bleu", counts[0.2]["bleu"], counts[rate]["bleu"]) for rate in (0.19, 0.3)]
    mean = Differences.mean(parts)
    np.testing.assert_allclose(mean.drawn, (parts[0].drawn + parts[1].drawn) / 2)
    assert mean.baseline == parts[0].baseline
    assert mean.system == pytest.approx((parts[0].system + parts[1].system) / 2)


def test_opposite_differences_cancel_in_the_mean(counts):
    """The same lines are drawn in directions of equally many sentences, so that what they share stays together."""
    test = Bootstrap(200)
    there = Differences.of(test, "bleu", counts[0.2]["bleu"], counts[0.3]["bleu"])
    back = Differences.of(test, "bleu", counts[0.3]["bleu"], counts[0.2]["bleu"])
    assert np.abs(Differences.mean([there, back]).drawn).max() < 1e-9
