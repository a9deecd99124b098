"""The byte server: a local store's signed URLs over HTTP/1.1.

On the standard library because both halves were measured: `http.server` imports in 30 to 50 ms (FastAPI: 0.8 s), and `os.sendfile` and
`recv_into` leave the interpreter free while bytes move, so that threads suffice. It knows nothing of tokens: the signature in the URL is
the permission.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import http.client
import json
import logging
import os
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final
from urllib.parse import unquote
from xml.sax.saxutils import escape

from score_core.checksum import parse_md5
from score_core.errors import ConfigurationError, NoSpaceError, ObjectNotFound, ScoreError, ServiceError, UrlExpiredError
from score_core.hosts import http_url, is_loopback
from score_core.stores.local import LocalStore
from score_core.stores.pieces import LocalObject
from score_core.stores.signing import Grant

_log = logging.getLogger(__name__)

_IDLE_S: Final = 60
_BUFFER_BYTES: Final = 1024 * 1024
_MAX_HEADER_BYTES: Final = 32 * 1024  # the standard library alone would take 100 headers of 64 KiB
_DRAIN_BYTES: Final = 64 * 1024 * 1024  # of a refused body: a client that still sends would miss the answer behind a reset
_DRAIN_S: Final = 2.0
_POLL_S: Final = 0.02  # how long closing may take: a command over a folder waits for it
_RANGE: Final = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CODES: Final = {
    400: "InvalidRequest",
    403: "AccessDenied",
    404: "NoSuchKey",
    411: "MissingContentLength",
    412: "PreconditionFailed",
    416: "InvalidRange",
    431: "RequestHeaderSectionTooLarge",
    501: "NotImplemented",
    507: "InsufficientStorage",
}


class _Refusal(Exception):
    """An answer that is not 2xx. The message goes to the client and never repeats what the client sent."""

    def __init__(self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code or _CODES.get(status, "InternalError")
        self.headers = headers or {}


class _Torn(ConnectionError):
    """The client went away in the middle of a body: there is nobody to answer."""


class _HeaderReader:
    """The head of one request, up to a limit."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = _MAX_HEADER_BYTES

    def readline(self, limit: int = -1) -> bytes:
        line: bytes = self._file.readline(limit)
        self._left -= len(line)
        if self._left < 0:
            raise http.client.LineTooLong("header section")
        return line


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_S
    disable_nagle_algorithm = True

    # Requests. Methods that no URL is ever signed for are refused by the signature check like any other mismatch.

    def do_GET(self) -> None:
        self._answering(self._get)

    do_HEAD = do_GET  # the standard library's naming

    def do_PUT(self) -> None:
        self._answering(self._put)

    do_POST = do_DELETE = do_PATCH = do_OPTIONS = do_PUT  # the standard library's naming

    def _get(self) -> None:
        if self._body_left:
            raise _Refusal(400, "A GET or HEAD request must not have a body")
        if self.path == "/health":
            self._send(200, {"Content-Type": "application/json"}, json.dumps({"status": "UP"}).encode())
        else:
            self._get_object(self.server.store.open(self._granted().key))

    def _get_object(self, found: LocalObject) -> None:
        self._check_condition(found)
        bounds = _bounds(self.headers.get("Range"), found.size)
        offset, end = bounds or (0, found.size)
        headers = _object_headers(found, end - offset)
        if bounds:
            headers["Content-Range"] = f"bytes {offset}-{end - 1}/{found.size}"
        self._send_head(206 if bounds else 200, headers)
        if self.command != "HEAD":
            self._send_bytes(found, offset, end)

    def _put(self) -> None:
        grant = self._granted()
        self._check_length(grant)
        try:
            with self._part_writer(grant) as writer:
                self._continue()
                self._read_body(writer.write)
                self._check_digest(grant, writer.md5)
                writer.commit()
        except FileNotFoundError as error:  # its folder went while the part came, or before its file was made
            raise _Refusal(404, "The upload was finished or aborted meanwhile", code="NoSuchUpload") from error
        self._send(200, {"ETag": f'"{writer.md5}"'})

    # Checks

    def _granted(self) -> Grant:
        path, _, query = self.path.partition("?")
        try:
            key = unquote(path.removeprefix("/"), errors="strict")
        except UnicodeDecodeError as error:
            raise _Refusal(403, "The request does not match its signature") from error
        return self.server.store.signer.verify(self.command, key, query, self.headers)  # type: ignore[arg-type]  # Message is a mapping in all but name

    def _check_condition(self, found: LocalObject) -> None:
        wanted = self.headers.get("If-Match")
        if wanted is None or wanted.strip() == "*":
            return
        if f'"{found.etag}"' not in [tag.strip() for tag in wanted.split(",")]:
            raise _Refusal(412, "The object is not the one that If-Match names")

    def _check_length(self, grant: Grant) -> None:
        if self.headers.get("Content-Length") is None:
            raise _Refusal(411, "A PUT must say its Content-Length")
        if self._body_left != grant.size:
            raise _Refusal(400, f"This URL is for exactly {grant.size} bytes, Content-Length is {self._body_left}", code="IncompleteBody")

    def _check_digest(self, grant: Grant, md5: str) -> None:
        """Against the signed digest, and against one that the client sent by itself."""
        sent = self.headers.get("Content-MD5")
        for wanted in (grant.content_md5 or md5, md5 if sent is None else parse_md5(sent) or ""):
            if not hmac.compare_digest(wanted, md5):
                raise _Refusal(400, "The bytes that arrived do not have the promised Content-MD5; send them again", code="BadDigest")

    def _part_writer(self, grant: Grant) -> Any:
        try:
            return self.server.store.receive_part(grant.key, grant.upload_id, grant.part)
        except ObjectNotFound as error:
            raise _Refusal(404, "The upload does not exist; it was finished or aborted", code="NoSuchUpload") from error

    def _framing(self) -> int:
        """The announced length of the body. Requests that two readers could frame differently are refused (RFC 9112, 6.3)."""
        lengths = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers:
            raise _Refusal(411, "Chunked bodies are not accepted; say the Content-Length")
        if len(set(lengths)) > 1 or not all(value.isascii() and value.isdigit() and len(value) < 20 for value in lengths):
            raise _Refusal(400, "Content-Length is not one number")
        return int(lengths[0]) if lengths else 0

    # Bodies

    def _continue(self) -> None:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(HTTPStatus.CONTINUE)
            super().end_headers()

    def handle_expect_100(self) -> bool:
        return True  # said by `_continue`, once the request is found good

    def _read_body(self, sink: Callable[[memoryview], None]) -> None:
        view = memoryview(self.server.buffer())
        while self._body_left:
            count = self.rfile.readinto(view[: min(len(view), self._body_left)])  # past the reader's own buffer at this size
            if not count:
                raise _Torn
            self._body_left -= count
            sink(view[:count])

    def _send_bytes(self, found: LocalObject, offset: int, end: int) -> None:
        for piece, start, count in found.runs(offset, end):
            with os.fdopen(piece.open(), "rb", buffering=0) as file:
                if self.connection.sendfile(file, start, count) != count:
                    raise _Torn

    # Answers

    def _answering(self, act: Callable[[], None]) -> None:
        self._head_sent, self._body_left = False, 1  # until the framing is understood
        try:
            self._body_left = self._framing()
            act()
        except (ConnectionError, TimeoutError) as error:
            if isinstance(error, ScoreError):
                self._refuse(_Refusal(503, "The store cannot serve this now", code="ServiceUnavailable"))
            self.close_connection = True
        except (_Refusal, ScoreError, OSError) as error:
            self._refuse(_refusal(error))

    def _refuse(self, refusal: _Refusal) -> None:
        if self._head_sent:  # too late to say so: a short body is what tells the client
            self.close_connection = True
            return
        text = f"<Error><Code>{escape(refusal.code)}</Code><Message>{escape(str(refusal))}</Message></Error>"
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
        with contextlib.suppress(OSError):
            unread = self._body_left > 0
            self._send(refusal.status, {"Content-Type": "application/xml", **refusal.headers}, body, close=unread)
            if unread:
                self._drain()

    def _send(self, status: int, headers: Mapping[str, str], body: bytes = b"", *, close: bool = False) -> None:
        extra = {"Connection": "close"} if close else {}
        self._send_head(status, {**headers, "Content-Length": str(len(body)), **extra})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_head(self, status: int, headers: Mapping[str, str]) -> None:
        self._head_sent = True
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _drain(self) -> None:
        """Reads on for a moment, so that the client, still sending, comes to read the answer: nginx's lingering close."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_WR)
        deadline, left, view = time.monotonic() + _DRAIN_S, _DRAIN_BYTES, memoryview(self.server.buffer())
        while left > 0 and (patience := deadline - time.monotonic()) > 0:
            self.connection.settimeout(patience)
            count = self.connection.recv_into(view)
            if not count:
                return
            left -= count

    # What the standard library does otherwise

    def parse_request(self) -> bool:
        whole = self.rfile
        self.rfile = _HeaderReader(whole)  # type: ignore[assignment]  # parse_headers only calls readline
        try:
            return super().parse_request()
        finally:
            self.rfile = whole

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Without the standard library's text, which repeats the request line and so the signature."""
        self._head_sent, self._body_left = False, 1
        self.command = getattr(self, "command", None) or "GET"
        self._refuse(_Refusal(code, HTTPStatus(code).phrase))

    def version_string(self) -> str:
        return "score"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002
        path = getattr(self, "path", "").partition("?")[0]
        _log.debug("%s %s %s", getattr(self, "command", "-"), path, int(code) if isinstance(code, HTTPStatus) else code)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Silence: these messages quote the request line, which holds a signature."""


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, store: LocalStore, host: str, port: int) -> None:
        self.store = store
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._open: set[socket.socket] = set()
        self._local = threading.local()
        super().__init__((host, port), _Handler)

    def buffer(self) -> bytearray:
        """This thread's buffer: one per connection, reused for every body on it."""
        if not hasattr(self._local, "buffer"):
            self._local.buffer = bytearray(_BUFFER_BYTES)
        buffer: bytearray = self._local.buffer
        return buffer

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """The outermost edge of a connection's thread. Readers that hang up in the middle, as htslib does at each jump, are no fault."""
        if not isinstance(sys.exception(), ConnectionError):
            _log.exception("Unexpected error in the byte server")

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class ByteServer:
    """Serves `store` on `host:port` (0: a free port). Listens from construction on, answers after `start` or in `serve_forever`.

    Raises:
        ConfigurationError: the host is not this machine's loopback and `allow_public` is false, or the port is taken.
    """

    def __init__(self, store: LocalStore, host: str = "127.0.0.1", port: int = 0, *, allow_public: bool = False) -> None:
        if not allow_public and not is_loopback(host):
            raise ConfigurationError(f"The byte server would be open to the network on {host}; use 127.0.0.1 or allow public access")
        try:
            self._server = _Server(store, host, port)
        except OSError as error:
            raise ConfigurationError(f"The byte server cannot listen on {host}:{port}: {error.strerror}; choose another port") from error
        self._started = False

    @property
    def url(self) -> str:
        """Where it listens, without a trailing slash."""
        host, port = self._server.server_address[:2]
        text = host if isinstance(host, str) else bytes(host).decode()
        return http_url(text, port)

    def start(self) -> None:
        """Serves in a daemon thread of this process."""
        self._started = True
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": _POLL_S}, name="score-byte-server", daemon=True
        ).start()

    def serve_forever(self) -> None:
        """Serves in this thread until `close` is called from another."""
        self._started = True
        self._server.serve_forever(poll_interval=_POLL_S)

    def close(self) -> None:
        """Stops listening and cuts the open connections; quiet when called twice."""
        if self._started:
            self._server.shutdown()
        self._server.server_close()


