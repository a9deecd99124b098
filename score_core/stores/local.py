"""A bucket in a folder.

    <root>/<key>                         a small object: a plain file
    <root>/<key> -> .objects/<id>/manifest.json
                                         an object uploaded in parts: a symbolic link to its manifest, so that publishing is one rename,
                                         whatever was there before, and no byte is copied
    <root>/.objects/<id>/part-000001.<md5>
                                         parts, named by what is in them: a late or repeated PUT can never change a published byte
    <root>/.uploads/<id>                 an upload in progress: its key and when it began (JSON); gone once published
    <root>/.aside/                       files on their way in, folders on their way out
    <root>/.secret                       the key that signs URLs, shared by every process on this folder

Several processes may use one folder at the same time; a crash at any point leaves the old object or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from score_core.errors import AccessDenied, Conflict, NoSpaceError, ObjectNotFound, ScoreError, ServiceError, Unavailable
from score_core.model import ByteRange, Part, SignedUrl
from score_core.plan import MAX_PARTS
from score_core.stores.base import ListedPart, MultipartUpload, StoredObject
from score_core.stores.pieces import LocalObject, PartWriter, Piece, newest_parts, part_name
from score_core.stores.signing import UrlSigner

if TYPE_CHECKING:
    from score_core.server.bytes import ByteServer

_log = logging.getLogger(__name__)

_OBJECTS: Final = ".objects"
_UPLOADS: Final = ".uploads"
_ASIDE: Final = ".aside"
_SECRET: Final = ".secret"  # noqa: S105  # a file name
_RESERVED: Final = frozenset({_OBJECTS, _UPLOADS, _ASIDE, _SECRET})
_MANIFEST: Final = "manifest.json"
_LINK: Final = re.compile(r"(?:\.\./)*\.objects/([^/]+)/manifest\.json")
_UPLOAD_ID: Final = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,127}")  # no leading dot: never `.` or `..`
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\\]")
_MAX_NAME_BYTES: Final = 255  # NAME_MAX of every usual Linux file system
_MAX_KEY_BYTES: Final = 1024  # S3's limit
_SECRET_BYTES: Final = 32
_ATTEMPTS: Final = 10  # against another process that removes an emptied folder, or replaces an object, between two of our steps
_LEFTOVER_AGE_S: Final = 86_400  # a file that is still aside after a day belongs to a process that was killed
_MISSING: Final = (FileNotFoundError, NotADirectoryError)


class LocalStore:
    """A `MultipartStore` in the folder `root`, which is made by the first write.

    URLs begin with `base_url`; without one, a byte server on a free loopback port of this process is started by the first presigning
    and stopped by `close`. `secret` replaces the one in the folder.
    """

    def __init__(
        self, root: Path, *, base_url: str | None = None, secret: bytes | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._root = Path(root).absolute()
        self._base_url = base_url
        self._secret = secret
        self._clock = clock
        self._lock = threading.Lock()
        self._signer: UrlSigner | None = None
        self._server: ByteServer | None = None
        self._load_manifest = functools.lru_cache(maxsize=8)(self._parse_manifest)  # never changes once published; 5 ms at 10,000 parts
        self._sweep()

    @property
    def label(self) -> str:
        return f"file://{self._root}"

    # Small objects

    def head(self, key: str) -> StoredObject:
        found = self.open(key)
        return StoredObject(key, found.size, found.etag, found.modified_at)

    def read(self, key: str) -> bytes:
        return self._read(key, 0, None)

    def read_range(self, key: str, offset: int, size: int) -> bytes:
        return self._read(key, offset, offset + size)

    def _read(self, key: str, offset: int, end: int | None) -> bytes:
        for _ in range(_ATTEMPTS):
            found = self.open(key)
            try:
                return found.read(offset, found.size if end is None else min(end, found.size))
            except OSError as error:
                if error.errno not in (errno.ESTALE, errno.ENOENT):
                    raise self._translated(error, f"read {key}") from error
        raise Unavailable(f"{self.label}/{key} is replaced faster than it can be read; try again")

    def write(self, key: str, data: bytes) -> None:
        self._write(key, data, only_over=lambda: True)

    def write_if_unchanged(self, key: str, data: bytes, *, etag: str | None) -> bool:
        return self._write(key, data, only_over=lambda: self._etag(key) == etag)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._border(f"delete {key}"):
            if not self._root.is_dir():
                return
            with self._publishing():
                old = _linked_id(path)
                with contextlib.suppress(*_MISSING, IsADirectoryError):
                    path.unlink()
            self._remove_folder(old)
            self._prune(path.parent)

    def list_objects(self, prefix: str) -> Iterator[StoredObject]:
        self._check_prefix(prefix)
        for key in self._keys(self._root, "", prefix):
            with contextlib.suppress(ObjectNotFound):  # deleted while we list, or a link that is not ours
                yield self.head(key)

    def presign_gets(self, key: str, ranges: Sequence[ByteRange | None], *, lifetime_s: float) -> list[SignedUrl]:
        self._path(key)
        return self.signer.sign_gets(self.base_url, key, ranges, lifetime_s=lifetime_s)

    def check(self) -> None:
        if not self._root.is_dir():
            raise ObjectNotFound(f"The folder {self._root} does not exist; create it, or correct the store's address", status=404)
        if not os.access(self._root, os.R_OK | os.W_OK | os.X_OK):
            raise AccessDenied(f"The folder {self._root} cannot be read and written by this user; change its permissions")

    def close(self) -> None:
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            server.close()

    # Uploads in parts

    def create_multipart(self, key: str) -> str:
        self._path(key)
        upload_id = secrets.token_hex(12)
        with self._border(f"begin an upload of {key}"):
            self._folder(upload_id).mkdir(parents=True)
            aside = self._write_aside(json.dumps({"key": key, "started_at": self._clock()}).encode())
            self._inner(_UPLOADS).mkdir(exist_ok=True)
            aside.replace(self._inner(_UPLOADS) / upload_id)
        return upload_id

    def presign_parts(
        self, key: str, upload_id: str, parts: Sequence[Part], *, lifetime_s: float, content_md5: bool = False
    ) -> list[SignedUrl]:
        self._path(key)
        _check_upload_id(upload_id)
        for part in parts:
            _check_part_number(part.number)
        return self.signer.sign_parts(self.base_url, key, upload_id, parts, lifetime_s=lifetime_s, content_md5=content_md5)

    def holds_part(self, key: str, upload_id: str, number: int, etag: str) -> bool:
        self._upload(key, upload_id)
        held = newest_parts(self._folder(upload_id), only=number).get(number)
        return held is not None and held.etag == etag

    def list_parts(self, key: str, upload_id: str) -> Iterator[ListedPart]:
        self._upload(key, upload_id)
        newest = sorted(newest_parts(self._folder(upload_id)).values(), key=lambda part: part.number)
        return iter(newest)

    def complete_multipart(self, key: str, upload_id: str, parts: Sequence[ListedPart]) -> None:
        path, folder = self._path(key), self._folder(upload_id)
        with self._border(f"publish {key}"), self._claimed(key, upload_id) as marker:
            if _linked_id(path) != upload_id:  # else: published by a run that was killed before it removed the marker
                chosen = self._chosen(key, folder, parts)
                self._write_manifest(folder, key, chosen)
                self._publish(path, upload_id)
                _remove_unpublished(folder, chosen)
            marker.unlink()

    def abort_multipart(self, key: str, upload_id: str) -> None:
        with self._border(f"abort the upload of {key}"), contextlib.suppress(ObjectNotFound), self._claimed(key, upload_id) as marker:
            if _linked_id(self._path(key)) != upload_id:
                self._remove_folder(upload_id)
            marker.unlink()

    def list_multiparts(self, prefix: str) -> Iterator[MultipartUpload]:
        found = []
        with contextlib.suppress(*_MISSING):
            for marker in self._inner(_UPLOADS).iterdir():
                with contextlib.suppress(*_MISSING):
                    found.append(self._marker(marker.name))
        ordered = sorted(found, key=lambda upload: (upload.key, upload.started_at))
        return (upload for upload in ordered if upload.key.startswith(prefix))

    # For the byte server

    @property
    def base_url(self) -> str:
        """What this store's URLs begin with; starts the byte server if there is none."""
        if self._base_url is not None:
            return self._base_url
        from score_core.server.bytes import ByteServer  # time that a store with a given `base_url` need not spend

        with self._lock:
            if self._server is None:
                self._server = ByteServer(self)
                self._server.start()
            return self._server.url

    @property
    def signer(self) -> UrlSigner:
        if self._signer is None:
            with self._border("read the signing key"):
                self._signer = UrlSigner(self._secret or self._shared_secret(), self._clock)
        return self._signer

    def open(self, key: str) -> LocalObject:
        """The object as it is now. A reader keeps this version or fails: it never sees bytes of a later one. Raises `ObjectNotFound`."""
        path = self._path(key)
        for _ in range(_ATTEMPTS):
            try:
                return self._look(path)
            except _MISSING:
                if not path.is_symlink():
                    break
            except OSError as error:
                raise self._translated(error, f"read {key}") from error
        raise ObjectNotFound(f"There is no object {key} in {self.label}", status=404)

    def receive_part(self, key: str, upload_id: str, number: int) -> PartWriter:
        """Where one part's bytes go. Raises `ObjectNotFound` when no such upload is in progress."""
        _check_part_number(number)
        self._upload(key, upload_id)
        return PartWriter(self._folder(upload_id), number)

    # Paths

    def _path(self, key: str) -> Path:
        problem = _key_problem(key)
        if problem:
            raise ServiceError(f"The key {key[:100]!r} cannot be stored in {self.label}: {problem}", status=400)
        return self._root / key

    def _inner(self, name: str) -> Path:
        return self._root / name

    def _folder(self, upload_id: str) -> Path:
        _check_upload_id(upload_id)
        return self._root / _OBJECTS / upload_id

    def _check_prefix(self, prefix: str) -> None:
        if "\0" in prefix or ".." in prefix.split("/") or prefix.startswith("/"):
            raise ServiceError(f"The prefix {prefix[:100]!r} is not one of {self.label}: it would leave the store", status=400)

    def _keys(self, folder: Path, above: str, prefix: str) -> Iterator[str]:
        """Keys below `folder` in the order of their UTF-8 bytes, as S3 lists them: a folder sorts as if its name ended in `/`."""
        try:
            with os.scandir(folder) as entries:
                rows = [(f"{above}{entry.name}", entry.is_dir(follow_symlinks=False)) for entry in entries]
        except _MISSING:
            return
        for key, is_folder in sorted(rows, key=lambda row: os.fsencode(row[0] + "/" if row[1] else row[0])):
            if key in _RESERVED:
                continue
            if not is_folder and key.startswith(prefix):
                yield key
            elif is_folder and (key.startswith(prefix) or prefix.startswith(key + "/") or (key + "/").startswith(prefix)):
                yield from self._keys(self._root / key, key + "/", prefix)

    def _prune(self, folder: Path) -> None:
        while folder != self._root:
            try:
                folder.rmdir()
            except OSError:  # not empty, or gone
                return
            folder = folder.parent

    # Steps

    def _look(self, path: Path) -> LocalObject:
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode):
            etag = f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
            return LocalObject(status.st_size, etag, status.st_mtime, (Piece(path, status.st_size, status.st_ino),), (0,))
        upload_id = _linked_id(path) if stat.S_ISLNK(status.st_mode) else None
        if upload_id is None:
            raise ObjectNotFound(f"There is no object {path.relative_to(self._root)} in {self.label}", status=404)
        return self._load_manifest(upload_id)

    def _parse_manifest(self, upload_id: str) -> LocalObject:
        folder = self._folder(upload_id)
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_bytes())
        pieces, starts, size = [], [], 0
        for number, part_size, md5 in manifest["parts"]:
            pieces.append(Piece(folder / part_name(number, md5), part_size))
            starts.append(size)
            size += part_size
        return LocalObject(size, str(manifest["etag"]), float(manifest["completed_at"]), tuple(pieces), tuple(starts))

    def _chosen(self, key: str, folder: Path, parts: Sequence[ListedPart]) -> list[ListedPart]:
        there = newest_parts(folder)
        numbers = [part.number for part in parts]
        if not parts or numbers != sorted(set(numbers)):
            raise Conflict(f"The parts of {key} must be given once each and in order; publish it from the list of stored parts", status=400)
        for part in parts:
            held = there.get(part.number)
            if held is None or held.etag != part.etag:
                raise Conflict(f"Part {part.number} of {key} is not stored with ETag {part.etag}; send that part again", status=400)
        return [there[number] for number in numbers]

    def _write_manifest(self, folder: Path, key: str, parts: Sequence[ListedPart]) -> None:
        digest = hashlib.md5(b"".join(bytes.fromhex(part.etag) for part in parts), usedforsecurity=False).hexdigest()
        manifest = {
            "version": 1,
            "key": key,
            "etag": f"{digest}-{len(parts)}",  # as S3 makes it
            "completed_at": self._clock(),
            "parts": [[part.number, part.size, part.etag] for part in parts],
        }
        self._write_aside(json.dumps(manifest, separators=(",", ":")).encode()).replace(folder / _MANIFEST)
        _sync_folder(folder)

    def _publish(self, path: Path, upload_id: str) -> None:
        link = self._aside_path()
        depth = len(path.relative_to(self._root).parts) - 1
        link.symlink_to("../" * depth + f"{_OBJECTS}/{upload_id}/{_MANIFEST}")
        try:
            self._swap_in(link, path)
        finally:
            link.unlink(missing_ok=True)

    def _write(self, key: str, data: bytes, *, only_over: Callable[[], bool]) -> bool:
        path = self._path(key)
        with self._border(f"write {key}"):
            aside = self._write_aside(data)
            try:
                return self._swap_in(aside, path, only_over=only_over)
            finally:
                aside.unlink(missing_ok=True)

    def _etag(self, key: str) -> str | None:
        try:
            return self.head(key).etag
        except ObjectNotFound:
            return None

    def _swap_in(self, aside: Path, path: Path, *, only_over: Callable[[], bool] = lambda: True) -> bool:
        """Renames into place and drops the parts of the object that was there. The lock keeps two publishers from both missing one.

        False when `only_over`, asked with the lock in hand, forbids it.
        """
        with self._publishing():
            if not only_over():
                return False
            old = _linked_id(path)
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    aside.replace(path)
                    break
                except (FileNotFoundError, FileExistsError):  # a deleter removed the empty folder, or just before mkdir looked at it
                    if attempt == _ATTEMPTS or path.parent.is_file():
                        raise
        _sync_folder(path.parent)
        self._remove_folder(old)
        return True

    def _remove_folder(self, upload_id: str | None) -> None:
        """Out of sight by one rename first: a PUT that is still writing finds its upload gone instead of reviving it."""
        if upload_id is None:
            return
        dead = self._aside_path("dead")
        with contextlib.suppress(FileNotFoundError):
            self._folder(upload_id).rename(dead)
            shutil.rmtree(dead, ignore_errors=True)

    def _write_aside(self, data: bytes) -> Path:
        path = self._aside_path()
        try:
            with path.open("xb") as file:
                file.write(data)
                file.flush()
                if data:
                    os.fdatasync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def _aside_path(self, kind: str = "new") -> Path:
        folder = self._inner(_ASIDE)
        if not folder.is_dir():
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(exist_ok=True)
        return folder / f"{kind}-{secrets.token_hex(8)}"

    def _sweep(self) -> None:
        with contextlib.suppress(*_MISSING):
            for path in self._inner(_ASIDE).iterdir():
                if path.name.startswith("dead-"):
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name.startswith("new-") and time.time() - path.lstat().st_mtime > _LEFTOVER_AGE_S:
                    path.unlink(missing_ok=True)

    # Uploads

    def _upload(self, key: str, upload_id: str) -> MultipartUpload:
        self._path(key)
        _check_upload_id(upload_id)
        with contextlib.suppress(*_MISSING):
            upload = self._marker(upload_id)
            if upload.key == key:
                return upload
        raise ObjectNotFound(f"No upload {upload_id} of {key} is in progress in {self.label}", status=404)

    def _marker(self, upload_id: str) -> MultipartUpload:
        facts: dict[str, Any] = json.loads((self._inner(_UPLOADS) / upload_id).read_bytes())
        return MultipartUpload(str(facts["key"]), upload_id, float(facts["started_at"]))

    @contextlib.contextmanager
    def _claimed(self, key: str, upload_id: str) -> Iterator[Path]:
        """The upload's marker, for one finisher at a time. The kernel frees the lock of a process that dies."""
        self._upload(key, upload_id)
        marker = self._inner(_UPLOADS) / upload_id
        try:
            file = marker.open("rb")
        except FileNotFoundError:
            self._upload(key, upload_id)
            raise
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._upload(key, upload_id)  # another finisher may have been before us
            yield marker

    @contextlib.contextmanager
    def _publishing(self) -> Iterator[None]:
        self._aside_path()
        with (self._inner(_ASIDE) / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _shared_secret(self) -> bytes:
        path = self._inner(_SECRET)
        if not path.exists():
            aside = self._aside_path()
            with open(aside, "xb", opener=functools.partial(os.open, mode=0o600)) as file:
                file.write(secrets.token_bytes(_SECRET_BYTES))
            with contextlib.suppress(FileExistsError):  # another process was first: its key counts
                os.link(aside, path)
            aside.unlink()
        return _checked_secret(path)

    # Errors

    @contextlib.contextmanager
    def _border(self, action: str) -> Iterator[None]:
        try:
            yield
        except ScoreError:
            raise
        except OSError as error:
            raise self._translated(error, action) from error

    def _translated(self, error: OSError, action: str) -> ScoreError:
        """The one place where the operating system's errors become ours."""
        what = f"Cannot {action} in {self.label}: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return NoSpaceError(f"{what}; free some space there")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return AccessDenied(f"{what}; this user needs to read and write there", status=403)
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY):
            return Conflict(f"{what}; a folder store cannot hold both a key and keys below it", status=409)
        return Unavailable(f"{what}; check the disk")


