"""A folder of OPUS."""

from __future__ import annotations

from pathlib import Path

from data_prep.formats.format import FORMATS, Pair
from data_prep.formats.patterns import find_sides
from data_prep.formats.text import Text

SIDES = "*.{source}-{target}.{language}"


@FORMATS.register("opus")
class Opus(Text):
    """A folder of a corpus of OPUS (Tiedemann 2012): `…/moses/de-en.txt.zip` anywhere below it, or what these hold."""

    def index(self, split: str) -> dict[Pair, tuple[Path, ...]]:
        packed = find_sides(f"{self.path}/**/*{{source}}-{{target}}.txt.zip/{SIDES}", split)
        return {**find_sides(f"{self.path}/**/{SIDES}", split), **packed}
