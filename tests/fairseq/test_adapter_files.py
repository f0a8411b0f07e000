"""Adapters that are shipped apart from their base, through the real commands."""

import os

import pytest
import torch

from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin.adapter_files import attach, extract, read
from moe_nmt.fairseq_plugin.checkpoints import CheckpointFile
from moe_nmt.surgery import split_adapters
from tests.fairseq.conftest import must_run, run
from tests.fairseq.test_bad_input import Hostile, refuse
from tests.fairseq.test_commands import translations


def train(corpus, base, folder, adapters, updates, *flags):
    """A checkpoint of the frozen base with trained adapters."""
    frozen = ("--freezing", "train_only(parts=[adapters])", "--finetune-from-model", str(base))
    options = ("--adapters", adapters, "--disable-validation", "--no-epoch-checkpoints", "--lr", "0.05")
    must_run(corpus.train_command(folder, updates, *frozen, *options, *flags))
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def tuned(corpus, trained, tmp_path_factory):
    """One checkpoint with adapters of German, and one of Greek."""
    folder = tmp_path_factory.mktemp("tuned")

    def tune(language):
        pairs = ("--lang-pairs", f"eng-{language},{language}-eng")
        return train(corpus, trained, folder / language, f"bottleneck(dim=8, languages=[{language}])", 8, *pairs)

    return {language: tune(language) for language in ("deu", "ell")}


@pytest.fixture(scope="module")
def shipped(tuned, tmp_path_factory):
    """The files of both."""
    folder = tmp_path_factory.mktemp("shipped")
    for language, checkpoint in tuned.items():
        path = folder / f"{language}.pt"
        said = must_run(["moe-nmt", "adapters", "extract", checkpoint, "--output", path]).stdout
        assert said.startswith(f"{path}: {path.stat().st_size / 1e6:.2f} MB of the checkpoint's")
    return {language: folder / f"{language}.pt" for language in tuned}


def translate(corpus, checkpoint, *pairs):
    """The translations of `moe-nmt translate`, by direction."""
    output = checkpoint.with_suffix(".hyp")
    command = ["moe-nmt", "translate", checkpoint, corpus.data, "--output", output, "--directions", ",".join(pairs)]
    must_run([*command, "--cpu"])
    return {pair: (output / f"{pair}.hyp").read_text().splitlines() for pair in pairs}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_attached_again_the_checkpoint_is_the_same(corpus, trained, tuned, shipped, tmp_path):
    again = tmp_path / "again.pt"
    must_run(["moe-nmt", "adapters", "attach", trained, shipped["deu"], "--output", again])
    ours, theirs = torch.load(again), torch.load(tuned["deu"])
    assert same(ours["model"], theirs["model"])
    assert ours["cfg"]["model"].adapters == theirs["cfg"]["model"].adapters
    outputs = [
        translations(must_run(corpus.generate_command(path, "eng-deu")).stdout)
        for path in (again, tuned["deu"], trained)
    ]
    assert len(outputs[0]) == 20
    assert outputs[0] == outputs[1] != outputs[2]


def test_a_file_holds_the_adapters_and_little_more(trained, tuned, shipped):
    adapters = {n: t for n, t in torch.load(tuned["deu"])["model"].items() if n.startswith("adapters.")}
    size, base = shipped["deu"].stat().st_size, trained.stat().st_size
    assert same(read(shipped["deu"]).tensors, adapters)
    assert size < sum(t.numel() * t.element_size() for t in adapters.values()) + 1000 * len(adapters) < base / 10


def test_two_languages_shipped_apart_translate_together_as_each_did_alone(corpus, trained, tuned, shipped, tmp_path):
    both = tmp_path / "both.pt"
    must_run(["moe-nmt", "adapters", "attach", trained, shipped["ell"], shipped["deu"], "--output", both])
    together = translate(corpus, both, "eng-deu", "deu-eng", "eng-ell", "ell-eng", "eng-fra")
    assert together.pop("eng-fra") == translate(corpus, trained, "eng-fra")["eng-fra"]
    for language, checkpoint in tuned.items():
        for pair, found in translate(corpus, checkpoint, f"eng-{language}", f"{language}-eng").items():
            assert found == together.pop(pair)
    assert not together
    for language in tuned:
        extract(both, tmp_path / f"{language}.pt", [language])
        ours, theirs = read(tmp_path / f"{language}.pt"), read(shipped[language])
        assert ours.spec == theirs.spec and same(ours.tensors, theirs.tensors) and ours.base == theirs.base


