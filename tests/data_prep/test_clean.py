"""Cleaning through its command: against a slow form of it, over kills, on held-out text, leaks, and every refusal."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from data_prep import collected
from data_prep.collected import Part, read_parts, save_parts, write_chunks
from data_prep.filters import FILTERS, SIDES, Duplicates, Edit
from data_prep.filters.leaks import keys
from moe_nmt.data import Corpus, Direction
from moe_nmt.registry import parse_list

ROOT = Path(__file__).resolve().parents[2]
WORDS = {"eng": ["one", "Two", "three", "four"], "deu": ["eins", "Zwei", "drei", "vier"], "rus": ["раз", "Два", "три"]}
FILTER_LISTS = [
    "[]",
    "[normalise, length(min_words=2), leaks, exact_duplicates, near_duplicates]",
    "[exact_duplicates(of=target), normalise, identical, near_duplicates, script, near_duplicates(of=source), length]",
    "[near_duplicates, exact_duplicates, leaks]",
    "[exact_duplicates(of=source), near_duplicates(of=target)]",
]


def command(corpus, *arguments):
    return [str(ROOT / "data_prep" / "clean.sh"), str(corpus), *map(str, arguments)]


ENVIRONMENT = {**os.environ, "PYTHON": sys.executable}


def clean(corpus, *arguments):
    done = subprocess.run(command(corpus, *arguments), env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def refuses(corpus, *arguments):
    done = subprocess.run(command(corpus, *arguments), env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    *_, last = done.stderr.splitlines()
    assert last.startswith("clean.sh: error: ")
    return last


def collect(corpus, *texts):
    """Writes (kind, split, pair, source, one_way, pairs) as collected parts, of which 3 lines more were empty."""
    parts = []
    for kind, split, pair, source, one_way, pairs in texts:
        part = Part(kind, split, Direction.parse(pair), source, one_way)
        chunks = write_chunks(part.folder(corpus), iter(pairs))
        parts.append(Part(kind, split, part.pair, source, one_way, len(pairs) + 3, {"empty": 3}, chunks))
    save_parts(corpus, parts)


def some_pairs(pair, number, seed):
    rng = random.Random(f"{pair} {seed}")
    source, target = (WORDS[language] for language in pair.split("-"))
    for _ in range(number):
        sides = [" ".join(rng.choices(words, k=rng.randint(1, 4))) for words in (source, target)]
        faults = rng.random()
        if faults < 0.1:
            sides = [sides[0].upper() + "!", sides[1]]
        elif faults < 0.2:
            sides = [sides[1], sides[1]]
        elif faults < 0.3:
            sides = ["\u3000 \u2003" if faults < 0.21 else f"  {sides[0]}\t", sides[1]]
        yield tuple(sides)


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Parts of three kinds in several sources, two of which name the pair the other way round, in small chunks."""
    monkeypatch.setattr(collected, "CHUNK_PAIRS", 40)
    texts = [
        ("mined", "train", "eng-deu", "web", False, 150),
        ("main", "train", "eng-deu", "first", False, 200),
        ("main", "train", "deu-eng", "second", False, 130),
        ("main", "train", "eng-rus", "first", False, 90),
        ("back_translated", "train", "eng-deu", "back", True, 100),
        ("back_translated", "train", "deu-eng", "back", True, 60),
        ("main", "valid", "rus-eng", "held", False, 8),
        ("main", "test", "eng-deu", "held", False, 5),
    ]
    rows = [(k, s, pair, name, way, list(some_pairs(pair, n, f"{k}{s}{name}"))) for k, s, pair, name, way, n in texts]
    collect(tmp_path / "corpus", *rows)
    return tmp_path / "corpus"


