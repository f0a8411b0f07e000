"""Downloads from a server on this machine: checked, kept, gone on with, and refused; the tools by their own indexes."""

import argparse
import hashlib
import http.server
import io
import subprocess
import sys
import tarfile
import threading

import polars as pl
import pytest
import yaml

from data_prep import downloads
from data_prep.collect import collect
from data_prep.collected import read_parts
from moe_nmt.data import CorpusError

PAIR = "eng_Latn-deu_Latn"
TABLE = "".join(f"eins {number}\tone {number}\n" for number in range(50_000)).encode()
SHA256 = hashlib.sha256(TABLE).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; breaks off after `server.breaks[0]` bytes while there are any; knows ranges."""

    def do_GET(self):
        data = self.server.files.get(self.path)
        self.server.requests.append((self.path, self.headers.get("Range")))
        if data is None:
            self.send_error(404)
            return
        version = f'"{hashlib.md5(data).hexdigest()}"'
        resumed = self.headers.get("Range") and self.headers.get("If-Range") == version
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if resumed else 0
        if resumed and start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if resumed else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", version)
        self.end_headers()
        stop = self.server.breaks.pop(0) if self.server.breaks else len(data)
        self.wfile.write(data[start : start + stop])
        if start + stop < len(data):
            self.connection.close()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda _: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.requests, server.breaks = {"/de-en.tsv": TABLE}, [], []
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def collected(tmp_path):
    def run(**source):
        content = {"sources": [{"name": "it", "pairs": [PAIR], **source}]}
        (tmp_path / "sources.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        collect(argparse.Namespace(config=tmp_path / "sources.yaml", corpus=tmp_path / "corpus", workers=1))
        (part,) = read_parts(tmp_path / "corpus")
        return [pair for path in part.paths(tmp_path / "corpus") for pair in pl.read_parquet(path).rows()]

    return run


def table(server, **more):
    return {"format": "tsv", "url": f"{server.url}/de-en.tsv", "path": "{source}-{target}.tsv", **more}


def test_a_download_is_done_once_and_kept(server, collected, tmp_path):
    text = collected(**table(server, sha256=SHA256.upper()))
    assert text[:2] == [("one 0", "eins 0"), ("one 1", "eins 1")] and len(text) == 50_000
    assert (tmp_path / "corpus/downloads/it/de-en.tsv").read_bytes() == TABLE
    assert collected(**table(server, sha256=SHA256.upper())) == text
    assert len(server.requests) == 1
    assert [path.name for path in (tmp_path / "corpus/downloads/it").iterdir()] == ["de-en.tsv"]


def test_a_connection_that_breaks_off_is_gone_on_with(server, collected):
    server.breaks = [300_000, 200_000]
    assert len(collected(**table(server, sha256=SHA256))) == 50_000
    assert [asked for _, asked in server.requests] == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_run_goes_on_too(server, collected, tmp_path):
    server.breaks = [100_000] * 3
    with pytest.raises(CorpusError, match=r"de-en.tsv cannot be downloaded \(it broke off after 300,000 of .* is kept"):
        collected(**table(server))
    assert not (tmp_path / "corpus/downloads/it/de-en.tsv").exists()
    assert len(collected(**table(server))) == 50_000
    assert server.requests[-1][1] == "bytes=300000-"


def test_a_file_that_changed_meanwhile_is_not_mixed_with_the_old_one(server, collected):
    server.breaks = [100_000] * 3
    with pytest.raises(CorpusError, match="broke off"):
        collected(**table(server))
    server.files["/de-en.tsv"] = b"neu\tnew\n"
    assert collected(**table(server)) == [("new", "neu")]


def test_a_run_killed_before_the_last_step_goes_on(server, collected, tmp_path):
    folder = tmp_path / "corpus/downloads/it"
    folder.mkdir(parents=True)
    (folder / ".de-en.tsv.tmp").write_bytes(TABLE)
    (folder / ".de-en.tsv.tmp.version").write_text(f'"{hashlib.md5(TABLE).hexdigest()}"')
    assert len(collected(**table(server, sha256=SHA256))) == 50_000


def test_a_wrong_checksum_is_refused_and_nothing_kept(server, collected, tmp_path):
    wrong = "0" * 64
    with pytest.raises(CorpusError, match=f"de-en.tsv has the SHA-256 {SHA256} where {wrong} is asked for: mend"):
        collected(**table(server, sha256=wrong))
    assert list((tmp_path / "corpus/downloads/it").iterdir()) == []


def test_a_file_put_there_by_hand_needs_no_internet(server, collected, tmp_path):
    path = tmp_path / "corpus/downloads/it/de-en.tsv"
    path.parent.mkdir(parents=True)
    path.write_bytes(TABLE)
    assert len(collected(**table(server, sha256=SHA256))) == 50_000
    assert server.requests == []


def test_what_does_not_exist_or_cannot_be_reached(server, collected):
    with pytest.raises(CorpusError, match=r"nothing.tsv cannot be downloaded \(Not Found\): mend the url"):
        collected(**table(server, url=f"{server.url}/nothing.tsv"))
    assert len(server.requests) == 1
    with pytest.raises(CorpusError, match=r"cannot be downloaded \(.*refused\): mend the url"):
        collected(**table(server, url="http://127.0.0.1:9/de-en.tsv"))
    with pytest.raises(CorpusError, match=r"cannot be downloaded \(unknown url type: 'de-en.tsv'\)"):
        collected(**table(server, url="de-en.tsv"))


def packed(files, mode="w:gz"):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return data.getvalue()


def test_a_tar_is_unpacked_and_several_files_make_a_source(server, collected, tmp_path):
    server.files = {"/flores.tar.gz": packed({f"f/dev/{code}.dev": b"x\n" for code in ("deu_Latn", "eng_Latn")})}
    assert collected(format="flores", url=f"{server.url}/flores.tar.gz", path="f", split="valid") == [("x", "x")]
    server.files = {"/t.de-en.de": b"eins\n", "/t.de-en.en": b"one\n"}
    urls = [f"{server.url}{name}" for name in server.files]
    assert collected(format="moses", url=urls, path="t") == [("one", "eins")]


def test_a_tar_that_leaves_its_folder_or_is_none_is_refused(server, collected, tmp_path):
    for data in (packed({"../../evil": b"x"}), packed({"x": b"x" * 10_000})[:-30], b"rubbish"):
        server.files = {"/it.tgz": data}
        with pytest.raises(CorpusError, match=r"it.tgz cannot be unpacked \(.*\): fetch it again"):
            collected(url=f"{server.url}/it.tgz", path="{language}.txt")
        (tmp_path / "corpus/downloads/it/it.tgz").unlink()
    assert not list(tmp_path.rglob("evil"))


def test_a_tool_that_is_not_installed_is_named(collected, monkeypatch):
    monkeypatch.setattr(downloads.importlib.util, "find_spec", lambda name: None)
    for source in ({"opus": "Books"}, {"mtdata": "Statmt-europarl-10-deu-eng"}):
        (origin,) = source
        tool = "opustools" if origin == "opus" else "mtdata"
        with pytest.raises(CorpusError, match=f"{tool} is not installed, .*: pip install {tool}"):
            collected(**source)


@pytest.fixture
def opus_index(tmp_path, monkeypatch):
    pytest.importorskip("opustools")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_opus_by_the_index_of_opustools(opus_index, server, collected, monkeypatch):
    asked = []

    def download(url, sha256, folder, corpus):
        asked.append(url)
        for language in ("de", "en"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"Books.de-en.{language}").write_text(f"{language}\n")

    monkeypatch.setattr(downloads, "download", download)
    assert collected(opus="Books/v1") == [("en", "de")]
    assert asked == ["https://object.pouta.csc.fi/OPUS-Books/v1/moses/de-en.txt.zip"]
    with pytest.raises(CorpusError, match="OPUS has no corpus 'Bokks'; did you mean 'Books'"):
        collected(opus="Bokks")
    with pytest.raises(CorpusError, match="OPUS Books has no language 'zul_Latn'"):
        collected(opus="Books", pairs=["eng_Latn-zul_Latn"])


@pytest.mark.slow
def test_mtdata_by_its_own_index(collected, tmp_path, monkeypatch):
    pytest.importorskip("mtdata")
    monkeypatch.setenv("MTDATA", str(tmp_path / "mtdata"))
    with pytest.raises(
        CorpusError, match="mtdata has no data set 'Statmt-europal-10-deu-eng'; did you mean 'Statmt-europarl"
    ):
        collected(mtdata="Statmt-europal-10-deu-eng")


def test_mtdata_writes_the_table(collected, monkeypatch):
    def mtdata(*arguments, stdout=subprocess.PIPE):
        code = "print('A-b-1-deu-eng')" if arguments[0] == "list" else "print('eins\\tone')"
        return subprocess.run([sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, text=True)

    monkeypatch.setattr(downloads, "_mtdata", mtdata)
    monkeypatch.setattr(downloads.importlib.util, "find_spec", lambda name: name)
    assert collected(mtdata="A-b-1-deu-eng") == [("one", "eins")]
    with pytest.raises(CorpusError, match="'A-b-1-deu' is no data set of mtdata with two languages"):
        collected(mtdata="A-b-1-deu")
