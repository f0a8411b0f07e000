"""Brings parallel text from elsewhere into a corpus folder, which may already hold other language pairs."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.steps import Progress, Stamp, at_least_one, command, outdated, run
from moe_nmt.data import SPLITS, Corpus, CorpusError, Direction, parse_directions
from moe_nmt.data.directions import unknown
from moe_nmt.data.text import normalise_spaces, read_pair, rewriting

STEP = "import"
LAYOUTS = {
    "multiparallel": "<split>.<language>.txt[.gz], line-aligned over all languages",
    "bitext": "<split>.<a>-<b>.<language>[.gz], line-aligned over the two languages of each pair",
}


@dataclass(frozen=True)
class Origin:
    """A folder of text in one of the layouts, and what it calls our splits."""

    folder: Path
    layout: str
    splits: Mapping[str, str]

    def files(self, pair: Direction) -> dict[str, tuple[Path, Path]]:
        """The two files of a pair by split; CorpusError, with what the folder does hold, where one is missing."""
        return {
            split: (self._file(name, pair, pair.source), self._file(name, pair, pair.target))
            for split, name in self.splits.items()
        }

    def _file(self, name: str, pair: Direction, language: str) -> Path:
        names = [f"{name}.{language}.txt"]
        if self.layout == "bitext":
            names = [f"{name}.{direction}.{language}" for direction in (pair, pair.reverse)]
        for path in (self.folder / f"{plain}{ending}" for plain in names for ending in ("", ".gz")):
            if path.is_file():
                return path
        if self.layout == "bitext":
            raise unknown("language pair", str(pair), [str(p) for p in self.pairs()], f"{self.folder} ({name})")
        known = [path.name.split(".")[1] for path in sorted(self.folder.glob(f"{name}.*.txt*"))]
        raise unknown("language", language, known, f"{self.folder} ({name})")

    def pairs(self) -> list[Direction]:
        """The language pairs that a folder of bitext holds, from the names of its files."""
        files = itertools.chain(*(self.folder.glob(f"{name}.*-*.*") for name in self.splits.values()))
        return [Direction.parse(name) for name in sorted({path.name.split(".")[1] for path in files})]


def import_corpus(args: argparse.Namespace) -> None:
    """Writes CORPUS/raw and adds to its two tables; CorpusError where the folder does not hold what is asked for."""
    origin = Origin(args.folder.resolve(), args.layout, parse_splits(args.splits))
    corpus = Corpus.open(args.corpus) if (args.corpus / "languages.txt").exists() else Corpus.empty(args.corpus)
    files = {pair: origin.files(pair) for pair in parse_pairs(args.pairs, origin, corpus)}
    stamps = {pair: _stamp(corpus, pair, origin, args.max_train) for pair in files}
    waiting = outdated(STEP, stamps)
    progress = Progress(STEP, {pair: sum(path.stat().st_size for path in stamps[pair].inputs) for pair in waiting})
    for pair in waiting:
        with stamps[pair].renewing():
            counts = import_pair(corpus, pair, files[pair], args.max_train)
            corpus = corpus.adding({pair: counts, pair.reverse: counts})
            corpus.save()
        progress.finish(pair, ", ".join(f"{count:,} {split}" for split, count in counts.items()) + " pairs")


def _stamp(corpus: Corpus, pair: Direction, origin: Origin, max_train: int | None) -> Stamp:
    settings = {"folder": str(origin.folder), "splits": dict(origin.splits), "max_train": max_train}
    outputs = [path for split in origin.splits for path in corpus.sides("raw", split, pair)]
    return Stamp.of(corpus, f"{STEP}.{pair}", settings, itertools.chain(*origin.files(pair).values()), outputs)


def parse_splits(text: str) -> dict[str, str]:
    """`train=train,valid=val` -> {"train": "train", "valid": "val"}; CorpusError where it is written otherwise."""
    splits = dict(part.strip().partition("=")[::2] for part in text.split(","))
    for split, name in splits.items():
        if split not in SPLITS:
            raise unknown("split", split, SPLITS, "--splits")
        if not name:
            raise CorpusError(f"--splits names no file for {split}: write {split}=NAME, as in valid=dev")
    return splits


def parse_pairs(text: str | None, origin: Origin, corpus: Corpus) -> list[Direction]:
    """The language pairs to import; CorpusError where one comes twice, or stands the other way round in the corpus."""
    pairs = parse_directions(text) if text else origin.pairs()
    if not pairs:
        raise CorpusError(f"{origin.folder} holds no {LAYOUTS[origin.layout]} for {', '.join(origin.splits.values())}")
    for pair in pairs:
        if pair.reverse in pairs:
            raise CorpusError(f"{pair} and {pair.reverse} are the same language pair: keep one of them")
        if pair in corpus.directions and corpus.pair(pair) != pair:
            raise CorpusError(f"{corpus.folder} already holds {pair} as {pair.reverse}: import it under that name")
    return pairs


def import_pair(
    corpus: Corpus, pair: Direction, files: Mapping[str, tuple[Path, Path]], max_train: int | None
) -> dict[str, int]:
    """Imports the files of a language pair; returns its sentence pairs by split, 0 for a split without files."""
    limits = {"train": max_train}
    kept = {
        split: import_split(sides, corpus.sides("raw", split, pair), limits.get(split))
        for split, sides in files.items()
    }
    return {split: kept.get(split, 0) for split in SPLITS}


def import_split(sources: tuple[Path, Path], targets: tuple[Path, Path], limit: int | None) -> int:
    """Copies what has text on both sides, up to the limit; returns how many pairs that were."""
    kept = 0
    with rewriting(*targets) as files:
        for sides in itertools.islice(_with_text(sources), limit):
            kept += 1
            for file, line in zip(files, sides, strict=True):
                file.write(line + "\n")
        if not kept:
            raise CorpusError(
                f"{sources[0]} and {sources[1].name} have no line with text on both sides: leave this pair out"
            )
    return kept


def _with_text(paths: tuple[Path, Path]) -> Iterator[tuple[str, str]]:
    for first, second in read_pair(*paths):
        sides = normalise_spaces(first), normalise_spaces(second)
        if all(sides):
            yield sides


def main(layout: str, arguments: list[str]) -> int:
    parser = command(f"import_{layout}", f"{__doc__} FOLDER holds {LAYOUTS[layout]}.")
    parser.set_defaults(layout=layout)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the text is")
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="the corpus folder to make or to add to")
    parser.add_argument(
        "--pairs",
        required=layout == "multiparallel",
        metavar="A-B,…",
        help="language pairs; of bitext, all if left out",
    )
    parser.add_argument(
        "--splits", default="train=train,valid=valid,test=test", metavar="SPLIT=NAME,…", help="its names of our splits"
    )
    parser.add_argument("--max-train", type=at_least_one, metavar="N", help="take the first N training pairs only")
    return run(parser, import_corpus, arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2:]))
