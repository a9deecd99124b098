"""What no honest client sends, over a real socket. Ids such as B25 are those of the table of bad inputs that the project is tested against.

A refusal is one sentence and a documented status, reaches neither the store nor a log with anything secret, and leaves the server serving.
"""

from __future__ import annotations

import gzip
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from score_core.auth.options import AuthOptions, open_authenticator
from score_core.metadata.base import Entity
from score_core.metadata.registry import Registry
from score_core.metadata.song import SongClient
from score_core.repository.direct import DirectRepository
from score_core.testing.memory import MemoryStore
from score_core.testing.metadata import payload_of
from tests.server.conftest import Site, StartSite, client_of
from tests.server.test_score_api import ANALYSIS, ID, OTHER, SIZE, Song, Tokens

MINE = {"Authorization": "Bearer system"}


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def song() -> Song:
    return Song()


@pytest.fixture
def site(start_site: StartSite, store: MemoryStore, song: Song) -> Site:
    return start_site(DirectRepository(store), metadata=song, authenticator=Tokens())


@pytest.fixture
def lonely(start_site: StartSite, store: MemoryStore) -> Site:
    """A server that knows nothing of studies: whatever passes the checks of the request goes on to the store."""
    return start_site(DirectRepository(store), authenticator=Tokens())


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path / "registry.sqlite3")
    yield registry
    registry.close()


@pytest.fixture
def ours(start_site: StartSite, store: MemoryStore, registry: Registry) -> Site:
    """A server with a registry of its own, and so with Song's API."""
    return start_site(DirectRepository(store), metadata=registry, song=registry, authenticator=Tokens())


@contextmanager
def connection(site: Site) -> Iterator[socket.socket]:
    place = urlsplit(site.url)
    with socket.create_connection((place.hostname, place.port), timeout=20) as opened:
        yield opened


def talk(site: Site, *blocks: bytes) -> bytes:
    """All that the server says to these bytes, until it closes. What comes must say so itself (`Connection: close`), or be refused."""
    with connection(site) as opened:
        with suppress(BrokenPipeError, ConnectionResetError):
            for block in blocks:
                opened.sendall(block)
        said = bytearray()
        with suppress(ConnectionResetError):
            while block := opened.recv(64 << 10):
                said += block
    return bytes(said)


def request(target: str | bytes, *headers: str | bytes, method: str = "GET", token: str | None = "system", body: bytes = b"") -> bytes:
    """One HTTP/1.1 request, byte by byte as given."""
    target, lines = target if isinstance(target, bytes) else target.encode(), [b"Host: score", b"Connection: close"]
    lines += [line if isinstance(line, bytes) else line.encode() for line in headers]
    lines += [] if token is None else [b"Authorization: Bearer " + token.encode()]
    return b"\r\n".join([method.encode() + b" " + target + b" HTTP/1.1", *lines, b"", body])


def status_of(said: bytes) -> int:
    return int(said.split(b" ", 2)[1])


def assert_serves(site: Site) -> None:
    assert site.anonymous("GET", "/health").status_code == 200


def assert_refused(response: httpx.Response, status: int = 400) -> str:
    """With one sentence, which is the answer."""
    assert response.status_code == status
    message = str(response.json()["message"])
    assert message
    assert message.isprintable()
    assert "Traceback" not in response.text
    return message


def publish(site: Site, store: MemoryStore, song: Song, object_id: str = ID) -> None:
    """An object in the store; its analysis is PUBLISHED."""
    store.write(f"data/{object_id}", b"x" * SIZE)
    song.state_now = "PUBLISHED"


# Ids


@pytest.mark.parametrize(
    "bad",
    [
        "not-a-uuid",
        f"{ID}%2f..%2f..%2fetc",
        "%2e%2e%2f%2e%2e%2fetc",
        "%252e%252e%252f",
        "a" * 10_000,
        f"{ID}%00",
        f"{ID}%0d%0aSet-Cookie:%20a=b",
        f"{ID}%3Foffset=0",  # B26
        f"{ID}%23x",
        "%40evil.example",
        "evil.example%3A80",
        f"%20{ID}",
        f"{ID}%E2%80%8B",
        "%ff%fe",
        "%C0%AE%C0%AE%2f",
        "3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c1\uff11",
        "\uff13f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11",
        f"{{{ID}}}",
        ID.replace("-", ""),
    ],
)
def test_what_is_no_id_reaches_nobody(lonely: Site, store: MemoryStore, bad: str) -> None:  # B25, B26
    for verb, path in (("GET", "/download/{}?offset=0&length=-1"), ("POST", "/upload/{}/uploads?fileSize=1"), ("DELETE", "/upload/{}")):
        response = lonely.http.request(verb, path.format(bad), headers=MINE)
        assert_refused(response)
        assert "set-cookie" not in response.headers
    assert not store.calls


def test_marks_in_an_id_never_change_where_a_url_leads(site: Site, store: MemoryStore, song: Song) -> None:  # B26
    publish(site, store, song)
    answer = site.http.get(f"/download/{ID.upper()}?offset=0&length=-1#@evil", headers={**MINE, "Host": "evil.example"})
    url = urlsplit(answer.json()["parts"][0]["url"])
    assert (url.scheme, url.netloc, url.path) == ("memory", "store", f"/data/{ID}")
    assert "evil" not in answer.text


