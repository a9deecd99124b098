"""The narrow waist: who knows the object, plans its parts, signs URLs and commits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from score_core.model import ByteRange, ObjectInfo, ObjectSpec, Part, SignedUrl, StoredPart, Upload, UploadInfo


@runtime_checkable
class Repository(Protocol):
    """What a transfer needs to know and have done, wherever the objects are. Safe to call from several threads.

    Methods raise `ServiceError`s: `ObjectNotFound`, `Conflict`, `AccessDenied`, `AuthenticationError`, `Unavailable`.
    No bytes of objects pass through here: they go over the URLs that it signs.
    """

    @property
    def label(self) -> str:
        """Where the objects are, for messages; without secrets."""
        ...

    def exists(self, object_id: str) -> bool:
        """Whether the object is published."""
        ...

    def describe(self, object_id: str) -> ObjectSpec:
        """The published object. Raises `ObjectNotFound`."""
        ...

    def sign_downloads(self, spec: ObjectSpec, ranges: Sequence[ByteRange]) -> list[SignedUrl]:
        """A GET URL per range, in order, each good for exactly that range."""
        ...

    def sign_external(self, object_id: str) -> SignedUrl:
        """One GET URL for the whole object, good with any `Range`. Raises `ObjectNotFound`."""
        ...

    def find_upload(self, object_id: str, size: int) -> Upload | None:
        """The upload in progress of a file of `size` bytes with what it already holds, None if there is none.

        Raises `Conflict` when a file of another size is being uploaded (protocol section 3.12).
        """
        ...

    def begin_upload(self, object_id: str, size: int, *, md5: str, file_name: str | None = None, overwrite: bool = False) -> Upload:
        """Begins a new upload and drops an unfinished older one.

        Raises `Conflict` when the object exists and `overwrite` is false.
        """
        ...

    def sign_uploads(self, upload: Upload, parts: Sequence[Part], *, content_md5: bool = False) -> list[SignedUrl]:
        """A PUT URL per part, in order. With `content_md5` each part's `md5` is signed as `Content-MD5` for the store to check."""
        ...

    def commit_part(self, upload: Upload, part: StoredPart) -> None:
        """Records that a part is stored. Idempotent; a later record of the same number replaces the earlier.

        That the store really holds it with that ETag is checked in `commit` at the latest; a repository may check here too, and then
        raises `Conflict`, or `ObjectNotFound` when the upload is gone.
        """
        ...

    def commit(self, upload: Upload, parts: Sequence[StoredPart], *, sealed: bool = False) -> None:
        """Publishes the object from exactly these parts. Idempotent: settles a lost reply by looking at what is there.

        `sealed` as in `ObjectSpec`. Raises `Conflict` when a part is not there with that ETag, `ObjectNotFound` when the upload is
        gone and the object is not there in its place.
        """
        ...

    def abort(self, object_id: str) -> bool:
        """Drops the unfinished uploads of the object and their parts; False if there were none."""
        ...

    def list_objects(self) -> Iterator[ObjectInfo]:
        """Published objects, by id."""
        ...

    def list_uploads(self) -> Iterator[UploadInfo]:
        """Unfinished uploads, by object id."""
        ...

    def check(self) -> None:
        """Returns if the repository is reached and lets us in, and its signed URLs lead somewhere; raises what is wrong if not."""
        ...

    def close(self) -> None:
        """Frees what the repository opened."""
        ...
