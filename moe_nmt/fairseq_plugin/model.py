"""The model `transformer_moe`: a Transformer with a mixture of experts in every n-th layer."""

from __future__ import annotations

import argparse
import functools
import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import (
    FairseqEncoder,
    FairseqEncoderDecoderModel,
    FairseqIncrementalDecoder,
    register_model,
    register_model_architecture,
)
from fairseq.modules import LayerNorm, PositionalEmbedding
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moe_nmt.adapters import ADAPTERS, ADAPTERS_PREFIX, Adapters, Host, LayerAdapter, Side
from moe_nmt.distributed.gradients import mark_local
from moe_nmt.distributed.groups import ExpertGroup
from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin.config import ARCHITECTURES, TransformerMoEConfig, apply_architecture
from moe_nmt.fairseq_plugin.layers import DecoderLayer, DenseFeedForward, EncoderLayer, MoEFeedForward, RealTokens
from moe_nmt.moe import BRANCHES, DISPATCHERS, EXPERTS, REGULARIZERS, ROUTERS, MoELayer
from moe_nmt.moe.linear import Linear
from moe_nmt.registry import Spec, parse, parse_list
from moe_nmt.training.freezing import Freezing, rest_frozen

logger = logging.getLogger(__name__)

EncoderOut = dict[str, list[Tensor]]


def build_feed_forward(config: TransformerMoEConfig, side: str, layer: int) -> nn.Module:
    """The feed-forward block of layer `layer` (from 0) of `encoder` or `decoder`: dense, or every n-th a mixture."""
    own_freq = getattr(config, f"{side}_moe_freq")
    freq = config.moe_freq if own_freq is None else own_freq
    supplied: dict[str, Any] = {
        "dim": getattr(config, f"{side}_embed_dim"),
        "ffn_dim": getattr(config, f"{side}_ffn_embed_dim"),
        "activation": config.activation_fn,
        "dropout": config.dropout,
        "activation_dropout": config.activation_dropout,
    }
    if freq == 0 or (layer + 1) % freq:
        return DenseFeedForward(**supplied)
    experts = EXPERTS.build(config.moe_experts, **supplied | config.expert_dropout())
    number = layer + (config.encoder_layers if side == "decoder" else 0)
    supplied |= {"num_experts": experts.num_experts, "causal": side == "decoder", "layer": number}
    dispatcher = DISPATCHERS.build(config.moe_dispatch, ranks_per_node=config.moe_ranks_per_node, **supplied)
    if dispatcher.group is not None and dispatcher.group.size > 1:
        experts.take_part(dispatcher.group.rank, dispatcher.group.size)
        mark_local(experts.parameters())
    supplied["group"] = dispatcher.group
    return MoEFeedForward(
        MoELayer(
            ROUTERS.build(config.moe_router, **supplied),
            experts,
            dispatcher,
            [REGULARIZERS.build(spec, **supplied) for spec in parse_list(config.moe_regularizers)],
            BRANCHES.build(config.moe_branch, **supplied) if config.moe_branch else None,
        )
    )


def expert_group_of(model: nn.Module) -> ExpertGroup:
    """The ranks that the experts of a model are spread over.

    Raises:
        UserError: if they are not the same for all layers.
    """
    groups = [m.dispatcher.group or ExpertGroup() for m in model.modules() if isinstance(m, MoELayer)]
    sizes = sorted({group.size for group in groups})
    if len(sizes) > 1:
        raise UserError(
            f"the experts of different layers would be spread over {' and '.join(map(str, sizes))} processes; choose "
            "one number that divides all their numbers of experts, as in --moe-dispatch 'all_to_all(ranks=2)'."
        )
    return groups[0] if groups else ExpertGroup()


def build_embedding(dictionary: Dictionary, dim: int) -> nn.Embedding:
    """Token embeddings as fairseq draws them: normal, standard deviation dim^-1/2, padding zero."""
    embedding = nn.Embedding(len(dictionary), dim, dictionary.pad())
    nn.init.normal_(embedding.weight, std=dim**-0.5)
    nn.init.zeros_(embedding.weight[dictionary.pad()])
    return embedding


