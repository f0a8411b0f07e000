"""The bi-level router and its loss against loops over tokens, and against values worked out by hand.

Shape letters: N tokens, E experts, I nodes, J experts of a node, D model width.
"""

import math
from collections import Counter

import pytest
import torch

from moe_nmt.errors import UserError
from moe_nmt.moe import LOSSES, ROUTERS, MoERecord, RoutingContext
from tests.parts import edges, make_layer, make_routing, tokens

DIM, EXPERTS = 5, 6


def router(options, dim=DIM, num_experts=EXPERTS):
    return ROUTERS.build(f"bilevel({options})", dim=dim, num_experts=num_experts)


def route(part, x_ND, allowed=None):
    return part(x_ND, RoutingContext(allowed_E=None if allowed is None else torch.tensor(allowed)))


def router_of_scores(options, nodes, experts):
    """A router whose input is the logits of the nodes, then of the experts of a node."""
    part = router(f"nodes={nodes}, {options}", nodes + experts, nodes * experts)
    with torch.no_grad():
        part.node_gate.weight.copy_(torch.eye(nodes + experts)[:nodes])
        part.expert_gate.weight.copy_(torch.eye(nodes + experts)[nodes:])
    return part


def scores(node, expert):
    """A token that prefers these."""
    return torch.cat([4 * torch.eye(2)[node], 4 * torch.eye(3)[expert]])


def probabilities(scores, among):
    """{choice: probability}, of these alone."""
    power = {choice: torch.exp(scores[choice]) for choice in among}
    return {choice: value / sum(power.values()) for choice, value in power.items()}


def best(prob):
    return max(prob, key=lambda choice: prob[choice].item())


def routed_by_loops(part, x_ND, capacities=(None, None), allowed=(True,) * EXPERTS):
    """The edges by the paper's formulas; capacities of a node and of an expert."""
    nodes, experts = part.nodes, EXPERTS // part.nodes
    members = {i: [j for j in range(experts) if allowed[i * experts + j]] for i in range(nodes)}
    at_node, at_expert, weights = Counter(), Counter(), {}
    for token, x_D in enumerate(x_ND):
        p = probabilities([row_D @ x_D for row_D in part.node_gate.weight], [i for i in members if members[i]])
        i = best(p)
        first = 0 if part.expert_gate.weight.shape[0] == experts else i * experts
        q = probabilities([row_D @ x_D for row_D in part.expert_gate.weight[first : first + experts]], members[i])
        j = best(q)
        if capacities[0] is not None and at_node[i] >= capacities[0]:
            continue
        at_node[i] += 1
        if capacities[1] is not None and at_expert[i, j] >= capacities[1]:
            continue
        at_expert[i, j] += 1
        weights[token, i * experts + j] = p[i] * q[j]
    return weights


