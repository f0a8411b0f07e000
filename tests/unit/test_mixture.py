"""MoV and MoLoRA against loops over positions and experts, written from the paper's formulas.

Shape letters: T positions, R rows, E experts, K rank, I inputs, O outputs, H heads, D width of a head.
"""

import copy

import pytest
import torch

from moe_nmt.adapters import ADAPTERS, Host, LayerShape
from moe_nmt.adapters.mixture import INNER, LoRAMixture, VectorMixture
from moe_nmt.errors import UserError
from moe_nmt.registry import parse

ENCODER_DIM, DECODER_DIM, FFN_DIM, HEADS = 6, 8, 12, 2
LANGUAGES = ["deu", "ell", "fra"]
MOV, MOLORA = "mov(count=3)", "molora(count=3, rank=2, alpha=8.0)"


def layer(dim, *attentions, source_dim=ENCODER_DIM, dense=True):
    """A layer of this width with these attentions; keys and values of `encoder_attn` come from `source_dim`."""
    linear = {
        f"{attention}.{name}": (
            source_dim if attention == "encoder_attn" and name in ("k_proj", "v_proj") else dim,
            dim,
        )
        for attention in attentions
        for name in ("q_proj", "k_proj", "v_proj", "out_proj")
    }
    if dense:
        linear |= {"feed_forward.fc1": (dim, FFN_DIM), "feed_forward.fc2": (FFN_DIM, dim)}
    return LayerShape(dim, HEADS, linear)


def host(languages=LANGUAGES):
    """Of the encoder's two layers the second has a mixture of experts."""
    return Host(
        [layer(ENCODER_DIM, "self_attn"), layer(ENCODER_DIM, "self_attn", dense=False)],
        [layer(DECODER_DIM, "self_attn", "encoder_attn")],
        languages,
    )


def build(spec, languages=LANGUAGES, trained=True, dtype=torch.float64):
    """Adapters whose parameters all do something, as after training."""
    torch.manual_seed(1)
    adapters = ADAPTERS.build(spec, host=host(languages)).to(dtype)
    if trained:
        for parameter in adapters.parameters():
            torch.nn.init.normal_(parameter, std=0.7)
    return adapters


def open_layer(adapters, side="decoder", number=0, source=(0, 1, 2), target=(1, 2, 0)):
    return adapters.open(side, torch.tensor(source), torch.tensor(target))[number]


def softmax(logits):
    power = [torch.exp(logit) for logit in logits]
    return [value / sum(power) for value in power]


def lora_by_loops(site, scale, x, y):
    """y + scale * sum over e of s_e B_e A_e x, s = softmax(W x), one position and expert at a time."""
    out = []
    for x_I, y_O in zip(x.flatten(0, -2), y.flatten(0, -2), strict=True):
        weight = softmax([row_I @ x_I for row_I in site.router.weight])
        for e, s in enumerate(weight):
            y_O = y_O + scale * s * (site.up_EKO[e].T @ (site.down_EKI[e] @ x_I))
        out.append(y_O)
    return torch.stack(out).view_as(y)


def vectors_by_loops(site, y):
    """(sum over e of s_e l_e) * y_h in each head h, s = softmax(W y_h)."""
    heads, out = len(site.offset_HED), []
    for y_O in y.flatten(0, -2):
        for h, y_D in enumerate(y_O.view(heads, -1)):
            weight = softmax([row_D @ y_D for row_D in site.router.weight])
            vectors = 1 + site.offset_HED[h]
            out.append(sum(s * l_D for s, l_D in zip(weight, vectors, strict=True)) * y_D)
    return torch.cat(out).view_as(y)


def lora_site(count=3, inputs=6, outputs=8, rank=2, scale=4.0):
    site = LoRAMixture(count, inputs, outputs, rank, scale).double()
    for parameter in site.parameters():
        torch.nn.init.normal_(parameter)
    return site


