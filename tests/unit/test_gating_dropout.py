"""Gating dropout and MoEC's expert dropout against their definitions.

Shape letters: N tokens, E experts, A assignments.
"""

import math

import pytest
import torch

from moe_nmt.moe import LOSSES, REGULARIZERS, RoutingContext
from moe_nmt.moe.regularizers.gating_dropout import keep_local
from moe_nmt.registry import RegistryError
from tests.parts import edges, make_layer, make_routing, tokens

ALWAYS = 1 - 1e-12
"""A rate that no draw exceeds."""


def build(spec, num_experts=4, layer=0):
    return REGULARIZERS.build(spec, num_experts=num_experts, layer=layer)


def drops(regularizer, steps):
    """Which of the first `steps` steps drop, of a regularizer with mode=gate_expert."""
    routing, flags = make_routing([(0, 0, 1.0)], 1, 4), []
    for step in range(steps):
        regularizer.set_num_updates(step)
        flags.append(regularizer.on_routing(routing, RoutingContext()).token_A.numel() == 0)
    return flags


def test_each_token_stays_in_its_group():
    routing = make_routing([(t, (t * 3) % 8, 0.1 * (t + 1)) for t in range(6)], 6, 8)
    group_N = torch.tensor([0, 1, 1, 0, 1, 0])
    local = keep_local(routing, group_N, groups=2)
    assert torch.equal(local.expert_A, 4 * group_N[routing.token_A] + routing.expert_A % 4)
    assert torch.equal(local.weight_A, routing.weight_A) and torch.equal(local.token_A, routing.token_A)
    assert edges(keep_local(routing, torch.zeros(6, dtype=torch.int64), groups=1)) == edges(routing)


def test_gate_drop_sends_all_tokens_of_a_machine_to_its_only_expert_with_the_weight_of_the_chosen_one():
    layer = make_layer("top_k(k=1)", "ffn(count=2)")
    x_ND, context = tokens(), RoutingContext(sentence_N=torch.arange(24) // 8)
    plain = layer(x_ND, context)[1].routing
    layer.regularizers.append(build(f"gating_dropout(p={ALWAYS}, mode=gate, local_groups=2)", num_experts=2))
    local = layer(x_ND, context)[1].routing
    assert local.expert_A.tolist() == (local.token_A // 8 % 2).tolist(), (
        "sentences 0 and 2 on machine 0, 1 on machine 1"
    )
    assert torch.equal(local.weight_A, plain.weight_A) and torch.equal(local.prob_NE, plain.prob_NE)


def test_without_sentences_the_rows_are_split_in_order():
    gate = build(f"gating_dropout(p={ALWAYS}, mode=gate, local_groups=4)")
    routing = gate.on_routing(make_routing([(t, 0, 1.0) for t in range(8)], 8, 4), RoutingContext())
    assert routing.expert_A.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_gate_expert_drop_leaves_the_token_to_the_residual_connection():
    layer = make_layer(regularizers=[])
    layer.regularizers.append(build(f"gating_dropout(p={ALWAYS})"))
    y_ND, record = layer(tokens())
    assert not y_ND.any()
    LOSSES.build("load_balancing")([record]).backward(retain_graph=True)
    assert layer.router.gate.weight.grad.any(), "the losses see the router's own probabilities"
    y_ND.sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in layer.experts.parameters())


@pytest.mark.parametrize("mode", ["gate, local_groups=2", "gate_expert"])
def test_evaluation_is_untouched(mode):
    layer, x_ND = make_layer().eval(), tokens()
    plain_ND, _ = layer(x_ND)
    layer.regularizers.append(build(f"gating_dropout(p={ALWAYS}, mode={mode})"))
    assert torch.equal(layer.eval()(x_ND)[0], plain_ND)


def test_the_share_of_dropped_steps_is_the_rate():
    count, p = 4_000, 0.3
    share = sum(drops(build(f"gating_dropout(p={p})"), count)) / count
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / count)


def test_layers_decide_for_themselves_unless_the_step_does():
    first, second = (drops(build("gating_dropout(p=0.5)", layer=layer), 400) for layer in (1, 2))
    agreeing = sum(a == b for a, b in zip(first, second, strict=True))
    assert abs(agreeing / 400 - 0.5) < 5 * math.sqrt(0.25 / 400)
    first, second = (drops(build("gating_dropout(p=0.5, scope=step)", layer=layer), 400) for layer in (1, 2))
    assert first == second and 100 < sum(first) < 300


