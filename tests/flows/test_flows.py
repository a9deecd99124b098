"""The flows on a real Prefect server and a real byte server, with faults on the wire between."""

import dataclasses
import inspect
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.batch import batch
from flows.download import download
from flows.upload import upload
from score_core.errors import AccessDenied, BatchError, ConfigurationError, Conflict, ObjectMismatch, ObjectNotFound, PartMismatch
from score_core.operations import file_md5
from score_core.repository.direct import DirectRepository
from score_core.session import open_engine
from score_core.settings import load
from score_core.stores.local import LocalStore
from score_core.testing.faults import Answer, Call, Flip, busy, denied, expired, moves_part, part
from score_core.transfer.engine import Engine
from tasks import options, sessions
from tasks.finalising import abort
from tests.flows.conftest import PART_BYTES, artifacts, flow_run, new_id, quick_engine, same, task_runs

pytestmark = [pytest.mark.prefect, pytest.mark.xdist_group("flows")]


def numbered(count: int, first: int = 1) -> set[str]:
    return {f"part-{number:06d}" for number in range(first, first + count)}


# The main job


def test_upload_runs_one_task_per_part(site):
    path, object_id = site.file(5.5), new_id()

    report = upload(str(path), object_id)

    assert (report["outcome"], report["parts"], report["bytes_moved"]) == ("uploaded", 6, path.stat().st_size)
    assert site.puts() == [1, 2, 3, 4, 5, 6]
    runs = task_runs(f"upload {object_id}", 10)
    assert set(runs) == numbered(6) | {"plan-upload-" + name.split("-")[-1] for name in runs if name.startswith("plan")} | {
        name for name in runs if name.startswith(("find-damaged", "verify-md5", "finalise-upload", "sign-000"))
    }
    assert {runs[name].state_name for name in numbered(6)} == {"Completed"}


def test_download_runs_one_task_per_part(site):
    object_id, path = site.stored(5.5)

    report = download(object_id, str(site.out))

    assert (report["outcome"], report["parts"], report["parts_kept"]) == ("downloaded", 6, 0)
    assert same(site.out / path.name, path)
    assert numbered(6) <= set(task_runs(f"download {object_id}", 10))


@pytest.mark.parametrize("size", [0, PART_BYTES, PART_BYTES + 1])
def test_odd_sizes_go_up_and_down(site, size):
    path, object_id = site.file(size / PART_BYTES), new_id()
    assert path.stat().st_size == size

    upload(str(path), object_id)
    report = download(object_id, str(site.out))

    assert same(site.out / path.name, path)
    assert report["md5"] is not None


def test_second_upload_finds_the_object_there(site):
    object_id, path = site.stored(3)

    assert upload(str(path), object_id)["outcome"] == "already there"
    assert site.puts() == []


def test_second_download_finds_the_file_there(site):
    object_id, _ = site.stored(3)
    download(object_id, str(site.out))
    site.proxy.forget()

    assert download(object_id, str(site.out))["outcome"] == "already there"
    assert site.gets() == []


def test_other_content_needs_force(site):
    object_id, _ = site.stored(3)
    other = site.file(3, seed=2)

    with pytest.raises(Conflict, match="--force replaces it"):
        upload(str(other), object_id)
    assert upload(str(other), object_id, force=True)["outcome"] == "uploaded"
    download(object_id, str(site.out))

    assert same(site.out / other.name, other)


def test_other_local_file_needs_force(site):
    object_id, path = site.stored(3)
    site.out.mkdir()
    (site.out / path.name).write_bytes(b"mine")

    with pytest.raises(Conflict, match="--force replaces it"):
        download(object_id, str(site.out))
    download(object_id, str(site.out), force=True)

    assert same(site.out / path.name, path)