class TokenEmbedding(nn.Module):
    """Tokens and positions to vectors: [B, T] -> [T, B, D].

    Args:
        embed_tokens: shared with whoever else uses it.
        scale: multiply token embeddings by the square root of the width.
    """

    def __init__(
        self,
        embed_tokens: nn.Embedding,
        max_positions: int,
        learned: bool,
        scale: bool,
        normalize: bool,
        dropout: float,
    ):
        super().__init__()
        dim = embed_tokens.embedding_dim
        self.embed_tokens = embed_tokens
        self.embed_positions = PositionalEmbedding(max_positions, dim, embed_tokens.padding_idx, learned=learned)
        self.scale = math.sqrt(dim) if scale else 1.0
        self.layer_norm = LayerNorm(dim) if normalize else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, incremental_state: dict[str, Any] | None = None) -> Tensor:
        """In a decoding step (`incremental_state` given) only the last position is embedded: [1, B, D]."""
        positions = self.embed_positions(tokens, incremental_state=incremental_state)
        if incremental_state is not None:
            tokens, positions = tokens[:, -1:], positions[:, -1:]
        x = self.scale * self.embed_tokens(tokens) + positions
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return self.dropout(x).transpose(0, 1)


def embedding_options(config: TransformerMoEConfig, side: str) -> dict[str, Any]:
    """What a `TokenEmbedding` of the `encoder` or `decoder` takes from the configuration."""
    return {
        "learned": getattr(config, f"{side}_learned_pos"),
        "scale": not config.no_scale_embedding,
        "normalize": config.layernorm_embedding,
        "dropout": config.dropout,
    }


def layer_options(config: TransformerMoEConfig, side: str) -> dict[str, Any]:
    """What every layer of the `encoder` or `decoder` takes from the configuration."""
    return {
        "dim": getattr(config, f"{side}_embed_dim"),
        "heads": getattr(config, f"{side}_attention_heads"),
        "attention_dropout": config.attention_dropout,
        "dropout": config.dropout,
        "normalize_before": getattr(config, f"{side}_normalize_before"),
    }


class AdaptedStack(nn.Module):
    """What encoder and decoder share: layers, and the adapters that the model hands to both."""

    side: Side
    adapters: Adapters | None = None
    layers: nn.ModuleList

    def adapt(self, adapters: Adapters | None) -> None:
        """Use these adapters; they stay modules of the model, not of the stack."""
        object.__setattr__(self, "adapters", adapters)

    def open_adapters(
        self, source_language: Tensor | None, target_language: Tensor | None
    ) -> Sequence[LayerAdapter | None]:
        """What adapters do to each layer in a batch of these languages, int64 [B]."""
        if self.adapters is None:
            return [None] * len(self.layers)
        if source_language is None or target_language is None:
            raise UserError(
                "the model has adapters, but the batch does not say its languages; "
                "use the task multilingual_translation_moe."
            )
        return self.adapters.open(self.side, source_language, target_language)


class TransformerMoEEncoder(AdaptedStack, FairseqEncoder):
    """The encoder stack."""

    side = "encoder"

    def __init__(self, config: TransformerMoEConfig, dictionary: Dictionary, embed: nn.Embedding, max_positions: int):
        super().__init__(dictionary)
        self.padding_idx = dictionary.pad()
        self.max_source_positions = max_positions
        self.checkpoint_activations = config.checkpoint_activations
        self.embedding = TokenEmbedding(embed, max_positions, **embedding_options(config, "encoder"))
        self.layers = nn.ModuleList(
            EncoderLayer(**layer_options(config, "encoder"), feed_forward=build_feed_forward(config, "encoder", layer))
            for layer in range(config.encoder_layers)
        )
        self.layer_norm = LayerNorm(config.encoder_embed_dim) if config.encoder_normalize_before else nn.Identity()

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        source_language: Tensor | None = None,
        target_language: Tensor | None = None,
        return_all_hiddens: bool = False,
    ) -> EncoderOut:
        """`src_tokens`: int64 [B, S]. Languages: int64 [B], index into the language list; None if not known.

        Returns fairseq's dictionary of lists (an empty list means None), with the languages beside the states, so that
        the decoder has them also in beam search.
        """
        padding_mask = src_tokens.eq(self.padding_idx)
        real = RealTokens.of(src_tokens, self.padding_idx, source_language, target_language)
        x = self.embedding(src_tokens)
        attention_mask = None if real.index is None else hide(padding_mask, x)
        adapters = self.open_adapters(source_language, target_language)
        states = [x]
        for layer, adapter in zip(self.layers, adapters, strict=True):
            x = run_layer(self.checkpoint_activations, layer, x, attention_mask, real, adapter)
            states.append(x)
        x = self.layer_norm(x)
        return {
            "encoder_out": [x],
            "encoder_padding_mask": [padding_mask],
            "encoder_embedding": [],
            "encoder_states": states if return_all_hiddens else [],
            "src_tokens": [src_tokens],
            "src_lengths": [src_tokens.ne(self.padding_idx).sum(1, keepdim=True, dtype=torch.int32)],
            "source_language": [] if source_language is None else [source_language],
            "target_language": [] if target_language is None else [target_language],
        }

    def reorder_encoder_out(self, encoder_out: EncoderOut, new_order: Tensor) -> EncoderOut:
        """Follow the beam: sentence `new_order[i]` comes to place i."""
        time_first = ("encoder_out", "encoder_states")
        return {
            name: [value.index_select(1 if name in time_first else 0, new_order) for value in values]
            for name, values in encoder_out.items()
        }

    def max_positions(self) -> int:
        return self.max_source_positions


