"""The task `multilingual_translation_moe`."""

from __future__ import annotations

import argparse
import functools
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from fairseq import metrics, utils
from fairseq.data import FairseqDataset, SampledMultiEpochDataset
from fairseq.distributed.utils import get_global_rank
from fairseq.tasks import register_task
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from torch import Tensor

from moe_nmt.data import Direction, parse_directions
from moe_nmt.data.directions import unknown
from moe_nmt.errors import UserError
from moe_nmt.evaluation.cli import add_threshold_arguments
from moe_nmt.evaluation.results import Thresholds
from moe_nmt.evaluation.scalars import write_directions
from moe_nmt.fairseq_plugin import reporting
from moe_nmt.fairseq_plugin.criterion import MoELabelSmoothedCrossEntropyCriterion
from moe_nmt.fairseq_plugin.data_folders import (
    check_data,
    check_virtual_epochs,
    named_texts,
    settle_extra_data,
    with_shards,
)
from moe_nmt.fairseq_plugin.dataset import CurriculumBatches, DirectionDataManager, DirectionDataset
from moe_nmt.fairseq_plugin.generator import BeamSearchGenerator
from moe_nmt.fairseq_plugin.launch import DEFAULT_TIMEOUT
from moe_nmt.fairseq_plugin.model import TransformerMoEModel
from moe_nmt.fairseq_plugin.spreading import serve
from moe_nmt.fairseq_plugin.trainer import use_trainer
from moe_nmt.training.curriculum import Curriculum
from moe_nmt.training.expert_adam import mark_stacked
from moe_nmt.training.freezing import FREEZING, describe_trained

logger = logging.getLogger(__name__)


