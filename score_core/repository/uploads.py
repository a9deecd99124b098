"""The state of uploads in progress, kept in the bucket: any process, host or Java server can go on with it (protocol section 5.3)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping

from score_core.errors import ObjectNotFound, ServiceError
from score_core.model import StoredPart, Upload
from score_core.repository import layout
from score_core.repository.layout import Keys
from score_core.stores.base import ObjectStore

_log = logging.getLogger(__name__)


class UploadState:
    """Reads and writes the state keys of uploads. `store` is the state bucket."""

    def __init__(self, store: ObjectStore, keys: Keys) -> None:
        self._store = store
        self._keys = keys

    def save(self, upload: Upload, urls: Mapping[int, str]) -> None:
        """Writes the plan of an upload, with `urls` by part number where they shall be kept."""
        data = layout.upload_json(upload, self._keys.data(upload.object_id), urls)
        self._store.write(self._meta(upload.object_id, upload.upload_id), data)

    def _meta(self, object_id: str, upload_id: str) -> str:
        return self._keys.state(object_id, upload_id) + layout.META

    def uploads(self, object_id: str) -> list[Upload]:
        """The uploads in progress of an object, newest first, with the parts that are recorded."""
        marker = "/" + layout.META
        found = [stored for stored in self._store.list_objects(self._keys.state(object_id)) if stored.key.endswith(marker)]
        found.sort(key=lambda stored: stored.modified_at, reverse=True)
        return [upload for stored in found if (upload := self._load(object_id, stored.key)) is not None]

    def load(self, object_id: str, upload_id: str) -> Upload | None:
        """One upload with the parts that are recorded; None when it left no state, or none that can be read."""
        return self._load(object_id, self._meta(object_id, upload_id))

    def _load(self, object_id: str, key: str) -> Upload | None:
        try:
            upload = layout.read_upload(self._store.read(key), object_id)
        except ObjectNotFound:
            return None  # finished or dropped between the listing and now
        except ServiceError as error:
            _log.warning("Passed over %s: %s", key, error)
            return None  # damaged: nobody can go on with it, and `ids` still finds it for dropping
        return dataclasses.replace(upload, stored={part.number: part for part in self._records(upload)})

    def _records(self, upload: Upload) -> Iterator[StoredPart]:
        for stored in self._store.list_objects(self._keys.records(upload.object_id, upload.upload_id)):
            record = layout.read_record(stored.key)
            if record is not None:
                yield record

    def exists(self, object_id: str, upload_id: str) -> bool:
        try:
            self._store.head(self._meta(object_id, upload_id))
        except ObjectNotFound:
            return False
        return True

    def record(self, upload: Upload, part: StoredPart) -> None:
        """Records a stored part; the record that `upload` knows of that number goes: two would block a Java server's finalise (21.14)."""
        old = upload.stored.get(part.number)
        if old is not None and old != part:
            self.remove(upload, old)
        self._store.write(self._keys.record(upload.object_id, upload.upload_id, part), b"")

    def record_alone(self, object_id: str, upload_id: str, part: StoredPart) -> None:
        """Records a stored part as the only one of its number, whatever was recorded before."""
        key = self._keys.record(object_id, upload_id, part)
        self._store.write(key, b"")
        self._forget(object_id, upload_id, part.number, keep=key)

    def remove(self, upload: Upload, part: StoredPart) -> None:
        """Removes the record of a part that is not stored as it says."""
        self._store.delete(self._keys.record(upload.object_id, upload.upload_id, part))

    def forget(self, object_id: str, upload_id: str, number: int) -> None:
        """Removes every record of a part number."""
        self._forget(object_id, upload_id, number, keep=None)

    def _forget(self, object_id: str, upload_id: str, number: int, *, keep: str | None) -> None:
        for stored in list(self._store.list_objects(self._keys.records(object_id, upload_id, number))):
            if stored.key != keep:
                self._store.delete(stored.key)

    def ids(self, object_id: str) -> set[str]:
        """The ids of all uploads of an object that have left any state, readable or not."""
        prefix = self._keys.state(object_id)
        return {stored.key.removeprefix(prefix).partition("/")[0] for stored in self._store.list_objects(prefix)} - {""}

    def drop(self, object_id: str, upload_id: str) -> None:
        """Removes all state of an upload, its specification first, so that what is left by a crash is nobody's upload."""
        self._store.delete(self._meta(object_id, upload_id))
        for stored in list(self._store.list_objects(self._keys.state(object_id, upload_id))):
            self._store.delete(stored.key)
