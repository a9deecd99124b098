import errno
import json
import multiprocessing
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from score_core.checksum import md5_hex
from score_core.errors import AccessDenied, Conflict, NoSpaceError, ObjectNotFound, ServiceError, Unavailable, UrlExpiredError
from score_core.model import ByteRange, Part
from score_core.stores.base import ListedPart
from score_core.stores.local import LocalStore
from score_core.testing.stores import ObjectStoreContract, SignedUrlContract, get_url, put_url


class TestLocalStore(ObjectStoreContract, SignedUrlContract):
    @pytest.fixture
    def store(self, tmp_path):
        self.root = tmp_path / "store"
        store = LocalStore(self.root)
        yield store
        store.close()

    def raw_write(self, store, key, data):
        aside = self.root.parent / "aside"
        aside.write_bytes(data)
        (self.root / key).parent.mkdir(parents=True, exist_ok=True)
        aside.replace(self.root / key)

    def raw_read(self, store, key):
        path = self.root / key
        if not path.is_symlink():
            return path.read_bytes()
        manifest = json.loads(path.read_bytes())
        return b"".join((path.resolve().parent / f"part-{number:06d}.{md5}").read_bytes() for number, _, md5 in manifest["parts"])


@pytest.fixture
def store(tmp_path):
    store = LocalStore(tmp_path / "store", base_url="http://bytes.example.org", secret=b"s" * 32)
    yield store
    store.close()


def put(store, key, upload_id, number, data):
    with store.receive_part(key, upload_id, number) as writer:
        writer.write(data)
        writer.commit()
    return ListedPart(number, len(data), md5_hex(data))


def publish(store, key, *parts):
    upload_id = store.create_multipart(key)
    store.complete_multipart(key, upload_id, [put(store, key, upload_id, number, data) for number, data in enumerate(parts, 1)])
    return upload_id


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


# Keys

BAD_KEYS = [
    *("../x", "../../x", "/etc/cron.d/x", "..", ".", "", " ", "/", "a/../../b", "a/./b", "a//b", "a/", "/a"),  # B01-B03, B05
    *("..\\..\\x", "C:\\x", "\\\\host\\share"),  # B04
    *("a\0b", "a\nb", "a\rb", "a\x1b[31mb", "a\x7fb", "\ud800"),  # B06
    *("x" * 256, "é" * 128, "/".join(["x" * 200] * 6)),  # B08
    *(".objects/a/manifest.json", ".uploads/a", ".secret", ".aside/x"),
]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_bad_keys_never_become_paths(store, tmp_path, key):
    calls = [
        lambda: store.write(key, b"x"),
        lambda: store.read(key),
        lambda: store.head(key),
        lambda: store.delete(key),
        lambda: store.create_multipart(key),
        lambda: get_url(store, key, lifetime_s=1),
        lambda: put_url(store, key, "u", Part(1, 0, 1), lifetime_s=1),
        lambda: store.complete_multipart(key, "u", []),
        lambda: store.abort_multipart(key, "u"),
    ]
    for call in calls:
        with pytest.raises(ServiceError) as caught:
            call()
        assert caught.value.status == 400
        assert str(caught.value).isprintable()
    assert files(tmp_path) == []


@pytest.mark.parametrize("prefix", ["../", "/", "a/../../", "\0"])
def test_bad_prefixes_are_refused(store, prefix):
    with pytest.raises(ServiceError):
        list(store.list_objects(prefix))


@pytest.mark.parametrize("upload_id", ["..", ".", "", "a/b", "../x", "a\nb", "x" * 200, "ü"])
def test_bad_upload_ids_are_not_found(store, upload_id):
    with pytest.raises(ObjectNotFound):
        list(store.list_parts("a", upload_id))
    with pytest.raises(ObjectNotFound):
        store.receive_part("a", upload_id, 1)
    with pytest.raises(ObjectNotFound):
        store.complete_multipart("a", upload_id, [])


@pytest.mark.parametrize("number", [0, -1, 10_001])
def test_bad_part_numbers_are_refused(store, number):
    upload_id = store.create_multipart("a")
    with pytest.raises(ServiceError, match="1 to 10000"):
        put_url(store, "a", upload_id, Part(number, 0, 1), lifetime_s=1)


