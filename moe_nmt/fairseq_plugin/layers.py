"""Encoder and decoder layers, with the feed-forward block handed in.

fairseq's names and shapes rule here: activations are [T, B, D] (positions, sentences, width).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fairseq.modules import LayerNorm
from torch import Tensor, nn

from moe_nmt.adapters import LayerAdapter, LayerShape
from moe_nmt.fairseq_plugin.attention import SelfAttention, SourceAttention
from moe_nmt.moe import MoELayer, RoutingContext
from moe_nmt.moe.feed_forward import FeedForward
from moe_nmt.moe.linear import Linear


class RealTokens(NamedTuple):
    """Which of the T * B places of a batch hold a token, in order of position, then sentence.

    `index`: int64 [N] into the flattened [T, B], or None if there is no padding. `context`: what is known of them.
    A decoder's earlier positions come first, so that at k = 1 limited capacity lets no later token displace an earlier.
    """

    index: Tensor | None
    context: RoutingContext

    @classmethod
    def of(
        cls, tokens: Tensor, padding_idx: int, source_language: Tensor | None, target_language: Tensor | None
    ) -> RealTokens:
        """Find the tokens of a batch. `tokens`: int64 [B, T]; languages: int64 [B]."""
        flat = tokens.t().reshape(-1)
        index = flat.ne(padding_idx).nonzero().squeeze(1)

        sentence = index % tokens.shape[0]

        def spread(language: Tensor | None) -> Tensor | None:
            return None if language is None else language[sentence]

        context = RoutingContext(flat[index], spread(source_language), spread(target_language), sentence)
        return cls(None if index.numel() == flat.numel() else index, context)

    @classmethod
    def of_step(cls, tokens: Tensor, source_language: Tensor | None, target_language: Tensor | None) -> RealTokens:
        """All places of a decoding step: search keeps no padding. `tokens`: int64 [R, 1]; languages: int64 [B]."""

        def spread(language: Tensor | None) -> Tensor | None:
            return None if language is None else language.repeat_interleave(tokens.shape[0] // language.shape[0])

        return cls(None, RoutingContext(tokens[:, 0], spread(source_language), spread(target_language)))


class DenseFeedForward(FeedForward):
    """The dense block of a layer; an adapter may change what its linear maps and its activation give."""

    def forward(self, x: Tensor, real: RealTokens, adapter: LayerAdapter | None = None) -> Tensor:
        if adapter is None:
            return super().forward(x)
        h = adapter.on_inner(self.activation(adapter.on_linear("feed_forward.fc1", x, self.fc1(x))))
        h = self.activation_dropout(h)
        y: Tensor = self.dropout(adapter.on_linear("feed_forward.fc2", h, self.fc2(h)))
        return y


class MoEFeedForward(nn.Module):
    """The mixture-of-experts block of a layer: hands over the real tokens only; places of padding get zeros.

    Adapters leave it alone.
    """

    def __init__(self, moe: MoELayer):
        super().__init__()
        self.moe = moe

    def forward(self, x: Tensor, real: RealTokens, adapter: LayerAdapter | None = None) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if real.index is None:
            return self.moe(flat, real.context)[0].view_as(x)
        y, _ = self.moe(flat.index_select(0, real.index), real.context)
        return y.new_zeros(flat.shape).index_copy(0, real.index, y).view_as(x)


class TransformerLayer(nn.Module):
    """What encoder and decoder layers share: blocks with residual connection, dropout and layer norm.

    Args:
        dim: D.
        dropout: probability, on the outputs of attention.
        normalize_before: layer norm before each block (pre-norm) instead of after it.
        feed_forward: `(x [T, B, D], RealTokens, LayerAdapter or None) -> [T, B, D]`, with its own dropout.
    """

    self_attn: SelfAttention

    def __init__(self, dim: int, dropout: float, normalize_before: bool, feed_forward: nn.Module):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.normalize_before = normalize_before
        self.feed_forward = feed_forward
        self.final_layer_norm = LayerNorm(dim)

    def residual(self, x: Tensor, norm: nn.Module, block: Callable[[Tensor], Tensor]) -> Tensor:
        if self.normalize_before:
            return x + block(norm(x))
        return norm(x + block(x))

    def last_block(self, x: Tensor, real: RealTokens, adapter: LayerAdapter | None) -> Tensor:
        """The feed-forward block, and what an adapter adds to the layer."""
        x = self.residual(x, self.final_layer_norm, lambda y: self.feed_forward(y, real, adapter))
        return x if adapter is None else adapter.on_output(x)

    @property
    def shape(self) -> LayerShape:
        """What adapters need to know of the layer. The linear maps of a mixture of experts cannot be adapted."""
        linear = {
            name: (module.in_features, module.out_features)
            for name, module in self.named_modules()
            if isinstance(module, Linear) and ".moe." not in name
        }
        return LayerShape(self.final_layer_norm.normalized_shape[0], self.self_attn.heads, linear)


class EncoderLayer(TransformerLayer):
    """Self-attention, then the feed-forward block."""

    def __init__(self, dim: int, heads: int, attention_dropout: float, **shared: Any):
        super().__init__(dim, **shared)
        self.self_attn = SelfAttention(dim, heads, dropout=attention_dropout)
        self.self_attn_layer_norm = LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor | None, real: RealTokens, adapter: LayerAdapter | None = None) -> Tensor:
        """`x`: [T, B, D]. `mask`: float [B, 1, 1, T], -inf at padding; None if there is none."""

        def attend(y: Tensor) -> Tensor:
            attended: Tensor = self.dropout(self.self_attn(y, mask, adapter=adapter))
            return attended

        return self.last_block(self.residual(x, self.self_attn_layer_norm, attend), real, adapter)


class DecoderLayer(TransformerLayer):
    """Causal self-attention, attention to the encoder, then the feed-forward block."""

    def __init__(self, dim: int, encoder_dim: int, heads: int, attention_dropout: float, **shared: Any):
        super().__init__(dim, **shared)
        self.self_attn = SelfAttention(dim, heads, dropout=attention_dropout)
        self.self_attn_layer_norm = LayerNorm(dim)
        self.encoder_attn = SourceAttention(dim, heads, encoder_dim, attention_dropout)
        self.encoder_attn_layer_norm = LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor,
        encoder_mask: Tensor | None,
        state: dict[Any, Any] | None,
        mask: Tensor | None,
        real: RealTokens,
        need_attention: bool = False,
        adapter: LayerAdapter | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns [T, B, D] and, if asked for, the attention to the source averaged over heads, [B, T, S].

        `x`: [T, B, D]; with `state`, a decoding step, [1, R, D] for R / B hypotheses per sentence. `encoder_out`:
        [S, B, D']. `encoder_mask`: float [B, 1, 1, S]. `mask`: float, broadcasts to [B, 1, T, T]; None in a decoding
        step. Masks are -inf where not to look.
        """
        attention: Tensor | None = None

        def attend_to_source(q: Tensor) -> Tensor:
            nonlocal attention
            y, attention = self.encoder_attn(q, encoder_out, encoder_mask, state, need_attention, adapter)
            return self.dropout(y)

        x = self.residual(x, self.self_attn_layer_norm, lambda y: self.dropout(self.self_attn(y, mask, state, adapter)))
        x = self.residual(x, self.encoder_attn_layer_norm, attend_to_source)
        return self.last_block(x, real, adapter), attention
