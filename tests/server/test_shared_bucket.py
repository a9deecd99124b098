"""One bucket, several servers: a Java server's and ours, two of ours at once, and ours killed at any step and started anew.

`JavaOnBucket` is a Java server written from sections 3, 5 and 6 of the protocol alone, over the same store.

Run as a program (`python -m tests.server.test_shared_bucket`) this file starts servers that die at a given step: see `Zygote`.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from score_core.auth.embedded import EmbeddedToken
from score_core.checksum import md5_hex
from score_core.errors import ObjectNotFound
from score_core.model import ByteRange, Part, TransferReport
from score_core.repository.buckets import Buckets
from score_core.repository.direct import DirectRepository
from score_core.server.app import ServerParts, create_app
from score_core.server.bytes import ByteServer
from score_core.server.serving import RestServer
from score_core.stores.base import ListedPart, MultipartStore
from score_core.stores.local import LocalStore
from score_core.testing.servers import S3Endpoint
from score_core.transfer.engine import Engine
from score_core.transfer.http import HttpTransport
from score_core.transfer.policy import RetryPolicy
from tests.server.conftest import PART_BYTES, TOKEN, Stage, remote
from tests.server.java_client import Call, Ended, Failed, JavaClient, Killed

ROOT: Final = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("shared-bucket")  # its servers take 5 s to start
Json = dict[str, Any]
Run = Callable[[str], Ended | TransferReport]


# A Java server


class Failure(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


@dataclass
class JavaOnBucket:
    """Sections 3.5 to 3.12 over a store. `named` opens partitions by their number (5.4); `digits` and `pool` are `bucket.size.*`."""

    base: MultipartStore
    part_bytes: int = PART_BYTES
    pool: int = 0
    digits: int = 2
    named: Callable[[int], MultipartStore] | None = None

    def home(self, object_id: str) -> MultipartStore:
        return self.base if self.named is None else self.named(int(object_id[: self.digits], 16) % self.pool)

    def app(self) -> Starlette:
        routes: list[tuple[str, str, Callable[[str, Json], Any]]] = [
            ("GET", "/download/{id}", self.download),
            ("GET", "/upload/{id}", lambda object_id, _: self.exists(object_id)),
            ("GET", "/upload/{id}/status", self.status),
            ("POST", "/upload/{id}/recovery", lambda object_id, query: self.status(object_id, query) and None),
            ("POST", "/upload/{id}/uploads", self.initiate),
            ("POST", "/upload/{id}/parts", self.record),
            ("DELETE", "/upload/{id}/parts", self.unrecord),
            ("POST", "/upload/{id}", self.finalise),
            ("DELETE", "/upload/{id}", self.cancel),
        ]
        texts = [
            Route("/profile", lambda _: PlainTextResponse("s3")),
            Route("/download/ping", lambda _: PlainTextResponse(self.base.presign_gets("data/heliograph", [None], lifetime_s=300)[0].url)),
        ]
        return Starlette(routes=[*texts, *(Route(path, self._handler(act), methods=[method]) for method, path, act in routes)])

    def _handler(self, act: Callable[[str, Json], Any]) -> Callable[[Request], Response]:
        def handle(request: Request) -> Response:
            try:
                body = act(request.path_params["id"], dict(request.query_params))
            except Failure as failure:
                return JSONResponse({"status": failure.status, "error": "...", "path": request.url.path}, failure.status)
            return Response() if body is None else JSONResponse(body)

        return handle

    def exists(self, object_id: str) -> bool:
        return any(self._get(place, f"data/{object_id}.meta") for place in (self.home(object_id), self.base))

    def _get(self, store: MultipartStore, key: str) -> Json | None:
        try:
            return dict(json.loads(store.read(key)))
        except ObjectNotFound:
            return None

    def _find(self, object_id: str) -> tuple[str, Json]:
        """The upload in progress: the smallest id (5.3)."""
        for stored in self.home(object_id).list_objects(f"upload/{object_id}_"):
            if stored.key.endswith("/.meta"):
                spec = self._get(self.home(object_id), stored.key)
                assert spec is not None
                return spec["uploadId"], spec
        raise Failure(404)

    def _records(self, object_id: str, upload_id: str) -> list[Json]:
        """In the order of their keys. They are read strictly: another field is an error."""
        prefix = f"upload/{object_id}_{upload_id}/part-"
        records = []
        for stored in self.home(object_id).list_objects(prefix):
            number, _, text = stored.key.removeprefix(prefix).partition("|")
            record = json.loads(text)
            assert list(record) == ["partNumber", "md5", "etag"]
            assert text == json.dumps(record, separators=(",", ":"))
            assert number == f"{record['partNumber']:08x}"
            assert stored.size == 0
            records.append(record)
        return records

    def status(self, object_id: str, query: Json) -> Json:
        upload_id, spec = self._find(object_id)
        if spec["objectSize"] != int(query["fileSize"]):
            raise Failure(400)
        digests = {record["partNumber"]: record["md5"] for record in self._records(object_id, upload_id)}
        marked = [{**part, **({"sourceMd5": digests[n]} if (n := part["partNumber"]) in digests else {})} for part in spec["parts"]]
        return {"objectId": object_id, "uploadId": upload_id, "parts": marked}

    def initiate(self, object_id: str, query: Json) -> Json:
        if query.get("overwrite") != "true" and self.exists(object_id):
            raise Failure(500)
        with suppress(Failure):
            self._drop_state(object_id, self._find(object_id)[0])
        store, size = self.home(object_id), int(query["fileSize"])
        upload_id = store.create_multipart(f"data/{object_id}")
        parts = [
            Part(number, start, min(self.part_bytes, size - start)) for number, start in enumerate(range(0, size, self.part_bytes), start=1)
        ]
        signed = store.presign_parts(f"data/{object_id}", upload_id, parts, lifetime_s=6 * 86_400)
        spec = {
            "objectKey": f"data/{object_id}",
            "objectId": object_id,
            "uploadId": upload_id,
            "parts": [_row(part, url.url) for part, url in zip(parts, signed, strict=True)],
            "objectSize": size,
            "objectMd5": query.get("md5"),
        }
        store.write(f"upload/{object_id}_{upload_id}/.meta", json.dumps(spec).encode())
        return spec

    def record(self, object_id: str, query: Json) -> None:
        number = int(query["partNumber"])
        try:
            listed = {part.number: part.etag for part in self.home(object_id).list_parts(f"data/{object_id}", query["uploadId"])}
        except ObjectNotFound:
            raise Failure(503) from None
        if listed.get(number) != query["etag"]:
            raise Failure(400)
        name = json.dumps({"partNumber": number, "md5": query["md5"], "etag": query["etag"]}, separators=(",", ":"))
        self.home(object_id).write(f"upload/{object_id}_{query['uploadId']}/part-{number:08x}|{name}", b"")

    def unrecord(self, object_id: str, query: Json) -> None:
        prefix = f"upload/{object_id}_{query['uploadId']}/part-{int(query['partNumber']):08x}"
        for stored in list(self.home(object_id).list_objects(prefix)):
            self.home(object_id).delete(stored.key)

    def finalise(self, object_id: str, query: Json) -> None:
        store, upload_id = self.home(object_id), query["uploadId"]
        spec = self._get(store, f"upload/{object_id}_{upload_id}/.meta")
        if spec is None:
            return
        records = self._records(object_id, upload_id)
        if [record["partNumber"] for record in records] != [part["partNumber"] for part in spec["parts"]]:
            raise Failure(400)
        listed = [
            ListedPart(row["partNumber"], row["partSize"], record["etag"]) for row, record in zip(spec["parts"], records, strict=True)
        ]
        try:
            store.complete_multipart(f"data/{object_id}", upload_id, listed)
        except ObjectNotFound:
            return
        final = [{**row, "sourceMd5": record["md5"]} for row, record in zip(spec["parts"], records, strict=True)]
        store.write(f"data/{object_id}.meta", json.dumps({**spec, "parts": final}).encode())
        self._drop_state(object_id, upload_id)

    def cancel(self, object_id: str, query: Json) -> None:
        upload_id, _ = self._find(object_id)
        self.home(object_id).abort_multipart(f"data/{object_id}", upload_id)
        self._drop_state(object_id, upload_id)

    def _drop_state(self, object_id: str, upload_id: str) -> None:
        for stored in list(self.home(object_id).list_objects(f"upload/{object_id}_{upload_id}/")):
            self.home(object_id).delete(stored.key)

    def download(self, object_id: str, query: Json) -> Json:
        """Whole objects, and external URLs. A specification that only the base bucket has counts as relocated."""
        store, spec = self.home(object_id), self._get(self.home(object_id), f"data/{object_id}.meta")
        if spec is None:
            store, spec = self.base, self._get(self.base, f"data/{object_id}.meta")
        if spec is None:
            raise Failure(500)
        if query.get("external") == "true":
            whole = {"partNumber": 1, "partSize": -1, "offset": 0, "md5": None}
            url = store.presign_gets(f"data/{object_id}", [None], lifetime_s=60)[0].url
            return {**spec, "objectSize": -1, "parts": [{**whole, "url": url}]}
        assert (query["offset"], query["length"]) == ("0", "-1")
        ranges = [ByteRange(row["offset"], row["partSize"]) for row in spec["parts"]]
        signed = store.presign_gets(f"data/{object_id}", ranges, lifetime_s=3600)
        hidden = query.get("exclude-urls") == "true"
        return {
            **spec,
            "parts": [{**row, "url": None if hidden else url.url} for row, url in zip(spec["parts"], signed, strict=True)],
        }


def _row(part: Part, url: str) -> Json:
    return {"partNumber": part.number, "partSize": part.size, "offset": part.offset, "url": url, "md5": None}


# A bucket with a file for it


class Balancer:
    """Passes each request to the next of several applications, which know nothing of each other."""

    def __init__(self, applications: list[ASGIApp], choose: Iterator[int] | None = None) -> None:
        self._applications = applications
        self._choose = choose or itertools.cycle(range(len(applications)))
        self._lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._lock:
            chosen = self._applications[next(self._choose)]
        await chosen(scope, receive, send)


@dataclass
class World:
    folder: Path
    data_url: str
    serve: Callable[[ASGIApp], str]
    transport: HttpTransport
    apps: dict[tuple[bool, bool], ASGIApp]
    id: str = field(default_factory=lambda: str(uuid4()))

    @property
    def path(self) -> Path:
        return self.folder / "files" / "x.bam"

    @property
    def md5(self) -> str:
        return md5_hex(self.path.read_bytes())

    def store(self) -> LocalStore:
        return LocalStore(self.folder / "bucket", base_url=self.data_url)

    def ours(self, *, keep_upload_urls: bool = False, another: bool = False) -> ASGIApp:
        """One for all tests, since making it takes 0.15 s; or `another`."""
        known = (keep_upload_urls, another)
        if known not in self.apps:
            repository = DirectRepository(self.store(), part_size_bytes=PART_BYTES, keep_upload_urls=keep_upload_urls)
            repository.ensure_sentinel()
            self.apps[known] = create_app(ServerParts(repository, authenticator=EmbeddedToken(TOKEN)))
        return self.apps[known]

    def java(self) -> ASGIApp:
        return JavaOnBucket(self.store()).app()

    def upload_by_java(self, url: str, **options: Any) -> Ended:
        return JavaClient(url, None, TOKEN, **options).upload(self.path, self.id, self.md5)

    def upload_by_python(self, url: str) -> TransferReport:
        repository = remote(url)
        try:
            engine = Engine(repository, self.transport, workers=2, policy=RetryPolicy(attempts=4, base_s=0.01, cap_s=0.05))
            return engine.upload(self.path, self.id, md5=self.md5)
        finally:
            repository.close()

    def download_by_java(self, url: str) -> bytes:
        out = self.folder / "out"
        out.mkdir(exist_ok=True)
        JavaClient(url, None, TOKEN)._download(out, self.id, (0, -1), force=True, validate=True)
        return (out / self.id).read_bytes()

    def download_by_python(self, url: str) -> bytes:
        repository = remote(url)
        try:
            target = self.folder / f"{uuid4()}.bam"
            Engine(repository, self.transport).download(repository.describe(self.id), target)
            return target.read_bytes()
        finally:
            repository.close()

    def keys(self) -> list[str]:
        """All keys of the object in the bucket."""
        return [stored.key for stored in self.store().list_objects("") if self.id in stored.key]

    def assert_published(self) -> None:
        """Bytes, specification, and nothing else."""
        store = self.store()
        assert self.keys() == [f"data/{self.id}", f"data/{self.id}.meta"]
        assert list(store.list_multiparts(f"data/{self.id}")) == []
        spec = json.loads(store.read(f"data/{self.id}.meta"))
        data = self.path.read_bytes()
        digests = [md5_hex(data[row["offset"] : row["offset"] + row["partSize"]]) for row in spec["parts"]]
        assert [row["sourceMd5"] for row in spec["parts"]] == digests
        assert (spec["objectSize"], spec["objectMd5"]) == (len(data), self.md5)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("shared")
    with ExitStack() as stack:
        store = LocalStore(folder / "bucket")
        stack.callback(store.close)
        data = ByteServer(store)
        stack.callback(data.close)
        data.start()
        yield folder, data.url


@pytest.fixture(scope="module")
def idle() -> Iterator[list[Stage]]:
    stages: list[Stage] = []
    yield stages
    for stage in stages:
        stage.server.close()


@pytest.fixture(scope="module")
def apps() -> dict[tuple[bool, bool], ASGIApp]:
    return {}


@pytest.fixture
def world(bucket: tuple[Path, str], idle: list[Stage], apps: dict[tuple[bool, bool], ASGIApp]) -> Iterator[World]:
    folder, data_url = bucket
    (folder / "files").mkdir(exist_ok=True)
    transport = HttpTransport()
    with ExitStack() as stack:
        stack.callback(transport.close)

        def serve(app: ASGIApp) -> str:
            stage = idle.pop() if idle else Stage()
            stack.callback(idle.append, stage)
            stage.app = app
            return stage.server.url

        world = World(folder, data_url, serve, transport, apps)
        world.path.write_bytes(random.Random(7).randbytes(PART_BYTES * 7 // 2))
        yield world


# A Java server and ours

REQUESTS: Final = 3 + 3 + 2 * 4 + 1  # of a first upload of four parts: the connection, before the parts, the parts, the end


def kill_at(step: int) -> Callable[[Call], None]:
    count = itertools.count()

    def hook(call: Call) -> None:
        if next(count) == step:
            raise Killed

    return hook


def begin_by_java(world: World, url: str, step: int) -> None:
    with pytest.raises(Killed):
        world.upload_by_java(url, parallel=1, before=kill_at(step))


@pytest.mark.parametrize("step", range(6, REQUESTS))
@pytest.mark.parametrize("begins", ["java", "ours"])
def test_upload_begun_by_one_server_is_finished_by_the_other(world: World, begins: str, step: int) -> None:
    """By a Java client, which resumes what it began."""
    java, ours = world.serve(world.java()), world.serve(world.ours(keep_upload_urls=True))
    first, second = (java, ours) if begins == "java" else (ours, java)
    begin_by_java(world, first, step)
    assert world.upload_by_java(second) == Ended(0)
    world.assert_published()
    assert {world.download_by_java(url) for url in (java, ours)} == {world.path.read_bytes()}


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("begins", ["java", "ours"])
@pytest.mark.parametrize("step", [6, 9, REQUESTS - 1])
def test_upload_begun_by_one_server_is_finished_by_our_client_over_the_other(world: World, begins: str, keeps: bool, step: int) -> None:
    """What is stored is not sent again, unless a Java server has no URLs to give for the rest of an upload that ours began."""
    java, ours = world.serve(world.java()), world.serve(world.ours(keep_upload_urls=keeps))
    first, second = (java, ours) if begins == "java" else (ours, java)
    begin_by_java(world, first, step)
    stored = (step - 6) // 2 if begins == "ours" else (step - 5) // 2  # ours finds a part that is stored and not recorded
    report = world.upload_by_python(second)
    has_urls = begins == "java" or keeps or stored == 4
    assert (report.outcome, report.parts_kept) == ("uploaded", stored if has_urls else 0)
    leftovers = [upload.upload_id for upload in world.store().list_multiparts(f"data/{world.id}")]
    for upload_id in leftovers:  # of an upload whose state a Java server forgot (3.8): the nightly sweep is for that
        assert begins == "ours"
        assert not has_urls
        world.store().abort_multipart(f"data/{world.id}", upload_id)
    world.assert_published()
    assert {world.download_by_python(url) for url in (java, ours)} == {world.path.read_bytes()}


@pytest.mark.parametrize("client", ["java", "python"])
@pytest.mark.parametrize("pair", ["ours and ours", "ours and java"])
@pytest.mark.parametrize("seed", range(3))
def test_requests_go_to_either_server(world: World, pair: str, client: str, seed: int) -> None:
    """A balancer before two servers: every request of an upload, a resumed one and a download may meet the other one."""
    keeps = pair == "ours and java"
    apps = [world.ours(keep_upload_urls=keeps), world.java() if keeps else world.ours(another=True)]
    draws = random.Random(seed)
    url = world.serve(Balancer(apps, iter(lambda: draws.randrange(2), 2) if seed else None))
    begin_by_java(world, url, 10)
    done = world.upload_by_java(url) if client == "java" else world.upload_by_python(url)
    assert done == Ended(0) or (isinstance(done, TransferReport) and done.parts_kept == 2)
    world.assert_published()
    assert {world.download_by_java(url), world.download_by_python(url)} == {world.path.read_bytes()}


def test_replaced_object_is_seen_by_both(world: World) -> None:
    java, ours = world.serve(world.java()), world.serve(world.ours())
    for number, url in enumerate((java, ours, java)):
        world.path.write_bytes(random.Random(number).randbytes(100_000))
        assert JavaClient(url, None, TOKEN).upload(world.path, world.id, world.md5, force=True) == Ended(0)
        world.assert_published()
        assert {world.download_by_python(url) for url in (java, ours)} == {world.path.read_bytes()}
        assert world.download_by_java(java) == world.path.read_bytes()


def test_replaced_behind_our_back_a_download_is_right_or_fails(world: World) -> None:
    """Ours remembers an answer for some seconds: a Java client gets old MD5s for new bytes, and tries again for longer than that."""
    java, ours = world.serve(world.java()), world.serve(world.ours())
    assert world.upload_by_java(ours) == Ended(0)
    assert world.download_by_java(ours) == world.path.read_bytes()
    world.path.write_bytes(random.Random(8).randbytes(100_000))
    assert JavaClient(java, None, TOKEN).upload(world.path, world.id, world.md5, force=True) == Ended(0)
    with suppress(Failed):
        assert world.download_by_java(ours) == world.path.read_bytes()
    assert world.download_by_python(ours) == world.path.read_bytes()


def test_record_of_a_part_that_java_wrote_twice(world: World) -> None:
    """Two records of one number block a Java server (21.14); ours publishes with the one that is stored."""
    java, ours = world.serve(world.java()), world.serve(world.ours(keep_upload_urls=True))
    begin_by_java(world, java, 10)
    (upload,) = world.store().list_multiparts(f"data/{world.id}")
    other = json.dumps({"partNumber": 1, "md5": "0" * 32, "etag": "0" * 32}, separators=(",", ":"))
    world.store().write(f"upload/{world.id}_{upload.upload_id}/part-00000001|{other}", b"")
    assert world.upload_by_java(ours) == Ended(0)
    world.assert_published()


@pytest.mark.parametrize("url_fields", ["AWSAccessKeyId=A&Expires=1400000000&Signature=x", ""])
def test_object_from_before_2016(world: World, url_fields: str) -> None:
    """Its specification has no MD5s, an extra field, and old URLs (5.2)."""
    data = world.path.read_bytes()
    half = len(data) // 2  # parts were of another size then
    rows = [(1, 0, half), (2, half, len(data) - half)]
    url = f"https://old.example.org/data/{world.id}?{url_fields}" if url_fields else None
    parts = [{"partNumber": n, "partSize": size, "offset": offset, "url": url, "md5": "old text"} for n, offset, size in rows]
    spec = {"objectKey": f"data/{world.id}", "objectId": world.id, "uploadId": "old", "parts": parts, "objectSize": len(data)}
    world.store().write(f"data/{world.id}", data)
    world.store().write(f"data/{world.id}.meta", json.dumps({**spec, "relocated": False}).encode())
    ours = world.serve(world.ours())
    body = httpx.get(f"{ours}/download/{world.id}?offset=0&length=-1", headers={"Authorization": f"Bearer {TOKEN}"}).json()
    assert [(row["partSize"], row["md5"], "sourceMd5" in row) for row in body["parts"]] == [
        (half, None, False),
        (len(data) - half, None, False),
    ]
    assert (body["objectMd5"], body["uploadId"]) == (None, "old")
    assert world.download_by_java(ours) == data


def test_object_that_came_without_score(world: World) -> None:
    world.store().write(f"data/{world.id}", world.path.read_bytes())
    ours = world.serve(world.ours())
    assert world.download_by_java(ours) == world.path.read_bytes()
    assert JavaClient(ours, None, TOKEN)._json("GET", f"/upload/{world.id}") is False


# Partitions, over a real S3 store

VECTOR: Final = "56f3cb04-38b4-574c-bffb-af1426113194"  # section 5.4: two digits and ten buckets give the sixth


@dataclass
class Partitions:
    endpoint: S3Endpoint
    name: str

    def store(self, number: int | None = None) -> MultipartStore:
        return self.endpoint.store(self.name if number is None else f"{self.name}.{number}")

    def java(self, *, pool: int = 10) -> ASGIApp:
        stores = {number: self.store(number) for number in range(pool)}
        return JavaOnBucket(self.store(), 5 << 20, pool, 2, stores.__getitem__ if pool else None).app()

    def ours(self, *, pool: int = 10) -> ASGIApp:
        repository = DirectRepository(Buckets(self.store(), pool=pool), part_size_bytes=5 << 20, keep_upload_urls=True)
        repository.ensure_sentinel()
        return create_app(ServerParts(repository, authenticator=EmbeddedToken(TOKEN)))

    def places(self) -> list[str]:
        """Where the vector's bytes and specification are."""
        places = ((number, stored.key) for number in (None, *range(10)) for stored in self.store(number).list_objects(f"data/{VECTOR}"))
        return [f"{number}: {key.removeprefix(f'data/{VECTOR}')}" for number, key in places]


