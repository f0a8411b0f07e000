"""Subwords of both kinds: reversible, free of reserved symbols, and reported on by language."""

import json
import os
import random

import pytest

from moe_nmt.data import Corpus, Direction
from moe_nmt.data.data_bin import bpe_of
from moe_nmt.data.text import write_text
from tests.data_prep.test_steps import refuses, step, succeeds

sentencepiece = pytest.importorskip("sentencepiece")
pytest.importorskip("fastBPE")
pytest.importorskip("subword_nmt")

ENG_DEU = Direction("eng", "deu")
SYLLABLES = {"eng": "low er est new wide ing the a un ness", "deu": "tief er est neu weit ung die ab un für"}
TRICKY = [
    *("".join(f"{x}{tag}{y} " for x in "abcd" for y in ("", *"efgh")) + tag for tag in ("<mined>", "__deu__", "<pad>")),
    "x<mined>y",
    "__eng__ a__deu__b",
    "<pad> </s> <s> <unk>",
    "tief<pad> ab__deu__",
    "a@@b low@@ @@",
    "@@@",
    "< > _ / m i p d k",
]
RESERVED = {"<mined>", "__eng__", "__deu__", "<pad>", "</s>", "<s>", "<unk>"}
MARKS = {"sentencepiece": "sentencepiece", "fastbpe": "@@ "}


def make_corpus(folder, lines, held_out):
    """A corpus of one language pair with this training and validation text, by language."""
    counts = {"train": len(lines["eng"]), "valid": len(held_out["eng"]), "test": 0}
    corpus = Corpus.empty(folder).adding({ENG_DEU: counts, ENG_DEU.reverse: counts})
    corpus.save()
    for split, texts in {"train": lines, "valid": held_out}.items():
        for language, text in texts.items():
            write_text(corpus.text("raw", split, ENG_DEU, language), "".join(f"{line}\n" for line in text))
    return corpus


def sentences(language, number):
    """Words of one to three syllables, and a number."""
    rng = random.Random(language)
    syllables = SYLLABLES[language].split()
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(40)]
    return [" ".join(rng.choices(words, k=5)) + f" {rng.randrange(100)}" for _ in range(number)]


@pytest.fixture(scope="module", params=MARKS)
def corpus(request, tmp_path_factory):
    """A corpus that went through all steps, with text that reads like tags and marks."""
    lines = {language: sentences(language, 200) + 200 * TRICKY for language in SYLLABLES}
    corpus = make_corpus(tmp_path_factory.mktemp(request.param), lines, {name: TRICKY for name in SYLLABLES})
    flags = ("--bpe", request.param, "--vocab-size", 80, "--data-tags", "mined")
    succeeds("prepare", corpus.folder, *flags, "--workers", 1)
    return corpus


def raw(corpus, split, language):
    return corpus.text("raw", split, ENG_DEU, language).read_text().splitlines()


def test_no_text_becomes_a_reserved_symbol_and_all_of_it_comes_back(corpus):
    from fairseq.data.data_utils import post_process

    for split in ("train", "valid"):
        for language in SYLLABLES:
            encoded = corpus.text("encoded", split, ENG_DEU, language).read_text().splitlines()
            assert not RESERVED & {piece for line in encoded for piece in line.split()}
            assert [post_process(line, MARKS[corpus.bpe]) for line in encoded] == raw(corpus, split, language)


def test_binarized_text_is_the_text(corpus):
    from fairseq.data import Dictionary, data_utils

    data_bin = corpus.folder / "data-bin"
    dictionary = Dictionary.load(str(data_bin / "dict.deu.txt"))
    assert dictionary.symbols[-1] == "<mined>" and not {"__eng__", "__deu__"} & set(dictionary.symbols)
    dataset = data_utils.load_indexed_dataset(str(data_bin / "valid.eng-deu.deu"), dictionary)
    assert [dictionary.string(dataset[n], MARKS[corpus.bpe]) for n in range(len(dataset))] == TRICKY
    assert bpe_of(data_bin) == corpus.bpe


