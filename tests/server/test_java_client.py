"""Java clients, as sections 11 to 13 of the protocol describe them, against our server: whole transfers, interrupted ones, refused ones."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import httpx
import pytest

from score_core.auth.base import Principal
from score_core.checksum import md5_hex
from score_core.errors import AuthenticationError, Unavailable
from score_core.metadata.base import Analysis
from score_core.metadata.registering import new_file, register
from score_core.metadata.registry import Registry
from score_core.model import UploadInfo
from score_core.repository.direct import DirectRepository
from score_core.server.app import ServerParts, create_app
from score_core.server.bytes import ByteServer
from score_core.server.serving import RestServer
from score_core.stores.base import MultipartStore
from score_core.stores.local import LocalStore
from score_core.testing.faults import FaultProxy, Flip, LoseReply, Reset, Short, busy, expired, is_get, is_put, part, s3_error
from score_core.testing.pytest_plugin import StoreFactory
from score_core.testing.servers import S3Endpoint
from tests.server.conftest import PART_BYTES, Site, StartSite
from tests.server.java_client import HEAD, Call, Ended, JavaClient, Killed, Retryable, Version, expires_at

STUDY = "TEST-CA"
VERSIONS: list[Version] = [(5, 8, 1), (5, 9, 0), (5, 10, 1), (5, 11, 0), HEAD]
SCOPES = {
    "system": {"score.READ", "score.WRITE"},
    "reader": {"score.READ"},
    "study": {"PROGRAMDATA-TEST-CA.READ", "PROGRAMDATA-TEST-CA.WRITE"},
    "other-study": {"PROGRAMDATA-TEST-FR.READ", "PROGRAMDATA-TEST-FR.WRITE"},
    "x" * 800: {"score.READ", "score.WRITE"},  # as long as a JWT
}


class Tokens:
    """An authenticator whose tokens are the names above."""

    def authenticate(self, token: str) -> Principal:
        if token not in SCOPES:
            raise AuthenticationError("bad")
        return Principal(token[:20], frozenset(SCOPES[token]))

    def close(self) -> None:
        pass


@dataclass
class Bucket:
    """A folder whose bytes are served through a proxy."""

    folder: Path
    proxy: FaultProxy


@dataclass
class World:
    """A server over a bucket, and a file that is registered with its index."""

    folder: Path
    bucket: Bucket
    site: Site
    registry: Registry
    analysis: Analysis
    path: Path

    @property
    def proxy(self) -> FaultProxy:
        return self.bucket.proxy

    @property
    def id(self) -> str:
        return next(file.object_id for file in self.analysis.files if file.file_name == self.path.name)

    @property
    def index(self) -> Path:
        return self.path.with_name(self.path.name + ".bai")

    @property
    def index_id(self) -> str:
        return next(file.object_id for file in self.analysis.files if file.file_name == self.index.name)

    @property
    def md5(self) -> str:
        return md5_hex(self.path.read_bytes())

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def target(self) -> Path:
        return self.out / self.path.name

    def java(self, token: str = "system", **options: Any) -> JavaClient:
        return JavaClient(self.site.url, self.site.url, token, **options)

    def upload(self, java: JavaClient | None = None, **options: Any) -> Ended:
        return (java or self.java()).upload(self.path, self.id, self.md5, **options)

    def publish(self) -> None:
        """Both files uploaded, their analysis published; then the proxy counts from nothing."""
        for path, object_id in ((self.path, self.id), (self.index, self.index_id)):
            assert self.java().upload(path, object_id, md5_hex(path.read_bytes())).code == 0
        self.registry.publish(STUDY, self.analysis.analysis_id)
        self.proxy.forget()

    def stored(self) -> bytes | None:
        """The bytes of the object, if it counts as published in the store."""
        repository = self.site.repository
        return httpx.get(repository.sign_external(self.id).url).content if repository.exists(self.id) else None

    def leftovers(self) -> list[Path]:
        """Unfinished uploads and their state, on both sides."""
        assert self.unfinished() == []
        hidden = [path for path in self.path.parent.iterdir() if path.name.startswith(".")]
        return hidden + list(self.bucket.folder.glob(f"upload/{self.id}*"))

    def unfinished(self) -> list[UploadInfo]:
        return [upload for upload in self.site.repository.list_uploads() if upload.object_id == self.id]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """One for all tests, whose objects are their own: making and stopping servers takes longer than most of the tests."""
    folder = tmp_path_factory.mktemp("java") / "bucket"
    with ExitStack() as stack:
        store = LocalStore(folder)
        stack.callback(store.close)
        data = ByteServer(store)
        stack.callback(data.close)
        data.start()
        yield Bucket(folder, stack.enter_context(FaultProxy(data.url)))


@pytest.fixture(scope="module")
def repository(bucket: Bucket) -> DirectRepository:
    store = LocalStore(bucket.folder, base_url=bucket.proxy.url)
    repository = DirectRepository(store, part_size_bytes=PART_BYTES, download_lifetime_s=3600.0)
    repository.ensure_sentinel()
    return repository


@pytest.fixture(scope="module")
def server(repository: DirectRepository, bucket: Bucket) -> Iterator[Site]:
    registry = Registry(bucket.folder.with_name("registry.sqlite3"), repository=repository)
    parts = ServerParts(repository, registry, registry, Tokens())
    server = RestServer(create_app(parts), "127.0.0.1", 0)
    server.start()
    with httpx.Client(base_url=server.url, headers={"Authorization": "Bearer system"}) as http:
        yield Site(server.url, http, parts, repository)
    server.close()
    registry.close()


def new_world(folder: Path, bucket: Bucket, site: Site) -> World:
    bucket.proxy.heal()
    bucket.proxy.forget()
    registry = site.parts.metadata
    assert isinstance(registry, Registry)
    files = [folder / "files" / "reads.bam", folder / "files" / "reads.bam.bai"]
    files[0].parent.mkdir()
    files[0].write_bytes(Random(1).randbytes(PART_BYTES * 5 // 2))
    files[1].write_bytes(b"index")
    analysis = register(registry, STUDY, [new_file(path) for path in files], analysis_id=str(uuid4()))
    return World(folder, bucket, site, registry, analysis, files[0])


@pytest.fixture
def world(tmp_path: Path, bucket: Bucket, server: Site) -> World:
    return new_world(tmp_path, bucket, server)


@pytest.fixture
def small_song(tmp_path: Path, bucket: Bucket, repository: DirectRepository, start_site: StartSite) -> Iterator[World]:
    """A world whose Song knows nothing but its own files."""
    registry = Registry(tmp_path / "registry.sqlite3", repository=repository)
    yield new_world(tmp_path, bucket, start_site(repository, metadata=registry, song=registry, authenticator=Tokens()))
    registry.close()


FIRST_UPLOAD = [
    "GET /profile",
    "GET /download/ping",
    "GET",
    "GET /upload/{id}",
    "GET /upload/{id}/status",
    "POST /upload/{id}/uploads",
    *["PUT", "POST /upload/{id}/parts"] * 3,
    "POST /upload/{id}",
]


# Whole transfers


@pytest.mark.parametrize("version", VERSIONS)
def test_first_upload_is_the_sequence_of_section_12(world: World, version: Version) -> None:
    java = world.java(version=version, parallel=1)
    assert world.upload(java) == Ended(0)
    assert java.names() == FIRST_UPLOAD[version < (5, 10, 0) :]
    assert (world.stored(), world.leftovers(), java.waits) == (world.path.read_bytes(), [], [])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("token", ["system", "study", "x" * 800])
def test_download_by_every_version(world: World, version: Version, token: str) -> None:
    """The token under RSA, or nothing where it is too long, comes along to the store, under the name of the time."""
    world.publish()
    java = world.java(token, version=version)
    assert java.download(world.out, world.id) == Ended(0)
    assert world.target.read_bytes() == world.path.read_bytes()
    assert world.target.with_name("reads.bam.bai").read_bytes() == b"index"
    assert sorted(path.name for path in world.out.iterdir()) == ["reads.bam", "reads.bam.bai"]
    name = "X-SCORE-TOKEN" if version == HEAD else "X-ICGC-TOKEN"
    sent = {bool(call.headers[name]) for call in java.calls if call.plane == "store" and name in call.headers}
    assert sent == {len(token) < 245}
    assert java.waits == []


def test_download_requests(world: World) -> None:
    world.publish()
    java = world.java(parallel=1)
    java.download(world.out, world.id)
    described = ["GET /download/{id}"]
    assert java.names() == [
        *["GET /profile", "GET /download/ping", "GET"],
        *["GET /entities/{id}", "GET /entities"],
        *described * 2,
        *[*described, "GET", "GET", "GET"],
        *[*described, "GET"],
    ]


def test_no_token_goes_to_the_store(world: World) -> None:
    world.publish()
    java = world.java()
    java.download(world.out, world.id)
    world.upload(java)
    assert not [call for call in java.calls if call.plane == "store" and "system" in str(call.headers)]


@pytest.mark.parametrize("size", [1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 7 * PART_BYTES])
def test_sizes(world: World, size: int) -> None:
    path = world.path.with_name("sized.bam")
    path.write_bytes(Random(size).randbytes(size))
    analysis = register(world.registry, STUDY, [new_file(path)], analysis_id=str(uuid4()))
    object_id, md5 = analysis.files[0].object_id, md5_hex(path.read_bytes())
    assert world.java().upload(path, object_id, md5) == Ended(0)
    world.registry.publish(STUDY, analysis.analysis_id)
    assert world.java().download(world.out, object_id) == Ended(0)
    assert (world.out / "sized.bam").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("layout", "places"),
    [("filename", ["reads.bam"]), ("bundle", ["{analysis}/reads.bam"]), ("id", ["{id}"])],
    ids=str,
)
def test_layouts(world: World, layout: Any, places: list[str]) -> None:
    world.publish()
    assert world.java().download(world.out, world.id, layout=layout, index=False).code == 0
    found = [str(path.relative_to(world.out)) for path in world.out.rglob("*") if path.is_file()]
    assert found == [place.format(analysis=world.analysis.analysis_id, id=world.id) for place in places]


def test_analysis_is_downloaded(world: World) -> None:
    world.publish()
    assert world.java().download(world.out, analysis=(STUDY, world.analysis.analysis_id)).code == 0
    assert sorted(path.name for path in world.out.iterdir()) == ["reads.bam", "reads.bam.bai"]


def test_manifest_is_uploaded_in_order(world: World) -> None:
    rows = [(name, path, md5_hex(path.read_bytes())) for name, path in ((world.id, world.path), (world.index_id, world.index))]
    java = world.java()
    assert java.upload_manifest(rows).code == 0
    assert java.count("POST /upload/{id}") == 2


@pytest.mark.parametrize("span", [(0, 1), (0, PART_BYTES), (1, -1), (PART_BYTES - 1, PART_BYTES + 2)])
def test_range(world: World, span: tuple[int, int]) -> None:
    world.publish()
    offset, length = span
    assert world.java().download(world.out, world.id, offset=offset, length=length, validate=False, index=False).code == 0
    assert world.target.read_bytes() == world.path.read_bytes()[offset:][: None if length < 0 else length]


def test_range_is_not_what_the_whole_md5_says(world: World) -> None:  # 13.4
    world.publish()
    java = world.java()
    assert java.download(world.out, world.id, offset=1, length=10, index=False).code == 1
    assert len(world.proxy.moves()) == 10


def test_range_header_is_signed(world: World) -> None:
    world.publish()
    url = world.site.http.get(f"/download/{world.id}?offset=0&length=-1").json()
    first = url["parts"][0]["url"]
    assert httpx.get(first, headers={"Range": f"bytes=0-{PART_BYTES - 1}"}).status_code == 206
    assert httpx.get(first, headers={"Range": f"bytes=0-{PART_BYTES}"}).status_code == 403
    assert httpx.get(first).status_code == 403


def test_url_and_ranged_reads(world: World) -> None:
    world.publish()
    java, data = world.java(), world.path.read_bytes()
    ended = java.external_url(world.id)
    assert ended.code == 0
    assert [java.read(ended.out, at, len(data), 100) for at in (0, 70_000)] == [data[:100], data[70_000:70_100]]


def test_mount_lists_what_is_stored_and_registered(small_song: World) -> None:
    world = small_song
    world.publish()
    ended = world.java().mount()
    folder = world.analysis.analysis_id
    assert ended.out.splitlines() == [f"{folder}/reads.bam {world.path.stat().st_size}", f"{folder}/reads.bam.bai 5"]


def test_mount_ends_where_the_last_entity_is_not_published(small_song: World) -> None:  # 21.23
    world = small_song
    world.publish()
    world.registry.unpublish(STUDY, world.analysis.analysis_id)
    java = world.java()
    assert (java.mount().code, java.waits, java.names()[-1]) == (1, [], "GET /download/{id}")


def test_upload_ids_survive_javas_encoding(world: World) -> None:  # 21.33
    java = world.java()
    world.upload(java)
    query = dict(parse_qsl(urlsplit(java.calls[-1].url).query))
    assert re.fullmatch(r"[A-Za-z0-9._~-]+", query["uploadId"])


def test_expiry_can_be_read(world: World) -> None:  # section 8
    world.publish()
    for wanted in ("offset=0&length=-1", "offset=0&length=-1&external=true", "offset=5&length=9"):
        spec = world.site.http.get(f"/download/{world.id}?{wanted}").json()
        for row in spec["parts"]:
            assert 3500 < expires_at(row["url"]) - time.time() <= 3601


# Overwriting, and who may


def test_existing_object_is_refused_and_replaced_with_force(world: World) -> None:
    world.upload()
    java = world.java()
    assert world.upload(java).code == 1
    assert java.names()[-1] == "GET /upload/{id}"
    java = world.java()
    assert world.upload(java, force=True) == Ended(0)
    assert java.names("score")[2:4] == ["GET /upload/{id}", "POST /upload/{id}/uploads"]
    assert (world.stored(), world.leftovers()) == (world.path.read_bytes(), [])


def test_upload_of_another_machine_is_left_alone(world: World) -> None:
    java = world.java(parallel=1, before=die_at(8))
    with pytest.raises(Killed):
        world.upload(java)
    shutil.rmtree(world.path.parent / f".{world.id}")
    second = world.java()
    ended = world.upload(second)
    assert (ended.code, ended.why) == (1, "Command error: somebody else uploads this object")
    assert second.names()[-1] == "GET /upload/{id}/status"
    assert world.upload(force=True) == Ended(0)
    assert (world.stored(), world.leftovers()) == (world.path.read_bytes(), [])


def test_state_directory(world: World) -> None:
    state = world.folder / "state"
    with pytest.raises(Killed):
        world.upload(world.java(state_dir=state, before=die_at(8)))
    assert [path.name for path in state.iterdir()] == [f".{world.id}"]
    assert world.upload(world.java(state_dir=state)) == Ended(0)
    assert (list(state.iterdir()), world.leftovers()) == ([], [])


@dataclass
class Refused:
    """What a Java client does that can never succeed: the exit code, and the last of all its requests to Score."""

    act: Callable[[World], tuple[JavaClient, Ended]]
    last: str
    calls: int
    code: int = 1
    says: str = ""


def _upload(token: str = "system", *, force: bool = False, **other: Any) -> Callable[[World], tuple[JavaClient, Ended]]:
    def act(world: World) -> tuple[JavaClient, Ended]:
        java = world.java(token)
        given = {"object_id": world.id, "md5": world.md5, "path": world.path, **other}
        return java, java.upload(given["path"], given["object_id"], given["md5"], force=force)

    return act


def _download(token: str = "system", **options: Any) -> Callable[[World], tuple[JavaClient, Ended]]:
    def act(world: World) -> tuple[JavaClient, Ended]:
        java = world.java(token)
        return java, java.download(world.out, options.pop("object_id", world.id), index=False, **options)

    return act


def _published(then: Callable[[World], tuple[JavaClient, Ended]], state: str = "PUBLISHED") -> Callable[[World], tuple[JavaClient, Ended]]:
    def act(world: World) -> tuple[JavaClient, Ended]:
        world.publish()
        if state == "SUPPRESSED":
            world.registry.suppress(STUDY, world.analysis.analysis_id)
        return then(world)

    return act


def _lost(world: World) -> tuple[JavaClient, Ended]:
    world.publish()
    for name in (world.id, f"{world.id}.meta"):
        (world.bucket.folder / "data" / name).unlink()
    return _download()(world)


NOBODY = "576f7386-e626-5d99-ae63-1b3ce9de308b"
EXISTS, INITIATE, DESCRIBE, PING = "GET /upload/{id}", "POST /upload/{id}/uploads", "GET /download/{id}", "GET /download/ping"
REFUSALS = {
    "upload without a token": Refused(_upload(""), EXISTS, 3, says="400"),
    "upload with a bad token": Refused(_upload("bad"), PING, 2, says="401"),
    "upload by a reader": Refused(_upload("reader"), EXISTS, 3, says="403"),
    "upload by another study": Refused(_upload("other-study"), EXISTS, 3, says="403"),
    "upload of an unknown object": Refused(_upload(object_id=NOBODY), INITIATE, 5, says="404"),
    "upload of an unknown object by a study": Refused(_upload("study", object_id=NOBODY), EXISTS, 3, says="404"),
    "upload under something else than an id": Refused(_upload(object_id="x-1"), "GET /upload/x-1", 3, says="400"),
    "upload of another size": Refused(_upload(path=Path(__file__)), INITIATE, 5, says="was registered with"),
    "upload of another MD5": Refused(_upload(md5="0" * 32), INITIATE, 5, says="was registered with MD5"),
    "upload with an MD5 that is none": Refused(_upload(md5="none"), INITIATE, 5, says="md5 is not an MD5"),
    "upload over a published object": Refused(_published(_upload(force=True)), INITIATE, 4, says="is not UNPUBLISHED"),
    "upload over a suppressed object": Refused(_published(_upload(force=True), "SUPPRESSED"), INITIATE, 4, says="is not UNPUBLISHED"),
    "download without a token": Refused(_published(_download("")), DESCRIBE, 3, says="403"),
    "download with a bad token": Refused(_published(_download("bad")), PING, 2, says="401"),
    "download by another study": Refused(_published(_download("other-study")), DESCRIBE, 3, says="403"),
    "download before it is published": Refused(_download(), DESCRIBE, 3, says="is not PUBLISHED"),
    "download after it is suppressed": Refused(_published(_download(), "SUPPRESSED"), DESCRIBE, 3, says="is not PUBLISHED"),
    "download of an unknown object": Refused(_published(_download(object_id=NOBODY)), PING, 2, code=0, says="Entity not found"),
    "download of lost bytes": Refused(_lost, DESCRIBE, 3, says="404"),
    # 400 makes its loop over rounds go on, ten at once without a pause; Java's 500 would end it after one
    "range beyond the end": Refused(_published(_download(offset=10**9)), DESCRIBE, 13),
    "negative offset": Refused(_published(_download(offset=-1)), DESCRIBE, 13),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_for_good_ends_the_command_at_once(world: World, name: str) -> None:
    """Never the 51 seconds of ten attempts, and nothing left behind."""
    wanted = REFUSALS[name]
    java, ended = wanted.act(world)
    assert (ended.code, java.waits) == (wanted.code, [])
    assert wanted.says in ended.why
    assert (java.names("score")[-1], len(java.names("score"))) == (wanted.last, wanted.calls)
    assert (world.proxy.moves(), world.unfinished()) == ([], [])


def test_published_while_an_upload_runs(world: World) -> None:
    """Its finalise is refused for good: the client resumes once, begins anew, is refused there and ends."""
    world.publish()
    before = world.stored()
    world.registry.unpublish(STUDY, world.analysis.analysis_id)
    java = world.java(parallel=1)

    def publish(call: Call) -> None:
        if call.name == "POST /upload/{id}" and java.count(call.name) == 1:
            world.registry.publish(STUDY, world.analysis.analysis_id)

    java.before = publish
    assert world.upload(java, force=True).code == 1
    assert (java.count("POST /upload/{id}"), java.count("POST /upload/{id}/uploads"), java.waits) == (2, 2, [])
    assert world.stored() == before


class BrokenRegistry(Registry):
    down = False

    def entity(self, object_id: str) -> Any:
        if self.down:
            raise Unavailable("Song is not reached")
        return super().entity(object_id)


def test_song_out_of_order_is_worth_ten_attempts(world: World, start_site: StartSite) -> None:
    with ExitStack() as stack:
        registry = BrokenRegistry(world.bucket.folder.with_name("registry.sqlite3"), repository=world.site.repository)
        stack.callback(registry.close)
        site = start_site(world.site.repository, metadata=registry, authenticator=Tokens())
        java = JavaClient(site.url, world.site.url, "study")
        registry.down = True
        assert java.upload(world.path, world.id, world.md5).code == 1
        assert (java.count("GET /upload/{id}"), round(sum(java.waits))) == (10, 51)
        java = JavaClient(site.url, world.site.url, "study", after=lambda call: setattr(registry, "down", call.name != "GET /upload/{id}"))
        registry.down = True
        java.before = lambda call: setattr(registry, "down", java.count("GET /upload/{id}") < 3)
        java.after = lambda call: None
        assert java.upload(world.path, world.id, world.md5).code == 0
        assert len(java.waits) == 2


# Interruptions


def die_at(step: int) -> Callable[[Call], None]:
    """Ends the process before its request number `step` (from 0), or after the answer to it."""
    count = iter(range(10_000))

    def hook(call: Call) -> None:
        if next(count) == step:
            raise Killed

    return hook


def dying(world: World, step: int, *, after: bool) -> JavaClient:
    java = world.java(parallel=1)
    setattr(java, "after" if after else "before", die_at(step))
    return java


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", range(len(FIRST_UPLOAD)), ids=lambda step: f"{step} {FIRST_UPLOAD[step].replace('/', ':')}")
def test_upload_is_killed_and_run_again(world: World, step: int, after: bool) -> None:
    with pytest.raises(Killed):
        world.upload(dying(world, step, after=after))
    again = world.java()
    ended = world.upload(again)
    is_unknown = after and step == FIRST_UPLOAD.index("POST /upload/{id}/uploads")  # begun, and the id was not written down yet
    is_done = after and step == len(FIRST_UPLOAD) - 1
    assert (ended.code, again.waits) == (int(is_unknown or is_done), [])
    if is_unknown:
        assert world.upload(force=True) == Ended(0)
    if is_done:
        shutil.rmtree(world.path.parent / f".{world.id}")  # what only the client would have removed
    assert (world.stored(), world.leftovers()) == (world.path.read_bytes(), [])


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", range(9))
def test_download_is_killed_and_run_again(world: World, step: int, after: bool) -> None:
    world.publish()
    with pytest.raises(Killed):
        dying(world, step, after=after).download(world.out, world.id, index=False)
    done = len(list(world.out.glob(f".{world.id}/part-*"))) if world.out.exists() else 0
    world.proxy.forget()
    again = world.java()
    assert again.download(world.out, world.id, index=False) == Ended(0)
    assert world.target.read_bytes() == world.path.read_bytes()
    assert len([seen for seen in world.proxy.moves() if is_get(seen)]) == 3 - done
    assert [path.name for path in world.out.iterdir()] == ["reads.bam"]


def half_downloaded(world: World) -> Path:
    """Two of three parts are there; the folder of the client's state."""
    world.publish()
    with pytest.raises(Killed):
        dying(world, 8, after=False).download(world.out, world.id, index=False)
    folder = world.out / f".{world.id}"
    assert len(list(folder.glob("part-*"))) == 2
    world.proxy.forget()
    return folder


