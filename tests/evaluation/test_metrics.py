"""Scores against known values of sacrebleu, the tokenizer of each language, and spBLEU with and without its model."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from moe_nmt.evaluation.metrics import bleu_tokenizer, score

pytest.importorskip("sacrebleu")

# The example of sacrebleu's README, one reference of its two.
HYPOTHESES = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
REFERENCES = ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."]


def test_identical_text_scores_100():
    values = score(REFERENCES, REFERENCES, "eng").values
    assert values["bleu"] == pytest.approx(100)
    assert values["chrf++"] == pytest.approx(100)


def test_known_bleu_by_hand():
    """Precisions 4/4, 3/3, 2/2, 1/1 and a brevity penalty of exp(1 - 5/4)."""
    result = score(["a b c d"], ["a b c d e"], "eng")
    assert result.values["bleu"] == pytest.approx(100 * 2.718281828459045 ** (1 - 5 / 4))
    assert result.sentences == 1


def test_same_as_the_command_of_sacrebleu(tmp_path):
    (tmp_path / "ref").write_text("\n".join(REFERENCES) + "\n")
    (tmp_path / "hyp").write_text("\n".join(HYPOTHESES) + "\n")
    command = [sys.executable, "-m", "sacrebleu", "ref", "-i", "hyp", "-m", "bleu", "chrf", "--chrf-word-order", "2"]
    said = subprocess.run([*command, "-w", "6"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    result = score(HYPOTHESES, REFERENCES, "eng")
    for metric, theirs in zip(("bleu", "chrf++"), json.loads(said), strict=True):
        assert result.values[metric] == pytest.approx(theirs["score"], abs=1e-6)
        assert result.signatures[metric] == theirs["signature"]


def test_signatures_say_how():
    signatures = score(HYPOTHESES, REFERENCES, "zho_Hans").signatures
    assert signatures["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:")
    assert signatures["chrf++"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:")


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [("deu", "13a"), ("eng_Latn", "13a"), ("zho_Hans", "zh"), ("zh", "zh"), ("tha_Thai", "char"), ("khm", "char")],
)
def test_tokenizer_of_a_language(language, tokenizer):
    assert bleu_tokenizer(language) == tokenizer


@pytest.mark.parametrize(
    ("language", "module", "mecab"), [("jpn", "MeCab", "ja-mecab"), ("kor", "mecab_ko", "ko-mecab")]
)
def test_tokenizer_without_mecab(language, module, mecab, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert bleu_tokenizer(language) == "char"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert bleu_tokenizer(language) == mecab


def test_spbleu_only_where_its_model_is_at_hand(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    code = (
        "from moe_nmt.evaluation.metrics import score; print(score(['ab c abc cba'], ['ab c abc cba'], 'eng').values)"
    )

    def run():
        environment = {**os.environ, "SACREBLEU": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert "spbleu" not in run().stdout
    assert not list(tmp_path.iterdir())
    (tmp_path / "models").mkdir()
    with open(tmp_path / "models" / "flores200sacrebleuspm", "wb") as model:
        text = iter(["ab c", "abc cba"] * 5)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=text, model_writer=model, vocab_size=8, minloglevel=2
        )
    assert "'spbleu': 100.0" in run().stdout
