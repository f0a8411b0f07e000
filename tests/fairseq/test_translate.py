"""`moe-nmt translate`: what fairseq-generate finds, for all directions at once, and in any number of calls."""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
import sentencepiece
import torch
from fairseq.data import Dictionary
from fairseq.dataclass.configs import GenerationConfig

from moe_nmt.data import Direction
from moe_nmt.data.text import read_lines
from moe_nmt.errors import UserError
from moe_nmt.evaluation.translations import find_translations, read_translations
from moe_nmt.fairseq_plugin.decoding import Detokenizer, decode, load_test_sets
from moe_nmt.fairseq_plugin.translation import load, translate
from tests.fairseq.conftest import BIN, ROOT, must_run
from tests.fairseq.test_bad_input import refuse, run

BATCHES = ("--max-tokens", "150")  # several in a direction


def command(corpus, checkpoint, output, *flags):
    return ["moe-nmt", "translate", checkpoint, corpus.data, "--output", output, "--cpu", *BATCHES, *flags]


def contents(folder):
    return {path.stem: path.read_bytes() for path in folder.glob("*.hyp")}


@pytest.fixture(scope="module")
def translated(corpus, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("translated")
    done = must_run(command(corpus, trained, folder))
    assert "100%" in done.stderr and f"{20 * len(corpus.pairs)} of {20 * len(corpus.pairs)} sentences" in done.stderr
    return folder


def test_every_direction_is_there_and_ready_to_score(corpus, translated):
    found = find_translations(translated, "test")
    assert sorted(map(str, found)) == sorted(corpus.pairs)
    assert {len(read_translations(path).hypotheses) for path in found.values()} == {20}
    assert len(set(contents(translated).values())) == len(corpus.pairs)


def generated(corpus, checkpoint, pair, folder, longest):
    """What fairseq-generate finds."""
    same = (*BATCHES, "--max-len-a", str(longest[0]), "--max-len-b", str(longest[1]))
    must_run(corpus.generate_command(checkpoint, pair, *same, "--results-path", folder / pair))
    return read_translations(folder / pair / "generate-test.txt").hypotheses


def test_translations_are_those_of_fairseq_generate(corpus, trained, translated, tmp_path):
    expected = generated(corpus, trained, "eng-ell", tmp_path, (2, 20))
    assert list(read_lines(translated / "eng-ell.hyp")) == expected
    assert sum(map(bool, expected)) > 10


def test_translations_that_are_cut_off_are_so_where_fairseq_generate_does(corpus, trained, translated, tmp_path):
    """It allows a translation more tokens if its batch has a longer source."""
    expected = generated(corpus, trained, "fra-eng", tmp_path, (0.5, 1))
    search = GenerationConfig(beam=4, max_len_a=0.5, max_len_b=1)
    translate_here(corpus, trained, tmp_path, directions=None, search=search)
    assert list(read_lines(tmp_path / "fra-eng.hyp")) == expected
    assert contents(tmp_path)["fra-eng"] != contents(translated)["fra-eng"]


def interrupt(command, journal, how):
    """Start a translation, and end it by a signal once a batch or two are in the journal."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    first, *rest = map(str, command)
    with subprocess.Popen([BIN / first, *rest], env=environment, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 3):
            time.sleep(0.005)
        process.send_signal(how)
        return process.wait(), process.stderr.read()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_call_is_taken_up_by_the_next(corpus, trained, translated, tmp_path, how):
    journal = tmp_path / ".translations.journal"
    status, said = interrupt(command(corpus, trained, tmp_path), journal, how)
    assert not contents(tmp_path)
    if how == signal.SIGINT:
        assert status == 130 and said.splitlines()[-1].startswith("moe-nmt: interrupted; the same command goes on")
    _, *batches = journal.read_bytes().splitlines()
    kept = sum(len(json.loads(line.split(maxsplit=1)[1])) for line in batches)
    assert 0 < kept < 20 * len(corpus.pairs)
    done = must_run(command(corpus, trained, tmp_path))
    assert int(re.search(r"translate: +(\d+)%", done.stderr)[1]) > 0  # of the tokens are done when it begins
    assert contents(tmp_path) == contents(translated)
    names = {"translations.json", *(f"{pair}.hyp" for pair in corpus.pairs)}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_damaged_journal_costs_no_more_than_its_end(corpus, trained, translated, tmp_path):
    journal = tmp_path / ".translations.journal"
    interrupt(command(corpus, trained, tmp_path), journal, signal.SIGKILL)
    journal.write_bytes(journal.read_bytes()[:-7] + b"\x00\xff")
    translate_here(corpus, trained, tmp_path, directions=None)
    assert contents(tmp_path) == contents(translated)


def test_a_journal_of_other_options_is_not_used(corpus, trained, translated, tmp_path):
    journal = tmp_path / ".translations.journal"
    interrupt([*command(corpus, trained, tmp_path), "--beam", "1"], journal, signal.SIGKILL)
    translate_here(corpus, trained, tmp_path, directions=None)
    assert contents(tmp_path) == contents(translated)


def test_batches_that_mix_directions_are_longest_first(corpus, trained):
    task, model = load(trained, {"data": str(corpus.data)})
    sets = load_test_sets(task, model, "test", task.directions, 150)
    batches = list(decode(task, model, sets, GenerationConfig(beam=1, max_len_a=2, max_len_b=20), 150))
    lengths = [max(sets.sizes[number, 0] for number in batch) for batch in batches]
    assert lengths == sorted(lengths, reverse=True)
    assert sum(len({sets.place(number)[0] for number in batch}) > 1 for batch in batches) > len(batches) / 2
    assert sorted(number for batch in batches for number in batch) == list(range(len(sets)))


def test_the_split_valid(corpus, trained, tmp_path):
    translate_here(corpus, trained, tmp_path, split="valid")
    assert len(contents(tmp_path)["eng-deu"].splitlines()) == 20


def test_an_output_that_cannot_be_written(corpus, trained, tmp_path):
    (tmp_path / "file").write_text("")
    refuse(run(command(corpus, trained, tmp_path / "file" / "folder")), "file")


@pytest.mark.parametrize(
    ("symbols", "tokens", "text"),
    [
        ("▁a ä ▁", "▁a ä ▁ ▁a", "aä  a"),
        ("▁a <0x00> <0xC3> <0xA4> <0x0A>", "▁a <0xC3> <0xA4> ▁a <0xC3> <0x0A>", "aä a\ufffd"),
        ("▁a <0x00> <0xE2> <0x96>", "<0xE2> <0x96> ▁a", "\ufffd a"),
        ("a@@ b c", "a@@ b c a@@", "ab c a"),
        ("a b", "a b", "a b"),
    ],
)
def test_detokenization_goes_by_the_vocabulary(symbols, tokens, text):
    dictionary = Dictionary()
    for symbol in symbols.split():
        dictionary.add_symbol(symbol)
    numbers = [dictionary.index(token) for token in tokens.split()]
    assert Detokenizer(dictionary)([dictionary.eos(), *numbers, dictionary.eos()]) == text


def test_bytes_are_put_together_as_sentencepiece_does_it(corpus, tmp_path):
    model = tmp_path / "bytes"
    sentencepiece.SentencePieceTrainer.train(
        input=corpus.folder / "raw/train.eng-deu.deu", model_prefix=model, vocab_size=400, byte_fallback=True
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=f"{model}.model")
    dictionary = Dictionary()
    for number in range(3, len(pieces)):
        dictionary.add_symbol(pieces.id_to_piece(number))
    for line in ["Ein Σύστημα, 日本 und ein 🙂!", "Заяц <0x41> und <0xE4>", "x🙂🙂"]:
        cut = pieces.encode(line, out_type=str)
        assert any(piece.startswith("<0x") for piece in cut)
        assert Detokenizer(dictionary)([dictionary.index(piece) for piece in cut]) == pieces.decode(cut) == line


def test_the_recipe_does_nothing_twice(corpus, trained, translated, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/checkpoint_best.pt").symlink_to(trained)
    (tmp_path / "corpus").symlink_to(corpus.folder)
    shutil.copytree(translated, tmp_path / "translations")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "translations").glob("*.hyp")}
    done = must_run(
        ["bash", "-euc", 'source "$1/scripts/recipe.sh"; translate "$2" --max-tokens 150', "recipe", ROOT, tmp_path]
    )
    assert f"{len(before)} of {len(before)} directions are done already" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "translations").glob("*.hyp")} == before


def translate_here(corpus, checkpoint, output, directions="eng-deu", **options):
    directions = [Direction.parse(directions)] if directions else None
    search = GenerationConfig(beam=4, max_len_a=2, max_len_b=20)
    options = {"data": str(corpus.data), "max_tokens": 150, "cpu": True, "search": search} | options
    translate(checkpoint, output=output, directions=directions, **options)


def test_a_newer_checkpoint_translates_again(corpus, trained, translated, tmp_path):
    shutil.copy(translated / "eng-deu.hyp", tmp_path)
    stale = tmp_path / "eng-deu.hyp"
    shutil.copy(translated / "translations.json", tmp_path)
    translate_here(corpus, trained, tmp_path)
    known = stale.stat().st_mtime_ns
    newer = tmp_path / "newer.pt"
    shutil.copy(trained, newer)
    translate_here(corpus, newer, tmp_path)
    again = stale.stat().st_mtime_ns
    assert again > known  # though the text is the same
    assert contents(tmp_path)["eng-deu"] == contents(translated)["eng-deu"]
    translate_here(corpus, newer, tmp_path)
    assert stale.stat().st_mtime_ns == again
    translate_here(corpus, newer, tmp_path, max_tokens=151)
    assert stale.stat().st_mtime_ns > again


def test_options_of_the_model_may_be_changed(corpus, trained, translated, tmp_path):
    translate(
        trained,
        str(corpus.data),
        tmp_path,
        directions=[Direction.parse("eng-deu")],
        model_overrides={"moe_router": "top_k(k=1)"},
        search=GenerationConfig(beam=4, max_len_a=2, max_len_b=20),
        cpu=True,
    )
    assert contents(tmp_path)["eng-deu"] != contents(translated)["eng-deu"]
    done = run(command(corpus, trained, tmp_path, "--model-overrides", "k=1"))
    refuse(done, "--model-overrides k=1 is no dictionary")


def test_another_precision(corpus, trained, translated, tmp_path):
    translate_here(corpus, trained, tmp_path, dtype=torch.bfloat16)
    pairs = zip(read_lines(tmp_path / "eng-deu.hyp"), read_lines(translated / "eng-deu.hyp"), strict=True)
    assert sum(half == full for half, full in pairs) >= 10


@pytest.mark.parametrize(
    ("directions", "split", "words"),
    [
        ("eng-xyz", "test", ["'xyz'", "deu"]),
        ("deu-fra", "test", ["deu-fra", "no test data"]),
        ("eng-deu", "tset", ["'tset'", "did you mean 'test'"]),
        (None, "tset", ["'tset'", "did you mean 'test'"]),
    ],
)
def test_what_is_not_there(corpus, trained, tmp_path, directions, split, words):
    with pytest.raises(UserError) as refused:
        translate_here(corpus, trained, tmp_path, directions, split=split)
    assert all(word in str(refused.value) for word in words), refused.value
    assert not any(tmp_path.iterdir())


def test_data_of_another_vocabulary(corpus, trained, tmp_path):
    shutil.copytree(corpus.data, tmp_path / "data")
    for path in (tmp_path / "data").glob("dict.*.txt"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match="vocabulary"):
        translate_here(corpus, trained, tmp_path / "output", data=str(tmp_path / "data"))


def test_a_sentence_too_long_for_the_model(corpus, trained, tmp_path):
    state = torch.load(trained, weights_only=True)
    state["cfg"]["task"].max_source_positions = 8
    torch.save(state, tmp_path / "short.pt")
    with pytest.raises(UserError, match=r"line \d+ of eng-deu has more tokens"):
        translate_here(corpus, tmp_path / "short.pt", tmp_path / "output")
    assert not list((tmp_path / "output").glob("*"))


def test_a_sentence_too_long_for_a_batch(corpus, trained, tmp_path):
    with pytest.raises(UserError, match="--max-tokens 3 to that"):
        translate_here(corpus, trained, tmp_path, max_tokens=3)


def test_a_model_that_has_diverged(corpus, trained, tmp_path):
    state = torch.load(trained, weights_only=True)
    state["model"]["decoder.layer_norm.weight"].fill_(float("nan"))
    torch.save(state, tmp_path / "diverged.pt")
    with pytest.raises(UserError, match="no finite score"):
        translate_here(corpus, tmp_path / "diverged.pt", tmp_path)
    assert not contents(tmp_path)


def test_a_checkpoint_that_is_missing_cut_or_of_another_task(corpus, trained, tmp_path):
    refuse(run(command(corpus, tmp_path / "missing.pt", tmp_path)), "missing.pt", "no checkpoint")
    (tmp_path / "cut.pt").write_bytes(trained.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cut\.pt"):
        translate_here(corpus, tmp_path / "cut.pt", tmp_path)
    state = torch.load(trained, weights_only=True)
    state["cfg"]["task"]._name = "translation"
    torch.save(state, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match=r"foreign\.pt.* task translation"):
        translate_here(corpus, tmp_path / "foreign.pt", tmp_path)