def vector_site(count=3, width=8, heads=2):
    site = VectorMixture(count, width, heads).double()
    for parameter in site.parameters():
        torch.nn.init.normal_(parameter)
    return site


def with_gradients(site, function, *inputs):
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    y = function(*inputs)
    factor = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return y, torch.autograd.grad((y * factor).sum(), [*inputs, *site.parameters()])


TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
"""The router works in float32."""


def test_molora_is_the_sum_of_all_experts_updates_values_and_gradients():
    site, x, y = lora_site(), torch.randn(4, 3, 6).double(), torch.randn(4, 3, 8).double()
    expected = with_gradients(site, lambda x, y: lora_by_loops(site, 4.0, x, y), x, y)
    torch.testing.assert_close(with_gradients(site, site, x, y), expected, **TOLERANCE)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_mov_scales_each_head_by_the_sum_of_all_vectors_values_and_gradients(heads):
    site, y = vector_site(heads=heads), torch.randn(4, 3, 8).double()
    expected = with_gradients(site, lambda y: vectors_by_loops(site, y), y)
    torch.testing.assert_close(with_gradients(site, lambda y: site(y, y), y), expected, **TOLERANCE)


def test_one_expert_of_molora_is_lora():
    site, x, y = lora_site(count=1), torch.randn(4, 3, 6).double(), torch.randn(4, 3, 8).double()
    torch.testing.assert_close(site(x, y), y + 4 * x @ site.down_EKI[0].T @ site.up_EKO[0])


def test_one_expert_of_mov_is_ia3():
    site, y = vector_site(count=1), torch.randn(4, 3, 8).double()
    torch.testing.assert_close(site(y, y), y * (1 + site.offset_HED.flatten()))


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_a_router_that_is_sure_selects_one_expert(chosen):
    x, y = torch.randn(4, 3, 6).double(), torch.randn(4, 3, 8).double()
    x[..., 0] = y[..., 0] = y[..., 4] = 1
    lora, vectors = lora_site(), vector_site()
    with torch.no_grad():
        for site in (lora, vectors):
            site.router.weight.zero_()[chosen, 0] = 1e4
    expected = y + 4 * x @ lora.down_EKI[chosen].T @ lora.up_EKO[chosen]
    torch.testing.assert_close(lora(x, y), expected)
    torch.testing.assert_close(vectors(x, y), y * (1 + vectors.offset_HED[:, chosen].flatten()))


