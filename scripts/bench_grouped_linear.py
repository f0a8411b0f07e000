"""What the experts' matrix products cost on this device: the loop against grouped_mm, as ratios to one dense product.

    python scripts/bench_grouped_linear.py [--device cpu] [--dtype float32] [--rounds 9]

Forward and backward pass of one [tokens, 512] x [512, 2048] linear map per expert, all implementations in turn in every
round; the figure is the median over the rounds of the ratio to a dense map of the same number of rows. Lower is better.
"""

import argparse
import statistics
import time

import torch
from torch.nn import functional

from moe_nmt.moe.grouped_linear import _LoopedLinear

DIM, INNER = 512, 2048


def looped(x, weight, bias, counts):
    return _LoopedLinear.apply(x, weight, bias, counts.tolist())


def grouped(x, weight, bias, counts):
    group = torch.repeat_interleave(counts, output_size=x.shape[0])
    return functional.grouped_mm(x, weight, offs=counts.cumsum(0, dtype=torch.int32)) + bias[group]


def dense(x, weight, bias, counts):
    return functional.linear(x, weight[0].T, bias[0])


IMPLEMENTATIONS = {"dense": dense, "loop": looped, "grouped_mm": grouped}


def seconds(function, x, weight, bias, counts) -> float:
    """One forward and backward pass."""
    synchronize = torch.cuda.synchronize if x.is_cuda else lambda: None
    synchronize()
    start = time.perf_counter()
    function(x, weight, bias, counts).square().mean().backward()
    synchronize()
    return time.perf_counter() - start


def ratios(tokens: int, experts: int, rounds: int, device: str, dtype: torch.dtype) -> dict[str, float]:
    """The median ratio to `dense` of each implementation."""
    x = torch.randn(tokens, DIM, device=device, dtype=dtype, requires_grad=True)
    weight = (torch.randn(experts, DIM, INNER, device=device, dtype=dtype) / DIM**0.5).requires_grad_()
    bias = torch.zeros(experts, INNER, device=device, dtype=dtype, requires_grad=True)
    counts = torch.bincount(torch.randint(experts, (tokens,), device=device), minlength=experts)
    found: dict[str, list[float]] = {name: [] for name in IMPLEMENTATIONS}
    for _ in range(rounds + 1):
        for name, function in IMPLEMENTATIONS.items():
            x.grad = weight.grad = bias.grad = None
            found[name].append(seconds(function, x, weight, bias, counts))
    per_round = {
        name: [a / b for a, b in zip(times[1:], found["dense"][1:], strict=True)] for name, times in found.items()
    }
    return {name: statistics.median(values) for name, values in per_round.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {args.device}, {args.dtype}, {torch.get_num_threads()} threads")
    print("| tokens | experts | loop | grouped_mm |\n| --- | --- | --- | --- |")
    for tokens in (512, 4096):
        for experts in (4, 8, 32):
            row = ratios(tokens, experts, args.rounds, args.device, getattr(torch, args.dtype))
            print(f"| {tokens} | {experts} | {row['loop']:.2f} | {row['grouped_mm']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
