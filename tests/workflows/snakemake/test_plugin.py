"""Single behaviours of the storage plugin, against a real server, without a run of Snakemake."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pysam
import pytest
from snakemake.io import IOCache
from snakemake_interface_common.exceptions import WorkflowError

from score_core import operations
from score_core.checksum import md5_hex
from score_core.metadata.base import Analysis
from score_core.operations import UploadItem
from score_core.testing.faults import Answer, Fault, Flip, Reset, expired
from snakemake_storage_plugin_score import StorageObject, StorageProvider, StorageProviderSettings
from tests.workflows.snakemake.conftest import PART_BYTES, STUDY, TOKEN, Site

DATA = Path(__file__).resolve().parents[2] / "data"
UNKNOWN = "00000000-0000-5000-8000-000000000000"
Provide = Callable[..., StorageProvider]


@pytest.fixture
def provide(site: Site, tmp_path: Path) -> Iterator[Provide]:
    """Makes providers, by default of the server over a folder."""
    with ExitStack() as closing:

        def make(**settings: Any) -> StorageProvider:
            given = {"url": site.url, "metadata_url": site.url, "token": TOKEN, "attempts": 3, **settings}
            provider = StorageProvider(
                logger=logging.getLogger("test"), local_prefix=tmp_path / "local", settings=StorageProviderSettings(**given)
            )
            closing.callback(provider.backend.close)
            return provider

        yield make


def query_of(analysis: Analysis, name: str, tail: str = "") -> str:
    return f"score://{analysis.study_id}/{analysis.analysis_id}/{name}{tail}"


def retrieved(*objects: StorageObject) -> None:
    """As Snakemake does it: all at once."""

    async def together() -> None:
        async with asyncio.TaskGroup() as group:
            for each in objects:
                group.create_task(each.managed_retrieve())

    asyncio.run(together())


def made(size: float, seed: int = 1) -> bytes:
    """Bytes of so many parts."""
    return Random(seed).randbytes(int(size * PART_BYTES))


def local(obj: StorageObject, data: bytes) -> StorageObject:
    """The object, with a local file of these bytes, as a job leaves it."""
    path = Path(obj.local_path())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return obj


# What is there


def test_size_checksum_and_time_are_those_of_the_metadata(site: Site, provide: Provide) -> None:
    analysis = site.add({"a.txt": b"hello"})
    obj = provide().object(query_of(analysis, "a.txt"))
    assert (obj.exists(), obj.size(), obj.checksum()) == (True, 5, f"md5:{md5_hex(b'hello')}")
    assert obj.mtime() == pytest.approx(analysis.history[0].at, abs=0.01)


def test_time_of_a_file_stays_when_its_analysis_is_published_again(site: Site, provide: Provide) -> None:
    analysis = site.add({"a.txt": b"hello"})
    before = provide().object(query_of(analysis, "a.txt")).mtime()
    site.registry.unpublish(STUDY, analysis.analysis_id)
    time.sleep(0.02)
    site.registry.publish(STUDY, analysis.analysis_id)
    assert provide().object(query_of(analysis, "a.txt")).mtime() == before


def test_unpublished_file_is_there_once_it_is_stored(site: Site, provide: Provide) -> None:
    analysis = site.add({"a.txt": b"hello"}, stores=False, publishes=False)
    provider = provide()
    obj = local(provider.object(query_of(analysis, "a.txt")), b"hello")
    assert (obj.exists(), obj.checksum()) == (False, None)
    obj.store_object()
    assert (obj.exists(), obj.size()) == (True, 5)
    assert obj.mtime() == pytest.approx(analysis.created_at, abs=0.01)


def test_inventory_and_all_questions_ask_the_metadata_once(site: Site, provide: Provide) -> None:
    names = [f"{number}.txt" for number in range(12)]
    analysis = site.add({name: name.encode() for name in names})
    provider, cache = provide(), IOCache(10)
    for obj in [provider.object(query_of(analysis, name)) for name in names]:
        asyncio.run(obj.inventory(cache))
        assert cache.exists_in_storage[str(obj.local_path())]
        assert (cache.size[str(obj.local_path())], cache.checksum[str(obj.local_path())]) == (obj.size(), obj.checksum())
        assert cache.mtime[str(obj.local_path())].storage() == obj.mtime()
    by_id = [provider.object(f"score://{record.object_id}/x") for record in analysis.files]
    assert all(obj.exists() for obj in by_id)
    assert len(site.metadata_calls()) == 1
    assert [seen.key for seen in site.rest.seen] == [f"studies/{STUDY}/analysis/{analysis.analysis_id}"]


def test_what_is_not_there_is_asked_for_again(site: Site, provide: Provide) -> None:
    analysis_id = str(uuid.uuid4())
    obj = provide().object(f"score://{STUDY}/{analysis_id}/a.txt")
    assert not obj.exists()
    site.add({"a.txt": b"hello"}, analysis_id=analysis_id)
    assert obj.exists()


def test_unpublished_analysis_is_asked_for_again_after_a_while(site: Site, provide: Provide, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = site.add({"a.txt": b"hello"}, publishes=False)
    obj = provide().object(query_of(analysis, "a.txt"))
    assert [obj.exists(), obj.exists(), obj.size()] == [True, True, 5]
    assert len(site.metadata_calls()) == 1
    monkeypatch.setattr("snakemake_storage_plugin_score._backend._KEPT_S", 0.0)
    later = provide().object(query_of(analysis, "a.txt"))
    assert later.mtime() == pytest.approx(analysis.created_at, abs=0.01)
    site.registry.publish(STUDY, analysis.analysis_id)
    published = site.registry.analysis(STUDY, analysis.analysis_id).history[0].at
    assert later.mtime() == pytest.approx(published, abs=0.01)
    assert later.mtime() == pytest.approx(published, abs=0.01)
    assert len(site.metadata_calls()) == 3  # a published one is asked for no more


def test_missing_file_has_no_checksum_and_no_size(site: Site, provide: Provide) -> None:
    provider, analysis = provide(), site.add({"a.txt": b"hello"})
    for query in (query_of(analysis, "b.txt"), f"score://{STUDY}/{UNKNOWN}/a.txt", f"score://{UNKNOWN}/a.txt", f"score://{STUDY}/x/a.txt"):
        obj = provider.object(query)
        assert (obj.exists(), obj.checksum()) == (False, None)
        for ask in (obj.size, obj.mtime, obj.local_footprint, obj.retrieve_object):
            with pytest.raises(WorkflowError, match="not found"):
                ask()


def test_withdrawn_file_is_not_merely_missing(site: Site, provide: Provide) -> None:
    analysis = site.add({"a.txt": b"hello"})
    site.registry.suppress(STUDY, analysis.analysis_id)
    with pytest.raises(WorkflowError, match="SUPPRESSED.*withdrawn.*use another"):
        provide().object(query_of(analysis, "a.txt")).exists()


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "SNAKEMAKE_STORAGE_SCORE_TOKEN"),
        (403, "ask the operator for access"),
        (500, "answered 500.*try again later"),
        (503, "answered 503.*try again later"),
    ],
)
def test_refusal_is_an_error_and_never_a_missing_file(site: Site, provide: Provide, status: int, says: str) -> None:
    analysis = site.add({"a.txt": b"hello"})
    site.rest.inject(Answer(status, b'{"message": "no"}', {"Content-Type": "application/json"}), when=lambda seen: True)
    obj = provide(attempts=1).object(query_of(analysis, "a.txt"))
    for ask in (obj.exists, obj.mtime, obj.size, obj.checksum):
        with pytest.raises(WorkflowError, match=says) as failed:
            ask()
        assert TOKEN not in str(failed.value)
    with pytest.raises(WorkflowError, match=says):
        asyncio.run(obj.inventory(IOCache(10)))


# Queries


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("s3://bucket/a", "does not begin with score://"),
        ("score://a.bam", "has no file"),
        (f"score://{STUDY}/{UNKNOWN}/", "is empty"),
        (f"score://{STUDY}/../a", "plain name"),
        (f"score://{STUDY}/x/..", "plain name"),
        (f"score://{STUDY}//a", "is empty"),
        (f"score://{STUDY}/x/a\nb", "invisible"),
        ("score://bad study/x/a", "not a study id"),
        ("score://{x}/" + "a" * 300, "longer than 255"),
        (f"score://me:{TOKEN}@{STUDY}/x/a", "a user in it"),
        (f"score://{STUDY}/x/a.bam?", "more than region"),
        (f"score://{STUDY}/x/a.bam?region=", "no region"),
        (f"score://{STUDY}/x/a.bam?format=bam", "no region"),
        (f"score://{STUDY}/x/a.bam?region=chr1&token={TOKEN}", "more than region"),
        (f"score://{STUDY}/x/a.txt?region=chr1", "files named"),
        (f"score://{STUDY}/x/a.bam?region=chr1&format=vcf", "as bam, cram, sam, not as 'vcf'"),
        (f"score://{STUDY}/x/a.vcf.gz?region=chr1&format=bam", "as vcf.gz, bcf, vcf"),
    ],
)
def test_wrong_query_is_refused_with_what_is_wrong_and_without_secrets(query: str, says: str) -> None:
    found = StorageProvider.is_valid_query(query)
    assert not found
    assert says in str(found)
    assert TOKEN not in str(found)


@pytest.mark.parametrize(
    "query",
    [example.query for example in StorageProvider.example_queries()]
    + [
        "score://{study}/{analysis}/{name}.bam",
        "score://{study}/{name,[^/?]+}",
        "score://S/{analysis}/{name}.bam?region={region}&format=sam",
        "score://S/{path}",
        "score://S/x/a#b%20c+d.txt",
    ],
)
def test_right_query_is_taken_with_and_without_wildcards(query: str) -> None:
    assert StorageProvider.is_valid_query(query)


def test_local_paths_differ_where_queries_do_and_tell_the_regions(provide: Provide) -> None:
    provider = provide()
    base = f"score://{STUDY}/{UNKNOWN}/reads.bam"
    long = "&region=".join(f"chr{number}:100000-200000" for number in range(1, 23))
    queries = [base, f"{base}?region=a:b", f"{base}?region=a_b", f"{base}?region=a&region=b", f"{base}?region=a__b"]
    queries += [f"{base}?region=a:b&format=sam", f"{base}?region={long}&region=chrX", f"{base}?region={long}&region=chrY"]
    paths = [str(provider.object(query).local_path()) for query in queries]
    assert len(set(paths)) == len(queries)
    assert not any(other.startswith(path + "/") for path in paths for other in paths)  # none is another's folder
    assert paths[0].endswith(f"local/{STUDY}/{UNKNOWN}/reads.bam")
    assert paths[3].endswith("/reads.a__b.bam")
    assert "reads.chr1_100000-200000__chr2" in paths[6]


def test_local_path_keeps_wildcards_where_they_are(provide: Provide) -> None:
    assert provide().object("score://S/{a,[^/?]+}/{b}.txt").local_suffix() == "S/{a,[^/?]+}/{b}.txt"


def test_queries_are_listed_for_glob_wildcards(site: Site, provide: Provide) -> None:
    analysis = site.add({"a.bam": b"1", "b.bam": b"2", "c.txt": b"3"})
    provider = provide()
    all_of_it = [query_of(analysis, name) for name in ("a.bam", "b.bam", "c.txt")]
    assert list(provider.object(query_of(analysis, "{name}.bam")).list_candidate_matches()) == all_of_it
    assert set(all_of_it) <= set(provider.object("score://{study}/{analysis}/{name}").list_candidate_matches())
    with_region = provider.object(query_of(analysis, "{name}.bam", "?region=chr1")).list_candidate_matches()
    assert list(with_region) == [f"{query}?region=chr1" for query in all_of_it]
    assert list(provider.object(f"score://{STUDY}/{UNKNOWN}/{{name}}").list_candidate_matches()) == []
    with pytest.raises(WorkflowError, match="cannot be listed.*ANALYSIS-ID"):
        provider.object("score://S/results/{x}").list_candidate_matches()


# Retrieving


class Delay(Fault):
    """Holds every request for a while, and knows how many it held at once."""

    def __init__(self, seconds: float, then: Fault | None = None) -> None:
        self.seconds, self.then, self.now, self.most = seconds, then or Fault(), 0, 0
        self._lock = threading.Lock()

    def play(self, exchange: Any) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.seconds)
        with self._lock:
            self.now -= 1
        self.then.play(exchange)


@dataclass
class After(Fault):
    """Plays another fault once something has happened."""

    event: threading.Event
    then: Fault

    def play(self, exchange: Any) -> None:
        assert self.event.wait(60)
        self.then.play(exchange)


def test_as_many_files_are_fetched_at_once_as_are_set(site: Site, provide: Provide) -> None:
    names = [f"{number}.txt" for number in range(12)]
    analysis = site.add({name: name.encode() for name in names})
    spent, peaks = [], []
    for parallel in (4, 1, 12):
        delay = Delay(0.2)
        site.data.heal()
        site.data.inject(delay)
        provider = provide(parallel=parallel, workers=12)
        objects = [provider.object(query_of(analysis, name)) for name in names]
        began = time.monotonic()
        retrieved(*objects)
        spent.append(time.monotonic() - began)
        peaks.append(delay.most)
        assert [Path(obj.local_path()).read_text() for obj in objects] == names
        for obj in objects:
            Path(obj.local_path()).unlink()
    assert peaks == [4, 1, 12]
    assert spent[0] <= 0.6 * spent[1]


@pytest.mark.parametrize("fault", [Reset(after=1000), expired(), Flip(at=9)], ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("times", [1, 2])
def test_broken_part_is_fetched_again_and_no_other(site: Site, provide: Provide, fault: Fault, times: int) -> None:
    data = made(4.5)
    obj = provide().object(query_of(site.add({"a.bin": data}), "a.bin"))
    site.data.inject(fault, when=lambda seen: seen.offset == 2 * PART_BYTES, times=times)
    retrieved(obj)
    assert Path(obj.local_path()).read_bytes() == data
    assert sorted(seen.offset // PART_BYTES for seen in site.gets()) == sorted([0, 1, 3, 4] + [2] * (times + 1))
    assert site.data.moved_bytes <= len(data) + times * PART_BYTES


def test_file_that_fails_for_good_is_continued_by_the_next_run(site: Site, provide: Provide) -> None:
    data = made(4.5)
    analysis = site.add({"a.bin": data})
    site.data.inject(Reset(after=100), when=lambda seen: seen.offset == 2 * PART_BYTES)
    obj = provide(workers=1, attempts=2).object(query_of(analysis, "a.bin"))
    with pytest.raises(ExceptionGroup) as failed:
        retrieved(obj)
    (error,) = failed.value.exceptions
    assert isinstance(error, WorkflowError)
    assert analysis.files[0].object_id in str(error)
    assert "Part 3" in str(error)
    assert "after 2 tries" in str(error)
    assert not obj.local_path().exists()
    assert (obj.provider.local_prefix / ".score-parts" / f"{analysis.files[0].object_id}.part").exists()
    site.forget()
    later = provide().object(query_of(analysis, "a.bin"))
    retrieved(later)
    assert Path(later.local_path()).read_bytes() == data
    assert sorted(seen.offset // PART_BYTES for seen in site.gets()) == [2, 3, 4]
    assert list((later.provider.local_prefix / ".score-parts").iterdir()) == []


def test_flipped_byte_leaves_no_file(site: Site, provide: Provide) -> None:
    obj = provide(attempts=2).object(query_of(site.add({"a.bin": made(2)}), "a.bin"))
    site.data.inject(Flip(at=77), when=lambda seen: seen.offset == PART_BYTES)
    with pytest.raises(ExceptionGroup) as failed:
        retrieved(obj)
    assert "damaged" in str(failed.value.exceptions[0])
    assert not obj.local_path().exists()
    assert list(obj.local_path().parent.iterdir()) == []


def test_file_that_fails_stops_its_siblings_and_they_are_continued(site: Site, provide: Provide, caplog: pytest.LogCaptureFixture) -> None:
    bad, good = site.add({"bad.bin": made(1)}), site.add({"good.bin": made(60, seed=2)})
    bad_id, good_id = bad.files[0].object_id, good.files[0].object_id
    some = threading.Event()
    site.data.inject(After(some, Reset()), when=lambda seen: bad_id in seen.key)
    site.data.inject(Delay(0.05), when=lambda seen: good_id in seen.key)
    site.data.at_byte(4 * PART_BYTES, some.set)
    provider = provide(workers=2, attempts=1)
    objects = [provider.object(query_of(bad, "bad.bin")), provider.object(query_of(good, "good.bin"))]
    with pytest.raises(ExceptionGroup):
        retrieved(*objects)
    assert len([seen for seen in site.gets() if good_id in seen.key]) < 60
    assert not objects[1].local_path().exists()
    gc.collect()
    assert "never retrieved" not in caplog.text
    site.forget()
    retrieved(provide().object(query_of(good, "good.bin")))
    assert len(site.gets()) < 60


def test_file_that_is_there_is_not_fetched_and_an_older_one_is_replaced(site: Site, provide: Provide) -> None:
    analysis = site.add({"a.txt": b"hello"})
    obj = local(provide().object(query_of(analysis, "a.txt")), b"hello")
    retrieved(obj)
    assert site.gets() == []
    retrieved(local(obj, b"older"))
    assert Path(obj.local_path()).read_bytes() == b"hello"


def test_other_bytes_than_registered_are_not_fetched(site: Site, provide: Provide) -> None:
    for other in (b"jello", b"hello!"):
        analysis = site.add({"a.txt": b"hello"})
        source = local(provide().object("score://S/x/other"), other).local_path()
        operations.upload(site._put, UploadItem(analysis.files[0].object_id, Path(source), None), force=True)  # behind the server's back
        obj = provide().object(query_of(analysis, "a.txt"))
        with pytest.raises(WorkflowError, match=f"{analysis.files[0].object_id} is stored with {len(other)} bytes and registered with 5"):
            obj.retrieve_object()
        assert not obj.local_path().exists()
    assert site.gets() == []


def test_copy_that_is_older_than_the_publication_is_looked_at_once(site: Site, provide: Provide) -> None:
    obj = local(provide().object(query_of(site.add({"a.txt": b"hello"}), "a.txt")), b"hello")
    os.utime(obj.local_path(), (1, 1))
    obj.retrieve_object()
    assert Path(obj.local_path()).stat().st_mtime == pytest.approx(obj.mtime(), abs=0.01)
    assert not Path(obj.local_path()).stat().st_mtime < obj.mtime()


def test_no_space_is_told_before_anything_is_fetched(site: Site, provide: Provide, monkeypatch: pytest.MonkeyPatch) -> None:
    obj = provide().object(query_of(site.add({"a.txt": b"hello"}), "a.txt"))
    monkeypatch.setattr("snakemake_interface_storage_plugins.storage_object.get_disk_free", lambda path: 4)
    with pytest.raises(ExceptionGroup) as failed:
        retrieved(obj)
    assert "Cannot store" in str(failed.value.exceptions[0])
    monkeypatch.undo()
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result((1, 1, 4, 4, 4, 9, 9, 9, 0, 255)))
    with pytest.raises(WorkflowError, match="Not enough space"):
        obj.retrieve_object()
    assert site.gets() == []


def test_unpublished_file_is_refused_with_the_reason(site: Site, provide: Provide) -> None:
    obj = provide().object(query_of(site.add({"a.txt": b"hello"}, publishes=False), "a.txt"))
    with pytest.raises(WorkflowError, match="not PUBLISHED"):
        obj.retrieve_object()
    assert not obj.local_path().exists()


def test_regions_are_cut_and_only_what_they_need_is_fetched(site: Site, provide: Provide) -> None:
    name = "htsnexus_test_NA12878.bam"
    files = {name: (DATA / name).read_bytes(), f"{name}.bai": (DATA / f"{name}.bai").read_bytes()}
    analysis = site.add(files)
    regions = ["11:4900000-5000000", "20:60000-70000"]
    tail = "?" + "&".join(f"region={region}" for region in regions)
    bam, sam = (provide().object(query_of(analysis, name, tail + more)) for more in ("", "&format=sam"))
    assert (bam.size(), bam.checksum(), bam.local_footprint()) == (len(files[name]), None, 0)
    retrieved(bam, sam)
    with pysam.AlignmentFile(str(DATA / name)) as whole:
        wanted = sorted(read.to_string() for region in regions for read in whole.fetch(region=region))
    with pysam.AlignmentFile(str(bam.local_path()), check_sq=False) as cut:
        assert sorted(read.to_string() for read in cut.fetch(until_eof=True)) == wanted
    lines = Path(sam.local_path()).read_text().splitlines()
    assert sorted(line for line in lines if not line.startswith("@")) == wanted
    assert wanted
    assert len(site.metadata_calls()) == 2  # one for each provider
    assert sum(seen.sent for seen in site.gets()) < 2 * sum(map(len, files.values()))


def test_regions_of_a_cram_are_written_as_bam_with_the_reference_that_is_set(site: Site, provide: Provide) -> None:
    analysis = site.add({name: (DATA / name).read_bytes() for name in ("range.cram", "range.cram.crai")})
    obj = provide(reference=DATA / "ce.fa.gz").object(query_of(analysis, "range.cram", "?region=CHROMOSOME_I:1000-2000&format=bam"))
    retrieved(obj)
    with pysam.AlignmentFile(str(DATA / "range.bam")) as whole, pysam.AlignmentFile(str(obj.local_path()), check_sq=False) as cut:
        names = [read.query_name for read in cut.fetch(until_eof=True)]
        assert names == [read.query_name for read in whole.fetch(region="CHROMOSOME_I:1000-2000")]
    assert names


def test_regions_need_an_index(site: Site, provide: Provide) -> None:
    name = "htsnexus_test_NA12878.bam"
    obj = provide().object(query_of(site.add({name: (DATA / name).read_bytes()}), name, "?region=11"))
    with pytest.raises(WorkflowError, match="index"):
        obj.retrieve_object()
    assert not obj.local_path().exists()


# Storing


def test_other_bytes_than_registered_are_refused_before_any_is_sent(site: Site, provide: Provide) -> None:
    analysis = site.add({"a.txt": b"hello"}, stores=False, publishes=False)
    for data, says in ((b"hello!", "6 bytes where"), (b"jello", "MD5 given")):
        obj = local(provide().object(query_of(analysis, "a.txt")), data)
        with pytest.raises(WorkflowError, match=f"{says}.*submit another analysis for other bytes"):
            obj.store_object()
    assert [seen for seen in site.data.seen if seen.method == "PUT"] == []
    assert not [seen for seen in site.rest.seen if seen.method == "POST"]


def test_storing_again_sends_nothing(site: Site, provide: Provide) -> None:
    for publishes in (False, True):
        analysis = site.add({"a.txt": b"hello"}, publishes=publishes)
        obj = local(provide().object(query_of(analysis, "a.txt")), b"hello")
        asyncio.run(obj.managed_store())
        assert [seen for seen in site.data.seen if seen.method == "PUT"] == []
        obj = local(obj, b"other")
        with pytest.raises(WorkflowError, match="registered"):
            obj.store_object()


def test_what_is_stored_where_is_told(site: Site, provide: Provide) -> None:
    analysis = site.add({"a.txt": b"hello"})
    said = {
        query_of(analysis, "b.txt"): "does not list the file b.txt.*registered together",
        f"score://{STUDY}/{UNKNOWN}/a.txt": "not registered, so a.txt cannot be stored.*score submit",
        f"score://{STUDY}/results/a.txt": "set the provider's register to true",
        f"score://{UNKNOWN}/a.txt": "An output is written as",
    }
    for query, says in said.items():
        with pytest.raises(WorkflowError, match=says):
            local(provide().object(query), b"hello").store_object()


def test_named_file_is_registered_stored_and_published(site: Site, provide: Provide) -> None:
    query = f"score://{STUDY}/run-{uuid.uuid4()}/deep/er/counts.tsv"
    obj = local(provide(register=True).object(query), b"1\t2\n")
    assert not obj.exists()
    asyncio.run(obj.managed_store())
    assert (obj.exists(), obj.size()) == (True, 4)
    assert abs(obj.mtime() - time.time()) < 60
    obj.local_path().unlink()
    again = provide().object(query)  # reading needs no setting
    retrieved(again)
    assert Path(again.local_path()).read_bytes() == b"1\t2\n"


def test_other_bytes_become_a_new_version_of_a_named_file(site: Site, provide: Provide) -> None:
    query = f"score://{STUDY}/run-{uuid.uuid4()}/a.txt"
    times, submissions = [], []
    for data in (b"one", b"one", b"two", b"three"):
        local(provide(register=True).object(query), data).store_object()
        submissions.append(len([seen for seen in site.rest.seen if seen.key.startswith("submit")]))
        reader = provide().object(query)
        assert reader.checksum() == f"md5:{md5_hex(data)}"
        reader.local_path().unlink()
        reader.retrieve_object()
        assert Path(reader.local_path()).read_bytes() == data
        times.append(reader.mtime())
    assert submissions == [1, 1, 2, 3]
    assert times[0] == times[1] < times[2] < times[3]
    with pytest.raises(WorkflowError, match="not registered with these bytes.*set the provider's register to true"):
        local(provide().object(query), b"four").store_object()


def test_named_file_whose_storing_broke_off_is_stored_by_the_next_run(site: Site, provide: Provide) -> None:
    data = made(3)
    obj = local(provide(register=True, attempts=1, workers=1).object(f"score://{STUDY}/run-{uuid.uuid4()}/a.bin"), data)
    site.data.inject(Reset(), when=lambda seen: seen.part == 2)
    with pytest.raises(WorkflowError, match="Part 2"):
        obj.store_object()
    assert not obj.exists()
    site.forget()
    again = provide(register=True).object(obj.query)
    again.store_object()
    assert again.exists()
    assert sorted(seen.part for seen in site.data.seen if seen.method == "PUT") == [2, 3]
    assert not [seen for seen in site.rest.seen if seen.key.startswith("submit")]


def test_server_that_draws_its_own_ids_takes_no_named_files(site: Site, provide: Provide, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = site.registry.submit
    monkeypatch.setattr(site.registry, "submit", lambda study, payload: submit(study, {**payload, "analysisId": str(uuid.uuid4())}))
    obj = local(provide(register=True).object(f"score://{STUDY}/run-{uuid.uuid4()}/a.txt"), b"hello")
    with pytest.raises(WorkflowError, match="an analysis id of its own.*takes no named files"):
        obj.store_object()
    assert [seen for seen in site.data.seen if seen.method == "PUT"] == []


def test_removing_says_that_objects_stay(site: Site, provide: Provide, caplog: pytest.LogCaptureFixture) -> None:
    obj = provide().object(query_of(site.add({"a.txt": b"hello"}), "a.txt"))
    obj.remove()
    assert "stays stored" in caplog.text
    assert obj.exists()


def test_removing_drops_an_unfinished_upload(site: Site, provide: Provide) -> None:
    data = made(3)
    analysis = site.add({"a.bin": data}, stores=False, publishes=False)
    obj = local(provide(attempts=1).object(query_of(analysis, "a.bin")), data)
    site.data.inject(Reset(), when=lambda seen: seen.part == 3)
    with pytest.raises(WorkflowError, match="Part 3"):
        obj.store_object()
    assert [found.object_id for found in site.repository.list_uploads()] == [analysis.files[0].object_id]
    obj.remove()
    assert list(site.repository.list_uploads()) == []


# Settings


def test_settings_that_are_unset_are_those_of_score(site: Site, provide: Provide, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = site.add({"a.txt": b"hello"})
    for name, value in site.environment().items():
        monkeypatch.setenv(name, value)
    assert provide(url=None, metadata_url=None, token=None).object(query_of(analysis, "a.txt")).exists()


def test_token_comes_from_a_file(site: Site, provide: Provide, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    analysis = site.add({"a.txt": b"hello"})
    assert provide(token=None, token_file=tmp_path / "token").object(query_of(analysis, "a.txt")).exists()


def test_missing_token_is_told_with_what_to_set(site: Site, provide: Provide) -> None:
    obj = provide(token=None).object(query_of(site.add({"a.txt": b"hello"}), "a.txt"))
    with pytest.raises(WorkflowError, match="no token is set; set SNAKEMAKE_STORAGE_SCORE_TOKEN"):
        obj.retrieve_object()


def test_store_without_a_server_is_used_directly(provide: Provide, tmp_path: Path) -> None:
    options = {"url": None, "metadata_url": None, "token": None, "store": (tmp_path / "bucket").as_uri()}
    query = f"score://{STUDY}/run/a.txt"
    with pytest.raises(WorkflowError, match="set metadata_url"):
        provide(**options).object(query).exists()
    local(provide(register=True, **options).object(query), b"hello").store_object()
    assert provide(**options).object(query).checksum() == f"md5:{md5_hex(b'hello')}"


def test_profile_of_scores_configuration_is_used(site: Site, provide: Provide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "score.toml").write_text(f'[profiles.there]\nurl = "{site.url}"\nmetadata_url = "{site.url}"\ntoken = "{TOKEN}"\n')
    monkeypatch.setenv("SCORE_CONFIG", str(tmp_path / "score.toml"))
    obj = provide(url=None, metadata_url=None, token=None, profile="there").object(query_of(site.add({"a.txt": b"hello"}), "a.txt"))
    retrieved(obj)
    assert Path(obj.local_path()).read_bytes() == b"hello"


def test_misspelt_setting_of_a_storage_directive_is_told(tmp_path: Path) -> None:
    settings = StorageProviderSettings()
    vars(settings).update(keep_local=True, metadata_ulr="https://song.example.org")  # as Snakemake does
    with pytest.raises(WorkflowError, match="'metadata_ulr' is no setting; there are .*metadata_url"):
        StorageProvider(tmp_path, logging.getLogger("test"), settings=settings)


@pytest.mark.parametrize("settings", [{"parallel": 0}, {"parallel": "4"}, {"register": "false"}])
def test_setting_that_cannot_be_is_told(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(WorkflowError, match=next(iter(settings))):
        StorageProvider(tmp_path, logging.getLogger("test"), settings=StorageProviderSettings(**settings))


def test_setting_of_scores_own_that_cannot_be_is_told(provide: Provide) -> None:
    with pytest.raises(WorkflowError, match="workers must be at least 1"):
        provide(workers=0).object(f"score://{STUDY}/x/a").exists()


def test_token_shows_nowhere() -> None:
    assert TOKEN not in repr(StorageProviderSettings(token=TOKEN))


def test_limit_of_a_user_holds_for_transfers_only(provide: Provide) -> None:
    from snakemake_interface_storage_plugins.common import Operation

    provider = provide(max_requests_per_second=3)
    assert provider.rate_limiter("score://S/x/y", Operation.RETRIEVE) is provider.rate_limiter("score://S/z/y", Operation.STORE)
    assert provider.rate_limiter("score://S/x/y", Operation.EXISTS) is not provider.rate_limiter("score://S/x/y", Operation.RETRIEVE)
    assert not provide().use_rate_limiter()