@pytest.fixture
def partitions(seaweedfs_server: S3Endpoint) -> Partitions:
    name = f"part-{uuid4().hex[:12]}"
    client = seaweedfs_server.client()
    for bucket in (name, *(f"{name}.{number}" for number in range(10))):
        client.create_bucket(Bucket=bucket)
    client.put_object(Bucket=name, Key="data/heliograph", Body=b"sun")
    client.close()
    return Partitions(seaweedfs_server, name)


@pytest.mark.s3
@pytest.mark.parametrize("begins", ["java", "ours"])
def test_partitioned_upload_is_finished_by_the_other(world: World, partitions: Partitions, begins: str) -> None:
    world.id = VECTOR
    world.path.write_bytes(random.Random(9).randbytes(11 << 20))
    java, ours = world.serve(partitions.java()), world.serve(partitions.ours())
    first, second = (java, ours) if begins == "java" else (ours, java)
    begin_by_java(world, first, 10)
    assert world.upload_by_java(second) == Ended(0)
    assert partitions.places() == ["6: ", "6: .meta"]
    assert {download(url) for url in (java, ours) for download in (world.download_by_java, world.download_by_python)} == {
        world.path.read_bytes()
    }


@pytest.mark.s3
@pytest.mark.parametrize("begins", ["java", "ours"])
def test_relocated_object_is_read_from_the_base_and_replaced_at_home(world: World, partitions: Partitions, begins: str) -> None:
    world.id = VECTOR
    before = world.serve(partitions.java(pool=0) if begins == "java" else partitions.ours(pool=0))
    assert world.upload_by_java(before) == Ended(0)
    assert partitions.places() == ["None: ", "None: .meta"]
    java, ours = world.serve(partitions.java()), world.serve(partitions.ours())
    assert world.upload_by_java(ours).why.endswith("the object exists")
    for url in (java, ours):
        assert world.download_by_java(url) == world.path.read_bytes()
        assert httpx.get(JavaClient(url, None, TOKEN).external_url(VECTOR).out).content == world.path.read_bytes()
    world.path.write_bytes(b"another")
    assert JavaClient(ours, None, TOKEN).upload(world.path, VECTOR, world.md5, force=True) == Ended(0)
    assert partitions.places() == ["None: ", "None: .meta", "6: ", "6: .meta"]
    assert {world.download_by_java(url) for url in (java, ours)} == {b"another"}


