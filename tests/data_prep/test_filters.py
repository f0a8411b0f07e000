"""Every filter on hand-made pairs, and on random text against a slow form of it in plain Python."""

import random
import unicodedata

import polars as pl
import pytest

from data_prep.filters import FILTERS, SIDES, Criterion, Duplicates, Edit
from data_prep.filters.leaks import keys
from data_prep.filters.repeated_characters import longest_runs
from moe_nmt.registry import RegistryError

LANGUAGES = {"source": "eng_Latn", "target": "rus_Cyrl"}
ALPHABET = "abcXYZäß éjж中あ한ا०१12.,!?-—\t\u00a0\u2028\u200b\u200c\u200d\ufeff\u00ad\u202e\x00\x1f\x85\ufffd\ue000ﬁＡ"


def frame(pairs):
    return pl.DataFrame(pairs, schema={side: pl.String for side in SIDES}, orient="row")


def built(spec, **supplied):
    return FILTERS.build(spec, **{**LANGUAGES, **supplied})


def edited(spec, text):
    return frame([(text, text)]).select(built(spec).edit(pl.col("source"))).item()


def kept(spec, pairs, **supplied):
    """Which of the pairs a criterion keeps."""
    return frame(pairs).with_columns(kept=built(spec, **supplied).keep())["kept"].to_list()


def keep(spec, first, second, **supplied):
    return kept(spec, [(first, second)], **supplied)[0]


def texts(number, seed=0, longest=30):
    rng = random.Random(seed)
    return ["".join(rng.choice(ALPHABET) for _ in range(rng.randint(1, longest))) for _ in range(number)]


def random_pairs(number=400, **options):
    return list(zip(texts(number, 1, **options), texts(number, 2, **options), strict=True))


def slow_fold(text):
    folded = unicodedata.normalize("NFKC", text).lower()
    folded = "".join(char for char in folded if unicodedata.category(char)[0] in "LMN")
    return folded or text


def test_every_filter_is_one_of_three_kinds_and_says_what_it_does():
    for entry in FILTERS.entries().values():
        assert issubclass(entry.part, (Edit, Criterion, Duplicates)), entry.name
        assert entry.summary.endswith(".")


@pytest.mark.parametrize("form", ["NFC", "NFKC", "NFD", "NFKD"])
def test_normalise_is_unicodes_form_and_one_space(form):
    for text in texts(300):
        # Python's split also takes \x1c to \x1f for spaces, Unicode does not
        words = unicodedata.normalize(form, text).replace("\x1f", "\ue001").split()
        assert edited(f"normalise(form={form})", text) == " ".join(words).replace("\ue001", "\x1f")
    assert edited("normalise", " e\u0301\u3000 a\r") == "é a"


def test_control_characters_leave_what_scripts_write_with():
    assert edited("control_characters", "a\x00b\u200bc\u00add\ufeff\u202ee") == "abcde"
    assert edited("control_characters", "می\u200cخواهم क्\u200dष") == "می\u200cخواهم क्\u200dष"
    assert edited("control_characters", "\ta\tb\x85c ") == "a b c"
    for text in texts(300):
        assert not any(unicodedata.category(char) == "Cc" for char in edited("control_characters", text))


@pytest.mark.parametrize(
    ("text", "stays"), [("plain", True), ("a\ufffdb", False), ("\ue000", False), ("\u0378", False)]
)
def test_damaged(text, stays):
    assert keep("damaged", text, "fine") == keep("damaged", "fine", text) == stays


