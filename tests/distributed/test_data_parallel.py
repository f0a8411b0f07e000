"""Data parallelism through fairseq's own launcher flags, with gloo on CPUs."""

import os
import subprocess

import pytest
import torch

from moe_nmt.distributed.processes import free_port
from tests.fairseq.conftest import BIN, ROOT, corpus  # noqa: F401


def train_on_two_ranks(corpus, save_dir, updates: int, *more: str) -> list[str]:  # noqa: F811
    """Train on two processes; returns what each of them logged."""
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    flags = ("--distributed-init-method", f"tcp://127.0.0.1:{free_port()}", "--distributed-no-spawn", *more)
    flags += ("--distributed-world-size", "2")
    processes = [
        subprocess.Popen(
            [str(c) for c in corpus.train_command(save_dir, updates, *flags, "--distributed-rank", str(rank))],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in (0, 1)
    ]
    logs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], logs[0][-3000:] + logs[1][-3000:]
    return logs


def test_two_ranks_train_validate_and_resume(corpus, tmp_path):  # noqa: F811
    logs = train_on_two_ranks(corpus, tmp_path, 6)
    assert "nll_loss_ell-eng" in logs[0]
    logs = train_on_two_ranks(corpus, tmp_path, 8)
    assert "@ 6 updates" in logs[0]
    state = torch.load(tmp_path / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 8


def test_ranks_agree_where_not_every_batch_has_an_adapted_sentence(corpus, tmp_path):  # noqa: F811
    flags = ("--adapters", "hyper(dim=4,hidden=4,languages=[ell])", "--freezing", "train_only(parts=[adapters])")
    train_on_two_ranks(corpus, tmp_path, 6, *flags, "--batch-size", "2", "--max-epoch", "1")
    state = torch.load(tmp_path / "checkpoint_last.pt")
    assert len(state["last_optimizer_state"]["state"]) == sum(name.startswith("adapters.") for name in state["model"])


@pytest.mark.parametrize("value", [1.5, torch.ones(2)])
def test_what_ranks_broadcast_is_read_with_weights_only(value, tmp_path):
    from fairseq.distributed.utils import _TensorPlaceholder
    from omegaconf import OmegaConf

    config = OmegaConf.create({"model": {"layers": [1, 2], "name": "x"}}, flags={"allow_objects": True})
    torch.save({"cfg": config, "place": _TensorPlaceholder(0), "value": value}, tmp_path / "broadcast.pt")
    loaded = torch.load(tmp_path / "broadcast.pt", weights_only=True)
    assert loaded["cfg"] == config and loaded["place"].index == 0