def test_who_may_not_learns_nothing_of_the_store(site: Site, store: MemoryStore, song: Song) -> None:
    """B27. That an id is registered shows, as with Java (404 before 403): Song tells everybody anyway. What is stored does not."""

    def seen(token: str) -> list[tuple[int, str]]:
        questions = (
            ("GET", f"/download/{ID}?offset=0&length=-1"),
            ("GET", f"/download/{ID}?offset=0&length=-1&exclude-urls=true"),
            ("GET", f"/upload/{ID}"),
            ("GET", f"/upload/{ID}/status?fileSize={SIZE}"),
            ("POST", f"/upload/{ID}/uploads?fileSize=1&overwrite=true"),  # B35
            ("POST", f"/upload/{ID}?uploadId=x"),
            ("DELETE", f"/upload/{ID}"),
        )
        answers = [site.http.request(verb, path, headers={"Authorization": f"Bearer {token}"}) for verb, path in questions]
        return [(answer.status_code, answer.text) for answer in answers]

    before = {token: seen(token) for token in ("neighbour", "nothing")}
    assert {status for answers in before.values() for status, _ in answers} == {403}
    assert before["neighbour"] == before["nothing"]
    assert not store.calls
    publish(site, store, song)
    store.calls.clear()
    assert {token: seen(token) for token in ("neighbour", "nothing")} == before
    assert not store.calls


# Numbers


NUMBERS = [
    "-1",
    "+5",  # a blank, once it is decoded
    "%2B5",
    "%205",
    "5%20",
    "5.0",
    "1e3",
    "0x10",
    "1_000",
    "\uff11\uff12",  # other scripts' digits
    "\u0663",
    "NaN",
    "",
    "%00",
    "5%00",
    "5%0a",
    "--5",
    "abc",
    "null",
    "true",
    "5,6",
    str(2**63),
    "9" * 400,
    "9" * 5000,
]


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("GET", f"/download/{ID}?length=5&offset="),  # B29
        ("POST", f"/upload/{ID}/uploads?fileSize="),  # B33
        ("GET", f"/upload/{ID}/status?fileSize="),
        ("POST", f"/upload/{ID}/recovery?fileSize="),
        ("DELETE", f"/upload/{ID}/parts?uploadId=u&partNumber="),  # B30
        ("POST", f"/upload/{ID}/parts?uploadId=u&md5={'a' * 32}&etag={'a' * 32}&partNumber="),
    ],
)
def test_odd_number_reaches_nobody(lonely: Site, store: MemoryStore, verb: str, path: str) -> None:
    for number in NUMBERS:
        response = lonely.http.request(verb, path + number, headers=MINE)
        assert response.status_code == 400, number
        assert len(assert_refused(response)) < 200
        assert not store.calls


def test_odd_length_reaches_nobody(lonely: Site, store: MemoryStore) -> None:  # B29
    for length in NUMBERS[1:]:  # -1 is "to the end"
        assert lonely.http.get(f"/download/{ID}?offset=0&length={length}", headers=MINE).status_code == 400, length
        assert not store.calls


@pytest.mark.parametrize("number", ["0", "10001"])
def test_part_number_out_of_range_reaches_nobody(lonely: Site, store: MemoryStore, number: str) -> None:  # B30
    for verb, more in (("DELETE", ""), ("POST", f"&md5={'a' * 32}&etag={'a' * 32}")):
        assert_refused(lonely.http.request(verb, f"/upload/{ID}/parts?uploadId=u&partNumber={number}{more}", headers=MINE))
    assert not store.calls


@pytest.mark.parametrize("size", [10_000 * 5 * 2**30 + 1, 2**63 - 1])
def test_size_that_no_store_takes_leaves_the_upload_in_progress(lonely: Site, store: MemoryStore, size: int) -> None:  # B33
    begun = lonely.http.post(f"/upload/{ID}/uploads?fileSize=5", headers=MINE).json()
    store.calls.clear()
    assert_refused(lonely.http.post(f"/upload/{ID}/uploads?overwrite=true&fileSize={size}", headers=MINE))
    assert not store.calls
    assert lonely.http.get(f"/upload/{ID}/status?fileSize=5", headers=MINE).json()["uploadId"] == begun["uploadId"]


@pytest.mark.parametrize(
    ("verb", "query"),
    [
        ("GET", f"/download/{ID}?offset=0&offset=5&length=1"),
        ("GET", f"/download/{ID}?offset=0&length=1&length=-1"),
        ("GET", f"/download/{ID}?offset=0&length=-1&external=false&external=true"),
        ("POST", f"/upload/{ID}/uploads?fileSize=1&fileSize=1"),
        ("POST", f"/upload/{ID}/uploads?fileSize=1&overwrite=false&overwrite=true"),
        ("POST", f"/upload/{ID}?uploadId=a&uploadId=b"),
    ],
)
def test_parameter_said_twice_reaches_nobody(lonely: Site, store: MemoryStore, verb: str, query: str) -> None:
    """What is in front of us may look at the one, and we at the other."""
    assert "twice" in assert_refused(lonely.http.request(verb, query, headers=MINE))
    assert not store.calls


