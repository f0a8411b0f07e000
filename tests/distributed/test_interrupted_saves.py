"""A checkpoint whose writing is interrupted, at any point: the one before it is there, and training resumes."""

import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from fairseq import checkpoint_utils

from moe_nmt.fairseq_plugin import saving
from moe_nmt.fairseq_plugin.compat import CheckpointError
from tests.fairseq.conftest import ROOT, corpus, must_run, run  # noqa: F401

STEPS = {"open", "os.link", "os.rename", "os.remove", "fcntl.fcntl"}
"""Python's audit events of what changes files."""
FLAGS = ("--save-interval-updates", "4", "--disable-validation", "--keep-interval-updates", "1", "--log-interval", "1")


def save_all(folder, update: int) -> None:
    """Write the checkpoints of an update as fairseq does: one, of which the others are copies."""
    first = str(folder / f"checkpoint_1_{update}.pt")
    checkpoint_utils.torch_persistent_save({"update": update, "rows": torch.full((50, 50), update)}, first)
    for name in ("checkpoint_best.pt", "checkpoint_last.pt"):
        assert checkpoint_utils.PathManager.copy(first, str(folder / name), overwrite=True)


def held(folder) -> dict[str, int]:
    """The update of each checkpoint; all must be whole."""
    states = {path.name: torch.load(path) for path in folder.glob("*.pt")}
    assert all((state["rows"] == state["update"]).all() for state in states.values())
    return {name: state["update"] for name, state in states.items()}


def kill_at(step: int, folder) -> None:
    """Save, and be killed before the step-th change of a file."""
    left = iter(range(step))

    def count(event: str, arguments: tuple) -> None:
        if event in STEPS and str(folder) in str(arguments) and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    save_all(folder, 8)


def save_half(data, file) -> None:
    """What a process that is killed while it writes leaves."""
    file.write(b"PK half of a checkpoint")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_process(function, *arguments) -> int:
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def test_killed_before_any_change_of_a_file(tmp_path):
    last = []
    for step in range(100):
        folder = tmp_path / str(step)
        folder.mkdir()
        save_all(folder, 4)
        ended = in_a_process(kill_at, step, folder)
        updates = held(folder)
        assert updates["checkpoint_1_4.pt"] == 4 and {"checkpoint_best.pt", "checkpoint_last.pt"} <= updates.keys()
        last.append(updates["checkpoint_last.pt"])
        checkpoint_utils.torch_persistent_save(
            {"update": 9, "rows": torch.full((50, 50), 9)}, str(folder / "checkpoint_last.pt")
        )
        assert held(folder) == updates | {"checkpoint_last.pt": 9}
        checkpoint_utils.verify_checkpoint_directory(str(folder))
        assert all(path.name.endswith(".pt") for path in folder.iterdir())
        if ended != -signal.SIGKILL:
            break
    assert ended == 0 and len(last) > 9 and last == sorted(last) and set(last) == {4, 8}


def test_killed_in_the_middle_of_writing_a_file(tmp_path, monkeypatch):
    save_all(tmp_path, 4)
    monkeypatch.setattr(torch, "save", save_half)
    assert in_a_process(save_all, tmp_path, 8) == -signal.SIGKILL
    assert held(tmp_path) == dict.fromkeys(("checkpoint_1_4.pt", "checkpoint_best.pt", "checkpoint_last.pt"), 4)
    monkeypatch.undo()
    save_all(tmp_path, 8)
    assert held(tmp_path)["checkpoint_last.pt"] == 8 and len(list(tmp_path.iterdir())) == 4


def test_a_link_that_a_kill_left_is_not_written_through(tmp_path):
    save_all(tmp_path, 4)
    os.link(tmp_path / "checkpoint_1_4.pt", tmp_path / ".checkpoint_last.pt.link")
    save_all(tmp_path, 8)
    assert held(tmp_path)["checkpoint_1_4.pt"] == 4 and held(tmp_path)["checkpoint_last.pt"] == 8


