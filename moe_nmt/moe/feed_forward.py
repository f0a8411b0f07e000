"""Feed-forward networks of a Transformer layer: one for all tokens, or one per group of tokens.

Shape letters: A rows, E groups, D model width, F inner width.
"""

from __future__ import annotations

from torch import Tensor, nn

from moe_nmt.moe import kernels
from moe_nmt.moe.activations import activation_function
from moe_nmt.moe.grouped_linear import grouped_linear
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


def grouped_feed_forward(
    x_AD: Tensor,
    layer1: tuple[Tensor, Tensor],
    layer2: tuple[Tensor, Tensor],
    count_E: Tensor,
    activation: str,
    inner_dropout: float = 0.0,
) -> Tensor:
    """`activation(x W1 + b1) W2 + b2`, where the first `count_E[0]` rows belong to group 0, and so on.

    `layer1`: weight [E, D, F] and bias [E, F]; `layer2`: weight [E, F, D] and bias [E, D]. `inner_dropout`:
    probability, after the activation. On a CPU in float32, without it, this is one compiled operator. Returns float
    [A, D].
    """
    if inner_dropout == 0 and kernels.usable(x_AD, *layer1, *layer2):
        return kernels.expert_ffn(x_AD, *layer1, *layer2, count_E, activation)
    h_AF = activation_function(activation)(grouped_linear(x_AD, *layer1, count_E))
    return grouped_linear(nn.functional.dropout(h_AF, inner_dropout), *layer2, count_E)
