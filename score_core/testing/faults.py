"""Faults on the wire: an HTTP proxy in front of a real store that breaks what it is told to break, and counts everything.

    proxy = FaultProxy(store_url)                          # clients use `proxy.url` instead of `store_url`
    proxy.inject(Flip(at=17), when=part(3), times=1)       # one bit of part 3, once; then the proxy is honest again
    proxy.inject(Reset(after=1000), when=share(0.3, random.Random(7)))
    assert proxy.tries(3) == 2

What a fault does to "the bytes" it does to those of the part: the request's body of a PUT, the answer's of a GET. The proxy neither
checks nor changes signatures; stores that sign the host need to be opened with `proxy.url` as their endpoint.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import secrets
import select
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from random import Random
from typing import Any, Final, Self
from urllib.parse import parse_qs, unquote, urlsplit

from score_core.checksum import md5_hex
from score_core.stores.base import ListedPart, MultipartStore

_SLICE_BYTES: Final = 16 * 1024  # how finely bytes are counted and can be cut
_RANGE: Final = re.compile(r"bytes=(\d+)-(\d+)")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_HOP_BY_HOP: Final = frozenset({"connection", "expect", "keep-alive", "transfer-encoding", "content-length"})
_IDLE_S: Final = 60


@dataclass(slots=True)
class Seen:
    """One request as the proxy saw it. `offset` and `size` are those of a GET's `Range`, `part` a PUT's number; 0 where there is none.

    `sent` counts bytes of the answer's body, `received` those of the request's. `status` is 0 when no answer was begun.
    """

    method: str
    key: str
    query: Mapping[str, str]
    part: int = 0
    offset: int = 0
    size: int = 0
    status: int = 0
    sent: int = 0
    received: int = 0
    fault: str = ""
    at: float = field(default_factory=time.monotonic)


When = Callable[[Seen], bool]


def part(number: int, part_size: int = 0) -> When:
    """Requests that move part `number`: a PUT by its number, a GET by its offset, for parts of `part_size` bytes."""
    return lambda seen: seen.part == number or (is_get(seen) and part_size > 0 and seen.offset == (number - 1) * part_size)


def is_get(seen: Seen) -> bool:
    """A GET of a range: the download of a part."""
    return seen.method == "GET" and seen.size > 0


def is_put(seen: Seen) -> bool:
    """The upload of a part."""
    return seen.method == "PUT" and seen.part > 0


def moves_part(seen: Seen) -> bool:
    return is_get(seen) or is_put(seen)


def completes(seen: Seen) -> bool:
    """S3's CompleteMultipartUpload."""
    return seen.method == "POST" and "uploadId" in seen.query


def share(fraction: float, rng: Random, when: When = moves_part) -> When:
    """A random `fraction` of the requests that `when` picks."""
    return lambda seen: when(seen) and rng.random() < fraction


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer on its way to the client."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Fault:
    """What happens to one request. This one is none: it passes it on."""

    def play(self, exchange: Exchange) -> None:
        exchange.answer(exchange.ask())


@dataclass(frozen=True, slots=True)
class Reset(Fault):
    """A TCP reset after so many bytes."""

    after: int = 0

    def play(self, exchange: Exchange) -> None:
        exchange.pass_bytes(self.after)
        exchange.reset()


@dataclass(frozen=True, slots=True)
class Stall(Fault):
    """Nothing more after so many bytes, with the connection open, until the client goes."""

    after: int = 0

    def play(self, exchange: Exchange) -> None:
        exchange.pass_bytes(self.after)
        exchange.hold()


@dataclass(frozen=True, slots=True)
class Trickle(Fault):
    """The bytes come this slowly. Of a PUT, the answer does: what a client sends vanishes in buffers first."""

    bytes_per_s: int = 1000

    def play(self, exchange: Exchange) -> None:
        exchange.answer(exchange.ask(), bytes_per_s=self.bytes_per_s)


@dataclass(frozen=True, slots=True)
class Short(Fault):
    """The last `by` bytes are missing and the connection ends cleanly. Unannounced, there is no Content-Length to notice it by."""

    by: int = 1
    announced: bool = True

    def play(self, exchange: Exchange) -> None:
        reply = exchange.ask()
        exchange.answer(Reply(reply.status, reply.headers, reply.body[: -self.by]), length=len(reply.body) if self.announced else None)
        exchange.close()


@dataclass(frozen=True, slots=True)
class Longer(Fault):
    """`by` more bytes than the range has. Unannounced, only the end of the connection ends the body."""

    by: int = 1
    announced: bool = True

    def play(self, exchange: Exchange) -> None:
        reply = exchange.ask()
        longer = reply.body + b"\xee" * self.by
        exchange.answer(Reply(reply.status, reply.headers, longer), length=len(longer) if self.announced else None)
        exchange.close()


