"""fairseq's checkpoint files: read safely, changed by surgery, and written again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin.compat import explain_load_failures
from moe_nmt.fairseq_plugin.config import ARCHITECTURES
from moe_nmt.fairseq_plugin.saving import save
from moe_nmt.fairseq_plugin.sharded import put_back
from moe_nmt.surgery import Checkpoint, Plan


def load(path: Path) -> Any:
    """What a file of torch holds, on the CPU.

    Raises:
        UserError: if it is missing, damaged, or would run code.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; give the path of one that training or moe-nmt wrote.")
    return explain_load_failures(torch.load)(str(path), map_location="cpu", weights_only=True)


def check_output(path: Path, sources: Sequence[Path]) -> None:
    """Raise a `UserError` if what is made of these files cannot be written there."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of the file to write.")
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written, because there is no folder {path.parent}; make it first.")
    if path.exists() and any(source.exists() and path.samefile(source) for source in sources):
        raise UserError(f"{path} is read here, and would be overwritten; give the result another name.")


class CheckpointFile:
    """A file that fairseq wrote in training a `transformer_moe`: the model, and what lies around it.

    The history of the model is kept in fairseq's `optimizer_history`, one entry for each training, which fairseq hands
    on from checkpoint to checkpoint, through `--finetune-from-model` too.

    Raises:
        UserError: if it cannot be read, or is none.
    """

    def __init__(self, path: Path):
        self.state = load(path)
        if isinstance(self.state, dict) and "experts" in self.state:
            put_back(self.state, path, ["model"])
        if isinstance(self.state, dict) and "format" in self.state:
            raise UserError(f"{path} holds adapters alone; put them onto their base with moe-nmt adapters attach.")
        if not (isinstance(self.state, dict) and {"model", "cfg", "optimizer_history"} <= self.state.keys()):
            raise UserError(f"{path} is no checkpoint of fairseq; give a file that training wrote.")
        model, task = self.state["cfg"]["model"], self.state["cfg"]["task"]
        if not isinstance(model, argparse.Namespace) or model._name not in ARCHITECTURES:
            name = getattr(model, "_name", None) or model["_name"]
            raise UserError(f"{path} is a model of the architecture {name}, not a transformer_moe of this package.")
        self.checkpoint = Checkpoint(
            self.state["model"],
            vars(model),
            getattr(task, "lang_pairs", None) or (),
            [operation for training in self.state["optimizer_history"] for operation in training.get("surgery", ())],
        )

    def save(self, checkpoint: Checkpoint, path: Path) -> None:
        """Write a file with this model in the place of the one read, and all else as it was but what only the old one
        can go on with: the state of the optimizer, the place in the data, and averaged weights.

        fairseq translates with it, and starts trainings from it.
        """
        *earlier, last = self.state["optimizer_history"]
        done = checkpoint.history[len(self.checkpoint.history) :]
        beginning = {"version": 2, "epoch": 1, "iterations_in_epoch": 0, "shuffle": True}
        changed = {
            "cfg": {**self.state["cfg"], "model": argparse.Namespace(**checkpoint.options)},
            "model": dict(checkpoint.tensors),
            "optimizer_history": [*earlier, {**last, "surgery": [*last.get("surgery", ()), *done]}],
            "extra_state": {"train_iterator": beginning, "val_loss": None},
            "last_optimizer_state": None,
        }
        save({**self.state, **changed}, path)


def operate(source: Path, output: Path, operations: Sequence[str]) -> None:
    """Write the checkpoint that the operations, one after the other, make of another.

    Raises:
        UserError: if a file or an operation is not as it should be; nothing is written then.
    """
    plan = Plan(operations)
    check_output(output, [source])
    file = CheckpointFile(source)
    file.save(plan(file.checkpoint), output)


def consolidate(source: Path, output: Path) -> None:
    """Write a checkpoint whose experts lie beside it as one file, with its optimizer state and all else.

    Raises:
        UserError: if it is none, or a file cannot be read or written.
    """
    check_output(output, [source])
    state = load(source)
    if not (isinstance(state, dict) and "experts" in state):
        raise UserError(f"{source} is one file already, or no checkpoint; copy it as it is.")
    put_back(state, source)
    save(state, output)
