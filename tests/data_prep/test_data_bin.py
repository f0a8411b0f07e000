"""Shards, sub-corpora, the manifest and its check, and the flags and tables that go with data-bin."""

import itertools
import json
import shutil

import pytest

from moe_nmt.data import Corpus, Direction
from moe_nmt.data.data_bin import read_manifest, shard_folders
from moe_nmt.data.text import write_text
from tests.data_prep.test_steps import refuses, succeeds, times

pytest.importorskip("sentencepiece")
ENG_DEU, ENG_FRA, FRA_DEU = (Direction.parse(text) for text in ("eng-deu", "eng-fra", "fra-deu"))
DEU_ENG = ENG_DEU.reverse
WORDS = {"eng": "one two three four five six", "deu": "eins zwei drei vier fünf sechs", "fra": "un deux trois quatre"}


def write_pair(corpus, split, pair, lines):
    """Write numbered sentences of a language pair; every line is another."""
    for language in (pair.source, pair.target):
        words = WORDS[language].split()
        text = "".join(f"{words[n % len(words)]} {words[n % 3]} {n} {pair}\n" for n in range(lines))
        write_text(corpus.text("raw", split, pair, language), text)


def add(corpus, directions):
    """A corpus with these directions and text for each of their pairs, saved."""
    corpus = corpus.adding({d: dict(zip(("train", "valid", "test"), n, strict=True)) for d, n in directions.items()})
    for direction, counts in corpus.directions.items():
        for split, lines in counts.items():
            if lines and not corpus.text("raw", split, direction.reverse, direction.source).exists():
                write_pair(corpus, split, direction, lines)
    corpus.save()
    return Corpus.open(corpus.folder)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A corpus with mined data for one pair both ways, and back-translations into German and back, in shards."""
    folder = tmp_path_factory.mktemp("corpus")
    add(
        Corpus.empty(folder),
        {ENG_DEU: (70, 5, 5), DEU_ENG: (70, 5, 5), ENG_FRA: (20, 5, 5), ENG_FRA.reverse: (0, 5, 0)},
    )
    add(
        Corpus.empty(folder / "extra" / "mined"), {ENG_FRA: (45, 0, 0), ENG_FRA.reverse: (45, 0, 0), FRA_DEU: (9, 0, 0)}
    )
    back = Corpus.empty(folder / "extra" / "back_translated").adding({})
    for direction, lines in ((ENG_DEU, 12), (DEU_ENG, 8)):
        write_pair(back, "train", direction, lines)
    back = back.adding({d: {"train": n, "valid": 0, "test": 0} for d, n in ((ENG_DEU, 12), (DEU_ENG, 8))})
    back.save()
    succeeds("prepare", folder, *FLAGS)
    return folder


FLAGS = ("--vocab-size", 42, "--workers", 2, "--shard-pairs", 30, "--sampling-temperature", 5, "--high-from", 50)
FLAGS = (*FLAGS, "--low-from", 20)


@pytest.fixture
def corpus(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "corpus")


def sentences(folder, name, dictionary):
    """The sentences of a file of data-bin, as text in pieces."""
    from fairseq.data import data_utils

    dataset = data_utils.load_indexed_dataset(str(folder / name), dictionary)
    return [dictionary.string(dataset[number]) for number in range(len(dataset))]


def test_sub_corpora_serve_the_directions_they_list(prepared):
    corpus = Corpus.open(prepared)
    back, mined = corpus.extras
    assert (corpus.kind, back.kind, mined.kind) == ("main", "back_translated", "mined")
    assert back.model == corpus.model and back.dictionary == corpus.dictionary
    assert back.pairs == [ENG_DEU, DEU_ENG]
    assert back.pair_counts(ENG_DEU)["train"] == 12 and back.pair_counts(DEU_ENG)["train"] == 8
    assert mined.pairs == [ENG_FRA, FRA_DEU] and back.extras == []


def test_shards_are_dealt_and_hold_every_pair_once(prepared):
    from fairseq.data import Dictionary

    shards = shard_folders(prepared / "data-bin")
    assert [path.name for path in shards] == ["shard000", "shard001", "shard002"]
    dictionary = Dictionary.load(str(shards[0] / "dict.eng.txt"))
    for language in ("eng", "deu"):
        encoded = (prepared / "encoded" / f"train.eng-deu.{language}").read_text().splitlines()
        found = [sentences(shard, f"train.eng-deu.{language}", dictionary) for shard in shards]
        assert found == [encoded[number::3] for number in range(3)]
    names = {path.name for shard in shards[1:] for path in shard.iterdir()}
    assert names == {f"train.eng-deu.{language}.{kind}" for language in ("eng", "deu") for kind in ("bin", "idx")}
    assert not list((prepared / "data-bin").glob("*.bin"))
    assert len(shard_folders(prepared / "extra" / "mined" / "data-bin")) == 2


def test_one_shard_is_what_binarizing_without_shards_writes(corpus):
    written = {path.name: path.read_bytes() for path in (corpus / "data-bin" / "shard000").glob("*.eng-fra.*")}
    succeeds("binarize", corpus, "--workers", 1)
    assert written == {name: (corpus / "data-bin" / name).read_bytes() for name in written}


def test_other_shards_leave_nothing_of_the_old(corpus, prepared):
    (corpus / "data-bin" / "train_probe.eng-deu.eng.bin").write_text("of the user")
    for flags in ((), ("--shard-pairs", 50), ("--shard-pairs", 30)):
        succeeds("binarize", corpus, "--workers", 1, *flags)
    kept = {path.relative_to(corpus) for path in corpus.rglob("*") if path.is_file()}
    expected = {path.relative_to(prepared) for path in prepared.rglob("*") if path.is_file()}
    assert {str(path) for path in kept ^ expected} == {"data-bin/train_probe.eng-deu.eng.bin"}


def test_what_is_done_is_skipped_and_what_changed_is_done_again(corpus):
    succeeds("prepare", corpus, *FLAGS)  # flags.txt names the folder that the copy is in
    before = times(corpus)
    said = succeeds("prepare", corpus, *FLAGS)
    assert "9 of 9 parts are up to date" in said and times(corpus) == before
    text = corpus / "encoded" / "train.eng-fra.eng"
    text.write_text("".join(sorted(text.read_text().splitlines(keepends=True))))
    said = succeeds("binarize", corpus, *FLAGS[2:])
    assert "8 of 9 parts are up to date" in said and "1/1 eng-fra shard000" in said


def test_the_manifest_counts_what_is_there(prepared):
    manifest = read_manifest(prepared / "data-bin")
    train = [text for text in manifest["texts"] if text["split"] == "train" and text["pair"] == "eng-deu"]
    assert [text["sentences"] for text in train] == [24, 23, 23]
    encoded = (prepared / "encoded" / "train.eng-deu.deu").read_text().splitlines()
    assert sum(text["tokens"]["deu"] for text in train) == sum(len(line.split()) + 1 for line in encoded)
    assert manifest["settings"]["learn_subwords"][0]["tags"] == ["<back_translated>", "<mined>"]
    assert manifest["extra"] == {kind: f"../extra/{kind}/data-bin" for kind in ("back_translated", "mined")}
    assert manifest["settings"]["learn_subwords"][0]["vocab_size"] == 42
    assert manifest["versions"][0].keys() >= {"python", "sentencepiece", "moe_nmt"}
    mined = read_manifest(prepared / "extra" / "mined" / "data-bin")
    assert mined["kind"] == "mined" and mined["languages"] == ["eng", "fra", "deu"]


def test_verify_names_what_differs(corpus):
    assert "files are as the manifest says" in succeeds("verify", corpus)
    path = corpus / "extra" / "mined" / "data-bin" / "shard001" / "train.eng-fra.fra.bin"
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert f"{path} is not as it was written" in refuses("verify", corpus, "--workers", 1)
    path.unlink()
    assert f"{path} is missing" in refuses("verify", corpus)
    succeeds("binarize", corpus, *FLAGS[2:])
    assert path.read_bytes() == data
    shutil.copy(path, path.with_name("train.eng-oci.oci.bin"))
    assert "train.eng-oci.oci.bin is not in the manifest" in refuses("verify", corpus)
    (corpus / "data-bin" / "manifest.json").write_text("{")
    assert "manifest.json cannot be read" in refuses("verify", corpus)


def test_flags_name_what_is_trained_on(prepared):
    flags = (prepared / "flags.txt").read_text().splitlines()
    options = dict(itertools.pairwise(flags))
    assert options["--lang-pairs"] == "eng-deu,deu-eng,eng-fra,fra-eng"
    assert json.loads(options["--extra-lang-pairs"]) == {
        "back_translated": "eng-deu,deu-eng",
        "mined": "eng-fra,fra-eng",
    }
    assert json.loads(options["--extra-data"])["mined"] == str(prepared / "extra/mined/data-bin")
    assert options["--lang-dict"] == str(prepared / "languages.txt")
    assert not any(character.isspace() for flag in flags for character in flag)


def test_the_table_of_sampling(prepared):
    report = json.loads((prepared / "reports" / "sampling.json").read_text())["entries"]
    assert {key: (row["bucket"], row["train"]) for key, row in report.items()} == {
        "main:eng-deu": ("high", 70),
        "main:deu-eng": ("high", 70),
        "main:eng-fra": ("low", 20),
        "main:fra-eng": ("very_low", 0),
        "back_translated:eng-deu": ("high", 12),
        "back_translated:deu-eng": ("high", 8),
        "mined:eng-fra": ("low", 45),
        "mined:fra-eng": ("very_low", 45),
        "mined:fra-deu": ("very_low", 9),
    }
    assert report["main:eng-deu"]["shares"]["T=1"] == pytest.approx(70 / 279, abs=1e-6)
    weights = [(row["train"] / 279) ** (1 / 5) for row in report.values()]
    assert report["mined:fra-deu"]["shares"]["T=5"] == pytest.approx(weights[-1] / sum(weights), abs=1e-6)
    assert report["main:eng-deu"]["shares"]["T=∞"] == pytest.approx(1 / 8)
    tokens = sum(
        len(line.split()) + 1 for line in (prepared / "encoded" / "train.eng-deu.eng").read_text().splitlines()
    )
    assert report["main:deu-eng"]["tokens"] == tokens
    assert (prepared / "reports" / "sampling.png").stat().st_size > 1000


def test_a_direction_without_valid_data_is_named(corpus):
    shutil.rmtree(corpus / "data-bin")
    assert "not in flags.txt, because they have no valid data: fra-deu" in succeeds("binarize", corpus, *FLAGS[2:])


def test_refuses_sub_corpora_that_cannot_be_used(corpus):
    assert "is a part of the corpus" in refuses("encode", corpus / "extra" / "mined")
    mined = corpus / "extra" / "mined"
    (mined / "languages.txt").write_text("eng\ndeu\nfra\noci\n")
    assert "has no language 'oci'" in refuses("encode", corpus)
    mined.rename(corpus / "extra" / "main")
    assert "names no kind of data" in refuses("binarize", corpus)


def test_refuses_what_cannot_be(corpus):
    assert "--sampling-temperature 0.0 cannot be used" in refuses("binarize", corpus, "--sampling-temperature", 0)
    assert "make no buckets" in refuses("binarize", corpus, "--low-from", 9, "--high-from", 3)
