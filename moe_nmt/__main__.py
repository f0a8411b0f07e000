"""The command `moe-nmt`."""

from __future__ import annotations

import argparse
import ast
import importlib
import logging
import signal
import sys
from pathlib import Path
from typing import Any

from moe_nmt.data import Direction
from moe_nmt.errors import UserError
from moe_nmt.evaluation import cli as score
from moe_nmt.evaluation import compare, report
from moe_nmt.evaluation.results import Thresholds
from moe_nmt.training import curriculum

FAIRSEQ_COMMANDS = {
    "preprocess": "binarize a corpus (fairseq-preprocess)",
    "train": "train a model (fairseq-train)",
    "validate": "loss of a checkpoint on held-out data (fairseq-validate)",
    "generate": "translate binarized data (fairseq-generate)",
    "interactive": "translate raw text from standard input (fairseq-interactive)",
}


def run_fairseq(command: str, arguments: list[str]) -> int:
    """Run one of fairseq's commands in this process, with this package as its `--user-dir`."""
    module = importlib.import_module(f"fairseq_cli.{command}")  # first, because it sets up the logging
    importlib.import_module("moe_nmt.fairseq_plugin")
    if command == "generate":
        importlib.import_module("moe_nmt.fairseq_plugin.generation").install()
    sys.argv = [f"moe-nmt {command}", "--user-dir", str(Path(__file__).parent), *arguments]
    module.cli_main()
    return 0


def methods(arguments: argparse.Namespace) -> int:
    """Print every registered part."""
    from moe_nmt.methods import methods_table

    print(methods_table())
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    """Print what a checkpoint, or a named architecture, is made of."""
    from moe_nmt.fairseq_plugin.inspection import describe

    print(describe(arguments.model, arguments.vocabulary))
    return 0


def surgery(arguments: argparse.Namespace) -> int:
    """Write what operations make of a checkpoint."""
    from moe_nmt.fairseq_plugin.checkpoints import operate

    operate(arguments.checkpoint, arguments.output, arguments.operations)
    return 0


def consolidate(arguments: argparse.Namespace) -> int:
    """Write a checkpoint whose experts lie beside it as one file."""
    from moe_nmt.fairseq_plugin.checkpoints import consolidate

    consolidate(arguments.checkpoint, arguments.output)
    return 0


def extract_adapters(arguments: argparse.Namespace) -> int:
    """Write the adapters of a checkpoint to a file of their own."""
    from moe_nmt.fairseq_plugin.adapter_files import extract

    languages = arguments.languages.split(",") if arguments.languages else None
    shipped = extract(arguments.checkpoint, arguments.output, languages)
    size, whole = (path.stat().st_size / 1e6 for path in (arguments.output, arguments.checkpoint))
    print(f"{arguments.output}: {size:.2f} MB of the checkpoint's {whole:.2f} MB, {shipped.spec}")
    return 0


def attach_adapters(arguments: argparse.Namespace) -> int:
    """Write the checkpoint of a base with adapters."""
    from moe_nmt.fairseq_plugin.adapter_files import attach

    attach(arguments.base, arguments.adapters, arguments.output)
    return 0


def routing(arguments: argparse.Namespace) -> int:
    """Count which experts the tokens of each language go to."""
    from moe_nmt.evaluation.expert_load import write_expert_load
    from moe_nmt.evaluation.plots import plot_expert_load
    from moe_nmt.fairseq_plugin.expert_load import count_expert_load

    load = count_expert_load(arguments.checkpoint, arguments.data, arguments.split, arguments.max_tokens)
    if arguments.json:
        write_expert_load(load, arguments.json)
    if arguments.plot:
        plot_expert_load(load, arguments.plot)
    return 0


def write_report(arguments: argparse.Namespace) -> int:
    """Write a page on trainings, after counting the expert load of those whose best checkpoint is newer than it."""
    thresholds = Thresholds(arguments.high_from, arguments.low_from)
    notes = {}
    for run in arguments.runs:
        try:
            count_missing_load(run, arguments.corpus or run / "corpus")
        except UserError as error:
            notes[run] = str(error)
    report.write_report(arguments.runs, arguments.output, arguments.corpus, thresholds, notes)
    print(arguments.output / "index.html")
    return 0


def count_missing_load(run: Path, corpus: Path) -> None:
    """Write RUN/routing.json, unless it is as new as the run's best checkpoint, or there is no checkpoint."""
    checkpoint, written = run / "checkpoints" / "checkpoint_best.pt", run / "routing.json"
    if not checkpoint.is_file() or (written.is_file() and written.stat().st_mtime >= checkpoint.stat().st_mtime):
        return
    from moe_nmt.evaluation.expert_load import write_expert_load
    from moe_nmt.fairseq_plugin.expert_load import count_expert_load

    print(f"report: counting the expert load of {checkpoint}", file=sys.stderr)
    write_expert_load(count_expert_load(str(checkpoint), str(corpus / "data-bin"), "valid", 4000), written)


