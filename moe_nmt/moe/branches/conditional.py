"""CMR: a gate decides, token by token, between a shared feed-forward network and the experts.

Shape letters: N tokens (no padding), D model width, F inner width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_nmt.errors import UserError
from moe_nmt.moe.branches import BRANCHES, Branch
from moe_nmt.moe.feed_forward import FeedForward
from moe_nmt.moe.linear import Float32Linear
from moe_nmt.moe.routing import BranchGate, Routing, keep


@BRANCHES.register("conditional", paper="Elbayad, Sun & Bhosale 2023 (2212.07571); NLLB Team 2022")
class ConditionalBranch(Branch):
    """CMR: (1 - g) * ffn(x) + g * experts(x) with a learned gate g per token; train it with the loss `gate_budget`.

    Expert computation is spent only on tokens with g > 0, in training too, which changes no value and no gradient.

    Args:
        budget: the mean of g over tokens and layers that the loss `gate_budget` aims at.
        gate_dropout: in training, the share of tokens whose gate is set to 0: they see the shared network alone.
        rescale: divide the other gates by 1 - gate_dropout, as the code of NLLB does (g may exceed 1); the paper does
            not.
        skip_below: in evaluation a gate below it counts as 0 and one above 1 - skip_below as 1, and what then has no
            part in the output is not computed. 0: nothing is skipped. The original computes both always.
        inner_dim: F of the shared network; None: that of the model's feed-forward blocks.
    """

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        activation: str = "relu",
        dropout: float = 0.0,
        activation_dropout: float = 0.0,
        *,
        budget: float = 0.8,
        gate_dropout: float = 0.2,
        rescale: bool = False,
        skip_below: float = 0.0,
        inner_dim: int | None = None,
    ):
        super().__init__()
        if not 0 < budget <= 1:
            raise UserError(f"budget must be above 0 and at most 1, not {budget}.")
        if not 0 <= gate_dropout < 1:
            raise UserError(f"gate_dropout must be at least 0 and below 1, not {gate_dropout}.")
        if not 0 <= skip_below <= 0.5:
            raise UserError(f"skip_below must be between 0 and 0.5, not {skip_below}.")
        if inner_dim is not None and inner_dim < 1:
            raise UserError(f"inner_dim must be at least 1, not {inner_dim}.")
        self.gate = Float32Linear(dim, 1)
        self.ffn = FeedForward(dim, inner_dim or ffn_dim, activation, dropout, activation_dropout)
        self.budget = budget
        self.gate_dropout, self.rescale, self.skip_below = gate_dropout, rescale, skip_below

    def open(self, x_ND: Tensor, routing: Routing) -> tuple[Routing, BranchGate]:
        gate_N = self.gate(x_ND).squeeze(-1).sigmoid()
        if self.training and self.gate_dropout > 0:
            gate_N = gate_N * (torch.rand_like(gate_N) >= self.gate_dropout)
            if self.rescale:
                gate_N = gate_N / (1 - self.gate_dropout)
        elif not self.training and self.skip_below > 0:
            gate_N = gate_N.masked_fill(gate_N < self.skip_below, 0.0).masked_fill(gate_N > 1 - self.skip_below, 1.0)
        else:
            return routing, BranchGate(gate_N, self.budget)
        return keep(routing, gate_N[routing.token_A] > 0), BranchGate(gate_N, self.budget)

    def forward(self, x_ND: Tensor, y_ND: Tensor, gate: BranchGate | None) -> Tensor:
        assert gate is not None
        gate_N1 = gate.gate_N[:, None].to(y_ND.dtype)
        mixed_ND = gate_N1 * y_ND
        if self.training or self.skip_below == 0:
            shared_ND: Tensor = self.ffn(x_ND)
            return mixed_ND + (1 - gate_N1) * shared_ND
        needed_N = (gate.gate_N < 1).nonzero().squeeze(-1)
        return mixed_ND.index_add(0, needed_N, (1 - gate_N1[needed_N]) * self.ffn(x_ND[needed_N]))
