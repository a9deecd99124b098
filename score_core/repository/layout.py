"""Score's bucket layout: keys and the JSON in them, byte for byte as Java servers read and write it (protocol sections 4 and 5).

    data/<id>                                       the object's bytes
    data/<id>.meta                                  its specification: parts, sizes, MD5s
    upload/<id>_<upload id>/.meta                   the specification of an upload in progress
    upload/<id>_<upload id>/part-<8 hex>|<json>     an empty object; the record of a stored part is its name

`data` and `upload` are the defaults of `Keys`.

Ours adds `sealed` and `fileName` to the final specification; Java readers ignore fields that they do not know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from score_core.checksum import parse_md5
from score_core.errors import ConfigurationError, ObjectNotFound, ServiceError
from score_core.ids import is_object_id
from score_core.model import ObjectSpec, Part, StoredPart, Upload

META: Final = ".meta"
_DAMAGE: Final = (KeyError, TypeError, ValueError, OverflowError, RecursionError)  # what reading damaged JSON brings
_UPLOAD_ID: Final = re.compile(r"[^/|\x00-\x1f\x7f]{1,700}")  # it becomes part of a key, which S3 limits to 1,024 bytes


def check_upload_id(text: str) -> str:
    """`text` if it can be an upload's id. Raises `ObjectNotFound` if not: there is no such upload."""
    if _UPLOAD_ID.fullmatch(text) is None:
        raise ObjectNotFound(f"{text[:80]!r} is not the id of an upload", status=404)
    return text


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of Score's bucket layout (protocol section 5). A blank data directory means that objects lie at the top.

    Raises:
        ConfigurationError: a directory is no plain path, or both are the same.
    """

    data_directory: str = "data"
    upload_directory: str = "upload"

    def __post_init__(self) -> None:
        for directory in (self.data_directory, self.upload_directory):
            if directory and not all(segment.strip(".") for segment in directory.split("/")):
                raise ConfigurationError(f"{directory!r} is no directory of a bucket; use names such as data, with / between them only")
        if self.upload_directory in ("", self.data_directory):
            raise ConfigurationError("The state of uploads needs a directory of its own, such as upload")

    @property
    def data_prefix(self) -> str:
        """What the keys of all objects begin with."""
        return f"{self.data_directory}/" if self.data_directory else ""

    def data(self, object_id: str) -> str:
        return f"{self.data_prefix}{object_id}"

    def meta(self, object_id: str) -> str:
        return f"{self.data_prefix}{object_id}{META}"

    def object_id(self, key: str) -> str | None:
        """The object whose bytes are under `key`; None if the key is something else."""
        text = key.removeprefix(self.data_prefix)
        return text if key.startswith(self.data_prefix) and is_object_id(text) else None

    def state(self, object_id: str, upload_id: str | None = None) -> str:
        """The prefix of one upload's state, or of all uploads of an object when `upload_id` is None."""
        start = f"{self.upload_directory}/{object_id}_"
        return start if upload_id is None else f"{start}{check_upload_id(upload_id)}/"

    def records(self, object_id: str, upload_id: str, number: int | None = None) -> str:
        """The prefix of the records of one part, or of all parts when `number` is None."""
        start = f"{self.state(object_id, upload_id)}part-"
        return start if number is None else f"{start}{number:08x}|"

    def record(self, object_id: str, upload_id: str, part: StoredPart) -> str:
        record = json.dumps({"partNumber": part.number, "md5": part.md5, "etag": part.etag}, separators=(",", ":"))
        return f"{self.records(object_id, upload_id, part.number)}{record}"


def read_record(key: str) -> StoredPart | None:
    """The part that a state key records; None if the key is something else or damaged."""
    _, found, text = key.partition("|")
    if not found:
        return None
    try:
        record = json.loads(text)
        return StoredPart(number=int(record["partNumber"]), md5=str(record["md5"]), etag=str(record["etag"]))
    except _DAMAGE:
        return None