def test_damaged_part_of_a_resumed_download_is_fetched_again(world: World) -> None:
    half_downloaded(world)
    with (world.out / world.id).open("r+b") as file:
        file.write(b"damage")
    assert world.java().download(world.out, world.id, index=False) == Ended(0)
    assert world.target.read_bytes() == world.path.read_bytes()
    assert len(world.proxy.moves()) == 2


def test_expired_urls_of_a_resumed_download_mean_from_zero(world: World) -> None:
    folder = half_downloaded(world)
    spec = json.loads((folder / "meta").read_text())
    for row in spec["parts"]:
        row["url"] = re.sub(r"Expires=\d+", f"Expires={int(time.time()) - 1}", row["url"])
    (folder / "meta").write_text(json.dumps(spec))
    java = world.java()
    assert java.download(world.out, world.id, index=False) == Ended(0)
    assert (len(world.proxy.moves()), java.count("GET /download/{id}")) == (3, 2)


def test_server_may_mark_parts_for_java_to_pass_over(world: World, start_site: StartSite) -> None:  # 21.1
    with pytest.raises(Killed):
        world.upload(dying(world, 10, after=False))
    marking = start_site(world.site.repository, metadata=world.registry, authenticator=Tokens(), marks_md5=True)
    java = JavaClient(marking.url, world.site.url, "system")
    assert java.upload(world.path, world.id, world.md5) == Ended(0)
    assert (java.count("PUT"), world.stored()) == (1, world.path.read_bytes())


