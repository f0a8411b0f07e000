"""Language identification by py3langid, and by a small model of fastText.

`language_id.bin` tells deu_Latn, ell_Grek, heb_Hebr and rus_Cyrl apart: fastText, trained on 600 sentences each of the
embedded corpus.
"""

import sys
from pathlib import Path

import pytest

from moe_nmt.data import CorpusError
from moe_nmt.data.language_id import LanguageIdentifier

MODEL = Path(__file__).with_name("language_id.bin")
LINES = {
    "deu": "Das ist ein kleiner Satz über das Wetter in Deutschland.",
    "rus": "Это хорошая книга о погоде.",
    "ell": "Αυτό είναι ένα βιβλίο για τον καιρό.",
    "heb": "זה משפט קטן על מזג האוויר.",
}


@pytest.fixture(params=["py3langid", "fasttext"])
def model(request):
    pytest.importorskip(request.param)
    return MODEL if request.param == "fasttext" else None


@pytest.mark.parametrize("codes", [list(LINES), ["deu_Latn", "rus_Cyrl", "ell_Grek", "heb_Hebr"]])
def test_languages_go_by_the_codes_that_were_given(model, codes):
    identifier = LanguageIdentifier.open(model, codes)
    assert identifier.identify(LINES.values()) == codes
    assert all(map(identifier.knows, codes))


def test_only_the_languages_given_are_found(model):
    identifier = LanguageIdentifier.open(model, ["heb", "rus"])
    assert set(identifier.identify(LINES.values())) <= {"heb", "rus"}
    assert not identifier.knows("deu")


def test_lines_without_letters(model):
    assert LanguageIdentifier.open(model, LINES).identify(["", "12:30 – 14.", "\u2028", "🙂"]) == ["-"] * 4


def test_languages_that_the_model_does_not_know(model):
    identifier = LanguageIdentifier.open(model, ["deu", "rus", "cop_Copt", "no_language_at_all"])
    assert not identifier.knows("cop_Copt") and not identifier.knows("no_language_at_all")
    assert identifier.identify([LINES["deu"]]) == ["deu"]
    nothing = LanguageIdentifier.open(model, ["cop_Copt"])
    assert nothing.identify([LINES["deu"]]) == ["-"]


def test_scripts_that_the_model_does_not_tell_apart():
    pytest.importorskip("py3langid")
    identifier = LanguageIdentifier.open(None, ["zho_Hant", "zho_Hans", "jpn"])
    assert identifier.identify(["这是一个关于天气的小句子。"]) == ["zho_Hant"]
    assert identifier.same("zho_Hans", "zho_Hant") and not identifier.same("zho_Hans", "jpn")


def test_a_line_break_inside_a_line_does_no_harm(model):
    assert LanguageIdentifier.open(model, LINES).identify(["Das ist\nein kleiner Satz über das Wetter."]) == ["deu"]


@pytest.mark.parametrize("content", [b"", b"rub", b"rubbish" * 100])
def test_refuses_what_is_no_model(tmp_path, content):
    pytest.importorskip("fasttext")
    (tmp_path / "lid.bin").write_bytes(content)
    with pytest.raises(CorpusError, match=r"lid\.bin is no model of fastText"):
        LanguageIdentifier.open(tmp_path / "lid.bin", ["eng"])


def test_refuses_a_missing_model(tmp_path):
    pytest.importorskip("fasttext")
    with pytest.raises(CorpusError, match=r"no\.bin is missing"):
        LanguageIdentifier.open(tmp_path / "no.bin", ["eng"])


@pytest.mark.parametrize(("package", "model"), [("py3langid", None), ("fasttext", MODEL)])
def test_a_missing_package_is_one_sentence(monkeypatch, package, model):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CorpusError, match="pip install"):
        LanguageIdentifier.open(model, ["eng"])