def test_length_counts_words_and_characters_of_both_sides():
    assert keep("length(max_words=3)", "one two three", "один") and not keep("length(max_words=3)", "a b c d", "а")
    assert not keep("length(min_words=2)", "one two", "один") and keep("length(min_words=1)", "a", "а")
    assert keep("length(max_chars=4)", "жжжж", "中中中中") and not keep("length(max_chars=4)", "жжжжж", "a")
    assert not keep("length(min_chars=2)", "a", "ab")
    with pytest.raises(RegistryError, match="limits nothing"):
        built("length(max_words=None, max_chars=None)")
    pairs = random_pairs()
    slow = [all(2 <= len(side) <= 20 and side.count(" ") + 1 <= 2 for side in pair) for pair in pairs]
    assert kept("length(min_chars=2, max_chars=20, max_words=2)", pairs) == slow
    assert 0 < sum(slow) < len(slow)


def test_ratio_has_a_slack_for_short_pairs():
    assert keep("ratio(max=2, slack=3)", "a" * 10, "b" * 23) and not keep("ratio(max=2, slack=3)", "a" * 10, "b" * 24)
    assert not keep("ratio(max=2, slack=3)", "b" * 24, "a" * 10)
    chinese = {"source": "eng_Latn", "target": "zho_Hans"}
    assert keep("ratio(max=2, slack=0)", "a" * 56, "中" * 10, **chinese)
    assert not keep("ratio(max=2, slack=0)", "a" * 57, "中" * 10, **chinese)
    assert not keep("ratio(max=2, slack=0)", "a" * 13, "中" * 10, **chinese)
    assert keep("ratio(max=1, slack=0, unit=words)", "a b", "longerwords thanthese")
    assert not keep("ratio(max=1, slack=0, unit=words)", "a b", "a b c")
    with pytest.raises(RegistryError, match="would drop every pair"):
        built("ratio(max=0.5)")


def test_letters_are_a_share_of_what_is_not_space():
    assert keep("letters(min=0.5)", "ab 12", "жж") and not keep("letters(min=0.5)", "ab 123", "жж")
    assert keep("letters(min=1.0)", "नमस्ते दुनिया", "ж"), "marks are part of letters"
    assert not keep("letters", "http://1.2.3.4/5/6", "жж")
    pairs = [pair for pair in random_pairs() if all(side.replace(" ", "") for side in pair)]

    def share(text):
        seen = [char for char in text if char != " "]
        return sum(unicodedata.category(char)[0] in "LM" for char in seen) / len(seen)

    assert kept("letters(min=0.35)", pairs) == [all(share(side) >= 0.35 for side in pair) for pair in pairs]


@pytest.mark.parametrize(
    ("language", "text", "stays"),
    [
        ("rus_Cyrl", "по-русски 2024", True),
        ("rus_Cyrl", "not in Russian", False),
        ("rus", "по-русски", True),
        ("rus_Cyrl", "2024 — 12 %", True),
        ("zho_Hans", "中文 NATO", False),
        ("zho_Hans", "中文句子里 NATO", True),
        ("jpn_Jpan", "これは漢字とカタカナ", True),
        ("kor_Hang", "한국어", True),
        ("srp_Cyrl", "srpski", False),
        ("srp_Latn", "srpski", True),
        ("hin_Deva", "नमस्ते", True),
        ("nocode", "не важно какое", True),
    ],
)
def test_script_is_that_of_the_language(language, text, stays):
    for place in (0, 1):
        pair = {SIDES[place]: text, SIDES[1 - place]: "in English"}
        codes = {SIDES[place]: language, SIDES[1 - place]: "eng_Latn"}
        pairs = pl.DataFrame(pair)
        assert pairs.select(FILTERS.build("script", **codes).keep()).item() == stays


def test_script_takes_a_share():
    assert keep("script(min=0.5)", "abab", "абвг abcd") and not keep("script(min=0.6)", "abab", "абвг abcd")


def test_repeated_characters_against_a_loop():
    def slow(text):
        longest = run = 0
        for place, char in enumerate(text):
            run = run + 1 if place and char == text[place - 1] else 1
            longest = max(longest, run)
        return longest

    rng = random.Random(3)
    lines = ["".join(rng.choice("ab中😀") * rng.randint(1, 4) for _ in range(rng.randint(0, 6))) for _ in range(500)]
    lines += ["", "a", "", "aa"]
    assert longest_runs(pl.Series(lines)).tolist() == [slow(line) for line in lines]
    assert longest_runs(pl.Series([], dtype=pl.String)).tolist() == []
    assert keep("repeated_characters(max=3)", "a...", "б") and not keep("repeated_characters(max=3)", "a", "б....")