def test_learning_again_gives_the_same(corpus):
    files = [path for path in corpus.subwords.iterdir() if path.suffix != ".log"]
    before = {path: path.read_bytes() for path in files}
    (corpus.folder / ".stamps" / "learn_subwords.json").unlink()
    succeeds("learn_subwords", corpus.folder, "--bpe", corpus.bpe, "--vocab-size", 80, "--data-tags", "mined")
    assert {path: path.read_bytes() for path in files} == before


def test_tags_change_no_piece(tmp_path):
    """Kinds of data may be added later: what was learnt, and its place in the dictionary, stays."""
    corpus = make_corpus(
        tmp_path, {name: sentences(name, 200) for name in SYLLABLES}, {name: ["low"] for name in SYLLABLES}
    )
    succeeds("learn_subwords", tmp_path, "--vocab-size", 60)
    before = corpus.dictionary.read_text()
    succeeds("learn_subwords", tmp_path, "--vocab-size", 60, "--data-tags", "mined,back_translated")
    assert corpus.dictionary.read_text() == before + "<mined> 1\n<back_translated> 1\n"


def test_fastbpe_is_what_fairseq_applies(tmp_path):
    from fairseq.data.encoders.fastbpe import fastBPE, fastBPEConfig

    texts = {language: sentences(language, 300) for language in SYLLABLES}
    corpus = make_corpus(tmp_path, texts, {language: lines[:20] for language, lines in texts.items()})
    succeeds("learn_subwords", tmp_path, "--bpe", "fastbpe", "--vocab-size", 40)
    succeeds("encode", tmp_path, "--workers", 1)
    theirs = fastBPE(fastBPEConfig(bpe_codes=str(corpus.model)))
    for language, lines in texts.items():
        encoded = corpus.text("encoded", "train", ENG_DEU, language).read_text().splitlines()
        assert encoded == [theirs.encode(line) for line in lines]
        assert [theirs.decode(line) for line in encoded] == lines
    assert any("@@" in line for line in encoded)


def test_the_codes_are_those_of_subword_nmt(tmp_path):
    import io

    from subword_nmt.apply_bpe import BPE

    texts = {language: sentences(language, 300) for language in SYLLABLES}
    corpus = make_corpus(tmp_path, texts, {language: ["low"] for language in SYLLABLES})
    succeeds("learn_subwords", tmp_path, "--bpe", "fastbpe", "--vocab-size", 40)
    succeeds("encode", tmp_path, "--workers", 1)
    rules = [line.rsplit(" ", 1)[0] for line in corpus.model.read_text().splitlines()]
    theirs = BPE(io.StringIO("\n".join(["#version: 0.2", *rules])))
    encoded = corpus.text("encoded", "train", ENG_DEU, "deu").read_text().splitlines()
    assert encoded == [theirs.process_line(line) for line in texts["deu"]]


def test_changing_the_kind_of_subwords_leaves_nothing_of_the_other(tmp_path):
    texts = {language: sentences(language, 200) for language in SYLLABLES}
    corpus = make_corpus(tmp_path, texts, {language: ["low"] for language in SYLLABLES})
    for kind, names in {
        "fastbpe": {"bpe.codes", "bpe.vocab"},
        "sentencepiece": {"spm.model", "spm.vocab", "spm.log"},
    }.items():
        succeeds("prepare", tmp_path, "--bpe", kind, "--vocab-size", 60, "--workers", 1)
        assert {path.name for path in corpus.subwords.iterdir()} == names | {"dict.txt"}
        assert corpus.bpe == kind == bpe_of(tmp_path / "data-bin")


@pytest.mark.parametrize("kind", MARKS)
def test_unknown_characters_never_spell_a_symbol(tmp_path, kind):
    """A run of characters that the vocabulary lacks is unknown, even where it reads `<pad>`."""
    lines = {"eng": ["一二 二三 三四 二三"] * 50, "deu": ["五六 六七 七八 六七"] * 50}
    corpus = make_corpus(tmp_path, lines, {"eng": ["一 <pad> __eng__"], "deu": ["五 </s>"]})
    succeeds("learn_subwords", tmp_path, "--bpe", kind, "--vocab-size", 12 if kind == "sentencepiece" else 4)
    succeeds("encode", tmp_path, "--workers", 1)
    pieces = corpus.text("encoded", "valid", ENG_DEU, "eng").read_text().split()
    assert "<unk>" in pieces and not {"<pad>", "__eng__"} & set(pieces)
    figures = json.loads((corpus.reports / "subwords.json").read_text())["languages"]["eng"]
    assert figures["unknown"] == pytest.approx(pieces.count("<unk>") / figures["pieces"], abs=1e-6)


