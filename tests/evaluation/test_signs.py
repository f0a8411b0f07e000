"""Signs of bad translations, one after the other by causing them."""

import pytest

from moe_nmt.data import Direction
from moe_nmt.data.language_id import LanguageIdentifier
from moe_nmt.evaluation.signs import find_signs, is_copy, is_repetitive, main_scripts

GERMAN = ["Das ist ein kleiner Satz.", "Heute regnet es nicht.", "Wir gehen morgen nach Hause.", "Er liest ein Buch."]
ENGLISH = ["This is a small sentence.", "It does not rain today.", "We will go home tomorrow.", "He reads a book."]
DIRECTION = Direction("eng", "deu")


def signs(hypotheses, references=GERMAN, sources=ENGLISH, identifier=None, direction=DIRECTION):
    return find_signs(direction, hypotheses, references, sources, identifier)


@pytest.fixture(scope="module")
def identifier():
    pytest.importorskip("py3langid")
    return LanguageIdentifier.open(None, ["eng", "deu"])


def test_good_translations_have_none(identifier):
    found = signs(GERMAN, identifier=identifier).known()
    assert found.pop("length_ratio") == 1
    assert set(found.values()) == {0}


def test_off_target(identifier):
    found = signs([*ENGLISH[:2], *GERMAN[2:]], identifier=identifier)
    assert (found.off_target, found.off_target_references) == (0.5, 0)


def test_off_target_counts_lines_with_letters_only(identifier):
    assert signs([ENGLISH[0], "12. 7.", "", GERMAN[3]], identifier=identifier).off_target == 0.5


def test_off_target_of_a_language_that_the_identifier_does_not_know():
    pytest.importorskip("py3langid")
    coptic = LanguageIdentifier.open(None, ["eng", "cop"])
    assert signs(GERMAN, identifier=coptic, direction=Direction("eng", "cop")).off_target is None


def test_off_target_where_the_identifier_takes_most_references_for_another_language(identifier):
    found = signs(GERMAN, references=ENGLISH, identifier=identifier)
    assert (found.off_target, found.off_target_references) == (None, None)


def test_without_an_identifier():
    assert "off_target" not in signs(ENGLISH).known()


def test_wrong_script():
    assert signs(["Это не немецкий.", "Das ist дас.", GERMAN[2], "123"]).wrong_script == 0.25


def test_scripts_of_the_references_are_allowed():
    japanese = ["これは本です。", "東京へ行きます。", "カメラ", "本"]
    assert main_scripts(japanese) == {"Hira", "Hani", "Kana"}
    assert signs(["本です", "カナ", "本", "book"], japanese, direction=Direction("eng", "jpn")).wrong_script == 0.25


def test_empty():
    assert signs(["", " \t", *GERMAN[2:]]).empty == 0.5


def test_copies_are_those_that_the_reference_does_not_make():
    assert is_copy("this  is a small sentence.", ENGLISH[0], GERMAN[0])
    assert not is_copy("Berlin", "Berlin", "Berlin")
    assert not is_copy("", "", "x")
    assert signs([ENGLISH[0], *GERMAN[1:]]).copies == 0.25
    assert signs(GERMAN, sources=None).copies is None


@pytest.mark.parametrize(
    ("hypothesis", "reference", "expected"),
    [
        ("a b c d a b c d", "a b c d", False),
        ("a b c d a b c d a b c d", "a b c d", True),
        ("a b c d a b c d a b c d", "a b c d a b c d", False),
        ("no no no no no no", "no", True),
        ("no no no no", "no", False),
        ("a b c", "", False),
    ],
)
def test_repetitions_of_words(hypothesis, reference, expected):
    assert is_repetitive(hypothesis, reference, in_words=True) == expected


def test_repetitions_of_characters_where_words_have_no_spaces():
    found = signs(["小测试的小测试的小测试的"], ["这是小测试的第一句。"], ["a"], direction=Direction("eng", "zho_Hans"))
    assert found.repetitive == 1


def test_length_ratio():
    assert signs([line + line for line in GERMAN]).length_ratio == 2
    assert signs([""], [""], [""]).length_ratio is None
