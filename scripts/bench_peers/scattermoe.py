"""ScatterMoE: its MLP behind a plain top-k router. Dropless; it needs a GPU (Triton)."""

from scattermoe.mlp import MLP
from torch import Tensor, nn

from bench_peers import Cell, PlainRouter

NEEDS_CUDA = True


class Layer(nn.Module):
    def __init__(self, cell: Cell):
        super().__init__()
        self.router = PlainRouter(cell)
        self.mlp = MLP(cell.dim, cell.ffn_dim, cell.experts, cell.k, bias=True, activation=nn.ReLU())

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        weight_NK, expert_NK, loss = self.router(x_ND)
        return self.mlp(x_ND, weight_NK, expert_NK), loss


build = Layer
