"""Song and our server, each the caller of the other (protocol sections 10.1, 10.4): a Song over HTTP, and our registry as Song."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from score_core.auth.base import Principal
from score_core.checksum import md5_hex
from score_core.errors import AuthenticationError
from score_core.metadata.registering import new_file, register
from score_core.metadata.registry import Registry
from score_core.metadata.song import SongClient
from score_core.repository.direct import DirectRepository
from score_core.server.serving import serving
from score_core.server.settings import load_server_settings
from score_core.settings import load
from tests.server.conftest import Site, StartSite, client_of
from tests.server.java_client import JavaClient

STUDY, ANALYSIS = "TEST-CA", "a25ae8b4-097d-11ea-b4b9-41f0d4c18919"
ID = "3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11"
SCOPES = {
    "songs-own": {"score.READ", "score.WRITE"},
    "study": {"PROGRAMDATA-TEST-CA.READ", "PROGRAMDATA-TEST-CA.WRITE"},
    "reader": {"score.READ"},
    "writer": {"score.WRITE"},
    "neighbour": {"PROGRAMDATA-TEST-FR.READ", "PROGRAMDATA-TEST-FR.WRITE"},
}


class Tokens:
    """An authenticator whose tokens are the names above."""

    def authenticate(self, token: str) -> Principal:
        if token not in SCOPES:
            raise AuthenticationError("bad")
        return Principal(token, frozenset(SCOPES[token]))

    def close(self) -> None:
        pass


class Mismatch(Exception):
    """Song's 409: what is stored is not what is registered."""


class Retried(Exception):
    """What Song tries again for minutes: a 5xx, or no answer."""


@dataclass
class Song:
    """A Song with one analysis of one file, which does one thing at a time, publishing included: who asks back waits for ever.

    `asked` has what was asked of it, `tokens` the Authorization headers that came along, `asks` what it asked of Score.
    """

    token: str = "songs-own"
    score_url: str = ""
    state: str = "UNPUBLISHED"
    size: int = 0
    md5: str | None = None
    access: str = "controlled"
    asked: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    asks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        song = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                song.asked.append(self.path)
                song.tokens.append(self.headers["Authorization"])
                self._send(song.answer(self.path))

            def do_PUT(self) -> None:
                try:
                    song.publish(ignore_undefined_md5="ignoreUndefinedMd5=true" in self.path)
                    self._send({"message": "published"})
                except Mismatch as error:
                    self._send({"message": str(error)}, 409)

            def _send(self, body: Any, status: int = 200) -> None:
                data = json.dumps(body or {"message": "no"}).encode()
                self.send_response(status if body else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, path: str) -> Any:
        entity = {"id": ID, "gnosId": ANALYSIS, "fileName": "x.bam", "projectCode": STUDY, "access": self.access}
        file = {
            "objectId": ID,
            "studyId": STUDY,
            "analysisId": ANALYSIS,
            "fileName": "x.bam",
            "fileSize": self.size,
            "fileMd5sum": self.md5,
        }
        analysis = {"analysisId": ANALYSIS, "studyId": STUDY, "analysisState": self.state, "analysisType": {"name": "x", "version": 1}}
        known = {f"/entities/{ID}": entity, f"/studies/{STUDY}/analysis/{ANALYSIS}": {**analysis, "files": [file]}}
        return known.get(path)

    def publish(self, *, ignore_undefined_md5: bool = False) -> None:
        """Section 10.4. Raises `Mismatch`, or `Retried` where Song would ask again and again."""
        said = self._ask(f"/upload/{ID}").text
        if said.lower() != "true":
            raise Mismatch(f"exists: {said}")
        body = self._ask(f"/download/{ID}?offset=0&length=-1&exclude-urls=true").json()
        check_schema(body)
        if body["objectSize"] != self.size:
            raise Mismatch("size")
        if body["objectMd5"] is None and not ignore_undefined_md5:
            raise Mismatch("undefined MD5")
        if body["objectMd5"] not in {None, self.md5}:
            raise Mismatch("MD5")
        self.state = "PUBLISHED"

    def _ask(self, path: str) -> httpx.Response:
        self.asks.append(path.partition("?")[0])
        try:
            response = httpx.get(self.score_url + path, headers={"Authorization": f"Bearer {self.token}"}, timeout=3)
        except httpx.TransportError as error:
            raise Retried(type(error).__name__) from None
        if response.status_code >= 500:
            raise Retried(str(response.status_code))
        if response.status_code >= 400:
            raise Mismatch(str(response.status_code))
        return response

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def check_schema(body: Any) -> None:
    """The three fields that Song's schema names."""
    assert re.fullmatch(r"[a-zA-Z0-9_-]{2,36}", body["objectId"])
    assert isinstance(body["objectSize"], int)
    assert body["objectSize"] > 0
    assert body["objectMd5"] is None or re.fullmatch(r"[a-fA-F0-9]{32}", body["objectMd5"])


