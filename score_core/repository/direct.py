"""A Score server's brain, in process, over any `MultipartStore`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import re
import time
from collections.abc import Iterator, Sequence
from typing import Final

from score_core.checksum import EMPTY_MD5, is_md5_shaped
from score_core.errors import ConfigurationError, Conflict, ObjectNotFound, ScoreError, Unavailable
from score_core.ids import check_object_id
from score_core.model import ByteRange, ObjectInfo, ObjectSpec, Part, SignedUrl, StoredPart, Upload, UploadInfo
from score_core.plan import MIN_PART_SIZE_BYTES, plan_parts
from score_core.repository import layout
from score_core.repository.buckets import Buckets, Place
from score_core.repository.layout import Keys
from score_core.repository.uploads import UploadState
from score_core.stores.base import ListedPart, MultipartStore, StoredObject

_log = logging.getLogger(__name__)

_COMPOSITE: Final = re.compile(r"[0-9a-f]{32}-\d+")  # other forms of ETags say nothing about the parts
_EMPTY_UPLOAD_ID: Final = "empty"  # an empty object has no parts, and S3 completes no upload without parts
_SENTINEL_LIFETIME_S: Final = 300.0  # protocol section 3.5
_SENTINEL: Final = b"This object proves that signed URLs lead to this store.\n"
_ATTEMPTS: Final = 10  # to write a specification that others write at the same time; each failure is another's success


class DirectRepository:
    """`Repository` over a bucket in Score's layout, and what a Score server needs beyond that.

    `store` is one bucket, or `Buckets` where data and state are apart or partitioned; `close` closes it. `part_size_bytes` is the
    smallest part that it plans (Score's floor by default; stores may have floors of their own). Lifetimes are those of the URLs that it
    signs: long enough to begin a part, short because a URL is a bearer secret (S3 looks at the clock when a request arrives, so a part
    that takes longer than that is fine). `sentinel` is the name of the object that proves that URLs lead somewhere, None for none.

    `keep_upload_urls` stores the signed PUT URLs of uploads in progress in the state bucket: Java servers on the same bucket give out
    what is stored there (protocol section 3.12), and cannot continue our uploads otherwise. Who can read that bucket can then write parts.

    Any number of instances, in any processes, may work on one bucket at the same time.
    """

    def __init__(
        self,
        store: MultipartStore | Buckets,
        *,
        part_size_bytes: int = MIN_PART_SIZE_BYTES,
        download_lifetime_s: float = 900.0,
        upload_lifetime_s: float = 3600.0,
        keys: Keys | None = None,
        sentinel: str | None = "heliograph",
        keep_upload_urls: bool = False,
    ) -> None:
        self.part_size_bytes: Final = part_size_bytes
        self.keys: Final = keys or Keys()
        self._buckets = store if isinstance(store, Buckets) else Buckets.single(store)
        self._download_lifetime_s = download_lifetime_s
        self._upload_lifetime_s = upload_lifetime_s
        self._sentinel = sentinel
        self._keep_upload_urls = keep_upload_urls

    @property
    def label(self) -> str:
        return self._buckets.label

    # Objects

    def exists(self, object_id: str) -> bool:
        return self._published_in(check_object_id(object_id)) is not None

    def describe(self, object_id: str) -> ObjectSpec:
        object_id = check_object_id(object_id)
        for place in self._places(object_id):
            with contextlib.suppress(ObjectNotFound):
                meta = place.state.read(self.keys.meta(object_id))
                break
        else:
            return self._describe_bare(object_id)
        spec = layout.read_spec(meta, object_id)
        data = self._head_data(object_id, place)
        if data.size != spec.size:
            raise Conflict(
                f"Object {object_id} in {self.label} has {data.size} bytes where its specification says {spec.size}; "
                "it was replaced outside of Score: ask the operator of the store"
            )
        relocated = place is not self._home(object_id)
        return dataclasses.replace(spec, etag=data.etag, relocated=relocated, modified_at=data.modified_at)

    def _describe_bare(self, object_id: str) -> ObjectSpec:
        """An object that came into the bucket without Score (protocol section 3.6, step 5): parts are computed."""
        data = self._head_data(object_id, self._home(object_id))
        parts = plan_parts(data.size, minimum=self.part_size_bytes)
        return ObjectSpec(object_id, data.size, parts, md5=data.md5, etag=data.etag, modified_at=data.modified_at)

    def read(self, spec: ObjectSpec, byte_range: ByteRange) -> bytes:
        """Bytes of an object, for looking at its header or index without a signed URL; fewer only where it ends.

        Raises:
            ObjectNotFound: it is not there any more.
        """
        return self._place_of(spec).data.read_range(self.keys.data(spec.object_id), byte_range.offset, byte_range.size)

    def sign_downloads(self, spec: ObjectSpec, ranges: Sequence[ByteRange | None], *, lifetime_s: float | None = None) -> list[SignedUrl]:
        """As `Repository.sign_downloads`; None is a URL for whatever range is asked of it, `lifetime_s` another life than the usual."""
        lifetime_s = self._download_lifetime_s if lifetime_s is None else lifetime_s
        return self._place_of(spec).data.presign_gets(self.keys.data(spec.object_id), ranges, lifetime_s=lifetime_s)

    def _place_of(self, spec: ObjectSpec) -> Place:
        return self._buckets.base if spec.relocated else self._home(spec.object_id)

    def sign_external(self, object_id: str) -> SignedUrl:
        object_id = check_object_id(object_id)
        home = self._home(object_id)
        place = self._published_in(object_id) or home if self._buckets.is_partitioned else home
        self._head_data(object_id, place)
        return place.data.presign_gets(self.keys.data(object_id), [None], lifetime_s=self._download_lifetime_s)[0]

    def list_objects(self) -> Iterator[ObjectInfo]:
        last = None
        for row in self._buckets.rows(self._objects_in, by=lambda row: row.object_id):
            if row.object_id != last:  # relocated, and then uploaded again: the newer one came first
                yield row
            last = row.object_id

    def _objects_in(self, place: Place) -> Iterator[ObjectInfo]:
        for stored in place.data.list_objects(self.keys.data_prefix):
            object_id = self.keys.object_id(stored.key)
            if object_id is not None:
                yield ObjectInfo(object_id, stored.size, stored.modified_at)

    def _home(self, object_id: str) -> Place:
        return self._buckets.of(object_id)

    def _places(self, object_id: str) -> list[Place]:
        """Where an object may be found, in the order of looking (protocol section 5.4). It is written at home only."""
        home = self._home(object_id)
        return [home] if home is self._buckets.base else [home, self._buckets.base]

    def _published_in(self, object_id: str) -> Place | None:
        for place in self._places(object_id):
            if _etag(place.state, self.keys.meta(object_id)) is not None:
                return place
        return None

    def _head_data(self, object_id: str, place: Place) -> StoredObject:
        try:
            return place.data.head(self.keys.data(object_id))
        except ObjectNotFound:
            raise ObjectNotFound(f"Object {object_id} is not in {self.label}; check the id and the store", status=404) from None

    # An upload in progress

    def find_upload(self, object_id: str, size: int) -> Upload | None:
        upload = self._newest_upload(check_object_id(object_id))
        if upload is not None and upload.size != size:
            raise Conflict(
                f"A file of {upload.size:,} bytes is being uploaded as object {object_id}, not one of {size:,}; "
                f"wait for it, or drop it with `score abort --object-id {object_id}`"
            )
        return upload

    def _newest_upload(self, object_id: str) -> Upload | None:
        state, store = self._state(object_id), self._home(object_id).data
        for upload in state.uploads(object_id):
            if not upload.parts:
                return upload
            try:
                listed = {part.number: part for part in store.list_parts(self.keys.data(object_id), upload.upload_id)}
            except ObjectNotFound:
                self._settle(upload)
                continue
            stored = self._really_stored(upload, listed)
            for record in upload.stored.values():
                if stored.get(record.number) != record:
                    state.remove(upload, record)
            return dataclasses.replace(upload, stored=stored)
        return None

    def _really_stored(self, upload: Upload, listed: dict[int, ListedPart]) -> dict[int, StoredPart]:
        """What is recorded *and* there; and what is there without a record, if its ETag can be its MD5 (a crash between PUT and record)."""
        key, store, stored = self.keys.data(upload.object_id), self._home(upload.object_id).data, {}
        for part in upload.parts:
            there, record = listed.get(part.number), upload.stored.get(part.number)
            if there is None or there.size != part.size:
                continue
            # SeaweedFS keeps all versions of a part that was sent again and completes from any: then the list shows one of them.
            if record is not None and (record.etag == there.etag or store.holds_part(key, upload.upload_id, part.number, record.etag)):
                stored[part.number] = record
            elif is_md5_shaped(there.etag):
                stored[part.number] = StoredPart(part.number, there.etag, there.etag)
        return stored

    def _settle(self, upload: Upload) -> None:
        """An upload without a multipart upload behind it: completed, but the answer or the process was lost; or aborted elsewhere."""
        stored = [upload.stored[part.number] for part in upload.parts if part.number in upload.stored]
        if len(stored) == len(upload.parts) and self._is_data_of(upload, stored) and not self._is_published_by(upload):
            with contextlib.suppress(Conflict):  # replaced meanwhile: nothing to settle any more
                self._write_spec(upload, stored, sealed=False)
        self._state(upload.object_id).drop(upload.object_id, upload.upload_id)

    def is_in_progress(self, object_id: str, upload_id: str) -> bool:
        """Whether that upload has been begun and neither finished nor dropped."""
        object_id = check_object_id(object_id)
        return self._state(object_id).exists(object_id, upload_id)

    def begin_upload(self, object_id: str, size: int, *, md5: str | None, file_name: str | None = None, overwrite: bool = False) -> Upload:
        object_id = check_object_id(object_id)
        if not overwrite and self.exists(object_id):
            raise Conflict(f"Object {object_id} exists already in {self.label}; --force replaces it")
        parts = plan_parts(size, minimum=self.part_size_bytes)
        self.abort(object_id)
        upload_id = self._home(object_id).data.create_multipart(self.keys.data(object_id)) if parts else _EMPTY_UPLOAD_ID
        upload = Upload(object_id, upload_id, size, parts, md5, file_name=file_name)
        self._state(object_id).save(upload, self._kept_urls(upload))
        if parts:
            self._outlive_others(upload)
        if not overwrite and self.exists(object_id):  # published by somebody else between our look and our beginning
            self._drop(object_id, upload_id, self._home(object_id))
            raise Conflict(f"Object {object_id} was published in {self.label} by another upload in the same moment; --force replaces it")
        return upload

    def _outlive_others(self, upload: Upload) -> None:
        """Of uploads that began in the same moment, after each had dropped what was there, one goes on; all agree which."""
        key, home = self.keys.data(upload.object_id), self._home(upload.object_id)
        began = {row.upload_id: (row.started_at, row.upload_id) for row in home.data.list_multiparts(key) if row.key == key}
        ours = began.pop(upload.upload_id, None)
        if self._is_dropped(upload) if ours is None else any(other > ours for other in began.values()):
            self._drop(upload.object_id, upload.upload_id, home)
            raise Conflict(
                f"Another upload of object {upload.object_id} began in {self.label} in the same moment; wait for it, or try again"
            )
        for upload_id in began:
            self._drop(upload.object_id, upload_id, home)

    def _is_dropped(self, upload: Upload) -> bool:
        try:
            self._home(upload.object_id).data.holds_part(self.keys.data(upload.object_id), upload.upload_id, 1, "")
        except ObjectNotFound:
            return True
        return False  # the store only lists it late

    def _kept_urls(self, upload: Upload) -> dict[int, str]:
        if not self._keep_upload_urls:
            return {}
        signed = self.sign_uploads(upload, upload.parts)
        return {part.number: url.url for part, url in zip(upload.parts, signed, strict=True)}

    def sign_uploads(self, upload: Upload, parts: Sequence[Part], *, content_md5: bool = False) -> list[SignedUrl]:
        return self._home(upload.object_id).data.presign_parts(
            self.keys.data(upload.object_id), upload.upload_id, parts, lifetime_s=self._upload_lifetime_s, content_md5=content_md5
        )

    def commit_part(self, upload: Upload, part: StoredPart) -> None:
        self._state(upload.object_id).record(upload, part)

    def record_part(self, object_id: str, upload_id: str, part: StoredPart) -> None:
        """Records a part for somebody else, after asking the store whether it is there (protocol section 3.9). Idempotent.

        Other records of that number go: two would block a Java server's finalise (21.14). `part.md5` is believed.

        Raises:
            ConfigurationError: `part.md5` is no MD5.
            Conflict: the store does not hold that part with exactly that ETag.
            ObjectNotFound: there is no such upload.
        """
        object_id = check_object_id(object_id)
        if not is_md5_shaped(part.md5):
            raise ConfigurationError(f"Part {part.number} of object {object_id} cannot be recorded without its MD5 of 32 hex digits")
        key, store = self.keys.data(object_id), self._home(object_id).data
        if not store.holds_part(key, layout.check_upload_id(upload_id), part.number, part.etag):
            raise Conflict(f"Part {part.number} of object {object_id} is not stored with ETag {part.etag[:80]}; send it again")
        self._state(object_id).record_alone(object_id, upload_id, part)

    def forget_part(self, object_id: str, upload_id: str, number: int) -> None:
        """Removes the records of a part, so that another can be recorded (protocol section 3.10); quiet when there is none."""
        object_id = check_object_id(object_id)
        self._state(object_id).forget(object_id, upload_id, number)

    def abort(self, object_id: str) -> bool:
        object_id = check_object_id(object_id)
        key, home = self.keys.data(object_id), self._home(object_id)
        found = self._state(object_id).ids(object_id)
        found |= {upload.upload_id for upload in home.data.list_multiparts(key) if upload.key == key}
        for upload_id in found:
            self._drop(object_id, upload_id, home)
        return bool(found)

    def list_uploads(self) -> Iterator[UploadInfo]:
        return (upload for upload, _ in self._unfinished())

    def drop_stale_uploads(self, older_than_s: float) -> list[UploadInfo]:
        """Drops the uploads that began longer ago than that, and these only, in every bucket (protocol section 3.15).

        What cannot be dropped is logged and left for the next time. The answer is what was dropped.
        """
        dropped = []
        latest = time.time() - older_than_s
        for upload, place in list(self._unfinished()):
            if upload.started_at < latest:
                try:
                    self._drop(upload.object_id, upload.upload_id, place)
                except ScoreError as error:
                    _log.warning("Upload %s of object %s could not be dropped: %s", upload.upload_id, upload.object_id, error)
                else:
                    dropped.append(upload)
        return dropped

    def _unfinished(self) -> Iterator[tuple[UploadInfo, Place]]:
        return self._buckets.rows(self._unfinished_in, by=lambda row: row[0].object_id)

    def _unfinished_in(self, place: Place) -> Iterator[tuple[UploadInfo, Place]]:
        for upload in place.data.list_multiparts(self.keys.data_prefix):
            object_id = self.keys.object_id(upload.key)
            if object_id is not None:
                yield UploadInfo(object_id, upload.upload_id, upload.started_at), place

    def _drop(self, object_id: str, upload_id: str, place: Place) -> None:
        if upload_id != _EMPTY_UPLOAD_ID:
            place.data.abort_multipart(self.keys.data(object_id), upload_id)
        UploadState(place.state, self.keys).drop(object_id, upload_id)

    def _state(self, object_id: str) -> UploadState:
        return UploadState(self._home(object_id).state, self.keys)

    # The end of an upload

    def finish(self, object_id: str, upload_id: str, *, sealed: bool = False) -> None:
        """Publishes the object from the parts that are recorded (protocol section 3.11). `sealed` as in `ObjectSpec`. Idempotent.

        Raises:
            Conflict: a part is not recorded, or not stored as it is recorded.
            ObjectNotFound: there is no such upload, and what is published, if anything, is not from it.
        """
        object_id = check_object_id(object_id)
        upload = self._state(object_id).load(object_id, layout.check_upload_id(upload_id))
        missing = None if upload is None else next((part.number for part in upload.parts if part.number not in upload.stored), None)
        if upload is not None and missing is None:
            self.commit(upload, [upload.stored[part.number] for part in upload.parts], sealed=sealed)
        elif self._published_upload(object_id) != upload_id:  # else: finished before, or right now by somebody else
            if upload is None:
                raise ObjectNotFound(f"No upload {upload_id[:80]} of object {object_id} is in progress in {self.label}", status=404)
            raise Conflict(f"Part {missing} of {len(upload.parts)} of object {object_id} is not recorded; send it, then finish again")

    def commit(self, upload: Upload, parts: Sequence[StoredPart], *, sealed: bool = False) -> None:
        key, store = self.keys.data(upload.object_id), self._home(upload.object_id).data
        if not upload.parts:
            store.write(key, b"")
        else:
            listed = [ListedPart(part.number, planned.size, part.etag) for planned, part in zip(upload.parts, parts, strict=True)]
            try:
                store.complete_multipart(key, upload.upload_id, listed)
            except ObjectNotFound:
                if not self._is_data_of(upload, parts):
                    if not _etags_are_md5s(parts) and self._is_published_by(upload):
                        return  # encrypted with other keys: the specification is all that can be known
                    raise ObjectNotFound(
                        f"The upload of object {upload.object_id} is gone from {self.label} and the object is not there; upload it again",
                        status=404,
                    ) from None
        self._write_spec(upload, parts, sealed=sealed)
        self._state(upload.object_id).drop(upload.object_id, upload.upload_id)

    def _write_spec(self, upload: Upload, parts: Sequence[StoredPart], *, sealed: bool) -> None:
        """Publishes the specification, if the bytes are this upload's, so that it is always that of the bytes that stay.

        Two uploads that began in the same moment both complete, in one order, and then write their specifications, in any. So each
        writes only over what was there before it found the bytes to be its own: who finds another's specification looks again.
        """
        digests = {part.number: part.md5 for part in parts}
        proven = tuple(dataclasses.replace(part, md5=digests[part.number]) for part in upload.parts)
        spec = ObjectSpec(
            upload.object_id, upload.size, proven, md5=upload.md5, sealed=sealed, file_name=upload.file_name, upload_id=upload.upload_id
        )
        data = layout.spec_json(spec, self.keys.data(upload.object_id))
        key, state = self.keys.meta(upload.object_id), self._home(upload.object_id).state
        for _ in range(_ATTEMPTS):
            before = _etag(state, key)
            self._check_still_ours(upload, parts)
            if state.write_if_unchanged(key, data, etag=before):
                break
        else:
            raise Unavailable(f"The specification of object {upload.object_id} is written by others all the time; try again")
        self._check_still_ours(upload, parts)

    def _check_still_ours(self, upload: Upload, parts: Sequence[StoredPart]) -> None:
        data = self._head_data(upload.object_id, self._home(upload.object_id))
        tells = _etags_are_md5s(parts) and _COMPOSITE.fullmatch(data.etag)
        if data.size != upload.size or (tells and data.etag != composite_etag([part.etag for part in parts])):
            raise Conflict(
                f"Object {upload.object_id} was replaced by another upload in the same moment; compare, and use --force if yours is right"
            )

    def _is_data_of(self, upload: Upload, parts: Sequence[StoredPart]) -> bool:
        """Whether the data object is the one that these parts make: by size and by S3's composite ETag over theirs."""
        try:
            data = self._head_data(upload.object_id, self._home(upload.object_id))
        except ObjectNotFound:
            return False
        return data.size == upload.size and data.etag == composite_etag([part.etag for part in parts])

    def _is_published_by(self, upload: Upload) -> bool:
        return self._published_upload(upload.object_id) == upload.upload_id

    def _published_upload(self, object_id: str) -> str | None:
        """The upload that the published object came by; None if there is none, or nobody knows."""
        try:
            meta = self._home(object_id).state.read(self.keys.meta(object_id))
        except ObjectNotFound:
            return None
        return layout.read_spec(meta, object_id).upload_id

    # The store

    def sign_sentinel(self) -> SignedUrl:
        """A GET URL of the sentinel, good for 5 minutes; whether it is there is not looked at (protocol section 3.5).

        Raises:
            ConfigurationError: this repository has none.
        """
        if self._sentinel is None:
            raise ConfigurationError("This repository has no sentinel object; name one in its settings")
        return self._buckets.base.data.presign_gets(self.keys.data(self._sentinel), [None], lifetime_s=_SENTINEL_LIFETIME_S)[0]

    def ensure_sentinel(self) -> None:
        """Writes the sentinel into the base bucket if it is not there; nothing when this repository has none."""
        if self._sentinel is None:
            return
        store, key = self._buckets.base.data, self.keys.data(self._sentinel)
        if _etag(store, key) is None:
            store.write_if_unchanged(key, _SENTINEL, etag=None)

    def check(self) -> None:
        self._buckets.check()

    def close(self) -> None:
        self._buckets.close()


def _etag(store: MultipartStore, key: str) -> str | None:
    try:
        return store.head(key).etag
    except ObjectNotFound:
        return None


def _etags_are_md5s(parts: Sequence[StoredPart]) -> bool:
    """False when they are encrypted with keys of the store: then no ETag says anything about the bytes."""
    return all(part.etag == part.md5 for part in parts)


def composite_etag(etags: Sequence[str]) -> str | None:
    """The ETag that S3 gives to an object of these parts: MD5 of their binary MD5s, dash, count. None if the ETags are no MD5s."""
    if not etags:
        return EMPTY_MD5
    if not all(is_md5_shaped(etag) for etag in etags):
        return None
    return hashlib.md5(bytes.fromhex("".join(etags)), usedforsecurity=False).hexdigest() + f"-{len(etags)}"
