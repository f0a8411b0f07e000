"""Checkpoints written so that a kill or a full disk, at any moment, leaves the earlier ones as they were.

Each file is written under a temporary name beside it and renamed. The temporary name is a fixed one, so the next write
of the same file takes the place of what a kill left behind; a training that starts or resumes removes the rest.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from moe_nmt.data.text import drafting
from moe_nmt.fairseq_plugin.compat import CheckpointError

LEFTOVERS = (".checkpoint*.pt.tmp", ".checkpoint*.pt.link", "checkpoint*.pt.tmp")
"""What a killed process may leave in a folder of checkpoints: drafts of ours, and of fairseq without this plugin."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def save(data: Any, path: Path) -> None:
    """Write a file of torch.

    Raises:
        CheckpointError: if it cannot be written, as on a full disk; what was there before is there still.
    """
    with explaining_failure(path), drafting(path) as (draft,), open(draft, "wb") as file:
        torch.save(data, file)
        file.flush()
        os.fsync(file.fileno())


def duplicate(source: Path, target: Path) -> None:
    """Give a file a second name, by a hard link, or by a copy where the file system has no links.

    Neither may be changed in place afterwards: who writes one anew must rename it, as everything here does.

    Raises:
        CheckpointError: if it cannot be written; what was there before is there still.
    """
    draft = target.with_name(f".{target.name}.link")
    with explaining_failure(target):
        try:
            draft.unlink(missing_ok=True)
            _link_or_copy(source, draft)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        with open(source, "rb") as original, open(target, "wb") as file:
            shutil.copyfileobj(original, file)
            file.flush()
            os.fsync(file.fileno())


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written; not while another process writes checkpoints there."""
    for pattern in LEFTOVERS:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def explaining_failure(path: Path) -> Iterator[None]:
    """What goes wrong in writing this checkpoint becomes one sentence: a `CheckpointError`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = _cause(error)
        if cause is None:
            raise
        way_out = "free some space" if cause.errno in FULL else "mend that"
        raise CheckpointError(
            f"the checkpoint {path} cannot be written ({cause.strerror or cause}), and those before it are unharmed: "
            f"{way_out} and give the same command again; a training goes on from the last one."
        ) from None


def _cause(error: BaseException | None) -> OSError | None:
    """The error of the system, which torch hides behind one of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


class CheckpointPaths(PathManager):
    """fairseq's file operations, with the copy that makes `checkpoint_last.pt` out of what was just written."""

    @staticmethod
    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        if PathManager.path_requires_pathmanager(dst_path):
            return bool(PathManager.copy(src_path, dst_path, overwrite=overwrite))
        duplicate(Path(src_path), Path(dst_path))
        return True


def saving_safely(torch_persistent_save: Callable[..., None]) -> Callable[..., None]:
    """fairseq's writing of a checkpoint, but for local files by `save`."""

    @functools.wraps(torch_persistent_save)
    def persistent_save(obj: Any, filename: str, async_write: bool = False) -> None:
        if async_write or not PathManager.supports_rename(filename):
            torch_persistent_save(obj, filename, async_write=async_write)
        else:
            save(obj, Path(filename))

    return persistent_save


def verifying(verify_checkpoint_directory: Callable[[str], None]) -> Callable[[str], None]:
    """fairseq's check that checkpoints can be written, which rank 0 makes first, and a removal of leftovers."""

    @functools.wraps(verify_checkpoint_directory)
    def verify_and_tidy(save_dir: str) -> None:
        try:
            verify_checkpoint_directory(save_dir)
            remove_leftovers(Path(save_dir))
        except OSError as error:
            raise CheckpointError(
                f"--save-dir {save_dir} cannot be written to ({error.strerror or error}); "
                "mend that, or name another folder."
            ) from None

    return verify_and_tidy


def install() -> None:
    """Make fairseq write its checkpoints in this way."""
    checkpoint_utils.torch_persistent_save = saving_safely(checkpoint_utils.torch_persistent_save)
    checkpoint_utils.verify_checkpoint_directory = verifying(checkpoint_utils.verify_checkpoint_directory)
    checkpoint_utils.PathManager = CheckpointPaths
