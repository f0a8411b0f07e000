"""The routing losses against values worked out by hand.

Shape letters: N tokens, E experts.
"""

import math

import pytest
import torch

from moe_nmt.moe import LOSSES, MoERecord, Routing, RoutingContext, record_routing
from moe_nmt.schedules import at_step
from tests.parts import make_layer, make_routing, tokens


def record_of(logit_NE):
    """A record with the given logits; losses on scores need no assignment."""
    return MoERecord(make_routing([], *logit_NE.shape, logit_NE=logit_NE), RoutingContext())


def record_of_probabilities(prob_NE):
    return record_of(torch.as_tensor(prob_NE).log())


def loss(name, *records):
    return LOSSES.build(name)(records)


@pytest.mark.parametrize("counts", [(3, 3, 3, 3), (12, 0, 0, 0), (1, 2, 3, 6)])
def test_uniform_probabilities_are_balanced_whoever_comes_first(counts):
    first_N = torch.tensor([expert for expert, count in enumerate(counts) for _ in range(count)])
    logit_NE = 1e-6 * torch.nn.functional.one_hot(first_N, 4)
    assert loss("load_balancing", record_of(logit_NE)).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("experts", [2, 4, 64])
def test_all_tokens_on_one_expert_cost_the_number_of_experts(experts):
    logit_NE = torch.zeros(10, experts)
    logit_NE[:, 1] = 100.0
    assert loss("load_balancing", record_of(logit_NE)).item() == pytest.approx(experts)


def test_load_balancing_by_hand():
    record = record_of_probabilities([[0.5, 0.3, 0.2], [0.6, 0.2, 0.2], [0.1, 0.8, 0.1], [0.4, 0.35, 0.25]])
    share, mean = (0.75, 0.25, 0.0), (0.4, 0.4125, 0.1875)
    expected = 3 * sum(f * p for f, p in zip(share, mean, strict=True))
    assert expected == pytest.approx(1.209375)
    assert loss("load_balancing", record).item() == pytest.approx(expected)


def test_the_gradient_of_load_balancing_is_that_of_the_mean_probability_alone():
    prob_NE = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.2, 0.2], [0.1, 0.8, 0.1]], requires_grad=True)
    routing = make_routing([], 3, 3)._replace(prob_NE=prob_NE)
    loss("load_balancing", MoERecord(routing, RoutingContext())).backward()
    share = torch.tensor([2 / 3, 1 / 3, 0.0])
    torch.testing.assert_close(prob_NE.grad, (3 * share / 3).expand(3, 3))


@pytest.mark.parametrize(
    "router", ["top_k(k=1, capacity_factor=0.25)", "top_k(k=2, capacity_factor=0.25)", "top_k(k=2)"]
)
def test_load_balancing_counts_first_choices_before_any_is_dropped(router):
    layer = make_layer(router)
    _, record = layer(tokens(40))
    prob_NE = record.routing.prob_NE.tolist()
    share = [sum(max(range(4), key=row.__getitem__) == e for row in prob_NE) / 40 for e in range(4)]
    mean = [sum(row[e] for row in prob_NE) / 40 for e in range(4)]
    expected = 4 * sum(f * p for f, p in zip(share, mean, strict=True))
    assert loss("load_balancing", record).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["load_balancing", "z_loss"])
def test_expert_output_masking_does_not_change_the_losses(name):
    plain = make_layer()
    masked = make_layer(regularizers=["eom(p=0.5)"])
    masked.load_state_dict(plain.state_dict(), strict=False)
    x_ND = tokens()
    assert torch.equal(loss(name, masked(x_ND)[1]), loss(name, plain(x_ND)[1]))


def test_z_loss_of_zero_logits_is_the_squared_logarithm_of_their_number():
    assert loss("z_loss", record_of(torch.zeros(5, 8))).item() == pytest.approx(4.324077, abs=1e-6)
    assert math.log(8) ** 2 == pytest.approx(4.324077, abs=1e-6)


@pytest.mark.parametrize("shift", [-3.0, 0.5, 7.0])
def test_z_loss_of_shifted_logits(shift):
    logit_NE = torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    lse = [math.log(math.exp(0.0) + math.exp(1.0)), math.log(math.exp(2.0) + math.exp(-1.0))]
    expected = sum((value + shift) ** 2 for value in lse) / 2
    assert loss("z_loss", record_of(logit_NE + shift)).item() == pytest.approx(expected, rel=1e-6)
    balanced = loss("load_balancing", record_of(logit_NE)).item()
    assert loss("load_balancing", record_of(logit_NE + shift)).item() == pytest.approx(balanced)


def test_the_gradient_of_z_loss_is_twice_the_logsumexp_times_the_probabilities():
    logit_NE = torch.tensor([[0.0, 1.0], [2.0, -1.0]], requires_grad=True)
    loss("z_loss", record_of(logit_NE)).backward()
    expected_NE = 2 * logit_NE.logsumexp(-1, keepdim=True) * logit_NE.softmax(-1) / 2
    torch.testing.assert_close(logit_NE.grad, expected_NE.detach())


