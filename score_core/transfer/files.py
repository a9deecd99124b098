"""The one seam to the disk: source files, half-finished files, names that came from elsewhere.

Files are read and written by `pread`/`pwrite`, so threads share a descriptor without a shared position. POSIX only.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Self

from score_core.checksum import Buffer
from score_core.errors import ChangedError, Conflict, LocalFileError, NoSpaceError

BLOCK_BYTES: Final = 512 << 10  # hashing and reading cost half as much per byte as in 64 KiB blocks; 1 MiB gains nothing measurable
_MAX_NAME_BYTES: Final = 255 - len(".part.journal.unusable-99")  # the longest name that we make of it
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def explained(action: str, path: Path) -> Iterator[None]:
    """Turns an `OSError` inside into one sentence with the path and what to do."""
    try:
        yield
    except LocalFileError:
        raise
    except OSError as error:
        if error.errno in _NO_SPACE:
            message = f"No space left to {action} {path}: free some space and run the same command again to resume"
            raise NoSpaceError(message) from error
        raise LocalFileError(f"Cannot {action} {path}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    hints = {
        errno.ENOENT: "it does not exist",
        errno.EACCES: "permission denied; check the rights of the file and of its folder",
        errno.EPERM: "permission denied; check the rights of the file and of its folder",
        errno.EISDIR: "it is a directory; name a file",
        errno.ENOTDIR: "a folder on the way to it is a file",
        errno.EEXIST: "a file has that name",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.ELOOP: "it is a symbolic link, which is not followed here",
        errno.ENAMETOOLONG: "the name is too long for the file system",
        errno.EFBIG: "the file system or a limit of this session does not allow a file of that size",
    }
    return hints.get(error.errno or 0, error.strerror or str(error))


class Fingerprint(NamedTuple):
    """What must stay the same while a file is read. Times in nanoseconds."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


class SourceFile:
    """A local file that is being uploaded or hashed. Reads are thread-safe. Close it, or use it in a `with`.

    Raises:
        LocalFileError: it is missing, unreadable or not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with explained("read", path):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # non-blocking: opening a FIFO must not hang
        kind = os.fstat(self._fd).st_mode
        if not stat.S_ISREG(kind):
            os.close(self._fd)
            what = "a directory" if stat.S_ISDIR(kind) else "not a regular file"
            raise LocalFileError(f"Cannot read {path}: it is {what}; name a file")
        self.fingerprint = self._look()

    @property
    def size(self) -> int:
        return self.fingerprint.size

    def _look(self) -> Fingerprint:
        seen = os.fstat(self._fd)
        return Fingerprint(seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)

    def blocks(self, offset: int, size: int, *, block_bytes: int = BLOCK_BYTES) -> Iterator[memoryview]:
        """The bytes `offset` to `offset + size`, in order, in one reused buffer: use a block before asking for the next.

        Raises:
            ChangedError: the file ends before that.
        """
        yield from _blocks(self._fd, self.path, offset, size, block_bytes)

    def check_unchanged(self) -> None:
        """Raises `ChangedError` when the file, or what its path names, is not what was opened."""
        try:
            named = os.stat(self.path)
        except OSError:
            raise ChangedError(f"{self.path} was removed while it was read; nothing was published") from None
        now = self._look()
        if now != self.fingerprint or (named.st_dev, named.st_ino) != (now.device, now.inode):
            raise ChangedError(
                f"{self.path} changed while it was read; nothing was published: run the same command again when nothing writes to it"
            )

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _blocks(fd: int, path: Path, offset: int, size: int, block_bytes: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(block_bytes, max(size, 1))))
    end = offset + size
    while offset < end:
        view = buffer[: min(len(buffer), end - offset)]
        with explained("read", path):
            count = os.preadv(fd, [view], offset)
        if count == 0:
            raise ChangedError(f"{path} ends at byte {offset}, {end - offset} bytes short: it was truncated meanwhile")
        yield view[:count]
        offset += count


class PartFile:
    """A download in the making: `<target>.part`, or `path`, locked for as long as it is open, so that one process at a time fills it.

    Writes are thread-safe. `publish` gives it its final name.

    Raises:
        Conflict: another process is filling it.
        LocalFileError: it cannot be opened or is not a regular file.
    """

    def __init__(self, target: Path, path: Path | None = None) -> None:
        self.target = target
        self.path = path or part_path(target)
        self._fd = self._open_locked()

    def _open_locked(self) -> int:
        while True:
            with explained("write", self.path):
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise LocalFileError(f"Cannot write {self.path}: it is not a regular file")
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise Conflict(f"Another process is downloading {self.target} at this moment; wait for it, or stop it") from None
                except OSError as error:  # a file system without locks: go on, the bytes are verified in any case
                    if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                        raise
                if _names(self.path, fd):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # its owner renamed or removed it between our open and our lock

    @property
    def journal_path(self) -> Path:
        """Where it is noted what the file holds."""
        return _journal_of(self.path)

    def resize(self, size: int) -> None:
        """Makes the file exactly `size` bytes long; new bytes read as zeros and take no space."""
        with explained("write", self.path):
            os.ftruncate(self._fd, size)

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    @property
    def allocated_bytes(self) -> int:
        """Bytes of disk that the file has already."""
        return os.fstat(self._fd).st_blocks * 512

    def write(self, block: Buffer, offset: int) -> None:
        view = memoryview(block)
        with explained("write", self.path):
            while view:
                count = os.pwrite(self._fd, view, offset)
                view, offset = view[count:], offset + count

    def blocks(self, offset: int, size: int) -> Iterator[memoryview]:
        """The bytes `offset` to `offset + size` in one reused buffer."""
        yield from _blocks(self._fd, self.path, offset, size, BLOCK_BYTES)

    def publish(self) -> bool:
        """Makes the bytes durable and gives the file its final name, replacing what has it, in one step.

        False: the target is on another file system, where no step leads; nothing was done.
        """
        with explained("write", self.target):
            os.fsync(self._fd)
            if not _names(self.path, self._fd):
                raise LocalFileError(f"{self.path} was removed or replaced while it was written; run the same command again")
            try:
                os.replace(self.path, self.target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                return False
            _sync_folder(self.target.parent)
        return True

    def discard(self) -> None:
        """Removes the half-finished file."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Frees the lock; quiet when called twice."""
        fd, self._fd = self._fd, -1
        if fd != -1:
            os.close(fd)


