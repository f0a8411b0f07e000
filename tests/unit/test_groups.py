"""Which sentences have which adapter.

Shape letters: B sentences, L languages.
"""

import pytest
import torch

from moe_nmt.adapters.groups import NONE, SentenceGroups, chosen_languages, group_sentences, group_table
from moe_nmt.errors import UserError


def grouped(groups_B):
    """The groups of a batch in which sentence i is of language i, with this group."""
    table_LL = group_table(len(groups_B), lambda source, target: groups_B[source])
    language_B = torch.arange(len(groups_B))
    return group_sentences(table_LL, language_B, language_B)


def test_the_table_is_read_by_source_and_target():
    table_LL = group_table(3, lambda source, target: 10 * source + target)
    assert table_LL.dtype == torch.int64
    assert table_LL.tolist() == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]
    groups = group_sentences(table_LL, torch.tensor([2, 0]), torch.tensor([1, 2]))
    assert dict(zip(groups.sentence_A.tolist(), groups.group_A, strict=True)) == {0: 21, 1: 2}


@pytest.mark.parametrize("groups_B", [[2, 0, 1, 0, 2], [3, NONE, 1, 3], [NONE, 5], [0, 1]])
def test_adapted_sentences_are_sorted_by_group_and_then_by_place(groups_B):
    groups = grouped(groups_B)
    adapted = sorted((group, place) for place, group in enumerate(groups_B) if group != NONE)
    assert list(zip(groups.group_A, groups.sentence_A.tolist(), strict=True)) == adapted
    assert groups.sentences == len(groups_B)
    assert groups.present == sorted({group for group, _ in adapted})


def test_sentences_of_one_group_need_no_list():
    assert grouped([4, 4, 4]) == SentenceGroups(None, [4], 3)
    assert grouped([7]) == SentenceGroups(None, [7], 1)


def test_no_adapted_sentence_no_groups():
    assert grouped([NONE, NONE]) is None


def test_groups_are_numbered_anew_in_their_order():
    groups = grouped([9, 4, NONE, 7, 4]).renumbered()
    assert groups.group_A == [0, 0, 1, 2]
    assert groups.sentence_A.tolist() == [1, 4, 3, 0]
    assert grouped([8, 8]).renumbered() == SentenceGroups(None, [0], 2)


def test_the_hypotheses_of_a_sentence_lie_in_adjacent_rows():
    groups = grouped([1, NONE, 0])
    row_A, group_A = groups.rows(9, torch.device("cpu"))
    assert row_A.tolist() == [6, 7, 8, 0, 1, 2]
    assert group_A.tolist() == [0, 0, 0, 1, 1, 1]
    row_A, group_A = groups.rows(3, torch.device("cpu"))
    assert row_A is groups.sentence_A and group_A.tolist() == groups.group_A
    row_A, group_A = grouped([3, 3]).rows(8, torch.device("cpu"))
    assert row_A is None and group_A.tolist() == [3]


def test_the_chosen_languages_keep_the_order_of_who_chose():
    assert chosen_languages(["fra", "deu"], ["deu", "ell", "fra"]) == ["fra", "deu"]
    assert chosen_languages(None, ("deu", "ell")) == ["deu", "ell"]


@pytest.mark.parametrize(
    ("chosen", "known", "message"),
    [
        (["fre"], ["fra", "deu"], "no language is called 'fre'; did you mean 'fra'"),
        (["fra", "deu", "fra"], ["fra", "deu"], "the language 'fra' is named twice"),
        ([], ["fra"], "empty list"),
        (None, [], "the model knows no languages"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(chosen, known, message):
    with pytest.raises(UserError, match=message):
        chosen_languages(chosen, known)
