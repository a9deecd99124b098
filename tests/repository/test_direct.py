"""`DirectRepository` keeps every promise over every store, and Score's bucket layout byte for byte."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest

from score_core.checksum import md5_base64, md5_hex
from score_core.errors import Conflict, ObjectNotFound, PlanError, ScoreError, ServiceError, Unavailable
from score_core.model import StoredPart, TransferReport
from score_core.repository.base import Repository
from score_core.repository.direct import DirectRepository, composite_etag
from score_core.repository.layout import read_record
from score_core.stores.base import ListedPart
from score_core.stores.local import LocalStore
from score_core.testing.faults import FaultProxy, LoseReply, completes, s3_error
from score_core.testing.memory import MemoryStore, MemoryTransport
from score_core.testing.pytest_plugin import StoreFactory
from score_core.testing.repositories import RepositoryContract
from score_core.testing.servers import S3Endpoint
from score_core.transfer.engine import Engine
from score_core.transfer.http import HttpTransport
from score_core.transfer.part import PartTransport

ID = "3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11"
MIB = 1 << 20


class TestOverMemory(RepositoryContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()

    @pytest.fixture
    def repository(self, store: MemoryStore) -> Repository:
        return DirectRepository(store, part_size_bytes=self.part_size)

    @pytest.fixture
    def transport(self, store: MemoryStore) -> PartTransport:
        return MemoryTransport(store)


class OverHttp(RepositoryContract):
    @pytest.fixture
    def transport(self) -> Iterator[PartTransport]:
        transport = HttpTransport()
        yield transport
        transport.close()


class TestOverFolder(OverHttp):
    @pytest.fixture
    def repository(self, tmp_path: Path) -> Iterator[Repository]:
        store = LocalStore(tmp_path / "bucket")
        yield DirectRepository(store, part_size_bytes=self.part_size)
        store.close()


@pytest.mark.s3
class TestOverMoto(OverHttp):
    part_size: ClassVar[int] = 5 * MIB
    checks_content_md5: ClassVar[bool] = False
    knows_dropped_uploads: ClassVar[bool] = False

    @pytest.fixture
    def repository(self, moto_server: S3Endpoint, s3_store_factory: StoreFactory) -> Repository:
        return DirectRepository(s3_store_factory(moto_server), part_size_bytes=self.part_size)


@pytest.mark.s3
class TestOverSeaweed(OverHttp):
    part_size: ClassVar[int] = 5 * MIB
    lists_newest_parts: ClassVar[bool] = False  # all versions (4.48), and one session may have recorded two; it completes by ETag

    @pytest.fixture
    def repository(self, seaweedfs_server: S3Endpoint, s3_store_factory: StoreFactory) -> Repository:
        return DirectRepository(s3_store_factory(seaweedfs_server), part_size_bytes=self.part_size)


# The layout, byte for byte


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def repository(store: MemoryStore) -> DirectRepository:
    return DirectRepository(store, part_size_bytes=4)


def send(store: MemoryStore, repository: DirectRepository, data: bytes, **options: Any) -> tuple[Any, list[StoredPart]]:
    upload = repository.begin_upload(ID, len(data), md5=md5_hex(data), file_name="a.bam", **options)
    stored = []
    for part in upload.parts:
        etag = store.put_part(f"data/{ID}", upload.upload_id, part.number, data[part.offset : part.end])
        stored.append(StoredPart(part.number, etag, etag))
        repository.commit_part(upload, stored[-1])
    return upload, stored


def keys(store: MemoryStore) -> list[str]:
    return [row.key for row in store.list_objects("")]


def test_bucket_during_an_upload_is_golden(store: MemoryStore, repository: DirectRepository) -> None:
    upload, _ = send(store, repository, b"abcdef")
    prefix = f"upload/{ID}_{upload.upload_id}/"
    one, two = md5_hex(b"abcd"), md5_hex(b"ef")
    assert keys(store) == [
        f"{prefix}.meta",
        f'{prefix}part-00000001|{{"partNumber":1,"md5":"{one}","etag":"{one}"}}',
        f'{prefix}part-00000002|{{"partNumber":2,"md5":"{two}","etag":"{two}"}}',
    ]
    assert {store.head(key).size for key in keys(store)[1:]} == {0}
    assert (
        store.read(f"{prefix}.meta")
        == (
            f'{{"objectKey":"data/{ID}","objectId":"{ID}","uploadId":"{upload.upload_id}","parts":['
            '{"partNumber":1,"partSize":4,"offset":0,"url":null,"md5":null},{"partNumber":2,"partSize":2,"offset":4,"url":null,"md5":null}],'
            '"objectSize":6,"objectMd5":"e80b5017098950fc58aad83c8c14978e","fileName":"a.bam"}'
        ).encode()
    )


def test_bucket_after_an_upload_is_golden(store: MemoryStore, repository: DirectRepository) -> None:
    upload, stored = send(store, repository, b"abcdef")
    repository.commit(upload, stored, sealed=True)
    assert keys(store) == [f"data/{ID}", f"data/{ID}.meta"]
    assert (
        store.read(f"data/{ID}.meta")
        == (
            f'{{"objectKey":"data/{ID}","objectId":"{ID}","uploadId":"{upload.upload_id}","parts":['
            '{"partNumber":1,"partSize":4,"offset":0,"url":null,"md5":null,"sourceMd5":"e2fc714c4727ee9395f324cd2e7f331f"},'
            '{"partNumber":2,"partSize":2,"offset":4,"url":null,"md5":null,"sourceMd5":"feb78cc258bdc76867354f01c22dbe43"}],'
            '"objectSize":6,"objectMd5":"e80b5017098950fc58aad83c8c14978e","sealed":true,"fileName":"a.bam"}'
        ).encode()
    )


def test_part_17_is_recorded_as_java_records_it(store: MemoryStore, repository: DirectRepository) -> None:
    upload = repository.begin_upload(ID, 68, md5="a" * 32)
    repository.commit_part(upload, StoredPart(17, "b" * 32, "e"))
    assert keys(store)[-1] == f'upload/{ID}_{upload.upload_id}/part-00000011|{{"partNumber":17,"md5":"{"b" * 32}","etag":"e"}}'
    assert read_record(keys(store)[-1]) == StoredPart(17, "b" * 32, "e")


def test_no_url_is_ever_stored(store: MemoryStore, repository: DirectRepository) -> None:
    upload, stored = send(store, repository, b"abcdef")
    repository.sign_uploads(upload, upload.parts)
    repository.commit(upload, stored)
    assert not [key for key in keys(store) if b"Expires" in store.read(key) or b"://" in store.read(key)]


def test_size_that_no_store_takes_leaves_the_older_upload(store: MemoryStore, repository: DirectRepository) -> None:
    upload, _ = send(store, repository, b"abcdef")
    with pytest.raises(PlanError):
        repository.begin_upload(ID, 2**62, md5="a" * 32)
    assert [unfinished.upload_id for unfinished in repository.list_uploads()] == [upload.upload_id]


def test_empty_object_has_no_parts(store: MemoryStore, repository: DirectRepository) -> None:
    upload = repository.begin_upload(ID, 0, md5=md5_hex(b""))
    repository.commit(upload, [], sealed=True)
    assert (repository.describe(ID).parts, store.read(f"data/{ID}")) == ((), b"")
    assert json.loads(store.read(f"data/{ID}.meta"))["parts"] == []


def test_legacy_object_can_be_fetched(store: MemoryStore, repository: DirectRepository) -> None:
    store.write(f"data/{ID}", b"abcdef")
    legacy = {
        "objectKey": f"data/{ID}",
        "objectId": ID,
        "uploadId": "2~old",
        "parts": [
            {"partNumber": 1, "partSize": 4, "offset": 0, "url": f"https://h/data/{ID}?Expires=1&Signature=x", "md5": "text"},
            {"partNumber": 2, "partSize": 2, "offset": 4, "url": None, "md5": None},
        ],
        "objectSize": 6,
        "relocated": False,
    }
    store.write(f"data/{ID}.meta", json.dumps(legacy).encode())
    spec = repository.describe(ID)
    assert (spec.md5, spec.sealed, [part.md5 for part in spec.parts]) == (None, False, [None, None])
    assert "Signature=x" not in repr(repository.sign_downloads(spec, [part.range for part in spec.parts]))


def test_object_without_specification_is_planned(store: MemoryStore, repository: DirectRepository) -> None:
    store.write(f"data/{ID}", b"abcdef")
    spec = repository.describe(ID)
    assert ([(part.offset, part.size) for part in spec.parts], spec.md5) == ([(0, 4), (4, 2)], None)
    assert repository.exists(ID) is False  # as Java: `exists` looks at the specification


@pytest.mark.s3
def test_content_md5_of_a_bare_object_counts(moto_server: S3Endpoint) -> None:
    bucket = moto_server.fresh_bucket()
    client = moto_server.client()
    client.put_object(Bucket=bucket, Key=f"data/{ID}", Body=b"abc", Metadata={"md5chksum": md5_base64(md5_hex(b"abc"))})
    client.close()
    store = moto_server.store(bucket)
    assert DirectRepository(store).describe(ID).md5 == md5_hex(b"abc")
    store.close()


@pytest.mark.parametrize("meta", [b"", b"[]", b"{", b"null", b'{"objectId":1}', b"\xff\xfe"])
def test_damaged_specification_is_told(store: MemoryStore, repository: DirectRepository, meta: bytes) -> None:
    store.write(f"data/{ID}", b"abcdef")
    store.write(f"data/{ID}.meta", meta)
    with pytest.raises(ServiceError, match="ask the operator"):
        repository.describe(ID)


def test_specification_of_other_bytes_is_told(store: MemoryStore, repository: DirectRepository) -> None:
    repository.commit(*send(store, repository, b"abcdef"))
    store.write(f"data/{ID}", b"abcdefg")
    with pytest.raises(Conflict, match="replaced outside of Score"):
        repository.describe(ID)


def test_specification_without_bytes_is_not_found(store: MemoryStore, repository: DirectRepository) -> None:
    repository.commit(*send(store, repository, b"abcdef"))
    store.delete(f"data/{ID}")
    with pytest.raises(ObjectNotFound):
        repository.describe(ID)


# Crashes and lost answers


def complete(store: MemoryStore, upload: Any, stored: list[StoredPart]) -> None:
    store.complete_multipart(f"data/{ID}", upload.upload_id, [ListedPart(part.number, 0, part.etag) for part in stored])


def test_crash_after_complete_is_settled_by_the_next_look(store: MemoryStore, repository: DirectRepository) -> None:  # F05
    upload, stored = send(store, repository, b"abcdef")
    complete(store, upload, stored)
    assert repository.find_upload(ID, 6) is None
    assert repository.describe(ID).md5 == md5_hex(b"abcdef")
    assert keys(store) == [f"data/{ID}", f"data/{ID}.meta"]


def test_crash_after_complete_of_other_bytes_is_not_settled(store: MemoryStore, repository: DirectRepository) -> None:
    upload, stored = send(store, repository, b"abcdef")
    complete(store, upload, stored)
    store.write(f"data/{ID}", b"ABCDEF")
    assert repository.find_upload(ID, 6) is None
    assert repository.exists(ID) is False


def test_crash_between_specification_and_clean_up_is_settled(store: MemoryStore, repository: DirectRepository) -> None:
    upload, stored = send(store, repository, b"abcdef")
    state = {key: store.read(key) for key in keys(store)}
    repository.commit(upload, stored, sealed=True)
    for key, data in state.items():
        store.write(key, data)
    assert repository.find_upload(ID, 6) is None
    assert repository.describe(ID).md5 == md5_hex(b"abcdef")
    assert keys(store) == [f"data/{ID}", f"data/{ID}.meta"]


def test_lost_reply_of_complete_is_settled_by_looking(store: MemoryStore, repository: DirectRepository) -> None:  # F34
    upload, stored = send(store, repository, b"abcdef")
    complete(store, upload, stored)
    repository.commit(upload, stored, sealed=True)
    assert repository.describe(ID).sealed is True


def test_lost_upload_is_never_taken_for_done(store: MemoryStore, repository: DirectRepository) -> None:  # F34, the other half
    upload, stored = send(store, repository, b"abcdef")
    store.abort_multipart(f"data/{ID}", upload.upload_id)
    store.write(f"data/{ID}", b"ABCDEF")  # of the same size
    with pytest.raises(ObjectNotFound, match="upload it again"):
        repository.commit(upload, stored, sealed=True)
    assert repository.exists(ID) is False


@pytest.fixture
def proxied(seaweedfs_server: S3Endpoint) -> Iterator[tuple[FaultProxy, S3Endpoint, str]]:
    """The real S3 server behind a fault injector; a bucket on it."""
    with FaultProxy(seaweedfs_server.url) as proxy:
        yield proxy, S3Endpoint(proxy.url, seaweedfs_server.access_key, seaweedfs_server.secret_key), seaweedfs_server.fresh_bucket()


@pytest.mark.s3
@pytest.mark.parametrize(
    "fault", [LoseReply(), s3_error(200, "InternalError", "We encountered an internal error"), s3_error(503, "SlowDown")]
)
def test_faulty_complete_of_a_real_server_is_settled(
    proxied: tuple[FaultProxy, S3Endpoint, str], tmp_path: Path, fault: Any
) -> None:  # F33, F34
    proxy, endpoint, bucket = proxied
    store, transport = endpoint.store(bucket), HttpTransport()
    path = tmp_path / "source"
    path.write_bytes(Random(1).randbytes(100_000))
    proxy.inject(fault, when=completes, times=1)
    Engine(DirectRepository(store, part_size_bytes=5 * MIB), transport).upload(path, ID, md5=md5_hex(path.read_bytes()))
    assert store.read(f"data/{ID}") == path.read_bytes()
    assert not list(store.list_multiparts(""))
    transport.close()
    store.close()


@pytest.mark.s3
def test_complete_that_never_works_publishes_nothing(proxied: tuple[FaultProxy, S3Endpoint, str], tmp_path: Path) -> None:
    proxy, endpoint, bucket = proxied
    store, transport = endpoint.store(bucket), HttpTransport()
    path = tmp_path / "source"
    path.write_bytes(b"abc")
    proxy.inject(s3_error(200, "InternalError"), when=completes)
    engine = Engine(DirectRepository(store, part_size_bytes=5 * MIB), transport)
    with pytest.raises(Unavailable):
        engine.upload(path, ID, md5=md5_hex(b"abc"))
    assert not engine.repository.exists(ID)
    proxy.heal()
    assert engine.upload(path, ID, md5=md5_hex(b"abc")).bytes_moved == 0
    transport.close()
    store.close()


# Two uploaders at once, step by step


class PausingStore(MemoryStore):
    """Calls `acts[method]` once, right before (or, with a `+`, right after) that method runs: what another process does meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.acts: dict[str, Callable[[], object]] = {}

    def _act(self, name: str) -> None:
        act = self.acts.pop(name, None)
        if act is not None:
            act()

    def create_multipart(self, key: str) -> str:
        self._act("create_multipart")
        return super().create_multipart(key)

    def complete_multipart(self, key: str, upload_id: str, parts: Any) -> None:
        self._act("complete_multipart")
        super().complete_multipart(key, upload_id, parts)
        self._act("complete_multipart+")

    def write_if_unchanged(self, key: str, data: bytes, *, etag: str | None) -> bool:
        self._act("write")
        done = super().write_if_unchanged(key, data, etag=etag)
        self._act("write+")
        return done