def slow_clean(corpus, filters):
    """What cleaning must write: (kind, split, pair) -> pairs, computed pair list by pair list, in order."""
    parts = sorted(read_parts(corpus), key=lambda part: part.kind != "main")
    held_out = corpus.parent / "keys.parquet"
    keys([path for part in parts if part.split != "train" for path in part.paths(corpus)]).write_parquet(held_out)
    rows, names, result = {}, {}, {}
    for part in parts:
        name = part.pair if part.one_way else names.setdefault(frozenset(str(part.pair).split("-")), part.pair)
        text = result.setdefault((part.kind, part.split, name), [])
        frames = [pl.read_parquet(path) for path in part.paths(corpus)]
        pairs = [row if name == part.pair else row[::-1] for frame in frames for row in frame.rows()]
        if part.split == "train":
            rows.setdefault(name, []).extend((part.kind, pair) for pair in pairs)
        else:
            text += pairs
    for name, labelled in rows.items():
        for spec in parse_list(filters):
            step = FILTERS.build(spec, source=name.source, target=name.target, held_out=held_out)
            labelled = slow_step(step, labelled)
        for kind, pair in labelled:
            result[kind, "train", name].append(pair)
    return result


def slow_step(step, labelled):
    frame = pl.DataFrame([pair for _, pair in labelled], schema=dict.fromkeys(SIDES, pl.String), orient="row")
    if isinstance(step, Duplicates):
        seen, left = set(), []
        texts = frame.select(step.text(pl.col(side)) for side in step.sides).rows()
        for row, text in zip(labelled, texts, strict=True):
            if text not in seen:
                seen.add(text)
                left.append(row)
        return left
    if isinstance(step, Edit):
        edited = frame.select(step.edit(pl.col(side)) for side in SIDES).rows()
        return [(kind, pair) for (kind, _), pair in zip(labelled, edited, strict=True) if all(pair)]
    stays = frame.with_columns(stays=step.keep())["stays"]
    return [row for row, stay in zip(labelled, stays, strict=True) if stay]


def raw_texts(corpus):
    """All raw text: (kind, split, pair) -> pairs."""
    found = {}
    for folder, kind in [(corpus, "main"), *((path, path.name) for path in (corpus / "extra").glob("*"))]:
        for path in (folder / "raw").iterdir():
            split, name, language = path.name.split(".")
            pair = Direction.parse(name)
            if language == pair.source:
                sides = [folder / "raw" / f"{split}.{name}.{code}" for code in (pair.source, pair.target)]
                lines = [side.read_bytes().decode("utf-8").split("\n") for side in sides]
                assert [side[-1] for side in lines] == ["", ""]
                found[kind, split, pair] = list(zip(lines[0][:-1], lines[1][:-1], strict=True))
    return found


@pytest.mark.parametrize(("filters", "workers"), [*((filters, 1) for filters in FILTER_LISTS), (FILTER_LISTS[2], 2)])
def test_the_result_is_that_of_the_filters_one_after_the_other(corpus, filters, workers):
    clean(corpus, "--filters", filters, "--workers", workers)
    expected = slow_clean(corpus, filters)
    assert raw_texts(corpus) == expected
    assert len(expected["main", "train", Direction("eng", "deu")]) > 20
    report = json.loads((corpus / "reports" / "clean.json").read_text())
    for row in report["texts"]:
        assert row["lines"] == sum(row["dropped_by_collect"].values()) + sum(row["fallen"].values()) + row["kept"]
    kept = {}
    for row in report["texts"]:
        key = row["kind"], row["split"], Direction.parse(row["pair"])
        kept[key] = kept.get(key, 0) + row["kept"]
    assert kept == {key: len(pairs) for key, pairs in expected.items()}
    total = report["total"]
    assert total["lines"] == sum(part.lines for part in read_parts(corpus))
    assert total["lines"] == sum(total["dropped_by_collect"].values()) + sum(total["fallen"].values()) + total["kept"]
    assert not (corpus / "cleaned").exists()


def test_tables_name_the_directions_that_the_text_serves(corpus):
    clean(corpus, "--filters", "[exact_duplicates]")
    main, mined, back = (Corpus.open(corpus / folder) for folder in (".", "extra/mined", "extra/back_translated"))
    assert main.languages == mined.languages == back.languages == ("eng", "deu", "rus")
    assert {str(d) for d in main.directions} == {"eng-deu", "deu-eng", "eng-rus", "rus-eng"}
    assert {str(d) for d in mined.directions} == {"eng-deu", "deu-eng"}
    counts = {str(d): back.counts(d)["train"] for d in back.directions}
    lines = {pair: len(raw_texts(corpus)["back_translated", "train", Direction.parse(pair)]) for pair in counts}
    assert counts == lines and set(counts) == {"eng-deu", "deu-eng"} and counts["eng-deu"] != counts["deu-eng"]
    for folder in (main, mined):
        for pair in folder.pairs:
            folder.check_text(pair)


