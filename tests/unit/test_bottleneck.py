"""Bottleneck adapters against a loop over rows, written from Bapna & Firat 2019, section 2.

Shape letters: T positions, R rows, B sentences, G groups, D model width, H bottleneck width.
"""

import math

import pytest
import torch

from moe_nmt.adapters import ADAPTERS
from moe_nmt.adapters.bottleneck import Bottleneck, LayerBottlenecks
from moe_nmt.adapters.groups import NONE, SentenceGroups, group_sentences, group_table
from moe_nmt.errors import UserError
from moe_nmt.registry import Spec, parse
from tests.parts import make_host

D, H, G = 8, 4, 4
PAIRS = [(source, target) for source in range(3) for target in range(3)]


def random_layer(dtype=torch.float64):
    """The weights of one layer's adapters, all drawn."""
    layer = LayerBottlenecks(G, D, H, "identity").to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def groups_of(groups_B):
    language_B = torch.arange(len(groups_B))
    return group_sentences(group_table(len(groups_B), lambda source, _: groups_B[source]), language_B, language_B)


def loop(layer, groups_B, x):
    """Row by row, position by position."""
    weights, each = layer.weights(), x.shape[1] // len(groups_B)
    rows = []
    for row in range(x.shape[1]):
        group = groups_B[row // each]
        if group == NONE:
            rows.append(x[:, row])
            continue
        scale, shift, down, down_bias, up, up_bias = (part[group] for part in weights)
        positions = []
        for x_D in x[:, row]:
            z_D = (x_D - x_D.mean()) / (x_D.var(correction=0) + 1e-5).sqrt() * scale + shift
            positions.append(x_D + (z_D @ down + down_bias).relu() @ up + up_bias)
        rows.append(torch.stack(positions))
    return torch.stack(rows, 1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
@pytest.mark.parametrize(
    "groups_B",
    [[2, 0, 1, 0, 2], [0, 1, 2, 3], [3, NONE, 1, 3], [NONE, 2], [1, 1, 1], [0]],
    ids=["shuffled", "each its own", "one without", "only one adapted", "one group", "one sentence"],
)
@pytest.mark.parametrize(("positions", "hypotheses"), [(5, 1), (1, 1), (1, 3), (4, 2)])
def test_values_and_gradients_are_those_of_a_loop(dtype, tolerance, groups_B, positions, hypotheses):
    layer = random_layer(dtype)
    given = torch.randn(positions, len(groups_B) * hypotheses, D, dtype=dtype)
    results = []
    for run in (
        lambda x: Bottleneck(layer.weights(), groups_of(groups_B)).on_output(x),
        lambda x: loop(layer, groups_B, x),
    ):
        x, y = given.clone().requires_grad_(), None
        layer.zero_grad()
        y = run(x)
        (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)).sum().backward()
        results.append([y, x.grad, *(parameter.grad for parameter in layer.parameters())])
    for fast, slow in zip(*results, strict=True):
        assert fast.dtype == dtype
        torch.testing.assert_close(fast, slow, rtol=tolerance, atol=tolerance)


def test_a_transposed_view_is_as_good_as_its_copy():
    """Layers hand over what they have; encoders begin with a transposed view."""
    adapter = Bottleneck(random_layer().weights(), groups_of([1, 1, 1]))
    x = torch.randn(3, 5, D, dtype=torch.float64).transpose(0, 1)
    assert torch.equal(adapter.on_output(x), adapter.on_output(x.contiguous()))


def test_sentences_without_an_adapter_are_untouched_bit_for_bit():
    groups_B = [NONE, 2, NONE, 0]
    x = torch.randn(5, 8, D)
    y = Bottleneck(random_layer(torch.float32).weights(), groups_of(groups_B)).on_output(x)
    assert torch.equal(y[:, [0, 1, 4, 5]], x[:, [0, 1, 4, 5]])
    assert (y != x)[:, [2, 3, 6, 7]].any(-1).all()


def test_what_comes_in_is_left_as_it_was():
    x = torch.randn(5, 2, D)
    before = x.clone()
    for groups_B in ([0, 1], [0, 0]):
        Bottleneck(random_layer(torch.float32).weights(), groups_of(groups_B)).on_output(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("groups_B", [[0, 1, NONE], [2, 2, 2]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_output_has_the_dtype_of_the_input(groups_B, dtype):
    layer = random_layer(torch.float32)
    x = torch.randn(5, 3, D, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = Bottleneck(layer.weights(), groups_of(groups_B)).on_output(x)
    y.sum().backward()
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), loop(layer, groups_B, x.float()), rtol=0.05, atol=0.2)


def test_only_the_groups_of_the_batch_get_a_gradient():
    layer = random_layer()
    Bottleneck(layer.weights(), groups_of([3, NONE, 1])).on_output(
        torch.randn(5, 3, D, dtype=torch.float64)
    ).sum().backward()
    for parameter in layer.parameters():
        changed = parameter.grad.flatten(1).ne(0).any(1)
        assert changed.tolist() == [False, True, False, True]


def build(spec, host=None):
    return ADAPTERS.build(spec, host=host or make_host())


def numbered(spec, host=None):
    """Adapters that do nothing but add the number of their group, from 1."""
    adapters = build(spec, host)
    with torch.no_grad():
        for name, parameter in adapters.named_parameters():
            number_G = torch.arange(1.0, parameter.shape[0] + 1)
            parameter.copy_(number_G[:, None].expand_as(parameter)) if name.endswith(
                "up_bias_GD"
            ) else parameter.zero_()
    return adapters


def acting(adapters, side):
    """The number of the group that acts on a sentence of each pair, {(source, target): number}; 0: none."""
    source, target = torch.tensor(PAIRS).T
    layers = adapters.open(side, source, target)
    added = [adapter.on_output(torch.zeros(2, len(PAIRS), D)) for adapter in layers]
    assert len(layers) == 2 and torch.equal(*added)
    assert (added[0] == added[0][:1, :, :1]).all()
    return dict(zip(PAIRS, added[0][0, :, 0].int().tolist(), strict=True))


@pytest.mark.parametrize(
    ("options", "encoder", "decoder"),
    [
        ("by=language", lambda s, t: s + 1, lambda s, t: t + 1),
        ("by=source", lambda s, t: s + 1, lambda s, t: s + 1),
        ("by=target", lambda s, t: t + 1, lambda s, t: t + 1),
        ("by=language, languages=[c, a]", lambda s, t: [2, 0, 1][s], lambda s, t: [2, 0, 1][t]),
        ("by=source, languages=[b]", lambda s, t: int(s == 1), lambda s, t: int(s == 1)),
        ("by=family, families=[[a, c]]", lambda s, t: [1, 2, 1][s], lambda s, t: [1, 2, 1][t]),
        ("by=family, families=[[b], [c, a]]", lambda s, t: [2, 1, 2][s], lambda s, t: [2, 1, 2][t]),
        ("by=family, families=[[a, c]], languages=[b, c]", lambda s, t: [0, 2, 1][s], lambda s, t: [0, 2, 1][t]),
        ("by=pair", lambda s, t: {(0, 1): 1, (1, 0): 2}.get((s, t), 0), None),
        ("by=pair, directions=['c-b', 'a-c']", lambda s, t: {(2, 1): 1, (0, 2): 2}.get((s, t), 0), None),
        ("by=pair, directions=['c-b', 'a-c'], languages=[a]", lambda s, t: int((s, t) == (0, 2)), None),
    ],
)
def test_which_weights_act_on_which_sentence_on_which_side(options, encoder, decoder):
    adapters = numbered(f"bottleneck(dim=4, {options})")
    assert acting(adapters, "encoder") == {pair: encoder(*pair) for pair in PAIRS}
    assert acting(adapters, "decoder") == {pair: (decoder or encoder)(*pair) for pair in PAIRS}


def test_a_batch_without_an_adapted_sentence_opens_nothing():
    adapters, c, b = build("bottleneck(dim=4, languages=[a])"), torch.tensor([2, 2]), torch.tensor([1, 1])
    assert adapters.open("encoder", c, b) == [None, None]
    assert adapters.open("decoder", c, torch.tensor([0, 1])) != [None, None]


@pytest.mark.parametrize("options", ["languages=[c, a]", "by=pair", "by=family, families=[[c, a]]"])
def test_what_is_recorded_makes_the_same_adapters_among_other_languages(options):
    trained = numbered(f"bottleneck(dim=4, {options})")
    spec = Spec("bottleneck", {**parse(f"bottleneck(dim=4, {options})").options, **trained.recorded})
    loaded = build(str(spec), make_host(("new", "c", "b", "a"), ("new-a",)))
    loaded.load_state_dict(trained.state_dict())
    there = dict(zip(range(3), (3, 2, 1), strict=True))
    x = torch.randn(2, len(PAIRS), D)
    for side in ("encoder", "decoder"):
        here = trained.open(side, *torch.tensor(PAIRS).T)[0].on_output(x)
        moved = torch.tensor([[there[source], there[target]] for source, target in PAIRS])
        assert torch.equal(loaded.open(side, *moved.T)[0].on_output(x), here)


def test_identity_leaves_the_model_as_it_is():
    layer = LayerBottlenecks(G, D, H, "identity")
    x = torch.randn(5, 3, D)
    assert torch.equal(Bottleneck(layer.weights(), groups_of([0, 2, 1])).on_output(x), x)
    assert torch.equal(Bottleneck(layer.weights(), groups_of([1, 1, 1])).on_output(x), x)


@pytest.mark.parametrize("init", ["identity", "xavier"])
def test_matrices_are_drawn_as_by_xavier(init):
    """Of 131,072 numbers the standard deviation is known to 0.2%; 2% are allowed."""
    layer = LayerBottlenecks(4, 256, 128, init)
    expected = math.sqrt(2 / (256 + 128))
    assert layer.down_GDH.std().item() == pytest.approx(expected, rel=0.02)
    assert layer.down_GDH.abs().max() <= math.sqrt(6 / (256 + 128))
    assert layer.up_GHD.std().item() == pytest.approx(expected if init == "xavier" else 0.0, rel=0.02)
    assert layer.norm_weight_GD.eq(1).all()
    assert not any(bias.any() for bias in (layer.norm_bias_GD, layer.down_bias_GH, layer.up_bias_GD))


def test_published_sizes():
    """512 wide with a bottleneck of 128, in 6 + 6 layers, for 50 languages and for 100 pairs (2205.10835, table 1)."""
    languages = [f"l{number}" for number in range(51)]
    english = languages[0]
    pairs = [direction for other in languages[1:] for direction in (f"{english}-{other}", f"{other}-{english}")]
    for spec, groups in (("bottleneck(dim=128)", 50), ("bottleneck(dim=128, by=pair)", 100)):
        known = languages if "pair" in spec else languages[:50]
        with torch.device("meta"):
            adapters = build(spec, make_host(known, pairs, dim=512, layers=(6, 6)))
        count = sum(parameter.numel() for parameter in adapters.parameters())
        each = 2 * 512 + (512 * 128 + 128) + (128 * 512 + 512)
        assert each == 132_736 and count == groups * 12 * each
        assert f"{count / 1e6:.1f}M" == {50: "79.6M", 100: "159.3M"}[groups]


def test_to_the_optimizer_a_group_is_an_expert():
    adapters = build("bottleneck(dim=4, languages=[a, c])")
    assert {parameter.num_experts for parameter in adapters.parameters()} == {2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("dim=0", "dim must be at least 1, not 0"),
        ("dim=4, languages=[aa]", "no language is called 'aa'; did you mean 'a'"),
        ("dim=4, languages=[a, a]", "'a' is named twice"),
        ("dim=4, languages=[]", "empty list"),
        ("dim=4, directions=['a-b']", "goes with by=pair, not by=language"),
        ("dim=4, by=pair, directions=['a-x']", "'a-x' is no direction of a, b, c"),
        ("dim=4, by=pair, directions=[a]", "'a' is no direction of a, b, c"),
        ("dim=4, by=pair, directions=['a-b', 'a-b']", "'a-b' is named twice"),
        ("dim=4, by=pair, directions=['a-b'], languages=[c]", "finds no direction to adapt"),
        ("dim=4, by=family", "needs families"),
        ("dim=4, families=[[a, b]]", "nothing else takes them"),
        ("dim=4, by=family, families=[[a, bb]]", "no language is called 'bb'; did you mean 'b'"),
        ("dim=4, by=family, families=[[a], [b, a]]", "'a' is in two of them"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        build(f"bottleneck({options})")


def test_one_group_is_found_without_a_list_of_rows():
    adapters = build("bottleneck(dim=4)")
    adapter = adapters.open("decoder", torch.tensor([0, 1]), torch.tensor([2, 2]))[0]
    assert adapter.groups == SentenceGroups(None, [2], 2)
