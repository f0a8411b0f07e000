"""Collects the text of a corpus from its sources, which a YAML file describes: every line is kept or counted."""

from __future__ import annotations

import argparse
import contextlib
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from data_prep.collected import Part, Texts, read_part, save_part, save_parts, write_blocks
from data_prep.config import Config, Source, read_config
from data_prep.downloads import fetch
from data_prep.formats import FORMATS, Format
from data_prep.formats.format import Pair
from data_prep.languages import Languages
from data_prep.reading import BadFileError, Block, Fault
from data_prep.steps import Progress, Stamp, add_workers, command, run, say, side_by_side
from moe_nmt.data import Corpus, CorpusError
from moe_nmt.data.text import zip_of
from moe_nmt.errors import UserError

STEP = "collect"


@dataclass(frozen=True, eq=False)
class Job:
    """A part to be collected: from where, and how. `missing`: why there is nothing to read."""

    part: Part
    source: Source
    path: str
    codes: Pair = ("", "")
    turned: bool = False
    files: tuple[Path, ...] = ()
    missing: str = ""

    def __str__(self) -> str:
        part = self.part
        return f"{part.source} {part.split} {part.pair}"

    def stamp(self, corpus: Path) -> Stamp:
        """Current while the files and what is to be done with them are the same."""
        part, source = self.part, self.source
        settings = {
            "format": str(source.format),
            "codes": self.codes,
            "turned": self.turned,
            "one_way": part.one_way,
            "on_bad_line": source.on_bad_line,
            "on_bad_file": source.on_bad_file,
            "max_line_bytes": source.max_line_bytes,
            "inside": [path.name for path in self.files if zip_of(path)],
            "missing": self.missing,
        }
        name = f"{STEP}.{part.kind}.{part.split}.{part.pair}.{part.source}"
        outputs = [part.folder(corpus) / "part.json"]
        return Stamp.of(Corpus.empty(corpus), name, settings, map(_on_disk, self.files), outputs)

    def finished(self, corpus: Path) -> Part | None:
        """The part, where it is collected and still as it was."""
        if not self.stamp(corpus).is_current():
            return None
        part = read_part(corpus, self.part)
        return part if all(path.is_file() for path in part.paths(corpus)) else None

    def size(self) -> int:
        """The bytes of its files."""
        return sum(_on_disk(path).stat().st_size for path in self.files)


def _on_disk(path: Path) -> Path:
    return zip_of(path) or path


def collect(args: argparse.Namespace) -> None:
    """Writes CORPUS/collected; CorpusError where a source does not hold what the file says."""
    config = read_config(args.config)
    jobs = plan(config, args.corpus)
    parts = {job: job.finished(args.corpus) for job in jobs}
    waiting = sorted((job for job, part in parts.items() if part is None), key=Job.size, reverse=True)
    if len(waiting) < len(jobs):
        say(STEP, f"{len(jobs) - len(waiting)} of {len(jobs)} parts are up to date, skipped")
    if waiting:
        (args.corpus / "collected" / "parts.json").unlink(missing_ok=True)
    progress = Progress(STEP, {job: job.size() for job in waiting}, every=1)
    for job, part in side_by_side(partial(collect_part, args.corpus), waiting, args.workers):
        parts[job] = part
        progress.finish(job, describe(part))
    remove_others(args.corpus, jobs)
    done = [part for part in parts.values() if part]
    save_parts(args.corpus, done)
    say(STEP, f"{sum(part.pairs for part in done):,} pairs of {sum(part.lines for part in done):,} lines collected")


def plan(config: Config, corpus: Path) -> list[Job]:
    """All parts of all sources, in order; downloads what is not there yet."""
    languages = Languages.of(config)
    jobs = []
    for source in config.sources:
        path = locate(source, config.path.parent, corpus)
        for split, name in source.splits.items():
            jobs += _plan_split(source, path, split, name, languages)
    return jobs


def locate(source: Source, folder: Path, corpus: Path) -> str:
    """The path of a source, or the pattern of its paths, from the folder of the YAML file; or that of its download."""
    if source.url or source.opus or source.mtdata:
        return fetch(source, corpus)
    return str(folder.absolute() / str(source.path))


