"""fairseq's checkpoints whose experts lie in a folder beside them.

Such a file has None in the place of every stacked tensor, and `experts`: the name of the folder and the SHA-256 of its
index. A tensor's name there is its place in the file: `model/NAME`, `ema/NAME`, `ema_fp32_params/NAME` or
`last_optimizer_state/NUMBER/KEY`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils

from moe_nmt.distributed.groups import ExpertGroup, world_size
from moe_nmt.distributed.shards import ShardedExperts, remove_unnamed
from moe_nmt.fairseq_plugin.compat import CheckpointError, explain_load_failures
from moe_nmt.moe.dispatch import DISPATCHERS
from moe_nmt.moe.experts import EXPERTS

logger = logging.getLogger(__name__)

OPTIMIZER = "last_optimizer_state"
AVERAGED = ("ema", "ema_fp32_params")
PARTS = ("model", *AVERAGED, OPTIMIZER)


def holder_of(state: dict[str, Any], name: str) -> tuple[dict[Any, Any], str]:
    """The dictionary in a checkpoint that has the tensor of this name, and its key there."""
    part, rest = name.split("/", 1)
    if part == OPTIMIZER:
        number, key = rest.split("/")
        return state[part]["state"][int(number)], key
    return (state if part == "model" else state["extra_state"])[part], rest


def put_back(
    state: dict[str, Any], path: Path, wanted: Collection[str] = PARTS, group: ExpertGroup | None = None
) -> None:
    """Put the experts that lie beside a checkpoint into it: all, or the part of this rank of a group.

    Where only some of its `PARTS` are wanted, the others are taken out of it. Does nothing to one that has its experts.

    Raises:
        UserError: if they cannot be read, or are those of another checkpoint.
    """
    if "experts" not in state:
        return
    named = state.pop("experts")
    folder = next((p for p in (path, path.resolve()) if (p.parent / named["folder"]).is_dir()), path).parent
    experts = ShardedExperts(folder / named["folder"], named["index"])
    share = (group.rank, group.size) if group else (0, 1)
    for name in experts.names():
        if name.split("/")[0] in wanted:
            holder, key = holder_of(state, name)
            holder[key] = experts.part(name, *share)
    if OPTIMIZER not in wanted:
        state[OPTIMIZER] = None
    for part in AVERAGED:
        if part not in wanted:
            state["extra_state"].pop(part, None)


class ExpertLoading:
    """fairseq's `load_checkpoint_to_cpu`, for a model to be used: experts that lie apart are put back, and read for
    that alone. A rank that has a part of the experts, by the checkpoint's --moe-dispatch, reads no more than that.

    `settle` may change the options in the checkpoint, and with them the part, before experts are read.
    `without_experts` loads what the file itself has.
    """

    def __init__(self, load: Callable[..., dict[str, Any]]):
        self.without_experts = load

    def __call__(
        self, path: str, *args: Any, settle: Callable[[dict[str, Any]], None] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        state = self.without_experts(path, *args, **kwargs)
        if settle is not None:
            settle(state)
        if "experts" in state:
            put_back(state, Path(path), ["model"], group_in(state["cfg"]["model"]))
        return state


def group_in(options: Any) -> ExpertGroup | None:
    """The ranks that the experts of a model with these options are spread over."""
    if world_size() == 1:
        return None
    with torch.device("meta"):
        sizes = {"dim": options.encoder_embed_dim, "ffn_dim": options.encoder_ffn_embed_dim}
        num_experts = EXPERTS.build(options.moe_experts, **sizes).num_experts
    per_node = getattr(options, "moe_ranks_per_node", None)
    return DISPATCHERS.build(options.moe_dispatch, num_experts=num_experts, ranks_per_node=per_node).group


def tidy(save_dir: Path) -> None:
    """Remove the folders of experts that no checkpoint in `save_dir` names."""
    remove_unnamed(save_dir, lambda: named_folders(save_dir))


def named_folders(save_dir: Path) -> set[str]:
    """The folders of experts that the checkpoints in `save_dir` name; all, if one of these cannot be read."""
    read = explain_load_failures(torch.load)
    names = set()
    for path in save_dir.glob("*.pt"):
        try:
            state = read(str(path), map_location="cpu", mmap=True, weights_only=True)
        except (CheckpointError, OSError) as error:
            logger.warning(f"folders of experts in {save_dir} are kept, named or not: {error}")
            return {folder.name for folder in save_dir.iterdir()}
        if isinstance(state, dict) and "experts" in state:
            names.add(state["experts"]["folder"])
    return names


def tidying(save_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """fairseq's saving of a checkpoint under all its names, after which folders that it does not name are removed."""

    @functools.wraps(save_checkpoint)
    def save_and_tidy(cfg: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        saved = save_checkpoint(cfg, trainer, *args, **kwargs)
        if not cfg.no_save and trainer.is_data_parallel_master:
            tidy(Path(cfg.save_dir))
        return saved

    return save_and_tidy


def install() -> None:
    """Make fairseq load and remove experts that lie apart."""
    checkpoint_utils.load_checkpoint_to_cpu = ExpertLoading(checkpoint_utils.load_checkpoint_to_cpu)
    checkpoint_utils.save_checkpoint = tidying(checkpoint_utils.save_checkpoint)
