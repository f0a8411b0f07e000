"""What every registered part promises, whatever its kind."""

import pytest

from moe_nmt.methods import FLAGS, methods_table
from moe_nmt.registry import format_value, parse
from tests.parts import SUPPLIED, examples

PARTS = {f"{r.kind} {name}": (r, entry) for r in FLAGS.values() for name, entry in r.entries().items()}
every_part = pytest.mark.parametrize(("registry", "entry"), PARTS.values(), ids=PARTS)


@every_part
def test_the_first_line_of_its_docstring_is_a_sentence(registry, entry):
    assert entry.part.__doc__, "a part has a docstring of its own"
    assert entry.summary.endswith(".")
    assert "|" not in entry.summary, "the summary stands in a Markdown table"


@every_part
def test_its_signature_parses_back_to_its_defaults(registry, entry):
    required = [p for p in entry.options.values() if p.default is p.empty]
    if required:
        assert all(f"{p.name}=…" in entry.signature for p in required)
        return
    defaults = {name: p.default for name, p in entry.options.items()}
    spec = parse(entry.signature)
    assert spec.name == entry.name and spec.options == defaults
    assert registry.check(spec).keys() == defaults.keys()


@pytest.mark.parametrize("flag", FLAGS)
def test_an_example_of_every_part_is_built(flag):
    for spec in examples(FLAGS[flag]):
        assert type(FLAGS[flag].build(spec, **SUPPLIED)) is FLAGS[flag].entry(spec.name).part


@every_part
def test_it_has_a_row_in_the_table_of_methods(registry, entry):
    assert f"| `{entry.signature}` | {entry.summary} | {entry.paper} |" in methods_table()


def test_values_are_written_as_they_are_parsed():
    for value in (1, -2, 0.5, 1e-07, True, None, "two words", [1, [2.0]], []):
        assert parse(f"a(x={format_value(value)})").options["x"] == value
