"""Experts that are feed-forward networks.

Shape letters: A assignments, E experts, D model width, F inner width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from moe_nmt.errors import UserError
from moe_nmt.moe.activations import activation_function
from moe_nmt.moe.experts import EXPERTS, Experts
from moe_nmt.moe.feed_forward import grouped_feed_forward
from moe_nmt.moe.initialization import truncated_normal_


@EXPERTS.register("ffn", paper="Shazeer et al. 2017; Lepikhin et al. 2021 (GShard)")
class FFNExperts(Experts):
    """Two-layer feed-forward networks, `activation(x W1 + b1) W2 + b2`, with the weights of all experts stacked.

    Args:
        dim: D.
        ffn_dim: F, unless `inner_dim` says otherwise.
        activation: a name of `activation_function`.
        dropout: probability, on the experts' outputs, element by element.
        activation_dropout: probability, after the activation.
        count: E.
        inner_dim: F, where it shall differ from that of the dense feed-forward blocks.
        init_scale: draw weights from a truncated normal distribution of variance init_scale / fan in, with biases 0
            (Switch: 0.1); None: as `nn.Linear` draws its own.
    """

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        activation: str = "relu",
        dropout: float = 0.0,
        activation_dropout: float = 0.0,
        *,
        count: int,
        inner_dim: int | None = None,
        init_scale: float | None = None,
    ):
        super().__init__()
        if count < 1 or (inner_dim is not None and inner_dim < 1):
            raise UserError("count and inner_dim must be at least 1.")
        inner_dim = inner_dim or ffn_dim
        self.num_experts = count
        activation_function(activation)
        self.activation = activation
        self.dropout, self.activation_dropout = nn.Dropout(dropout), activation_dropout
        self.weight1_EDF = nn.Parameter(torch.empty(count, dim, inner_dim))
        self.bias1_EF = nn.Parameter(torch.empty(count, inner_dim))
        self.weight2_EFD = nn.Parameter(torch.empty(count, inner_dim, dim))
        self.bias2_ED = nn.Parameter(torch.empty(count, dim))
        self.reset_parameters(init_scale)

    def reset_parameters(self, init_scale: float | None = None) -> None:
        """Draw every expert as `init_scale` says; None: uniform within 1 / sqrt(fan in)."""
        for weight, bias in ((self.weight1_EDF, self.bias1_EF), (self.weight2_EFD, self.bias2_ED)):
            fan_in = weight.shape[1]
            if init_scale is None:
                bound = 1 / math.sqrt(fan_in)
                nn.init.uniform_(weight, -bound, bound)
                nn.init.uniform_(bias, -bound, bound)
            else:
                truncated_normal_(weight, init_scale, fan_in)
                nn.init.zeros_(bias)

    def forward(self, x_AD: Tensor, count_E: Tensor) -> Tensor:
        inner_dropout = self.activation_dropout if self.training else 0.0
        layers = (self.weight1_EDF, self.bias1_EF), (self.weight2_EFD, self.bias2_ED)
        y_AD: Tensor = self.dropout(grouped_feed_forward(x_AD, *layers, count_E, self.activation, inner_dropout))
        return y_AD
