"""Score's bucket layout byte for byte, old files included, and no crash on damaged ones (protocol section 5)."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_core.errors import ConfigurationError, ObjectNotFound, ServiceError
from score_core.model import ObjectSpec, Part, StoredPart, Upload
from score_core.plan import plan_parts
from score_core.repository import layout
from score_core.repository.layout import Keys

ID = "3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11"
MD5_OF_ALL = "4a8a08f09d37b73795649038408b5f33"
MD5 = "0cc175b9c0f1b6a831c399e269772661"
GOLDEN_META = (
    b'{"objectKey":"data/3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11","objectId":"3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11","uploadId":"2~QmFz",'
    b'"parts":[{"partNumber":1,"partSize":20971520,"offset":0,"url":null,"md5":null,"sourceMd5":"0cc175b9c0f1b6a831c399e269772661"},'
    b'{"partNumber":2,"partSize":5,"offset":20971520,"url":null,"md5":null,"sourceMd5":"92eb5ffee6ae2fec3ad71c777531578f"}],'
    b'"objectSize":20971525,"objectMd5":"4a8a08f09d37b73795649038408b5f33","sealed":true,"fileName":"a.bam"}'
)
GOLDEN_UPLOAD = (
    b'{"objectKey":"data/3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11","objectId":"3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11","uploadId":"2~QmFz",'
    b'"parts":[{"partNumber":1,"partSize":3,"offset":0,"url":null,"md5":null}],'
    b'"objectSize":3,"objectMd5":"4a8a08f09d37b73795649038408b5f33","fileName":"a.bam"}'
)
# As a Java server of about 2015 wrote it: no MD5s, `relocated`, part `md5` text, signature V2 URLs, parts of 1 GiB, parts in any order.
LEGACY_META = {
    "objectKey": f"data/{ID}",
    "objectId": ID,
    "uploadId": "2~legacy",
    "parts": [
        {
            "partNumber": 2,
            "partSize": 7,
            "offset": 1073741824,
            "url": f"https://store/data/{ID}?AWSAccessKeyId=AK&Expires=1423&Signature=dead",
            "md5": None,
        },
        {
            "partNumber": 1,
            "partSize": 1073741824,
            "offset": 0,
            "url": f"https://store/data/{ID}?Expires=1423",
            "md5": "d41d8cd98f00b204e9800998ecf8427e",
        },
    ],
    "objectSize": 1073741831,
    "relocated": False,
}


def spec() -> ObjectSpec:
    parts = (Part(1, 0, 20_971_520, MD5), Part(2, 20_971_520, 5, "92eb5ffee6ae2fec3ad71c777531578f"))
    return ObjectSpec(ID, 20_971_525, parts, md5=MD5_OF_ALL, sealed=True, file_name="a.bam", upload_id="2~QmFz")


def test_final_meta_is_golden() -> None:
    assert layout.spec_json(spec(), f"data/{ID}") == GOLDEN_META


def test_relocation_is_never_written() -> None:
    assert layout.spec_json(dataclasses.replace(spec(), relocated=True), f"data/{ID}") == GOLDEN_META


def test_final_meta_is_read_back() -> None:
    assert layout.read_spec(GOLDEN_META, ID) == spec()


def test_upload_meta_is_golden_and_read_back() -> None:
    upload = Upload(ID, "2~QmFz", 3, plan_parts(3), "4a8a08f09d37b73795649038408b5f33", file_name="a.bam")
    assert layout.upload_json(upload, f"data/{ID}", {}) == GOLDEN_UPLOAD
    assert layout.read_upload(GOLDEN_UPLOAD, ID) == upload


def test_part_record_key_is_golden() -> None:
    key = Keys().record("id", "uid", StoredPart(17, MD5, "etag"))
    assert key == 'upload/id_uid/part-00000011|{"partNumber":17,"md5":"0cc175b9c0f1b6a831c399e269772661","etag":"etag"}'
    assert layout.read_record(key) == StoredPart(17, MD5, "etag")


def test_keys_are_golden() -> None:
    keys = Keys()
    assert (keys.data(ID), keys.meta(ID)) == (f"data/{ID}", f"data/{ID}.meta")
    assert (keys.state(ID), keys.state(ID, "u")) == (f"upload/{ID}_", f"upload/{ID}_u/")
    assert (keys.records(ID, "u"), keys.records(ID, "u", 17)) == (f"upload/{ID}_u/part-", f"upload/{ID}_u/part-00000011|")


def test_directories_can_be_others() -> None:
    keys = Keys("files/of all", "state")
    assert (keys.data(ID), keys.meta(ID), keys.state(ID)) == (f"files/of all/{ID}", f"files/of all/{ID}.meta", f"state/{ID}_")


def test_blank_data_directory_drops_the_prefix() -> None:
    keys = Keys("")
    assert (keys.data(ID), keys.meta(ID), keys.data_prefix) == (ID, f"{ID}.meta", "")
    assert (keys.object_id(ID), keys.object_id(f"data/{ID}"), keys.object_id(f"{ID}.meta")) == (ID, None, None)


@pytest.mark.parametrize("directories", [("/data", "upload"), ("data/", "upload"), ("..", "u"), ("a//b", "u"), ("data", ""), ("a", "a")])
def test_odd_directories_are_refused(directories: tuple[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="directory"):
        Keys(*directories)


@pytest.mark.parametrize("key", [f"data/{ID}.meta", "data/heliograph", f"database/{ID}", f"data/x/{ID}", ID])
def test_only_data_keys_are_objects(key: str) -> None:
    assert Keys().object_id(f"data/{ID}") == ID
    assert Keys().object_id(key) is None


@pytest.mark.parametrize("upload_id", ["", "a/b", "../../data", "a|b", "a\nb", "a" * 1000])
def test_what_cannot_be_an_upload_makes_no_key(upload_id: str) -> None:
    for make in (Keys().state, Keys().records):
        with pytest.raises(ObjectNotFound):
            make(ID, upload_id)


def test_record_keys_sort_like_part_numbers() -> None:
    keys = [Keys().record("id", "uid", StoredPart(number, MD5, MD5)) for number in range(1, 10_001)]
    assert keys == sorted(keys)


def test_legacy_meta_is_read() -> None:
    read = layout.read_spec(json.dumps(LEGACY_META).encode(), ID)
    assert [(part.number, part.offset, part.md5) for part in read.parts] == [(1, 0, None), (2, 1 << 30, None)]
    assert (read.size, read.md5, read.sealed) == ((1 << 30) + 7, None, False)


def test_missing_part_md5s_of_java_are_unknown() -> None:
    """What a Java server writes for a part without a record (protocol section 3.11, step 3)."""
    meta = json.loads(GOLDEN_META)
    meta["parts"][0]["sourceMd5"] = "<missing>"
    del meta["parts"][1]["sourceMd5"]
    assert [part.md5 for part in layout.read_spec(json.dumps(meta).encode(), ID).parts] == [None, None]


def test_kept_urls_are_in_the_upload_meta_only() -> None:
    upload = Upload(ID, "2~QmFz", 3, plan_parts(3), None)
    data = json.loads(layout.upload_json(upload, f"data/{ID}", {1: "https://h/?Signature=s"}))
    assert [part["url"] for part in data["parts"]] == ["https://h/?Signature=s"]
    assert layout.read_upload(json.dumps(data).encode(), ID) == upload


@pytest.mark.parametrize("written", ["4a8a08f09d37b73795649038408b5f33", "4A8A08F09D37B73795649038408B5F33", "SooI8J03tzeVZJA4QItfMw=="])
def test_java_spellings_of_the_md5_are_read(written: str) -> None:
    meta = json.dumps({**LEGACY_META, "objectMd5": written, "unknown": {"new": 1}}).encode()
    assert layout.read_spec(meta, ID).md5 == "4a8a08f09d37b73795649038408b5f33"


def test_only_true_seals() -> None:
    for value in ("true", 1, None, "false"):
        assert layout.read_spec(json.dumps({**LEGACY_META, "sealed": value}).encode(), ID).sealed is False


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["objectKey", "objectId", "uploadId", "parts", "objectSize", "objectMd5", "sealed", "fileName"]
PART_FIELDS = ["partNumber", "partSize", "offset", "url", "md5", "sourceMd5"]


def assert_sound(read: Any, data: bytes) -> None:
    """A damaged specification is refused with a `ServiceError`, or what comes out of it is well-formed."""
    try:
        found = read(data, ID)
    except ServiceError:
        return
    assert layout.tiles(found.parts, found.size)
    assert found.md5 is None or len(found.md5) == 32
    assert found.file_name is None or isinstance(found.file_name, str)


@given(st.sampled_from([layout.read_spec, layout.read_upload]), st.sampled_from(FIELDS), JSON)
def test_any_value_in_any_field_is_handled(read: Any, name: str, value: Any) -> None:
    assert_sound(read, json.dumps({**json.loads(GOLDEN_META), name: value}).encode())


@given(st.sampled_from(PART_FIELDS), JSON)
def test_any_value_in_any_part_is_handled(name: str, value: Any) -> None:
    meta = json.loads(GOLDEN_META)
    meta["parts"][0][name] = value
    assert_sound(layout.read_spec, json.dumps(meta).encode())


@given(st.sampled_from(FIELDS), st.sampled_from([layout.read_spec, layout.read_upload]))
def test_any_missing_field_is_handled(name: str, read: Any) -> None:
    meta = json.loads(GOLDEN_META)
    del meta[name]
    assert_sound(read, json.dumps(meta).encode())


@given(st.one_of(st.binary(), st.integers(0, len(GOLDEN_META)).map(lambda cut: GOLDEN_META[:cut])))
def test_torn_meta_is_handled(data: bytes) -> None:
    assert_sound(layout.read_spec, data)


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b"9" * 10_000, GOLDEN_META.replace(b"20971525", b"1e999"), GOLDEN_META.replace(b"20971520,", b"1e999,")]
)
def test_nasty_json_is_refused(data: bytes) -> None:
    with pytest.raises(ServiceError):
        layout.read_spec(data, ID)


def test_meta_of_another_object_is_refused() -> None:
    with pytest.raises(ServiceError, match="something else"):
        layout.read_spec(GOLDEN_META, ID.replace("3", "4"))


@given(st.text() | JSON.map(lambda value: "part-00000001|" + json.dumps(value)))
def test_any_key_is_a_record_or_none(key: str) -> None:
    record = layout.read_record(key)
    assert record is None or isinstance(record.number, int)


def test_record_with_an_infinite_number_is_none() -> None:
    assert layout.read_record('part-00000001|{"partNumber":1e999,"md5":"a","etag":"b"}') is None
