"""Score's bucket layout: keys and the JSON in them, byte for byte as Java servers read and write it (protocol sections 4 and 5).

    data/<id>                                       the object's bytes
    data/<id>.meta                                  its specification: parts, sizes, MD5s
    upload/<id>_<upload id>/.meta                   the specification of an upload in progress
    upload/<id>_<upload id>/part-<8 hex>|<json>     an empty object; the record of a stored part is its name

Ours adds `sealed` and `fileName` to the final specification; Java readers ignore fields that they do not know.
"""

from __future__ import annotations

import json
from typing import Any, Final

from score_core.checksum import parse_md5
from score_core.errors import ServiceError
from score_core.model import ObjectSpec, Part, StoredPart, Upload

DATA: Final = "data/"
UPLOADS: Final = "upload/"
META: Final = ".meta"
_DAMAGE: Final = (KeyError, TypeError, ValueError, OverflowError, RecursionError)  # what reading damaged JSON brings


def data_key(object_id: str) -> str:
    return f"{DATA}{object_id}"


def meta_key(object_id: str) -> str:
    return f"{DATA}{object_id}{META}"


def state_prefix(object_id: str, upload_id: str | None = None) -> str:
    """The prefix of one upload's state, or of all uploads of an object when `upload_id` is None."""
    return f"{UPLOADS}{object_id}_" if upload_id is None else f"{UPLOADS}{object_id}_{upload_id}/"


def record_key(object_id: str, upload_id: str, part: StoredPart) -> str:
    record = json.dumps({"partNumber": part.number, "md5": part.md5, "etag": part.etag}, separators=(",", ":"))
    return f"{record_prefix(object_id, upload_id, part.number)}{record}"


def record_prefix(object_id: str, upload_id: str, number: int) -> str:
    return f"{state_prefix(object_id, upload_id)}part-{number:08x}|"


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


def spec_json(spec: ObjectSpec, upload_id: str) -> bytes:
    """A final `.meta`. URLs are null: they would be dead secrets, and readers must make their own (protocol section 5.1)."""
    return _encode(
        {
            "objectKey": data_key(spec.object_id),
            "objectId": spec.object_id,
            "uploadId": upload_id,
            "parts": [_part_json(part) for part in spec.parts],
            "objectSize": spec.size,
            "objectMd5": spec.md5,
            "sealed": spec.sealed,
            "fileName": spec.file_name,
        }
    )


def upload_json(upload: Upload) -> bytes:
    """The `.meta` of an upload in progress."""
    return _encode(
        {
            "objectKey": data_key(upload.object_id),
            "objectId": upload.object_id,
            "uploadId": upload.upload_id,
            "parts": [_part_json(part) for part in upload.parts],
            "objectSize": upload.size,
            "objectMd5": upload.md5,
            "fileName": upload.file_name,
        }
    )


def _part_json(part: Part) -> dict[str, Any]:
    fields: dict[str, Any] = {"partNumber": part.number, "partSize": part.size, "offset": part.offset, "url": None, "md5": None}
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
