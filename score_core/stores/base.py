"""What a bucket must be able to do, and what it may.

Every `ObjectStore` can read, write and list small objects and sign a ranged GET. Uploading in parts is an ability of its own,
`SupportsMultipart`: a store without it is read-only for data. Both speak in whole keys, below whatever prefix the store was opened with.
Implementations are safe to call from several threads. They raise `ObjectNotFound` for a missing key or upload, `AccessDenied`,
`AuthenticationError` or `Unavailable` for the rest; only "not found" means not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from score_core.model import ByteRange, Part, SignedUrl


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A key that exists. `etag` without quotes; `modified_at` in seconds since the epoch; `md5` in hex if the store's metadata say it."""

    key: str
    size: int
    etag: str
    modified_at: float
    md5: str | None = None


@dataclass(frozen=True, slots=True)
class ListedPart:
    """A part that the store holds for an upload in progress. `etag` without quotes."""

    number: int
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class MultipartUpload:
    """An upload in progress as the store lists it. `started_at` in seconds since the epoch."""

    key: str
    upload_id: str
    started_at: float


@runtime_checkable
class ObjectStore(Protocol):
    """One bucket, or one prefix of it."""

    @property
    def label(self) -> str:
        """What to call the store in messages, such as `s3://bucket/prefix`: without secrets."""
        ...

    def head(self, key: str) -> StoredObject:
        """Facts about a key. Raises `ObjectNotFound`."""
        ...

    def read(self, key: str) -> bytes:
        """A small object's bytes, whole. Raises `ObjectNotFound`."""
        ...

    def read_range(self, key: str, offset: int, size: int) -> bytes:
        """Bytes `offset` to `offset + size` of an object, fewer only where it ends, none past its end. Raises `ObjectNotFound`.

        `offset` is 0 or more, `size` positive: what is small enough for memory, such as a header or an index.
        """
        ...

    def write(self, key: str, data: bytes) -> None:
        """Puts a small object, replacing what was there: readers see the old or the new one, never half."""
        ...

    def write_if_unchanged(self, key: str, data: bytes, *, etag: str | None) -> bool:
        """As `write`, but only over the version with that ETag, or where nothing is when None; False, and nothing done, otherwise.

        S3-compatible stores that do not know conditional writes write always: what must not go wrong looks again afterwards.
        """
        ...

    def delete(self, key: str) -> None:
        """Deletes a key; quiet when it is not there."""
        ...

    def list_objects(self, prefix: str) -> Iterator[StoredObject]:
        """All objects whose key begins with `prefix`, in key order, all pages."""
        ...

    def presign_gets(self, key: str, ranges: Sequence[ByteRange | None], *, lifetime_s: float) -> list[SignedUrl]:
        """A GET URL per range, in order: for exactly that range (the `Range` header is signed and in `headers`), or any when None."""
        ...

    def check(self) -> None:
        """Returns if the store is reached, exists and lets us in; raises the error that says what is wrong if not."""
        ...

    def close(self) -> None:
        """Frees connections and servers that this store opened."""
        ...


@runtime_checkable
class SupportsMultipart(Protocol):
    """Upload in parts through signed URLs. A part's ETag is what its PUT answers."""

    def create_multipart(self, key: str) -> str:
        """Begins an upload and returns its id."""
        ...

    def presign_parts(
        self, key: str, upload_id: str, parts: Sequence[Part], *, lifetime_s: float, content_md5: bool = False
    ) -> list[SignedUrl]:
        """A PUT URL per part, in order. With `content_md5` the store must refuse bytes of another MD5 than `part.md5`.

        For that a signed `Content-MD5` is in `headers`. Raises `ConfigurationError` when a part's MD5 is not known then.
        """
        ...

    def holds_part(self, key: str, upload_id: str, number: int, etag: str) -> bool:
        """Whether the upload holds that part with exactly that ETag, for one request. Raises `ObjectNotFound` for an unknown upload."""
        ...

    def list_parts(self, key: str, upload_id: str) -> Iterator[ListedPart]:
        """Parts that are there, by number, all pages. Raises `ObjectNotFound` for an unknown upload."""
        ...

    def complete_multipart(self, key: str, upload_id: str, parts: Sequence[ListedPart]) -> None:
        """Publishes the object from exactly these parts, in order.

        Raises `ObjectNotFound` for an unknown upload, `Conflict` when a part is not there with that ETag.
        """
        ...

    def abort_multipart(self, key: str, upload_id: str) -> None:
        """Drops the upload and its parts; quiet when it is not there."""
        ...

    def list_multiparts(self, prefix: str) -> Iterator[MultipartUpload]:
        """Uploads in progress whose key begins with `prefix`, all pages."""
        ...


@runtime_checkable
class SupportsPartitions(Protocol):
    """A store whose objects may be spread over numbered buckets."""

    def partition(self, number: int) -> MultipartStore:
        """The store in the bucket `<this bucket>.<number>`, same place and prefix, over the same connections: close one to close all."""
        ...


@runtime_checkable
class MultipartStore(ObjectStore, SupportsMultipart, Protocol):
    """A store that Score can upload to."""