def test_store_parameter_beats_the_settings(site, monkeypatch):
    monkeypatch.delenv("SCORE_SERVE_URL")
    path, object_id, other = site.file(2), new_id(), (site.folder / "other").as_uri()

    upload(str(path), object_id, store=other)
    download(object_id, str(site.out), store=other)

    assert same(site.out / path.name, path)
    assert site.proxy.seen == []


# Batches


def manifest_of(folder: Path, rows: list[tuple[str, Path]]) -> str:
    path = folder / "upload.tsv"
    md5s = [file_md5(file) if file.exists() else "0" * 32 for _, file in rows]
    path.write_text("object_id\tpath\tmd5\n" + "".join(f"{row[0]}\t{row[1]}\t{md5}\n" for row, md5 in zip(rows, md5s, strict=True)))
    return str(path)


def downloads_of(folder: Path, rows: list[tuple[str, Path]]) -> str:
    names = "repo_code file_id object_id file_format file_name file_size md5_sum index_object_id donor_id project_id study"
    lines = ["\t".join(["", "", object_id, "BAM", file.name, str(file.stat().st_size), "", "", "", "", ""]) for object_id, file in rows]
    path = folder / "download.tsv"
    path.write_text("\n".join([names.replace(" ", "\t"), *lines]) + "\n")
    return str(path)


def test_batch_gives_a_large_file_its_own_flow(site):
    files = [site.file(1 + number / 10, f"small-{number}.bam", seed=number) for number in range(3)]
    rows = [(new_id(), path) for path in [*files, site.file(4, "large.bam")]]

    up = batch(manifest_of(site.folder, rows), "upload", large_bytes=3 * PART_BYTES)
    down = batch(downloads_of(site.folder, rows), "download", str(site.out), large_bytes=3 * PART_BYTES)

    assert [report["outcome"] for report in up + down] == ["uploaded"] * 4 + ["downloaded"] * 4
    assert all(same(site.out / path.name, path) for _, path in rows)
    assert numbered(4) <= set(task_runs(f"upload {rows[-1][0]}", 8))
    assert flow_run(f"download {rows[-1][0]}").parent_task_run_id is not None


def test_bad_file_does_not_stop_the_batch(site):
    rows = [(new_id(), site.file(1, "one.bam")), (new_id(), site.folder / "missing.bam"), (new_id(), site.file(1, "two.bam", seed=2))]

    with pytest.raises(BatchError, match=r"1 of 3 files failed, first .*missing.bam: Cannot") as raised:
        batch(manifest_of(site.folder, rows), "upload")

    assert [report.outcome for report in raised.value.reports] == ["uploaded", "failed", "uploaded"]
    assert flow_run(f"batch upload {site.folder}/upload.tsv").state_name == "Failed"


def test_batch_again_does_only_what_is_missing(site):
    rows = [(new_id(), site.file(1, "one.bam")), (new_id(), site.file(1, "late.bam", seed=2))]
    manifest = manifest_of(site.folder, rows)
    (site.folder / "late.bam").unlink()
    with pytest.raises(BatchError):
        batch(manifest, "upload")
    site.file(1, "late.bam", seed=2)
    site.proxy.forget()

    reports = batch(manifest, "upload")

    assert [report["outcome"] for report in reports] == ["already there", "uploaded"]
    assert len(site.puts()) == 1


def test_batch_of_forty_with_two_bad_ones(site):
    rows = [(new_id(), site.file(0.1, f"f{number:02d}.bam", seed=number)) for number in range(40)]
    manifest = Path(manifest_of(site.folder, rows))
    right = manifest.read_text()
    wrong = file_md5(rows[7][1])
    manifest.write_text(right.replace(wrong, "0" * 32))
    rows[31][1].rename(site.folder / "elsewhere")

    with pytest.raises(BatchError, match="2 of 40 files failed") as raised:
        batch(str(manifest), "upload")
    assert raised.value.exit_code == 9
    assert [report.error is not None for report in raised.value.reports].count(True) == 2

    (site.folder / "elsewhere").rename(rows[31][1])
    manifest.write_text(right)
    site.proxy.forget()
    reports = batch(str(manifest), "upload")
    assert [number for number, report in enumerate(reports) if report["outcome"] == "uploaded"] == [7, 31]
    assert len(site.puts()) == 2