def test_held_out_text_stays_as_it_was_collected(corpus):
    clean(corpus, "--filters", "[normalise, length(min_words=4)]")
    part = next(part for part in read_parts(corpus) if part.split == "valid")
    collected_pairs = pl.read_parquet(part.paths(corpus)[0]).rows()
    assert raw_texts(corpus)["main", "valid", Direction("eng", "rus")] == [pair[::-1] for pair in collected_pairs]


def test_planted_leaks_are_caught(tmp_path):
    test = [("The Lord is my shepherd.", "Der Herr ist mein Hirte."), ("Fear not!", "Fürchte dich nicht!")]
    leaks = [
        ("The Lord is my shepherd.", "Der Herr ist mein Hirte."),  # exact
        ("the lord is my SHEPHERD", "Gott hütet mich"),  # source, other case and punctuation
        ("He leads me", "der Herr ist — mein Hirte"),  # target
        ("Fürchte dich nicht", "Do not be afraid"),  # the target side on the source side
    ]
    fine = [("The Lord is my rock.", "Der Herr ist mein Fels."), ("Fear", "Furcht")]
    other = [("Fear not", "Не бойся"), ("Be glad", "Радуйтесь")]  # in another direction
    collect(
        tmp_path / "c",
        ("main", "test", "eng-deu", "t", False, test),
        ("main", "train", "eng-deu", "a", False, [*leaks, *fine]),
        ("mined", "train", "rus-eng", "b", False, [pair[::-1] for pair in other]),
    )
    clean(tmp_path / "c")
    texts = raw_texts(tmp_path / "c")
    assert texts["main", "train", Direction("eng", "deu")] == fine
    assert texts["mined", "train", Direction("rus", "eng")] == [("Радуйтесь", "Be glad")]
    report = json.loads((tmp_path / "c" / "reports" / "clean.json").read_text())
    assert sum(row["fallen"].get("leaks", 0) for row in report["texts"]) == 5
    assert "the lord is my SHEPHERD" in (tmp_path / "c" / "reports" / "clean.md").read_text()


def killed_when(corpus, arguments, ready):
    """Starts cleaning and kills it (SIGKILL) as soon as `ready()`."""
    process = subprocess.Popen(command(corpus, *arguments), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    while not ready():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_twice_it_goes_on_and_gives_the_same(corpus, tmp_path):
    other = tmp_path / "unbroken"
    subprocess.run(["cp", "-a", corpus, other], check=True)
    arguments = ["--filters", FILTER_LISTS[2], "--workers", 2]
    clean(other, *arguments)
    work = corpus / "cleaned"
    killed_when(corpus, arguments, lambda: len(list(work.glob("*/0/*/*.json"))) >= 3)
    chunks = [path.with_suffix(".parquet") for path in work.glob("*/0/*/*.json")]
    kept = {path: path.stat().st_mtime_ns for path in chunks}
    assert 3 <= len(kept) < 19 and not list(work.glob("*/1/*/*.json"))
    killed_when(corpus, arguments, lambda: len(list(work.glob("*/1/*/*.json"))) >= 2)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items()), "what was done is not done again"
    clean(corpus, *arguments)
    assert raw_texts(corpus) == raw_texts(other)
    for name in ("reports/clean.json", "reports/clean.md", "directions.tsv", "languages.txt"):
        assert (corpus / name).read_bytes() == (other / name).read_bytes()


def test_work_is_done_once_and_again_when_something_changed(corpus):
    clean(corpus, "--filters", "[exact_duplicates]")
    before = raw_texts(corpus)
    assert "up to date, skipped" in clean(corpus, "--filters", "[exact_duplicates]")
    assert "up to date" not in clean(corpus, "--filters", "[near_duplicates]")
    assert raw_texts(corpus) != before
    collect(corpus, ("main", "train", "eng-deu", "new", False, [("a b", "c d")]))
    clean(corpus, "--filters", "[near_duplicates]")
    assert raw_texts(corpus) == {("main", "train", Direction("eng", "deu")): [("a b", "c d")]}, "no stale text is left"
    assert (corpus / "languages.txt").read_text().split() == ["eng", "deu", "rus"], "languages keep their places"


