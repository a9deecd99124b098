from collections import Counter

import pytest

from score_core.checksum import md5_hex
from score_core.errors import AccessDenied, ChangedError, ObjectNotFound, PartMismatch, PermanentError, TransientError, UrlExpiredError
from score_core.model import ByteRange, Part
from score_core.testing.memory import MemoryStore, MemoryTransport
from score_core.testing.stores import ObjectStoreContract, get_url, put_url


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


class TestMemoryStore(ObjectStoreContract):
    @pytest.fixture
    def store(self):
        store = MemoryStore()
        self.transport = MemoryTransport(store)
        return store

    def send(self, url, data):
        return self.transport.put(len(data), url, [data]).etag

    def fetch(self, url, byte_range):
        data = bytearray()
        self.transport.get(byte_range, url, data.extend)
        return bytes(data)


@pytest.fixture
def store(clock):
    store = MemoryStore(clock=clock)
    store.write("a", b"0123456789")
    return store


@pytest.fixture
def transport(store):
    return MemoryTransport(store)


def test_expired_urls_are_refused(store, transport, clock):
    get = get_url(store, "a", ByteRange(0, 1), lifetime_s=10)
    put = put_url(store, "a", store.create_multipart("a"), Part(1, 0, 1), lifetime_s=10)
    clock.now += 10
    with pytest.raises(UrlExpiredError):
        transport.get(ByteRange(0, 1), get, print)
    with pytest.raises(UrlExpiredError):
        transport.put(1, put, [b"x"])


def test_other_range_and_method_are_refused(store, transport):
    get = get_url(store, "a", ByteRange(0, 1), lifetime_s=10)
    put = put_url(store, "a", store.create_multipart("a"), Part(1, 0, 1), lifetime_s=10)
    with pytest.raises(AccessDenied):
        transport.get(ByteRange(0, 2), get, print)
    with pytest.raises(AccessDenied):
        transport.get(ByteRange(0, 1), put, print)
    with pytest.raises(AccessDenied):
        transport.put(1, get, [b"x"])


def test_replaced_object_is_changed(store, transport):
    etag = store.head("a").etag
    store.write("a", b"9876543210")
    with pytest.raises(ChangedError):
        transport.get(ByteRange(0, 1), get_url(store, "a", lifetime_s=10), print, if_match=etag)


def test_missing_things_are_not_found(store, transport):
    with pytest.raises(ObjectNotFound):
        transport.get(ByteRange(0, 1), get_url(store, "b", lifetime_s=10), print)
    with pytest.raises(ObjectNotFound):
        transport.put(1, put_url(store, "a", "gone", Part(1, 0, 1), lifetime_s=10), [b"x"])


def test_short_object_is_transient_after_what_there_is(store, transport):
    data = bytearray()
    with pytest.raises(TransientError):
        transport.get(ByteRange(8, 5), get_url(store, "a", lifetime_s=10), data.extend)
    assert data == b"89"


def test_wrong_size_and_digest_store_nothing(store, transport):
    upload_id = store.create_multipart("a")
    url = put_url(store, "a", upload_id, Part(1, 0, 2), lifetime_s=10, content_md5=md5_hex(b"ok"))
    with pytest.raises(PermanentError):
        transport.put(1, url, [b"o"])
    with pytest.raises(PartMismatch):
        transport.put(2, url, [b"k", b"o"])
    assert list(store.list_parts("a", upload_id)) == []


def test_calls_are_counted(clock):
    store = MemoryStore(clock=clock)
    store.write("a", b"")
    store.read("a")
    store.read("a")
    assert store.calls == Counter(write=1, read=2)
