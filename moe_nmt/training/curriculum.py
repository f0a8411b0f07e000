"""A curriculum: at which update of the training each direction joins it (NLLB Team 2022, curriculum learning).

Directions that over-fit early join late, so that each is trained about as long as it does it good. The optimizer, the
learning rate and the vocabulary know nothing of this.
"""

from __future__ import annotations

import argparse
import bisect
import functools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_nmt.data import Corpus, CorpusError, Direction
from moe_nmt.data.text import read_lines, write_text
from moe_nmt.errors import UserError

HEADER = "direction\tstart"
DEFAULT_PHASES = 3
SECOND_PHASE, SHRINKING = 0.4, 0.5
"""The paper's lengths of phases are 1, 0.4 and 0.2 of the whole; each further one is taken half as long again."""


@dataclass(frozen=True)
class Phase:
    """From update `start` on `active` directions are trained, `new` ones among them for the first time."""

    start: int
    new: list[Direction]
    active: list[Direction]


@dataclass(frozen=True)
class Curriculum:
    """`start[direction]` is the number of updates done when the direction joins; it stays from then on.

    At least one direction starts at 0. Phases are numbered from 1.
    """

    start: Mapping[Direction, int]

    @classmethod
    def read(cls, path: Path) -> Curriculum:
        """Reads a table with the header `direction start` and a row per direction (tabs or spaces).

        UserError, with file and line, where it cannot be read or no direction starts at 0.
        """
        if not path.is_file():
            raise UserError(f"the curriculum {path} does not exist; write one with moe-nmt curriculum, or by hand.")
        header, *rows = [line.split() for line in read_lines(path)] or [[]]
        if header != HEADER.split():
            raise UserError(f"{path} line 1 must be the header 'direction<TAB>start' of a curriculum.")
        start: dict[Direction, int] = {}
        for line, cells in enumerate(rows, start=2):
            if cells:
                direction, update = _read_row(cells, f"{path} line {line}")
                if direction in start:
                    raise UserError(f"{path} line {line}: {direction} has a row already; keep one.")
                start[direction] = update
        if 0 not in start.values():
            raise UserError(f"{path} has no direction that starts at 0, so training could not begin; give one start 0.")
        return cls(start)

    def write(self, path: Path) -> None:
        """Writes what `read` reads, earlier starts first."""
        rows = sorted(self.start.items(), key=lambda row: row[1])
        write_text(path, "".join(f"{row}\n" for row in [HEADER, *(f"{name}\t{start}" for name, start in rows)]))

    @functools.cached_property
    def starts(self) -> list[int]:
        """The updates at which phases start, in order; the first is 0."""
        return sorted(set(self.start.values()))

    @property
    def phases(self) -> list[Phase]:
        """All phases, in order."""
        return [
            Phase(start, [name for name, at in self.start.items() if at == start], self.active(start))
            for start in self.starts
        ]

    def phase(self, update: int) -> int:
        """The number, from 1, of the phase after `update` updates."""
        return bisect.bisect_right(self.starts, update)

    def next_start(self, update: int) -> int | None:
        """The start of the next phase after `update` updates, or None in the last phase."""
        return next((start for start in self.starts if start > update), None)

    def active(self, update: int) -> list[Direction]:
        """The directions that are trained after `update` updates."""
        return [direction for direction, start in self.start.items() if start <= update]


def _read_row(cells: list[str], place: str) -> tuple[Direction, int]:
    try:
        direction = Direction.parse(cells[0])
    except CorpusError as error:
        raise UserError(f"{place}: {error}") from None
    if len(cells) != 2 or not (cells[1].isascii() and cells[1].isdecimal()):
        raise UserError(f"{place}: write a direction, a tab and the update it starts at, a whole number from 0.")
    return direction, int(cells[1])


