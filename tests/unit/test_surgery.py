"""Surgery on checkpoints: how operations compose, and hyper-adapters made into bottleneck adapters."""

import itertools

import pytest
import torch

from moe_nmt.adapters import ADAPTERS, SIDES, Host
from moe_nmt.errors import UserError
from moe_nmt.registry import Spec, parse
from moe_nmt.surgery import SURGERY, Checkpoint, Operation, Plan, languages_of
from tests.parts import DIM, make_host

LANGUAGES = ("a", "b", "c", "d")
TRAINED = ("a-b", "b-a", "a-c", "c-a", "d-a")
PAIRS = [f"{source}-{target}" for source, target in itertools.permutations(LANGUAGES, 2)]
OPTIONS = {f"{side}_{name}": size for side in SIDES for name, size in (("embed_dim", DIM), ("attention_heads", 2))}


def host() -> Host:
    return make_host(LANGUAGES, TRAINED, layers=(2, 3))


def checkpoint_of(text: str) -> Checkpoint:
    """A model with adapters of this spec in which everything is random, and a base of one tensor."""
    spec = parse(text)
    adapters = ADAPTERS.build(spec, host=host())
    spec = Spec(spec.name, spec.options | dict(adapters.recorded))
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter)
    tensors = {f"adapters.{name}": tensor for name, tensor in adapters.state_dict().items()}
    options = OPTIONS | {"encoder_layers": 2, "decoder_layers": 3, "adapters": str(spec)}
    return Checkpoint({"encoder.weight": torch.randn(4, 4)} | tensors, options, TRAINED)


@torch.no_grad()
def outputs(checkpoint: Checkpoint, directions: list[str], x: torch.Tensor) -> list[torch.Tensor]:
    """What the adapters make of x [T, B, D] in each layer of both sides, where sentences are of these directions."""
    adapters = ADAPTERS.build(checkpoint.adapters, host=host()).eval()
    adapters.load_state_dict(
        {name.removeprefix("adapters."): t for name, t in checkpoint.tensors.items() if name.startswith("adapters.")}
    )
    source, target = (
        torch.tensor([LANGUAGES.index(d.split("-")[place]) for d in directions], dtype=torch.int64) for place in (0, 1)
    )
    opened = (adapter for side in SIDES for adapter in adapters.open(side, source, target))
    return [x if adapter is None else adapter.on_output(x) for adapter in opened]


@pytest.mark.parametrize(
    ("inputs", "by"),
    [
        ("encoder_inputs=[source, layer], decoder_inputs=[target, layer]", "language"),
        ("encoder_inputs=[layer], decoder_inputs=[target]", "language"),
        ("encoder_inputs=[layer], decoder_inputs=[layer]", "language"),
        ("encoder_inputs=[source, layer], decoder_inputs=[layer, source]", "source"),
        ("encoder_inputs=[target], decoder_inputs=[target, layer]", "target"),
        ("encoder_inputs=[target, layer], decoder_inputs=[source, layer]", "pair"),
        ("encoder_inputs=[source, target, layer], decoder_inputs=[layer]", "pair"),
        ("embed_dim=3", "pair"),
    ],
)
@pytest.mark.parametrize(
    "chosen", ["blocks=1", "languages=[b]", "embedded=[a, b, c]", "generate_norm=False, tied=True"]
)
def test_baked_adapters_are_the_same_function_in_every_direction_trained(inputs, by, chosen):
    hyper = checkpoint_of(f"hyper(dim=2, hidden=6, {inputs}, {chosen})")
    baked = SURGERY.build("bake_adapters()")(hyper)
    assert (baked.adapters.name, baked.adapters.options["by"]) == ("bottleneck", by)
    x = torch.randn(5, len(TRAINED), DIM)
    expected, found = (outputs(checkpoint, list(TRAINED), x) for checkpoint in (hyper, baked))
    assert any((y != x).any() for y in expected)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    for place, direction in enumerate(TRAINED):
        alone = outputs(baked, [direction], x[:, place : place + 1])
        torch.testing.assert_close(alone, [y[:, place : place + 1] for y in expected], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("by", ["language", "source", "target"])
def test_adapters_by_one_language_are_the_same_function_in_untrained_directions_too(by):
    side = {"language": ("source", "target"), "source": ("source", "source"), "target": ("target", "target")}[by]
    hyper = checkpoint_of(f"hyper(dim=2, hidden=6, encoder_inputs=[{side[0]}], decoder_inputs=[{side[1]}, layer])")
    baked = SURGERY.build("bake_adapters()")(Checkpoint(hyper.tensors, hyper.options, PAIRS))
    x = torch.randn(5, len(PAIRS), DIM)
    torch.testing.assert_close(outputs(baked, PAIRS, x), outputs(hyper, PAIRS, x), atol=1e-6, rtol=1e-6)


def test_only_the_directions_chosen_keep_their_adapters():
    hyper = checkpoint_of("hyper(dim=2, hidden=6)")
    baked = SURGERY.build("bake_adapters(directions=['c-a', 'b-c'])")(hyper)
    assert baked.adapters.options["directions"] == ["c-a", "b-c"]
    x = torch.randn(5, len(PAIRS), DIM)
    for y, expected in zip(outputs(baked, PAIRS, x), outputs(hyper, PAIRS, x), strict=True):
        for place, direction in enumerate(PAIRS):
            want = expected[:, place] if direction in ("c-a", "b-c") else x[:, place]
            torch.testing.assert_close(y[:, place], want, atol=1e-6, rtol=1e-6)


def test_the_baked_spec_is_complete_and_the_rest_of_the_model_stays():
    hyper = checkpoint_of("hyper(dim=2, hidden=6, languages=[b])")
    before = dict(hyper.tensors), dict(hyper.options)
    baked = SURGERY.build("bake_adapters()")(hyper)
    assert (dict(hyper.tensors), dict(hyper.options)) == before
    assert dict(ADAPTERS.build(baked.adapters, host=host()).recorded).items() <= baked.adapters.options.items()
    assert baked.adapters.options["directions"] == ["a-b", "b-a"]
    assert baked.tensors["encoder.weight"] is hyper.tensors["encoder.weight"]
    assert not any("network" in name for name in baked.tensors)
    assert {k: v for k, v in baked.options.items() if k != "adapters"} == {
        k: v for k, v in hyper.options.items() if k != "adapters"
    }


def test_half_precision_is_baked_in_float32():
    hyper = checkpoint_of("hyper(dim=2, hidden=6)")
    half = Checkpoint({name: t.half() for name, t in hyper.tensors.items()}, hyper.options, TRAINED)
    rounded = Checkpoint({name: t.half().float() for name, t in hyper.tensors.items()}, hyper.options, TRAINED)
    bake = SURGERY.build("bake_adapters()")
    torch.testing.assert_close(
        {name: t for name, t in bake(half).tensors.items() if name.startswith("adapters.")},
        {name: t for name, t in bake(rounded).tensors.items() if name.startswith("adapters.")},
        atol=0,
        rtol=0,
    )


@pytest.mark.parametrize(
    ("adapters", "operation", "words"),
    [
        ("", "bake_adapters()", ["none"]),
        ("bottleneck(dim=2)", "bake_adapters()", ["hyper-adapters", "bottleneck"]),
        ("hyper(dim=2, hidden=6)", "bake_adapters(directions=['a-e'])", ["'e'", "Known: a, b, c, d"]),
        (
            "hyper(dim=2, hidden=6, embedded=[a, b])",
            "bake_adapters(directions=['c-d'])",
            ["no adapters", "directions="],
        ),
    ],
)
def test_what_cannot_be_baked(adapters, operation, words):
    checkpoint = checkpoint_of(adapters) if adapters else Checkpoint({}, {"adapters": ""}, TRAINED)
    with pytest.raises(UserError) as error:
        SURGERY.build(operation)(checkpoint)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("operations", "word"),
    [
        (["bake_adapter()"], "did you mean 'bake_adapters'"),
        (["bake_adapters()", "bake_adapters(directions=['ab'])"], "'ab' is no direction"),
        (["bake_adapters(by=pair)"], "no option 'by'"),
    ],
)
def test_a_plan_with_a_mistake_is_refused_before_anything_is_done(operations, word):
    with pytest.raises(UserError, match=word):
        Plan(operations)


