"""A folder of NTREX."""

from __future__ import annotations

from types import MappingProxyType

from data_prep.formats.format import FORMATS
from data_prep.formats.text import Text


@FORMATS.register("ntrex")
class Ntrex(Text):
    """A folder of NTREX-128 (Federmann et al. 2022): `newstest2019-ref.deu.txt` and the like are `test`."""

    split_names = MappingProxyType({"test": "newstest2019"})

    @property
    def pattern(self) -> str:
        return f"{self.path}/{{split}}-*.{{language}}.txt"
