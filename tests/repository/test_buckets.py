"""Which bucket an object is in (protocol section 5.4), and what follows for reading, writing and listing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from score_core.checksum import md5_hex
from score_core.errors import ConfigurationError, ObjectNotFound, ServiceError
from score_core.model import ByteRange, StoredPart
from score_core.repository.buckets import Buckets, open_buckets
from score_core.repository.direct import DirectRepository
from score_core.stores.local import LocalStore
from score_core.testing.memory import MemoryStore, MemoryTransport

ID = "56f3cb04-38b4-574c-bffb-af1426113194"
OTHERS = ("00000000-0000-0000-0000-000000000001", "ff000000-0000-0000-0000-000000000002", "7f000000-0000-0000-0000-000000000003")


def publish(repository: DirectRepository, transport: MemoryTransport, object_id: str, data: bytes, *, overwrite: bool = False) -> None:
    upload = repository.begin_upload(object_id, len(data), md5=md5_hex(data), overwrite=overwrite)
    for part, url in zip(upload.parts, repository.sign_uploads(upload, upload.parts), strict=True):
        piece = data[part.offset : part.end]
        repository.record_part(
            object_id, upload.upload_id, StoredPart(part.number, md5_hex(piece), transport.put(part.size, url, [piece]).etag)
        )
    repository.finish(object_id, upload.upload_id)


def fetch(repository: DirectRepository, transport: MemoryTransport, object_id: str) -> bytes:
    spec, data = repository.describe(object_id), bytearray()
    for part, url in zip(spec.parts, repository.sign_downloads(spec, [part.range for part in spec.parts]), strict=True):
        transport.get(part.range, url, data.extend, if_match=spec.etag)
    return bytes(data)


@pytest.mark.parametrize(("key_digits", "pool", "number"), [(1, 20, 5), (2, 10, 6), (2, 100, 86), (3, 10, 1), (3, 2000, 1391), (7, 10, 2)])
def test_partition_is_as_the_protocol_says(key_digits: int, pool: int, number: int) -> None:
    buckets = Buckets(MemoryStore(), pool=pool, key_digits=key_digits)
    assert buckets.of(ID).data.label == f"memory://store.{number}"


def test_without_a_pool_all_is_in_the_base() -> None:
    buckets = Buckets(MemoryStore(), MemoryStore(name="state"), key_digits=0)
    assert [store.label for store in buckets.of(ID)] == ["memory://store", "memory://state"]
    assert buckets.of("x") == buckets.base


def test_state_has_partitions_of_its_own() -> None:
    buckets = Buckets(MemoryStore(), MemoryStore(name="state"), pool=10)
    assert [store.label for store in buckets.of(ID)] == ["memory://store.6", "memory://state.6"]


@pytest.mark.parametrize(("pool", "key_digits"), [(1, 0), (1, -1), (1, 8), (-1, 2)])
def test_impossible_partitions_are_refused(pool: int, key_digits: int) -> None:
    with pytest.raises(ConfigurationError):
        Buckets(MemoryStore(), pool=pool, key_digits=key_digits)


@pytest.mark.parametrize("object_id", ["1-2-3-4-5", "xy", "", "-1", "+1", "0_1", " 1"])
def test_id_without_enough_hex_digits_has_no_partition(object_id: str) -> None:
    with pytest.raises(ServiceError, match="must begin with 3 hex digits"):
        Buckets(MemoryStore(), pool=10, key_digits=3).of(object_id)


def test_folders_have_no_partitions(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="S3"):
        Buckets(LocalStore(tmp_path), pool=2)


def test_addresses_open_as_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    place = "?endpoint=http://127.0.0.1:1"
    buckets = open_buckets(f"s3://objects/p{place}", state_address=f"s3://state/q{place}", pool=10)
    assert [store.label for store in buckets.of(ID)] == ["s3://objects.6/p", "s3://state.6/q"]
    assert buckets.label == "s3://objects/p in 10 partitions"
    buckets.close()
    single = open_buckets(f"s3://objects{place}")
    assert single.base.data is single.base.state is single.of(ID).data
    single.close()


def test_address_that_cannot_be_partitioned_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="S3"):
        open_buckets(f"file://{tmp_path}", pool=2)
    assert open_buckets(f"file://{tmp_path}").label == f"file://{tmp_path}"


# A partitioned repository


@pytest.fixture
def base() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def state() -> MemoryStore:
    return MemoryStore(name="state")


@pytest.fixture
def repository(base: MemoryStore, state: MemoryStore) -> DirectRepository:
    return DirectRepository(Buckets(base, state, pool=10), part_size_bytes=4)


@pytest.fixture
def transport(base: MemoryStore) -> MemoryTransport:
    return MemoryTransport(base)


@pytest.fixture
def relocate(base: MemoryStore, state: MemoryStore, transport: MemoryTransport) -> Callable[..., None]:
    """Publishes objects in the base buckets, as before the partitioning."""
    before = DirectRepository(Buckets(base, state), part_size_bytes=4)
    return lambda object_id, data: publish(before, transport, object_id, data)


def keys(store: MemoryStore) -> list[str]:
    return [row.key for row in store.list_objects("")]


def test_object_is_written_in_its_partition(
    repository: DirectRepository, transport: MemoryTransport, base: MemoryStore, state: MemoryStore
) -> None:
    publish(repository, transport, ID, b"abcdef")
    assert (keys(base), keys(base.partition(6))) == ([], [f"data/{ID}"])
    assert (keys(state), keys(state.partition(6))) == ([], [f"data/{ID}.meta"])
    assert fetch(repository, transport, ID) == b"abcdef"
    assert repository.describe(ID).relocated is False


def test_upload_keeps_its_state_in_the_partition(repository: DirectRepository, state: MemoryStore) -> None:
    upload = repository.begin_upload(ID, 3, md5=None)
    assert keys(state.partition(6)) == [f"upload/{ID}_{upload.upload_id}/.meta"]
    assert [row.upload_id for row in repository.list_uploads()] == [upload.upload_id]
    assert repository.abort(ID) is True
    assert (keys(state.partition(6)), list(repository.list_uploads())) == ([], [])


def test_relocated_object_is_read_from_the_base(
    repository: DirectRepository, transport: MemoryTransport, relocate: Callable[..., None]
) -> None:
    relocate(ID, b"abcdef")
    assert repository.exists(ID) is True
    assert repository.describe(ID).relocated is True
    assert fetch(repository, transport, ID) == b"abcdef"
    data = bytearray()
    transport.get(ByteRange(1, 2), repository.sign_external(ID), data.extend)
    assert data == b"bc"


def test_relocated_object_that_comes_again_is_the_new_one(
    repository: DirectRepository, transport: MemoryTransport, relocate: Callable[..., None], base: MemoryStore
) -> None:
    relocate(ID, b"abcdef")
    publish(repository, transport, ID, b"new", overwrite=True)
    assert fetch(repository, transport, ID) == b"new"
    assert base.read(f"data/{ID}") == b"abcdef"  # write paths leave the base alone
    assert [(row.object_id, row.size) for row in repository.list_objects()] == [(ID, 3)]


def test_object_without_specification_is_not_looked_for_in_the_base(repository: DirectRepository, base: MemoryStore) -> None:
    base.write(f"data/{ID}", b"abcdef")
    with pytest.raises(ObjectNotFound):
        repository.describe(ID)
    with pytest.raises(ObjectNotFound):
        repository.sign_external(ID)
    base.partition(6).write(f"data/{ID}", b"abc")
    assert (repository.describe(ID).size, repository.describe(ID).relocated) == (3, False)


@pytest.mark.parametrize("missing", [True, False])
def test_lists_go_over_all_buckets_in_order(
    repository: DirectRepository, transport: MemoryTransport, relocate: Callable[..., None], base: MemoryStore, missing: bool
) -> None:
    for object_id in (ID, *OTHERS):
        publish(repository, transport, object_id, b"abc")
    old = "10000000-0000-0000-0000-000000000004"
    relocate(old, b"abc")
    begun = {repository.begin_upload(object_id, 3, md5=None, overwrite=True).upload_id for object_id in OTHERS}
    base.missing = missing
    assert [row.object_id for row in repository.list_objects()] == sorted({ID, *OTHERS, old} - ({old} if missing else set()))
    assert [row.object_id for row in repository.list_uploads()] == sorted(OTHERS)
    assert {row.upload_id for row in repository.list_uploads()} == begun


def test_missing_bucket_is_told_where_it_is_needed(repository: DirectRepository, base: MemoryStore) -> None:
    base.partition(4).missing = True
    with pytest.raises(ObjectNotFound, match=r"store\.4"):
        list(repository.list_objects())
    with pytest.raises(ObjectNotFound):
        DirectRepository(MissingStore()).check()


class MissingStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.missing = True


def test_health_is_that_of_the_first_partition(repository: DirectRepository, base: MemoryStore, state: MemoryStore) -> None:
    base.missing = True
    repository.check()
    state.partition(0).missing = True
    with pytest.raises(ObjectNotFound, match=r"state\.0"):
        repository.check()


def test_stale_uploads_are_dropped_in_every_bucket(state: MemoryStore) -> None:
    now = [0.0]
    base = MemoryStore(clock=lambda: now[0])
    before, after = DirectRepository(Buckets(base, state)), DirectRepository(Buckets(base, state, pool=10))
    begun = {repository.begin_upload(object_id, 3, md5=None).upload_id for repository in (before, after) for object_id in (ID, *OTHERS)}
    assert {upload.upload_id for upload in after.drop_stale_uploads(10)} == begun
    assert list(after.list_uploads()) == list(before.list_uploads()) == []
    assert keys(state) == keys(state.partition(6)) == []


@pytest.mark.s3
def test_partitions_are_real_buckets(moto_server) -> None:
    from score_core.transfer.http import HttpTransport

    bucket = moto_server.fresh_bucket()
    client = moto_server.client()
    client.create_bucket(Bucket=f"{bucket}.6")
    store = moto_server.store(bucket)
    repository, transport = DirectRepository(Buckets(store, pool=10)), HttpTransport()
    upload = repository.begin_upload(ID, 3, md5=md5_hex(b"abc"))
    (url,) = repository.sign_uploads(upload, upload.parts)
    repository.record_part(ID, upload.upload_id, StoredPart(1, md5_hex(b"abc"), transport.put(3, url, [b"abc"]).etag))
    repository.finish(ID, upload.upload_id)
    assert client.get_object(Bucket=f"{bucket}.6", Key=f"data/{ID}")["Body"].read() == b"abc"
    assert repository.describe(ID).md5 == md5_hex(b"abc")
    for closing in (client, transport, repository):
        closing.close()
