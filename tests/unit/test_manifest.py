import base64
import codecs
import contextlib
import gzip
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_core.errors import LocalFileError, ManifestError, ObjectNotFound, ScoreError
from score_core.manifest import ManifestSource, read_downloads, read_text, read_uploads

A, B = "a25ae8b4-097d-11ea-b4b9-41f0d4c18919", "576f7386-e626-5d99-ae63-1b3ce9de308b"
MD5 = "ac5d500ec64fa7dc287050c553b83f3a"
HEAD = f"{A}\t\t\n"
NAMES = "repo_code\tfile_id\tobject_id\tfile_format\tfile_name\tfile_size\tmd5_sum\tindex_object_id\tdonor_id\tproject_id\tstudy\n"


def uploads(text: str | bytes):
    return read_uploads(ManifestSource("-", stdin=io.BytesIO(text.encode() if isinstance(text, str) else text)))


def downloads(text: str | bytes):
    return read_downloads(ManifestSource("-", stdin=io.BytesIO(text.encode() if isinstance(text, str) else text)))


def row(object_id: str = B, **cells: str) -> str:
    values = {"file_id": "", "file_name": "", "file_size": "", "md5_sum": "", **cells}
    return f"\t{values['file_id']}\t{object_id}\t\t{values['file_name']}\t{values['file_size']}\t{values['md5_sum']}\t\t\t\t\n"


def test_song_upload_manifest() -> None:
    (item,) = uploads(f"{HEAD}{B}\t/data/TEST-CA/controlled.bam\t{MD5}\n")
    assert (item.object_id, item.path, item.md5) == (B, Path("/data/TEST-CA/controlled.bam"), MD5)


def test_smallest_download_manifest() -> None:
    (item,) = downloads(NAMES + row())
    assert (item.object_id, item.file_name, item.size, item.md5) == (B, None, None, None)


def test_full_download_manifest() -> None:
    (item,) = downloads(NAMES + row(file_id="EGAZ1", file_name="a.bam", file_size="17", md5_sum=MD5))
    assert (item.analysis_id, item.file_name, item.size, item.md5) == ("EGAZ1", "a.bam", 17, MD5)


@pytest.mark.parametrize("name", ["-rf", "~root", "a b", "$(x)", "=cmd|x", "ü.bam"])
def test_odd_paths_are_literal(name: str) -> None:
    assert uploads(f"{HEAD}{B}\t{name}\t{MD5}")[0].path == Path(name)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_and_byte_order_mark(end: str) -> None:
    text = (HEAD + f"{B}\tx\t{MD5}\n").replace("\n", end)
    assert len(uploads(codecs.BOM_UTF8 + text.encode())) == 1
    assert len(uploads(text + end)) == 1  # an empty last line


