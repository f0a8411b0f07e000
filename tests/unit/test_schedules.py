"""Schedules against their formulas at the start, on the way, at the end and after it."""

import pytest

from moe_nmt.registry import RegistryError
from moe_nmt.schedules import SCHEDULES, Constant, at_step


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ("constant(value=0.3)", {0: 0.3, 7: 0.3, 10**9: 0.3}),
        ("linear(start=0.0, end=0.2, steps=4000)", {0: 0.0, 1000: 0.05, 2000: 0.1, 4000: 0.2, 9000: 0.2}),
        ("linear(start=2, end=0.3, steps=100)", {0: 2.0, 50: 1.15, 100: 0.3, 150: 0.3}),
        ("linear(start=1, end=0, steps=10, delay=5)", {0: 1.0, 5: 1.0, 6: 0.9, 15: 0.0, 16: 0.0}),
        ("cosine(start=1.0, end=0.0, steps=6)", {0: 1.0, 2: 0.75, 3: 0.5, 4: 0.25, 6: 0.0, 7: 0.0}),
        ("cosine(start=0.0, end=0.4, steps=6, delay=10)", {0: 0.0, 10: 0.0, 12: 0.1, 13: 0.2, 14: 0.3, 16: 0.4}),
        ("stages(starts=[0, 10, 30], values=[1, 0.5, 2])", {0: 1, 9: 1, 10: 0.5, 29: 0.5, 30: 2, 31: 2}),
    ],
)
def test_values(spec, values):
    schedule = SCHEDULES.build(spec)
    for step, value in values.items():
        assert schedule(step) == pytest.approx(value, abs=1e-12), step


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("linear(start=0, end=1, steps=0)", "steps must be at least 1, not 0"),
        ("cosine(start=0, end=1, steps=-3)", "steps must be at least 1, not -3"),
        ("stages(starts=[5], values=[1])", "starts must begin with 0"),
        ("stages(starts=[], values=[])", "starts must begin with 0"),
        ("stages(starts=[0, 5, 5], values=[1, 2, 3])", "and rise"),
        ("stages(starts=[0, 5], values=[1])", "one entry in values for each"),
        ("stages(starts=[0, x], values=[1, 2])", "each entry a whole number"),
        ("stages(starts=[0, 5], values=[1, x])", "each entry a number"),
        ("linear(start=0, end=1)", "needs its option 'steps'"),
        ("lineer(start=0, end=1, steps=2)", "did you mean 'linear'?"),
    ],
)
def test_mistakes_are_refused(spec, reason):
    with pytest.raises(RegistryError, match="schedule") as caught:
        SCHEDULES.build(spec)
    assert reason in str(caught.value)


def test_a_plain_number_is_its_own_value_at_every_step():
    assert at_step(0.25, 0) == at_step(0.25, 1000) == 0.25
    assert at_step(Constant(value=0.5), 1000) == 0.5