@pytest.mark.parametrize("moment", ["create_multipart", "complete_multipart", "complete_multipart+", "write", "write+"])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("joint", ["before", "during"])
def test_whenever_another_upload_comes_the_object_is_one_of_both(tmp_path: Path, moment: str, overwrite: bool, joint: str) -> None:  # F37
    """`during`: the other upload was begun at the same moment as ours, so neither dropped the other."""
    store = PausingStore()
    repository = DirectRepository(store, part_size_bytes=4)
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"abcdef")
    other.write_bytes(b"ABCDEF")
    outcomes: dict[str, TransferReport | ScoreError] = {}

    def run(path: Path) -> None:
        engine = Engine(repository, MemoryTransport(store), workers=1)
        try:
            outcomes[path.name] = engine.upload(path, ID, md5=md5_hex(path.read_bytes()), overwrite=overwrite)
        except ScoreError as error:
            outcomes[path.name] = error

    def finish_other() -> None:
        upload_id = MemoryStore.create_multipart(store, f"data/{ID}")
        etags = [MemoryStore.put_part(store, f"data/{ID}", upload_id, number, data) for number, data in ((1, b"ABCD"), (2, b"EF"))]
        MemoryStore.complete_multipart(
            store, f"data/{ID}", upload_id, [ListedPart(number, 0, etag) for number, etag in enumerate(etags, 1)]
        )

    store.acts[moment] = (lambda: run(other)) if joint == "before" else finish_other
    run(one)
    right = {name for name, outcome in outcomes.items() if isinstance(outcome, TransferReport)}
    data = store.read(f"data/{ID}") if f"data/{ID}" in keys(store) else b""
    assert data in (b"abcdef", b"ABCDEF", b"")
    if repository.exists(ID) and joint == "before":
        assert repository.describe(ID).md5 == md5_hex(data)
    last_right = {"abcdef": "one", "ABCDEF": "other"}.get(data.decode())
    if joint == "during" or not overwrite:
        assert right <= {last_right}


