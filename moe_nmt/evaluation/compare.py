"""`moe-nmt compare`: whether systems differ by more than chance, by direction and on average."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_nmt.data import Direction
from moe_nmt.data.text import write_text
from moe_nmt.errors import UserError
from moe_nmt.evaluation.layout import Table, as_columns, as_markdown
from moe_nmt.evaluation.output import System
from moe_nmt.evaluation.results import BUCKETS, GROUPS, METRICS
from moe_nmt.evaluation.significance import TESTS, Comparison, Differences, PairedTest
from moe_nmt.evaluation.tables import TITLES

LEVEL = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `moe-nmt compare`."""
    parser.description = (
        "Compare systems with a baseline by a paired test over sentences: for every direction, and for the means over "
        "groups and resource buckets, in which directions are resampled together. A FOLDER is what moe-nmt evaluate or "
        "moe-nmt score --output has written; all must have the same references. An interval is where the true "
        "difference lies with a probability of 95 %."
    )
    parser.add_argument("baseline", type=Path, metavar="BASELINE", help="folder of the system to compare with")
    parser.add_argument("systems", type=Path, nargs="+", metavar="FOLDER", help="folders of the other systems")
    parser.add_argument("--metric", choices=METRICS, default="chrf++", help="what to compare (default: %(default)s)")
    parser.add_argument(
        "--test",
        choices=sorted(TESTS),
        default="bootstrap",
        help="paired bootstrap resampling, or approximate randomization, without intervals (default: %(default)s)",
    )
    parser.add_argument("--draws", type=int, metavar="N", help="resampled test sets (default: 1000), or trials (10000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables as Markdown")


def main(args: argparse.Namespace) -> int:
    """Runs `moe-nmt compare`; returns the exit status. UserError where systems cannot be compared."""
    if args.draws is not None and args.draws < 1:
        raise UserError(f"--draws {args.draws} is too small; give at least 1, and 1000 for a test to be worth it.")
    test = TESTS[args.test](args.draws) if args.draws else TESTS[args.test]()
    baseline = System.read(args.baseline)
    compared = [compare(baseline, System.read(folder), args.metric, test) for folder in args.systems]
    print("\n".join(found.render() for found in compared), end="")
    if args.markdown:
        write_text(args.markdown, "\n".join(found.render(markdown=True) for found in compared))
    if args.json:
        settings = {"baseline": str(args.baseline), "metric": args.metric, "test": args.test, "draws": test.draws}
        content = {**settings, "systems": {found.system: found.as_dict() for found in compared}}
        write_text(args.json, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return 0


@dataclass(frozen=True)
class Compared:
    """A system against the baseline: by direction, and the means by `group` or `group, bucket`."""

    baseline: str
    system: str
    metric: str
    directions: Mapping[Direction, Comparison]
    means: Mapping[str, tuple[int, Comparison]]

    def render(self, markdown: bool = False) -> str:
        """A title, the table of directions and the table of means."""
        better, worse = (self.significant(sign) for sign in (1, -1))
        title = (
            f"{self.system} against {self.baseline}, {TITLES[self.metric]}: at p < {LEVEL}, {better} of "
            f"{len(self.directions)} directions are better and {worse} worse"
        )
        header = ["baseline", "system", "difference", "95 % interval", "p"]
        by_direction = [["direction", *header], *([str(d), *cells(c)] for d, c in self.directions.items())]
        of_means = [["mean of", "directions", *header]]
        of_means += [[name, str(number), *cells(found)] for name, (number, found) in self.means.items()]
        tables: list[Table] = [by_direction, of_means]
        layout = as_markdown if markdown else as_columns
        return "\n\n".join([title, *map(layout, tables)]) + "\n"

    def significant(self, sign: int) -> int:
        """How many directions are better (1) or worse (-1) than the baseline at p < LEVEL."""
        return sum(c.p_value < LEVEL and sign * c.difference > 0 for c in self.directions.values())

    def as_dict(self) -> dict[str, Any]:
        return {
            "directions": {str(direction): figures(found) for direction, found in self.directions.items()},
            "means": {name: {"directions": number, **figures(c)} for name, (number, c) in self.means.items()},
        }


def compare(baseline: System, system: System, metric: str, test: PairedTest) -> Compared:
    """Compares two systems on the directions that both have; says on stderr how far it is.

    Raises:
        UserError: if they have no direction in common, other references, or not the metric.
    """
    common = [direction for direction in baseline.counts if direction in system.counts]
    if not common:
        raise UserError(f"{baseline.name} and {system.name} have no direction in common; evaluate the same directions.")
    drawn = {}
    for number, direction in enumerate(common, start=1):
        check(baseline, system, direction, metric)
        counts = (folder.counts[direction][metric] for folder in (baseline, system))
        drawn[direction] = Differences.of(test, metric, *counts)
        print(f"compare: {number}/{len(common)} {direction}", file=sys.stderr, flush=True)
    return Compared(
        baseline.name,
        system.name,
        metric,
        {direction: differences.compare(test) for direction, differences in drawn.items()},
        {
            name: (len(members), Differences.mean([drawn[d] for d in members]).compare(test))
            for name, members in groups(common, baseline.buckets)
        },
    )


def check(baseline: System, system: System, direction: Direction, metric: str) -> None:
    """UserError unless both have scored the direction by the metric and against the same references."""
    for folder in (baseline, system):
        if metric not in folder.counts[direction]:
            raise UserError(
                f"{folder.name} has no {TITLES[metric]} of {direction}; evaluate it again where the metric is at hand, "
                "or choose another --metric."
            )
    if baseline.references[direction] != system.references[direction]:
        raise UserError(
            f"{baseline.name} and {system.name} were scored with different references of {direction}; evaluate both "
            "with the same corpus and split."
        )


def groups(directions: list[Direction], buckets: Mapping[Direction, str]) -> Iterator[tuple[str, list[Direction]]]:
    """The groups of directions, and the buckets within them, that are not empty."""
    for group, member in GROUPS.items():
        for bucket in (None, *BUCKETS):
            members = [d for d in directions if member(d) and (bucket is None or buckets.get(d) == bucket)]
            if members:
                yield f"{group}, {bucket}" if bucket else group, members


def cells(found: Comparison) -> list[str]:
    interval = "-" if found.interval is None else " to ".join(f"{value:+.1f}" for value in found.interval)
    scores = [f"{found.baseline:.1f}", f"{found.system:.1f}", f"{found.difference:+.1f}"]
    return [*scores, interval, f"{found.p_value:.3f}"]


def figures(found: Comparison) -> dict[str, Any]:
    return {
        "baseline": round(found.baseline, 2),
        "system": round(found.system, 2),
        "difference": round(found.difference, 2),
        "interval": found.interval and [round(value, 2) for value in found.interval],
        "p": round(found.p_value, 6),
    }
