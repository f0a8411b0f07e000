"""Text in another script than the language is written in."""

from __future__ import annotations

import polars as pl

from data_prep.filters import FILTERS, SIDES, Criterion
from moe_nmt.data.codes import is_code, unicode_scripts


@FILTERS.register("script")
class Script(Criterion):
    """Drops pairs with a side of whose letters less than the share `min` are in the script of its language.

    The script is that of the language code (`srp_Cyrl`), or else the language's likeliest. A side without letters
    stays, and so does every side whose script is not known.
    """

    def __init__(self, source: str, target: str, *, min: float = 0.5):
        self.min = min
        codes = zip(SIDES, (source, target), strict=True)
        known = {side: unicode_scripts(code) for side, code in codes if is_code(code)}
        self.scripts = {side: scripts for side, scripts in known.items() if scripts}

    def keep(self) -> pl.Expr:
        return pl.all_horizontal(pl.lit(True), *(self._fits(side, names) for side, names in self.scripts.items()))

    def _fits(self, side: str, scripts: tuple[str, ...]) -> pl.Expr:
        written = "[" + "".join(f"\\p{{sc={name}}}" for name in scripts) + "]+"
        letters = pl.col(side).str.replace_all(r"\P{L}+", "")
        others = letters.str.replace_all(written, "")
        return letters.str.len_chars() - others.str.len_chars() >= self.min * letters.str.len_chars()
