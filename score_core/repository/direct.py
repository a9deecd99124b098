"""A Score server's brain, in process, over any `MultipartStore`."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Sequence

from score_core.checksum import EMPTY_MD5, is_md5_shaped
from score_core.errors import Conflict, ObjectNotFound
from score_core.ids import check_object_id, is_object_id
from score_core.model import ByteRange, ObjectInfo, ObjectSpec, Part, SignedUrl, StoredPart, Upload, UploadInfo
from score_core.plan import MIN_PART_SIZE_BYTES, plan_parts
from score_core.repository import layout
from score_core.repository.uploads import UploadState
from score_core.stores.base import ListedPart, MultipartStore, StoredObject

_COMPOSITE = re.compile(r"[0-9a-f]{32}-\d+")  # other forms of ETags say nothing about the parts
_EMPTY_UPLOAD_ID = "empty"  # an empty object has no parts, and S3 completes no upload without parts


class DirectRepository:
    """`Repository` over a bucket in Score's layout.

    `part_size_bytes` is the smallest part that it plans (Score's floor by default; stores may have floors of their own). Lifetimes are
    those of the URLs that it signs: long enough to begin a part, short because a URL is a bearer secret (S3 looks at the clock when a
    request arrives, so a part that takes longer than that is fine).
    """

    def __init__(
        self,
        store: MultipartStore,
        *,
        part_size_bytes: int = MIN_PART_SIZE_BYTES,
        download_lifetime_s: float = 900.0,
        upload_lifetime_s: float = 3600.0,
    ) -> None:
        self._store = store
        self._state = UploadState(store)
        self._part_size_bytes = part_size_bytes
        self._download_lifetime_s = download_lifetime_s
        self._upload_lifetime_s = upload_lifetime_s

    @property
    def label(self) -> str:
        return self._store.label

    def exists(self, object_id: str) -> bool:
        try:
            self._store.head(layout.meta_key(check_object_id(object_id)))
        except ObjectNotFound:
            return False
        return True

    def describe(self, object_id: str) -> ObjectSpec:
        check_object_id(object_id)
        try:
            meta = self._store.read(layout.meta_key(object_id))
        except ObjectNotFound:
            return self._describe_bare(object_id)
        spec = layout.read_spec(meta, object_id)
        data = self._head_data(object_id)
        if data.size != spec.size:
            raise Conflict(
                f"Object {object_id} in {self.label} has {data.size} bytes where its specification says {spec.size}; "
                "it was replaced outside of Score: ask the operator of the store"
            )
        return dataclasses.replace(spec, etag=data.etag)

    def _head_data(self, object_id: str) -> StoredObject:
        try:
            return self._store.head(layout.data_key(object_id))
        except ObjectNotFound:
            raise ObjectNotFound(f"Object {object_id} is not in {self.label}; check the id and the store", status=404) from None

    def _describe_bare(self, object_id: str) -> ObjectSpec:
        """An object that came into the bucket without Score (protocol section 3.6, step 5): parts are computed."""
        data = self._head_data(object_id)
        parts = plan_parts(data.size, minimum=self._part_size_bytes)
        return ObjectSpec(object_id, data.size, parts, md5=data.md5, etag=data.etag)

    def sign_downloads(self, spec: ObjectSpec, ranges: Sequence[ByteRange]) -> list[SignedUrl]:
        key = layout.data_key(spec.object_id)
        return self._store.presign_gets(key, ranges, lifetime_s=self._download_lifetime_s)

    def sign_external(self, object_id: str) -> SignedUrl:
        self._head_data(check_object_id(object_id))
        return self._store.presign_gets(layout.data_key(object_id), [None], lifetime_s=self._download_lifetime_s)[0]

    def find_upload(self, object_id: str, size: int) -> Upload | None:
        upload = self._newest_upload(object_id)
        if upload is not None and upload.size != size:
            raise Conflict(
                f"A file of {upload.size:,} bytes is being uploaded as object {object_id}, not one of {size:,}; "
                f"wait for it, or drop it with `score abort --object-id {object_id}`"
            )
        return upload

    def _newest_upload(self, object_id: str) -> Upload | None:
        for upload in self._state.uploads(check_object_id(object_id)):
            try:
                listed = {part.number: part for part in self._store.list_parts(layout.data_key(object_id), upload.upload_id)}
            except ObjectNotFound:
                self._settle(upload)
                continue
            stored = _really_stored(upload, listed)
            for record in upload.stored.values():
                if stored.get(record.number) != record:
                    self._state.forget(upload, record)
            return dataclasses.replace(upload, stored=stored)
        return None

    def _settle(self, upload: Upload) -> None:
        """An upload without a multipart upload behind it: completed, but the answer or the process was lost; or aborted elsewhere."""
        stored = [upload.stored[part.number] for part in upload.parts if part.number in upload.stored]
        if len(stored) == len(upload.parts) and self._is_data_of(upload, stored):
            self._write_spec(upload, stored, sealed=False)
        self._state.drop(upload.object_id, upload.upload_id)

    def begin_upload(self, object_id: str, size: int, *, md5: str, file_name: str | None = None, overwrite: bool = False) -> Upload:
        if not overwrite and self.exists(object_id):
            raise Conflict(f"Object {object_id} exists already in {self.label}; --force replaces it")
        self.abort(object_id)
        parts = plan_parts(size, minimum=self._part_size_bytes)
        upload_id = self._store.create_multipart(layout.data_key(object_id)) if parts else _EMPTY_UPLOAD_ID
        upload = Upload(object_id, upload_id, size, parts, md5, file_name=file_name)
        if parts:
            self._state.save(upload)
        if not overwrite and self.exists(object_id):  # published by somebody else between our look and our beginning
            self._drop(upload)
            raise Conflict(f"Object {object_id} was published in {self.label} by another upload in the same moment; --force replaces it")
        return upload

    def _drop(self, upload: Upload) -> None:
        if upload.parts:
            self._store.abort_multipart(layout.data_key(upload.object_id), upload.upload_id)
            self._state.drop(upload.object_id, upload.upload_id)

    def sign_uploads(self, upload: Upload, parts: Sequence[Part], *, content_md5: bool = False) -> list[SignedUrl]:
        key = layout.data_key(upload.object_id)
        return self._store.presign_parts(key, upload.upload_id, parts, lifetime_s=self._upload_lifetime_s, content_md5=content_md5)

    def commit_part(self, upload: Upload, part: StoredPart) -> None:
        self._state.record(upload, part)

    def commit(self, upload: Upload, parts: Sequence[StoredPart], *, sealed: bool = False) -> None:
        key = layout.data_key(upload.object_id)
        if not upload.parts:
            self._store.write(key, b"")
        else:
            listed = [ListedPart(part.number, planned.size, part.etag) for planned, part in zip(upload.parts, parts, strict=True)]
            try:
                self._store.complete_multipart(key, upload.upload_id, listed)
            except ObjectNotFound:
                if not self._is_data_of(upload, parts):
                    raise ObjectNotFound(
                        f"The upload of object {upload.object_id} is gone from {self.label} and the object is not there; upload it again",
                        status=404,
                    ) from None
        self._check_still_ours(upload, parts)
        self._write_spec(upload, parts, sealed=sealed)
        self._check_still_ours(upload, parts)
        self._state.drop(upload.object_id, upload.upload_id)

    def _check_still_ours(self, upload: Upload, parts: Sequence[StoredPart]) -> None:
        """Two uploads that began in the same moment both complete; the specification must be that of the bytes that stayed."""
        if not upload.parts or any(part.etag != part.md5 for part in parts):
            return  # encrypted with other keys: no ETag says anything about the bytes
        data = self._head_data(upload.object_id)
        if _COMPOSITE.fullmatch(data.etag) and data.etag != composite_etag([part.etag for part in parts]):
            raise Conflict(
                f"Object {upload.object_id} was replaced by another upload in the same moment; compare, and use --force if yours is right"
            )

    def _write_spec(self, upload: Upload, parts: Sequence[StoredPart], *, sealed: bool) -> None:
        digests = {part.number: part.md5 for part in parts}
        proven = tuple(dataclasses.replace(part, md5=digests[part.number]) for part in upload.parts)
        spec = ObjectSpec(upload.object_id, upload.size, proven, md5=upload.md5, sealed=sealed, file_name=upload.file_name)
        self._store.write(layout.meta_key(upload.object_id), layout.spec_json(spec, upload.upload_id))

    def _is_data_of(self, upload: Upload, parts: Sequence[StoredPart]) -> bool:
        """Whether the data object is the one that these parts make: by size and by S3's composite ETag over theirs."""
        try:
            data = self._store.head(layout.data_key(upload.object_id))
        except ObjectNotFound:
            return False
        return data.size == upload.size and data.etag == composite_etag([part.etag for part in parts])

    def abort(self, object_id: str) -> bool:
        key = layout.data_key(check_object_id(object_id))
        states = self._state.ids(object_id)
        multiparts = {upload.upload_id for upload in self._store.list_multiparts(key) if upload.key == key}
        for upload_id in states | multiparts:
            self._store.abort_multipart(key, upload_id)
            self._state.drop(object_id, upload_id)
        return bool(states | multiparts)

    def list_objects(self) -> Iterator[ObjectInfo]:
        for stored in self._store.list_objects(layout.DATA):
            object_id = stored.key.removeprefix(layout.DATA)
            if is_object_id(object_id):
                yield ObjectInfo(object_id, stored.size, stored.modified_at)

    def list_uploads(self) -> Iterator[UploadInfo]:
        for upload in self._store.list_multiparts(layout.DATA):
            yield UploadInfo(upload.key.removeprefix(layout.DATA), upload.upload_id, upload.started_at)

    def check(self) -> None:
        self._store.check()

    def close(self) -> None:
        self._store.close()


def _really_stored(upload: Upload, listed: dict[int, ListedPart]) -> dict[int, StoredPart]:
    """What is recorded *and* there; and what is there without a record, if its ETag can be its MD5 (a crash between PUT and record)."""
    stored = {}
    for part in upload.parts:
        there = listed.get(part.number)
        if there is None or there.size != part.size:
            continue
        record = upload.stored.get(part.number)
        if record is not None and record.etag == there.etag:
            stored[part.number] = record
        elif is_md5_shaped(there.etag):
            stored[part.number] = StoredPart(part.number, there.etag, there.etag)
    return stored


def composite_etag(etags: Sequence[str]) -> str | None:
    """The ETag that S3 gives to an object of these parts: MD5 of their binary MD5s, dash, count. None if the ETags are no MD5s."""
    if not etags:
        return EMPTY_MD5
    if not all(is_md5_shaped(etag) for etag in etags):
        return None
    return hashlib.md5(bytes.fromhex("".join(etags)), usedforsecurity=False).hexdigest() + f"-{len(etags)}"