def test_composite_etag_is_as_s3_makes_it() -> None:
    """Of the documented form: MD5 of the binary MD5s, dash, count; checked against the real servers by the lost-reply tests."""
    parts = [md5_hex(b"abcd"), md5_hex(b"ef")]
    assert composite_etag(parts) == md5_hex(bytes.fromhex("".join(parts))) + "-2"
    assert composite_etag(["opaque"]) is None
    assert composite_etag([]) == md5_hex(b"")


def test_records_of_three_pages_all_count() -> None:  # F36
    store = MemoryStore()
    repository = DirectRepository(store, part_size_bytes=1)
    upload = repository.begin_upload(ID, 2500, md5="a" * 32)
    for part in upload.parts:
        store.put_part(f"data/{ID}", upload.upload_id, part.number, b"x")
    found = repository.find_upload(ID, 2500)
    assert found is not None
    assert len(found.stored) == 2500


def test_commits_from_several_threads_are_one_object(store: MemoryStore, repository: DirectRepository) -> None:
    upload, stored = send(store, repository, b"abcdef")
    errors: list[ScoreError] = []

    def commit() -> None:
        try:
            repository.commit(upload, stored, sealed=True)
        except ScoreError as error:
            errors.append(error)

    threads = [threading.Thread(target=commit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert keys(store) == [f"data/{ID}", f"data/{ID}.meta"]
