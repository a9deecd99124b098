"""What a Score server needs of `DirectRepository` beyond `Repository`: parts and uploads by id, the sentinel, cleaning up."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from score_core.checksum import md5_hex
from score_core.errors import ConfigurationError, Conflict, ObjectNotFound, Unavailable
from score_core.model import StoredPart, Upload
from score_core.repository.direct import DirectRepository
from score_core.repository.layout import Keys
from score_core.stores.base import ListedPart, MultipartStore, StoredObject
from score_core.stores.local import LocalStore
from score_core.testing.memory import MemoryStore, MemoryTransport
from score_core.testing.stores import put_url, request

ID = "3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11"
OTHER = "00000000-0000-0000-0000-000000000001"
DATA = b"abcdef"  # in parts of 4 and 2 bytes


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def repository(store: MemoryStore) -> DirectRepository:
    return DirectRepository(store, part_size_bytes=4)


def begin(repository: DirectRepository, **options: Any) -> Upload:
    return repository.begin_upload(ID, len(DATA), md5=md5_hex(DATA), **options)


def put(store: MemoryStore, upload: Upload, number: int, data: bytes = DATA) -> StoredPart:
    part = upload.parts[number - 1]
    etag = store.put_part(f"data/{ID}", upload.upload_id, number, data[part.offset : part.end])
    return StoredPart(number, etag, etag)


def put_all(store: MemoryStore, repository: DirectRepository, upload: Upload) -> None:
    for part in upload.parts:
        repository.record_part(ID, upload.upload_id, put(store, upload, part.number))


def keys(store: MultipartStore) -> list[str]:
    return [row.key for row in store.list_objects("")]


def records(store: MultipartStore) -> list[str]:
    return [key.rpartition("/")[2] for key in keys(store) if "part-" in key]


# Parts


def test_recorded_part_is_in_the_layout(store: MemoryStore, repository: DirectRepository) -> None:
    upload = begin(repository)
    part = put(store, upload, 2)
    for _ in range(2):
        repository.record_part(ID, upload.upload_id, part)
    assert records(store) == [f'part-00000002|{{"partNumber":2,"md5":"{part.md5}","etag":"{part.etag}"}}']


@pytest.mark.parametrize("etag", ["", "a" * 32, '"quoted"', md5_hex(b"ef").upper()])
def test_part_with_another_etag_is_not_recorded(store: MemoryStore, repository: DirectRepository, etag: str) -> None:
    upload = begin(repository)
    put(store, upload, 2)
    with pytest.raises(Conflict, match="not stored with ETag"):
        repository.record_part(ID, upload.upload_id, StoredPart(2, md5_hex(b"ef"), etag))
    assert records(store) == []


@pytest.mark.parametrize("number", [-1, 0, 1, 3, 10_001])
def test_part_that_is_not_there_is_not_recorded(store: MemoryStore, repository: DirectRepository, number: int) -> None:
    upload = begin(repository)
    part = put(store, upload, 2)
    with pytest.raises(Conflict):
        repository.record_part(ID, upload.upload_id, StoredPart(number, part.md5, part.etag))


@pytest.mark.parametrize("md5", ["", "x", "a|b", "../" * 11])
def test_record_needs_an_md5(store: MemoryStore, repository: DirectRepository, md5: str) -> None:
    upload = begin(repository)
    with pytest.raises(ConfigurationError, match="MD5"):
        repository.record_part(ID, upload.upload_id, StoredPart(2, md5, put(store, upload, 2).etag))


@pytest.mark.parametrize("upload_id", ["gone", "", "../..", "a/b", "empty"])
def test_part_of_an_unknown_upload_is_not_found(repository: DirectRepository, upload_id: str) -> None:
    begin(repository)
    with pytest.raises(ObjectNotFound):
        repository.record_part(ID, upload_id, StoredPart(1, "a" * 32, "a" * 32))


def test_new_record_of_a_part_is_its_only_one(store: MemoryStore, repository: DirectRepository) -> None:
    """Two records of one part block a Java server's finalise (protocol section 21.14)."""
    upload = begin(repository)
    repository.record_part(ID, upload.upload_id, put(store, upload, 1, b"wrong."))
    right = put(store, upload, 1)
    repository.record_part(ID, upload.upload_id, right)
    assert [json.loads(record.partition("|")[2])["etag"] for record in records(store)] == [right.etag]


