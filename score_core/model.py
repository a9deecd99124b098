"""The values that every room passes to the next: parts, objects, uploads, URLs, receipts.

Conventions: offsets are 0-based, `end` is exclusive, sizes are bytes, MD5s are 32 lower-case hex digits,
times are seconds since the epoch (UTC). HTTP ranges, whose end is inclusive, are made in `ByteRange.http` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from score_core.errors import redact

Validation = Literal["auto", "parts", "whole", "both", "off"]


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes `offset` (0-based, inclusive) to `end` (exclusive)."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size

    @property
    def http(self) -> str:
        """The value of a `Range` header: `bytes=first-last`, both inclusive (RFC 9110, 14.1.2). `size` must be positive."""
        return f"bytes={self.offset}-{self.end - 1}"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of an object. `md5` is the reference that its bytes must have, None if nobody recorded one."""

    number: int
    offset: int
    size: int
    md5: str | None = None

    @property
    def end(self) -> int:
        return self.offset + self.size

    @property
    def range(self) -> ByteRange:
        return ByteRange(self.offset, self.size)


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """What the repository knows of a stored object. `parts` tile the object in order.

    `md5` is the whole object's, None if unknown. `etag` guards against a replaced object (`If-Match`). `sealed` means that
    the uploader proved `md5` against the very bytes that the parts' MD5s describe, so that the parts alone prove the whole.
    `file_name` is what the uploader called the file: untrusted. `upload_id` is the upload that it came by, None if it came without Score.
    `relocated` means that its bytes are in the base bucket although the repository is partitioned (protocol section 5.4); it is the
    repository's own note and is never serialised; so is `modified_at`, when the store last changed it.
    """

    object_id: str
    size: int
    parts: tuple[Part, ...]
    md5: str | None = None
    etag: str | None = None
    sealed: bool = False
    file_name: str | None = None
    upload_id: str | None = None
    relocated: bool = False
    modified_at: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part that the store holds: `md5` as recorded when it was committed, `etag` without quotes as the store answered it."""

    number: int
    md5: str
    etag: str


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload in progress. `parts` is its plan; `stored` maps part numbers to what is recorded as there.

    `md5` is the whole file's MD5 as claimed when the upload began.
    """

    object_id: str
    upload_id: str
    size: int
    parts: tuple[Part, ...]
    md5: str | None
    stored: Mapping[int, StoredPart] = field(default_factory=dict)
    file_name: str | None = None


@dataclass(frozen=True, slots=True)
class SignedUrl:
    """A bearer secret: who has the URL may use it until `expires_at`. Never log, store or pass it where it would be kept.

    `headers` must be sent exactly as they stand, because they are part of the signature. `repr()` shows no query.
    """

    method: Literal["GET", "PUT"]
    url: str
    expires_at: float
    headers: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"SignedUrl({self.method} {redact(self.url)})"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One row of a listing. `modified_at` in seconds since the epoch."""

    object_id: str
    size: int
    modified_at: float


@dataclass(frozen=True, slots=True)
class UploadInfo:
    """One unfinished upload in a listing. `started_at` in seconds since the epoch."""

    object_id: str
    upload_id: str
    started_at: float


@dataclass(frozen=True, slots=True)
class PartReceipt:
    """Proof that one part is where it belongs. `tag` is the XXH3-128 of the same bytes (`checksum.py` says what it is for).

    `md5` is None when nothing asked for it (download with `whole` or `off`). `etag` is the store's for uploads.
    `moved` is the number of bytes that went over the wire for it, 0 if it was there already.
    """

    number: int
    size: int
    tag: str
    md5: str | None = None
    etag: str | None = None
    moved: int = 0


Outcome = Literal["uploaded", "downloaded", "already there", "verified", "sliced", "failed"]


@dataclass(frozen=True, slots=True)
class TransferReport:
    """How one file ended. Small, serialisable, without secrets: what the CLI prints and Prefect stores.

    `bytes_moved` went over the wire; `bytes_kept` in `parts_kept` parts were there already thanks to an earlier run, and of these
    `parts_cached` were also in Prefect's result cache.
    `validation` is the policy that proved the bytes, `md5` the proven digest (None with `off`). `error` says why it failed.
    """

    object_id: str
    path: str
    outcome: Outcome
    size: int = 0
    md5: str | None = None
    parts: int = 0
    parts_kept: int = 0
    parts_cached: int = 0
    bytes_moved: int = 0
    bytes_kept: int = 0
    retries: int = 0
    signings: int = 0
    seconds: float = 0.0
    validation: Validation | None = None
    error: str | None = None
    exit_code: int = 0

    @property
    def megabytes_per_s(self) -> float:
        """10^6 bytes per second over the wire, 0 when nothing moved."""
        return self.bytes_moved / 1e6 / self.seconds if self.seconds and self.bytes_moved else 0.0


@dataclass(frozen=True, slots=True)
class SliceReport(TransferReport):
    """How one slice ended. `size` is the whole object's, `bytes_moved` what was fetched of it and of its index in `requests` requests.

    `version` is the object's ETag. `path` is `-` for a stream; of a local file `object_id` is its path.
    """

    records: int = 0
    requests: int = 0
    format: str = ""
    version: str | None = None
    skipped_contigs: tuple[str, ...] = ()
