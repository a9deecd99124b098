"""The JSON that travels between Score clients and servers: one place for both ends (protocol section 4).

Nulls are written, save for `sourceMd5` (section 4). Ours adds `sealed`, `etag` and `fileName` to specifications, and to the progress of an
upload its size, MD5, name and the ETags of its parts; Java clients ignore fields that they do not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from score_core.checksum import parse_md5
from score_core.errors import ServiceError
from score_core.ids import is_object_id
from score_core.model import ObjectInfo, ObjectSpec, Part, StoredPart, Upload, UploadInfo
from score_core.repository.layout import tiles

_DAMAGE: Final = (KeyError, TypeError, ValueError, OverflowError, AttributeError)
_YEAR_10000_MS: Final = 253_402_300_800_000
_AMZ_DATE: Final = "%Y%m%dT%H%M%SZ"
_AZURE_DATE: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d)(:\d\d)?Z")

Json = dict[str, Any]
Urls = Mapping[int, str]  # by part number


# Written by servers


def spec_body(key: str, spec: ObjectSpec, upload_id: str, urls: Urls | None) -> Json:
    """An ObjectSpecification (4.1); without `urls` every `url` is null."""
    return {
        "objectKey": key,
        "objectId": spec.object_id,
        "uploadId": upload_id,
        "parts": [_part(part, urls, source_md5=part.md5) for part in spec.parts],
        "objectSize": spec.size,
        "objectMd5": spec.md5,
        **_present(sealed=spec.sealed or None, etag=spec.etag, fileName=spec.file_name),
    }


def external_body(key: str, spec: ObjectSpec, length: int, url: str | None) -> Json:
    """The specification of one URL for everything: its part has no size (3.6, step 8)."""
    part = {"partNumber": 1, "partSize": -1, "offset": 0, "url": url, "md5": None}
    return {
        "objectKey": key,
        "objectId": spec.object_id,
        "uploadId": spec.object_id,
        "parts": [part],
        "objectSize": length,
        "objectMd5": spec.md5,
        **_present(etag=spec.etag, fileName=spec.file_name),
    }


def begun_body(key: str, upload: Upload, urls: Urls) -> Json:
    """What initiate answers: the specification with PUT URLs (3.8, step 7)."""
    return {
        "objectKey": key,
        "objectId": upload.object_id,
        "uploadId": upload.upload_id,
        "parts": [_part(part, urls) for part in upload.parts],
        "objectSize": upload.size,
        "objectMd5": upload.md5,
    }


def progress_body(upload: Upload, urls: Urls, *, marks_md5: bool) -> Json:
    """An UploadProgress (4.3). `marks_md5` also sets `md5` on stored parts, so that Java clients pass over them, unchecked (21.1)."""
    parts = []
    for part in upload.parts:
        stored = upload.stored.get(part.number)
        fields = _part(part, urls, source_md5=None if stored is None else stored.md5)
        if stored is not None:
            fields["etag"] = stored.etag
            fields["md5"] = stored.md5 if marks_md5 else None
        parts.append(fields)
    return {
        "objectId": upload.object_id,
        "uploadId": upload.upload_id,
        "parts": parts,
        "objectSize": upload.size,
        "objectMd5": upload.md5,
        **_present(fileName=upload.file_name),
    }


def listing_body(rows: Iterable[ObjectInfo]) -> list[Json]:
    """An array of ObjectInfo (4.3): times in milliseconds."""
    return [{"id": row.object_id, "lastModified": int(row.modified_at * 1000), "size": row.size} for row in rows]


def uploads_body(rows: Iterable[UploadInfo]) -> list[Json]:
    """Ours: the unfinished uploads. Times in milliseconds, as in the listing."""
    return [{"objectId": row.object_id, "uploadId": row.upload_id, "startedAt": int(row.started_at * 1000)} for row in rows]


def _part(part: Part, urls: Urls | None, *, source_md5: str | None = None) -> Json:
    fields: Json = {
        "partNumber": part.number,
        "partSize": part.size,
        "offset": part.offset,
        "url": None if urls is None else urls.get(part.number),
        "md5": None,
    }
    if source_md5 is not None:
        fields["sourceMd5"] = source_md5
    return fields


def _present(**fields: object) -> Json:
    return {name: value for name, value in fields.items() if value is not None}


# Read by clients. A server is not trusted: what does not fit together is refused in one sentence.


def read_spec(body: Any, object_id: str) -> ObjectSpec:
    """A whole object's specification, of any Score server.

    Raises:
        ServiceError: it is none, or about another object, or its parts do not make up its size.
    """
    try:
        parts = tuple(_read_part(fields) for fields in _sorted(body["parts"]))
        size, named = body["objectSize"], body["objectId"]
    except _DAMAGE:
        raise _nonsense("specification", object_id) from None
    if str(named).lower() != object_id or not _is_size(size) or not _is_plan(parts, size):
        raise _nonsense("specification", object_id)
    return ObjectSpec(
        object_id,
        size,
        parts,
        md5=_md5(body.get("objectMd5")),
        etag=_text(body.get("etag")),
        sealed=body.get("sealed") is True,
        file_name=_text(body.get("fileName")),
    )


def read_upload(body: Any, object_id: str, *, size: int, md5: str | None = None) -> tuple[Upload, dict[int, str]]:
    """What initiate or status answered: the upload with what is stored of it, and the PUT URLs by part number.

    A stored part is one with a `sourceMd5` (what Java servers mark) or an `md5` (what Java clients look at): section 21.1.
    `size` and `md5` stand in for what the body does not say.

    Raises:
        ServiceError: as `read_spec`.
    """
    try:
        rows = _sorted(body["parts"])
        parts = tuple(_read_part(fields, md5=False) for fields in rows)
        stored = {part.number: found for part, fields in zip(parts, rows, strict=True) if (found := _read_stored(part, fields))}
        urls = {part.number: url for part, fields in zip(parts, rows, strict=True) if (url := _text(fields.get("url")))}
        named, upload_id = body["objectId"], body["uploadId"]
    except _DAMAGE:
        raise _nonsense("upload", object_id) from None
    said = body.get("objectSize")
    if str(named).lower() != object_id or _text(upload_id) is None or not _is_plan(parts, size) or said not in (None, size):
        raise _nonsense("upload", object_id)
    claimed = _md5(body.get("objectMd5")) or md5
    return Upload(object_id, upload_id, size, parts, claimed, stored, file_name=_text(body.get("fileName"))), urls


def read_url(body: Any, object_id: str) -> dict[tuple[int, int] | None, str]:
    """The GET URLs of a specification by offset and size of their part; None stands for all of the object (`partSize` -1)."""
    try:
        rows = [(fields["offset"], fields["partSize"], url) for fields in body["parts"] if (url := _text(fields["url"]))]
        named = body["objectId"]
    except _DAMAGE:
        raise _nonsense("URL", object_id) from None
    if str(named).lower() != object_id or not all(_is_size(offset) and (size == -1 or _is_size(size)) for offset, size, _ in rows):
        raise _nonsense("URL", object_id)
    if len(rows) == 1 and rows[0][0] == 0:
        return {None: rows[0][2]}
    return {(offset, size): url for offset, size, url in rows}


def read_listing(body: Any) -> list[ObjectInfo]:
    try:
        return [ObjectInfo(_id(row["id"]), _size(row["size"]), _time(row["lastModified"])) for row in body]
    except _DAMAGE:
        raise ServiceError("The Score server answered something else than a listing; ask its operator") from None


def read_uploads(body: Any) -> list[UploadInfo]:
    try:
        return [UploadInfo(_id(row["objectId"]), str(row["uploadId"]), _time(row["startedAt"])) for row in body]
    except _DAMAGE:
        raise ServiceError("The Score server answered something else than a list of uploads; ask its operator") from None


def lifetime_of(url: str) -> tuple[float | None, float | None]:
    """When a signed URL was made, and until when it is good, in seconds since the epoch by the signer's clock (section 8).

    None for what its query does not say. Signature V4, V2 and Azure's SAS are known.
    """
    try:
        query = {name.lower(): value for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True)}
        if "x-amz-date" in query:
            signed_at = datetime.strptime(query["x-amz-date"], _AMZ_DATE).replace(tzinfo=UTC).timestamp()
            return signed_at, signed_at + int(query["x-amz-expires"])
        if "expires" in query:
            return None, float(int(query["expires"]))
        if match := _AZURE_DATE.fullmatch(query.get("se", "")):
            return None, datetime.fromisoformat(f"{match[1]}{match[2] or ':00'}+00:00").timestamp()
    except (KeyError, ValueError, OverflowError):
        pass
    return None, None


def _sorted(rows: Sequence[Json]) -> list[Json]:
    return sorted(rows, key=lambda fields: int(fields["partNumber"]))


def _read_part(fields: Json, *, md5: bool = True) -> Part:
    number, offset, size = fields["partNumber"], fields["offset"], fields["partSize"]
    if not (_is_size(number) and _is_size(offset) and _is_size(size)):
        raise ValueError("part")
    return Part(number, offset, size, _md5(fields.get("sourceMd5")) if md5 else None)


def _read_stored(part: Part, fields: Json) -> StoredPart | None:
    md5 = _md5(fields.get("sourceMd5")) or _md5(fields.get("md5"))
    return None if md5 is None else StoredPart(part.number, md5, _text(fields.get("etag")) or md5)


def _is_plan(parts: tuple[Part, ...], size: int) -> bool:
    """Whether the parts make up `size` bytes and are numbered from 1."""
    return tiles(parts, size) and all(part.number == number for number, part in enumerate(parts, start=1))


def _id(value: object) -> str:
    if not isinstance(value, str) or not is_object_id(value):
        raise ValueError("object id")
    return value.lower()


def _size(value: object) -> int:
    if not isinstance(value, int) or not _is_size(value):
        raise ValueError("size")
    return value


def _time(value: object) -> float:
    """Seconds, of milliseconds that a calendar can show."""
    milliseconds = _size(value)
    if milliseconds >= _YEAR_10000_MS:
        raise ValueError("time")
    return milliseconds / 1000


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _md5(value: object) -> str | None:
    return parse_md5(value) if isinstance(value, str) else None


def _text(value: object) -> str | None:
    """A text fit for headers, queries and terminals."""
    return value if isinstance(value, str) and value and value.isprintable() else None


def _nonsense(what: str, object_id: str) -> ServiceError:
    return ServiceError(f"The Score server's {what} of object {object_id} does not fit together; ask its operator")
