"""`moe-nmt translate`: what fairseq-generate finds, for all directions at once, and in any number of calls."""

import os
import shutil
import subprocess
import time

import pytest
import torch
from fairseq.dataclass.configs import GenerationConfig

from moe_nmt.data import Direction
from moe_nmt.data.text import read_lines
from moe_nmt.errors import UserError
from moe_nmt.evaluation.translations import find_translations, read_translations
from moe_nmt.fairseq_plugin.translation import translate
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
    assert f"{20 * len(corpus.pairs)} of {20 * len(corpus.pairs)} sentences" in done.stderr
    return folder


def test_every_direction_is_there_and_ready_to_score(corpus, translated):
    found = find_translations(translated, "test")
    assert sorted(map(str, found)) == sorted(corpus.pairs)
    assert {len(read_translations(path).hypotheses) for path in found.values()} == {20}
    assert len(set(contents(translated).values())) == len(corpus.pairs)


@pytest.mark.parametrize("pair", ["eng-ell", "fra-eng"])
def test_translations_are_those_of_fairseq_generate(corpus, trained, translated, tmp_path, pair):
    same = ("--max-len-a", "2", "--max-len-b", "20", *BATCHES)
    must_run(corpus.generate_command(trained, pair, *same, "--results-path", tmp_path / pair))
    expected = read_translations(tmp_path / pair / "generate-test.txt").hypotheses
    assert list(read_lines(translated / f"{pair}.hyp")) == expected
    assert sum(map(bool, expected)) > 10


def test_a_killed_call_is_finished_by_the_next(corpus, trained, translated, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    first, *rest = map(str, command(corpus, trained, tmp_path))
    with subprocess.Popen([BIN / first, *rest], env=environment, stderr=subprocess.DEVNULL) as process:
        while not contents(tmp_path) and process.poll() is None:
            time.sleep(0.005)
        process.kill()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.hyp")}
    assert 0 < len(kept) < len(corpus.pairs)
    assert contents(tmp_path).items() <= contents(translated).items()
    done = must_run(command(corpus, trained, tmp_path))
    assert f"{len(kept)} of {len(corpus.pairs)} directions are done already" in done.stderr
    assert contents(tmp_path) == contents(translated)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{pair}.hyp" for pair in corpus.pairs)


def test_the_recipe_does_nothing_twice(corpus, trained, translated, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/checkpoint_best.pt").symlink_to(trained)
    (tmp_path / "corpus").symlink_to(corpus.folder)
    shutil.copytree(translated, tmp_path / "translations")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "translations").iterdir()}
    done = must_run(["bash", "-euc", 'source "$1/scripts/recipe.sh"; translate "$2"', "recipe", ROOT, tmp_path])
    assert f"{len(before)} of {len(before)} directions are done already" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "translations").iterdir()} == before


def translate_here(corpus, checkpoint, output, directions="eng-deu", **options):
    directions = [Direction.parse(directions)] if directions else None
    options = {"data": str(corpus.data), "max_tokens": 150, "cpu": True} | options
    search = GenerationConfig(beam=4, max_len_a=2, max_len_b=20)
    translate(checkpoint, output=output, directions=directions, search=search, **options)


def test_a_newer_checkpoint_translates_again(corpus, trained, translated, tmp_path):
    shutil.copy(translated / "eng-deu.hyp", tmp_path)
    stale = tmp_path / "eng-deu.hyp"
    written = trained.stat().st_mtime
    os.utime(stale, (written - 1, written - 1))
    translate_here(corpus, trained, tmp_path)
    again = stale.stat().st_mtime_ns
    assert again > trained.stat().st_mtime_ns  # though the text is the same
    assert contents(tmp_path)["eng-deu"] == contents(translated)["eng-deu"]
    translate_here(corpus, trained, tmp_path)
    assert stale.stat().st_mtime_ns == again


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
