"""The task `multilingual_translation_moe`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from fairseq import metrics, utils
from fairseq.data import FairseqDataset, SampledMultiEpochDataset
from fairseq.tasks import register_task
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from torch import Tensor

from moe_nmt.data import Direction, parse_directions
from moe_nmt.data.directions import unknown
from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin.dataset import DirectionDataManager, DirectionDataset
from moe_nmt.fairseq_plugin.generator import BeamSearchGenerator
from moe_nmt.training.expert_adam import mark_stacked


@register_task("multilingual_translation_moe")
class MultilingualTranslationMoETask(TranslationMultiSimpleEpochTask):
    """fairseq's `translation_multi_simple_epoch` (language tags, temperature sampling) for sparse models.

    Batches carry the languages of their sentences, validation reports every direction, and mistakes in languages,
    directions or data are found before training starts.
    """

    @classmethod
    def setup_task(cls, args: argparse.Namespace, **kwargs: Any) -> MultilingualTranslationMoETask:
        """Raises:
        UserError: for an unknown language, a malformed direction, a direction without data, or missing dictionaries.
        """
        check_arguments(args)
        return super().setup_task(args, **kwargs)

    def __init__(self, args: argparse.Namespace, langs: list[str], dicts: dict[str, Any], training: bool):
        super().__init__(args, langs, dicts, training)
        self.directions = [Direction.parse(pair) for pair in self.lang_pairs]
        self.data_manager = DirectionDataManager(args, self.lang_pairs, langs, dicts, self.sampling_method)

    def build_model(self, *args: Any, **kwargs: Any) -> Any:
        """fairseq's model, with the stacked weights of its experts marked for the optimizer."""
        model = super().build_model(*args, **kwargs)
        mark_stacked(model)
        return model

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        """Load a split once; only sharded training data is loaded again.

        Raises:
            UserError: if a direction has no data in this split.
        """
        if split in self.datasets and not self.has_sharded_data(split):
            return
        check_data(self.args.data, split, self.directions)
        super().load_dataset(split, epoch, combine, **kwargs)
        if isinstance(self.datasets[split], SampledMultiEpochDataset):
            begin_at_virtual_epoch(self.datasets[split], epoch)

    def get_batch_iterator(self, dataset: FairseqDataset, *args: Any, **kwargs: Any) -> Any:
        """fairseq's iterator. Of held-out data every sentence is kept: with `--required-batch-size-multiple` above 1
        (8 unless set) fairseq drops what is left over for the last batch, from test sets too."""
        if dataset is not self.datasets.get(getattr(self.args, "train_subset", None)):
            kwargs["required_batch_size_multiple"] = 1
        return super().get_batch_iterator(dataset, *args, **kwargs)

    def build_dataset_for_inference(
        self, src_tokens: list[Tensor], src_lengths: list[int], constraints: Any = None
    ) -> FairseqDataset:
        dataset = super().build_dataset_for_inference(src_tokens, src_lengths, constraints)
        languages = (self.langs.index(lang) for lang in (self.args.source_lang, self.args.target_lang))
        return DirectionDataset(dataset, *languages)

    def build_generator(self, *args: Any, **kwargs: Any) -> Any:
        generator = super().build_generator(*args, **kwargs)
        return BeamSearchGenerator(generator) if BeamSearchGenerator.covers(generator) else generator

    def train_step(
        self, sample: Any, model: Any, criterion: Any, optimizer: Any, update_num: int, ignore_grad: bool = False
    ) -> Any:
        criterion.set_num_updates(update_num)
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def direction_index(self) -> Tensor:
        """int64 [L, L]: the place of direction (source language, target language) in `lang_pairs`, -1 if not there."""
        table = torch.full((len(self.langs), len(self.langs)), -1)
        for index, direction in enumerate(self.directions):
            table[self.langs.index(direction.source), self.langs.index(direction.target)] = index
        return table

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """fairseq's metrics, and loss and perplexity of every direction where the criterion reports them."""
        super().reduce_metrics(logging_outputs, criterion)
        by_direction = [log for log in logging_outputs if "direction_nll" in log]
        if by_direction:
            nll = sum(log["direction_nll"] for log in by_direction).tolist()
            tokens = sum(log["direction_tokens"] for log in by_direction).tolist()
            for pair, pair_nll, pair_tokens in zip(self.lang_pairs, nll, tokens, strict=True):
                if pair_tokens:
                    log_direction(pair, pair_nll / pair_tokens / math.log(2), pair_tokens)


