"""Language codes and translation directions."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from moe_nmt.errors import UserError, suggest


class CorpusError(UserError):
    """A corpus, or a request about it, that cannot be used."""


@dataclass(frozen=True, order=True)
class Direction:
    """From a source language to a target language, written `eng-deu`.

    A language pair, whose text serves both directions, is named like the direction its files are named after.
    """

    source: str
    target: str

    @classmethod
    def parse(cls, text: str) -> Direction:
        """`eng-deu` -> Direction("eng", "deu"); CorpusError when it is not two different codes around one '-'."""
        codes = text.strip().split("-")
        if len(codes) != 2:
            raise CorpusError(
                f"'{text}' is no direction: write two language codes joined by one '-', like eng-deu; "
                "a code itself may hold '_' but no '-'"
            )
        source, target = map(check_code, codes)
        if source == target:
            raise CorpusError(f"'{text}' is no direction: its two languages must differ, as in eng-deu")
        return cls(source, target)

    @property
    def reverse(self) -> Direction:
        return Direction(self.target, self.source)

    def __str__(self) -> str:
        return f"{self.source}-{self.target}"


def check_code(code: str) -> str:
    """Returns the language code, or raises CorpusError where file and token names could not carry it."""
    if not code.replace("_", "").isalnum():
        raise CorpusError(
            f"'{code}' is no language code: use letters, digits and '_' only, as in deu or zho_Hans, "
            "and rename the language where its code holds a '-'"
        )
    return code


def is_english(code: str) -> bool:
    """Whether the code is English in any script or variant: `eng`, `en`, `eng_Latn`."""
    return code.split("_")[0] in ("eng", "en")


def parse_directions(text: str) -> list[Direction]:
    """A comma-separated list of directions, in the order written; CorpusError where one stands there twice."""
    directions = [Direction.parse(part) for part in text.split(",")]
    check_unique(directions, "the list of directions")
    return directions


def check_unique(directions: Iterable[Direction], where: str) -> None:
    """Raises CorpusError where a direction occurs twice."""
    seen: set[Direction] = set()
    for direction in directions:
        if direction in seen:
            raise CorpusError(f"{direction} stands twice in {where}: keep it once")
        seen.add(direction)


def unknown(kind: str, name: str, known: Collection[str], where: str) -> CorpusError:
    """The error for a name that is not among the known ones, with the nearest of them."""
    return CorpusError(f"{where} has no {kind} '{name}'{suggest(name, known)}")