def _names(path: Path, fd: int) -> bool:
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable where folders can be synced: not on every FUSE or CIFS mount, and not in a folder that one may only write."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(fd)


def part_path(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def journal_path(target: Path) -> Path:
    return _journal_of(part_path(target))


def _journal_of(part: Path) -> Path:
    return part.with_name(part.name + ".journal")


def put_aside(path: Path) -> Path | None:
    """Renames a file that we did not make, or cannot use, to `<name>.unusable`; returns the new path, None if there was none.

    What was put aside earlier stays: then the new name is `<name>.unusable-2` and so on.
    """
    names = itertools.chain([path.name + ".unusable"], (f"{path.name}.unusable-{number}" for number in itertools.count(2)))
    aside = next(found for name in names if not os.path.lexists(found := path.with_name(name)))
    with explained("rename", path):
        try:
            os.replace(path, aside)
        except FileNotFoundError:
            return None
    return aside


def check_space(target: Path, needed_bytes: int) -> None:
    """Raises `NoSpaceError` when the target's file system has fewer than `needed_bytes` bytes free for this user."""
    with explained("look at", target.parent):
        status = os.statvfs(target.parent)
    free = status.f_bavail * status.f_frsize
    if needed_bytes > free:
        raise NoSpaceError(
            f"Not enough space in {target.parent} for {target.name}: {needed_bytes:,} bytes are missing and {free:,} bytes are free; "
            f"free {needed_bytes - free:,} bytes or choose another folder"
        )


def safe_target(folder: Path, name: str) -> Path:
    """The path of the file `name` directly inside `folder`. The name may come from a server or a manifest and is not trusted.

    Raises:
        LocalFileError: the name could lead out of the folder, hide something, or cannot be a file name here.
    """
    target = _inside(folder, name)
    with explained("look at", target):
        if target.exists() and not target.is_file():
            raise LocalFileError(f"Cannot write {target}: it exists and is not a regular file")
    return target


def safe_folder(folder: Path, name: str) -> Path:
    """The path of the folder `name` directly inside `folder`, which may be there already. For names as untrusted as in `safe_target`.

    Raises:
        LocalFileError: as `safe_target`, or it exists and is not a folder.
    """
    target = _inside(folder, name)
    with explained("look at", target):
        if target.exists() and not target.is_dir():
            raise LocalFileError(f"Cannot make the folder {target}: a file has that name")
    return target


def _inside(folder: Path, name: str) -> Path:
    why = _unsafe(name)
    if why is not None:
        raise LocalFileError(f"Refused the file name {name[:200]!r}: {why}; choose the name yourself with --output-layout id")
    target = folder / name
    with explained("look at", target):
        if target.is_symlink():
            raise LocalFileError(f"Refused to write through the symbolic link {target}: remove it or choose another folder")
    return target


def _unsafe(name: str) -> str | None:
    if not name.strip():
        return "it is empty"
    if name in {".", ".."} or "/" in name or "\\" in name:
        return "it must be a plain name without a folder"
    if any(unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for letter in name):
        return "it holds control or invisible characters"
    if name[1:2] == ":":
        return "it names a drive"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "it is not valid text"
    if length > _MAX_NAME_BYTES:
        return f"it has {length} bytes, over the {_MAX_NAME_BYTES} that a name may have here"
    return None
