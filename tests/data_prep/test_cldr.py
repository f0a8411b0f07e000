"""The embedded corpus: real text in every language, nobody else's words in it, splits that share nothing."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import date, time, timedelta
from functools import cache
from importlib.metadata import version
from itertools import count
from pathlib import Path
from random import Random

import pytest
from babel import Locale, localedata
from babel.dates import format_date, format_time, format_timedelta
from babel.lists import format_list
from babel.units import format_unit

from data_prep.cldr import corpus
from data_prep.cldr.corpus import Generator, Settings, generate, parse_sizes
from data_prep.cldr.locales import LANGUAGES, Language, find_language
from data_prep.cldr.phrases import INVENTORIES, Inventory, Phrasebook
from data_prep.cldr.sentences import draw, render
from moe_nmt.data import SPLITS, Corpus, CorpusError

ROOT = Path(__file__).parents[2]
APRIL_24 = date(2024, 4, 24)
DAY = APRIL_24.toordinal()
THREE_DAYS = timedelta(days=3)
KINDS = (("ago", "day"), ("later", "day"), ("quantity", "duration-day"))
PROMISED = """
eng deu fra spa ita por nld swe dan pol ces rus ukr bul ell heb arb fas hin ben tam tel kat hye tha kor jpn zho_Hans
zho_Hant vie ind tur fin hun ron hrv lit lav est swh amh mya khm
"""
THREE = (("territory", "DE"), ("territory", "FR"), ("territory", "IT"))
STYLES = ("long", "full")
SIZES = {"deu": 300, "fas": 200, "zho_Hans": 60, "ben": 60}
SETTINGS = Settings(SIZES, valid=20, test=30, seed=3, inventory="small")


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


@cache
def contents_of(inventory: str, number: int) -> list[tuple]:
    rng, concepts = Random(7), INVENTORIES[inventory]()
    return [draw(rng, concepts) for _ in range(number)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    generate(SETTINGS, folder)
    return folder


@pytest.mark.parametrize(
    ("code", "content", "text"),
    [
        (
            "eng",
            ("and", ("territory", "IT"), ("territory", "US"), ("territory", "JP")),
            "Italy, United States, and Japan",
        ),
        ("eng", ("moment", ("date", DAY, "long"), ("time", 915)), "April 24, 2024, 3:15 PM"),
        ("deu", ("date", DAY, "full"), "Mittwoch, 24. April 2024"),
        ("fra", ("period", DAY, DAY + 2), "24–26 avr. 2024"),
        ("rus", ("quantity", 3, "length-kilometer"), "3 километра"),
        ("rus", ("quantity", 5, "length-kilometer"), "5 километров"),
        ("arb", ("quantity", 2, "duration-year"), "سنتان"),
        ("fas", ("money", 8200, "EUR"), "۸٬۲۰۰ یورو"),
        ("mar", ("percent", 48), "४८%"),
        ("jpn", ("quantity", 3, "duration-hour"), "3 時間"),
        ("kor", ("and", ("territory", "TR"), ("later", 5, "day")), "튀르키예 및 5일 후"),
        ("zho_Hans", ("detailed", ("language", "de"), ("territory", "AT")), "德语（奥地利）"),
        ("zho_Hant", ("territory", "IT"), "義大利"),
        ("ell", ("detailed", ("language", "de"), ("territory", "AT")), "Γερμανικά (Αυστρία)"),
        ("hun", ("later", 3, "week"), "3 hét múlva"),
        ("pol", ("ago", 5, "month"), "5 miesięcy temu"),
        ("srp_Latn", ("month", DAY), "april 2024."),
        ("tha", ("entry", ("territory", "TR"), ("percent", 5)), "ตุรกี: 5%"),
        ("spa", ("and", ("language", "fr"), ("language", "it")), "francés e italiano"),
        ("spa", ("or", ("quantity", 1, "mass-gram"), ("quantity", 8, "mass-gram")), "1 gramo u 8 gramos"),
        ("heb", ("and", ("territory", "IT"), ("territory", "US")), "איטליה וארצות הברית"),
        ("heb", ("and", ("quantity", 1, "mass-gram"), ("quantity", 8, "mass-gram")), "1 גרם ו-8 גרם"),
    ],
)
def test_known_sentences(code: str, content: tuple, text: str) -> None:
    assert render(content, Phrasebook(find_language(code))) == text


@pytest.mark.parametrize("inventory", INVENTORIES)
@pytest.mark.parametrize("code", LANGUAGES)
def test_text_is_in_its_own_language(code: str, inventory: str) -> None:
    """No key of CLDR, no placeholder, no pattern of the root locale; and the letters of the language's script."""
    language = find_language(code)
    book = Phrasebook(language)
    texts = [render(content, book) for content in contents_of(inventory, 300)]
    found = [text for text in texts if text]
    foreign = re.compile(
        r"[{}]|%[a-z(]|\bM\d\d\b|[+-]\d+ \w\b|\b(duration|length|mass|digital|speed|volume)-[a-z]|\bXX\b"
    )
    assert len(found) > 0.6 * len(texts)
    assert [text for text in found if foreign.search(text)] == []
    assert [text for text in found if not language.writes(text)] == []
    assert [text for text in found if text != " ".join(text.split())] == []


