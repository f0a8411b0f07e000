"""What a checkpoint or a named architecture is made of."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary

from moe_nmt.errors import UserError, suggest
from moe_nmt.fairseq_plugin.config import ARCHITECTURES, TransformerMoEConfig, apply_architecture
from moe_nmt.fairseq_plugin.model import build_transformer_moe
from moe_nmt.moe.parameters import count_parameters

PARTS = (
    "moe_freq",
    "encoder_moe_freq",
    "decoder_moe_freq",
    "moe_router",
    "moe_experts",
    "moe_dispatch",
    "moe_regularizers",
    "moe_branch",
)


def describe(model: str, vocabulary: int) -> str:
    """Parts and parameter counts as text, of a checkpoint file or of an architecture with a vocabulary of that size.

    Nothing is allocated: the model is built on the meta device.

    Raises:
        UserError: if `model` is neither.
    """
    if Path(model).is_file():
        state = checkpoint_utils.load_checkpoint_to_cpu(model)
        args, vocabulary = state["cfg"]["model"], state["model"]["encoder.embedding.embed_tokens.weight"].shape[0]
    elif model in ARCHITECTURES:
        args = argparse.Namespace()
        apply_architecture(args, model)
    else:
        hint = suggest(model, ARCHITECTURES, "Architectures")
        raise UserError(f"'{model}' is neither a file nor an architecture{hint}")
    return describe_config(TransformerMoEConfig.from_args(args), vocabulary)


def describe_config(config: TransformerMoEConfig, vocabulary: int) -> str:
    """The text for a configuration and a vocabulary size (all symbols, language tags included)."""
    dictionary = Dictionary()
    for number in range(vocabulary - len(dictionary)):
        dictionary.add_symbol(f"{number}")
    with torch.device("meta"):
        counts = count_parameters(build_transformer_moe(config, dictionary, dictionary))
    shape = (
        f"layers {config.encoder_layers}+{config.decoder_layers}, width {config.encoder_embed_dim}, "
        f"inner width {config.encoder_ffn_embed_dim}, vocabulary {vocabulary:,}"
    )
    parts = [
        f"{name.replace('_', '-')}: {getattr(config, name)}"
        for name in PARTS
        if getattr(config, name) not in ("", None)
    ]
    numbers = [
        f"{name} parameters: {value:,} ({_short(value)})"
        for name, value in (("total", counts.total), ("expert", counts.expert), ("active", counts.active))
    ]
    return "\n".join([shape, *parts, *numbers])


def _short(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"
