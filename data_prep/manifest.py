"""CORPUS/data-bin/manifest.json: what was binarized, from what, by what, and the hash of every file.

Each job of binarizing notes its own part in CORPUS/.counts; the manifest puts them together, and stands only beside
data that are complete.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.counting import symbols_of
from data_prep.indexed import sha256
from moe_nmt.data import MAIN, Corpus, Direction
from moe_nmt.data.data_bin import MANIFEST, shard_name
from moe_nmt.data.text import write_text

LIBRARIES = ("moe_nmt", "fairseq-fixed", "sentencepiece", "subword-nmt", "fastBPE")


@dataclass
class BinarizedText:
    """A split of a language pair, or a shard of it: sentences, and by language tokens and the unknown among them."""

    split: str
    pair: str
    shard: int | None
    sentences: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)


@dataclass
class Part:
    """What one job has binarized, and the hashes of its files by their names in data-bin."""

    texts: list[BinarizedText] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_text(path, json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")

    @classmethod
    def read(cls, path: Path) -> Part:
        """Read what `save` wrote."""
        rows = json.loads(path.read_text(encoding="utf-8"))
        return cls(**rows | {"texts": [BinarizedText(**row) for row in rows["texts"]]})


def part_path(corpus: Corpus, pair: Direction, shard: int | None) -> Path:
    """Where the part of a language pair, or of one of its shards, is noted."""
    ending = "" if shard is None else f".{shard_name(shard)}"
    return corpus.folder / ".counts" / f"binarize.{pair}{ending}.json"


def versions() -> dict[str, str]:
    """The versions of Python, of this package and of the libraries that make data."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_manifest(
    corpora: Mapping[str, Corpus], corpus: Corpus, parts: Iterable[Part], dictionaries: Iterable[Path]
) -> None:
    """Write the manifest of a corpus or sub-corpus, all of whose files are written."""
    parts = list(parts)
    data_bin = corpus.folder / "data-bin"
    files = {str(path.relative_to(data_bin)): sha256(path) for path in dictionaries}
    for part in parts:
        files |= part.files
    made_by: list[dict[str, str]] = []
    for part in parts:
        made_by += [part.versions] * (part.versions not in made_by)
    manifest = {
        "kind": corpus.kind,
        "bpe": corpus.bpe,
        "vocabulary": len(symbols_of(corpus.dictionary)),
        "languages": list(corpus.languages),
        "directions": {str(direction): dict(counts) for direction, counts in corpus.directions.items()},
        "extra": {kind: f"../extra/{kind}/data-bin" for kind in corpora if corpus.kind == MAIN != kind},
        "settings": _settings(corpora[MAIN].folder) | _settings(corpus.folder),
        "versions": made_by,
        "texts": [asdict(text) for part in parts for text in part.texts],
        "files": dict(sorted(files.items())),
    }
    write_text(data_bin / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def _settings(folder: Path) -> dict[str, list[Any]]:
    """The settings of each step, each once, from the stamps of its jobs."""
    settings: dict[str, list[Any]] = {}
    for path in sorted((folder / ".stamps").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))["settings"]
        known = settings.setdefault(path.name.split(".")[0], [])
        known += [found] * (found not in known)
    return settings
