"""Decoding the sentences of many directions together, longest first."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.data import ConcatDataset, Dictionary
from fairseq.data.data_utils import post_process
from fairseq.dataclass.configs import GenerationConfig
from fairseq.distributed.utils import get_global_rank
from torch import Tensor

from moe_nmt.data import Direction
from moe_nmt.distributed.groups import world_size
from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin.generator import longest_translation
from moe_nmt.fairseq_plugin.spreading import in_lock_step
from moe_nmt.fairseq_plugin.task import MultilingualTranslationMoETask

SPACE = "\u2581"  # SentencePiece writes it for a space
BYTES = re.compile(r"(?<!\S)<0x[0-9A-F]{2}>(?: <0x[0-9A-F]{2}>)*(?!\S)")


class TestSets(ConcatDataset):
    """The sentences of several directions, numbered through, one direction after the other; a batch may mix them."""

    def __init__(self, directions: Sequence[Direction], datasets: Sequence[Any]):
        super().__init__(datasets)
        self.directions = directions
        self.lengths = super().sizes

    @property
    def sizes(self) -> np.ndarray:
        """int64 [sentences, 2]: the tokens of source and target."""
        return self.lengths

    def __getitem__(self, index: int) -> dict[str, Any]:
        return super().__getitem__(index) | {"id": index}

    def place(self, index: int) -> tuple[Direction, int]:
        """The direction of a sentence, and its line there, from 0."""
        number, line = self._get_dataset_and_sample_index(index)
        return self.directions[number], line

    def by_direction(self, values: Sequence[str]) -> Iterator[Sequence[str]]:
        """The values of all sentences, cut into directions."""
        for end, length in zip(self.cumulative_sizes, self.real_sizes, strict=True):
            yield values[end - length : end]

    def own_batches(self, max_tokens: int, done: Collection[int] = ()) -> list[Sequence[int]]:
        """The batches of all sentences but those in `done`, longest first, that this rank has to do: it takes its turn,
        so that ranks have batches of about the same length at the same time."""
        order = self.ordered_indices()[::-1]
        waiting = order[~np.isin(order, list(done))]
        batches = self.batch_by_size(waiting, max_tokens=max_tokens) if len(waiting) else []
        return list(batches[get_global_rank() :: world_size()])

    def longest_translations(self, generator: Any, max_tokens: int) -> np.ndarray:
        """int64 [sentences]: how many tokens fairseq-generate allows each translation.

        It translates each direction alone, in batches of `max_tokens`, and goes by the longest source of a batch.
        """
        longest = np.zeros(len(self), dtype=np.int64)
        for end, dataset in zip(self.cumulative_sizes, self.datasets, strict=True):
            alone = ConcatDataset([dataset])
            sources = alone.sizes[:, 0]
            for batch in alone.batch_by_size(alone.ordered_indices(), max_tokens=max_tokens):
                indices = np.asarray(batch)
                longest[end - len(dataset) + indices] = longest_translation(generator, int(sources[indices].max()))
        return longest


def load_test_sets(
    task: MultilingualTranslationMoETask, model: Any, split: str, directions: Sequence[Direction], max_tokens: int
) -> TestSets:
    """The data of a split of these directions.

    Raises:
        UserError: for a sentence that is longer than the model or a batch of `max_tokens` allows.
    """
    task.data_manager.lang_pairs = [str(direction) for direction in directions]
    loaded, _ = task.data_manager.load_split_datasets(split, training=False)
    sets = TestSets(directions, [dataset for _, dataset in loaded])
    check_lengths(sets, utils.resolve_max_positions(task.max_positions(), model.max_positions()), max_tokens)
    return sets


def decode(
    task: MultilingualTranslationMoETask,
    model: Any,
    sets: TestSets,
    search: GenerationConfig,
    max_tokens: int,
    done: Collection[int] = (),
) -> Iterator[dict[int, str]]:
    """Translate the batches of this rank, which together with those of the others have all sentences but those in
    `done`; yields the translations of one batch after the other, by number.

    They are those that `fairseq-generate` finds for each direction with batches of `max_tokens`: each has the limit on
    its length that it has there, and only what rounds differently in batches of other shapes can differ. (With a
    capacity limit in evaluation, what experts drop depends on the batch by design.) Where experts are spread over
    ranks, all must go on to the end.

    Raises:
        UserError: for scores that are not finite.
    """
    first = sets.directions[0]
    task.args.source_lang, task.args.target_lang = first.source, first.target  # fairseq's generator asks for one
    generator = task.build_generator([model], search)
    longest = sets.longest_translations(generator, max_tokens)
    device = next(model.parameters()).device
    tags = target_tags(task, sets.directions)
    detokenize = Detokenizer(task.target_dictionary)
    with in_lock_step([model]):
        for batch in sets.own_batches(max_tokens, done):
            sample = sets.collater([sets[index] for index in batch])
            numbers = sample["id"].tolist()
            targets = sample["net_input"]["target_language"]
            prefixes = None if tags is None else tags[targets][:, None]
            sample["max_lengths"] = longest[numbers].tolist()
            if device.type == "cuda":
                sample = utils.move_to_cuda(sample, device)
                prefixes = None if prefixes is None else prefixes.to(device)
            found = task.inference_step(generator, [model], sample, prefix_tokens=prefixes)
            own_tags = [set()] * len(numbers) if tags is None else [{tag} for tag in tags[targets].tolist()]
            yield {
                number: detokenize(best(hypotheses, sets, number), tag)
                for number, hypotheses, tag in zip(numbers, found, own_tags, strict=True)
            }


def best(hypotheses: list[dict[str, Any]], sets: TestSets, number: int) -> list[int]:
    """The tokens of the best hypothesis of a sentence."""
    if not hypotheses:
        direction, line = sets.place(number)
        raise UserError(
            f"the model has no finite score for line {line + 1} of {direction}; it has diverged, "
            "or needs more than half precision."
        )
    tokens: list[int] = hypotheses[0]["tokens"].tolist()
    return tokens


def target_tags(task: MultilingualTranslationMoETask, directions: Sequence[Direction]) -> Tensor | None:
    """int64 [L]: the tag that translations into each target language begin with; None for a task without such tags."""
    _, spec = task.args.langtoks["main"]
    if not spec:
        return None
    tags = torch.zeros(len(task.langs), dtype=torch.int64)
    for language in {direction.target for direction in directions}:
        tags[task.langs.index(language)] = task.data_manager.get_decoder_langtok(language, spec)
    return tags


def check_lengths(sets: TestSets, limits: tuple[int, int], max_tokens: int) -> None:
    """Raise a `UserError` for a sentence pair that has more tokens than the model has positions, or a batch room."""
    too_long = np.flatnonzero((sets.sizes > np.asarray(limits)).any(1))
    if len(too_long):
        direction, line = sets.place(int(too_long[0]))
        raise UserError(
            f"line {line + 1} of {direction} has more tokens than the model takes ({limits[0]} in the source, "
            f"{limits[1]} in the target); shorten it, or leave the direction out with --directions."
        )
    longest = int(sets.sizes.max())
    if longest > max_tokens:
        direction, _ = sets.place(int(sets.sizes.max(1).argmax()))
        raise UserError(f"{direction} has a sentence of {longest} tokens; raise --max-tokens {max_tokens} to that.")


class Detokenizer:
    """Turns tokens of a dictionary into text: pieces of SentencePiece, or of BPE with `@@ `, as its symbols show."""

    def __init__(self, dictionary: Dictionary):
        self.dictionary = dictionary
        symbols = dictionary.symbols
        if any(symbol.startswith(SPACE) for symbol in symbols):
            self.pieces: str | None = "sentencepiece"
        else:
            self.pieces = "@@ " if any(symbol.endswith("@@") for symbol in symbols) else None
        self.has_bytes = self.pieces == "sentencepiece" and "<0x00>" in dictionary

    def __call__(self, tokens: Sequence[int], ignored: Collection[int] = ()) -> str:
        """The text without the symbols in `ignored`, on one line."""
        text: str = self.dictionary.string(tokens, extra_symbols_to_ignore=ignored)
        if self.has_bytes:
            text = BYTES.sub(lambda run: from_bytes(run.group()), text)
        return str(post_process(text, self.pieces))


def from_bytes(run: str) -> str:
    """`<0xC3> <0xA4>` -> `ä`; what is not UTF-8 becomes U+FFFD, as SentencePiece has it."""
    text = bytes(int(piece[3:5], 16) for piece in run.split()).decode("utf-8", "replace")
    return text.replace(" ", SPACE).replace("\n", SPACE)
