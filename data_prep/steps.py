"""What every data step shares: running as a command, doing work once, progress, several workers."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Generic, TypeVar

from moe_nmt.data import Corpus
from moe_nmt.data.text import write_text
from moe_nmt.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when a file cannot grow."""
Job = TypeVar("Job")
Result = TypeVar("Result")


def run(
    parser: argparse.ArgumentParser, step: Callable[[argparse.Namespace], None], arguments: Sequence[str] | None = None
) -> int:
    """Parses the command line and runs the step; the exit status is 2 after a sentence on what was wrong with it."""
    args = parser.parse_args(arguments)
    try:
        step(args)
    except (UserError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in FULL
        print(f"{parser.prog}: error: {full_disk(args.corpus) if full else error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


def full_disk(corpus: Path) -> str:
    return f"{corpus} cannot grow, the disk is full: free some space and run it again, what is done is not done again"


def command(name: str, description: str) -> argparse.ArgumentParser:
    """A parser that calls itself like the shell script of the step and shows the defaults."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    return argparse.ArgumentParser(prog=f"{name}.sh", description=description, formatter_class=formatter)


def add_corpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="the corpus folder")


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=at_least_one, default=os.cpu_count() or 1, metavar="N", help="processes side by side"
    )


def at_least_one(text: str) -> int:
    """An argparse type: a whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is too small, give at least 1")
    return value


def say(step: str, message: str) -> None:
    print(f"{step}: {message}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Stamp:
    """Remembers in a file that outputs were made from these inputs with these settings, so that work is done once.

    Files are compared by name, size and time of change: a corpus may be moved, or copied with its times.
    """

    path: Path
    settings: Mapping[str, object]
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]

    @classmethod
    def of(
        cls, corpus: Corpus, name: str, settings: Mapping[str, object], inputs: Iterable[Path], outputs: Iterable[Path]
    ) -> Stamp:
        return cls(corpus.folder / ".stamps" / f"{name}.json", settings, tuple(inputs), tuple(outputs))

    def is_current(self) -> bool:
        """Whether inputs, settings and outputs are those of the last run that reached its end."""
        try:
            return self.path.read_text(encoding="utf-8") == self._state()
        except FileNotFoundError:
            return False

    @contextlib.contextmanager
    def renewing(self) -> Iterator[None]:
        """The block makes the outputs: the stamp is taken away before it, and set when it ends well."""
        self.path.unlink(missing_ok=True)
        yield
        write_text(self.path, self._state())

    def _state(self) -> str:
        state = {"settings": dict(self.settings), "inputs": _facts(self.inputs), "outputs": _facts(self.outputs)}
        return json.dumps(state, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _facts(paths: Iterable[Path]) -> list[list[str | int]]:
    stats = [(path.name, path.stat()) for path in paths]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def outdated(step: str, stamps: Mapping[Job, Stamp]) -> list[Job]:
    """The jobs still to do, those whose stamp is not current; says how many are skipped."""
    waiting = [job for job, stamp in stamps.items() if not stamp.is_current()]
    if len(waiting) < len(stamps):
        say(step, f"{len(stamps) - len(waiting)} of {len(stamps)} parts are up to date, skipped")
    return waiting


class Progress(Generic[Job]):
    """Says on stderr what is done, how much of the whole that is, and how long the rest may take."""

    def __init__(self, step: str, amounts: Mapping[Job, int], every: float = 0) -> None:
        """`amounts`: how much work each job is, in any unit. `every`: seconds from one message to the next."""
        self.step, self.amounts, self.every = step, amounts, every
        self.total = sum(amounts.values())
        self.done, self.finished, self.start = 0, 0, time.monotonic()
        self.said = self.start - every

    def finish(self, job: Job, result: str) -> None:
        self.finished += 1
        self.done += self.amounts[job]
        now = time.monotonic()
        gone, ended = now - self.start, self.finished == len(self.amounts)
        if now - self.said >= self.every or ended:
            self.said = now
            left = gone * (self.total - self.done) / max(self.done, 1)
            rest = f"all done in {_clock(gone)}" if ended else f"about {_clock(left)} left"
            say(self.step, f"{self.finished}/{len(self.amounts)} {job}: {result}; {rest}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def side_by_side(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[tuple[Job, Result]]:
    """Runs the function over the jobs in several processes; yields each job with its result as it ends.

    With one worker everything stays in this process. The first error ends the run; jobs under way finish first. The
    processes are started afresh, not forked: a library that keeps threads, like polars, does not survive a fork.
    """
    waiting = list(jobs)
    if workers == 1 or len(waiting) < 2:
        for job in waiting:
            yield job, function(job)
        return
    processes = {"mp_context": get_context("spawn"), "initializer": _end_with, "initargs": (os.getpid(),)}
    with ProcessPoolExecutor(min(workers, len(waiting)), **processes) as pool:
        futures = {pool.submit(function, job): job for job in waiting}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with(parent: int) -> None:
    """Lets this worker end when its parent is gone, however that ended: it would wait for ever for its next job."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