@pytest.mark.parametrize(("make", "expert_dims"), [(lora_site, (0, 0)), (vector_site, (1,))])
def test_the_order_of_the_experts_does_not_matter(make, expert_dims):
    site, x, y = make(), torch.randn(4, 3, 6).double(), torch.randn(4, 3, 8).double()
    expected, order = site(x, y), torch.tensor([2, 0, 1])
    with torch.no_grad():
        site.router.weight.copy_(site.router.weight[order])
        moved = site(x, y)
        for (name, parameter), dim in zip(list(site.named_parameters(recurse=False)), expert_dims, strict=True):
            setattr(site, name, torch.nn.Parameter(parameter.index_select(dim, order)))
    assert not torch.allclose(moved, expected)
    torch.testing.assert_close(site(x, y), expected, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", [MOV, MOLORA])
def test_adapters_start_without_effect_in_every_precision(spec, dtype):
    adapter = open_layer(build(spec, trained=False, dtype=dtype))
    x, y, h = (torch.randn(5, 3, size).to(dtype) for size in (ENCODER_DIM, DECODER_DIM, FFN_DIM))
    for name in ("k_proj", "v_proj"):
        assert torch.equal(adapter.on_linear(f"encoder_attn.{name}", x, y), y)
    assert torch.equal(adapter.on_inner(h), h)
    assert adapter.on_inner(h).dtype == dtype


def test_routers_and_a_start_with_a_standard_deviation_of_0_02():
    """Of 25,600 draws the standard deviation is known to 0.5 %; the tolerance is five times that."""
    site = LoRAMixture(100, 256, 8, 1, 1.0)
    for tensor in (site.router.weight, site.down_EKI, VectorMixture(100, 512, 2).router.weight):
        assert tensor.numel() == 25_600
        assert tensor.std().item() == pytest.approx(0.02, rel=0.025)
        assert abs(tensor.mean().item()) < 0.02 * 5 / 160


@pytest.mark.parametrize("make", [lora_site, vector_site])
def test_the_router_works_in_float32(make):
    site, x = make().bfloat16(), torch.randn(4, 3, 2, make().router.in_features).bfloat16()
    weight = site.weigh(x)
    assert weight.dtype == torch.float32
    assert torch.equal(weight, (x.float() @ site.router.weight.float().T).softmax(-1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(site.weigh(x.float()), weight)


@pytest.mark.parametrize("make", [lora_site, vector_site])
def test_half_precision_and_autocast_agree_with_full_precision(make):
    site, x, y = make().float(), torch.randn(4, 3, 6), torch.randn(4, 3, 8)
    exact = site(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = site(x, y.bfloat16())
    half = site.bfloat16()(x.bfloat16(), y.bfloat16())
    assert mixed.dtype == half.dtype == torch.bfloat16
    for inexact in (mixed, half):
        torch.testing.assert_close(inexact.float(), exact, rtol=0.05, atol=0.02 * exact.abs().max().item())


def mov_count(n):
    """Per attention 2 (heads n d + d n) with d = D / heads, per dense network n F + F n; cross-attention counts."""
    attention = {dim: 2 * (n * dim + dim // HEADS * n) for dim in (ENCODER_DIM, DECODER_DIM)}
    return 2 * attention[ENCODER_DIM] + 2 * attention[DECODER_DIM] + 2 * (2 * n * FFN_DIM)


def molora_count(n, r):
    """Per linear map n I for the router and n r (I + O) for the experts."""
    e, d, f = ENCODER_DIM, DECODER_DIM, FFN_DIM
    maps = [*[(e, e)] * 8, *[(d, d)] * 6, *[(e, d)] * 2, (e, f), (f, e), (d, f), (f, d)]
    return sum(n * i + n * r * (i + o) for i, o in maps)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (MOV, mov_count(3)),
        ("mov(count=30)", mov_count(30)),
        (MOLORA, molora_count(3, 2)),
        ("molora(count=10, rank=4)", molora_count(10, 4)),
        ("mov(count=3, sites=[inner])", 2 * 2 * 3 * FFN_DIM),
        ("molora(count=1, rank=1, sites=[fc1])", ENCODER_DIM * 2 + DECODER_DIM * 2 + 2 * FFN_DIM),
    ],
)
def test_the_number_of_parameters_has_a_closed_form(spec, expected):
    assert sum(parameter.numel() for parameter in build(spec).parameters()) == expected


def sites(adapters):
    return {name.removesuffix(".router.weight") for name, _ in adapters.named_parameters() if "router" in name}


def test_the_chosen_sites_are_adapted_and_no_others():
    projections = {"encoder.0.self_attn", "encoder.1.self_attn", "decoder.0.self_attn", "decoder.0.encoder_attn"}
    keys_values = {f"{attention}_{name}" for attention in projections for name in ("k_proj", "v_proj")}
    inner = {"encoder.0.feed_forward_inner", "decoder.0.feed_forward_inner"}
    assert sites(build(MOV)) == keys_values | inner
    assert sites(build("mov(count=3, sites=[k_proj, v_proj])")) == keys_values
    others = {f"{attention}_{name}" for attention in projections for name in ("q_proj", "out_proj")}
    feed_forward = {name.replace("inner", fc) for name in inner for fc in ("fc1", "fc2")}
    assert sites(build(MOLORA)) == keys_values | others | feed_forward
    assert sites(build("molora(count=1, rank=1, sites=[q_proj, fc2])")) == {
        *(f"{attention}_q_proj" for attention in projections),
        "encoder.0.feed_forward_fc2",
        "decoder.0.feed_forward_fc2",
    }


def test_a_layer_without_a_chosen_site_is_left_alone():
    adapters = build("mov(count=3, sites=[inner])")
    assert open_layer(adapters, "encoder", 0) is not None and open_layer(adapters, "encoder", 1) is None
    x, y = torch.randn(5, 3, DECODER_DIM), torch.randn(5, 3, DECODER_DIM)
    assert open_layer(adapters).on_linear("self_attn.k_proj", x, y) is y
    assert open_layer(build(MOLORA)).on_inner(y) is y


def test_every_site_uses_its_own_experts():
    mov, molora = build(MOV), build(MOLORA)
    adapter, rows = open_layer(mov), (5, 3)
    for name in ("self_attn.k_proj", "self_attn.v_proj", "encoder_attn.k_proj", "encoder_attn.v_proj", INNER):
        site = mov.decoder[0][name.replace(".", "_")]
        y = torch.randn(*rows, FFN_DIM if name == INNER else DECODER_DIM).double()
        changed = adapter.on_inner(y) if name == INNER else adapter.on_linear(name, y * 0, y)
        torch.testing.assert_close(changed, vectors_by_loops(site, y), **TOLERANCE)
    adapter = open_layer(molora)
    for name, (inputs, outputs) in host().decoder[0].linear.items():
        x, y = torch.randn(*rows, inputs).double(), torch.randn(*rows, outputs).double()
        expected = lora_by_loops(molora.decoder[0][name.replace(".", "_")], 8.0 / 2, x, y)
        torch.testing.assert_close(adapter.on_linear(name, x, y), expected, **TOLERANCE)


@pytest.mark.parametrize("spec", [MOV, MOLORA])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_only_sentences_of_the_chosen_languages_are_adapted(spec, side):
    spec = f"{spec[:-1]}, languages=[ell])"
    adapters = build(spec)
    every = open_layer(build(spec.replace(", languages=[ell]", "")), side)
    adapter = open_layer(adapters, side, source=(0, 1, 2, 2), target=(2, 0, 1, 0))
    x = torch.randn(5, 4, ENCODER_DIM if side == "encoder" else DECODER_DIM).double().requires_grad_()
    y = adapter.on_linear("self_attn.k_proj", x, x.sin())
    assert torch.equal(y[:, [0, 3]], x.sin()[:, [0, 3]])
    full = every.on_linear("self_attn.k_proj", x[:, :3], x[:, :3].sin())
    torch.testing.assert_close(y[:, 1:3], full[:, 1:])
    gradients = [torch.autograd.grad(rows.square().sum(), x)[0] for rows in (y[:, 1:3], full[:, 1:])]
    torch.testing.assert_close(*gradients)
    assert not torch.isclose(y[:, 1:3], x.sin()[:, 1:3]).all(-1).any()
    assert open_layer(adapters, side, source=(0, 2), target=(2, 0)) is None


@pytest.mark.parametrize("spec", [MOV, MOLORA])
def test_the_hypotheses_of_a_sentence_are_adapted_as_the_sentence(spec):
    """Rows [A A A B B B] of a decoding step; keys and values of the source have the rows [A B] in the same step."""
    adapter = open_layer(build(f"{spec[:-1]}, languages=[ell])"), source=(0, 2, 2), target=(1, 2, 1))
    x = torch.randn(1, 9, DECODER_DIM).double()
    y = adapter.on_linear("self_attn.v_proj", x, x.sin())
    for hypothesis in range(3):
        rows = x[:, hypothesis::3]
        expected = adapter.on_linear("self_attn.v_proj", rows, rows.sin())
        torch.testing.assert_close(y[:, hypothesis::3], expected)
        assert torch.equal(y[:, 3 + hypothesis], x.sin()[:, 3 + hypothesis])
    source = torch.randn(7, 3, ENCODER_DIM).double()
    keys = torch.randn(7, 3, DECODER_DIM).double()
    changed = adapter.on_linear("encoder_attn.k_proj", source, keys)
    assert changed.ne(keys).any(-1).tolist() == [[True, False, True]] * 7


@pytest.mark.parametrize("spec", [MOV, MOLORA])
def test_gradients_reach_every_parameter_and_the_rows_that_are_not_adapted(spec):
    adapters, total = build(f"{spec[:-1]}, languages=[ell])"), 0.0
    inputs = []
    for side in ("encoder", "decoder"):
        for number, shape in enumerate(getattr(host(), side)):
            adapter = open_layer(adapters, side, number)
            for name, sizes in shape.linear.items():
                x, y = (torch.randn(4, 3, size).double().requires_grad_() for size in sizes)
                total = total + adapter.on_linear(name, x, y).square().sum()
                inputs.append(y)
            if "feed_forward.fc1" in shape.linear:
                h = torch.randn(4, 3, FFN_DIM).double().requires_grad_()
                total = total + adapter.on_inner(h).square().sum()
                inputs.append(h)
    total.backward()
    for name, parameter in adapters.named_parameters():
        assert parameter.grad is not None and parameter.grad.flatten(1).any(), name
    for y in inputs:
        assert y.grad.any(-1).all()
        torch.testing.assert_close(y.grad[:, 2], 2 * y[:, 2])


@pytest.mark.parametrize("spec", [MOV, MOLORA])
def test_what_is_recorded_makes_the_same_adapters_among_other_languages(spec):
    adapters = build(spec)
    assert adapters.recorded == {"languages": LANGUAGES}
    other = ["new", "fra", "ell", "older", "deu"]
    completed = parse(spec)
    completed.options.update(adapters.recorded)
    loaded = build(str(completed), languages=other)
    loaded.load_state_dict(adapters.state_dict())
    x = torch.randn(5, 2, DECODER_DIM).double()
    was = open_layer(adapters, source=(0, 1), target=(1, 2)).on_linear("self_attn.k_proj", x, x.sin())
    now = open_layer(loaded, source=(4, 2), target=(2, 1)).on_linear("self_attn.k_proj", x, x.sin())
    assert torch.equal(was, now)
    assert open_layer(loaded, source=(0, 3), target=(3, 0)) is None


@pytest.mark.parametrize("spec", [MOV, MOLORA])
def test_a_copy_is_independent(spec):
    adapters = build(spec)
    twin = copy.deepcopy(adapters)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.zero_()
    x = torch.randn(5, 3, DECODER_DIM).double()
    assert not torch.equal(open_layer(twin).on_linear("self_attn.k_proj", x, x), x)
    assert torch.equal(open_layer(adapters).on_linear("self_attn.k_proj", x, x), x)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mov(count=0)", "count must be at least 1, not 0"),
        ("molora(count=0, rank=2)", "count=0"),
        ("molora(count=2, rank=0)", "rank=0"),
        ("molora(count=2, rank=2, alpha=0)", "alpha=0.0"),
        ("mov(count=2, sites=[q_proj])", "each entry one of k_proj, v_proj, inner"),
        ("molora(count=2, rank=2, sites=[inner])", "each entry one of q_proj, k_proj, v_proj, out_proj, fc1, fc2"),
        ("mov(count=2, sites=[])", "no layer has any of the chosen sites"),
        ("mov(count=2, languages=[fre])", "did you mean 'fra'"),
        ("molora(count=2, rank=2, languages=[fra, fra])", "named twice"),
    ],
)
def test_bad_options_are_refused(spec, words):
    with pytest.raises(UserError) as error:
        build(spec)
    assert words in str(error.value)


def test_a_model_without_dense_feed_forward_networks_refuses_to_adapt_them():
    sparse = Host([layer(ENCODER_DIM, "self_attn", dense=False)], [], LANGUAGES)
    for spec in ("mov(count=2, sites=[inner])", "molora(count=2, rank=2, sites=[fc1, fc2])"):
        with pytest.raises(UserError, match="only a dense feed-forward network has"):
            ADAPTERS.build(spec, host=sparse)
