"""Predict the time of an update and the memory of a device for any `transformer_moe`.

    python -m examples.scaling.predict --arch transformer_moe_nllb --machine examples/scaling/a100.json --ranks 64 \\
        --tokens 4096 --precision bf16 [--checkpoint-activations] [--moe-freq 2 and other options of the model]

The options of the model are those of fairseq-train: widths, layers, --moe-freq, --moe-experts, --moe-router,
--moe-dispatch, --checkpoint-activations. Experts of kind `ffn`, chosen by a router that takes k, are understood.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from examples.scaling.scaling import Prediction, predict
from examples.scaling.shapes import PRECISIONS, Machine, Model, Plan
from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin.config import ARCHITECTURES, TransformerMoEConfig, apply_architecture
from moe_nmt.registry import parse
from scripts.benchmarking import markdown_table, run_script

NLLB_VOCABULARY = 256206


def model_of(config: TransformerMoEConfig, vocabulary: int) -> Model:
    """The shape that a configuration describes.

    Raises:
        UserError: for what the formulas do not know.
    """
    experts, router = parse(config.moe_experts), parse(config.moe_router)
    widths = (config.encoder_embed_dim, config.encoder_ffn_embed_dim, config.encoder_attention_heads)
    if widths != (config.decoder_embed_dim, config.decoder_ffn_embed_dim, config.decoder_attention_heads):
        raise UserError("the scaling model knows encoders and decoders of the same widths alone.")
    if None not in (config.encoder_moe_freq, config.decoder_moe_freq) or not config.share_all_embeddings:
        raise UserError("the scaling model knows one --moe-freq and shared embeddings alone.")
    if experts.name != "ffn" or "k" not in router.options:
        raise UserError("the scaling model knows experts `ffn` and routers that are given k alone, as in top_k(k=2).")
    return Model(
        config.encoder_layers,
        config.decoder_layers,
        *widths,
        vocabulary,
        config.moe_freq,
        experts.options["count"],
        router.options["k"],
        experts.options.get("inner_dim") or widths[1],
    )


def architecture(name: str, vocabulary: int) -> Model:
    """The shape of a named architecture."""
    args = argparse.Namespace()
    apply_architecture(args, name)
    return model_of(TransformerMoEConfig.from_args(args), vocabulary)


def plan_of(args: argparse.Namespace, model: Model, machine: Machine) -> Plan:
    """How the arguments want it trained; --moe-dispatch sorted: every rank has all experts."""
    dispatch = parse(args.moe_dispatch)
    shared = math.gcd(model.experts, args.ranks) if dispatch.name == "all_to_all" else 1
    options: dict[str, Any] = {
        name: dispatch.options[name] for name in ("chunks", "by_node") if name in dispatch.options
    }
    return Plan(
        args.ranks,
        dispatch.options.get("ranks") or shared,
        min(args.ranks, args.moe_ranks_per_node or machine.ranks_per_node),
        args.tokens,
        args.sentence,
        update_freq=args.update_freq,
        precision=args.precision,
        recompute=bool(args.checkpoint_activations),
        balance=args.balance,
        **options,
    )


def table(prediction: Prediction) -> str:
    """Seconds and bytes, part by part."""
    rows = [[name, f"{1000 * seconds:,.1f} ms"] for name, seconds in prediction.seconds.items()]
    rows += [["**update**", f"{1000 * prediction.step:,.1f} ms"]]
    rows += [[name, f"{size / 1e9:,.2f} GB"] for name, size in prediction.memory.items()]
    rows += [["**memory of a device**", f"{prediction.held / 1e9:,.2f} GB"]]
    rows += [[f"sent {name}", f"{size / 1e9:,.3f} GB"] for name, size in prediction.sent._asdict().items()]
    return markdown_table(["", ""], [*rows, ["model FLOP/s by peak", f"{prediction.flops_utilization:.0%}"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=ARCHITECTURES, default="transformer_moe")
    parser.add_argument("--machine", type=Path, required=True, help="a file of constants, as a100.json")
    parser.add_argument("--ranks", type=int, required=True, help="devices")
    parser.add_argument("--tokens", type=int, required=True, help="of a rank and batch, source and target each")
    parser.add_argument("--sentence", type=int, default=32, help="tokens of a sentence (default: 32)")
    parser.add_argument("--vocabulary", type=int, default=NLLB_VOCABULARY, help="(default: NLLB's)")
    parser.add_argument("--update-freq", type=int, default=1)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--balance", type=float, default=1.0, help="rows of the busiest rank by the mean (default: 1)")
    TransformerMoEConfig.add_arguments(parser.add_argument_group("the model"))
    parser.set_defaults(moe_dispatch="all_to_all")
    args = parser.parse_args()
    apply_architecture(args, args.arch)
    model, machine = model_of(TransformerMoEConfig.from_args(args), args.vocabulary), Machine.load(args.machine)
    print(table(predict(model, plan_of(args, model, machine), machine)))


if __name__ == "__main__":
    run_script(main)