def from_best_steps(
    best_steps: Mapping[Direction, int],
    max_update: int,
    phases: int | None = None,
    lengths: Sequence[int] | None = None,
) -> Curriculum:
    """Step-based: directions join about as long before the end as they take to over-fit.

    `best_steps[direction]` is the update of the best validation perplexity in a run without a curriculum, `max_update`
    or more if that has not come yet.

    With `lengths` (of the phases, from first to last: how long before the end each starts) a direction goes into the
    phase of the length nearest to its best step, the shorter at a tie. Without: directions that do not over-fit go into
    the first phase, and the others are sorted by best step and cut into as many parts as are left, of equal numbers
    of directions (equal best steps stay together, in the earlier phase); the length of a part is the median of its
    best steps, but that of the first phase is `max_update`. Parts may come out empty: then there are fewer phases.

    Raises:
        UserError: if phases or lengths make no sense.
    """
    phases = check_lengths(max_update, phases, lengths)
    if lengths:
        buckets: list[list[Direction]] = [[] for _ in lengths]
        for direction, step in best_steps.items():
            nearest = min(range(len(lengths)), key=lambda i: (abs(lengths[i] - step), lengths[i]))
            buckets[nearest].append(direction)
        return _join_before_end(buckets, lengths, max_update)
    never = [direction for direction, step in best_steps.items() if step >= max_update]
    overfitting = {direction: step for direction, step in best_steps.items() if step < max_update}
    buckets = cut_evenly(overfitting, phases - bool(never))
    if never:
        buckets.insert(0, never)
    medians = [int(statistics.median(best_steps[name] for name in bucket)) if bucket else 0 for bucket in buckets]
    return _join_before_end(buckets, medians, max_update)


def from_sizes(
    sizes: Mapping[Direction, int],
    max_update: int,
    phases: int | None = None,
    lengths: Sequence[int] | None = None,
    thresholds: Sequence[int] | None = None,
) -> Curriculum:
    """Count-based: directions with more sentence pairs join earlier.

    `thresholds`, falling, are the sizes from which a direction belongs to the first phase, the second, …; the last
    phase takes the rest. Without them the directions, sorted by size, are cut into parts of equal numbers. `lengths`
    are as in `from_best_steps`; by default 1, 0.4, 0.2, 0.1, … of `max_update`: the paper's for three phases.

    Raises:
        UserError: if phases, lengths or thresholds make no sense.
    """
    if thresholds and phases is None and lengths is None:
        phases = len(thresholds) + 1
    phases = check_lengths(max_update, phases, lengths)
    lengths = lengths or [max_update, *(int(max_update * SECOND_PHASE * SHRINKING**i) for i in range(phases - 1))]
    if thresholds is None:
        return _join_before_end(cut_evenly(sizes, phases), lengths, max_update)
    if len(thresholds) != phases - 1 or list(thresholds) != sorted(set(thresholds), reverse=True):
        raise UserError(f"the thresholds of {phases} phases are {phases - 1} falling sizes, not {_listed(thresholds)}.")
    buckets: list[list[Direction]] = [[] for _ in lengths]
    for direction, size in sizes.items():
        buckets[sum(size < threshold for threshold in thresholds)].append(direction)
    return _join_before_end(buckets, lengths, max_update)


