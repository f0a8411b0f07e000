"""`moe-nmt evaluate`: the scores that fairseq-generate and sacrebleu give by hand, for all directions at once."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from moe_nmt.data.text import read_lines
from moe_nmt.evaluation.metrics import bleu_tokenizer
from tests.fairseq.conftest import BIN, ROOT, must_run
from tests.fairseq.test_bad_input import refuse, run

BATCHES = ("--max-tokens", "150")


def command(corpus, checkpoint, output, *flags):
    return ["moe-nmt", "evaluate", checkpoint, corpus.data, "--output", output, "--cpu", *BATCHES, *flags]


@pytest.fixture(scope="module")
def evaluated(corpus, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    done = must_run(command(corpus, trained, folder, "--high-from", "500", "--low-from", "200"))
    assert done.stdout.splitlines()[-1] == str(folder / "index.html")
    return folder


def scores(folder):
    return json.loads((folder / "scores.json").read_text())


@pytest.mark.parametrize("pair", ["eng-fra", "ell-eng"])
def test_scores_are_those_by_hand(corpus, trained, evaluated, tmp_path, pair):
    same = ("--max-len-a", "2", "--max-len-b", "20", *BATCHES)
    said = must_run(corpus.generate_command(trained, pair, *same)).stdout
    best = {int(number): text for number, text in re.findall(r"^D-(\d+)\t[^\t]*\t(.*)$", said, re.MULTILINE)}
    (tmp_path / "hyp").write_text("".join(f"{best[number]}\n" for number in range(20)))
    source, target = pair.split("-")
    name = "-".join(sorted((source, target), key=lambda language: language != "eng"))
    reference = corpus.folder / "raw" / f"test.{name}.{target}"
    flags = ["-m", "bleu", "chrf", "--chrf-word-order", "2", "-tok", bleu_tokenizer(target), "-w", "6"]
    by_hand = subprocess.check_output([BIN / "sacrebleu", reference, "-i", tmp_path / "hyp", *flags], text=True)
    ours, signatures = scores(evaluated)["directions"][pair], scores(evaluated)["signatures"]
    bleu, chrf = json.loads(by_hand)
    assert (ours["bleu"], ours["chrf++"]) == (round(bleu["score"], 2), round(chrf["score"], 2))
    assert ours["bleu"] > 1
    assert signatures["chrf++"] == chrf["signature"]
    assert signatures["bleu"][bleu_tokenizer(target)] == bleu["signature"]
    assert list(read_lines(evaluated / f"{pair}.hyp")) == [best[number] for number in range(20)]


def test_all_that_it_says(corpus, evaluated):
    found = scores(evaluated)["directions"]
    assert set(found) == set(corpus.pairs)
    assert {row["bucket"] for row in found.values()} == {"high", "very_low"}
    assert all(0 <= row[sign] <= 1 for row in found.values() for sign in ("wrong_script", "empty", "repetitive"))
    names = {"scores.json", "scores.md", "statistics.npz", "index.html", "translations.json"}
    assert {path.name for path in evaluated.iterdir()} == names | {f"{pair}.hyp" for pair in corpus.pairs}


def test_nothing_is_translated_twice(corpus, trained, evaluated, tmp_path):
    shutil.copytree(evaluated, tmp_path / "again")
    (tmp_path / "again" / "scores.json").unlink()
    done = must_run(command(corpus, trained, tmp_path / "again", "--high-from", "500", "--low-from", "200"))
    assert f"{len(corpus.pairs)} of {len(corpus.pairs)} directions are done already" in done.stderr
    assert scores(tmp_path / "again") == scores(evaluated)


def test_a_system_compared_with_a_narrower_beam(corpus, trained, evaluated, tmp_path):
    must_run(command(corpus, trained, tmp_path / "greedy", "--beam", "1", "--directions", "eng-deu,ell-eng"))
    said = must_run(["moe-nmt", "compare", evaluated, tmp_path / "greedy", "--draws", "100"]).stdout
    assert re.search(r"at p < 0.05, \d of 2 directions are better and \d worse", said)
    assert re.search(r"^all +2 ", said, re.MULTILINE)


@pytest.mark.slow
def test_the_benchmark_finds_equal_scores(corpus, trained, tmp_path):
    flags = ("--directions", "2", "--rounds", "1", "--max-tokens", "150", "--json", tmp_path / "speed.json")
    said = must_run([sys.executable, ROOT / "scripts/bench_evaluate.py", trained, corpus.folder, *flags]).stdout
    assert "scores equal" in said and "| decoding alone |" in said
    assert len(json.loads((tmp_path / "speed.json").read_text())["decoding"]["mixed"]) == 1


def test_what_is_wrong_is_said_before_anything_is_translated(corpus, trained, tmp_path):
    shutil.copytree(corpus.data, tmp_path / "data-bin")
    elsewhere = ["moe-nmt", "evaluate", trained, tmp_path / "data-bin", "--output", tmp_path / "output", "--cpu"]
    refuse(run(elsewhere), "is no corpus with references", "--corpus")
    refuse(run(command(corpus, trained, tmp_path / "output", "--lid-model", "no.bin")), "no.bin")
    refuse(run(command(corpus, trained, tmp_path / "output", "--low-from", "5", "--high-from", "1")), "no buckets")
    assert not (tmp_path / "output").exists()
