"""A run that is killed goes on from its last checkpoint and ends as if nothing had happened."""

import os
import signal
import subprocess
import time

import torch

from tests.fairseq.conftest import BIN, ROOT, must_run

FLAGS = ("--save-interval-updates", "20", "--disable-validation", "--keep-interval-updates", "1")


def train_until(command, log, update: int) -> None:
    """Start a training, and kill it with SIGKILL once it has logged `update`."""
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("w") as file:
        process = subprocess.Popen([str(c) for c in command], stdout=file, stderr=file, env=environment)
        deadline = time.monotonic() + 300
        while f"num_updates={update}," not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()


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
    train_until(killed, tmp_path / "log", 50)
    assert not (tmp_path / "killed/checkpoint_1_60.pt").exists()
    log = must_run(killed).stdout
    assert "Loaded checkpoint" in log and "@ 40 updates" in log
    must_run(corpus.train_command(tmp_path / "unbroken", 70, *flags))
    assert_equal(final_state(tmp_path / "killed"), final_state(tmp_path / "unbroken"))


def test_killed_within_a_virtual_epoch(corpus, tmp_path):
    check_resumes_exactly(corpus, tmp_path, "--virtual-epoch-size", "700")


def test_killed_in_mid_epoch(corpus, tmp_path):
    check_resumes_exactly(corpus, tmp_path, "--moe-regularizers", "[eom(p=linear(start=0.0, end=0.4, steps=60))]")