def test_identical_looks_at_letters_and_digits_only():
    assert not keep("identical", "Hello, World!", "hello world")
    assert keep("identical", "Hello", "Hallo")
    assert not keep("identical", "...", "...") and keep("identical", "...", "!!!")
    assert not keep("identical", "１２", "12"), "compatible characters are one"


def test_language_id_tells_the_languages_of_the_corpus_apart():
    pytest.importorskip("py3langid")
    english, german = "This is a sentence in the English language.", "Das ist ein Satz in deutscher Sprache."
    languages = {"source": "eng_Latn", "target": "deu_Latn", "languages": ("eng_Latn", "deu_Latn", "cop_Copt")}
    pairs = [
        (english, german),
        (english, english),
        (german, german),
        ("Der Satz", "no"),
        ("123 456 789 101 112 131", german),
    ]
    assert kept("language_id", pairs, **languages) == [True, False, False, True, True]
    assert kept("language_id(min_chars=5)", pairs, **languages) == [True, False, False, False, True]
    unknown = {**languages, "target": "cop_Copt"}
    assert kept("language_id", [(english, english), (german, english)], **unknown) == [True, False]


def test_leaks_are_found_on_any_side_and_in_any_writing(tmp_path):
    held_out = tmp_path / "chunk.parquet"
    frame([("The end.", "Конец."), ("?!", "Да")]).write_parquet(held_out)
    keys([held_out]).write_parquet(tmp_path / "keys.parquet")
    pairs = {
        ("The end.", "other"): False,
        ("other", "the END"): False,
        ("КОНЕЦ", "Ende"): False,
        ("да", "ja"): False,
        ("?!", "ja"): False,
        ("!?", "ja"): True,
        ("The ending.", "Конец света"): True,
    }
    assert kept("leaks", list(pairs), held_out=tmp_path / "keys.parquet") == list(pairs.values())


def test_without_held_out_sentences_nothing_leaks(tmp_path):
    keys([]).write_parquet(tmp_path / "keys.parquet")
    assert keep("leaks", "a", "б", held_out=tmp_path / "keys.parquet")


@pytest.mark.parametrize(
    ("spec", "same", "different"),
    [
        ("exact_duplicates", [("a", "b"), ("a", "b")], [("a", "b"), ("A", "b"), ("a", "c"), ("ab", ""), ("", "ab")]),
        ("exact_duplicates(of=source)", [("a", "b"), ("a", "c")], [("a", "b"), ("b", "b")]),
        ("exact_duplicates(of=target)", [("a", "b"), ("c", "b")], [("a", "b"), ("a", "c")]),
        ("near_duplicates", [("A b!", "c"), ("ab", "C.")], [("ab", "c"), ("ab1", "c"), ("ab2", "c"), ("é", "c")]),
        ("near_duplicates(numbers=False)", [("a 1", "c"), ("A 23", "c 5")], [("a", "c"), ("b", "c"), ("1", "c")]),
    ],
)
def test_keys_of_duplicates(spec, same, different):
    def keys_of(pairs):
        return frame(pairs).select(built(spec).key()).to_series().to_list()

    assert len(set(keys_of(same))) == 1
    assert len(set(keys_of(different))) == len(different)


def test_near_duplicates_are_equal_once_folded():
    pairs = random_pairs(2000, longest=2)
    found = frame(pairs).select(built("near_duplicates").key()).to_series().to_list()
    slow = [tuple(map(slow_fold, pair)) for pair in pairs]
    assert len(set(slow)) == len(set(found)) == len(set(zip(slow, found, strict=True))) < len(pairs)
