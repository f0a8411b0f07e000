"""Send every row to the rank that has its expert, and the results back.

Shape letters: N tokens (no padding), E experts, A assignments, D model width, G ranks, C chunks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_nmt.distributed.all_to_all import AllToAll, exchange_counts
from moe_nmt.distributed.groups import ExpertGroup, Level, expert_group
from moe_nmt.distributed.traffic import Traffic
from moe_nmt.errors import UserError
from moe_nmt.moe import kernels
from moe_nmt.moe.dispatch import DISPATCHERS, Dispatcher
from moe_nmt.moe.experts import Experts
from moe_nmt.moe.routing import Routing, num_tokens


@DISPATCHERS.register("all_to_all", paper="Lepikhin et al. 2021 (GShard); Gale et al. 2023 (dropless)")
class AllToAllDispatcher(Dispatcher):
    """Expert parallelism: the ranks of a group have a part of the experts each, and rows travel to them and back.

    Dropless and without padding: the ranks first tell each other how many rows come, then send just these. What a rank
    receives is computed in one grouped matrix product, as by `sorted`, which this is where a rank is alone.

    All ranks of a group call it alike, in the same order, in evaluation too, and run the same backward passes; a rank
    without tokens calls it with N = 0. `traffic` counts the bytes sent, forth and back, in both passes.

    Args:
        num_experts: E, of all ranks together.
        ranks_per_node: see `expert_group`.
        ranks: how many adjacent ranks share the experts; None: as many as can. More ranks make replicas of the group.
        chunks: cut the tokens into C parts, so that one travels while another is computed.
        by_node: rows go to the node of the expert first, by an exchange between the ranks of the same place in each
            node, then to its rank: fewer and larger messages (He et al. 2022, SMILE).
    """

    group: ExpertGroup

    def __init__(
        self,
        num_experts: int,
        ranks_per_node: int | None = None,
        *,
        ranks: int | None = None,
        chunks: int = 1,
        by_node: bool = False,
    ):
        if chunks < 1:
            raise UserError(f"chunks must be at least 1, not {chunks}.")
        self.num_experts, self.chunks = num_experts, chunks
        self.group = expert_group(num_experts, ranks, ranks_per_node, by_node)
        self.traffic = Traffic()

    def __call__(self, x_ND: Tensor, routing: Routing, experts: Experts) -> Tensor:
        levels = () if routing.local else self.group.levels
        if levels:
            x_ND, chunks, reach, first = with_gradient(x_ND), self.chunks, self.num_experts, 0
        else:
            chunks, reach, first = 1, experts.num_experts, self.group.rank * experts.num_experts
        chunk_A = routing.token_A * chunks // max(num_tokens(routing), 1)
        order_A, count = kernels.sort_by_expert(chunk_A * reach + routing.expert_A - first, chunks * reach)
        token_A = routing.token_A[order_A]
        y_AD = self.travel(levels, kernels.gather(x_ND, token_A), count.view(chunks, reach), experts)
        return kernels.combine(y_AD, token_A, routing.weight_A[order_A], x_ND.shape[0]).to(x_ND.dtype)

    def travel(self, levels: Sequence[Level], x_AD: Tensor, count_CE: Tensor, experts: Experts) -> Tensor:
        """What the experts make of the rows, which come by chunk, then by expert: over these levels and back."""
        if not levels:
            computed_AD: Tensor = experts(x_AD, count_CE.sum(0))
            return computed_AD
        level, *further = levels
        chunks = count_CE.shape[0]
        sent_GCE = count_CE.view(chunks, level.size, -1).transpose(0, 1)
        received_GCE = exchange_counts(level, sent_GCE, self.traffic)
        send_CG, receive_CG = torch.stack([sent_GCE, received_GCE]).sum(-1).transpose(1, 2).tolist()
        hops = [AllToAll(level, *rows, self.traffic) for rows in zip(send_CG, receive_CG, strict=True)]
        parts = torch.split(x_AD, [sum(send_G) for send_G in send_CG])
        underway = hops[0].start(parts[0])
        results = []
        for chunk, hop in enumerate(hops):
            rows_AD = hop.wait(underway)
            if chunk + 1 < chunks:
                underway = hops[chunk + 1].start(parts[chunk + 1])
            order_A, place_A, count_E = by_expert(received_GCE[:, chunk], len(rows_AD))
            y_AD = self.travel(further, kernels.gather(rows_AD, order_A), count_E[None], experts)
            back = hop.back()
            results.append((back, back.start(kernels.gather(y_AD, place_A))))
        return torch.cat([back.wait(buffer_AD) for back, buffer_AD in results])


def with_gradient(x_ND: Tensor) -> Tensor:
    """The same values, with a gradient wherever one may be asked for.

    A rank whose tokens need none would stay away from exchanges of the backward pass, and the others wait for it.
    """
    return x_ND.detach().requires_grad_() if torch.is_grad_enabled() and not x_ND.requires_grad else x_ND


def by_expert(count_GE: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """How rows that come by rank, then by expert, are put in order of the expert: int64 [A], [A] and [E].

    Returns which row comes to each place, the place of each row, and how many rows each expert has. `rows` is A.
    """
    ranks, experts = count_GE.shape
    expert_GE = torch.arange(experts, device=count_GE.device).repeat(ranks)
    expert_A = expert_GE.repeat_interleave(count_GE.flatten(), output_size=rows)
    order_A, count_E = kernels.sort_by_expert(expert_A, experts)
    place_A = torch.empty_like(order_A)
    place_A[order_A] = torch.arange(rows, device=order_A.device)
    return order_A, place_A, count_E
