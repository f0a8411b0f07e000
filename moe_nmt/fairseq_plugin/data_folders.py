"""Where a training finds its data: folders, their shards, and extra data of other kinds."""

from __future__ import annotations

import argparse
import ast
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from fairseq import utils

from moe_nmt.data import MAIN, Direction, parse_directions
from moe_nmt.data.data_bin import shard_folders
from moe_nmt.data.directions import unknown
from moe_nmt.errors import UserError

logger = logging.getLogger(__name__)


def named_texts(text: str) -> dict[str, str]:
    """An argparse type: `{"mined": "corpus/extra/mined/data-bin"}`; the dictionary itself stays as it is."""
    try:
        value = ast.literal_eval(text) if isinstance(text, str) else text
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, dict) or not all(isinstance(part, str) for item in value.items() for part in item):
        raise argparse.ArgumentTypeError(
            f'{text} is no dictionary of texts: write \'{{"mined": "…"}}\', quotes included'
        )
    return value


def with_shards(data: str) -> str:
    """The folders of `data`, with fairseq's separator; the shards of a folder stand in its place."""
    return os.pathsep.join(str(shard) for folder in utils.split_paths(data) for shard in shard_folders(Path(folder)))


def has_data(data: str, split: str, direction: Direction) -> bool:
    """Whether a direction has binarized data of this split in any shard."""
    folders = [Path(path) for path in utils.split_paths(data)]
    names = [f"{split}.{pair}.{direction.source}.idx" for pair in (direction, direction.reverse)]
    return any((folder / name).is_file() for name in names for folder in folders)


def check_data(data: str, split: str, directions: Sequence[Direction]) -> None:
    """Raise a `UserError` if a direction has no binarized data of this split in any shard."""
    for direction in directions:
        if not has_data(data, split, direction):
            raise UserError(
                f"the direction {direction} has no {split} data in {data}; "
                f"binarize it with fairseq-preprocess or take it out of --lang-pairs."
            )


def settle_extra_data(args: argparse.Namespace, directions: Sequence[Direction]) -> None:
    """Check `--extra-data` and `--extra-lang-pairs`, and leave in `args` what these directions are trained on.

    Raises:
        UserError: for a kind of data that only one of them has or that fairseq takes for other data, a folder that does
            not exist, a malformed direction, or one without data.
    """
    folders, pairs = args.extra_data or {}, args.extra_lang_pairs or {}
    for kind in pairs:
        if kind not in folders:
            raise unknown("kind of data", kind, folders, "--extra-data, unlike --extra-lang-pairs,")
    kept = {}
    for kind, data in folders.items():
        if kind == MAIN or "mono_" in kind:
            raise UserError(
                f"--extra-data cannot have the kind '{kind}', which fairseq takes for other data; rename it."
            )
        if kind not in pairs:
            raise UserError(f"--extra-lang-pairs has no directions for '{kind}' of --extra-data; give them.")
        if not Path(utils.split_paths(data)[0]).is_dir():
            raise UserError(f"the folder {data} of '{kind}' in --extra-data does not exist; binarize the data first.")
        given = parse_directions(pairs[kind])
        kept[kind] = [direction for direction in given if direction in directions]
        if len(kept[kind]) < len(given):
            left_out = ", ".join(str(direction) for direction in given if direction not in directions)
            logger.info(f"extra data {kind}: not in --lang-pairs and left out: {left_out}")
        data = with_shards(data)
        for direction in kept[kind]:
            if not has_data(data, args.train_subset, direction):
                raise UserError(
                    f"the direction {direction} has no {args.train_subset} data in {data}; "
                    "binarize it, or take it out of --extra-lang-pairs."
                )
    args.extra_data = {kind: with_shards(folders[kind]) for kind, found in kept.items() if found} or None
    args.extra_lang_pairs = {kind: ",".join(map(str, found)) for kind, found in kept.items() if found} or None


def is_sharded(args: argparse.Namespace) -> bool:
    """Whether training data of any kind lie in several folders, of which every epoch takes one."""
    return any(len(utils.split_paths(data)) > 1 for data in (args.data, *(args.extra_data or {}).values()))


def check_virtual_epochs(args: argparse.Namespace) -> None:
    """Raise a `UserError` for virtual epochs of data in shards that do not say when to go on to the next shard."""
    if is_sharded(args) and args.virtual_epoch_size and not args.virtual_data_size:
        raise UserError(
            "--virtual-epoch-size with training data in shards needs --virtual-data-size: how many sentences are drawn "
            "from a shard before the next one."
        )