@pytest.mark.s3
@pytest.mark.slow
def test_stale_uploads_of_several_pages_are_dropped(seaweedfs_server: S3Endpoint) -> None:
    """Java looks at the first thousand of each bucket (3.15)."""
    store, count = seaweedfs_server.store(seaweedfs_server.fresh_bucket()), 1_005
    ids = [str(uuid4()) for _ in range(count)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda object_id: store.create_multipart(f"data/{object_id}"), ids))
    repository = DirectRepository(store, part_size_bytes=5 << 20)
    assert repository.drop_stale_uploads(3600) == []
    assert {upload.object_id for upload in repository.drop_stale_uploads(-3600)} == set(ids)
    assert list(store.list_multiparts("")) == []
    repository.close()


# Ours, killed at any step


class Zygote:
    """Starts servers that die at a step, as forked children of a process that has imported everything once."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.server.test_shared_bucket"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self._children: list[int] = []

    def start(self, folder: Path, data_url: str, *, dies_at: int | None = None, after: bool = False) -> str:
        """A server's address. It dies of SIGKILL before, or after, its change number `dies_at` (from 0) of the store."""
        assert self._process.stdin
        assert self._process.stdout
        given = {"folder": str(folder / "bucket"), "data_url": data_url, "dies_at": dies_at, "after": after}
        self._process.stdin.write(json.dumps(given) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        self._children.append(answer["pid"])
        return str(answer["url"])

    def close(self) -> None:
        for pid in self._children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


class DyingStore:
    """A store whose process dies at one of its changes. It gets its folder late: in the child, when the application is there already."""

    _CHANGES: Final = frozenset({"write", "write_if_unchanged", "delete", "create_multipart", "complete_multipart", "abort_multipart"})

    def open(self, folder: str, data_url: str, dies_at: int | None, *, after: bool) -> None:
        self._inner, self._dies_at, self._after = LocalStore(Path(folder), base_url=data_url), dies_at, after
        self._changes = itertools.count()

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._inner, name)
        if name not in self._CHANGES or next(self._changes) != self._dies_at:
            return verb

        def dying(*words: Any, **options: Any) -> None:
            if self._after:
                verb(*words, **options)
            os.kill(os.getpid(), signal.SIGKILL)

        return dying


