"""Peak memory of training and inference on a CPU, against the sum of what they cannot do without.

    python scripts/bench_memory.py [--experts 0,8,32] [--tokens 4096] [--json FILE] [--quick]
    python scripts/bench_memory.py --adapters [...]

The model is a `transformer_moe_base` with experts in every second layer (0 experts: dense). Every measurement is a
process of its own: the peak resident set of some updates with Adam, or of a translation with beam 5, less what was
resident before the model was built. It stands beside the sum of:

parameters, gradients, and the two moments of Adam: float32 each; of inference the parameters alone.

activations of training: what the backward pass reads, each kept once, N tokens of a layer's side, D and F its widths, k
experts per token. Attention: the input and the normalised input (2ND), queries, keys, values and the heads' output
(4ND), a log-sum per head (NH), the dropout mask (ND bytes). Feed-forward: 2ND again, the inner activations (kNF), the
experts' outputs for the gradient of the gate (kND), the router's logits and probabilities (2NE), token, expert and
weight of the assignments (20 bytes each), dropout masks. Embedding: indices and a dropout mask. Output: 2ND and the
log-probabilities (NV).

activations of inference: for R hypotheses of T positions the keys and values of all layers (4RTD at 2 caches of the
moment of a reordering, old and new), of the source once per sentence, and the log-probabilities (2RV: logits beside).

With --adapters it is the training of the dense model alone: full fine-tuning without adapters, and each kind of adapter
on a frozen base, as `bench_train.py --adapters` compares their speed, all directions of its languages mixed in a batch.
Beside the peak stand the parameters, those that are trained (gradients need as much), and the state of the optimizer as
it is held after the updates.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.bench_train import ADAPTERS, FREEZING, LANGUAGES  # noqa: E402
from scripts.benchmarking import Progress, Results, figure, machine, markdown_table, numbers, run_script  # noqa: E402

MIB = 2**20
LENGTH = 32
"""Tokens per sentence, source and target."""

BEAM = 5
UPDATES = 3
SIZES = {"full": (512, 2048, 6, 8, 8000), "quick": (64, 128, 2, 4, 400)}
"""Model width, inner width, layers of each side, heads, dictionary."""
DIRECTIONS = [direction for other in LANGUAGES[1:] for direction in ((LANGUAGES[0], other), (other, LANGUAGES[0]))]
FULL = "no adapters"
"""The model of the comparison of adapters that is trained in full."""


def resident(field: str) -> int:
    """Bytes of `VmRSS` (resident now) or `VmHWM` (at most so far) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}: this benchmark needs Linux")


def training_activations(model: Any, tokens: int, size: tuple[int, ...], experts: int) -> int:
    """Bytes that the backward pass reads, as the docstring of this file counts them."""
    dim, ffn_dim, layers, heads, vocabulary = size
    attention = 4 * (6 * tokens * dim + tokens * heads) + tokens * dim
    dense = 4 * (2 * tokens * dim + tokens * ffn_dim) + tokens * dim
    k = 2
    sparse = 4 * (2 * tokens * dim + k * tokens * (ffn_dim + dim) + 2 * tokens * experts) + k * tokens * (20 + dim)
    sparse_layers = layers // 2 if experts else 0
    feed_forward = sparse_layers * sparse + (layers - sparse_layers) * dense
    embedding = tokens * (8 + dim)
    output = 4 * (2 * tokens * dim + tokens * vocabulary)
    return layers * attention + feed_forward + layers * 2 * attention + feed_forward + 2 * embedding + output


def inference_activations(rows: int, size: tuple[int, ...]) -> int:
    """Bytes that a decoding step holds, as the docstring of this file counts them."""
    dim, _, layers, _, vocabulary = size
    own = 4 * layers * 2 * rows * LENGTH * dim
    source = 4 * layers * 2 * rows // BEAM * LENGTH * dim
    return own + own // layers + source + 4 * 2 * rows * vocabulary


def build(size: tuple[int, ...], experts: int, adapters: str = "") -> Any:
    """The model, all but its adapters frozen if it has any, with a dictionary of numbered words."""
    from fairseq.data import Dictionary

    from moe_nmt.fairseq_plugin.config import TransformerMoEConfig
    from moe_nmt.fairseq_plugin.model import build_transformer_moe
    from moe_nmt.training.freezing import FREEZING as RECIPES

    dim, ffn_dim, layers, heads, vocabulary = size
    words = Dictionary()
    for number in range(vocabulary - len(words)):
        words.add_symbol(f"w{number}")
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (
            ("embed_dim", dim),
            ("ffn_embed_dim", ffn_dim),
            ("layers", layers),
            ("attention_heads", heads),
        )
    }
    moe = {"moe_freq": 2 if experts else 0, "moe_experts": f"ffn(count={experts or 1})"}
    config = TransformerMoEConfig(**moe, **sides, adapters=adapters)
    model = build_transformer_moe(config, words, words, languages=LANGUAGES)
    if adapters:
        model.freeze(RECIPES.build(FREEZING))
    return model, words


