"""What every store promises, as tests: subclass with a `store` fixture.

    class TestMyStore(ObjectStoreContract, SignedUrlContract):
        @pytest.fixture
        def store(self, tmp_path): ...

Where a subclass can, it sets up and looks round the store under test by overriding `raw_write` and `raw_read`, so that a store which is
wrong twice in the same way is found out.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import pytest
import urllib3

from score_core.checksum import is_md5_shaped, md5_hex
from score_core.errors import ConfigurationError, Conflict, ObjectNotFound
from score_core.model import ByteRange, Part, SignedUrl
from score_core.plan import plan_parts
from score_core.stores.base import ListedPart, MultipartStore, ObjectStore, SupportsMultipart

RECORD_KEY = 'upload/a_u/part-00000011|{"partNumber":17,"md5":"0cc175b9c0f1b6a831c399e269772661","etag":"0cc175b9c0f1b6a831c399e269772661"}'
KEYS = (
    "plain",
    "data/3f6c0a4e-0b3e-4b7f-9c1d-111111111111",
    "data/3f6c0a4e-0b3e-4b7f-9c1d-111111111111.meta",
    "upload/a_u/.meta",
    RECORD_KEY,
    "data/with space+plus%41&amp=;ünï",
)


class _StoreSuite:
    """What both suites need. `min_part_bytes` is the store's least size of a part that is not the last."""

    min_part_bytes: ClassVar[int] = 10

    def raw_write(self, store: Any, key: str, data: bytes) -> None:
        store.write(key, data)

    def raw_read(self, store: Any, key: str) -> bytes:
        data: bytes = store.read(key)
        return data

    def send(self, url: SignedUrl, data: bytes) -> str:
        """PUTs a part; the answer is its ETag."""
        response = request(url, data=data)
        assert response.status == 200, response.data
        return response.headers["ETag"].strip('"')

    def fetch(self, url: SignedUrl, byte_range: ByteRange | None) -> bytes:
        headers = {} if byte_range is None else {"Range": byte_range.http}
        response = request(url, headers={**headers, **url.headers})
        assert response.status in (200, 206), response.data
        return response.data

    def put_parts(self, store: MultipartStore, key: str, upload_id: str, data: bytes, numbers: Iterable[int] = ()) -> list[ListedPart]:
        """Sends `data` in parts of the least size (all, or just `numbers`) and answers them as the store should list them."""
        wanted = set(numbers)
        listed = []
        for part in plan_parts(len(data), minimum=self.min_part_bytes):
            if not wanted or part.number in wanted:
                url = put_url(store, key, upload_id, part)
                listed.append(ListedPart(part.number, part.size, self.send(url, data[part.offset : part.end])))
        return listed

    def publish(self, store: MultipartStore, key: str, data: bytes) -> None:
        upload_id = store.create_multipart(key)
        store.complete_multipart(key, upload_id, self.put_parts(store, key, upload_id, data))

    def bytes_of_parts(self, count: int) -> bytes:
        """Bytes that make `count` parts, the last one shorter where that is possible, each different."""
        size = self.min_part_bytes
        return b"".join(bytes([number]) * size for number in range(1, count)) + b"\xff" * max(1, size // 3)


class ObjectStoreContract(_StoreSuite):
    """Every promise of `stores/base.py`."""

    def test_store_has_both_abilities(self, store: MultipartStore) -> None:
        assert isinstance(store, ObjectStore)
        assert isinstance(store, SupportsMultipart)

    def test_label_has_no_query(self, store: MultipartStore) -> None:
        assert "://" in store.label
        assert not {"?", "@"} & set(store.label)

    def test_check_passes(self, store: MultipartStore) -> None:
        self.raw_write(store, "probe", b"")
        store.check()

    @pytest.mark.parametrize("key", KEYS)
    def test_written_key_is_read_back(self, store: MultipartStore, key: str) -> None:
        store.write(key, b"some bytes")
        assert self.raw_read(store, key) == b"some bytes"

    @pytest.mark.parametrize("key", KEYS)
    def test_key_put_there_otherwise_is_read(self, store: MultipartStore, key: str) -> None:
        self.raw_write(store, key, b"some bytes")
        assert store.read(key) == b"some bytes"
        assert store.head(key).size == 10

    @pytest.mark.parametrize(("offset", "size", "wanted"), [(0, 4, b"0123"), (3, 2, b"34"), (8, 9, b"89"), (10, 1, b""), (99, 1, b"")])
    def test_range_is_read(self, store: MultipartStore, offset: int, size: int, wanted: bytes) -> None:
        self.raw_write(store, "data/a", b"0123456789")
        assert store.read_range("data/a", offset, size) == wanted

    def test_range_across_parts_is_read(self, store: MultipartStore) -> None:
        data = self.bytes_of_parts(3)
        self.publish(store, "data/a", data)
        start = self.min_part_bytes - 3
        assert store.read_range("data/a", start, self.min_part_bytes + 6) == data[start : 2 * self.min_part_bytes + 3]

    def test_range_of_an_empty_object_is_empty(self, store: MultipartStore) -> None:
        self.raw_write(store, "empty", b"")
        assert store.read_range("empty", 0, 10) == b""

    def test_range_of_a_missing_key_is_not_found(self, store: MultipartStore) -> None:
        with pytest.raises(ObjectNotFound):
            store.read_range("data/nothing", 0, 1)

    def test_empty_object_is_an_object(self, store: MultipartStore) -> None:
        store.write("empty", b"")
        assert store.read("empty") == b""
        assert store.head("empty").size == 0

    def test_write_replaces(self, store: MultipartStore) -> None:
        self.raw_write(store, "a", b"old and long")
        store.write("a", b"new")
        assert self.raw_read(store, "a") == b"new"
        assert store.head("a").size == 3

    def test_write_over_the_known_version_is_done(self, store: MultipartStore) -> None:
        assert store.write_if_unchanged("data/a", b"first", etag=None) is True
        assert store.write_if_unchanged("data/a", b"second", etag=store.head("data/a").etag) is True
        assert self.raw_read(store, "data/a") == b"second"

    @pytest.mark.parametrize("there", [b"other", None])
    def test_write_over_another_version_is_not_done(self, store: MultipartStore, there: bytes | None) -> None:
        self.raw_write(store, "data/a", b"known")
        known = store.head("data/a").etag
        store.delete("data/a")
        if there is not None:
            self.raw_write(store, "data/a", there)
            assert store.write_if_unchanged("data/a", b"ours", etag=None) is False
            assert store.write_if_unchanged("data/a", b"ours", etag=known) is False
            assert self.raw_read(store, "data/a") == there
        else:
            assert store.write_if_unchanged("data/a", b"ours", etag=known) is False
            assert list(store.list_objects("")) == []

    def test_of_many_first_writes_one_is_done(self, store: MultipartStore) -> None:
        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(lambda number: store.write_if_unchanged("data/a", b"%d" % number, etag=None), range(4)))
        assert done.count(True) == 1
        assert self.raw_read(store, "data/a") == b"%d" % done.index(True)

    def test_head_tells_the_facts(self, store: MultipartStore) -> None:
        before = time.time()
        self.raw_write(store, "data/a", b"1234")
        head = store.head("data/a")
        assert (head.key, head.size) == ("data/a", 4)
        assert head.etag
        assert '"' not in head.etag
        assert abs(head.modified_at - before) < 60

    def test_etag_changes_with_the_bytes(self, store: MultipartStore) -> None:
        self.raw_write(store, "a", b"1111")
        first = store.head("a").etag
        self.raw_write(store, "a", b"2222")
        assert store.head("a").etag != first

    @pytest.mark.parametrize("method", ["head", "read"])
    @pytest.mark.parametrize("key", ["nothing", "data/nothing", "data/there/below", "dat"])
    def test_missing_key_is_not_found(self, store: MultipartStore, method: str, key: str) -> None:
        self.raw_write(store, "data/there", b"1")
        with pytest.raises(ObjectNotFound):
            getattr(store, method)(key)

    def test_deleted_key_is_gone(self, store: MultipartStore) -> None:
        self.raw_write(store, "data/a", b"1")
        self.raw_write(store, "data/a.meta", b"2")
        store.delete("data/a")
        with pytest.raises(ObjectNotFound):
            store.head("data/a")
        assert store.read("data/a.meta") == b"2"

    def test_deleting_nothing_is_quiet(self, store: MultipartStore) -> None:
        store.delete("data/nothing")

    def test_list_has_the_prefix_in_key_order(self, store: MultipartStore) -> None:
        keys = ["data/a", "data/a.meta", "data/a-b", "data/a0", "data/b", "data/é", "upload/a_u/.meta", RECORD_KEY, "upload/a_u2/.meta"]
        for key in keys:
            self.raw_write(store, key, b"1")
        assert [row.key for row in store.list_objects("data/")] == sorted(key for key in keys if key.startswith("data/"))
        assert [row.key for row in store.list_objects("upload/a_u")] == sorted(key for key in keys if key.startswith("upload/"))
        assert [row.key for row in store.list_objects("upload/a_u/part-")] == [RECORD_KEY]
        assert [row.key for row in store.list_objects("")] == sorted(keys)
        assert list(store.list_objects("nothing/here")) == []

    def test_list_rows_equal_head(self, store: MultipartStore) -> None:
        self.raw_write(store, "data/a", b"12345")
        (row,) = store.list_objects("data/")
        head = store.head("data/a")
        assert (row.key, row.size, row.etag) == (head.key, head.size, head.etag)

    def test_parts_become_the_object(self, store: MultipartStore) -> None:
        data = self.bytes_of_parts(3)
        self.publish(store, "data/a", data)
        assert self.raw_read(store, "data/a") == data
        assert store.head("data/a").size == len(data)
        assert [row.key for row in store.list_objects("data/")] == ["data/a"]

    def test_etag_of_a_part_is_its_md5(self, store: MultipartStore) -> None:
        upload_id = store.create_multipart("data/a")
        (part,) = self.put_parts(store, "data/a", upload_id, b"hello")
        assert part.etag == md5_hex(b"hello")
        store.abort_multipart("data/a", upload_id)

    def test_etag_of_parts_is_no_md5(self, store: MultipartStore) -> None:
        self.publish(store, "data/a", self.bytes_of_parts(2))
        assert not is_md5_shaped(store.head("data/a").etag)

    def test_upload_id_is_safe_in_urls_and_names(self, store: MultipartStore) -> None:
        upload_id = store.create_multipart("data/a")
        assert upload_id
        assert set(upload_id) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-")  # protocol section 21, item 33
        assert upload_id != store.create_multipart("data/a")

    def test_parts_are_listed_by_number(self, store: MultipartStore) -> None:
        data = self.bytes_of_parts(3)
        upload_id = store.create_multipart("data/a")
        assert list(store.list_parts("data/a", upload_id)) == []
        third = self.put_parts(store, "data/a", upload_id, data, [3])
        first = self.put_parts(store, "data/a", upload_id, data, [1])
        assert list(store.list_parts("data/a", upload_id)) == [*first, *third]

    def test_part_is_found_by_number_and_etag(self, store: MultipartStore) -> None:
        upload_id = store.create_multipart("data/a")
        first, third = self.put_parts(store, "data/a", upload_id, self.bytes_of_parts(3), [1, 3])
        asked = ((1, first.etag), (3, third.etag), (2, third.etag), (4, third.etag), (3, first.etag), (3, ""))
        assert [store.holds_part("data/a", upload_id, *pair) for pair in asked] == [True, True, False, False, False, False]

    def test_part_sent_again_is_found(self, store: MultipartStore) -> None:
        upload_id = store.create_multipart("data/a")
        self.put_parts(store, "data/a", upload_id, b"old")
        (new,) = self.put_parts(store, "data/a", upload_id, b"new")
        assert store.holds_part("data/a", upload_id, 1, new.etag) is True

    def test_part_sent_again_replaces(self, store: MultipartStore) -> None:
        upload_id = store.create_multipart("data/a")
        (old,) = self.put_parts(store, "data/a", upload_id, b"old")
        (new,) = self.put_parts(store, "data/a", upload_id, b"new")
        assert list(store.list_parts("data/a", upload_id)) == [new]
        with pytest.raises(Conflict):
            store.complete_multipart("data/a", upload_id, [old])
        store.complete_multipart("data/a", upload_id, [new])
        assert self.raw_read(store, "data/a") == b"new"

    def test_unfinished_upload_publishes_nothing(self, store: MultipartStore) -> None:
        upload_id = store.create_multipart("data/a")
        self.put_parts(store, "data/a", upload_id, b"1")
        assert list(store.list_objects("")) == []
        with pytest.raises(ObjectNotFound):
            store.head("data/a")

    def test_upload_replaces_an_object(self, store: MultipartStore) -> None:
        self.raw_write(store, "data/a", b"small")
        self.publish(store, "data/a", self.bytes_of_parts(2))
        self.publish(store, "data/a", self.bytes_of_parts(3))
        assert self.raw_read(store, "data/a") == self.bytes_of_parts(3)
        store.write("data/a", b"small again")
        assert self.raw_read(store, "data/a") == b"small again"

    def test_published_object_is_deleted(self, store: MultipartStore) -> None:
        self.publish(store, "data/a", self.bytes_of_parts(2))
        store.delete("data/a")
        with pytest.raises(ObjectNotFound):
            store.head("data/a")
        assert list(store.list_objects("")) == []

    def test_unknown_upload_is_not_found(self, store: MultipartStore) -> None:
        upload_id = store.create_multipart("data/a")
        store.abort_multipart("data/a", upload_id)
        with pytest.raises(ObjectNotFound):
            list(store.list_parts("data/a", upload_id))
        with pytest.raises(ObjectNotFound):
            store.holds_part("data/a", upload_id, 1, md5_hex(b"1"))
        with pytest.raises(ObjectNotFound):
            store.complete_multipart("data/a", upload_id, [ListedPart(1, 1, md5_hex(b"1"))])

    def test_abort_is_quiet_and_repeatable(self, store: MultipartStore) -> None:
        upload_id = store.create_multipart("data/a")
        self.put_parts(store, "data/a", upload_id, b"1")
        store.abort_multipart("data/a", upload_id)
        store.abort_multipart("data/a", upload_id)
        assert list(store.list_multiparts("data/")) == []

    def test_abort_after_publishing_keeps_the_object(self, store: MultipartStore) -> None:
        upload_id = store.create_multipart("data/a")
        store.complete_multipart("data/a", upload_id, self.put_parts(store, "data/a", upload_id, b"1"))
        store.abort_multipart("data/a", upload_id)
        assert self.raw_read(store, "data/a") == b"1"

    def test_published_upload_is_not_found(self, store: MultipartStore) -> None:
        upload_id = store.create_multipart("data/a")
        parts = self.put_parts(store, "data/a", upload_id, b"1")
        store.complete_multipart("data/a", upload_id, parts)
        with pytest.raises(ObjectNotFound):
            list(store.list_parts("data/a", upload_id))

    @pytest.mark.parametrize("wrong", ["etag", "number", "order", "twice", "none"])
    def test_wrong_parts_conflict_and_stay(self, store: MultipartStore, wrong: str) -> None:
        upload_id = store.create_multipart("data/a")
        first, second = parts = self.put_parts(store, "data/a", upload_id, self.bytes_of_parts(2))
        given = {
            "etag": [first, ListedPart(2, second.size, first.etag)],
            "number": [first, second, ListedPart(3, second.size, second.etag)],
            "order": [second, first],
            "twice": [first, first],
            "none": [],
        }[wrong]
        with pytest.raises(Conflict):
            store.complete_multipart("data/a", upload_id, given)
        with pytest.raises(ObjectNotFound):
            store.head("data/a")
        assert list(store.list_parts("data/a", upload_id)) == parts

    def test_uploads_are_listed_until_finished(self, store: MultipartStore) -> None:
        before = time.time()
        first, second, other = (store.create_multipart(key) for key in ("data/a", "data/b", "else/c"))
        listed = list(store.list_multiparts("data/"))
        assert {(row.key, row.upload_id) for row in listed} == {("data/a", first), ("data/b", second)}
        assert all(abs(row.started_at - before) < 60 for row in listed)
        store.complete_multipart("data/a", first, self.put_parts(store, "data/a", first, b"1"))
        store.abort_multipart("data/b", second)
        assert list(store.list_multiparts("data/")) == []
        assert [row.upload_id for row in store.list_multiparts("")] == [other]

    def test_same_part_sent_by_many_is_whole(self, store: MultipartStore) -> None:
        bodies = [bytes([number]) * 100_000 for number in range(6)]
        upload_id = store.create_multipart("data/a")
        url = put_url(store, "data/a", upload_id, Part(1, 0, 100_000))
        with ThreadPoolExecutor(6) as pool:
            etags = set(pool.map(lambda body: self.send(url, body), bodies))
        assert etags == {md5_hex(body) for body in bodies}
        (part,) = store.list_parts("data/a", upload_id)
        store.complete_multipart("data/a", upload_id, [part])
        assert md5_hex(self.raw_read(store, "data/a")) == part.etag

    def test_readers_see_old_or_new(self, store: MultipartStore) -> None:
        sizes = (10, 20_000)
        self.raw_write(store, "a", b"\0" * sizes[0])
        stop = threading.Event()

        def replace() -> None:
            while not stop.is_set():
                for number, size in enumerate(sizes):
                    store.write("a", bytes([number]) * size)

        writer = threading.Thread(target=replace)
        writer.start()
        try:
            seen = {store.read("a") for _ in range(40)}
        finally:
            stop.set()
            writer.join()
        assert seen <= {bytes([number]) * size for number, size in enumerate(sizes)}

    @pytest.mark.parametrize("key", KEYS)
    def test_range_url_brings_the_range(self, store: MultipartStore, key: str) -> None:
        self.raw_write(store, key, b"0123456789")
        wanted = ByteRange(2, 3)
        url = get_url(store, key, wanted)
        assert (url.method, dict(url.headers)) == ("GET", {"Range": "bytes=2-4"})
        assert self.fetch(url, wanted) == b"234"

    def test_open_url_brings_any_range(self, store: MultipartStore) -> None:
        self.raw_write(store, "data/a", b"0123456789")
        url = get_url(store, "data/a")
        assert dict(url.headers) == {}
        assert self.fetch(url, ByteRange(0, 10)) == b"0123456789"
        assert self.fetch(url, ByteRange(9, 1)) == b"9"

    def test_ranges_cross_part_borders(self, store: MultipartStore) -> None:
        data = self.bytes_of_parts(3)
        self.publish(store, "data/a", data)
        border = self.min_part_bytes
        for offset, end in ((0, len(data)), (border - 1, border + 1), (border, 2 * border), (len(data) - 1, len(data))):
            wanted = ByteRange(offset, end - offset)
            assert self.fetch(get_url(store, "data/a", wanted), wanted) == data[offset:end]

    def test_urls_come_in_the_order_of_what_was_asked(self, store: MultipartStore) -> None:
        self.raw_write(store, "data/a", b"0123456789")
        ranges = [ByteRange(5, 2), None, ByteRange(0, 1)]
        urls = store.presign_gets("data/a", ranges, lifetime_s=60)
        assert [self.fetch(url, wanted or ByteRange(0, 10)) for url, wanted in zip(urls, ranges, strict=True)] == [
            b"56",
            b"0123456789",
            b"0",
        ]
        upload_id = store.create_multipart("data/a")
        parts = [Part(2, 3, 3, md5_hex(b"two")), Part(1, 0, 3, md5_hex(b"one"))]
        for url, data in zip(
            store.presign_parts("data/a", upload_id, parts, lifetime_s=60, content_md5=True), (b"two", b"one"), strict=True
        ):
            assert self.send(url, data) == md5_hex(data)
        assert [part.etag for part in store.list_parts("data/a", upload_id)] == [md5_hex(b"one"), md5_hex(b"two")]

    def test_unknown_digest_cannot_be_signed(self, store: MultipartStore) -> None:
        upload_id = store.create_multipart("data/a")
        with pytest.raises(ConfigurationError):
            store.presign_parts("data/a", upload_id, [Part(1, 0, 3)], lifetime_s=60, content_md5=True)

    def test_urls_say_when_they_expire(self, store: MultipartStore) -> None:
        now = time.time()
        upload_id = store.create_multipart("data/a")
        put = put_url(store, "data/a", upload_id, Part(1, 0, 1), lifetime_s=90)
        for url in (get_url(store, "data/a", lifetime_s=90), put):
            assert abs(url.expires_at - now - 90) < 5
            names = [name.lower() for name, _ in parse_qsl(urlsplit(url.url).query)]
            assert len(names) == len(set(names))  # protocol section 8, last item
            assert "expires" in names or {"x-amz-date", "x-amz-expires"} <= set(names)

    def test_content_md5_is_signed(self, store: MultipartStore) -> None:
        upload_id = store.create_multipart("data/a")
        url = put_url(store, "data/a", upload_id, Part(1, 0, 5), content_md5=md5_hex(b"hello"))
        assert dict(url.headers) == {"Content-MD5": "XUFAKrxLKna5cZ2REBfFkg=="}
        assert self.send(url, b"hello") == md5_hex(b"hello")


