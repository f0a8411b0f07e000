"""Adapters apart from their base: taken out of a checkpoint, chosen by language, joined, put onto the base again."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from moe_nmt.adapters import ADAPTERS, ADAPTERS_PREFIX, Host
from moe_nmt.adapters.bottleneck import BottleneckAdapters
from moe_nmt.errors import UserError, suggest
from moe_nmt.registry import Spec, parse
from moe_nmt.surgery import Checkpoint, languages_of, split_adapters

FORMAT = "moe_nmt adapters 1"
PRECISIONS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""From narrow to wide; neither of the first two holds the other."""
PER_FILE = ("languages", "directions", "init")
"""The options in which adapters that are joined may differ."""


@dataclass(frozen=True)
class ShippedAdapters:
    """Adapters without their base.

    `spec`: complete, as in a checkpoint. `tensors`: named as in a checkpoint. `base`: the `fingerprint` of the base.
    `origin`: the file, for messages.
    """

    spec: Spec
    tensors: Mapping[str, Tensor]
    base: Mapping[str, str]
    origin: str

    def pack(self) -> dict[str, Any]:
        """What is written into a file."""
        return {"format": FORMAT, "adapters": str(self.spec), "tensors": dict(self.tensors), "base": dict(self.base)}

    @classmethod
    def unpack(cls, data: Any, origin: str) -> ShippedAdapters:
        """What was read from a file.

        Raises:
            UserError: if it holds anything else than adapters.
        """
        data = data if isinstance(data, dict) else {}
        if "model" in data:
            raise UserError(
                f"{origin} is a whole checkpoint; take its adapters out with "
                f"moe-nmt adapters extract {origin} --output FILE."
            )
        spec, tensors, base = (data.get(key) for key in ("adapters", "tensors", "base"))
        if not (
            data.get("format") == FORMAT
            and isinstance(spec, str)
            and _is_mapping(tensors, Tensor)
            and all(name.startswith(ADAPTERS_PREFIX) for name in tensors)
            and _is_mapping(base, str)
        ):
            raise UserError(f"{origin} holds no adapters; give a file that moe-nmt adapters extract wrote.")
        return cls(parse(spec), tensors, base, origin)


def _is_mapping(value: Any, kind: type) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, kind) for k, v in value.items())


def extract(checkpoint: Checkpoint, origin: str, languages: Sequence[str] | None = None) -> ShippedAdapters:
    """The adapters of a checkpoint; with `languages` those of bottleneck adapters that are theirs.

    Of a pair one of the two must be named; an adapter of a family goes along whole, for the languages named.

    Raises:
        UserError: if there are none, or all languages share them.
    """
    base, tensors = split_adapters(checkpoint.tensors)
    if checkpoint.adapters is None:
        raise UserError(f"{origin} has no adapters; give a checkpoint that was trained with --adapters.")
    shipped = ShippedAdapters(checkpoint.adapters, tensors, fingerprint(base), origin)
    return shipped if languages is None else select(shipped, languages)


def attach(base: Checkpoint, origin: str, shipped: Sequence[ShippedAdapters]) -> Checkpoint:
    """The base with these adapters, bit for bit the checkpoint that they were taken from if they are all of its.

    Raises:
        UserError: if the base has adapters, is not the one they were trained on, or they cannot be joined.
    """
    if base.adapters is not None:
        raise UserError(f"{origin} has adapters already: {base.adapters}; give the base that they were trained on.")
    digest_of = functools.cache(lambda dtype: digest(base.tensors, dtype))
    for adapters in shipped:
        shared = next((dtype for dtype in precisions(base.tensors) if _name(dtype) in adapters.base), None)
        if shared is None or digest_of(shared) != adapters.base[_name(shared)]:
            raise UserError(
                f"{adapters.origin} does not fit {origin}: its adapters were trained on other parameters; give the "
                "base of their training, or if that was trained with them, the whole checkpoint."
            )
    joined = join(shipped)
    return base.with_adapters(joined.spec, joined.tensors)


