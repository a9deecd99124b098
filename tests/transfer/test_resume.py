"""What an earlier run left is never believed against the bytes: exactly the needed parts move, or a documented error comes."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from score_core.errors import Conflict, Interrupted, ScoreError
from score_core.model import StoredPart
from score_core.repository.layout import Keys
from score_core.testing.faults import Call
from score_core.transfer.download import Span
from score_core.transfer.stop import Stop

PART = 64 << 10
COUNT = 32
SIZE = COUNT * PART
HALF = set(range(1, 17))


def part_file(rig: Any) -> Any:
    return rig.target.with_name("x.bam.part")


def journal(rig: Any) -> Any:
    return rig.target.with_name("x.bam.part.journal")


def break_download(rig: Any, at: int = 17, **options: Any) -> Any:
    """A download that is stopped when part `at` is asked for: the parts before it are there. Counts begin after that."""
    data = rig.put(SIZE)
    rig.workers = 1
    rig.proxy.inject(Call(rig.stop.set), when=rig.get(at), times=1)
    with pytest.raises(Interrupted):
        rig.download(**options)
    resume(rig)
    return data


def break_upload(rig: Any, at: int = 17) -> Any:
    path = rig.source(SIZE)
    rig.workers = 1
    rig.proxy.inject(Call(rig.stop.set), when=rig.put_of(at), times=1)
    with pytest.raises(Interrupted):
        rig.upload(path)
    resume(rig)
    return path


def resume(rig: Any) -> None:
    rig.stop, rig.workers = Stop(), 4
    rig.proxy.heal()
    rig.proxy.forget()
    rig.progress.notes.clear()


def moved(rig: Any) -> set[int]:
    assert set(rig.tries().values()) <= {1}
    return set(rig.tries())


REST = set(range(17, COUNT + 1))
ALL = set(range(1, COUNT + 1))


@pytest.mark.parametrize("validation", ["auto", "parts", "whole", "both", "off"])
def test_interrupted_download_goes_on(rig: Any, validation: str) -> None:
    data = break_download(rig, validation=validation)
    report = rig.download(validation=validation)
    assert rig.target.read_bytes() == data
    assert moved(rig) in (REST, REST - {17})  # the part that was under way may have been finished
    assert report.bytes_kept + report.bytes_moved == SIZE
    assert rig.leftovers == {"x.bam"}


@pytest.mark.parametrize("first", ["parts", "whole", "off"])
@pytest.mark.parametrize("second", ["parts", "whole", "both"])
def test_policy_may_change_between_runs(rig: Any, first: str, second: str) -> None:
    data = break_download(rig, validation=first)
    rig.download(validation=second)
    assert rig.target.read_bytes() == data
    assert moved(rig) <= REST


def test_bytes_of_an_unproven_run_are_proven_now(rig: Any) -> None:
    """The earlier run took damaged bytes as they came (off); the next one, which asks for proof, finds them."""
    data = break_download(rig, validation="off")
    lines = journal(rig).read_text().split("\n")
    damage(part_file(rig), 3 * PART + 5)
    from score_core.checksum import digest_of

    tag = digest_of([part_file(rig).read_bytes()[3 * PART : 4 * PART]], md5=False).tag
    changed = [json.dumps({**json.loads(line), "tag": tag}) if '"part":4,' in line else line for line in lines]
    journal(rig).write_text("\n".join(changed))
    rig.download(validation="parts")
    assert rig.target.read_bytes() == data
    assert moved(rig) - {17} == REST - {17} | {4}


def damage(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


# What may happen to the two files between the runs, and which parts of the first sixteen are lost by it.
DAMAGES: dict[str, tuple[Callable[[Any], object], set[int]]] = {
    "the part file is deleted": (lambda rig: part_file(rig).unlink(), HALF),
    "the part file is emptied": (lambda rig: os.truncate(part_file(rig), 0), HALF),
    "the part file is cut": (lambda rig: os.truncate(part_file(rig), 4 * PART + 1), HALF - {1, 2, 3, 4}),
    "the part file is longer": (lambda rig: edit(part_file(rig), lambda data: data + b"more"), set()),
    "a bit of part 5 is flipped": (lambda rig: damage(part_file(rig), 4 * PART), {5}),
    "the last bit of part 16 is flipped": (lambda rig: damage(part_file(rig), 16 * PART - 1), {16}),
    "the journal is deleted": (lambda rig: journal(rig).unlink(), HALF),
    "the journal is garbage": (lambda rig: journal(rig).write_bytes(os.urandom(3000)), HALF),
    "the journal is empty": (lambda rig: journal(rig).write_bytes(b""), HALF),
    "the journal lost its last byte": (lambda rig: edit(journal(rig), lambda data: data.rstrip()[:-1]), {16}),
    "the journal is of a newer version": (
        lambda rig: edit(journal(rig), lambda data: data.replace(b'"score_journal": 1', b'"score_journal": 2')),
        HALF,
    ),
    "the journal is another object's": (lambda rig: edit(journal(rig), lambda data: data.replace(rig.id.encode(), b"1-2-3-4-5")), HALF),
    "a record of the journal is damaged": (lambda rig: edit(journal(rig), lambda data: data.replace(b'"part":7,', b'"part";7,')), {7}),
    "a record names another place": (lambda rig: edit(journal(rig), lambda data: data.replace(b'"part":7,', b'"part":8,')), {7}),
    "a record has another tag": (lambda rig: edit(journal(rig), change_first_tag), {1}),
    "both are deleted": (lambda rig: [path.unlink() for path in (part_file(rig), journal(rig))], HALF),
}


def change_first_tag(data: bytes) -> bytes:
    place = data.index(b'"tag":"') + 7
    return data[:place] + (b"0" if data[place : place + 1] != b"0" else b"1") + data[place + 1 :]


@pytest.mark.parametrize("what", DAMAGES)
@pytest.mark.parametrize("validation", ["parts", "whole", "off"])
def test_only_what_was_lost_is_fetched_again(rig: Any, what: str, validation: str) -> None:
    act, lost = DAMAGES[what]
    data = break_download(rig, validation=validation)
    act(rig)
    rig.download(validation=validation)
    assert rig.target.read_bytes() == data
    assert moved(rig) - {17} == (REST | lost) - {17}


@pytest.mark.parametrize("what", ["the journal is garbage", "the journal is another object's", "the journal is of a newer version"])
def test_foreign_leftovers_are_kept_aside_and_told(rig: Any, what: str) -> None:  # F09
    break_download(rig)
    before = part_file(rig).read_bytes()
    DAMAGES[what][0](rig)
    strange = journal(rig).read_bytes()
    rig.download()
    assert rig.target.with_name("x.bam.part.unusable").read_bytes() == before
    assert rig.target.with_name("x.bam.part.journal.unusable").read_bytes() == strange
    assert "Starting afresh" in rig.progress.notes[0]


@pytest.mark.parametrize("what", ["the part file is deleted", "the part file is emptied", "the journal is deleted", "both are deleted"])
def test_lost_bytes_end_the_generation(rig: Any, what: str) -> None:
    """What others remember of the bytes (Prefect's results) carries the generation, so it must not outlive them."""
    from score_core.transfer.download import Download

    break_download(rig)
    before = json.loads(journal(rig).read_text().split("\n")[0])["generation"]
    DAMAGES[what][0](rig)
    download = Download.open(rig.repository, rig.describe(), rig.target)
    download.close()
    assert download.key != before


def test_generation_lasts_while_the_bytes_do(rig: Any) -> None:
    from score_core.transfer.download import Download

    break_download(rig)
    keys = set()
    for _ in range(3):
        download = Download.open(rig.repository, rig.describe(), rig.target)
        download.close()
        keys.add(download.key)
    assert len(keys) == 1


def test_everything_there_moves_nothing(rig: Any) -> None:  # F06
    data = rig.put(SIZE)
    rig.download()
    rig.target.unlink()
    rig.proxy.inject(Call(rig.target.mkdir), when=rig.get(COUNT), times=1)  # so the rename fails, after the last part
    with pytest.raises(ScoreError):
        rig.download()
    rig.target.rmdir()
    resume(rig)
    rig.download()
    assert rig.target.read_bytes() == data
    assert moved(rig) == set()


def test_finished_journal_without_a_file_is_no_proof(rig: Any) -> None:
    """Killed between rename and the journal's removal; later the target was deleted."""
    data = break_download(rig, at=COUNT)
    keep = journal(rig).read_bytes()
    rig.download()
    rig.target.unlink()
    journal(rig).write_bytes(keep)
    resume(rig)
    rig.download()
    assert rig.target.read_bytes() == data
    assert moved(rig) == ALL


@pytest.mark.parametrize("known", [True, False])
def test_object_that_was_replaced_is_fetched_anew(rig: Any, known: bool) -> None:
    break_download(rig)
    rig.put(SIZE, seed=2, overwrite=True)
    if not known:
        rig.forget_md5s(sealed=True)
    rig.download()
    assert rig.target.read_bytes() == rig.stored()
    assert moved(rig) == ALL
    assert "was replaced since the last run" in rig.progress.notes[0]


def test_equal_parts_of_a_replaced_object_are_kept(rig: Any) -> None:
    data = break_download(rig)
    path = rig.folder / "source.bam"
    path.write_bytes(data[: 20 * PART] + os.urandom(12 * PART))
    from score_core.operations import file_md5

    rig.upload(path, md5_hex=file_md5(path), overwrite=True)
    rig.proxy.forget()
    rig.download(validation="both")
    assert rig.target.read_bytes() == path.read_bytes()
    assert moved(rig) - {17} == REST - {17}


def test_other_span_does_not_mix(rig: Any) -> None:
    data = break_download(rig)
    rig.download(span=Span(100, SIZE - 200))
    assert rig.target.read_bytes() == data[100 : SIZE - 100]


@pytest.mark.parametrize("validation", ["parts", "whole", "off"])
def test_power_cut_never_leaves_a_wrong_file(rig: Any, validation: str) -> None:  # F07
    """Journal on disk, some of the bytes that it speaks of not: they read as zeros. 100 trials over the three policies."""
    data = break_download(rig, validation=validation)
    kept = {path: path.read_bytes() for path in (part_file(rig), journal(rig))}
    rng = random.Random(validation)
    for _ in range(34):
        for path, content in kept.items():
            path.write_bytes(content)
        lost = set()
        for _ in range(rng.randrange(1, 6)):
            start = rng.randrange(16 * PART)
            end = min(16 * PART, start + rng.choice([1, 512, 4096, PART, 5 * PART]))
            if data[start:end].strip(b"\0"):
                lost |= set(range(start // PART + 1, (end - 1) // PART + 2))
            with part_file(rig).open("r+b") as file:
                file.seek(start)
                file.write(bytes(end - start))
        rig.proxy.forget()
        rig.download(validation=validation)
        assert rig.target.read_bytes() == data
        assert moved(rig) - {17} == (REST | lost) - {17}
        rig.target.unlink()


def test_interrupted_upload_goes_on(rig: Any) -> None:
    path = break_upload(rig)
    report = rig.upload(path)
    assert rig.stored() == path.read_bytes()
    assert moved(rig) <= REST
    assert report.bytes_kept >= 16 * PART
    rig.assert_nothing_unfinished()


def test_upload_goes_on_from_another_machine(rig: Any) -> None:  # F04
    path = break_upload(rig)
    elsewhere = rig.folder / "elsewhere.bam"
    elsewhere.write_bytes(path.read_bytes())
    path.unlink()
    rig.upload(elsewhere)
    assert rig.stored() == elsewhere.read_bytes()
    assert moved(rig) <= REST


def test_part_without_a_record_is_not_sent_again(rig: Any) -> None:
    """Killed between a PUT and its record: the store's own list says that it is there."""
    path = break_upload(rig)
    upload = rig.repository.find_upload(rig.id, SIZE)
    for stored in list(rig.origin.list_objects(Keys().records(rig.id, upload.upload_id))):
        rig.origin.delete(stored.key)
    rig.upload(path)
    assert rig.stored() == path.read_bytes()
    assert moved(rig) <= REST


def test_record_without_a_part_is_not_believed(rig: Any) -> None:
    path = break_upload(rig)
    upload = rig.repository.find_upload(rig.id, SIZE)
    for number in (20, 30):
        rig.repository.commit_part(upload, StoredPart(number, "a" * 32, "a" * 32))
    rig.upload(path)
    assert rig.stored() == path.read_bytes()
    assert {20, 30} <= moved(rig) <= REST


def test_stored_part_with_other_bytes_is_sent_again(rig: Any) -> None:
    """Somebody put other bytes of the right size in place of part 3, and recorded them."""
    path = break_upload(rig)
    upload = rig.repository.find_upload(rig.id, SIZE)
    with rig.origin.receive_part(Keys().data(rig.id), upload.upload_id, 3) as writer:
        writer.write(bytes(PART))
        writer.commit()
        rig.repository.commit_part(upload, StoredPart(3, writer.md5, writer.md5))
    rig.upload(path)
    assert rig.stored() == path.read_bytes()
    assert 3 in moved(rig)
    assert moved(rig) <= REST | {3}


def test_upload_that_was_aborted_begins_anew(rig: Any) -> None:
    path = break_upload(rig)
    assert rig.repository.abort(rig.id)
    rig.upload(path)
    assert rig.stored() == path.read_bytes()
    assert moved(rig) == ALL
    rig.assert_nothing_unfinished()


@pytest.mark.parametrize("state", ["kept", "dropped"])
def test_upload_that_the_store_forgot_begins_anew(rig: Any, state: str) -> None:
    """The multipart upload is aborted behind the repository's back (a life-cycle rule), its records stay."""
    path = break_upload(rig)
    upload = rig.repository.find_upload(rig.id, SIZE)
    rig.origin.abort_multipart(Keys().data(rig.id), upload.upload_id)
    if state == "dropped":
        rig.origin.delete(Keys().state(rig.id, upload.upload_id) + ".meta")
    rig.upload(path)
    assert rig.stored() == path.read_bytes()
    assert moved(rig) == ALL
    if state == "kept":
        rig.assert_nothing_unfinished()


def test_changed_source_does_not_go_on_with_the_old_upload(rig: Any) -> None:
    path = break_upload(rig)
    path.write_bytes(os.urandom(SIZE))
    with pytest.raises(Conflict, match="score abort --object-id"):
        rig.upload(path)
    rig.assert_nothing_published()
    rig.upload(path, overwrite=True)
    assert rig.stored() == path.read_bytes()
    rig.assert_nothing_unfinished()


def test_finished_upload_moves_nothing_again(rig: Any) -> None:
    path = rig.source(SIZE)
    rig.upload(path)
    rig.proxy.forget()
    report = rig.upload(path)
    assert (report.outcome, moved(rig)) == ("already there", set())


def test_kill_between_complete_and_specification_is_settled(rig: Any) -> None:  # F05
    path = break_upload(rig)
    rig.upload(path, repository=Dying(rig.repository))
    rig.proxy.forget()
    assert not rig.repository.exists(rig.id)
    report = rig.upload(path)
    assert (report.outcome, moved(rig)) == ("already there", set())
    assert rig.describe().md5 == report.md5
    rig.assert_nothing_unfinished()


class Dying:
    """A repository whose process ends right after the store completed the object."""

    def __init__(self, repository: Any) -> None:
        self._repository = repository

    def __getattr__(self, name: str) -> Any:
        return getattr(self._repository, name)

    def commit(self, upload: Any, parts: Any, *, sealed: bool = False) -> None:
        from score_core.stores.base import ListedPart

        listed = [ListedPart(part.number, 0, part.etag) for part in parts]
        self._repository._buckets.base.data.complete_multipart(Keys().data(upload.object_id), upload.upload_id, listed)

    def describe(self, object_id: str) -> Any:
        return self._repository.describe(object_id)