def test_a_plan_is_done_from_left_to_right_and_leaves_its_history(monkeypatch):
    class Append(Operation):
        def __init__(self, *, text: str):
            self.text = text

        def __call__(self, checkpoint):
            return Checkpoint({}, {"text": checkpoint.options["text"] + self.text}, history=checkpoint.history)

    SURGERY.entries()
    monkeypatch.setattr(SURGERY, "_entries", dict(SURGERY._entries))
    SURGERY.register("append")(Append)
    done = Plan(["append(text=b)", "append(text='c')"])(Checkpoint({}, {"text": "a"}, history=["older"]))
    assert done.options["text"] == "abc"
    assert done.history == ["older", "append(text=b)", "append(text='c')"]


@pytest.mark.parametrize(
    ("text", "languages"),
    [
        ("bottleneck(dim=2, languages=[b, a])", ["b", "a"]),
        ("bottleneck(dim=2, by=pair, languages=['a'], directions=['a-b', 'c-a'])", ["a", "b", "c"]),
        ("bottleneck(dim=2, by=family, families=[[c, d]], languages=['a', 'c'])", ["a", "c", "d"]),
        ("hyper(dim=2, hidden=6, languages=['a'], embedded=['a', 'd'])", ["a", "d"]),
    ],
)
def test_a_complete_spec_says_its_languages(text, languages):
    assert languages_of(parse(text)) == languages


TIED = ("encoder.embedding.embed_tokens.weight", "decoder.embedding.embed_tokens.weight")
OUTPUT = "decoder.output_projection.weight"


def with_vocabulary(output):
    shared = torch.randn(7, 4)
    own = shared.clone() if output is None else output
    return Checkpoint({TIED[0]: shared, TIED[1]: shared.clone(), OUTPUT: own, "x": torch.ones(2)}, {})


@pytest.mark.parametrize("output", [None, torch.randn(7, 4)])
def test_the_vocabulary_grows_at_its_end_and_tied_tensors_stay_tied(output):
    old = with_vocabulary(output)
    new = Plan(["add_languages(count=2)"])(old)
    assert new.history == ["add_languages(count=2)"]
    for name in (*TIED, OUTPUT):
        assert new.tensors[name].shape == (9, 4) and torch.equal(new.tensors[name][:7], old.tensors[name])
        assert not torch.equal(new.tensors[name][7], new.tensors[name][8])
    assert torch.equal(new.tensors[TIED[0]], new.tensors[TIED[1]])
    assert torch.equal(new.tensors[OUTPUT], new.tensors[TIED[0]]) == (output is None)
    assert new.tensors["x"] is old.tensors["x"]


def test_languages_are_added_to_a_model_with_embeddings_only():
    with pytest.raises(UserError, match="no embeddings"):
        Plan(["add_languages(count=2)"])(Checkpoint({}, {}))
    with pytest.raises(UserError, match="at least 1"):
        Plan(["add_languages(count=0)"])