def test_line_separators_inside_a_line_do_not_break_it(tmp_path):
    pairs = [("one\u2028two\x85three\rfour", "eins\x0bzwei\x1cdrei\x00"), ("five", "fünf")]
    collect(tmp_path / "c", ("main", "train", "eng-deu", "a", False, pairs))
    clean(tmp_path / "c", "--filters", "[]")
    assert raw_texts(tmp_path / "c")["main", "train", Direction("eng", "deu")] == pairs


def test_filters_come_from_a_file(corpus, tmp_path):
    config = tmp_path / "corpus.yaml"
    config.write_text(
        "languages: [rus, eng, deu]\n"
        "sources:\n  - {name: a, format: text, path: 'x.{language}', pairs: [eng-deu]}\n"
        "filters:\n  - normalise\n  - length(min_words=3)\n"
    )
    clean(corpus, "--config", config)
    assert raw_texts(corpus) == slow_clean(corpus, "[normalise, length(min_words=3)]")
    assert (corpus / "languages.txt").read_text().split() == ["eng", "rus", "deu"]


def test_the_list_of_filters():
    listed = subprocess.run(command("x", "--list"), env=ENVIRONMENT, capture_output=True, text=True)
    assert listed.returncode == 0 and all(f"| `{name}(" in listed.stdout for name in FILTERS.entries())


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ("[normalize]", "no filter is called 'normalize'; did you mean 'normalise'?"),
        ("[length(max=3)]", "the filter 'length' has no option 'max'"),
        ("[ratio(max=many)]", "must be a number, not many"),
        ("[ratio(max=0.1)]", "would drop every pair"),
        ("[length(min_words=99)]", "no pair of the main data of"),
    ],
)
def test_refuses_filters(corpus, filters, words):
    if "99" in filters:
        collect(corpus, ("main", "train", "eng-deu", "a", False, [("a", "b")]))
    assert words in refuses(corpus, "--filters", filters)
    assert not (corpus / "languages.txt").exists()


def test_refuses_what_is_not_collected(tmp_path):
    assert "parts.json is missing: run data_prep/collect.sh" in refuses(tmp_path)
    (tmp_path / "collected").mkdir()
    (tmp_path / "collected" / "parts.json").write_text('[{"kind": ')
    assert "cannot be read" in refuses(tmp_path)


def test_refuses_text_that_it_did_not_write(corpus):
    (corpus / "raw").mkdir()
    (corpus / "raw" / "train.eng-deu.eng").write_text("mine\n")
    assert "holds text that clean.sh did not write and would replace" in refuses(corpus)
    assert (corpus / "raw" / "train.eng-deu.eng").read_text() == "mine\n"


def test_refuses_a_kind_that_serves_one_direction_and_both(tmp_path):
    rows = [("main", "train", "eng-deu", name, name == "b", [("a", "b")]) for name in "ab"]
    collect(tmp_path / "c", *rows)
    assert "give one another kind" in refuses(tmp_path / "c")


def test_refuses_a_damaged_chunk(corpus):
    path = next(part for part in read_parts(corpus) if part.split == "train").paths(corpus)[0]
    path.write_bytes(path.read_bytes()[:-100])
    assert f"cleaning {corpus} failed" in refuses(corpus)
    path.unlink()
    assert path.name in refuses(corpus)


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        rng = random.Random(1)
        pairs = [("".join(rng.choices("abcdefgh ", k=40)).strip(), f"satz {n}") for n in range(4000)]
        collect(disk / "c", ("main", "train", "eng-deu", "a", False, pairs))
        last = refuses(disk / "c", "--filters", "[normalise, exact_duplicates]", "--workers", 1)
        assert "cannot grow, the disk is full: free some space and run it again" in last
        assert not list(disk.rglob("*.tmp")) and not (disk / "c" / "raw" / "train.eng-deu.eng").exists()
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        clean(disk / "c", "--filters", "[normalise, exact_duplicates]", "--workers", 1)
        assert len(raw_texts(disk / "c")["main", "train", Direction("eng", "deu")]) == len(set(pairs))
    finally:
        subprocess.run(["umount", disk], check=True)
