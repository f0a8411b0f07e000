"""A dense feed-forward network whose output is added to that of the experts.

Shape letters: N tokens (no padding), D model width, F inner width.
"""

from __future__ import annotations

from torch import Tensor

from moe_nmt.errors import UserError
from moe_nmt.moe.branches import BRANCHES, Branch
from moe_nmt.moe.feed_forward import FeedForward
from moe_nmt.moe.routing import BranchGate


@BRANCHES.register("residual", paper="Rajbhandari et al. 2022 (DeepSpeed-MoE, residual MoE of PR-MoE)")
class ResidualBranch(Branch):
    """y = experts(x) + ffn(x): the experts only correct a dense network, so one expert per token does for two.

    Args:
        inner_dim: F of the dense network; None: that of the model's feed-forward blocks.
    """

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        activation: str = "relu",
        dropout: float = 0.0,
        activation_dropout: float = 0.0,
        *,
        inner_dim: int | None = None,
    ):
        super().__init__()
        if inner_dim is not None and inner_dim < 1:
            raise UserError(f"inner_dim must be at least 1, not {inner_dim}.")
        self.ffn = FeedForward(dim, inner_dim or ffn_dim, activation, dropout, activation_dropout)

    def forward(self, x_ND: Tensor, y_ND: Tensor, gate: BranchGate | None) -> Tensor:
        shared_ND: Tensor = self.ffn(x_ND)
        return y_ND + shared_ND
