"""The real program against the real server, each in processes of its own: `score ...` against `score serve`, bytes past a counting proxy.

Every output of every run is searched for tokens and signatures, and so is the server's log.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from score_core.checksum import md5_hex
from score_core.metadata.registering import new_file, register, upload_manifest_text
from score_core.metadata.song import SongClient
from score_core.testing.faults import Call, FaultProxy, is_get, is_put
from score_core.testing.servers import free_ports
from tests.server.conftest import client_of
from tests.server.java_client import JavaClient

pytestmark = [pytest.mark.slow, pytest.mark.kill]

Words = tuple[str | Path, ...]

ROOT: Final = Path(__file__).parents[2]
STUDY: Final = "TEST-CA"
PART_BYTES: Final = 64 << 10
PARTS: Final = 24
WORKERS: Final = 4
PROGRAM: Final = [sys.executable, "-m", "score_core.cli"]
MINUTE: Final = 60


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        return dict(json.loads(self.out))

    def sentence(self) -> str:
        """The one line on stderr of a failed run."""
        assert "Traceback" not in self.err
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line


@dataclass
class Registered:
    """Files that are registered as one analysis, with the manifest to upload them by."""

    folder: Path
    analysis_id: str
    ids: dict[str, str]

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.txt"

    def of_analysis(self) -> tuple[str, ...]:
        return ("--study-id", STUDY, "--analysis-id", self.analysis_id)

    def data(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


@dataclass
class World:
    """A server with its data folder, the proxy that its signed URLs lead to, and clients."""

    folder: Path
    proxy: FaultProxy
    ports: tuple[int, int]
    environment: dict[str, str]
    secrets: set[str] = field(default_factory=set)
    server: subprocess.Popen[str] | None = None
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def token_file(self) -> Path:
        return self.folder / "server" / "token"

    @property
    def token(self) -> str:
        return self.token_file.read_text().strip()

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def serve(self, **environment: str) -> None:
        """Starts the server; the one before must be gone."""
        own = {
            "SCORE_DATA_DIR": str(self.folder / "server"),
            "SCORE_SERVE_URL": self.proxy.url,
            "SCORE_PART_SIZE_BYTES": str(PART_BYTES),
            "SCORE_SERVER_REMEMBERS_S": "0",
        }
        command = [*PROGRAM, "serve", "--debug", "--port", str(self.ports[0]), "--data-port", str(self.ports[1])]
        with self.log.open("a") as log:
            self.server = subprocess.Popen(
                command, env={**self.environment, **own, **environment}, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.server.stdout is not None
        assert self.server.stdout.readline().strip() == self.url, self.log.read_text()
        if self.token_file.exists():
            self.secrets.add(self.token)

    def kill_server(self) -> None:
        assert self.server is not None
        self.server.kill()
        self.server.wait()
        assert self.server.stdout is not None
        self.server.stdout.close()

    def start(self, *words: str | Path, token: str | None = "", **environment: str) -> subprocess.Popen[str]:
        """The program with these words; `token` None is anonymous, a text one of its own, empty the server's file."""
        own = {"SCORE_URL": self.url, "SCORE_DATA_DIR": str(self.folder / "client"), "SCORE_WORKERS": str(WORKERS)}
        if token:
            own["ACCESSTOKEN"] = token
        elif token is not None:
            own["SCORE_TOKEN_FILE"] = str(self.token_file)
        return subprocess.Popen(
            [*PROGRAM, *map(str, words)],
            env={**self.environment, **own, **environment},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def score(self, *words: str | Path, token: str | None = "", **environment: str) -> Ran:
        return self.ended(self.start(*words, token=token, **environment))

    def ended(self, process: subprocess.Popen[str]) -> Ran:
        out, err = process.communicate(timeout=MINUTE)
        assert isinstance(process.args, list)
        self.assert_no_secret(err if process.args[len(PROGRAM)] == "url" else out + err)  # `url` is asked for one
        return Ran(process.returncode, out, err)

    def assert_no_secret(self, text: str) -> None:
        assert not [secret for secret in self.secrets if secret in text]
        assert not [word for word in ("Signature=", "Bearer ey") if word in text]

    def registered(self, *sizes: float, access: str = "controlled", token: str | None = None) -> Registered:
        """New files of so many parts, of a new analysis. Quickly: not by the program, which `test_whole_story` tries out."""
        number = next(self.numbers)
        folder = self.folder / f"files-{number}"
        folder.mkdir()
        paths = [folder / name for name, _ in zip(("a.bam", "a.bam.bai", "b.vcf.gz"), sizes, strict=False)]
        for seed, (path, size) in enumerate(zip(paths, sizes, strict=True)):
            path.write_bytes(Random(1000 * number + seed).randbytes(int(size * PART_BYTES)))
        client = client_of(self.url, token or self.token)
        analysis = register(SongClient(client), STUDY, [new_file(path, access=access) for path in paths])
        client.close()
        (folder / "manifest.txt").write_text(upload_manifest_text(analysis, folder))
        return Registered(folder, analysis.analysis_id, {file.file_name: file.object_id for file in analysis.files})

    def published(self, *sizes: float, access: str = "controlled") -> Registered:
        """The same, uploaded and published; the proxy counts from nothing."""
        mine = self.registered(*sizes, access=access)
        for name, object_id in mine.ids.items():
            java = JavaClient(self.url, None, self.token)
            assert java.upload(mine.folder / name, object_id, md5_hex(mine.data(name)), verify_connection=False).code == 0
        self.publish(mine)
        self.proxy.forget()
        return mine

    def publish(self, mine: Registered) -> None:
        client = client_of(self.url, self.token)
        SongClient(client).publish(STUDY, mine.analysis_id)
        client.close()

    def moved(self, direction: Callable[..., bool]) -> Counter[int]:
        """How often each part was moved whole, by its number."""
        moves = [seen for seen in self.proxy.moves() if direction(seen) and seen.size != 1]  # one byte tries the connection
        whole = [seen for seen in moves if max(seen.sent, seen.received) >= (seen.size or 1)]
        return Counter(seen.part or seen.offset // PART_BYTES + 1 for seen in whole if seen.status in {200, 206})

    def slowly(self) -> None:
        """From now on each part takes a little."""
        self.proxy.inject(Call(lambda: time.sleep(0.02)))

    def close(self) -> None:
        self.proxy.heal()
        if self.server is not None and self.server.poll() is None:
            self.server.terminate()
            self.server.wait(10)
            assert self.server.stdout is not None
            self.server.stdout.close()
        self.assert_no_secret(self.log.read_text())


def clean_environment() -> dict[str, str]:
    ours = ("SCORE_", "STORAGE_", "METADATA_", "AWS_", "ACCESSTOKEN", "CLIENT_", "PREFECT")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
        "SCORE_CONFIG": os.devnull,
        "PYTHONPATH": str(ROOT),
    }


def world_in(folder: Path, stack: ExitStack, **environment: str) -> World:
    ports = free_ports(2)
    proxy = stack.enter_context(FaultProxy(f"http://127.0.0.1:{ports[1]}"))
    world = World(folder, proxy, (ports[0], ports[1]), {**clean_environment(), **environment})
    stack.callback(world.close)
    return world


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        world = world_in(tmp_path_factory.mktemp("end-to-end"), stack)
        world.serve()
        yield world


@pytest.fixture
def world(shared: World) -> World:
    shared.proxy.heal()
    shared.proxy.forget()
    return shared


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# From registering to verifying


def test_whole_story(world: World, tmp_path: Path) -> None:
    mine = world.registered(2.5, 0.1, 1)
    paths = [mine.folder / name for name in mine.ids]
    registered = world.score("register", *paths, "--study", STUDY, "--json", "--output", mine.manifest)
    assert {file["file_name"]: file["object_id"] for file in registered.document["files"]} == mine.ids  # the same files again
    up = world.score("upload", "--manifest", mine.manifest, "--json", "--debug")
    assert (up.code, {file["outcome"] for file in up.document["files"]}) == (0, {"uploaded"})

    early = world.score("download", "--object-id", mine.ids["b.vcf.gz"], "--output-dir", tmp_path / "early")
    assert early.code == 1
    assert f"Object {mine.ids['b.vcf.gz']} cannot be downloaded" in early.sentence()
    assert "is not PUBLISHED" in early.sentence()
    assert not (tmp_path / "early" / "b.vcf.gz").exists()

    assert world.score("publish", *mine.of_analysis()).code == 0
    for layout, prefix in (("filename", ""), ("bundle", f"{mine.analysis_id}/")):
        out = tmp_path / layout
        done = world.score("download", *mine.of_analysis(), "--output-dir", out, "--output-layout", layout, "--debug")
        assert done.code == 0, done.err
        assert names_in(out) == [prefix + name for name in sorted(mine.ids)]
        assert [(out / (prefix + name)).read_bytes() for name in mine.ids] == [mine.data(name) for name in mine.ids]

    by_id = world.score("download", "--object-id", mine.ids["a.bam"], "--output-dir", tmp_path / "id", "--output-layout", "id")
    assert (by_id.code, names_in(tmp_path / "id")) == (0, sorted([mine.ids["a.bam"], mine.ids["a.bam.bai"]]))

    verified = world.score("verify", "--manifest", mine.manifest, "--json")
    assert verified.code == 0
    url = world.score("url", "--object-id", mine.ids["b.vcf.gz"])
    assert httpx.get(url.out.strip()).content == mine.data("b.vcf.gz")
    listed = world.score("list")
    assert set(mine.ids.values()) <= {line.split("\t")[0] for line in listed.out.splitlines()}

    again = world.score("upload", "--manifest", mine.manifest, "--json")
    assert (again.code, {file["outcome"] for file in again.document["files"]}) == (0, {"already there"})
    assert world.score("unpublish", *mine.of_analysis()).code == 0
    assert world.score("download", *mine.of_analysis(), "--output-dir", tmp_path / "late").code == 1


def test_published_object_is_not_replaced(world: World) -> None:
    mine = world.published(1)
    path = mine.folder / "a.bam"
    for data in (path.read_bytes(), bytes(PART_BYTES)):
        path.write_bytes(data)
        ran = world.score("upload", "--file", path, "--object-id", mine.ids["a.bam"], "--md5", "compute", "--force")
        assert (ran.code, "is not UNPUBLISHED" in ran.sentence(), world.moved(is_put)) == (1, True, {})


def test_abort(world: World) -> None:
    mine = world.registered(PARTS)
    kill_at_half(world, world.start("upload", "--manifest", mine.manifest))
    object_id = mine.ids["a.bam"]
    assert object_id in world.score("list", "--uploads").out
    assert world.score("abort", "--object-id", object_id).code == 0
    assert object_id not in world.score("list", "--uploads").out
    assert world.score("abort", "--object-id", object_id).code == 5


# Killed, restarted, rotated, expired


def kill_at_half(world: World, process: subprocess.Popen[str]) -> None:
    world.slowly()
    world.proxy.at_byte(PARTS * PART_BYTES // 2, process.kill)
    assert world.ended(process).code == -signal.SIGKILL
    world.proxy.heal()
    assert world.proxy.wait_until_left(10)


def assert_few_twice(moved: Counter[int]) -> None:
    assert set(moved) == set(range(1, PARTS + 1))
    assert sum(moved.values()) <= PARTS + WORKERS


def test_client_is_killed_while_uploading(world: World) -> None:
    mine = world.registered(PARTS)
    kill_at_half(world, world.start("upload", "--manifest", mine.manifest))
    first = sum(world.moved(is_put).values())
    assert 0 < first < PARTS
    ran = world.score("upload", "--manifest", mine.manifest, "--json")
    assert ran.code == 0
    assert ran.document["files"][0]["parts_kept"] >= first - WORKERS
    assert_few_twice(world.moved(is_put))
    world.publish(mine)


def test_client_is_killed_while_downloading(world: World, tmp_path: Path) -> None:
    mine = world.published(PARTS)
    words: Words = ("download", *mine.of_analysis(), "--output-dir", tmp_path / "out")
    kill_at_half(world, world.start(*words))
    first = sum(world.moved(is_get).values())
    assert 0 < first < PARTS
    ran = world.score(*words, "--json")
    assert (ran.code, names_in(tmp_path / "out")) == (0, ["a.bam"])
    assert (tmp_path / "out" / "a.bam").read_bytes() == mine.data("a.bam")
    assert_few_twice(world.moved(is_get))


@pytest.mark.parametrize(("direction", "rotates"), [("upload", False), ("upload", True), ("download", False)])
def test_server_is_killed_and_comes_back(world: World, tmp_path: Path, direction: str, rotates: bool) -> None:
    """In the middle of a transfer, perhaps with another token, which the client finds where it found the old one."""
    mine = world.registered(PARTS) if direction == "upload" else world.published(PARTS)
    words: Words = ("upload", "--manifest", mine.manifest)
    if direction == "download":
        words = ("download", *mine.of_analysis(), "--output-dir", "out")
    killed: list[float] = []
    logged = len(world.log.read_text())

    def kill() -> None:
        world.kill_server()
        killed.append(time.monotonic())

    world.slowly()
    world.proxy.at_byte(PARTS * PART_BYTES // 2, kill)
    process = world.start(*words, "--json")
    while not killed and process.poll() is None:
        time.sleep(0.01)
    if rotates:
        world.token_file.write_text("another-token-than-before-0123456789\n")
    world.serve()
    ran = world.ended(process)
    assert (ran.code, len(killed)) == (0, 1), ran.err
    assert set(world.moved(is_put if direction == "upload" else is_get)) == set(range(1, PARTS + 1))
    if direction == "download":
        assert (world.folder / "out" / "a.bam").read_bytes() == mine.data("a.bam")
        (world.folder / "out" / "a.bam").unlink()
    else:
        world.publish(mine)
    assert (" 401 " in world.log.read_text()[logged:]) is rotates


def test_urls_expire_in_the_middle(tmp_path: Path) -> None:
    """Both clients are stopped for longer than their URLs live, and go on with new ones."""
    with ExitStack() as stack:
        world = world_in(tmp_path, stack)
        world.serve(SCORE_SERVER_DOWNLOAD_URL_LIFETIME_S="10", SCORE_SERVER_UPLOAD_URL_LIFETIME_S="10")
        there, mine = world.published(PARTS), world.registered(PARTS)
        world.slowly()
        processes = [
            world.start("download", *there.of_analysis(), "--output-dir", tmp_path / "out", "--json"),
            world.start("upload", "--manifest", mine.manifest, "--json"),
        ]
        for process, direction in zip(processes, (is_get, is_put), strict=True):
            deadline = time.monotonic() + 30
            while sum(world.moved(direction).values()) < WORKERS and time.monotonic() < deadline:
                time.sleep(0.005)
            process.send_signal(signal.SIGSTOP)
        half = {direction: sum(world.moved(direction).values()) for direction in (is_get, is_put)}
        assert all(WORKERS <= count < PARTS for count in half.values()), half
        time.sleep(11)
        for process in processes:
            process.send_signal(signal.SIGCONT)
        for process, direction in zip(processes, (is_get, is_put), strict=True):
            ran = world.ended(process)
            assert ran.code == 0, ran.err
            assert_few_twice(world.moved(direction))
        assert (tmp_path / "out" / "a.bam").read_bytes() == there.data("a.bam")
        world.publish(mine)


# Who may


def test_open_access_needs_no_token(world: World, tmp_path: Path) -> None:
    mine = world.published(1, 0.1, access="open")
    done = world.score("download", *mine.of_analysis(), "--output-dir", tmp_path / "out", token=None)
    assert (done.code, names_in(tmp_path / "out")) == (0, ["a.bam", "a.bam.bai"])
    closed = world.published(1)
    refused = world.score("download", *closed.of_analysis(), "--output-dir", tmp_path / "other", token=None)
    assert (refused.code, names_in(tmp_path / "other")) == (4, [])
    refused.sentence()
    upload = world.score("upload", "--manifest", mine.manifest, token=None)
    assert (upload.code, "ACCESSTOKEN" in upload.err) == (3, True)


def test_wrong_token(world: World, tmp_path: Path) -> None:
    mine = world.published(1, access="open")
    download: Words = ("download", *mine.of_analysis(), "--output-dir", tmp_path / "out")
    commands: list[Words] = [download, ("upload", "--manifest", mine.manifest), ("list",)]
    for words in commands:
        ran = world.score(*words, token="not-the-token-0123456789")
        assert (ran.code, "not-the-token" in ran.err) == (3, False)
        ran.sentence()


@dataclass
class Issuer:
    """Who signs JWTs."""

    folder: Path

    def __post_init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = self._key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.public.write_bytes(public)

    @property
    def public(self) -> Path:
        return self.folder / "key.pem"

    def token(self, *scopes: str, lives_s: float = 300) -> str:
        claims = {"sub": "somebody", "exp": int(time.time() + lives_s), "context": {"scope": list(scopes)}}
        return jwt.encode(claims, self._key, "RS256")


def test_users_of_studies(tmp_path: Path) -> None:
    """JWTs: each study's users reach their own files only, and a token that has expired reaches none."""
    with ExitStack() as stack:
        world, issuer = world_in(tmp_path, stack), Issuer(tmp_path)
        world.serve(SCORE_SERVER_AUTH_MODE="jwt", SCORE_SERVER_AUTH_PUBLIC_KEY=str(issuer.public))
        own = issuer.token("PROGRAMDATA-TEST-CA.READ", "PROGRAMDATA-TEST-CA.WRITE")
        other = issuer.token("PROGRAMDATA-TEST-FR.READ", "PROGRAMDATA-TEST-FR.WRITE")
        reader, expired = issuer.token("PROGRAMDATA-TEST-CA.READ"), issuer.token("PROGRAMDATA-TEST-CA.READ", lives_s=-120)
        world.secrets |= {own, other, reader, expired}
        mine = world.registered(2.5, token=own)
        download: Words = ("download", *mine.of_analysis(), "--output-dir", tmp_path / "out")
        upload: Words = ("upload", "--manifest", mine.manifest)
        publish: Words = ("publish", *mine.of_analysis())

        refused = [world.score(*words, "--debug", token=other) for words in (upload, publish)]
        refused += [world.score(*upload, token=reader)]
        assert [ran.code for ran in refused] == [4, 4, 4]
        assert [world.score(*words, token=own).code for words in (upload, publish)] == [0, 0]
        for token, code in ((other, 4), (expired, 3), (None, 4)):
            ran = world.score(*download, "--debug", token=token)
            assert (ran.code, names_in(tmp_path / "out")) == (code, [])
        assert world.score(*download, token=reader).code == 0
        assert (tmp_path / "out" / "a.bam").read_bytes() == mine.data("a.bam")
