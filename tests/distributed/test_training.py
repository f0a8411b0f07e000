"""fairseq-train with experts spread over ranks is the training of one rank with the same global batch."""

import json
import re

import pytest
import torch

from tests.distributed.warm_ranks import must_run, run
from tests.fairseq.conftest import ROOT, corpus  # noqa: F401

RECORDING = ROOT / "tests/distributed/recording.py"
UPDATES = 20
SAME = (
    *("--moe-experts", "ffn(count=8)", "--dropout", "0", "--clip-norm", "0.5", "--max-tokens", "1500"),
    *("--moe-losses", "[load_balancing(weight=0.05), z_loss(weight=0.01)]"),
    *("--lr", "0.001", "--no-epoch-checkpoints", "--disable-validation"),
)
"""Some 10 batches an epoch, so that its last update leaves ranks without a batch."""
RUNS = {
    "1": (1, "--update-freq", "4"),
    "2": (2, "--update-freq", "2", "--moe-dispatch", "all_to_all(chunks=2)"),
    "4": (4, "--update-freq", "1", "--moe-dispatch", "all_to_all"),
    "4 by node": (4, "--update-freq", "1", "--moe-dispatch", "all_to_all(by_node=True)", "--moe-ranks-per-node", "2"),
    "4 as replicas": (4, "--update-freq", "1", "--moe-dispatch", "all_to_all(ranks=2)"),
    "4, each with all experts": (4, "--update-freq", "1"),
}


def train(corpus, folder, world, *flags):  # noqa: F811
    """What is recorded of the updates, and the last checkpoint."""
    record = folder / "updates.jsonl"
    folder.mkdir()
    must_run(world, [RECORDING, record, *corpus.train_command(folder, UPDATES, *SAME, *flags)[1:]], folder)
    return [json.loads(line) for line in record.read_text().splitlines()], torch.load(folder / "checkpoint_last.pt")


@pytest.fixture(scope="module")
def folder_of_one(tmp_path_factory):
    return tmp_path_factory.mktemp("one") / "run"


@pytest.fixture(scope="module")
def one(corpus, folder_of_one):  # noqa: F811
    return train(corpus, folder_of_one, *RUNS["1"])


def assert_same(state, expected, tolerance):
    """The same tensors under the same keys, to an absolute tolerance."""
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_same(state[key], value, tolerance)
        elif isinstance(value, torch.Tensor):
            torch.testing.assert_close(state[key], value, rtol=0, atol=tolerance, msg=lambda m, k=key: f"{k}: {m}")
        else:
            assert state[key] == value


@pytest.mark.parametrize("name", [name for name in RUNS if name != "1"])
def test_losses_norms_and_parameters_are_those_of_one_rank(corpus, one, tmp_path, name):  # noqa: F811
    updates, state = train(corpus, tmp_path / "run", *RUNS[name])
    expected, whole = one
    assert len(updates) == len(expected) == UPDATES
    for key in ("loss", "gnorm"):
        found, wanted = ([update[key] for update in record] for record in (updates, expected))
        assert found == pytest.approx(wanted, rel=0, abs=1e-5), key
    assert_same(state["model"], whole["model"], 1e-4)
    assert_same(state["last_optimizer_state"]["state"], whole["last_optimizer_state"]["state"], 1e-5)


@pytest.mark.parametrize("precision", ["--fp16", "--bf16"])
def test_half_precision_follows_one_rank(corpus, tmp_path, precision):  # noqa: F811
    flags = (precision, "--fp16-init-scale", "1", "--checkpoint-activations", "--max-update", "10")
    expected, whole = train(corpus, tmp_path / "one", *RUNS["1"], *flags)
    updates, state = train(corpus, tmp_path / "four", *RUNS["4 as replicas"], *flags)
    assert len(updates) == len(expected) == 10
    for key in ("loss", "gnorm"):
        found, wanted = ([update[key] for update in record] for record in (updates, expected))
        assert found == pytest.approx(wanted, rel=0.05), key
    for name, value in whole["model"].items():
        torch.testing.assert_close(state["model"][name].float(), value.float(), rtol=0, atol=0.02, msg=name)


