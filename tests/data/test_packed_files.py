"""Packed files: read like plain ones, and refused in one sentence where they are damaged."""

import bz2
import gzip
import lzma
import random
import zipfile

import pytest

from moe_nmt.data import CorpusError
from moe_nmt.data.text import read_lines

LINES = [f"line {number} \u2028\x85 äöü {random.Random(number).random()}" for number in range(5000)]
TEXT = "".join(f"{line}\n" for line in LINES).encode()


def zst(data):
    return pytest.importorskip("backports.zstd").compress(data)


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zst}


@pytest.mark.parametrize("ending", PACKERS)
def test_packed_files_read_like_plain_ones(ending, tmp_path):
    path = tmp_path / f"text.{ending}"
    path.write_bytes(PACKERS[ending](TEXT))
    assert list(read_lines(path)) == LINES


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize(
    "harm", [lambda data: data[: len(data) // 2], lambda data: b"rubbish" + data, lambda data: b"x"]
)
def test_damaged_files_are_refused_under_their_name(ending, harm, tmp_path):
    path = tmp_path / f"text.{ending}"
    path.write_bytes(harm(PACKERS[ending](TEXT)))
    with pytest.raises(CorpusError, match=f"text.{ending} is no whole .* file: fetch or pack it again"):
        list(read_lines(path))


def test_two_parts_packed_one_after_the_other(tmp_path):
    for ending, pack in PACKERS.items():
        path = tmp_path / f"text.{ending}"
        path.write_bytes(pack(TEXT[:1000]) + pack(TEXT[1000:]))
        assert list(read_lines(path)) == LINES, ending


def test_a_file_inside_a_zip_is_written_as_in_a_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "texts.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("plain.txt", TEXT)
        archive.writestr("folder/packed.gz", gzip.compress(TEXT))
    assert list(read_lines(tmp_path / "texts.zip" / "plain.txt")) == LINES
    assert list(read_lines(tmp_path / "texts.zip" / "folder" / "packed.gz")) == LINES
    with pytest.raises(FileNotFoundError, match="holds no file other"):
        list(read_lines(tmp_path / "texts.zip" / "other"))


def test_a_damaged_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "texts.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("plain.txt", TEXT)
    (tmp_path / "texts.zip").write_bytes((tmp_path / "texts.zip").read_bytes().replace(b"line 77 ", b"line 78 "))
    with pytest.raises(CorpusError, match=r"texts.zip/plain.txt is no whole zip file"):
        list(read_lines(tmp_path / "texts.zip" / "plain.txt"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.gz"):
        list(read_lines(tmp_path / "nothing.gz"))
