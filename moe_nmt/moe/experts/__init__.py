"""Experts: what is computed with a token once it has been routed. One file, one kind of expert.

Shape letters: A assignments, E experts, D model width.
"""

from __future__ import annotations

from torch import Tensor, nn

from moe_nmt.errors import UserError
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

    def stacked(self) -> dict[str, nn.Parameter]:
        """The parameters that hold one slice for each expert, [E, …], by name."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.dim() > 1 and parameter.shape[0] == self.num_experts
        }

    def take_part(self, rank: int, size: int) -> None:
        """Keep the experts of part `rank` of `size` equal parts, in order; the others are gone.

        States of all experts can be loaded afterwards as before: the own part is taken of them.

        Raises:
            UserError: if there are parameters that are not one slice for each expert, which ranks would have to share.
        """
        stacked = self.stacked()
        shared = [name for name, _ in self.named_parameters() if name not in stacked]
        if shared:
            raise UserError(
                f"experts with shared parameters ({shared[0]}) cannot be spread over ranks; use another kind."
            )
        whole, self.num_experts = self.num_experts, self.num_experts // size
        own = slice(rank * self.num_experts, (rank + 1) * self.num_experts)
        for parameter in stacked.values():
            parameter.data = parameter.data[own].clone()

        def take(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
            for name in stacked:
                value = state.get(prefix + name)
                if value is not None and value.shape[0] == whole:
                    state[prefix + name] = value[own]

        self.register_load_state_dict_pre_hook(take)  # type: ignore[no-untyped-call]


EXPERTS: Registry[Experts] = Registry("expert kind", __name__)
