"""The file that a slice is cut from, for htslib to read: a local one, or the wanted pieces of an object at their own places.

`RemoteFile` is a *sparse* file: as long as the object, empty but for what was fetched. htslib reads it as if it were whole. A piece that
nobody planned reads as zeros, which is no BGZF block and no CRAM container: htslib then fails, and never gives fewer reads.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Generic, Protocol, Self, TypeVar

from score_core.checksum import Buffer
from score_core.errors import ChangedError, Interrupted
from score_core.model import ByteRange, ObjectSpec, Part, PartReceipt
from score_core.progress import Silent
from score_core.transfer.engine import Engine, Run
from score_core.transfer.files import SourceFile, explained
from score_core.transfer.part import PartTransport
from score_core.transfer.stop import Stop
from score_core.transfer.urls import SharedUrl, Urls

_TICK_S: Final = 0.05
_GRACE_S: Final = 0.5  # how long what is under way may take to notice a stop; it looks between blocks
_PIECE_BYTES: Final = 8 << 20
_KEEP_SIZE_AND_PUNCH: Final = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE

Result = TypeVar("Result")


class DataFile(Protocol):
    """A file of which pieces can be had. `path` is what htslib reads; only what was fetched is there."""

    name: str
    path: Path
    size: int

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from an offset, so many, fewer only where the file ends; they are at `path` afterwards."""
        ...

    def announce(self, size: int, parts: int) -> None:
        """From now on progress is told of what is fetched: `size` bytes in `parts` ranges."""
        ...

    def fetch(self, ranges: Sequence[ByteRange]) -> Fetching:
        """Begins to bring ranges to `path`."""
        ...

    def peek(self, offset: int, size: int) -> bytes:
        """Bytes that were fetched before; zeros where nothing was."""
        ...

    def patch(self, data: bytes, offset: int) -> None:
        """Puts bytes at `path` that are known, or better than the file's own."""
        ...

    def drop(self, ranges: Sequence[ByteRange]) -> None:
        """Frees the space of ranges that nobody reads any more."""
        ...

    def check_unchanged(self) -> None:
        """Raises `ChangedError` if the file changed since it was opened; what was fetched has been compared already."""
        ...

    def to_patch(self, folder: Path) -> DataFile:
        """The same, with a `path` that can be patched: in `folder`, if its own cannot. The caller closes this one."""
        ...


class Fetching:
    """Work in a thread; at once when there is none to do."""

    def __init__(self, work: Callable[[], None] | None, stop: Stop | None = None, *, grace_s: float = _GRACE_S) -> None:
        self._error: BaseException | None = None
        self._stop = stop
        self._grace_s = grace_s
        self._thread: threading.Thread | None = None
        if work is not None:
            self._thread = threading.Thread(target=self._run, args=(work,), daemon=True, name="score-fetch")
            self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # handed to the thread that waits
            self._error = error

    def wait(self) -> None:
        """Returns once all is there. Raises what went wrong, or `Interrupted`."""
        while self._thread is not None and self._thread.is_alive():
            if self._stop is not None and self._stop.is_set():
                self._thread.join(self._grace_s)
                break
            self._thread.join(_TICK_S)
        if self._error is not None:
            raise self._error
        if self._stop is not None:
            self._stop.check()

    def is_over(self, grace_s: float) -> bool:
        """Waits for a moment; whether nothing is under way any more."""
        if self._thread is not None:
            self._thread.join(grace_s)
        return self._thread is None or not self._thread.is_alive()


class Later(Generic[Result]):
    """What `work` returns, worked out in a thread while the caller does something else, or waits so that it can hear signals.

    Python hears none while its main thread is inside htslib, which may wait there for bytes that do not come.
    """

    def __init__(self, work: Callable[[], Result], stop: Stop) -> None:
        self._found: list[Result] = []
        self._doing = Fetching(lambda: self._found.append(work()), stop, grace_s=2 * _GRACE_S)

    def result(self) -> Result:
        """Waits for it. Raises what the work raised, or `Interrupted` if it did not come to its end."""
        try:
            self._doing.wait()
        except Interrupted:
            if not self._found:
                raise
        return self._found[0]


