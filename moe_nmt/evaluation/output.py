"""The folder of an evaluation: scores.json, scores.md, statistics.npz and index.html."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_nmt.data import Direction
from moe_nmt.data.text import drafting, write_text
from moe_nmt.errors import UserError
from moe_nmt.evaluation.page import page
from moe_nmt.evaluation.results import Results
from moe_nmt.evaluation.scoring import Evaluation
from moe_nmt.evaluation.statistics import Counts
from moe_nmt.evaluation.tables import render

STATISTICS = "statistics.npz"


def write_evaluation(
    folder: Path,
    results: Results,
    evaluations: Mapping[Direction, Evaluation],
    about: Sequence[str],
    notes: Sequence[str],
) -> None:
    """Writes all files; `about` says what was evaluated, `notes` what a reader must know beside the numbers."""
    write_text(folder / "scores.json", as_json(results))
    write_text(folder / "scores.md", render(results, notes, markdown=True))
    with drafting(folder / STATISTICS) as (draft,), open(draft, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **dict(arrays(evaluations)))
    write_text(folder / "index.html", page(results, evaluations, about, notes))


def as_json(results: Results) -> str:
    return json.dumps(results.as_dict(), indent=2, ensure_ascii=False) + "\n"


def arrays(evaluations: Mapping[Direction, Evaluation]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """What is kept for comparisons: counts by sentence, and a hash of the references."""
    for direction, evaluation in evaluations.items():
        yield f"{direction}/references", np.array(evaluation.references)
        for metric, counts in evaluation.score.counts.items():
            yield f"{direction}/{metric}", counts


@dataclass(frozen=True)
class System:
    """What an earlier evaluation left of each direction: counts by metric, a hash of the references, the bucket."""

    name: str
    counts: Mapping[Direction, Mapping[str, Counts]]
    references: Mapping[Direction, str]
    buckets: Mapping[Direction, str]

    @classmethod
    def read(cls, folder: Path) -> System:
        """UserError unless `folder` is one that `write_evaluation` has written."""
        with refusing_damage(folder):
            rows = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["directions"]
            counts: dict[Direction, dict[str, Counts]] = {}
            references = {}
            with np.load(folder / STATISTICS, allow_pickle=False) as file:
                for key in file.files:
                    name, _, kind = key.partition("/")
                    direction = Direction.parse(name)
                    if kind == "references":
                        references[direction] = str(file[key])
                    else:
                        counts.setdefault(direction, {})[kind] = file[key]
            buckets = {Direction.parse(name): row["bucket"] for name, row in rows.items() if row["bucket"]}
        return cls(str(folder), counts, references, buckets)


@contextmanager
def refusing_damage(folder: Path) -> Iterator[None]:
    """Turns what a missing or damaged file raises into a sentence."""
    advice = "give a folder that moe-nmt evaluate or moe-nmt score --output has written"
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: {advice}.") from None
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{folder} has a damaged scores.json or {STATISTICS}: {advice}, or evaluate again.") from None