def _serve_until_killed(app: ASGIApp) -> None:
    server = RestServer(app, "127.0.0.1", 0)
    server.start()
    sys.stdout.write(json.dumps({"pid": os.getpid(), "url": server.url}) + "\n")
    sys.stdout.flush()
    time.sleep(300)
    os._exit(1)


def _run_zygote() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    store: Any = DyingStore()
    app = create_app(ServerParts(DirectRepository(store, part_size_bytes=PART_BYTES), authenticator=EmbeddedToken(TOKEN)))
    for name in ("uvicorn.protocols.http.h11_impl", "uvicorn.loops.auto", "uvicorn.lifespan.off", "anyio._backends._asyncio"):
        importlib.import_module(name)  # what every child would import
    assert threading.active_count() == 1, "only a single-threaded process may fork"
    for line in iter(sys.stdin.readline, ""):
        if os.fork() == 0:
            given = json.loads(line)
            store.open(given["folder"], given["data_url"], given["dies_at"], after=given["after"])
            _serve_until_killed(app)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture(scope="module")
def healthy(zygote: Zygote, bucket: tuple[Path, str]) -> str:
    """A server in a process of its own that does not die."""
    return zygote.start(*bucket)


BEGIN = ["multipart upload", "plan"]
CHANGES = [*BEGIN, "record 1", "record 2", "complete", "specification", "drop the plan", "drop record 1", "drop record 2"]


