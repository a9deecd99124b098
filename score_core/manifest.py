"""Manifests: tab-separated lists of files to upload or download (protocol section 15).

Read line by line, so that a long one costs no more memory than its items; refused with the line and column that is wrong,
before anything is moved. A manifest comes from elsewhere: nothing in it is trusted. Which of the two kinds a file is, the caller knows.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, TypeVar
from urllib.parse import urlsplit

from score_core.checksum import parse_md5
from score_core.errors import (
    AccessDenied,
    AuthenticationError,
    ConfigurationError,
    ManifestError,
    ObjectNotFound,
    ServiceError,
    Unavailable,
)
from score_core.hosts import is_link_local
from score_core.ids import check_object_id, is_object_id
from score_core.metadata.registering import DOWNLOAD_COLUMNS
from score_core.operations import DownloadItem, UploadItem
from score_core.transfer.files import explained

UPLOAD_COLUMNS: Final = ("object id", "path", "MD5")
_MAX_LINE_BYTES: Final = 64 << 10
_MAX_FETCHED_BYTES: Final = 64 << 20
_FETCH_TIMEOUT_S: Final = 30.0
_SNIFFED_BYTES: Final = 1024
_SCHEME: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/")
_SIZE: Final = re.compile(r"[0-9]{1,19}")
_MAX_SIZE: Final = 2**63 - 1
_MAGIC: Final = {
    b"\x1f\x8b": "it looks like gzip; unpack it first",
    b"PK\x03\x04": "it looks like a zip archive; unpack it first",
    codecs.BOM_UTF16_LE: "it is UTF-16 text; save it as UTF-8",
    codecs.BOM_UTF16_BE: "it is UTF-16 text; save it as UTF-8",
    b"{": "it looks like JSON",
    b"[": "it looks like JSON",
    b"<?xml": "it looks like XML",
    b"<": "it looks like HTML, perhaps a login page",
}

_REFUSALS: Final[dict[int, type[ServiceError]]] = {401: AuthenticationError, 403: AccessDenied, 404: ObjectNotFound, 410: ObjectNotFound}

Item = TypeVar("Item", UploadItem, DownloadItem)


@dataclass(frozen=True, slots=True)
class ManifestSource:
    """Where a manifest comes from: a path, an http(s) address, `-` for `stdin`, or the id of one at the portal (protocol section 15.1).

    A file whose name is such an id comes before the portal.
    """

    name: str
    portal_url: str | None = None
    stdin: IO[bytes] | None = None


def read_uploads(source: ManifestSource | str) -> list[UploadItem]:
    """The files that an upload manifest lists: object id, path, MD5. Relative paths are against the working directory.

    Raises:
        ManifestError: it is not such a manifest; says where.
        LocalFileError, ServiceError: it cannot be read, or fetched.
    """
    with _opened(source) as stream:
        return _read(stream, UPLOAD_COLUMNS, _upload_item, is_file=lambda cells: bool(cells[1]) and parse_md5(cells[2]) is not None)


def read_downloads(source: ManifestSource | str) -> list[DownloadItem]:
    """The objects that a download manifest of 11 columns lists. Errors as for `read_uploads`."""
    with _opened(source) as stream:
        return _read(stream, DOWNLOAD_COLUMNS, _download_item, is_file=lambda cells: is_object_id(cells[2]))


def read_text(source: ManifestSource | str) -> str:
    """A manifest as it stands, whatever it lists. Errors as for `read_uploads`."""
    with _opened(source) as stream:
        data = stream.read(_MAX_FETCHED_BYTES + 1)
    if len(data) > _MAX_FETCHED_BYTES:
        raise ManifestError(f"The manifest is larger than {_MAX_FETCHED_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ManifestError("The text is not UTF-8, so this is no manifest") from None


class _Row:
    """One line's cells, with what an error message needs to point at one of them. Columns are counted from 1, as people do."""

    def __init__(self, line: int, cells: Sequence[str], names: Sequence[str]) -> None:
        self.line = line
        self._cells = cells
        self._names = names

    def cell(self, column: int) -> str:
        return self._cells[column - 1]

    def wrong(self, column: int, what: str) -> ManifestError:
        return ManifestError(f"Column {self._names[column - 1]!r} of the manifest {what}", line=self.line, column=column)

    def object_id(self, column: int) -> str:
        try:
            return check_object_id(self.cell(column))
        except ConfigurationError as error:
            raise self.wrong(column, f"is wrong: {error}") from None

    def md5(self, column: int) -> str:
        md5 = parse_md5(self.cell(column))
        if md5 is None:
            raise self.wrong(column, f"must hold an MD5 of 32 hex digits, or in base64, got {self.cell(column)[:80]!r}")
        return md5

    def size(self, column: int) -> int:
        text = self.cell(column)
        if not _SIZE.fullmatch(text) or int(text) > _MAX_SIZE:
            raise self.wrong(column, f"must hold a size in bytes, digits only, got {text[:80]!r}")
        return int(text)

    def plain_name(self, column: int) -> str:
        """A name that becomes one step of a path: the target's own check comes later, and this one says where it stands."""
        name = self.cell(column)
        if name in {".", ".."} or "/" in name or "\\" in name or "\0" in name:
            raise self.wrong(column, f"must hold a plain name without a folder, got {name[:200]!r}")
        return name


