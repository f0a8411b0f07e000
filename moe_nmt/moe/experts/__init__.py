"""Experts: what is computed with a token once it has been routed. One file, one kind of expert.

Shape letters: A assignments, E experts, D model width.
"""

from __future__ import annotations

from torch import Tensor, nn

from moe_nmt.registry import Registry


class Experts(nn.Module):
    """The contract of every kind of experts.

    `num_experts` is E. `forward(x_AD, count_E)`: `x_AD` float, the rows of expert 0 first, then those of expert 1 and
    so on; `count_E` int64, how many rows each expert has (0 is allowed; they sum to A, which may be 0). Returns float
    [A, D], row by row.
    """

    num_experts: int

    def forward(self, x_AD: Tensor, count_E: Tensor) -> Tensor:
        raise NotImplementedError


EXPERTS: Registry[Experts] = Registry("expert kind", __name__)
