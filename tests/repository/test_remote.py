"""Transfers over a Java server at its worst end right: whole, once, and never with a success that is none."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from score_core.checksum import md5_hex
from score_core.errors import (
    AccessDenied,
    AuthenticationError,
    ConfigurationError,
    Conflict,
    NotResumableError,
    ObjectNotFound,
    PermanentError,
    ScoreError,
    Unavailable,
)
from score_core.model import ByteRange, SignedUrl, StoredPart
from score_core.service import ServiceOptions, Token
from tests.repository.conftest import PART, Rig
from tests.repository.java_server import Fault, Seen

EXPIRED = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
UNAVAILABLE = Fault(status=503)
LOST = Fault(does=True, drop=True)


def once_each(count: int) -> dict[int, int]:
    return dict.fromkeys(range(1, count + 1), 1)


def of_part(number: int) -> Any:
    return lambda seen: seen.part == number


# What a transfer costs


@pytest.mark.parametrize(("overwrite", "others"), [(False, 8), (True, 6)])
def test_upload_costs_two_requests_a_part_and_a_handful(rig: Rig, overwrite: bool, others: int) -> None:
    path = rig.source(70)
    rig.upload(path, overwrite=overwrite)
    rig.assert_published(path)
    assert rig.java.puts() == once_each(70)
    assert rig.java.count("record") == 70
    assert rig.java.control_calls() <= 70 + others


def test_resumed_upload_costs_a_handful_more(rig: Rig) -> None:
    path = rig.source(70)
    rig.begin(path, tuple(range(1, 61)))
    rig.upload(path)
    assert rig.java.control_calls() <= 10 + 10
    assert rig.java.puts() == dict.fromkeys(range(61, 71), 1)


def test_download_costs_a_request_for_32_parts(rig: Rig) -> None:
    data = rig.put(rig.source(70))
    assert rig.download() == data
    assert rig.java.control_calls() <= 2 + 70 / 32
    assert rig.java.count("get") == 70


# Records of parts


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("fault", [UNAVAILABLE, LOST, Fault(status=502), Fault(drop=True), Fault(status=429)])
def test_part_whose_record_fails_is_not_sent_again(rig: Rig, fault: Fault, times: int) -> None:
    path = rig.source(6)
    rig.java.inject("record", fault, times=times, when=of_part(3))
    rig.upload(path)
    rig.assert_published(path)
    assert rig.java.puts() == once_each(6)


def test_refused_record_sends_the_part_again(rig: Rig) -> None:
    path = rig.source(4)
    rig.java.inject("record", Fault(status=400), times=1, when=of_part(2))
    rig.upload(path)
    rig.assert_published(path)
    assert rig.java.puts() == {1: 1, 2: 2, 3: 1, 4: 1}


def test_part_that_is_stored_is_not_sent_again_because_its_record_is_refused(rig: Rig) -> None:
    """Longer than one attempt at the part has patience for."""
    path = rig.source(3)
    machine = rig.machine(attempts=3)
    rig.java.inject("record", Fault(status=503), times=8, when=of_part(2))
    rig.upload(path, machine)
    rig.assert_published(path)
    assert rig.java.puts() == {1: 1, 2: 1, 3: 1}


def test_record_is_dropped_before_another_takes_its_place(rig: Rig) -> None:  # 21.14
    path = rig.source(4)
    rig.begin(path, (1, 2), wrong=(3,))
    rig.upload(path)
    rig.assert_published(path)
    about_3 = [seen.what for seen in rig.java.seen if seen.part == 3 and seen.query.get("etag") != "no-such-etag"]
    assert about_3[-2:] == ["unrecord", "record"]
    assert rig.java.count("unrecord") == 1


def test_changing_etag_leaves_one_record(rig: Rig) -> None:
    """A recorded part whose answer was lost, and which is sent again, has another ETag in stores like this."""
    path = rig.source(3)
    rig.java.etags = "kms"
    rig.java.inject("record", LOST, times=7, when=of_part(2))
    rig.upload(path)
    rig.assert_published(path)
    assert rig.java.all("finalise")[0].status == 200


@pytest.mark.parametrize("other", ["0" * 32, "f" * 32])
def test_double_record_of_another_client_is_mended(rig: Rig, other: str) -> None:
    """Status tells one of the two: if it is the right one nothing is sent again."""
    path = rig.source(3)
    upload = rig.begin(path, (1, 2, 3))
    record = json.dumps({"partNumber": 2, "md5": other, "etag": other}, separators=(",", ":"))
    rig.java.uploads[rig.id, upload.upload_id].records.add(f"part-00000002|{record}")
    rig.upload(path)
    rig.assert_published(path)
    assert rig.java.puts() == ({} if other == "0" * 32 else {2: 1})


# The end of an upload


@pytest.mark.parametrize(
    "fault",
    [
        Fault(drop=True),
        LOST,
        Fault(status=503),
        Fault(status=503, does=True),
        Fault(status=504, later_s=0.02),
        Fault(status=502, does=True),
        Fault(drop=True, later_s=0.02),
    ],
    ids=str,
)
@pytest.mark.parametrize("times", [1, 2])
def test_finalise_is_settled_by_looking(rig: Rig, fault: Fault, times: int) -> None:  # 21.16
    path = rig.source(3)
    rig.java.inject("finalise", fault, times=times)
    machine = rig.machine(attempts=10)
    assert rig.upload(path, machine).outcome == "uploaded"
    rig.assert_published(path)
    assert rig.java.completions[rig.id] == 1
    assert rig.java.puts() == once_each(3)


def test_finalise_that_is_still_running_may_refuse_meanwhile(rig: Rig) -> None:  # 21.16
    path = rig.source(3)
    rig.java.inject("finalise", Fault(status=504, later_s=0.1), times=1)
    rig.java.inject("finalise", Fault(status=400), times=2)
    rig.upload(path, rig.machine(attempts=12, base_s=0.02, cap_s=0.05))
    rig.assert_published(path)
    assert rig.java.puts() == once_each(3)
    assert rig.java.count("unrecord") == 0  # records are what it is working from


def test_finalise_of_an_upload_that_is_over_is_not_asked_for_ever(rig: Rig) -> None:
    """Up to 5.8.1 a vanished upload answers 503 (3.11)."""
    rig.java.version = (5, 8, 1)
    rig.java.inject("finalise", Fault(act=rig.java.drop_uploads), times=1)
    with pytest.raises(NotResumableError, match="run the same command again"):
        rig.upload(rig.source(3), rig.machine(attempts=10))
    assert rig.java.count("finalise") == 1


def test_finalise_that_never_succeeds_is_no_success(rig: Rig) -> None:
    path = rig.source(3)
    rig.java.inject("finalise", Fault(status=503))
    with pytest.raises(Unavailable) as caught:
        rig.upload(path)
    assert caught.value.exit_code == 7
    assert not rig.java.is_published(rig.id)
    rig.java.heal()
    rig.upload(path)
    rig.assert_published(path)
    assert rig.java.puts() == once_each(3)


def test_bogus_200_is_no_success(rig: Rig) -> None:  # 21.15
    path = rig.source(3)
    rig.java.inject("finalise", Fault(status=200))
    with pytest.raises(ScoreError) as caught:
        rig.upload(path)
    assert caught.value.exit_code != 0
    assert not rig.machine().exists(rig.id)
    rig.java.heal()
    rig.upload(path)
    rig.assert_published(path)
    assert rig.java.puts() == once_each(3)


def test_completion_without_meta_is_no_success(rig: Rig) -> None:  # the Java server's defect D4
    path = rig.source(3)
    rig.java.loses_meta = True
    with pytest.raises(ScoreError):
        rig.upload(path)
    assert not rig.machine().exists(rig.id)
    rig.java.loses_meta = False
    rig.upload(path)
    rig.assert_published(path)


def test_bogus_200_over_an_old_object_is_no_success(rig: Rig) -> None:
    rig.put(rig.source(3, seed=1))
    path = rig.source(3, seed=2)
    rig.java.inject("finalise", Fault(status=200))
    with pytest.raises(Conflict):
        rig.upload(path, overwrite=True)
    rig.java.heal()
    rig.upload(path, overwrite=True)
    rig.assert_published(path)


def test_old_object_without_part_md5s_does_not_pass_for_the_new(rig: Rig) -> None:
    rig.put(rig.source(3, seed=1))
    for part in rig.java.metas[rig.id]["parts"]:
        del part["sourceMd5"]
    rig.java.inject("finalise", UNAVAILABLE, times=1)
    path = rig.source(3, seed=2)
    rig.upload(path, overwrite=True)
    rig.assert_published(path)


def test_who_may_only_upload_is_not_taken_in_by_an_old_object(rig: Rig) -> None:
    rig.put(rig.source(3, seed=1))
    machine, path = rig.machine(token=Token("write-only")), rig.source(3, seed=2)
    rig.java.tokens["write-only"] = {"WRITE"}
    upload = machine.begin_upload(rig.id, 3 * PART, md5=md5_hex(path.read_bytes()), overwrite=True)
    rig.java.inject("finalise", UNAVAILABLE, times=1)
    machine.commit(upload, send_all(rig, machine, upload, path))
    rig.assert_published(path)


def send_all(rig: Rig, machine: Any, upload: Any, path: Path) -> list[Any]:
    stored, data = [], path.read_bytes()
    for part in upload.parts:
        block = data[part.offset : part.end]
        etag = rig.transport.put(part.size, machine.sign_uploads(upload, [part])[0], [block]).etag
        stored.append(StoredPart(part.number, md5_hex(block), etag))
        machine.commit_part(upload, stored[-1])
    return stored


# Uploads that others began, or that are dead


def test_upload_is_taken_up_by_another_machine(rig: Rig) -> None:
    path = rig.source(5)
    rig.begin(path, (1, 2, 4), wrong=(3,))
    report = rig.upload(path)
    rig.assert_published(path)
    assert rig.java.puts() == {3: 1, 5: 1}
    assert report.parts_kept == 3
    assert rig.java.count("initiate") == 0


def test_upload_of_another_md5_is_told_from_ours_at_the_end(rig: Rig) -> None:
    """A Java server does not tell what an upload was begun for. Its parts are compared; the wrong claim comes out after all."""
    path = rig.source(3, seed=1)
    rig.begin(path, wrong=(1,), md5="a" * 32)
    with pytest.raises(Conflict):
        rig.upload(path)
    with pytest.raises(Conflict, match="--force"):
        rig.upload(path)
    rig.upload(path, overwrite=True)
    rig.assert_published(path)
    assert rig.java.metas[rig.id]["objectMd5"] == md5_hex(path.read_bytes())


def test_upload_of_another_size_is_a_conflict(rig: Rig) -> None:
    rig.begin(rig.source(5, seed=1), (1,))
    path = rig.source(3, seed=2)
    with pytest.raises(Conflict, match="another size"):
        rig.upload(path)
    rig.upload(path, overwrite=True)
    rig.assert_published(path)


def test_dead_urls_begin_the_upload_anew(rig: Rig) -> None:  # 21.2
    path = rig.source(4)
    old = rig.begin(path, (1, 2))
    rig.java.expire_urls()
    rig.upload(path)
    rig.assert_published(path)
    assert rig.java.puts() == once_each(4)
    assert old.upload_id not in rig.java.multiparts


def test_dead_urls_do_not_matter_when_all_parts_are_there(rig: Rig) -> None:
    path = rig.source(4)
    rig.begin(path, (1, 2, 3, 4))
    rig.java.expire_urls()
    rig.upload(path)
    rig.assert_published(path)
    assert rig.java.puts() == {}


def test_dead_urls_and_a_wrong_part_end_in_a_second_run(rig: Rig) -> None:
    path = rig.source(4)
    rig.begin(path, (1, 2, 4), wrong=(3,))
    rig.java.expire_urls()
    with pytest.raises(NotResumableError, match="run the same command again"):
        rig.upload(path)
    rig.upload(path)
    rig.assert_published(path)


def test_urls_that_die_on_the_way_end_in_a_second_run(rig: Rig) -> None:
    path = rig.source(6)
    rig.workers = 1

    def later() -> None:
        rig.java.clock_ahead_s += 7 * 86_400

    rig.java.inject("put", Fault(act=later), times=1, when=of_part(3))
    machine = rig.machine(clock=lambda: time.monotonic() + rig.java.clock_ahead_s)
    with pytest.raises(NotResumableError):
        rig.upload(path, machine)
    rig.upload(path)
    rig.assert_published(path)


def test_upload_that_the_store_dropped_begins_anew(rig: Rig) -> None:
    """A Java server goes on telling of it (3.12), and cannot even cancel it: 503."""
    path = rig.source(4)
    rig.begin(path, (1, 2))
    rig.java.drop_multiparts()
    rig.upload(path)
    rig.assert_published(path)
    assert rig.java.puts() == once_each(4)


@pytest.mark.parametrize("what", ["put", "record", "finalise"])
def test_upload_that_is_dropped_on_the_way_ends_in_a_second_run(rig: Rig, what: str) -> None:
    path = rig.source(4)
    rig.java.inject(what, Fault(act=rig.java.drop_multiparts), times=1)
    with pytest.raises(ScoreError):
        rig.upload(path)
    assert not rig.java.is_published(rig.id)
    rig.upload(path)
    rig.assert_published(path)


def test_of_several_uploads_all_are_aborted(rig: Rig) -> None:
    path = rig.source(2)
    for _ in range(3):
        rig.begin(path, (1,))
        state = rig.java.uploads.popitem()
        rig.java.uploads[rig.id, f"saved-{state[0][1]}"] = state[1]
        rig.java.multiparts[f"saved-{state[0][1]}"] = rig.java.multiparts[state[0][1]]
    machine = rig.machine()
    assert machine.abort(rig.id) is True
    assert rig.java.in_progress(rig.id) == []


def test_record_in_an_upload_that_is_over_is_not_asked_for_long(rig: Rig) -> None:
    """The server answers 503, as it does when it is only out of order (3.9)."""
    rig.workers = 1
    rig.java.inject("record", Fault(act=rig.java.drop_uploads), times=1)
    with pytest.raises(NotResumableError):
        rig.upload(rig.source(3), rig.machine(attempts=10))
    assert rig.java.count("record") == 3


# Stores


@pytest.mark.parametrize("fault", [Fault(status=500), UNAVAILABLE, Fault(drop=True), LOST], ids=str)
def test_failing_store_is_asked_again(rig: Rig, fault: Fault) -> None:
    path = rig.source(5)
    rig.java.inject("put", fault, times=2, when=of_part(2))
    rig.java.inject("get", fault, times=2)
    rig.upload(path)
    rig.assert_published(path)
    assert rig.java.puts() == {1: 1, 2: 3, 3: 1, 4: 1, 5: 1}
    assert rig.download() == path.read_bytes()


@pytest.mark.parametrize("etags", ["kms", "opaque"])
def test_etag_need_not_be_an_md5(rig: Rig, etags: Any) -> None:
    rig.java.etags, rig.workers = etags, 1
    path = rig.source(5)
    rig.upload(path)
    rig.assert_published(path)
    assert rig.java.puts() == {1: 3, 2: 1, 3: 1, 4: 1, 5: 1}  # the first is sent, then a probe, then the first again with its MD5
    assert rig.download() == path.read_bytes()


@pytest.mark.parametrize("etags", ["kms", "opaque"])
def test_upload_with_other_etags_is_taken_up(rig: Rig, etags: Any) -> None:
    rig.java.etags = etags
    path = rig.source(5)
    rig.begin(path, (1, 2, 4))
    rig.upload(path)
    rig.assert_published(path)
    assert not {1, 2, 4} & set(rig.java.puts())


def test_store_that_proves_nothing_is_refused(rig: Rig) -> None:
    rig.java.etags, rig.java.checks_content_md5 = "opaque", False
    with pytest.raises(PermanentError, match="nothing proves"):
        rig.upload(rig.source(2))
    assert not rig.java.is_published(rig.id)


@pytest.mark.parametrize("ahead_s", [-86_400, -600, 0, 600, 86_400])
@pytest.mark.parametrize("signature", ["v4", "v2"])
def test_clocks_may_differ(rig: Rig, ahead_s: float, signature: Any) -> None:
    rig.java.clock_ahead_s, rig.java.signature = ahead_s, signature
    rig.java.get_life_s = 120
    path = rig.source(5)
    rig.begin(path, (1,))
    rig.upload(path)
    rig.assert_published(path)
    assert rig.download() == path.read_bytes()
    assert rig.java.puts() == dict.fromkeys(range(2, 6), 1)


# Downloads


def test_expired_url_is_replaced(rig: Rig) -> None:
    data = rig.put(rig.source(8))
    rig.workers = 1

    def later() -> None:
        rig.java.clock_ahead_s += 2 * 86_400

    rig.java.inject("get", Fault(act=later), times=1, when=lambda seen: seen.headers["range"] == f"bytes={4 * PART}-{5 * PART - 1}")
    assert rig.download() == data
    assert [seen.status for seen in rig.java.all("get")].count(403) == 1
    assert rig.java.count("get") == 9


def test_part_url_of_a_java_server_is_for_one_range(rig: Rig) -> None:
    """The stub is as strict as S3: this is why URLs of parts are not used for anything else."""
    rig.put(rig.source(2))
    body = rig.machine()._client.get(f"/download/{rig.id}", params={"offset": 0, "length": -1}).json()
    url = SignedUrl("GET", body["parts"][0]["url"], 2e9)
    rig.transport.get(ByteRange(0, PART), url, lambda _: None)
    with pytest.raises(AccessDenied):
        rig.transport.get(ByteRange(1, 5), url, lambda _: None)


def test_object_without_meta_is_downloaded(rig: Rig) -> None:
    data = rig.source(3).read_bytes()
    rig.java.store_without_meta(rig.id, data)
    assert rig.download(validation="off") == data


def test_object_that_is_replaced_on_the_way_is_noticed(rig: Rig) -> None:
    rig.put(rig.source(6, seed=1))
    rig.workers = 1
    other = rig.source(6, seed=2)

    def replace() -> None:
        rig.java.objects[f"data/{rig.id}"].data = other.read_bytes()

    rig.java.inject("get", Fault(act=replace), times=1, when=lambda seen: seen.headers["range"].startswith(f"bytes={3 * PART}-"))
    with pytest.raises(ScoreError):
        rig.download()


def test_object_that_appears_while_it_is_looked_for_is_described(rig: Rig) -> None:
    data = rig.put(rig.source(1))
    rig.java.inject("download", Fault(status=500), times=1)
    assert rig.machine().describe(rig.id).size == len(data)


@pytest.mark.parametrize("ahead_s", [-86_400, 0, 86_400])
def test_urls_are_good_until_then_by_our_clock(rig: Rig, ahead_s: float) -> None:
    path = rig.source(1)
    rig.put(path)
    rig.java.clock_ahead_s = ahead_s
    machine = rig.machine()
    assert abs(machine.sign_external(rig.id).expires_at - time.time() - rig.java.get_life_s) < 5
    upload = machine.begin_upload(rig.id, PART, md5="a" * 32, overwrite=True)
    assert abs(machine.sign_uploads(upload, upload.parts)[0].expires_at - time.time() - rig.java.put_life_s) < 5


# Refusals


@pytest.mark.parametrize(
    ("what", "status", "kind", "code"),
    [
        ("status", 401, AuthenticationError, 3),
        ("status", 403, AccessDenied, 4),
        ("initiate", 404, ObjectNotFound, 5),
        ("initiate", 400, Conflict, 1),
        ("initiate", 403, AccessDenied, 4),
        ("initiate", 503, Unavailable, 7),
        ("record", 401, AuthenticationError, 3),
        ("record", 403, AccessDenied, 4),
        ("finalise", 403, AccessDenied, 4),
        ("finalise", 401, AuthenticationError, 3),
    ],
)
def test_refusal_of_an_upload_has_its_class_and_exit_code(rig: Rig, what: str, status: int, kind: type[ScoreError], code: int) -> None:
    rig.java.inject(what, Fault(status=status, body=b"The token has not the scope"))
    with pytest.raises(kind) as caught:
        rig.upload(rig.source(2))
    assert caught.value.exit_code == code
    assert not rig.java.is_published(rig.id)


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [(401, AuthenticationError, 3), (403, AccessDenied, 4), (404, ObjectNotFound, 5), (400, Conflict, 1), (503, Unavailable, 7)],
)
def test_refusal_of_a_download_has_its_class_and_exit_code(rig: Rig, status: int, kind: type[ScoreError], code: int) -> None:
    rig.put(rig.source(2))
    rig.java.inject("download", Fault(status=status), when=lambda seen: "external" in seen.query)
    with pytest.raises(kind) as caught:
        rig.download()
    assert caught.value.exit_code == code


def test_unpublished_analysis_is_named_as_the_likely_cause(rig: Rig) -> None:
    rig.put(rig.source(1))
    rig.java.states[rig.id] = "UNPUBLISHED"
    with pytest.raises(Conflict, match="not published"):
        rig.download()
    rig.java.states[rig.id] = "PUBLISHED"
    with pytest.raises(Conflict, match="published already"):
        rig.upload(rig.source(1, seed=2), overwrite=True)


def test_unknown_to_song_says_register_it_first(rig: Rig) -> None:
    rig.java.unknown_to_song.add(rig.id)
    with pytest.raises(ObjectNotFound, match="register it first"):
        rig.upload(rig.source(1))


@pytest.mark.parametrize("verb", ["upload", "exists", "abort"])
def test_upload_without_a_token_says_so(rig: Rig, verb: str) -> None:
    """Java answers 400 to that (3.1), which otherwise means many things."""
    machine = rig.machine(token=Token())
    with pytest.raises(AuthenticationError, match="token") as caught:
        rig.upload(rig.source(1), machine) if verb == "upload" else getattr(machine, verb)(rig.id)
    assert caught.value.exit_code == 3


def test_open_access_needs_no_token(rig: Rig) -> None:
    data = rig.put(rig.source(3))
    rig.java.open_access = True
    assert rig.download(rig.machine(token=Token())) == data
    assert not any(seen.has_token for seen in rig.java.seen)


def test_server_on_azure_is_refused_in_few_requests(rig: Rig) -> None:
    rig.java.flavour = "az"
    with pytest.raises(ConfigurationError, match="Azure"):
        rig.upload(rig.source(1))
    assert rig.java.control_calls() <= 4


# Tokens that change, servers that are slow


@pytest.mark.parametrize("what", ["record", "finalise", "initiate"])
def test_token_that_is_refused_is_read_again(rig: Rig, what: str) -> None:
    file = rig.folder / "token"
    file.write_text(rig.java.token + "\n")

    def rotate() -> None:
        file.write_text("the-next-token\n")
        rig.java.tokens = {"the-next-token": {"READ", "WRITE"}}

    rig.java.inject(what, Fault(act=rotate), times=1)
    path = rig.source(10)
    rig.upload(path, rig.machine(token=Token(file=file)))
    rig.assert_published(path)
    assert rig.java.puts() == once_each(10)
    assert sum(seen.status == 401 for seen in rig.java.seen) <= rig.workers


@pytest.mark.parametrize("what", ["status", "exists", "initiate", "record", "finalise", "download"])
def test_slow_answer_is_asked_for_again(rig: Rig, what: str) -> None:
    path = rig.source(2)
    rig.java.inject(what, Fault(wait_s=0.4), times=1)
    rig.upload(path, rig.machine(options=ServiceOptions(read_timeout_s=0.2)))
    rig.assert_published(path)


# Anything at any time


@pytest.mark.parametrize("seed", range(12))
def test_chaos_never_looks_like_success(rig: Rig, seed: int) -> None:
    """A fifth of all answers fail in some way. A run that says it succeeded did, and a few runs are enough."""
    rng = random.Random(seed)
    faults = [UNAVAILABLE, LOST, Fault(drop=True), Fault(status=502, does=True), Fault(status=504), Fault(status=500, does=True)]
    for what in ("status", "exists", "initiate", "record", "unrecord", "finalise", "abort", "download", "put"):
        for fault in faults:
            rig.java.inject(what, fault, when=lambda _: rng.random() < 0.035)
    rig.java.etags = rng.choice(["md5", "kms", "opaque"])
    path = rig.source(9, seed)
    for _ in range(30):
        try:
            report = rig.upload(path)
        except ScoreError:
            continue
        assert report.outcome in {"uploaded", "already there"}
        assert rig.java.stored(rig.id) == path.read_bytes()
        assert rig.java.is_published(rig.id)
        return
    pytest.fail("thirty runs were not enough")


def test_stub_sees_what_is_asked(rig: Rig) -> None:
    rig.upload(rig.source(2))
    seen: list[Seen] = rig.java.all("initiate")
    assert [(row.method, row.path, row.has_token) for row in seen] == [("POST", f"/upload/{rig.id}/uploads", True)]
    assert {"fileSize", "overwrite", "md5", "fileName"} == set(seen[0].query)
