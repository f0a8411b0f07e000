"""How cleaning is done: filters over chunks in processes side by side, duplicates over a language pair by DuckDB.

What a pass leaves of a chunk lies in WORK/PASS/PAIR/CHUNK.parquet, with the number of each row and a key for each of
the `Duplicates` at the end of the pass; the rows of the language pair that stay lie in WORK/PASS/PAIR.parquet. Beside
each is a .json of what fell, written last. What is there is not done again; the result depends neither on that nor on
the number of processes.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from data_prep import filters
from data_prep.clean_plan import HELD_OUT, TRAIN, Chunk, Pass, Plan, Target
from data_prep.collected import Part, write_frame
from data_prep.filters import SIDES, Edit
from data_prep.filters.leaks import keys
from data_prep.steps import Progress, say, side_by_side
from moe_nmt.data import CorpusError, Direction
from moe_nmt.data.text import drafting, rewriting, write_text

STEP = "clean"
MEMORY = "1GB"
"""What DuckDB may hold in memory; the rest goes to disk."""
ROW_BITS = 20
"""The number of a row is the number of its chunk, then so many bits for its place there."""
EXAMPLES = 3
"""Pairs that are kept to be shown, of those that a filter drops from a chunk."""


@dataclass
class Outcome:
    """What became of a part of a text: `fallen` and `edited` pairs by step in order, and some of the fallen ones."""

    target: Target
    part: Part
    kept: int = 0
    fallen: Counter[str] = field(default_factory=Counter)
    edited: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[list[str]]] = field(default_factory=dict)

    @property
    def accounted(self) -> int:
        """The lines of the part of which is known what became of them: all of them."""
        return self.kept + sum(self.fallen.values()) + sum(self.part.dropped.values())


def clean_text(plan: Plan, workers: int) -> list[Outcome]:
    """Does what is not done yet, writes the raw text, and returns what became of every part.

    CorpusError where polars or DuckDB fail, for example for want of room on the disk.
    """
    import duckdb

    try:
        find_held_out(plan)
        for number in range(len(plan.passes)):
            filter_chunks(plan, number, workers)
            compare_pairs(plan, number, workers)
        return write_targets(plan, workers)
    except (pl.exceptions.PolarsError, duckdb.Error) as error:
        raise CorpusError(
            f"cleaning {plan.corpus} failed, run it again to go on: {str(error).splitlines()[0]}"
        ) from None


def find_held_out(plan: Plan) -> None:
    """Writes the keys of all held-out sentences, which `leaks` asks for."""
    path = held_out_keys(plan.work)
    if not path.is_file():
        chunks = [path for part in plan.parts if part.split in HELD_OUT for path in part.paths(plan.corpus)]
        found = keys(chunks)
        with drafting(path) as (draft,):
            write_frame(found, draft)
        say(STEP, f"{len(found):,} different sentences are held out for validation and test")


def held_out_keys(work: Path) -> Path:
    return work / "held_out.parquet"


def filter_chunks(plan: Plan, number: int, workers: int) -> None:
    """Takes all chunks through the filters of a pass that see a pair by itself."""
    waiting = [chunk for chunk in plan.chunks if not counts_of(plan.work, number, chunk).is_file()]
    progress = Progress(label(plan, number), {chunk: chunk.path.stat().st_size for chunk in waiting}, every=2)
    job = partial(filter_chunk, plan.work, plan.passes, number, plan.languages)
    for chunk, result in side_by_side(job, waiting, workers):
        progress.finish(chunk, result)


def label(plan: Plan, number: int) -> str:
    """What progress calls a pass."""
    return STEP if len(plan.passes) == 1 else f"{STEP} {number + 1}/{len(plan.passes)}"


def filter_chunk(work: Path, passes: Sequence[Pass], number: int, languages: tuple[str, ...], chunk: Chunk) -> str:
    """Writes what a pass leaves of a chunk and what fell; says how much of it that is."""
    pairs = alive(work, passes, number - 1, chunk)
    before, counts = len(pairs), {"fallen": {}, "edited": {}, "examples": {}}
    build = partial(
        filters.FILTERS.build,
        source=chunk.pair.source,
        target=chunk.pair.target,
        languages=languages,
        held_out=held_out_keys(work),
    )
    criteria: dict[str, pl.Expr] = {}
    for name, spec in passes[number].steps:
        step = build(spec)
        if isinstance(step, Edit):
            pairs, criteria = drop(pairs, criteria, counts), {}
            pairs = edit(pairs, step, name, counts)
        else:
            criteria[name] = step.keep()
    keys = [build(spec).key().alias(f"key{place}") for place, (_, spec) in enumerate(passes[number].duplicates)]
    pairs = drop(pairs, criteria, counts, keys)
    with drafting(counts_of(work, number, chunk).with_suffix(".parquet")) as (draft,):
        write_frame(pairs, draft)
    write_text(counts_of(work, number, chunk), json.dumps(counts, ensure_ascii=False))
    return f"{len(pairs):,} of {before:,} pairs stay"


def edit(pairs: pl.DataFrame, step: Edit, name: str, counts: dict[str, Any]) -> pl.DataFrame:
    """The pairs with their text rewritten, less those of which a side became empty."""
    edited = pairs.with_columns(step.edit(pl.col(side)) for side in SIDES)
    changed = (edited["source"] != pairs["source"]) | (edited["target"] != pairs["target"])
    counts["edited"][name] = changed.sum()
    full = (edited["source"] != "") & (edited["target"] != "")
    note_fallen(pairs, ~full, name, counts)
    return edited.filter(full)


def drop(
    pairs: pl.DataFrame, criteria: Mapping[str, pl.Expr], counts: dict[str, Any], keys: Sequence[pl.Expr] = ()
) -> pl.DataFrame:
    """The pairs that all criteria keep, with the columns `keys`.

    All of it is one query, so that polars computes what the expressions share, like folded text, once.
    """
    judged = pairs.lazy().with_columns(*keys, **criteria).collect()
    stay = pl.repeat(True, len(pairs), dtype=pl.Boolean, eager=True)
    for name in criteria:
        note_fallen(pairs, stay & ~judged[name], name, counts)
        stay &= judged[name]
    return judged.drop(list(criteria)).filter(stay)


def note_fallen(pairs: pl.DataFrame, fell: pl.Series, name: str, counts: dict[str, Any]) -> None:
    """Note how many pairs fell at a step, and some of them."""
    counts["fallen"][name] = fell.sum()
    if counts["fallen"][name]:
        counts["examples"][name] = pairs.filter(fell).head(EXAMPLES).select(SIDES).rows()


def alive(work: Path, passes: Sequence[Pass], number: int, chunk: Chunk) -> pl.DataFrame:
    """The pairs of a chunk after a pass, or as they were collected before the first: columns row, source, target."""
    if number < 0:
        names = SIDES[::-1] if chunk.turned else SIDES
        pairs = pl.read_parquet(chunk.path).select(
            pl.col(side).alias(name) for side, name in zip(SIDES, names, strict=True)
        )
        return pairs.with_row_index("row", chunk.number << ROW_BITS).with_columns(pl.col("row").cast(pl.UInt64))
    pairs = pl.read_parquet(counts_of(work, number, chunk).with_suffix(".parquet"), columns=["row", *SIDES])
    if passes[number].duplicates:
        first = chunk.number << ROW_BITS
        rows = pl.scan_parquet(rows_of(work, number, chunk.pair).with_suffix(".parquet"))
        kept = rows.filter(pl.col("row").is_between(first, first + (1 << ROW_BITS) - 1)).collect()
        pairs = pairs.filter(pl.col("row").is_in(kept["row"].implode()))
    return pairs


def counts_of(work: Path, number: int, chunk: Chunk) -> Path:
    """The counts of a chunk in a pass; beside it, as .parquet, is what is left of it."""
    return work / str(number) / str(chunk.pair) / f"{chunk.number:06}.json"


def rows_of(work: Path, number: int, pair: Direction) -> Path:
    """The counts of the duplicates of a language pair in a pass; beside it, as .parquet, are the rows that stay."""
    return work / str(number) / f"{pair}.json"


def compare_pairs(plan: Plan, number: int, workers: int) -> None:
    """Finds the duplicates of each language pair in a pass."""
    names = [name for name, _ in plan.passes[number].duplicates]
    chunks = Counter(chunk.pair for chunk in plan.chunks)
    waiting = [pair for pair in chunks if names and not rows_of(plan.work, number, pair).is_file()]
    progress = Progress(label(plan, number), {pair: chunks[pair] for pair in waiting})
    for pair, result in side_by_side(partial(compare_pair, plan.work, number, names), waiting, workers):
        progress.finish(pair, result)


def compare_pair(work: Path, number: int, names: Sequence[str], pair: Direction) -> str:
    """Writes the rows of a language pair that stay, of those with equal keys the first, and how many of each chunk fell
    by which key; says how many that are."""
    import duckdb

    counts = rows_of(work, number, pair)
    keys = [f"key{place}" for place in range(len(names))]
    with drafting(counts.with_suffix(".parquet")) as (draft,), duckdb.connect() as database:
        database.execute(f"SET memory_limit='{MEMORY}'; SET threads=1; SET preserve_insertion_order=false")
        database.execute(f"SET temp_directory={quoted(counts.with_suffix('.spilt'))}")
        chunks = quoted(counts.with_suffix("") / "*.parquet")
        database.execute(f"CREATE TABLE level0 AS SELECT row, {', '.join(keys)} FROM read_parquet({chunks})")
        for place, key in enumerate(keys):
            others = "".join(f", arg_min({other}, row) AS {other}" for other in keys[place + 1 :])
            database.execute(
                f"CREATE TABLE level{place + 1} AS SELECT min(row) AS row{others} FROM level{place} GROUP BY {key}"
            )
        database.execute(f"COPY (SELECT row FROM level{len(keys)} ORDER BY row) TO {quoted(draft)} (FORMAT parquet)")
        levels = [
            dict(database.execute(f"SELECT row >> {ROW_BITS}, count(*) FROM level{level} GROUP BY ALL").fetchall())
            for level in range(len(keys) + 1)
        ]
    shutil.rmtree(counts.with_suffix(".spilt"), ignore_errors=True)
    fallen = {
        name: {chunk: before[chunk] - after.get(chunk, 0) for chunk in sorted(before)}
        for name, before, after in zip(names, levels, levels[1:], strict=False)
    }
    write_text(counts, json.dumps(fallen))
    return ", ".join(f"{sum(by_chunk.values()):,} {name}" for name, by_chunk in fallen.items())


def quoted(path: Path) -> str:
    """The path as a string of SQL."""
    return "'" + str(path).replace("'", "''") + "'"


def write_targets(plan: Plan, workers: int) -> list[Outcome]:
    """Writes the raw text; returns what became of every part, in the order of the targets."""
    chunks: dict[Part, list[Chunk]] = {}
    for chunk in plan.chunks:
        chunks.setdefault(chunk.part, []).append(chunk)
    progress = Progress(STEP, {target: sum(part.pairs for part in target.parts) for target in plan.targets})
    outcomes = {}
    jobs = [(target, plan.raw(target), [chunks.get(part, []) for part in target.parts]) for target in plan.targets]
    for (target, *_), found in side_by_side(partial(write_target, plan.corpus, plan.work, plan.passes), jobs, workers):
        outcomes[target] = found
        progress.finish(target, f"{sum(outcome.kept for outcome in found):,} pairs")
    return [outcome for target in plan.targets for outcome in outcomes[target]]


def write_target(
    corpus: Path, work: Path, passes: Sequence[Pass], job: tuple[Target, tuple[Path, Path], list[list[Chunk]]]
) -> list[Outcome]:
    """Writes both sides of a text: held-out parts as they were collected, training parts as the last pass left them."""
    target, paths, chunks_of_parts = job
    outcomes = []
    with rewriting(*paths) as files:
        for part, chunks in zip(target.parts, chunks_of_parts, strict=True):
            outcome = Outcome(target, part)
            for chunk in chunks:
                add_counts(outcome, work, passes, chunk)
            if target.split != TRAIN:
                chunks = [Chunk(part, target.pair, path, number) for number, path in enumerate(part.paths(corpus))]
            for chunk in chunks:
                pairs = alive(work, passes, len(passes) - 1 if target.split == TRAIN else -1, chunk)
                outcome.kept += len(pairs)
                for file, side in zip(files, SIDES, strict=True):
                    file.writelines(f"{line}\n" for line in pairs[side].to_list())
            assert outcome.accounted == part.lines, (
                f"{outcome.accounted} of {part.lines} lines of {part} are accounted for"
            )
            outcomes.append(outcome)
    return outcomes


def add_counts(outcome: Outcome, work: Path, passes: Sequence[Pass], chunk: Chunk) -> None:
    """Add what fell of a chunk in all passes."""
    for number, step in enumerate(passes):
        counts = json.loads(counts_of(work, number, chunk).read_text(encoding="utf-8"))
        outcome.fallen.update(counts["fallen"])
        outcome.edited.update(counts["edited"])
        for name, pairs in counts["examples"].items():
            shown = outcome.examples.setdefault(name, [])
            shown += pairs[: EXAMPLES - len(shown)]
        if step.duplicates:
            fallen = fallen_duplicates(rows_of(work, number, chunk.pair))
            outcome.fallen.update({name: by_chunk.get(str(chunk.number), 0) for name, by_chunk in fallen.items()})


@functools.lru_cache(maxsize=8)
def fallen_duplicates(counts: Path) -> dict[str, dict[str, int]]:
    """What `compare_pair` counted of a language pair, read once for all of its chunks."""
    return json.loads(counts.read_text(encoding="utf-8"))
