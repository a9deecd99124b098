"""A cached result is never believed against the bytes: between a run that failed half-way and the next, the world changes.

The first run moves five of eight parts, one at a time, and is then refused.
"""

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.download import download
from flows.upload import upload
from score_core import operations
from score_core.errors import AccessDenied, ChangedError, Conflict, NotResumableError
from score_core.operations import DownloadItem, DownloadOptions, UploadItem
from score_core.session import open_engine
from score_core.settings import load
from score_core.testing.faults import Call, denied, moves_part, part
from score_core.transfer.files import journal_path
from tasks import sessions
from tests.flows.conftest import PART_BYTES, new_id, quick_engine, same, task_runs

pytestmark = [pytest.mark.prefect, pytest.mark.xdist_group("flows")]

ALL = [1, 2, 3, 4, 5, 6, 7, 8]


@dataclass
class Half:
    """A transfer that stopped half-way: its object, the whole file, which parts are done and which are left."""

    object_id: str
    path: Path
    done: list[int]

    @property
    def left(self) -> list[int]:
        return [number for number in ALL if number not in self.done]


@pytest.fixture
def site(site, monkeypatch):
    monkeypatch.setenv("SCORE_WORKERS", "1")
    with quick_engine() as engine:
        sessions.use_engine(None, engine)
        yield site


@pytest.fixture
def half_downloaded(site):
    object_id, path = site.stored(len(ALL))
    with refusing_after_five(site):
        download(object_id, str(site.out))
    return halved(site, object_id, path, site.gets())


@pytest.fixture
def half_uploaded(site):
    path, object_id = site.file(len(ALL)), new_id()
    with refusing_after_five(site):
        upload(str(path), object_id)
    return halved(site, object_id, path, site.puts())


def halved(site, object_id, path, done):
    assert len(done) == 5
    assert len(site.cached_results()) in {0, 5}  # none from the direct engine
    site.proxy.forget()
    return Half(object_id, path, done)


@contextlib.contextmanager
def refusing_after_five(site):
    site.proxy.inject(denied(), when=lambda seen: moves_part(seen) and len([done for done in site.proxy.moves() if done is not seen]) >= 5)
    with pytest.raises(AccessDenied):
        yield
    site.proxy.heal()


def part_file(site):
    return site.out / "reads.bam.part"


# Downloads


def test_untouched_download_fetches_what_is_left(site, half_downloaded):
    half = half_downloaded

    report = download(half.object_id, str(site.out))

    assert site.gets() == half.left
    assert (report["parts_kept"], report["parts_cached"]) == (5, 5)
    assert same(site.out / half.path.name, half.path)
    assert site.cached_results() == []


def test_deleted_part_file_fetches_everything(site, half_downloaded):
    half = half_downloaded
    part_file(site).unlink()

    report = download(half.object_id, str(site.out))

    assert site.gets() == ALL
    assert report["parts_cached"] == 0
    assert same(site.out / half.path.name, half.path)


def test_damaged_range_is_fetched_again(site, half_downloaded):
    half = half_downloaded
    with part_file(site).open("r+b") as file:
        file.seek(place := (half.done[2] - 1) * PART_BYTES)
        file.write(bytes([255 - half.path.read_bytes()[place]]))

    report = download(half.object_id, str(site.out))

    assert site.gets() == sorted([half.done[2], *half.left])
    assert report["parts_cached"] == 4
    assert same(site.out / half.path.name, half.path)


def test_truncated_part_file_fetches_what_was_cut(site, half_downloaded):
    half = half_downloaded
    os.truncate(part_file(site), int((half.done[3] - 0.5) * PART_BYTES))

    download(half.object_id, str(site.out))

    assert site.gets() == sorted([*half.done[3:], *half.left])
    assert same(site.out / half.path.name, half.path)


def test_journal_without_its_last_line_fetches_that_part(site, half_downloaded):
    half = half_downloaded
    journal = journal_path(site.out / half.path.name)
    lines = journal.read_text().splitlines(keepends=True)
    lost = json.loads(lines[-1])["part"]
    journal.write_text("".join(lines)[:-20])

    download(half.object_id, str(site.out))

    assert site.gets() == sorted([lost, *half.left])  # the bytes were there, but no claim said so
    assert same(site.out / half.path.name, half.path)


