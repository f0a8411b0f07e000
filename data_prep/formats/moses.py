"""Pairs of files as Moses has them."""

from __future__ import annotations

from data_prep.formats.format import FORMATS
from data_prep.formats.text import Text


@FORMATS.register("moses")
class Moses(Text):
    """Files `NAME.de-en.de` and `NAME.de-en.en`, plain or packed; `path` is NAME, or a .zip that holds such files.

    What follows the language, as `.gz`, is the option `ending`.
    """

    def __init__(self, path: str, *, ending: str = "") -> None:
        super().__init__(path)
        self.ending = ending

    @property
    def pattern(self) -> str:
        start = f"{self.path}/*" if self.path.endswith(".zip") else self.path
        return f"{start}.{{source}}-{{target}}.{{language}}{self.ending}"