class SignedUrlContract(_StoreSuite):
    """What a URL must refuse, over plain HTTP. The flags are for stores, such as moto, that do not check."""

    verifies_signatures: ClassVar[bool] = True
    checks_content_md5: ClassVar[bool] = True

    @pytest.fixture
    def signed_get(self, store: MultipartStore) -> SignedUrl:
        self._needs_signatures()
        self.raw_write(store, "data/a", b"0123456789")
        self.raw_write(store, "data/b", b"abcdefghij")
        return get_url(store, "data/a", ByteRange(2, 3))

    def _needs_signatures(self) -> None:
        if not self.verifies_signatures:
            pytest.skip("this server checks no signatures")

    def test_right_request_is_served(self, signed_get: SignedUrl) -> None:
        response = request(signed_get)
        assert (response.status, response.data) == (206, b"234")
        assert response.headers["Content-Range"] == "bytes 2-4/10"

    def test_other_range_is_refused(self, signed_get: SignedUrl) -> None:
        refused(request(signed_get, headers={"Range": "bytes=0-9"}))

    def test_no_range_is_refused(self, signed_get: SignedUrl) -> None:
        refused(request(signed_get, headers={}))

    def test_other_key_is_refused(self, signed_get: SignedUrl) -> None:
        refused(request(signed_get, url=signed_get.url.replace("data/a", "data/b")))

    def test_other_method_is_refused(self, signed_get: SignedUrl, store: MultipartStore) -> None:
        refused(request(signed_get, method="PUT", data=b"x"))
        refused(request(signed_get, method="DELETE"))
        assert store.read("data/a") == b"0123456789"

    def test_tampered_signature_is_refused(self, signed_get: SignedUrl) -> None:
        last = signed_get.url[-1]
        refused(request(signed_get, url=signed_get.url[:-1] + ("0" if last != "0" else "1")))

    def test_later_expiry_is_refused(self, signed_get: SignedUrl) -> None:
        query = dict(parse_qsl(urlsplit(signed_get.url).query))
        name = "Expires" if "Expires" in query else "X-Amz-Expires"
        refused(request(signed_get, url=signed_get.url.replace(f"{name}={query[name]}", f"{name}={int(query[name]) + 1000}")))

    def test_unsigned_request_is_refused(self, signed_get: SignedUrl) -> None:
        refused(request(signed_get, url=signed_get.url.partition("?")[0]))

    def test_expired_url_is_refused(self, store: MultipartStore) -> None:
        self._needs_signatures()
        self.raw_write(store, "data/a", b"0123456789")
        url = get_url(store, "data/a", lifetime_s=1)
        deadline = time.monotonic() + 20
        while (response := request(url)).status == 200 and time.monotonic() < deadline:
            time.sleep(0.1)  # the only way to let a real server's clock go on
        refused(response)
        assert b"xpired" in response.data

    def test_refusal_repeats_no_secret(self, signed_get: SignedUrl) -> None:
        response = request(signed_get, headers={"Range": "bytes=0-9"})
        signature = signed_get.url.rpartition("ignature=")[2]
        assert signature.encode() not in response.data

    def test_other_part_is_refused(self, store: MultipartStore) -> None:
        self._needs_signatures()
        upload_id = store.create_multipart("data/a")
        url = put_url(store, "data/a", upload_id, Part(1, 0, 5))
        refused(request(url, url=url.url.replace("partNumber=1", "partNumber=2"), data=b"hello"))
        assert list(store.list_parts("data/a", upload_id)) == []

    def test_wrong_content_md5_is_refused(self, store: MultipartStore) -> None:
        if not self.checks_content_md5:
            pytest.skip("this server does not check Content-MD5")
        upload_id = store.create_multipart("data/a")
        url = put_url(store, "data/a", upload_id, Part(1, 0, 5), content_md5=md5_hex(b"hello"))
        assert request(url, data=b"HELLO").status == 400
        assert list(store.list_parts("data/a", upload_id)) == []

    def test_changed_content_md5_is_refused(self, store: MultipartStore) -> None:
        self._needs_signatures()
        upload_id = store.create_multipart("data/a")
        url = put_url(store, "data/a", upload_id, Part(1, 0, 5), content_md5=md5_hex(b"hello"))
        other = put_url(store, "data/a", upload_id, Part(1, 0, 5), content_md5=md5_hex(b"HELLO"))
        refused(request(url, data=b"HELLO", headers=other.headers))
        refused(request(url, data=b"HELLO", headers={}))
        assert list(store.list_parts("data/a", upload_id)) == []

    def test_part_of_aborted_upload_is_not_found(self, store: MultipartStore) -> None:
        upload_id = store.create_multipart("data/a")
        url = put_url(store, "data/a", upload_id, Part(1, 0, 5))
        store.abort_multipart("data/a", upload_id)
        assert request(url, data=b"hello").status == 404

    def test_missing_object_is_not_found(self, store: MultipartStore) -> None:
        self.raw_write(store, "data/b", b"1")
        assert request(get_url(store, "data/a")).status == 404

    def test_replaced_object_fails_if_match(self, store: MultipartStore) -> None:
        self.raw_write(store, "data/a", b"0123456789")
        etag = store.head("data/a").etag
        url = get_url(store, "data/a")
        assert request(url, headers={"If-Match": f'"{etag}"'}).status == 200
        self.raw_write(store, "data/a", b"9876543210")
        assert request(url, headers={"If-Match": f'"{etag}"'}).status == 412

    def test_range_behind_the_end_is_416(self, store: MultipartStore) -> None:
        self.raw_write(store, "data/a", b"0123456789")
        assert request(get_url(store, "data/a", ByteRange(10, 5))).status == 416

    def test_score_token_header_is_tolerated(self, store: MultipartStore) -> None:
        """Java clients send it to stores, also empty (protocol section 21, item 29)."""
        self.raw_write(store, "data/a", b"0123456789")
        url = get_url(store, "data/a")
        assert request(url, headers={"X-SCORE-TOKEN": ""}).data == b"0123456789"


def get_url(store: ObjectStore, key: str, byte_range: ByteRange | None = None, *, lifetime_s: float = 60) -> SignedUrl:
    return store.presign_gets(key, [byte_range], lifetime_s=lifetime_s)[0]


def put_url(
    store: SupportsMultipart, key: str, upload_id: str, part: Part, *, lifetime_s: float = 60, content_md5: str | None = None
) -> SignedUrl:
    """With `content_md5` (hex) the URL is for bytes of that MD5."""
    parts = [dataclasses.replace(part, md5=content_md5)]
    return store.presign_parts(key, upload_id, parts, lifetime_s=lifetime_s, content_md5=content_md5 is not None)[0]


def request(
    signed: SignedUrl,
    *,
    url: str | None = None,
    method: str | None = None,
    data: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> urllib3.BaseHTTPResponse:
    """The signed request over a connection of its own, with what is given in place of what was signed."""
    sent = dict(signed.headers if headers is None else headers)
    with urllib3.PoolManager(retries=False, timeout=30) as pool:
        return pool.urlopen(method or signed.method, url or signed.url, body=data, headers=sent, redirect=False)


def refused(response: urllib3.BaseHTTPResponse) -> None:
    assert response.status == 403, (response.status, response.data)
