"""Branches: what is computed beside the experts, and how the two are mixed. One file, one branch.

Shape letters: N tokens (no padding), D model width.
"""

from __future__ import annotations

from torch import Tensor, nn

from moe_nmt.registry import Registry


class Branch(nn.Module):
    """The contract of every branch.

    `forward(x_ND, y_ND)`: the layer's input and the experts' output. Returns the mixed output [N, D] and the gate
    float [N] that says how much of the experts went in, or None if the branch has no gate.
    """

    def forward(self, x_ND: Tensor, y_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError


BRANCHES: Registry[Branch] = Registry("branch", __name__)