def test_batch_leaves_a_table_of_receipts(site):
    rows = [(new_id(), site.file(1, "one.bam"))]

    batch(manifest_of(site.folder, rows), "upload")

    (table,) = [found for found in artifacts(f"batch upload {site.folder}/upload.tsv") if found.type == "table"]
    assert table.key == "batch-receipts"
    assert rows[0][0] in str(table.data)


# Resume


def test_finished_parts_are_cached_on_resume(site):
    path, object_id = site.file(6), new_id()
    site.proxy.inject(denied(), when=part(5))
    with pytest.raises(AccessDenied):
        upload(str(path), object_id)
    done = site.puts()
    site.proxy.heal()
    site.proxy.forget()

    report = upload(str(path), object_id)

    assert 1 <= len(done) <= 5
    assert site.puts() == sorted(set(range(1, 7)) - set(done))
    assert (report["parts_kept"], report["parts_cached"]) == (len(done), len(done))
    states = {name: run.state_name for name, run in task_runs(f"upload {object_id}", 10).items() if name in numbered(6)}
    assert states == {f"part-{number:06d}": "Cached" if number in done else "Completed" for number in range(1, 7)}


def test_finished_transfer_leaves_no_results(site):
    object_id, path = site.stored(3)
    download(object_id, str(site.out))
    upload(str(path), new_id())

    assert site.results.is_dir()
    assert list(site.results.rglob("part-*")) == []


def test_many_parts_are_grouped(site):
    path, object_id = site.file(10), new_id()

    up = upload(str(path), object_id, max_task_runs=4)
    down = download(object_id, str(site.out), max_task_runs=4)

    assert same(site.out / path.name, path)
    assert (up["parts"], down["parts"]) == (10, 10)
    for name in (f"upload {object_id}", f"download {object_id}"):
        runs = task_runs(name, 8)
        assert {run for run in runs if run.startswith("part-")} == {"part-000001", "part-000004", "part-000007", "part-000010"}


def test_group_resumes_at_its_missing_part(site):
    path, object_id = site.file(9), new_id()
    site.proxy.inject(denied(), when=part(5))
    with pytest.raises(AccessDenied):
        upload(str(path), object_id, max_task_runs=3)
    done = site.puts()
    site.proxy.heal()
    site.proxy.forget()

    report = upload(str(path), object_id, max_task_runs=3)

    assert 4 in done
    assert site.puts() == sorted(set(range(1, 10)) - set(done))
    assert report["parts_kept"] == len(done)


# Failures


def test_denied_part_fails_the_flow(site):
    object_id, _ = site.stored(4)
    site.proxy.inject(denied(), when=part(2, PART_BYTES))

    with pytest.raises(AccessDenied, match=rf"Part 2 of object {object_id} after 2 tries: The store denied access"):
        download(object_id, str(site.out))

    assert site.proxy.tries(2, PART_BYTES) == 2
    run = flow_run(f"download {object_id}")
    assert run.state_name == "Failed"
    assert run.state is not None
    assert "AccessDenied" in str(run.state.message)
    assert not (site.out / "reads.bam").exists()


def test_missing_object_is_not_found(site):
    with pytest.raises(ObjectNotFound, match="check the id and the store"):
        download(new_id(), str(site.out))


def test_wrong_id_is_refused(site):
    with pytest.raises(ConfigurationError, match="is not an object id"):
        upload(str(site.file(1)), "reads")


def test_wrong_md5_stops_the_parts_and_publishes_nothing(site):
    path, object_id = site.file(200), new_id()

    with pytest.raises(ObjectMismatch, match="is not the file that was promised"):
        upload(str(path), object_id, md5="0" * 32)

    assert len(site.puts()) < 200
    assert not site.repository.exists(object_id)
    assert list(site.repository.list_uploads()) == []
    assert flow_run(f"upload {object_id}").state_name == "Failed"