def translate(arguments: argparse.Namespace) -> int:
    """Translate a held-out split in all directions of a checkpoint, on all ranks that torchrun started."""
    from moe_nmt.fairseq_plugin.ranks import on_ranks

    on_ranks(lambda: translate_directions(arguments), arguments.cpu)
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Translate as `translate` does, and score the translations, on one rank."""
    from moe_nmt.fairseq_plugin.ranks import leave, on_ranks

    def translate_and_score() -> None:
        corpus = arguments.corpus or Path(arguments.data).absolute().parent
        if not arguments.corpus and not (corpus / "directions.tsv").is_file():
            raise UserError(
                f"{corpus} is no corpus with references; name the one that {arguments.data} is of, --corpus."
            )
        scoring = score.Scoring.of(arguments, corpus)
        files = translate_directions(arguments)
        if not leave():
            return
        search = f"beam {arguments.beam}, length penalty {arguments.lenpen:g}"
        about = [f"Translations of the split {arguments.split} by {arguments.checkpoint}: {search}."]
        score.report(files, scoring, arguments.output, about)
        print(arguments.output / "index.html")

    on_ranks(translate_and_score, arguments.cpu)
    return 0


def translate_directions(arguments: argparse.Namespace) -> dict[Direction, Path]:
    """Run the translation that the arguments describe; returns the files by direction."""
    import torch
    from fairseq.dataclass.configs import GenerationConfig

    from moe_nmt.data import parse_directions
    from moe_nmt.fairseq_plugin import translation

    return translation.translate(
        arguments.checkpoint,
        arguments.data,
        arguments.output,
        arguments.split,
        parse_directions(arguments.directions) if arguments.directions else None,
        lang_dict=arguments.lang_dict,
        model_overrides=model_overrides(arguments.model_overrides),
        search=GenerationConfig(
            beam=arguments.beam,
            max_len_a=arguments.max_len_a,
            max_len_b=arguments.max_len_b,
            lenpen=arguments.lenpen,
        ),
        max_tokens=arguments.max_tokens,
        dtype=torch.float16 if arguments.fp16 else torch.bfloat16 if arguments.bf16 else torch.float32,
        cpu=arguments.cpu,
    )


def model_overrides(text: str) -> dict[str, Any]:
    """The options of the model to change, out of the text of a dictionary."""
    try:
        overrides = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        overrides = None
    if not isinstance(overrides, dict):
        raise UserError(
            f"--model-overrides {text} is no dictionary of options; write one as \"{{'moe_branch': 'conditional'}}\"."
        )
    return overrides


def build_parser() -> argparse.ArgumentParser:
    """The command line. fairseq's commands take fairseq's own options, which are not listed here."""
    parser = argparse.ArgumentParser(
        prog="moe-nmt", description="Sparse mixture-of-experts models for multilingual machine translation."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in FAIRSEQ_COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    score.add_arguments(commands.add_parser("score", help="BLEU and chrF++ per direction and resource bucket"))
    commands.choices["score"].set_defaults(run=score.main)
    add = commands.add_parser("translate", help="translate a test set in all directions of a checkpoint at once")
    add_translation_arguments(add, "gets DIRECTION.hyp, one translation a line")
    add.set_defaults(run=translate)
    add = commands.add_parser("evaluate", help="translate a test set in all directions, score, and write a page on it")
    add.description = (
        "Translate as moe-nmt translate does, score as moe-nmt score does, and write a page with tables, pictures and "
        "examples. Interrupted, the same command goes on where it was."
    )
    add_translation_arguments(add, "gets DIRECTION.hyp, scores.json, scores.md, statistics.npz and index.html")
    add.add_argument(
        "--corpus", type=Path, help="corpus folder with the references as they were written (default: that of DATA)"
    )
    score.add_scoring_arguments(add)
    add.set_defaults(run=evaluate)
    compare.add_arguments(commands.add_parser("compare", help="paired significance tests between evaluated systems"))
    commands.choices["compare"].set_defaults(run=compare.main)
    add = commands.add_parser("routing", help="expert load per language of a checkpoint, as JSON and as a plot")
    add.add_argument("checkpoint", help="a checkpoint file of a transformer_moe")
    add.add_argument("data", help="folder of binarized data")
    add.add_argument("--split", default="valid", help="what the load is counted on (default: %(default)s)")
    add.add_argument("--max-tokens", type=int, default=4000, help="tokens per batch (default: %(default)s)")
    add.add_argument("--json", type=Path, metavar="FILE", help="write the counts")
    add.add_argument("--plot", type=Path, metavar="FILE", help="draw the shares as a heat map (.png, .svg or .pdf)")
    add.set_defaults(run=routing)
    report.add_arguments(commands.add_parser("report", help="a page on trainings: curves, over-fitting, languages"))
    commands.choices["report"].set_defaults(run=write_report)
    add = commands.add_parser("curriculum", help="a table of the updates at which directions join a training")
    curriculum.add_arguments(add)
    add.set_defaults(run=curriculum.main)
    add = commands.add_parser("surgery", help="change a trained model: checkpoint to checkpoint")
    add.add_argument("checkpoint", type=Path, help="a checkpoint file")
    add.add_argument(
        "output",
        type=Path,
        help="the checkpoint to write; translate with it, or go on training with --finetune-from-model",
    )
    add.add_argument(
        "operations",
        nargs="+",
        metavar="OPERATION",
        help="as 'bake_adapters()', done in this order; see moe-nmt methods",
    )
    add.set_defaults(run=surgery)
    add = commands.add_parser("consolidate", help="make one file of a checkpoint whose experts lie beside it")
    add.add_argument("checkpoint", type=Path, help="a checkpoint file of --moe-sharded-checkpoints")
    add.add_argument("output", type=Path, help="the checkpoint to write, with its optimizer state")
    add.set_defaults(run=consolidate)
    add_adapters(commands.add_parser("adapters", help="adapters in files of their own, apart from their base"))
    add = commands.add_parser("methods", help="list every router, expert kind, loss ... and its options")
    add.set_defaults(run=methods)
    add = commands.add_parser("inspect", help="parts and parameter counts of a checkpoint or a named architecture")
    add.add_argument("model", help="a checkpoint file, or the name of an architecture such as transformer_moe_base")
    add.add_argument(
        "--vocabulary", type=int, default=256_206, help="vocabulary size of an architecture (default: NLLB's)"
    )
    add.set_defaults(run=inspect)
    return parser


def add_translation_arguments(add: argparse.ArgumentParser, written: str) -> None:
    """Add the arguments that say what to translate, how, and into which folder."""
    add.add_argument("checkpoint", type=Path, help="a checkpoint file; it knows languages, directions and tags")
    add.add_argument("data", metavar="DATA", help="folder of binarized data")
    add.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help=f"{written}; directions that are there already are skipped, unless checkpoint, data or options changed",
    )
    add.add_argument("--split", default="test", help="what to translate (default: %(default)s)")
    add.add_argument(
        "--directions",
        metavar="A-B,…",
        help="translate these, also such as were not trained (default: all of the checkpoint that have data)",
    )
    add.add_argument("--lang-dict", metavar="FILE", help="the languages in training, where that file has moved since")
    add.add_argument(
        "--model-overrides",
        default="{}",
        metavar="DICTIONARY",
        help="options of the model to change, as in \"{'moe_branch': 'conditional(skip_below=0.1)'}\"",
    )
    add.add_argument("--beam", type=int, default=4, help="hypotheses per sentence (default: %(default)s)")
    add.add_argument("--max-len-a", type=float, default=2, metavar="A", help="a translation has at most")
    add.add_argument("--max-len-b", type=int, default=20, metavar="B", help="A * source length + B tokens (2 and 20)")
    add.add_argument(
        "--lenpen", type=float, default=1, help="above 1 favours longer translations (default: %(default)s)"
    )
    add.add_argument("--max-tokens", type=int, default=12000, help="tokens per batch (default: %(default)s)")
    precision = add.add_mutually_exclusive_group()
    precision.add_argument("--fp16", action="store_true", help="translate in float16")
    precision.add_argument("--bf16", action="store_true", help="translate in bfloat16")
    add.add_argument("--cpu", action="store_true", help="do not use a GPU")


def add_adapters(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `moe-nmt adapters`."""
    ways = parser.add_subparsers(dest="way", required=True, metavar="WAY")
    add = ways.add_parser("extract", help="write the adapters of a checkpoint alone, a few MB")
    add.add_argument("checkpoint", type=Path, help="a checkpoint file of a model with adapters")
    add.add_argument("--output", type=Path, required=True, metavar="FILE", help="the file of adapters to write")
    add.add_argument(
        "--languages", metavar="A,…", help="only bottleneck adapters of these; of a pair, one of the two (default: all)"
    )
    add.set_defaults(run=extract_adapters)
    add = ways.add_parser("attach", help="write the checkpoint that a base and its adapters make")
    add.add_argument("base", type=Path, help="a checkpoint file of the base that the adapters were trained on")
    add.add_argument(
        "adapters", type=Path, nargs="+", help="files of adapters; more than one if they are bottlenecks of one kind"
    )
    add.add_argument("--output", type=Path, required=True, metavar="FILE", help="the checkpoint to write")
    add.set_defaults(run=attach_adapters)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments and arguments[0] in FAIRSEQ_COMMANDS:
            return run_fairseq(arguments[0], arguments[1:])
        logging.disable(logging.INFO)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # so that `moe-nmt methods | head` ends quietly
        parsed = build_parser().parse_args(arguments)
        status: int = parsed.run(parsed)
        return status
    except (UserError, OSError) as error:
        print(f"moe-nmt: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("moe-nmt: interrupted; the same command goes on from the last checkpoint or step.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
