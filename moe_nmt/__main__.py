"""The command `moe-nmt`."""

from __future__ import annotations

import argparse
import importlib
import logging
import signal
import sys
from pathlib import Path

from moe_nmt.errors import UserError
from moe_nmt.evaluation import cli as score

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


def routing(arguments: argparse.Namespace) -> int:
    """Count which experts the tokens of each language go to."""
    from moe_nmt.evaluation.expert_load import plot_expert_load, write_expert_load
    from moe_nmt.fairseq_plugin.expert_load import count_expert_load

    load = count_expert_load(arguments.checkpoint, arguments.data, arguments.split, arguments.max_tokens)
    if arguments.json:
        write_expert_load(load, arguments.json)
    if arguments.plot:
        plot_expert_load(load, arguments.plot)
    return 0


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
    add = commands.add_parser("routing", help="expert load per language of a checkpoint, as JSON and as a plot")
    add.add_argument("checkpoint", help="a checkpoint file of a transformer_moe")
    add.add_argument("data", help="folder of binarized data")
    add.add_argument("--split", default="valid", help="what the load is counted on (default: %(default)s)")
    add.add_argument("--max-tokens", type=int, default=4000, help="tokens per batch (default: %(default)s)")
    add.add_argument("--json", type=Path, metavar="FILE", help="write the counts")
    add.add_argument("--plot", type=Path, metavar="FILE", help="draw the shares as a heat map (.png, .svg or .pdf)")
    add.set_defaults(run=routing)
    add = commands.add_parser("methods", help="list every router, expert kind, loss ... and its options")
    add.set_defaults(run=methods)
    add = commands.add_parser("inspect", help="parts and parameter counts of a checkpoint or a named architecture")
    add.add_argument("model", help="a checkpoint file, or the name of an architecture such as transformer_moe_base")
    add.add_argument(
        "--vocabulary", type=int, default=256_206, help="vocabulary size of an architecture (default: NLLB's)"
    )
    add.set_defaults(run=inspect)
    return parser


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
