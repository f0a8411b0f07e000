"""The compiled operators against their PyTorch forms and against row-by-row computation.

Shape letters: N tokens, E experts, A assignments, D model width, F inner width.
"""

import pytest
import torch

from moe_nmt.moe import DISPATCHERS, EXPERTS, ROUTERS, MoELayer, kernels
from moe_nmt.moe.activations import ACTIVATIONS

pytestmark = pytest.mark.skipif(not kernels.LOADED, reason="the operators were not built here")

COUNTS = [[5, 0, 17, 130], [1, 0, 0, 0], [0, 0, 0, 0], [3], [0, 700, 2, 1], [64, 64, 64, 64], [*[0] * 9, 4, 0, 0, 9]]
SIZES = [(40, 72), (33, 300), (64, 1024)]


def arguments(counts, dim, ffn_dim):
    experts = len(counts)
    shapes = [(sum(counts), dim), (experts, dim, ffn_dim), (experts, ffn_dim), (experts, ffn_dim, dim), (experts, dim)]
    scales = [1, dim**-0.5, 1, ffn_dim**-0.5, 1]
    tensors = [torch.randn(shape, dtype=torch.float64) * scale for shape, scale in zip(shapes, scales, strict=True)]
    return [tensor.float().requires_grad_() for tensor in tensors]


def expert_by_expert(x_AD, weight1_EDF, bias1_EF, weight2_EFD, bias2_ED, counts, activation):
    blocks = x_AD.split(counts)
    return torch.cat(
        [
            ACTIVATIONS[activation](block @ weight1_EDF[e] + bias1_EF[e]) @ weight2_EFD[e] + bias2_ED[e]
            for e, block in enumerate(blocks)
        ]
    )


def values_and_gradients(function, inputs):
    y_AD = function(*inputs)
    factor_AD = torch.linspace(-1, 1, y_AD.numel(), dtype=y_AD.dtype).view_as(y_AD)
    return y_AD, torch.autograd.grad((y_AD * factor_AD).sum(), inputs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("threads", [1, 3])
def test_experts_equal_the_loop_in_double_precision(activation, counts, sizes, threads):
    inputs = arguments(counts, *sizes)
    torch.set_num_threads(threads)
    try:
        found = values_and_gradients(lambda *t: kernels.expert_ffn(*t, torch.tensor(counts), activation), inputs)
    finally:
        torch.set_num_threads(1)
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
    exact = values_and_gradients(lambda *t: expert_by_expert(*t, counts, activation), exact_inputs)
    for mine, true in zip((found[0], *found[1]), (exact[0], *exact[1]), strict=True):
        scale = true.abs().max().item() if true.numel() else 0.0
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-5 * scale + 1e-7)


@pytest.mark.parametrize("counts", COUNTS)
def test_inference_equals_training(counts):
    inputs = arguments(counts, 64, 1024)
    trained = kernels.expert_ffn(*inputs, torch.tensor(counts), "gelu")
    with torch.no_grad():
        assert torch.equal(kernels.expert_ffn(*inputs, torch.tensor(counts), "gelu"), trained)


def test_the_same_twice():
    inputs = arguments([200, 0, 31], 64, 512)
    torch.set_num_threads(2)
    try:
        runs = [
            values_and_gradients(lambda *t: kernels.expert_ffn(*t, torch.tensor([200, 0, 31]), "relu"), inputs)
            for _ in range(5)
        ]
    finally:
        torch.set_num_threads(1)
    for y_AD, gradients in runs[1:]:
        assert torch.equal(y_AD, runs[0][0])
        assert all(torch.equal(mine, first) for mine, first in zip(gradients, runs[0][1], strict=True))


def test_rows_do_not_touch_one_another():
    counts = [5, 3, 2]
    inputs = [tensor.detach() for tensor in arguments(counts, 40, 72)]
    clean = kernels.expert_ffn(*inputs, torch.tensor(counts), "relu")
    inputs[0][6] = float("nan")
    spoilt = kernels.expert_ffn(*inputs, torch.tensor(counts), "relu")
    assert spoilt[6].isnan().all()
    others = torch.arange(10) != 6
    assert torch.equal(spoilt[others], clean[others])


def test_gradients_of_one_expert_do_not_see_the_rows_of_another():
    inputs = arguments([5, 3], 40, 72)
    y_AD = kernels.expert_ffn(*inputs, torch.tensor([5, 3]), "relu")
    upstream_AD = torch.ones_like(y_AD)
    upstream_AD[6] = float("nan")
    gradients = torch.autograd.grad(y_AD, inputs, upstream_AD)
    assert all(gradient[0].isfinite().all() for gradient in gradients[1:])
    assert all(gradient[1].isnan().any() for gradient in gradients[1:])


@pytest.mark.parametrize("trained", [{0}, {1}, {2, 4}, {3}, {0, 1, 2, 3, 4}])
def test_what_needs_no_gradient_gets_none(trained):
    inputs = arguments([5, 0, 3], 40, 72)
    expected = torch.autograd.grad(kernels.expert_ffn(*inputs, torch.tensor([5, 0, 3]), "relu").sum(), inputs)
    for number, tensor in enumerate(inputs):
        tensor.requires_grad_(number in trained)
    kernels.expert_ffn(*inputs, torch.tensor([5, 0, 3]), "relu").sum().backward()
    for number, tensor in enumerate(inputs):
        assert (tensor.grad is not None) == (number in trained)
        if number in trained:
            torch.testing.assert_close(tensor.grad, expected[number])


