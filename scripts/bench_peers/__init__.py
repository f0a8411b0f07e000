"""The implementations that `bench_moe_layer.py` compares: one file, one implementation.

A file defines `build(cell)`, which returns a module with random weights. Its `forward(x_ND)` returns the output and the
load-balancing loss, None if there is nothing to compute one from; it takes any number of tokens, in both modes.
Optional are `check(cell)`, which raises `Unsupported` for a cell that cannot be done, and `NEEDS_CUDA = True`. The file
may import what this project does not depend on: it runs in a process of its own, perhaps with another Python.

Shape letters: N tokens, E experts, A = N k assignments, C capacity, D model width, F inner width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem != "worker")
"""Every implementation that has a file here."""


class Unsupported(Exception):
    """An implementation cannot do this cell; the message says why."""


@dataclass(frozen=True)
class Cell:
    """One measurement: N tokens through one layer, `mode` being `training` or `inference`."""

    mode: str
    tokens: int
    experts: int
    k: int
    dim: int
    ffn_dim: int
    device: str = "cpu"
    dtype: str = "float32"

    def x_ND(self) -> Tensor:
        """The input, the same for every implementation."""
        drawn_ND = torch.randn(self.tokens, self.dim, generator=torch.Generator().manual_seed(1))
        return drawn_ND.to(self.device, getattr(torch, self.dtype))

    def gate_ED(self) -> Tensor:
        """The router's weights, the same for every implementation, so that all route alike."""
        return torch.randn(self.experts, self.dim, generator=torch.Generator().manual_seed(2)) / self.dim**0.5

    def needed_experts(self) -> int:
        """How many experts get at least one token."""
        score_NE = self.x_ND().float().cpu() @ self.gate_ED().T
        return score_NE.topk(self.k).indices.unique().numel()

    def require_k(self, *allowed: int) -> None:
        """Raise `Unsupported` unless k is among the allowed."""
        if self.k not in allowed:
            raise Unsupported(f"its router has k = {' or '.join(map(str, allowed))} only")

    def require_memory(self, needed: float) -> None:
        """Raise `Unsupported` if `needed` bytes, a rough count, are more than a quarter of what is free.

        The other implementations keep what they freed for their next call, and need room as well.
        """
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.startswith("cuda") else free_memory()
        if needed > 0.25 * free:
            raise Unsupported(f"it needs about {needed / 1e9:.0f} GB of memory")

    @property
    def expert_bytes(self) -> int:
        """The size of all experts' weights, in training with their gradients."""
        return (2 if self.mode == "training" else 1) * 2 * self.experts * self.dim * self.ffn_dim * self.number_bytes

    @property
    def number_bytes(self) -> int:
        """The size of one number."""
        return getattr(torch, self.dtype).itemsize


def free_memory() -> float:
    """Bytes that can be had without swapping; without limit where the system does not say."""
    path = Path("/proc/meminfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), math.inf)


@torch.no_grad()
def set_gate(linear: nn.Linear, cell: Cell) -> None:
    """Give a router the weights that all routers have."""
    linear.weight.copy_(cell.gate_ED())


def load_balancing_loss(prob_NE: Tensor, first_N: Tensor) -> Tensor:
    """E * sum over experts of f_e * p_e, as plain torch code writes it, for peers that have no loss of their own."""
    experts = prob_NE.shape[1]
    share_E = torch.bincount(first_N, minlength=experts).to(prob_NE.dtype) / first_N.numel()
    return experts * (share_E * prob_NE.mean(0)).sum()


class FFN(nn.Sequential):
    """The dense feed-forward network that an expert is."""

    def __init__(self, dim: int, ffn_dim: int):
        super().__init__(nn.Linear(dim, ffn_dim), nn.ReLU(), nn.Linear(ffn_dim, dim))


class PlainRouter(nn.Module):
    """Top-k in plain torch: the weights and experts of each token, and the load-balancing loss."""

    def __init__(self, cell: Cell):
        super().__init__()
        self.k = cell.k
        self.gate = nn.Linear(cell.dim, cell.experts, bias=False)
        set_gate(self.gate, cell)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        prob_NE = self.gate(x_ND).softmax(-1, dtype=torch.float32)
        weight_NK, expert_NK = prob_NE.topk(self.k)
        if self.k > 1:
            weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True)
        return weight_NK.to(x_ND.dtype), expert_NK, load_balancing_loss(prob_NE, expert_NK[:, 0])
