"""CORPUS/flags.txt: what training on a corpus is told about its data, one argument a line.

fairseq-train corpus/data-bin --user-dir moe_nmt $(cat corpus/flags.txt) --arch transformer_moe_base …
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from data_prep.sampling_table import Entry
from data_prep.steps import say
from moe_nmt.data import MAIN, Corpus, Direction
from moe_nmt.data.text import write_text


def write_flags(corpora: Mapping[str, Corpus], entries: Iterable[Entry], temperature: float | None) -> None:
    """Write the flags: all directions with training and validation data, and the extra data that they have."""
    corpus = corpora[MAIN]
    trained = {kind: [e.direction for e in entries if e.kind == kind and e.pairs] for kind in corpora}
    directions = validated(corpus, list(dict.fromkeys(d for found in trained.values() for d in found)))
    flags = [
        *("--task", "multilingual_translation_moe"),
        *("--lang-dict", str((corpus.folder / "languages.txt").absolute())),
        *("--lang-pairs", _listed(directions or corpus.directions)),
        *("--encoder-langtok", "src", "--decoder-langtok"),
    ]
    extra = {kind: [d for d in trained[kind] if d in directions] for kind in corpora if kind != MAIN}
    extra = {kind: found for kind, found in extra.items() if found}
    if extra:
        folders = {kind: str((corpora[kind].folder / "data-bin").absolute()) for kind in extra}
        flags += ["--extra-data", _as_dict(folders)]
        flags += ["--extra-lang-pairs", _as_dict({kind: _listed(found) for kind, found in extra.items()})]
    if temperature is not None:
        flags += ["--sampling-method", "temperature", "--sampling-temperature", f"{temperature:g}"]
    write_text(corpus.folder / "flags.txt", "".join(f"{flag}\n" for flag in flags))


def validated(corpus: Corpus, directions: list[Direction]) -> list[Direction]:
    """Those of the directions that can be validated; the others are named on stderr. All, where none can."""
    found = [d for d in directions if d in corpus.directions and corpus.directions[d]["valid"]]
    left_out = [d for d in directions if d not in found]
    if found and left_out:
        say("binarize", f"not in flags.txt, because they have no valid data: {_listed(left_out)}")
    return found or directions


def _listed(directions: Iterable[Direction]) -> str:
    return ",".join(map(str, directions))


def _as_dict(texts: Mapping[str, str]) -> str:
    """A dictionary as fairseq reads it from the command line, without spaces, so that a shell keeps it whole."""
    return json.dumps(texts, separators=(",", ":"), ensure_ascii=False)
