"""The top-k router against loops over tokens, and against routes worked out by hand.

Shape letters: N tokens, E experts.
"""

import math
from collections import Counter

import pytest
import torch

from moe_nmt.moe import ROUTERS, RoutingContext
from moe_nmt.registry import RegistryError
from tests import oracle
from tests.parts import edges, grow_gate, tokens

DIM, EXPERTS = 5, 4


def router(options="", dim=DIM, num_experts=EXPERTS, causal=False):
    return ROUTERS.build(f"top_k({options})", dim=dim, num_experts=num_experts, causal=causal)


def router_of_scores(options="", num_experts=EXPERTS, causal=False):
    """A router whose input is its logits."""
    return grow_gate(router(options, num_experts, num_experts, causal), torch.eye(num_experts))


def route(part, x_ND):
    return part(x_ND, RoutingContext())


def scores(*prob):
    return torch.tensor(prob).log()


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("factor", [None, 0.5])
@pytest.mark.parametrize("normalize", ["none", "before_dropping", "after_dropping"])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_weights_and_gradients_equal_the_loops(k, normalize, factor, count):
    part = router(f"k={k}, normalize={normalize}, capacity_factor={factor}")
    capacity = None if factor is None else k * {1: 1, 2: 1, 9: 2}[count]
    x_ND = tokens(count, DIM).requires_grad_()
    expected = oracle.route(x_ND, part.gate.weight, k, capacity, normalize)
    routing = route(part, x_ND)

    assert edges(routing) == pytest.approx({edge: weight.item() for edge, weight in expected.items()}, rel=1e-5)
    factors = {edge: number + 1.0 for number, edge in enumerate(sorted(expected))}
    inputs = [x_ND, part.gate.weight]
    wanted = torch.autograd.grad(sum(factors[edge] * weight for edge, weight in expected.items()), inputs)
    factor_A = torch.tensor([factors[edge] for edge in edges(routing)])
    found = torch.autograd.grad((routing.weight_A * factor_A).sum(), inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_scores_are_the_logits_and_their_softmax():
    part, x_ND = router(), tokens(6, DIM)
    routing = route(part, x_ND)
    torch.testing.assert_close(routing.logit_NE, x_ND @ part.gate.weight.T)
    expected_NE = torch.stack([torch.stack(oracle.probabilities(x_D, part.gate.weight)) for x_D in x_ND])
    torch.testing.assert_close(routing.prob_NE, expected_NE)


def test_eight_tokens_that_prefer_one_of_four_experts():
    x_ND = scores(0.7, 0.1, 0.1, 0.1).expand(8, 4)
    routing = route(router_of_scores("k=1, capacity_factor=1.0"), x_ND)
    assert edges(routing) == pytest.approx({(0, 0): 0.7, (1, 0): 0.7})
    assert routing.dropped_E.tolist() == [6, 0, 0, 0]


def test_all_first_choices_are_served_before_any_second_choice():
    second_0, first_0 = scores(0.3, 0.6, 0.1), scores(0.6, 0.1, 0.3)
    routing = route(router_of_scores("capacity_factor=1.0", num_experts=3), torch.stack([second_0, first_0, first_0]))
    assert list(edges(routing)) == [(0, 1), (1, 0), (2, 0), (1, 2), (2, 2)]
    assert routing.dropped_E.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("normalize", "of_the_survivor", "of_the_pair"),
    [
        ("none", 0.6, (0.6, 0.3)),
        ("before_dropping", 0.6 / 0.9, (2 / 3, 1 / 3)),
        ("after_dropping", 1.0, (2 / 3, 1 / 3)),
        (None, 1.0, (2 / 3, 1 / 3)),
    ],
)
def test_normalization_of_a_pair_and_of_a_survivor(normalize, of_the_survivor, of_the_pair):
    second_0, first_0 = scores(0.3, 0.6, 0.1), scores(0.6, 0.1, 0.3)
    part = router_of_scores(f"capacity_factor=1.0, normalize={normalize}", num_experts=3)
    weights = edges(route(part, torch.stack([second_0, first_0, first_0])))
    assert weights[0, 1] == pytest.approx(of_the_survivor)
    assert (weights[1, 0], weights[1, 2]) == pytest.approx(of_the_pair)