class LocalFile:
    """A file of this machine: all of it is there. Raises `LocalFileError` when it is not. Close it, or use it in a `with`."""

    def __init__(self, path: Path) -> None:
        self._source = SourceFile(path)
        self.name = path.name
        self.path = path
        self.size = self._source.size

    def read(self, offset: int, size: int) -> bytes:
        return b"".join(bytes(block) for block in self._source.blocks(offset, max(0, min(size, self.size - offset))))

    def fetch(self, ranges: Sequence[ByteRange]) -> Fetching:  # noqa: ARG002
        return Fetching(None)

    def announce(self, size: int, parts: int) -> None: ...

    def peek(self, offset: int, size: int) -> bytes:
        return self.read(offset, size)

    def patch(self, data: bytes, offset: int) -> None:
        raise NotImplementedError  # the user's file; `to_patch` gives one that is ours

    def drop(self, ranges: Sequence[ByteRange]) -> None: ...

    def check_unchanged(self) -> None:
        self._source.check_unchanged()

    def to_patch(self, folder: Path) -> DataFile:
        return _Copied(self, folder)

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Sparse:
    """A sparse file of `size` bytes, of which pieces are written."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        with explained("make", path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR)
            os.ftruncate(self._fd, size)

    def peek(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def patch(self, data: Buffer, offset: int) -> None:
        view = memoryview(data)
        with explained("write", self.path):
            while view:
                count = os.pwrite(self._fd, view, offset)
                view, offset = view[count:], offset + count

    def drop(self, ranges: Sequence[ByteRange]) -> None:
        for gone in ranges:
            _punch(self._fd, gone)


class _Copied(_Sparse):
    """Pieces of a local file, where htslib must find other bytes in some places than the file has."""

    def __init__(self, original: LocalFile, folder: Path) -> None:
        super().__init__(folder / "copy", original.size)
        self.name = original.name
        self._original = original
        weakref.finalize(self, os.close, self._fd)

    def read(self, offset: int, size: int) -> bytes:
        data = self._original.read(offset, size)
        self.patch(data, offset)
        return data

    def announce(self, size: int, parts: int) -> None: ...

    def fetch(self, ranges: Sequence[ByteRange]) -> Fetching:
        for wanted in ranges:
            for at in range(wanted.offset, wanted.end, _PIECE_BYTES):
                self.read(at, min(_PIECE_BYTES, wanted.end - at))
        return Fetching(None)

    def check_unchanged(self) -> None:
        self._original.check_unchanged()

    def to_patch(self, folder: Path) -> DataFile:  # noqa: ARG002
        return self


class RemoteFile(_Sparse):
    """The wanted pieces of an object, as a sparse file in `folder`; fetched in parallel, all from one version of the object.

    `fetched` counts the bytes that came, `requests` the requests for them, failed ones included. Close it, or use it in a `with`.
    """

    def __init__(self, engine: Engine, spec: ObjectSpec, folder: Path, *, name: str, suffix: str = "") -> None:
        super().__init__(folder / f"{spec.object_id}{suffix}", spec.size)
        self.name = name
        self.fetched = self.requests = self.retries = 0
        self._engine = engine
        self._spec = spec
        self._etag = spec.etag
        self._urls = SharedUrl(lambda: engine.repository.sign_external(spec.object_id))
        self._runs: list[tuple[Run, Fetching]] = []
        self._lock = threading.Lock()
        self._quiet = Engine(engine.repository, engine.transport, engine.workers, engine.policy, Silent(), engine.stop)
        self._shown = False

    @property
    def version(self) -> str | None:
        """The object's ETag, once something was fetched; None if the store names none."""
        return self._etag

    def announce(self, size: int, parts: int) -> None:
        self._engine.progress.begin(self._spec.object_id, self.name, size, 0, parts)
        self._shown = True

    def read(self, offset: int, size: int) -> bytes:
        end = min(self.size, offset + size)
        if end <= offset:
            return b""
        self.fetch([ByteRange(at, min(_PIECE_BYTES, end - at)) for at in range(offset, end, _PIECE_BYTES)]).wait()
        return self.peek(offset, end - offset)

    def fetch(self, ranges: Sequence[ByteRange]) -> Fetching:
        if not ranges:
            return Fetching(None)
        parts = tuple(Part(number, wanted.offset, wanted.size) for number, wanted in enumerate(ranges, 1))
        run = Run(self._engine if self._shown else self._quiet, _Ranges(self, self._spec.object_id, parts, self._urls))

        def work() -> None:
            try:
                run.move(parts)
            finally:
                run.finish()
                with self._lock:
                    self.retries += run.retries

        fetching = Fetching(work, self._engine.stop)
        self._runs = [(run, fetching) for run, fetching in self._runs if not fetching.is_over(0)] + [(run, fetching)]
        return fetching

    def get(self, part: Part, transport: PartTransport, stop: Stop | None, advance: Callable[[int], None] | None) -> int:
        """One attempt at one range; the bytes that came."""
        at = part.offset

        def sink(block: Buffer) -> None:
            nonlocal at
            self.patch(block, at)
            at += len(block)
            with self._lock:
                self.fetched += len(block)
            if advance is not None:
                advance(len(block))

        with self._lock:
            self.requests += 1
        etag = transport.get(part.range, self._urls.get(), sink, if_match=self._etag, stop=stop)
        with self._lock:
            if self._etag is None:
                self._etag = etag
            elif etag not in (None, self._etag):  # two first answers at once
                raise ChangedError("The object was replaced while it was read; run the same command again to read the new one")
        return part.size

    def check_unchanged(self) -> None: ...

    def to_patch(self, folder: Path) -> DataFile:  # noqa: ARG002
        return self

    def close(self) -> None:
        """Ends what is under way, and removes the file."""
        with suppress(OSError):
            self.path.unlink()
        for run, _ in self._runs:
            run.stop.set()
        deadline = time.monotonic() + _GRACE_S
        idle = not [run for run, fetching in self._runs if not fetching.is_over(max(0.0, deadline - time.monotonic()))]
        if idle:  # a thread that is stuck in a read must not write to another file that gets this number
            os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Ranges:
    """A session of the engine: ranges of an object on their way into a sparse file."""

    hashes_whole: Final = False

    def __init__(self, file: RemoteFile, object_id: str, parts: tuple[Part, ...], urls: SharedUrl) -> None:
        self._file = file
        self.object_id = object_id
        self.parts = parts
        self.urls: Urls = urls

    def claims(self, part: Part) -> bool:  # noqa: ARG002
        return False

    def attempt(
        self, part: Part, *, transport: PartTransport, stop: Stop | None = None, advance: Callable[[int], None] | None = None
    ) -> PartReceipt:
        moved = self._file.get(part, transport, stop, advance)
        return PartReceipt(part.number, part.size, tag="", moved=moved)

    def close(self) -> None: ...


def _punch(fd: int, gone: ByteRange) -> None:
    """Gives a range's blocks back to the file system, where that knows how to; only room is lost where it does not."""
    if sys.platform == "linux" and gone.size:
        with suppress(OSError, AttributeError):
            _libc().fallocate(fd, _KEEP_SIZE_AND_PUNCH, ctypes.c_int64(gone.offset), ctypes.c_int64(gone.size))


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)