@pytest.mark.parametrize("md5", ["", "x", "a" * 31, "a" * 33, "g" * 32, "\uff41" * 32, "a" * 32 + "%00", " " * 32])
def test_what_is_no_md5_reaches_nobody(lonely: Site, store: MemoryStore, md5: str) -> None:  # B31
    assert_refused(lonely.http.post(f"/upload/{ID}/parts?partNumber=1&uploadId=u&etag={'a' * 32}&md5={md5}", headers=MINE))
    if md5:  # at the beginning of an upload it may lack
        assert_refused(lonely.http.post(f"/upload/{ID}/uploads?fileSize=1&md5={md5}", headers=MINE))
    assert not store.calls


@pytest.mark.parametrize("etag", ["", '""', "e" * 257, "b" * 32])
def test_wrong_etag_reaches_nobody(lonely: Site, store: MemoryStore, etag: str) -> None:  # B31
    assert_refused(lonely.http.post(f"/upload/{ID}/parts?partNumber=1&uploadId=u&md5={'a' * 32}&etag={etag}", headers=MINE))
    assert not store.calls


@pytest.mark.parametrize("upload_id", ["", "a%2fb", "..%2f..%2fdata%2fx", "a%00", "a%0d%0ab", "a|b", "x" * 2000])
def test_what_is_no_upload_id_reaches_nobody(lonely: Site, store: MemoryStore, upload_id: str) -> None:
    for verb, path in (
        ("POST", f"/upload/{ID}?uploadId={upload_id}"),
        ("POST", f"/upload/{ID}/parts?partNumber=1&md5={'a' * 32}&etag={'a' * 32}&uploadId={upload_id}"),
        ("DELETE", f"/upload/{ID}/parts?partNumber=1&uploadId={upload_id}"),
    ):
        assert lonely.http.request(verb, path, headers=MINE).status_code in {400, 404}
    assert not store.calls


@pytest.mark.parametrize("name", ["a%0d%0ab", "a%00", "..%2f..%2fx", "..", "%2fetc%2fpasswd", "a%1b[2J", "x%E2%80%AEmab", "a" * 256])
def test_file_name_that_is_none_reaches_nobody(lonely: Site, store: MemoryStore, name: str) -> None:  # B06, B36
    """It would be in every specification of the object from then on."""
    assert_refused(lonely.http.post(f"/upload/{ID}/uploads?fileSize=1&fileName={name}", headers=MINE))
    assert not store.calls


def test_upload_with_a_part_missing_stays_resumable(lonely: Site, store: MemoryStore) -> None:  # B32
    upload_id = lonely.http.post(f"/upload/{ID}/uploads?fileSize={SIZE}", headers=MINE).json()["uploadId"]
    store.put_part(f"data/{ID}", upload_id, 2, b"x")
    assert_refused(lonely.http.post(f"/upload/{ID}?uploadId={upload_id}", headers=MINE))
    assert lonely.http.get(f"/upload/{ID}/status?fileSize={SIZE}", headers=MINE).json()["uploadId"] == upload_id
    assert lonely.http.get(f"/upload/{ID}", headers=MINE).text == "false"


# States


@pytest.mark.parametrize("state", ["PUBLISHED", "SUPPRESSED"])
def test_upload_to_what_is_no_draft_any_more(site: Site, store: MemoryStore, song: Song, state: str) -> None:  # B34
    song.state_now = state
    assert "UNPUBLISHED" in assert_refused(site.http.post(f"/upload/{ID}/uploads?fileSize={SIZE}&overwrite=true", headers=MINE))
    assert not store.calls


def test_download_of_a_draft(site: Site, store: MemoryStore) -> None:  # B34
    assert "PUBLISHED" in assert_refused(site.http.get(f"/download/{ID}?offset=0&length=-1", headers=MINE))
    assert not store.calls


# Metadata that cannot be believed


Answer = Callable[[str], tuple[int, object, dict[str, str]]]


