"""Translating a held-out split in all directions of a checkpoint by one process, which loads the model once."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import checkpoint_utils, tasks, utils
from fairseq.data import ConcatDataset, FairseqDataset
from fairseq.dataclass.configs import GenerationConfig

from moe_nmt.data import Direction
from moe_nmt.data.directions import unknown
from moe_nmt.data.text import rewriting
from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin.task import MultilingualTranslationMoETask, check_data, has_data


def translate(
    checkpoint: Path,
    data: str,
    output: Path,
    split: str = "test",
    directions: Sequence[Direction] | None = None,
    *,
    lang_dict: str | None = None,
    model_overrides: Mapping[str, Any] | None = None,
    search: GenerationConfig,
    max_tokens: int = 12000,
    dtype: torch.dtype = torch.float32,
    cpu: bool = False,
) -> None:
    """Write `output`/DIRECTION.hyp, one translation a line in the order of the split; says on stderr how far it is.

    The translations are those of `fairseq-generate --remove-bpe sentencepiece` for each direction, with the same
    batches. Without `directions` all of the checkpoint that have data are translated; those given may be others between
    its languages. `lang_dict` is the file of languages where the one that the checkpoint names has moved;
    `model_overrides` are options of the model to change.

    A file is written when its direction is complete, and a direction is left out if its file is there and no older than
    the checkpoint. Runs on a GPU if there is one, unless `cpu`.

    Raises:
        UserError: if checkpoint or data cannot be read or do not fit together, for an unknown split or language, a
            direction without data, a sentence that is longer than the model allows, or scores that are not finite.
    """
    overrides = {"data": data} | ({"lang_dict": lang_dict} if lang_dict else {}) | dict(model_overrides or {})
    task, model = load(checkpoint, overrides, directions)
    wanted = choose(task, checkpoint, split, directions)
    files = {direction: output / f"{direction}.hyp" for direction in wanted}
    due = [direction for direction, path in files.items() if not is_up_to_date(path, checkpoint)]
    if len(due) < len(wanted):
        print(f"translate: {len(wanted) - len(due)} of {len(wanted)} directions are done already", file=sys.stderr)
    if not due:
        return
    model.make_generation_fast_()
    model.to(device="cuda" if torch.cuda.is_available() and not cpu else "cpu", dtype=dtype)
    datasets = load_directions(task, split, due)
    progress = Progress(sum(map(len, datasets)))
    for direction, dataset in zip(due, datasets, strict=True):
        with rewriting(files[direction]) as (file,):
            lines = translate_direction(task, model, direction, dataset, search, max_tokens, progress)
            file.writelines(f"{line}\n" for line in lines)


def load(
    checkpoint: Path, overrides: dict[str, Any], directions: Sequence[Direction] | None = None
) -> tuple[MultilingualTranslationMoETask, Any]:
    """The task that a checkpoint was trained in, but for the options in `overrides`, and its model.

    With `directions` the task is for these, if its list of languages does not depend on those that were trained.
    """
    if not checkpoint.is_file():
        raise UserError(f"there is no checkpoint {checkpoint}; give the path of a file that training wrote.")
    state = checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint), overrides)
    options = state["cfg"]["task"]
    if options._name != "multilingual_translation_moe":
        raise UserError(
            f"the checkpoint {checkpoint} was trained in the task {options._name}, and this command knows only "
            "multilingual_translation_moe; translate with fairseq-generate."
        )
    if directions and (options.lang_dict or options.langs):
        options.lang_pairs = ",".join(map(str, directions))
    task = tasks.setup_task(options, from_checkpoint=True)
    known, given = state["model"]["encoder.embedding.embed_tokens.weight"].shape[0], len(task.source_dictionary)
    if known != given:
        raise UserError(
            f"the checkpoint {checkpoint} has a vocabulary of {known}, language tags included, and the data in "
            f"{task.args.data} one of {given}; give the data that were binarized with the dictionary of its training."
        )
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], task=task, state=state)
    return task, model


def choose(
    task: MultilingualTranslationMoETask, checkpoint: Path, split: str, wanted: Sequence[Direction] | None
) -> list[Direction]:
    """The directions to translate: those wanted, or all of the checkpoint that have data."""
    data = task.args.data
    splits = {path.name.rsplit(".", 3)[0] for path in Path(utils.split_paths(data)[0]).glob("*.*-*.*.idx")}
    if split not in splits:
        raise unknown("split", split, sorted(splits), data)
    if wanted is None:
        found = [direction for direction in task.directions if has_data(data, split, direction)]
        if not found:
            raise UserError(f"{data} has no {split} data of any direction of the checkpoint {checkpoint}.")
        return found
    for direction in wanted:
        for language in (direction.source, direction.target):
            if language not in task.langs:
                raise unknown("language", language, task.langs, f"the checkpoint {checkpoint}")
    check_data(data, split, wanted)
    return list(wanted)


def is_up_to_date(path: Path, checkpoint: Path) -> bool:
    """Whether the file is there and no older than the checkpoint."""
    return path.is_file() and path.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns


def load_directions(
    task: MultilingualTranslationMoETask, split: str, directions: Sequence[Direction]
) -> list[FairseqDataset]:
    """The data of each direction, in the form that `fairseq-generate` gives it."""
    task.data_manager.lang_pairs = [str(direction) for direction in directions]
    loaded, _ = task.data_manager.load_split_datasets(split, training=False)
    return [ConcatDataset([dataset]) for _, dataset in loaded]


def translate_direction(
    task: MultilingualTranslationMoETask,
    model: Any,
    direction: Direction,
    dataset: FairseqDataset,
    search: GenerationConfig,
    max_tokens: int,
    progress: Progress,
) -> list[str]:
    """The best translation of each sentence as text, in the order of the data."""
    task.args.source_lang, task.args.target_lang = direction.source, direction.target  # what its language tag is
    generator = task.build_generator([model], search)
    limits = utils.resolve_max_positions(task.max_positions(), model.max_positions())
    check_lengths(dataset, limits, max_tokens, direction)
    batches = task.get_batch_iterator(dataset, max_tokens=max_tokens, max_positions=limits)
    texts = [""] * len(dataset)
    for sample in on_device(batches.next_epoch_itr(shuffle=False), model):
        found = task.inference_step(generator, [model], sample)
        for number, hypotheses in zip(sample["id"].tolist(), found, strict=True):
            if not hypotheses:
                raise UserError(
                    f"the model has no finite score for line {number + 1} of {direction}; it has diverged, "
                    "or needs more than half precision."
                )
            texts[number] = task.target_dictionary.string(
                hypotheses[0]["tokens"], "sentencepiece", extra_symbols_to_ignore=generator.symbols_to_strip_from_output
            )
        progress.add(len(found), direction)
    return texts


def on_device(batches: Any, model: Any) -> Iterator[dict[str, Any]]:
    """The batches, each moved to where the model is."""
    device = next(model.parameters()).device
    return (utils.move_to_cuda(batch, device) if device.type == "cuda" else batch for batch in batches)


def check_lengths(dataset: FairseqDataset, limits: tuple[int, int], max_tokens: int, direction: Direction) -> None:
    """Raise a `UserError` for a sentence pair that has more tokens than the model has positions, or a batch room."""
    _, too_long = dataset.filter_indices_by_size(np.arange(len(dataset)), limits)
    if len(too_long):
        raise UserError(
            f"line {min(too_long) + 1} of {direction} has more tokens than the model takes ({limits[0]} in the source, "
            f"{limits[1]} in the target); shorten it, or leave the direction out with --directions."
        )
    longest = int(dataset.sizes.max())
    if longest > max_tokens:
        raise UserError(f"{direction} has a sentence of {longest} tokens; raise --max-tokens {max_tokens} to that.")


class Progress:
    """Says on stderr how many sentences are translated, and about how long the others will take."""

    def __init__(self, total: int):
        self.total, self.done, self.start = total, 0, time.monotonic()

    def add(self, sentences: int, direction: Direction) -> None:
        self.done += sentences
        left = int((time.monotonic() - self.start) / self.done * (self.total - self.done))
        line = f"{direction}, {self.done:,} of {self.total:,} sentences, about {left // 60}:{left % 60:02d} left"
        print(f"\rtranslate: {line:<70}", end="\n" if self.done == self.total else "", file=sys.stderr, flush=True)
