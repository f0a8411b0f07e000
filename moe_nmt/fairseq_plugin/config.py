"""The options of the model `transformer_moe`, and the named architectures."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin.compat import mend_precision_flags
from moe_nmt.moe.activations import ACTIVATIONS


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class TransformerMoEConfig:
    """The options of a `transformer_moe`, each a flag of fairseq's commands: `encoder_layers` is `--encoder-layers`."""

    encoder_embed_dim: int = _option(512, "model width of the encoder")
    encoder_ffn_embed_dim: int = _option(2048, "inner width of the encoder's feed-forward networks and experts")
    encoder_layers: int = _option(6, "number of encoder layers")
    encoder_attention_heads: int = _option(8, "attention heads of an encoder layer")
    encoder_normalize_before: bool = _option(True, "layer norm before each block of the encoder (pre-norm)")
    encoder_learned_pos: bool = _option(False, "learned instead of sinusoidal positions in the encoder")
    decoder_embed_dim: int = _option(512, "model width of the decoder")
    decoder_ffn_embed_dim: int = _option(2048, "inner width of the decoder's feed-forward networks and experts")
    decoder_layers: int = _option(6, "number of decoder layers")
    decoder_attention_heads: int = _option(8, "attention heads of a decoder layer")
    decoder_normalize_before: bool = _option(True, "layer norm before each block of the decoder (pre-norm)")
    decoder_learned_pos: bool = _option(False, "learned instead of sinusoidal positions in the decoder")
    dropout: float = _option(0.1, "dropout on the output of every block")
    attention_dropout: float = _option(0.0, "dropout on attention weights")
    activation_dropout: float = _option(0.0, "dropout after the activation of feed-forward networks and experts")
    activation_fn: str = _option("relu", f"activation of feed-forward networks and experts: {', '.join(ACTIVATIONS)}")
    share_all_embeddings: bool = _option(True, "one embedding for source, target and output (needs one dictionary)")
    share_decoder_input_output_embed: bool = _option(True, "one embedding for the decoder's input and output")
    no_scale_embedding: bool = _option(False, "do not multiply embeddings by the square root of the width")
    layernorm_embedding: bool = _option(False, "layer norm after the embeddings")
    checkpoint_activations: bool = _option(False, "recompute each layer in the backward pass to save memory")
    moe_freq: int = _option(
        2, "a mixture of experts in every n-th layer of encoder and decoder; 0: none (a dense model)"
    )
    encoder_moe_freq: int | None = _option(None, "the same for the encoder alone")
    decoder_moe_freq: int | None = _option(None, "the same for the decoder alone")
    moe_router: str = _option("top_k(k=2)", "the router, written name(option=value); see `moe-nmt methods`")
    moe_experts: str = _option("ffn(count=8)", "kind and number of experts per layer")
    moe_expert_dropout: float | None = _option(None, "dropout on the experts' outputs; None: as --dropout")
    moe_expert_activation_dropout: float | None = _option(
        None, "dropout after the experts' activation (Switch's expert dropout, 0.4); None: as --activation-dropout"
    )
    moe_dispatch: str = _option("sorted", "how tokens are brought to their experts")
    moe_ranks_per_node: int | None = _option(
        None, "how many adjacent processes count as one node, for all_to_all; None: as the launcher says, or all"
    )
    moe_regularizers: str = _option("[]", "list of regularizers of the layer, for example [eom(p=0.2)]")
    moe_branch: str = _option("", "what is computed beside the experts; empty: nothing")
    adapters: str = _option("", "adapters of all layers, for example bottleneck(dim=64); empty: none")

    @classmethod
    def add_arguments(cls, parser: argparse._ActionsContainer) -> None:
        """Add a flag for each option. Defaults come from the named architecture, not from the parser."""
        for option, kind in cls._kinds().items():
            switch: dict[str, Any] = {"nargs": "?", "const": True} if kind is _boolean else {}
            parser.add_argument(
                f"--{option.name.replace('_', '-')}",
                type=kind,
                help=f"{option.metadata['help']} (default: {option.default!r} unless the architecture says otherwise)",
                **switch,
            )

    @classmethod
    def _kinds(cls) -> dict[Any, Any]:
        hints = get_type_hints(cls)
        kinds = {bool: _boolean, int | None: int, float | None: float}
        return {option: kinds.get(hints[option.name], hints[option.name]) for option in fields(cls)}

    def expert_dropout(self) -> dict[str, float]:
        """The dropout inside experts, by the names of their constructor's arguments."""
        output, activation = self.moe_expert_dropout, self.moe_expert_activation_dropout
        return {
            "dropout": self.dropout if output is None else output,
            "activation_dropout": self.activation_dropout if activation is None else activation,
        }

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> TransformerMoEConfig:
        """The options out of fairseq's namespace; what is missing there takes its default.

        Raises:
            UserError: if options contradict one another.
        """
        config = cls(**{f.name: getattr(args, f.name) for f in fields(cls) if getattr(args, f.name, None) is not None})
        config.check()
        return config

    def check(self) -> None:
        """Raise a `UserError` if options contradict one another."""
        for side in ("encoder", "decoder"):
            dim, heads = getattr(self, f"{side}_embed_dim"), getattr(self, f"{side}_attention_heads")
            if dim % heads:
                raise UserError(f"--{side}-attention-heads {heads} does not divide --{side}-embed-dim {dim}.")
        for name in ("moe_expert_dropout", "moe_expert_activation_dropout"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 0 and below 1.")
        for name in ("moe_freq", "encoder_moe_freq", "decoder_moe_freq"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"--{name.replace('_', '-')} must be 0 (no experts) or a layer interval, not negative.")
        if self.share_all_embeddings and self.encoder_embed_dim != self.decoder_embed_dim:
            raise UserError(
                f"--encoder-embed-dim {self.encoder_embed_dim} and --decoder-embed-dim {self.decoder_embed_dim} "
                "differ; make them equal or add --share-all-embeddings False."
            )


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be True or False, not '{text}'")
    return text.lower() == "true"


def _sizes(layers: int, dim: int, ffn_dim: int, heads: int) -> dict[str, Any]:
    return {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (
            ("layers", layers),
            ("embed_dim", dim),
            ("ffn_embed_dim", ffn_dim),
            ("attention_heads", heads),
        )
    }


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "transformer_moe": {},
    "transformer_moe_tiny": _sizes(2, 128, 512, 4) | {"moe_experts": "ffn(count=4)"},
    "transformer_moe_base": _sizes(6, 512, 2048, 8),
    "transformer_adapter": {"moe_freq": 0},
    "transformer_adapter_tiny": _sizes(2, 128, 512, 4) | {"moe_freq": 0},
    "transformer_adapter_base": _sizes(6, 512, 2048, 8) | {"moe_freq": 0},
    "transformer_adapter_big": _sizes(6, 1024, 4096, 16) | {"moe_freq": 0, "dropout": 0.3},
    "transformer_moe_big": _sizes(6, 1024, 4096, 16) | {"moe_experts": "ffn(count=16)", "dropout": 0.3},
    "transformer_moe_nllb": _sizes(24, 2048, 8192, 16)
    | {
        "moe_experts": "ffn(count=128)",
        "moe_freq": 4,
        "moe_router": "top_k(k=2, capacity_factor=1.0)",
        "moe_regularizers": "[eom(p=0.2)]",
        "dropout": 0.3,
        "attention_dropout": 0.1,
    },
}


def apply_architecture(args: argparse.Namespace, name: str) -> None:
    """Fill in what the user did not set: first the named architecture's values, then the options' defaults.

    As in fairseq, the decoder's widths follow the encoder's where only those were set.
    """
    for width in ("embed_dim", "ffn_embed_dim"):
        if getattr(args, f"decoder_{width}", None) is None:
            setattr(args, f"decoder_{width}", getattr(args, f"encoder_{width}", None))
    defaults = {option.name: option.default for option in fields(TransformerMoEConfig)} | ARCHITECTURES[name]
    for option, default in defaults.items():
        if getattr(args, option, None) is None:
            setattr(args, option, default)
    mend_precision_flags(args)