class TransformerMoEDecoder(AdaptedStack, FairseqIncrementalDecoder):
    """The decoder stack."""

    side = "decoder"

    def __init__(self, config: TransformerMoEConfig, dictionary: Dictionary, embed: nn.Embedding, max_positions: int):
        super().__init__(dictionary)
        self.padding_idx = dictionary.pad()
        self.max_target_positions = max_positions
        self.checkpoint_activations = config.checkpoint_activations
        self.need_attention = False
        self.embedding = TokenEmbedding(embed, max_positions, **embedding_options(config, "decoder"))
        self.layers = nn.ModuleList(
            DecoderLayer(
                encoder_dim=config.encoder_embed_dim,
                **layer_options(config, "decoder"),
                feed_forward=build_feed_forward(config, "decoder", layer),
            )
            for layer in range(config.decoder_layers)
        )
        self.layer_norm = LayerNorm(config.decoder_embed_dim) if config.decoder_normalize_before else nn.Identity()
        self.output_projection = Linear(config.decoder_embed_dim, len(dictionary), bias=False)
        if config.share_decoder_input_output_embed or config.share_all_embeddings:
            self.output_projection.weight = embed.weight
        else:
            nn.init.normal_(self.output_projection.weight, std=config.decoder_embed_dim**-0.5)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: EncoderOut,
        incremental_state: dict[str, Any] | None = None,
        features_only: bool = False,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
    ) -> tuple[Tensor, dict[str, Any]]:
        """`prev_output_tokens`: int64 [B, T]; with `incremental_state` only the last position is computed, and there
        may be several hypotheses per sentence of `encoder_out`, in adjacent rows.

        Returns logits [B, T, V] (features [B, T, D] if `features_only`) and fairseq's dictionary of extras.
        """
        tokens = prev_output_tokens if incremental_state is None else prev_output_tokens[:, -1:]
        languages = self._languages(encoder_out)
        x = self.embedding(prev_output_tokens, incremental_state)
        source = encoder_out["encoder_out"][0]
        source_mask = hide(encoder_out["encoder_padding_mask"][0], x) if encoder_out["encoder_padding_mask"] else None
        if incremental_state is not None:
            real, mask = RealTokens.of_step(tokens, *languages), None
        else:
            real = RealTokens.of(tokens, self.padding_idx, *languages)
            mask = self._future_mask(x)
            if real.index is not None:
                mask = mask + hide(tokens.eq(self.padding_idx), x)
        adapters = self.open_adapters(*languages)
        states, attention = [x], None
        for number, (layer, adapter) in enumerate(zip(self.layers, adapters, strict=True), start=1):
            last = number == len(self.layers)
            x, attention = run_layer(
                self.checkpoint_activations,
                layer,
                x,
                source,
                source_mask,
                incremental_state,
                mask,
                real,
                last and self.need_attention,
                adapter,
            )
            states.append(x)
        x = self.layer_norm(x).transpose(0, 1)
        extra = {"attn": [attention], "inner_states": states if return_all_hiddens else []}
        return (x if features_only else self.output_projection(x)), extra

    @staticmethod
    def _languages(encoder_out: EncoderOut) -> tuple[Tensor | None, Tensor | None]:
        source, target = encoder_out.get("source_language"), encoder_out.get("target_language")
        return (source[0] if source else None), (target[0] if target else None)

    @staticmethod
    def _future_mask(x: Tensor) -> Tensor:
        """float [T, T] of the dtype of x: -inf above the diagonal, else 0."""
        return torch.full((x.shape[0], x.shape[0]), float("-inf"), dtype=x.dtype, device=x.device).triu(1)

    def reorder(self, state: dict[Any, Any], rows: Tensor, sentences: Tensor | None) -> None:
        """Follow the beam: to place i comes hypothesis `rows[i]`, or sentence `sentences[i]` (None: all stay)."""
        for layer in self.layers:
            layer.self_attn.reorder(state, rows)
            if sentences is not None:
                layer.encoder_attn.reorder(state, sentences)

    def reorder_incremental_state_scripting(self, incremental_state: dict[Any, Any], new_order: Tensor) -> None:
        """The same for fairseq's search, which repeats a sentence for each of its hypotheses."""
        self.reorder(incremental_state, new_order, new_order)

    def output_layer(self, features: Tensor) -> Tensor:
        return self.output_projection(features)

    def make_generation_fast_(self, need_attn: bool = False, **kwargs: Any) -> None:
        """fairseq calls this before generation; `--print-alignment` asks for the attention weights."""
        self.need_attention = need_attn

    def max_positions(self) -> int:
        return self.max_target_positions