def test_with_one_expert_per_token_the_weight_is_its_probability_and_the_gate_learns():
    part = router_of_scores("k=1")
    routing = route(part, scores(0.1, 0.2, 0.3, 0.4)[None])
    assert edges(routing) == pytest.approx({(0, 3): 0.4})
    routing.weight_A.sum().backward()
    assert part.gate.weight.grad.abs().max() > 0.1


def test_with_one_expert_per_token_a_normalized_weight_would_teach_the_gate_nothing():
    part = router("k=1, normalize=after_dropping")
    routing = route(part, tokens(6, DIM))
    routing.weight_A.sum().backward()
    assert routing.weight_A.tolist() == [1.0] * 6
    assert part.gate.weight.grad.abs().max() < 1e-6


def test_k_equal_to_the_number_of_experts_uses_all():
    assert len(edges(route(router("k=4"), tokens(6, DIM)))) == 24


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_router_of_another_precision_computes_in_float32_bit_for_bit(dtype):
    part, x_ND = router().to(dtype), tokens(9, DIM, dtype)
    exact = grow_gate(router(), part.gate.weight.float())
    found, expected = route(part, x_ND), route(exact, x_ND.float())
    for name in ("token_A", "expert_A", "weight_A", "prob_NE", "logit_NE"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
        assert getattr(found, name).dtype == getattr(expected, name).dtype, name


def test_autocast_does_not_touch_the_router():
    part, x_ND = router(), tokens(9, DIM)
    expected = route(part, x_ND)
    with torch.autocast("cpu", torch.bfloat16):
        found = route(part, x_ND)
    assert torch.equal(found.logit_NE, expected.logit_NE)
    assert torch.equal(found.weight_A, expected.weight_A)


def test_priority_by_probability_keeps_the_most_confident():
    x_ND = torch.stack([scores(p, 1 - p) for p in (0.6, 0.9, 0.7, 0.8)])
    by_position = route(router_of_scores("k=1, capacity_factor=1.0", num_experts=2), x_ND)
    by_probability = route(router_of_scores("k=1, capacity_factor=1.0, priority=probability", num_experts=2), x_ND)
    assert edges(by_position) == pytest.approx({(0, 0): 0.6, (1, 0): 0.9})
    assert edges(by_probability) == pytest.approx({(1, 0): 0.9, (3, 0): 0.8})


def test_priority_by_probability_still_serves_first_choices_first():
    confident_of_1, weak_of_0 = scores(0.09, 0.9, 0.01), scores(0.4, 0.3, 0.3)
    part = router_of_scores("capacity_factor=1.0, priority=probability", num_experts=3)
    routing = route(part, torch.stack([confident_of_1, weak_of_0, weak_of_0]))
    assert {(1, 0), (2, 0), (0, 1)} <= set(edges(routing))
    assert (0, 0) not in edges(routing)


def test_a_decoder_refuses_priority_by_probability():
    assert router("priority=position", causal=True).priority == "position"
    with pytest.raises(RegistryError, match="lets a decoder see later tokens; use priority=position"):
        router("priority=probability", causal=True)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("k=0", "k must be between 1 and the number of experts, 4, not 0"),
        ("k=5", "k must be between 1 and the number of experts, 4, not 5"),
        ("jitter=1.0", "jitter must be at least 0 and below 1, not 1.0"),
        ("jitter=-0.1", "jitter must be at least 0 and below 1, not -0.1"),
        ("capacity_factor=0", "capacity_factor must be above 0, or None for dropless routing, not 0.0"),
        ("eval_capacity_factor=-1", "eval_capacity_factor must be above 0"),
        ("second_expert=some", "must be one of all, random, sampling, not some"),
        ("capacity_formula=switch", "must be one of nllb, deepspeed, megablocks, not switch"),
    ],
)
def test_what_cannot_be_is_refused(options, reason):
    with pytest.raises(RegistryError, match="router") as caught:
        router(options)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "options", ["jitter=0.9", "second_expert=random", "second_expert=sampling", "capacity_factor=0.25"]
)
def test_evaluation_is_deterministic_and_dropless(options):
    plain, part = router().eval(), router(options).eval()
    grow_gate(part, plain.gate.weight)
    x_ND = tokens(50, DIM)
    expected = edges(route(plain, x_ND))
    assert len(expected) == 100
    assert edges(route(part, x_ND)) == edges(route(part, x_ND)) == expected


