"""Symbols that stand for no text, and that no text may be cut into.

The tags of kinds of data stand at the end of the dictionary. Those of languages do not stand in it: fairseq appends
them in the order of the languages of a training, and so a checkpoint finds them where they were when it was trained.
"""

from __future__ import annotations

from moe_nmt.data import CorpusError
from moe_nmt.data.corpus import KIND, MAIN

FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")
UNKNOWN = "<unk>"


def language_tag(language: str) -> str:
    """The symbol that fairseq puts before a sentence in this language (`--lang-tok-style multilingual`)."""
    return f"__{language}__"


def data_tag(kind: str) -> str:
    """The symbol that stands before the source of training data of this kind."""
    return f"<{kind}>"


def parse_kinds(text: str) -> list[str]:
    """`mined,back_translated` -> the kinds; CorpusError where one cannot be a tag."""
    kinds = list(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))
    for kind in kinds:
        if not KIND.fullmatch(kind) or kind == MAIN or data_tag(kind) in FAIRSEQ:
            raise CorpusError(
                f"--data-tags has '{kind}': name kinds of data by letters, digits, '_', '-' and '.', but none of "
                f"{MAIN}, {', '.join(symbol.strip('<>') for symbol in FAIRSEQ)}"
            )
    return kinds
