"""Microsoft Tutel: its moe_layer with its own experts. `capacity_factor` 0 takes the capacity that drops no token."""

import torch
from torch import Tensor, nn
from tutel import moe

from bench_peers import Cell, set_gate


class Layer(nn.Module):
    def __init__(self, cell: Cell):
        super().__init__()
        self.moe = moe.moe_layer(
            gate_type={"type": "top", "k": cell.k, "capacity_factor": 0.0},
            model_dim=cell.dim,
            experts={
                "type": "ffn",
                "count_per_node": cell.experts,
                "hidden_size_per_expert": cell.ffn_dim,
                "activation_fn": torch.relu,
            },
        )
        set_gate(self.moe.gates[0].wg, cell)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        y_ND = self.moe(x_ND)
        return y_ND, y_ND.l_aux


build = Layer
