"""A slice over loopback with a fault injector in the middle: folder store, byte server, proxy, repository, engine, `view_object`."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from score_core.errors import ScoreError
from score_core.model import SliceReport
from score_core.repository.direct import DirectRepository
from score_core.repository.layout import Keys
from score_core.slicing.formats import HEAD_BYTES
from score_core.slicing.objects import ViewItem, view_object
from score_core.slicing.view import Form, Limits, Wanted
from score_core.stores.local import LocalStore
from score_core.testing.faults import FaultProxy, Seen, When
from score_core.transfer.engine import Engine
from score_core.transfer.http import HttpTransport
from score_core.transfer.policy import RetryPolicy
from score_core.transfer.stop import Stop
from tests.slicing.made import Made, records_in
from tests.transfer.conftest import RecordingProgress

DATA_ID = "00000000-0000-4000-8000-000000000001"
INDEX_ID = "00000000-0000-4000-8000-000000000002"


def of_data(seen: Seen) -> bool:
    """Ranged GETs of the data object."""
    return seen.method == "GET" and seen.key.endswith(DATA_ID)


def of_index(seen: Seen) -> bool:
    return seen.method == "GET" and seen.key.endswith(INDEX_ID)


def of_chunks(seen: Seen) -> bool:
    """GETs of the data other than the first, which is for the header."""
    return of_data(seen) and (seen.offset > 0 or seen.size > HEAD_BYTES)


def every(number: int, when: When) -> When:
    """Each `number`th of the requests that `when` picks."""
    count = 0

    def picks(seen: Seen) -> bool:
        nonlocal count
        if not when(seen):
            return False
        count += 1
        return count % number == 0

    return picks


@dataclass
class SliceRig:
    """Slices go to `out`; what is on its way is in `temp`, which must be empty afterwards, as must be `here`, the working directory."""

    folder: Path
    origin: LocalStore
    proxy: FaultProxy
    repository: DirectRepository
    transport: HttpTransport
    progress: RecordingProgress = field(default_factory=RecordingProgress)
    stop: Stop = field(default_factory=Stop)
    limits: Limits = field(default_factory=lambda: Limits(window_bytes=256 << 10, connections=4))
    attempts: int = 6
    format: str | None = None
    made: Made | None = None

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def engine(self) -> Engine:
        policy = RetryPolicy(attempts=self.attempts, base_s=0.001, cap_s=0.01, rng=random.Random(1))
        return Engine(self.repository, self.transport, 4, policy, self.progress, self.stop)

    def put(self, made: Made, *, data: bytes | None = None, index: bytes | None = None, index_is_there: bool = True) -> None:
        """Stores a file and its index, or other bytes in their place."""
        self.made = made
        self.store(made.path.read_bytes() if data is None else data)
        if index_is_there:
            self.store(made.index.read_bytes() if index is None else index, INDEX_ID)

    def store(self, data: bytes, object_id: str = DATA_ID) -> None:
        self.origin.write(Keys().data(object_id), data)

    def view(self, *regions: str, **wanted: Any) -> SliceReport:
        assert self.made is not None
        item = ViewItem(DATA_ID, self.made.path.name, INDEX_ID)
        form = Form(self.format, reference=self.made.fasta)
        return view_object(self.engine, None, item, Wanted(regions, **wanted), form, self.out, limits=self.limits)

    def assert_right(self, *regions: str, **wanted: Any) -> SliceReport:
        """The slice holds what it must, in order, and nothing else was left anywhere."""
        assert self.made is not None
        report = self.view(*regions, **wanted)
        (path,) = self.out.iterdir()
        assert records_in(path) == self.made.wanted(*regions)
        assert report.records == len(self.made.wanted(*regions)) > 0
        path.unlink()
        self.assert_tidy()
        return report

    def assert_fails(self, *regions: str, **wanted: Any) -> ScoreError:
        """It ends with one sentence, without a secret, and nothing is left."""
        try:
            self.view(*regions, **wanted)
        except ScoreError as error:
            failed = error
        else:
            (path,) = self.out.iterdir()
            raise AssertionError(f"{path} has {len(records_in(path))} records")
        self.assert_tidy()
        assert failed.exit_code
        self.assert_discreet(str(failed))
        return failed

    def assert_right_or_fails(self, *regions: str) -> ScoreError | None:
        try:
            self.assert_right(*regions)
        except ScoreError as error:
            self.assert_tidy()
            self.assert_discreet(str(error))
            return error
        return None

    def assert_tidy(self) -> None:
        assert [path.name for path in Path().iterdir()] == []
        assert not self.out.exists() or [path.name for path in self.out.iterdir()] == []
        assert [path.name for path in (self.folder / "temp").iterdir()] == []

    def assert_discreet(self, text: str) -> None:
        assert "\n" not in text
        assert text
        signatures = [value for seen in self.proxy.seen for name, value in seen.query.items() if re.search("(?i)sig|token|cred", name)]
        assert signatures
        text += "\n".join([*self.progress.notes, *self.progress.retries])
        assert [secret for secret in [*signatures, "ignature="] if secret in text] == []
        assert "ttp://" not in text


@contextmanager
def open_rig(folder: Path, *, life_s: float = 900, stall_s: float = 30) -> Iterator[SliceRig]:
    """The caller makes `folder`/here the working directory and `folder`/temp the place of temporary files."""
    origin = LocalStore(folder / "bucket")
    proxy = FaultProxy(origin.base_url)
    behind = LocalStore(folder / "bucket", base_url=proxy.url)
    repository = DirectRepository(behind, part_size_bytes=5 << 20, download_lifetime_s=life_s)
    transport = HttpTransport(connections=4, connect_timeout_s=stall_s, stall_s=stall_s)
    rig = SliceRig(folder, origin, proxy, repository, transport)
    try:
        yield rig
    finally:
        rig.stop.set()
        transport.close()
        proxy.close()
        origin.close()