@pytest.mark.parametrize("options", ["jitter=0.9", "second_expert=random", "second_expert=sampling"])
def test_training_draws_anew_each_time(options):
    part, x_ND = router(options), tokens(50, DIM)
    assert edges(route(part, x_ND)) != edges(route(part, x_ND))


def test_capacity_in_evaluation_is_an_option_of_its_own():
    x_ND = scores(0.7, 0.1, 0.1, 0.1).expand(8, 4)
    part = router_of_scores("k=1, capacity_factor=1.0, eval_capacity_factor=2.0")
    assert len(edges(route(part, x_ND))) == 2
    assert len(edges(route(part.eval(), x_ND))) == 4


def test_capacity_formula_and_minimum_are_used():
    x_ND = scores(0.7, 0.1, 0.1, 0.1).expand(10, 4)
    for options, kept in (("capacity_formula=megablocks", 2), ("capacity_formula=deepspeed", 3), ("min_capacity=5", 5)):
        assert len(edges(route(router_of_scores(f"k=1, capacity_factor=1.0, {options}"), x_ND))) == kept, options


def test_jitter_multiplies_every_input_by_its_own_uniform_noise():
    part = router_of_scores("jitter=0.1", num_experts=4)
    noise_NE = route(part, torch.ones(5000, 4)).logit_NE
    assert noise_NE.min() >= 0.9 and noise_NE.max() <= 1.1
    assert len(noise_NE.unique()) > 15_000
    standard_error = 0.2 / math.sqrt(12) / math.sqrt(noise_NE.numel())
    assert abs(noise_NE.mean() - 1) < 5 * standard_error
    assert noise_NE.std().item() == pytest.approx(0.2 / math.sqrt(12), rel=0.05)


@pytest.mark.parametrize(("first", "second"), [(0.7, 0.2), (0.6, 0.25), (0.5, 0.4), (0.45, 0.449)])
def test_a_random_second_expert_is_kept_with_twice_its_weight(first, second):
    count = 20_000
    x_ND = scores(first, second, 1 - first - second).expand(count, 3)
    drawn = Counter(route(router_of_scores("second_expert=random", num_experts=3), x_ND).expert_A.tolist())
    probability = min(1.0, 2 * second / (first + second))
    assert drawn[0] == count
    assert abs(drawn[1] / count - probability) <= 5 * math.sqrt(probability * (1 - probability) / count)


def test_a_token_that_lost_its_random_second_expert_gives_its_weight_to_the_first():
    x_ND = scores(0.8, 0.1, 0.05, 0.05).expand(200, 4)
    weights = edges(route(router_of_scores("second_expert=random"), x_ND))
    alone = [token for token in range(200) if (token, 1) not in weights]
    assert 100 < len(alone) < 200
    assert all(weights[token, 0] == pytest.approx(1.0 if token in alone else 8 / 9) for token in range(200))


@pytest.mark.parametrize("k", [2, 3, 4])
def test_sampling_takes_the_best_first_and_no_expert_twice(k):
    x_ND = tokens(300, DIM)
    part = router(f"k={k}, second_expert=sampling")
    routing = route(part, x_ND)
    assert routing.expert_A[:300].tolist() == routing.prob_NE.argmax(-1).tolist()
    assert len(edges(routing)) == k * 300


def test_sampling_draws_the_second_expert_by_its_probability_among_the_others():
    count = 20_000
    x_ND = scores(0.5, 0.3, 0.15, 0.05).expand(count, 4)
    routing = route(router_of_scores("second_expert=sampling"), x_ND)
    drawn = Counter(routing.expert_A[count:].tolist())
    for expert, probability in {1: 0.6, 2: 0.3, 3: 0.1}.items():
        error = math.sqrt(probability * (1 - probability) / count)
        assert abs(drawn[expert] / count - probability) <= 5 * error, expert


@pytest.mark.parametrize("options", ["", "k=1", "capacity_factor=1.0, priority=probability", "second_expert=sampling"])
def test_no_tokens_no_routes(options):
    routing = route(router(options), tokens(0, DIM))
    assert edges(routing) == {} and routing.prob_NE.shape == (0, EXPERTS)


def test_experts_per_token_is_k():
    assert router("k=3").experts_per_token == 3