class _Liar(BaseHTTPRequestHandler):
    """A Song whose answers are `answer(path)`: status, body and headers."""

    answer: Answer
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        status, body, headers = type(self).answer(self.path)
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def lying_song(answer: Answer) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    asked: list[tuple[str, str | None]] = []
    handler = type("Handler", (_Liar,), {"answer": staticmethod(answer), "asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_metadata_about_another_object_are_refused(
    start_site: StartSite, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:  # B28
    about_another = {"id": OTHER, "gnosId": ANALYSIS, "fileName": "x", "projectCode": "TEST-CA", "access": "open"}
    with lying_song(lambda path: (200, about_another, {})) as (url, _):
        site = start_site(DirectRepository(store), metadata=SongClient(client_of(url, None)), authenticator=Tokens())
        assert_refused(site.anonymous("GET", f"/download/{ID}?offset=0&length=-1"), 503)
        assert_refused(site.anonymous("POST", f"/upload/{ID}/uploads?fileSize=1", headers={"Authorization": "Bearer study"}), 503)
    assert not store.calls
    assert [record for record in caplog.records if record.levelno >= logging.ERROR and ID in record.getMessage()]


def test_gate_itself_refuses_metadata_about_another_object(start_site: StartSite, store: MemoryStore) -> None:  # B28
    class Confused(Song):
        def entity(self, object_id: str) -> Entity:
            return Entity(OTHER, ANALYSIS, "x.bam", "TEST-CA", "open")

    site = start_site(DirectRepository(store), metadata=Confused(), authenticator=Tokens())
    assert_refused(site.anonymous("GET", f"/download/{ID}?offset=0&length=-1"), 503)
    assert not store.calls


def test_song_leads_nobody_elsewhere(start_site: StartSite, store: MemoryStore) -> None:  # B46
    with lying_song(lambda path: (200, {}, {})) as (elsewhere, asked_there):
        for place in (f"{elsewhere}/entities/{ID}", "file:///etc/passwd", "https://127.0.0.1:1/"):
            with lying_song(lambda path: (302, {}, {"Location": place})) as (url, _):  # noqa: B023  # it ends within the round
                site = start_site(DirectRepository(store), metadata=SongClient(client_of(url, "our-own-token")), authenticator=Tokens())
                assert_refused(site.anonymous("GET", f"/download/{ID}?offset=0&length=-1"), 503)
        assert not asked_there
    assert not store.calls


# What is hardly HTTP


def health(*headers: str | bytes, method: str = "GET", version: bytes = b"HTTP/1.1") -> bytes:
    return request("/health", *headers, method=method, token=None).replace(b"HTTP/1.1", version, 1)


NOT_HTTP: dict[str, tuple[bytes, set[int]]] = {
    "100 kB header": (health("X-Long: " + "a" * 100_000), {400, 431}),  # B38
    "100 kB of headers": (health(*(f"X-{number}: {'a' * 1000}" for number in range(100))), {400, 431}),
    "token of 64 kB": (request(f"/upload/{ID}", token="t" * 65_536), {400, 401, 431}),  # B42
    "request line of 1 MB": (b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", {400, 414, 431}),
    "CR LF in a header": (health("X-A: b\r\nX-Injected: yes"), {200}),  # two headers, as anyone may send
    "bare CR in a header": (health("X-A: b\rX-Injected: yes"), {400}),
    "bare LF": (b"GET /health HTTP/1.1\nHost: x\nConnection: close\n\n", {200, 400}),
    "NUL in a header": (health(b"X-A: b\x00c"), {400}),
    "folded header": (health("X-A: b\r\n folded: yes"), {200, 400}),
    "blank before the colon": (health("X-A : b"), {400}),
    "header without a name": (health(": b"), {400}),
    "two lengths": (health("Content-Length: 0", "Content-Length: 5", method="POST"), {400}),
    "negative length": (health("Content-Length: -5", method="POST"), {400}),
    "length with a sign": (health("Content-Length: +5", method="POST"), {400}),
    "length of other scripts": (health("Content-Length: \uff15".encode(), method="POST"), {400}),
    "length of 400 digits": (health("Content-Length: " + "9" * 400, method="POST"), {400}),
    "length and chunks": (health("Content-Length: 5", "Transfer-Encoding: chunked", method="POST") + b"0\r\n\r\n", {400, 405}),
    "chunks twice": (health("Transfer-Encoding: chunked, chunked", method="POST"), {400, 501}),
    "unknown coding": (health("Transfer-Encoding: gzip", method="POST"), {400, 501}),
    "chunked garbage": (health("Transfer-Encoding: chunked", method="POST") + b"zz\r\nabc\r\n0\r\n\r\n", {400, 405}),
    "chunk of 2^80 bytes": (health("Transfer-Encoding: chunked", method="POST") + b"f" * 21 + b"\r\n", {400, 405}),
    "no host": (b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n", {400}),
    "two hosts": (health("Host: evil.example"), {400}),
    "odd host": (b"GET /health HTTP/1.1\r\nHost: [::1\r\nConnection: close\r\n\r\n", {200, 400}),
    "HTTP/1.0": (b"GET /health HTTP/1.0\r\n\r\n", {200}),
    "HTTP/0.9": (b"GET /health\r\n\r\n", {400}),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\nConnection: close\r\n\r\nSM\r\n\r\n", {400, 404, 405}),
    "HTTP/9.9": (health(version=b"HTTP/9.9"), {200, 400, 505}),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500, {400}),
    "absolute address": (request("http://127.0.0.1/health", token=None), {200, 400, 404}),
    "absolute address elsewhere": (request("http://169.254.169.254/latest/meta-data", token=None), {400, 404}),
    "no slash": (request("health", token=None), {400, 404}),
    "asterisk": (request("*", method="OPTIONS", token=None), {400, 404, 405}),
    "CONNECT": (request("evil.example:443", method="CONNECT", token=None), {400, 404, 405}),
    "TRACE": (health(method="TRACE"), {405}),
    "HEAD": (health(method="HEAD"), {200, 405}),
    "OPTIONS": (health(method="OPTIONS"), {405}),
    "method of ours": (health(method="SCORE"), {405}),
    "method of 10 kB": (health(method="A" * 10_000), {400, 405}),
    "bytes that are no text": (request(b"/upload/\xff\xfe?a=\xff", token=None), {400}),
    "escapes that are no text": (request("/upload/%ff%fe%c0%af?fileSize=%ff", token=None), {400}),
    "half an escape": (request("/upload/%?offset=%g1&length=%"), {400}),
    "two slashes": (request("//evil.example/health", token=None), {400, 404}),
    "fragment": (request("/health#x", token=None), {200, 400, 404}),
    "upgrade": (health("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__"), {200}),
    "websocket": (health("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: eA==", "Sec-WebSocket-Version: 13"), {200}),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_HTTP)
def test_what_is_hardly_http(lonely: Site, store: MemoryStore, name: str, caplog: pytest.LogCaptureFixture) -> None:  # B36, B38
    sent, allowed = NOT_HTTP[name]
    said = talk(lonely, sent)
    assert status_of(said) in allowed, said[:500]
    assert said.count(b"HTTP/1.1 ") == 1  # one answer, and nothing after it
    assert b"injected" not in said.lower()
    assert b"Traceback" not in said
    assert not [key for key in store.calls if key != "check"]
    assert_serves(lonely)
    assert not [record for record in caplog.records if record.exc_info]


def test_requests_in_one_go_are_answered_in_order(lonely: Site) -> None:
    asked = [f"/upload/{number:x}-1-1-1-1/status?fileSize=1" for number in range(20)]
    heads = [f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer system\r\n\r\n".encode() for target in asked]
    said = talk(lonely, b"".join(heads), health())
    assert said.count(b"HTTP/1.1 404 ") == 20
    assert said.count(b"HTTP/1.1 200 ") == 1
    places = [said.index(target.partition("?")[0].encode()) for target in asked]
    assert places == sorted(places)


def test_rest_of_a_refused_body_is_no_request(site: Site, store: MemoryStore) -> None:  # request smuggling
    inner = request(f"/upload/{ID}", method="DELETE")
    outer = request(f"/upload/{ID}/uploads?fileSize=x", f"Content-Length: {len(inner)}", method="POST", body=inner)
    said = talk(site, outer.replace(b"Connection: close\r\n", b"", 1), health())
    assert said.count(b"HTTP/1.1 ") == 2
    assert not [key for key in store.calls if key != "check"]


def test_slow_clients_keep_nobody_waiting(lonely: Site) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(connection(lonely)) for _ in range(200)]
        for number, opened in enumerate(slow):
            opened.sendall(
                (b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: b", b"POST /submit/A HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")[
                    number % 2
                ]
            )
        began = time.monotonic()
        for _ in range(5):
            assert_serves(lonely)
            slow[0].sendall(b"b")
        assert time.monotonic() - began < 2.0


# Bodies


@pytest.mark.parametrize(
    ("name", "body", "headers", "status"),
    [
        ("10 MB", b"[" + b" " * 10_000_000 + b"]", {}, 413),
        ("10 MB, no length", iter([b"[" + b" " * 10_000_000 + b"]"]), {}, 413),
        ("depth 10,000", b"[" * 10_000 + b"]" * 10_000, {}, 400),
        ("depth 1,000,000", b'{"a":' * 1_000_000, {}, 400),
        ("depth 500 in a field", b'{"x":' + b"[" * 500 + b"]" * 500 + b"}", {}, 400),
        ("gzip bomb", gzip.compress(b"0" * 50_000_000), {"Content-Encoding": "gzip"}, 400),
        ("NaN", b'{"x": NaN}', {}, 400),
        ("huge number", b'{"x": ' + b"9" * 5000 + b"}", {}, 400),
        ("infinite number", b'{"x": 1e999}', {}, 400),
        ("half a pair", b'{"x": "\\ud800"}', {}, 400),
        ("not UTF-8", b'{"x": "\xff"}', {}, 400),
        ("UTF-16", json.dumps({}).encode("utf-16"), {}, 400),
        ("nothing", b"", {}, 400),
        ("a list", b"[]", {}, 400),
        ("null", b"null", {}, 400),
        ("form", b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 400),
        ("NUL", b"\x00", {}, 400),
    ],
)  # fmt: skip
def test_bad_body(ours: Site, registry: Registry, name: str, body: Any, headers: dict[str, str], status: int) -> None:  # B38
    assert_refused(ours.http.post("/submit/TEST", content=body, headers={**MINE, **headers}), status)
    assert list(registry.entities()) == []


def test_body_is_not_read_for_strangers(ours: Site) -> None:  # B38
    with connection(ours) as opened:
        opened.sendall(request("/submit/TEST", "Content-Length: 9000000", method="POST", token="nothing"))
        assert status_of(opened.recv(4096)) == 403


def test_nesting_that_is_read_can_be_written(ours: Site) -> None:
    """Depths around the limits of recursion: what is taken in must come out again."""
    for number, depth in enumerate((60, 61, 62, 63, 64, 65, 300, 900, 950, 990, 1000)):
        payload: Any = {**payload_of(f"{number}.bam"), "x": None}
        text = json.dumps(payload).replace('"x": null', '"x": ' + "[" * depth + "]" * depth)
        answer = ours.http.post("/submit/TEST", content=text.encode(), headers=MINE)
        assert answer.status_code in {200, 400}, depth
        if answer.status_code == 200:
            assert ours.http.get(f"/studies/TEST/analysis/{answer.json()['analysisId']}").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/entities?size=%EF%BC%91",
        "/entities?size=-1",
        "/entities?page=1e3",
        "/entities?size=99999999999999999999",
        "/entities?id=x",
        "/entities?fields=id&fields=password",
        "/entities?size=1&size=2000",
        "/entities?page=0&page=1",
        "/studies/TEST/analysis?analysisStates=PUBLISHED,x",
        "/studies/TEST/analysis?analysisStates=PUBLISHED&analysisStates=UNPUBLISHED",
    ],
)
def test_odd_questions_to_song(ours: Site, path: str) -> None:
    assert_refused(ours.anonymous("GET", path))


def test_field_asked_for_again_and_again_costs_nothing(ours: Site, registry: Registry) -> None:
    names = [f"{number:04}.bam" for number in range(1000)]
    registry.submit("TEST", payload_of(*names))
    began = time.monotonic()
    answer = ours.anonymous("GET", "/entities?size=2000&fields=" + ",".join(["id"] * 15_000))
    assert len(answer.json()["content"]) == 1000
    assert time.monotonic() - began < 1.0


# Tokens


ISSUER, AUDIENCE = "https://id.example.org", "score"


class Issuer:
    """Two keys, one of which the server believes, and tokens by them."""

    def __init__(self) -> None:
        self.private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        kinds = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.public_pem = self.private.public_key().public_bytes(*kinds)

    def claims(self, **changes: Any) -> dict[str, Any]:
        good = {"sub": "ada", "iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 600, "context": {"scope": ["score.WRITE"]}}
        return {name: value for name, value in {**good, **changes}.items() if value is not None}

    def token(self, *, key: Any = None, algorithm: str = "RS256", headers: dict[str, Any] | None = None, **changes: Any) -> str:
        return jwt.encode(self.claims(**changes), key or self.private, algorithm, headers=headers)


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def guarded(start_site: StartSite, store: MemoryStore, song: Song, issuer: Issuer, tmp_path: Path) -> Iterator[Site]:
    """A server that believes JWTs of `issuer`."""
    pem = tmp_path / "public.pem"
    pem.write_bytes(issuer.public_pem)
    authenticator = open_authenticator(AuthOptions(mode="jwt", public_key=str(pem), issuer=ISSUER, audience=AUDIENCE))
    assert authenticator is not None
    yield start_site(DirectRepository(store), metadata=song, authenticator=authenticator)
    authenticator.close()


def _by_hand(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return ".".join(jwt.utils.base64url_encode(part).decode() for part in parts)


def _hs256_by_the_public_key(issuer: Issuer) -> str:
    """What PyJWT would not sign by itself."""
    signed = _by_hand({"alg": "HS256", "typ": "JWT"}, issuer.claims()).rpartition(".")[0]
    signature = jwt.get_algorithm_by_name("HS256").sign(signed.encode(), issuer.public_pem)
    return f"{signed}.{jwt.utils.base64url_encode(signature).decode()}"


BAD_TOKENS: dict[str, Callable[[Issuer], str]] = {
    "alg none": lambda issuer: _by_hand({"alg": "none"}, issuer.claims()),
    "alg None": lambda issuer: _by_hand({"alg": "None"}, issuer.claims(), b"x"),
    "no alg": lambda issuer: _by_hand({}, issuer.claims(), b"x"),
    "HS256 by the public key": _hs256_by_the_public_key,
    "another's key": lambda issuer: issuer.token(key=issuer.other),
    "other algorithm": lambda issuer: issuer.token(algorithm="RS512"),
    "wrong audience": lambda issuer: issuer.token(aud="song"),
    "no audience": lambda issuer: issuer.token(aud=None),
    "wrong issuer": lambda issuer: issuer.token(iss="https://evil.example"),
    "no issuer": lambda issuer: issuer.token(iss=None),
    "expired": lambda issuer: issuer.token(exp=int(time.time()) - 60),
    "no expiry": lambda issuer: issuer.token(exp=None),
    "not yet": lambda issuer: issuer.token(nbf=int(time.time()) + 600),
    "kid that climbs, by another": lambda issuer: issuer.token(key=issuer.other, headers={"kid": "../../../../dev/null"}),
    "jku of another": lambda issuer: issuer.token(key=issuer.other, headers={"jku": "http://127.0.0.1:1/keys"}),
    "crit": lambda issuer: issuer.token(headers={"crit": ["exp"]}),
    "two signatures": lambda issuer: issuer.token() + "." + issuer.token().rpartition(".")[2],
    "JSON form": lambda issuer: json.dumps({"payload": "x", "signatures": [{}, {}]}, separators=(",", ":")),
    "claims changed": lambda issuer: _changed(issuer.token()),
    "20 kB": lambda issuer: issuer.token(sub="a" * 20_000),
    "60 kB": lambda issuer: "a" * 60_000,
    "none after two blanks": lambda issuer: " \x7f",
    "blank inside": lambda issuer: issuer.token().replace(".", " .", 1),
    "not ASCII": lambda issuer: "t\xf6ken",
    "UUID": lambda issuer: "11111111-1111-1111-1111-111111111111",
}


def _changed(token: str) -> str:
    head, claims, signature = token.split(".")
    content = json.loads(jwt.utils.base64url_decode(claims))
    content["context"]["scope"].append("score.READ")
    return f"{head}.{jwt.utils.base64url_encode(json.dumps(content).encode()).decode()}.{signature}"


def test_good_token_of_the_issuer(guarded: Site, issuer: Issuer) -> None:
    answer = guarded.anonymous("GET", f"/upload/{ID}", headers={"Authorization": f"Bearer {issuer.token()}"})
    assert (answer.status_code, answer.text) == (200, "false")


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_bad_token(guarded: Site, store: MemoryStore, issuer: Issuer, name: str, caplog: pytest.LogCaptureFixture) -> None:  # B39, B42
    token = BAD_TOKENS[name](issuer)
    with caplog.at_level(logging.DEBUG):
        for path in (f"/upload/{ID}", f"/download/{ID}?offset=0&length=-1", "/listing", "/health"):
            said = talk(guarded, request(path, b"Authorization: Bearer " + token.encode("latin-1"), token=None))
            head, _, body = said.partition(b"\r\n\r\n")
            assert (status_of(said), body) == (401, b"")
            assert b'www-authenticate: Bearer error="invalid_token"' in head
    assert not store.calls
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("score_core")]
    assert not token or not [line for line in ours if token[-40:] in line]


@pytest.mark.parametrize(
    "scope",
    [
        "score.WRITE ",
        " score.WRITE",
        "SCORE.WRITE",
        "score.write",
        "score.*",
        "PROGRAMDATA-*.WRITE",
        "PROGRAMDATA-TEST.WRITE",  # TEST is no prefix of study TEST-CA
        "PROGRAMDATA-TEST-CAR.WRITE",
        "PROGRAMDATA-test-ca.WRITE",
        "PROGRAMDATA-TEST-CA.READ",
        "PROGRAMDATA-TEST-CA.WRITE\n",
        "TEST-CA.WRITE",
    ],
)
def test_scopes_are_compared_as_they_stand(guarded: Site, store: MemoryStore, issuer: Issuer, scope: str) -> None:  # B40
    token = issuer.token(context={"scope": [scope]})
    headers = {"Authorization": f"Bearer {token}"}
    assert guarded.anonymous("POST", f"/upload/{ID}/uploads?fileSize={SIZE}&overwrite=true", headers=headers).status_code == 403  # B35
    assert not store.calls
    right = {"Authorization": f"Bearer {issuer.token(context={'scope': ['PROGRAMDATA-TEST-CA.WRITE']})}"}
    assert guarded.anonymous("GET", f"/upload/{ID}", headers=right).status_code == 200


@pytest.mark.parametrize("name", ["token", "access_token", "Authorization", "auth_token", "api_key"])
def test_token_in_the_address_opens_nothing(guarded: Site, issuer: Issuer, name: str, caplog: pytest.LogCaptureFixture) -> None:  # B41
    token = issuer.token()
    with caplog.at_level(logging.DEBUG):
        answers = [
            guarded.anonymous("GET", f"/download/{ID}?offset=0&length=-1&{name}={token}"),
            guarded.anonymous("GET", f"/listing?{name}=Bearer%20{token}"),
            guarded.anonymous("POST", f"/upload/{ID}/uploads?fileSize=1&{name}={token}"),
            guarded.anonymous("GET", f"/nothing?{name}={token}"),
        ]
    assert [answer.status_code for answer in answers] == [403, 401, 400, 404]
    assert not [answer for answer in answers if token in answer.text]
    mine = ("score_core", "uvicorn.error")  # uvicorn.access is off; pytest gives it a handler, and so turns it on
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(mine)]
    assert not [line for line in ours if token[:40] in line]


def test_two_tokens_are_none(site: Site) -> None:
    """What is in front of us may look at the one, and we at the other."""
    for tokens in (("system", "nothing"), ("nothing", "system")):
        said = talk(site, request("/listing", *(f"Authorization: Bearer {token}" for token in tokens), token=None))
        assert status_of(said) == 401


# The audit log


class Audit(logging.Handler):
    """Keeps the lines of the audit log."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())

    def lines(self, count: int) -> list[str]:
        """Once there are that many: a line is written after its answer was sent."""
        deadline = time.monotonic() + 5
        while len(self._lines) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        return self._lines


@pytest.fixture
def audit(caplog: pytest.LogCaptureFixture) -> Iterator[Audit]:
    log, keeping = logging.getLogger("score_core.server.audit"), Audit()
    log.addHandler(keeping)
    with caplog.at_level(logging.INFO, log.name):
        yield keeping
    log.removeHandler(keeping)


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Real-IP", "Forwarded", "X-Client-IP"])
def test_who_asks_is_not_what_the_request_says(site: Site, audit: Audit, header: str) -> None:  # B37
    site.anonymous("GET", "/profile", headers={header: "6.6.6.6", "X-Forwarded-Proto": "https"})
    assert [line.split()[:4] for line in audit.lines(1)] == [["127.0.0.1", "anonymous", "GET", "/profile"]]


@pytest.mark.parametrize("text", ["%0a10.0.0.1%20admin%20GET%20/x%20200", "%1b[2J", "%E2%80%AE", "a%20b", "%0d", "%E2%80%A8x", "%ff"])
def test_path_forges_no_line(site: Site, audit: Audit, text: str) -> None:  # B58
    site.anonymous("GET", f"/upload/{text}")
    (line,) = audit.lines(1)
    assert line.isprintable()
    assert len(line.split(" ")) == 7  # address, caller, verb, path, status, and the time in ms


@pytest.mark.parametrize("name", ["eve\n10.0.0.1 admin GET /x 200 1.0 ms", "eve 200", "\x1b[2J", "\u202eada", "e" * 5000, " ", "\u2028"])
def test_name_forges_no_line(guarded: Site, issuer: Issuer, audit: Audit, name: str) -> None:  # B58
    answer = guarded.anonymous("GET", f"/upload/{ID}", headers={"Authorization": f"Bearer {issuer.token(sub=name)}"})
    assert answer.status_code == 200
    (line,) = audit.lines(1)
    assert line.isprintable()
    assert len(line.split(" ")) == 7
    assert len(line) < 1000


def test_refusals_are_audited(site: Site, audit: Audit) -> None:  # B27
    site.anonymous("GET", f"/upload/{ID}", headers={"Authorization": "Bearer nothing"})
    site.anonymous("GET", f"/upload/{OTHER}", headers={"Authorization": "Bearer nothing"})
    site.anonymous("GET", f"/upload/{ID}", headers={"Authorization": "Bearer wrong"})
    assert [line.split()[1:5] for line in audit.lines(3)] == [
        ["nothing", "GET", f"/upload/{ID}", "403"],
        ["nothing", "GET", f"/upload/{OTHER}", "404"],
        ["-", "GET", f"/upload/{ID}", "401"],
    ]


def test_fault_says_nothing_of_the_inside(start_site: StartSite, store: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Song):
        def entity(self, object_id: str) -> Entity:
            raise RuntimeError("the password is hunter2")

    site = start_site(DirectRepository(store), metadata=Broken(), authenticator=Tokens())
    answer = site.anonymous("GET", f"/download/{ID}?offset=0&length=-1", headers={"Origin": "https://x.example"})
    assert_refused(answer, 500)
    assert "hunter2" not in answer.text
    assert "no-store" in answer.headers["cache-control"]
    assert len([record for record in caplog.records if record.exc_info]) == 1  # its traceback, once


# Many at once


class Slow(MemoryStore):
    """A store that answers nothing until `gate` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.waiting = 0

    def read(self, key: str) -> bytes:
        self.waiting += 1
        self.gate.wait(30)
        return super().read(key)


def test_slow_store_does_not_stop_health(start_site: StartSite) -> None:
    store = Slow()
    site = start_site(DirectRepository(store), authenticator=Tokens())
    with ThreadPoolExecutor(80) as pool:
        waiting = [pool.submit(site.anonymous, "GET", f"/download/{ID}?offset=0&length=1", headers=MINE, timeout=60) for _ in range(80)]
        try:
            deadline = time.monotonic() + 5
            while store.waiting < 40 and time.monotonic() < deadline:  # all threads of the server
                time.sleep(0.01)
            for path in ("/health", "/actuator/health"):
                assert site.anonymous("GET", path, timeout=3).json() == {"status": "UP"}
        finally:
            store.gate.set()
        assert {answer.result().status_code for answer in waiting} == {404}


def test_health_of_a_store_that_never_answers(start_site: StartSite, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    class Hung(MemoryStore):
        def check(self) -> None:
            gate.wait(30)

    monkeypatch.setattr("score_core.server.score_routes._HEALTH_PATIENCE_S", 0.2)
    site = start_site(DirectRepository(Hung()), authenticator=Tokens())
    try:
        for _ in range(3):
            answer = site.anonymous("GET", "/health", timeout=3)
            assert (answer.status_code, answer.json()) == (503, {"status": "OUT_OF_SERVICE"})
    finally:
        gate.set()


def test_many_at_once(ours: Site, store: MemoryStore, registry: Registry) -> None:
    """64 threads ask all sorts of things: every answer is one of the documented kind, and none is missing."""
    analysis = registry.submit("TEST", payload_of(*(f"{number}.bam" for number in range(20))))
    ids = [entity.object_id for entity in registry.entities()]
    files = {file.object_id: file for file in registry.analysis("TEST", analysis).files}

    def ask(seed: int) -> list[int]:
        seen = []
        with httpx.Client(base_url=ours.url, headers=MINE, timeout=60, verify=False) as http:
            for number in range(seed, seed + 20):
                at = ids[number % len(ids)]
                verb, path = (
                    ("POST", f"/upload/{at}/uploads?fileSize={files[at].size}&overwrite=true"),
                    ("GET", f"/upload/{at}/status?fileSize={files[at].size}"),
                    ("GET", f"/download/{at}?offset=0&length=-1&exclude-urls=true"),
                    ("DELETE", f"/upload/{at}"),
                    ("GET", f"/upload/{at}"),
                    ("GET", "/listing"),
                    ("GET", f"/entities?gnosId={analysis}"),
                    ("GET", "/health"),
                    ("GET", f"/upload/{quote('../x', safe='')}"),
                    ("PUT", f"/studies/TEST/analysis/publish/{analysis}"),
                )[number % 10]
                seen.append(http.request(verb, path).status_code)
        return seen

    with ThreadPoolExecutor(64) as pool:
        statuses = [status for seen in pool.map(ask, range(64)) for status in seen]
    assert len(statuses) == 64 * 20
    assert set(statuses) <= {200, 400, 404, 409}
    assert_serves(ours)
