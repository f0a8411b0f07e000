"""This project's layer, dropless, as its README uses it."""

from torch import Tensor, nn

from bench_peers import Cell, set_gate
from moe_nmt.moe import DISPATCHERS, EXPERTS, LOSSES, ROUTERS, MoELayer


class Layer(nn.Module):
    def __init__(self, cell: Cell):
        super().__init__()
        router = ROUTERS.build(f"top_k(k={cell.k})", dim=cell.dim, num_experts=cell.experts)
        experts = EXPERTS.build(f"ffn(count={cell.experts})", dim=cell.dim, ffn_dim=cell.ffn_dim)
        self.moe = MoELayer(router, experts, DISPATCHERS.build("sorted"))
        self.load_balancing = LOSSES.build("load_balancing")
        set_gate(router.gate, cell)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        y_ND, record = self.moe(x_ND)
        return y_ND, self.load_balancing([record]) if self.training else None


build = Layer
