"""Four gloo ranks with a part of the experts each compute what one with all of them does, and count what they send.

Shape letters: N tokens, E experts, A assignments, D model width.
"""

import itertools

import pytest
import torch
from torch import distributed, multiprocessing
from torch.utils.checkpoint import checkpoint

from moe_nmt.distributed.gradients import average_gradients, global_norm
from moe_nmt.distributed.processes import end_process, free_port
from moe_nmt.moe import DISPATCHERS, EXPERTS, REGULARIZERS, ROUTERS, MoELayer, RoutingContext
from moe_nmt.moe.routing import keep, with_weight
from moe_nmt.training.expert_adam import ExpertAdam
from tests.parts import edges, make_routing

WORLD, PER_NODE, EXPERT_COUNT, DIM, FFN_DIM = 4, 2, 8, 6, 10
TOKENS = (7, 0, 5, 30)
"""Of each rank: one has none."""
SPECS = (
    "all_to_all",
    "all_to_all(ranks=2)",
    "all_to_all(chunks=3)",
    "all_to_all(by_node=True)",
    "all_to_all(by_node=True, chunks=2)",
)
ROUTES = {
    "anywhere": lambda token, rank: (5 * token + rank, 3 * token + 4),
    "none to the experts of rank 1": lambda token, rank: (token % 2, 4 + token % 4),
    "one expert for all": lambda token, rank: (6, 6),
    "nothing": lambda token, rank: (),
}
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def experts(dtype=torch.float32, count=EXPERT_COUNT):
    """All experts, the same on every rank."""
    torch.manual_seed(1)
    return EXPERTS.build(f"ffn(count={count})", dim=DIM, ffn_dim=FFN_DIM).to(dtype)


def inputs(rank, routes, dtype):
    """The tokens of a rank and where they go."""
    torch.manual_seed(10 + rank)
    x_ND = torch.randn(TOKENS[rank], DIM).to(dtype).requires_grad_()
    chosen = [(t, e % EXPERT_COUNT) for t in range(TOKENS[rank]) for e in ROUTES[routes](t, rank)]
    routing = make_routing([(t, e, 0.1 + 0.01 * t) for t, e in chosen], TOKENS[rank], EXPERT_COUNT)
    return x_ND, with_weight(routing, routing.weight_A.requires_grad_())


def run(dispatcher, parts, x_ND, routing):
    """Output and gradients, of the parameters too."""
    y_ND = dispatcher(x_ND, routing, parts)
    factor_ND = torch.linspace(-1, 1, y_ND.numel()).view_as(y_ND).to(y_ND.dtype)
    wanted = [x_ND, routing.weight_A, *parts.parameters()]
    return y_ND.detach(), torch.autograd.grad((y_ND * factor_ND).sum(), wanted)


def dispatched(spec, count=EXPERT_COUNT, dtype=torch.float32):
    """A dispatcher, and this rank's part of the experts."""
    dispatcher, parts = DISPATCHERS.build(spec, num_experts=count, ranks_per_node=PER_NODE), experts(dtype, count)
    if dispatcher.group.size > 1:
        parts.take_part(dispatcher.group.rank, dispatcher.group.size)
    return dispatcher, parts


def compare(spec, routes, dtype):
    """What this rank gets, and what it should: output, gradients of input and weights, and of its experts."""
    rank = distributed.get_rank()
    dispatcher, parts = dispatched(spec, dtype=dtype)
    found, (x, weight, *of_experts) = run(dispatcher, parts, *inputs(rank, routes, dtype))
    for parameter, gradient in zip(parts.parameters(), of_experts, strict=True):
        parameter.grad = gradient
    average_gradients(parts.parameters(), dispatcher.group)
    whole = experts(dtype)
    expected, (x_alone, weight_alone, *_) = run(DISPATCHERS.build("reference"), whole, *inputs(rank, routes, dtype))
    of_ranks = [run(DISPATCHERS.build("reference"), whole, *inputs(r, routes, dtype))[1][2:] for r in range(WORLD)]
    own = slice(dispatcher.group.rank * parts.num_experts, (dispatcher.group.rank + 1) * parts.num_experts)
    means = [(sum(gradients) / WORLD)[own] for gradients in zip(*of_ranks, strict=True)]
    return [found, x, weight, *(p.grad for p in parts.parameters())], [expected, x_alone, weight_alone, *means]


