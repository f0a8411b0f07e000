"""Collecting from every format: the same text comes out, every line is kept or counted."""

import argparse
import bz2
import gzip
import json
import lzma
import subprocess
import sys
import zipfile
from pathlib import Path

import polars as pl
import pytest
import yaml

from data_prep.collect import collect
from data_prep.collected import read_parts
from data_prep.formats import FORMATS
from moe_nmt.data import CorpusError

ROOT = Path(__file__).resolve().parents[2]
WORDS = {"de": ["eins", "zwei", "drei & vier", "fünf"], "en": ["one", "two", "three & four", "five"]}
WORDS |= {"fr": ["un", "deux", "trois & quatre", "cinq"]}
PAIR = "eng_Latn-deu_Latn"


@pytest.fixture
def collected(tmp_path):
    """Collects from one source; gives the parts by split and pair, and the text of each."""

    def run(languages=(), **source):
        content = {"languages": list(languages), "sources": [{"name": "it", "pairs": [PAIR], **source}]}
        (tmp_path / "sources.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        collect(argparse.Namespace(config=tmp_path / "sources.yaml", corpus=tmp_path / "corpus", workers=1))
        parts = read_parts(tmp_path / "corpus")
        return {(part.split, str(part.pair)): (part, text_of(part, tmp_path / "corpus")) for part in parts}

    return run


def text_of(part, corpus):
    return [pair for path in part.paths(corpus) for pair in pl.read_parquet(path).rows()]


def pairs(first="en", second="de"):
    return list(zip(WORDS[first], WORDS[second], strict=True))


def lines(language):
    return "".join(f"{word}\n" for word in WORDS[language])


def write(path, text, pack=bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack(text.encode() if isinstance(text, str) else text))


def zst(data):
    return pytest.importorskip("backports.zstd").compress(data)


PACKED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}


@pytest.mark.parametrize("ending", PACKED)
def test_text_by_language_pair(ending, collected, tmp_path):
    for language in ("de", "en"):
        write(tmp_path / f"text/train.de-en.{language}{ending}", lines(language), PACKED[ending])
    part, text = collected(path=f"text/{{split}}.{{source}}-{{target}}.{{language}}{ending}")["train", PAIR]
    assert text == pairs()
    assert (part.lines, part.dropped, part.kind, part.one_way, part.source) == (4, {}, "main", False, "it")


def test_text_over_many_languages(collected, tmp_path):
    for split, name in {"train": "train", "valid": "dev"}.items():
        for language in WORDS:
            write(tmp_path / f"text/{name}/{language}/{split}.txt", lines(language))
    write(tmp_path / "text/train/readme/train.txt", "no language")
    splits = {"train": "train", "valid": "dev"}
    found = collected(path="text/{split}/{language}/*.txt", pairs="all", split=splits)
    assert [pair for _, pair in found] == 2 * [PAIR, "eng_Latn-fra_Latn", "deu_Latn-fra_Latn"]
    assert found["valid", "deu_Latn-fra_Latn"][1] == pairs("de", "fr")
    english = collected(path="text/{split}/{language}/*.txt", pairs="english", split=splits)
    assert [pair for _, pair in english] == 2 * [PAIR, "eng_Latn-fra_Latn"]


def test_moses(collected, tmp_path):
    for language in ("de", "en"):
        write(tmp_path / f"europarl-v7.de-en.{language}", lines(language))
        write(tmp_path / f"packed.de-en.{language}.gz", lines(language), gzip.compress)
    assert collected(format="moses", path="europarl-v7")["train", PAIR][1] == pairs()
    assert collected(format="moses", path="packed", ending=".gz")["train", PAIR][1] == pairs()
    with zipfile.ZipFile(tmp_path / "de-en.txt.zip", "w") as archive:
        for language in ("de", "en"):
            archive.writestr(f"Europarl.de-en.{language}", lines(language))
        archive.writestr("README", "about")
    assert collected(format="moses", path="de-en.txt.zip")["train", PAIR][1] == pairs()