@register_task("multilingual_translation_moe")
class MultilingualTranslationMoETask(TranslationMultiSimpleEpochTask):
    """fairseq's `translation_multi_simple_epoch` (language tags, temperature sampling) for sparse models.

    Batches carry the languages of their sentences, validation reports every direction, and mistakes in languages,
    directions or data are found before training starts. With `--curriculum-phases` directions join one after the other.
    """

    curriculum: Curriculum | None = None
    phase = 0
    """The phase of the curriculum that the loaded training data are of, from 1."""
    shard_epoch = 0
    """The pass over the shards that the loaded training data are of, from 1."""

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        TranslationMultiSimpleEpochTask.add_args(parser)
        parser.add_argument(
            "--curriculum-phases",
            metavar="FILE",
            help="train a direction only from the update on that stands beside it in this table, which moe-nmt "
            "curriculum writes; all are validated from the beginning",
        )
        parser.add_argument(
            "--freezing",
            metavar="RECIPE",
            help="which parameters are trained, for example train_only(parts=[adapters]) (default: all)",
        )
        parser.add_argument(
            "--moe-timeout",
            type=float,
            default=DEFAULT_TIMEOUT,
            metavar="SECONDS",
            help="how long a process waits for the others before all end (default: %(default)g)",
        )
        parser.add_argument(
            "--moe-sharded-checkpoints",
            action="store_true",
            help="every process writes its own experts, to a folder beside the checkpoint; any number can read them",
        )
        add_threshold_arguments(parser)
        for action in parser._actions:
            if action.dest in ("extra_data", "extra_lang_pairs"):
                action.type = named_texts

    @classmethod
    def setup_task(cls, args: argparse.Namespace, **kwargs: Any) -> MultilingualTranslationMoETask:
        """Raises:
        UserError: for an unknown language, a malformed direction, a direction without data, missing dictionaries, or
            a curriculum that is not of these directions.
        """
        args.data = with_shards(args.data)
        directions = check_arguments(args)
        if kwargs.get("from_checkpoint") or args.source_lang or args.target_lang:
            args.extra_data = args.extra_lang_pairs = None
        else:
            settle_extra_data(args, directions)
            check_virtual_epochs(args)
        args.left_pad_source = str(
            args.left_pad_source
        )  # fairseq reads text here, and True, out of a checkpoint, as no
        task: MultilingualTranslationMoETask = super().setup_task(args, **kwargs)
        if getattr(args, "curriculum_phases", None) and not kwargs.get("from_checkpoint"):
            task.curriculum = read_curriculum(Path(args.curriculum_phases), task.directions)
        return task

    def __init__(self, args: argparse.Namespace, langs: list[str], dicts: dict[str, Any], training: bool):
        super().__init__(args, langs, dicts, training)
        self.directions = [Direction.parse(pair) for pair in self.lang_pairs]
        self.thresholds = thresholds(args)
        self.data_manager = DirectionDataManager(args, self.lang_pairs, langs, dicts, self.sampling_method)

    def build_model(self, args: argparse.Namespace, from_checkpoint: bool = False) -> Any:
        """fairseq's model, with stacked weights marked for the optimizer, and frozen by `--freezing`.

        Raises:
            UserError: for a model that does not take languages, or a recipe that does not fit it.
        """
        use_trainer()
        model = super().build_model(args, from_checkpoint)
        if not isinstance(model, TransformerMoEModel):
            raise UserError(
                f"--arch {args.arch} does not take the languages that the task multilingual_translation_moe hands it; "
                "use a transformer_moe or transformer_adapter, or --task translation_multi_simple_epoch."
            )
        mark_stacked(model)
        recipe = getattr(self.args, "freezing", None)
        if recipe and not from_checkpoint:
            freezing = FREEZING.build(recipe)
            try:
                model.freeze(freezing)
            except UserError as error:
                raise UserError(f"--freezing {recipe}: {error}") from None
            logger.info(f"--freezing {recipe}: {describe_trained(model)}")
        return model

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        """Load a split once; only training data of another shard, or of an earlier phase, are loaded again.

        Raises:
            UserError: if a direction has no data in this split.
        """
        if self.curriculum and split == self.args.train_subset:
            self.enter_phase(self.curriculum, updates_done())
        if self.data_manager.has_sharded_data(split):
            shard_epoch = self.data_manager.estimate_global_pass_epoch(epoch) or epoch
            if shard_epoch != self.shard_epoch:
                self.shard_epoch = shard_epoch
                self.datasets.pop(split, None)
        if split in self.datasets:
            return
        extra = self.data_manager.extra_lang_pairs if split == self.args.train_subset else []
        check_data(self.args.data, split, [d for d in self.directions if str(d) not in extra])
        super().load_dataset(split, epoch, combine, **kwargs)
        if isinstance(self.datasets[split], SampledMultiEpochDataset):
            begin_at_virtual_epoch(self.datasets[split], epoch)

    def enter_phase(self, curriculum: Curriculum, update: int) -> None:
        """Announce the phase that holds after `update` updates, and drop training data of another."""
        if self.phase != curriculum.phase(update):
            self.phase = curriculum.phase(update)
            self.datasets.pop(self.args.train_subset, None)
            phase = curriculum.phases[self.phase - 1]
            self.data_manager.waiting = curriculum.start.keys() - set(phase.active)
            logger.info(
                f"curriculum: phase {self.phase} of {len(curriculum.phases)} from update {phase.start}: "
                f"{len(phase.new)} new directions: {', '.join(map(str, phase.new))}"
            )

    def has_sharded_data(self, split: str) -> bool:
        """Whether training data are asked for at every epoch: if they are shards, or change with a curriculum."""
        return self.curriculum is not None or super().has_sharded_data(split)

    def get_batch_iterator(self, dataset: FairseqDataset, *args: Any, **kwargs: Any) -> Any:
        """fairseq's iterator. Of held-out data every sentence is kept: with `--required-batch-size-multiple` above 1
        (8 unless set) fairseq drops what is left over for the last batch, from test sets too."""
        training = dataset is self.datasets.get(getattr(self.args, "train_subset", None))
        if not training:
            kwargs["required_batch_size_multiple"] = 1
        batches = super().get_batch_iterator(dataset, *args, **kwargs)
        if training and self.curriculum:
            return CurriculumBatches(
                batches, kwargs["epoch"], self.curriculum, updates_done(), update_freq=self.args.update_freq
            )
        return batches

    def build_dataset_for_inference(
        self, src_tokens: list[Tensor], src_lengths: list[int], constraints: Any = None
    ) -> FairseqDataset:
        dataset = super().build_dataset_for_inference(src_tokens, src_lengths, constraints)
        languages = (self.langs.index(lang) for lang in (self.args.source_lang, self.args.target_lang))
        return DirectionDataset(dataset, *languages)

    def inference_step(self, generator: Any, models: Any, sample: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """fairseq's, for a batch that says its languages: fairseq-interactive leaves them out."""
        net_input = sample["net_input"]
        if "source_language" not in net_input:
            sentences = net_input["src_tokens"].new_ones(net_input["src_tokens"].shape[0])
            sides = {"source_language": self.args.source_lang, "target_language": self.args.target_lang}
            languages = {name: sentences * self.langs.index(language) for name, language in sides.items()}
            sample = sample | {"net_input": net_input | languages}
        return super().inference_step(generator, models, sample, *args, **kwargs)

    def build_generator(self, *args: Any, **kwargs: Any) -> Any:
        generator = super().build_generator(*args, **kwargs)
        return BeamSearchGenerator(generator) if BeamSearchGenerator.covers(generator) else generator

    def train_step(
        self, sample: Any, model: Any, criterion: Any, optimizer: Any, update_num: int, ignore_grad: bool = False
    ) -> Any:
        """fairseq's; with `ignore_grad`, a batch that fills up the last update of an epoch, nothing is counted."""
        if isinstance(criterion, MoELabelSmoothedCrossEntropyCriterion):
            criterion.set_num_updates(update_num)
        if ignore_grad:
            sample = sample | {"ignored": True}
        loss, size, log = super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
        return (loss, 0 * size, {name: 0 * value for name, value in log.items()}) if ignore_grad else (loss, size, log)

    def valid_step(self, sample: Any, model: Any, criterion: Any, **kwargs: Any) -> Any:
        """fairseq's; a rank that has run out of batches, to which fairseq-validate hands empty ones, serves others."""
        if sample:
            return super().valid_step(sample, model, criterion, **kwargs)
        for stack in (model.encoder, model.decoder):
            serve(stack)
        return 0.0, 0, dict.fromkeys(("loss", "nll_loss", "ntokens", "nsentences", "sample_size"), 0)

    def begin_epoch(self, epoch: int, model: Any) -> None:
        """At the start of a training, write the table of its directions to TensorBoard, by one process."""
        super().begin_epoch(epoch, model)
        if self.args.tensorboard_logdir and get_global_rank() == 0:
            table = write_directions(self.training_pairs, self.buckets)
            reporting.write_to_tensorboard(self.args.tensorboard_logdir, table)

    def direction_index(self) -> Tensor:
        """int64 [L, L]: the place of direction (source language, target language) in `lang_pairs`, -1 if not there."""
        table = torch.full((len(self.langs), len(self.langs)), -1)
        for index, direction in enumerate(self.directions):
            table[self.langs.index(direction.source), self.langs.index(direction.target)] = index
        return table

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """fairseq's metrics, and losses of directions and resource buckets where the criterion reports them.

        In training also the memory, and by a curriculum also its phase, and how many directions are active.
        """
        super().reduce_metrics(logging_outputs, criterion)
        if self.curriculum and criterion.training:
            metrics.log_scalar("curriculum_phase", self.phase, weight=0, priority=1002)
            active = self.curriculum.phases[self.phase - 1].active
            metrics.log_scalar("curriculum_directions", len(active), weight=0, priority=1003)
        by_direction = [log for log in logging_outputs if "direction_nll" in log]
        if by_direction:
            reporting.log_directions(self.lang_pairs, by_direction)
            reporting.log_buckets(self.buckets)
            if criterion.training:
                reporting.log_memory()

    @functools.cached_property
    def training_pairs(self) -> dict[Direction, int]:
        """The binarized training pairs of each direction, of all shards and phases; without those of unknown number."""
        return reporting.training_pairs(utils.split_paths(self.args.data), self.args.train_subset, self.directions)

    @functools.cached_property
    def buckets(self) -> dict[Direction, str]:
        """The resource bucket of each of the `training_pairs`."""
        return {direction: self.thresholds.bucket(count) for direction, count in self.training_pairs.items()}


def thresholds(args: argparse.Namespace) -> Thresholds:
    """The thresholds of the resource buckets, the defaults where a checkpoint was written before it had them."""
    names = [field.name for field in fields(Thresholds)]
    return Thresholds(**{name: getattr(args, name) for name in names if hasattr(args, name)})


def updates_done() -> int:
    """The updates that the trainer has done, also when it has just resumed; not for use in validation.

    fairseq tells it to a task only with the first batch, which is too late to choose the data; but it always logs it.
    (Not to be had from `metrics.get_meter`, which stands still after a checkpoint was loaded.)
    """
    default = metrics.get_active_aggregators()[0]
    return int(default["num_updates"].val) if "num_updates" in default else 0


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


def check_arguments(args: argparse.Namespace) -> list[Direction]:
    """The directions; a `UserError` for the first mistake in languages and directions."""
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
    return directions


def read_curriculum(path: Path, directions: list[Direction]) -> Curriculum:
    """Read a curriculum; a `UserError` unless it has a row for each of the directions and no others."""
    curriculum = Curriculum.read(path)
    for direction in curriculum.start:
        if direction not in directions:
            raise unknown("direction", str(direction), [str(d) for d in directions], f"--lang-pairs, unlike {path},")
    for direction in directions:
        if direction not in curriculum.start:
            raise UserError(f"{path} has no row for {direction} of --lang-pairs; write the update it starts at.")
    return curriculum


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