@dataclass
class World:
    song: Song
    site: Site
    path: Path

    def java(self, token: str = "study") -> JavaClient:
        return JavaClient(self.site.url, self.song.url, token)

    def upload(self, token: str = "study") -> None:
        assert self.java(token).upload(self.path, ID, md5_hex(self.path.read_bytes()), verify_connection=False).code == 0

    def get(self, path: str, token: str | None = "songs-own") -> httpx.Response:
        return httpx.get(self.site.url + path, headers={} if token is None else {"Authorization": f"Bearer {token}"})


@pytest.fixture
def world(start_site: StartSite, folder_repository: DirectRepository, tmp_path: Path) -> Iterator[World]:
    """A Song over HTTP, which our server asks and which asks our server."""
    path = tmp_path / "x.bam"
    path.write_bytes(Random(3).randbytes(150_000))
    with ExitStack() as stack:
        song = Song(size=path.stat().st_size, md5=md5_hex(path.read_bytes()))
        stack.callback(song.close)
        client = client_of(song.url, None)
        stack.callback(client.close)
        site = start_site(folder_repository, metadata=SongClient(client), authenticator=Tokens())
        song.score_url = site.url
        yield World(song, site, path)


# Song asks Score


def test_publish_never_calls_back_into_song(world: World) -> None:
    """While UNPUBLISHED, with a system token, two requests and no question back: that was once a deadlock."""
    world.upload()
    world.song.asked.clear()
    assert httpx.put(f"{world.song.url}/publish", timeout=20).status_code == 200
    assert (world.song.state, world.song.asked) == ("PUBLISHED", [])
    assert world.song.asks == [f"/upload/{ID}", f"/download/{ID}"]


def test_exists_is_bare_text(world: World) -> None:
    assert world.get(f"/upload/{ID}").content == b"false"
    with pytest.raises(Mismatch, match="exists: false"):
        world.song.publish()
    world.upload()
    assert world.get(f"/upload/{ID}").content == b"true"


def test_description_without_urls(world: World) -> None:
    world.upload()
    body = world.get(f"/download/{ID}?offset=0&length=-1&exclude-urls=true").json()
    check_schema(body)
    assert (body["objectId"], body["objectSize"], body["objectMd5"]) == (ID, world.song.size, world.song.md5)
    assert {part["url"] for part in body["parts"]} == {None}
    assert world.get(f"/download/{ID}?offset=0&length=-1").status_code == 400


@pytest.mark.parametrize(("what", "value"), [("size", 149_999), ("md5", "0" * 32)])
def test_other_file_than_registered_is_not_published(world: World, what: str, value: Any) -> None:
    world.upload()
    setattr(world.song, what, value)
    with pytest.raises(Mismatch, match=what.upper() if what == "md5" else what):
        world.song.publish()


def test_object_without_md5_is_published_only_on_demand(world: World, folder_repository: DirectRepository) -> None:
    """An old `.meta` (5.2): Song refuses it, unless it was told to ignore that."""
    world.upload()
    key = f"data/{ID}.meta"
    store = folder_repository._buckets.base.state
    old = json.loads(store.read(key))
    del old["objectMd5"]
    store.write(key, json.dumps({**old, "relocated": False}).encode())
    with pytest.raises(Mismatch, match="undefined"):
        world.song.publish()
    world.song.publish(ignore_undefined_md5=True)
    assert world.song.state == "PUBLISHED"


@pytest.mark.parametrize(("token", "status"), [("bad", "401"), ("neighbour", "403"), ("reader", "403")])
def test_song_with_the_wrong_token_is_refused_and_does_not_repeat_it(world: World, token: str, status: str) -> None:
    world.song.token = token
    with pytest.raises(Mismatch, match=status):
        world.song.publish()


def test_song_that_may_not_download_is_refused(world: World) -> None:
    world.upload()
    world.song.token = "writer"
    with pytest.raises(Mismatch, match="403"):
        world.song.publish()


def test_nothing_that_song_would_repeat(world: World, folder_repository: DirectRepository) -> None:
    """An object whose bytes are gone is refused for good, where Java's 500 keeps Song asking for minutes."""
    world.upload()
    folder_repository._buckets.base.data.delete(f"data/{ID}")
    with pytest.raises(Mismatch, match="404"):
        world.song.publish()


# What the state opens and closes


def test_states_open_and_close(world: World) -> None:
    world.upload()
    download, upload = f"/download/{ID}?offset=0&length=-1", f"/upload/{ID}/uploads?fileSize={world.song.size}&overwrite=true"

    def statuses() -> tuple[int, int]:
        begun = httpx.post(world.site.url + upload, headers={"Authorization": "Bearer study"})
        return world.get(download, "study").status_code, begun.status_code

    assert statuses() == (400, 200)
    world.song.publish()
    assert statuses() == (200, 400)
    world.song.state = "SUPPRESSED"
    assert statuses() == (400, 400)
    world.song.state = "UNPUBLISHED"
    assert statuses() == (400, 200)


