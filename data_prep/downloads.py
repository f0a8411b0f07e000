"""Downloads: streamed, gone on with after a break, checked, and kept in CORPUS/downloads/SOURCE."""

from __future__ import annotations

import hashlib
import http
import http.client
import importlib.util
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from lzma import LZMAError
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from data_prep.config import Source
from data_prep.languages import held_as
from data_prep.steps import FULL, Stamp, say
from moe_nmt.data import Corpus, CorpusError
from moe_nmt.data.directions import unknown
from moe_nmt.data.text import drafting, write_text

STEP = "collect"
BLOCK = 1 << 20
TRIES = 3
TIMEOUT = 60  # seconds without a byte
SAY_EVERY = 5  # seconds
TAR = (".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2")
MISSING = (401, 403, 404, 410)  # answers of a server that will not change soon


def fetch(source: Source, corpus: Path) -> str:
    """Downloads what a source names, unless that is done; returns the path of its text, for its format.

    CorpusError where something does not exist, is not what its checksum says, or cannot be reached.
    """
    folder = corpus / "downloads" / source.name
    if source.opus:
        for url in _opus_urls(source, source.opus):
            download(url, None, folder, corpus)
        return str(folder)
    if source.mtdata:
        return str(_fetch_mtdata(source.mtdata, folder / source.mtdata) / "{source}-{target}.tsv")
    checksums = source.sha256 or (None,) * len(source.url)
    files = [download(url, checksum, folder, corpus) for url, checksum in zip(source.url, checksums, strict=True)]
    for file in files:
        if file.name.endswith(TAR):
            _unpack(file, corpus)
    return str(folder / (source.path or files[0].name))


def download(url: str, sha256: str | None, folder: Path, corpus: Path) -> Path:
    """The file of a url, in the folder: downloaded, unless that was done, or a file with the checksum is there."""
    path = folder / (Path(unquote(urlsplit(url).path)).name or "download")
    name = f"download.{folder.name}.{path.name}"
    stamp = Stamp.of(Corpus.empty(corpus), name, {"url": url, "sha256": sha256}, [], [path])
    if not (path.is_file() and stamp.is_current()):
        folder.mkdir(parents=True, exist_ok=True)
        with stamp.renewing():
            if not (path.is_file() and sha256 and _sha256(path) == sha256.lower()):
                draft = folder / f".{path.name}.tmp"
                _stream_stubbornly(url, draft)
                _check(url, draft, sha256)
                draft.replace(path)
    return path


def _stream_stubbornly(url: str, draft: Path) -> None:
    for attempt in range(1, TRIES + 1):
        try:
            return _stream(url, draft)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            status = getattr(error, "code", None)
            if status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                draft.unlink(missing_ok=True)
            if attempt == TRIES or status in MISSING or isinstance(error, ValueError):
                raise CorpusError(
                    f"{url} cannot be downloaded ({getattr(error, 'reason', None) or error}): "
                    "mend the url, or run it again later, what has come is kept"
                ) from None
            time.sleep(attempt - 1)


def _stream(url: str, draft: Path) -> None:
    """Appends what the draft still lacks where the server has the same file as before, else begins anew."""
    mark = draft.with_name(f"{draft.name}.version")
    there = draft.stat().st_size if draft.exists() and mark.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "moe_nmt"})
    if there:
        request.add_header("Range", f"bytes={there}-")
        request.add_header("If-Range", mark.read_text(encoding="utf-8"))
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if getattr(response, "status", None) != http.HTTPStatus.PARTIAL_CONTENT:
            there = 0
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        mark.unlink(missing_ok=True)
        if version and not version.startswith("W/"):
            write_text(mark, version)
        length = response.headers.get("Content-Length")
        total = there + int(length) if length else None
        with open(draft, "ab" if there else "wb") as file:
            received = there + _copy(response, file, there, total, url)
    if total is not None and received < total:
        raise ConnectionError(f"it broke off after {received:,} of {total:,} bytes")
    mark.unlink(missing_ok=True)


def _copy(response: IO[bytes], file: IO[bytes], there: int, total: int | None, url: str) -> int:
    """Copies what comes, and says how far it is; returns the bytes that came."""
    came, start = 0, time.monotonic()
    said = start
    while block := response.read(BLOCK):
        file.write(block)
        came += len(block)
        now = time.monotonic()
        if now - said >= SAY_EVERY:
            said = now
            rest = (
                f" of {total / 1e6:,.0f} MB, about {(total - there - came) * (now - start) / came:,.0f} s left"
                if total
                else " MB"
            )
            say(STEP, f"downloading {url}: {(there + came) / 1e6:,.0f}{rest}")
    return came


def _check(url: str, draft: Path, sha256: str | None) -> None:
    found = _sha256(draft) if sha256 else None
    if sha256 and found != sha256.lower():
        draft.unlink()
        raise CorpusError(f"{url} has the SHA-256 {found} where {sha256} is asked for: mend the checksum, or the url")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(path: Path, corpus: Path) -> None:
    """Unpacks a .tar beside itself, nothing outside its folder, unless that was done."""
    stamp = Stamp.of(Corpus.empty(corpus), f"unpack.{path.parent.name}.{path.name}", {}, [path], [])
    if stamp.is_current():
        return
    try:
        with stamp.renewing(), tarfile.open(path) as archive:
            archive.extractall(path.parent, filter="data")
    except (tarfile.TarError, EOFError, zlib.error, LZMAError) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise CorpusError(f"{path} cannot be unpacked ({reason}): fetch it again") from None


def _opus_urls(source: Source, name: str) -> list[str]:
    """Where OPUS has the wanted pairs of a corpus, `NAME` or `NAME/RELEASE`, by the index that opustools ships."""
    _need("opustools")
    from opustools import OpusGet

    corpus, _, release = name.partition("/")
    index = OpusGet(directory=corpus, local_db=True).dbo
    wanted = {"corpus": corpus, "preprocessing": "moses", "version": release or "latest"}
    urls = {(row["source"], row["target"]): row["url"] for row in index.get_corpora(wanted)}
    if not urls:
        raise unknown("corpus", name, index.run_corpora_query({}), "OPUS")
    pairs = held_as(source.listed_pairs, source, urls, f"OPUS {name}").values()
    return [urls.get(pair) or urls[pair[::-1]] for pair in pairs]


def _fetch_mtdata(dataset: str, folder: Path) -> Path:
    """Lets mtdata write a data set as a table; returns its folder."""
    languages = dataset.split("-")[3:]
    path = folder / f"{'-'.join(languages)}.tsv"
    if path.is_file():
        return folder
    _need("mtdata")
    if len(languages) != 2:
        raise CorpusError(f"'{dataset}' is no data set of mtdata with two languages, as Statmt-europarl-10-deu-eng is")
    known = _mtdata("list", "-id", "-l", "-".join(languages)).stdout.split()
    if dataset not in known:
        raise unknown("data set", dataset, known, "mtdata")
    say(STEP, f"mtdata downloads {dataset}")
    with drafting(path) as (draft,), open(draft, "wb") as file:
        result = _mtdata("echo", dataset, stdout=file)
        if result.returncode:
            *_, last = result.stderr.strip().splitlines() or ["no message"]
            raise CorpusError(
                f"mtdata cannot download {dataset} ({last}): run it again where the internet can be reached"
            )
    return folder


def _mtdata(*arguments: str, stdout: int | IO[bytes] = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mtdata", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True)


def _need(tool: str) -> None:
    if importlib.util.find_spec(tool) is None:
        raise CorpusError(f"{tool} is not installed, which knows where this source is: pip install {tool}")