def test_upload_of_another_key_is_not_found(store):
    upload_id = store.create_multipart("data/a")
    with pytest.raises(ObjectNotFound):
        list(store.list_parts("data/b", upload_id))


def test_foreign_links_are_not_followed(store, tmp_path):
    secret = tmp_path / "passwd"
    secret.write_bytes(b"root")
    store.write("data/a", b"1")
    for name, target in (("out", secret), ("up", "../../passwd"), ("own", ".secret"), ("loop", "loop")):
        (tmp_path / "store/data" / name).symlink_to(target)
        with pytest.raises(ObjectNotFound):
            store.read(f"data/{name}")
    assert [row.key for row in store.list_objects("")] == ["data/a"]
    store.write("data/out", b"2")
    assert secret.read_bytes() == b"root"


def test_key_below_a_key_conflicts(store):
    store.write("data", b"1")
    with pytest.raises(Conflict):
        store.write("data/a", b"2")
    publish(store, "object", b"1")
    with pytest.raises(Conflict):
        store.write("object/a", b"2")
    with pytest.raises(ObjectNotFound):
        store.read("object/a")


def test_key_that_is_a_folder_conflicts(store):
    store.write("data/a", b"1")
    with pytest.raises(Conflict):
        store.write("data", b"2")
    store.delete("data")
    assert store.read("data/a") == b"1"


# What is on disk


def test_publishing_copies_no_bytes(store, tmp_path):
    upload_id = store.create_multipart("data/a")
    part = put(store, "data/a", upload_id, 1, b"bytes")
    (path,) = (tmp_path / "store/.objects" / upload_id).glob("part-*")
    inode = path.stat().st_ino
    store.complete_multipart("data/a", upload_id, [part])
    assert path.stat().st_ino == inode


def test_nothing_is_left_of_deleted_objects(store, tmp_path):
    publish(store, "data/a", b"1", b"2")
    publish(store, "data/a", b"3")
    store.write("data/a.meta", b"4")
    store.delete("data/a")
    store.delete("data/a.meta")
    assert files(tmp_path / "store") == [".aside/lock"]
    assert not (tmp_path / "store/data").exists()


def test_torn_part_leaves_nothing(store, tmp_path):
    upload_id = store.create_multipart("data/a")
    with suppress(ZeroDivisionError), store.receive_part("data/a", upload_id, 1) as writer:
        writer.write(b"half")
        1 / 0  # noqa: B018
    assert list(store.list_parts("data/a", upload_id)) == []
    assert list((tmp_path / "store/.objects" / upload_id).iterdir()) == []


def test_killed_put_leaves_no_part_and_no_litter_once_published(store, tmp_path):
    upload_id = store.create_multipart("data/a")
    writer = store.receive_part("data/a", upload_id, 1).__enter__()
    writer.write(b"half")
    os.close(writer._fd)  # what the kernel does with the descriptors of a killed process
    assert list(store.list_parts("data/a", upload_id)) == []
    part = put(store, "data/a", upload_id, 1, b"whole")
    store.complete_multipart("data/a", upload_id, [part])
    assert len(files(tmp_path / "store/.objects")) == 2


def test_late_put_cannot_change_a_published_object(store):
    upload_id = store.create_multipart("data/a")
    part = put(store, "data/a", upload_id, 1, b"right")
    with store.receive_part("data/a", upload_id, 1) as zombie:
        zombie.write(b"wrong")
        store.complete_multipart("data/a", upload_id, [part])
        with pytest.raises(FileNotFoundError):
            zombie.commit()
    assert store.read("data/a") == b"right"
    with pytest.raises(ObjectNotFound):
        store.receive_part("data/a", upload_id, 1)


def test_late_put_cannot_revive_an_aborted_upload(store, tmp_path):
    upload_id = store.create_multipart("data/a")
    with store.receive_part("data/a", upload_id, 1) as zombie:
        zombie.write(b"x")
        store.abort_multipart("data/a", upload_id)
        with pytest.raises(FileNotFoundError):
            zombie.commit()
    assert files(tmp_path / "store") == [".aside/lock"] or files(tmp_path / "store") == []


