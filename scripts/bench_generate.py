"""Sentences per second of beam search: moe_nmt against transformers' NLLB-MoE and, dense, against CTranslate2.

    python scripts/bench_generate.py --transformers PYTHON --ctranslate2 PYTHON [--json FILE] [--quick]

PYTHON: the interpreter of an environment with transformers 4.57.6 (5.x computes NLLB-MoE wrongly) or with ctranslate2;
an engine without one is left out. Every engine gets the same random weights and the same random sentences, in the same
batches, sorted by length, and decodes exactly `--length` tokens per sentence on `--threads` threads. moe_nmt is
`fairseq-generate` itself. Only translation is timed, not loading. The dense model computes as much per token as the
sparse one. Rounds are interleaved; figures are medians, ratios are taken round by round, ± their interquartile range.

`difference`: the largest deviation of log-probabilities of given target tokens from moe_nmt's (int8 deviates by
nature). `same`: the share of sentences with the very translation that moe_nmt found.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moe_nmt.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.benchmarking import (  # noqa: E402
    Progress,
    Results,
    figure,
    machine,
    markdown_table,
    ratios,
    run_script,
    summarize,
)

BIN = Path(sys.executable).parent
LENGTHS = 5, 35  # source tokens, uniformly distributed
CHECKED = 8  # sentences whose log-probabilities are compared
QUICK = {"rounds": 1, "sentences": 32}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformers", metavar="PYTHON", help="interpreter with transformers 4.57.6")
    parser.add_argument("--ctranslate2", metavar="PYTHON", help="interpreter with ctranslate2")
    for name, default, text in (
        ("dim", 256, "model width"),
        ("ffn-dim", 1024, "inner width of an expert"),
        ("layers", 3, "layers of encoder and of decoder"),
        ("heads", 4, "attention heads"),
        ("vocabulary", 8000, "entries of the dictionary"),
        ("experts", 8, "experts in every layer"),
        ("sentences", 200, "sentences to translate"),
        ("length", 26, "tokens per translation, with the end of sentence"),
        ("beam", 5, "beam size"),
        ("batch-size", 32, "sentences per batch"),
        ("threads", 2, "threads of every engine"),
        ("rounds", 5, "interleaved rounds"),
        ("seed", 1, "of weights and sentences"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: {default})")
    parser.add_argument("--router", default="top_k(k=2)", help="of the sparse model (default: %(default)s)")
    parser.add_argument("--engines", nargs="*", help="only these rows of the table")
    parser.add_argument("--folder", type=Path, help="keep models and data here (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help=f"a trial: {QUICK}")
    args = parser.parse_args()
    if args.quick:
        vars(args).update(QUICK)
    return args


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """Write sentences, data-bin, and both models for all engines."""
    rng = random.Random(args.seed)
    special = 6  # four of fairseq's, and a tag per language
    words = [f"w{number}" for number in range(args.vocabulary - special)]

    def sentence(length: int) -> list[int]:
        return [rng.randrange(len(words)) for _ in range(length)]

    sources = [sentence(rng.randint(*LENGTHS)) for _ in range(args.sentences)]
    targets = [sentence(args.length - 1) for _ in range(args.sentences)]
    (folder / "dict.txt").write_text("".join(f"{word} 1\n" for word in words))
    for language, sentences in (("aaa", sources), ("bbb", targets)):
        lines = (" ".join(words[number] for number in numbers) for numbers in sentences)
        (folder / f"test.{language}").write_text("".join(f"{line}\n" for line in lines))
    run(
        *(BIN / "fairseq-preprocess", "--source-lang", "aaa", "--target-lang", "bbb", "--testpref", folder / "test"),
        *("--srcdict", folder / "dict.txt", "--tgtdict", folder / "dict.txt", "--destdir", folder / "data-bin"),
    )
    names = ("dim", "ffn_dim", "layers", "heads", "vocabulary", "experts", "length", "beam", "batch_size", "threads")
    shape = {name: getattr(args, name) for name in names}
    texts = {
        "sources": [[number + 4 for number in source] + [2] for source in sources],
        "targets": [[number + 4 for number in target] for target in targets[:CHECKED]],
    }
    for name in ("moe", "dense"):
        log_probs = write_model(folder, name, args, texts)
        (folder / f"{name}.json").write_text(json.dumps(texts | {"log_probs": log_probs}))
    (folder / "shape.json").write_text(json.dumps(shape))


def experts_per_token(router: str) -> int:
    from moe_nmt.moe import ROUTERS

    return int(ROUTERS.build(router, dim=4, num_experts=64).experts_per_token)


def write_model(folder: Path, name: str, args: argparse.Namespace, texts: dict[str, Any]) -> list[list[float]]:
    """Write a checkpoint and its weights as arrays; returns the log-probabilities of the targets."""
    from fairseq import options, tasks

    import moe_nmt.fairseq_plugin  # noqa: F401

    ffn_dim = args.ffn_dim * (1 if name == "moe" else experts_per_token(args.router))
    flags = [
        *(str(folder / "data-bin"), "--task", "multilingual_translation_moe", "--lang-pairs", "aaa-bbb"),
        *("--langs", "aaa,bbb", "--arch", "transformer_moe", "--criterion", "moe_label_smoothed_cross_entropy"),
        *("--moe-freq", "1" if name == "moe" else "0", "--moe-experts", f"ffn(count={args.experts})"),
        *("--moe-router", args.router),
    ]
    for side in ("encoder", "decoder"):
        flags += [f"--{side}-embed-dim", str(args.dim), f"--{side}-ffn-embed-dim", str(ffn_dim)]
        flags += [f"--{side}-layers", str(args.layers), f"--{side}-attention-heads", str(args.heads)]
    namespace = options.parse_args_and_arch(options.get_training_parser(), flags)
    torch.manual_seed(args.seed)
    model = tasks.setup_task(namespace).build_model(namespace).eval()
    model.encoder.embedding.embed_tokens.weight.data.mul_(0.1)  # else a random model repeats its last word for ever
    state = model.state_dict()
    history = {"optimizer_history": [{"lr_scheduler_state": {}}], "extra_state": {"train_iterator": None}}
    torch.save({"args": namespace, "model": state, **history}, folder / f"{name}.pt")
    np.savez(folder / f"{name}.npz", **{key: value.numpy() for key, value in state.items() if value.numel()})
    target = torch.tensor(texts["targets"])
    sources = texts["sources"][: len(target)]
    width = max(map(len, sources))
    source = torch.tensor([[1] * (width - len(tokens)) + tokens for tokens in sources])
    previous = torch.cat([torch.full((len(target), 1), 2), target[:, :-1]], 1)
    with torch.no_grad():
        log_probs = model(source, None, previous)[0].log_softmax(-1)
    return log_probs.gather(2, target[..., None])[..., 0].tolist()


def run(*command: str | Path, threads: int = 1) -> str:
    """Run a command, and say what it said if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UserError(f"{command[0]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return done.stdout + done.stderr


def translate(engine: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a process of its own: `seconds`, `translations` and, of other engines, `difference`."""
    if not engine.startswith("moe_nmt"):
        python = getattr(args, engine.split("-")[0])
        done = run(python, ROOT / "scripts/generate_peers.py", engine, folder, threads=args.threads)
        return dict(json.loads(done.splitlines()[0]))
    checkpoint = folder / f"{engine.removeprefix('moe_nmt-')}.pt"
    output = run(
        *(BIN / "fairseq-generate", folder / "data-bin", "--user-dir", ROOT / "moe_nmt", "--cpu", "--num-workers", "0"),
        *("--task", "multilingual_translation_moe", "--langs", "aaa,bbb", "--lang-pairs", "aaa-bbb"),
        *("-s", "aaa", "-t", "bbb", "--path", checkpoint, "--batch-size", str(args.batch_size)),
        *("--beam", str(args.beam), "--min-len", str(args.length - 1)),
        *("--max-len-a", "0", "--max-len-b", str(args.length - 1), "--no-progress-bar"),
        threads=args.threads,
    )
    seconds = re.search(r"Translated [\d,]+ sentences \([\d,]+ tokens\) in [\d.]+s \(([\d.]+) sentences/s", output)
    found = {
        int(number): [int(word[1:]) + 4 for word in words.split() if word.startswith("w")] + [2]
        for number, words in re.findall(r"^H-(\d+)\t\S+\t(.*)$", output, re.MULTILINE)
    }
    assert seconds is not None, output[-2000:]
    return {"seconds": args.sentences / float(seconds[1]), "translations": [found[i] for i in range(args.sentences)]}


def main() -> None:
    args = parse_arguments()
    engines = {
        "moe_nmt-moe": None,
        "transformers": "moe_nmt-moe",
        "moe_nmt-dense": None,
        "ctranslate2-float32": "moe_nmt-dense",
        "ctranslate2-int8": "moe_nmt-dense",
    }
    chosen = [
        engine
        for engine in engines
        if (not args.engines or engine in args.engines)
        and (engine.startswith("moe_nmt") or getattr(args, engine.split("-")[0]))
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder, args)
        runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in chosen}
        progress = Progress([1.0] * args.rounds * len(chosen))
        for _ in range(args.rounds):
            for engine in chosen:
                progress.begin(engine)
                runs[engine].append(translate(engine, folder, args))
    settings = {name: value for name, value in vars(args).items() if isinstance(value, int | str)}
    results = Results(args.json, settings | machine())
    rows = []
    for engine in chosen:
        seconds = [found["seconds"] for found in runs[engine]]
        report: dict[str, Any] = {"sentences_per_second": summarize(args.sentences / s for s in seconds)._asdict()}
        cells = [figure(report["sentences_per_second"]["median"]), "", "", ""]
        if own := runs.get(engines[engine] or ""):
            report["moe_nmt_is_faster_by"] = ratios(seconds, [found["seconds"] for found in own])._asdict()
            report["difference"] = runs[engine][0]["difference"]
            pairs = zip(own[0]["translations"], runs[engine][0]["translations"], strict=True)
            report["same"] = sum(ours == theirs for ours, theirs in pairs) / args.sentences
            faster = report["moe_nmt_is_faster_by"]
            cells[1:] = [
                f"{figure(faster['median'])} ± {figure(faster['spread'])}",
                f"{report['difference']:.1e}",
                f"{report['same']:.0%}",
            ]
        rows.append([engine, *cells])
        results.data[engine] = report | {"seconds": seconds}
    results.save()
    print(json.dumps(settings))
    print(markdown_table(["engine", "sentences/s", "moe_nmt is faster by", "difference", "same"], rows))


if __name__ == "__main__":
    run_script(main)