def test_whole_life(world: World, tmp_path: Path) -> None:
    world.upload()
    world.song.publish()
    java = world.java()
    assert java.download(tmp_path / "out", ID, index=False, verify_connection=False).code == 0
    assert (tmp_path / "out" / "x.bam").read_bytes() == world.path.read_bytes()


def test_open_access_needs_no_token(world: World) -> None:
    world.upload()
    world.song.publish()
    path = f"/download/{ID}?offset=0&length=-1"
    assert world.get(path, None).status_code == 403
    world.song.access = "OPEN"
    assert world.get(path, None).status_code == 200
    assert world.get(path, "bad").status_code == 401  # a bad token is refused everywhere (3.1)
    assert world.get(f"/upload/{ID}", None).status_code == 400


# Score asks Song


def test_no_callers_token_reaches_song(world: World) -> None:
    world.upload("study")
    world.song.publish()
    for token in (*SCOPES, "bad", None):
        world.get(f"/download/{ID}?offset=0&length=-1", token)
        world.get(f"/upload/{ID}", token)
    assert len(world.song.tokens) > 10
    assert set(world.song.tokens) == {None}


@pytest.mark.parametrize("own", [None, "the-servers-own", "embedded"])
def test_song_gets_the_servers_own_token_if_it_has_one(
    world: World, own: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not the one that opens the server, which its operator may have exported as a client, too."""
    for name in ("ACCESSTOKEN", "SCORE_TOKEN", "SCORE_TOKEN_FILE", "STORAGE_URL", "SCORE_STORE"):
        monkeypatch.delenv(name, raising=False)
    given = {"data_dir": str(tmp_path / "home"), "metadata_url": world.song.url}
    if own == "embedded":
        given["token_file"] = str(tmp_path / "home" / "token")
    elif own is not None:
        given["token"] = own
    with serving(load(given), load_server_settings(port=0)) as running:
        assert running.token_file is not None
        token = running.token_file.read_text().strip()
        url = f"{running.url}/upload/{ID}/uploads?fileSize={world.song.size}"
        assert httpx.post(url, headers={"Authorization": f"Bearer {token}"}).status_code == 200
        assert httpx.get(f"{running.url}/download/{ID}?offset=0&length=-1").status_code == 403
    assert set(world.song.tokens) == {"Bearer the-servers-own" if own == "the-servers-own" else None}


def test_questions_of_a_study_token(world: World) -> None:
    """What Java needs four answers for, three entities and an analysis, takes two."""
    world.upload()
    world.song.publish()
    world.song.asked.clear()
    assert world.get(f"/download/{ID}?offset=0&length=-1", "study").status_code == 200
    assert world.song.asked == [f"/entities/{ID}", f"/studies/{STUDY}/analysis/{ANALYSIS}"]


# Our registry as Song


def test_registry_is_song_and_score_in_one(site: Site, tmp_path: Path) -> None:
    """`PUT .../publish` on our server: not before the file is stored; then it opens downloads and closes uploads."""
    registry = site.parts.metadata
    assert isinstance(registry, Registry)
    path = tmp_path / "x.bam"
    path.write_bytes(Random(4).randbytes(100_000))
    analysis = register(registry, STUDY, [new_file(path)])
    object_id, where = analysis.files[0].object_id, f"/studies/{STUDY}/analysis"
    publish, token = f"{where}/publish/{analysis.analysis_id}", site.http.headers["Authorization"].removeprefix("Bearer ")
    refused = site.http.put(publish)
    assert (refused.status_code, refused.json()["errorId"]) == (409, "mismatching.storage.objects")
    assert site.anonymous("PUT", publish).status_code == 401

    java = JavaClient(site.url, site.url, token)
    assert java.upload(path, object_id, md5_hex(path.read_bytes()), verify_connection=False).code == 0
    body = site.http.get(f"/download/{object_id}?offset=0&length=-1&exclude-urls=true").json()
    check_schema(body)
    assert java.download(tmp_path / "out", object_id, verify_connection=False).code == 1
    assert site.http.put(publish).status_code == 200
    assert site.http.get(f"{where}/{analysis.analysis_id}").json()["analysisState"] == "PUBLISHED"
    assert java.download(tmp_path / "out", object_id, verify_connection=False).code == 0
    assert java.upload(path, object_id, md5_hex(path.read_bytes()), force=True, verify_connection=False).code == 1
    assert (tmp_path / "out" / "x.bam").read_bytes() == path.read_bytes()
