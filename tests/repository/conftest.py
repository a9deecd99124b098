"""Transfers over a stub Java server: `rig.machine()` is a client that knows nothing of what others did."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import pytest

from score_core.checksum import md5_hex
from score_core.model import StoredPart, TransferReport, Upload
from score_core.repository.remote import RemoteRepository
from score_core.service import ServiceClient, ServiceOptions, Token
from score_core.transfer.engine import Engine
from score_core.transfer.http import HttpTransport
from score_core.transfer.policy import RetryPolicy
from score_core.transfer.stop import Stop
from tests.repository.java_server import JavaServer

PART = 16 << 10
QUICK: dict[str, Any] = {"attempts": 4, "base_s": 0.001, "cap_s": 0.01}


class PatientStop(Stop):
    """Does not wait; remembers for how long it was asked to. After `sets_after` waits it asks to stop."""

    def __init__(self, *, sets_after: int | None = None) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._sets_after = sets_after

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        if len(self.waits) == self._sets_after:
            self.set()
        return self.is_set()


@dataclass
class Rig:
    java: JavaServer
    folder: Path
    transport: HttpTransport
    id: str = field(default_factory=lambda: str(uuid4()))
    workers: int = 4
    _machines: list[RemoteRepository] = field(default_factory=list)

    def machine(
        self,
        *,
        token: Token | None = None,
        options: ServiceOptions | None = None,
        stop: Stop | None = None,
        data_hosts: tuple[str, ...] = (),
        url: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        **policy: Any,
    ) -> RemoteRepository:
        client = ServiceClient(
            url or self.java.url,
            name="The Score server",
            token=token or Token(self.java.token),
            policy=RetryPolicy(**{**QUICK, **policy}),
            options=options,
            stop=stop,
        )
        self._machines.append(RemoteRepository(client, data_hosts=data_hosts, clock=clock))
        return self._machines[-1]

    def source(self, parts: float, seed: int = 1) -> Path:
        path = self.folder / f"source-{seed}.bam"
        path.write_bytes(Random(seed).randbytes(int(parts * PART)))
        return path

    def engine(self, machine: RemoteRepository | None = None) -> Engine:
        return Engine(machine or self.machine(), self.transport, self.workers, RetryPolicy(**QUICK))

    def upload(
        self, path: Path, machine: RemoteRepository | None = None, *, overwrite: bool = False, md5: str | None = None
    ) -> TransferReport:
        return self.engine(machine).upload(path, self.id, md5=md5 or md5_hex(path.read_bytes()), overwrite=overwrite)

    def put(self, path: Path) -> bytes:
        """Publishes an object; counts begin after that."""
        self.upload(path)
        self.java.forget()
        return path.read_bytes()

    def download(self, machine: RemoteRepository | None = None, **options: Any) -> bytes:
        machine, target = machine or self.machine(), self.folder / "target.bam"
        self.engine(machine).download(machine.describe(self.id), target, **options)
        return target.read_bytes()

    def begin(self, path: Path, numbers: tuple[int, ...] = (), *, wrong: tuple[int, ...] = (), md5: str | None = None) -> Upload:
        """What another machine left: an upload with these parts, some of them with `wrong` bytes. Counts begin after that."""
        machine, data = self.machine(), path.read_bytes()
        upload = machine.begin_upload(self.id, len(data), md5=md5 or md5_hex(data))
        for part in upload.parts:
            if part.number in numbers + wrong:
                block = data[part.offset : part.end] if part.number in numbers else bytes(part.size)
                reply = self.transport.put(part.size, machine.sign_uploads(upload, [part])[0], [block])
                machine.commit_part(upload, StoredPart(part.number, md5_hex(block), reply.etag))
        self.java.forget()
        return upload

    def assert_published(self, path: Path) -> None:
        assert self.java.stored(self.id) == path.read_bytes()
        assert self.java.is_published(self.id)
        assert self.java.in_progress(self.id) == []

    def assert_no_secret_left_the_control_plane(self) -> None:
        for seen in self.java.all("put") + self.java.all("get"):
            assert not seen.has_token
            assert not [token for token in self.java.tokens if token in str(seen)]

    def close(self) -> None:
        for machine in self._machines:
            machine.close()
        self.transport.close()
        self.java.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Parts of 16 KiB. No token ever reaches the store, whatever a test does."""
    rig = Rig(JavaServer(part_size=PART), tmp_path, HttpTransport(connections=8))
    try:
        yield rig
        rig.assert_no_secret_left_the_control_plane()
    finally:
        rig.close()