def _plan_split(source: Source, path: str, split: str, name: str, languages: Languages) -> list[Job]:
    where = f"source {source.name} ({path.replace('{split}', name)})"
    try:
        index = _format(source, path).index(name)
        if not index:
            raise CorpusError(f"{where} is not there, or nothing in it is called as format {source.format.name} has it")
        chosen = languages.choose(source, index.keys(), where)
    except (CorpusError, OSError) as error:
        if source.on_bad_file == "refuse":
            raise
        say(STEP, f"skipped: {error}")
        pairs = source.listed_pairs if source.one_way else map(languages.named, source.listed_pairs)
        parts = [Part(source.kind, split, pair, source.name, source.one_way) for pair in pairs]
        return [Job(part, source, path, missing=str(error)) for part in parts]
    jobs = []
    for pair, codes in chosen.items():
        part = Part(source.kind, split, pair, source.name, source.one_way)
        turned = codes not in index
        held = codes[::-1] if turned else codes
        jobs.append(Job(part, source, path, held, turned, index[held]))
    return jobs


def _format(source: Source, path: str) -> Format:
    try:
        return FORMATS.build(source.format, path=path)
    except UserError as error:
        raise CorpusError(f"source {source.name}: {error}") from None


def collect_part(corpus: Path, job: Job) -> Part:
    """Writes the chunks of a part; CorpusError where its files cannot be used and are not to be skipped."""
    folder = job.part.folder(corpus)
    with job.stamp(corpus).renewing():
        shutil.rmtree(folder, ignore_errors=True)
        counts: Counter[str] = Counter()
        try:
            part = _written(corpus, job, counts)
        except (CorpusError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            of_the_file = isinstance(error, CorpusError | FileNotFoundError)
            if job.source.on_bad_file == "refuse" or not of_the_file:
                raise
            part = _skipped(job.part, counts["lines"], error)
        save_part(corpus, part)
    return part


def _written(corpus: Path, job: Job, counts: Counter[str]) -> Part:
    if job.missing:
        raise BadFileError(job.missing, Fault.MISSING_FILE)
    chunks = write_blocks(job.part.folder(corpus), _texts(job, counts))
    if not counts["lines"]:
        raise BadFileError(f"{job.files[0]} is empty: fetch it again, or leave it out", Fault.EMPTY_FILE)
    dropped = {str(fault): counts[fault] for fault in Fault if counts[fault]}
    return replace(job.part, lines=counts["lines"], dropped=dropped, chunks=chunks)


def _texts(job: Job, counts: Counter[str]) -> Iterator[Texts]:
    """The text of both sides in blocks; counts its lines and its faults."""
    source = job.source
    for block in _format(source, job.path).read(job.codes, job.files, source.max_line_bytes):
        if source.on_bad_line == "refuse":
            _refuse_faults(job, block, counts["lines"])
        counts["lines"] += block.lines
        counts.update(block.faults.values())
        yield (block.targets, block.sources) if job.turned else (block.sources, block.targets)


def _refuse_faults(job: Job, block: Block, before: int) -> None:
    for place, fault in block.faults.items():
        if fault is not Fault.HEADER:
            files = " and ".join(map(str, job.files))
            raise CorpusError(f"line {before + place + 1} of {files} is {fault}: mend it, or set on_bad_line: drop")


def _skipped(part: Part, lines: int, error: Exception) -> Part:
    """A part of which nothing is used: all its lines count as dropped for what is wrong with the file."""
    if isinstance(error, BadFileError):
        fault, lines = error.fault, max(lines, error.lines)
    else:
        fault = Fault.MISSING_FILE if isinstance(error, OSError) else Fault.DAMAGED_FILE
    return replace(part, lines=lines, dropped={str(fault): lines})


def describe(part: Part) -> str:
    """What became of the lines of a part."""
    dropped = "".join(f", {count:,} {fault}" for fault, count in part.dropped.items())
    return f"{part.pairs:,} pairs of {part.lines:,} lines{dropped}"


def remove_others(corpus: Path, jobs: list[Job]) -> None:
    """Removes what was collected for parts that the file no longer describes."""
    ours = {job.part.folder(corpus) for job in jobs}
    for folder in (corpus / "collected").glob("*/*/*/*"):
        if folder not in ours:
            shutil.rmtree(folder)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()
    stamps = {job.stamp(corpus).path for job in jobs}
    for path in (corpus / ".stamps").glob(f"{STEP}.*.json"):
        if path not in stamps:
            path.unlink()


def main() -> int:
    parser = command(STEP, __doc__)
    parser.add_argument("config", type=Path, metavar="SOURCES.yaml", help="the file that describes the corpus")
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="the corpus folder to make")
    add_workers(parser)
    return run(parser, collect)


if __name__ == "__main__":
    raise SystemExit(main())
