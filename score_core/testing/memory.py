"""A bucket in a dict, and a transport that reaches it without a socket: engines under test see what real ones would."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from score_core.checksum import Buffer, md5_base64, md5_hex
from score_core.errors import (
    AccessDenied,
    ChangedError,
    Conflict,
    ObjectNotFound,
    PartMismatch,
    PermanentError,
    TransientError,
    UrlExpiredError,
)
from score_core.model import ByteRange, Part, SignedUrl
from score_core.stores.base import ListedPart, MultipartUpload, StoredObject
from score_core.stores.signing import content_md5_of
from score_core.transfer.part import PutReply, Sink
from score_core.transfer.stop import Stop

_BLOCK_BYTES: Final = 64 * 1024  # small, so that small tests see several blocks


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes
    etag: str
    modified_at: float


@dataclass(slots=True)
class _Upload:
    key: str
    started_at: float
    parts: dict[int, bytes] = field(default_factory=dict)


class MemoryStore:
    """A `MultipartStore` that keeps everything in memory.

    `calls` counts the calls of each method by name. `clock` decides when URLs have expired. URLs are `memory://store/<key>?...`, good for
    `MemoryTransport` only; they are not signed, but their expiry and everything that they permit is in them and checked. `missing`: it
    behaves as a bucket that does not exist.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time, name: str = "store") -> None:
        self.missing = False
        self._name = name
        self._partitions: dict[int, MemoryStore] = {}
        self.calls: Counter[str] = Counter()
        self.clock = clock
        self._lock = threading.RLock()
        self._objects: dict[str, _Object] = {}
        self._uploads: dict[str, _Upload] = {}
        self._ids = (f"upload-{number:06d}" for number in count(1))

    @property
    def label(self) -> str:
        return f"memory://{self._name}"

    def head(self, key: str) -> StoredObject:
        found = self._object("head", key)
        return StoredObject(key, len(found.data), found.etag, found.modified_at)

    def read(self, key: str) -> bytes:
        return self._object("read", key).data

    def read_range(self, key: str, offset: int, size: int) -> bytes:
        return self._object("read_range", key).data[offset : offset + size]

    def write(self, key: str, data: bytes) -> None:
        with self._counted("write"):
            self._objects[key] = _Object(bytes(data), md5_hex(data), self.clock())

    def write_if_unchanged(self, key: str, data: bytes, *, etag: str | None) -> bool:
        with self._counted("write_if_unchanged"):
            held = self._objects.get(key)
            if (None if held is None else held.etag) != etag:
                return False
            self._objects[key] = _Object(bytes(data), md5_hex(data), self.clock())
            return True

    def delete(self, key: str) -> None:
        with self._counted("delete"):
            self._objects.pop(key, None)

    def list_objects(self, prefix: str) -> Iterator[StoredObject]:
        with self._counted("list_objects"):
            found = [StoredObject(key, len(held.data), held.etag, held.modified_at) for key, held in self._objects.items()]
        return iter(sorted((row for row in found if row.key.startswith(prefix)), key=lambda row: row.key.encode()))

    def presign_gets(self, key: str, ranges: Sequence[ByteRange | None], *, lifetime_s: float) -> list[SignedUrl]:
        with self._counted("presign_gets"):
            signed = [{} if byte_range is None else {"Range": byte_range.http} for byte_range in ranges]
            return [self._url("GET", key, headers, headers, lifetime_s) for headers in signed]

    def check(self) -> None:
        with self._counted("check"):
            pass

    def close(self) -> None:
        """Nothing to free: the objects stay, for a test to look at."""

    def create_multipart(self, key: str) -> str:
        with self._counted("create_multipart"):
            upload_id = next(self._ids)
            self._uploads[upload_id] = _Upload(key, self.clock())
            return upload_id

    def presign_parts(
        self, key: str, upload_id: str, parts: Sequence[Part], *, lifetime_s: float, content_md5: bool = False
    ) -> list[SignedUrl]:
        with self._counted("presign_parts"):
            urls = []
            for part in parts:
                headers = {"Content-MD5": content_md5_of(part)} if content_md5 else {}
                query = {"uploadId": upload_id, "partNumber": str(part.number), "size": str(part.size)}
                urls.append(self._url("PUT", key, query | headers, headers, lifetime_s))
            return urls

    def holds_part(self, key: str, upload_id: str, number: int, etag: str) -> bool:
        with self._counted("holds_part"):
            parts = self._upload(key, upload_id).parts
            return number in parts and md5_hex(parts[number]) == etag

    def list_parts(self, key: str, upload_id: str) -> Iterator[ListedPart]:
        with self._counted("list_parts"):
            parts = sorted(self._upload(key, upload_id).parts.items())
            return iter([ListedPart(number, len(data), md5_hex(data)) for number, data in parts])

    def complete_multipart(self, key: str, upload_id: str, parts: Sequence[ListedPart]) -> None:
        with self._counted("complete_multipart"):
            held = self._upload(key, upload_id).parts
            numbers = [part.number for part in parts]
            if not parts or numbers != sorted(set(numbers)):
                raise Conflict(f"The parts of {key} must be given once each and in order", status=400)
            for part in parts:
                if part.number not in held or md5_hex(held[part.number]) != part.etag:
                    raise Conflict(f"Part {part.number} of {key} is not stored with ETag {part.etag}", status=400)
            digest = hashlib.md5(b"".join(bytes.fromhex(part.etag) for part in parts), usedforsecurity=False)
            data = b"".join(held[number] for number in numbers)
            self._objects[key] = _Object(data, f"{digest.hexdigest()}-{len(parts)}", self.clock())
            del self._uploads[upload_id]

    def abort_multipart(self, key: str, upload_id: str) -> None:
        with self._counted("abort_multipart"):
            if upload_id in self._uploads and self._uploads[upload_id].key == key:
                del self._uploads[upload_id]

    def list_multiparts(self, prefix: str) -> Iterator[MultipartUpload]:
        with self._counted("list_multiparts"):
            found = [MultipartUpload(upload.key, upload_id, upload.started_at) for upload_id, upload in self._uploads.items()]
        return iter(sorted((row for row in found if row.key.startswith(prefix)), key=lambda row: (row.key, row.started_at)))

    def partition(self, number: int) -> MemoryStore:
        with self._lock:
            return self._partitions.setdefault(number, MemoryStore(clock=self.clock, name=f"{self._name}.{number}"))

    # For the transport and for tests

    def named(self, name: str) -> MemoryStore:
        """This store or the partition of it that is called so."""
        return next(store for store in (self, *self._partitions.values()) if store.label == f"memory://{name}")

    def get_range(self, key: str, byte_range: ByteRange, *, if_match: str | None = None) -> bytes:
        """Bytes as a ranged GET would bring them, shorter at the object's end."""
        found = self._object("get_range", key)
        if if_match is not None and found.etag != if_match:
            raise ChangedError(f"{key} was replaced: its ETag is not {if_match} any more")
        if byte_range.offset >= len(found.data):
            raise PermanentError(f"The range of {key} begins behind its end")
        return found.data[byte_range.offset : byte_range.end]

    def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> str:
        """Stores a part as its PUT would; the answer is its ETag."""
        with self._counted("put_part"):
            self._upload(key, upload_id).parts[number] = data
            return md5_hex(data)

    # Inside

    def _counted(self, method: str) -> threading.RLock:
        if self.missing:
            raise ObjectNotFound(f"The bucket {self.label} does not exist", status=404)
        self.calls[method] += 1
        return self._lock

    def _object(self, method: str, key: str) -> _Object:
        with self._counted(method):
            if key not in self._objects:
                raise ObjectNotFound(f"There is no object {key} in {self.label}", status=404)
            return self._objects[key]

    def _upload(self, key: str, upload_id: str) -> _Upload:
        upload = self._uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise ObjectNotFound(f"No upload {upload_id} of {key} is in progress in {self.label}", status=404)
        return upload

    def _url(
        self, method: Literal["GET", "PUT"], key: str, query: Mapping[str, str], headers: Mapping[str, str], lifetime_s: float
    ) -> SignedUrl:
        expires_at = self.clock() + lifetime_s
        text = urlencode({"Expires": repr(expires_at), "method": method, **query})
        return SignedUrl(method=method, url=f"{self.label}/{quote(key, safe='/~')}?{text}", expires_at=expires_at, headers=dict(headers))


