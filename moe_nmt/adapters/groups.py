"""Which sentences of a batch have which adapter.

Shape letters: B sentences, R rows, A adapted sentences or rows, G groups (sets of sentences with the same adapter), L
languages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from moe_nmt.errors import UserError, suggest

NONE = -1
"""The group of a sentence without an adapter."""


@dataclass(frozen=True)
class SentenceGroups:
    """The adapted sentences of a batch, sorted by group.

    `sentence_A`: int64, their places in the batch; None: the sentences are all of one group. `group_A`: the group of
    each (of one of them, if `sentence_A` is None). `sentences`: B.
    """

    sentence_A: Tensor | None
    group_A: list[int]
    sentences: int
    _rows: dict[int, tuple[Tensor | None, Tensor]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def present(self) -> list[int]:
        """The groups that occur, in order."""
        return sorted(set(self.group_A))

    def renumbered(self) -> SentenceGroups:
        """The same with the groups that occur numbered from 0."""
        number = {group: index for index, group in enumerate(self.present)}
        return replace(self, group_A=[number[group] for group in self.group_A], _rows={})

    def rows(self, rows: int, device: torch.device) -> tuple[Tensor | None, Tensor]:
        """`sentence_A` and `group_A` (int64) for the rows of activations, which hold each sentence `rows` / B times.

        Found once for all layers.
        """
        if rows not in self._rows:
            each = rows // self.sentences
            row_A, group_A = self.sentence_A, torch.tensor(self.group_A, device=device)
            if row_A is not None and each > 1:
                row_A = (row_A[:, None] * each + torch.arange(each, device=device)).flatten()
                group_A = group_A.repeat_interleave(each)
            self._rows[rows] = row_A, group_A
        return self._rows[rows]


def group_table(languages: int, group_of: Callable[[int, int], int]) -> Tensor:
    """int64 [L, L]: the group of every (source, target), or `NONE`."""
    return torch.tensor([[group_of(source, target) for target in range(languages)] for source in range(languages)])


def group_sentences(table_LL: Tensor, source_language_B: Tensor, target_language_B: Tensor) -> SentenceGroups | None:
    """Group the sentences of a batch; None if none has an adapter."""
    group_B = table_LL[source_language_B, target_language_B].tolist()
    first = group_B[0]
    if all(group == first for group in group_B):
        return None if first == NONE else SentenceGroups(None, [first], len(group_B))
    order = sorted((place for place, group in enumerate(group_B) if group != NONE), key=lambda place: group_B[place])
    sentence_A = torch.tensor(order, device=source_language_B.device)
    return SentenceGroups(sentence_A, [group_B[place] for place in order], len(group_B))


def chosen_languages(chosen: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """The languages that an option names, or all that are known.

    Raises:
        UserError: for one that is not known, or is named twice, or if there is none.
    """
    if not known:
        raise UserError("the model knows no languages to adapt to; use the task multilingual_translation_moe.")
    if chosen is not None and not chosen:
        raise UserError("languages is an empty list; name some, or leave it out for all.")
    for language in chosen or ():
        if language not in known:
            raise UserError(f"no language is called '{language}'{suggest(language, known)}")
        if chosen is not None and list(chosen).count(language) > 1:
            raise UserError(f"the language '{language}' is named twice; name it once.")
    return list(known if chosen is None else chosen)
