"""The low-resource study: its sample of verses, its runs, its scores and its significance test."""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest

from examples.low_resource_study.scores import chrf, count, p_value, verses
from moe_nmt.data import Corpus, Direction
from moe_nmt.evaluation.metrics import score

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "examples/low_resource_study"
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]
INTO, OUT = Direction("deu", "eng"), Direction("eng", "deu")


def sentences(number: int, seed: int) -> list[str]:
    chosen = random.Random(seed)
    return [" ".join(chosen.choices(WORDS, k=8)) for _ in range(number)]


def worsened(lines: list[str], rate: float, seed: int) -> list[str]:
    chosen = random.Random(seed)
    return [" ".join(w if chosen.random() > rate else chosen.choice(WORDS) for w in line.split()) for line in lines]


def write(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    """One language pair with 60 test sentences."""
    corpus = Corpus.empty(tmp_path / "corpus").adding({d: {"train": 500, "valid": 9, "test": 60} for d in (OUT, INTO)})
    corpus.save()
    for language, seed in (("eng", 1), ("deu", 2)):
        write(corpus.text("raw", "test", OUT, language), sentences(60, seed))
    return corpus


def system(corpus: Corpus, folder: Path, rate: float, seed: int) -> dict[Direction, np.ndarray]:
    for direction in corpus.directions:
        references = corpus.text("raw", "test", OUT, direction.target).read_text().splitlines()
        write(folder / f"{direction}.hyp", worsened(references, rate, seed))
    return {direction: count(corpus, [folder], direction)[0] for direction in corpus.directions}


def test_chrf_of_a_group_is_the_mean_of_its_directions_as_moe_nmt_score_gives_them(corpus, tmp_path):
    counts = system(corpus, tmp_path, 0.3, seed=5)
    expected = []
    for direction in (OUT, INTO):
        hypotheses = (tmp_path / f"{direction}.hyp").read_text().splitlines()
        references = corpus.text("raw", "test", OUT, direction.target).read_text().splitlines()
        expected.append(score(hypotheses, references, direction.target).values["chrf++"])
    assert chrf(counts, [OUT]) == pytest.approx(expected[0])
    assert chrf(counts, [OUT, INTO]) == pytest.approx(sum(expected) / 2)


def test_with_one_direction_and_one_seed_the_test_is_sacrebleus(corpus, tmp_path):
    better, worse = system(corpus, tmp_path / "better", 0.29, 1), system(corpus, tmp_path / "worse", 0.32, 2)
    texts = [(name, (tmp_path / name / f"{OUT}.hyp").read_text().splitlines()) for name in ("worse", "better")]
    references = [corpus.text("raw", "test", OUT, "deu").read_text().splitlines()]
    _, expected = PairedTest(texts, {"chrF++": CHRF(word_order=2)}, references, test_type="bs")()
    assert p_value([worse], [better], verses(corpus, [OUT])) == pytest.approx(expected["chrF2++"][1].p_value)
    assert 0.005 < expected["chrF2++"][1].p_value < 0.9


def test_a_seed_that_says_the_same_again_is_no_evidence(corpus, tmp_path):
    better, worse = system(corpus, tmp_path / "better", 0.29, 1), system(corpus, tmp_path / "worse", 0.32, 2)
    places = verses(corpus, [OUT, INTO])
    assert p_value([worse] * 5, [better] * 5, places) == pytest.approx(p_value([worse], [better], places))


def test_a_verse_without_text_in_a_language_keeps_its_number_in_the_others(corpus):
    more = corpus.adding({Direction("eng", "fra"): {"train": 5, "valid": 0, "test": 59}})
    english = corpus.text("raw", "test", OUT, "eng").read_text().splitlines()
    for language in ("eng", "fra"):
        write(more.text("raw", "test", Direction("eng", "fra"), language), english[:7] + english[8:])
    assert verses(more, [OUT, Direction("eng", "fra")])[Direction("eng", "fra")] == [*range(7), *range(8, 60)]


def test_a_language_keeps_its_verses_in_their_places(tmp_path):
    for split, number in (("train", 40), ("valid", 30), ("test", 20)):
        for language in ("eng", "deu"):
            (tmp_path / f"{split}.{language}.txt.gz").write_bytes(
                gzip.compress("".join(f"{language} {verse}\n" for verse in range(number)).encode())
            )
    command = [sys.executable, "-m", "examples.low_resource_study.select_verses", tmp_path, tmp_path, "eng", "deu:12"]
    subprocess.run([*command, "--valid", "10"], cwd=ROOT, check=True)
    for split, number, of_deu in (("train", 40, 12), ("valid", 10, 10), ("test", 20, 20)):
        eng, deu = ((tmp_path / f"{split}.{language}.txt").read_text().splitlines() for language in ("eng", "deu"))
        assert len(set(eng)) == number == len(deu)
        assert (eng == sorted(eng, key=lambda line: int(line.split()[1]))) == (split == "test")
        kept = [(ours, theirs) for ours, theirs in zip(eng, deu, strict=True) if theirs]
        assert len(kept) == of_deu and all(ours.split()[1] == theirs.split()[1] for ours, theirs in kept)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder of the study with a small corpus, and the rows moe and curriculum trained with one seed."""
    run = tmp_path_factory.mktemp("study")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ROWS": "moe curriculum",
        "SEEDS": "1",
        "UPDATES": "6",
        "FLAGS": "--encoder-embed-dim 16 --encoder-ffn-embed-dim 16 --moe-experts ffn(count=4,inner_dim=8) "
        "--encoder-layers 1 --decoder-layers 1 --validate-interval-updates 2 --lr 0.05 --warmup-updates 1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHON": sys.executable,
    }
    steps = (
        [
            ROOT / "data_prep/cldr.sh",
            run / "corpus",
            "--languages",
            "deu:5200,fra:1100,ita:100",
            "--valid",
            "4",
            "--test",
            "4",
        ],
        [ROOT / "data_prep/prepare.sh", run / "corpus", "--vocab-size", "400", "--workers", "1"],
    )
    for step in steps:
        subprocess.run(["bash", *step], check=True, capture_output=True, env=environment)
    for file in (run / "corpus/data-bin").glob("valid.*"):
        shutil.copy(file, file.with_name(file.name.replace("valid.", "train_probe.")))
    done = subprocess.run(["bash", STUDY / "train_all.sh", run], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"{row}, seed 1: trained and translated" for row in ("moe", "curriculum")]
    again = subprocess.run(["bash", STUDY / "train_all.sh", run], capture_output=True, text=True, env=environment)
    assert (again.returncode, again.stdout) == (0, "")
    return run


def test_the_study_from_training_to_the_tables(run):
    command = [
        sys.executable,
        "-m",
        "examples.low_resource_study.table",
        run,
        "--json",
        run / "results.json",
        "--plots",
        run,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((run / "results.json").read_text())
    assert list(results["rows"]) == ["moe", "curriculum"]
    row = results["rows"]["curriculum"]
    assert row["curves"]["very_low"]["valid"]["steps"] == [2, 4, 6]
    gain = row["chrf++"]["very_low, all"]["mean"] - results["rows"]["moe"]["chrf++"]["very_low, all"]["mean"]
    assert row["chrf++"]["very_low, all"]["gain"] == pytest.approx(gain)
    assert (run / "gains.png").is_file() and (run / "curves.png").is_file()
    assert "| curriculum | 1 |" in done.stdout


def test_rows_of_different_settings_are_not_compared(run):
    setting = run / "runs/curriculum/1/setting.txt"
    before = setting.read_text()
    setting.write_text("7 updates\n")
    done = subprocess.run(
        [sys.executable, "-m", "examples.low_resource_study.table", run], cwd=ROOT, capture_output=True, text=True
    )
    setting.write_text(before)
    assert done.returncode == 2 and "different settings" in done.stderr


def test_a_row_that_is_not_there_is_named(tmp_path):
    command = ["bash", STUDY / "train_all.sh", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"ROWS": "moa", "SEEDS": "1"})
    assert done.returncode != 0 and "rows.tsv has no row 'moa'" in done.stderr