@pytest.mark.parametrize(
    "allowed", [None, (True, False, True, False, False, False), (False, False, True, True, True, True)]
)
@pytest.mark.parametrize("factor", [None, 0.5, 1.0])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("nodes", [2, 3])
def test_weights_and_gradients_equal_the_loops(nodes, shared, factor, allowed):
    part, count = router(f"nodes={nodes}, shared={shared}, capacity_factor={factor}"), 20
    capacities = (None, None) if factor is None else [math.ceil(factor * count / n) for n in (nodes, EXPERTS)]
    x_ND = (2 * tokens(count, DIM)).requires_grad_()
    expected = routed_by_loops(part, x_ND, capacities, allowed or (True,) * EXPERTS)
    routing = route(part, x_ND, allowed)
    assert factor != 0.5 or len(expected) < count, "half the capacity drops some"

    assert edges(routing) == pytest.approx({edge: weight.item() for edge, weight in expected.items()}, rel=1e-5)
    factors = {edge: number + 1.0 for number, edge in enumerate(sorted(expected))}
    inputs = [x_ND, *part.parameters()]
    wanted = torch.autograd.grad(sum(factors[edge] * weight for edge, weight in expected.items()), inputs)
    factor_A = torch.tensor([factors[edge] for edge in edges(routing)])
    found = torch.autograd.grad((routing.weight_A * factor_A).sum(), inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_the_scores_are_the_product_of_both_levels(shared):
    part, x_ND = router(f"nodes=2, shared={shared}"), tokens(7, DIM)
    routing = route(part, x_ND)
    for token, x_D in enumerate(x_ND):
        p = probabilities([row_D @ x_D for row_D in part.node_gate.weight], range(2))
        rows_EJ = part.expert_gate.weight.repeat(2, 1) if shared else part.expert_gate.weight
        for i in range(2):
            q = probabilities([row_D @ x_D for row_D in rows_EJ[3 * i : 3 * i + 3]], range(3))
            for j in range(3):
                assert routing.prob_NE[token, 3 * i + j].item() == pytest.approx((p[i] * q[j]).item(), rel=1e-5)
    torch.testing.assert_close(routing.prob_NE.sum(-1), torch.ones(7))
    torch.testing.assert_close(routing.logit_NE.exp(), routing.prob_NE)
    assert torch.equal(routing.prob_NE.gather(1, routing.expert_A[:, None]).squeeze(1), routing.weight_A)


def test_the_top_weight_by_hand():
    routing = route(router_of_scores("shared=True", 2, 3), torch.tensor([[1.0, 0.0, 0.0, 2.0, 0.0]]))
    assert routing.expert_A.tolist() == [1]
    assert routing.weight_A.item() == pytest.approx(0.575333, abs=1e-6)
    assert routing.prob_NE.argmax().item() == 1


@pytest.mark.parametrize("allowed", [None, (True, False, True, False, True, True)])
@pytest.mark.parametrize("options", ["", ", capacity_factor=0.5", ", capacity_factor=1.0"])
def test_one_node_is_switch(options, allowed):
    part, x_ND = router(f"nodes=1{options}"), tokens(20, DIM)
    switch = ROUTERS.build(f"top_k(k=1{options})", dim=DIM, num_experts=EXPERTS)
    switch.gate.load_state_dict(part.expert_gate.state_dict())
    found, wanted = route(part, x_ND, allowed), route(switch, x_ND, allowed)
    for name in ("token_A", "expert_A", "weight_A", "prob_NE", "dropped_E"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=0, atol=0)
    torch.testing.assert_close(found.logit_NE, wanted.logit_NE.log_softmax(-1))
    found.weight_A.sum().backward()
    wanted.weight_A.sum().backward()
    torch.testing.assert_close(part.expert_gate.weight.grad, switch.gate.weight.grad)


def test_who_finds_the_node_or_the_expert_full_is_dropped():
    part = router_of_scores("capacity_factor=1.0", 2, 3)
    x_ND = torch.stack([scores(0, 0), scores(0, 0), scores(0, 1), scores(0, 2), scores(1, 1), scores(1, 0)])
    routing = route(part, x_ND)
    assert list(edges(routing)) == [(0, 0), (2, 1), (4, 4), (5, 3)]
    assert routing.dropped_E.tolist() == [1, 0, 1, 0, 0, 0], "one by its expert, one by its node"
    assert len(edges(route(part.eval(), x_ND))) == 6


def test_capacity_in_evaluation_is_its_own():
    part = router_of_scores("eval_capacity_factor=1.0", 2, 3)
    x_ND = scores(0, 0).expand(6, -1)
    assert len(edges(route(part, x_ND))) == 6 and route(part, x_ND).dropped_E is None
    assert list(edges(route(part.eval(), x_ND))) == [(0, 0)]


def test_a_node_without_an_allowed_expert_is_not_chosen():
    routing = route(router_of_scores("", 2, 3), scores(0, 0)[None], (False, False, False, False, True, True))
    assert edges(routing) == pytest.approx({(0, 4): 0.5}), "the only node, and a tie of what is left"


def test_it_has_as_many_scores_as_nodes_and_experts_of_a_node():
    assert sum(p.numel() for p in router("nodes=2").parameters()) == (2 + 3) * DIM
    assert sum(p.numel() for p in router("nodes=2, shared=False").parameters()) == (2 + 6) * DIM


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="nodes must divide the number of experts, 6; 4 does not"):
        router("nodes=4")
    with pytest.raises(UserError, match="nodes must divide the number of experts, 6; 0 does not"):
        router("nodes=0")
    with pytest.raises(UserError, match="eval_capacity_factor must be above 0, or None for dropless routing, not 0"):
        router("nodes=2, eval_capacity_factor=0.0")
    with pytest.raises(UserError, match="no expert may be chosen"):
        route(router("nodes=2"), tokens(3, DIM), (False,) * EXPERTS)
    with pytest.raises(UserError, match="bilevel_balancing: nodes must divide the number of experts, 6; 4 does not"):
        balancing(torch.zeros(2, 6).softmax(-1), "nodes=4")
    with pytest.raises(UserError, match="nodes must be at least 1, not 0"):
        balancing(torch.zeros(2, 6).softmax(-1), "nodes=0")


