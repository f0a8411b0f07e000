"""Files of adapters: written from a checkpoint, and joined with their base to a checkpoint again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moe_nmt.fairseq_plugin.checkpoints import CheckpointFile, check_output, load, save
from moe_nmt.surgery import adapter_files
from moe_nmt.surgery.adapter_files import ShippedAdapters


def extract(source: Path, output: Path, languages: Sequence[str] | None = None) -> ShippedAdapters:
    """Write the adapters of a checkpoint, or only those of some languages.

    Raises:
        UserError: as `adapter_files.extract`, or if a file cannot be read or written.
    """
    check_output(output, [source])
    shipped = adapter_files.extract(CheckpointFile(source).checkpoint, str(source), languages)
    save(shipped.pack(), output)
    return shipped


def attach(base: Path, adapters: Sequence[Path], output: Path) -> None:
    """Write the checkpoint of a base with the adapters of some files.

    Raises:
        UserError: as `adapter_files.attach`, or if a file cannot be read or written.
    """
    check_output(output, [base, *adapters])
    shipped = [read(path) for path in adapters]
    file = CheckpointFile(base)
    file.save(adapter_files.attach(file.checkpoint, str(base), shipped), output)


def read(path: Path) -> ShippedAdapters:
    """The adapters in a file.

    Raises:
        UserError: if it cannot be read, or holds anything else.
    """
    return ShippedAdapters.unpack(load(path), str(path))
