"""Sentence pairs that know their languages."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fairseq.data import BaseWrapperDataset, FairseqDataset, SampledMultiDataset
from fairseq.data.multilingual.multilingual_data_manager import MultilingualDatasetManager


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
    """fairseq's data manager, with datasets wrapped in `DirectionDataset`, and training pairs `shuffled_by_length`."""

    def load_a_dataset(self, *args: Any, src: str, tgt: str, **kwargs: Any) -> DirectionDataset:
        dataset = super().load_a_dataset(*args, src=src, tgt=tgt, **kwargs)
        return DirectionDataset(dataset, self.langs.index(src), self.langs.index(tgt))

    def load_dataset(self, *args: Any, **kwargs: Any) -> FairseqDataset:
        dataset = super().load_dataset(*args, **kwargs)
        if isinstance(dataset, SampledMultiDataset):
            dataset.ordered_indices = functools.partial(shuffled_by_length, dataset)
        return dataset
