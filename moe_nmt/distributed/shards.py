"""Experts in files of their own, one for each rank, beside an index.

A folder has `experts-00001-of-0000G.safetensors` for each rank of the first group, its part of every stacked tensor
[E, …], and `experts.safetensors.index.json`, in the way of Hugging Face: `metadata.total_size` in bytes, and in
`weight_map` for each tensor its files, each with the experts that it has, [first, end]. `headers` holds the SHA-256 of
each file's header, and a header the CRC-32 of each expert, so that whoever knows the index's SHA-256 knows all bytes.

Shape letters: G ranks of an expert group, E experts.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from moe_nmt.distributed.groups import ExpertGroup, world_size
from moe_nmt.errors import UserError

T = TypeVar("T")

INDEX = "experts.safetensors.index.json"
FOLDER = re.compile(r"experts-\d+(-\d+)?")
MAX_HEADER = 100_000_000
"""Bytes, the library's own limit."""


def together(work: Callable[[], T]) -> list[T]:
    """What `work` returns on each rank, in their order. All ranks call it alike, and none goes on before all are done.

    Raises:
        UserError: on all ranks, if `work` raised one on any of them.
    """
    done: tuple[T | None, str | None]
    try:
        done = work(), None
    except UserError as error:
        done = None, str(error)
    outcomes = [done]
    if world_size() > 1:
        outcomes *= world_size()
        distributed.all_gather_object(outcomes, done)
    failure = next((failure for _, failure in outcomes if failure), None)
    if failure:
        raise UserError(failure)
    return [result for result, _ in outcomes]  # type: ignore[misc]


def write_folder(parts: Mapping[str, Tensor], parent: Path, updates: int, group: ExpertGroup) -> dict[str, str]:
    """Write the experts of all ranks to a new folder in `parent`; returns its `folder` name and the `index`'s SHA-256.

    All ranks call it alike. Those of the first group give their part of every stacked tensor, on the CPU; the others
    are not asked. The folder has its name when all is on disk, and no folder that was there before is touched.

    Raises:
        UserError: on all ranks, if one of them cannot write.
    """
    rank = distributed.get_rank() if world_size() > 1 else 0
    names = [f"experts-{number:05}-of-{group.size:05}.safetensors" for number in range(1, group.size + 1)]
    draft = parent / f".experts-{updates}.tmp"

    def at_first() -> None:
        if rank == 0:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)

    def on_each() -> str | None:
        if rank >= group.size:
            return None
        draft.mkdir(parents=True, exist_ok=True)
        return write_file(parts, draft / names[rank])

    def at_last() -> dict[str, str] | None:
        if rank > 0:
            return None
        for name in names:
            if not (draft / name).is_file():
                raise UserError(f"{parent} is not the same folder on all hosts; --save-dir must be one that all see.")
        digest = write_index(parts, dict(zip(names, headers[: group.size], strict=True)), draft / INDEX)
        return {"folder": name_folder(draft, parent, updates), "index": digest}

    together(_explaining(draft, at_first))
    headers = together(_explaining(draft, on_each))
    named = together(_explaining(draft, at_last))[0]
    assert named is not None
    return named


def _explaining(folder: Path, work: Callable[[], T]) -> Callable[[], T]:
    """The same work, whose errors of the system become one sentence."""

    def explained() -> T:
        try:
            return work()
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror or error}), and the checkpoints before it are unharmed: "
                "free some space or mend that, and give the same command again."
            ) from None

    return explained


def write_file(parts: Mapping[str, Tensor], path: Path) -> str:
    """Write one rank's part of every tensor, and see it onto the disk; returns the SHA-256 of the file's header."""
    library = _safetensors()
    first: dict[int, str] = {}
    parts = {  # the library takes no two tensors of the same memory
        name: part.contiguous() if first.setdefault(part.data_ptr(), name) == name else part.clone()
        for name, part in parts.items()
    }
    checksums = {name: [checksum(expert) for expert in part] for name, part in parts.items()}
    try:
        library.torch.save_file(parts, path, metadata={"crc32": json.dumps(checksums)})
    except library.SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code)) from None
    path.chmod(path.parent.stat().st_mode & 0o666)  # as the umask says, where the library lets only the owner read
    _to_disk(path)
    return hashlib.sha256(header(path)).hexdigest()


def write_index(parts: Mapping[str, Tensor], headers: Mapping[str, str | None], path: Path) -> str:
    """Write the index of files that each have as many experts of the tensors as `parts`; returns its SHA-256."""
    ranges = {
        name: {file: [number * len(part), (number + 1) * len(part)] for number, file in enumerate(headers)}
        for name, part in parts.items()
    }
    total = len(headers) * sum(part.nbytes for part in parts.values())
    index = {"metadata": {"total_size": total}, "headers": headers, "weight_map": ranges}
    data = (json.dumps(index, indent=1) + "\n").encode()
    path.write_bytes(data)
    _to_disk(path)
    return hashlib.sha256(data).hexdigest()


