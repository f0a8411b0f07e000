"""What every router promises.

Shape letters: N tokens, E experts.
"""

import pytest
import torch

from moe_nmt.moe import ROUTERS
from moe_nmt.moe.routing import RoutingContext
from tests.parts import DIM, EXPERT_COUNT, SUPPLIED, TOKENS, context, edges, examples, tokens

SPECS = list(map(str, examples(ROUTERS)))
VARIANTS = [
    "top_k(k=1)",
    "top_k(k=3, jitter=0.1)",
    "top_k(second_expert=random)",
    "top_k(second_expert=sampling)",
    "top_k(capacity_factor=0.5)",
    "top_k(capacity_factor=0.5, priority=probability, normalize=none)",
    "bilevel(nodes=2, shared=False)",
    "bilevel(nodes=2, capacity_factor=0.5)",
]
every_router = pytest.mark.parametrize("spec", SPECS + VARIANTS)


def build(spec):
    return ROUTERS.build(spec, **SUPPLIED)


def permuted(order_N):
    return RoutingContext(*[values_N[order_N] for values_N in context() if values_N is not None])


@every_router
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtypes_shapes_and_ranges(spec, dtype, training):
    routing = build(spec).to(dtype).train(training)(tokens(dtype=dtype), context())
    assert routing.token_A.dtype == routing.expert_A.dtype == torch.int64
    assert routing.weight_A.dtype == routing.prob_NE.dtype == routing.logit_NE.dtype == torch.float32
    assert routing.token_A.shape == routing.expert_A.shape == routing.weight_A.shape
    assert routing.prob_NE.shape == routing.logit_NE.shape == (TOKENS, EXPERT_COUNT)
    assert routing.token_A.numel() > 0
    assert routing.token_A.min() >= 0 and routing.token_A.max() < TOKENS
    assert routing.expert_A.min() >= 0 and routing.expert_A.max() < EXPERT_COUNT
    assert len(edges(routing)) == routing.token_A.numel(), "no token goes twice to one expert"
    assert routing.weight_A.isfinite().all() and routing.prob_NE.isfinite().all()
    torch.testing.assert_close(routing.prob_NE.sum(-1), torch.ones(TOKENS))
    if routing.dropped_E is not None:
        assert routing.dropped_E.dtype == torch.int64 and routing.dropped_E.shape == (EXPERT_COUNT,)


@every_router
def test_every_parameter_learns_from_the_weights(spec):
    router = build(spec)
    routing = router(tokens(), context())
    (routing.weight_A * torch.linspace(-1, 1, routing.weight_A.numel())).sum().backward()
    for name, parameter in router.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize("spec", SPECS)
def test_permuting_the_tokens_permutes_the_routes(spec):
    router, x_ND, order_N = build(spec).eval(), tokens(), torch.randperm(TOKENS)
    plain = edges(router(x_ND, context()))
    shuffled = edges(router(x_ND[order_N], permuted(order_N)))
    restored = {(int(order_N[token]), expert): weight for (token, expert), weight in shuffled.items()}
    assert restored == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("spec", SPECS)
def test_other_tokens_change_no_route_in_evaluation(spec):
    router, x_ND = build(spec).eval(), tokens()
    alone = edges(router(x_ND[:7], permuted(torch.arange(7))))
    in_company = edges(router(x_ND, context()))
    assert alone == pytest.approx({edge: w for edge, w in in_company.items() if edge[0] < 7}, rel=1e-5)


@every_router
def test_evaluation_is_deterministic(spec):
    router, x_ND = build(spec).eval(), tokens()
    assert edges(router(x_ND, context())) == edges(router(x_ND, context()))


@every_router
def test_the_same_seed_gives_the_same_routes_in_training(spec):
    router, x_ND = build(spec), tokens()

    def run():
        torch.manual_seed(11)
        return edges(router(x_ND, context()))

    assert run() == run()


@every_router
@pytest.mark.parametrize("training", [True, False])
def test_no_tokens_give_no_routes(spec, training):
    empty = torch.zeros(0, DIM, requires_grad=True)
    routing = build(spec).train(training)(empty, permuted(torch.arange(0)))
    assert edges(routing) == {}
    assert routing.prob_NE.shape == routing.logit_NE.shape == (0, EXPERT_COUNT)
    routing.weight_A.sum().backward()


@every_router
def test_experts_per_token_is_what_a_token_gets_when_none_is_dropped(spec):
    router = build(spec).eval()
    assert len(edges(router(tokens(), context()))) == router.experts_per_token * TOKENS


@every_router
@pytest.mark.parametrize("training", [True, False])
def test_experts_that_are_ruled_out_get_nothing_and_the_scores_stay(spec, training):
    router, x_ND = build(spec).train(training), tokens()
    allowed_E = torch.tensor([False, True, True, True])

    def route(known):
        torch.manual_seed(3)
        return router(x_ND, known)

    plain, restricted = route(context()), route(context()._replace(allowed_E=allowed_E))
    assert 0 in plain.expert_A and 0 not in restricted.expert_A
    assert torch.equal(plain.prob_NE, restricted.prob_NE) and torch.equal(plain.logit_NE, restricted.logit_NE)
    assert restricted.weight_A.isfinite().all() and (restricted.weight_A > 0).all()
