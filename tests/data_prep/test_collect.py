"""Collecting a corpus: kept or counted, refused or skipped, done once, killed and gone on, through the real command."""

import argparse
import gzip
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import yaml

from data_prep import collected
from data_prep.collect import collect
from data_prep.collected import Part, read_parts
from data_prep.config import read_config
from moe_nmt.data import CorpusError, Direction

ROOT = Path(__file__).resolve().parents[2]
PAIR = "eng_Latn-deu_Latn"
TEXT = {"path": "{language}.txt", "pairs": [PAIR]}


def describe(folder, *sources, **more):
    """A YAML file of sources, each called a, b, … unless it says its name."""
    named = [{"name": "abcdef"[number], **source} for number, source in enumerate(sources)]
    path = folder / "sources.yaml"
    path.write_text(yaml.safe_dump({"sources": named, **more}, allow_unicode=True), encoding="utf-8")
    return path


def write(folder, **texts):
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())


def run(config, corpus, workers=1):
    """Collects in this process; gives the parts by name."""
    collect(argparse.Namespace(config=config, corpus=corpus, workers=workers))
    return {f"{part.source} {part.split} {part.pair}": part for part in read_parts(corpus)}


def command(*arguments, **more):
    line = [str(ROOT / "data_prep" / "collect.sh"), *map(str, arguments)]
    return subprocess.run(line, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, **more)


def text_of(part, corpus):
    return [pair for path in part.paths(corpus) for pair in pl.read_parquet(path).rows()]


def files_of(corpus):
    """The bytes of all that is collected."""
    paths = sorted((corpus / "collected").rglob("*"))
    return {str(path.relative_to(corpus)): path.read_bytes() for path in paths if path.is_file()}


def times(corpus):
    return {path: path.stat().st_mtime_ns for path in corpus.rglob("*") if path.is_file()}


@pytest.fixture
def simple(tmp_path):
    write(tmp_path, en="one\ntwo\n", de="eins\nzwei\n")
    return describe(tmp_path, TEXT)


def test_the_command(simple, tmp_path):
    result = command(simple, tmp_path / "corpus", "--workers", 2)
    assert result.returncode == 0, result.stderr
    assert f"1/1 a train {PAIR}: 2 pairs of 2 lines; all done in" in result.stderr
    assert result.stderr.splitlines()[-1] == "collect: 2 pairs of 2 lines collected"
    (part,) = read_parts(tmp_path / "corpus")
    assert text_of(part, tmp_path / "corpus") == [("one", "eins"), ("two", "zwei")]
    assert not list((tmp_path / "corpus").rglob("*.tmp"))


def test_marks_line_ends_and_separators(tmp_path):
    write(tmp_path, en="\ufeffone\r\ntwo\u2028\x85\x0b\x1c\r2\r\n\ufeffthree", de="eins\nzwei\ndrei\n")
    part = run(describe(tmp_path, TEXT), tmp_path / "corpus")[f"a train {PAIR}"]
    expected = [("one", "eins"), ("two\u2028\x85\x0b\x1c\r2", "zwei"), ("\ufeffthree", "drei")]
    assert text_of(part, tmp_path / "corpus") == expected


def test_faults_are_counted_once_each(tmp_path):
    write(tmp_path, en=b"one\n\nthr\xffee\nfo\0ur\n" + b"x" * 70_000 + b"\nsix\n", de=b"1\n2\n3\n4\n5\n \t\n")
    part = run(describe(tmp_path, TEXT), tmp_path / "corpus")[f"a train {PAIR}"]
    assert text_of(part, tmp_path / "corpus") == [("one", "1")]
    assert part.dropped == {"too_long": 1, "invalid_utf8": 1, "nul": 1, "empty": 2}
    assert (part.lines, part.pairs) == (6, 1)


def test_bad_lines_can_be_refused(tmp_path):
    write(tmp_path, en=b"one\ntwo\nthr\xffee\n", de="1\n2\n3\n")
    with pytest.raises(
        CorpusError, match=r"line 3 of .*de.txt and .*en.txt is invalid_utf8: mend it, or set on_bad_line"
    ):
        run(describe(tmp_path, {**TEXT, "on_bad_line": "refuse"}), tmp_path / "corpus")


