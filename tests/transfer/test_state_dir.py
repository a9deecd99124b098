"""Half-finished downloads in a folder of their own: any target continues them, on any file system."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from score_core.errors import Interrupted, LocalFileError, NoSpaceError
from score_core.testing.faults import Call, Stall
from score_core.transfer import download, files
from score_core.transfer.download import Span
from score_core.transfer.stop import Stop

PART = 64 << 10
SIZE = 16 * PART


@pytest.fixture
def state(rig: Any) -> Path:
    return Path(rig.folder, "state")


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another file system."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no second file system that we may write to")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def begin(rig: Any, state: Path, at: int = 9) -> Any:
    """A download whose process is stopped when part `at` is asked for, and whose folder is gone after that."""
    data = rig.put(SIZE)
    rig.workers = 1
    rig.proxy.inject(Call(rig.stop.set), when=rig.get(at), times=1)
    with pytest.raises(Interrupted):
        rig.download(state_dir=state)
    rig.stop, rig.workers = Stop(), 4
    rig.proxy.heal()
    rig.proxy.forget()
    assert rig.leftovers == set()
    return data


def test_next_run_continues_for_another_target(rig: Any, state: Path) -> None:
    data = begin(rig, state)
    target = rig.folder / "another" / "name.bam"
    target.parent.mkdir()
    report = rig.engine.download(rig.describe(), target, state_dir=state)
    assert target.read_bytes() == data
    assert (report.parts_kept, rig.proxy.moved_bytes) == (8, SIZE - 8 * PART)
    assert list(state.iterdir()) == []


def test_target_on_another_file_system_is_written_whole_and_proven(rig: Any, state: Path, elsewhere: Path) -> None:
    data = begin(rig, state)
    (elsewhere / "x.bam").write_bytes(b"old")
    rig.engine.download(rig.describe(), elsewhere / "x.bam", state_dir=state)
    assert (elsewhere / "x.bam").read_bytes() == data
    assert [path.name for path in elsewhere.iterdir()] == ["x.bam"]
    assert list(state.iterdir()) == []
    assert rig.proxy.moved_bytes == SIZE - 8 * PART


def test_damage_on_the_way_to_another_file_system_is_noticed(rig: Any, state: Path, elsewhere: Path, monkeypatch: Any) -> None:
    rig.put(SIZE)
    read = files._blocks

    def flipped(fd: int, path: Path, offset: int, size: int, block_bytes: int) -> Iterator[memoryview]:
        for block in read(fd, path, offset, size, block_bytes):
            if offset == 3 * PART:
                block[0] ^= 1
            yield block

    real = files.PartFile.publish

    def publish(file: Any) -> bool:
        monkeypatch.setattr(files, "_blocks", flipped)
        return real(file)

    monkeypatch.setattr(files.PartFile, "publish", publish)
    with pytest.raises(LocalFileError, match="changed while it was copied"):
        rig.engine.download(rig.describe(), elsewhere / "x.bam", state_dir=state)
    assert list(elsewhere.iterdir()) == []
    monkeypatch.undo()
    rig.proxy.forget()
    rig.engine.download(rig.describe(), elsewhere / "x.bam", state_dir=state)
    assert rig.proxy.moved_bytes == 0


def test_copy_to_another_file_system_can_be_stopped(rig: Any, state: Path, elsewhere: Path, monkeypatch: Any) -> None:
    rig.put(SIZE)
    real = download.Download._copy_over

    def copy_over(self: Any, stop: Stop) -> None:
        stop.set()
        real(self, stop)

    monkeypatch.setattr(download.Download, "_copy_over", copy_over)
    with pytest.raises(Interrupted):
        rig.engine.download(rig.describe(), elsewhere / "x.bam", state_dir=state)
    assert list(elsewhere.iterdir()) == []
    monkeypatch.undo()
    rig.stop = Stop()
    rig.proxy.forget()
    rig.engine.download(rig.describe(), elsewhere / "x.bam", state_dir=state)
    assert rig.proxy.moved_bytes == 0


def test_space_is_asked_for_where_the_target_is(rig: Any, state: Path, elsewhere: Path, monkeypatch: Any) -> None:
    rig.put(SIZE)

    def check_space(target: Path, needed_bytes: int) -> None:
        if target.parent == elsewhere:
            raise NoSpaceError(f"{needed_bytes}")

    monkeypatch.setattr(download, "check_space", check_space)
    with pytest.raises(NoSpaceError, match=str(SIZE)):
        rig.engine.download(rig.describe(), elsewhere / "x.bam", state_dir=state)


def test_two_at_once_do_not_wait_for_each_other(rig: Any, state: Path) -> None:
    data = rig.put(SIZE)
    rig.proxy.inject(Stall(after=PART // 2), when=rig.get(3), times=1)
    first = threading.Thread(target=lambda: rig.download(state_dir=state))
    first.start()
    while not any(seen.offset == 2 * PART for seen in rig.proxy.moves()):
        pass
    other = rig.folder / "other.bam"
    rig.engine.download(rig.describe(), other, state_dir=state)
    assert other.read_bytes() == data
    rig.proxy.heal()
    first.join(60)
    assert rig.target.read_bytes() == data
    assert list(state.iterdir()) == []


def test_pieces_are_kept_apart_from_the_whole(rig: Any, state: Path) -> None:
    data = begin(rig, state)
    piece = rig.folder / "piece"
    rig.engine.download(rig.describe(), piece, span=Span(PART, 100), state_dir=state)
    assert piece.read_bytes() == data[PART : PART + 100]
    rig.proxy.forget()
    rig.download(state_dir=state)
    assert rig.proxy.moved_bytes == SIZE - 8 * PART


def test_folder_that_cannot_be_made_is_a_sentence(rig: Any) -> None:
    rig.put(PART)
    (rig.folder / "file").write_text("")
    with pytest.raises(LocalFileError, match="make the folder"):
        rig.download(state_dir=rig.folder / "file" / "state")


def test_lost_folder_begins_afresh(rig: Any, state: Path) -> None:
    data = begin(rig, state)
    shutil.rmtree(state)
    rig.download(state_dir=state)
    assert rig.target.read_bytes() == data
