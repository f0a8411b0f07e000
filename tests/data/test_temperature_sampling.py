"""Temperature sampling against the formula, and whole numbers that add up."""

import math

import pytest

from moe_nmt.data import allot, temperature_shares

COUNTS = {"deu": 900, "ces": 90, "kat": 10}


@pytest.mark.parametrize("temperature", [1.0, 1.5, 5.0])
def test_shares_are_the_formula(temperature):
    powers = {name: (count / 1000) ** (1 / temperature) for name, count in COUNTS.items()}
    expected = {name: power / sum(powers.values()) for name, power in powers.items()}
    assert temperature_shares(COUNTS, temperature) == pytest.approx(expected)


def test_known_values():
    assert temperature_shares({"a": 16, "b": 1}, 2) == pytest.approx({"a": 0.8, "b": 0.2})
    assert temperature_shares(COUNTS, math.inf) == pytest.approx(dict.fromkeys(COUNTS, 1 / 3))


def test_names_without_data_get_nothing():
    assert temperature_shares({"a": 3, "b": 0}, math.inf) == {"a": 1.0, "b": 0.0}


@pytest.mark.parametrize("temperature", [0, -1, math.nan])
def test_refuses_temperatures_that_mean_nothing(temperature):
    with pytest.raises(ValueError, match="must be above 0"):
        temperature_shares(COUNTS, temperature)


@pytest.mark.parametrize("counts", [{}, {"a": 0}, {"a": 2, "b": -1}])
def test_refuses_counts_that_mean_nothing(counts):
    with pytest.raises(ValueError, match="cannot be sampled"):
        temperature_shares(counts, 1)


@pytest.mark.parametrize("total", [0, 1, 10, 12345])
def test_allotted_numbers_add_up_and_are_within_one_of_the_share(total):
    shares = temperature_shares(COUNTS, 3)
    numbers = allot(shares, total)
    assert sum(numbers.values()) == total
    assert all(abs(numbers[name] - shares[name] * total) < 1 for name in shares)
