"""A run that is killed goes on from its last checkpoint and ends as if nothing had happened."""

import signal
import sys

import torch

from tests.fairseq.conftest import ROOT, must_run, run

FLAGS = ("--save-interval-updates", "20", "--disable-validation", "--keep-interval-updates", "1")


def train_until(command, update: int) -> None:
    """Start a training, which is killed by SIGKILL right after `update`."""
    done = run([sys.executable, ROOT / "tests/fairseq/killing.py", str(update), *command[1:]])
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


def final_state(folder):
    state = torch.load(folder / "checkpoint_last.pt")
    return state["model"], state["last_optimizer_state"]["state"]


def assert_equal(a, b) -> None:
    if isinstance(a, tuple):
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def check_resumes_exactly(corpus, tmp_path, *flags: str) -> None:
    flags = (*FLAGS, *flags)
    killed = corpus.train_command(tmp_path / "killed", 70, *flags)
    train_until(killed, 45)
    assert [path.name for path in (tmp_path / "killed").glob("checkpoint_*_*.pt")] == ["checkpoint_1_40.pt"]
    log = must_run(killed).stdout
    assert "Loaded checkpoint" in log and "@ 40 updates" in log
    must_run(corpus.train_command(tmp_path / "unbroken", 70, *flags))
    assert_equal(final_state(tmp_path / "killed"), final_state(tmp_path / "unbroken"))


def test_killed_within_a_virtual_epoch(corpus, tmp_path):
    check_resumes_exactly(corpus, tmp_path, "--virtual-epoch-size", "700")


def test_killed_in_mid_epoch(corpus, tmp_path):
    check_resumes_exactly(corpus, tmp_path, "--moe-regularizers", "[eom(p=linear(start=0.0, end=0.4, steps=60))]")
