"""Digests of bytes as they pass, and the forms in which others write them."""

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_core.checksum import EMPTY_MD5, Digest, digest_of, is_md5_shaped, md5_base64, md5_hex, parse_md5


@given(st.lists(st.binary()))
def test_blocks_hash_like_the_whole(blocks: list[bytes]) -> None:
    whole = b"".join(blocks)
    digest = digest_of(blocks)
    assert digest.md5 == hashlib.md5(whole).hexdigest() == md5_hex(whole)
    assert digest.tag == digest_of([whole], md5=False).tag


def test_digest_without_md5_has_none() -> None:
    assert Digest(md5=False).md5 is None
    assert Digest().md5 == EMPTY_MD5


@given(st.binary(), st.binary())
def test_tags_tell_bytes_apart(one: bytes, other: bytes) -> None:
    assert (digest_of([one]).tag == digest_of([other]).tag) == (one == other)


@given(st.binary(min_size=16, max_size=16))
def test_every_spelling_of_an_md5_is_read(raw: bytes) -> None:
    written = {raw.hex(), raw.hex().upper(), base64.b64encode(raw).decode(), f" {raw.hex()}\r\n"}
    assert {parse_md5(text) for text in written} == {raw.hex()}
    assert parse_md5(md5_base64(raw.hex())) == raw.hex()


@pytest.mark.parametrize(
    "text", ["", " ", "a" * 31, "a" * 33, "g" * 32, "1B2M2Y8AsgTpgAmY7PhCfg", "1B2M2Y8AsgTpgAmY7PhCfg==A", "d41d8cd98f00b204-1"]
)
def test_what_is_no_md5_is_none(text: str) -> None:
    assert parse_md5(text) is None


@given(st.text())
def test_any_text_is_md5_or_none(text: str) -> None:
    parsed = parse_md5(text)
    assert parsed is None or is_md5_shaped(parsed)


@pytest.mark.parametrize(("etag", "shaped"), [("a" * 32, True), ("A" * 32, True), ("a" * 32 + "-3", False), ("0x8D", False), ("", False)])
def test_composite_etags_are_no_md5(etag: str, shaped: bool) -> None:
    assert is_md5_shaped(etag) is shaped
