"""What every kind of adapter promises.

Shape letters: T positions, B sentences, R rows, D model width.
"""

import pytest
import torch

from moe_nmt.adapters import ADAPTERS, SIDES
from moe_nmt.errors import UserError
from moe_nmt.registry import Spec, parse
from tests.parts import DIM, FFN_DIM, examples, make_host

POSITIONS = 4
SPECS = list(map(str, examples(ADAPTERS)))
VARIANTS = [
    "bottleneck(dim=4, by=pair)",
    "bottleneck(dim=4, by=family, families=[[a, c]])",
    "bottleneck(dim=4, by=source)",
    "bottleneck(dim=4, by=target)",
    "hyper(dim=4, hidden=6, encoder_inputs=[source, layer], decoder_inputs=[target, layer])",
    "hyper(dim=4, hidden=6, generate_norm=False, rescale=False, tied=True)",
]
every_kind = pytest.mark.parametrize("spec", SPECS + VARIANTS)
SOURCE, TARGET = torch.tensor([0, 1, 1, 0, 2]), torch.tensor([1, 0, 0, 1, 1])


def build(spec, host=None):
    return ADAPTERS.build(spec, host=host or make_host())


def drawn(spec, dtype=torch.float32):
    """Adapters in evaluation with all parameters drawn, so that none is without effect."""
    adapters = build(spec).to(dtype).eval()
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(std=0.5)
    return adapters


def activations(rows=5, dtype=torch.float32):
    """What each layer hands to its adapter: input and output of every linear map, the inner activation, the output."""

    def random(size):
        return torch.randn(POSITIONS, rows, size).to(dtype)

    host = make_host()
    return {
        side: [
            {name: (random(inputs), random(outputs)) for name, (inputs, outputs) in layer.linear.items()}
            | {"inner": (random(FFN_DIM),), "output": (random(DIM),)}
            for layer in getattr(host, side)
        ]
        for side in SIDES
    }


def at_rows(given, rows):
    return {
        side: [{site: tuple(x[:, rows] for x in inputs) for site, inputs in layer.items()} for layer in layers]
        for side, layers in given.items()
    }


def call(adapter, site, inputs):
    if adapter is None:
        return inputs[-1]
    if site in ("inner", "output"):
        return (adapter.on_inner if site == "inner" else adapter.on_output)(*inputs)
    return adapter.on_linear(site, *inputs)


def run(adapters, given, source=SOURCE, target=TARGET):
    """What comes out at every site of every layer, by (side, layer, site)."""
    return {
        (side, number, site): call(adapter, site, inputs)
        for side in SIDES
        for number, (adapter, layer) in enumerate(zip(adapters.open(side, source, target), given[side], strict=True))
        for site, inputs in layer.items()
    }


def without(given):
    return {
        (side, number, site): inputs[-1]
        for side in SIDES
        for number, layer in enumerate(given[side])
        for site, inputs in layer.items()
    }


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("languages", [(SOURCE, TARGET), (SOURCE[:1], TARGET[:1])], ids=["mixed", "one sentence"])
def test_shapes_and_dtypes_stay_and_something_changes(spec, dtype, languages):
    given = activations(len(languages[0]), dtype)
    plain, adapted = without(given), run(drawn(spec, dtype), given, *languages)
    for site, y in adapted.items():
        assert y.shape == plain[site].shape and y.dtype == dtype and y.isfinite().all(), site
    assert any(not torch.equal(y, plain[site]) for site, y in adapted.items())


@every_kind
@pytest.mark.parametrize("training", [True, False])
def test_by_default_they_start_without_effect(spec, training):
    given = activations()
    plain = without(given)
    for site, y in run(build(spec).train(training), given).items():
        assert torch.equal(y, plain[site]), site


@every_kind
def test_every_parameter_learns(spec):
    adapters, given = drawn(spec, torch.float64), activations(9, torch.float64)
    everyone = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T
    sum(y.square().sum() for y in run(adapters, given, *everyone).values()).backward()
    for name, parameter in adapters.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-6, name


@every_kind
def test_other_sentences_of_the_batch_change_nothing(spec):
    adapters, given = drawn(spec, torch.float64), activations(dtype=torch.float64)
    together = run(adapters, given)
    for row in range(len(SOURCE)):
        alone = run(adapters, at_rows(given, [row]), SOURCE[[row]], TARGET[[row]])
        for site, y in alone.items():
            torch.testing.assert_close(y[:, 0], together[site][:, row], rtol=1e-10, atol=1e-10)


@every_kind
def test_hypotheses_are_adapted_as_the_sentence_is(spec):
    adapters, given = drawn(spec, torch.float64), activations(3 * len(SOURCE), torch.float64)
    repeated = (language.repeat_interleave(3) for language in (SOURCE, TARGET))
    expected = run(adapters, given, *repeated)
    for site, y in run(adapters, given).items():
        torch.testing.assert_close(y, expected[site], rtol=1e-10, atol=1e-10)


@every_kind
def test_sentences_of_other_languages_are_untouched_bit_for_bit(spec):
    adapters = drawn(str(Spec(parse(spec).name, parse(spec).options | {"languages": ["a"]})))
    given = activations(4)
    source, target = torch.tensor([0, 1, 2, 1]), torch.tensor([1, 2, 1, 0])
    plain, adapted = without(given), run(adapters, given, source, target)
    for site, y in adapted.items():
        assert torch.equal(y[:, 1:3], plain[site][:, 1:3]), site
    assert any(not torch.equal(y[:, [0, 3]], plain[site][:, [0, 3]]) for site, y in adapted.items())
    for side in SIDES:
        assert set(adapters.open(side, source[1:3], target[1:3])) == {None}


@every_kind
def test_what_is_recorded_makes_the_same_adapters_among_other_languages(spec):
    trained, given = drawn(spec), activations()
    completed = str(Spec(parse(spec).name, parse(spec).options | trained.recorded))
    loaded = build(completed, make_host(("z", "c", "b", "a"), ("z-a",))).eval()
    loaded.load_state_dict(trained.state_dict())
    there = torch.tensor([3, 2, 1])
    moved = run(loaded, given, there[SOURCE], there[TARGET])
    for site, y in run(trained, given).items():
        assert torch.equal(moved[site], y), site
    for side in SIDES:
        assert set(loaded.open(side, torch.tensor([0]), torch.tensor([0]))) == {None}


@every_kind
def test_evaluation_is_deterministic_with_and_without_gradients(spec):
    adapters, given = drawn(spec, torch.float64), activations(dtype=torch.float64)
    with_gradients = run(adapters, given)
    with torch.no_grad():
        first, second = run(adapters, given), run(adapters, given)
    for site, y in first.items():
        assert torch.equal(y, second[site]), site
        torch.testing.assert_close(y, with_gradients[site], rtol=1e-10, atol=1e-10)


@every_kind
def test_a_state_holds_parameters_only(spec):
    adapters = build(spec)
    names = {name for name, _ in adapters.named_parameters(remove_duplicate=False)}
    assert adapters.state_dict().keys() == names


@every_kind
def test_an_unknown_language_is_refused(spec):
    with pytest.raises(UserError, match="no language is called 'aa'; did you mean 'a'"):
        build(str(Spec(parse(spec).name, parse(spec).options | {"languages": ["aa"]})))
