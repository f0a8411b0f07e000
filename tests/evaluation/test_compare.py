"""`moe-nmt compare` on folders that `moe-nmt score --output` wrote."""

import argparse
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from moe_nmt.data import Corpus, Direction
from moe_nmt.data.text import write_text
from moe_nmt.errors import UserError
from moe_nmt.evaluation import cli, compare
from moe_nmt.evaluation.output import System

REFERENCES = {
    "eng": [f"Sentence {n} of the test has {n % 5} words more ." for n in range(40)],
    "deu": [f"Satz {n} des Tests hat {n % 5} Wörter mehr ." for n in range(40)],
}
HOSTILE = "</td><script>alert('x')</script>&amp; \u202e"


def call(module, *arguments):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.main(parser.parse_args(list(map(str, arguments))))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    corpus = Corpus.empty(tmp_path_factory.mktemp("corpus"))
    for pair, size in (("eng-deu", 2_000_000), ("deu-eng", 200_000)):
        corpus = corpus.adding({Direction.parse(pair): {"train": size, "valid": 0, "test": 40}})
    corpus.save()
    for language, lines in REFERENCES.items():
        write_text(corpus.text("raw", "test", Direction("eng", "deu"), language), "\n".join(lines) + "\n")
    return corpus.folder


def evaluated(folder, corpus, deu, eng, *flags):
    write_text(folder / "eng-deu.hyp", "\n".join(deu) + "\n")
    write_text(folder / "deu-eng.hyp", "\n".join(eng) + "\n")
    call(cli, folder, "--corpus", corpus, "--output", folder, *flags)
    return folder


@pytest.fixture(scope="module")
def folders(corpus, tmp_path_factory):
    """A baseline, and a system that is better into German in every sentence and the same into English."""
    folder = tmp_path_factory.mktemp("systems")
    worse = [line.replace("Wörter", "Worte").replace("mehr", "weniger") for line in REFERENCES["deu"]]
    into_english = [line.replace("more", HOSTILE if n == 3 else "less") for n, line in enumerate(REFERENCES["eng"])]
    baseline = evaluated(folder / "baseline", corpus, worse, into_english)
    return baseline, evaluated(folder / "system", corpus, REFERENCES["deu"], into_english)


def test_what_score_leaves_is_whole(folders):
    baseline, _ = folders
    names = {"scores.json", "scores.md", "statistics.npz", "index.html", "eng-deu.hyp", "deu-eng.hyp"}
    assert {path.name for path in baseline.iterdir()} == names
    system = System.read(baseline)
    assert system.buckets == {Direction("eng", "deu"): "high", Direction("deu", "eng"): "low"}
    counts = system.counts[Direction("eng", "deu")]
    assert {name: rows.shape for name, rows in counts.items() if name != "spbleu"} == {
        "bleu": (40, 10),
        "chrf++": (40, 24),
    }


def test_a_better_system(folders, tmp_path, capsys):
    assert call(compare, *folders, "--json", tmp_path / "c.json", "--markdown", tmp_path / "c.md", "--draws", 200) == 0
    said = capsys.readouterr()
    assert "at p < 0.05, 1 of 2 directions are better and 0 worse" in said.out
    assert "compare: 2/2" in said.err
    found = json.loads((tmp_path / "c.json").read_text())["systems"][str(folders[1])]
    german, english = found["directions"]["eng-deu"], found["directions"]["deu-eng"]
    assert german["system"] == 100 and german["p"] == round(1 / 201, 6)
    assert german["interval"][0] > 0 and german["difference"] == pytest.approx(100 - german["baseline"], abs=0.011)
    assert (english["difference"], english["p"], english["interval"]) == (0, 1, [0, 0])
    assert found["means"]["all"]["difference"] == pytest.approx(german["difference"] / 2, abs=0.011)
    assert found["means"]["all, high"] == {"directions": 1, **german}
    assert f"| deu-eng | {english['baseline']:.1f} |" in (tmp_path / "c.md").read_text()