def spec_json(spec: ObjectSpec, object_key: str) -> bytes:
    """A final `.meta`. URLs are null: they would be dead secrets, and readers must make their own (protocol section 5.1)."""
    return _encode(
        {
            "objectKey": object_key,
            "objectId": spec.object_id,
            "uploadId": spec.upload_id or spec.object_id,
            "parts": [_part_json(part) for part in spec.parts],
            "objectSize": spec.size,
            "objectMd5": spec.md5,
            "sealed": spec.sealed,
            "fileName": spec.file_name,
        }
    )


def upload_json(upload: Upload, object_key: str, urls: Mapping[int, str]) -> bytes:
    """The `.meta` of an upload in progress. `urls` are signed PUT URLs by part number, for servers that give out what is stored."""
    return _encode(
        {
            "objectKey": object_key,
            "objectId": upload.object_id,
            "uploadId": upload.upload_id,
            "parts": [_part_json(part, urls.get(part.number)) for part in upload.parts],
            "objectSize": upload.size,
            "objectMd5": upload.md5,
            "fileName": upload.file_name,
        }
    )


def _part_json(part: Part, url: str | None = None) -> dict[str, Any]:
    fields: dict[str, Any] = {"partNumber": part.number, "partSize": part.size, "offset": part.offset, "url": url, "md5": None}
    return fields if part.md5 is None else {**fields, "sourceMd5": part.md5}


def _encode(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def read_spec(data: bytes, object_id: str) -> ObjectSpec:
    """A final `.meta`, also an old one without MD5s (protocol section 5.2).

    Raises:
        ServiceError: it is damaged, or about another object.
    """
    fields = _fields(data, object_id)
    return ObjectSpec(
        object_id=object_id,
        size=fields["objectSize"],
        parts=_parts(fields),
        md5=_md5(fields.get("objectMd5")),
        sealed=fields.get("sealed") is True,
        file_name=_text(fields.get("fileName")),
        upload_id=_text(fields.get("uploadId")),
    )


def read_upload(data: bytes, object_id: str) -> Upload:
    """The `.meta` of an upload in progress. Raises `ServiceError` as `read_spec` does."""
    fields = _fields(data, object_id)
    upload_id = _text(fields.get("uploadId"))
    if not upload_id:
        raise ServiceError(f"The stored state of an upload of object {object_id} names no upload; ask the operator of the store")
    return Upload(
        object_id=object_id,
        upload_id=upload_id,
        size=fields["objectSize"],
        parts=_parts(fields),
        md5=_md5(fields.get("objectMd5")),
        file_name=_text(fields.get("fileName")),
    )


def _fields(data: bytes, object_id: str) -> dict[str, Any]:
    try:
        fields = json.loads(data)
        size, parts = fields["objectSize"], fields["parts"]
        named = fields["objectId"]
    except _DAMAGE:
        raise ServiceError(f"The stored specification of object {object_id} is damaged; ask the operator of the store") from None
    if named != object_id or not isinstance(size, int) or not isinstance(parts, list):
        raise ServiceError(f"The stored specification of object {object_id} is about something else; ask the operator of the store")
    return dict(fields)


def _parts(fields: dict[str, Any]) -> tuple[Part, ...]:
    try:
        parts = tuple(
            Part(
                number=int(part["partNumber"]),
                offset=int(part["offset"]),
                size=int(part["partSize"]),
                md5=_md5(part.get("sourceMd5")),
            )
            for part in sorted(fields["parts"], key=lambda part: part["partNumber"])
        )
    except _DAMAGE:
        raise ServiceError(f"The stored parts of object {fields['objectId']} are damaged; ask the operator of the store") from None
    if not tiles(parts, int(fields["objectSize"])):
        raise ServiceError(f"The stored parts of object {fields['objectId']} do not make up its {fields['objectSize']} bytes")
    return parts


def _md5(value: object) -> str | None:
    return parse_md5(value) if isinstance(value, str) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def tiles(parts: tuple[Part, ...], size: int) -> bool:
    """Whether the parts cover bytes 0 to `size` without gap or overlap, in order."""
    position = 0
    for part in parts:
        if part.offset != position or part.size <= 0:
            return False
        position = part.end
    return position == size