def test_there_are_many_languages_and_scripts() -> None:
    assert set(PROMISED.split()) <= set(LANGUAGES)
    assert len({language.script for language in LANGUAGES.values()}) >= 20


KINYARWANDA, NYNORSK = Language("kin", "rw", "Latn"), Language("nno", "nn", "Latn")
TATAR, XHOSA = Language("tat", "tt", "Cyrl"), Language("xho", "xh", "Latn")
HINDI_IN_LATIN = Language("hin_Latn", "hi_Latn", "Latn")


@pytest.mark.parametrize(
    ("language", "content", "from_babel", "borrowed"),
    [
        (TATAR, ("quantity", 3, "duration-day"), lambda: format_unit(3, "duration-day", locale="tt"), "3 duration-day"),
        (XHOSA, ("later", 3, "day"), lambda: format_timedelta(THREE_DAYS, add_direction=True, locale="xh"), "+3 d"),
        (KINYARWANDA, ("date", DAY, "long"), lambda: format_date(APRIL_24, "long", locale="rw"), "2024 Mata 24"),
        (NYNORSK, ("territory", "IT"), lambda: Locale("nn").territories["IT"], "Italia"),
        (HINDI_IN_LATIN, ("territory", "IT"), lambda: Locale.parse("hi_Latn").territories["IT"], "Italy"),
        (LANGUAGES["tgk"], ("and", *THREE), lambda: format_list("123", locale="tg"), "1, 2, 3"),
        (LANGUAGES["hin"], ("time", 540), lambda: format_time(time(9), "short", locale="hi"), "9:00 am"),
    ],
)
def test_what_babel_borrows_is_left_out(
    language: Language, content: tuple, from_babel: Callable, borrowed: str
) -> None:
    """From a key, from the root locale's units and order of words, from another language, in another script."""
    assert from_babel() == borrowed
    assert render(content, Phrasebook(language)) is None
    assert render(("entry", content, ("percent", 5)), Phrasebook(language)) is None


def test_looking_up_does_not_depend_on_what_babel_has_loaded_before() -> None:
    for name in ("xh", "tt", "root"):
        localedata.load(name)
    assert Phrasebook(XHOSA).phrase(("later", 3, "day")) is None
    assert Locale("xh").time_formats["short"].pattern == "HH:mm"


