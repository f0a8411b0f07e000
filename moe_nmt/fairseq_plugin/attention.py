"""Multi-head attention under fairseq's parameter names, with the caches of step-by-step decoding.

fairseq's shapes rule: queries are [T, B, D] (positions, sentences, width), caches begin with the sentence. In a
decoding step several hypotheses may share a sentence: queries are then [1, R, D], with R a multiple of B and the
hypotheses of a sentence in adjacent rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_nmt.adapters import LayerAdapter
from moe_nmt.moe.linear import Linear


class Attention(nn.Module):
    """Projections of queries, keys and values into heads, and back; an adapter may change what they give.

    Args:
        dim: D, of queries and output; `heads` divides it.
        source_dim: width of what keys and values are computed from.
        dropout: probability, on attention weights.
    """

    name: str
    """What it is called in a layer."""

    def __init__(self, dim: int, heads: int, source_dim: int | None = None, dropout: float = 0.0):
        super().__init__()
        source_dim = source_dim or dim
        self.heads, self.dropout = heads, dropout
        self.k_proj, self.v_proj = Linear(source_dim, dim), Linear(source_dim, dim)
        self.q_proj, self.out_proj = Linear(dim, dim), Linear(dim, dim)
        gain = 1 / math.sqrt(2) if source_dim == dim else 1.0  # as fairseq draws them
        for projection in (self.k_proj, self.v_proj, self.q_proj):
            nn.init.xavier_uniform_(projection.weight, gain=gain)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def project(self, linear: str, x: Tensor, adapter: LayerAdapter | None) -> Tensor:
        """The linear map of that name, and after it the adapter."""
        y: Tensor = getattr(self, linear)(x)
        return y if adapter is None else adapter.on_linear(f"{self.name}.{linear}", x, y)

    def split(self, x: Tensor) -> Tensor:
        """[T, B, D] -> [B, H, T, D / H], without a copy."""
        return x.view(*x.shape[:2], self.heads, -1).permute(1, 2, 0, 3)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, adapter: LayerAdapter | None = None
    ) -> Tensor:
        """Heads of queries, keys and values to the output [T, B, D]; `mask`: float or bool (True = may be seen)."""
        p = self.dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        return self.join(y, adapter)

    def join(self, y: Tensor, adapter: LayerAdapter | None) -> Tensor:
        """[B, H, T, D / H] -> [T, B, D], projected."""
        return self.project("out_proj", y.permute(2, 0, 1, 3).flatten(2), adapter)


class SelfAttention(Attention):
    """Attention of a sequence to itself."""

    name = "self_attn"

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        state: dict[Any, Any] | None = None,
        adapter: LayerAdapter | None = None,
    ) -> Tensor:
        """`x`: [T, B, D]. `mask`: broadcasts to [B, H, T, T], float (added) or bool (True = may be seen).

        With `state`, a decoding step: `x` is the next position of each hypothesis, which sees all before it.
        """
        q = self.split(self.project("q_proj", x, adapter))
        k, v = self.project("k_proj", x, adapter), self.project("v_proj", x, adapter)
        if state is None:
            return self.attend(q, self.split(k), self.split(v), mask, adapter)
        return self.attend(q, *self._append(state, k, v), None, adapter)

    def _append(self, state: dict[Any, Any], k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the next position, [1, R, D], to those of all so far, [R, H, T, D / H].

        The cache is [R, T, 2, D].
        """
        cache, length = state.get(self, (None, 0))
        if cache is None:
            cache = k.new_empty(k.shape[1], 1, 2, k.shape[2])
        elif cache.shape[1] == length:
            cache = functional.pad(cache, (0, 0, 0, 0, 0, 1))
        cache[:, -1, 0], cache[:, -1, 1] = k[0], v[0]
        state[self] = cache, cache.shape[1]
        all_k, all_v = cache.view(*cache.shape[:3], self.heads, -1).unbind(2)
        return all_k.transpose(1, 2), all_v.transpose(1, 2)

    @torch.no_grad()
    def reorder(self, state: dict[Any, Any], rows: Tensor) -> None:
        """Row `rows[i]` comes to place i; the new cache has room for one position more, so that it is copied once."""
        cache, length = state[self]
        moved = cache.new_empty(rows.numel(), length + 1, *cache.shape[2:])
        torch.index_select(cache[:, :length], 0, rows, out=moved[:, :length])
        state[self] = moved, length


class SourceAttention(Attention):
    """Attention to the encoder's output; in decoding, keys and values are kept once per sentence."""

    name = "encoder_attn"

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        mask: Tensor | None = None,
        state: dict[Any, Any] | None = None,
        need_weights: bool = False,
        adapter: LayerAdapter | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns [T, B, D] and, if asked for, the attention weights averaged over heads, [B, T, S].

        `x`: [T, B, D]. `source`: [S, B, D']. `mask`: float [B, 1, 1, S], added. In a decoding step x may be [1, R, D].
        """
        key_values = None if state is None else state.get(self)
        if key_values is None:
            key_values = tuple(self.split(self.project(name, source, adapter)) for name in ("k_proj", "v_proj"))
            if state is not None:
                state[self] = key_values = tuple(part.contiguous() for part in key_values)
        k, v = key_values
        rows, sentences = x.shape[1], k.shape[0]
        q = self.project("q_proj", x, adapter)
        if rows != sentences:
            q = q.view(sentences, rows // sentences, -1).transpose(0, 1)
        q = self.split(q)
        if state is None and not need_weights:
            return self.attend(q, k, v, mask, adapter), None
        score = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        weight = (score if mask is None else score + mask).float().softmax(-1)
        dropped = functional.dropout(weight, self.dropout, self.training).to(v.dtype)
        y = self.join(dropped @ v, adapter)
        if rows != sentences:
            y = y.transpose(0, 1).reshape(1, rows, -1)
            weight = weight.transpose(1, 2).flatten(0, 1)[:, :, None]
        return y, (weight.mean(1) if need_weights else None)

    def reorder(self, state: dict[Any, Any], sentences: Tensor) -> None:
        """Sentence `sentences[i]` comes to place i."""
        state[self] = tuple(part.index_select(0, sentences) for part in state[self])