@pytest.mark.parametrize("md5", [MD5.upper(), base64.b64encode(bytes.fromhex(MD5)).decode()])
def test_md5_in_other_forms(md5: str) -> None:
    assert uploads(f"{HEAD}{B}\tx\t{md5}")[0].md5 == MD5


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        (f"{HEAD}{B}\tx\n", 2, 3, "has 2 columns and must have 3"),
        (f"{HEAD}{B}\tx\t{MD5}\ty\n", 2, 4, "has 4 columns"),
        (f"{HEAD}{B} x {MD5}\n", 2, 2, "something else than tabs"),
        (f"id,path,md5\n{B},x,{MD5}\n", 1, 2, "something else than tabs"),
        (f"{HEAD}x\t{B}\t{MD5}\n", 2, 1, "'object id' of the manifest is wrong: 'x' is not an object id"),
        (f"id\tname\tsum\n{B}\tx\t{MD5[:31]}\n", 2, 3, "'sum' of the manifest must hold an MD5"),
        (f"{HEAD}{B}\tx\t\n", 2, 3, "is empty"),
        (f"{HEAD}{B}\t\t{MD5}\n", 2, 2, "is empty"),
        (f"{HEAD}\n{B}\tx\t{MD5}\n", 2, None, "blank"),
        (f"{HEAD}{B}\tx\r{B}\t{MD5}\n", 2, None, "carriage return"),
        (f"{HEAD}{B}\tx\t{MD5}\n{B}\ty\t{MD5}\n", 3, None, "something else in line 2"),
        (f"{HEAD}{B}\tx\t{MD5}\n{B}\tx\t{'0' * 32}\n", 3, None, "something else in line 2"),
        (f"{B}\tx\t{MD5}\n", 1, None, "put a header on top"),
        (HEAD, None, None, "lists no files"),
        ("", None, None, "is empty"),
        ("\n", None, None, "is empty"),
        (HEAD + "x" * 70_000, 2, None, "longer than 65536 bytes"),
        ("x" * 70_000, 1, None, "longer than 65536 bytes"),
        (NAMES + row(), 1, 4, "it looks like a download manifest"),
        (f"{HEAD}{B}\té\t{MD5}\n".encode("latin-1"), 2, 2, "Latin-1"),
    ],
)
def test_upload_manifest_errors_say_where(text: str | bytes, line: int | None, column: int | None, says: str) -> None:
    with pytest.raises(ManifestError) as caught:
        uploads(text)
    assert says in str(caught.value)
    assert (caught.value.line, caught.value.column) == (line, column)


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        (row("nonsense"), 3, "'object_id'"),
        (row(f"{B}/../x"), 3, "is not an object id"),
        (row(file_size="-1"), 6, "'file_size' of the manifest must hold a size in bytes, digits only, got '-1'"),
        (row(file_size="1e9"), 6, "digits only"),
        (row(file_size=str(2**63)), 6, "digits only"),
        (row(md5_sum="zz"), 7, "must hold an MD5"),
        (row(file_name="../../x"), 5, "plain name"),
        (row(file_name="/etc/cron.d/x"), 5, "plain name"),
        (row(file_name="..\\x"), 5, "plain name"),
        (row(file_id=".."), 2, "plain name"),
        (row(md5_sum=MD5) + row(md5_sum="0" * 32), None, "something else in line 2"),
        (row(md5_sum=MD5) + row(file_name="x", md5_sum=MD5), None, "something else in line 2"),
    ],
)
def test_download_manifest_errors_say_where(text: str, column: int | None, says: str) -> None:
    with pytest.raises(ManifestError, match=r"line \d") as caught:
        downloads(NAMES + text)
    assert says in str(caught.value)
    assert caught.value.column == column


def test_reordered_columns_are_found() -> None:
    swapped = NAMES.replace("object_id\tfile_format", "file_format\tobject_id", 1)
    with pytest.raises(ManifestError, match=r"Column 'file_format'.*'BAM' is not an object id.*line 2, column 3"):
        downloads(swapped + f"\t\tBAM\t{B}\t\t\t\t\t\t\t\n")


def test_manifest_of_downloads_without_header() -> None:
    with pytest.raises(ManifestError, match="put a header on top"):
        downloads(row())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\n  <html>", "HTML"),
        (b"<?xml version='1.0'?><ResultSet/>", "XML"),
        (b'{"message": "login"}', "JSON"),
        (b"[1]", "JSON"),
        (gzip.compress(mtime=0, data=HEAD.encode()), "gzip"),
        (b"PK\x03\x04rest", "zip"),
        (HEAD.encode("utf-16"), "UTF-16"),
        (HEAD.encode("utf-16-le"), "UTF-16"),
        (HEAD.encode("utf-16-be"), "UTF-16"),
        (b"BAM\x01\x00\x00\x00\x10", "binary"),
        (b"CRAM\x03\x01\x80\xff\x07", "binary"),
    ],
)
def test_other_things_are_recognised(data: bytes, says: str) -> None:
    with pytest.raises(ManifestError, match=f"This is not a manifest: .*{says}"):
        uploads(data)


