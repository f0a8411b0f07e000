"""Sort the assignments by expert, and loop over the experts that got any: autograd torch, one module per expert.

The best that is simple. Dropless.
"""

import torch
from torch import Tensor, nn

from bench_peers import FFN, Cell, PlainRouter


class Layer(nn.Module):
    def __init__(self, cell: Cell):
        super().__init__()
        self.router = PlainRouter(cell)
        self.experts = nn.ModuleList(FFN(cell.dim, cell.ffn_dim) for _ in range(cell.experts))

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        weight_NK, expert_NK, loss = self.router(x_ND)
        order_A = expert_NK.flatten().argsort(stable=True)
        token_A = order_A // expert_NK.shape[1]
        counts = torch.bincount(expert_NK.flatten(), minlength=len(self.experts)).tolist()
        blocks = zip(self.experts, x_ND[token_A].split(counts), strict=True)
        output_AD = torch.cat([expert(block) for expert, block in blocks if block.shape[0]])
        weighted_AD = output_AD * weight_NK.flatten()[order_A][:, None]
        return torch.zeros_like(x_ND).index_add(0, token_A, weighted_AD), loss


build = Layer