def test_a_copy_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "checkpoint_best.pt").mkdir()
    with pytest.raises(CheckpointError, match=r"checkpoint_best.pt cannot be written \(Is a directory\).*: mend that"):
        save_all(tmp_path, 4)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint_1_4.pt", "checkpoint_best.pt"}


def no_links(source, target) -> None:
    raise OSError(errno.EOPNOTSUPP, "no links here")


def copy_half(source, file) -> None:
    file.write(source.read(100))
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def test_copies_where_there_are_no_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    save_all(tmp_path, 4)
    files = ["checkpoint_1_4.pt", "checkpoint_best.pt", "checkpoint_last.pt"]
    assert held(tmp_path) == dict.fromkeys(files, 4) and (tmp_path / files[0]).stat().st_nlink == 1
    monkeypatch.setattr(saving.shutil, "copyfileobj", copy_half)
    assert in_a_process(save_all, tmp_path, 8) == -signal.SIGKILL
    assert held(tmp_path) == dict.fromkeys(files, 4) | {"checkpoint_1_8.pt": 8}


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen, fsync = [], os.fsync

    def observed(file) -> None:
        fsync(file)
        seen.append(os.fstat(file).st_size)

    monkeypatch.setattr(os, "fsync", observed)
    save_all(tmp_path, 4)
    assert seen == [(tmp_path / "checkpoint_last.pt").stat().st_size]


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def fill(folder) -> None:
    limit_files(5000)
    began = time.monotonic()
    with pytest.raises(CheckpointError) as error:
        save_all(folder, 8)
    assert time.monotonic() - began < 2
    assert str(error.value) == (
        f"the checkpoint {folder}/checkpoint_1_8.pt cannot be written (File too large), and those before it are "
        "unharmed: free some space and give the same command again; a training goes on from the last one."
    )


def test_a_file_that_may_not_grow_is_one_sentence(tmp_path):
    save_all(tmp_path, 4)
    before = sorted(tmp_path.iterdir())
    assert in_a_process(fill, tmp_path) == 0
    assert sorted(tmp_path.iterdir()) == before and set(held(tmp_path).values()) == {4}


def test_other_mistakes_in_saving_stay_what_they_are(tmp_path):
    with pytest.raises(AttributeError, match="lambda"):
        checkpoint_utils.torch_persistent_save({"f": lambda: 0}, str(tmp_path / "checkpoint_last.pt"))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"--save-dir .*/file/x cannot be written to \(Not a directory\); mend"):
        checkpoint_utils.verify_checkpoint_directory(str(tmp_path / "file" / "x"))


def train_and_die(command, save: int) -> None:
    """Start a training, which is killed by SIGKILL in the middle of its save-th writing of a checkpoint."""
    done = run([sys.executable, ROOT / "tests/distributed/dying_save.py", str(save), *command[1:]])
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


def test_a_training_killed_in_its_saves_goes_on(corpus, tmp_path):  # noqa: F811
    command = corpus.train_command(tmp_path, 12, *FLAGS)
    train_and_die(command, 1)
    assert [path.name for path in tmp_path.iterdir()] == [".checkpoint_1_4.pt.tmp"]
    train_and_die(command, 2)
    assert torch.load(tmp_path / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 4
    log = must_run(command).stdout
    assert "Loaded checkpoint" in log and "@ 4 updates" in log
    assert torch.load(tmp_path / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 12
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint_1_12.pt", "checkpoint_last.pt"}


def test_a_full_disk_ends_a_training_which_goes_on(corpus, tmp_path):  # noqa: F811
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        command = corpus.train_command(disk, 12, *FLAGS)
        done = run(command)
        assert done.returncode == 2 and done.stderr == (
            f"moe_nmt: error: the checkpoint {disk}/checkpoint_1_8.pt cannot be written (No space left on device), and "
            "those before it are unharmed: free some space and give the same command again; a training goes on from "
            "the last one.\n"
        )
        assert {path.name for path in disk.iterdir()} == {"checkpoint_1_4.pt", "checkpoint_last.pt"}
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        assert "@ 4 updates" in must_run(command).stdout
    finally:
        subprocess.run(["umount", disk], check=True)
