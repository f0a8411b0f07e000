"""Cleans the collected text of a corpus by named filters in order, and writes its raw text, tables and a report.

Training pairs go through the filters; validation and test sets stay as they were collected.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from data_prep.clean_plan import Plan
from data_prep.clean_report import write_report
from data_prep.cleaning import Outcome, clean_text
from data_prep.config import read_config
from data_prep.filters import FILTERS
from data_prep.steps import Stamp, add_corpus, add_workers, command, run, say
from moe_nmt.data import MAIN, SPLITS, Corpus, CorpusError, Direction
from moe_nmt.data.text import read_lines
from moe_nmt.registry import Spec, parse_list

STEP = "clean"
DEFAULT = (
    "[normalise, control_characters, damaged, length, ratio, letters, script, repeated_characters, identical, leaks, "
    "exact_duplicates, near_duplicates]"
)


def clean(args: argparse.Namespace) -> None:
    """Writes CORPUS/raw, its tables and CORPUS/reports/clean.*; UserError where text or filters do not allow it."""
    plan = Plan.of(args.corpus, chosen(args.filters, args.config))
    stamp = stamp_of(plan)
    if stamp.is_current():
        say(STEP, f"{plan.corpus / 'raw'} is up to date, skipped")
        return
    remove_earlier(plan)
    with stamp.renewing():
        outcomes = clean_text(plan, args.workers)
        save_tables(plan, outcomes, args.config)
        write_report(plan, outcomes)
        remove_others(plan)
    shutil.rmtree(plan.corpus / "cleaned")


def chosen(written: str | None, config: Path | None) -> list[Spec]:
    """The filters of --filters, of the file of --config, or the usual ones; UserError where one does not exist."""
    texts = [written or DEFAULT]
    if config and (configured := read_config(config).filters) is not None:
        texts = list(configured)
    specs = [spec for text in texts for spec in parse_list(text)]
    for spec in specs:
        FILTERS.check(spec)
    return specs


def stamp_of(plan: Plan) -> Stamp:
    raw = [path for target in plan.targets for path in plan.raw(target)]
    outputs = [*raw, plan.corpus / "reports" / "clean.json"]
    settings = {"digest": plan.digest, "filters": [str(spec) for _, spec in plan.steps]}
    return Stamp.of(Corpus.empty(plan.corpus), STEP, settings, (), outputs)


def remove_earlier(plan: Plan) -> None:
    """Removes what an earlier run with other filters or other text left unfinished."""
    for folder in (plan.corpus / "cleaned").glob("*"):
        if folder != plan.work:
            shutil.rmtree(folder)


def remove_others(plan: Plan) -> None:
    """Removes raw text that is not of this corpus any more."""
    ours = {path for target in plan.targets for path in plan.raw(target)}
    for folder in (plan.corpus, *(plan.corpus / "extra").glob("*")):
        for path in (folder / "raw").glob("*"):
            if path not in ours:
                path.unlink()


def save_tables(plan: Plan, outcomes: Sequence[Outcome], config: Path | None) -> None:
    """Writes languages.txt and directions.tsv of the corpus and of its extra data; all have the same languages.

    A language keeps its place from one run to the next; new ones go last, in the order of the file of `config` if it
    has one, else as they come, but English first.
    """
    counts: dict[str, dict[Direction, dict[str, int]]] = {MAIN: {}}
    for outcome in outcomes:
        for direction in outcome.target.directions:
            row = counts.setdefault(outcome.target.kind, {}).setdefault(direction, dict.fromkeys(SPLITS, 0))
            row[outcome.target.split] += outcome.kept
    filled = {kind: {d: row for d, row in rows.items() if any(row.values())} for kind, rows in counts.items()}
    if not filled[MAIN]:
        raise CorpusError(f"no pair of the main data of {plan.corpus} stays: mend the filters, or add sources")
    languages = all_languages(plan, config, [direction for rows in filled.values() for direction in rows])
    for kind, rows in filled.items():
        if rows:
            Corpus(plan.folder(kind), languages, {}).adding(rows).save()


def all_languages(plan: Plan, config: Path | None, directions: Sequence[Direction]) -> tuple[str, ...]:
    """The languages of all kinds of data, in order."""
    written = plan.corpus / "languages.txt"
    earlier = [line.strip() for line in read_lines(written)] if written.is_file() else []
    wanted = (read_config(config).languages if config else None) or ()
    known = Corpus(plan.corpus, (*earlier, *(code for code in wanted if code not in earlier)), {})
    return known.adding({direction: {} for direction in directions}).languages


def table() -> str:
    """A Markdown table of all filters."""
    rows = [f"| `{entry.signature}` | {entry.summary} |" for entry in FILTERS.entries().values()]
    return "\n".join(["| filter with its options | what it does |", "| --- | --- |", *rows])


class ListFilters(argparse.Action):
    """Prints all filters and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(table())
        parser.exit()


def main() -> int:
    parser = command(STEP, __doc__)
    add_corpus(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--config", type=Path, metavar="YAML", help="take the list `filters` of this file")
    which.add_argument("--filters", metavar="LIST", help=f"filters, in this order (usual: {DEFAULT})")
    parser.add_argument("--list", action=ListFilters, nargs=0, help="print all filters with their options")
    add_workers(parser)
    return run(parser, clean)


if __name__ == "__main__":
    raise SystemExit(main())
