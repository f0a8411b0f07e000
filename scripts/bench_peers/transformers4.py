"""transformers 4.57.6: NllbMoeSparseMLP at k = 2, SwitchTransformersSparseMLP at k = 1 (without biases).

Their capacity is set so high that no token is dropped, which costs them nothing: it only enters their masks.
"""

import transformers
from torch import Tensor, nn
from transformers import NllbMoeConfig, SwitchTransformersConfig
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSparseMLP
from transformers.models.switch_transformers import modeling_switch_transformers as switch

from bench_peers import Cell, set_gate

if not transformers.__version__.startswith("4."):
    raise ImportError(f"it needs transformers 4, this is {transformers.__version__}")

DROPLESS = 2**40


def nllb_config(cell: Cell) -> NllbMoeConfig:
    return NllbMoeConfig(
        d_model=cell.dim,
        num_experts=cell.experts,
        expert_capacity=DROPLESS,
        activation_function="relu",
        activation_dropout=0.0,
        moe_token_dropout=0.0,
    )


class Nllb(nn.Module):
    def __init__(self, cell: Cell):
        super().__init__()
        self.mlp = NllbMoeSparseMLP(nllb_config(cell), cell.ffn_dim)
        set_gate(self.mlp.router.classifier, cell)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        y_1ND, (prob_NE, first_N) = self.mlp(x_ND[None], padding_mask=None)
        return y_1ND[0], switch.load_balancing_loss_func(prob_NE[None], first_N[None])


class Switch(nn.Module):
    def __init__(self, cell: Cell):
        super().__init__()
        config = SwitchTransformersConfig(
            d_model=cell.dim,
            d_ff=cell.ffn_dim,
            num_experts=cell.experts,
            expert_capacity=DROPLESS,
            dropout_rate=0.0,
            router_jitter_noise=0.0,
        )
        self.mlp = switch.SwitchTransformersSparseMLP(config)
        set_gate(self.mlp.router.classifier, cell)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        y_1ND, (logit_1NE, expert_1N) = self.mlp(x_ND[None])
        return y_1ND[0], switch.load_balancing_loss_func(logit_1NE.softmax(-1), expert_1N)


def check(cell: Cell) -> None:
    cell.require_k(1, 2)
    if cell.k == 2:  # about four [E, N, D] tensors at the same time
        cell.require_memory(4 * cell.number_bytes * cell.experts * cell.tokens * cell.dim)


def build(cell: Cell) -> nn.Module:
    return Nllb(cell) if cell.k == 2 else Switch(cell)
