"""The currency `Routing` and the functions on it, against values worked out by hand."""

import pytest
import torch

from moe_nmt.moe import drop_overflow, expert_load, keep, with_weight
from moe_nmt.moe.routing import expert_capacity, normalize_per_token, num_experts, num_tokens
from tests.parts import edges, make_routing

SOME = make_routing([(0, 2, 0.5), (1, 0, 0.25), (2, 2, 1.0), (0, 0, 0.5), (3, 2, 0.75)], num_tokens=5, num_experts=4)
NONE = make_routing([], num_tokens=0, num_experts=4)


def test_sizes_and_load():
    assert (num_tokens(SOME), num_experts(SOME)) == (5, 4)
    assert expert_load(SOME).tolist() == [2, 0, 3, 0]
    assert (num_tokens(NONE), num_experts(NONE)) == (0, 4)
    assert expert_load(NONE).tolist() == [0, 0, 0, 0]


def test_keep_takes_assignments_away_and_leaves_scores():
    kept = keep(SOME, torch.tensor([True, False, True, False, True]))
    assert kept.token_A.tolist() == [0, 2, 3]
    assert kept.expert_A.tolist() == [2, 2, 2]
    assert kept.weight_A.tolist() == [0.5, 1.0, 0.75]
    assert kept.prob_NE is SOME.prob_NE and kept.logit_NE is SOME.logit_NE


def test_with_weight_changes_weights_alone():
    changed = with_weight(SOME, torch.zeros(5))
    assert changed.weight_A.tolist() == [0.0] * 5
    assert changed.token_A is SOME.token_A and changed.expert_A is SOME.expert_A


@pytest.mark.parametrize(
    ("tokens", "experts", "k", "factor", "nllb", "deepspeed", "megablocks"),
    [
        (8, 4, 1, 1.0, 2, 2, 2),
        (8, 4, 2, 1.0, 4, 4, 4),
        (10, 4, 1, 1.0, 3, 3, 2),
        (10, 4, 2, 1.0, 6, 5, 5),
        (7, 4, 2, 1.0, 4, 4, 3),
        (7, 4, 3, 0.5, 3, 3, 2),
        (10, 4, 1, 1.25, 4, 4, 3),
        (10, 4, 2, 1.25, 8, 7, 6),
        (1000, 8, 2, 2.0, 500, 500, 500),
        (1, 8, 2, 1.0, 2, 1, 1),
    ],
)
def test_capacity_formulas(tokens, experts, k, factor, nllb, deepspeed, megablocks):
    assert expert_capacity(tokens, experts, k, factor) == nllb
    assert expert_capacity(tokens, experts, k, factor, "nllb") == nllb
    assert expert_capacity(tokens, experts, k, factor, "deepspeed") == deepspeed
    assert expert_capacity(tokens, experts, k, factor, "megablocks") == megablocks


def test_capacity_is_never_below_the_minimum():
    assert expert_capacity(10, 4, 2, 1.0, "deepspeed", minimum=4) == 5
    assert expert_capacity(2, 4, 2, 1.0, "deepspeed", minimum=4) == 4
    assert expert_capacity(0, 4, 2, 1.0, minimum=1) == 1


@pytest.mark.parametrize(
    ("capacity", "kept", "dropped"),
    [
        (1, {(0, 2): 0.5, (1, 0): 0.25}, [1, 0, 2, 0]),
        (2, {(0, 2): 0.5, (1, 0): 0.25, (2, 2): 1.0, (0, 0): 0.5}, [0, 0, 1, 0]),
        (3, edges(SOME), [0, 0, 0, 0]),
    ],
)
def test_overflow_drops_the_last_in_order_first(capacity, kept, dropped):
    routing = drop_overflow(SOME, capacity)
    assert list(edges(routing).items()) == list(kept.items())
    assert routing.dropped_E.tolist() == dropped


def test_overflow_of_nothing_is_nothing():
    routing = drop_overflow(NONE, 1)
    assert edges(routing) == {} and routing.dropped_E.tolist() == [0, 0, 0, 0]


def test_what_never_met_a_capacity_says_so():
    assert SOME.dropped_E is None


def test_weights_of_a_token_are_scaled_to_sum_to_one():
    routing = make_routing([(0, 2, 0.6), (1, 0, 0.02), (0, 1, 0.2)], num_tokens=3, num_experts=4)
    assert edges(normalize_per_token(routing)) == pytest.approx({(0, 2): 0.75, (1, 0): 1.0, (0, 1): 0.25})
    assert edges(normalize_per_token(NONE)) == {}
