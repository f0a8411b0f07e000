"""The folder data-bin, as fairseq reads it: its shards, and what its manifest says.

DATA-BIN/SPLIT.PAIR.LANGUAGE.{bin,idx}                 without shards
DATA-BIN/shard000/…, DATA-BIN/shard001/…               training data in shards; held-out data in the first
DATA-BIN/manifest.json                                 counts, hashes, versions and settings
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moe_nmt.data.directions import CorpusError

MANIFEST = "manifest.json"


def shard_name(number: int) -> str:
    """`shard000`, the folder of a shard."""
    return f"shard{number:03}"


def shard_folders(data_bin: Path) -> list[Path]:
    """The folders of the shards in their order, or the folder itself where it has none."""
    found = sorted(path for path in data_bin.glob("shard[0-9][0-9][0-9]*") if path.is_dir())
    return found or [data_bin]


def read_manifest(data_bin: Path) -> dict[str, Any] | None:
    """The manifest, None where there is none; CorpusError where it cannot be read."""
    path = data_bin / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise CorpusError(f"{path} cannot be read: run data_prep/binarize.sh {data_bin.parent} again") from None
    return manifest


def bpe_of(data_bin: Path) -> str:
    """What the text was cut by, `sentencepiece` or `fastbpe`; the first where there is no manifest to tell."""
    manifest = read_manifest(data_bin)
    return str(manifest["bpe"]) if manifest else "sentencepiece"
