"""Surgery on the files that fairseq writes, reads and trains on from."""

import re
import shutil

import pytest
import torch
from fairseq import checkpoint_utils

from moe_nmt.errors import UserError
from moe_nmt.fairseq_plugin.checkpoints import CheckpointFile, operate
from moe_nmt.fairseq_plugin.inspection import describe
from tests.fairseq.conftest import must_run, run
from tests.fairseq.test_bad_input import refuse

HYPER = "hyper(dim=4, hidden=8, languages=[deu, ell], init=hyper)"


@pytest.fixture(scope="module")
def hyper(corpus, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hyper")
    flags = ("--adapters", HYPER, "--finetune-from-model", str(trained), "--disable-validation", "--lr", "0.05")
    must_run(corpus.train_command(folder, 8, *flags))
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def baked(hyper, tmp_path_factory):
    path = tmp_path_factory.mktemp("baked") / "baked.pt"
    must_run(["moe-nmt", "surgery", hyper, path, "bake_adapters()"])
    return path


def load(path):
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(path)])
    return model.eval(), task


@torch.no_grad()
def test_a_baked_model_is_the_same_function_in_batches_of_mixed_directions(corpus, hyper, baked):
    ours, task = load(baked)
    theirs, _ = load(hyper)
    task.load_dataset("valid")
    sentences = [task.dataset("valid")[number] for number in range(0, len(task.dataset("valid")), 5)]
    sample = task.dataset("valid").collater(sentences)["net_input"]
    pairs = set(zip(sample["source_language"].tolist(), sample["target_language"].tolist(), strict=True))
    assert len(pairs) == len(corpus.pairs)
    found, expected = ours(**sample)[0], theirs(**sample)[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    theirs.encoder.adapt(None)
    theirs.decoder.adapt(None)
    assert (theirs(**sample)[0] - expected).abs().max() > 0.1


def test_a_baked_model_translates_the_same(corpus, hyper, baked, tmp_path):
    for name, path in (("hyper", hyper), ("baked", baked)):
        must_run(["moe-nmt", "translate", path, corpus.data, "--output", tmp_path / name, "--cpu"])
    for pair in corpus.pairs:
        assert (tmp_path / f"baked/{pair}.hyp").read_text() == (tmp_path / f"hyper/{pair}.hyp").read_text()


def test_what_only_the_old_model_can_go_on_with_is_gone(hyper, baked):
    before, after = torch.load(hyper), torch.load(baked)
    assert before["last_optimizer_state"] and after["last_optimizer_state"] is None
    assert before["extra_state"]["train_iterator"]["iterations_in_epoch"] == 8
    assert after["extra_state"]["train_iterator"]["iterations_in_epoch"] == 0
    assert after.keys() == before.keys()
    assert after["optimizer_history"][-1]["num_updates"] == 8
    base = {name for name in before["model"] if not name.startswith("adapters.")}
    assert all(torch.equal(before["model"][name], after["model"][name]) for name in base)
    assert baked.stat().st_size < hyper.stat().st_size


def test_the_history_outlives_further_training(corpus, baked, tmp_path):
    spec = CheckpointFile(baked).checkpoint.options["adapters"]
    assert spec.startswith("bottleneck(") and describe(str(baked), 0).endswith("history: [bake_adapters]")
    flags = ("--adapters", spec, "--disable-validation", "--no-epoch-checkpoints")
    must_run(corpus.train_command(tmp_path, 2, "--finetune-from-model", str(baked), *flags))
    log = must_run(corpus.train_command(tmp_path, 3, *flags)).stdout
    assert "@ 2 updates" in log
    assert describe(str(tmp_path / "checkpoint_last.pt"), 0).endswith("history: [bake_adapters]")


def test_a_training_may_begin_at_the_result(corpus, baked, tmp_path):
    spec = CheckpointFile(baked).checkpoint.options["adapters"]
    shutil.copy(baked, tmp_path / "checkpoint_last.pt")
    log = must_run(corpus.train_command(tmp_path, 2, "--adapters", spec, "--disable-validation")).stdout
    assert "num_updates: 2" in log


def test_inspect_shows_adapters_and_counts_them(hyper, baked):
    for path, text in (hyper, must_run(["moe-nmt", "inspect", hyper]).stdout), (baked, describe(str(baked), 0)):
        state = torch.load(path)["model"]
        counts = {name: int(n.replace(",", "")) for name, n in re.findall(r"^(\w+) parameters: (\S+)", text, re.M)}
        assert counts["adapter"] == sum(t.numel() for name, t in state.items() if name.startswith("adapters."))
        assert f"adapters: {CheckpointFile(path).checkpoint.adapters}" in text
    assert "adapter" not in describe("transformer_moe_tiny", 100)


def test_a_second_operation_goes_on_where_the_first_ended(baked, tmp_path):
    with pytest.raises(UserError, match="hyper-adapters"):
        operate(baked, tmp_path / "again.pt", ["bake_adapters()"])
    file = CheckpointFile(baked)
    changed = {"history": [*file.checkpoint.history, "another(x=1)"]}
    file.save(type(file.checkpoint)(**vars(file.checkpoint) | changed), tmp_path / "again.pt")
    assert CheckpointFile(tmp_path / "again.pt").checkpoint.history == ["bake_adapters", "another(x=1)"]
    assert file.checkpoint.history == ["bake_adapters"]


def test_a_mistake_is_one_sentence(hyper, tmp_path):
    refuse(run(["moe-nmt", "surgery", hyper, tmp_path / "out.pt", "bake_adapter()"]), "did you mean 'bake_adapters'?")


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("hyper.pt", "overwritten"),
        ("../hyper/hyper.pt", "overwritten"),
        ("no/where.pt", "no folder"),
        (".", "is a folder"),
    ],
)
def test_where_nothing_can_be_written(hyper, tmp_path, output, words):
    folder = tmp_path / "hyper"
    folder.mkdir()
    shutil.copy(hyper, folder / "hyper.pt")
    before = (folder / "hyper.pt").read_bytes()
    with pytest.raises(UserError, match=words):
        operate(folder / "hyper.pt", folder / output, ["bake_adapters()"])
    assert [path.name for path in folder.iterdir()] == ["hyper.pt"]
    assert (folder / "hyper.pt").read_bytes() == before