def test_record_costs_three_requests(store: MemoryStore, repository: DirectRepository) -> None:
    upload = begin(repository)
    part = put(store, upload, 1)
    store.calls.clear()
    repository.record_part(ID, upload.upload_id, part)
    assert store.calls == {"holds_part": 1, "write": 1, "list_objects": 1}


def test_forgotten_part_has_no_record(store: MemoryStore, repository: DirectRepository) -> None:
    upload = begin(repository)
    put_all(store, repository, upload)
    for _ in range(2):
        repository.forget_part(ID, upload.upload_id, 1)
    assert [record[:14] for record in records(store)] == ["part-00000002|"]
    repository.forget_part(ID, "gone", 1)


@pytest.mark.parametrize("store_kind", ["memory", "folder"])
def test_resent_part_may_be_recorded(tmp_path: Path, store_kind: str) -> None:
    store: MultipartStore = MemoryStore() if store_kind == "memory" else LocalStore(tmp_path / "bucket")
    repository = DirectRepository(store, part_size_bytes=4)
    upload = begin(repository)
    for data in (b"old.", b"abcd"):
        url = put_url(store, f"data/{ID}", upload.upload_id, upload.parts[0])
        if isinstance(store, MemoryStore):
            MemoryTransport(store).put(4, url, [data])
        else:
            assert request(url, data=data).status == 200
        repository.record_part(ID, upload.upload_id, StoredPart(1, md5_hex(data), md5_hex(data)))
    assert len(records(store)) == 1
    with pytest.raises(Conflict):
        repository.record_part(ID, upload.upload_id, StoredPart(1, md5_hex(b"old."), md5_hex(b"old.")))
    store.close()


# The end of an upload


def test_finish_publishes_what_is_recorded(store: MemoryStore, repository: DirectRepository) -> None:
    upload = begin(repository, file_name="a.bam")
    put_all(store, repository, upload)
    assert repository.is_in_progress(ID, upload.upload_id) is True
    repository.finish(ID, upload.upload_id, sealed=True)
    spec = repository.describe(ID)
    assert (spec.md5, spec.sealed, spec.file_name, spec.upload_id) == (md5_hex(DATA), True, "a.bam", upload.upload_id)
    assert [part.md5 for part in spec.parts] == [md5_hex(b"abcd"), md5_hex(b"ef")]
    assert keys(store) == [f"data/{ID}", f"data/{ID}.meta"]
    assert repository.is_in_progress(ID, upload.upload_id) is False


def test_finish_may_be_said_again(store: MemoryStore, repository: DirectRepository) -> None:
    upload = begin(repository)
    put_all(store, repository, upload)
    for _ in range(3):
        repository.finish(ID, upload.upload_id, sealed=True)
    assert repository.describe(ID).sealed is True


def test_finish_names_the_first_missing_part(store: MemoryStore, repository: DirectRepository) -> None:
    upload = begin(repository)
    with pytest.raises(Conflict, match="Part 1 of 2"):
        repository.finish(ID, upload.upload_id)
    repository.record_part(ID, upload.upload_id, put(store, upload, 1))
    put(store, upload, 2)  # stored, but not recorded
    with pytest.raises(Conflict, match="Part 2 of 2"):
        repository.finish(ID, upload.upload_id)
    assert repository.exists(ID) is False


def test_finish_of_a_changed_part_publishes_nothing(store: MemoryStore, repository: DirectRepository) -> None:
    upload = begin(repository)
    put_all(store, repository, upload)
    put(store, upload, 1, b"other.")
    with pytest.raises(Conflict):
        repository.finish(ID, upload.upload_id)
    assert repository.exists(ID) is False
    repository.record_part(ID, upload.upload_id, put(store, upload, 1))
    repository.finish(ID, upload.upload_id)
    assert store.read(f"data/{ID}") == DATA


@pytest.mark.parametrize("upload_id", ["gone", "", "../..", "empty"])
@pytest.mark.parametrize("published", [False, True])
def test_unknown_upload_is_never_taken_for_finished(
    store: MemoryStore, repository: DirectRepository, upload_id: str, published: bool
) -> None:
    """A Java server says 200 here (trap 21.15), also when what is published came from another upload."""
    if published:
        upload = begin(repository)
        put_all(store, repository, upload)
        repository.finish(ID, upload.upload_id)
    with pytest.raises(ObjectNotFound):
        repository.finish(ID, upload_id)


