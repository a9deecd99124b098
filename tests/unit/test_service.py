"""Requests to services: who gets a token, what is tried again and for how long, and what an answer means."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from score_core.errors import (
    AccessDenied,
    AuthenticationError,
    ConfigurationError,
    Conflict,
    Interrupted,
    LocalFileError,
    ObjectNotFound,
    ServiceError,
    TransientError,
    Unavailable,
)
from score_core.service import Refused, ServiceClient, ServiceOptions, Token, is_private_line, reason
from score_core.transfer.policy import RetryPolicy
from score_core.transfer.stop import Stop
from tests.repository.java_server import Fault, JavaServer

PATH = "/upload/3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11"


@pytest.fixture
def server() -> Iterator[JavaServer]:
    with JavaServer() as server:
        yield server


_OPEN: list[ServiceClient] = []


@pytest.fixture(autouse=True)
def _closes_clients() -> Iterator[None]:
    yield
    while _OPEN:
        _OPEN.pop().close()


def client_of(url: str, token: Token | None = None, **options: Any) -> ServiceClient:
    policy = RetryPolicy(attempts=3, base_s=0.001, cap_s=0.01)
    _OPEN.append(ServiceClient(url, name="The Score server", token=token, policy=policy, **options))
    return _OPEN[-1]


def client(server: JavaServer, token: Token | None = None, **options: Any) -> ServiceClient:
    return client_of(server.url, token or Token(server.token), **options)


# Answers


@pytest.mark.parametrize(
    ("status", "kind", "requests"),
    [
        (400, Refused, 1),
        (401, AuthenticationError, 1),
        (403, AccessDenied, 1),
        (404, ObjectNotFound, 1),
        (405, Refused, 1),
        (409, Conflict, 1),
        (422, Refused, 1),
        (500, ServiceError, 1),
        (302, ServiceError, 1),
        (408, Unavailable, 3),
        (425, Unavailable, 3),
        (429, Unavailable, 3),
        (502, Unavailable, 3),
        (503, Unavailable, 3),
        (504, Unavailable, 3),
    ],
)
def test_status_says_what_it_is_and_how_often_it_is_asked(server: JavaServer, status: int, kind: type[ServiceError], requests: int) -> None:
    server.inject("exists", Fault(status=status))
    with pytest.raises(kind) as caught:
        client(server).get(PATH)
    assert type(caught.value) is kind
    assert server.count("exists") == requests
    assert caught.value.status == (None if kind is Unavailable else status)


def test_dropped_connection_is_tried_again(server: JavaServer) -> None:
    server.inject("exists", Fault(drop=True), times=2)
    assert client(server).get(PATH).text == "false"
    assert server.count("exists") == 3


def test_one_attempt_is_one(server: JavaServer) -> None:
    server.inject("exists", Fault(status=503, headers={"Retry-After": "3"}))
    with pytest.raises(TransientError) as caught:
        client(server).once("GET", PATH)
    assert (caught.value.busy, caught.value.retry_after_s) == (True, 3.0)
    with pytest.raises(Unavailable):
        client(server).get(PATH, attempts=1)
    assert server.count("exists") == 2


@pytest.mark.parametrize(
    ("said", "after_s"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("9" * 30, 999_999_999.0),
        ("Thu, 04 Jul 2024 12:00:30 GMT", 30.0),
        ("Thu, 04 Jul 2024 11:00:00 GMT", 0.0),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("", None),
    ],
)
def test_retry_after_is_read(said: str, after_s: float | None) -> None:
    headers = {"Retry-After": said, "Date": "Thu, 04 Jul 2024 12:00:00 GMT"}
    with pytest.raises(TransientError) as caught:
        answering(httpx.Response(503, headers=headers)).once("GET", "/x")
    assert caught.value.retry_after_s == after_s


def answering(response: httpx.Response) -> ServiceClient:
    asked = client_of("http://127.0.0.1:1")
    asked._client.close()
    asked._client = httpx.Client(transport=httpx.MockTransport(lambda _: response))
    return asked


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"timestamp":"x","status":404,"error":"Not Found","path":"/x"}', ""),
        (b'{"message":"no such study","error":"Not Found"}', "no such study"),
        (b'{"error":"invalid_token","error_description":"it has expired"}', "it has expired"),
        (b'{"title":"Conflict","detail":"it exists"}', "it exists"),
        (b'{"message":{"a":1},"error":["x"]}', ""),
        (b'{"message":"  "}', ""),
        (b"The token has not the scope", "The token has not the scope"),
        (b'"quoted"', "quoted"),
        (b"<html><body>502</body></html>", ""),
        (b"  <?xml version='1.0'?>", ""),
        (b"", ""),
        (b"null", ""),
        (b"[1]", ""),
        (b"\xff\xfe\x00", None),
        (b"[" * 100_000, None),
        (b"x" * 10_000, "x" * 300),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_reason_is_found_in_every_form(body: bytes, said: str | None) -> None:
    found = reason(httpx.Response(400, content=body))
    assert len(found) <= 300
    assert said is None or found == said


# Tokens


class CountingPath(type(Path())):  # type: ignore[misc]
    """A path that knows how often its file was opened."""

    opened = 0

    def open(self, *args: Any, **options: Any) -> Any:
        type(self).opened += 1
        return super().open(*args, **options)


@pytest.fixture
def token_file(tmp_path: Path) -> CountingPath:
    CountingPath.opened = 0
    return CountingPath(tmp_path / "token")


def test_one_thread_reads_the_new_token_for_all(server: JavaServer, token_file: CountingPath) -> None:
    """All threads meet a 401 at once; one opens the file, the others go on with what it found."""
    token_file.write_text(server.token)
    asked = client(server, Token(file=token_file))
    start = threading.Barrier(16)
    server.tokens = {"another": {"READ", "WRITE"}}
    token_file.write_text("another")
    CountingPath.opened = 0

    def ask(_: int) -> str:
        start.wait(10)
        return asked.get(PATH).text

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(ask, range(16))) == {"false"}
    assert CountingPath.opened == 1
    assert sum(seen.status == 401 for seen in server.seen) <= 16


def test_token_that_stays_bad_is_an_error_after_one_look(server: JavaServer, token_file: CountingPath) -> None:
    token_file.write_text("wrong")
    asked = client(server, Token(file=token_file))
    CountingPath.opened = 0
    with pytest.raises(AuthenticationError, match="wrong or has expired"):
        asked.get(PATH)
    assert CountingPath.opened == 1
    assert server.count("exists") == 1


@pytest.mark.parametrize("content", [None, "", "two tokens", "tök", "a" * 20_000])
def test_file_that_is_just_being_written_costs_nothing_but_the_try(
    server: JavaServer, token_file: CountingPath, content: str | None
) -> None:
    token_file.write_text("old")
    asked = client(server, Token(file=token_file))
    token_file.unlink() if content is None else token_file.write_text(content)
    with pytest.raises(AuthenticationError):
        asked.get(PATH)
    assert [seen.has_token for seen in server.seen] == [True]
    token_file.write_text(server.token)
    assert asked.get(PATH).text == "false"


def test_without_a_token_no_header_is_sent(server: JavaServer) -> None:
    with pytest.raises(Refused):
        client(server, Token()).get(PATH)
    assert not server.seen[0].has_token


@pytest.mark.parametrize("text", ["two words", "line\nbreak", "line\r\nX: y", "tök", "a" * 16_385, "nul\0"])
def test_what_is_no_token_is_refused_without_being_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_bytes(text.encode())
    for make in (lambda: Token(text), lambda: Token(file=tmp_path / "token")):
        with pytest.raises(ConfigurationError) as caught:
            make()
        assert text not in str(caught.value)


def test_white_space_round_a_token_is_not_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(" abc\r\n")
    assert Token(file=tmp_path / "token").text == Token("abc\n").text == "abc"
    assert Token("").text is None


def test_missing_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalFileError, match="no-such-file"):
        Token(file=tmp_path / "no-such-file")


def test_token_shows_nowhere() -> None:
    token = Token("secret-token")
    asked = client_of("https://h", token)
    assert "secret" not in repr(token) + str(token) + repr(asked) + repr(vars(asked))


# Where requests go


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("https://score.example.org", True),
        ("HTTPS://score.example.org", True),
        ("http://127.0.0.1:5431", True),
        ("http://127.8.9.10", True),
        ("http://[::1]", True),
        ("http://localhost", True),
        ("http://score.example.org", False),
        ("http://0.0.0.0", False),
        ("http://192.168.0.1", False),
        ("http://localhost.example.org", False),
        ("http://localhost@example.org", False),
        ("http://[", False),
        ("", False),
    ],
)
def test_private_lines(url: str, private: bool) -> None:
    assert is_private_line(url) is private


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_this_machine_is_not_reached_over_a_proxy(server: JavaServer, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert client(server).get(PATH).text == "false"


def test_address_that_is_none_is_a_service_error() -> None:
    for url in ("http://[", "http://h:99999999", "nonsense"):
        with pytest.raises(ServiceError):
            client_of(url).get("/x", attempts=1)


def test_parameter_that_cannot_be_sent_is_a_service_error(server: JavaServer) -> None:
    with pytest.raises(ServiceError):
        client(server).get(PATH, params={"x": "\ud800"})
    assert server.seen == []


def test_parameters_are_written_as_java_does(server: JavaServer) -> None:
    client(server).get(PATH, params={"a": True, "b": False, "c": -1, "d": "x+y z&", "e": ["1", "2"]})
    assert server.seen[0].query == {"a": "true", "b": "false", "c": "-1", "d": "x+y z&", "e": "1"}


def test_bad_certificates_are_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    for file in ("ca.pem", "missing.pem"):
        with pytest.raises(ConfigurationError, match=file):
            client_of("https://h", options=ServiceOptions(ca_file=tmp_path / file))


def test_stop_between_attempts(server: JavaServer) -> None:
    server.inject("exists", Fault(status=503))
    stop = Stop()
    stop.set(15)
    with pytest.raises(Interrupted) as caught:
        client(server, stop=stop).get(PATH)
    assert caught.value.exit_code == 128 + 15
    assert server.count("exists") == 1