@pytest.mark.parametrize("packed", [True, False])
def test_opus(packed, collected, tmp_path):
    for pair in ("de-en", "en-fr"):
        folder = tmp_path / "Books/v1/moses"
        folder.mkdir(parents=True, exist_ok=True)
        for language in pair.split("-"):
            if packed:
                with zipfile.ZipFile(folder / f"{pair}.txt.zip", "a", zipfile.ZIP_DEFLATED) as archive:
                    archive.writestr(f"Books.{pair}.{language}", lines(language))
            else:
                write(folder / f"Books.{pair}.{language}", lines(language))
    found = collected(format="opus", path="Books", pairs="all")
    assert {pair: text for (_, pair), (_, text) in found.items()} == {
        PAIR: pairs(),
        "eng_Latn-fra_Latn": pairs("en", "fr"),
    }


def test_two_releases_of_opus_are_not_mixed(collected, tmp_path):
    for release in ("v1", "v2"):
        for language in ("de", "en"):
            write(tmp_path / f"Books/{release}/Books.de-en.{language}", lines(language))
    with pytest.raises(CorpusError, match="hold the same text: say in `path` which of them is meant"):
        collected(format="opus", path="Books")
    assert collected(format="opus", path="Books/v2")["train", PAIR][1] == pairs()


def test_flores(collected, tmp_path):
    for split in ("dev", "devtest"):
        for language, code in {"de": "deu_Latn", "en": "eng_Latn"}.items():
            write(tmp_path / f"flores200_dataset/{split}/{code}.{split}", lines(language))
    found = collected(format="flores", path="flores200_dataset")
    assert {split: text for (split, _), (_, text) in found.items()} == {"valid": pairs(), "test": pairs()}
    assert list(collected(format="flores", path="flores200_dataset", split="test")) == [("test", PAIR)]


def test_ntrex(collected, tmp_path):
    for language, name in {"en": "src.eng", "de": "ref.deu", "fr": "ref.fra-CA"}.items():
        write(tmp_path / f"NTREX-128/newstest2019-{name}.txt", lines(language))
    found = collected(format="ntrex", path="NTREX-128", pairs="english")
    assert list(found) == [("test", PAIR), ("test", "eng_Latn-fra_Latn_CA")]
    assert found["test", "eng_Latn-fra_Latn_CA"][1] == pairs("en", "fr")


def rows(*columns):
    return "".join("\t".join(cells) + "\n" for cells in zip(*columns, strict=True))


def test_tsv(collected, tmp_path):
    ids = ["1", "2", "3", "4"]
    write(tmp_path / "de-en.tsv", rows(WORDS["de"], WORDS["en"]))
    assert collected(format="tsv", path="{source}-{target}.tsv")["train", PAIR][1] == pairs()
    write(tmp_path / "plain.tsv", rows(ids, WORDS["de"], WORDS["en"]))
    columns = {"eng_Latn": 3, "deu_Latn": 2}
    assert collected(format="tsv", path="plain.tsv", columns=columns)["train", PAIR][1] == pairs()
    write(tmp_path / "named.tsv", rows(["id", *ids], ["german", *WORDS["de"]], ["english", *WORDS["en"]]))
    columns = {"eng_Latn": "english", "deu_Latn": "german"}
    part, text = collected(format="tsv", path="named.tsv", columns=columns)["train", PAIR]
    assert (text, part.lines, part.dropped) == (pairs(), 5, {"header": 1})
    assert collected(format="tsv", path="named.tsv", columns=columns, on_bad_line="refuse")["train", PAIR][0] == part
    write(tmp_path / "codes.tsv.gz", rows(["id", *ids], *([code, *WORDS[code]] for code in WORDS)), gzip.compress)
    found = collected(format="tsv", path="codes.tsv.gz", pairs="all")
    assert found["train", "deu_Latn-fra_Latn"][1] == pairs("de", "fr")


def test_tsv_with_faults(collected, tmp_path):
    write(tmp_path / "de-en.tsv", b"eins\tone\nzwei\n\ttwo\ndrei\tthree\t3\n\xff\tfour\nvier\tf\0ur\n\n")
    part, text = collected(format="tsv", path="{source}-{target}.tsv")["train", PAIR]
    assert text == [("one", "eins"), ("three", "drei")]
    assert part.dropped == {"invalid_utf8": 1, "nul": 1, "missing_side": 1, "empty": 2}
    assert part.lines == 7


def json_lines(*records):
    return "".join(f"{json.dumps(record)}\n" for record in records)


