"""A whole transfer on loopback with a fault injector in the middle: folder store, byte server, proxy, repository, engine."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from score_core.model import ObjectSpec, TransferReport
from score_core.progress import Silent
from score_core.repository.base import Repository
from score_core.repository.direct import DirectRepository
from score_core.repository.layout import Keys
from score_core.stores.local import LocalStore
from score_core.testing.faults import FaultProxy, When, is_get, is_put
from score_core.testing.faults import part as part_of
from score_core.transfer.engine import Engine
from score_core.transfer.http import HttpTransport
from score_core.transfer.policy import RetryPolicy
from score_core.transfer.stop import Stop

QUICK = {"base_s": 0.001, "cap_s": 0.01}


@dataclass
class RecordingProgress(Silent):
    """Adds up what a `Progress` hears."""

    kept: int = 0
    moved: int = 0
    retries: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def begin(self, object_id: str, name: str, size: int, kept: int, parts: int) -> None:
        self.kept += kept

    def advance(self, object_id: str, count: int) -> None:
        self.moved += count

    def retry(self, object_id: str, what: str, why: str, pause_s: float) -> None:
        self.retries.append(f"{what}: {why}")

    def note(self, object_id: str, message: str) -> None:
        self.notes.append(message)


@dataclass
class Rig:
    """`origin` is the store without faults in between; `repository` signs URLs that lead through `proxy`."""

    folder: Path
    part_size: int
    origin: LocalStore
    proxy: FaultProxy
    repository: DirectRepository
    transport: HttpTransport
    progress: RecordingProgress
    stop: Stop = field(default_factory=Stop)
    workers: int = 8
    policy: dict[str, Any] = field(default_factory=lambda: dict(QUICK))
    id: str = str(UUID(int=7))

    @property
    def engine(self) -> Engine:
        return Engine(
            self.repository, self.transport, self.workers, RetryPolicy(**self.policy, rng=random.Random(1)), self.progress, self.stop
        )

    @property
    def target(self) -> Path:
        return self.folder / "out" / "x.bam"

    @property
    def leftovers(self) -> set[str]:
        return {path.name for path in self.target.parent.iterdir()}

    def source(self, size: int, seed: int = 1) -> Path:
        """A file of random bytes."""
        path = self.folder / "source.bam"
        path.write_bytes(random.Random(seed).randbytes(size))
        return path

    def put(self, size: int, seed: int = 1, *, overwrite: bool = False) -> bytes:
        """Stores an object without faults; its bytes. The proxy's counts begin after that."""
        data = self.source(size, seed).read_bytes()
        clean = DirectRepository(self.origin, part_size_bytes=self.part_size)
        engine = Engine(clean, self.transport)
        engine.upload(self.folder / "source.bam", self.id, md5=md5(data), overwrite=overwrite)
        self.proxy.forget()
        return data

    def forget_md5s(self, *, parts: bool = True, whole: bool = False, sealed: bool = True) -> None:
        """Rewrites the object's specification as other uploaders would have written it."""
        import json

        key = Keys().meta(self.id)
        meta = json.loads(self.origin.read(key))
        if parts:
            for row in meta["parts"]:
                row.pop("sourceMd5", None)
        meta["objectMd5"] = None if whole else meta["objectMd5"]
        meta["sealed"] = meta["sealed"] and not sealed
        self.origin.write(key, json.dumps(meta).encode())

    def describe(self) -> ObjectSpec:
        return self.repository.describe(self.id)

    def download(self, spec: ObjectSpec | None = None, **options: Any) -> TransferReport:
        self.target.parent.mkdir(exist_ok=True)
        return self.engine.download(spec or self.describe(), self.target, **options)

    def upload(
        self, path: Path, *, md5_hex: str | None = None, repository: Repository | None = None, overwrite: bool = False
    ) -> TransferReport:
        engine = self.engine
        if repository is not None:
            engine = Engine(repository, self.transport, self.workers, engine.policy, self.progress, self.stop)
        return engine.upload(path, self.id, md5=md5_hex or md5(path.read_bytes()), overwrite=overwrite)

    def stored(self) -> bytes:
        """The object's bytes, read round the repository."""
        return self.origin.read(Keys().data(self.id))

    def get(self, number: int) -> When:
        """Picks the downloads of a part."""
        return lambda seen: is_get(seen) and part_of(number, self.part_size)(seen)

    def put_of(self, number: int) -> When:
        """Picks the uploads of a part."""
        return lambda seen: is_put(seen) and seen.part == number

    def tries(self) -> dict[int, int]:
        """How often each part went over the wire, by number."""
        counts: dict[int, int] = {}
        for seen in self.proxy.moves():
            number = seen.part or seen.offset // self.part_size + 1
            counts[number] = counts.get(number, 0) + 1
        return counts

    def assert_nothing_published(self) -> None:
        assert not self.repository.exists(self.id)
        assert not list(self.origin.list_objects("data/"))

    def assert_nothing_unfinished(self) -> None:
        assert not list(self.origin.list_multiparts(""))
        assert not list(self.origin.list_objects("upload/"))


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def _open(tmp_path: Path, *, part_size: int = 64 << 10, life_s: float = 900) -> Rig:
    origin = LocalStore(tmp_path / "bucket")
    proxy = FaultProxy(origin.base_url)
    behind = LocalStore(tmp_path / "bucket", base_url=proxy.url)
    repository = DirectRepository(behind, part_size_bytes=part_size, download_lifetime_s=life_s, upload_lifetime_s=life_s)
    transport = HttpTransport(connections=16)
    return Rig(tmp_path, part_size, origin, proxy, repository, transport, RecordingProgress())


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Parts of 64 KiB."""
    yield from _running(_open(tmp_path))


@pytest.fixture
def hasty_rig(tmp_path: Path) -> Iterator[Rig]:
    """The same, and a connection without 4 kB a second is given up after a second."""
    rig = _open(tmp_path)
    rig.transport = HttpTransport(connections=16, connect_timeout_s=1, stall_s=1)
    yield from _running(rig)


@pytest.fixture
def short_lived_rig(tmp_path: Path) -> Iterator[Rig]:
    """The same with URLs that live for two seconds."""
    yield from _running(_open(tmp_path, life_s=2))


def _running(rig: Rig) -> Iterator[Rig]:
    yield rig
    rig.stop.set()
    rig.transport.close()
    rig.proxy.close()
    rig.origin.close()