def test_same_line_twice_counts_once() -> None:
    assert len(uploads(HEAD + f"{B}\tx\t{MD5}\n" * 3)) == 1


def test_line_without_end_is_not_read_whole() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer) -> int:
            self.given += len(buffer)
            buffer[:] = b"x" * len(buffer)
            return len(buffer)

    raw = Endless()
    with pytest.raises(ManifestError, match="longer than"):
        read_uploads(ManifestSource("-", stdin=io.BufferedReader(raw)))
    assert raw.given < 1 << 20


@given(st.binary(max_size=300))
def test_whatever_it_is_it_is_a_manifest_error(data: bytes) -> None:
    for read in (uploads, downloads):
        with pytest.raises(ManifestError):
            read(data)


def test_path_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(LocalFileError, match="Cannot read the manifest"):
            read_uploads(str(path))


def test_relative_path_with_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a:b.tsv").write_text(f"{HEAD}{B}\tx\t{MD5}\n")
    assert len(read_uploads("a:b.tsv")) == 1


@pytest.mark.parametrize("name", ["old.xml", "OLD.XML.gz", "https://portal.example.org/old.xml?x=1", "folder.tsv/a.xml"])
def test_gnos_manifests_are_refused_by_name(name: str) -> None:
    with pytest.raises(ManifestError, match="XML manifest of GNOS"):
        read_downloads(name)


def test_only_the_name_itself_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "a.xml.d" / "m.tsv"
    path.parent.mkdir()
    path.write_text(f"{HEAD}{B}\tx\t{MD5}\n")
    assert len(read_uploads(str(path))) == 1


def test_text_is_given_verbatim(tmp_path: Path) -> None:
    path = tmp_path / "m.tsv"
    for data in (b"a\tb\r\n\r\nc", b"", b"\xef\xbb\xbfx\n"):
        path.write_bytes(data)
        assert read_text(str(path)).encode() == data
    path.write_bytes(b"\xff")
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_text(str(path))


# By address


GOOD = f"{HEAD}{B}\tx\t{MD5}\n"


class _Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert "Authorization" not in self.headers
        status, body = {
            "/good": (200, GOOD),
            f"/portal/api/v1/manifests/{B}": (200, GOOD),
            "/login": (302, ""),
            "/big": (200, "x" * (65 << 20)),
        }.get(self.path, (404, ""))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Location", "/good")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: object) -> None: ...

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_manifest_by_address(site: str) -> None:
    assert len(read_uploads(f"{site}/good")) == 1


def test_manifest_by_its_id(site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(read_uploads(ManifestSource(B, portal_url=f"{site}/portal"))) == 1
    with pytest.raises(ObjectNotFound, match="HTTP 404"):
        read_uploads(ManifestSource(B, portal_url=site))
    with pytest.raises(ManifestError, match="set PORTAL_URL"):
        read_uploads(B)
    Path(B).write_text("a\tb\n")
    assert read_text(ManifestSource(B, portal_url=f"{site}/portal")) == "a\tb\n"


@pytest.mark.parametrize(
    ("path", "kind", "says"),
    [("/login", ScoreError, "HTTP 302"), ("/none", ObjectNotFound, "HTTP 404"), ("/big", ManifestError, "larger than")],
)
def test_address_that_does_not_give_one(site: str, path: str, kind: type[ScoreError], says: str) -> None:
    with pytest.raises(kind, match=says):
        read_uploads(site + path)


@pytest.mark.parametrize(
    "source", ["file:///etc/passwd", "ftp://x/m.tsv", "s3://bucket/m.tsv", "http://169.254.169.254/x", "http://[fe80::1]/x"]
)
def test_addresses_that_are_refused(source: str) -> None:
    with pytest.raises(ManifestError):
        read_uploads(source)
