"""The data steps through their shell scripts, from text to what fairseq loads: results, repeats, kills and mistakes."""

import gzip
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_nmt.data import Corpus, Direction
from moe_nmt.data.text import write_text

pytest.importorskip("sentencepiece")

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = {"eng": "one two three four five six seven", "deu": "eins zwei drei vier fünf sechs sieben"}
LANGUAGES |= {"fra": "un deux trois quatre cinq six sept", "zho_Hans": "一 二 三 四 五 六 七"}
LINES = {"train": 300, "dev": 20, "test": 10}
SPLITS = "train=train,valid=dev,test=test"
PAIRS = "eng-deu,eng-fra,eng-zho_Hans"
TAGS = [f"__{language}__" for language in LANGUAGES]
ENG_DEU = Direction("eng", "deu")


def step(name, *arguments, cwd=ROOT):
    """Runs a step with the interpreter of the tests, its messages in English."""
    command = [str(ROOT / "data_prep" / f"{name}.sh"), *map(str, arguments)]
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def succeeds(name, *arguments, cwd=ROOT):
    result = step(name, *arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stderr


def refuses(name, *arguments):
    """The sentence with which a step refuses: status 2, no traceback, one line after what it did before."""
    result = step(name, *arguments)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    *_, last = result.stderr.splitlines()
    assert last.startswith(f"{name}.sh: error: ")
    return last


def sentences(language, split):
    """Sentences of a split, the same numbers in every language; the seventh lacks in all but English."""
    rng = random.Random(split)
    words = LANGUAGES[language].split()
    for number in range(LINES[split]):
        text = (
            "  ".join(words[rng.randrange(7)] + words[rng.randrange(7)] for _ in range(rng.randint(1, 6)))
            + f"\t{rng.randrange(1000)} "
        )
        yield text if language == "eng" or number != 6 else ""


@pytest.fixture(scope="module")
def multiparallel(tmp_path_factory):
    """A folder of line-aligned text in four languages, some of it packed."""
    folder = tmp_path_factory.mktemp("multiparallel")
    for language in LANGUAGES:
        for split in LINES:
            text = "".join(f"{line}\n" for line in sentences(language, split)).encode()
            packed = split == "train"
            path = folder / f"{split}.{language}.txt{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(text) if packed else text)
    return folder


@pytest.fixture(scope="module")
def prepared(multiparallel, tmp_path_factory):
    """A corpus that went through all steps, called from elsewhere with a relative path."""
    folder = tmp_path_factory.mktemp("prepared")
    succeeds("import_multiparallel", multiparallel, "corpus", "--pairs", PAIRS, "--splits", SPLITS, cwd=folder)
    succeeds("prepare", "corpus", "--vocab-size", 80, "--workers", 2, "--max-pieces", 12, cwd=folder)
    return folder / "corpus"


@pytest.fixture
def corpus(prepared, tmp_path):
    """A copy of the prepared corpus to do harm to."""
    return shutil.copytree(prepared, tmp_path / "corpus")


def vocabulary(corpus):
    """The pieces of a SentencePiece vocabulary."""
    return [line.split("\t")[0] for line in (corpus / "subwords" / "spm.vocab").read_text().splitlines()]


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_import_keeps_what_both_sides_have(prepared):
    corpus = Corpus.open(prepared)
    assert corpus.languages == ("eng", "deu", "fra", "zho_Hans")
    assert [str(direction) for direction in corpus.directions][:2] == ["eng-deu", "deu-eng"]
    assert corpus.counts(ENG_DEU) == {"train": 299, "valid": 19, "test": 9}
    expected = [" ".join(line.split()) for n, line in enumerate(sentences("eng", "dev")) if n != 6]
    assert corpus.text("raw", "valid", ENG_DEU, "eng").read_text().splitlines() == expected
    corpus.check_text(ENG_DEU)


def test_dictionary_is_the_vocabulary_without_what_fairseq_adds(prepared):
    from fairseq.data import Dictionary

    controls, pieces = ["<unk>", "<s>", "</s>", "<pad>", *TAGS], vocabulary(prepared)
    dictionary = Dictionary.load(str(prepared / "subwords" / "dict.txt"))
    assert pieces[: len(controls)] == controls and len(pieces[len(controls) :]) == 80 - 3
    assert dictionary.symbols[dictionary.nspecial :] == pieces[len(controls) :]
    assert not any(sum(char.isdigit() for char in piece) > 1 for piece in pieces)


def test_encoding_is_reversible_and_drops_only_long_training_pairs(prepared):
    import sentencepiece

    corpus = Corpus.open(prepared)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(corpus.model))
    for split in ("train", "valid", "test"):
        raw = [path.read_text().splitlines() for path in corpus.sides("raw", split, ENG_DEU)]
        encoded = [path.read_text().splitlines() for path in corpus.sides("encoded", split, ENG_DEU)]
        pairs = [pair for pair in zip(*raw, strict=True) if split != "train" or _short(processor, pair)]
        decoded = [[processor.decode(line.split(" ")) for line in side] for side in encoded]
        assert list(zip(*decoded, strict=True)) == pairs
    assert 0 < len(encoded[0]) <= len(raw[0])