def test_specification_is_written_though_the_store_had_completed(store: MemoryStore, repository: DirectRepository) -> None:
    """A Java server that gets 404 from CompleteMultipartUpload stops there, and the object has no `.meta` for ever."""
    upload = begin(repository)
    put_all(store, repository, upload)
    listed = [ListedPart(1, 4, md5_hex(b"abcd")), ListedPart(2, 2, md5_hex(b"ef"))]
    store.complete_multipart(f"data/{ID}", upload.upload_id, listed)
    repository.finish(ID, upload.upload_id)
    assert repository.describe(ID).md5 == md5_hex(DATA)
    assert keys(store) == [f"data/{ID}", f"data/{ID}.meta"]


def test_aborted_upload_cannot_be_finished(store: MemoryStore, repository: DirectRepository) -> None:
    upload = begin(repository)
    put_all(store, repository, upload)
    store.abort_multipart(f"data/{ID}", upload.upload_id)  # by a lifecycle rule: our state is still there
    with pytest.raises(ObjectNotFound, match="upload it again"):
        repository.finish(ID, upload.upload_id)
    assert repository.exists(ID) is False


class EncryptingStore(MemoryStore):
    """Its ETags say nothing about the bytes, as with keys of the store (protocol section 21.6)."""

    def head(self, key: str) -> StoredObject:
        found = super().head(key)
        return dataclasses.replace(found, etag=f"opaque-{found.etag}") if key == f"data/{ID}" else found


def test_finish_may_be_said_again_though_parts_are_encrypted() -> None:
    store = EncryptingStore()
    repository = DirectRepository(store, part_size_bytes=4)
    upload = begin(repository)
    for part in upload.parts:
        stored = put(store, upload, part.number)
        repository.record_part(ID, upload.upload_id, StoredPart(part.number, "b" * 32, stored.etag))
    state = {key: store.read(key) for key in keys(store)}
    repository.finish(ID, upload.upload_id)
    for key, data in state.items():  # the process was killed before it cleaned up
        store.write(key, data)
    repository.finish(ID, upload.upload_id)
    assert [part.md5 for part in repository.describe(ID).parts] == ["b" * 32] * 2


def test_empty_object_is_finished_by_id(store: MemoryStore, repository: DirectRepository) -> None:
    upload = repository.begin_upload(ID, 0, md5=md5_hex(b""), file_name="a.bam")
    found = repository.find_upload(ID, 0)
    assert found == upload
    for _ in range(2):
        repository.finish(ID, upload.upload_id, sealed=True)
    assert (repository.describe(ID).size, repository.describe(ID).file_name) == (0, "a.bam")
    assert keys(store) == [f"data/{ID}", f"data/{ID}.meta"]


def test_dropped_empty_object_is_gone(store: MemoryStore, repository: DirectRepository) -> None:
    upload = repository.begin_upload(ID, 0, md5=None)
    assert repository.abort(ID) is True
    assert keys(store) == []
    with pytest.raises(ObjectNotFound):
        repository.finish(ID, upload.upload_id)


def test_id_is_one_in_any_case(store: MemoryStore, repository: DirectRepository) -> None:
    upload = repository.begin_upload(ID.upper(), len(DATA), md5=None)
    put_all(store, repository, upload)
    repository.finish(ID.upper(), upload.upload_id)
    assert keys(store) == [f"data/{ID}", f"data/{ID}.meta"]


def test_describe_is_one_get_and_one_head(store: MemoryStore, repository: DirectRepository) -> None:
    upload = begin(repository)
    put_all(store, repository, upload)
    repository.finish(ID, upload.upload_id)
    store.calls.clear()
    repository.describe(ID)
    assert store.calls == {"read": 1, "head": 1}


# URLs in the state, for Java servers