@pytest.mark.parametrize("name", ["load_balancing", "z_loss"])
def test_layers_are_summed_or_averaged(name):
    first, second = record_of(torch.randn(5, 4)), record_of(torch.randn(9, 4))
    single = [loss(name, first).item(), loss(name, second).item()]
    assert loss(name, first, second).item() == pytest.approx(sum(single))
    assert loss(f"{name}(combine=sum)", first, second).item() == pytest.approx(sum(single))
    assert loss(f"{name}(combine=mean)", first, second).item() == pytest.approx(sum(single) / 2)


def test_layers_may_differ_in_their_number_of_experts():
    assert loss("load_balancing", record_of(torch.zeros(5, 4)), record_of(torch.zeros(5, 8))).item() == pytest.approx(
        2.0
    )


@pytest.mark.parametrize(("name", "weight"), [("load_balancing", 0.01), ("z_loss", 0.001)])
def test_weights_are_numbers_or_schedules(name, weight):
    assert LOSSES.build(name).weight == weight
    assert LOSSES.build(f"{name}(weight=1)").weight == 1.0
    scheduled = LOSSES.build(f"{name}(weight=linear(start=1.0, end=0.0, steps=10))").weight
    assert [at_step(scheduled, step) for step in (0, 5, 10)] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("name", ["load_balancing", "z_loss"])
def test_padding_does_not_change_the_losses(name):
    pytest.importorskip("fairseq")
    from moe_nmt.fairseq_plugin.layers import MoEFeedForward, RealTokens

    block, padding = MoEFeedForward(make_layer()), 1
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, padding, padding]])
    x_TBD = torch.randn(4, 2, 8)

    def losses(ids, x_TBD):
        with record_routing(block) as records:
            block(x_TBD, RealTokens.of(ids, padding, None, None))
        return loss(name, *(record for _, record in records))

    more_ids = torch.cat([ids, torch.full((2, 6), padding)], dim=1)
    more_TBD = torch.cat([x_TBD, 100 * torch.randn(6, 2, 8)])
    only_ids, only_TBD = torch.tensor([[5, 9, 6, 10, 7, 8]]), x_TBD.reshape(8, 1, 8)[[0, 1, 2, 3, 4, 6]]
    assert torch.equal(losses(more_ids, more_TBD), losses(ids, x_TBD))
    assert torch.equal(losses(only_ids, only_TBD), losses(ids, x_TBD))


def test_a_routing_without_tokens_costs_nothing():
    empty = MoERecord(Routing(*make_routing([], 0, 4)), RoutingContext())
    assert loss("load_balancing", empty).item() == 0.0
    assert loss("z_loss", empty).item() == 0.0


def cluster_variance(prob_NE, clusters, **options):
    """The loss without its factor E."""
    record = record_of_probabilities(prob_NE)
    options = "".join(f", {name}={value}" for name, value in options.items())
    return loss(f"cluster_variance(clusters={clusters}{options})", record).item() / record.routing.prob_NE.shape[1]


def test_equal_probabilities_in_the_chosen_cluster_have_no_variance_within():
    prob_NE = [[0.35, 0.35, 0.1, 0.2], [0.05, 0.15, 0.4, 0.4]]
    assert cluster_variance(prob_NE, 2, between=0.0) == pytest.approx(0.0, abs=1e-7)


def test_uniform_probabilities_have_no_variance_between_clusters():
    assert cluster_variance([[0.125] * 8] * 3, 4) == pytest.approx(0.0, abs=1e-7)


def test_all_mass_on_one_cluster_equally_is_the_minimum():
    clusters, size = 4, 2
    prob_NE = torch.full((3, 8), 1e-30)
    prob_NE[:, 2:4] = 0.5
    expected = -((1 / size) ** 2) * (clusters - 1) / clusters**2
    assert cluster_variance(prob_NE, clusters) == pytest.approx(expected, rel=1e-5)


def test_cluster_variance_by_hand():
    prob_NE = [[0.5, 0.1, 0.3, 0.1], [0.2, 0.2, 0.15, 0.45]]
    within = (0.2**2 + 0.15**2) / 2
    between = (0.05**2 + 0.05**2) / 2
    assert cluster_variance(prob_NE, 2, between=0.5) == pytest.approx(within - 0.5 * between)


def test_clusters_that_do_not_divide_the_experts_are_refused():
    with pytest.raises(ValueError, match="cluster_variance: clusters must divide the number of experts, 4; 3 does not"):
        cluster_variance([[0.25] * 4], 3)


@pytest.mark.parametrize("name", ["load_balancing", "z_loss", "cluster_variance(clusters=2)"])
def test_one_process_is_all_ranks(name):
    logit_NE = torch.randn(9, 4, requires_grad=True)
    spec = f"{name.rstrip(')')}{', ' if '(' in name else '('}all_ranks=True)"
    values = [loss(given, record_of(logit_NE)) for given in (name, spec)]
    assert torch.equal(*values)
    assert torch.equal(*(torch.autograd.grad(value, logit_NE)[0] for value in values))