# Answers that get lost, and a store at its worst


@pytest.mark.parametrize(
    "name", ["GET /upload/{id}", "GET /upload/{id}/status", "POST /upload/{id}/uploads", "POST /upload/{id}/parts", "POST /upload/{id}"]
)
def test_lost_answer_to_an_upload_is_ridden_out(world: World, name: str) -> None:
    java = world.java(parallel=1)

    def lose(call: Call) -> None:
        if call.name == name and java.count(name) == 1:
            raise Retryable("the answer is lost")

    java.after = lose
    assert world.upload(java) == Ended(0)
    assert (world.stored(), world.leftovers(), len(java.waits)) == (world.path.read_bytes(), [], 1)


@pytest.mark.parametrize(
    "fault", [busy(), Reset(1000), LoseReply(), Flip(at=17), s3_error(400, "RequestTimeout"), s3_error(502, "BadGateway")], ids=type
)
def test_store_fails_while_uploading(world: World, fault: Any) -> None:
    world.proxy.inject(fault, when=part(2, PART_BYTES), times=3)
    java = world.java()
    assert world.upload(java) == Ended(0)
    assert (world.stored(), len(java.waits), world.proxy.tries(2, PART_BYTES)) == (world.path.read_bytes(), 3, 4)


@pytest.mark.parametrize("fault", [busy(), Reset(1000), Flip(at=17), Short(by=5), s3_error(400, "RequestTimeout")], ids=type)
def test_store_fails_while_downloading(world: World, fault: Any) -> None:
    world.publish()
    world.proxy.inject(fault, when=part(2, PART_BYTES), times=3)
    assert world.java().download(world.out, world.id, index=False) == Ended(0)
    assert (world.target.read_bytes(), world.proxy.tries(2, PART_BYTES)) == (world.path.read_bytes(), 4)


