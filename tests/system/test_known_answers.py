"""The whole way, from text to scores, on languages whose translation is known: one copies English, one reverses it."""

import json
import random

import pytest

from tests.fairseq.conftest import ROOT, SmallCorpus, must_run

WORDS = ["ba", "co", "di", "fu", "ge", "ha", "ji", "ko", "lu", "me", "no", "pa", "qi", "ru", "se", "ta"]
LANGUAGES = {"copy": lambda words: words, "back": lambda words: words[::-1]}


def write_text(folder, language, split: str, lines: int, seed: str) -> None:
    rng = random.Random(seed)
    english = [rng.choices(WORDS, k=rng.randint(2, 6)) for _ in range(lines)]
    for code, sentences in (("eng", english), (language, map(LANGUAGES[language], english))):
        text = "".join(" ".join(words) + "\n" for words in sentences)
        (folder / f"{split}.eng-{language}.{code}").write_text(text)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> SmallCorpus:
    text, folder = tmp_path_factory.mktemp("text"), tmp_path_factory.mktemp("corpus")
    for language in LANGUAGES:
        for split, lines in (("train", 3000), ("valid", 50), ("test", 50)):
            write_text(text, language, split, lines, seed=f"{language} {split}")
    must_run(["bash", ROOT / "data_prep/import_bitext.sh", text, folder])
    must_run(["bash", ROOT / "data_prep/prepare.sh", folder, "--vocab-size", "40", "--workers", "1"])
    return SmallCorpus(folder)


@pytest.mark.slow
def test_copying_and_reversing_are_learnt(corpus, tmp_path):
    flags = ("--no-epoch-checkpoints", "--moe-router", "top_k(k=1)", "--clip-norm", "1", "--disable-validation")
    must_run(corpus.train_command(tmp_path, 1200, *flags))
    for pair in corpus.pairs:
        folder = tmp_path / "translations" / pair
        must_run(corpus.generate_command(tmp_path / "checkpoint_last.pt", pair, "--results-path", folder))
    scores = tmp_path / "scores.json"
    must_run(["moe-nmt", "score", tmp_path / "translations", "--corpus", corpus.folder, "--json", scores])
    directions = json.loads(scores.read_text())["directions"]
    assert directions.keys() == {"eng-copy", "copy-eng", "eng-back", "back-eng"}
    for direction, score in directions.items():
        assert score["chrf++"] > 95, f"{direction}: {score}"
