"""transformers 5: NllbMoeSparseMLP, for its speed only.

It hands the one-hot mask of the first choice to its experts as if it held expert indices, so its results are wrong:
every token goes E times to the first two experts. It returns nothing from which a loss could be computed.
"""

import transformers
from torch import Tensor, nn
from transformers import NllbMoeConfig
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSparseMLP

from bench_peers import Cell, set_gate

if int(transformers.__version__.split(".")[0]) < 5:
    raise ImportError(f"it needs transformers 5, this is {transformers.__version__}")


class Layer(nn.Module):
    def __init__(self, cell: Cell):
        super().__init__()
        config = NllbMoeConfig(
            d_model=cell.dim,
            num_experts=cell.experts,
            expert_capacity=2**40,
            activation_function="relu",
            activation_dropout=0.0,
            moe_token_dropout=0.0,
        )
        self.mlp = NllbMoeSparseMLP(config, cell.ffn_dim)
        set_gate(self.mlp.router.classifier, cell)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, None]:
        return self.mlp(x_ND[None])[0], None


def check(cell: Cell) -> None:
    cell.require_k(2)
    rows = (cell.experts - 1) * cell.tokens  # that the first expert gets
    cell.require_memory(1.5 * cell.number_bytes * rows * 2 * (cell.dim + cell.ffn_dim))


build = Layer