def test_fertility_is_counted_as_it_is_defined(tmp_path):
    lines = {"eng": ["a b"] * 99 + ["ab"], "deu": ["c d e"] * 99 + ["é"]}
    corpus = make_corpus(tmp_path, lines, {"eng": ["a b", "b"], "deu": ["é é é", "c d"]})
    flags = ("--vocab-size", 266, "--byte-fallback", "--character-coverage", 0.99)
    succeeds("learn_subwords", tmp_path, *flags)
    said = step("encode", tmp_path, "--workers", 1)
    assert said.returncode == 0 and "per word" in said.stdout
    report = json.loads((corpus.reports / "subwords.json").read_text())
    for language in ("eng", "deu"):
        paths = [corpus.text("encoded", split, ENG_DEU, language) for split in ("train", "valid")]
        pieces = [piece for path in paths for piece in path.read_text().split()]
        text = [line for split in ("train", "valid") for line in raw(corpus, split, language)]
        found = report["languages"][language]
        assert found["sentences"] == len(text) and found["pieces"] == len(pieces)
        assert found["per_word"] == pytest.approx(len(pieces) / sum(len(line.split()) for line in text), abs=1e-4)
        assert found["per_character"] == pytest.approx(
            len(pieces) / sum(len(line.replace(" ", "")) for line in text), abs=1e-4
        )
        assert found["bytes"] == pytest.approx(sum(p.startswith("<0x") for p in pieces) / len(pieces), abs=1e-6)
        assert found["single"] == pytest.approx(sum(len(p.lstrip("▁")) <= 1 for p in pieces) / len(pieces), abs=1e-6)
        assert found["uses"] == len(set(pieces))
    held_out = {name: len(corpus.text("encoded", "valid", ENG_DEU, name).read_text().split()) for name in SYLLABLES}
    german = report["languages"]["deu"]
    assert german["same_text"] == pytest.approx(held_out["deu"] / held_out["eng"], abs=1e-4)
    assert german["bytes"] > 0 and list(report["languages"]) == ["deu", "eng"]
    assert (corpus.reports / "subwords.png").read_bytes().startswith(b"\x89PNG")


def test_a_language_is_starved_that_takes_many_more_pieces_than_the_median():
    from data_prep.counting import Figures
    from data_prep.fertility import Fertility, premium, starved, table_of

    pieces = {"fra": 120, "kat": 210, "deu": 130, "zho_Hans": 90}
    held_out = [{"eng": Figures(pieces=100), name: Figures(pieces=count)} for name, count in pieces.items()]
    held_out.append({"kat": Figures(pieces=500), "fra": Figures(pieces=100)})
    names = ["eng", *pieces, "ell"]
    figures = Figures(sentences=1, words=10, characters=100, pieces=100)
    languages = {name: Fertility(figures, premium(name, held_out)) for name in names}
    assert [languages[name].premium for name in names[:-1]] == [1, 1.2, 2.1, 1.3, 0.9]
    assert starved(languages) == ["kat"]
    assert [row[0] for row in table_of(languages, 10)][1:] == ["eng", "fra", "kat*", "deu", "zho_Hans", "ell"]


def test_refuses_what_does_not_go_together(corpus):
    folder = corpus.folder
    assert "--byte-fallback is of --bpe sentencepiece" in refuses(
        "learn_subwords", folder, "--bpe", "fastbpe", "--byte-fallback"
    )
    for kind in ("main", "pad", "mined data"):
        assert f"--data-tags has '{kind}'" in refuses("learn_subwords", folder, "--data-tags", f"mined,{kind}")


def test_a_missing_library_is_one_sentence(corpus, tmp_path, monkeypatch):
    (tmp_path / "subword_nmt.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    said = refuses("learn_subwords", corpus.folder, "--bpe", "fastbpe", "--vocab-size", 61)
    assert "pip install subword-nmt fastBPE==0.1.0" in said
