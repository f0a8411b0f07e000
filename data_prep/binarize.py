"""Turns the pieces of a corpus into what fairseq trains on, with a manifest, and flags and tables of training."""

from __future__ import annotations

import argparse
import itertools
from functools import partial
from pathlib import Path
from typing import NamedTuple

from data_prep.corpora import Text, open_corpora, texts
from data_prep.counting import read_counts
from data_prep.flags import write_flags
from data_prep.indexed import Index, sha256, write_indexed
from data_prep.manifest import BinarizedText, Part, part_path, versions, write_manifest
from data_prep.sampling_table import Entry, entries_of, write_sampling
from data_prep.steps import Progress, Stamp, add_corpus, add_workers, at_least_one, command, outdated, run, side_by_side
from moe_nmt.data import MAIN, SPLITS, Corpus, CorpusError
from moe_nmt.data.data_bin import MANIFEST, shard_folders, shard_name
from moe_nmt.data.text import read_lines, write_text
from moe_nmt.evaluation.results import Thresholds

STEP = "binarize"


class Share(NamedTuple):
    """What one job binarizes: of the training pairs of a text every `shards`-th from the `shard`-th on.

    The first share has the held-out text too. `shard` is None without shards.
    """

    text: Text
    shard: int | None = None
    shards: int = 1

    def __str__(self) -> str:
        return str(self.text) if self.shard is None else f"{self.text} {shard_name(self.shard)}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this step, but for `--workers`, which other steps have too."""
    parser.add_argument(
        "--shard-pairs",
        type=at_least_one,
        metavar="N",
        help="write training data to data-bin/shard000, shard001, …, at most N pairs of a language pair into each",
    )
    parser.add_argument(
        "--sampling-temperature", type=float, metavar="T", help="temperature of flags.txt, and one more in the table"
    )
    defaults = Thresholds()
    for name, default in (("--high-from", defaults.high_from), ("--low-from", defaults.low_from)):
        parser.add_argument(name, type=int, default=default, metavar="PAIRS", help="training pairs of this bucket")


