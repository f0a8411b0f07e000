"""What a training reports to log and TensorBoard, under the names of `moe_nmt.evaluation.scalars`."""

from __future__ import annotations

import functools
import math
import statistics
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from fairseq import metrics, utils
from fairseq.logging import progress_bar

from moe_nmt.data import Direction
from moe_nmt.evaluation.results import BUCKETS
from moe_nmt.evaluation.scalars import DIRECTIONS
from moe_nmt.memory import peak_memory

INDEX_HEADER = struct.Struct("<9sQBQ")
"""How an index of binarized data (`--dataset-impl mmap`) begins: mark, version, type of the tokens, sentences."""


def count_sentences(index: Path) -> int | None:
    """The sentences that an index file counts, None where it is of another kind."""
    with open(index, "rb") as file:
        header = file.read(INDEX_HEADER.size)
    if len(header) < INDEX_HEADER.size or not header.startswith(b"MMIDIDX"):
        return None
    return int(INDEX_HEADER.unpack(header)[3])


def training_pairs(folders: Iterable[str], split: str, directions: Iterable[Direction]) -> dict[Direction, int]:
    """The training pairs of each direction in all folders together; without those of unknown number.

    None at all where the folders hold held-out data only.
    """
    paths = [Path(folder) for folder in folders]
    pairs = {}
    for direction in directions:
        names = [f"{split}.{pair}.{direction.source}.idx" for pair in (direction, direction.reverse)]
        found = [next((path / name for name in names if (path / name).is_file()), None) for path in paths]
        counts = [count_sentences(index) for index in found if index]
        if None not in counts:
            pairs[direction] = sum(count or 0 for count in counts)
    return pairs if any(pairs.values()) else {}


def log_direction(pair: str, nll_loss: float, tokens: float) -> None:
    """Log loss (in bits per token, like fairseq's `nll_loss`) and perplexity of one direction.

    Both are None in a line of the log over whose updates the direction had no token.
    """

    def perplexity(meters: Any) -> float | None:
        loss = meters[f"nll_loss_{pair}"].avg
        return None if loss is None else utils.get_perplexity(loss)

    metrics.log_scalar(f"nll_loss_{pair}", nll_loss, tokens, priority=1000, round=3)
    metrics.log_derived(f"ppl_{pair}", perplexity, priority=1001)


def log_directions(pairs: list[str], logging_outputs: list[dict[str, Any]]) -> None:
    """Log loss and perplexity of every direction with a token in the batch."""
    nll = sum(log["direction_nll"] for log in logging_outputs).tolist()
    tokens = sum(log["direction_tokens"] for log in logging_outputs).tolist()
    for pair, pair_nll, pair_tokens in zip(pairs, nll, tokens, strict=True):
        if pair_tokens:
            log_direction(pair, pair_nll / pair_tokens / math.log(2), pair_tokens)


def log_buckets(buckets: Mapping[Direction, str]) -> None:
    """Log for each resource bucket the mean of the losses that `log_directions` logs of its directions."""

    def mean_of(members: list[str]) -> Any:
        def mean(meters: Any) -> float | None:
            losses = [meters[name].avg for name in members if name in meters]
            known = [loss for loss in losses if loss is not None]
            return round(statistics.fmean(known), 3) if known else None

        return mean

    for bucket in BUCKETS:
        members = [f"nll_loss_{direction}" for direction, its in buckets.items() if its == bucket]
        if members:
            metrics.log_derived(f"bucket_nll_loss_{bucket}", mean_of(members), priority=999)


def log_memory() -> None:
    """Log the most memory that this process has held so far, in GB (1e9 bytes): of its GPU, if it computes on one."""
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else peak_memory()
    metrics.log_scalar("memory_gb", peak / 1e9, weight=0, priority=900, round=2)


@functools.cache
def write_to_tensorboard(logdir: str, directions: str) -> None:
    """Write the table of directions, once in a process, where fairseq writes the figures of the subset `train`."""
    writer = progress_bar.TensorboardProgressBarWrapper(None, logdir)._writer("train")
    if writer is not None:
        writer.add_text(DIRECTIONS, directions)
        writer.flush()
