"""`RemoteRepository` keeps the promises of every repository over a Java server, but for those that such a server makes impossible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from score_core.checksum import md5_hex
from score_core.errors import ObjectNotFound, ScoreError, ServiceError
from score_core.model import TransferReport
from score_core.repository.base import Repository
from score_core.repository.remote import RemoteRepository
from score_core.service import ServiceClient, Token
from score_core.testing.repositories import RepositoryContract
from score_core.transfer.http import HttpTransport
from score_core.transfer.part import PartTransport
from score_core.transfer.policy import RetryPolicy
from tests.repository.java_server import JavaServer, Version


class OverJava(RepositoryContract):
    version: ClassVar[Version] = (5, 12, 0)
    java: JavaServer

    @pytest.fixture
    def server(self) -> Iterator[JavaServer]:
        with JavaServer(part_size=self.part_size, version=self.version) as server:
            yield server

    @pytest.fixture
    def repository(self, server: JavaServer) -> Iterator[Repository]:
        client = ServiceClient(
            server.url, name="The Score server", token=Token(server.token), policy=RetryPolicy(attempts=3, base_s=0.001, cap_s=0.01)
        )
        self.java = server
        repository = RemoteRepository(client)
        yield repository
        repository.close()

    @pytest.fixture
    def transport(self) -> Iterator[PartTransport]:
        transport = HttpTransport()
        yield transport
        transport.close()

    def unfinished(self, repository: Repository, object_id: str) -> list[str]:  # Java servers do not list uploads
        return self.java.in_progress(object_id)

    def _assert_losers_know(self, outcomes: Sequence[TransferReport | ScoreError]) -> None:
        """A Java server takes parts of an upload whose state another uploader's `initiate` deleted: the loser learns of it at the end."""
        super()._assert_losers_know([outcome for outcome in outcomes if not isinstance(outcome, ObjectNotFound)])

    def test_uploads_cannot_be_listed(self, repository: Repository) -> None:
        with pytest.raises(ServiceError, match="cannot list"):
            list(repository.list_uploads())

    def test_published_object_is_described(self, repository: Repository, transport: PartTransport, object_id: str) -> None:
        """Without ETag and seal, which Java servers do not know."""
        data = self.bytes_of(2 * self.part_size + 3)
        self.publish(transport, repository, object_id, data)
        spec = repository.describe(object_id)
        assert (spec.object_id, spec.size, spec.md5, spec.sealed, spec.etag) == (object_id, len(data), md5_hex(data), False, None)
        assert [part.md5 for part in spec.parts] == [md5_hex(data[part.offset : part.end]) for part in spec.parts]

    def test_overwriting_replaces_all_of_it(self, repository: Repository, transport: PartTransport, object_id: str) -> None:
        """As in the contract, without ETags."""
        self.publish(transport, repository, object_id, self.bytes_of(2 * self.part_size))
        self.publish(transport, repository, object_id, b"abc", overwrite=True)
        after = repository.describe(object_id)
        assert (after.size, after.md5, len(after.parts)) == (3, md5_hex(b"abc"), 1)
        assert self.fetch(transport, repository, object_id) == b"abc"

    def test_upload_in_progress_is_found(self, repository: Repository, transport: PartTransport, object_id: str) -> None:
        """Without the MD5 that was claimed, which Java servers do not tell."""
        data = self.bytes_of(2 * self.part_size + 3)
        upload = repository.begin_upload(object_id, len(data), md5=md5_hex(data), file_name="a.bam")
        stored = self.send(transport, repository, upload, upload.parts[1], data)
        found = repository.find_upload(object_id, len(data))
        assert found is not None
        assert (found.upload_id, found.size, found.md5, found.parts) == (upload.upload_id, len(data), None, upload.parts)
        assert dict(found.stored) == {2: stored}
        assert repository.exists(object_id) is False

    @pytest.mark.parametrize("parts", [0, 1, 2])
    @pytest.mark.parametrize("more", [0, 1])
    def test_engine_brings_bytes_there_and_back(
        self, repository: Repository, transport: PartTransport, object_id: str, tmp_path: Path, parts: int, more: int
    ) -> None:
        if parts or more:
            super().test_engine_brings_bytes_there_and_back(repository, transport, object_id, tmp_path, parts, more)
            return
        (tmp_path / "empty").write_bytes(b"")  # Java servers cannot finalise an upload without parts (6.4)
        with pytest.raises(ServiceError, match="Java servers cannot store an empty file"):
            self.upload_file(repository, transport, tmp_path / "empty", object_id)


class TestHead(OverJava):
    pass


class TestReleased510(OverJava):
    version = (5, 10, 0)


class TestReleased58(OverJava):
    version = (5, 8, 1)