def test_damaged_journal_fetches_everything(site, half_downloaded):
    half = half_downloaded
    journal_path(site.out / half.path.name).write_bytes(b"garbage")

    report = download(half.object_id, str(site.out))

    assert site.gets() == ALL
    assert report["parts_cached"] == 0
    assert same(site.out / half.path.name, half.path)


def test_lying_journal_is_found_out(site, half_downloaded):
    """It claims a part that never arrived."""
    half = half_downloaded
    journal = journal_path(site.out / half.path.name)
    line = {**json.loads(journal.read_text().splitlines()[-1]), "part": half.left[0], "offset": (half.left[0] - 1) * PART_BYTES}
    journal.write_text(journal.read_text() + json.dumps(line) + "\n")

    download(half.object_id, str(site.out))

    assert site.gets() == half.left
    assert same(site.out / half.path.name, half.path)


def test_replaced_object_fetches_what_is_different(site, half_downloaded):
    """The new object shares all bytes but those of one part with the old one."""
    half = half_downloaded
    with half.path.open("r+b") as file:
        file.seek((half.done[1] - 1) * PART_BYTES + 7)
        file.write(b"NEW")
    operations.upload(sessions.engine(None), UploadItem(half.object_id, half.path, None), force=True)
    site.proxy.forget()

    download(half.object_id, str(site.out))

    assert site.gets() == sorted([half.done[1], *half.left])
    assert same(site.out / half.path.name, half.path)


def test_object_replaced_between_parts_is_never_mixed(site):
    object_id, path = site.stored(len(ALL))
    other = site.file(len(ALL), "other.bam", seed=2)
    with open_engine(load()) as engine:
        replace = Call(lambda: operations.upload(engine, UploadItem(object_id, other, None), force=True))
        site.proxy.inject(replace, when=part(4, PART_BYTES), times=1)
        with pytest.raises(ChangedError, match="run the same command again"):
            download(object_id, str(site.out))
    assert not (site.out / path.name).exists()

    download(object_id, str(site.out), file_name=path.name)

    assert same(site.out / path.name, other)


def test_lost_result_cache_fetches_nothing_twice(site, half_downloaded):
    half = half_downloaded
    shutil.rmtree(site.results)

    report = download(half.object_id, str(site.out))

    assert site.gets() == half.left
    assert (report["parts_kept"], report["parts_cached"]) == (5, 0)
    assert same(site.out / half.path.name, half.path)


def test_damaged_result_is_no_result(site, half_downloaded):
    half = half_downloaded
    for result in site.cached_results():
        result.write_bytes(result.read_bytes()[:30])

    report = download(half.object_id, str(site.out))

    assert site.gets() == half.left
    assert report["parts_cached"] == 0
    assert same(site.out / half.path.name, half.path)


def test_finished_target_is_not_believed_without_its_bytes(site):
    object_id, path = site.stored(3)
    download(object_id, str(site.out))
    (site.out / path.name).unlink()
    site.proxy.forget()

    download(object_id, str(site.out))

    assert site.gets() == [1, 2, 3]
    assert same(site.out / path.name, path)


# Uploads


def test_untouched_upload_sends_what_is_left(site, half_uploaded):
    half = half_uploaded

    report = upload(str(half.path), half.object_id)

    assert site.puts() == half.left
    assert (report["parts_kept"], report["parts_cached"]) == (5, 5)
    assert_stored(site, half.object_id, half.path)
    assert site.cached_results() == []


def test_aborted_upload_sends_everything(site, half_uploaded):
    half = half_uploaded
    site.repository.abort(half.object_id)

    report = upload(str(half.path), half.object_id)

    assert site.puts() == ALL
    assert report["parts_cached"] == 0
    assert_stored(site, half.object_id, half.path)


