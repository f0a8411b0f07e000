"""A folder of FLORES."""

from __future__ import annotations

from types import MappingProxyType

from data_prep.formats.format import FORMATS
from data_prep.formats.text import Text


@FORMATS.register("flores")
class Flores(Text):
    """A folder of FLORES-200 (NLLB team 2022): `dev/deu_Latn.dev` is `valid`, `devtest/deu_Latn.devtest` is `test`."""

    split_names = MappingProxyType({"valid": "dev", "test": "devtest"})

    @property
    def pattern(self) -> str:
        return f"{self.path}/{{split}}/{{language}}.{{split}}"