def test_the_decision_depends_on_the_seed_and_not_on_what_was_drawn_since():
    torch.manual_seed(1)
    first = drops(build("gating_dropout(p=0.5)"), 100)
    torch.rand(17)
    assert drops(build("gating_dropout(p=0.5)"), 100) == first
    torch.manual_seed(2)
    assert drops(build("gating_dropout(p=0.5)"), 100) != first


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gating_dropout(local_groups=3)", "local_groups must divide the number of experts, 4; 3 does not"),
        ("gating_dropout(mode=gate)", "all experts are local"),
        ("gating_dropout(p=1.0)", "p must be at least 0 and below 1"),
        ("cluster_dropout(clusters=3)", "clusters must divide the number of experts, 4; 3 does not"),
        ("cluster_dropout(clusters=0)", "clusters must divide"),
    ],
)
def test_what_cannot_be_is_refused(spec, message):
    with pytest.raises(RegistryError, match=message):
        build(spec)


@pytest.mark.parametrize(("clusters", "p"), [(4, 0.5), (4, 0.4), (2, 0.9), (1, 0.5), (8, 0.7)])
def test_every_cluster_loses_the_same_share_of_its_experts_and_keeps_one(clusters, p):
    dropout, size, seen = build(f"cluster_dropout(clusters={clusters}, p={p})", num_experts=16), 16 // clusters, set()
    for step in range(1000):
        dropout.set_num_updates(step)
        allowed_E = dropout.on_context(RoutingContext()).allowed_E
        assert (allowed_E.view(clusters, size).sum(1) == size - int(p * size)).all()
        assert allowed_E.view(clusters, size).any(1).all()
        seen.add(tuple(allowed_E.tolist()))
    assert len(seen) > 1 or int(p * size) == 0


def test_whole_clusters_may_be_dropped_instead():
    dropout = build("cluster_dropout(clusters=4, p=0.5, mode=whole)", num_experts=16)
    for step in range(100):
        dropout.set_num_updates(step)
        assert sorted(dropout.on_context(RoutingContext()).allowed_E.view(4, 4).sum(1).tolist()) == [0, 0, 4, 4]


def test_two_rulings_out_both_hold():
    dropout = build("cluster_dropout(clusters=1, p=0.5)")
    allowed_E = torch.tensor([True, True, True, False])
    assert not (dropout.on_context(RoutingContext(allowed_E=allowed_E)).allowed_E & ~allowed_E).any()


def test_a_token_goes_to_a_sibling_with_the_weight_renormalized():
    layer, x_ND = make_layer("top_k(k=1)"), tokens(200)
    plain = layer(x_ND)[1].routing
    layer.regularizers.append(build("cluster_dropout(clusters=2, p=0.5)"))
    routing = layer(x_ND)[1].routing
    allowed_E = layer.regularizers[0].draw()
    assert allowed_E[routing.expert_A].all()
    masked_NE = plain.prob_NE * allowed_E
    assert torch.equal(routing.expert_A, masked_NE.argmax(-1))
    torch.testing.assert_close(routing.weight_A, (masked_NE / masked_NE.sum(-1, keepdim=True)).amax(-1))


def test_siblings_that_are_equal_make_the_dropout_a_factor():
    """Two clusters of two equal experts with equal gates: the output changes by the ratio of the weights alone."""
    layer, x_ND = make_layer("top_k(k=1)"), tokens()
    with torch.no_grad():
        for parameter in (*layer.experts.parameters(), layer.router.gate.weight):
            parameter[1::2] = parameter[::2]
    plain_ND, plain = layer(x_ND)
    layer.regularizers.append(build("cluster_dropout(clusters=2, p=0.5)"))
    dropped_ND, dropped = layer(x_ND)
    factor_N = dropped.routing.weight_A / plain.routing.weight_A
    torch.testing.assert_close(dropped_ND, factor_N[:, None] * plain_ND)
    torch.testing.assert_close(factor_N, torch.full_like(factor_N, 2.0))


def test_too_few_experts_left_for_k_is_one_sentence():
    layer = make_layer("top_k(k=3)", regularizers=["cluster_dropout(clusters=1, p=0.5)"])
    with pytest.raises(ValueError, match="only 2 experts may be chosen, but k is 3"):
        layer(tokens())