def test_url_that_the_store_refuses_is_asked_for_again(world: World) -> None:
    """403 in an upload: recovery, a resume round with the same upload, and if that fails, too, a new upload."""
    world.proxy.inject(expired(), when=part(2, PART_BYTES), times=2)
    java = world.java(parallel=1)
    assert world.upload(java) == Ended(0)
    assert [java.count(name) for name in ("POST /upload/{id}/recovery", "POST /upload/{id}/uploads")] == [1, 2]
    assert (world.stored(), world.leftovers(), java.waits) == (world.path.read_bytes(), [], [])


def test_upload_that_an_operator_drops_begins_anew(world: World) -> None:
    java = world.java(parallel=1)

    def drop(call: Call) -> None:
        if java.count("PUT") == 2 and call.name == "PUT":
            world.site.repository.abort(world.id)

    java.before = drop
    assert world.upload(java) == Ended(0)
    assert [java.count(name) for name in ("POST /upload/{id}/recovery", "POST /upload/{id}/uploads")] == [1, 2]
    assert (world.stored(), world.leftovers(), java.waits) == (world.path.read_bytes(), [], [])


def test_upload_taken_over_by_force_does_not_mix(world: World) -> None:
    """A second client begins anew while the first sends: the first one's parts go nowhere, and one of both is published, whole."""
    first = world.java(parallel=1)

    def take_over(call: Call) -> None:
        if call.name == "PUT" and first.count("PUT") == 3:
            assert world.java(state_dir=world.folder / "elsewhere").upload(world.path, world.id, world.md5, force=True).code == 0

    first.before = take_over
    assert world.upload(first) == Ended(0)
    assert (world.stored(), world.leftovers()) == (world.path.read_bytes(), [])