def test_a_gradient_that_outlives_the_step():
    """Gradients of mostly idle experts lie in memory of their own, which must stay while somebody holds them."""
    counts = torch.tensor([*[0] * 7, 8])
    inputs = arguments(counts.tolist(), 64, 256)
    kernels.expert_ffn(*inputs, counts, "relu").sum().backward()
    gradient = inputs[1].grad
    expected = gradient.clone()
    inputs[1].grad = None
    for _ in range(3):
        kernels.expert_ffn(*inputs, counts, "relu").sum().backward()
    assert torch.equal(gradient, expected) and torch.equal(gradient[:7], torch.zeros(7, 64, 256))
    torch.testing.assert_close(inputs[1].grad, 3 * expected)


def test_strided_input_and_gradient():
    inputs = arguments([5, 3], 40, 72)
    wide = torch.randn(40, 8).T.requires_grad_()
    plain = wide.detach().contiguous().requires_grad_()
    for x_AD in (wide, plain):
        kernels.expert_ffn(x_AD, *inputs[1:], torch.tensor([5, 3]), "relu").sum(1).sum().backward()
    torch.testing.assert_close(wide.grad, plain.grad)


@pytest.mark.parametrize("counts", [[2, 2], [9, 0], [-1, 6]])
def test_counts_that_do_not_fit_are_refused(counts):
    inputs = arguments([5, 0], 40, 72)
    with pytest.raises(RuntimeError, match="count_E"):
        kernels.expert_ffn(*inputs, torch.tensor(counts), "relu")


@pytest.mark.parametrize("total", [0, 1, 7, 500])
@pytest.mark.parametrize("dim", [1, 16, 100])
def test_gather_and_combine_equal_their_pytorch_forms(total, dim, monkeypatch):
    x_ND, weight_A = torch.randn(6, dim, requires_grad=True), torch.randn(total, requires_grad=True)
    token_A = torch.randint(6, (total,))

    def there_and_back():
        y_ND = kernels.combine(kernels.gather(x_ND, token_A).tanh(), token_A, weight_A, 6)
        factor_ND = torch.linspace(-1, 1, y_ND.numel()).view_as(y_ND)
        return y_ND, torch.autograd.grad((y_ND * factor_ND).sum(), [x_ND, weight_A])

    torch.set_num_threads(3)
    found = there_and_back()
    torch.set_num_threads(1)
    monkeypatch.setattr(kernels, "LOADED", False)
    torch.testing.assert_close(found, there_and_back(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("total", [0, 1, 400])
def test_sorting_is_stable(total, monkeypatch):
    expert_A = torch.randint(5, (total,))
    found = kernels.sort_by_expert(expert_A, 6)
    monkeypatch.setattr(kernels, "LOADED", False)
    for mine, expected in zip(found, kernels.sort_by_expert(expert_A, 6), strict=True):
        assert torch.equal(mine, expected)


def test_sorting_refuses_an_expert_that_there_is_not():
    with pytest.raises(IndexError, match="expert 3 is not one of 3"):
        kernels.sort_by_expert(torch.tensor([0, 3]), 3)


@pytest.mark.parametrize("k", [1, 2])
def test_the_layer_without_the_operators_is_the_same(k, monkeypatch):
    layer = MoELayer(
        ROUTERS.build(f"top_k(k={k})", dim=32, num_experts=4),
        EXPERTS.build("ffn(count=4)", dim=32, ffn_dim=64),
        DISPATCHERS.build("sorted"),
    )
    x_ND = torch.randn(50, 32, requires_grad=True)
    inputs = [x_ND, *layer.parameters()]
    found = values_and_gradients(lambda *_: layer(x_ND)[0], inputs)
    monkeypatch.setattr(kernels, "LOADED", False)
    torch.testing.assert_close(found, values_and_gradients(lambda *_: layer(x_ND)[0], inputs), rtol=1e-4, atol=1e-5)


def test_the_layer_compiles_into_one_graph():
    layer = MoELayer(
        ROUTERS.build("top_k(k=2)", dim=32, num_experts=4),
        EXPERTS.build("ffn(count=4)", dim=32, ffn_dim=64),
        DISPATCHERS.build("sorted"),
    )
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (50, 7):
        x_ND = torch.randn(tokens, 32, requires_grad=True)
        inputs = [x_ND, *layer.parameters()]
        found = values_and_gradients(lambda *_, x_ND=x_ND: compiled(x_ND)[0], inputs)
        torch.testing.assert_close(found, values_and_gradients(lambda *_, x_ND=x_ND: layer(x_ND)[0], inputs))


@pytest.mark.parametrize("operator", ["expert_ffn", "combine", "sort_by_expert"])
def test_shapes_promised_to_the_compiler_are_the_real_ones(operator):
    tensors = [tensor.detach() for tensor in arguments([5, 0, 3], 40, 72)]
    arguments_of = {
        "expert_ffn": (*tensors, torch.tensor([5, 0, 3]), "relu", True),
        "combine": (tensors[0], torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]), None, 4),
        "sort_by_expert": (torch.tensor([2, 0, 0]), 3),
    }[operator]
    torch.library.opcheck(getattr(torch.ops.moe_nmt, operator).default, arguments_of, test_utils=["test_faketensor"])
