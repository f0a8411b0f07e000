"""The numbers of a report: what each training learnt, how far it over-fitted, and where it sends the languages."""

from __future__ import annotations

import json
import math
import operator
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_nmt.data import Corpus, Direction
from moe_nmt.errors import UserError
from moe_nmt.evaluation.curves import Curve, read_curves, read_training_pairs
from moe_nmt.evaluation.expert_load import ExpertLoad, read_expert_load
from moe_nmt.evaluation.results import BUCKETS, Thresholds

PROBE = "train_probe"
"""The name of a validation subset that holds training sentences, scored as validation sentences are."""


@dataclass(frozen=True)
class Losses:
    """Losses at one update, in bits per token; `train` is None where none was logged."""

    update: int
    train: float | None
    valid: float

    @property
    def gap(self) -> float | None:
        """How much better the training sentences are predicted than the validation sentences."""
        return None if self.train is None else self.valid - self.train


@dataclass(frozen=True)
class Run:
    """One training: its curves, and per direction the losses in bits per token at each validation.

    `pairs`: training pairs of each direction, the largest first. `train` lacks the directions without a reading.
    `chrf`: chrF++ of the directions that were scored. `routing`: expert load and gates, None where they are unknown.
    """

    name: str
    curves: Mapping[str, Mapping[str, Curve]]
    pairs: Mapping[Direction, int]
    buckets: Mapping[Direction, str]
    train: Mapping[Direction, Curve]
    valid: Mapping[Direction, Curve]
    chrf: Mapping[Direction, float]
    routing: ExpertLoad | None

    @property
    def probed(self) -> bool:
        """Whether `train` is the loss on training sentences in evaluation mode, not what training itself logged."""
        return PROBE in self.curves

    @property
    def last_update(self) -> int:
        """The update of the last validation."""
        return self.curves["valid"]["loss"].steps[-1]

    @property
    def best_update(self) -> int:
        """The update of the lowest validation loss over all directions, the one that `checkpoint_best.pt` keeps.

        That is `loss`, or `nll_loss` where --best-checkpoint-metric says so.
        """
        valid = self.curves["valid"]
        return lowest(valid["nll_loss" if "best_nll_loss" in valid else "loss"])[1]

    @property
    def phases(self) -> dict[int, int]:
        """The phases of a curriculum after the first, and the update after which each begins."""
        readings = [self.curves.get(subset, {}).get("curriculum_phase") for subset in ("train_inner", "train")]
        return phase_starts([curve for curve in readings if curve])

    def trained(self, name: str) -> Curve:
        """A figure that training logged between two lines of the log, empty where it did not."""
        return self.curves.get("train_inner", {}).get(name, Curve([], []))

    def members(self, bucket: str) -> list[Direction]:
        """The directions of a bucket, the largest first."""
        return [direction for direction in self.pairs if self.buckets[direction] == bucket]

    def mean(self, split: str, bucket: str) -> Curve:
        """The mean over a bucket's directions of the losses on `train` or `valid`."""
        curves = {"train": self.train, "valid": self.valid}[split]
        return mean([curves.get(direction, Curve([], [])) for direction in self.members(bucket)])

    def mean_chrf(self, bucket: str) -> float | None:
        """The mean over a bucket's directions of chrF++; None unless each was scored."""
        values = [self.chrf.get(direction) for direction in self.members(bucket)]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known and len(known) == len(values) else None