def _key_problem(key: str) -> str | None:
    """Why a key must not become a path, None if it may."""
    segments = key.split("/")
    if any(segment.strip() in ("", ".", "..") for segment in segments):
        return "every name between slashes must be a real one, not empty, `.` or `..`"
    if _CONTROL.search(key):
        return "it holds control characters or backslashes"
    try:
        longest = max(len(segment.encode()) for segment in segments)
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if longest > _MAX_NAME_BYTES or len(key.encode()) > _MAX_KEY_BYTES:
        return f"file names have at most {_MAX_NAME_BYTES} bytes and keys {_MAX_KEY_BYTES}"
    if segments[0] in _RESERVED:
        return f"the store keeps its own files in {segments[0]}"
    return None


def _check_upload_id(upload_id: str) -> None:
    if not _UPLOAD_ID.fullmatch(upload_id):
        raise ObjectNotFound(f"{upload_id[:100]!r} is not an upload id", status=404)


def _check_part_number(number: int) -> None:
    if not 1 <= number <= MAX_PARTS:
        raise ServiceError(f"Part numbers go from 1 to {MAX_PARTS}, got {number}", status=400)


def _remove_unpublished(folder: Path, parts: Sequence[ListedPart]) -> None:
    """Drops torn and superseded parts of a published upload. What cannot be dropped only costs space."""
    keep = {part_name(part.number, part.etag) for part in parts} | {_MANIFEST}
    with contextlib.suppress(OSError):  # the object may have been replaced already
        for path in folder.iterdir():
            if path.name not in keep:
                path.unlink(missing_ok=True)


def _linked_id(path: Path) -> str | None:
    """The upload that a key's link points at, None if the path is no link of ours."""
    try:
        match = _LINK.fullmatch(str(path.readlink()))
    except OSError:
        return None
    return match[1] if match and _UPLOAD_ID.fullmatch(match[1]) else None


def _sync_folder(folder: Path) -> None:
    """Renames reach the disk with their folder. Quiet where folders cannot be synced or are gone."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _checked_secret(path: Path) -> bytes:
    secret = path.read_bytes()
    if len(secret) != _SECRET_BYTES:
        raise Unavailable(f"{path} must hold {_SECRET_BYTES} bytes, has {len(secret)}; delete it, and a new one is made")
    if path.stat().st_mode & 0o077:
        _log.warning("%s can be read by other users; run chmod 600 on it", path)
    return secret