BAD_FILES = {
    "missing": (None, "is missing|has no language 'deu_Latn'", {"missing_file": 0}),
    "empty": (b"", "must be aligned|is empty", {"unequal_sides": 3}),
    "unequal": (b"eins\nzwei\n", "has 2 lines and .* has 3: the two sides must be aligned", {"unequal_sides": 3}),
    "longer": (b"1\n" * 100_000, "has 100,000 lines and .* has 3:", {"unequal_sides": 100_000}),
    "utf16": ("eins\nzwei\ndrei\n".encode("utf-16"), "is UTF-16: convert it", {"damaged_file": 0}),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_bad_files_are_refused_or_skipped_and_counted(fault, tmp_path):
    content, sentence, dropped = BAD_FILES[fault]
    write(tmp_path, en="one\ntwo\nthree\n", fr="un\ndeux\ntrois\n", **({} if content is None else {"de": content}))
    corpus = tmp_path / "corpus"
    with pytest.raises(CorpusError, match=sentence) as error:
        run(describe(tmp_path, TEXT), corpus)
    assert "\n" not in str(error.value)
    assert [path for path in (corpus / "collected").rglob("*") if path.is_file()] == []
    good = {**TEXT, "pairs": ["eng_Latn-fra_Latn"]}
    parts = run(describe(tmp_path, {**TEXT, "on_bad_file": "skip"}, good), corpus)
    bad, good = parts[f"a train {PAIR}"], parts["b train eng_Latn-fra_Latn"]
    assert (bad.dropped, bad.pairs, bad.chunks) == (dropped, 0, 0)
    assert good.pairs == 3


def test_a_packed_file_that_was_cut_off(tmp_path):
    rng = random.Random(0)
    lines = "".join(f"{rng.random()}\n" for _ in range(200_000)).encode()
    (tmp_path / "en.txt.gz").write_bytes(gzip.compress(lines, 1))
    (tmp_path / "de.txt.gz").write_bytes(gzip.compress(lines, 1)[:-1000])
    source = {"path": "{language}.txt.gz", "pairs": [PAIR]}
    with pytest.raises(CorpusError, match=r"de.txt.gz is no whole gzip file: fetch or pack it again"):
        run(describe(tmp_path, source), tmp_path / "corpus")
    assert not list((tmp_path / "corpus").rglob("*.parquet"))
    part = run(describe(tmp_path, {**source, "on_bad_file": "skip"}), tmp_path / "corpus")[f"a train {PAIR}"]
    ((reason, lines),) = part.dropped.items()
    assert reason == "damaged_file" and 100_000 < lines == part.lines


def test_an_empty_pair_of_files(tmp_path):
    write(tmp_path, en="", de="")
    with pytest.raises(CorpusError, match=r"de.txt is empty: fetch it again, or leave it out"):
        run(describe(tmp_path, TEXT), tmp_path / "corpus")
    assert run(describe(tmp_path, {**TEXT, "on_bad_file": "skip"}), tmp_path / "corpus")[f"a train {PAIR}"].dropped == {
        "empty_file": 0
    }


def test_a_pair_has_one_name_and_directions_have_their_own(tmp_path):
    write(tmp_path, en="one\ntwo\n", de="eins\nzwei\n", fr="un\ndeux\n")
    reverse, found = {**TEXT, "pairs": ["deu_Latn-eng_Latn"]}, {**TEXT, "pairs": "all"}
    back = {"path": "{language}.txt", "directions": ["deu_Latn-eng_Latn"], "kind": "back_translated"}
    parts = run(describe(tmp_path, TEXT, reverse, found, back), tmp_path / "corpus")
    assert list(parts) == [
        f"a train {PAIR}",
        f"b train {PAIR}",
        f"c train {PAIR}",
        "c train eng_Latn-fra_Latn",
        "c train deu_Latn-fra_Latn",
        "d train deu_Latn-eng_Latn",
    ]
    texts = [text_of(part, tmp_path / "corpus") for part in parts.values()]
    assert texts[0] == texts[1] == texts[2] == [("one", "eins"), ("two", "zwei")]
    assert texts[5] == [("eins", "one"), ("zwei", "two")]
    assert [(part.kind, part.one_way) for part in parts.values()] == 5 * [("main", False)] + [("back_translated", True)]


def test_languages_that_are_listed_are_the_only_ones(tmp_path):
    write(tmp_path, en="one\n", de="eins\n", fr="un\n", **{"pt_br": "um\n", "pt": "dois\n", "notes": "x\n"})
    source = {**TEXT, "pairs": "all"}
    parts = run(describe(tmp_path, source, languages=["fra_Latn", "por_Latn", "eng_Latn"]), tmp_path / "corpus")
    assert list(parts) == ["a train fra_Latn-por_Latn", "a train fra_Latn-eng_Latn", "a train por_Latn-eng_Latn"]
    assert text_of(parts["a train por_Latn-eng_Latn"], tmp_path / "corpus") == [("dois", "one")]


def test_languages_that_are_found_have_the_names_of_flores(tmp_path, capsys):
    write(tmp_path, en="one\n", **{"pt_br": "um\n", "pt": "dois\n", "notes": "x\n", "en_US": "1\n", "fr-CA": "un\n"})
    parts = run(describe(tmp_path, {**TEXT, "pairs": "english"}), tmp_path / "corpus")
    names = ["eng_Latn-por_Latn", "eng_Latn-fra_Latn_CA", "eng_Latn-por_Latn_BR"]
    assert sorted(parts) == sorted(f"a train {name}" for name in names)
    assert text_of(parts["a train eng_Latn-por_Latn_BR"], tmp_path / "corpus") == [("one", "um")]
    assert "a: passed over notes, no language" in capsys.readouterr().err


def test_codes_of_the_files_can_be_said(tmp_path):
    write(tmp_path, anglais="one\n", allemand="eins\n")
    codes = {"deu_Latn": "allemand", "eng_Latn": "anglais"}
    for pairs in ([PAIR], "all"):
        parts = run(describe(tmp_path, {**TEXT, "pairs": pairs, "codes": codes}), tmp_path / "corpus")
        assert text_of(parts[f"a train {PAIR}"], tmp_path / "corpus") == [("one", "eins")]


def test_what_is_done_is_not_done_again(tmp_path, capsys):
    write(tmp_path, en="one\n", de="eins\n", fr="un\n")
    config, corpus = describe(tmp_path, {**TEXT, "pairs": "all"}), tmp_path / "corpus"
    run(config, corpus)
    before = times(corpus)
    run(config, corpus)
    assert times(corpus) == before
    assert "3 of 3 parts are up to date, skipped" in capsys.readouterr().err
    write(tmp_path, fr="deux\n")
    parts = run(config, corpus)
    assert "1 of 3 parts are up to date, skipped" in capsys.readouterr().err
    assert text_of(parts["a train eng_Latn-fra_Latn"], corpus) == [("one", "deux")]
    parts[f"a train {PAIR}"].paths(corpus)[0].unlink()
    run(config, corpus)
    assert "2 of 3 parts are up to date, skipped" in capsys.readouterr().err


def test_a_run_that_was_refused_leaves_nothing_to_be_read_as_whole(simple, tmp_path):
    run(simple, tmp_path / "corpus")
    write(tmp_path, en="one\n")
    with pytest.raises(CorpusError, match="must be aligned"):
        run(simple, tmp_path / "corpus")
    with pytest.raises(CorpusError, match=r"run data_prep/collect.sh"):
        read_parts(tmp_path / "corpus")


def test_other_settings_are_done_again_and_parts_that_are_gone_are_removed(tmp_path):
    write(tmp_path, en="one\n" + 30 * "x" + "\n", de="eins\nzwei\n", fr="un\ndeux\n")
    corpus = tmp_path / "corpus"
    run(describe(tmp_path, {**TEXT, "pairs": "all"}, {**TEXT, "kind": "mined"}), corpus)
    parts = run(describe(tmp_path, {**TEXT, "max_line_bytes": 10}), corpus)
    assert parts[f"a train {PAIR}"].dropped == {"too_long": 1}
    assert {path.parent.name for path in corpus.rglob("*.parquet")} == {"a"}
    assert len(list((corpus / "collected").rglob("part.json"))) == len(list((corpus / ".stamps").iterdir())) == 1


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Sources of many parts, and what collecting them without a break gives."""
    folder, rng = tmp_path_factory.mktemp("large"), random.Random(0)
    for language in ("en", "de", "fr", "cs", "pl"):
        lines = [rng.choice([f"{language} {rng.random()} {number}", "", "\0"]) for number in range(40_000)]
        write(folder, **{language: "\n".join(lines) + "\n"})
    config = describe(folder, {**TEXT, "pairs": "all"})
    run(config, folder / "whole")
    return config, files_of(folder / "whole")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_to_the_same_end(workers, large, tmp_path):
    config, whole = large
    line = [sys.executable, "-P", "-m", "data_prep.collect", config, tmp_path / "corpus", "--workers", str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    while not list(tmp_path.glob("corpus/.stamps/collect.*.json")):
        time.sleep(0.005)
        assert process.poll() is None, "ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "corpus" / "collected" / "parts.json").exists()
    result = command(config, tmp_path / "corpus", "--workers", workers)
    assert "of 10 parts are up to date, skipped" in result.stderr
    assert files_of(tmp_path / "corpus") == whole


def test_workers_give_the_same_as_one_process(large, tmp_path):
    config, whole = large
    assert command(config, tmp_path / "corpus", "--workers", 3).returncode == 0
    assert files_of(tmp_path / "corpus") == whole


def test_counts_add_up_and_pairs_stay_aligned(large):
    config, _ = large
    folder = config.parent / "whole"
    texts = {path.stem: path.read_bytes().decode().split("\n")[:-1] for path in config.parent.glob("*.txt")}
    names = {"eng": "en", "deu": "de", "fra": "fr", "ces": "cs", "pol": "pl"}
    for part in read_parts(folder):
        sides = [texts[names[code[:3]]] for code in (part.pair.source, part.pair.target)]
        expected = [pair for pair in zip(*sides, strict=True) if all(pair) and "\0" not in "".join(pair)]
        assert text_of(part, folder) == expected
        assert part.lines == 40_000 == len(expected) + sum(part.dropped.values())


def test_a_full_disk(large, tmp_path):
    config, whole = large
    corpus = tmp_path / "corpus"
    full = command(config, corpus, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)))
    assert full.returncode == 2
    (sentence,) = [line for line in full.stderr.splitlines() if "error" in line]
    assert "cannot grow, the disk is full: free some space and run it again" in sentence
    assert "Traceback" not in full.stderr and not list(corpus.rglob("*.tmp")) and not list(corpus.rglob("*.parquet"))
    assert command(config, corpus).returncode == 0
    assert files_of(corpus) == whole


def test_chunks_hold_all_pairs_in_order_and_no_more_than_they_may(tmp_path, monkeypatch):
    monkeypatch.setattr(collected, "CHUNK_PAIRS", 10)
    monkeypatch.setattr(collected, "CHUNK_BYTES", 100)
    rng = random.Random(0)
    blocks = [[f"{n} {'x' * rng.randrange(9)}" for n in range(rng.randrange(35))] for _ in range(40)]
    part = Part("main", "train", Direction("eng", "deu"), "a")
    chunks = collected.write_blocks(part.folder(tmp_path), [(block, block[::-1]) for block in blocks])
    part = replace(part, chunks=chunks)
    assert text_of(part, tmp_path) == [pair for block in blocks for pair in zip(block, block[::-1], strict=True)]
    assert max(len(pl.read_parquet(path)) for path in part.paths(tmp_path)) <= 10
    assert sorted(part.folder(tmp_path).iterdir()) == part.paths(tmp_path)


MISTAKES = {
    "no YAML": ("sources: [", "line .* cannot be read as YAML"),
    "no mapping": ("- a", "the file must be keys with values"),
    "unknown key": ("sorces: []", "has no key 'sorces'; did you mean 'sources'"),
    "no sources": ("sources: []", "sources is empty: name at least one source"),
    "a key twice": ("sources: []\nsources: []", "the key 'sources' stands twice"),
    "no language": ("languages: [deu_Ltan]", "'deu_Ltan' is no language code .* did you mean 'deu_Latn'"),
    "a language twice": ("languages: [deu_Latn, deu_Latn]", "'deu_Latn' stands twice in languages"),
    "Norway": ("languages: [no]", "languages must be text, not False: write it in quotes"),
    "filters": ("filters: [1]\nsources: [{name: a, path: x, pairs: all}]", "filters must be text, not 1"),
}
SOURCE_MISTAKES = {
    "no name": ({"name": ""}, r"sources\[1\]: name must be text"),
    "bad name": ({"name": "a/b"}, "'a/b' is no name: use letters"),
    "unknown key": ({"pats": "x"}, "source a has no key 'pats'; did you mean 'path'"),
    "unknown format": ({"format": "tmxx"}, "no format is called 'tmxx'; did you mean 'tmx'"),
    "option of another format": ({"columns": {"a": 1}}, "source a has no key 'columns'"),
    "wrong option": (
        {"format": "tsv", "header": "yes"},
        "the option 'header' of the format 'tsv' must be True or False",
    ),
    "no path": ({"path": None}, "source a: path must be text, not nothing"),
    "two origins": ({"url": "http://x", "opus": "Books"}, "by a path, or by one of url, opus and mtdata"),
    "no pairs": ({"pairs": []}, "list of pairs is empty"),
    "a pair both ways": ({"pairs": [PAIR, "deu_Latn-eng_Latn"]}, "are the same language pair"),
    "a pair twice": ({"pairs": [PAIR, PAIR]}, "stands twice in source a"),
    "bad pair": ({"pairs": ["eng_Latn"]}, "'eng_Latn' is no direction"),
    "unknown language": ({"pairs": ["eng_Latn-deu_Ltan"]}, "'deu_Ltan' is no language code"),
    "pairs and directions": ({"directions": [PAIR]}, "needs either pairs"),
    "unknown split": ({"split": "dev"}, "has no split 'dev'. Known: train, valid, test"),
    "bad kind": ({"kind": "a b"}, "kind 'a b' is no name"),
    "bad choice": ({"on_bad_line": "skip"}, "on_bad_line cannot be 'skip'.*Allowed: drop, refuse"),
    "bad number": ({"max_line_bytes": 0}, "max_line_bytes must be a whole number from 1, not 0"),
    "checksums": ({"url": "http://x", "sha256": ["a", "b"]}, "sha256 must be one checksum for each url, that is 1"),
    "no checksum": ({"url": "http://x", "sha256": "a"}, "sha256 'a' is none: write its 64 hexadecimal digits"),
    "found on the internet": ({"opus": "Books", "pairs": "all"}, "list its pairs"),
    "format of opus": ({"opus": "Books", "format": "tsv"}, "is in the format opus: leave out its format"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_refuses_a_file_that_cannot_be_meant(mistake, tmp_path):
    text, sentence = MISTAKES[mistake]
    (tmp_path / "sources.yaml").write_text(text)
    with pytest.raises(CorpusError, match=sentence) as error:
        read_config(tmp_path / "sources.yaml")
    assert str(error.value).startswith(f"{tmp_path}/sources.yaml: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("mistake", SOURCE_MISTAKES)
def test_refuses_a_source_that_cannot_be_meant(mistake, tmp_path):
    changes, sentence = SOURCE_MISTAKES[mistake]
    with pytest.raises(CorpusError, match=sentence) as error:
        read_config(describe(tmp_path, {**TEXT, **changes}))
    assert str(error.value).startswith(f"{tmp_path}/sources.yaml: ") and "\n" not in str(error.value)


def test_refuses_two_sources_of_one_name_and_languages_that_are_not_listed(tmp_path):
    with pytest.raises(CorpusError, match="'a' stands twice in sources: keep it once"):
        read_config(describe(tmp_path, TEXT, {**TEXT, "name": "a"}))
    with pytest.raises(CorpusError, match="the list of languages has no language 'deu_Latn'"):
        read_config(describe(tmp_path, TEXT, languages=["eng_Latn", "fra_Latn"]))


def test_filters_are_handed_on(tmp_path):
    assert read_config(describe(tmp_path, TEXT)).filters is None
    assert read_config(describe(tmp_path, TEXT, filters=[])).filters == []
    assert read_config(describe(tmp_path, TEXT, filters=["length(most=9)"])).filters == ["length(most=9)"]


def test_the_command_refuses_in_one_sentence(tmp_path):
    result = command(tmp_path / "nothing.yaml", tmp_path / "corpus")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "nothing.yaml" in result.stderr and "Traceback" not in result.stderr
