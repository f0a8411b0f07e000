"""Adapters apart from their base: which base they fit, which languages go along, and how several files are joined."""

import io

import pytest
import torch

from moe_nmt.errors import UserError
from moe_nmt.surgery import Checkpoint
from moe_nmt.surgery.adapter_files import ShippedAdapters, attach, digest, extract, fingerprint, join, select
from tests.parts import DIM
from tests.unit.test_surgery import PAIRS, checkpoint_of, outputs

FAMILIES = "by=family, families=[[b, c]]"
EVERY_BY = ["by=language", "by=source", "by=target", "by=pair", FAMILIES]


def ship(text: str, languages: list[str] | None = None) -> ShippedAdapters:
    torch.manual_seed(1)  # the base of all
    return extract(checkpoint_of(f"bottleneck(dim=2, {text})"), f"{text}.pt", languages)


def whole(shipped: ShippedAdapters) -> Checkpoint:
    return Checkpoint(shipped.tensors, {"adapters": str(shipped.spec)})


def base_of(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Checkpoint:
    tensors = {name: t.clone().to(dtype) for name, t in checkpoint.tensors.items() if not name.startswith("adapters.")}
    return Checkpoint(tensors, {**checkpoint.options, "adapters": ""}, checkpoint.directions)


def copy_of(checkpoint: Checkpoint, dtype: torch.dtype) -> Checkpoint:
    """As fairseq saves it that was trained in this precision: float32 of its values."""
    return Checkpoint({name: t.to(dtype).float() for name, t in checkpoint.tensors.items()}, checkpoint.options)


def adapted_by(by: str, side: str, direction: str, chosen: set[str]) -> bool:
    """Whether a sentence's adapter in a side is one of the chosen languages."""
    source, target = direction.split("-")
    if by == "by=pair":
        return not chosen.isdisjoint((source, target))
    looks_at_source = by == "by=source" or (by != "by=target" and side == "encoder")
    return (source if looks_at_source else target) in chosen


def check_selection(selected: ShippedAdapters, full: Checkpoint, by: str, chosen: set[str], pairs: list[str]) -> None:
    """The selected adapters do for the languages chosen what all did, and nothing for the others."""
    x = torch.randn(3, len(pairs), DIM)
    sides = ["encoder"] * 2 + ["decoder"] * 3
    expected, found = outputs(full, pairs, x), outputs(whole(selected), pairs, x)
    for side, y, want in zip(sides, found, expected, strict=True):
        for place, direction in enumerate(pairs):
            kept = adapted_by(by, side, direction, chosen)
            torch.testing.assert_close(y[:, place], want[:, place] if kept else x[:, place])


@pytest.mark.parametrize("by", EVERY_BY)
@pytest.mark.parametrize("chosen", [["a"], ["c", "a"], ["c", "b"]])
def test_the_adapters_of_some_languages_do_for_them_what_all_did(by, chosen):
    full = checkpoint_of(f"bottleneck(dim=2, {by})")
    check_selection(extract(full, "all.pt", chosen), full, by, set(chosen), PAIRS)


@pytest.mark.parametrize("by", EVERY_BY)
def test_files_joined_do_for_each_language_what_its_file_did(by):
    full = checkpoint_of(f"bottleneck(dim=2, {by})")
    chosen = (["d"], ["c", "b"]) if by == FAMILIES else (["d"], ["b"])
    joined = join([extract(full, f"{languages}.pt", languages) for languages in chosen])
    check_selection(joined, full, by, {language for languages in chosen for language in languages}, PAIRS)


@pytest.mark.parametrize("by", ["by=language", FAMILIES])
def test_what_was_taken_apart_is_joined_to_the_same_adapters(by):
    full = ship(by, ["d", "b", "c", "a"])
    again = join([select(full, ["d"]), select(full, ["b", "c"]), select(full, ["a"])])
    assert again.spec == full.spec
    torch.testing.assert_close(again.tensors, full.tensors, atol=0, rtol=0)


def test_adapters_are_packed_and_unpacked_as_they_are():
    shipped = ship("by=pair", ["b"])
    file = io.BytesIO()
    torch.save(shipped.pack(), file)
    size = sum(t.numel() * t.element_size() for t in shipped.tensors.values())
    assert file.tell() < size + 1000 * len(shipped.tensors)
    file.seek(0)
    again = ShippedAdapters.unpack(torch.load(file, weights_only=True), shipped.origin)
    assert again.spec == shipped.spec and again.base == shipped.base
    torch.testing.assert_close(again.tensors, shipped.tensors, atol=0, rtol=0)


@pytest.mark.parametrize("text", ["bottleneck(dim=2)", "hyper(dim=2, hidden=6)", "mov(count=2)"])
def test_attached_to_their_base_they_are_the_checkpoint_that_they_came_from(text):
    full = checkpoint_of(text)
    again = attach(base_of(full), "base.pt", [extract(full, "full.pt")])
    assert again.options == full.options and again.tensors.keys() == full.tensors.keys()
    assert all(torch.equal(tensor, full.tensors[name]) for name, tensor in again.tensors.items())


@pytest.mark.parametrize("base_dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_base_is_known_again_in_another_precision_if_one_can_be_rounded_to_the_other(base_dtype, dtype):
    half = {torch.bfloat16, torch.float16}
    full = checkpoint_of("bottleneck(dim=2)")
    shipped, base = extract(copy_of(full, dtype), "full.pt"), base_of(full, base_dtype)
    if {base_dtype, dtype} == half:
        with pytest.raises(UserError, match="does not fit"):
            attach(base, "base.pt", [shipped])
    else:
        attach(base, "base.pt", [shipped])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_another_base_is_refused_in_every_precision(base_dtype, dtype):
    full = checkpoint_of("bottleneck(dim=2)")
    other = base_of(full)
    other.tensors["encoder.weight"][0, 0] += 0.1
    with pytest.raises(UserError, match=r"full.pt does not fit base.pt"):
        attach(copy_of(other, base_dtype), "base.pt", [extract(copy_of(full, dtype), "full.pt")])


def test_a_difference_that_half_precision_hides_counts_in_float32():
    full = checkpoint_of("bottleneck(dim=2)")
    other = base_of(full)
    other.tensors["encoder.weight"][0, 0] *= 1 + 1e-6
    assert digest(other.tensors, torch.bfloat16) == digest(base_of(full).tensors, torch.bfloat16)
    with pytest.raises(UserError, match="does not fit"):
        attach(other, "base.pt", [extract(full, "full.pt")])


def test_the_fingerprint_is_of_names_shapes_and_values():
    one = torch.rand(6)
    prints = [
        fingerprint(tensors)["float32"]
        for tensors in (
            {"a": one.view(2, 3), "b": one},
            {"a": one.view(3, 2), "b": one},
            {"c": one.view(2, 3), "b": one},
            {"a": one.view(2, 3)},
            {"a": one.view(2, 3), "b": one + 1},
            {"a": one.view(2, 3), "b": one, "count": torch.tensor(1)},
            {"a": one.view(2, 3), "b": one, "count": torch.tensor(2)},
        )
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint({"b": one, "a": one.view(3, 2).t().contiguous().t()}) == fingerprint(
        {"a": one.view(3, 2), "b": one}
    )
    assert fingerprint({"a": one}).keys() == {"float32", "bfloat16", "float16"}
    assert fingerprint({"a": one.half().float(), "b": one.half()}).keys() == {"float16"}
    assert fingerprint({"a": one.bfloat16().double()}).keys() == {"bfloat16"}
    assert "float64" in fingerprint({"a": one * float("nan")})
    assert fingerprint({"a": one, "b": one.double() + 1e-12}).keys() == {"float64", "float32", "bfloat16", "float16"}


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda: ship("by=language", ["e"]), ["by=language.pt", "'e'", "Known: a, b, c, d"]),
        (lambda: ship("languages=[a, b]", ["c"]), ["'c'", "Known: a, b"]),
        (lambda: ship("by=language", ["a", "a"]), ["'a'", "twice"]),
        (lambda: extract(checkpoint_of("hyper(dim=2, hidden=6)"), "h.pt", ["a"]), ["h.pt", "hyper", "bake"]),
        (lambda: extract(checkpoint_of("mov(count=2)"), "m.pt", ["a"]), ["m.pt", "mov", "--languages"]),
        (lambda: extract(base_of(checkpoint_of("mov(count=2)")), "base.pt"), ["base.pt", "no adapters"]),
        (lambda: join([ship("by=language", ["a", "b"]), ship("by=language", ["b"])]), ["both", "of b"]),
        (lambda: join([ship("by=pair", ["a"]), ship("by=pair", ["d"])]), ["by=pair.pt", "both", "d-a"]),
        (lambda: join([ship("by=source", ["a"]), ship("by=target", ["b"])]), ["differ in by", "source", "target"]),
        (lambda: join([ship("by=language"), ship_of("hyper(dim=2, hidden=6)")]), ["hyper", "alone"]),
        (lambda: join([ship(FAMILIES, ["b"]), ship(FAMILIES, ["c"])]), ["b+c", "one family"]),
        (
            lambda: attach(checkpoint_of("mov(count=2)"), "b.pt", [ship("by=pair")]),
            ["b.pt has adapters already", "mov"],
        ),
    ],
)
def test_what_cannot_be_done(attempt, words):
    with pytest.raises(UserError) as error:
        attempt()
    assert all(word in str(error.value) for word in words), error.value