def test_newest_put_of_a_part_counts(store):
    upload_id = store.create_multipart("data/a")
    for data in (b"one", b"two", b"one"):
        last = put(store, "data/a", upload_id, 1, data)
        assert list(store.list_parts("data/a", upload_id)) == [last]


def test_reader_keeps_its_version_or_fails(store):
    publish(store, "data/a", b"1111", b"2222")
    before = store.open("data/a")
    publish(store, "data/a", b"3333", b"4444")
    with pytest.raises(FileNotFoundError):
        before.read(2, 6)
    assert store.open("data/a").read(2, 6) == b"3344"


def test_reader_of_a_plain_file_notices_replacement(store):
    store.write("a", b"1111")
    before = store.open("a")
    store.write("a", b"2222")
    with pytest.raises(OSError, match="changed"):
        before.read(0, 4)


def test_completing_goes_on_after_a_crash(store, tmp_path):
    upload_id = store.create_multipart("data/a")
    part = put(store, "data/a", upload_id, 1, b"1")
    marker = tmp_path / "store/.uploads" / upload_id
    text = marker.read_bytes()
    store.complete_multipart("data/a", upload_id, [part])
    marker.write_bytes(text)  # as if killed between the link and the removal of the marker
    store.complete_multipart("data/a", upload_id, [part])
    assert store.read("data/a") == b"1"
    marker.write_bytes(text)
    store.abort_multipart("data/a", upload_id)
    assert store.read("data/a") == b"1"
    assert list(store.list_multiparts("")) == []


def test_one_of_many_finishers_wins(store):
    upload_id = store.create_multipart("data/a")
    part = put(store, "data/a", upload_id, 1, b"1")

    def finish(_):
        try:
            store.complete_multipart("data/a", upload_id, [part])
        except ObjectNotFound:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(finish, range(8))) == 1
    assert store.read("data/a") == b"1"


def test_many_publishers_leave_one_object(store, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: publish(store, "data/a", bytes([number]) * 10), range(24)))
    assert len(set(store.read("data/a"))) == 1
    assert len(list((tmp_path / "store/.objects").iterdir())) == 1


def test_writers_and_deleters_of_one_folder_get_along(store):
    def work(number):
        for _ in range(20):
            store.write(f"data/deep/{number}", b"1")
            store.delete(f"data/deep/{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert list(store.list_objects("")) == []


def test_leftovers_are_swept(store, tmp_path):
    store.write("a", b"1")
    aside = tmp_path / "store/.aside"
    (aside / "dead-1").mkdir()
    (aside / "dead-1/part-000001.x").write_bytes(b"1")
    (aside / "new-young").write_bytes(b"1")
    (aside / "new-old").write_bytes(b"1")
    os.utime(aside / "new-old", (time.time() - 100_000,) * 2)
    LocalStore(tmp_path / "store")
    assert sorted(path.name for path in aside.iterdir()) == ["lock", "new-young"]


def test_full_disk_is_no_space(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)  # a full disk cannot be had without root
    with pytest.raises(NoSpaceError, match="free some space"):
        store.write("a", b"1")
    with pytest.raises(ObjectNotFound):
        store.read("a")


def test_check_says_what_is_wrong(store, tmp_path):
    with pytest.raises(ObjectNotFound, match="does not exist"):
        store.check()
    (tmp_path / "store").mkdir()
    store.check()


def test_reading_a_store_that_is_not_there_makes_nothing(store, tmp_path):
    assert list(store.list_objects("")) == []
    assert list(store.list_multiparts("")) == []
    store.delete("a")
    with pytest.raises(ObjectNotFound):
        store.read("a")
    assert list(tmp_path.iterdir()) == []


def test_etag_of_parts_is_s3s(store):
    publish(store, "data/a", b"1", b"2")
    expected = md5_hex(bytes.fromhex(md5_hex(b"1")) + bytes.fromhex(md5_hex(b"2"))) + "-2"
    assert store.head("data/a").etag == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), cut=st.tuples(st.integers(0, 240), st.integers(0, 240)))