def train(size: tuple[int, ...], experts: int, tokens: int, adapters: str = "") -> dict[str, int]:
    from moe_nmt.fairseq_plugin.criterion import MoELabelSmoothedCrossEntropyCriterion

    class Task:
        target_dictionary: Any
        lang_pairs = tuple("-".join(direction) for direction in DIRECTIONS)

        @staticmethod
        def direction_index() -> torch.Tensor:
            pairs = [(source, target) for source in LANGUAGES for target in LANGUAGES]
            index = [DIRECTIONS.index(pair) if pair in DIRECTIONS else -1 for pair in pairs]
            return torch.tensor(index).view(len(LANGUAGES), -1)

    before = resident("VmRSS")
    model, Task.target_dictionary = build(size, experts, adapters)
    criterion = MoELabelSmoothedCrossEntropyCriterion(Task(), False, 0.1, moe_losses="[load_balancing(weight=0.01)]")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, fused=True)
    sentences = tokens // LENGTH
    mixed = [[LANGUAGES.index(name) for name in DIRECTIONS[i % len(DIRECTIONS)]] for i in range(sentences)]
    source_language, target_language = torch.tensor(mixed).unbind(1)
    for _ in range(UPDATES):
        source, target = torch.randint(4, size[-1], (2, sentences, LENGTH))
        sample = {"target": target, "ntokens": tokens, "nsentences": sentences}
        sample["net_input"] = {"src_tokens": source, "src_lengths": None, "prev_output_tokens": target.roll(1, 1)}
        sample["net_input"] |= {"source_language": source_language, "target_language": target_language}
        optimizer.zero_grad()
        loss, weight, _ = criterion(model, sample)
        (loss / weight).backward()
        optimizer.step()
        del loss
    return {
        "peak": resident("VmHWM") - before,
        "parameters": sum(parameter.nbytes for parameter in model.parameters()),
        "gradients": sum(parameter.nbytes for parameter in trained),
        "optimizer": sum(tensor.nbytes for state in optimizer.state.values() for tensor in state.values()),
        "activations": training_activations(model, tokens, size, experts),
    }


def translate(size: tuple[int, ...], experts: int, tokens: int) -> dict[str, int]:
    from fairseq.sequence_generator import SequenceGenerator

    from moe_nmt.fairseq_plugin.generator import BeamSearchGenerator

    before = resident("VmRSS")
    model, words = build(size, experts)
    search = SequenceGenerator([model], words, beam_size=BEAM, max_len_a=0, max_len_b=LENGTH - 1, min_len=LENGTH - 1)
    rows = tokens // LENGTH // BEAM * BEAM
    source = torch.randint(4, size[-1], (rows // BEAM, LENGTH))
    BeamSearchGenerator(search).generate([model], {"net_input": {"src_tokens": source, "src_lengths": None}})
    return {
        "peak": resident("VmHWM") - before,
        "parameters": sum(parameter.numel() * 4 for parameter in model.parameters()),
        "activations": inference_activations(rows, size),
    }


def measure(mode: str, experts: int, tokens: int, size: str, adapters: str = "") -> dict[str, int]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--worker", mode, str(experts), str(tokens), size, adapters]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{mode} with {adapters or f'{experts} experts'} failed: {done.stderr[-2000:]}")
    found: dict[str, int] = json.loads(done.stdout)
    return found


def work(mode: str, experts: str, tokens: str, size: str, adapters: str) -> None:
    import moe_nmt.fairseq_plugin  # noqa: F401

    torch.manual_seed(1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    what = SIZES[size], int(experts), int(tokens)
    print(json.dumps(train(*what, adapters) if mode == "training" else translate(*what)))


def compare_experts(args: argparse.Namespace, results: Results) -> str:
    """Training and inference with these numbers of experts beside what they need, as a table."""
    cases = [(mode, experts) for mode in ("training", "inference") for experts in args.experts]
    progress = Progress([1.0] * len(cases))
    rows = []
    for mode, experts in cases:
        progress.begin(f"{mode} with {experts} experts")
        found = measure(mode, experts, args.tokens, args.size)
        needed = sum(value for name, value in found.items() if name != "peak")
        results.data[f"{mode} {experts}"] = found | {"needed": needed, "ratio": found["peak"] / needed}
        results.save()
        parts = (found.get(name) for name in ("parameters", "gradients", "optimizer", "activations"))
        mib = [f"{value / MIB:,.0f}" if value else "" for value in (*parts, needed, found["peak"])]
        rows.append([mode, str(experts), *mib, f"{found['peak'] / needed:.2f}"])
    header = ["", "experts", "parameters", "gradients", "optimizer", "activations", "needed", "peak", "ratio"]
    return markdown_table(header, rows)


def compare_adapters(args: argparse.Namespace, results: Results) -> str:
    """Training with each kind of adapter beside full fine-tuning, as a table."""
    cases = {FULL: ""} | ADAPTERS
    progress = Progress([1.0] * len(cases))
    rows = []
    for name, spec in cases.items():
        progress.begin(name)
        found = measure("training", 0, args.tokens, args.size, spec)
        results.data[name] = {part: found[part] for part in ("parameters", "gradients", "optimizer", "peak")}
        results.save()
        whole = results.data[FULL]
        ratio = [f"{found[part] / whole[part]:.3f}" for part in ("optimizer", "peak")]
        rows.append([name, *(figure(value / MIB) for value in results.data[name].values()), *ratio])
    header = ["", "parameters", "trained", "optimizer", "peak", f"optimizer to {FULL}", f"peak to {FULL}"]
    return markdown_table(header, rows)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=numbers, default=[0, 8, 32], help="per sparse layer (default: 0,8,32)")
    parser.add_argument("--adapters", action="store_true", help="compare the kinds of adapters of a dense model")
    parser.add_argument("--tokens", type=int, default=4096, help="source tokens per batch (default: 4096)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="a trial with a tiny model and 320 tokens")
    parser.set_defaults(size="full")
    args = parser.parse_args()
    if args.quick:
        args.size, args.tokens = "quick", 320
    results = Results(args.json, {"size": list(SIZES[args.size]), "tokens": args.tokens, "machine": machine()})
    print("MiB\n\n" + (compare_adapters if args.adapters else compare_experts)(args, results))


if __name__ == "__main__":
    run_script(main)
