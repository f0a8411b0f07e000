"""Values that change with the training step: `p=linear(start=0.0, end=0.2, steps=4000)`."""

from __future__ import annotations

import bisect
import itertools
import math
from typing import ClassVar

from moe_nmt.errors import UserError
from moe_nmt.registry import Registry


class Schedule:
    """A value as a function of the number of parameter updates done.

    `schedule(step)` with `step >= 0` returns a float. Schedules hold no state, so a resumed run goes on exactly.
    """

    registry: ClassVar[Registry[Schedule]] = Registry("schedule")

    def __call__(self, step: int) -> float:
        raise NotImplementedError


SCHEDULES = Schedule.registry


def at_step(value: float | Schedule, step: int) -> float:
    """The value at a step, of a plain number or a schedule."""
    return value(step) if isinstance(value, Schedule) else value


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise UserError(f"steps must be at least 1, not {steps}.")


@SCHEDULES.register("constant")
class Constant(Schedule):
    """The same value at every step."""

    def __init__(self, *, value: float):
        self.value = value

    def __call__(self, step: int) -> float:
        return self.value


@SCHEDULES.register("linear")
class Linear(Schedule):
    """From `start` to `end` along a line over `steps` steps, beginning after `delay` steps; constant elsewhere."""

    def __init__(self, *, start: float, end: float, steps: int, delay: int = 0):
        _check_steps(steps)
        self.start, self.end, self.steps, self.delay = start, end, steps, delay

    def progress(self, step: int) -> float:
        """How much of the way is done, from 0 to 1."""
        return min(max((step - self.delay) / self.steps, 0.0), 1.0)

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * self.progress(step)


@SCHEDULES.register("cosine")
class Cosine(Linear):
    """From `start` to `end` along half a cosine over `steps` steps, beginning after `delay` steps."""

    def __call__(self, step: int) -> float:
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * self.progress(step)))


@SCHEDULES.register("stages")
class Stages(Schedule):
    """Piecewise constant: `values[i]` from step `starts[i]` on; `starts` rises and begins with 0."""

    def __init__(self, *, starts: list[int], values: list[float]):
        rising = all(a < b for a, b in itertools.pairwise(starts))
        if not starts or starts[0] != 0 or not rising or len(starts) != len(values):
            raise UserError("starts must begin with 0 and rise, with one entry in values for each.")
        self.starts, self.values = starts, [float(value) for value in values]

    def __call__(self, step: int) -> float:
        return self.values[bisect.bisect_right(self.starts, step) - 1]