def test_busy_store_is_tried_again(site):
    path, object_id = site.file(4), new_id()
    site.proxy.inject(busy(), when=part(2), times=2)

    report = upload(str(path), object_id)

    assert (report["outcome"], report["retries"], site.proxy.tries(2)) == ("uploaded", 2, 3)
    assert task_runs(f"upload {object_id}", 8)["part-000002"].run_count == 3


def test_retry_after_is_obeyed(site):
    object_id, path = site.stored(2)
    site.proxy.inject(busy(503, retry_after_s=1), when=part(1, PART_BYTES), times=1)

    download(object_id, str(site.out))

    first, second = [seen.at for seen in site.proxy.moves() if part(1, PART_BYTES)(seen)]
    assert second - first >= 1
    assert same(site.out / path.name, path)


def test_damaged_part_is_fetched_again(site):
    object_id, path = site.stored(3)
    site.proxy.inject(Flip(at=17), when=part(3, PART_BYTES), times=2)

    report = download(object_id, str(site.out))

    assert (report["retries"], site.proxy.tries(3, PART_BYTES)) == (2, 3)
    assert same(site.out / path.name, path)


def test_damage_that_stays_ends_after_five_tries(site):
    object_id, _ = site.stored(3)
    site.proxy.inject(Flip(at=17), when=part(3, PART_BYTES))

    with pytest.raises(PartMismatch, match=r"Gave up after 5 tries: Part 3 .* arrived damaged: expected MD5 .*, got "):
        download(object_id, str(site.out))

    assert site.proxy.tries(3, PART_BYTES) == 5


def test_attempts_come_from_the_settings(site, monkeypatch):
    monkeypatch.setenv("SCORE_ATTEMPTS", "12")
    object_id, path = site.stored(2)
    site.proxy.inject(Answer(500), when=part(1, PART_BYTES), times=11)

    with quick_engine() as engine:
        sessions.use_engine(None, engine)
        report = download(object_id, str(site.out))

    assert report["retries"] == 11
    assert same(site.out / path.name, path)


def test_failure_does_not_wait_for_a_pausing_part(site):
    """Part 1 pauses for half a minute after an error; part 4 fails for good meanwhile, and the flow with it."""
    object_id, _ = site.stored(4)
    site.proxy.inject(Answer(500), when=part(1, PART_BYTES))
    site.proxy.inject(Answer(404), when=part(4, PART_BYTES))
    began = time.monotonic()

    with open_engine(load()) as engine, pytest.raises(ObjectNotFound, match="Part 4 of object"):
        sessions.use_engine(None, dataclasses.replace(engine, policy=dataclasses.replace(engine.policy, base_s=60.0, cap_s=60.0)))
        download(object_id, str(site.out))

    assert time.monotonic() - began < 20


def test_expired_url_is_signed_again(site):
    object_id, path = site.stored(4)
    site.proxy.inject(expired(), when=part(2, PART_BYTES), times=1)

    report = download(object_id, str(site.out))

    assert report["retries"] == 1
    assert 2 <= report["signings"] <= 4  # parts that had no URL at hand yet may ask before part 2 does
    assert {"sign-000001", "sign-000002"} <= set(task_runs(f"download {object_id}", 8 + report["signings"]))
    assert same(site.out / path.name, path)


def test_denial_after_other_faults_gets_its_second_chance(site):
    object_id, path = site.stored(2)
    site.proxy.inject(busy(500), when=part(1, PART_BYTES), times=3)
    site.proxy.inject(denied(), when=part(1, PART_BYTES), times=1)

    download(object_id, str(site.out))

    assert same(site.out / path.name, path)