def test_jsonl(collected, tmp_path):
    records = [dict(zip(WORDS, texts, strict=True)) for texts in zip(*WORDS.values(), strict=True)]
    write(tmp_path / "flat.jsonl", json_lines(*({"id": 1, **record} for record in records)))
    assert collected(format="jsonl", path="flat.jsonl", pairs="all")["train", "deu_Latn-fra_Latn"][1] == pairs(
        "de", "fr"
    )
    write(tmp_path / "nested.jsonl.gz", json_lines(*({"translation": r} for r in records)), gzip.compress)
    assert collected(format="jsonl", path="nested.jsonl.gz")["train", PAIR][1] == pairs()
    write(tmp_path / "own.jsonl", json_lines(*({"text": {"german": r["de"]}, "english": r["en"]} for r in records)))
    keys = {"deu_Latn": "text.german", "eng_Latn": "english"}
    assert collected(format="jsonl", path="own.jsonl", keys=keys)["train", PAIR][1] == pairs()
    write(tmp_path / "de-en.jsonl", json_lines(*records))
    assert collected(format="jsonl", path="{source}-{target}.jsonl")["train", PAIR][1] == pairs()


def test_jsonl_with_faults(collected, tmp_path):
    bad = ['{"de": "kaputt"', "[1]", '{"de": "ja"}', '{"de": "ja", "en": 1}', '{"de": "\\ud800", "en": "x"}', ""]
    bad += [
        '{"de": "a\\u0000b", "en": "x"}',
        '{"de": " ", "en": "x"}',
        '{"de": "' + "x" * 80 + '", "en": "x"}',
        "[" * 50,
    ]
    good = ['{"de": "eins\\nzwei", "en": "one\\r\\ntwo\\u2028three"}']
    write(tmp_path / "it.jsonl", "\n".join([*good, *bad, *good]) + "\n")
    part, text = collected(format="jsonl", path="it.jsonl", max_line_bytes=60)["train", PAIR]
    assert text == [("one two\u2028three", "eins zwei")] * 2
    expected = {"too_long": 1, "invalid_utf8": 1, "nul": 1, "malformed": 3, "missing_side": 2, "empty": 2}
    assert (part.dropped, part.lines) == (expected, 12)


def test_jsonl_that_is_deep(collected, tmp_path):
    write(tmp_path / "it.jsonl", '{"de": "eins", "en": "one"}\n' + "[" * 60_000 + "\n")
    part, text = collected(format="jsonl", path="it.jsonl")["train", PAIR]
    assert (text, part.dropped) == ([("one", "eins")], {"malformed": 1})


UNIT = "<tu><tuv xml:lang='{}'><seg>{}</seg></tuv><tuv xml:lang='{}'><seg>{}</seg></tuv></tu>"
TMX = "<?xml version='1.0'?>{}<tmx version='1.4'><header srclang='en'/><body>{}</body></tmx>"


def units():
    return "".join(UNIT.format("EN", en, "de-DE", de) for en, de in pairs()).replace("&", "&amp;")


def test_tmx(collected, tmp_path):
    write(tmp_path / "memory.tmx.gz", TMX.format("<!DOCTYPE tmx SYSTEM 'tmx14.dtd'>", units()), gzip.compress)
    part, text = collected(format="tmx", path="memory.tmx.gz", pairs="all")["train", PAIR]
    assert (text, part.lines) == (pairs(), 4)


def test_tmx_without_its_formatting(collected, tmp_path):
    seg = "a <bpt i='1'>&lt;b></bpt>bold\n <hi>and <ph>x</ph>high</hi><ept i='1'>&lt;/b></ept> end"
    write(tmp_path / "memory.tmx", TMX.format("", UNIT.format("en", seg, "de", "fett")))
    assert collected(format="tmx", path="memory.tmx")["train", PAIR][1] == [("a bold and high end", "fett")]


def test_tmx_with_faults(collected, tmp_path):
    bad = "".join(
        UNIT.format("en", text, code, "y") for text, code in [("x", "fr"), (" ", "de-DE"), (80 * "x", "de-DE")]
    )
    write(tmp_path / "memory.tmx", TMX.format("", units() + bad))
    part, text = collected(format="tmx", path="memory.tmx", max_line_bytes=60)["train", PAIR]
    assert (text, part.dropped, part.lines) == (pairs(), {"too_long": 1, "missing_side": 1, "empty": 1}, 7)


