"""What a training logged to TensorBoard, read back as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_nmt.data import Direction
from moe_nmt.errors import UserError
from moe_nmt.evaluation.scalars import DIRECTIONS, read_directions


@dataclass(frozen=True)
class Curve:
    """One scalar over a training: the number of updates at each reading, rising, and the values beside it."""

    steps: list[int]
    values: list[float]


def read_curves(folder: Path) -> dict[str, dict[str, Curve]]:
    """The scalars that `fairseq-train --tensorboard-logdir` wrote: subset -> name of the scalar -> curve.

    Subsets are `train_inner` (every log interval), `train` (every epoch), `valid` and the other validation subsets
    by their names. The files of a training that was resumed are merged; of a step that was written twice the later
    reading holds. What a file holds after a damaged record is lost, the rest of it is read.

    Args:
        folder: the folder given to `--tensorboard-logdir`, or one that holds it as `tensorboard`.

    Raises:
        UserError: if there is no scalar in any event file.
    """
    subsets = sorted({file.parent for file in _root(folder).glob("*/events.out.tfevents.*")})
    curves = {subset.name: scalars for subset in subsets if (scalars := _read_subset(subset))}
    if not curves:
        raise UserError(
            f"{folder} has no curves, neither in it nor in its folder tensorboard are event files with scalars: name "
            "the folder of a training with --tensorboard-logdir, and have the package tensorboard installed then."
        )
    return curves


def read_training_pairs(folder: Path) -> dict[Direction, int]:
    """The training pairs of each direction as the training logged them; none where it did not.

    Args:
        folder: as for `read_curves`.
    """
    subset, tag = _root(folder) / "train", f"{DIRECTIONS}/text_summary"
    if not subset.is_dir():
        return {}
    events = _read_events(subset)
    if tag not in events.Tags()["tensors"]:
        return {}
    latest = max(events.Tensors(tag), key=lambda text: text.wall_time)
    return read_directions(latest.tensor_proto.string_val[0].decode("utf-8"))


def _root(folder: Path) -> Path:
    return folder / "tensorboard" if (folder / "tensorboard").is_dir() else folder


def _read_events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return events


def _read_subset(folder: Path) -> dict[str, Curve]:
    events = _read_events(folder)
    return {name: _curve(events.Scalars(name)) for name in sorted(events.Tags()["scalars"])}


def _curve(readings: list[Any]) -> Curve:
    by_step = {reading.step: reading.value for reading in sorted(readings, key=lambda reading: reading.wall_time)}
    steps = sorted(by_step)
    return Curve(steps, [by_step[step] for step in steps])
