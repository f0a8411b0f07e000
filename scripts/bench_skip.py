"""What skipping the nearly shut branch of a trained conditional layer (CMR) buys in evaluation, and costs.

    python scripts/bench_skip.py CHECKPOINT DATA [--split test] [--thresholds 0,0.1,0.2,0.3,0.5] [--rounds 5]

For every threshold `skip_below` the model reads the split with the reference as the decoder's input, in turn in every
round. Printed are the shares of tokens that skip the experts and the shared network, the time as a ratio to that of
threshold 0 (lower is better), and the loss in bits per token.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from fairseq import utils
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from moe_nmt.errors import UserError  # noqa: E402
from moe_nmt.fairseq_plugin.translation import load  # noqa: E402
from moe_nmt.moe import record_routing  # noqa: E402
from moe_nmt.moe.branches.conditional import ConditionalBranch  # noqa: E402
from scripts.benchmarking import figure, interleave, markdown_table, ratios, run_script, seconds  # noqa: E402


def set_threshold(model: torch.nn.Module, threshold: float) -> None:
    """Give every conditional layer of the model this `skip_below`."""
    branches = [module for module in model.modules() if isinstance(module, ConditionalBranch)]
    if not branches:
        raise UserError("the model has no conditional branch; train one with --moe-branch conditional.")
    for branch in branches:
        branch.skip_below = threshold


def batches_of(task: Any, model: Any, split: str, max_tokens: int) -> list[dict[str, Any]]:
    """The batches of a split, where the model is."""
    task.load_dataset(split)
    batches = task.get_batch_iterator(
        task.dataset(split), max_tokens=max_tokens, max_positions=task.max_positions()
    ).next_epoch_itr(shuffle=False)
    device = next(model.parameters()).device
    return [utils.move_to_cuda(batch, device) if device.type == "cuda" else batch for batch in batches]


def read(model: Any, batches: list[dict[str, Any]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The logits and the target of every batch."""
    for batch in batches:
        yield model(**batch["net_input"])[0].flatten(0, 1), batch["target"].flatten()


def quality(model: Any, batches: list[dict[str, Any]], padding: int) -> tuple[float, float, float]:
    """The share of tokens that skip the experts, that of those that skip the shared network, and bits per token."""
    nll = tokens = 0.0
    with record_routing(model) as records:
        for logits, target in read(model, batches):
            nll += functional.cross_entropy(logits.float(), target, ignore_index=padding, reduction="sum").item()
            tokens += target.ne(padding).sum().item()
    gate = torch.cat([record.gate.gate_N for _, record in records if record.gate is not None])
    return (gate == 0).float().mean().item(), (gate == 1).float().mean().item(), nll / tokens / math.log(2)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", help="folder of binarized data")
    parser.add_argument("--split", default="test")
    parser.add_argument("--thresholds", default="0,0.1,0.2,0.3,0.5")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=12000)
    args = parser.parse_args()
    task, model = load(args.checkpoint, {"data": args.data})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.eval().to(device)
    batches = batches_of(task, model, args.split, args.max_tokens)
    thresholds = [float(text) for text in args.thresholds.split(",")]

    def timed(threshold: float) -> Callable[[], float]:
        def run() -> float:
            set_threshold(model, threshold)
            return seconds(lambda: [None for _ in read(model, batches)], device)

        return run

    times = interleave({str(threshold): timed(threshold) for threshold in thresholds}, args.rounds)
    rows = []
    for threshold in thresholds:
        set_threshold(model, threshold)
        shut, open_, bits = quality(model, batches, task.target_dictionary.pad())
        ratio = ratios(times[str(threshold)], times[str(thresholds[0])])
        shares = (f"{share if threshold else 0:.1%}" for share in (shut, open_))
        rows.append([f"{threshold:g}", *shares, figure(ratio.median), figure(ratio.spread), f"{bits:.3f}"])
    header = ["skip_below", "skip the experts", "skip the shared network", "time", "spread", "bits per token"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    run_script(main)