def _upload_item(row: _Row) -> UploadItem:
    if not row.cell(2):
        raise row.wrong(2, "is empty; name the file to upload")
    if "\0" in row.cell(2):
        raise row.wrong(2, "holds a zero byte")
    if not row.cell(3):
        raise row.wrong(3, "is empty; without the promised MD5 nothing is uploaded")
    return UploadItem(row.object_id(1), Path(row.cell(2)), row.md5(3))


def _download_item(row: _Row) -> DownloadItem:
    return DownloadItem(
        object_id=row.object_id(3),
        file_name=row.plain_name(5) if row.cell(5) else None,
        analysis_id=sys.intern(row.plain_name(2)) if row.cell(2) else None,
        size=row.size(6) if row.cell(6) else None,
        md5=row.md5(7) if row.cell(7) else None,
    )


def _read(
    stream: IO[bytes], columns: Sequence[str], make: Callable[[_Row], Item], *, is_file: Callable[[Sequence[str]], bool]
) -> list[Item]:
    lines = _lines(stream)
    header = _cells(*next(lines), columns)
    if is_file(header):
        raise ManifestError(
            "The first line of a manifest is a header and is dropped, but this one lists a file; put a header on top", line=1
        )
    # Song's upload manifests begin with the analysis id and no names; then the usual names serve in messages.
    names = [name or usual for name, usual in zip(header, columns, strict=True)] if all(header[2:7]) else columns
    seen: dict[str, tuple[int, Item]] = {}
    for line, text in lines:
        item = make(_Row(line, _cells(line, text, columns), names))
        earlier = seen.setdefault(item.object_id, (line, item))
        if earlier[1] != item:
            raise ManifestError(
                f"Object {item.object_id} is listed with something else in line {earlier[0]}; keep one of the two", line=line
            )
    if not seen:
        raise ManifestError("The manifest lists no files: there is nothing below its header")
    return [item for _, item in seen.values()]


def _cells(line: int, text: str, columns: Sequence[str]) -> list[str]:
    cells = [cell.strip() for cell in text.split("\t")]
    if len(cells) == len(columns):
        return cells
    hint = _count_hint(text, cells, columns)
    raise ManifestError(
        f"The line has {len(cells)} columns and must have {len(columns)}, separated by tabs: {', '.join(columns)}{hint}",
        line=line,
        column=min(len(cells), len(columns)) + 1,
    )


