"""Sentence pairs that know their languages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fairseq.data import BaseWrapperDataset, FairseqDataset
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


class DirectionDataManager(MultilingualDatasetManager):
    """fairseq's data manager, with every dataset wrapped in a `DirectionDataset`."""

    def load_a_dataset(self, *args: Any, src: str, tgt: str, **kwargs: Any) -> DirectionDataset:
        dataset = super().load_a_dataset(*args, src=src, tgt=tgt, **kwargs)
        return DirectionDataset(dataset, self.langs.index(src), self.langs.index(tgt))