def _short(processor, pair):
    return max(len(processor.encode(side)) for side in pair) <= 12


def test_data_bin_is_what_fairseq_preprocess_writes(prepared, tmp_path):
    arguments = ["-s", "eng", "-t", "zho_Hans", "--srcdict", prepared / "subwords" / "dict.txt", "--joined-dictionary"]
    prefixes = [f"--{split}pref={prepared}/encoded/{split}.eng-zho_Hans" for split in ("train", "valid", "test")]
    command = [sys.executable, "-m", "fairseq_cli.preprocess", *arguments, *prefixes, "--destdir", tmp_path]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".log"}
    assert len(written) == 2 * 3 * 2 + 2
    assert written == {name: (prepared / "data-bin" / name).read_bytes() for name in written}


def test_data_bin_has_every_pair_and_dictionary_and_nothing_else(prepared):
    names = {path.name for path in (prepared / "data-bin").iterdir()}
    expected = {"manifest.json", *(f"dict.{language}.txt" for language in LANGUAGES)}
    for pair in PAIRS.split(","):
        sides = [f"{split}.{pair}.{side}" for split in ("train", "valid", "test") for side in pair.split("-")]
        expected |= {f"{side}.{kind}" for side in sides for kind in ("bin", "idx")}
    assert names == expected


def test_running_again_changes_nothing_and_says_so(prepared, multiparallel):
    before = times(prepared)
    said = succeeds("import_multiparallel", multiparallel, prepared, "--pairs", PAIRS, "--splits", SPLITS)
    said += succeeds("prepare", prepared, "--vocab-size", 80, "--max-pieces", 12)
    assert times(prepared) == before
    assert said.count("3 of 3 parts are up to date, skipped") == 3
    assert "spm.model is up to date, skipped" in said


def test_other_settings_and_changed_inputs_are_done_again(corpus):
    succeeds("encode", corpus, "--max-ratio", 1.01, "--workers", 1)
    kept = (corpus / "encoded" / "train.eng-deu.eng").read_text().splitlines()
    assert 0 < len(kept) < 299
    text = corpus / "raw" / "valid.eng-fra.fra"
    text.write_text(text.read_text().replace("un", "six"))
    said = succeeds("encode", corpus, "--max-ratio", 1.01, "--workers", 1)
    assert "2 of 3 parts are up to date, skipped" in said
    assert "1/1 eng-fra" in said and "all done in" in said


def test_the_vocabulary_is_the_same_for_the_same_seed(corpus):
    before = (corpus / "subwords" / "spm.model").read_bytes()
    shutil.rmtree(corpus / ".stamps")
    succeeds("learn_subwords", corpus, "--vocab-size", 80)
    assert (corpus / "subwords" / "spm.model").read_bytes() == before


def test_bpe_with_bytes_for_what_is_unknown(corpus):
    import sentencepiece

    succeeds("learn_subwords", corpus, "--vocab-size", 350, "--model-type", "bpe", "--byte-fallback")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(corpus / "subwords" / "spm.model"))
    assert processor.decode(processor.encode("one ქ", out_type=str)) == "one ქ"
    assert "<0xE1> 1" in (corpus / "subwords" / "dict.txt").read_text().splitlines()


def test_a_low_resource_language_is_not_starved(tmp_path):
    from data_prep.learn_subwords import plan_sample

    rich, poor = ({"train": count, "valid": 0, "test": 0} for count in (100_000, 100))
    corpus = Corpus.empty(tmp_path).adding({ENG_DEU: rich, Direction("eng", "kat"): poor})
    for pair in corpus.directions:
        write_text(corpus.sides("raw", "train", pair)[0], "one\n")
    proportional, raised = (plan_sample(corpus, temperature, 10_000) for temperature in (1, 5))
    assert proportional["kat"] < 10 < 1000 < raised["kat"]
    assert sum(raised.values()) == 10_000


