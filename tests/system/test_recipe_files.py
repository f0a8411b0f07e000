"""The recipes: their files say what is there, and each of their steps runs."""

import functools
import gzip
import http.server
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from data_prep.config import read_config
from moe_nmt.data import Corpus

ROOT = Path(__file__).parents[2]
RECIPES = sorted(ROOT.glob("examples/*/corpus.yaml"))
WORDS = ["".join(random.Random(number).choices("abdeghiklmnoprstuvz", k=7)) for number in range(9000)]
"""Enough of them for a vocabulary as large as that of Multi30k."""


def must_run(command, **options) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def text(language: str, lines: int, seed: int = 0) -> str:
    """Sentences of random words, the same in all languages but for the languages' names."""
    chosen = random.Random(seed)
    return "".join(f"{language} {' '.join(chosen.choices(WORDS, k=6))} {n}\n" for n in range(lines))


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_every_corpus_can_be_read_and_has_all_splits(path):
    config = read_config(path)
    assert len(config.languages) == len(set(config.languages)) >= 4
    assert all(set(source.splits) == {"train", "valid", "test"} for source in config.sources)


def test_the_example_in_the_readme_can_be_read(tmp_path):
    example = (ROOT / "README.md").read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    path = tmp_path / "corpus.yaml"
    path.write_text(example, encoding="utf-8")
    sources = {source.name: source for source in read_config(path).sources}
    assert len(sources) == example.count("name:") >= 5
    assert sources["back"].one_way and sources["nllb"].kind == "mined" and sources["flores"].splits["test"] == "devtest"


@pytest.mark.parametrize(
    "script", sorted(ROOT.glob("examples/*/*.sh")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_every_script_is_bash(script):
    must_run(["bash", "-n", script])


def test_opus100_is_found_in_its_archive(tmp_path):
    with tarfile.open(tmp_path / "opus-100-corpus-v1.0.tar.gz", "w:gz") as archive:
        for pair in ("af-en", "en-nb", "en-nn", "en-no", "en-sh", "en-zh", "an-en"):
            for split in ("train", "dev", "test")[: 1 if pair == "an-en" else 3]:
                for language in pair.split("-"):
                    name = f"opus-100-corpus/v1.0/supervised/{pair}/opus.{pair}-{split}.{language}"
                    content = text(language, 3).encode()
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = (ROOT / "examples/opus100/corpus.yaml").read_text()
        config = config.replace("https://object.pouta.csc.fi/OPUS-100/v1.0", f"http://127.0.0.1:{server.server_port}")
        (tmp_path / "corpus.yaml").write_text(config)
        collect = ROOT / "data_prep/collect.sh"
        must_run(["bash", collect, tmp_path / "corpus.yaml", tmp_path / "corpus"], env=environment())
        server.shutdown()
    parts = json.loads((tmp_path / "corpus/collected/parts.json").read_text())
    assert {part["pair"] for part in parts} == {f"en-{code}" for code in ("af", "nb", "nn", "no", "sh", "zh")}
    assert len(parts) == 18 and {part["lines"] for part in parts} == {3}


def environment(**variables: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable} | variables


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the project whose environment is the one that runs the tests."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("moe_nmt", "data_prep", "scripts", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.py", folder)
    (folder / ".venv").mkdir()
    for name in ("bin", "lib", "lib64", "pyvenv.cfg"):
        if (Path(sys.prefix) / name).exists():
            (folder / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (folder / ".venv" / ".complete").touch()
    return folder


def layouts() -> dict[str, dict[str, str]]:
    """A benchmark in English, French and a language that no model knows, as it comes in three layouts."""
    languages = {"eng": "eng_Latn", "fra": "fra_Latn", "isl": "isl_Latn"}
    return {
        "flores": {f"devtest/{code}.devtest": text(code, 3, seed=9) for code in languages.values()},
        "ntrex": {f"newstest2019-{'src' if c == 'eng' else 'ref'}.{c}.txt": text(c, 3, seed=9) for c in languages},
        "plain": {f"news.{code}.txt.gz": text(code, 3, seed=9) for code in languages.values()},
    }


@pytest.mark.slow
def test_multi30k_and_then_benchmarks_of_its_checkpoint(clone, tmp_path):
    for split, lines in (("train", 8000), ("val", 5), ("test_2016_flickr", 5)):
        for code in ("eng_Latn", "deu_Latn", "fra_Latn", "ces_Latn"):
            write(tmp_path / "text" / f"{split}.{code}.txt.gz", text(code, lines, seed=lines))
    run = tmp_path / "run"
    variables = environment(UPDATES="3", PYTHONPATH=str(clone))
    command = ["bash", clone / "examples/multi30k/run.sh", tmp_path / "text", run]
    assert "skipped" not in must_run(command, env=variables)
    assert f"train: {run} is trained, skipped" in must_run(command, env=variables)
    assert Corpus.open(run / "corpus").languages == ("eng_Latn", "deu_Latn", "fra_Latn", "ces_Latn")
    assert (run / "evaluation" / "index.html").is_file() and (run / "report" / "index.html").is_file()
    for name, files in layouts().items():
        for path, content in files.items():
            write(tmp_path / name / path, content)
        command = ["bash", clone / "examples/ntrex_evaluation/run.sh", run / "checkpoints/checkpoint_best.pt"]
        must_run([*command, run / "corpus", tmp_path / name, tmp_path / "on" / name], env=variables)
        scores = json.loads((tmp_path / "on" / name / "evaluation/scores.json").read_text())
        assert set(scores["directions"]) == {"eng_Latn-fra_Latn", "fra_Latn-eng_Latn"}