class MemoryTransport:
    """A `PartTransport` to a `MemoryStore` and its partitions, with the checks and errors of the real one.

    `clock` is by default the store's.
    """

    def __init__(self, store: MemoryStore, clock: Callable[[], float] | None = None) -> None:
        self._store = store
        self._clock = clock or store.clock

    def get(
        self, byte_range: ByteRange, url: SignedUrl, sink: Sink, *, if_match: str | None = None, stop: Stop | None = None
    ) -> str | None:
        store, key, permitted = self._permitted("GET", url)
        if permitted.get("Range", byte_range.http) != byte_range.http or url.headers.get("Range", byte_range.http) != byte_range.http:
            raise AccessDenied(f"The URL for {key} was signed for another range", status=403)
        data = store.get_range(key, byte_range, if_match=if_match)
        for start in range(0, len(data), _BLOCK_BYTES):
            _check(stop)
            sink(data[start : start + _BLOCK_BYTES])
        if len(data) != byte_range.size:
            raise TransientError(f"{byte_range.size - len(data)} bytes of {key} are missing at its end")
        return store.head(key).etag

    def put(self, size: int, url: SignedUrl, blocks: Iterable[Buffer], *, stop: Stop | None = None) -> PutReply:
        store, key, permitted = self._permitted("PUT", url)
        data = bytearray()
        for block in blocks:
            _check(stop)
            data += block
        if len(data) != size or str(size) != permitted["size"]:
            raise PermanentError(
                f"The part of {key} has {len(data)} bytes; its URL is for {permitted['size']}, its length was given as {size}"
            )
        md5 = md5_hex(data)
        if permitted.get("Content-MD5") != url.headers.get("Content-MD5"):
            raise AccessDenied(f"The URL for {key} was signed for another Content-MD5", status=403)
        if permitted.get("Content-MD5", md5_base64(md5)) != md5_base64(md5):
            raise PartMismatch(f"The store refused a part of {key}", expected="the signed digest", actual=md5)
        return PutReply(store.put_part(key, permitted["uploadId"], int(permitted["partNumber"]), bytes(data)), encrypted=False)

    def close(self) -> None:
        """Nothing to close."""

    def _permitted(self, method: str, url: SignedUrl) -> tuple[MemoryStore, str, dict[str, str]]:
        parts = urlsplit(url.url)
        permitted = dict(parse_qsl(parts.query))
        if method != permitted["method"]:
            raise AccessDenied("The URL was signed for another method", status=403)
        if self._clock() >= float(permitted["Expires"]):
            raise UrlExpiredError("Request has expired")
        return self._store.named(parts.netloc), unquote(parts.path.removeprefix("/")), permitted


def _check(stop: Stop | None) -> None:
    if stop is not None:
        stop.check()