def counted(spec, routes):
    """The bytes that this rank sent in a forward and a backward pass, without those of the counts."""
    rank = distributed.get_rank()
    dispatcher, parts = dispatched(spec)
    run(dispatcher, parts, *inputs(rank, routes, torch.float32))
    sent = dispatcher.traffic.take()
    assert dispatcher.traffic.take() == (0, 0)
    return sent


def layer(regularizers=(), router="top_k(k=1)", spec="all_to_all"):
    dispatcher, parts = dispatched(spec)
    built = [REGULARIZERS.build(r, num_experts=EXPERT_COUNT, group=dispatcher.group) for r in regularizers]
    torch.manual_seed(2)
    return MoELayer(ROUTERS.build(router, dim=DIM, num_experts=EXPERT_COUNT), parts, dispatcher, built)


def train(moe, steps):
    """Passes of a layer over the tokens of this rank: what was sent in each, and the records."""
    rank = distributed.get_rank()
    for step in range(steps):
        for regularizer in moe.regularizers:
            regularizer.set_num_updates(step)
        torch.manual_seed(100 * step + rank)
        x_ND = torch.randn(TOKENS[rank], DIM).requires_grad_()
        torch.manual_seed(step)
        y_ND, record = moe(x_ND, RoutingContext())
        y_ND.sum().backward()
        yield moe.dispatcher.traffic.take(), record.routing


def recomputed_gradients():
    """Gradients of a layer with and without recomputation in the backward pass."""
    results = []
    for wrap in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=False)):
        moe = layer(spec="all_to_all(chunks=2)")
        torch.manual_seed(distributed.get_rank())
        x_ND = torch.randn(TOKENS[distributed.get_rank()], DIM).requires_grad_()
        y_ND, _ = wrap(moe, x_ND)
        y_ND.square().sum().backward()
        results.append([x_ND.grad, *(p.grad for p in moe.experts.parameters())])
    return results


def where_some_need_no_gradient():
    """The gradient of the input of rank 0, where that of the others needs none."""
    rank = distributed.get_rank()
    dispatcher, parts = dispatched("all_to_all")
    x_ND, routing = inputs(rank, "anywhere", torch.float32)
    x_ND.requires_grad_(rank == 0)
    dispatcher(x_ND, routing, parts.requires_grad_(False)).sum().backward()
    return x_ND.grad


def fit(spec, ranks):
    """Losses and parameters of 20 steps of Adam on the tokens of these ranks, as one of them, or as one for all.

    No token goes to experts 2 and 3, which are those of rank 1 of four; and rank 1 has no tokens.
    """
    alone = spec == "reference"
    dispatcher, parts = (DISPATCHERS.build(spec), experts()) if alone else dispatched(spec)
    torch.manual_seed(3)
    moe = MoELayer(ROUTERS.build("top_k(k=2)", dim=DIM, num_experts=EXPERT_COUNT), parts, dispatcher)
    readout = torch.nn.Linear(DIM, 1)
    with torch.no_grad():
        moe.router.gate.weight[2:4, 0] = -100.0
    shared = [*moe.router.parameters(), *readout.parameters()]
    optimizer = ExpertAdam([*parts.parameters(), *shared], lr=0.01)
    losses, seen = [], torch.zeros(EXPERT_COUNT)
    for step in range(20):
        torch.manual_seed(step)
        x_ND = torch.cat([torch.randn(count, DIM) for count in TOKENS])
        x_ND[:, 0] = 1
        target_N = x_ND.sum(1).sin()
        own = torch.cat([torch.arange(sum(TOKENS[:rank]), sum(TOKENS[: rank + 1])) for rank in ranks])
        y_ND, record = moe(x_ND[own])
        loss = (readout(x_ND[own] + y_ND).squeeze(-1) - target_N[own]).square().sum() / sum(TOKENS)
        seen += torch.bincount(record.routing.expert_A, minlength=EXPERT_COUNT)
        optimizer.zero_grad()
        loss.backward()
        total = loss.detach()
        if not alone:
            average_gradients(parts.parameters(), dispatcher.group)
            for parameter in shared:
                distributed.all_reduce(parameter.grad.div_(WORLD))
            distributed.all_reduce(total)
            for parameter in (*parts.parameters(), *shared):
                parameter.grad.mul_(WORLD)
        optimizer.step()
        losses.append(total.item())
    first = 0 if alone else dispatcher.group.rank * parts.num_experts
    return losses, seen, first, [p.detach() for p in parts.parameters()], [p.detach() for p in shared]


