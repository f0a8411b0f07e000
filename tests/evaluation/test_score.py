"""`moe-nmt score` on folders of translations: numbers, order, files written, and every refusal."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from moe_nmt.data import Corpus, Direction
from moe_nmt.data.text import write_text
from moe_nmt.errors import UserError
from moe_nmt.evaluation import cli, scoring
from moe_nmt.evaluation.metrics import score

pytest.importorskip("sacrebleu")

BIN = Path(sys.executable).parent
ENGLISH = [f"This is the {n} sentence of the small test ." for n in ("first", "second", "third", "last")]
GERMAN = [f"Dies ist der {n} Satz des kleinen Tests ." for n in ("erste", "zweite", "dritte", "letzte")]
CHINESE = ["这是小测试的第一句。", "这是小测试的第二句。", "这是小测试的第三句。", "这是最后一句。"]
TEXTS = {"eng": ENGLISH, "deu": GERMAN, "zho_Hans": CHINESE}
SIZES = {"eng-deu": 1_000_000, "eng-zho_Hans": 99_999}
WORSE = [GERMAN[0], "Ganz anders .", GERMAN[2], ""]


def generated(hypotheses, references, order=(2, 0, 3, 1)):
    """What fairseq-generate writes: by length, two candidates each, the best first."""
    lines = []
    for n in order:
        lines += [f"S-{n}\t▁s ource", f"T-{n}\t{references[n]}"]
        for rank, text in enumerate([hypotheses[n], "the second best"]):
            lines += [f"H-{n}\t-0.{rank}1\t▁{text}", f"D-{n}\t-0.{rank}1\t{text}", f"P-{n}\t-0.1 -0.2"]
    return "\n".join([*lines, "Generate test with beam=2: BLEU4 = 1.00", ""])


@pytest.fixture
def corpus(tmp_path):
    corpus = Corpus.empty(tmp_path / "corpus")
    for pair, size in SIZES.items():
        direction = Direction.parse(pair)
        counts = {"train": size, "valid": 0, "test": 4}
        corpus = corpus.adding({direction: counts, direction.reverse: counts})
        for language in (direction.source, direction.target):
            write_text(corpus.text("raw", "test", direction, language), "\n".join(TEXTS[language]) + "\n")
    corpus.save()
    return corpus.folder


@pytest.fixture
def translations(tmp_path):
    folder = tmp_path / "translations"
    write_text(folder / "eng-deu" / "generate-test.txt", generated(WORSE, ["<unk>"] * 4))
    write_text(folder / "deu-eng.hyp", "\n".join(ENGLISH) + "\n")
    write_text(folder / "eng-zho_Hans.hyp", "\n".join(CHINESE) + "\n")
    return folder


def run(*arguments):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return cli.main(parser.parse_args(list(map(str, arguments))))


@pytest.fixture
def refuses():
    def check(*arguments):
        with pytest.raises((UserError, OSError)) as refused:
            run(*arguments)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    return check


def test_scores_of_a_folder(translations, corpus, tmp_path, capsys):
    report = tmp_path / "reports" / "scores.json"
    assert run(translations, "--corpus", corpus, "--json", report) == 0
    results = json.loads(report.read_text())
    assert set(results) == {"directions", "buckets", "mean", "signatures"}
    directions = results["directions"]
    assert set(directions) == {"eng-deu", "deu-eng", "eng-zho_Hans"}
    expected = score(WORSE, GERMAN, "deu").values
    assert directions["eng-deu"]["bleu"] == round(expected["bleu"], 2) < 70
    assert directions["eng-deu"]["chrf++"] == round(expected["chrf++"], 2)
    assert directions["deu-eng"] | {"bleu": 100.0, "chrf++": 100.0} == directions["deu-eng"]
    assert {name: entry["bucket"] for name, entry in directions.items()} == {
        "eng-deu": "high",
        "deu-eng": "high",
        "eng-zho_Hans": "very_low",
    }
    assert all(entry["sentences"] == 4 for entry in directions.values())


def test_means_buckets_and_signatures(translations, corpus, tmp_path):
    report = tmp_path / "scores.json"
    run(translations, "--corpus", corpus, "--json", report)
    results = json.loads(report.read_text())
    german = score(WORSE, GERMAN, "deu").values
    assert results["buckets"]["high"]["bleu"] == round((german["bleu"] + 100) / 2, 2)
    assert results["buckets"]["high"]["directions"] == 2
    assert results["buckets"]["very_low"]["directions"] == 1
    assert "low" not in results["buckets"]
    assert results["mean"]["chrf++"] == round((german["chrf++"] + 200) / 3, 2)
    assert {name: text.split("|")[3] for name, text in results["signatures"]["bleu"].items()} == {
        "13a": "tok:13a",
        "zh": "tok:zh",
    }
    assert "nw:2" in results["signatures"]["chrf++"]


def test_the_table(translations, corpus, tmp_path, capsys):
    markdown = tmp_path / "scores.md"
    run(translations, "--corpus", corpus, "--markdown", markdown, "--high-from", 2_000_000, "--low-from", 10)
    said = capsys.readouterr()
    rows = {" ".join(line.split()[:-2]) for line in said.out.splitlines()}
    assert {"eng-zho_Hans low 4", "deu-eng low 4", "out of English, low 2", "into English 1", "all 3"} <= rows
    assert "BLEU: nrefs:1|case:mixed|eff:no|tok:zh|" in said.out
    assert "Not scored, of the corpus's 4 directions: zho_Hans-eng." in said.out
    assert "score: 3/3" in said.err
    assert "| eng-zho_Hans | low | 4 | 100.0 | 100.0 |" in markdown.read_text().splitlines()


def test_spbleu_left_out_is_said(translations, corpus, capsys, monkeypatch, tmp_path):
    from moe_nmt.evaluation import metrics

    monkeypatch.setattr(metrics, "spbleu_model", lambda: tmp_path / "no.model")
    metrics._metrics.cache_clear()
    run(translations, "--corpus", corpus)
    assert "spBLEU is left out" in capsys.readouterr().out


def test_without_a_corpus_the_references_are_those_of_fairseq(translations, tmp_path, capsys):
    write_text(translations / "eng-deu" / "generate-test.txt", generated(GERMAN, GERMAN))
    report = tmp_path / "scores.json"
    assert run(translations, "--directions", "eng-deu", "--json", report) == 0
    assert "the references are the T- lines of fairseq-generate" in capsys.readouterr().out
    results = json.loads(report.read_text())
    assert results["directions"]["eng-deu"]["bleu"] == 100.0
    assert results["directions"]["eng-deu"]["bucket"] is None
    assert results["buckets"] == {}


def test_only_the_directions_asked_for(translations, corpus, tmp_path):
    report = tmp_path / "scores.json"
    run(translations, "--corpus", corpus, "--directions", "eng-zho_Hans,deu-eng", "--json", report)
    assert list(json.loads(report.read_text())["directions"]) == ["eng-zho_Hans", "deu-eng"]


def test_refuses_a_missing_direction(translations, corpus, refuses):
    sentence = refuses(translations, "--corpus", corpus, "--directions", "eng-deu,zho_Hans-eng")
    assert f"{translations} has no direction 'zho_Hans-eng'" in sentence


def test_refuses_an_unknown_direction(translations, corpus, refuses):
    write_text(translations / "eng-dou.hyp", "x\n")
    assert "has no direction 'eng-dou'; did you mean 'eng-deu'" in refuses(translations, "--corpus", corpus)


def test_refuses_gaps(translations, corpus, refuses):
    path = translations / "eng-deu" / "generate-test.txt"
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines() if not line.startswith("D-1\t")))
    assert f"{path} lacks 1 of 4 translations (D-1)" in refuses(translations, "--corpus", corpus)


def test_refuses_a_file_that_stops_early(translations, corpus, refuses):
    path = translations / "eng-deu" / "generate-test.txt"
    path.write_text(generated(WORSE, GERMAN, order=(0, 2, 1)))
    assert f"{path} has 3 translations and " in refuses(translations, "--corpus", corpus)


def test_refuses_a_line_that_stops_early(translations, corpus, refuses):
    path = translations / "eng-deu" / "generate-test.txt"
    text = path.read_text()
    path.write_text(text[: text.index("D-1\t-0.01") + 15])
    assert f"{path} is cut off in its last line" in refuses(translations, "--corpus", corpus)


def test_refuses_counts_that_differ(translations, corpus, refuses):
    write_text(translations / "deu-eng.hyp", "one\ntwo\n")
    sentence = refuses(translations, "--corpus", corpus)
    assert "deu-eng.hyp has 2 translations and" in sentence and "has 4 references" in sentence


def test_refuses_pieces(translations, corpus, refuses):
    write_text(translations / "deu-eng.hyp", "\n".join(["▁This ▁is"] * 4) + "\n")
    assert "--remove-bpe sentencepiece" in refuses(translations, "--corpus", corpus)


def test_refuses_an_empty_result(translations, corpus, refuses):
    write_text(translations / "eng-deu" / "generate-test.txt", "")
    assert "has no translation: it needs lines D-0" in refuses(translations, "--corpus", corpus)


def test_refuses_two_files_for_a_direction(translations, corpus, refuses):
    write_text(translations / "eng-deu.hyp", "\n".join(GERMAN) + "\n")
    assert "eng-deu has translations in both" in refuses(translations, "--corpus", corpus)


def test_refuses_a_folder_with_nothing_to_score(tmp_path, corpus, translations, refuses):
    (tmp_path / "empty").mkdir()
    assert "has nothing to score" in refuses(tmp_path / "empty")
    assert "has nothing to score" in refuses(translations / "eng-deu", "--split", "valid")
    assert "is no folder" in refuses(tmp_path / "nowhere")


def test_refuses_a_split_without_references(translations, corpus, refuses):
    (corpus / "raw" / "test.eng-deu.deu").unlink()
    assert "test.eng-deu.deu is missing, so eng-deu has no reference" in refuses(translations, "--corpus", corpus)


def test_refuses_plain_text_without_a_corpus(translations, refuses):
    assert "deu-eng.hyp comes without references" in refuses(translations, "--directions", "deu-eng")


def test_refuses_thresholds_upside_down(translations, refuses):
    assert "make no buckets" in refuses(translations, "--high-from", 10, "--low-from", 20)


def test_processes_side_by_side_find_the_same(translations, corpus, tmp_path, monkeypatch, refuses):
    run(translations, "--corpus", corpus, "--json", tmp_path / "one.json")
    monkeypatch.setattr(scoring, "SMALL", 0)
    run(translations, "--corpus", corpus, "--json", tmp_path / "two.json", "--workers", "2")
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()
    write_text(translations / "deu-eng.hyp", "one\ntwo\n")
    assert "deu-eng.hyp has 2 translations and" in refuses(translations, "--corpus", corpus, "--workers", "2")


def test_refuses_a_missing_language_model(translations, corpus, refuses, tmp_path):
    assert "no.bin" in refuses(translations, "--corpus", corpus, "--lid-model", tmp_path / "no.bin")


def test_the_command_says_it_in_one_sentence(translations):
    done = subprocess.run([BIN / "moe-nmt", "score", translations / "deu-eng.hyp"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"moe-nmt: error: {translations}/deu-eng.hyp is no folder: give the one that holds the translations\n"
    )


def test_refuses_to_write_where_it_cannot(translations, corpus, refuses):
    assert "languages.txt" in refuses(translations, "--corpus", corpus, "--json", corpus / "languages.txt" / "x.json")