@pytest.mark.kill
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", CHANGES)
@pytest.mark.parametrize("client", ["java", "python"])
def test_server_is_killed_at_any_step_and_another_finishes(
    world: World, zygote: Zygote, healthy: str, client: str, step: str, after: bool
) -> None:
    world.path.write_bytes(random.Random(5).randbytes(PART_BYTES * 2))
    dying = zygote.start(world.folder, world.data_url, dies_at=CHANGES.index(step), after=after)
    first = JavaClient(dying, None, TOKEN, attempts=2, parallel=1)
    assert first.upload(world.path, world.id, world.md5, verify_connection=False).code == 1
    with pytest.raises(httpx.TransportError):
        httpx.get(dying, verify=False)  # certificates that nobody needs here take 0.1 s to load
    url = healthy
    if client == "python":
        report = world.upload_by_python(url)
        is_complete = (CHANGES.index(step), after) >= (CHANGES.index("complete"), True)
        kept = 0 if is_complete or step in BEGIN else 2  # a Java client sends all parts, recorded or not
        assert (report.outcome, report.parts_kept) == ("already there" if is_complete else "uploaded", kept)
    else:
        again = JavaClient(url, None, TOKEN)
        ended = again.upload(world.path, world.id, world.md5, verify_connection=False)
        if ended.code == 1:  # begun, but the client never heard of the id; or published, but it never heard of that
            assert ended.why.rpartition(": ")[2] in {"somebody else uploads this object", "the object exists"}
            if not first.count("POST /upload/{id}"):
                assert again.upload(world.path, world.id, world.md5, force=True, verify_connection=False) == Ended(0)
        assert again.waits == []
    httpx.delete(
        f"{url}/upload/{world.id}", headers={"Authorization": f"Bearer {TOKEN}"}, verify=False
    )  # what is left of state is nobody's upload
    world.assert_published()
    assert world.download_by_java(url) == world.path.read_bytes()


@pytest.mark.kill
@pytest.mark.parametrize("client", ["java", "python"])
def test_two_server_processes_take_turns(world: World, zygote: Zygote, healthy: str, client: str) -> None:
    """Every request of a client goes to the other process than the one before."""
    urls = itertools.cycle([zygote.start(world.folder, world.data_url), healthy])
    java = JavaClient(next(urls), None, TOKEN, parallel=1)
    java.before = lambda call: setattr(java, "url", next(urls))
    if client == "java":
        assert java.upload(world.path, world.id, world.md5, verify_connection=False) == Ended(0)
    else:
        half = JavaClient(next(urls), None, TOKEN, parallel=1, before=kill_at(7))
        with pytest.raises(Killed):
            half.upload(world.path, world.id, world.md5, verify_connection=False)
        assert world.upload_by_python(next(urls)).parts_kept == 2
    world.assert_published()
    assert {world.download_by_java(next(urls)) for _ in range(2)} == {world.path.read_bytes()}


if __name__ == "__main__":
    _run_zygote()