def test_tmx_expands_no_entities(collected, tmp_path):
    write(tmp_path / "secret", "secret")
    entities = f"<!ENTITY a 'ha'><!ENTITY file SYSTEM 'file://{tmp_path}/secret'>"
    bad = "".join(UNIT.format("en", f"x &{name}; y", "de-DE", "y") for name in ("a", "file"))
    write(tmp_path / "memory.tmx", TMX.format(f"<!DOCTYPE tmx [{entities}]>", units() + bad))
    part, text = collected(format="tmx", path="memory.tmx")["train", PAIR]
    assert (text, part.dropped) == (pairs(), {"missing_side": 2})


def test_tmx_that_is_a_bomb_is_refused(collected, tmp_path):
    steps = zip("abcdefgh", "bcdefghi", strict=True)
    entities = "<!ENTITY a 'ha'>" + "".join(f"<!ENTITY {new} '{f'&{old};' * 10}'>" for old, new in steps)
    write(
        tmp_path / "memory.tmx",
        TMX.format(f"<!DOCTYPE tmx [{entities}]>", units() + UNIT.format("en", "&i;", "de", "y")),
    )
    with pytest.raises(CorpusError, match=r"memory.tmx is no whole TMX file"):
        collected(format="tmx", path="memory.tmx")


@pytest.mark.parametrize(
    "harm", [lambda text: text[:-20], lambda text: text.replace("zwei", "zw\0ei"), lambda _: "text"]
)
def test_refuses_what_is_no_tmx(harm, collected, tmp_path):
    write(tmp_path / "memory.tmx", harm(TMX.format("", units())))
    with pytest.raises(CorpusError, match=r"memory.tmx is no whole TMX file \(.*\): fetch it again or mend it"):
        collected(format="tmx", path="memory.tmx")


def test_tmx_is_read_in_constant_memory(tmp_path):
    with open(tmp_path / "memory.tmx", "w", encoding="utf-8") as file:
        head, tail = TMX.format("", "|").split("|")
        file.write(head)
        for _ in range(20_000):
            file.write(UNIT.format("en", "x" * 1000, "de", "y" * 1000) + "\n")
        file.write(tail)
    code = f"""
import re
from pathlib import Path
from data_prep.formats.tmx import _units
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
assert sum(1 for _ in _units(Path({str(tmp_path / "memory.tmx")!r}))) == 20_000
print(peak() - before)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 20_000, "kilobytes"


def test_formats_say_what_they_are():
    assert set(FORMATS.entries()) == {"flores", "jsonl", "moses", "ntrex", "opus", "text", "tmx", "tsv"}
    assert all(entry.summary.endswith(".") for entry in FORMATS.entries().values())


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({"path": "text.{lang}"}, "has no placeholder 'lang'; did you mean 'language'?"),
        ({"path": "text.txt"}, "does not tell the files of two languages apart: write {language} in it"),
        ({"path": "nothing.{language}"}, "is not there, or nothing in it is called as format text has it"),
        ({"path": "en.{language}", "pairs": ["eng_Latn-fra_Latn"]}, "has no language 'fra_Latn'"),
        ({"path": "en.{language}", "codes": {"deu_Latn": "ger"}}, "has no language 'ger'"),
        ({"path": "one.{source}-{target}.{language}", "pairs": ["eng_Latn-fra_Latn"]}, "no language pair 'en-fr'"),
        ({"format": "tsv", "path": "it.tsv", "columns": {"eng_Latn": 0, "deu_Latn": 1}}, "write its number from 1"),
        (
            {"format": "tsv", "path": "it.tsv", "columns": {"eng_Latn": "a", "deu_Latn": "x"}},
            "has no column 'x'. Known: a",
        ),
        ({"format": "jsonl", "path": "it.tsv"}, "its first line is no JSON object"),
        ({"format": "moses", "path": "broken.zip"}, "broken.zip is no whole zip file"),
    ],
)
def test_refuses_what_is_not_there(source, sentence, collected, tmp_path):
    for language in ("de", "en"):
        write(tmp_path / f"en.{language}", lines(language))
        write(tmp_path / f"one.de-en.{language}", lines(language))
    for language in ("fr", "it"):
        write(tmp_path / f"one.fr-it.{language}", lines("fr"))
    write(tmp_path / "it.tsv", "a\tb\n")
    write(tmp_path / "broken.zip", "PK")
    with pytest.raises(CorpusError) as error:
        collected(**source)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "corpus/collected/parts.json").exists()