@dataclass(frozen=True, slots=True)
class WrongRange(Fault):
    """`Content-Range` speaks of bytes `shift` further on."""

    shift: int = 1

    def play(self, exchange: Exchange) -> None:
        reply = exchange.ask()
        first, last, total = (int(text) for text in _CONTENT_RANGE.fullmatch(reply.headers["Content-Range"]).groups())  # type: ignore[union-attr]  # a fault for ranged GETs only
        shifted = f"bytes {first + self.shift}-{last + self.shift}/{total + self.shift}"
        exchange.answer(Reply(reply.status, {**reply.headers, "Content-Range": shifted}, reply.body))


@dataclass(frozen=True, slots=True)
class IgnoreRange(Fault):
    """200 and an object's worth of bytes instead of 206 and the range."""

    def play(self, exchange: Exchange) -> None:
        reply = exchange.ask()
        found = _CONTENT_RANGE.fullmatch(reply.headers.get("Content-Range", ""))
        headers = {name: value for name, value in reply.headers.items() if name != "Content-Range"}
        exchange.answer(Reply(200, headers, reply.body.ljust(int(found[3]) if found else 0, b"\0")))


@dataclass(frozen=True, slots=True)
class Flip(Fault):
    """One bit of byte `at` of the part is turned over. A `Content-MD5` of the client is passed on as it is."""

    at: int = 0

    def play(self, exchange: Exchange) -> None:
        if exchange.seen.method == "PUT":
            exchange.answer(exchange.ask(body=self._flipped(exchange.receive())))
        else:
            reply = exchange.ask()
            exchange.answer(Reply(reply.status, reply.headers, self._flipped(reply.body)))

    def _flipped(self, data: bytes) -> bytes:
        return data[: self.at] + bytes([data[self.at] ^ 1]) + data[self.at + 1 :]


@dataclass(frozen=True, slots=True)
class Answer(Fault):
    """This answer; the store never hears of the request."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def play(self, exchange: Exchange) -> None:
        exchange.receive()
        exchange.answer(Reply(self.status, self.headers, self.body))


@dataclass(frozen=True, slots=True)
class LoseReply(Fault):
    """The store does it, and nobody hears of that."""

    def play(self, exchange: Exchange) -> None:
        exchange.ask()
        exchange.reset()


@dataclass(frozen=True, slots=True)
class Change(Fault):
    """The answer's headers are changed: `headers` gets them all and returns what is sent."""

    headers: Callable[[dict[str, str]], dict[str, str]]

    def play(self, exchange: Exchange) -> None:
        reply = exchange.ask()
        exchange.answer(Reply(reply.status, self.headers(dict(reply.headers)), reply.body))


@dataclass(frozen=True, slots=True)
class Call(Fault):
    """Calls `act` before the request is passed on: to change the store, or to signal a process, at an exact moment."""

    act: Callable[[], object]

    def play(self, exchange: Exchange) -> None:
        self.act()
        exchange.answer(exchange.ask())


def s3_error(status: int, code: str, message: str = "", **headers: str) -> Answer:
    """An error as S3 words it. Header names are given with underscores: `Retry_After="7"`."""
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, text.encode(), {"Content-Type": "application/xml", **named})


def expired() -> Answer:
    return s3_error(403, "AccessDenied", "Request has expired")


def denied() -> Answer:
    return s3_error(403, "AccessDenied", "Access Denied")


def busy(status: int = 503, retry_after_s: int | None = None) -> Answer:
    return s3_error(status, "SlowDown", **({} if retry_after_s is None else {"Retry_After": str(retry_after_s)}))


def without_etag() -> Change:
    return Change(lambda headers: {name: value for name, value in headers.items() if name.lower() != "etag"})


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its answer, in the hands of a `Fault`."""

    seen: Seen
    _handler: _Handler

    def receive(self, limit: int | None = None) -> bytes:
        """The request's body, or its first `limit` bytes."""
        return self._handler.receive(limit)

    def ask(self, *, body: bytes | None = None) -> Reply:
        """The store's true answer to the request, with this body or the client's own."""
        return self._handler.ask(self.receive() if body is None else body)

    def answer(self, reply: Reply, *, length: int | None = -1, bytes_per_s: int | None = None) -> None:
        """Sends an answer; `length` is the Content-Length to claim, None for none, by default the true one."""
        self._handler.send_head(reply, len(reply.body) if length == -1 else length)
        self._handler.send_body(reply.body, bytes_per_s)

    def pass_bytes(self, count: int) -> None:
        """Moves the first `count` bytes of the part and no more."""
        if self.seen.method == "PUT":
            self.receive(count)
        elif count:
            reply = self.ask()
            self._handler.send_head(reply, len(reply.body))
            self._handler.send_body(reply.body[:count], None)

    def reset(self) -> None:
        self._handler.reset()

    def close(self) -> None:
        self._handler.close_connection = True

    def hold(self) -> None:
        """Waits until the client closes the connection, or the proxy is closed."""
        self._handler.hold()


