"""Planted secrets appear nowhere: not on stdout or stderr, not with --debug, not in any file that is left."""

import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from score_core.checksum import md5_hex
from score_core.model import ObjectSpec, Part
from score_core.repository.layout import spec_json
from tests.cli.conftest import OBJECT_ID, Relay, Score, md5_of

PLANTED = {
    "ACCESSTOKEN": "planted-access-token-1",
    "AWS_ACCESS_KEY_ID": "PLANTEDKEYID2",
    "AWS_SECRET_ACCESS_KEY": "planted-secret-key-3",
    "AWS_SESSION_TOKEN": "planted-session-token-4",
}
DATA = b"0123456789"


class _EchoingBucket(BaseHTTPRequestHandler):
    """An S3 bucket with one object that nobody may read; its refusals repeat the whole signed address, as some stores' do."""

    signatures: list[str]

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.signatures += re.findall(r"X-Amz-Signature=(\w+)", self.path)
        if path.endswith(".meta"):
            spec = ObjectSpec(OBJECT_ID, len(DATA), (Part(1, 0, len(DATA), md5_hex(DATA)),), md5=md5_hex(DATA), file_name="x")
            self._answer(200, spec_json(spec, f"data/{OBJECT_ID}"))
        elif self.command == "HEAD":
            self._answer(200, DATA)
        else:
            body = f"<Error><Code>AccessDenied</Code><Message>{self.path}</Message></Error>".replace("&", "&amp;")
            self._answer(403, body.encode())

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "ETag": '"e"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def bucket() -> Iterator[ThreadingHTTPServer]:
    handler = type("Handler", (_EchoingBucket,), {"signatures": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def left_behind(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def test_refusing_bucket_does_not_leak(score: Score, bucket: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SCORE_PART_SIZE_BYTES", str(20 << 20))
    store = f"s3://bucket?endpoint=http://127.0.0.1:{bucket.server_address[1]}"
    ran = score("download", "--object-id", OBJECT_ID, "--output-dir", "out", "--store", store, "--json", "--debug")
    signatures = bucket.RequestHandlerClass.signatures  # type: ignore[attr-defined]
    assert (ran.code, bool(signatures)) == (4, True)
    text = ran.out + ran.err + left_behind(tmp_path)
    assert [secret for secret in [*PLANTED.values(), *signatures, "X-Amz-Signature"] if secret in text] == []


def test_local_signatures_do_not_leak(
    score: Score, relay: Callable[[float], Relay], some_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = relay(1e9)
    monkeypatch.setenv("SCORE_SERVE_URL", through.url)
    texts = []
    for argv in (
        ("upload", "--file", some_file, "--object-id", OBJECT_ID, "--md5", md5_of(some_file)),
        ("download", "--object-id", OBJECT_ID, "--output-dir", "out"),
    ):
        ran = score(*argv, "--debug", "--json")
        assert ran.code == 0
        texts += [ran.out, ran.err]
    signatures = re.findall(r"Signature=(\w+)", "\n".join(through.requests))
    text = "\n".join([*texts, left_behind(tmp_path)])
    assert signatures
    assert [secret for secret in signatures if secret in text] == []


@pytest.mark.parametrize("command", [("info", "--verbose"), ("config", "show", "--origin"), ("info", "--json"), ("info", "--debug")])
@pytest.mark.parametrize("place", ["ACCESSTOKEN", "CLIENT_ACCESSTOKEN", "SCORE_TOKEN", "SCORE_TOKEN_FILE", ".toml", ".properties"])
def test_token_is_masked(score: Score, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: tuple[str, ...], place: str) -> None:
    token = PLANTED["ACCESSTOKEN"]
    path = tmp_path / f"file{place if place.startswith('.') else ''}"
    path.write_text({".toml": f"token = '{token}'", ".properties": f"client.accessToken: {token}"}.get(place, token))
    if place.startswith("."):
        command = (*command, "--config", str(path))
    else:
        monkeypatch.setenv(place, str(path) if place.endswith("FILE") else token)
    ran = score(*command)
    assert (ran.code, "token" in ran.out) == (0, True)
    assert token not in ran.out + ran.err


def test_secret_in_an_unknown_option_is_not_repeated(score: Score) -> None:
    assert "hunter2" not in score("list", "--token=hunter2").sentence()


def test_bad_token_is_not_repeated(score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCESSTOKEN", "two words")
    ran = score("info")
    assert ran.code == 2
    assert "words" not in ran.sentence().replace("environment", "")


def test_password_in_the_server_address_is_not_repeated(score: Score) -> None:
    assert "hunter2" not in score("list", "--url", "https://me:hunter2@score.example.org").sentence()
