"""Checks that data-bin holds what binarize wrote: every file is there, and has the hash that the manifest says."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from data_prep.corpora import open_corpora
from data_prep.indexed import sha256
from data_prep.steps import Progress, add_corpus, add_workers, command, run, say, side_by_side
from moe_nmt.data import CorpusError
from moe_nmt.data.data_bin import MANIFEST, read_manifest, shard_folders

STEP = "verify"


def verify(args: argparse.Namespace) -> None:
    """CorpusError that names the first file that is missing, differs or is not in the manifest."""
    expected: dict[Path, str] = {}
    for corpus in open_corpora(args.corpus).values():
        expected |= files_of(corpus.folder / "data-bin")
    missing = [path for path in expected if not path.is_file()]
    if missing:
        raise CorpusError(f"{missing[0]} is missing: run data_prep/binarize.sh {args.corpus} again")
    progress = Progress(STEP, {path: path.stat().st_size for path in expected})
    for path, found in side_by_side(sha256, expected, args.workers):
        if found != expected[path]:
            raise CorpusError(f"{path} is not as it was written: delete it and run data_prep/binarize.sh {args.corpus}")
        progress.finish(path, "as it was written")
    say(STEP, f"{len(expected)} files are as the manifest says")


def files_of(data_bin: Path) -> dict[Path, str]:
    """The files of a manifest with their hashes; CorpusError without a manifest, or for binarized data it lacks."""
    manifest = read_manifest(data_bin)
    if manifest is None:
        raise CorpusError(f"{data_bin / MANIFEST} is missing: run data_prep/binarize.sh {data_bin.parent} to its end")
    expected = {data_bin / name: str(value) for name, value in manifest["files"].items()}
    for path in binarized(data_bin):
        if path not in expected:
            raise CorpusError(f"{path} is not in the manifest: delete it, or keep it elsewhere")
    return expected


def binarized(data_bin: Path) -> Iterator[Path]:
    """The files of token ids in a folder and in its shards."""
    for folder in {data_bin, *shard_folders(data_bin)}:
        yield from (path for path in folder.glob("*.*-*.*") if path.suffix in (".bin", ".idx"))


def main() -> int:
    parser = command(STEP, __doc__)
    add_corpus(parser)
    add_workers(parser)
    return run(parser, verify)


if __name__ == "__main__":
    raise SystemExit(main())
