"""Translating a held-out split in all directions of a checkpoint: what to translate, and where to."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, tasks, utils
from fairseq.dataclass.configs import GenerationConfig
from fairseq.distributed.utils import get_global_rank
from tqdm import tqdm

from moe_nmt.data import Direction
from moe_nmt.data.directions import unknown
from moe_nmt.data.text import rewriting
from moe_nmt.distributed.groups import world_size
from moe_nmt.errors import UserError
from moe_nmt.evaluation.resuming import Facts, Journal, Record, facts, journal
from moe_nmt.fairseq_plugin.data_folders import check_data, has_data
from moe_nmt.fairseq_plugin.decoding import TestSets, decode, load_test_sets
from moe_nmt.fairseq_plugin.ranks import from_all
from moe_nmt.fairseq_plugin.spreading import spread_experts
from moe_nmt.fairseq_plugin.task import MultilingualTranslationMoETask


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
) -> dict[Direction, Path]:
    """Write `output`/DIRECTION.hyp, one translation a line in the order of the split; returns the files by direction.

    The translations are those that `fairseq-generate` finds for each direction with the same options (see `decode`).
    Without `directions` all of the checkpoint that have data are translated; those given may be others between its
    languages. `lang_dict` is the file of languages where the one that the checkpoint names has moved;
    `model_overrides` are options of the model to change.

    Finished batches are kept in a journal in `output`, so that a call that is interrupted is taken up by the next one
    like it. Directions that are done with this checkpoint, these data and options are left out. Runs on a GPU if there
    is one, unless `cpu`.

    In a process group all ranks call this; they share the sentences, and spread the experts. Rank 0 writes.

    Raises:
        UserError: if checkpoint or data cannot be read or do not fit together, for an unknown split or language, a
            direction without data, a sentence that is longer than the model allows, scores that are not finite, or
            an `output` that another process is writing or that is full.
    """
    overrides = {"data": data} | ({"lang_dict": lang_dict} if lang_dict else {}) | dict(model_overrides or {})
    task, model = load(checkpoint, overrides, directions)
    wanted = choose(task, checkpoint, split, directions)
    inputs = {direction: [facts(path) for path in binarized(task.args.data, split, direction)] for direction in wanted}
    record = Record(
        output,
        {
            "checkpoint": facts(checkpoint)[1:],
            **{"split": split, "max_tokens": max_tokens, "dtype": str(dtype)},
            **{name: getattr(search, name) for name in ("beam", "max_len_a", "max_len_b", "lenpen")},
            "model_overrides": {name: str(value) for name, value in (model_overrides or {}).items()},
        },
    )
    due = {direction: files for direction, files in inputs.items() if not record.holds(direction, files)}
    due = from_all(due)[0]
    if len(due) < len(wanted) and get_global_rank() == 0:
        print(f"translate: {len(wanted) - len(due)} of {len(wanted)} directions are done already", file=sys.stderr)
    if due:
        model.make_generation_fast_()
        model.to(device="cuda" if torch.cuda.is_available() and not cpu else "cpu", dtype=dtype)
        sets = load_test_sets(task, model, split, list(due), max_tokens)
        work = record.work | {"data": [[str(direction), files] for direction, files in due.items()]}
        with journals(output / ".translations.journal", work) as (journal_of_rank, finished):
            texts = decode_all(task, model, sets, search, max_tokens, journal_of_rank, finished)
            if get_global_rank() == 0:
                write(record, sets, texts, due)
    return {direction: record.file(direction) for direction in wanted}


def write(record: Record, sets: TestSets, texts: Mapping[int, str], inputs: Mapping[Direction, list[Facts]]) -> None:
    """Write the translations of these directions, and record what they were made from."""
    lines = [texts[index] for index in range(len(sets))]
    for direction, translations in zip(inputs, sets.by_direction(lines), strict=True):
        with rewriting(record.file(direction)) as (file,):
            file.writelines(f"{line}\n" for line in translations)
    record.add(inputs)


@contextlib.contextmanager
def journals(path: Path, work: Any) -> Iterator[tuple[Journal, dict[int, str]]]:
    """The journal of this rank, and the translations in those of all ranks there are or were when the work was begun.

    Rank 0 writes to `path`, rank 1 to `path`.1 and so on. They are removed when the block ends well on all ranks.
    """
    rank = get_global_rank()
    with journal(path.with_name(f"{path.name}.{rank}") if rank else path, work) as own:
        entries = [*own.entries]
        if rank == 0:
            for left in path.parent.glob(f"{path.name}.*"):
                if int(left.suffix[1:]) >= world_size():
                    with journal(left, work) as other:
                        for batch in other.entries:
                            own.add(batch)
                        entries += other.entries
        yield own, {index: text for entries in from_all(entries) for batch in entries for index, text in batch}
        from_all(None)


def decode_all(
    task: MultilingualTranslationMoETask,
    model: Any,
    sets: TestSets,
    search: GenerationConfig,
    max_tokens: int,
    journal_of_rank: Journal,
    finished: Mapping[int, str],
) -> dict[int, str]:
    """The translations of all sentences, by number: those that are finished, and the others, to which each rank
    contributes its part, which it adds to its journal batch by batch. Rank 0 shows how far it is with its own."""
    tokens = sets.sizes[:, 0]
    own = [index for batch in sets.own_batches(max_tokens, finished) for index in batch]
    texts: dict[int, str] = {}
    on_terminal = sys.stderr.isatty()
    with tqdm(
        desc="translate",
        total=int(tokens[[*finished, *own]].sum()),
        initial=int(tokens[[*finished]].sum()),
        unit=" tokens",
        unit_scale=True,
        mininterval=0.2 if on_terminal else 15,
        dynamic_ncols=on_terminal,
        disable=get_global_rank() > 0,
    ) as progress:
        for batch in decode(task, model, sets, search, max_tokens, done=finished):
            journal_of_rank.add(list(batch.items()))
            texts.update(batch)
            done = f"{len(finished) + len(texts):,} of {len(finished) + len(own):,} sentences"
            progress.set_postfix_str(done, refresh=False)
            progress.update(int(tokens[list(batch)].sum()))
    return {index: text for part in (finished, *from_all(texts)) for index, text in part.items()}


def load(
    checkpoint: Path, overrides: dict[str, Any], directions: Sequence[Direction] | None = None
) -> tuple[MultilingualTranslationMoETask, Any]:
    """The task that a checkpoint was trained in, but for the options in `overrides`, and its model.

    With `directions` the task is for these, if its list of languages does not depend on those that were trained.
    """
    if not checkpoint.is_file():
        raise UserError(f"there is no checkpoint {checkpoint}; give the path of a file that training wrote.")
    settle = functools.partial(spread_experts, chosen=overrides)
    state = checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint), overrides, settle=settle)
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


def binarized(data: str, split: str, direction: Direction) -> list[Path]:
    """The files of binarized data of a direction, in all shards."""
    names = [
        f"{split}.{pair}.{language}.{kind}"
        for pair in (direction, direction.reverse)
        for language in (direction.source, direction.target)
        for kind in ("bin", "idx")
    ]
    paths = [Path(folder) / name for folder in utils.split_paths(data) for name in names]
    return [path for path in paths if path.is_file()]
