"""The notation `name(option=value)`, the registries, and the sentences with which they refuse."""

from typing import ClassVar, Literal

import pytest

from moe_nmt.errors import UserError
from moe_nmt.registry import Registry, RegistryError, Spec, parse, parse_list


class Colour:
    registry: ClassVar[Registry["Colour"]] = Registry("colour")


@Colour.registry.register("red")
class Red(Colour):
    """Red."""

    def __init__(self, *, depth: float = 1.0):
        if depth < 0:
            raise UserError(f"depth must not be negative, not {depth}.")
        self.depth = depth


THINGS: Registry = Registry("thing")


@THINGS.register("box", paper="Box 1999")
class Box:
    """A box of a colour. Not the first sentence.

    Not the first line.
    """

    def __init__(
        self,
        width: int,
        *,
        height: int = 1,
        share: float = 0.5,
        closed: bool = False,
        colour: Colour | None = None,
        place: Literal["left", "right"] = "left",
        label: str = "none",
        sizes: list[int] | None = None,
        shares: list[float] | None = None,
    ):
        self.width, self.height, self.share, self.closed = width, height, share, closed
        self.colour, self.place, self.label, self.sizes, self.shares = colour, place, label, sizes, shares


@THINGS.register("ball")
class Ball:
    """A ball."""

    def __init__(self, *, radius: int):
        self.radius = radius


def refusal(call, *arguments, **options):
    """The message of a refusal: one sentence, or several short ones, on one line."""
    with pytest.raises(RegistryError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("top_k", Spec("top_k")),
        ("top_k()", Spec("top_k")),
        (" top_k( k = 2 ) ", Spec("top_k", {"k": 2})),
        ("a(x=-1, y=-0.5, z=1e-3)", Spec("a", {"x": -1, "y": -0.5, "z": 0.001})),
        ("a(x=True, y=None)", Spec("a", {"x": True, "y": None})),
        ("a(x=word, y='two words')", Spec("a", {"x": Spec("word"), "y": "two words"})),
        ("""a(x='it\\'s "so"')""", Spec("a", {"x": 'it\'s "so"'})),
        ("a(x=[1, -2, 3.5], y=[])", Spec("a", {"x": [1, -2, 3.5], "y": []})),
        ("a(x=(1, 2))", Spec("a", {"x": [1, 2]})),
        ("a(x=b(y=c(z=1)))", Spec("a", {"x": Spec("b", {"y": Spec("c", {"z": 1})})})),
        ("a(x=[b(y=1), c])", Spec("a", {"x": [Spec("b", {"y": 1}), Spec("c")]})),
    ],
)
def test_text_is_parsed_and_written_back(text, spec):
    assert parse(text) == spec
    assert parse(str(spec)) == spec
    assert str(parse(str(spec))) == str(spec)


def test_types_of_numbers_survive_the_round_trip():
    options = parse(str(parse("a(x=1, y=1.0, z=True)"))).options
    assert [type(value) for value in options.values()] == [int, float, bool]


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("", []),
        ("  ", []),
        ("[]", []),
        ("eom", [Spec("eom")]),
        ("[eom(p=0.1), fom]", [Spec("eom", {"p": 0.1}), Spec("fom")]),
    ],
)
def test_lists_of_parts(text, specs):
    assert parse_list(text) == specs


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("top_k(k=2", "malformed"),
        ("top_k(2)", "every option of 'top_k' needs its name"),
        ("top_k(k=1 + 1)", "1 + 1"),
        ("top_k(k=x.y)", "x.y"),
        ("top_k(k={1: 2})", "malformed"),
        ("top_k(**k)", "malformed"),
        ("top_k(k=--1)", "malformed"),
        ("top_k(k=-True)", "malformed"),
        ("top_k(k=1j)", "malformed"),
        ("top_k(k=1, k=2)", "its option 'k' twice"),
        ("top_k(k=1e999)", "too large"),
        ("3", "is not a part"),
        ("'top_k'", "is not a part"),
        ("[top_k]", "is not a part"),
        ("", "malformed"),
    ],
)
def test_malformed_text_is_refused(text, hint):
    message = refusal(parse, text)
    assert f"'{text}'" in message and hint in message


def test_a_list_with_something_else_than_parts_is_refused():
    assert "'[eom, 3]' is not a list of parts" in refusal(parse_list, "[eom, 3]")


@pytest.mark.parametrize(
    "code",
    [
        "__import__('os').system('touch {path}')",
        "open('{path}', 'w')",
        "box(height=open('{path}', 'w'))",
        "box(height=__import__('pathlib').Path('{path}').touch())",
        "box(height=[open('{path}', 'w') for _ in [1]])",
        "(lambda: open('{path}', 'w'))()",
        "f\"{{open('{path}', 'w')}}\"",
    ],
)
def test_code_is_never_evaluated(code, tmp_path):
    path = tmp_path / "evaluated"
    refusal(THINGS.build, code.format(path=path), width=1)
    assert not path.exists()