def binarize(args: argparse.Namespace) -> None:
    """Writes CORPUS/data-bin, flags.txt and reports/sampling.*; CorpusError where the corpus is not encoded yet."""
    thresholds = Thresholds(args.high_from, args.low_from)
    if args.sampling_temperature is not None and not args.sampling_temperature > 0:
        raise CorpusError(f"--sampling-temperature {args.sampling_temperature} cannot be used: it must be above 0")
    corpora = open_corpora(args.corpus)
    shares = [share for text in texts(corpora) for share in deal(corpora[text.kind], text, args.shard_pairs)]
    stamps = {share: _stamp(corpora, share) for share in shares}
    waiting = outdated(STEP, stamps)
    for corpus in corpora.values():
        if any(share.text.kind == corpus.kind for share in waiting):
            (corpus.folder / "data-bin" / MANIFEST).unlink(missing_ok=True)
    sizes = {share: sum(path.stat().st_size for path in stamps[share].inputs) // share.shards for share in waiting}
    progress = Progress(STEP, sizes)
    for share, result in side_by_side(partial(binarize_share, corpora), waiting, args.workers):
        progress.finish(share, result)
    parts = {share: Part.read(part_path(corpora[share.text.kind], share.text.pair, share.shard)) for share in shares}
    entries: list[Entry] = []
    for corpus in corpora.values():
        own = [share for share in shares if share.text.kind == corpus.kind]
        dictionaries = write_dictionaries(corpus, shard_folder(corpus, own[0].shard))
        made = (path for share in own for path in (stamps[share].path, *stamps[share].outputs))
        remove_stale(corpus, {*dictionaries, *made})
        write_manifest(corpora, corpus, [parts[share] for share in own], dictionaries)
        entries += entries_of(corpus, [parts[share] for share in own])
    write_flags(corpora, entries, args.sampling_temperature)
    print(write_sampling(corpora[MAIN], entries, args.sampling_temperature, thresholds), end="")


def deal(corpus: Corpus, text: Text, shard_pairs: int | None) -> list[Share]:
    """The shares of a text: one, or as many as hold `shard_pairs` training pairs each."""
    if shard_pairs is None:
        return [Share(text)]
    counts = read_counts(corpus, text.pair)
    pairs = counts["train"].kept if "train" in counts else 0
    shards = max(1, -(-pairs // shard_pairs))
    return [Share(text, shard, shards) for shard in range(shards)]


def shard_folder(corpus: Corpus, shard: int | None) -> Path:
    """Where the files of a shard lie."""
    data_bin = corpus.folder / "data-bin"
    return data_bin if shard is None else data_bin / shard_name(shard)


def _splits(corpus: Corpus, share: Share) -> list[str]:
    return [split for split in corpus.splits(share.text.pair) if split == "train" or not share.shard]


def _stamp(corpora: dict[str, Corpus], share: Share) -> Stamp:
    corpus, pair = corpora[share.text.kind], share.text.pair
    encoded = [path for split in _splits(corpus, share) for path in corpus.sides("encoded", split, pair)]
    for path in (corpus.dictionary, *encoded):
        if not path.is_file():
            step = "learn_subwords" if path == corpus.dictionary else "encode"
            raise CorpusError(f"{path} is missing: run data_prep/{step}.sh {corpus.parent or corpus.folder} first")
    folder = shard_folder(corpus, share.shard)
    outputs = [folder / f"{path.name}.{kind}" for path in encoded for kind in ("bin", "idx")]
    outputs.append(part_path(corpus, pair, share.shard))
    name = part_path(corpus, pair, share.shard).stem
    return Stamp.of(corpus, name, {"shards": share.shards}, [corpus.dictionary, *encoded], outputs)


def binarize_share(corpora: dict[str, Corpus], share: Share) -> str:
    """Binarizes a share and says how large it is."""
    corpus, pair = corpora[share.text.kind], share.text.pair
    stamp, index, part = _stamp(corpora, share), Index(corpus.dictionary), Part(versions=versions())
    with stamp.renewing():
        for split in _splits(corpus, share):
            text = BinarizedText(split, str(pair), share.shard)
            for path in corpus.sides("encoded", split, pair):
                binarize_file(corpus, path, share, index, text, part)
            part.texts.append(text)
        part.save(part_path(corpus, pair, share.shard))
    return f"{sum(path.stat().st_size for path in stamp.outputs):,} bytes"


def binarize_file(corpus: Corpus, path: Path, share: Share, index: Index, text: BinarizedText, part: Part) -> None:
    """Binarizes what a share has of an encoded file, and notes counts and hashes."""
    lines = read_lines(path)
    if text.split == "train":
        lines = itertools.islice(lines, share.shard, None, share.shards)
    outputs = [shard_folder(corpus, share.shard) / f"{path.name}.{kind}" for kind in ("bin", "idx")]
    written = write_indexed(lines, index, *outputs)
    language = path.name.rsplit(".", 1)[1]
    text.sentences, text.tokens[language], text.unknown[language] = written.sentences, written.tokens, written.unknown
    part.files |= {str(output.relative_to(corpus.folder / "data-bin")): sha256(output) for output in outputs}


def write_dictionaries(corpus: Corpus, folder: Path) -> list[Path]:
    """Writes the dictionary under the name of each language, as fairseq wants it, and returns the paths."""
    dictionary = corpus.dictionary.read_text("utf-8")
    paths = [folder / f"dict.{language}.txt" for language in corpus.languages]
    for path in paths:
        write_text(path, dictionary)
    return paths


def remove_stale(corpus: Corpus, current: set[Path]) -> None:
    """Removes what earlier runs wrote for pairs, shards or languages that are no more; other files stay."""
    data_bin = corpus.folder / "data-bin"
    for folder in (data_bin, *shard_folders(data_bin)):
        names = [f"{split}.*.*.{kind}" for split in SPLITS for kind in ("bin", "idx")] + ["dict.*.txt"]
        for path in {path for name in names for path in folder.glob(name)} - current:
            path.unlink()
        if folder != data_bin and not any(folder.iterdir()):
            folder.rmdir()
    for path in {
        path for folder in (".stamps", ".counts") for path in corpus.folder.glob(f"{folder}/{STEP}.*")
    } - current:
        path.unlink()


def main() -> int:
    parser = command(STEP, __doc__)
    add_corpus(parser)
    add_options(parser)
    add_workers(parser)
    return run(parser, binarize)


if __name__ == "__main__":
    raise SystemExit(main())
