"""Every fault that a network, a store or a disk can bring, with its expected number. Parts of 64 KiB throughout."""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import score_core
from score_core.errors import (
    AccessDenied,
    ChangedError,
    Conflict,
    LocalFileError,
    NoSpaceError,
    NotResumableError,
    ObjectMismatch,
    ObjectNotFound,
    PartMismatch,
    PermanentError,
    ScoreError,
    TransientError,
    Unverifiable,
)
from score_core.model import ByteRange, SignedUrl
from score_core.repository.direct import DirectRepository
from score_core.repository.layout import Keys
from score_core.stores.local import LocalStore
from score_core.testing.faults import (
    Answer,
    Call,
    Disguise,
    Fault,
    FaultProxy,
    Flip,
    IgnoreRange,
    Longer,
    LoseReply,
    Reset,
    Short,
    Stall,
    Trickle,
    WrongRange,
    busy,
    denied,
    expired,
    is_get,
    is_put,
    moves_part,
    s3_error,
    share,
    without_etag,
)
from score_core.transfer.engine import Engine
from score_core.transfer.http import HttpTransport

PART = 64 << 10
SIZE = 64 * PART

# Faults that meet part 3 twice, and then are over: the file is right, part 3 was asked for three times, the others once.
PASSING: list[Fault] = [
    Reset(after=0),
    Reset(after=1),
    Reset(after=PART // 2),
    Reset(after=PART - 1),
    Short(by=1),
    Short(by=PART),
    Short(by=1, announced=False),
    Longer(by=1),
    Longer(by=1, announced=False),
    Longer(by=3 * PART),
    WrongRange(shift=1),
    WrongRange(shift=-PART),
    Flip(at=0),
    Flip(at=PART - 1),
    *(busy(status) for status in (408, 429, 500, 502, 503, 504)),
    s3_error(400, "RequestTimeout"),
    expired(),
    s3_error(400, "ExpiredToken"),
]


def named(fault: object) -> str:
    """The same in every process: `repr` of a fault that holds a function has an address in it."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(fault))


@pytest.mark.parametrize("fault", PASSING, ids=named)
def test_passing_fault_of_a_get_costs_that_part_alone(rig: Any, fault: Fault) -> None:
    data = rig.put(8 * PART)
    rig.proxy.inject(fault, when=rig.get(3), times=2)
    report = rig.download(validation="parts")
    assert rig.target.read_bytes() == data
    assert rig.tries() == {number: 3 if number == 3 else 1 for number in range(1, 9)}
    assert (report.bytes_moved, rig.progress.moved, rig.leftovers) == (len(data), len(data), {"x.bam"})


@pytest.mark.parametrize(
    "fault",
    [
        Reset(after=0),
        Reset(after=PART // 2),
        LoseReply(),
        Flip(at=17),
        without_etag(),
        busy(500),
        busy(503),
        busy(429),
        expired(),
        s3_error(400, "RequestTimeout"),
    ],
    ids=named,
)
def test_passing_fault_of_a_put_costs_that_part_alone(rig: Any, fault: Fault) -> None:
    path = rig.source(8 * PART)
    rig.proxy.inject(fault, when=rig.put_of(3), times=2)
    rig.upload(path)
    assert rig.stored() == path.read_bytes()
    assert rig.tries() == {number: 3 if number == 3 else 1 for number in range(1, 9)}
    assert rig.progress.moved == 8 * PART
    rig.assert_nothing_unfinished()


@pytest.mark.parametrize("validation", ["parts", "whole", "both"])
def test_flipped_bit_moves_its_part_again(rig: Any, validation: str) -> None:  # F25
    data = rig.put(8 * PART)
    rig.proxy.inject(Flip(at=1000), when=rig.get(5), times=1)
    rig.download(validation=validation)
    assert rig.target.read_bytes() == data
    assert rig.tries() == {number: 2 if number == 5 else 1 for number in range(1, 9)}


def test_persistent_flip_ends_with_both_digests(rig: Any) -> None:  # F26
    rig.put(8 * PART)
    rig.proxy.inject(Flip(at=1000), when=rig.get(5))
    with pytest.raises(PartMismatch) as caught:
        rig.download(validation="parts")
    assert rig.tries()[5] == 5
    assert caught.value.exit_code == 6
    assert all(text in str(caught.value) for text in ("art 5", caught.value.expected, caught.value.actual, "5 tries"))
    assert not rig.target.exists()


@pytest.mark.parametrize("known", [True, False])
def test_persistent_flip_never_passes_the_whole_md5(rig: Any, known: bool) -> None:
    rig.put(8 * PART)
    if not known:
        rig.forget_md5s()
    rig.proxy.inject(Flip(at=1000), when=rig.get(5))
    with pytest.raises(ObjectMismatch):
        rig.download(validation="whole")
    assert not rig.target.exists()
    rig.proxy.heal()
    rig.download(validation="whole")
    assert rig.target.read_bytes() == rig.stored()


def test_flip_of_an_upload_that_stays_is_refused(rig: Any) -> None:
    path = rig.source(4 * PART)
    rig.proxy.inject(Flip(at=0), when=rig.put_of(2))
    with pytest.raises(PartMismatch, match="part 2"):
        rig.upload(path)
    assert rig.tries()[2] == 5
    rig.assert_nothing_published()


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("way", ["download", "upload"])
def test_store_that_fails_a_fifth_of_the_time_is_outlasted(rig: Any, status: int, way: str) -> None:  # F30
    path = rig.source(SIZE)
    if way == "download":
        rig.put(SIZE)
    rig.proxy.inject(busy(status), when=share(0.2, random.Random(status)))
    rig.download() if way == "download" else rig.upload(path)
    assert rig.stored() == path.read_bytes()
    assert way == "upload" or rig.target.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("way", ["download", "upload"])
@pytest.mark.parametrize("seed", range(3))
def test_resets_in_a_third_of_the_requests(rig: Any, seed: int, way: str) -> None:  # F17
    path = rig.source(SIZE)
    if way == "download":
        rig.put(SIZE)
    rng = random.Random(seed)
    for number in rng.sample(range(1, 65), 19):
        rig.proxy.inject(Reset(after=rng.randrange(PART)), when=rig.get(number) if way == "download" else rig.put_of(number), times=1)
    rig.download() if way == "download" else rig.upload(path)
    assert (rig.target.read_bytes() if way == "download" else rig.stored()) == path.read_bytes()
    assert rig.proxy.moved_bytes <= 1.3 * SIZE
    assert sum(rig.tries().values()) == 64 + 19


@pytest.mark.parametrize("fault", [Stall(after=0), Stall(after=PART // 2), Trickle(1000)], ids=named)
def test_stalled_download_is_taken_away(hasty_rig: Any, fault: Fault) -> None:  # F18, F19
    rig = hasty_rig
    data = rig.put(16 * PART)
    rig.proxy.inject(fault, when=share(1, random.Random(1), lambda seen: is_get(seen) and seen.offset % (8 * PART) == 0), times=2)
    began = time.monotonic()
    rig.download()
    assert rig.target.read_bytes() == data
    assert 1 <= time.monotonic() - began < 4
    assert sum(rig.tries().values()) == 18


@pytest.mark.parametrize("fault", [Stall(after=0), Stall(after=PART // 2), Trickle(1)], ids=named)
def test_stalled_upload_is_taken_away(hasty_rig: Any, fault: Fault) -> None:
    rig = hasty_rig
    path = rig.source(8 * PART)
    rig.proxy.inject(fault, when=rig.put_of(3), times=1)
    began = time.monotonic()
    rig.upload(path)
    assert rig.stored() == path.read_bytes()
    assert time.monotonic() - began < 4


def test_big_upload_into_a_store_that_stops_reading(tmp_path: Path) -> None:
    """More bytes than the socket buffers take: the sender itself blocks, not the wait for the answer."""
    with FaultProxy("http://127.0.0.1:1") as proxy:
        proxy.inject(Stall(after=1000))
        transport = HttpTransport(connect_timeout_s=1, stall_s=1)
        url = SignedUrl("PUT", f"{proxy.url}/x?partNumber=1", time.time() + 60)
        with pytest.raises(TransientError):
            transport.put(64 << 20, url, (bytes(1 << 20) for _ in range(64)))
        transport.close()


def test_endless_trickle_of_a_head_is_given_up(hasty_rig: Any) -> None:
    rig = hasty_rig
    rig.put(PART)
    rig.policy["attempts"] = 1
    rig.proxy.inject(Stall(after=0))
    with pytest.raises(TransientError, match="Timed out"):
        rig.download()


def test_urls_of_two_seconds_last_for_64_parts(short_lived_rig: Any) -> None:  # F11
    rig = short_lived_rig
    data = rig.put(SIZE)
    rig.workers = 2
    rig.proxy.inject(Call(lambda: time.sleep(0.1)))  # 64 parts two at a time: 3.2 s, well over one life
    report = rig.download()
    assert rig.target.read_bytes() == data
    assert report.signings <= 2 * (64 / 32) + 2
    assert sum(rig.tries().values()) <= 66


def test_urls_of_two_seconds_last_for_64_parts_up(short_lived_rig: Any) -> None:  # F11
    rig = short_lived_rig
    path = rig.source(SIZE)
    rig.workers = 2
    rig.proxy.inject(Call(lambda: time.sleep(0.1)), when=moves_part)
    report = rig.upload(path)
    assert rig.stored() == path.read_bytes()
    assert report.signings <= 2 * (64 / 32) + 2
    assert sum(rig.tries().values()) <= 66


def test_full_store_is_told_at_once(rig: Any) -> None:
    path = rig.source(4 * PART)
    rig.proxy.inject(s3_error(507, "InsufficientStorage"))
    with pytest.raises(NoSpaceError, match="own disk is full") as caught:
        rig.upload(path)
    assert caught.value.exit_code == 8
    assert max(rig.tries().values()) == 1


def test_urls_that_expire_on_the_way_are_signed_again(rig: Any) -> None:  # F12
    data = rig.put(SIZE)
    rig.proxy.inject(expired(), times=3)
    report = rig.download()
    assert rig.target.read_bytes() == data
    # Each refusal costs a URL of its own, and those of its siblings that were dropped with it: a late one drops new ones, too.
    assert report.signings <= 2 + 2 * 3
    assert rig.proxy.moved_bytes == SIZE + sum(seen.sent for seen in rig.proxy.moves() if seen.status == 403)


def test_url_that_is_always_expired_ends(rig: Any) -> None:  # F13: no endless refresh
    rig.put(4 * PART)
    rig.proxy.inject(expired())
    with pytest.raises(ScoreError, match="expired"):
        rig.download()
    assert max(rig.tries().values()) <= 4  # three refreshes


@pytest.mark.parametrize("way", ["download", "upload"])
def test_denial_is_asked_twice_at_most(rig: Any, way: str) -> None:  # F16
    path = rig.source(SIZE)
    if way == "download":
        rig.put(SIZE)
    rig.proxy.inject(denied())
    with pytest.raises(AccessDenied) as caught:
        rig.download() if way == "download" else rig.upload(path)
    assert max(rig.tries().values()) <= 2
    assert caught.value.exit_code == 4
    assert sum(rig.tries().values()) <= 2 * rig.workers


def test_denial_after_other_faults_gets_its_second_chance(rig: Any) -> None:
    data = rig.put(2 * PART)
    rig.proxy.inject(busy(500), when=rig.get(1), times=3)
    rig.proxy.inject(denied(), when=rig.get(1), times=1)
    rig.download()
    assert rig.target.read_bytes() == data


def test_damage_after_other_faults_gets_its_second_chance(rig: Any) -> None:
    data = rig.put(2 * PART)
    rig.proxy.inject(busy(500), when=rig.get(1), times=6)
    rig.proxy.inject(Flip(), when=rig.get(1), times=1)
    rig.download(validation="parts")
    assert rig.target.read_bytes() == data


@pytest.mark.slow
def test_retry_after_is_honoured_by_all(rig: Any) -> None:  # F31
    data = rig.put(SIZE)
    rig.proxy.inject(busy(429, retry_after_s=3), when=lambda seen: seen.offset == 0, times=1)
    rig.download()
    assert rig.target.read_bytes() == data
    refused = next(seen for seen in rig.proxy.moves() if seen.status == 429)
    before = [seen for seen in rig.proxy.moves() if refused.at + 0.2 < seen.at < refused.at + 3]
    assert before == []
    assert max(seen.at for seen in rig.proxy.moves()) - refused.at < 5


@pytest.mark.parametrize("value", ["²", "soon", "-1", "", "1e3", "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 99 Oct 99999 07:28:00 GMT"])
def test_odd_retry_after_is_no_obstacle(rig: Any, value: str) -> None:
    data = rig.put(2 * PART)
    rig.proxy.inject(s3_error(503, "SlowDown", Retry_After=value), when=rig.get(2), times=1)
    rig.download()
    assert rig.target.read_bytes() == data


def test_store_without_ranges_is_refused_before_a_byte_is_written(rig: Any) -> None:  # F23
    rig.put(8 * PART)
    rig.proxy.inject(IgnoreRange())
    with pytest.raises(PermanentError, match="ignores byte ranges"):
        rig.download()
    part = rig.target.with_name("x.bam.part")
    assert part.read_bytes() == bytes(8 * PART)


def test_whole_object_as_one_part_may_come_as_200(rig: Any) -> None:
    data = rig.put(PART)
    rig.proxy.inject(IgnoreRange())
    rig.download()
    assert rig.target.read_bytes() == data


def test_extra_bytes_never_reach_the_file(rig: Any) -> None:  # F22
    rig.put(4 * PART)
    rig.policy["attempts"] = 1
    rig.proxy.inject(Longer(by=PART), when=rig.get(2))
    with pytest.raises(TransientError):
        rig.download()
    data = rig.target.with_name("x.bam.part").read_bytes()
    assert len(data) == 4 * PART
    assert b"\xee" * 100 not in data


def test_redirect_is_not_followed(rig: Any) -> None:
    rig.put(2 * PART)
    rig.proxy.inject(Answer(307, headers={"Location": "http://169.254.169.254/"}))
    with pytest.raises(PermanentError, match="307"):
        rig.download()


@pytest.mark.parametrize("validation", ["parts", "whole", "off"])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_object_that_is_replaced_meanwhile_is_never_mixed(rig: Any, validation: str, after: int) -> None:  # F28
    rig.put(8 * PART)
    spec = rig.describe()
    rig.workers = 1
    rig.proxy.inject(Call(lambda: rig.put(8 * PART, seed=2, overwrite=True)), when=lambda seen: seen.offset == after * PART, times=1)
    with pytest.raises(ChangedError):
        rig.download(spec, validation=validation)
    assert not rig.target.exists()
    rig.proxy.heal()
    rig.download(validation=validation)
    assert rig.target.read_bytes() == rig.stored()


def test_replaced_object_is_noticed_without_if_match(rig: Any) -> None:
    """A store, or a proxy before it, that drops the condition still tells its ETag."""
    rig.put(8 * PART)
    spec = rig.describe()
    rig.proxy.inject(ForgetCondition())
    rig.put(8 * PART, seed=2, overwrite=True)
    with pytest.raises(ChangedError):
        rig.download(spec, validation="off")
    assert not rig.target.exists()


class ForgetCondition(Fault):
    def play(self, exchange: Any) -> None:
        del exchange._handler.headers["If-Match"]
        super().play(exchange)


def test_object_that_is_deleted_meanwhile_is_not_found(rig: Any) -> None:  # F29
    rig.put(8 * PART)
    rig.workers = 1
    rig.proxy.inject(Call(lambda: rig.origin.delete(Keys().data(rig.id))), when=rig.get(3), times=1)
    with pytest.raises(ObjectNotFound) as caught:
        rig.download()
    assert caught.value.exit_code == 5
    assert rig.leftovers == {"x.bam.part", "x.bam.part.journal"}


def test_wrong_promise_is_never_published(rig: Any) -> None:
    path = rig.source(8 * PART)
    with pytest.raises(ObjectMismatch) as caught:
        rig.upload(path, md5_hex="a" * 32)
    assert caught.value.expected == "a" * 32
    rig.assert_nothing_published()
    rig.assert_nothing_unfinished()


CHANGES: dict[str, Callable[[Path], object]] = {
    "grows": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "shrinks": lambda path: os.truncate(path, path.stat().st_size - 1),
    "is rewritten": lambda path: path.write_bytes(random.Random(9).randbytes(path.stat().st_size)),
    "is replaced": lambda path: _replace(path),  # noqa: PLW0108  # defined below
    "is rewritten in place with its old time": lambda path: _rewrite_quietly(path),  # noqa: PLW0108  # defined below
    "is removed": lambda path: path.unlink(),
}


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(random.Random(9).randbytes(path.stat().st_size))
    other.replace(path)


def _rewrite_quietly(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"other bytes")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("number", [1, 8])
@pytest.mark.parametrize("change", CHANGES)
def test_source_that_changes_is_not_published(rig: Any, change: str, number: int) -> None:  # F39
    path = rig.source(8 * PART)
    rig.workers = 1
    rig.proxy.inject(Call(lambda: CHANGES[change](path)), when=rig.put_of(number), times=1)
    with pytest.raises((ChangedError, ObjectMismatch)):
        rig.upload(path)
    rig.assert_nothing_published()


def test_upload_that_is_aborted_by_others_says_so(rig: Any) -> None:
    path = rig.source(8 * PART)
    rig.workers = 1
    rig.proxy.inject(Call(lambda: rig.repository.abort(rig.id)), when=rig.put_of(4), times=1)
    with pytest.raises(NotResumableError, match="run the same command again") as caught:
        rig.upload(path)
    assert caught.value.exit_code == 10
    rig.upload(path)
    assert rig.stored() == path.read_bytes()
    rig.assert_nothing_unfinished()


@pytest.mark.parametrize("shape", ["kms", "opaque", "composite"])
def test_store_with_other_etags_is_held_to_content_md5(rig: Any, shape: str) -> None:
    path = rig.source(8 * PART)
    disguise = Disguise(LocalStore(rig.folder / "bucket", base_url=rig.proxy.url), shape)
    rig.proxy.inject(disguise.fault, when=is_put)
    rig.upload(path, repository=DirectRepository(disguise.store, part_size_bytes=PART))
    assert rig.stored() == path.read_bytes()
    rig.assert_nothing_unfinished()


def test_damage_on_the_way_to_such_a_store_is_sent_again(rig: Any) -> None:
    path = rig.source(8 * PART)
    rig.workers = 1
    disguise = Disguise(LocalStore(rig.folder / "bucket", base_url=rig.proxy.url), "kms")
    rig.proxy.inject(Flip(at=3), when=rig.put_of(6), times=1)
    rig.proxy.inject(disguise.fault, when=is_put)
    rig.upload(path, repository=DirectRepository(disguise.store, part_size_bytes=PART))
    assert rig.stored() == path.read_bytes()
    assert rig.tries()[6] == 2


class Gullible(Fault):
    """Answers any PUT with success and a made-up ETag, and never looks at Content-MD5."""

    def play(self, exchange: Any) -> None:
        exchange.receive()
        Answer(200, headers={"ETag": '"opaque"'}).play(exchange)


def test_store_that_proves_nothing_is_refused(rig: Any) -> None:
    path = rig.source(2 * PART)
    rig.proxy.inject(Gullible(), when=is_put)
    with pytest.raises(PermanentError, match="neither answers MD5s as ETags nor checks Content-MD5"):
        rig.upload(path)
    rig.assert_nothing_published()


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 3 * PART, 3 * PART + 1])
@pytest.mark.parametrize("validation", ["auto", "parts", "whole", "both", "off"])
def test_every_size_goes_there_and_back(rig: Any, size: int, validation: str) -> None:
    path = rig.source(size)
    rig.upload(path)
    report = rig.download(validation=validation)
    assert rig.target.read_bytes() == path.read_bytes()
    assert (report.size, report.bytes_moved, rig.leftovers) == (size, size, {"x.bam"})
    rig.assert_nothing_unfinished()


@pytest.mark.parametrize("validation", ["auto", "parts", "whole", "both"])
def test_object_without_digests_is_unverifiable(rig: Any, validation: str) -> None:
    rig.put(2 * PART)
    rig.forget_md5s(whole=True)
    with pytest.raises(Unverifiable, match="--validate off"):
        rig.download(validation=validation)
    assert rig.leftovers == set()
    rig.download(validation="off")
    assert rig.target.read_bytes() == rig.stored()


def test_recorded_md5_that_is_wrong_ends_without_refetching(rig: Any) -> None:
    rig.put(4 * PART)
    meta_key = Keys().meta(rig.id)
    meta = rig.origin.read(meta_key)
    rig.origin.write(meta_key, meta.replace(rig.describe().md5.encode(), b"a" * 32))
    with pytest.raises(ObjectMismatch):
        rig.download(validation="whole")
    assert set(rig.tries().values()) == {1}
    assert not rig.target.exists()


def hold(at_it: threading.Event, go: threading.Event) -> None:
    at_it.set()
    go.wait(10)


def test_second_download_to_the_same_file_is_told(rig: Any) -> None:  # F38
    data = rig.put(4 * PART)
    at_it, go = threading.Event(), threading.Event()
    rig.proxy.inject(Call(lambda: hold(at_it, go)), when=rig.get(1), times=1)
    first = threading.Thread(target=rig.download)
    first.start()
    assert at_it.wait(10)
    with pytest.raises(Conflict, match="Another process is downloading"):
        rig.download()
    go.set()
    first.join()
    assert rig.target.read_bytes() == data


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_missing_space_is_noticed_before(rig: Any, tiny_disk: Path) -> None:
    rig.put(8 * PART)
    with pytest.raises(NoSpaceError, match="524,288 bytes are missing"):
        rig.engine.download(rig.describe(), tiny_disk / "x.bam")
    assert rig.tries() == {}


def test_disk_that_fills_up_meanwhile_is_told_and_resumed(rig: Any, tiny_disk: Path) -> None:  # F40
    data = rig.put(3 * PART)
    ballast = tiny_disk / "ballast"
    rig.workers = 1
    rig.proxy.inject(Call(lambda: ballast.write_bytes(bytes(96 << 10))), when=rig.get(2), times=1)
    began = time.monotonic()
    with pytest.raises(NoSpaceError, match="run the same command again to resume") as caught:
        rig.engine.download(rig.describe(), tiny_disk / "x.bam")
    assert caught.value.exit_code == 8
    assert time.monotonic() - began < 5
    ballast.unlink()
    rig.proxy.forget()
    rig.engine.download(rig.describe(), tiny_disk / "x.bam")
    assert (tiny_disk / "x.bam").read_bytes() == data
    assert rig.tries() == {3: 1}


def test_file_size_limit_is_one_sentence(rig: Any) -> None:  # F41
    rig.put(4 * PART)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * PART, old[1]))
    try:
        with pytest.raises(LocalFileError, match="limit") as caught:
            rig.download()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG


def test_target_that_became_a_directory_keeps_the_bytes(rig: Any) -> None:  # F42
    data = rig.put(4 * PART)
    rig.proxy.inject(Call(rig.target.mkdir), when=rig.get(4), times=1)
    with pytest.raises(LocalFileError, match="directory"):
        rig.download()
    rig.target.rmdir()
    rig.proxy.forget()
    rig.download()
    assert rig.target.read_bytes() == data
    assert rig.tries() == {}


@pytest.mark.slow
def test_ten_thousand_parts(tmp_path: Path) -> None:
    """The object is put there whole: a folder store lists a folder for each recorded part, which is not what is tested."""
    store = LocalStore(tmp_path / "bucket")
    repository = DirectRepository(store, part_size_bytes=7)
    transport = HttpTransport()
    data = random.Random(3).randbytes(7 * 10_000 - 1)
    store.write(Keys().data("1-2-3-4-5"), data)
    report = Engine(repository, transport).download(repository.describe("1-2-3-4-5"), tmp_path / "y", validation="off")
    assert (tmp_path / "y").read_bytes() == data
    assert report.parts == 10_000
    assert report.signings <= 1.1 * 10_000 / 32  # parts that are asked for out of order begin batches of their own
    transport.close()
    store.close()


ROOT = str(Path(score_core.__file__).parents[1])
MEMORY = """
import resource, sys
from pathlib import Path
from score_core.repository.direct import DirectRepository
from score_core.stores.local import LocalStore
from score_core.transfer.engine import Engine
from score_core.transfer.http import HttpTransport
from score_core.operations import file_md5
folder, way, size, url = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
engine = Engine(DirectRepository(LocalStore(folder / "bucket", base_url=url), part_size_bytes=8 << 20), HttpTransport())
path, object_id = folder / "sparse", f"1-2-3-4-{size:x}"
if way == "upload":
    with path.open("wb") as file:
        file.truncate(size)
    engine.upload(path, object_id, md5=file_md5(path))
else:
    engine.download(engine.repository.describe(object_id), folder / "out", validation="both")
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_memory_is_flat(tmp_path: Path) -> None:  # F52
    store = LocalStore(tmp_path / "bucket")
    peaks = {}
    for way in ("upload", "download"):
        for mib in (64, 256):
            command = [sys.executable, "-c", MEMORY, str(tmp_path), way, str(mib << 20), store.base_url]
            done = subprocess.run(command, capture_output=True, check=True, text=True, env={**os.environ, "PYTHONPATH": ROOT})
            peaks[way, mib] = int(done.stdout)
    store.close()
    for way in ("upload", "download"):
        assert peaks[way, 256] - peaks[way, 64] < 16 << 10  # KiB
        assert peaks[way, 256] < 128 << 10


def test_no_fault_shows_a_signature(rig: Any) -> None:
    """Whatever goes wrong, neither the error nor what progress heard holds a piece of a signed URL."""
    rig.put(4 * PART)
    shown: list[str] = []
    rig.policy["attempts"] = 2
    for fault in (
        Reset(),
        denied(),
        expired(),
        busy(503),
        IgnoreRange(),
        Short(),
        WrongRange(),
        Answer(400, b"<Code>X</Code>?Signature=abc"),
    ):
        rig.proxy.inject(fault)
        with pytest.raises(ScoreError) as caught:
            rig.download()
        shown += [str(caught.value), repr(caught.value), repr(caught.value.__cause__), repr(caught.value.__context__)]
        rig.proxy.heal()
    assert not [text for text in shown + rig.progress.retries + rig.progress.notes if "ignature" in text or "Expires=" in text]
    journal = rig.target.with_name("x.bam.part.journal").read_text()
    assert "http" not in journal


def test_proxy_counts_what_it_moves(rig: Any) -> None:
    """The measure itself: without faults everything is moved once, byte for byte."""
    data = rig.put(SIZE)
    rig.download()
    assert rig.proxy.moved_bytes == SIZE
    assert set(rig.tries().values()) == {1}
    assert rig.target.read_bytes() == data


def test_if_match_guards_each_get(rig: Any) -> None:
    rig.put(2 * PART)
    spec = rig.describe()
    url = rig.repository.sign_downloads(spec, [ByteRange(0, 10)])[0]
    with pytest.raises(ChangedError):
        rig.transport.get(ByteRange(0, 10), url, bytearray().extend, if_match="other")
