"""Sentence pairs that know their languages."""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.data import BaseWrapperDataset, FairseqDataset, SampledMultiDataset
from fairseq.data.iterators import EpochBatchIterator
from fairseq.data.multilingual.multilingual_data_manager import MultilingualDatasetManager
from torch import Tensor

from moe_nmt.data import MAIN, Direction
from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin.data_folders import has_data, is_sharded
from moe_nmt.fairseq_plugin.reporting import training_pairs
from moe_nmt.training.curriculum import Curriculum

logger = logging.getLogger(__name__)


class DirectionDataset(BaseWrapperDataset):
    """A dataset of one direction whose batches name the languages of each sentence.

    `net_input` of a batch gets `source_language` and `target_language`, int64 [B], indices into the language list; a
    batch may mix sentences of several such datasets.
    """

    def __init__(self, dataset: FairseqDataset, source_language: int, target_language: int):
        super().__init__(dataset)
        self.languages = {"source_language": source_language, "target_language": target_language}

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[index] | self.languages

    def collater(self, samples: Sequence[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """fairseq's collater sorts by length and drops what it does not know: number the samples to follow it."""
        numbered = [sample | {"id": number} for number, sample in enumerate(samples)]
        batch: dict[str, Any] = self.dataset.collater(numbered, **options)
        if batch:
            in_order = [samples[number] for number in batch["id"].tolist()]
            batch["id"] = torch.tensor([sample["id"] for sample in in_order])
            for name in self.languages:
                batch["net_input"][name] = torch.tensor([sample[name] for sample in in_order])
        return batch


def shuffled_by_length(dataset: SampledMultiDataset) -> Any:
    """The sentence pairs of all directions by the length of their longer side, then of the target, else at random.

    int64 [pairs]. The longer side decides how many pairs fill `--max-tokens`, and what is left of padding is rather the
    source's: the decoder computes more for every place. (fairseq sorts by source, then target.)
    """
    shuffled = np.random.permutation(len(dataset))
    source, target = dataset.sizes[shuffled].T
    return shuffled[np.lexsort((target, np.maximum(source, target)))]


class TaggedSource(BaseWrapperDataset):
    """Source sentences with one more token at a place, counted from 0."""

    def __init__(self, dataset: FairseqDataset, token: int, place: int):
        super().__init__(dataset)
        self.token, self.place = torch.tensor([token]), place

    def __getitem__(self, index: int) -> Tensor:
        tokens = self.dataset[index]
        return torch.cat([tokens[: self.place], self.token, tokens[self.place :]])

    @property
    def sizes(self) -> Any:
        return np.asarray(self.dataset.sizes) + 1

    def num_tokens(self, index: int) -> int:
        return int(self.dataset.num_tokens(index)) + 1

    def size(self, index: int) -> int:
        return int(self.dataset.size(index)) + 1


class DirectionDataManager(MultilingualDatasetManager):
    """fairseq's data manager, with datasets wrapped in `DirectionDataset`, and training pairs `shuffled_by_length`.

    The source of extra data has the tag `<KIND>` of its kind after the language tag (as in NLLB, where it begins the
    text), and language tags are those of the main data unless `--langtoks` says otherwise. A direction may have extra
    data only. Training data leave out the directions in `waiting`.

    Raises:
        UserError: if the dictionary lacks the tag of a kind.
    """

    waiting: Collection[Direction] = ()

    def __init__(self, args: argparse.Namespace, *arguments: Any):
        super().__init__(args, *arguments)
        self.data_tags = {kind: self.data_tag(kind) for kind in args.extra_data or {}}
        for kind in self.data_tags:
            args.langtoks.setdefault(kind, args.langtoks[MAIN])

    def data_tag(self, kind: str) -> int:
        """The index of the tag of a kind of data."""
        dictionary = next(iter(self.dicts.values()))
        index = int(dictionary.index(f"<{kind}>"))
        if index == dictionary.unk():
            raise UserError(
                f"the dictionary in {self.args.data} has no tag <{kind}>; reserve it with data_prep/prepare.sh "
                f"--data-tags {kind}."
            )
        return index

    def has_sharded_data(self, split: str) -> bool:
        return split == getattr(self.args, "train_subset", None) and is_sharded(self.args)

    def get_data_paths_and_lang_pairs(self, split: str) -> tuple[dict[str, str], dict[str, list[str]]]:
        """fairseq's, but for directions of which only extra data are trained on."""
        paths, pairs = super().get_data_paths_and_lang_pairs(split)
        if self.extra_lang_pairs and split == self.args.train_subset:
            pairs[MAIN] = [pair for pair in pairs[MAIN] if has_data(paths[MAIN], split, Direction.parse(pair))]
        return paths, pairs

    def get_train_dataset_sizes(self, data_param_list: list[dict[str, Any]], datasets: Any, *epochs: Any) -> list[int]:
        """The sentence pairs of each dataset in all its shards; fairseq knows only those it has loaded since it began,
        so that a run that resumes would weigh its directions otherwise."""
        split = self.args.train_subset
        if not self.has_sharded_data(split):
            sizes: list[int] = super().get_train_dataset_sizes(data_param_list, datasets, *epochs)
            return sizes
        paths, _ = self.get_data_paths_and_lang_pairs(split)
        directions = [(part["data_category"], Direction(part["src"], part["tgt"])) for part in data_param_list]
        return [training_pairs(utils.split_paths(paths[kind]), split, [d])[d] for kind, d in directions]

    def get_split_data_param_list(self, split: str, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = super().get_split_data_param_list(split, *args, **kwargs)
        if self.waiting and split == self.args.train_subset:
            return [part for part in parts if Direction(part["src"], part["tgt"]) not in self.waiting]
        return parts

    def load_a_dataset(
        self, *args: Any, src: str, tgt: str, data_category: str, langtok_spec: tuple[Any, Any], **kwargs: Any
    ) -> DirectionDataset:
        own = {"src": src, "tgt": tgt, "data_category": data_category, "langtok_spec": langtok_spec}
        dataset = super().load_a_dataset(*args, **own, **kwargs)
        if data_category in self.data_tags:
            dataset.src = TaggedSource(dataset.src, self.data_tags[data_category], place=int(bool(langtok_spec[0])))
            dataset.src_sizes = dataset.src.sizes
            dataset.sizes = np.vstack((dataset.src_sizes, dataset.tgt_sizes)).T
        return DirectionDataset(dataset, self.langs.index(src), self.langs.index(tgt))

    def load_dataset(self, *args: Any, **kwargs: Any) -> FairseqDataset:
        dataset = super().load_dataset(*args, **kwargs)
        if isinstance(dataset, SampledMultiDataset):
            dataset.ordered_indices = functools.partial(shuffled_by_length, dataset)
        return dataset


class CurriculumBatches(EpochBatchIterator):
    """The batches of a training epoch that ends where the next phase of a curriculum starts, if it comes so far.

    They are shuffled and dealt to the ranks by fairseq, then cut to the updates that are left of the phase. An update
    that is skipped (overflow in float16) ends the epoch that much before the phase; the next one makes up for it.

    Where the epoch began travels in the iterator's part of the checkpoint: fairseq saves the state of a task, but does
    not restore it when training resumes.
    """

    def __init__(
        self, batches: EpochBatchIterator, epoch: int, curriculum: Curriculum, update: int, update_freq: Sequence[int]
    ):
        """Take over fairseq's `batches` for `epoch`, begun after `update` updates of `update_freq[epoch - 1]` batches
        each (the last one holds from there on)."""
        super().__init__(
            batches.dataset,
            batches.collate_fn,
            batches.batch_sampler,
            seed=batches.seed,
            num_shards=batches.num_shards,
            shard_id=batches.shard_id,
            num_workers=batches.num_workers,
            epoch=epoch,
        )
        self.curriculum, self.first_update, self.update_freq = curriculum, update, list(update_freq)

    @property
    def plan(self) -> dict[str, Any]:
        """What must be as it was for an epoch to go on in its middle; only text and numbers.

        Batches of all ranks count, so that their number may change.
        """
        start = {str(direction): start for direction, start in self.curriculum.start.items()}
        return {"start": start, "batches_per_update": [freq * self.num_shards for freq in self.update_freq]}

    def ordered_batches(self, epoch: int, fix_batches_to_gpus: bool, shuffle: bool) -> list[list[int]]:
        batches: list[list[int]] = super().ordered_batches(epoch, fix_batches_to_gpus, shuffle)
        next_start = self.curriculum.next_start(self.first_update)
        if next_start is None:
            return batches
        batches_per_update = self.update_freq[min(epoch, len(self.update_freq)) - 1]
        return batches[: (next_start - self.first_update) * batches_per_update]

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = super().state_dict()
        return state | {"curriculum": {"plan": self.plan, "first_update": self.first_update}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved = state_dict.get("curriculum", {"plan": None})
        goes_on = saved["plan"] == self.plan and saved["first_update"] <= self.first_update
        if goes_on and state_dict["iterations_in_epoch"]:
            self.first_update = saved["first_update"]
        if not goes_on:
            state_dict = state_dict | {"iterations_in_epoch": 0}
            logger.info(
                "curriculum: the checkpoint was written with another curriculum, or none, or other batches an update; "
                f"those given now rule, and epoch {state_dict['epoch']} begins at update {self.first_update}"
            )
        super().load_state_dict(state_dict)