def _count_hint(text: str, cells: Sequence[str], columns: Sequence[str]) -> str:
    if len(cells) == 1 and len(re.split(r" +|,|;", text.strip())) >= len(columns) - 1:
        return "; it seems to be separated by something else than tabs"
    if len(cells) in {len(UPLOAD_COLUMNS), len(DOWNLOAD_COLUMNS)}:
        return f"; it looks like {'an upload' if len(cells) == len(UPLOAD_COLUMNS) else 'a download'} manifest"
    return ""


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Line numbers and texts without line ends. Blank lines are refused, save at the very end."""
    first_blank: int | None = None
    number, begun = 0, False
    while raw := stream.readline(_MAX_LINE_BYTES + 1):
        number += 1
        if not begun:
            raw = _sniffed(raw)
        if len(raw) > _MAX_LINE_BYTES:
            raise ManifestError(f"The line is longer than {_MAX_LINE_BYTES} bytes, so this is no manifest", line=number)
        text = _decoded(raw.removesuffix(b"\n").removesuffix(b"\r"), number)
        if not text.strip(" "):
            first_blank = first_blank or number
        elif first_blank is not None:
            raise ManifestError("The line is blank; remove it", line=first_blank)
        else:
            begun = True
            yield number, text
    if number == 0 or first_blank == 1:
        raise ManifestError("The manifest is empty")


def _sniffed(raw: bytes) -> bytes:
    """A first line without its byte order mark. Raises `ManifestError` when it is no text of ours."""
    head = raw[:_SNIFFED_BYTES].removeprefix(codecs.BOM_UTF8)
    for magic, what in _MAGIC.items():
        if head.lstrip(b" \t\r\n").startswith(magic):
            raise ManifestError(f"This is not a manifest: {what}")
    if b"\0" in head:
        utf16 = head[1:20:2].count(0) > len(head[1:20:2]) // 2 or head[0:20:2].count(0) > len(head[0:20:2]) // 2
        raise ManifestError(f"This is not a manifest: {'it is UTF-16 text; save it as UTF-8' if utf16 else 'it looks like binary data'}")
    return raw.removeprefix(codecs.BOM_UTF8)


def _decoded(raw: bytes, line: int) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        if any(byte < 0x20 and byte not in b"\t\r" for byte in raw):
            raise ManifestError("This is not a manifest: it looks like binary data", line=line) from None
        column = raw[: error.start].count(b"\t") + 1
        raise ManifestError("The text is not UTF-8, perhaps Latin-1; save it as UTF-8", line=line, column=column) from None
    if "\r" in text:
        raise ManifestError("The line holds a carriage return; lines end with LF or CR LF", line=line)
    return text


# Where a manifest comes from


@contextmanager
def _opened(given: ManifestSource | str) -> Iterator[IO[bytes]]:
    source = given if isinstance(given, ManifestSource) else ManifestSource(given)
    name = source.name
    if name == "-":
        yield source.stdin or sys.stdin.buffer
        return
    scheme = _SCHEME.match(name)
    url = name if scheme is not None else _portal_address(source)
    if scheme is not None and scheme[1].lower() not in {"http", "https"}:
        raise ManifestError(f"A manifest is a path, an http or https address, or - for standard input; {scheme[1]}: is none of these")
    if ".xml" in (name if url is None else url.partition("?")[0]).rpartition("/")[2].lower():
        raise ManifestError(f"{name[:200]} is by its name an XML manifest of GNOS, which is not read; get one of tab-separated columns")
    if url is None:
        path = Path(name)
        with explained("read the manifest", path), path.open("rb") as file:
            yield file
    else:
        yield io.BytesIO(_fetched(url))


def _portal_address(source: ManifestSource) -> str | None:
    """The address of a manifest that is named by its id; None when the name is a path."""
    if not is_object_id(source.name) or Path(source.name).exists():
        return None
    if source.portal_url is None:
        raise ManifestError(
            f"There is no file {source.name}; if it is the id of a portal's manifest, set PORTAL_URL to the portal's address"
        )
    return f"{source.portal_url}/api/v1/manifests/{source.name}"


def _fetched(url: str) -> bytes:
    """The bytes at an address, asked for without any token. Redirects are not followed: a login page is no manifest."""
    import httpx  # takes 0.3 s to import

    _check_host(url)
    where = "The manifest cannot be fetched"
    try:
        with httpx.stream("GET", url, timeout=_FETCH_TIMEOUT_S, follow_redirects=False) as response:
            if response.status_code != 200:
                kind = _REFUSALS.get(response.status_code, Unavailable)
                raise kind(
                    f"{where}: its server answered HTTP {response.status_code}; check the address {url}", status=response.status_code
                )
            data = bytearray()
            for block in response.iter_bytes():
                data += block
                if len(data) > _MAX_FETCHED_BYTES:
                    raise ManifestError(f"{where}: it is larger than {_MAX_FETCHED_BYTES} bytes")
            return bytes(data)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unavailable(f"{where}: {type(error).__name__} for the address {url}") from None


def _check_host(url: str) -> None:
    """Refuses link-local addresses."""
    try:
        host, port = urlsplit(url).hostname or "", urlsplit(url).port
    except ValueError:
        raise ManifestError("The manifest's address is malformed") from None
    addresses = [host]
    with contextlib.suppress(OSError, UnicodeError):  # behind a proxy names need not resolve here
        addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if any(is_link_local(address) for address in addresses):
        raise ManifestError(f"A manifest is not fetched from {host[:200]}: link-local addresses are refused")
