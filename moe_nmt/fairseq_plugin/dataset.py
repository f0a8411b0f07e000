"""Sentence pairs that know their languages."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from fairseq.data import BaseWrapperDataset, FairseqDataset, SampledMultiDataset
from fairseq.data.iterators import EpochBatchIterator
from fairseq.data.multilingual.multilingual_data_manager import MultilingualDatasetManager

from moe_nmt.data import Direction
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


class DirectionDataManager(MultilingualDatasetManager):
    """fairseq's data manager, with datasets wrapped in `DirectionDataset`, and training pairs `shuffled_by_length`.

    Training data leave out the directions in `waiting`.
    """

    waiting: Collection[Direction] = ()

    def get_split_data_param_list(self, split: str, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = super().get_split_data_param_list(split, *args, **kwargs)
        if self.waiting and split == self.args.train_subset:
            return [part for part in parts if Direction(part["src"], part["tgt"]) not in self.waiting]
        return parts

    def load_a_dataset(self, *args: Any, src: str, tgt: str, **kwargs: Any) -> DirectionDataset:
        dataset = super().load_a_dataset(*args, src=src, tgt=tgt, **kwargs)
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
        """What must be as it was for an epoch to go on in its middle; only text and numbers."""
        start = {str(direction): start for direction, start in self.curriculum.start.items()}
        return {"start": start, "update_freq": self.update_freq}

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
                "curriculum: the checkpoint was written with another curriculum, or none, or another --update-freq; "
                f"those given now rule, and epoch {state_dict['epoch']} begins at update {self.first_update}"
            )
        super().load_state_dict(state_dict)