@dataclass(slots=True)
class _Rule:
    fault: Fault
    when: When
    left: int | None


class FaultProxy:
    """A proxy on a free loopback port in front of `origin` (`http://host:port`). Without rules it passes everything on. Thread-safe.

    `seen` lists the requests in order of arrival. Use it in a `with`, or close it.
    """

    def __init__(self, origin: str) -> None:
        self.origin = urlsplit(origin).netloc
        self.seen: list[Seen] = []
        self.closing = threading.Event()
        self._rules: list[_Rule] = []
        self._alarms: list[tuple[int, Callable[[], object]]] = []
        self._moved = 0
        self._lock = threading.Lock()
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True, name="fault-proxy").start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def inject(self, fault: Fault, *, when: When = moves_part, times: int | None = None) -> None:
        """From now on `fault` meets requests that `when` picks, `times` of them at most. Rules that were given earlier come first."""
        with self._lock:
            self._rules.append(_Rule(fault, when, times))

    def heal(self) -> None:
        """Forgets all rules and alarms."""
        with self._lock:
            self._rules.clear()
            self._alarms.clear()

    def at_byte(self, count: int, act: Callable[[], object]) -> None:
        """Calls `act` once, in the thread that moves it, before byte `count` (0-based, of all parts from now on) is moved."""
        with self._lock:
            self._alarms.append((self._moved + count, act))

    def tries(self, number: int, part_size: int = 0) -> int:
        """How many requests asked for, or brought, part `number`."""
        return sum(1 for seen in self.moves() if part(number, part_size)(seen))

    def moves(self) -> list[Seen]:
        """The requests that moved a part."""
        return [seen for seen in list(self.seen) if moves_part(seen)]

    @property
    def moved_bytes(self) -> int:
        """Bytes of parts that went through, in either direction, whole or not."""
        return sum(seen.received if seen.method == "PUT" else seen.sent for seen in self.moves())

    def forget(self) -> None:
        """Counts from nothing again."""
        self.seen.clear()

    def wait_until_left(self, timeout_s: float) -> bool:
        """Waits until no client is connected any more, such as after killing the only one; False if some still are."""
        deadline = time.monotonic() + timeout_s
        while self._server.connections and time.monotonic() < deadline:
            self.closing.wait(0.01)
        return not self._server.connections

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def fault_for(self, seen: Seen) -> Fault:
        with self._lock:
            self.seen.append(seen)
            for rule in self._rules:
                if rule.left != 0 and rule.when(seen):
                    if rule.left is not None:
                        rule.left -= 1
                    seen.fault = type(rule.fault).__name__
                    return rule.fault
        return Fault()

    def moving(self, count: int) -> None:
        """Rings the alarms that are due before `count` more bytes move."""
        with self._lock:
            self._moved += count
            due = [alarm for alarm in self._alarms if alarm[0] < self._moved]
            self._alarms = [alarm for alarm in self._alarms if alarm not in due]
        for _, act in due:
            act()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_S
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self._upstream = http.client.HTTPConnection(self.server.proxy.origin, timeout=_IDLE_S)

    def finish(self) -> None:
        self._upstream.close()
        with contextlib.suppress(OSError):
            super().finish()

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (OSError, http.client.HTTPException, ValueError):
            self.close_connection = True  # the client, or the store, went away: that is what this proxy is for

    def _serve(self) -> None:
        self._body: bytes | None = None
        self._left = int(self.headers.get("Content-Length") or 0)
        self._seen = _seen(self.command, self.path, self.headers.get("Range"))
        self.server.proxy.fault_for(self._seen).play(Exchange(self._seen, self))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # the standard library's naming

    def receive(self, limit: int | None) -> bytes:
        if self._body is None:
            self._body = b"".join(self._slices(limit))
        return self._body

    def _slices(self, limit: int | None) -> Iterator[bytes]:
        wanted = self._left if limit is None else min(limit, self._left)
        while wanted:
            data = self.rfile.read1(min(wanted, _SLICE_BYTES))
            if not data:
                raise ConnectionError
            self._count(len(data))
            self._seen.received += len(data)
            wanted, self._left = wanted - len(data), self._left - len(data)
            yield data

    def _count(self, count: int) -> None:
        if moves_part(self._seen):
            self.server.proxy.moving(count)

    def ask(self, body: bytes) -> Reply:
        self._upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self._upstream.putheader(name, value)
        if body or self.command in {"PUT", "POST"}:
            self._upstream.putheader("Content-Length", str(len(body)))
        self._upstream.endheaders(body or None)
        response = self._upstream.getresponse()
        headers = {name: value for name, value in response.headers.items() if name.lower() not in _HOP_BY_HOP}
        if self.command == "HEAD":
            headers["Content-Length"] = response.headers.get("Content-Length", "0")
        return Reply(response.status, headers, response.read())

    def send_head(self, reply: Reply, length: int | None) -> None:
        self._seen.status = reply.status
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if length is None:
            self.send_header("Connection", "close")
        elif self.command != "HEAD" and reply.status != 204:
            self.send_header("Content-Length", str(length))
        if self._left:
            self.close_connection = True  # a body that nobody read
        self.end_headers()

    def send_body(self, body: bytes, bytes_per_s: int | None) -> None:
        if self.command == "HEAD":
            return
        size = _SLICE_BYTES if bytes_per_s is None else max(1, bytes_per_s // 10)
        for start in range(0, len(body), size):
            data = body[start : start + size]
            if self.command == "GET":
                self._count(len(data))
            self.wfile.write(data)
            self._seen.sent += len(data)
            if bytes_per_s is not None and self.server.proxy.closing.wait(0.1):
                return

    def reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.server.forget(self.connection)
        os.close(self.connection.detach())

    def hold(self) -> None:
        self.close_connection = True
        while not self.server.proxy.closing.is_set():
            readable, _, _ = select.select([self.connection], [], [], 0.05)
            if readable and not self._left and not self.connection.recv(1):
                return
            if readable and self._left:
                self.server.proxy.closing.wait(0.05)  # bytes that we refuse to read; only their sender's end can be waited for
                if _hung_up(self.connection):
                    return

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Silence: request lines hold signatures."""


def _hung_up(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def _seen(method: str, target: str, range_header: str | None) -> Seen:
    split = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(split.query, keep_blank_values=True).items()}
    found = _RANGE.fullmatch(range_header or "")
    seen = Seen(method, unquote(split.path).removeprefix("/"), query, part=int(query.get("partNumber", 0)))
    if found:
        seen.offset, seen.size = int(found[1]), int(found[2]) + 1 - int(found[1])
    return seen


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.forget(request)
        super().shutdown_request(request)

    @property
    def connections(self) -> int:
        return len(self._open)

    def forget(self, connection: socket.socket) -> None:
        self._open.discard(connection)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Disguise:
    """A store whose ETags are not MD5s, as with SSE-KMS: what `inner` answers is hidden behind a secret of this object.

    `store` speaks in hidden ETags of parts; `fault` hides those that PUTs answer, so both agree. `shape` says how they look: `kms` as MD5s
    that are none, with S3's header, `opaque` and `composite` as what no MD5 looks like.
    """

    def __init__(self, inner: MultipartStore, shape: str) -> None:
        self._secret = secrets.token_hex(8)
        self._shape = shape
        self.store = _HidingStore(inner, self.hidden)

    def hidden(self, etag: str) -> str:
        digest = md5_hex(f"{self._secret}{etag}".encode())
        return {"kms": digest, "opaque": f"0x{digest[:16].upper()}", "composite": f"{digest}-1"}[self._shape]

    @property
    def fault(self) -> Change:
        return Change(self._hide)

    def _hide(self, headers: dict[str, str]) -> dict[str, str]:
        more = {"x-amz-server-side-encryption": "aws:kms"} if self._shape == "kms" else {}
        etags = {name: f'"{self.hidden(value.strip(chr(34)))}"' for name, value in headers.items() if name.lower() == "etag"}
        return {**headers, **etags, **more}


class _HidingStore:
    """`inner` with other ETags of parts and of objects."""

    def __init__(self, inner: MultipartStore, hidden: Callable[[str], str]) -> None:
        self._inner = inner
        self._hidden = hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def list_parts(self, key: str, upload_id: str) -> Iterator[ListedPart]:
        for listed in self._inner.list_parts(key, upload_id):
            yield ListedPart(listed.number, listed.size, self._hidden(listed.etag))

    def complete_multipart(self, key: str, upload_id: str, parts: Sequence[ListedPart]) -> None:
        true = {self._hidden(listed.etag): listed.etag for listed in self._inner.list_parts(key, upload_id)}
        shown = [ListedPart(listed.number, listed.size, true.get(listed.etag, listed.etag)) for listed in parts]
        self._inner.complete_multipart(key, upload_id, shown)
