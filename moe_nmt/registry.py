"""Registries of parts, and the notation `name(option=value)` in which parts are written in flags, logs and checkpoints.

A part is a class registered under a name. Its options are the keyword-only arguments of its constructor; its other
arguments are what the surrounding model supplies (model width, number of experts ...). So

    @ROUTERS.register("top_k", paper="...")
    class TopKRouter(Router):
        def __init__(self, dim: int, num_experts: int, *, k: int = 2, jitter: float = 0.0): ...

is chosen by `top_k`, `top_k(k=1)` or `top_k(k=2, jitter=0.01)`. A value is a Python literal, a bare word (a string), a
list, or again a part. Nothing is ever evaluated.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import pkgutil
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from moe_nmt.errors import UserError, suggest

PartT = TypeVar("PartT")


class RegistryError(UserError):
    """A part was misspelt, unknown, or given an option that it does not have or cannot take."""


@dataclass(frozen=True)
class Spec:
    """A part as it is written: `name(option=value, ...)`. `str(spec)` gives the canonical text, which parses back."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}({', '.join(f'{key}={format_value(value)}' for key, value in self.options.items())})"


def format_value(value: Any) -> str:
    """The text of an option's value, such that `parse` gives the value back."""
    if isinstance(value, list):
        return f"[{', '.join(map(format_value, value))}]"
    return str(value) if isinstance(value, Spec) else repr(value)


def parse(text: str) -> Spec:
    """Parse one part.

    Raises:
        RegistryError: if the text is not of the form `name(option=value, ...)`.
    """
    value = _parse_value(text)
    if not isinstance(value, Spec):
        raise RegistryError(f"'{text}' is not a part: write one part as name(option=value), for example top_k(k=2).")
    return value


def parse_list(text: str) -> list[Spec]:
    """Parse `[part, part, ...]`, or a single part as a list of one; blank text is the empty list."""
    if not text.strip():
        return []
    value = _parse_value(text)
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, Spec) for item in values):
        raise RegistryError(f"'{text}' is not a list of parts: write it as [name(option=value), name].")
    return values


def _parse_value(text: str) -> Any:
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise RegistryError(f"'{text}' is malformed ({reason}): write a part as name(option=value).") from None
    return _convert(tree.body, text)


def _convert(node: ast.expr, text: str) -> Any:
    match node:
        case ast.Constant(value=float() as value) if math.isinf(value):
            raise RegistryError(f"'{text}' is malformed: a number in it is too large.")
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() as number) if type(number.value) in (int, float):
            return -_convert(number, text)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_convert(item, text) for item in items]
        case ast.Name(id=name):
            return Spec(name)
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords) if all(k.arg for k in keywords):
            options = [str(k.arg) for k in keywords]
            if repeated := [option for option in options if options.count(option) > 1]:
                raise RegistryError(f"'{text}' is malformed: '{name}' is given its option '{repeated[0]}' twice.")
            return Spec(name, {str(k.arg): _convert(k.value, text) for k in keywords})
        case ast.Call(func=ast.Name(id=name), args=[_, *_]):
            raise RegistryError(
                f"'{text}' is malformed: every option of '{name}' needs its name, as in {name}(option=value)."
            )
    raise RegistryError(
        f"'{text}' is malformed: '{ast.unparse(node)}' is neither a number, a word, a list nor a part "
        "name(option=value)."
    )


