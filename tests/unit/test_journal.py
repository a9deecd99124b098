"""A journal survives a cut at any byte and garbage anywhere; it is a claim, never a proof."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from score_core.errors import LocalFileError
from score_core.model import ObjectSpec, Part, PartReceipt
from score_core.plan import plan_parts
from score_core.transfer.journal import Header, Journal, JournalUnusable

ID = "3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11"
PARTS = plan_parts(50, minimum=10)
SPEC = ObjectSpec(ID, 50, PARTS, md5="a" * 32, etag="e")
IN_TMP = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)


def receipt(part: Part) -> PartReceipt:
    return PartReceipt(part.number, part.size, tag=f"{part.number:032x}", md5="b" * 32)


def written(path: Path, count: int = len(PARTS)) -> bytes:
    journal = Journal.create(path, Header.new(SPEC, offset=0, size=50))
    for part in PARTS[:count]:
        journal.append(part, receipt(part))
    return path.read_bytes()


def load(path: Path, data: bytes) -> Journal | None:
    """The journal of these bytes, None if they are refused as none; anything else raised is a crash."""
    path.write_bytes(data)
    try:
        return Journal.load(path)
    except JournalUnusable:
        return None


def test_journal_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written(path)
    journal = Journal.load(path)
    assert journal is not None
    assert [journal.claims(part) for part in PARTS] == [receipt(part) for part in PARTS]
    assert journal.header.same_version(SPEC)


def test_missing_journal_is_none(tmp_path: Path) -> None:
    assert Journal.load(tmp_path / "none") is None


def test_each_journal_has_its_generation(tmp_path: Path) -> None:
    made = {Journal.create(tmp_path / "j", Header.new(SPEC, offset=0, size=50)).generation for _ in range(100)}
    assert len(made) == 100


def test_cut_at_every_byte_keeps_the_records_before(tmp_path: Path) -> None:
    data = written(tmp_path / "whole")
    ends = [end for end in range(len(data) + 1) if data[:end].endswith(b"}")]  # a record counts from its last brace on
    for cut in range(len(data) + 1):
        journal = load(tmp_path / "j", data[:cut])
        whole_lines = sum(1 for end in ends if end <= cut)
        assert (journal is None) == (whole_lines == 0)
        assert journal is None or len(journal.receipts) == whole_lines - 1


def test_append_after_a_cut_loses_nothing_more(tmp_path: Path) -> None:
    data = written(tmp_path / "whole", count=2)
    header_end = data.index(b"\n")
    for cut in range(header_end, len(data) + 1):
        journal = load(tmp_path / "j", data[:cut])
        assert journal is not None
        before = set(journal.receipts)
        journal.append(PARTS[4], receipt(PARTS[4]))
        again = Journal.load(tmp_path / "j")
        assert again is not None
        assert set(again.receipts) == before | {5}


@IN_TMP
@given(st.integers(0, 600), st.binary(min_size=1, max_size=40), st.booleans())
def test_garbage_anywhere_never_crashes(tmp_path: Path, place: int, garbage: bytes, insert: bool) -> None:
    data = written(tmp_path / "whole")
    journal = load(tmp_path / "j", data[:place] + garbage + data[place if insert else place + len(garbage) :])
    for part in PARTS if journal else ():
        assert journal is not None
        claim = journal.claims(part)
        assert claim is None or (claim.number, claim.size) == (part.number, part.size)


@IN_TMP
@given(st.binary())
@example(b'{"score_journal": 1, "generation": "a", "object_id": "b", "offset": 1e999, "size": 1, "etag": null, "md5": null}')
@example(b"[" * 200_000)
@example(b"9" * 10_000)
def test_any_file_is_refused_or_read(tmp_path: Path, data: bytes) -> None:
    load(tmp_path / "j", data)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2)


@IN_TMP
@given(st.sampled_from(["part", "offset", "size", "tag", "md5"]), VALUES)
@example("part", float("inf"))
@example("offset", float("-inf"))
def test_any_value_in_a_record_is_survived(tmp_path: Path, name: str, value: object) -> None:
    head, *_ = written(tmp_path / "whole", count=0).splitlines()
    record = {"part": 1, "offset": 0, "size": 10, "tag": "0" * 32, "md5": None, name: value}
    journal = load(tmp_path / "j", head + b"\n" + json.dumps(record).encode())
    assert journal is not None


@IN_TMP
@given(st.sampled_from(["generation", "object_id", "offset", "size", "etag", "md5", "score_journal"]), VALUES)
def test_any_value_in_the_header_is_survived(tmp_path: Path, name: str, value: object) -> None:
    head = json.loads(written(tmp_path / "whole", count=0))
    journal = load(tmp_path / "j", json.dumps({**head, name: value}).encode())
    assert journal is None or isinstance(journal.header.size, int)


def test_claim_is_for_the_same_place_only(tmp_path: Path) -> None:
    written(tmp_path / "j")
    journal = Journal.load(tmp_path / "j")
    assert journal is not None
    assert journal.claims(Part(1, 0, 11)) is None
    assert journal.claims(Part(1, 1, 10)) is None
    assert journal.claims(Part(9, 0, 10)) is None


def test_later_record_replaces_the_earlier(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "j", Header.new(SPEC, offset=0, size=50))
    journal.append(PARTS[0], PartReceipt(1, 10, tag="old"))
    journal.append(PARTS[0], PartReceipt(1, 10, tag="new"))
    again = Journal.load(tmp_path / "j")
    assert again is not None
    claim = again.claims(PARTS[0])
    assert claim is not None
    assert claim.tag == "new"


def test_threads_append_whole_lines(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "j", Header.new(SPEC, offset=0, size=50))
    parts = plan_parts(500, minimum=1)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda part: journal.append(part, receipt(part)), parts))
    again = Journal.load(tmp_path / "j")
    assert again is not None
    assert len(again.receipts) == 500


def test_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "j").write_text('{"score_journal": 2}\n')
    with pytest.raises(JournalUnusable, match="another version"):
        Journal.load(tmp_path / "j")


def test_pickle_is_never_loaded(tmp_path: Path) -> None:
    assert load(tmp_path / "j", b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.") is None


@pytest.mark.parametrize("kind", ["directory", "fifo", "device link"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "j"
    {"directory": path.mkdir, "fifo": lambda: os.mkfifo(path), "device link": lambda: path.symlink_to("/dev/zero")}[kind]()
    with pytest.raises(JournalUnusable):
        Journal.load(path)


def test_journal_is_not_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "j").symlink_to(victim)
    with pytest.raises(LocalFileError, match="symbolic link"):
        Journal.create(tmp_path / "j", Header.new(SPEC, offset=0, size=50))
    assert victim.read_text() == "mine"


def test_unknown_version_is_never_the_same() -> None:
    bare = ObjectSpec(ID, 50, PARTS)
    assert not Header.new(bare, offset=0, size=50).same_version(bare)