def test_layout(folder: Path) -> None:
    assert lines(folder / "languages.txt") == ["eng", *SIZES]
    rows = [f"{direction}\t{size}\t20\t30" for code, size in SIZES.items() for direction in directions(code)]
    assert lines(folder / "directions.tsv") == ["direction\ttrain\tvalid\ttest", *rows]
    for code, size in SIZES.items():
        for split, number in (("train", size), ("valid", 20), ("test", 30)):
            for side in ("eng", code):
                assert len(lines(folder / "raw" / f"{split}.eng-{code}.{side}")) == number
    assert not list(folder.rglob(".*"))
    assert Corpus.open(folder).languages == ("eng", *SIZES)


def directions(code: str) -> tuple[str, str]:
    return f"eng-{code}", f"{code}-eng"


def test_splits_share_no_sentence_in_any_language(folder: Path) -> None:
    used = {split: sentences_by_language(folder, split) for split in SPLITS}
    for language in ("eng", *SIZES):
        train, valid, test = (used[split][language] for split in SPLITS)
        assert not train & valid and not train & test and not valid & test


def sentences_by_language(folder: Path, split: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in folder.glob(f"raw/{split}.*"):
        found.setdefault(path.suffix[1:], set()).update(lines(path))
    return found


def test_no_sentence_occurs_twice_in_a_file(folder: Path) -> None:
    for path in folder.glob("raw/[tv]*.*"):
        assert max(Counter(lines(path)).values()) == 1, path.name


def test_valid_and_test_are_parallel_over_all_languages(folder: Path) -> None:
    for split in ("valid", "test"):
        german, persian = (lines(folder / "raw" / f"{split}.eng-{code}.eng") for code in ("deu", "fas"))
        bengali = lines(folder / "raw" / f"{split}.eng-ben.eng")
        assert german == persian
        assert len(set(german) & set(bengali)) > 0.6 * len(german)


def draw_one_of_300(rng: Random, inventory: Inventory) -> tuple:
    """A content out of few: 100 numbers of days, coming, gone or just counted."""
    kind, unit = rng.choice(KINDS)
    return kind, rng.randint(1, 100), unit


def test_no_held_out_content_is_trained_on_even_where_contents_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "draw", draw_one_of_300)
    generator = Generator(Settings({"deu": 190, "rus": 190}, valid=50, test=50, seed=1, inventory="small"))
    contents = [(kind, number, unit) for kind, unit in KINDS for number in range(1, 101)]
    held_out = generator.held_out()
    assert len(held_out.contents) == 100
    for code in ("deu", "rus"):
        content_of = {render(content, generator.books[code]): content for content in contents}
        trained = {content_of[other] for _, other in generator.training(code, held_out)}
        assert len(trained) == 190 and not trained & held_out.contents