def test_ten_refused_rounds_stay_the_clients_fault(world: World) -> None:  # 21.3
    """It says success. Nothing is published, and the requests are few and without a pause."""
    world.proxy.inject(expired(), when=is_put)
    java = world.java(parallel=1)
    assert world.upload(java) == Ended(0)
    assert (world.stored(), java.waits, len(java.calls) < 150) == (None, [], True)


# A real S3 store


@pytest.mark.s3
def test_whole_life_over_s3(start_site: StartSite, seaweedfs_server: S3Endpoint, s3_store_factory: StoreFactory, tmp_path: Path) -> None:
    store: MultipartStore = s3_store_factory(seaweedfs_server)
    repository = DirectRepository(store, part_size_bytes=5 << 20)
    repository.ensure_sentinel()
    site = start_site(repository, authenticator=Tokens())
    path, object_id = tmp_path / "big.bin", str(uuid4())
    path.write_bytes(Random(2).randbytes((11 << 20) + 3))
    md5 = md5_hex(path.read_bytes())
    with pytest.raises(Killed):
        JavaClient(site.url, None, "system", parallel=1, before=die_at(9)).upload(path, object_id, md5)
    java = JavaClient(site.url, None, "system")
    assert java.upload(path, object_id, md5) == Ended(0)
    assert [java.names()[at] for at in (-1, 4)] == ["POST /upload/{id}", "GET /upload/{id}/status"]
    assert store.head(f"data/{object_id}").size == path.stat().st_size

    out = tmp_path / "out"
    out.mkdir()
    entity = {"id": object_id}
    for step in (0, 2):  # killed at the first part and at the third, then run to its end
        with pytest.raises(Killed):
            _just_download(JavaClient(site.url, None, "system", parallel=1, before=die_at(step)), out, entity)
    java = JavaClient(site.url, None, "system")
    _just_download(java, out, entity)
    assert (out / object_id).read_bytes() == path.read_bytes()
    assert java.count("GET") == 2
    assert all(expires_at(call.url) > time.time() for call in java.calls if call.plane == "store")
    url = java.external_url(object_id).out
    assert java.read(url, 6 << 20, path.stat().st_size, 10) == path.read_bytes()[6 << 20 :][:10]


def _just_download(java: JavaClient, out: Path, entity: dict[str, str]) -> None:
    """Section 13.2 alone, without Song."""
    java._download(out, entity["id"], (0, -1), force=False, validate=True)