@dataclass(frozen=True)
class Entry(Generic[PartT]):
    """One registered part: its class, and the paper that it implements."""

    name: str
    part: type[PartT]
    paper: str

    @property
    def summary(self) -> str:
        """The first line of the part's docstring."""
        return (inspect.getdoc(self.part) or "").partition("\n")[0]

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The options a user may write: the keyword-only arguments of the constructor, by name."""
        parameters = inspect.signature(self.part).parameters.values()
        return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}

    @property
    def signature(self) -> str:
        """The part with all its options and their defaults, as a user would write it."""
        required = [f"{p.name}=…" for p in self.options.values() if p.default is p.empty]
        defaults = [f"{p.name}={format_value(p.default)}" for p in self.options.values() if p.default is not p.empty]
        return f"{self.name}({', '.join(required + defaults)})"


class Registry(Generic[PartT]):
    """The parts of one kind, by name.

    Args:
        kind: what a part is called in messages, for example `router`.
        package: the package whose modules register the parts; they are imported at the first look-up, so that adding
            a part is adding a file. None: the parts are registered where the registry is made.
    """

    def __init__(self, kind: str, package: str | None = None):
        self.kind = kind
        self._package = package
        self._entries: dict[str, Entry[PartT]] = {}

    def register(self, name: str, *, paper: str = "") -> Callable[[type[PartT]], type[PartT]]:
        """Class decorator that makes a part known under `name`."""

        def decorate(part: type[PartT]) -> type[PartT]:
            assert name not in self._entries, f"two parts of kind {self.kind} are called {name}"
            self._entries[name] = Entry(name, part, paper)
            return part

        return decorate

    def entries(self) -> dict[str, Entry[PartT]]:
        """All parts by name, sorted."""
        if self._package is not None:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__, f"{self._package}."):
                importlib.import_module(module.name)
        return dict(sorted(self._entries.items()))

    def entry(self, name: str) -> Entry[PartT]:
        """The part called `name`.

        Raises:
            RegistryError: if there is none; the message names the nearest and all known ones.
        """
        entries = self.entries()
        if name not in entries:
            raise RegistryError(f"no {self.kind} is called '{name}'{suggest(name, entries)}")
        return entries[name]

    def check(self, spec: Spec | str) -> dict[str, Any]:
        """The options of a spec with the types that the constructor asks for, nested parts built.

        Raises:
            RegistryError: unknown part, unknown option, missing option or wrong type.
        """
        spec = parse(spec) if isinstance(spec, str) else spec
        entry = self.entry(spec.name)
        hints = typing.get_type_hints(entry.part.__init__)
        for option in spec.options:
            if option not in entry.options:
                hint = suggest(option, entry.options, "Its options")
                raise RegistryError(f"the {self.kind} '{spec.name}' has no option '{option}'{hint}")
        for option, parameter in entry.options.items():
            if parameter.default is parameter.empty and option not in spec.options:
                raise RegistryError(
                    f"the {self.kind} '{spec.name}' needs its option '{option}': write {entry.signature}."
                )
        return {
            option: _coerce(value, hints[option], f"the option '{option}' of the {self.kind} '{spec.name}'")
            for option, value in spec.options.items()
        }

    def build(self, spec: Spec | str, **supplied: Any) -> PartT:
        """Build a part from its spec and from what the surrounding model supplies (only what the part asks for)."""
        spec = parse(spec) if isinstance(spec, str) else spec
        options = self.check(spec)
        entry = self.entry(spec.name)
        part, wanted = entry.part, inspect.signature(entry.part).parameters.keys() - entry.options.keys()
        try:
            return part(**{k: v for k, v in supplied.items() if k in wanted}, **options)
        except UserError as error:
            raise RegistryError(f"{self.kind} {spec}: {error}") from None


def _coerce(value: Any, hint: Any, what: str) -> Any:
    """Check a parsed value against a type hint and convert it: int to float, words to strings, parts to objects."""
    converted = _converted(value, hint)
    if converted is not _MISMATCH:
        return converted
    allowed = " or ".join(_describe(kind) for kind in _alternatives(hint))
    raise RegistryError(f"{what} must be {allowed}, not {format_value(value)}.")


_MISMATCH = object()


def _converted(value: Any, hint: Any) -> Any:
    attempts = (_convert_to(value, kind) for kind in _alternatives(hint))
    return next((converted for converted in attempts if converted is not _MISMATCH), _MISMATCH)


def _convert_to(value: Any, kind: Any) -> Any:
    registry = getattr(kind, "registry", None)
    if registry is not None:
        return registry.build(value) if isinstance(value, Spec) else _MISMATCH
    word = value.name if isinstance(value, Spec) and not value.options else value
    if typing.get_origin(kind) is Literal:
        return word if word in typing.get_args(kind) else _MISMATCH
    if typing.get_origin(kind) is list:
        (item_hint,) = typing.get_args(kind)
        items = [_converted(item, item_hint) for item in value] if isinstance(value, list) else [_MISMATCH]
        return _MISMATCH if _MISMATCH in items else items
    if kind is str:
        return word if isinstance(word, str) else _MISMATCH
    if kind is float and type(value) in (int, float):
        return float(value)
    return value if type(value) is kind else _MISMATCH


def _alternatives(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return list(typing.get_args(hint))
    return [hint]


def _describe(kind: Any) -> str:
    registry = getattr(kind, "registry", None)
    if registry is not None:
        return f"a {registry.kind} ({', '.join(registry.entries())})"
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is list:
        (item_hint,) = typing.get_args(kind)
        return f"a list, each entry {' or '.join(_describe(item) for item in _alternatives(item_hint))}"
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "a word", type(None): "None"}
    return names.get(kind, str(kind))
