"""The JSON between Score clients and servers: both ends agree, Java's own forms are read, and hostile ones end in one error."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_core.errors import ServiceError
from score_core.model import ObjectInfo, ObjectSpec, Part, StoredPart, Upload, UploadInfo
from score_core.plan import plan_parts
from score_core.repository import wire

ID = "3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11"
MD5 = "0cc175b9c0f1b6a831c399e269772661"

md5s = st.text("0123456789abcdef", min_size=32, max_size=32)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"]), min_size=1, max_size=30)
plans = st.integers(0, 200).flatmap(lambda size: st.integers(1, 60).map(lambda part_size: (size, plan_parts(size, minimum=part_size))))


@st.composite
def specs(draw: st.DrawFn) -> ObjectSpec:
    size, parts = draw(plans)
    parts = tuple(Part(part.number, part.offset, part.size, draw(st.none() | md5s)) for part in parts)
    return ObjectSpec(ID, size, parts, draw(st.none() | md5s), draw(st.none() | texts), draw(st.booleans()), draw(st.none() | texts))


@st.composite
def uploads(draw: st.DrawFn) -> Upload:
    size, parts = draw(plans)
    stored = {part.number: StoredPart(part.number, draw(md5s), draw(texts)) for part in parts if draw(st.booleans())}
    return Upload(ID, draw(texts), size, parts, draw(st.none() | md5s), stored, draw(st.none() | texts))


def sent(body: Any) -> Any:
    return json.loads(json.dumps(body))


@given(specs())
def test_specification_comes_back(spec: ObjectSpec) -> None:
    assert wire.read_spec(sent(wire.spec_body(f"data/{ID}", spec, "u", None)), ID) == spec


@given(uploads(), st.booleans())
def test_progress_comes_back(upload: Upload, marks_md5: bool) -> None:
    urls = {part.number: f"https://s3/{part.number}" for part in upload.parts}
    body = sent(wire.progress_body(upload, urls, marks_md5=marks_md5))
    assert wire.read_upload(body, ID, size=upload.size) == (upload, urls)


@given(uploads())
def test_begun_upload_comes_back(upload: Upload) -> None:
    body = sent(wire.begun_body(f"data/{ID}", upload, {}))
    found, urls = wire.read_upload(body, ID, size=upload.size, md5=MD5)
    assert (found.upload_id, found.parts, dict(found.stored), urls) == (upload.upload_id, upload.parts, {}, {})
    assert found.md5 == (upload.md5 or MD5)


def test_lists_come_back() -> None:
    rows = [ObjectInfo(ID, 3, 1720094400.5)]
    assert wire.read_listing(sent(wire.listing_body(rows))) == rows
    begun = [UploadInfo(ID, "2~x", 1720094400.25)]
    assert wire.read_uploads(sent(wire.uploads_body(begun))) == begun


def test_external_url_stands_for_all_of_the_object() -> None:
    spec = ObjectSpec(ID, 3, (Part(1, 0, 3),))
    assert wire.read_url(sent(wire.external_body(ID, spec, -1, "https://s3/x")), ID) == {None: "https://s3/x"}


def test_urls_of_parts_are_told_by_their_bytes() -> None:
    spec = ObjectSpec(ID, 5, (Part(1, 0, 3), Part(2, 3, 2)))
    body = sent(wire.spec_body(ID, spec, "u", {1: "https://s3/1", 2: "https://s3/2"}))
    assert wire.read_url(body, ID) == {(0, 3): "https://s3/1", (3, 2): "https://s3/2"}


# As section 4.4 shows them


def part(number: int, size: int, offset: int, **more: Any) -> dict[str, Any]:
    return {"partNumber": number, "partSize": size, "offset": offset, "url": None, "md5": None, **more}


def spec_json(**changes: Any) -> dict[str, Any]:
    parts = [part(1, 20, 0, sourceMd5=MD5), part(2, 5, 20, sourceMd5=MD5)]
    return {"objectKey": f"data/{ID}", "objectId": ID, "uploadId": "2~x", "parts": parts, "objectSize": 25, "objectMd5": MD5, **changes}


def progress_json(**changes: Any) -> dict[str, Any]:
    parts = [part(1, 20, 0, url="https://s3/1", sourceMd5=MD5), part(2, 5, 20, url="https://s3/2")]
    return {"objectId": ID, "uploadId": "2~x", "parts": parts, **changes}


def test_java_status_marks_stored_parts_by_source_md5() -> None:  # 21.1
    upload, urls = wire.read_upload(progress_json(), ID, size=25)
    assert dict(upload.stored) == {1: StoredPart(1, MD5, MD5)}
    assert (upload.md5, upload.size, urls) == (None, 25, {1: "https://s3/1", 2: "https://s3/2"})


def test_md5_of_a_part_counts_as_stored_too() -> None:
    body = progress_json(parts=[part(1, 20, 0, md5=MD5.upper()), part(2, 5, 20)])
    assert wire.read_upload(body, ID, size=25)[0].stored[1].md5 == MD5


def test_base64_md5_is_read() -> None:
    assert wire.read_spec(spec_json(objectMd5="DMF1ucDxtqgxw5niaXcmYQ=="), ID).md5 == MD5


@pytest.mark.parametrize("md5", [None, "", "<missing>", 7, "0" * 48])
def test_md5_that_is_none_is_unknown(md5: Any) -> None:
    assert wire.read_spec(spec_json(objectMd5=md5), ID).md5 is None


def test_old_specification_is_read() -> None:  # 5.2
    parts = [part(2, 5, 1 << 30, url="https://s3/x?AWSAccessKeyId=A&Expires=1&Signature=x"), part(1, 1 << 30, 0, md5="text")]
    body = {"objectId": ID.upper(), "uploadId": ID, "parts": parts, "objectSize": (1 << 30) + 5, "relocated": False}
    assert [row.number for row in wire.read_spec(body, ID).parts] == [1, 2]


# What no honest server says. Every reader ends in a ServiceError or in a sound value.

READERS: list[Callable[[Any], object]] = [
    lambda body: wire.read_spec(body, ID),
    lambda body: wire.read_upload(body, ID, size=25),
    lambda body: wire.read_url(body, ID),
    wire.read_listing,
    wire.read_uploads,
]
HUGE = st.sampled_from([2**31, 2**63, 2**64, 10**400, -1, -(2**63), 1e308, float("inf"), float("nan"), -0.5])
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 30)
    | HUGE
    | st.sampled_from(["", ID, MD5, "\ud800", "a\r\nb", "9" * 5000])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["partNumber", "offset", "url", "id", "parts"]), inner),
    max_leaves=6,
)


@given(anything)
def test_anything_else_is_a_service_error(body: Any) -> None:
    for read in READERS:
        assert_sound_or_refused(lambda read=read: read(body))  # type: ignore[misc]


@given(st.data())
def test_one_wrong_field_is_a_service_error_or_harmless(data: st.DataObject) -> None:
    body = data.draw(st.sampled_from([spec_json, progress_json]))()
    target = data.draw(st.sampled_from([body, *body["parts"]]))
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(anything)
    for read in READERS[:3]:
        assert_sound_or_refused(lambda read=read: read(body))  # type: ignore[misc]


@given(st.data())
def test_one_wrong_row_is_a_service_error(data: st.DataObject) -> None:
    row = {"id": ID, "objectId": ID, "uploadId": "u", "size": 3, "lastModified": 1, "startedAt": 1}
    row[data.draw(st.sampled_from(sorted(row)))] = data.draw(anything)
    for read in READERS[3:]:
        assert_sound_or_refused(lambda read=read: read([row]))  # type: ignore[misc]


def assert_sound_or_refused(read: Callable[[], Any]) -> None:
    try:
        found = read()
    except ServiceError:
        return
    if isinstance(found, tuple):
        found = found[0]
    if isinstance(found, ObjectSpec | Upload):
        position = 0
        for number, piece in enumerate(found.parts, start=1):
            assert (piece.number, piece.offset) == (number, position)
            position = piece.end
        assert position == found.size < 2**63
        assert found.object_id == ID
        assert all(text is None or text.isprintable() for text in (found.file_name, getattr(found, "upload_id", None)))
    if isinstance(found, list):
        for row in found:
            assert row.object_id == row.object_id.lower()


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [part(1, 20, 0)],
        [part(1, 20, 0), part(2, 5, 19)],
        [part(1, 20, 0), part(2, 4, 21)],
        [part(1, 20, 0), part(1, 5, 20)],
        [part(0, 20, 0), part(1, 5, 20)],
        [part(1, 20, 0), part(3, 5, 20)],
        [part(1, 25, 0), part(2, 0, 25)],
        [part(1, 2**63, 0), part(2, 25 - 2**63, 2**63)],
        [part(1, 26, 0), part(2, -1, 26)],
        [{**part(1, 25, 0), "partSize": "25"}],
        [{**part(1, 1, 0), "partSize": True}, part(2, 24, 1)],
        {"1": part(1, 25, 0)},
        "parts",
        None,
    ],
    ids=str,
)
def test_parts_that_do_not_fit_are_refused(parts: Any) -> None:
    with pytest.raises(ServiceError, match="does not fit together"):
        wire.read_spec(spec_json(parts=parts), ID)
    with pytest.raises(ServiceError, match="does not fit together"):
        wire.read_upload(progress_json(parts=parts), ID, size=25)


@pytest.mark.parametrize("named", ["00000000-2b1d-5a57-9a55-0d6f0f5b2c11", "", None, 3])
def test_answer_about_another_object_is_refused(named: Any) -> None:
    for read in READERS[:3]:
        with pytest.raises(ServiceError):
            read(spec_json(objectId=named))


@pytest.mark.parametrize("said", [24, 2**63, "x", -1])
def test_upload_of_another_size_is_refused(said: Any) -> None:
    with pytest.raises(ServiceError):
        wire.read_upload(progress_json(objectSize=said), ID, size=25)


@pytest.mark.parametrize("upload_id", [None, "", 7, "a\r\nX: y", "\ud800"])
def test_upload_id_fit_for_no_request_is_refused(upload_id: Any) -> None:
    with pytest.raises(ServiceError):
        wire.read_upload(progress_json(uploadId=upload_id), ID, size=25)


@pytest.mark.parametrize("row", [{}, {"id": "../x"}, {"id": ID, "size": -1}, {"id": ID, "size": 1, "lastModified": 2**63}, None, "x"])
def test_listing_with_a_senseless_row_is_refused(row: Any) -> None:
    with pytest.raises(ServiceError, match="something else than a listing"):
        wire.read_listing([row])


# Lifetimes of URLs (section 8)


@pytest.mark.parametrize(
    ("query", "signed_at", "expires_at"),
    [
        ("X-Amz-Date=20240704T120000Z&X-Amz-Expires=518399&X-Amz-Signature=a", 1720094400.0, 1720612799.0),
        ("x-amz-expires=60&x-amz-date=20240704T120000Z", 1720094400.0, 1720094460.0),
        ("AWSAccessKeyId=A&Expires=1720094400&Signature=x%2B", None, 1720094400.0),
        ("sv=2020&se=2024-07-04T12%3A00%3A00Z&sig=x", None, 1720094400.0),
        ("se=2024-07-04T12:00Z", None, 1720094400.0),
        ("", None, None),
        ("X-Amz-Date=20240704T120000Z", None, None),
        ("X-Amz-Date=yesterday&X-Amz-Expires=1", None, None),
        ("X-Amz-Date=20240704T120000Z&X-Amz-Expires=" + "9" * 400, None, None),
        ("X-Amz-Date=20240704T120000Z&X-Amz-Expires=" + "9" * 5000, None, None),
        ("Expires=soon", None, None),
        ("se=2024-13-45T99:99:99Z", None, None),
    ],
)
def test_lifetime_of_a_url(query: str, signed_at: float | None, expires_at: float | None) -> None:
    assert wire.lifetime_of(f"https://s3.example.org/b/k?{query}") == (signed_at, expires_at)


@given(
    st.text()
    | st.text().map("https://h/?Expires={}".format)
    | st.text().map("https://h/?X-Amz-Date=20240704T120000Z&X-Amz-Expires={}".format)
)
def test_lifetime_of_anything_is_an_answer(url: str) -> None:
    wire.lifetime_of(url)


@pytest.mark.parametrize("url", ["http://[", "http://[::1", "http://h:99999999/?Expires=3", ""])
def test_lifetime_of_what_is_no_url_is_an_answer(url: str) -> None:
    wire.lifetime_of(url)


@given(st.integers(0, 4_000_000_000), st.integers(1, 604_800))
def test_lifetime_of_v4_is_what_was_signed(signed_at: int, life_s: int) -> None:
    date = datetime.fromtimestamp(signed_at, UTC).strftime("%Y%m%dT%H%M%SZ")
    assert wire.lifetime_of(f"https://h/?X-Amz-Date={date}&X-Amz-Expires={life_s}") == (signed_at, signed_at + life_s)