def test_files_that_are_no_checkpoint(corpus, hyper, tmp_path):
    for name, data, words in (
        ("list.pt", [1], "no checkpoint of fairseq"),
        ("adapters.pt", {"format": "moe_nmt adapters 1"}, "holds adapters alone"),
        ("other.pt", torch.load(hyper) | {"cfg": {"model": {"_name": "transformer"}, "task": {}}}, "transformer, not"),
    ):
        torch.save(data, tmp_path / name)
        with pytest.raises(UserError, match=words):
            operate(tmp_path / name, tmp_path / "out.pt", ["bake_adapters()"])
    (tmp_path / "rubbish.pt").write_bytes(bytes(range(256)))
    for name, words in (("rubbish.pt", "refused"), ("missing.pt", "no file")):
        with pytest.raises(UserError, match=words):
            operate(tmp_path / name, tmp_path / "out.pt", ["bake_adapters()"])
    assert not (tmp_path / "out.pt").exists()


def test_a_language_that_the_base_did_not_know_is_added(corpus, tmp_path):
    """Its tag gets a row at the end of the vocabulary; all else of the base stays bit for bit what it was."""
    short = tmp_path / "languages.txt"
    *known, new = (corpus.folder / "languages.txt").read_text().split()
    short.write_text("\n".join(known))
    before, after = f"eng-{known[1]}", f"eng-{new},{new}-eng"
    quick = ("--no-epoch-checkpoints", "--disable-validation")
    must_run(corpus.train_command(tmp_path / "base", 40, "--lang-dict", str(short), "--lang-pairs", before, *quick))
    base, grown = tmp_path / "base/checkpoint_last.pt", tmp_path / "grown.pt"
    must_run(["moe-nmt", "surgery", base, grown, "add_languages(count=1)"])
    adapters = ("--adapters", f"bottleneck(dim=8,languages=[{new}])", "--freezing", "train_only(parts=[adapters])")
    start = ("--finetune-from-model", str(grown), "--lang-pairs", after)
    must_run(corpus.train_command(tmp_path / "adapted", 10, *start, *adapters, *quick))
    adapted = tmp_path / "adapted/checkpoint_last.pt"
    old, new_state = torch.load(base)["model"], torch.load(adapted)["model"]
    for name, value in old.items():
        assert torch.equal(new_state[name][: len(value)], value), name
    table = new_state["encoder.embedding.embed_tokens.weight"]
    assert len(table) == len(old["encoder.embedding.embed_tokens.weight"]) + 1 and table[-1].any()
    assert "D-0\t" in must_run(corpus.generate_command(adapted, f"eng-{new}")).stdout
