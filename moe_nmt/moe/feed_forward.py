"""The dense feed-forward network of a Transformer layer."""

from __future__ import annotations

from torch import Tensor, nn

from moe_nmt.moe.activations import activation_function
from moe_nmt.moe.linear import Linear


class FeedForward(nn.Module):
    """`dropout(fc2(activation(fc1(x))))`, for x of shape [..., D]; names as in fairseq's layers.

    Args:
        dim: D. ffn_dim: inner width. activation: a name of `activation_function`.
        dropout: probability, on the output. activation_dropout: probability, after the activation.
    """

    def __init__(
        self, dim: int, ffn_dim: int, activation: str = "relu", dropout: float = 0.0, activation_dropout: float = 0.0
    ):
        super().__init__()
        self.fc1, self.fc2 = Linear(dim, ffn_dim), Linear(ffn_dim, dim)
        self.activation = activation_function(activation)
        self.dropout, self.activation_dropout = nn.Dropout(dropout), nn.Dropout(activation_dropout)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.fc2(self.activation_dropout(self.activation(self.fc1(x)))))
        return y