def test_adapters_trained_in_half_precision_fit_the_base_in_float32(corpus, trained, tmp_path):
    tuned = train(corpus, trained, tmp_path, "mov(count=2)", 2, "--fp16", "--fp16-init-scale", "4")
    base, half = (torch.load(path)["model"]["decoder.layer_norm.weight"] for path in (trained, tuned))
    assert torch.equal(base.half(), half) and not torch.equal(base, half)
    extract(tuned, tmp_path / "adapters.pt")
    attach(trained, [tmp_path / "adapters.pt"], tmp_path / "attached.pt")
    ours, theirs = (CheckpointFile(path).checkpoint for path in (tmp_path / "attached.pt", tuned))
    assert ours.options["adapters"] == theirs.options["adapters"]
    assert same(split_adapters(ours.tensors)[1], split_adapters(theirs.tensors)[1])


def test_another_base_is_refused(trained, tuned, shipped, tmp_path):
    state = torch.load(trained)
    state["model"]["decoder.layer_norm.bias"][0] += 1e-6
    torch.save(state, tmp_path / "other.pt")
    command = ["moe-nmt", "adapters", "attach", tmp_path / "other.pt", shipped["deu"], "--output", tmp_path / "out.pt"]
    refuse(run(command), "deu.pt does not fit", "other.pt")
    with pytest.raises(UserError, match="has adapters already"):
        attach(tuned["deu"], [shipped["deu"]], tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_files_that_are_no_adapters(trained, shipped, tmp_path):
    good = shipped["deu"].read_bytes()
    (tmp_path / "rubbish.pt").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "cut.pt").write_bytes(good[: len(good) // 2])
    torch.save({"format": "something"}, tmp_path / "other.pt")
    torch.save(read(shipped["deu"]).pack() | {"base": Hostile(tmp_path / "bait")}, tmp_path / "hostile.pt")
    for path, words in (
        (tmp_path / "rubbish.pt", "rubbish.pt is refused"),
        (tmp_path / "empty.pt", "empty.pt cannot be read"),
        (tmp_path / "cut.pt", "cut.pt"),
        (tmp_path / "other.pt", "holds no adapters"),
        (tmp_path / "hostile.pt", f"would run '{os.mkdir.__module__}.mkdir'"),
        (tmp_path / "missing.pt", "no file"),
        (trained, "is a whole checkpoint"),
    ):
        with pytest.raises(UserError, match=words):
            attach(trained, [path], tmp_path / "out.pt")
    assert not (tmp_path / "bait").exists() and not (tmp_path / "out.pt").exists()


def test_what_cannot_be_extracted_or_attached(trained, tuned, shipped, tmp_path):
    out = tmp_path / "out.pt"
    refuse(run(["moe-nmt", "adapters", "extract", trained, "--output", out]), str(trained), "has no adapters")
    refuse(run(["moe-nmt", "adapters", "extract", tuned["deu"], "--output", out, "--languages", "ell"]), "'ell'", "deu")
    with pytest.raises(UserError, match="holds adapters alone"):
        extract(shipped["deu"], out)
    with pytest.raises(UserError, match="both have adapters of deu"):
        attach(trained, [shipped["deu"], shipped["deu"]], out)
    with pytest.raises(UserError, match="overwritten"):
        attach(trained, [shipped["deu"]], shipped["deu"])
    with pytest.raises(UserError, match="overwritten"):
        extract(tuned["deu"], tuned["deu"])
    with pytest.raises(UserError, match="no folder"):
        extract(tuned["deu"], tmp_path / "no/where.pt")
    assert not list(tmp_path.iterdir())