def labels(folders: Sequence[Path]) -> list[str]:
    """The name of each folder, with as many folders above it as tell them all apart; UserError if one comes twice."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"one of the runs {', '.join(map(str, folders))} is named twice: name each once.")


def read_run(folder: Path, name: str, corpus: Path | None, thresholds: Thresholds) -> Run:
    """Read FOLDER/tensorboard, and where they exist FOLDER/routing.json and the scores (see `read_chrf`).

    The training pairs are those of `corpus`, or else of FOLDER/corpus, or as the training logged them.

    Raises:
        UserError: if there are no curves, none of them is the validation loss of a direction, the training pairs of a
            direction are unknown, or a file holds something else than its name says.
    """
    curves = read_curves(folder)
    valid = by_direction(curves.get("valid", {}))
    if not valid:
        raise UserError(
            f"{folder} has no validation loss of a direction: train with --task multilingual_translation_moe "
            "--criterion moe_label_smoothed_cross_entropy, and with validation."
        )
    counts = training_pairs(folder, corpus, valid)
    pairs = dict(sorted(counts.items(), key=lambda item: -item[1]))
    if PROBE in curves:
        train = by_direction(curves[PROBE])
    else:
        logged = by_direction(curves.get("train_inner", {}))
        train = {
            direction: between(logged[direction], valid[direction].steps) for direction in valid if direction in logged
        }
    routing = folder / "routing.json"
    return Run(
        name=name,
        curves=curves,
        pairs=pairs,
        buckets={direction: thresholds.bucket(count) for direction, count in pairs.items()},
        train=train,
        valid=valid,
        chrf=read_chrf(folder),
        routing=read_expert_load(routing) if routing.is_file() else None,
    )


def training_pairs(folder: Path, corpus: Path | None, directions: Collection[Direction]) -> dict[Direction, int]:
    """The training pairs of each direction (see `read_run`)."""
    if corpus or (folder / "corpus").is_dir():
        sizes = Corpus.open(corpus or folder / "corpus")
        return {direction: sizes.counts(direction)["train"] for direction in directions}
    logged = read_training_pairs(folder)
    for direction in directions:
        if direction not in logged:
            raise UserError(
                f"the training pairs of {direction} are unknown: {folder} has no folder corpus, and its curves do not "
                "say them; name the corpus folder with --corpus."
            )
    return {direction: logged[direction] for direction in directions}


def phase_starts(readings: Collection[Curve]) -> dict[int, int]:
    """Each phase after the first and the last update before it, out of readings of `curriculum_phase`.

    Exact where one of the curves has a reading at the end of every phase, as that of the subset `train`.
    """
    points = [point for curve in readings for point in zip(curve.steps, curve.values, strict=True)]
    phases = sorted({int(phase) for _, phase in points})[1:]
    return {phase: max(step for step, value in points if value < phase) for phase in phases}


def by_direction(scalars: Mapping[str, Curve]) -> dict[Direction, Curve]:
    """The curves `nll_loss_DIRECTION` among those of a subset."""
    prefix = "nll_loss_"
    return {Direction.parse(n.removeprefix(prefix)): curve for n, curve in scalars.items() if n.startswith(prefix)}


def read_chrf(folder: Path) -> dict[Direction, float]:
    """chrF++ per direction out of FOLDER/scores.json, else FOLDER/evaluation/scores.json; none if there is neither."""
    paths = [path / "scores.json" for path in (folder, folder / "evaluation")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return {}
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))["directions"]
        return {Direction.parse(direction): float(score["chrf++"]) for direction, score in scores.items()}
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} holds no scores: write it with moe-nmt evaluate, or moe-nmt score --json.") from None


def between(readings: Curve, steps: Sequence[int]) -> Curve:
    """At each step the mean of the readings since the step before, or the last of all readings if none is so new."""
    found: dict[int, float] = {}
    for previous, step in zip([-1, *steps], steps, strict=False):
        past = [(s, value) for s, value in zip(readings.steps, readings.values, strict=True) if s <= step]
        new = [value for s, value in past if s > previous]
        if past:
            found[step] = statistics.fmean(new or [past[-1][1]])
    return Curve(list(found), list(found.values()))


def mean(curves: Collection[Curve]) -> Curve:
    """The mean of the curves, at the steps at which each of them has a reading."""
    tables = [dict(zip(curve.steps, curve.values, strict=True)) for curve in curves]
    steps = sorted(set[int]().union(*tables).intersection(*tables))
    return Curve(steps, [statistics.fmean(table[step] for table in tables) for step in steps])


def lowest(curve: Curve) -> tuple[float, int]:
    """The lowest value of a curve and its first step; not-a-numbers are above all others, and an empty curve is one."""
    readings = zip(curve.values, curve.steps, strict=True)
    return min(readings, key=lambda reading: (math.isnan(reading[0]), reading[0]), default=(math.nan, 0))


def losses_at(step: int, train: Curve | None, valid: Curve) -> Losses | None:
    """Both losses at a step; None where there was no validation."""
    if step not in valid.steps:
        return None
    at_step = dict(zip(train.steps, train.values, strict=True)).get(step) if train else None
    return Losses(step, at_step, valid.values[valid.steps.index(step)])


def similarity(routing: ExpertLoad, layer: str) -> tuple[list[str], list[list[float]]]:
    """The layer's languages and the cosine similarity of their shares of the experts, as in NLLB Team 2022."""
    shares = routing.shares(layer)
    rows = [[value / math.hypot(*share) for value in share] for share in shares.values()]
    return list(shares), [[sum(map(operator.mul, a, b)) for b in rows] for a in rows]