def test_upload_aborted_meanwhile_fails_and_starts_anew(site):
    path, object_id = site.file(len(ALL)), new_id()
    site.proxy.inject(Call(lambda: site.repository.abort(object_id)), when=part(4), times=1)

    with pytest.raises(NotResumableError, match="run the same command again"):
        upload(str(path), object_id)
    site.proxy.forget()
    upload(str(path), object_id)

    assert site.puts() == ALL
    assert_stored(site, object_id, path)


def test_changed_source_is_another_upload(site, half_uploaded):
    half = half_uploaded
    with half.path.open("r+b") as file:
        file.seek((half.left[0] - 1) * PART_BYTES)
        file.write(b"NEW")

    with pytest.raises(Conflict, match=f"score abort --object-id {half.object_id}"):
        upload(str(half.path), half.object_id)
    report = upload(str(half.path), half.object_id, force=True)

    assert site.puts() == ALL
    assert report["parts_cached"] == 0
    assert_stored(site, half.object_id, half.path)


def test_part_replaced_in_the_store_is_sent_again(site, half_uploaded):
    half = half_uploaded
    found = site.repository.find_upload(half.object_id, half.path.stat().st_size)
    assert found is not None
    store = sessions.engine(None).repository._buckets.base.data  # type: ignore[attr-defined]
    with store.receive_part(f"data/{half.object_id}", found.upload_id, half.done[1]) as writer:
        writer.write(b"\0" * PART_BYTES)
        writer.commit()

    upload(str(half.path), half.object_id)

    assert site.puts() == sorted([half.done[1], *half.left])
    assert_stored(site, half.object_id, half.path)


def test_upload_with_lost_result_cache_sends_nothing_twice(site, half_uploaded):
    half = half_uploaded
    shutil.rmtree(site.results)

    report = upload(str(half.path), half.object_id)

    assert site.puts() == half.left
    assert (report["parts_kept"], report["parts_cached"]) == (5, 0)
    assert_stored(site, half.object_id, half.path)


def assert_stored(site, object_id, path):
    """The object in the store is the file, no multipart upload is open."""
    assert list(site.repository.list_uploads()) == []
    operations.download(sessions.engine(None), DownloadItem(object_id), DownloadOptions(site.folder / "check"))
    assert same(site.folder / "check" / path.name, path)


# Both engines


def test_flow_finishes_a_download_of_the_direct_engine(site):
    object_id, path = site.stored(len(ALL))
    with refusing_after_five(site):
        operations.download(sessions.engine(None), DownloadItem(object_id), DownloadOptions(site.out))
    half = halved(site, object_id, path, site.gets())

    report = download(object_id, str(site.out))

    assert site.gets() == half.left
    assert (report["parts_kept"], report["parts_cached"]) == (5, 0)
    assert same(site.out / path.name, path)


def test_direct_engine_finishes_a_download_of_the_flow(site, half_downloaded):
    half = half_downloaded

    operations.download(sessions.engine(None), DownloadItem(half.object_id), DownloadOptions(site.out))

    assert site.gets() == half.left
    assert same(site.out / half.path.name, half.path)


def test_flow_finishes_an_upload_of_the_direct_engine(site):
    path, object_id = site.file(len(ALL)), new_id()
    with refusing_after_five(site):
        operations.upload(sessions.engine(None), UploadItem(object_id, path, None))
    half = halved(site, object_id, path, site.puts())

    report = upload(str(path), object_id)

    assert site.puts() == half.left
    assert report["parts_kept"] == 5
    assert_stored(site, object_id, path)


def test_direct_engine_finishes_an_upload_of_the_flow(site, half_uploaded):
    half = half_uploaded

    operations.upload(sessions.engine(None), UploadItem(half.object_id, half.path, None))

    assert site.puts() == half.left
    assert_stored(site, half.object_id, half.path)


def test_kept_parts_show_as_task_runs_too(site, half_downloaded):
    half = half_downloaded

    download(half.object_id, str(site.out))

    states = {name: run.state_name for name, run in task_runs(f"download {half.object_id}", 12).items() if name.startswith("part-")}
    assert states == {f"part-{number:06d}": "Cached" if number in half.done else "Completed" for number in ALL}