def test_an_unknown_part_is_refused_with_the_nearest_and_the_known():
    message = refusal(THINGS.build, "bax", width=1)
    assert message == "no thing is called 'bax'; did you mean 'box'? Known: ball, box."


def test_an_unknown_part_unlike_any_other_is_refused_with_the_known():
    message = refusal(THINGS.build, "zzzzzz", width=1)
    assert "'zzzzzz'" in message and "ball, box" in message and "did you mean" not in message


def test_an_unknown_option_is_refused_with_the_nearest_and_the_known():
    message = refusal(THINGS.build, "box(heigth=2)", width=1)
    assert "the thing 'box' has no option 'heigth'; did you mean 'height'?" in message
    assert "height, share, closed, colour, place, label, sizes, shares" in message


def test_what_the_model_supplies_is_no_option():
    assert "has no option 'width'" in refusal(THINGS.build, "box(width=3)", width=1)


def test_a_missing_option_is_refused():
    assert refusal(THINGS.build, "ball") == "the thing 'ball' needs its option 'radius': write ball(radius=…)."


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("box(height=True)", "a whole number, not True"),
        ("box(height=1.0)", "a whole number, not 1.0"),
        ("box(height='2')", "a whole number, not '2'"),
        ("box(height=None)", "a whole number, not None"),
        ("box(share=False)", "a number, not False"),
        ("box(share=[0.5])", "a number, not [0.5]"),
        ("box(closed=1)", "True or False, not 1"),
        ("box(place=middle)", "one of left, right, not middle"),
        ("box(label=3)", "a word, not 3"),
        ("box(colour=3)", "a colour (red) or None, not 3"),
        ("box(sizes=3)", "a list, each entry a whole number or None, not 3"),
        ("box(sizes=[1, x])", "a list, each entry a whole number or None, not [1, x]"),
        ("box(sizes=[1, True])", "a list, each entry a whole number or None, not [1, True]"),
        ("box(shares=['a'])", "a list, each entry a number or None, not ['a']"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(text, allowed):
    option = text.partition("(")[2].partition("=")[0]
    assert refusal(THINGS.build, text, width=1) == f"the option '{option}' of the thing 'box' must be {allowed}."


@pytest.mark.parametrize("text", ["box(colour=rad)", "box(colour=red(dept=1))", "box(colour=red(depth=deep))"])
def test_a_mistake_in_a_nested_part_is_refused(text):
    assert "red" in refusal(THINGS.build, text, width=1)


def test_what_a_constructor_refuses_names_the_part():
    message = refusal(THINGS.build, "box(colour=red(depth=-1))", width=1)
    assert message == "colour red(depth=-1): depth must not be negative, not -1.0."


def test_build_converts_to_the_types_of_the_constructor():
    text = "box(height=3, share=1, colour=red(depth=2), place=right, label=Ada, sizes=[1, 2], shares=[1, 0.5])"
    box = THINGS.build(text, width=7)
    assert (box.width, box.height, box.share, box.closed) == (7, 3, 1.0, False)
    assert type(box.share) is float
    assert isinstance(box.colour, Red) and box.colour.depth == 2.0
    assert (box.place, box.label, box.sizes, box.shares) == ("right", "Ada", [1, 2], [1.0, 0.5])
    assert type(box.shares[0]) is float


def test_build_passes_only_what_the_part_asks_for():
    assert THINGS.build("box", width=7, causal=True, dim=3).width == 7
    assert THINGS.build("ball(radius=2)", width=7).radius == 2


def test_build_takes_a_spec_as_well_as_text():
    assert THINGS.build(Spec("ball", {"radius": 2})).radius == 2


def test_check_answers_with_the_options_written():
    assert THINGS.check("box(share=1)") == {"share": 1.0}


def test_entries_are_sorted_and_describe_themselves():
    ball, box = THINGS.entries().values()
    assert (ball.name, ball.signature, ball.summary, ball.paper) == ("ball", "ball(radius=…)", "A ball.", "")
    assert box.paper == "Box 1999"
    assert box.summary == "A box of a colour. Not the first sentence."
    assert box.signature == (
        "box(height=1, share=0.5, closed=False, colour=None, place='left', label='none', sizes=None, shares=None)"
    )


def test_two_parts_of_one_name_are_a_bug():
    with pytest.raises(AssertionError, match="box"):
        THINGS.register("box")(Ball)


def test_a_file_in_the_folder_is_a_registered_part(tmp_path, monkeypatch):
    folder = tmp_path / "discovered_parts"
    folder.mkdir()
    (folder / "__init__.py").write_text("from moe_nmt.registry import Registry\nPARTS = Registry('part', __name__)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import discovered_parts

    assert discovered_parts.PARTS.entries() == {}
    (folder / "novel.py").write_text(
        "from discovered_parts import PARTS\n\n\n"
        "@PARTS.register('novel')\nclass Novel:\n    def __init__(self, *, k: int = 1):\n        self.k = k\n"
    )
    assert list(discovered_parts.PARTS.entries()) == ["novel"]
    assert discovered_parts.PARTS.build("novel(k=3)").k == 3