def hide(padding_mask: Tensor, x: Tensor) -> Tensor:
    """bool [B, S], True = padding, to a mask to add: float [B, 1, 1, S] of the dtype of x, -inf at padding, else 0."""
    mask = torch.zeros(padding_mask.shape, dtype=x.dtype, device=x.device)
    return mask.masked_fill(padding_mask, float("-inf"))[:, None, None]


def run_layer(recompute: bool, layer: nn.Module, *inputs: Any) -> Any:
    """Run a layer, keeping its activations or, if there will be a backward pass, recomputing them there.

    The non-reentrant form builds the graph in the first forward pass, so that records of the routing made there, and
    losses computed from them, keep their gradient.
    """
    recompute = recompute and torch.is_grad_enabled()
    return checkpoint(layer, *inputs, use_reentrant=False) if recompute else layer(*inputs)


@register_model("transformer_moe")
class TransformerMoEModel(FairseqEncoderDecoderModel):
    """A Transformer with a mixture of experts in every n-th layer (NLLB Team 2022, section 6), or none, and adapters.

    Args:
        adapters: spec of the adapters, None for none. They are built last, so that all else starts as without them.
        languages: all languages, at the place that batches number them by. directions: those trained. For adapters.

    `adapters_spec` is the spec completed by what the surroundings decided, which makes the same adapters anywhere.
    """

    def __init__(
        self,
        encoder: TransformerMoEEncoder,
        decoder: TransformerMoEDecoder,
        adapters: Spec | None = None,
        languages: Sequence[str] = (),
        directions: Sequence[str] = (),
    ):
        super().__init__(encoder, decoder)
        self.freezing: Freezing | None = None
        self.adapters: Adapters | None = None
        self.adapters_spec = adapters
        if adapters is not None:
            shapes = ([layer.shape for layer in stack.layers] for stack in (encoder, decoder))
            self.adapters = ADAPTERS.build(adapters, host=Host(*shapes, languages, directions))
            self.adapters_spec = Spec(adapters.name, adapters.options | dict(self.adapters.recorded))
            encoder.adapt(self.adapters)
            decoder.adapt(self.adapters)

    @staticmethod
    def add_args(parser: argparse._ActionsContainer) -> None:
        TransformerMoEConfig.add_arguments(parser)

    @classmethod
    def build_model(cls, args: argparse.Namespace, task: Any) -> TransformerMoEModel:
        """Build the model of fairseq's namespace for a translation task, and write the completed spec of its adapters
        there, from where it goes into checkpoints."""
        max_positions = getattr(args, "max_source_positions", 1024), getattr(args, "max_target_positions", 1024)
        config = TransformerMoEConfig.from_args(args)
        dictionaries = task.source_dictionary, task.target_dictionary
        known = getattr(task, "langs", ()), getattr(task, "lang_pairs", ())
        model = build_transformer_moe(config, *dictionaries, *max_positions, *known)
        if model.adapters_spec is not None:
            args.adapters = str(model.adapters_spec)
        return model

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None,
        prev_output_tokens: Tensor,
        source_language: Tensor | None = None,
        target_language: Tensor | None = None,
        features_only: bool = False,
        return_all_hiddens: bool = False,
    ) -> tuple[Tensor, dict[str, Any]]:
        """See the encoder's and the decoder's `forward`."""
        encoder_out = self.encoder(src_tokens, src_lengths, source_language, target_language, return_all_hiddens)
        x, extra = self.decoder(
            prev_output_tokens, encoder_out, features_only=features_only, return_all_hiddens=return_all_hiddens
        )
        if self.training and torch.is_grad_enabled() and not x.requires_grad:
            x = x + self.no_gradient().to(x.dtype)
        return x, extra

    def no_gradient(self) -> Tensor:
        """A zero whose gradient is zero for all trained parameters, for a batch that has nothing to do with them."""
        trained = (parameter for parameter in self.parameters() if parameter.requires_grad)
        return 0 * sum((parameter.flatten()[0] for parameter in trained), torch.zeros(()))

    def freeze(self, freezing: Freezing) -> None:
        """Freeze parameters by a recipe, from now on."""
        freezing.apply(self)
        self.freezing = freezing

    def train(self, mode: bool = True) -> TransformerMoEModel:
        super().train(mode)
        if mode and self.freezing is not None and not self.freezing.dropout:
            rest_frozen(self)
        return self

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Make the parameters of another model of this shape fit: of fairseq's own Transformer, or without adapters.

        Adapters that the state does not have start as they were drawn.

        Raises:
            UserError: if the state has other adapters than the model.
        """
        super().upgrade_state_dict_named(state_dict, name)
        rename_from_fairseq(state_dict)
        fresh = {f"{ADAPTERS_PREFIX}{key}": value for key, value in _state(self.adapters).items()}
        found = {key: value for key, value in state_dict.items() if key.startswith(ADAPTERS_PREFIX)}
        if fresh and not found:
            logger.info(f"the checkpoint has no adapters; those of the model start anew: {self.adapters_spec}")
            state_dict |= fresh
        elif {key: value.shape for key, value in found.items()} != {key: value.shape for key, value in fresh.items()}:
            raise UserError(
                "the checkpoint has other adapters than the model: give --adapters as in its training "
                "(moe-nmt inspect shows it), or start from a checkpoint without adapters."
            )


def _state(module: nn.Module | None) -> dict[str, Tensor]:
    return {} if module is None else module.state_dict()


FAIRSEQ_NAMES = {
    r"^(encoder|decoder)\.embed_tokens\.": r"\1.embedding.embed_tokens.",
    r"^(encoder|decoder)\.embed_positions\.": r"\1.embedding.embed_positions.",
    r"^(encoder|decoder)\.layernorm_embedding\.": r"\1.embedding.layer_norm.",
    r"^(encoder|decoder)\.layers\.(\d+)\.(fc[12])\.": r"\1.layers.\2.feed_forward.\3.",
}
"""Names of parameters in fairseq's `transformer`, and here."""