def ship_of(text: str) -> ShippedAdapters:
    return extract(checkpoint_of(text), f"{text}.pt")


def test_options_written_out_and_those_left_out_are_the_same():
    joined = join([ship("languages=[a]"), ship("by=language, languages=['b'], init=xavier")])
    assert joined.spec.options["languages"] == ["a", "b"]


@pytest.mark.parametrize(
    "change",
    [
        {"format": "something else"},
        {"adapters": 3},
        {"tensors": {"encoder.weight": torch.zeros(1)}},
        {"tensors": {"adapters.x": [1]}},
        {"base": {"float32": b""}},
        {"base": None},
    ],
)
def test_a_file_of_anything_else_is_refused(change):
    with pytest.raises(UserError, match=r"odd.pt holds no adapters"):
        ShippedAdapters.unpack(ship("by=language").pack() | change, "odd.pt")


@pytest.mark.parametrize("data", [None, [1], {}, torch.zeros(2)])
def test_a_file_of_rubbish_is_refused(data):
    with pytest.raises(UserError, match=r"odd.pt holds no adapters"):
        ShippedAdapters.unpack(data, "odd.pt")


def test_a_whole_checkpoint_is_told_from_a_file_of_adapters():
    with pytest.raises(UserError, match=r"moe-nmt adapters extract full.pt"):
        ShippedAdapters.unpack({"model": {}}, "full.pt")