def test_ranks_validate_save_and_run_out_of_batches_together(corpus, tmp_path):  # noqa: F811
    """Two ranks with an odd number of batches, in training and in validation, and checkpoints of every kind."""
    flags = ("--moe-dispatch", "all_to_all", "--max-tokens", "1500", "--max-tokens-valid", "300")
    flags += ("--save-interval-updates", "3", "--keep-interval-updates", "1", "--validate-interval-updates", "2")
    flags += ("--keep-best-checkpoints", "2", "--store-ema", "--moe-losses", "[load_balancing(all_ranks=True)]")
    flags += ("--moe-ranks-per-node", "1", "--moe-log-per-layer", "--log-format", "json", "--log-interval", "1")
    done = must_run(2, corpus.train_command(tmp_path, 12, *flags), tmp_path)
    log = done[0].output
    assert len(re.findall(r"\| valid \|", log)) >= 6 and "done training" in log
    updates = [json.loads(line[line.index("{") :]) for line in log.splitlines() if "| train_inner |" in line]
    for update in updates:
        assert float(update["moe_bytes_within"]) == 0
        layers = [
            float(update[f"moe_bytes_across_{side}.layers.1.feed_forward.moe"]) for side in ("encoder", "decoder")
        ]
        assert min(layers) > 1e5 and float(update["moe_bytes_across"]) == pytest.approx(sum(layers), rel=1e-5)
    assert (tmp_path / "checkpoint_best.pt").exists() and (tmp_path / "checkpoint_last.pt").exists()
    done = must_run(
        2, corpus.train_command(tmp_path, 14, *flags, "--no-last-checkpoints", "--no-epoch-checkpoints"), tmp_path
    )
    assert "@ 12 updates" in done[0].output


def test_validation_by_ranks_that_run_out_of_batches_has_the_loss_of_one(corpus, one, folder_of_one, tmp_path):  # noqa: F811
    """Three batches of 120 sentences, for one, two and four ranks."""
    flags = (*corpus.task_flags, "--path", folder_of_one / "checkpoint_last.pt", "--batch-size", "50")
    spread = ("--model-overrides", "{'moe_dispatch': 'all_to_all'}")
    losses = []
    for world, more in ((1, ()), (2, spread), (4, ())):
        done = must_run(world, ["fairseq-validate", corpus.data, *flags, *more], tmp_path)
        losses.append(float(re.search(r"valid on 'valid' subset \| loss (\S+)", done[0].output)[1]))
    assert losses == pytest.approx([losses[0]] * 3, abs=2e-3)


def test_a_rank_without_memory_ends_all_with_a_sentence(corpus, tmp_path):  # noqa: F811
    flags = ("--moe-dispatch", "all_to_all", "--save-interval-updates", "2")
    command = corpus.train_command(tmp_path, 8, *flags)
    starved = run(2, [ROOT / "tests/distributed/starving.py", "3", *command[1:]], tmp_path)
    assert all(rank.status not in (0, -9) for rank in starved)
    assert not any("Traceback" in rank.errors for rank in starved)
    assert "process 1 ran out of memory" in starved[1].errors
    assert re.search("ranks has ended.*the same command goes on from the last checkpoint", starved[0].errors)
    assert not (tmp_path / "crash.pt").exists()
    assert "@ 2 updates" in must_run(2, command, tmp_path)[0].output


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ("--moe-dispatch", "all_to_all(ranks=3)"),
            "ranks=3 must divide the number of experts, 4, and of processes, 2",
        ),
        (("--moe-dispatch", "all_to_all", "--moe-ranks-per-node", "3"), "--moe-ranks-per-node 3 must divide"),
        (("--moe-dispatch", "all_to_all", "--freezing", "train_only(parts=[experts])"), "train the routers too"),
        (("--moe-dispatch", "all_to_all", "--ddp-backend", "slowmo"), "--ddp-backend slowmo does not go with experts"),
    ],
)
def test_mistakes_are_one_sentence(corpus, tmp_path, flags, words):  # noqa: F811
    done = run(2, corpus.train_command(tmp_path, 2, *flags), tmp_path)
    assert all(rank.status == 2 for rank in done)
    assert any(words in rank.errors for rank in done) and not any("Traceback" in rank.errors for rank in done)
