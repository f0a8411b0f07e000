"""MegaBlocks: dMoE with grouped matrix products, dropless. It needs a GPU, and computes in half precision."""

import torch
from megablocks.layers import moe
from megablocks.layers.arguments import Arguments
from megablocks.layers.dmoe import dMoE
from torch import Tensor, nn
from torch.nn import functional

from bench_peers import Cell, Unsupported, set_gate

NEEDS_CUDA = True


class Layer(nn.Module):
    def __init__(self, cell: Cell):
        super().__init__()
        self.arguments = Arguments(
            hidden_size=cell.dim,
            ffn_hidden_size=cell.ffn_dim,
            bias=False,
            return_bias=False,
            activation_fn=functional.relu,
            moe_num_experts=cell.experts,
            moe_top_k=cell.k,
            moe_normalize_expert_weights=1 if cell.k > 1 else None,
            moe_loss_weight=1.0,
            fp16=cell.dtype == "float16",
            bf16=cell.dtype == "bfloat16",
            device=torch.device(cell.device),
        )
        self.moe = dMoE(self.arguments)
        set_gate(self.moe.router.layer, cell)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        moe.clear_load_balancing_loss()
        y_ND = self.moe(x_ND[:, None]).squeeze(1)
        return y_ND, moe.batched_load_balancing_loss(self.arguments) if self.training else None


def check(cell: Cell) -> None:
    if cell.dtype == "float32":
        raise Unsupported("its grouped matrix products need bfloat16 or float16")


build = Layer
