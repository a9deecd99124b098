from __future__ import annotations

import dataclasses
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from score_core import operations
from score_core.errors import Conflict, LocalFileError, ObjectMismatch, ScoreError, Unverifiable
from score_core.metadata import registering
from score_core.metadata.base import Analysis, Entity, FileRecord
from score_core.metadata.registering import NewFile
from score_core.metadata.registry import Registry
from score_core.model import ObjectSpec, Part, TransferReport
from score_core.operations import DownloadItem, DownloadOptions, UploadItem
from score_core.repository.direct import DirectRepository
from score_core.testing.memory import MemoryStore, MemoryTransport
from score_core.transfer.engine import Engine

MD5 = hashlib.md5(b"abc").hexdigest()


@pytest.fixture
def engine() -> Engine:
    store = MemoryStore()
    return Engine(DirectRepository(store, part_size_bytes=1000), MemoryTransport(store), workers=2)


def stored(engine: Engine, folder: Path, name: str = "x.bam", size: int = 2500) -> UploadItem:
    """A published object and the item it was uploaded as."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(os.urandom(size))
    item = UploadItem(str(uuid.uuid4()), path, hashlib.md5(path.read_bytes()).hexdigest())
    operations.upload(engine, item)
    return item


def test_object_comes_back_under_its_name(engine: Engine, tmp_path: Path) -> None:
    item = stored(engine, tmp_path)
    report = operations.download(engine, DownloadItem(item.object_id), DownloadOptions(tmp_path / "out"))
    assert (report.outcome, report.md5) == ("downloaded", item.md5)
    assert (tmp_path / "out" / "x.bam").read_bytes() == item.path.read_bytes()


def test_file_that_is_there_is_verified_not_fetched(engine: Engine, tmp_path: Path) -> None:
    item = stored(engine, tmp_path)
    report = operations.download(engine, DownloadItem(item.object_id), DownloadOptions(tmp_path))
    assert (report.outcome, report.bytes_moved) == ("already there", 0)


def test_other_file_of_that_name_is_refused(engine: Engine, tmp_path: Path) -> None:
    item = stored(engine, tmp_path)
    item.path.write_bytes(b"mine")
    with pytest.raises(Conflict, match="--force replaces it"):
        operations.download(engine, DownloadItem(item.object_id), DownloadOptions(tmp_path))
    assert item.path.read_bytes() == b"mine"


def test_two_objects_of_one_batch_never_share_a_name(engine: Engine, tmp_path: Path) -> None:
    first, second = stored(engine, tmp_path / "a"), stored(engine, tmp_path / "b")
    options = DownloadOptions(tmp_path / "out", force=True)
    operations.download(engine, DownloadItem(first.object_id), options)
    with pytest.raises(Conflict, match=first.object_id):
        operations.download(engine, DownloadItem(second.object_id), options)
    assert (tmp_path / "out" / "x.bam").read_bytes() == first.path.read_bytes()


@pytest.mark.parametrize("analysis", ["..", "/etc", "a/../..", "", "."])
def test_bundle_never_leaves_the_folder(engine: Engine, tmp_path: Path, analysis: str) -> None:
    item = stored(engine, tmp_path)
    out = tmp_path / "out"
    with pytest.raises(LocalFileError):
        operations.download(engine, DownloadItem(item.object_id, analysis_id=analysis), DownloadOptions(out, layout="bundle"))
    assert not out.exists()


def test_manifest_that_lists_another_size_is_refused_before_data(engine: Engine, tmp_path: Path) -> None:
    item = stored(engine, tmp_path)
    with pytest.raises(Conflict, match="2500 bytes where the manifest says 9"):
        operations.download(engine, DownloadItem(item.object_id, size=9), DownloadOptions(tmp_path / "out"))


def test_manifest_that_lists_another_md5_is_refused_before_data(engine: Engine, tmp_path: Path) -> None:
    item = stored(engine, tmp_path)
    with pytest.raises(ObjectMismatch, match="not the one in the manifest"):
        operations.download(engine, DownloadItem(item.object_id, md5="0" * 32), DownloadOptions(tmp_path / "out"))


@pytest.fixture
def registry(engine: Engine, tmp_path: Path) -> Iterator[AskedRegistry]:
    """Two analyses: `a.bam` with its index and `b.bam`, and `c.bam` alone."""
    registry = AskedRegistry(tmp_path / "registry.sqlite3")
    for names in (["a.bam", "A.BAM.BAI", "b.bam"], ["c.bam"]):
        files = [NewFile(tmp_path / name, size=3, md5=MD5) for name in names]
        registering.register(registry, "S", files)
    registry.asked.clear()
    yield registry
    registry.close()


class AskedRegistry(Registry):
    """Remembers what it was asked."""

    def __init__(self, path: Path) -> None:
        self.asked: list[str] = []
        super().__init__(path)

    def entity(self, object_id: str) -> Entity:
        self.asked.append("entity")
        return super().entity(object_id)

    def entities(self, *, analysis_id: str | None = None, study_id: str | None = None) -> Iterator[Entity]:
        self.asked.append("entities")
        return super().entities(analysis_id=analysis_id, study_id=study_id)

    def analysis(self, study_id: str, analysis_id: str) -> Analysis:
        self.asked.append("analysis")
        return super().analysis(study_id, analysis_id)

    def by_name(self) -> dict[str, Entity]:
        return {entity.file_name: entity for entity in super().entities()}


def test_index_follows_its_file(registry: AskedRegistry) -> None:
    found = registry.by_name()
    items = [DownloadItem(found[name].object_id) for name in ("a.bam", "b.bam", "c.bam")]
    filled = operations.with_metadata(items, registry)
    assert [item.file_name for item in filled] == ["a.bam", "a.bam.BAI", "b.bam", "c.bam"]
    assert [item.analysis_id for item in filled] == [found[name].analysis_id for name in ("a.bam", "a.bam", "b.bam", "c.bam")]
    assert registry.asked == ["entity", "entities", "entity", "entities"]  # b.bam is known by then


def test_known_analysis_is_one_question(registry: AskedRegistry) -> None:
    found = registry.by_name()
    items = [DownloadItem(found[name].object_id, analysis_id=found[name].analysis_id) for name in ("a.bam", "b.bam")]
    assert len(operations.with_metadata(items, registry)) == 3
    assert registry.asked == ["entities"]


def test_what_a_manifest_says_is_not_asked(registry: AskedRegistry) -> None:
    item = DownloadItem(registry.by_name()["a.bam"].object_id, file_name="x", analysis_id="y")
    assert operations.with_metadata([item], registry, index=False) == [item]
    assert registry.asked == []


def test_unregistered_stays_as_it_is(registry: AskedRegistry) -> None:
    item = DownloadItem(str(uuid.uuid4()))
    assert operations.with_metadata([item], registry) == [item]
    assert operations.registered(registry, [item.object_id]) == {}


def test_records_are_read_by_analysis(registry: AskedRegistry) -> None:
    ids = [entity.object_id for entity in registry.by_name().values()]
    records = operations.registered(registry, [*ids, str(uuid.uuid4())])
    assert list(records) == ids
    assert registry.asked.count("analysis") == 2


def test_registered_md5_is_the_promise(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    item = UploadItem(str(uuid.uuid4()), path, None)
    record = FileRecord(item.object_id, "S", "a", "x", 3, MD5)
    assert operations.as_registered(item, record).md5 == MD5
    assert operations.as_registered(item, None) is item
    with pytest.raises(ObjectMismatch, match="3 bytes where object .* is registered with 4"):
        operations.as_registered(item, dataclasses.replace(record, size=4))
    with pytest.raises(ObjectMismatch, match="not the one"):
        operations.as_registered(dataclasses.replace(item, md5="0" * 32), record)


def test_verify_names_the_damaged_part(engine: Engine, tmp_path: Path) -> None:
    item = stored(engine, tmp_path)
    data = bytearray(item.path.read_bytes())
    data[1500] ^= 1
    item.path.write_bytes(data)
    with pytest.raises(ObjectMismatch, match=r"first in part 2 \(bytes 1000 to 2000\)"):
        operations.verify(engine.repository.describe(item.object_id), item.path)


def test_verify_without_any_digest_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    with pytest.raises(Unverifiable):
        operations.verify(ObjectSpec("id", 3, (Part(1, 0, 3),)), path)


def test_batch_goes_on_after_a_bad_file() -> None:
    def one(item: int) -> TransferReport:
        if item == 1:
            raise ScoreError("no good")
        if item == 2:
            raise RuntimeError("a fault of ours")
        return TransferReport(str(item), "p", "uploaded")

    reports = operations.batch([0, 1, 2, 3], one, lambda item: (str(item), "p"))
    assert [report.outcome for report in reports] == ["uploaded", "failed", "failed", "uploaded"]
    assert reports[1].error == "no good"
