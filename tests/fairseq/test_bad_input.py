"""What a user may get wrong in fairseq's commands is answered by one sentence, status 2, and no traceback."""

import os
import pickle
import re
import zipfile

import pytest
import torch

from tests.fairseq.conftest import run


def refuse(done, *words: str) -> None:
    """The command ended with one sentence that has these words in it."""
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr + done.stdout
    (sentence,) = re.findall(r"^(?:moe_nmt|moe-nmt|usage error): error: (.*)$", done.stderr, flags=re.M)
    for word in words:
        assert word in sentence, sentence


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def generate_from(corpus, checkpoint):
    return run(corpus.generate_command(checkpoint, "eng-deu"))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_checkpoint_is_refused_and_does_nothing(corpus, tmp_path, legacy):
    bait, checkpoint = tmp_path / "bait", tmp_path / "hostile.pt"
    torch.save({"model": Hostile(bait), "cfg": None}, checkpoint, _use_new_zipfile_serialization=not legacy)
    refuse(generate_from(corpus, checkpoint), "hostile.pt", "refused", "mkdir")
    assert not bait.exists()
    training = corpus.train_command(tmp_path / "save", 2, "--restore-file", str(checkpoint))
    refuse(run(training), "hostile.pt", "refused")
    assert not bait.exists()


def test_a_plain_pickle_is_no_checkpoint(corpus, tmp_path):
    checkpoint = tmp_path / "plain.pt"
    checkpoint.write_bytes(pickle.dumps({"model": Hostile(tmp_path / "bait")}))
    refuse(generate_from(corpus, checkpoint), "plain.pt")
    assert not (tmp_path / "bait").exists()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_checkpoint_that_was_cut_short(corpus, trained, tmp_path, share):
    data = trained.read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: int(len(data) * share)])
    refuse(generate_from(corpus, tmp_path / "cut.pt"), "cut.pt")


def test_a_file_of_rubbish_and_a_foreign_archive(corpus, tmp_path):
    (tmp_path / "rubbish.pt").write_bytes(bytes(range(256)) * 100)
    refuse(generate_from(corpus, tmp_path / "rubbish.pt"), "rubbish.pt")
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    refuse(generate_from(corpus, tmp_path / "archive.pt"), "archive.pt")


def test_no_checkpoint_there(corpus, tmp_path):
    refuse(generate_from(corpus, tmp_path / "missing.pt"), "missing.pt")


def without(command, flag):
    """The command without a flag and its value."""
    place = command.index(flag)
    return command[:place] + command[place + 2 :]


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ("eng-deu,deu-enk", ("'enk'", "did you mean 'eng'?")),
        ("eng_deu", ("'eng_deu'", "eng-deu")),
        ("eng-deu,deu-fra", ("deu-fra", "no valid data")),
    ],
)
def test_languages_and_directions(corpus, tmp_path, pairs, words):
    command = without(corpus.train_command(tmp_path, 2), "--lang-pairs")
    refuse(run([*command, "--lang-pairs", pairs]), *words)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--moe-router", "topk(k=2)"), ("'topk'", "did you mean 'top_k'?")),
        (("--moe-router", "top_k(kk=2)"), ("'kk'", "did you mean 'k'?")),
        (("--moe-router", "top_k(k=two)"), ("'k'", "whole number", "two")),
        (("--moe-router", "top_k(k=2"), ("top_k(k=2", "malformed")),
        (("--moe-router", "top_k(k=9)"), ("9", "8")),
        (("--moe-router", "top_k(priority=probability)"), ("decoder", "priority=position")),
        (("--moe-experts", "ffn()"), ("count",)),
        (("--moe-losses", "[load_balance(weight=0.1)]"), ("'load_balance'", "did you mean 'load_balancing'?")),
        (("--moe-losses", "[z_loss, z_loss(weight=0.1)]"), ("--moe-losses", "twice")),
        (("--moe-regularizers", "eom(p=1.5)"), ("eom", "1.5")),
        (("--moe-freq", "-1"), ("--moe-freq",)),
        (("--encoder-attention-heads", "5"), ("--encoder-attention-heads 5",)),
        (("--activation-fn", "rellu"), ("'rellu'", "did you mean 'relu'?")),
        (("--lang-tok-replacing-bos-eos",), ("--lang-tok-replacing-bos-eos",)),
    ],
)
def test_parts_and_options(corpus, tmp_path, flags, words):
    refuse(run(corpus.train_command(tmp_path, 2, "--moe-experts", "ffn(count=8)", *flags)), *words)


def test_a_missing_data_folder_and_dictionary(corpus, tmp_path):
    command = corpus.train_command(tmp_path, 2)
    command[1] = tmp_path / "nowhere"
    refuse(run(command), "nowhere", "fairseq-preprocess")
    (tmp_path / "nowhere").mkdir()
    refuse(run(command), "dict.", "fairseq-preprocess")