def norms():
    """The norm of all gradients, where those of experts are 2 and the others have norm 3, without and with replicas."""
    values = []
    for spec in ("all_to_all", "all_to_all(ranks=2)"):
        dispatcher, parts = dispatched(spec)
        gradients = [torch.full_like(p, 2.0) for p in parts.parameters()]
        values.append(global_norm(torch.tensor(3.0), gradients, dispatcher.group).item())
    return values


def on_rank(rank, port, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    results = {
        "compared": {case: compare(*case) for case in itertools.product(SPECS, ROUTES, DTYPES)},
        "counted": {case: counted(*case) for case in itertools.product(SPECS, ROUTES)},
        "gate": [(sent, r.local, edges(r)) for sent, r in train(layer(["gating_dropout(p=0.3, mode=gate)"]), 100)],
        "gate_expert": [(sent, r.local, edges(r)) for sent, r in train(layer(["gating_dropout(p=0.3)"]), 100)],
        "plain": [sent for sent, _ in train(layer(), 100)],
        "bilevel": {
            spec: list(train(layer(router="bilevel(nodes=2)", spec=spec), 5))
            for spec in ("all_to_all", "all_to_all(by_node=True)")
        },
        "recomputed": recomputed_gradients(),
        "partial": where_some_need_no_gradient(),
        "norms": norms(),
        "fitted": {spec: fit(spec, [rank]) for spec in SPECS},
    }
    torch.save(results, f"{folder}/{rank}.pt")
    end_process()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(on_rank, (free_port(), folder), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("routes", ROUTES)
@pytest.mark.parametrize("spec", SPECS)
def test_values_and_gradients_equal_those_of_one_rank(results, spec, routes, dtype):
    for result in results:
        found, expected = result["compared"][spec, routes, dtype]
        assert all(a.dtype == b.dtype for a, b in zip(found, expected, strict=True))
        torch.testing.assert_close(found, expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])


def hops(rank, target, size, by_node):
    """The ranks that a row passes on its way from one rank to another of a group of `size` ranks."""
    if by_node:
        return [rank, target // PER_NODE * PER_NODE + rank % PER_NODE, target]
    return [rank, target]


@pytest.mark.parametrize("routes", ROUTES)
@pytest.mark.parametrize("spec", SPECS)
def test_bytes_sent_are_those_of_the_rows_that_leave(results, spec, routes):
    """A row of 4 bytes a number leaves its sender twice: out in the forward pass, and its result's gradient in the
    backward pass. The rank that received it sends the result and the row's gradient. Numbers of rows are 8 bytes."""
    by_node, chunks = "by_node" in spec, int(spec.split("chunks=")[1][0]) if "chunks" in spec else 1
    size = 2 if spec == "all_to_all(ranks=2)" else WORLD
    expected = torch.zeros(WORLD, 2, dtype=torch.int64)
    for rank in range(WORLD):
        _, routing = inputs(rank, routes, torch.float32)
        for expert in routing.expert_A.tolist():
            target = rank // size * size + expert // (EXPERT_COUNT // size)
            way = hops(rank, target, size, by_node)
            for a, b in itertools.pairwise(way):
                across = int(a // PER_NODE != b // PER_NODE)
                expected[a, across] += 2 * 4 * DIM * (a != b)
                expected[b, across] += 2 * 4 * DIM * (a != b)
        if by_node:
            to_nodes, to_ranks = (WORLD // PER_NODE - 1) * EXPERT_COUNT // 2, (PER_NODE - 1) * EXPERT_COUNT // WORLD
            expected[rank] += 8 * chunks * torch.tensor([to_ranks, to_nodes])
        else:
            each = 8 * chunks * EXPERT_COUNT // size
            expected[rank] += each * torch.tensor([min(PER_NODE, size) - 1, size - min(PER_NODE, size)])
    assert [tuple(result["counted"][spec, routes]) for result in results] == [tuple(row) for row in expected.tolist()]


@pytest.mark.parametrize("mode", ["gate", "gate_expert"])
def test_gating_dropout_sends_nothing_in_a_drop(results, mode):
    """All ranks drop alike, and what is sent is that of the steps without a drop: (1 - p) of the bytes."""
    drops = [[local for _, local, _ in result[mode]] for result in results]
    assert all(drop == drops[0] for drop in drops) and 15 < sum(drops[0]) < 45
    for rank, result in enumerate(results):
        for (sent, local, routes), plain in zip(result[mode], result["plain"], strict=True):
            assert tuple(sent) == ((0, 0) if local else tuple(plain))
            if local:
                here = range(2 * rank, 2 * rank + 2)
                assert {expert for _, expert in routes} <= set(here) and (mode == "gate" or not routes)
        assert mode == "gate_expert" or not TOKENS[rank] or any(local and routes for _, local, routes in result[mode])


def test_bilevel_routing_sends_across_nodes_only_what_it_says(results):
    """Four times 4 bytes a number for each token whose node is another: row, result, and the gradients of both."""
    for spec in ("all_to_all", "all_to_all(by_node=True)"):
        for step in range(5):
            foreign = total = 0
            for rank, result in enumerate(results):
                sent, routing = result["bilevel"][spec][step]
                node_A = routing.expert_A // (EXPERT_COUNT // 2)
                foreign += int((node_A != rank // PER_NODE).sum())
                total += sent.across
            counts = WORLD * 8 * (EXPERT_COUNT // 2)
            assert foreign > 0 and total == 4 * 4 * DIM * foreign + counts


@pytest.mark.parametrize("spec", SPECS)
def test_twenty_steps_are_those_of_one_rank_with_idle_experts_and_an_empty_rank(results, spec):
    losses, seen, _, stacked, shared = fit("reference", range(WORLD))
    assert seen[2] == seen[3] == 0 and min(seen[e] for e in (0, 1, 4, 5, 6, 7)) > 0
    assert losses[-1] < 0.7 * losses[0]
    for result in results:
        found, _, first, parts, others = result["fitted"][spec]
        assert found == pytest.approx(losses, rel=0, abs=1e-5)
        own = [parameter[first : first + len(part)] for parameter, part in zip(stacked, parts, strict=True)]
        torch.testing.assert_close((parts, others), (own, shared), rtol=0, atol=1e-4)


def test_recomputation_changes_no_gradient(results):
    for result in results:
        kept, recomputed = result["recomputed"]
        torch.testing.assert_close(recomputed, kept, rtol=0, atol=0)


def test_a_rank_whose_tokens_need_no_gradient_takes_part_in_the_backward_pass(results):
    x_ND, routing = inputs(0, "anywhere", torch.float32)
    DISPATCHERS.build("reference")(x_ND, routing, experts()).sum().backward()
    torch.testing.assert_close(results[0]["partial"], x_ND.grad)
    assert all(result["partial"] is None for result in results[1:])


def test_the_norm_counts_every_expert_once_on_all_ranks(results):
    size = sum(p.numel() for p in experts().parameters())
    for result in results:
        assert result["norms"] == pytest.approx([(9 + 4 * size) ** 0.5] * 2)


def test_alone_it_is_the_sorted_dispatcher():
    x_ND, routing = inputs(3, "anywhere", torch.float32)
    dispatcher, parts = dispatched("all_to_all(ranks=4, chunks=2, by_node=True)")
    found = run(dispatcher, parts, x_ND, routing)
    torch.testing.assert_close(found, run(DISPATCHERS.build("sorted"), parts, x_ND, routing), rtol=0, atol=0)
    assert dispatcher.group.size == 1 and dispatcher.traffic.take() == (0, 0)


def test_a_token_that_keeps_no_expert_gets_zeros_alone_too():
    x_ND, routing = inputs(3, "anywhere", torch.float32)
    dispatcher, parts = dispatched("all_to_all")
    nothing = keep(routing, torch.zeros_like(routing.expert_A, dtype=torch.bool))
    assert not dispatcher(x_ND, nothing, parts).any()
