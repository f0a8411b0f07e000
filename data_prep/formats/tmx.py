"""Translation memories."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from data_prep.formats.format import FORMATS, Format, Pair
from data_prep.formats.patterns import fields, find, find_pairs
from data_prep.reading import BadFileError, Block, Fault, Sides, judge
from moe_nmt.data.text import opening

LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
CODES = ("bpt", "ept", "it", "ph", "ut")
UNITS = 1000  # in a block, and looked at to learn the languages of a file


@FORMATS.register("tmx")
class Tmx(Format):
    """Translation memories (TMX 1.4): the segments of a unit without their formatting, white space made one space.

    A file has the languages of its first 1,000 units. Entities of a file's own are never expanded.
    """

    def index(self, split: str) -> dict[Pair, tuple[Path, ...]]:
        names = fields(self.path)
        if {"source", "target"} <= names:
            return find_pairs(self.path, split)
        files = [path for path, _ in find(self.path, split)]
        return {pair: (path,) for path in files[:1] for pair in itertools.combinations(_languages(path), 2)}

    def read(self, pair: Pair, files: tuple[Path, ...], limit: int) -> Iterator[Block]:
        (path,) = files
        units = _units(path)
        while batch := [_sides(unit, pair, limit) for unit in itertools.islice(units, UNITS)]:
            yield Block.of(batch)


def _languages(path: Path) -> list[str]:
    units = itertools.islice(_units(path), UNITS)
    return sorted({language for unit in units for language in unit})


def _sides(unit: dict[str, str], pair: Pair, limit: int) -> Sides | Fault:
    if not all(language in unit for language in pair):
        return Fault.MISSING_SIDE
    source, target = (judge(unit[language], limit) for language in pair)
    if isinstance(source, Fault):
        return source
    return target if isinstance(target, Fault) else (source, target)


def _units(path: Path) -> Iterator[dict[str, str]]:
    """The text of each translation unit by language; of a language that stands there twice the first."""
    number = 0
    with opening(path) as file:
        try:
            parser = etree.iterparse(
                file, tag=("{*}tu",), resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True
            )
            for _, unit in parser:
                number += 1
                yield _texts(unit)
                _forget(unit)
        except etree.XMLSyntaxError as error:
            reason = " ".join(error.msg.split())
            raise BadFileError(
                f"{path} is no whole TMX file ({reason}): fetch it again or mend it", Fault.DAMAGED_FILE, number
            ) from None
    if number == 0:
        raise BadFileError(f"{path} has no translation unit: give its format, or leave it out", Fault.EMPTY_FILE)


def _texts(unit: etree._Element) -> dict[str, str]:
    texts: dict[str, str] = {}
    for variant in unit.iterchildren("{*}tuv"):
        language = (variant.get(LANGUAGE) or variant.get("lang") or "").lower()
        segment = variant.find("{*}seg")
        if segment is not None and etree.Entity not in {node.tag for node in segment.iter()}:
            etree.strip_elements(segment, *CODES, with_tail=False)
            texts.setdefault(language, " ".join("".join(segment.itertext()).split()))
    return texts


def _forget(element: etree._Element) -> None:
    """Frees an element and all before it."""
    element.clear()
    while element.getprevious() is not None:
        del element.getparent()[0]