def test_importing_adds_to_a_corpus(prepared, corpus, tmp_path):
    for path in (prepared / "raw").glob("*.eng-fra.*"):
        shutil.copy(path, tmp_path / path.name.replace("fra", "oci"))
    succeeds("import_bitext", tmp_path, corpus, "--max-train", 50)
    added = Corpus.open(corpus)
    assert added.languages == ("eng", "deu", "fra", "zho_Hans", "oci")
    assert added.counts(Direction("oci", "eng")) == {"train": 50, "valid": 19, "test": 9}
    assert added.counts(ENG_DEU) == Corpus.open(prepared).counts(ENG_DEU)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_step_leaves_nothing_half_written_and_goes_on(corpus, workers):
    for path in (corpus / "encoded").glob("train.eng-deu.*"):
        path.write_text(path.read_text() * 400)
    succeeds("binarize", corpus)
    whole = {path.name: path.read_bytes() for path in (corpus / "data-bin").iterdir()}
    shutil.rmtree(corpus / "data-bin")
    environment = {**os.environ, "PYTHON": sys.executable}
    command = [str(ROOT / "data_prep" / "binarize.sh"), str(corpus), "--workers", str(workers)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not list(corpus.glob("data-bin/.*.tmp")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)
    assert not (corpus / "data-bin" / "manifest.json").exists()
    assert all(path.read_bytes() == whole[path.name] for path in (corpus / "data-bin").glob("[!.]*"))
    succeeds("binarize", corpus, "--workers", workers)
    assert {path.name: path.read_bytes() for path in (corpus / "data-bin").iterdir()} == whole


def test_a_draft_left_behind_does_no_harm(corpus, prepared):
    draft = corpus / "encoded" / ".train.eng-deu.eng.tmp"
    draft.write_text("half a li")
    (corpus / "encoded" / "train.eng-deu.deu").unlink()
    succeeds("encode", corpus, "--max-pieces", 12)
    assert not draft.exists()
    for path in (corpus / "encoded").iterdir():
        assert path.read_bytes() == (prepared / "encoded" / path.name).read_bytes()


def test_refuses_sides_of_different_length(corpus):
    path = corpus / "raw" / "train.eng-deu.deu"
    path.write_text(path.read_text() + "mehr\n")
    sentence = f"train.eng-deu.eng has 299 lines and {path} has 300"
    assert sentence in refuses("encode", corpus, "--workers", 2)
    assert sentence in refuses("prepare", corpus, "--vocab-size", 80)


def test_refuses_bytes_that_are_not_utf8(corpus):
    path = corpus / "raw" / "valid.eng-deu.deu"
    path.write_bytes(path.read_bytes().replace("ü".encode(), b"\xfc"))
    assert f"{path} line " in refuses("encode", corpus, "--workers", 1)


def test_refuses_an_empty_file(corpus):
    (corpus / "raw" / "train.eng-fra.fra").write_text("")
    assert "train.eng-fra.fra is empty" in refuses("learn_subwords", corpus, "--vocab-size", 80)


def test_refuses_a_direction_without_data(corpus):
    with open(corpus / "directions.tsv", "a") as table:
        table.write("deu-fra\t10\t0\t0\n")
    assert "direction deu-fra has no text" in refuses("encode", corpus)


def test_refuses_an_unknown_language(corpus, multiparallel, tmp_path):
    with open(corpus / "directions.tsv", "a") as table:
        table.write("eng-fro\t10\t0\t0\n")
    assert "has no language 'fro'; did you mean 'fra'" in refuses("encode", corpus)
    arguments = multiparallel, tmp_path / "new", "--pairs", "eng-zho_Hant", "--splits", SPLITS
    assert "has no language 'zho_Hant'; did you mean 'zho_Hans'" in refuses("import_multiparallel", *arguments)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("pairs", "splits", "sentence"),
    [
        ("eng-deu,deu-eng", SPLITS, "deu-eng are the same language pair"),
        ("eng-deu,eng-deu", SPLITS, "eng-deu stands twice"),
        ("eng-deu-AT", SPLITS, "'eng-deu-AT' is no direction"),
        ("eng-deu", "train=train,dev=dev", "--splits has no split 'dev'"),
        ("eng-deu", "train", "--splits names no file for train: write train=NAME"),
    ],
)
def test_refuses_to_import_what_is_not_there(multiparallel, tmp_path, pairs, splits, sentence):
    arguments = multiparallel, tmp_path / "new", "--pairs", pairs, "--splits", splits
    assert sentence in refuses("import_multiparallel", *arguments)


def test_refuses_a_pair_under_its_other_name(prepared, multiparallel):
    arguments = multiparallel, prepared, "--pairs", "deu-eng", "--splits", SPLITS
    assert "already holds deu-eng as eng-deu" in refuses("import_multiparallel", *arguments)


def test_refuses_a_vocabulary_that_the_text_cannot_fill(corpus):
    assert "set it to a value <=" in refuses("learn_subwords", corpus, "--vocab-size", 5000)
    assert "temperature 0.0 cannot be used" in refuses("learn_subwords", corpus, "--temperature", 0)


def test_refuses_limits_that_leave_no_training_pair(corpus):
    assert "raise --max-pieces or --max-ratio" in refuses("encode", corpus, "--max-pieces", 1, "--workers", 1)


def test_refuses_steps_out_of_order(corpus):
    shutil.rmtree(corpus / "encoded")
    assert "run data_prep/encode.sh" in refuses("binarize", corpus)
    shutil.rmtree(corpus / "subwords")
    assert "run data_prep/learn_subwords.sh" in refuses("encode", corpus)
    assert "is no corpus" in refuses("prepare", corpus / "nowhere")