@pytest.mark.parametrize("keep", [True, False])
def test_upload_urls_are_kept_only_when_asked(store: MemoryStore, keep: bool) -> None:
    repository = DirectRepository(store, part_size_bytes=4, keep_upload_urls=keep, upload_lifetime_s=60)
    upload = begin(repository)
    meta = json.loads(store.read(f"upload/{ID}_{upload.upload_id}/.meta"))
    queries = [dict(parse_qsl(urlsplit(part["url"] or "").query)) for part in meta["parts"]]
    assert [query.get("partNumber") for query in queries] == (["1", "2"] if keep else [None, None])
    put_all(store, repository, upload)
    repository.finish(ID, upload.upload_id)
    assert [part["url"] for part in json.loads(store.read(f"data/{ID}.meta"))["parts"]] == [None, None]


def test_directories_can_be_others(store: MemoryStore) -> None:
    repository = DirectRepository(store, part_size_bytes=4, keys=Keys("", "state"))
    upload = begin(repository)
    assert keys(store) == [f"state/{ID}_{upload.upload_id}/.meta"]
    for part in upload.parts:
        etag = store.put_part(ID, upload.upload_id, part.number, DATA[part.offset : part.end])
        repository.record_part(ID, upload.upload_id, StoredPart(part.number, etag, etag))
    store.create_multipart("somebody/else")
    assert [row.upload_id for row in repository.list_uploads()] == [upload.upload_id]
    repository.finish(ID, upload.upload_id)
    store.write("readme", b"")
    assert keys(store) == [ID, f"{ID}.meta", "readme"]
    assert json.loads(store.read(f"{ID}.meta"))["objectKey"] == ID
    assert [row.object_id for row in repository.list_objects()] == [ID]


# The sentinel


def test_sentinel_is_made_once(store: MemoryStore, repository: DirectRepository) -> None:
    store.write("data/heliograph", b"the operator's own")
    repository.ensure_sentinel()
    assert store.read("data/heliograph") == b"the operator's own"
    store.delete("data/heliograph")
    repository.ensure_sentinel()
    assert store.head("data/heliograph").size < 100
    assert list(repository.list_objects()) == []


def test_sentinel_url_lives_five_minutes() -> None:
    store = MemoryStore(clock=lambda: 1000.0)
    store.calls.clear()
    url = DirectRepository(store, sentinel="other").sign_sentinel()
    assert (urlsplit(url.url).path, url.expires_at, url.headers) == ("/data/other", 1300.0, {})
    assert store.calls == {"presign_gets": 1}


def test_no_sentinel_is_said(store: MemoryStore) -> None:
    repository = DirectRepository(store, sentinel=None)
    with pytest.raises(ConfigurationError, match="no sentinel"):
        repository.sign_sentinel()
    repository.ensure_sentinel()
    assert keys(store) == []


# Stale uploads


def test_only_stale_uploads_are_dropped() -> None:
    now = [0.0]
    store = MemoryStore(clock=lambda: now[0])
    repository = DirectRepository(store, part_size_bytes=4)
    old = begin(repository)
    repository.record_part(ID, old.upload_id, put(store, old, 1))
    other = repository.begin_upload(OTHER, 3, md5=None)
    now[0] = 1e10  # in the future of any test
    new_id = store.create_multipart(f"data/{ID}")
    store.write(f"upload/{ID}_{new_id}/.meta", b"{}")
    dropped = repository.drop_stale_uploads(60)
    assert [(row.object_id, row.upload_id) for row in dropped] == [(OTHER, other.upload_id), (ID, old.upload_id)]
    assert [row.upload_id for row in repository.list_uploads()] == [new_id]
    assert keys(store) == [f"upload/{ID}_{new_id}/.meta"]


def test_one_failure_does_not_stop_the_cleaning(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(MemoryStore):
        def abort_multipart(self, key: str, upload_id: str) -> None:
            if OTHER in key:
                raise Unavailable("The store is busy")
            super().abort_multipart(key, upload_id)

    store = Failing(clock=lambda: 0.0)
    repository = DirectRepository(store, part_size_bytes=4)
    stays, goes = repository.begin_upload(OTHER, 3, md5=None), begin(repository)
    with caplog.at_level(logging.WARNING):
        assert [row.upload_id for row in repository.drop_stale_uploads(60)] == [goes.upload_id]
    assert [row.upload_id for row in repository.list_uploads()] == [stays.upload_id]
    assert f"Upload {stays.upload_id} of object {OTHER} could not be dropped: The store is busy" in caplog.text
