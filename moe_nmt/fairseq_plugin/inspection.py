"""What a checkpoint or a named architecture is made of."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from fairseq.data import Dictionary

from moe_nmt.errors import UserError, suggest
from moe_nmt.fairseq_plugin.checkpoints import CheckpointFile
from moe_nmt.fairseq_plugin.config import ARCHITECTURES, TransformerMoEConfig, apply_architecture
from moe_nmt.fairseq_plugin.model import build_transformer_moe
from moe_nmt.moe.parameters import count_parameters
from moe_nmt.registry import parse
from moe_nmt.surgery import languages_of

PARTS = (
    "moe_freq",
    "encoder_moe_freq",
    "decoder_moe_freq",
    "moe_router",
    "moe_experts",
    "moe_dispatch",
    "moe_regularizers",
    "moe_branch",
    "adapters",
)


def describe(model: str, vocabulary: int) -> str:
    """Parts and parameter counts as text, of a checkpoint file or of an architecture with a vocabulary of that size.

    Of a checkpoint also its history, where there was surgery. The model is built on the meta device.

    Raises:
        UserError: if `model` is neither.
    """
    if Path(model).is_file():
        checkpoint = CheckpointFile(Path(model)).checkpoint
        config = TransformerMoEConfig.from_args(argparse.Namespace(**checkpoint.options))
        text = describe_config(config, checkpoint.tensors["encoder.embedding.embed_tokens.weight"].shape[0])
        history = [f"history: [{', '.join(checkpoint.history)}]"] if checkpoint.history else []
        return "\n".join([text, *history])
    if model in ARCHITECTURES:
        args = argparse.Namespace()
        apply_architecture(args, model)
        return describe_config(TransformerMoEConfig.from_args(args), vocabulary)
    hint = suggest(model, ARCHITECTURES, "Architectures")
    raise UserError(f"'{model}' is neither a file nor an architecture{hint}")


def describe_config(config: TransformerMoEConfig, vocabulary: int) -> str:
    """The text for a configuration and a vocabulary size (all symbols, language tags included)."""
    dictionary = Dictionary()
    for number in range(vocabulary - len(dictionary)):
        dictionary.add_symbol(f"{number}")
    languages = languages_of(parse(config.adapters)) if config.adapters else []
    with torch.device("meta"):
        model = build_transformer_moe(config, dictionary, dictionary, languages=languages)
    counts = count_parameters(model)._asdict()
    if model.adapters is not None:
        counts["adapter"] = sum(parameter.numel() for parameter in model.adapters.parameters())
    shape = (
        f"layers {config.encoder_layers}+{config.decoder_layers}, width {config.encoder_embed_dim}, "
        f"inner width {config.encoder_ffn_embed_dim}, vocabulary {vocabulary:,}"
    )
    parts = [
        f"{name.replace('_', '-')}: {getattr(config, name)}"
        for name in PARTS
        if getattr(config, name) not in ("", None)
    ]
    numbers = [f"{name} parameters: {value:,} ({_short(value)})" for name, value in counts.items()]
    return "\n".join([shape, *parts, *numbers])


def _short(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"