def cut_evenly(values: Mapping[Direction, int], parts: int) -> list[list[Direction]]:
    """The directions from the largest value down in parts of about equal numbers; equal values are never parted."""
    ascending = sorted(values.values())
    buckets: list[list[Direction]] = [[] for _ in range(parts)]
    for direction, value in values.items():
        larger = len(ascending) - bisect.bisect_right(ascending, value)
        buckets[larger * parts // len(ascending)].append(direction)
    return buckets


def check_lengths(max_update: int, phases: int | None, lengths: Sequence[int] | None) -> int:
    """The number of phases; UserError unless `lengths` falls from `max_update` to more than 0 and agrees with it."""
    number = phases or (len(lengths) if lengths else DEFAULT_PHASES)
    if number < 2 or max_update < 1:
        raise UserError(
            f"a curriculum has 2 phases or more, and its training 1 update or more, not {number} and {max_update}."
        )
    if lengths and len(lengths) != number:
        raise UserError(f"{_listed(lengths)} are lengths of {len(lengths)} phases, not of {number}; give one a phase.")
    if lengths and (list(lengths) != sorted(set(lengths), reverse=True) or lengths[0] != max_update or lengths[-1] < 1):
        raise UserError(
            f"the lengths {_listed(lengths)} must fall, from the whole training, {max_update}, to the last phase; "
            "each is how many updates before the end a phase starts."
        )
    return number


def _join_before_end(buckets: list[list[Direction]], lengths: Sequence[int], max_update: int) -> Curriculum:
    """Each bucket starts its length before the end; the first that holds a direction, which must be one, at 0."""
    first, *later = [(bucket, length) for bucket, length in zip(buckets, lengths, strict=True) if bucket]
    start = dict.fromkeys(first[0], 0)
    for bucket, length in later:
        start |= dict.fromkeys(bucket, max_update - length)
    return Curriculum(start)


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def best_step(steps: Sequence[int], perplexities: Sequence[float]) -> int:
    """The step of the lowest perplexity, the later one at a tie."""
    return -min((value, -step) for step, value in zip(steps, perplexities, strict=True))[1]


def best_steps_of_run(run: Path, max_update: int | None) -> tuple[dict[Direction, int], int]:
    """Best steps out of a run's TensorBoard folder, and the length of the training: `max_update` or the run's own.

    A direction whose last validation is its best has not over-fitted yet: its best step is the length of the training.

    Raises:
        UserError: if there are no curves, or none of single directions.
    """
    from moe_nmt.evaluation.curves import read_curves

    subsets = read_curves(run)
    marker = "ppl_"
    curves = {
        name.removeprefix(marker): curve for name, curve in subsets.get("valid", {}).items() if name.startswith(marker)
    }
    if not curves:
        raise UserError(
            f"{run} has no validation perplexity of single directions; train with --task multilingual_translation_moe, "
            "--criterion moe_label_smoothed_cross_entropy and --tensorboard-logdir, with validation on."
        )
    length = max_update or max(curve.steps[-1] for subset in subsets.values() for curve in subset.values())
    best = {name: best_step(curve.steps, curve.values) for name, curve in curves.items()}
    return {
        Direction.parse(name): length if step == curves[name].steps[-1] else step for name, step in best.items()
    }, length


def render(curriculum: Curriculum, values: Mapping[Direction, int], title: str, max_update: int) -> Iterator[str]:
    """The lines of a table of phases; `values` of each direction, with their title, is what they were sorted by."""
    yield f"{'phase':>5}  {'from update':>11}  {'updates':>9}  {title:>23}  directions"
    for number, phase in enumerate(curriculum.phases, start=1):
        low, high = min(values[name] for name in phase.new), max(values[name] for name in phase.new)
        span = f"{low} to {high}" if low < high else f"{low}"
        names = " ".join(map(str, phase.new))
        yield (
            f"{number:>5}  {phase.start:>11}  {max_update - phase.start:>9}  {span:>23}  + {len(phase.new)} = "
            f"{len(phase.active)}: {names}"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `moe-nmt curriculum`."""
    parser.description = "Write a curriculum for fairseq-train --curriculum-phases, and print its phases."
    makers = parser.add_subparsers(dest="maker", required=True, metavar="FROM")
    run = makers.add_parser("from-run", help="by the update at which each direction of a first run was at its best")
    run.add_argument(
        "run_folder", type=Path, metavar="RUN", help="the TensorBoard folder of a run, or the one above it"
    )
    sizes = makers.add_parser("from-sizes", help="by the number of training pairs of each direction")
    sizes.add_argument("corpus", type=Path, metavar="CORPUS/directions.tsv", help="the table of a corpus folder")
    sizes.add_argument(
        "--thresholds", type=whole_numbers, metavar="N,…", help="pairs from which a direction is in phase 1, 2, …"
    )
    for maker in (run, sizes):
        maker.add_argument("--phases", type=int, metavar="N", help=f"how many phases (default: {DEFAULT_PHASES})")
        maker.add_argument(
            "--lengths", type=whole_numbers, metavar="N,…", help="how many updates before the end each phase starts"
        )
        maker.add_argument(
            "--max-update",
            type=int,
            metavar="N",
            help="length of the training (default: the first of --lengths"
            + (", or the last update of the run)" if maker is run else ")"),
        )
        maker.add_argument("--output", type=Path, required=True, metavar="FILE", help="where to write the curriculum")


def whole_numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(args: argparse.Namespace) -> int:
    """Runs `moe-nmt curriculum`; returns the exit status."""
    max_update = args.max_update or (args.lengths[0] if args.lengths else None)
    if args.maker == "from-run":
        title = "best validation at"
        values, max_update = best_steps_of_run(args.run_folder, max_update)
        curriculum = from_best_steps(values, max_update, args.phases, args.lengths)
    else:
        title = "training pairs"
        if not max_update:
            raise UserError("the length of the training is missing; give --max-update or --lengths.")
        folder = args.corpus.parent if args.corpus.name == "directions.tsv" else args.corpus
        values = {direction: counts["train"] for direction, counts in Corpus.open(folder).directions.items()}
        curriculum = from_sizes(values, max_update, args.phases, args.lengths, args.thresholds)
    curriculum.write(args.output)
    print("\n".join(render(curriculum, values, title, max_update)))
    return 0