def rename_from_fairseq(state_dict: dict[str, Tensor]) -> None:
    """Give the parameters of fairseq's own `transformer` the names that they have here, in place."""
    for name in [name for name in state_dict if name.endswith((".version", "._float_tensor"))]:
        del state_dict[name]
    for pattern, replacement in FAIRSEQ_NAMES.items():
        for name in [name for name in state_dict if re.match(pattern, name)]:
            state_dict[re.sub(pattern, replacement, name)] = state_dict.pop(name)


def build_transformer_moe(
    config: TransformerMoEConfig,
    source_dictionary: Dictionary,
    target_dictionary: Dictionary,
    max_source_positions: int = 1024,
    max_target_positions: int = 1024,
    languages: Sequence[str] = (),
    directions: Sequence[str] = (),
) -> TransformerMoEModel:
    """Build the model, on the meta device too.

    Raises:
        UserError: if all embeddings are to be shared by two different dictionaries, or a part cannot be built.
    """
    if config.share_all_embeddings and source_dictionary != target_dictionary:
        raise UserError(
            "--share-all-embeddings needs one dictionary; binarize with it or add --share-all-embeddings False."
        )
    source_embedding = build_embedding(source_dictionary, config.encoder_embed_dim)
    target_embedding = (
        source_embedding
        if config.share_all_embeddings
        else build_embedding(target_dictionary, config.decoder_embed_dim)
    )
    return TransformerMoEModel(
        TransformerMoEEncoder(config, source_dictionary, source_embedding, max_source_positions),
        TransformerMoEDecoder(config, target_dictionary, target_embedding, max_target_positions),
        parse(config.adapters) if config.adapters else None,
        languages,
        directions,
    )


for _name in ARCHITECTURES:
    register_model_architecture("transformer_moe", _name)(functools.partial(apply_architecture, name=_name))
