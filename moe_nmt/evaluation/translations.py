"""Finding and reading translations: what `fairseq-generate` leaves, or plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moe_nmt.data import Direction
from moe_nmt.data.text import read_lines
from moe_nmt.errors import UserError

PIECE_MARK = "\u2581"  # SentencePiece writes it for a space


class ScoreError(UserError):
    """Translations that cannot be scored, or a request about them that makes no sense."""


@dataclass(frozen=True)
class Translations:
    """The translations of one direction in the order of the test set, and the references beside them, if any."""

    path: Path
    hypotheses: list[str]
    references: list[str] | None


def find_translations(folder: Path, split: str) -> dict[Direction, Path]:
    """The files to score, `DIRECTION/generate-SPLIT.txt` or `DIRECTION.hyp`; ScoreError where there are none."""
    if not folder.is_dir():
        raise ScoreError(f"{folder} is no folder: give the one that holds the translations")
    files = [(path.parent.name, path) for path in sorted(folder.glob(f"*/generate-{split}.txt"))]
    files += [(path.stem, path) for path in sorted(folder.glob("*.hyp"))]
    if not files:
        raise ScoreError(
            f"{folder} has nothing to score: it needs a DIRECTION/generate-{split}.txt (as fairseq-generate "
            "--results-path writes it) or a DIRECTION.hyp, for example eng-deu.hyp"
        )
    found: dict[Direction, Path] = {}
    for name, path in files:
        direction = Direction.parse(name)
        if direction in found:
            raise ScoreError(f"{direction} has translations in both {found[direction]} and {path}: remove one of them")
        found[direction] = path
    return found


def read_translations(path: Path) -> Translations:
    """Reads a file that `find_translations` found; ScoreError where it is cut off or holds pieces instead of text."""
    plain = path.suffix == ".hyp"
    translations = Translations(path, list(read_lines(path)), None) if plain else read_generated(path)
    if any(PIECE_MARK in line for line in translations.hypotheses):
        raise ScoreError(
            f"{path} holds pieces (they show '{PIECE_MARK}') instead of text: "
            "run fairseq-generate with --remove-bpe sentencepiece"
        )
    return translations


def read_generated(path: Path) -> Translations:
    """The best translations in a file of `fairseq-generate`, put back in the order of the test set.

    Its lines are `S-id`, `T-id`, `H-id`, `D-id`, `P-id`, then tabs and text, by length; the first D of an id is its
    best, and its text is in words. ScoreError unless the ids are 0, 1, 2, … without a gap.
    """
    _check_last_line(path)
    texts: dict[str, dict[int, str]] = {"S": {}, "T": {}, "D": {}}
    for line in read_lines(path):
        match = re.match(r"([ST])-(\d+)\t(.*)|(D)-(\d+)\t[^\t]*\t(.*)", line)
        if match:
            kind, number, text = (group for group in match.groups() if group is not None)
            texts[kind].setdefault(int(number), text)
    expected = 1 + max((number for found in texts.values() for number in found), default=-1)
    if not expected:
        raise ScoreError(f"{path} has no translation: it needs lines D-0, D-1, … as fairseq-generate writes them")
    hypotheses, references = (_in_order(texts[kind], expected) for kind in "DT")
    if hypotheses is None:
        raise ScoreError(
            f"{path} lacks {_missing(texts['D'], expected)}: run fairseq-generate again for this direction"
        )
    return Translations(path, hypotheses, references)


def _check_last_line(path: Path) -> None:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 1))
        if file.read() not in (b"\n", b""):
            raise ScoreError(f"{path} is cut off in its last line: run fairseq-generate again for this direction")


def _in_order(texts: dict[int, str], expected: int) -> list[str] | None:
    return [texts[number] for number in range(expected)] if len(texts) == expected else None


def _missing(texts: Iterable[int], expected: int) -> str:
    missing = sorted(set(range(expected)) - set(texts))
    shown = ", ".join(f"D-{number}" for number in missing[:3]) + (", …" if len(missing) > 3 else "")
    return f"{len(missing)} of {expected} translations ({shown})"