def shown_layers(routing: ExpertLoad) -> list[str]:
    """The first and the last of the layers with experts in the encoder, then in the decoder."""
    stacks = [[layer for layer in routing.used if layer.startswith(stack)] for stack in ("encoder", "decoder")]
    return list(dict.fromkeys(layer for layers in stacks if layers for layer in (layers[0], layers[-1])))


def by_similarity(names: Sequence[str], matrix: Sequence[Sequence[float]]) -> list[int]:
    """An order with alike beside alike: from the one least like the others on, each time the one most like the last."""
    left = set(range(len(names)))
    order = [min(left, key=lambda i: sum(matrix[i]))] if left else []
    while left := left - set(order):
        order.append(max(left, key=lambda i: matrix[order[-1]][i]))
    return order


def as_dict(run: Run) -> dict[str, object]:
    """All that the report shows of a run, and all its curves, as JSON holds them."""
    moments = {"best": run.best_update, "end": run.last_update}

    def losses(train: Curve | None, valid: Curve) -> dict[str, object]:
        at = {moment: losses_at(step, train, valid) for moment, step in moments.items()}
        return {
            "lowest_valid": lowest(valid),
            **{m: None if f is None else {"train": f.train, "valid": f.valid, "gap": f.gap} for m, f in at.items()},
        }

    return {
        "train_loss": PROBE if run.probed else "train_inner",
        "best_update": run.best_update,
        "last_update": run.last_update,
        "curriculum_phases": run.phases,
        "buckets": {
            bucket: {
                "directions": [str(direction) for direction in run.members(bucket)],
                "chrf++": run.mean_chrf(bucket),
                **losses(run.mean("train", bucket), run.mean("valid", bucket)),
                "train_curve": vars(run.mean("train", bucket)),
                "valid_curve": vars(run.mean("valid", bucket)),
            }
            for bucket in BUCKETS
            if run.members(bucket)
        },
        "directions": {
            str(direction): {
                "training_pairs": run.pairs[direction],
                "bucket": run.buckets[direction],
                "chrf++": run.chrf.get(direction),
                **losses(run.train.get(direction), run.valid[direction]),
            }
            for direction in run.pairs
        },
        "routing": None if run.routing is None else routing_as_dict(run.routing),
        "curves": {subset: {n: vars(curve) for n, curve in scalars.items()} for subset, scalars in run.curves.items()},
    }


def routing_as_dict(routing: ExpertLoad) -> dict[str, object]:
    """Shares, gates and similarities per layer."""
    similarities = {layer: similarity(routing, layer) for layer in routing.used}
    return {
        "languages": routing.languages,
        "load": routing.layers,
        "shares": {layer: routing.shares(layer) for layer in routing.layers},
        "gates": routing.gates,
        "similarity": {layer: {"languages": names, "cosine": rows} for layer, (names, rows) in similarities.items()},
    }