def test_sentences_that_read_alike_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contents that differ but read the same in a language: the second is neither trained on nor held out there."""
    monkeypatch.setattr(corpus, "draw", lambda rng, inventory: ("date", DAY + rng.randint(0, 60), rng.choice(STYLES)))
    monkeypatch.setattr(Phrasebook, "_date", lambda book, ordinal, style: f"{ordinal} {style if english(book) else ''}")
    generator = Generator(Settings({"deu": 40}, valid=10, test=10, seed=1, inventory="small"))
    held_out = generator.held_out()
    kept = [other for _, other in generator.training("deu", held_out)]
    held = [other for pairs in held_out.pairs.values() for _, other in pairs]
    assert len(set(kept)) == 40 and len(set(held)) == 20 and not set(kept) & set(held)


def english(book: Phrasebook) -> bool:
    return book.language.code == "eng"


def test_an_exhausted_language_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "draw", draw_one_of_300)
    generator = Generator(Settings({"deu": 1000}, valid=5, test=5, seed=1, inventory="small"))
    with pytest.raises(CorpusError, match="only 290 different train sentences for 'deu' with the small inventory"):
        list(generator.training("deu", generator.held_out()))


def command(*options: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "data_prep.cldr", *options],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_same_options_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    languages = ",".join(f"{code}:{size}" for code, size in SIZES.items())
    options = ["--languages", languages, "--valid", "20", "--test", "30", "--seed", "3", str(tmp_path)]
    done = command(*options, PYTHONHASHSEED="12345", LC_ALL="C", LANG="de_DE.UTF-8")
    assert done.returncode == 0
    assert "1/4 eng-deu: 300 pairs; about 0:0" in done.stderr
    made, again = (
        {path.relative_to(top): path.read_bytes() for path in top.rglob("*.*")} for top in (folder, tmp_path)
    )
    assert made == again


def test_a_second_run_does_nothing_and_other_settings_replace_the_corpus(tmp_path: Path) -> None:
    options = ["--valid", "5", "--test", "5", str(tmp_path)]
    command("--languages", "deu,jpn:20", *options)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert "is up to date, skipped" in command("--languages", "deu,jpn:20", *options).stderr
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    command("--languages", "deu:30", *options)
    assert lines(tmp_path / "languages.txt") == ["eng", "deu"]
    assert len(lines(tmp_path / "raw/train.eng-deu.deu")) == 30
    assert not list(tmp_path.glob("raw/*jpn*"))


def test_an_interrupted_run_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = count()

    def interrupted(*arguments: object) -> tuple:
        if next(draws) > 200:
            raise KeyboardInterrupt
        return draw(*arguments)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(corpus, "draw", interrupted)
        generate(SETTINGS, tmp_path)
    assert not json.loads((tmp_path / "raw/manifest.json").read_text())["complete"]
    assert not list(tmp_path.glob("raw/train.eng-deu.???"))
    generate(SETTINGS, tmp_path)
    assert json.loads((tmp_path / "raw/manifest.json").read_text())["complete"]
    assert not list(tmp_path.rglob(".*"))


def test_the_manifest_says_what_made_the_corpus(folder: Path) -> None:
    manifest = json.loads((folder / "raw/manifest.json").read_text())
    assert manifest["complete"] and manifest["settings"]["train"] == SIZES and manifest["settings"]["seed"] == 3
    assert manifest["babel"] == version("babel") and manifest["cldr"].isdecimal()


def test_sizes_are_read() -> None:
    assert parse_sizes("deu,fra:12000, jpn:600") == {"deu": 12000, "fra": 12000, "jpn": 600}


@pytest.mark.parametrize(
    ("languages", "sentence"),
    [
        ("de:3", "no language has the code 'de'; did you mean 'deu'? The option --list shows all."),
        ("pes:3", "no language has the code 'pes'; did you mean 'fas'? The option --list shows all."),
        ("zho:3", "no language has the code 'zho'; did you mean 'zho_Hans'? The option --list shows all."),
        ("Swahili:3", "no language has the code 'Swahili'; did you mean 'swh'? The option --list shows all."),
        ("eng:3", "English is one side of every pair: leave 'eng' out of the languages."),
        ("deu:3,deu:4", "the language 'deu' is given twice."),
        ("deu:3,fra", "the language 'fra' has no size; write for example 'fra:1000'."),
        ("deu:-3", "the size in 'deu:-3' is not a positive whole number."),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(languages: str, sentence: str, tmp_path: Path) -> None:
    done = command("--languages", languages, str(tmp_path / "corpus"))
    assert (done.returncode, done.stderr, done.stdout) == (2, f"cldr.sh: error: {sentence}\n", "")
    assert not (tmp_path / "corpus").exists()


def test_the_list_names_every_language() -> None:
    rows = [line.split("\t") for line in command("--list").stdout.splitlines()]
    assert [row[0] for row in rows] == list(LANGUAGES)
    assert ["swh", "Latn", "Swahili"] in rows


def test_the_shell_step_works_from_anywhere(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    step = ["bash", str(ROOT / "data_prep/cldr.sh"), "corpus", "--languages", "kat:9", "--valid", "2", "--test", "2"]
    subprocess.run(step, cwd=tmp_path, env=os.environ | {"PATH": path}, check=True, capture_output=True)
    assert lines(tmp_path / "corpus/languages.txt") == ["eng", "kat"]