def short_lived(site, lifetime_s: float) -> Engine:
    """The site's engine, whose URLs are good for so long."""
    store = LocalStore(site.folder / "store", base_url=site.proxy.url)
    repository = DirectRepository(store, part_size_bytes=PART_BYTES, download_lifetime_s=lifetime_s, upload_lifetime_s=lifetime_s)
    return dataclasses.replace(sessions.engine(None), repository=repository)


def test_urls_of_two_seconds_last_for_40_slow_parts(site):
    object_id, path = site.stored(40)
    site.proxy.inject(Call(lambda: time.sleep(0.3)))
    sessions.use_engine("short-lived", short_lived(site, 2.0))

    report = download(object_id, str(site.out), store="short-lived")

    assert same(site.out / path.name, path)
    assert report["retries"] == 0  # none was used in its last moments
    assert 2 <= report["signings"] <= 8  # 40 parts x 0.3 s / 4 at once = 3 s


def test_urls_of_two_seconds_last_for_40_slow_parts_up(site):
    object_id, path = new_id(), site.file(40)
    site.proxy.inject(Call(lambda: time.sleep(0.3)), when=moves_part)
    sessions.use_engine("short-lived-up", short_lived(site, 2.0))

    report = upload(str(path), object_id, store="short-lived-up")

    assert (report["outcome"], report["retries"]) == ("uploaded", 0)
    assert 2 <= report["signings"] <= 8


# What the UI shows, and what is stored


def test_progress_ends_at_a_hundred(site):
    object_id, _ = site.stored(3)

    download(object_id, str(site.out))

    (progress,) = [found for found in artifacts(f"download {object_id}") if found.type == "progress"]
    assert progress.data == 100.0
    assert progress.key == f"transfer-{object_id}"


@pytest.mark.parametrize("field", ["key", "object_id", "path"])
def test_cache_key_holds_generation_object_and_target(field):
    """A result of another upload id or journal generation can never be taken for one of this."""
    ref = sessions.Ref(key="generation-1", object_id=new_id(), path="/data/x.bam")
    other = dataclasses.replace(ref, **{field: "/other"})
    facts = {"number": 1, "count": 1, "offset": 0, "size": 10, "digest": "none"}
    context: Any = SimpleNamespace(task=SimpleNamespace(name="download-part"))
    assert options.part_key(context, {"transfer": ref, **facts}) == options.part_key(context, {"transfer": ref, **facts})
    assert options.part_key(context, {"transfer": ref, **facts}) != options.part_key(context, {"transfer": other, **facts})


@pytest.mark.parametrize("field", ["number", "count", "offset", "size", "digest"])
def test_cache_key_holds_every_fact_of_the_part(field):
    parameters = {"transfer": sessions.Ref("k", new_id(), "/x"), "number": 1, "count": 1, "offset": 0, "size": 10, "digest": "none"}
    context: Any = SimpleNamespace(task=SimpleNamespace(name="download-part"))
    assert options.part_key(context, parameters) != options.part_key(context, {**parameters, field: 7})


def test_abort_task_drops_an_unfinished_upload(site):
    object_id = new_id()
    sessions.engine(None).repository.begin_upload(object_id, 10, md5="0" * 32)
    assert abort.fn(None, object_id) is True
    assert abort.fn(None, object_id) is False


def test_retryable_is_a_plain_function():
    assert inspect.isfunction(options.retryable)


def test_nothing_of_the_developer_is_touched(site):
    before = Path("~/.prefect").expanduser()
    listed = sorted((entry.name, entry.stat().st_mtime) for entry in os.scandir(before)) if before.is_dir() else []
    object_id, _ = site.stored(2)
    download(object_id, str(site.out))

    assert listed == (sorted((entry.name, entry.stat().st_mtime) for entry in os.scandir(before)) if before.is_dir() else [])


def test_flow_prints_nothing(site, capfd):
    object_id, path = site.stored(3)

    download(object_id, str(site.out))
    upload(str(path), new_id())

    assert capfd.readouterr() == ("", "")
