from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

import pytest

from score_core import operations
from score_core.errors import Conflict, LocalFileError, ObjectMismatch, ScoreError, Unverifiable
from score_core.model import ObjectSpec, Part, TransferReport
from score_core.operations import DownloadItem, DownloadOptions, UploadItem
from score_core.repository.direct import DirectRepository
from score_core.testing.memory import MemoryStore, MemoryTransport
from score_core.transfer.engine import Engine


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
