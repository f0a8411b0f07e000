"""Small parts and layers for the tests, and an example of every registered part.

Shape letters: N tokens, E experts, A assignments, D model width, L languages.
"""

import torch

from moe_nmt.adapters import Host, LayerShape
from moe_nmt.moe import BRANCHES, DISPATCHERS, EXPERTS, REGULARIZERS, ROUTERS, MoELayer, RoutingContext
from moe_nmt.moe.routing import Routing
from moe_nmt.registry import Spec

TOKENS, EXPERT_COUNT, DIM, FFN_DIM, LANGUAGES = 24, 4, 8, 16, 3


def make_host(languages=("a", "b", "c"), directions=("a-b", "b-a"), dim=DIM, layers=(2, 2)):
    """A dense Transformer of this width and these numbers of layers in encoder and decoder, as adapters see it."""
    attention = {name: (dim, dim) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    feed_forward = {"feed_forward.fc1": (dim, FFN_DIM), "feed_forward.fc2": (FFN_DIM, dim)}
    own = {f"self_attn.{name}": size for name, size in attention.items()}
    cross = {f"encoder_attn.{name}": size for name, size in attention.items()}
    encoder = LayerShape(dim, 2, own | feed_forward)
    decoder = LayerShape(dim, 2, own | cross | feed_forward)
    return Host([encoder] * layers[0], [decoder] * layers[1], languages, directions)


SUPPLIED = {"dim": DIM, "ffn_dim": FFN_DIM, "num_experts": EXPERT_COUNT, "host": make_host()}
REQUIRED = {
    "count": EXPERT_COUNT,
    "clusters": 2,
    "nodes": 2,
    "value": 0.5,
    "start": 0.25,
    "end": 0.75,
    "steps": 10,
    "starts": [0, 5],
    "values": [0.25, 0.75],
    "dim": 4,
    "hidden": 6,
    "rank": 2,
}
"""A value for each option that some part requires, by the option's name; extend it with a part that needs another."""


def examples(registry):
    """One spec per registered part, with its options at their defaults."""
    return [
        Spec(name, {option: REQUIRED[option] for option, p in entry.options.items() if p.default is p.empty})
        for name, entry in registry.entries().items()
    ]


def tokens(count=TOKENS, dim=DIM, dtype=torch.float32):
    return torch.randn(count, dim).to(dtype)


def context(count=TOKENS):
    """A context in which everything is known of the tokens."""
    number_N = torch.arange(count)
    return RoutingContext(number_N % 11 + 4, number_N % LANGUAGES, number_N % 2, number_N % 5)


def make_layer(
    router="top_k(k=2)",
    experts=f"ffn(count={EXPERT_COUNT})",
    dispatcher="sorted",
    regularizers=(),
    branch=None,
    dim=DIM,
    ffn_dim=FFN_DIM,
):
    built = EXPERTS.build(experts, dim=dim, ffn_dim=ffn_dim)
    return MoELayer(
        ROUTERS.build(router, dim=dim, num_experts=built.num_experts),
        built,
        DISPATCHERS.build(dispatcher, num_experts=built.num_experts),
        [REGULARIZERS.build(regularizer, num_experts=built.num_experts) for regularizer in regularizers],
        BRANCHES.build(branch, dim=dim, ffn_dim=ffn_dim) if isinstance(branch, str) else branch,
    )


def make_routing(edges, num_tokens, num_experts, logit_NE=None):
    """A routing of the given (token, expert, weight) edges."""
    token, expert, weight = zip(*edges, strict=True) if edges else ((), (), ())
    logit_NE = torch.zeros(num_tokens, num_experts) if logit_NE is None else logit_NE
    return Routing(
        torch.tensor(token, dtype=torch.int64),
        torch.tensor(expert, dtype=torch.int64),
        torch.tensor(weight, dtype=torch.float32),
        logit_NE.softmax(-1),
        logit_NE,
    )


def edges(routing):
    """The assignments as {(token, expert): weight}."""
    pairs = zip(routing.token_A.tolist(), routing.expert_A.tolist(), strict=True)
    return dict(zip(pairs, routing.weight_A.tolist(), strict=True))


def grow_gate(router, score_ED):
    """Set the gate's weight by hand, so that tests choose the routes."""
    with torch.no_grad():
        router.gate.weight.copy_(torch.as_tensor(score_ED, dtype=router.gate.weight.dtype))
    return router