def name_folder(draft: Path, parent: Path, updates: int) -> str:
    """Give a finished folder the first free name for a checkpoint after so many updates."""
    number, name = 1, f"experts-{updates}"
    while (parent / name).exists():
        number += 1
        name = f"experts-{updates}-{number}"
    _to_disk(draft)
    draft.rename(parent / name)
    _to_disk(parent)
    return name


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(expert: Tensor) -> int:
    """The CRC-32 of the bytes of one expert."""
    return zlib.crc32(expert.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def header(path: Path) -> bytes:
    """The header of a file of safetensors: the length of what follows it, and what it says of the tensors."""
    with open(path, "rb") as file:
        length = file.read(8)
        return length + file.read(min(int.from_bytes(length, "little"), MAX_HEADER))


def remove_unnamed(parent: Path, named: Callable[[], set[str]]) -> None:
    """Remove the folders of experts in `parent` that are not `named`, and half-written ones.

    Not while another process writes there. `named` is asked only if there are any.
    """
    for draft in parent.glob(".experts-*.tmp"):
        shutil.rmtree(draft, ignore_errors=True)
    folders = [path for path in parent.glob("experts-*") if FOLDER.fullmatch(path.name) and (path / INDEX).is_file()]
    kept = named() if folders else set()
    for path in (path for path in folders if path.name not in kept):
        draft = path.rename(path.with_name(f".{path.name}.tmp"))  # so that one that is half-removed is known
        shutil.rmtree(draft, ignore_errors=True)


class ShardedExperts:
    """The experts in a folder that `write_folder` wrote, for any number of ranks.

    Raises:
        UserError: here and in reading, if a file is missing, damaged, or was written for another checkpoint.
    """

    def __init__(self, folder: Path, digest: str):
        """`digest` is the SHA-256 of the index."""
        self.folder = folder
        self._opened: dict[str, tuple[Any, dict[str, list[int]]]] = {}
        if not folder.is_dir():
            raise UserError(
                f"there is no folder {folder}, where the experts of the checkpoint are; put it beside the checkpoint."
            )
        data = self._read(folder / INDEX, Path.read_bytes)
        if hashlib.sha256(data).hexdigest() != digest:
            raise self._misfit(folder / INDEX)
        index = json.loads(data)
        self._headers: dict[str, str] = index["headers"]
        self._ranges: dict[str, dict[str, tuple[int, int]]] = index["weight_map"]

    def names(self) -> Iterator[str]:
        """The names of the tensors."""
        return iter(self._ranges)

    def part(self, name: str, rank: int = 0, size: int = 1) -> Tensor:
        """Part `rank` of `size` equal parts of a tensor, [E / size, …] on the CPU; no more than that is read."""
        ranges = self._ranges[name]
        experts = max(end for _, end in ranges.values())
        if experts % size:
            raise UserError(
                f"{self.folder} has {experts} experts a layer, which {size} processes cannot share equally."
            )
        begin, end = rank * experts // size, (rank + 1) * experts // size
        pieces = [
            self._piece(file, name, max(begin, first) - first, min(end, last) - first)
            for file, (first, last) in ranges.items()
            if first < end and begin < last
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _piece(self, file: str, name: str, begin: int, end: int) -> Tensor:
        opened, checksums = self._open(file)
        piece: Tensor = opened.get_slice(name)[begin:end]
        if [checksum(expert) for expert in piece] != checksums[name][begin:end]:
            raise self._broken(self.folder / file, "is damaged")
        return piece

    def _open(self, file: str) -> tuple[Any, dict[str, list[int]]]:
        path = self.folder / file
        if file not in self._opened:
            library = _safetensors()
            if hashlib.sha256(self._read(path, header)).hexdigest() != self._headers[file]:
                raise self._misfit(path)
            try:
                opened = library.safe_open(path, framework="pt")
            except library.SafetensorError:
                raise self._broken(path, "is cut short") from None
            self._opened[file] = opened, json.loads(opened.metadata()["crc32"])
        return self._opened[file]

    def _read(self, path: Path, read: Callable[[Path], bytes]) -> bytes:
        try:
            return read(path)
        except FileNotFoundError:
            raise self._broken(path, "is missing") from None

    def _misfit(self, path: Path) -> UserError:
        return self._broken(path, "is damaged, or was written for another checkpoint")

    def _broken(self, path: Path, what: str) -> UserError:
        return UserError(
            f"{path} {what}; put the folder of its experts beside the checkpoint again, or go back to an earlier one."
        )


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError:
        raise UserError("experts in files of their own need safetensors: pip install safetensors.") from None
    return safetensors
