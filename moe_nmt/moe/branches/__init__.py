"""Branches: what is computed beside the experts, and how the two are mixed. One file, one branch.

Shape letters: N tokens (no padding), D model width.
"""

from __future__ import annotations

from torch import Tensor, nn

from moe_nmt.moe.routing import BranchGate, Routing
from moe_nmt.registry import Registry


class Branch(nn.Module):
    """The contract of every branch.

    `open(x_ND, routing)`, before the experts compute: what is left of the assignments, and the gate, if there is one. A
    token whose gate is 0 needs no expert. `forward(x_ND, y_ND, gate)`, after them: the layer's input, the experts'
    output and that gate to the mixed output [N, D], of the dtype of `y_ND`.
    """

    def open(self, x_ND: Tensor, routing: Routing) -> tuple[Routing, BranchGate | None]:
        return routing, None

    def forward(self, x_ND: Tensor, y_ND: Tensor, gate: BranchGate | None) -> Tensor:
        raise NotImplementedError


BRANCHES: Registry[Branch] = Registry("branch", __name__)