def test_a_worse_system_by_randomization(folders, capsys):
    assert call(compare, *reversed(folders), "--test", "randomization", "--metric", "bleu") == 0
    assert "0 of 2 directions are better and 1 worse" in capsys.readouterr().out


def refuses(*arguments):
    with pytest.raises((UserError, OSError)) as refused:
        call(compare, *arguments)
    return str(refused.value)


def test_refuses_other_references(folders, corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    path = tmp_path / "corpus" / "raw" / "test.eng-deu.deu"
    path.write_text(path.read_text().replace("Satz 7", "Satz VII"))
    other = evaluated(tmp_path / "other", tmp_path / "corpus", REFERENCES["deu"], REFERENCES["eng"])
    assert "different references of eng-deu" in refuses(folders[0], other)


def test_refuses_folders_without_a_direction_in_common(folders, corpus, tmp_path):
    ours = evaluated(tmp_path / "ours", corpus, REFERENCES["deu"], REFERENCES["eng"], "--directions", "eng-deu")
    theirs = evaluated(tmp_path / "theirs", corpus, REFERENCES["deu"], REFERENCES["eng"], "--directions", "deu-eng")
    assert "have no direction in common" in refuses(ours, theirs)


def test_refuses_what_is_no_evaluation(folders, tmp_path):
    assert "scores.json is missing: give a folder that moe-nmt evaluate" in refuses(folders[0], tmp_path)


@pytest.mark.parametrize("name", ["scores.json", "statistics.npz"])
@pytest.mark.parametrize("content", [b"", b"rubbish", None])
def test_refuses_a_damaged_evaluation(folders, tmp_path, name, content):
    shutil.copytree(folders[0], tmp_path / "damaged")
    path = tmp_path / "damaged" / name
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    assert "damaged has a damaged scores.json or statistics.npz" in refuses(folders[1], tmp_path / "damaged")


def test_refuses_a_metric_that_is_not_there(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "old")
    with np.load(tmp_path / "old" / "statistics.npz") as file:
        kept = {name: file[name] for name in file.files if not name.endswith("/bleu")}
    np.savez(tmp_path / "old" / "statistics.npz", **kept)
    assert "old has no BLEU of" in refuses(folders[1], tmp_path / "old", "--metric", "bleu")


def test_refuses_no_draws(folders):
    assert "--draws 0 is too small" in refuses(*folders, "--draws", 0)


class Page(HTMLParser):
    """The tags of a page and what they point to, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_needs_nothing_but_itself(folders):
    page = Page((folders[0] / "index.html").read_text())
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_the_page_escapes_what_was_translated(folders):
    page = Page((folders[0] / "index.html").read_text())
    assert any(HOSTILE in text for text in page.words)
    assert "script" not in page.tags


def test_the_page_shows_all_directions_and_the_worst_sentences(folders):
    text = " ".join(Page((folders[0] / "index.html").read_text()).words)
    for expected in ("eng-deu", "deu-eng", "all, high", "des Tests hat", "Signatures", "length ratio"):
        assert expected in text


def test_many_to_many_has_a_map(corpus, tmp_path, capsys):
    corpus = Corpus.empty(tmp_path / "corpus")
    languages = ["deu", "fra", "ell"]
    for source in languages:
        for target in languages:
            if source != target:
                pair = Direction(source, target)
                corpus = corpus.adding({pair: {"train": 0, "valid": 0, "test": 40}})
                for side in (source, target):
                    write_text(corpus.text("raw", "test", pair, side), "\n".join(REFERENCES["deu"]) + "\n")
                write_text(tmp_path / "t" / f"{pair}.hyp", "\n".join(REFERENCES["deu"]) + "\n")
    corpus.save()
    call(cli, tmp_path / "t", "--corpus", corpus.folder, "--output", tmp_path / "t")
    assert "without English" in capsys.readouterr().out
    assert 'alt="quality"' in (tmp_path / "t" / "index.html").read_text()