def begin_at_virtual_epoch(dataset: SampledMultiEpochDataset, epoch: int) -> None:
    """Give a run that resumes in virtual epoch `epoch` the order of sentences that the unbroken run has there.

    The order is drawn at the first virtual epoch of each pass over the data; fairseq draws it anew when it resumes
    later in the pass, so that some sentences come twice and others not at all.
    """
    first = epoch - (epoch - 1) % dataset.num_virtual_epochs
    if first != epoch:
        shard_epoch = dataset.shard_epoch
        dataset.set_epoch(first)
        dataset.shard_epoch, dataset.load_next_shard = shard_epoch, False
        dataset.set_epoch(epoch)


def log_direction(pair: str, nll_loss: float, tokens: float) -> None:
    """Log loss (in bits per token, like fairseq's `nll_loss`) and perplexity of one direction."""
    metrics.log_scalar(f"nll_loss_{pair}", nll_loss, tokens, priority=1000, round=3)
    metrics.log_derived(
        f"ppl_{pair}", lambda meters: utils.get_perplexity(meters[f"nll_loss_{pair}"].avg), priority=1001
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Raise a `UserError` for the first mistake in languages and directions."""
    if args.lang_tok_replacing_bos_eos:
        raise UserError(
            "--lang-tok-replacing-bos-eos is not supported by multilingual_translation_moe; "
            "use --encoder-langtok and --decoder-langtok."
        )
    if not args.lang_pairs:
        raise UserError(
            "--lang-pairs is missing: give the directions, as in --lang-pairs eng-deu,deu-eng, or a file of them."
        )
    pairs = args.lang_pairs if isinstance(args.lang_pairs, str) else ",".join(args.lang_pairs)
    if args.source_lang or args.target_lang:
        pairs = f"{args.source_lang}-{args.target_lang}"
    directions = parse_directions(pairs)
    languages = _languages(args, directions)
    for language in _languages_of(directions):
        if language not in languages:
            raise unknown("language", language, languages, "the language list")
    check_dictionaries(args, directions)


def _languages_of(directions: list[Direction]) -> list[str]:
    return sorted({language for direction in directions for language in (direction.source, direction.target)})


def _languages(args: argparse.Namespace, directions: list[Direction]) -> list[str]:
    if args.lang_dict:
        if not Path(args.lang_dict).is_file():
            raise UserError(
                f"--lang-dict {args.lang_dict} does not exist; it is a file with one language code per line."
            )
        return Path(args.lang_dict).read_text(encoding="utf-8").split()
    return list(args.langs or _languages_of(directions))


def check_dictionaries(args: argparse.Namespace, directions: list[Direction]) -> None:
    """Raise a `UserError` if the folder of binarized data, or a dictionary in it, is missing."""
    folder = Path(utils.split_paths(args.data)[0])
    if not folder.is_dir():
        raise UserError(f"the data folder {folder} does not exist; make it with fairseq-preprocess.")
    if args.source_dict or args.target_dict or args.fixed_dictionary:
        return
    for language in _languages_of(directions):
        if not (folder / f"dict.{language}.txt").is_file():
            raise UserError(
                f"{folder} has no dict.{language}.txt; binarize the language '{language}' with fairseq-preprocess."
            )


def check_data(data: str, split: str, directions: list[Direction]) -> None:
    """Raise a `UserError` if a direction has no binarized data of this split in any shard."""
    folders = [Path(path) for path in utils.split_paths(data)]
    for direction in directions:
        names = [f"{split}.{pair}.{direction.source}.idx" for pair in (direction, direction.reverse)]
        if not any((folder / name).is_file() for name in names for folder in folders):
            raise UserError(
                f"the direction {direction} has no {split} data in {data}; "
                f"binarize it with fairseq-preprocess or take it out of --lang-pairs."
            )
