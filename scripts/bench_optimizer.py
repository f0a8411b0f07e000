"""What one step of Adam over stacked experts costs: fairseq's, torch's fused one, and `moe_adam`.

    python scripts/bench_optimizer.py [--rounds 7]

Experts of 2.1 million parameters each (D 512, F 2048, float32), all or some with a gradient that is not zero; the
optimizers step in turn in every round. Milliseconds, the median over the rounds, and the ratio of `moe_adam` to
fairseq's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from fairseq.optim.adam import Adam

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from moe_nmt.memory import keep_freed_memory  # noqa: E402
from moe_nmt.training.expert_adam import ExpertAdam  # noqa: E402
from scripts.benchmarking import (  # noqa: E402
    figure,
    interleave,
    machine,
    markdown_table,
    ratios,
    run_script,
    seconds,
    summarize,
)

DIM, FFN_DIM = 512, 2048
CASES = ((8, 8), (32, 32), (128, 128), (128, 10))
"""Experts, and how many of them have a gradient."""


def stacked_parameters(experts: int, touched: int) -> list[torch.nn.Parameter]:
    """The parameters of an `ffn` expert bank, of which the first `touched` experts have a gradient."""
    parameters = []
    for shape in ((DIM, FFN_DIM), (FFN_DIM,), (FFN_DIM, DIM), (DIM,)):
        parameter = torch.nn.Parameter(torch.randn(experts, *shape) * 0.01)
        parameter.num_experts = experts
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad[:touched].normal_(std=1e-4)
        parameters.append(parameter)
    return parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    keep_freed_memory()
    rows = []
    for experts, touched in CASES:
        parameters = stacked_parameters(experts, touched)
        optimizers = {
            "fairseq adam": Adam(parameters, lr=1e-4),
            "torch AdamW, fused": torch.optim.AdamW(parameters, lr=1e-4, fused=True),
            "moe_adam": ExpertAdam(parameters, lr=1e-4),
            "touched only": ExpertAdam(parameters, lr=1e-4, touched_only=True),
        }
        samples = {name: lambda optimizer=optimizer: seconds(optimizer.step) for name, optimizer in optimizers.items()}
        times = {name: found[1:] for name, found in interleave(samples, args.rounds + 1).items()}
        ratio = ratios(times["moe_adam"], times["fairseq adam"])
        milliseconds = [figure(1000 * summarize(times[name]).median) for name in optimizers]
        rows.append([str(experts), str(touched), *milliseconds, figure(ratio.median)])
    print(", ".join(f"{name} {value}" for name, value in machine().items()), end="\n\n")
    print(markdown_table(["experts", "touched", *optimizers, "moe_adam / fairseq"], rows))


if __name__ == "__main__":
    run_script(main)
