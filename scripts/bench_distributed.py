"""How training scales over ranks: fairseq-train with the experts spread over them against a copy of all on every rank.

    python scripts/bench_distributed.py [--ranks 1,2,4] [--updates 6] [--rounds 3] [--json FILE] [--quick]

Every rank is a process of fairseq-train with one thread, connected by gloo, two ranks being a node of the (simulated)
network. With more ranks than cores they take turns. A rank always has as many sentences, so the work grows with the
ranks; all sentences are equally long, so that batches have no padding. The cases train in turn, each in processes that
start anew in every round. An update lasts from the end of the one before to its own, loading of data included; the
figure of a round is the median of the updates after a warm-up, that of a case the median over the rounds. Bytes are
those that the dispatchers count (`Traffic`), the mean over the ranks; they leave out the gradients, which every case
averages over the ranks (spread experts over their replicas alone). Imbalance: rows for the experts of the busiest rank
by the mean. Memory: the peak resident set of a process, less what it had, but for the parameters, when the model was
built.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from moe_nmt.distributed.processes import free_port  # noqa: E402
from moe_nmt.errors import UserError  # noqa: E402
from scripts.benchmarking import (  # noqa: E402
    Progress,
    Results,
    figure,
    machine,
    markdown_table,
    numbers,
    ratios,
    run_script,
    summarize,
)

RANKS_PER_NODE = 2
LENGTH = 32
"""Tokens of a sentence, with its tag and its end."""
SENTENCES = 32
"""Sentence pairs of a rank and update."""
WORDS, PAIRS = 8000, 4000
SIZE = {"layers": 4, "embed-dim": 256, "ffn-embed-dim": 1024, "attention-heads": 4}
EXPERTS, K, MOE_FREQ = 8, 2, 2


class Case(NamedTuple):
    """A number of ranks, and how experts are dispatched; an empty dispatcher is a dense model."""

    ranks: int
    dispatch: str

    def __str__(self) -> str:
        return f"{self.ranks} × {self.dispatch or 'dense'}"

    @property
    def flags(self) -> list[str]:
        if not self.dispatch:
            return ["--moe-freq", "0"]
        nodes = ["--moe-ranks-per-node", str(RANKS_PER_NODE)] if self.ranks > RANKS_PER_NODE else []
        experts = ["--moe-experts", f"ffn(count={EXPERTS})", "--moe-router", f"top_k(k={K})"]
        return ["--moe-freq", str(MOE_FREQ), *experts, "--moe-dispatch", self.dispatch, *nodes]


def cases(ranks: list[int]) -> list[Case]:
    """The copies of all experts first, then the ways to spread them, for each number of ranks."""
    found = []
    for count in ranks:
        spread = ["all_to_all"] if count > 1 else []
        if count > RANKS_PER_NODE:
            spread += [f"all_to_all(ranks={RANKS_PER_NODE})", "all_to_all(chunks=2)", "all_to_all(by_node=True)"]
        found += [Case(count, dispatch) for dispatch in ("sorted", *spread)]
    return found


def write_corpus(folder: Path) -> None:
    """Binarize random words, all sentences LENGTH - 2 words long: a tag and an end come to them."""
    import numpy as np
    import torch
    from fairseq.data import indexed_dataset

    draft = folder.with_name(folder.name + ".part")
    draft.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    for language in ("aaa", "bbb"):
        words = (f"w{word} {WORDS - word}\n" for word in range(WORDS))
        (draft / f"dict.{language}.txt").write_text("".join(words), encoding="utf-8")
        for split, pairs in (("train", PAIRS), ("valid", 10)):
            prefix = str(draft / f"{split}.aaa-bbb.{language}")
            builder = indexed_dataset.make_builder(f"{prefix}.bin", "mmap", WORDS)
            for _ in range(pairs):
                words_of_sentence = rng.integers(4, WORDS, LENGTH - 2)  # after fairseq's 4 symbols; 2 ends
                builder.add_item(torch.from_numpy(np.append(words_of_sentence, 2)))
            builder.finalize(f"{prefix}.idx")
    draft.rename(folder)


def train_arguments(data: Path, sentences: int, updates: int, case: Case) -> list[str]:
    """What follows `fairseq-train`, but for the place among the ranks."""
    sides = [
        word
        for name, value in SIZE.items()
        for side in ("encoder", "decoder")
        for word in (f"--{side}-{name}", f"{value}")
    ]
    return [
        *(str(data), "--user-dir", str(ROOT / "moe_nmt"), "--task", "multilingual_translation_moe", "--cpu"),
        *("--lang-pairs", "aaa-bbb,bbb-aaa", "--encoder-langtok", "src", "--decoder-langtok", "--num-workers", "0"),
        *("--sampling-method", "temperature", "--sampling-temperature", "1", "--arch", "transformer_moe", *sides),
        *("--criterion", "moe_label_smoothed_cross_entropy", "--label-smoothing", "0.1", "--clip-norm", "1.0"),
        *("--optimizer", "moe_adam", "--adam-betas", "(0.9, 0.98)", "--lr", "0.0005", "--lr-scheduler", "fixed"),
        *("--batch-size", str(sentences), "--max-update", str(updates), "--log-interval", str(updates), "--seed", "1"),
        *("--disable-validation", "--no-save", "--log-format", "none", *case.flags),
    ]


def work(report: str, *arguments: str) -> None:
    """One rank: fairseq-train with these arguments; what each update took and sent goes to the file `report`."""
    import fairseq.trainer
    from fairseq_cli.train import cli_main

    import moe_nmt.fairseq_plugin  # noqa: F401
    from moe_nmt.moe import MoELayer
    from scripts.bench_memory import resident

    found: dict[str, Any] = {"seconds": [], "within": [], "across": [], "rows": [], "tokens": []}
    step, build = fairseq.trainer.Trainer.train_step, fairseq.trainer.Trainer.__init__
    rows = 0

    def count_rows(_: Any, inputs: Any) -> None:
        nonlocal rows
        rows += len(inputs[0])

    def noted_build(trainer: Any, cfg: Any, task: Any, model: Any, *rest: Any, **more: Any) -> None:
        build(trainer, cfg, task, model, *rest, **more)
        found["vocabulary"] = model.encoder.embedding.embed_tokens.num_embeddings
        found["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        found["layers"] = [module for module in model.modules() if isinstance(module, MoELayer)]
        for layer in found["layers"]:
            layer.experts.register_forward_pre_hook(count_rows)
        found["before"] = resident("VmRSS") - 4 * found["parameters"]
        found["end"] = time.perf_counter()

    def noted_step(trainer: Any, samples: Any, *rest: Any, **more: Any) -> Any:
        nonlocal rows
        rows = 0
        done = step(trainer, samples, *rest, **more)
        now = time.perf_counter()
        traffic = [layer.dispatcher.traffic.take() for layer in found["layers"] if hasattr(layer.dispatcher, "traffic")]
        found["seconds"].append(now - found["end"])
        found["within"].append(sum(sent.within for sent in traffic))
        found["across"].append(sum(sent.across for sent in traffic))
        found["rows"].append(rows)
        found["tokens"].append(sum(sample["net_input"]["src_tokens"].numel() + sample["ntokens"] for sample in samples))
        found["end"] = now
        return done

    fairseq.trainer.Trainer.train_step, fairseq.trainer.Trainer.__init__ = noted_step, noted_build

    def write_report() -> None:
        found["peak"] = resident("VmHWM") - found["before"]
        del found["layers"], found["end"], found["before"]
        Path(report).write_text(json.dumps(found), encoding="utf-8")

    sys.argv = ["fairseq-train", *arguments]
    atexit.register(write_report)  # a rank ends in fairseq's own command
    cli_main()


def start(case: Case, arguments: list[str], folder: Path) -> list[subprocess.Popen[str]]:
    """Start a training on so many processes, which will report to `folder`/RANK.json."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000", "PYTHONPATH": str(ROOT)}
    together = []
    if case.ranks > 1:
        together = ["--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp", "--distributed-no-spawn"]
        together += ["--distributed-init-method", f"tcp://127.0.0.1:{free_port()}"]
        together += ["--distributed-world-size", str(case.ranks)]
    processes = []
    for rank in range(case.ranks):
        place = ["--distributed-rank", str(rank)] if together else []
        command = [sys.executable, __file__, "--rank-of-training", str(folder / f"{rank}.json"), *arguments]
        processes.append(
            subprocess.Popen(
                [*command, *together, *place],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
    return processes


def finish(processes: list[subprocess.Popen[str]], folder: Path) -> list[dict[str, Any]]:
    """What the ranks of a training report."""
    try:
        errors = [process.communicate()[1] for process in processes]
    except BaseException:
        for process in processes:
            process.kill()
        raise
    for process, error in zip(processes, errors, strict=True):
        if process.returncode:
            raise UserError(f"training failed: {(error.strip() or 'without a word').splitlines()[-1]}")
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(len(processes))]


def train(data: Path, sentences: int, updates: int, warm_up: int, case: Case) -> dict[str, float]:
    """The figures of one training, the warm-up left out: seconds, tokens, bytes, imbalance, memory, parameters."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = train_arguments(data, sentences, warm_up + updates, case)
        ranks = finish(start(case, arguments, Path(folder)), Path(folder))
    return figures(ranks, warm_up)


def figures(ranks: list[dict[str, Any]], warm_up: int) -> dict[str, float]:
    """One figure of each kind out of what the ranks report."""

    def of(name: str) -> list[list[float]]:
        return [rank[name][warm_up:] for rank in ranks]

    rows = [sum(values) for values in of("rows")]
    return {
        "seconds": statistics.median(max(values) for values in zip(*of("seconds"), strict=True)),
        "tokens": statistics.mean(sum(values) for values in zip(*of("tokens"), strict=True)),
        "within": statistics.mean(statistics.mean(values) for values in of("within")),
        "across": statistics.mean(statistics.mean(values) for values in of("across")),
        "imbalance": max(rows) / statistics.mean(rows) if any(rows) else 1.0,
        "peak": max(rank["peak"] for rank in ranks),
        "parameters": ranks[0]["parameters"],
        "vocabulary": ranks[0]["vocabulary"],
    }


def measure(args: argparse.Namespace, data: Path, results: Results) -> dict[str, list[dict[str, float]]]:
    """The figures of every case and round; what `results` holds already is not measured again."""
    everything = cases(args.ranks)
    found: dict[str, list[dict[str, float]]] = results.data.setdefault("cases", {})
    waiting = [(turn, case) for turn in range(args.rounds) for case in everything]
    waiting = [(turn, case) for turn, case in waiting if turn >= len(found.get(str(case), []))]
    progress = Progress([float(case.ranks + 2) for _, case in waiting])
    for turn, case in waiting:
        progress.begin(f"{case}, round {turn + 1}")
        found.setdefault(str(case), []).append(train(data, args.sentences, args.updates, args.warm_up, case))
        results.save()
    return {str(case): found[str(case)] for case in everything}


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """A row for each case; the time is compared with that of copies on as many ranks, round by round."""
    header = ["ranks × dispatch", "ms an update", "spread", "tokens a second", "time to copies", "spread"]
    header += ["MB within", "MB across", "imbalance", "peak MB"]
    rows = []
    for name, rounds in found.items():
        times = [each["seconds"] for each in rounds]
        copies = found.get(f"{name.split(' × ')[0]} × sorted")
        ratio = ratios(times, [each["seconds"] for each in copies]) if copies else summarize([])
        time_of = summarize(1000 * seconds for seconds in times)
        middle = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        cells = [time_of.median, time_of.spread, middle["tokens"] / statistics.median(times), *ratio[:2]]
        cells += [middle["within"] / 1e6, middle["across"] / 1e6, middle["imbalance"], middle["peak"] / 1e6]
        rows.append([name, *map(figure, cells)])
    return markdown_table(header, rows)


def main() -> None:
    if sys.argv[1:2] == ["--rank-of-training"]:
        work(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=numbers, default=[1, 2, 4], help="numbers of ranks (default: 1,2,4)")
    parser.add_argument("--updates", type=int, default=6, help="updates that are measured, in every round")
    parser.add_argument("--warm-up", type=int, default=2, help="updates before them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sentences", type=int, default=SENTENCES, help=f"of a rank, {LENGTH} tokens long")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "moe_nmt_bench_distributed")
    parser.add_argument("--json", type=Path, help="keep the figures in this file; an interrupted run goes on from it")
    parser.add_argument("--quick", action="store_true", help="one round of 3 updates with 8 sentences: 2 minutes")
    if parser.parse_args().quick:
        parser.set_defaults(updates=2, warm_up=1, rounds=1, sentences=8)
    args = parser.parse_args()
    if min(args.ranks) < 1 or args.updates < 1 or args.warm_up < 0 or args.rounds < 1 or args.sentences < 1:
        raise UserError("--ranks, --updates, --rounds and --sentences must be at least 1, --warm-up at least 0.")
    data = args.work / "data-bin"
    if not data.is_dir():
        write_corpus(data)
    settings = {name: getattr(args, name) for name in ("updates", "warm_up", "sentences")}
    results = Results(args.json, settings | {"cores": os.cpu_count(), "machine": machine() | {"threads": 1}})
    results.data.setdefault("load_before", os.getloadavg()[0])
    print(table(measure(args, data, results)))


if __name__ == "__main__":
    run_script(main)