def test_any_range_equals_the_bytes(store, sizes, cut):
    data = bytes(range(sum(sizes)))
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    publish(store, "data/a", *(data[start : start + size] for start, size in zip(starts, sizes, strict=True)))
    offset, end = sorted(min(value, len(data)) for value in cut)
    found = store.open("data/a")
    assert found.size == len(data)
    assert found.read(offset, end) == data[offset:end]


# Signing


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


def verify(store, signed, *, method=None, key=None, query=None, headers=None):
    path, _, text = signed.url.partition("?")
    return store.signer.verify(
        method or signed.method,
        key or path.removeprefix("http://bytes.example.org/"),
        text if query is None else query,
        signed.headers if headers is None else headers,
    )


def test_url_expires_at_its_second(tmp_path):
    clock = Clock()
    store = LocalStore(tmp_path, base_url="http://bytes.example.org", clock=clock)
    signed = get_url(store, "a", lifetime_s=10)
    assert "Expires=1000010" in signed.url
    clock.now = 1_000_009.9
    verify(store, signed)
    clock.now = 1_000_010.0
    with pytest.raises(UrlExpiredError):
        verify(store, signed)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "x",
        "Signature=",
        "Expires=9999999999&Signature=00",
        "{}&Expires=1",
        "{}&extra=1",
        "{}&&",
        "Expires=%FF&Signature=1",
        "Expires=٣&Signature=1",
    ],
)
def test_odd_queries_are_denied(store, query):
    signed = get_url(store, "a", lifetime_s=10)
    with pytest.raises(AccessDenied):
        verify(store, signed, query=query.format(signed.url.partition("?")[2]))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 10_000), digit=st.sampled_from("0123456789abcdefgXY&="))
def test_no_changed_character_of_a_part_url_is_accepted(store, where, digit):
    signed = put_url(store, "data/a", "upload", Part(3, 0, 77), lifetime_s=10, content_md5=md5_hex(b"x"))
    query = signed.url.partition("?")[2]
    changed = query[: (at := where % len(query))] + digit + query[at + 1 :]
    if changed == query:
        assert verify(store, signed).size == 77
    else:
        with pytest.raises(AccessDenied):
            verify(store, signed, query=changed)


def test_head_is_permitted_where_get_is(store):
    signed = get_url(store, "a", ByteRange(0, 1), lifetime_s=10)
    assert verify(store, signed, method="HEAD").byte_range == "bytes=0-0"


def test_key_of_the_folder_is_private_and_shared(tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        urls = set(pool.map(_signature, [tmp_path / "store"] * 16, chunksize=1))
    assert len(urls) == 1
    assert stat.S_IMODE((tmp_path / "store/.secret").stat().st_mode) == 0o600
    assert files(tmp_path / "store") == [".secret"]


def _signature(root: Path) -> str:
    return get_url(LocalStore(root, base_url="http://h", clock=lambda: 0.0), "a", lifetime_s=10).url


def test_key_of_wrong_size_is_refused(tmp_path):
    (tmp_path / ".secret").write_bytes(b"short")
    with pytest.raises(Unavailable, match="must hold 32 bytes"):
        get_url(LocalStore(tmp_path, base_url="http://h"), "a", lifetime_s=10)


def test_key_that_others_can_read_is_warned_of(tmp_path, caplog):
    path = tmp_path / ".secret"
    path.write_bytes(b"s" * 32)
    path.chmod(0o644)
    get_url(LocalStore(tmp_path, base_url="http://h"), "a", lifetime_s=10)
    assert "chmod 600" in caplog.text


def test_repr_shows_no_query(store):
    assert "Signature" not in repr(get_url(store, "a", lifetime_s=10))


def test_folder_that_goes_while_it_is_made(store, monkeypatch):
    """`mkdir` finds it there, and when it looks whether it is a folder, a deleter has removed it."""
    make = os.mkdir
    met: list[object] = []

    def racing(path, *mode):
        if str(path).endswith("deep") and not met:
            met.append(path)
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        make(path, *mode)

    monkeypatch.setattr(os, "mkdir", racing)
    store.write("data/deep/5", b"bytes")
    assert (len(met), store.read("data/deep/5")) == (1, b"bytes")