def _refusal(error: Exception) -> _Refusal:
    """The one table from errors to answers."""
    if isinstance(error, _Refusal):
        return error
    if isinstance(error, UrlExpiredError):
        return _Refusal(403, "Request has expired")
    if isinstance(error, NoSpaceError) or (isinstance(error, OSError) and error.errno in _FULL):
        return _Refusal(507, "The disk of the store is full")
    if isinstance(error, ServiceError) and error.status in _CODES:
        return _Refusal(error.status, "There is no such object" if error.status == 404 else str(error))
    _log.error("The store failed: %s", error)
    return _Refusal(500, "The store failed; its log says why")


def _object_headers(found: LocalObject, count: int) -> dict[str, str]:
    return {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(count),
        "ETag": f'"{found.etag}"',
        "Last-Modified": formatdate(found.modified_at, usegmt=True),
        "Accept-Ranges": "bytes",
    }


def _bounds(header: str | None, size: int) -> tuple[int, int] | None:
    """Offset and exclusive end of one byte range; None for the whole object: malformed and multiple ranges (RFC 9110, 14.2)."""
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match[1], match[2]
    if first and last and int(last) < int(first):
        return None
    offset, end = (int(first), int(last) + 1 if last else size) if first else (max(0, size - int(last)), size)
    if offset >= size:
        raise _Refusal(416, "The range begins behind the end of the object", headers={"Content-Range": f"bytes */{size}"})
    return offset, min(end, size)
