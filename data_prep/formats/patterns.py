"""Patterns of paths, as `text/{split}.{source}-{target}.{language}.gz`."""

from __future__ import annotations

import glob
import itertools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from data_prep.formats.format import Pair
from moe_nmt.data import CorpusError
from moe_nmt.data.directions import unknown

PLACEHOLDERS = ("split", "source", "target", "language")
PIECE = re.compile(r"\{(?P<name>\w+)\}|(?P<folders>\*\*/)|(?P<any>\*)|(?P<text>[^{*]+|.)")


def fields(pattern: str) -> set[str]:
    """The names of the placeholders in a pattern; CorpusError for one that does not exist."""
    names = set(re.findall(r"\{([^{}]*)\}", pattern))
    for name in sorted(names - {*PLACEHOLDERS}):
        raise unknown("placeholder", name, PLACEHOLDERS, f"the path {pattern}")
    return names


def find(pattern: str, split: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """The files that match a pattern, in the order of their names, and what stands for its placeholders.

    `*` is any part of a name, `**/` any folders. What follows `.zip/` are the files inside a .zip.
    """
    pattern = pattern.replace("{split}", split)
    matches = re.compile(_expression(pattern)).fullmatch
    for path in _candidates(pattern):
        if found := matches(path):
            yield Path(path), found.groupdict()


def find_languages(pattern: str, split: str) -> dict[str, Path]:
    """The files of a pattern with `{language}` by language."""
    files: dict[str, Path] = {}
    for path, found in find(pattern, split):
        _add(files, found["language"], path)
    return files


def find_sides(pattern: str, split: str) -> dict[Pair, tuple[Path, Path]]:
    """The two files of each language pair, of a pattern with `{source}`, `{target}` and `{language}`."""
    sides: dict[tuple[Pair, str], Path] = {}
    for path, found in find(pattern, split):
        pair = found["source"], found["target"]
        if found["language"] in pair:
            _add(sides, (pair, found["language"]), path)
    pairs = dict.fromkeys(pair for pair, _ in sides)
    whole = [pair for pair in pairs if all((pair, language) in sides for language in pair)]
    return {(a, b): (sides[(a, b), a], sides[(a, b), b]) for a, b in whole}


def find_pairs(pattern: str, split: str) -> dict[Pair, tuple[Path, ...]]:
    """The file of each language pair, of a pattern with `{source}` and `{target}`."""
    files: dict[Pair, Path] = {}
    for path, found in find(pattern, split):
        _add(files, (found["source"], found["target"]), path)
    return {pair: (path,) for pair, path in files.items()}


def pairs_of(languages: dict[str, Path]) -> dict[Pair, tuple[Path, ...]]:
    """Every two of the languages with their files."""
    return {(a, b): (languages[a], languages[b]) for a, b in itertools.combinations(languages, 2)}


def _add(files: dict, key: object, path: Path) -> None:
    if key in files:
        raise CorpusError(f"{files[key]} and {path} hold the same text: say in `path` which of them is meant")
    files[key] = path


def _candidates(pattern: str) -> Iterator[str]:
    outer, zipped, _ = pattern.partition(".zip/")
    paths = sorted(glob.glob(_glob(outer + zipped.rstrip("/")), recursive=True))
    if not zipped:
        yield from (path for path in paths if Path(path).is_file())
        return
    for path in paths:
        try:
            with zipfile.ZipFile(path) as archive:
                yield from (f"{path}/{name}" for name in sorted(archive.namelist()))
        except zipfile.BadZipFile:
            raise CorpusError(f"{path} is no whole zip file: fetch or pack it again") from None


def _glob(pattern: str) -> str:
    """The pattern as the library `glob` has it."""
    return "".join(
        glob.escape(piece["text"]) if piece["text"] else "**/" if piece["folders"] else "*"
        for piece in PIECE.finditer(pattern)
    )


def _expression(pattern: str) -> str:
    """The pattern as a regular expression; a placeholder that occurs again stands for the same again."""
    seen: set[str] = set()
    parts = []
    for piece in PIECE.finditer(pattern):
        name = piece["name"]
        if name:
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>[\\w-]+?)")
            seen.add(name)
        else:
            parts.append(re.escape(piece["text"]) if piece["text"] else "(?:[^/]+/)*" if piece["folders"] else "[^/]*")
    return "".join(parts)
