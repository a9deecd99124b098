"""What every repository promises, as tests with real bytes: subclass with a `repository` and a `transport` that reaches its URLs.

    class TestMine(RepositoryContract):
        part_size = 64 << 10

        @pytest.fixture
        def repository(self): ...

        @pytest.fixture
        def transport(self): ...

Each test gets a fresh object id, so a repository may be shared by all tests of a class.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any, ClassVar
from uuid import uuid4

import pytest

from score_core.checksum import md5_hex
from score_core.errors import (
    ConfigurationError,
    Conflict,
    NotResumableError,
    ObjectMismatch,
    ObjectNotFound,
    PartMismatch,
    ScoreError,
    TransferError,
)
from score_core.model import ByteRange, Part, StoredPart, TransferReport, Upload
from score_core.repository.base import Repository
from score_core.repository.layout import tiles
from score_core.transfer.engine import Engine
from score_core.transfer.part import PartTransport
from score_core.transfer.policy import RetryPolicy

BAD_IDS = (
    "",
    "x",
    "../../etc/passwd",
    "3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11/../x",
    "3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11?a=b",
    "a" * 10_000,
)


class RepositoryContract:
    """Every promise of `repository/base.py`. `part_size` is the smallest part that the repository under test plans.

    Of some stores less can be asked: `checks_content_md5`, `knows_dropped_uploads` (a PUT to one is answered with 404) and
    `lists_newest_parts` (of a part that was sent twice, ListParts shows the second alone) say so.
    """

    part_size: ClassVar[int] = 64 << 10
    checks_content_md5: ClassVar[bool] = True
    knows_dropped_uploads: ClassVar[bool] = True
    lists_newest_parts: ClassVar[bool] = True

    # What the tests are made of

    @pytest.fixture
    def object_id(self) -> str:
        return str(uuid4())

    def bytes_of(self, size: int, seed: int = 1) -> bytes:
        return Random(f"{seed} {size}").randbytes(size)

    def engine(self, repository: Repository, transport: PartTransport) -> Engine:
        return Engine(repository, transport, workers=4, policy=RetryPolicy(attempts=3, base_s=0.01))

    def send(self, transport: PartTransport, repository: Repository, upload: Upload, part: Part, data: bytes) -> StoredPart:
        """Sends and records one part without the engine."""
        url = repository.sign_uploads(upload, [part])[0]
        reply = transport.put(part.size, url, [data[part.offset : part.end]])
        stored = StoredPart(part.number, md5_hex(data[part.offset : part.end]), reply.etag)
        repository.commit_part(upload, stored)
        return stored

    def send_all(self, transport: PartTransport, repository: Repository, upload: Upload, data: bytes) -> list[StoredPart]:
        return [self.send(transport, repository, upload, part, data) for part in upload.parts]

    def publish(self, transport: PartTransport, repository: Repository, object_id: str, data: bytes, *, overwrite: bool = False) -> Upload:
        """Stores an object step by step."""
        upload = repository.begin_upload(object_id, len(data), md5=md5_hex(data), file_name="a.bam", overwrite=overwrite)
        repository.commit(upload, self.send_all(transport, repository, upload, data), sealed=True)
        return upload

    def fetch(self, transport: PartTransport, repository: Repository, object_id: str) -> bytes:
        """The object's bytes, over its URLs, part by part."""
        spec = repository.describe(object_id)
        got = bytearray()
        for part, url in zip(spec.parts, repository.sign_downloads(spec, [part.range for part in spec.parts]), strict=True):
            transport.get(part.range, url, got.extend, if_match=spec.etag)
        return bytes(got)

    def unfinished(self, repository: Repository, object_id: str) -> list[str]:
        return [upload.upload_id for upload in repository.list_uploads() if upload.object_id == object_id]

    def upload_file(
        self, repository: Repository, transport: PartTransport, path: Path, object_id: str, *, overwrite: bool = False
    ) -> TransferReport:
        engine = self.engine(repository, transport)
        return engine.upload(path, object_id, md5=md5_hex(path.read_bytes()), overwrite=overwrite)

    # An object that is not there

    def test_repository_is_one(self, repository: Repository) -> None:
        assert isinstance(repository, Repository)
        assert not {"?", "@"} & set(repository.label)

    def test_unknown_object_is_not_there(self, repository: Repository, object_id: str) -> None:
        assert repository.exists(object_id) is False
        assert repository.find_upload(object_id, 3) is None
        assert repository.abort(object_id) is False

    @pytest.mark.parametrize("verb", ["describe", "sign_external"])
    def test_unknown_object_is_not_found(self, repository: Repository, object_id: str, verb: str) -> None:
        with pytest.raises(ObjectNotFound):
            getattr(repository, verb)(object_id)

    @pytest.mark.parametrize("bad", BAD_IDS)
    def test_upload_of_what_is_no_id_is_not_looked_for(self, repository: Repository, bad: str) -> None:
        with pytest.raises(ConfigurationError):
            repository.find_upload(bad, 1)

    @pytest.mark.parametrize("verb", ["exists", "describe", "sign_external", "abort"])
    @pytest.mark.parametrize("bad", BAD_IDS)
    def test_what_is_no_id_is_refused(self, repository: Repository, verb: str, bad: str) -> None:
        with pytest.raises(ConfigurationError):
            getattr(repository, verb)(bad)

    @pytest.mark.parametrize("bad", BAD_IDS)
    def test_upload_to_what_is_no_id_is_refused(self, repository: Repository, bad: str) -> None:
        with pytest.raises(ConfigurationError):
            repository.begin_upload(bad, 1, md5="a" * 32, overwrite=True)

    # An object that is

    def test_published_object_is_described(self, repository: Repository, transport: PartTransport, object_id: str) -> None:
        data = self.bytes_of(2 * self.part_size + 3)
        self.publish(transport, repository, object_id, data)
        spec = repository.describe(object_id)
        assert repository.exists(object_id) is True
        assert (spec.object_id, spec.size, spec.md5, spec.sealed) == (object_id, len(data), md5_hex(data), True)
        assert tiles(spec.parts, len(data))
        assert [part.md5 for part in spec.parts] == [md5_hex(data[part.offset : part.end]) for part in spec.parts]
        assert spec.etag

    def test_unsealed_object_is_described_as_such(self, repository: Repository, transport: PartTransport, object_id: str) -> None:
        upload = repository.begin_upload(object_id, 3, md5=md5_hex(b"abc"))
        repository.commit(upload, self.send_all(transport, repository, upload, b"abc"))
        assert repository.describe(object_id).sealed is False

    def test_bytes_come_back(self, repository: Repository, transport: PartTransport, object_id: str) -> None:
        data = self.bytes_of(2 * self.part_size + 3)
        self.publish(transport, repository, object_id, data)
        assert self.fetch(transport, repository, object_id) == data

    def test_any_ranges_are_signed_in_order(self, repository: Repository, transport: PartTransport, object_id: str) -> None:
        data = self.bytes_of(self.part_size + 100)
        self.publish(transport, repository, object_id, data)
        ranges = [ByteRange(self.part_size - 5, 10), ByteRange(0, 1), ByteRange(len(data) - 1, 1)]
        for byte_range, url in zip(ranges, repository.sign_downloads(repository.describe(object_id), ranges), strict=True):
            got = bytearray()
            transport.get(byte_range, url, got.extend)
            assert bytes(got) == data[byte_range.offset : byte_range.end]
            assert url.method == "GET"

    def test_external_url_takes_any_range(self, repository: Repository, transport: PartTransport, object_id: str) -> None:
        data = self.bytes_of(1000)
        self.publish(transport, repository, object_id, data)
        url = repository.sign_external(object_id)
        for byte_range in (ByteRange(0, 1000), ByteRange(10, 5)):
            got = bytearray()
            transport.get(byte_range, url, got.extend)
            assert bytes(got) == data[byte_range.offset : byte_range.end]

    def test_published_object_is_listed(self, repository: Repository, transport: PartTransport, object_id: str) -> None:
        self.publish(transport, repository, object_id, b"abc")
        rows = [row for row in repository.list_objects() if row.object_id == object_id]
        assert [row.size for row in rows] == [3]
        assert self.unfinished(repository, object_id) == []

    def test_listing_is_by_id(self, repository: Repository, transport: PartTransport) -> None:
        for _ in range(3):
            self.publish(transport, repository, str(uuid4()), b"abc")
        ids = [row.object_id for row in repository.list_objects()]
        assert ids == sorted(ids)
        assert len(ids) == len(set(ids))

    # An upload in progress

    def test_upload_in_progress_is_found(self, repository: Repository, transport: PartTransport, object_id: str) -> None:
        data = self.bytes_of(2 * self.part_size + 3)
        upload = repository.begin_upload(object_id, len(data), md5=md5_hex(data), file_name="a.bam")
        stored = self.send(transport, repository, upload, upload.parts[1], data)
        found = repository.find_upload(object_id, len(data))
        assert found is not None
        assert (found.upload_id, found.size, found.md5, found.parts) == (upload.upload_id, len(data), md5_hex(data), upload.parts)
        assert dict(found.stored) == {2: stored}
        assert repository.exists(object_id) is False
        assert self.unfinished(repository, object_id) == [upload.upload_id]

    def test_upload_of_another_size_is_a_conflict(self, repository: Repository, object_id: str) -> None:
        repository.begin_upload(object_id, 4, md5="a" * 32)
        with pytest.raises(Conflict):
            repository.find_upload(object_id, 3)
        repository.abort(object_id)

    def test_check_finds_nothing_wrong(self, repository: Repository, transport: PartTransport, object_id: str) -> None:
        self.publish(transport, repository, object_id, b"abc")  # so that there is a folder
        repository.check()

    def test_plan_tiles_the_size(self, repository: Repository, object_id: str) -> None:
        upload = repository.begin_upload(object_id, 3 * self.part_size + 1, md5="a" * 32)
        assert tiles(upload.parts, 3 * self.part_size + 1)
        repository.abort(object_id)

    def test_new_upload_drops_the_old(self, repository: Repository, transport: PartTransport, object_id: str) -> None:
        old = repository.begin_upload(object_id, 3, md5="a" * 32)
        new = repository.begin_upload(object_id, 3, md5=md5_hex(b"abc"))
        assert self.unfinished(repository, object_id) == [new.upload_id]
        with pytest.raises(ScoreError):
            repository.commit(old, [StoredPart(1, "a" * 32, "a" * 32)])
        repository.commit(new, self.send_all(transport, repository, new, b"abc"))
        assert self.fetch(transport, repository, object_id) == b"abc"

    def test_existing_object_is_not_uploaded_over(self, repository: Repository, transport: PartTransport, object_id: str) -> None:
        self.publish(transport, repository, object_id, b"abc")
        with pytest.raises(Conflict):
            repository.begin_upload(object_id, 3, md5="a" * 32)
        assert self.unfinished(repository, object_id) == []

    def test_overwriting_replaces_all_of_it(self, repository: Repository, transport: PartTransport, object_id: str) -> None:
        self.publish(transport, repository, object_id, self.bytes_of(2 * self.part_size))
        before = repository.describe(object_id)
        self.publish(transport, repository, object_id, b"abc", overwrite=True)
        after = repository.describe(object_id)
        assert (after.size, after.md5, len(after.parts)) == (3, md5_hex(b"abc"), 1)
        assert after.etag != before.etag
        assert self.fetch(transport, repository, object_id) == b"abc"

    def test_old_object_stays_until_the_new_one_is_committed(
        self, repository: Repository, transport: PartTransport, object_id: str
    ) -> None:
        self.publish(transport, repository, object_id, b"abc")
        upload = repository.begin_upload(object_id, 3, md5=md5_hex(b"def"), overwrite=True)
        self.send_all(transport, repository, upload, b"def")
        assert self.fetch(transport, repository, object_id) == b"abc"
        repository.abort(object_id)
        assert self.fetch(transport, repository, object_id) == b"abc"

    def test_later_record_of_a_part_replaces_the_earlier(self, repository: Repository, transport: PartTransport, object_id: str) -> None:
        upload = repository.begin_upload(object_id, 3, md5=md5_hex(b"def"))
        self.send_all(transport, repository, upload, b"abc")
        stored = self.send_all(transport, repository, upload, b"def")
        repository.commit_part(upload, stored[0])
        found = repository.find_upload(object_id, 3)
        assert found is not None
        assert dict(found.stored) == {1: stored[0]} or not self.lists_newest_parts
        repository.commit(upload, stored)
        assert self.fetch(transport, repository, object_id) == b"def"

    def test_signed_digest_refuses_other_bytes(self, repository: Repository, transport: PartTransport, object_id: str) -> None:
        if not self.checks_content_md5:
            pytest.skip("this store does not look at Content-MD5")
        upload = repository.begin_upload(object_id, 3, md5=md5_hex(b"abc"))
        url = repository.sign_uploads(upload, [Part(1, 0, 3, md5_hex(b"abc"))], content_md5=True)[0]
        with pytest.raises(PartMismatch):
            transport.put(3, url, [b"xyz"])
        assert transport.put(3, url, [b"abc"]).etag
        repository.abort(object_id)

    # The end of an upload

    def test_commit_may_be_said_twice(self, repository: Repository, transport: PartTransport, object_id: str) -> None:
        data = self.bytes_of(self.part_size + 1)
        upload = repository.begin_upload(object_id, len(data), md5=md5_hex(data))
        stored = self.send_all(transport, repository, upload, data)
        for _ in range(2):
            repository.commit(upload, stored, sealed=True)
        assert self.fetch(transport, repository, object_id) == data
        assert self.unfinished(repository, object_id) == []

    @pytest.mark.parametrize("what", ["a part is missing", "a part has another ETag"])
    def test_incomplete_upload_is_not_published(self, repository: Repository, transport: PartTransport, object_id: str, what: str) -> None:
        data = self.bytes_of(2 * self.part_size)
        upload = repository.begin_upload(object_id, len(data), md5=md5_hex(data))
        first = self.send(transport, repository, upload, upload.parts[0], data)
        other = "a" * 32
        if what == "a part has another ETag":
            self.send(transport, repository, upload, upload.parts[1], data)
        with pytest.raises(Conflict):
            repository.commit(upload, [first, StoredPart(2, other, other)])
        assert repository.exists(object_id) is False
        repository.commit(upload, [first, self.send(transport, repository, upload, upload.parts[1], data)])
        assert self.fetch(transport, repository, object_id) == data

    def test_aborted_upload_is_gone(self, repository: Repository, transport: PartTransport, object_id: str) -> None:
        upload = repository.begin_upload(object_id, 3, md5=md5_hex(b"abc"))
        stored = self.send_all(transport, repository, upload, b"abc")
        assert repository.abort(object_id) is True
        assert repository.abort(object_id) is False
        assert repository.find_upload(object_id, 3) is None
        with pytest.raises(ObjectNotFound):
            repository.commit(upload, stored)
        assert repository.exists(object_id) is False

    # With the engine

    @pytest.mark.parametrize("parts", [0, 1, 2])
    @pytest.mark.parametrize("more", [0, 1])
    def test_engine_brings_bytes_there_and_back(
        self, repository: Repository, transport: PartTransport, object_id: str, tmp_path: Path, parts: int, more: int
    ) -> None:
        data = self.bytes_of(parts * self.part_size + more)
        (tmp_path / "source").write_bytes(data)
        assert self.upload_file(repository, transport, tmp_path / "source", object_id).outcome == "uploaded"
        report = self.engine(repository, transport).download(repository.describe(object_id), tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == data
        assert (report.md5, report.size) == (md5_hex(data), len(data))
        assert self.unfinished(repository, object_id) == []

    def test_engine_sends_only_what_is_missing(
        self, repository: Repository, transport: PartTransport, object_id: str, tmp_path: Path
    ) -> None:
        data = self.bytes_of(2 * self.part_size + 3)
        (tmp_path / "source").write_bytes(data)
        upload = repository.begin_upload(object_id, len(data), md5=md5_hex(data))
        self.send(transport, repository, upload, upload.parts[1], data)
        report = self.upload_file(repository, transport, tmp_path / "source", object_id)
        assert (report.bytes_moved, report.parts_kept) == (len(data) - self.part_size, 1)
        assert self.fetch(transport, repository, object_id) == data

    def test_wrong_promise_leaves_nothing(self, repository: Repository, transport: PartTransport, object_id: str, tmp_path: Path) -> None:
        (tmp_path / "source").write_bytes(b"abc")
        with pytest.raises(ObjectMismatch):
            self.engine(repository, transport).upload(tmp_path / "source", object_id, md5="a" * 32)
        assert repository.exists(object_id) is False
        assert self.unfinished(repository, object_id) == []

    def test_upload_that_others_aborted_says_run_again(
        self, repository: Repository, transport: PartTransport, object_id: str, tmp_path: Path
    ) -> None:
        (tmp_path / "source").write_bytes(self.bytes_of(2 * self.part_size))
        hooked = _Hooked(repository, "sign_uploads", lambda: repository.abort(object_id))
        with pytest.raises(NotResumableError if self.knows_dropped_uploads else TransferError):
            self.upload_file(hooked, transport, tmp_path / "source", object_id)
        self.upload_file(repository, transport, tmp_path / "source", object_id)
        assert self.unfinished(repository, object_id) == []

    def test_two_uploaders_of_one_content_both_end_right(
        self, repository: Repository, transport: PartTransport, object_id: str, tmp_path: Path
    ) -> None:  # F37
        data = self.bytes_of(2 * self.part_size + 3)
        (tmp_path / "source").write_bytes(data)
        outcomes = self._at_once(repository, transport, object_id, [tmp_path / "source"] * 2)
        assert [outcome for outcome in outcomes if isinstance(outcome, TransferReport)]
        self._assert_losers_know(outcomes)
        assert self.upload_file(repository, transport, tmp_path / "source", object_id).outcome == "already there"
        assert self.fetch(transport, repository, object_id) == data
        assert self.unfinished(repository, object_id) == []

    @pytest.mark.parametrize("seed", range(3))
    def test_of_two_contents_one_wins(
        self, repository: Repository, transport: PartTransport, object_id: str, tmp_path: Path, seed: int
    ) -> None:  # F37
        paths = [tmp_path / "one", tmp_path / "other"]
        for number, path in enumerate(paths):
            path.write_bytes(self.bytes_of(self.part_size + 5, seed=2 * seed + number))
        outcomes = self._at_once(repository, transport, object_id, paths)
        winners = [path.read_bytes() for path, outcome in zip(paths, outcomes, strict=True) if isinstance(outcome, TransferReport)]
        self._assert_losers_know(outcomes)
        if winners:  # without conditional completion in the store, the second may have replaced the first: what stays is whole and theirs
            data = self.fetch(transport, repository, object_id)
            assert data in winners
            assert repository.describe(object_id).md5 == md5_hex(data)

    def _assert_losers_know(self, outcomes: Sequence[TransferReport | ScoreError]) -> None:
        told = (TransferReport, Conflict, NotResumableError if self.knows_dropped_uploads else TransferError)
        assert [outcome for outcome in outcomes if not isinstance(outcome, told)] == []

    def _at_once(
        self, repository: Repository, transport: PartTransport, object_id: str, paths: Sequence[Path]
    ) -> list[TransferReport | ScoreError]:
        start = threading.Barrier(len(paths))

        def one(path: Path) -> TransferReport | ScoreError:
            start.wait(10)
            try:
                return self.upload_file(repository, transport, path, object_id)
            except ScoreError as error:
                return error

        with ThreadPoolExecutor(len(paths)) as pool:
            return list(pool.map(one, paths))

    def test_threads_may_share_it(self, repository: Repository, transport: PartTransport, object_id: str) -> None:
        data = self.bytes_of(self.part_size + 1)
        self.publish(transport, repository, object_id, data)
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(lambda _: self.fetch(transport, repository, object_id), range(8)))
        assert set(got) == {data}


class _Hooked:
    """A repository that calls `act` once, right after `method` returned: for what others do in between."""

    def __init__(self, inner: Any, method: str, act: Callable[[], object]) -> None:
        self._inner = inner
        self._method = method
        self._acts = [act]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self._then(found) if name == self._method else found

    def _then(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            result = method(*args, **options)
            while self._acts:
                self._acts.pop()()
            return result

        return call