def fingerprint(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The `digest` of a model in each of its `precisions`.

    So a model in float32 is known again in a copy of half precision, and the other way round.
    """
    return {_name(dtype): digest(tensors, dtype) for dtype in precisions(tensors)}


def precisions(tensors: Mapping[str, Tensor]) -> tuple[torch.dtype, ...]:
    """The narrowest type that holds all values exactly, and those that they may be rounded to.

    The type of the tensors does not tell: fairseq trains in half precision and saves that as float32.
    """

    def holds(dtype: torch.dtype) -> bool:
        floating = (tensor for tensor in tensors.values() if tensor.is_floating_point())
        return all(torch.equal(tensor.to(dtype).to(tensor.dtype), tensor) for tensor in floating)

    own = next(filter(holds, PRECISIONS), torch.float64)  # of nan, which equals nothing
    return own, *(dtype for dtype in PRECISIONS if dtype.itemsize < own.itemsize)


def digest(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    """SHA-256 of names, shapes and bytes of all tensors, sorted by name, those of floating point in `dtype`."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def select(shipped: ShippedAdapters, languages: Sequence[str]) -> ShippedAdapters:
    """The bottleneck adapters of some languages."""
    if shipped.spec.name != "bottleneck":
        raise UserError(
            f"{shipped.origin} has {shipped.spec.name} adapters, which all languages share; extract them whole, "
            "without --languages" + (", or bake them first: moe-nmt surgery." if shipped.spec.name == "hyper" else ".")
        )
    old = groups_of(shipped.spec)
    known = dict.fromkeys(language for group in old for language in re.split("[-+]", group))
    for language in languages:
        if language not in known:
            raise UserError(f"{shipped.origin} has no adapters of '{language}'{suggest(language, known)}")
    spec = _complete(Spec(shipped.spec.name, shipped.spec.options | {"languages": list(languages)}))
    families = [set(group.split("+")) for group in old]
    places = [next(i for i, f in enumerate(families) if f.issuperset(new.split("+"))) for new in groups_of(spec)]
    return replace(shipped, spec=spec, tensors={name: tensor[places] for name, tensor in shipped.tensors.items()})


def join(shipped: Sequence[ShippedAdapters]) -> ShippedAdapters:
    """The bottleneck adapters of several files as those of one, if none are for the same sentences."""
    first, *others = shipped
    if not others:
        return first
    for adapters in shipped:
        if adapters.spec.name != "bottleneck":
            raise UserError(
                f"{adapters.origin} has {adapters.spec.name} adapters, and only bottleneck adapters can be joined; "
                "attach it alone."
            )
        differing = [option for option, value in _kind(first.spec).items() if _kind(adapters.spec)[option] != value]
        if differing:
            raise UserError(
                f"{first.origin} and {adapters.origin} cannot be joined, their adapters differ in {differing[0]}: "
                f"{first.spec} and {adapters.spec}."
            )
    groups: dict[str, str] = {}
    for adapters in shipped:
        for group in groups_of(adapters.spec):
            if group in groups:
                raise UserError(
                    f"{groups[group]} and {adapters.origin} both have adapters of {group}; "
                    "take one of them out of its checkpoint with other --languages."
                )
            groups[group] = adapters.origin
    lists = {option: _united(shipped, option) for option in ("languages", "directions") if option in first.spec.options}
    spec = Spec(first.spec.name, first.spec.options | lists)
    order = groups_of(spec)
    if set(order) != set(groups):
        torn = next(group for group in order if group not in groups)
        raise UserError(f"the languages {torn} are one family and need one adapter, but come from several files.")
    places = [list(groups).index(group) for group in order]
    tensors = {name: torch.cat([adapters.tensors[name] for adapters in shipped])[places] for name in first.tensors}
    return replace(first, spec=spec, tensors=tensors)


def groups_of(spec: Spec) -> list[str]:
    """The groups of sentences that bottleneck adapters of this spec have one adapter for each, in their order."""
    return _groups(spec).groups


def _complete(spec: Spec) -> Spec:
    return Spec(spec.name, spec.options | dict(_groups(spec).recorded))


def _groups(spec: Spec) -> BottleneckAdapters:
    """The bottleneck adapters of a model without layers."""
    adapters = ADAPTERS.build(spec, host=Host((), (), languages_of(spec)))
    assert isinstance(adapters, BottleneckAdapters)
    return adapters


def _kind(spec: Spec) -> dict[str, Any]:
    """All options but those that may differ."""
    given, options = ADAPTERS.check(spec), ADAPTERS.entry(spec.name).options
    return {name: given.get(name, option.default) for name, option in options.items() if name not in PER_FILE}


def _united(shipped: Sequence[ShippedAdapters], option: str) -> list[str]:
    return list(dict.fromkeys(value for adapters in shipped for value in ADAPTERS.check(adapters.spec)[option]))
