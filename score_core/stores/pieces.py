"""The files of a local store's objects: one that arrives, those that are there, and reading across them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from score_core.checksum import Buffer
from score_core.stores.base import ListedPart

_PART_NAME: Final = re.compile(r"part-(\d{6})\.([0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class Piece:
    """A file that holds one run of an object's bytes. `inode` guards a plain file against replacement between look and open."""

    path: Path
    size: int
    inode: int | None = None

    def open(self) -> int:
        """A descriptor for reading, the caller's to close. Raises `OSError` when this is no longer the file that was looked at."""
        fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        status = os.fstat(fd)
        if status.st_size == self.size and self.inode in (None, status.st_ino):
            return fd
        os.close(fd)
        raise OSError(errno.ESTALE, "the stored file changed")


@dataclass(frozen=True, slots=True)
class LocalObject:
    """An object as it stood when it was opened. `starts` are the pieces' offsets in the object."""

    size: int
    etag: str
    modified_at: float
    pieces: tuple[Piece, ...]
    starts: tuple[int, ...]

    def runs(self, offset: int, end: int) -> Iterator[tuple[Piece, int, int]]:
        """Piece, offset in it and count, in order, for the object's bytes `offset` to `end` (exclusive)."""
        index = bisect_right(self.starts, offset) - 1
        while offset < end:
            start, piece = self.starts[index], self.pieces[index]
            count = min(end, start + piece.size) - offset
            if count > 0:
                yield piece, offset - start, count
                offset += count
            index += 1

    def read(self, offset: int, end: int) -> bytes:
        return b"".join(_pread(piece, start, count) for piece, start, count in self.runs(offset, end))


class PartWriter:
    """Takes one part's bytes. Until `commit` nothing of it can be seen; leaving the `with` block removes what was not committed."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder = folder
        self._number = number
        self._path = folder / f"incoming-{secrets.token_hex(8)}"
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._fd = -1

    def __enter__(self) -> Self:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        with contextlib.suppress(FileNotFoundError):  # committed, or the upload was aborted meanwhile
            self._path.unlink()

    @property
    def md5(self) -> str:
        return self._md5.hexdigest()

    def write(self, block: Buffer) -> None:
        self._md5.update(block)
        view = memoryview(block)
        while view:
            view = view[os.write(self._fd, view) :]

    def commit(self) -> None:
        """Puts the part in place, on the disk and not only in its cache. Raises `FileNotFoundError` when the upload is gone."""
        os.fdatasync(self._fd)
        os.utime(self._fd, ns=(now := time.time_ns(), now))  # the kernel's own stamps are 4 ms coarse; the newest PUT of a part counts
        self._path.rename(self._folder / part_name(self._number, self.md5))


def part_name(number: int, md5: str) -> str:
    return f"part-{number:06d}.{md5}"


def newest_parts(folder: Path, *, only: int | None = None) -> dict[int, ListedPart]:
    """Of each part number, or `only` that one, what was PUT last, as in S3."""
    newest: dict[int, tuple[int, ListedPart]] = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            match = _PART_NAME.fullmatch(entry.name)
            if match and only in (None, int(match[1])):
                status, number = entry.stat(), int(match[1])
                candidate = (status.st_mtime_ns, ListedPart(number, status.st_size, match[2]))
                newest[number] = max(newest.get(number, candidate), candidate, key=lambda pair: (pair[0], pair[1].etag))
    return {number: part for number, (_, part) in newest.items()}


def _pread(piece: Piece, offset: int, count: int) -> bytes:
    fd = piece.open()
    try:
        data = os.pread(fd, count, offset)
    finally:
        os.close(fd)
    if len(data) != count:
        raise OSError(errno.EIO, "the stored file is shorter than it was")
    return data
