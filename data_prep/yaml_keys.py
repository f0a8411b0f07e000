"""Reading YAML that people write: every mistake is one sentence with its place."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from moe_nmt.data import CorpusError
from moe_nmt.errors import suggest


class Keys:
    """The keys of a mapping, to be taken out one by one; CorpusError where a value is not what it must be."""

    def __init__(self, content: Any, where: str) -> None:
        """`where`: the place in the file, for messages."""
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise CorpusError(f"{where} must be keys with values, as in `name: europarl`, not {_shown(content)}")
        self.left, self.where = dict(content), where

    def __contains__(self, key: str) -> bool:
        return key in self.left

    def text(self, key: str, default: str | None = None) -> str:
        """A text; without a default it must be there."""
        if key not in self.left and default is None:
            raise CorpusError(f"{self.where} needs its {key}")
        return self._text(key, self.left.pop(key, default))

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, or a single one; empty where the key is not there."""
        value = self.left.pop(key, [])
        return tuple(self._text(key, item) for item in (value if isinstance(value, list) else [value]))

    def choice(self, key: str, allowed: Sequence[str]) -> Any:
        """One of the allowed texts; the first where the key is not there."""
        value = self.text(key, allowed[0])
        if value not in allowed:
            raise CorpusError(f"{self.where}: {key} cannot be '{value}'{suggest(value, allowed, 'Allowed')}")
        return value

    def positive(self, key: str, default: int) -> int:
        """A whole number from 1."""
        value = self.left.pop(key, default)
        if type(value) is not int or value < 1:
            raise CorpusError(f"{self.where}: {key} must be a whole number from 1, not {_shown(value)}")
        return value

    def table(self, key: str) -> dict[str, str]:
        """Texts by texts; empty where the key is not there."""
        keys = Keys(self.left.pop(key, {}), f"{self.where}: {key}")
        return {name: keys.text(name) for name in list(keys.left)}

    def entries(self, key: str) -> list[Keys]:
        """A list of mappings."""
        value = self.left.pop(key, [])
        if not isinstance(value, list):
            raise CorpusError(f"{self.where}: {key} must be a list, each entry behind a '-', not {_shown(value)}")
        return [Keys(entry, f"{key}[{number}]") for number, entry in enumerate(value, start=1)]

    def rest(self, allowed: Collection[str], known: Collection[str]) -> dict[str, Any]:
        """What was not taken out; CorpusError where that is not allowed, with the nearest of the known keys."""
        for key in self.left:
            if key not in allowed:
                raise CorpusError(f"{self.where} has no key '{key}'{suggest(key, known)}")
        return self.left

    def _text(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            hint = ": write it in quotes" if isinstance(value, bool | int | float) else ""
            raise CorpusError(f"{self.where}: {key} must be text, not {_shown(value)}{hint}")
        return value


def read_yaml(path: Path, where: str = "the file") -> Keys:
    """The keys of a YAML file; CorpusError where it is no YAML, or a key stands twice."""
    try:
        return Keys(yaml.load(path.read_bytes(), _Loader), where)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1} " if mark else ""
        raise CorpusError(
            f"{line}cannot be read as YAML ({getattr(error, 'problem', None) or error}): mend it"
        ) from None


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise CorpusError(
                    f"the key '{name}' stands twice from line {node.start_mark.line + 1} on: keep it once"
                )
        return super().construct_mapping(node, deep)


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
