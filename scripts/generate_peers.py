"""Translate the sentences of `bench_generate.py` with another engine, in an environment that has it.

    python scripts/generate_peers.py ENGINE FOLDER

ENGINE: `transformers` (NLLB-MoE), `ctranslate2-float32` or `ctranslate2-int8` (dense). FOLDER: what `bench_generate.py`
wrote: `shape.json`, `sentences.json` and the weights under fairseq's names in `moe.npz` or `dense.npz`. Prints one line
of JSON: `seconds` of translation alone, `difference` of the target's log-probabilities from moe_nmt's, `translations`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Weights = dict[str, np.ndarray]
PAD, EOS = 1, 2


def batches(sentences: list[list[int]], size: int) -> Iterator[list[int]]:
    """Indices of `size` sentences at a time, sorted by length as fairseq-generate sorts them."""
    order = sorted(range(len(sentences)), key=lambda index: len(sentences[index]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def rename_for_transformers(weights: Weights) -> Weights:
    """The weights of a `transformer_moe` with experts in every layer under the names of `NllbMoe`."""
    renamed = {}
    for name, value in weights.items():
        if name.startswith(("encoder.layers.", "decoder.layers.")):
            name = name.replace(".encoder_attn", ".cross_attention").replace(".final_layer_norm", ".ff_layer_norm")
            name = name.replace(".feed_forward.moe.router.gate", ".ffn.router.classifier")
            if ".feed_forward.moe.experts." not in name:
                renamed[f"model.{name}"] = value
                continue
            prefix, own = name.split(".feed_forward.moe.experts.")
            kind, layer = own.split("_")[0][:-1], own.split("_")[0][-1]
            for expert, part in enumerate(value):
                renamed[f"model.{prefix}.ffn.experts.expert_{expert}.fc{layer}.{kind}"] = part.T
        elif ".layer_norm." in name:
            renamed[f"model.{name}"] = value
    embedding = weights["encoder.embedding.embed_tokens.weight"]
    shared = ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head")
    return renamed | {f"{name}.weight": embedding for name in shared}


def run_transformers(shape: dict[str, Any], texts: dict[str, Any], weights: Weights) -> dict[str, Any]:
    import torch
    from transformers import NllbMoeConfig, NllbMoeForConditionalGeneration

    torch.set_num_threads(shape["threads"])
    sides = {
        f"{side}_{name}": shape[value]
        for side in ("encoder", "decoder")
        for name, value in (("layers", "layers"), ("ffn_dim", "ffn_dim"), ("attention_heads", "heads"))
    } | {"encoder_sparse_step": 1, "decoder_sparse_step": 1}
    model = NllbMoeForConditionalGeneration(
        NllbMoeConfig(
            vocab_size=shape["vocabulary"],
            d_model=shape["dim"],
            num_experts=shape["experts"],
            moe_token_dropout=0.0,  # else outputs are scaled in evaluation too
            moe_eval_capacity_token_fraction=1.0,  # nothing is dropped
            scale_embedding=True,
            decoder_start_token_id=EOS,
            **sides,
        )
    ).eval()
    named = {name: torch.from_numpy(value) for name, value in rename_for_transformers(weights).items()}
    missing, unexpected = model.load_state_dict(named, strict=False)
    assert not missing and not unexpected, (missing, unexpected)

    def padded(rows: list[list[int]]) -> torch.Tensor:
        width = max(map(len, rows))
        return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])

    with torch.no_grad():
        source = padded(texts["sources"][: len(texts["targets"])])
        previous = torch.tensor([[EOS, *target[:-1]] for target in texts["targets"]])
        logits = model(input_ids=source, attention_mask=source.ne(PAD), decoder_input_ids=previous).logits
        log_probs = logits.log_softmax(-1).gather(2, torch.tensor(texts["targets"])[..., None])[..., 0]
    difference = np.abs(log_probs.numpy() - np.array(texts["log_probs"])).max()

    translations: list[list[int]] = [[] for _ in texts["sources"]]
    start = time.perf_counter()
    for indices in batches(texts["sources"], shape["batch_size"]):
        source = padded([texts["sources"][index] for index in indices])
        found = model.generate(
            input_ids=source,
            attention_mask=source.ne(PAD).long(),
            num_beams=shape["beam"],
            min_new_tokens=shape["length"],
            max_new_tokens=shape["length"],
            forced_eos_token_id=EOS,
        )
        for index, tokens in zip(indices, found.tolist(), strict=True):
            translations[index] = tokens[1:]
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "difference": float(difference), "translations": translations}


def write_ctranslate2(folder: Path, shape: dict[str, Any], weights: Weights) -> list[str]:
    """Write a dense `transformer_moe` as a CTranslate2 model; returns its vocabulary."""
    from ctranslate2.specs import TransformerSpec

    spec = TransformerSpec.from_config(num_layers=(shape["layers"], shape["layers"]), num_heads=shape["heads"])

    def fill(part: Any, *names: str) -> None:
        kinds = {"gamma": "weight", "beta": "bias"} if hasattr(part, "gamma") else {"weight": "weight", "bias": "bias"}
        for attribute, kind in kinds.items():
            arrays = [weights[f"{name}.{kind}"] for name in names if f"{name}.{kind}" in weights]
            if arrays:
                setattr(part, attribute, np.concatenate(arrays))

    def attend(part: Any, name: str, projections: tuple[str, ...]) -> None:
        for linear, letters in zip(part.linear, projections, strict=True):
            fill(linear, *(f"{name}.{letter}" for letter in letters.split()))
        fill(part.layer_norm, f"{name}_layer_norm")

    for side, part in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        embeddings = part.embeddings[0] if isinstance(part.embeddings, list) else part.embeddings
        embeddings.weight = weights["encoder.embedding.embed_tokens.weight"]
        part.scale_embeddings = True
        part.position_encodings.encodings = sinusoids(shape["dim"])
        fill(part.layer_norm, f"{side}.layer_norm")
        for number, layer in enumerate(part.layer):
            name = f"{side}.layers.{number}"
            attend(layer.self_attention, f"{name}.self_attn", ("q_proj k_proj v_proj", "out_proj"))
            if side == "decoder":
                attend(layer.attention, f"{name}.encoder_attn", ("q_proj", "k_proj v_proj", "out_proj"))
            fill(layer.ffn.layer_norm, f"{name}.final_layer_norm")
            fill(layer.ffn.linear_0, f"{name}.feed_forward.fc1")
            fill(layer.ffn.linear_1, f"{name}.feed_forward.fc2")
    spec.decoder.projection.weight = weights["encoder.embedding.embed_tokens.weight"]
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *(f"t{index}" for index in range(4, shape["vocabulary"]))]
    spec.register_source_vocabulary(vocabulary)
    spec.register_target_vocabulary(vocabulary)
    spec.config.decoder_start_token = "</s>"
    spec.config.add_source_bos = spec.config.add_source_eos = False
    spec.validate()
    spec.optimize()
    spec.save(str(folder))
    return vocabulary


def sinusoids(dim: int, positions: int = 512) -> np.ndarray:
    """fairseq's sinusoidal positions, from its first one (padding_idx + 1) on: float32 [positions, dim]."""
    half = dim // 2
    frequency = np.exp(np.arange(half) * -(np.log(10000) / (half - 1)))
    angle = np.arange(PAD + 1, PAD + 1 + positions)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def run_ctranslate2(
    folder: Path, shape: dict[str, Any], texts: dict[str, Any], weights: Weights, compute_type: str
) -> dict[str, Any]:
    import ctranslate2

    model = folder / "ctranslate2"
    model.mkdir(exist_ok=True)
    vocabulary = write_ctranslate2(model, shape, weights)
    number = {word: index for index, word in enumerate(vocabulary)}
    translator = ctranslate2.Translator(
        str(model), "cpu", compute_type=compute_type, inter_threads=1, intra_threads=shape["threads"]
    )
    sources = [[vocabulary[token] for token in source] for source in texts["sources"]]
    targets = [[vocabulary[token] for token in target] for target in texts["targets"]]
    scored = translator.score_batch(sources[: len(targets)], targets)
    known = [result.log_probs[: len(target)] for result, target in zip(scored, targets, strict=True)]
    difference = np.abs(np.array(known) - np.array(texts["log_probs"])).max()

    translations: list[list[int]] = [[] for _ in sources]
    start = time.perf_counter()
    for indices in batches(texts["sources"], shape["batch_size"]):
        found = translator.translate_batch(
            [sources[index] for index in indices],
            beam_size=shape["beam"],
            min_decoding_length=shape["length"],
            max_decoding_length=shape["length"],
        )
        for index, result in zip(indices, found, strict=True):
            translations[index] = [number[word] for word in result.hypotheses[0]]
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "difference": float(difference), "translations": translations}


def main() -> None:
    engine, folder = sys.argv[1], Path(sys.argv[2])
    shape = json.loads((folder / "shape.json").read_text())
    model = "moe" if engine == "transformers" else "dense"
    texts = json.loads((folder / f"{model}.json").read_text())
    weights = dict(np.load(folder / f"{model}.npz"))
    if engine == "transformers":
        result = run_transformers(shape, texts, weights)
    else:
        result = run_ctranslate2(folder, shape, texts, weights, engine.removeprefix("ctranslate2-"))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
