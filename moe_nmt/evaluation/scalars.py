"""The names under which a training reports to TensorBoard: written by the plugin, read by `moe-nmt report`."""

from __future__ import annotations

from collections.abc import Mapping

from moe_nmt.data import Direction
from moe_nmt.data.directions import CorpusError

SCALARS = {
    "loss": "what is minimised, with label smoothing, in bits per token",
    "nll_loss, ppl": "the loss without label smoothing, in bits per token, and its perplexity",
    "nll_loss_DIRECTION, ppl_DIRECTION": "the same of a direction",
    "bucket_nll_loss_BUCKET": "the mean over the directions of a resource bucket: `high`, `low`, `very_low`",
    "moe_NAME_loss": "a routing loss, summed over layers, without its weight; `load_balancing`: 1 per layer if even",
    "moe_entropy": "entropy of the routing probabilities, in nats",
    "moe_balance": "evenness of the load: 1 if even, the number of experts if one has everything",
    "moe_max_load": "share of the assignments that the busiest expert has",
    "moe_unused": "experts without a token in the batch",
    "moe_overflow": "share of the assignments that were dropped for lack of capacity",
    "moe_bytes_within, moe_bytes_across": "bytes that a process sends for the experts of all layers in a batch, to "
    "others of its node and to other nodes, where experts are spread (`--moe-ranks-per-node`)",
    "moe_gate": "share of the experts in the output of layers with a gated branch",
    "moe_NAME_LAYER": "each of these of one layer (`--moe-log-per-layer`)",
    "moe_load/LAYER/EXPERT": "share of the assignments that an expert has, counted from 0 (`--moe-log-per-layer`)",
    "curriculum_phase, curriculum_directions": "phase of the curriculum, from 1, and the directions trained in it",
    "wps, ups": "target tokens and updates per second",
    "wpb, bsz": "target tokens and sentences per update",
    "memory_gb": "peak memory so far in 1e9 bytes, of the GPU or, on CPUs, of the process; of the first of several",
    "lr, gnorm, clip": "learning rate, norm of the gradients, percentage of updates whose gradients were clipped",
    "gb_free, loss_scale": "memory that is free on a GPU in GB; scale of the loss in float16",
    "train_wall, wall": "seconds in updates, and since the start",
    "best_METRIC": "the best validation so far by `--best-checkpoint-metric`",
}
"""Names, with placeholders in capitals, and what they say. Subsets are `train_inner` (between two lines of the log),
`train` (an epoch), and the validation subsets by their names."""

DIRECTIONS = "directions"
"""The text with the table of directions, in the subset `train`."""

HEADER = ("direction", "training pairs", "bucket")


def scalars_table() -> str:
    """The table of names in Markdown."""
    rows = [(", ".join(f"`{name}`" for name in names.split(", ")), what) for names, what in SCALARS.items()]
    return "\n".join(_row(row) for row in [("name", "what it says"), ("---", "---"), *rows])


def write_directions(pairs: Mapping[Direction, int], buckets: Mapping[Direction, str]) -> str:
    """The training pairs and resource bucket of directions as a table in Markdown."""
    rows = [(str(direction), str(count), buckets[direction]) for direction, count in pairs.items()]
    return "\n".join(_row(row) for row in [HEADER, ("---", "---:", "---"), *rows])


def read_directions(table: str) -> dict[Direction, int]:
    """The training pairs of directions out of what `write_directions` made; none if the text is something else."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    try:
        return {Direction.parse(direction): int(count) for direction, count, _ in cells[2:]}
    except (CorpusError, ValueError):
        return {}


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"
