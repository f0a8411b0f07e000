"""The layer against loops over tokens and experts, in values and in every gradient.

Shape letters: N tokens, E experts, D model width.
"""

import pytest
import torch

from moe_nmt.moe import BRANCHES, LOSSES, BranchGate, MoELayer, RoutingContext, record_routing
from moe_nmt.moe.branches import Branch
from tests import oracle
from tests.parts import DIM, edges, grow_gate, make_layer, tokens

DISPATCHERS = ["reference", "sorted"]


def weights_of_expert(experts, number):
    return [p[number] for p in (experts.weight1_EDF, experts.bias1_EF, experts.weight2_EFD, experts.bias2_ED)]


def by_loops(layer, x_ND, k, capacity, normalize):
    """Output and routes by the oracle, from the parameters of the layer."""
    weights = oracle.route(x_ND, layer.router.gate.weight, k, capacity, normalize)
    experts = [weights_of_expert(layer.experts, number) for number in range(layer.experts.num_experts)]
    return oracle.mixture(x_ND, weights, experts), weights


def gradients(y_ND, layer, x_ND):
    """Gradients of a linear function of the output with respect to the input and to every parameter, by name."""
    inputs = {"x": x_ND, **dict(layer.named_parameters())}
    factor_ND = torch.linspace(-1, 1, y_ND.numel(), dtype=y_ND.dtype).view_as(y_ND)
    found = torch.autograd.grad((y_ND * factor_ND).sum(), list(inputs.values()), allow_unused=True, retain_graph=True)
    return {n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(inputs.items(), found, strict=True)}


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("factor", [None, 0.5])
@pytest.mark.parametrize("normalize", ["none", "before_dropping", "after_dropping"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_values_and_gradients_equal_the_loops(k, normalize, factor, count, dtype, dispatcher):
    router = f"top_k(k={k}, normalize={normalize}, capacity_factor={factor})"
    layer = make_layer(router, dispatcher=dispatcher).to(dtype)
    x_ND = tokens(count, dtype=dtype).requires_grad_()
    capacity = None if factor is None else k

    y_ND, record = layer(x_ND)
    expected_ND, weights = by_loops(layer, x_ND, k, capacity, normalize)
    assert y_ND.dtype == dtype
    assert edges(record.routing) == pytest.approx({edge: weight.item() for edge, weight in weights.items()}, rel=1e-5)
    torch.testing.assert_close(y_ND, expected_ND, rtol=1e-5, atol=1e-6)
    expected = gradients(expected_ND, layer, x_ND)
    torch.testing.assert_close(gradients(y_ND, layer, x_ND), expected, rtol=1e-4, atol=1e-5)
    assert expected["experts.weight1_EDF"].abs().max() > 0


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_an_expert_without_tokens_gets_no_gradient(dispatcher):
    layer = make_layer("top_k(k=1)", dispatcher=dispatcher)
    grow_gate(layer.router, torch.tensor([[1.0], [0.0], [-1.0], [-2.0]]).expand(4, DIM))
    layer(torch.ones(5, DIM))[0].square().sum().backward()
    for parameter in layer.experts.parameters():
        assert [row.abs().max() > 0 for row in parameter.grad] == [True, False, False, False]


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_eight_tokens_that_prefer_one_expert_fill_two_places_and_six_get_zeros(dispatcher):
    layer = make_layer("top_k(k=1, capacity_factor=1.0)", dispatcher=dispatcher)
    grow_gate(layer.router, torch.tensor([[1.0], [0.0], [0.0], [0.0]]).expand(4, DIM))
    y_ND, record = layer(torch.ones(8, DIM))
    assert record.routing.token_A.tolist() == [0, 1]
    assert (y_ND[:2].abs().sum(-1) > 0).all()
    assert torch.equal(y_ND[2:], torch.zeros(6, DIM))


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
@pytest.mark.parametrize("router", ["top_k(k=1)", "top_k(k=2)", "top_k(k=2, capacity_factor=1.0)"])
@pytest.mark.parametrize("training", [True, False])
def test_no_tokens_give_no_output_and_zero_gradients(training, router, dispatcher):
    layer = make_layer(router, dispatcher=dispatcher, regularizers=["eom(p=0.2)", "fom(p=0.2)"]).train(training)
    x_ND = tokens(0).requires_grad_()
    y_ND, _ = layer(x_ND)
    assert y_ND.shape == (0, DIM)
    assert all(not gradient.any() for gradient in gradients(y_ND, layer, x_ND).values())


@pytest.mark.parametrize("branch", [None, "residual"])
@pytest.mark.parametrize("regularizers", [(), ("eom(p=0.5)",), ("eom(p=0.3)", "fom(p=0.3)")])
@pytest.mark.parametrize(
    "router", ["top_k(k=2)", "top_k(k=1, capacity_factor=0.5)", "top_k(k=3, second_expert=random)"]
)
def test_sorted_equals_reference(router, regularizers, branch):
    def run(dispatcher):
        torch.manual_seed(3)
        built = BRANCHES.build(branch, dim=DIM, ffn_dim=16) if branch else None
        layer = make_layer(router, dispatcher=dispatcher, regularizers=regularizers, branch=built)
        x_ND = tokens(40).requires_grad_()
        y_ND, _ = layer(x_ND)
        return y_ND, gradients(y_ND, layer, x_ND)

    torch.testing.assert_close(run("sorted"), run("reference"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_the_exact_layer(dtype, dispatcher):
    layer = make_layer(dispatcher=dispatcher).to(dtype)
    exact = make_layer(dispatcher="reference")
    exact.load_state_dict({name: value.float() for name, value in layer.state_dict().items()})
    x_ND = tokens(30, dtype=dtype)
    y_ND, record = layer(x_ND)
    expected_ND, expected = exact(x_ND.float())
    assert y_ND.dtype == dtype
    assert edges(record.routing) == edges(expected.routing)
    torch.testing.assert_close(y_ND.float(), expected_ND, rtol=0.05, atol=0.03)


def test_the_order_of_the_tokens_does_not_matter_without_capacity():
    layer, x_ND, order_N = make_layer().eval(), tokens(30), torch.randperm(30)
    torch.testing.assert_close(layer(x_ND[order_N])[0], layer(x_ND)[0][order_N])


def test_a_residual_branch_adds_a_dense_network():
    branch = BRANCHES.build("residual(inner_dim=5)", dim=DIM, ffn_dim=16)
    layer = make_layer(branch=branch)
    x_ND = tokens(6)
    with_branch, _ = layer(x_ND)
    layer.branch = None
    dense = [branch.ffn.fc1.weight.T, branch.ffn.fc1.bias, branch.ffn.fc2.weight.T, branch.ffn.fc2.bias]
    assert dense[0].shape == (DIM, 5)
    expected_ND = layer(x_ND)[0] + torch.stack([oracle.feed_forward(x_D, *dense) for x_D in x_ND])
    torch.testing.assert_close(with_branch, expected_ND)


class Half(Branch):
    """Half of the input instead of half of the output, with a gate that says so."""

    def open(self, x_ND, routing):
        return routing, BranchGate(torch.full(x_ND.shape[:1], 0.5), budget=0.8)

    def forward(self, x_ND, y_ND, gate):
        return gate.gate_N[:, None] * (x_ND + y_ND)


def test_the_record_holds_routing_context_and_gate():
    layer = make_layer(branch=Half())
    x_ND = tokens(6)
    context = RoutingContext(token_N=torch.arange(6))
    y_ND, record = layer(x_ND, context)
    assert record.context is context
    assert record.gate.gate_N.tolist() == [0.5] * 6 and record.gate.budget == 0.8
    layer.branch = None
    plain_ND, plain = layer(x_ND)
    torch.testing.assert_close(y_ND, (x_ND + plain_ND) / 2)
    assert plain.gate is None and plain.context == RoutingContext()


def test_the_recorded_routing_is_the_one_carried_out():
    layer = make_layer(regularizers=["eom(p=0.5)"])
    _, record = layer(tokens(40))
    assert 20 < record.routing.weight_A.numel() < 60


def test_final_output_masking_masks_the_branch_too():
    layer = make_layer(regularizers=["fom(p=0.5)"], branch=BRANCHES.build("residual", dim=DIM, ffn_dim=16))
    y_ND, _ = layer(tokens(200))
    masked = (y_ND == 0).all(-1).sum().item()
    assert 60 < masked < 140


def test_experts_drop_out_elements_in_training_only():
    layer = make_layer("top_k(k=1)")
    layer.experts.dropout.p = 0.5
    x_ND = tokens(200)
    trained_ND, evaluated_ND = layer(x_ND)[0], layer.eval()(x_ND)[0]
    assert (trained_ND == 0).float().mean().item() == pytest.approx(0.5, abs=0.07)
    kept = trained_ND != 0
    torch.testing.assert_close(trained_ND[kept], 2 * evaluated_ND[kept])


PADDING = 1


def batch(lengths, width):
    """Token ids [B, T] of sentences of the given lengths, padded on the right to `width`."""
    ids = torch.full((len(lengths), width), PADDING)
    for sentence, length in enumerate(lengths):
        ids[sentence, :length] = torch.arange(length) + 10 * (sentence + 1)
    return ids


@pytest.fixture
def plugin_layers():
    pytest.importorskip("fairseq")
    import moe_nmt.fairseq_plugin.layers as layers

    return layers


def run_padded(layers, moe: MoELayer, ids, languages):
    """Output [T, B, D] and records for vectors that depend on the id alone, those of padding being far from zero."""
    real = layers.RealTokens.of(ids, PADDING, languages, languages)
    vectors = torch.nn.Embedding.from_pretrained(torch.linspace(-3, 3, 100)[:, None] * torch.linspace(-1, 2, DIM).cos())
    x_TBD = torch.sin(40 * vectors(ids.t()))
    block = layers.MoEFeedForward(moe)
    with record_routing(block) as records:
        y_TBD = block(x_TBD, real)
    return y_TBD, records[0].record


@pytest.mark.parametrize(
    ("router", "branch"),
    [
        ("top_k(k=2)", None),
        ("top_k(k=2, capacity_factor=0.5)", None),
        ("top_k(k=1)", "conditional(gate_dropout=0.0)"),
    ],
)
@pytest.mark.parametrize("lengths", [(4, 4), (4, 2), (1, 4)])
def test_padding_changes_neither_output_nor_record(plugin_layers, lengths, router, branch):
    moe, languages = make_layer(router, branch=branch), torch.tensor([2, 1])
    ids = batch(lengths, 4)
    y_TBD, record = run_padded(plugin_layers, moe, ids, languages)
    padded_TBD, padded = run_padded(plugin_layers, moe, batch(lengths, 9), languages)

    assert torch.equal(padded_TBD[:4], y_TBD)
    assert torch.equal(padded_TBD[4:], torch.zeros(5, 2, DIM))
    assert torch.equal(y_TBD[ids.t() == PADDING], torch.zeros(8 - sum(lengths), DIM))
    for found, expected in zip(padded.routing, record.routing, strict=True):
        assert found is expected or torch.equal(found, expected)
    for found, expected in zip(padded.context, record.context, strict=True):
        assert (found is None and expected is None) or torch.equal(found, expected)
    assert record.routing.prob_NE.shape[0] == sum(lengths)
    if branch:
        assert torch.equal(padded.gate.gate_N, record.gate.gate_N) and record.gate.gate_N.numel() == sum(lengths)
        budget = LOSSES.build("gate_budget")
        assert torch.equal(budget([padded]), budget([record]))


def test_the_context_names_every_token_and_its_languages(plugin_layers):
    ids, languages = batch((3, 1), 3), torch.tensor([2, 1])
    _, record = run_padded(plugin_layers, make_layer(), ids, languages)
    assert record.context.token_N.tolist() == [10, 20, 11, 12]
    assert record.context.source_language_N.tolist() == [2, 1, 2, 2]
    assert record.context.target_language_N.tolist() == [2, 1, 2, 2]
    assert record.context.sentence_N.tolist() == [0, 1, 0, 0]


def test_a_batch_of_padding_alone_gives_zeros(plugin_layers):
    y_TBD, record = run_padded(plugin_layers, make_layer(), batch((0, 0), 3), torch.tensor([2, 1]))
    assert torch.equal(y_TBD, torch.zeros(3, 2, DIM))
    assert edges(record.routing) == {}
    y_TBD.sum().backward()


def test_with_capacity_a_later_position_never_displaces_an_earlier_one(plugin_layers):
    moe = make_layer("top_k(k=1, capacity_factor=2.0)")
    grow_gate(moe.router, torch.zeros(4, DIM))
    y_TBD, record = run_padded(plugin_layers, moe, batch((4, 4), 4), torch.tensor([2, 1]))
    assert record.routing.token_A.tolist() == [0, 1, 2, 3]
    assert (y_TBD[:2] != 0).any(-1).all() and not y_TBD[2:].any()


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
def test_half_precision_activations_of_autocast_meet_float32_experts(dispatcher):
    layer = make_layer(dispatcher=dispatcher)
    x_ND = tokens(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_ND, _ = layer(x_ND)
    assert y_ND.dtype == torch.bfloat16
    torch.testing.assert_close(y_ND.float(), layer(x_ND.float())[0], rtol=0.05, atol=0.05)