def balancing(prob_NE, options):
    routing = make_routing([], *prob_NE.shape)._replace(prob_NE=prob_NE)
    return LOSSES.build(f"bilevel_balancing({options})")([MoERecord(routing, RoutingContext())])


def balancing_by_loops(prob_NE, nodes):
    """The two sums by the formulas, the second of each node over the tokens that are there, nodes by their tokens."""
    count, experts = prob_NE.shape[0], prob_NE.shape[1] // nodes
    there, chosen, of_expert, of_node = Counter(), Counter(), Counter(), Counter()
    for prob_E in prob_NE:
        p = [sum(prob_E[i * experts + j] for j in range(experts)) for i in range(nodes)]
        i = max(range(nodes), key=lambda i: p[i].item())
        q = [prob_E[i * experts + j] / p[i] for j in range(experts)]
        there[i] += 1
        chosen[i, max(range(experts), key=lambda j: q[j].item())] += 1
        of_node.update(dict(enumerate(p)))
        of_expert.update({(i, j): q[j] for j in range(experts)})
    between = nodes * sum(there[i] / count * of_node[i] / count for i in range(nodes))
    within = sum(
        there[i] / count * experts * sum(chosen[i, j] / there[i] * of_expert[i, j] / there[i] for j in range(experts))
        for i in there
    )
    return between, within


@pytest.mark.parametrize("within", [1.0, 0.25])
@pytest.mark.parametrize("nodes", [1, 2, 3])
@pytest.mark.parametrize("shared", [True, False])
def test_the_loss_and_its_gradient_equal_the_loops(nodes, shared, within):
    part, x_ND = router(f"nodes=2, shared={shared}"), 2 * tokens(15, DIM)
    between, inside = balancing_by_loops(route(part, x_ND).prob_NE, nodes)
    expected = between + within * inside
    found = balancing(route(part, x_ND).prob_NE, f"nodes={nodes}, within={within}")
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, list(part.parameters()))
    torch.testing.assert_close(torch.autograd.grad(found, list(part.parameters())), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("within", [1.0, 0.25])
def test_uniform_probabilities_cost_alpha_plus_beta(within):
    loss = LOSSES.build(f"bilevel_balancing(nodes=2, within={within})")
    assert loss.weight == 0.005
    assert balancing(torch.full((9, 6), 1 / 6), f"nodes=2, within={within}").item() == pytest.approx(1 + within)


def test_one_node_costs_one_and_load_balancing():
    prob_NE = tokens(12, 6).softmax(-1)
    routing = make_routing([], 12, 6)._replace(prob_NE=prob_NE)
    switch = LOSSES.build("load_balancing")([MoERecord(routing, RoutingContext())]).item()
    assert balancing(prob_NE, "nodes=1").item() == pytest.approx(1 + switch)
    assert balancing(prob_NE, "nodes=1, within=0").item() == pytest.approx(1)


def test_all_tokens_on_one_expert_cost_nodes_and_experts_of_a_node():
    prob_NE = torch.eye(6)[4].expand(10, 6)
    assert balancing(prob_NE, "nodes=2").item() == pytest.approx(2 + 3)
    assert balancing(prob_NE, "nodes=3").item() == pytest.approx(3 + 2)


def test_nodes_that_each_use_one_expert_are_not_balanced_by_one_another():
    prob_NE = torch.eye(4)[[0, 3]].repeat(5, 1)
    assert balancing(prob_NE, "nodes=2").item() == pytest.approx(1 + 2)


def test_layers_are_summed_and_dropped_tokens_count():
    layer = make_layer("bilevel(nodes=2, capacity_factor=0.25)")
    records = [layer(tokens(40))[1] for _ in range(2)]
    assert records[0].routing.token_A.numel() < 40
    expected = [sum(balancing_by_loops(record.routing.prob_NE, 2)).item() for record in records]
    assert LOSSES.build("bilevel_balancing(nodes=2)")(records).item() == pytest.approx(sum(expected), rel=1e-5)
    mean = LOSSES.build("bilevel_balancing(nodes=2, combine=mean)")(records).item()
    assert mean == pytest.approx(sum(expected) / 2, rel=1e-5)
