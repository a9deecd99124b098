"""Whatever a network, a store, a disk or a file brings: a slice is right, or it is none, and one sentence says why."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pysam
import pytest

from bench.genome import make_genome
from score_core.errors import (
    AccessDenied,
    ChangedError,
    FormatError,
    Interrupted,
    LocalFileError,
    NoSpaceError,
    ObjectMismatch,
    ObjectNotFound,
    TransferError,
)
from score_core.model import ByteRange
from score_core.slicing import objects, view
from score_core.slicing.bgzf import MAX_BLOCK_BYTES
from score_core.slicing.files import RemoteFile
from score_core.slicing.formats import HEAD_BYTES
from score_core.slicing.objects import ViewItem, view_file, view_object
from score_core.slicing.plan import SlicePlan, plan_slice
from score_core.slicing.view import Form, Limits, Wanted
from score_core.testing.faults import (
    Call,
    Change,
    Fault,
    IgnoreRange,
    Longer,
    Reset,
    Short,
    Stall,
    When,
    WrongRange,
    busy,
    denied,
    expired,
    without_etag,
)
from tests.cli.conftest import ROOT, wait_until
from tests.slicing.made import Files, Made, blocks_of, flipped, make_alignments, sam_text
from tests.slicing.rig import DATA_ID, INDEX_ID, SliceRig, every, of_chunks, of_data, of_index

FORMATS = ["a.bam", "a.cram", "old.cram", "v.vcf.gz", "csi.vcf.gz", "v.bcf"]
SOME = ("c1:50,001-90,000", "c2:100001-120000")


def named(fault: object) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(fault))


# Nothing wrong


@pytest.mark.parametrize("name", FORMATS)
def test_without_faults_it_is_right(rig: SliceRig, files: Files, name: str) -> None:
    rig.put(files[name])
    rig.assert_right(*SOME)
    rig.assert_right("c1", "c2", "c4")
    rig.assert_right(".")


@pytest.mark.parametrize("name", ["a.bam", "a.cram", "old.cram"])
def test_unplaced_reads_are_right(rig: SliceRig, files: Files, name: str) -> None:
    rig.put(files[name])
    rig.assert_right("*")
    rig.assert_right("c4:90001-100000", "*")


@pytest.mark.parametrize("name", ["a.bam", "a.cram", "v.vcf.gz", "v.bcf"])
@pytest.mark.parametrize("window_bytes", [40_000, 130_000])
def test_windows_of_any_size_join(rig: SliceRig, files: Files, name: str, window_bytes: int) -> None:
    rig.put(files[name])
    rig.limits = Limits(window_bytes=window_bytes, connections=2)
    rig.assert_right("c1", "c2:1-150000", "c4")


# On the wire


PASSING: list[Fault] = [
    Reset(after=0),
    Reset(after=10_000),
    Short(by=1),
    Short(by=1, announced=False),
    Short(by=5_000, announced=False),
    Longer(by=1),
    Longer(by=1, announced=False),
    Longer(by=100_000, announced=False),
    WrongRange(shift=1),
    WrongRange(shift=-1),
    busy(500),
    busy(503),
    busy(429),
    expired(),
]


@pytest.mark.parametrize("fault", PASSING, ids=named)
def test_passing_fault_changes_nothing(rig: SliceRig, files: Files, fault: Fault) -> None:
    rig.put(files["a.bam"])
    rig.proxy.inject(fault, when=of_index, times=1)
    rig.proxy.inject(fault, when=every(3, of_data))
    assert rig.assert_right("c1:50001-200000", "c2").retries >= 2


@pytest.mark.parametrize("name", FORMATS)
def test_store_that_fails_every_third_time_is_outlasted(rig: SliceRig, files: Files, name: str) -> None:
    rig.put(files[name])
    rig.proxy.inject(busy(), when=every(3, lambda seen: seen.method == "GET"))
    rig.assert_right("c1", "c2")
    rig.assert_right(".")


@pytest.mark.parametrize("regions", [SOME, (".",)])
def test_stalled_connection_is_given_up(hasty_rig: SliceRig, files: Files, regions: tuple[str, ...]) -> None:
    hasty_rig.put(files["a.bam"])
    hasty_rig.proxy.inject(Stall(after=5_000), when=of_data, times=2)
    hasty_rig.assert_right(*regions)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Reset(after=1_000), TransferError),
        (Short(by=1, announced=False), TransferError),
        (Longer(by=1), TransferError),
        (WrongRange(shift=1), TransferError),
        (IgnoreRange(), TransferError),
        (busy(), TransferError),
        (expired(), TransferError),
        (denied(), AccessDenied),
    ],
    ids=named,
)
@pytest.mark.parametrize("regions", [SOME, (".",), ("*",)])
def test_lasting_fault_ends_it(rig: SliceRig, files: Files, fault: Fault, error: type[Exception], regions: tuple[str, ...]) -> None:
    rig.put(files["a.bam"])
    rig.proxy.inject(fault, when=of_chunks)
    if isinstance(fault, IgnoreRange) and regions == (".",):  # all of it was asked for, and comes
        rig.assert_right(*regions)
    else:
        assert isinstance(rig.assert_fails(*regions), error)


@pytest.mark.parametrize("fault", [busy(), denied(), IgnoreRange(), Reset()], ids=named)
def test_lasting_fault_of_the_index_ends_it(rig: SliceRig, files: Files, fault: Fault) -> None:
    rig.put(files["a.bam"])
    rig.proxy.inject(fault, when=of_index)
    if isinstance(fault, IgnoreRange):  # all of it was asked for, and comes
        rig.assert_right(*SOME)
    else:
        rig.assert_fails(*SOME)


def test_denied_is_not_asked_for_again_and_again(rig: SliceRig, files: Files) -> None:
    rig.put(files["a.bam"])
    rig.proxy.inject(denied(), when=of_chunks)
    rig.assert_fails(*SOME)
    places = [seen.offset for seen in rig.proxy.seen if of_chunks(seen)]
    assert max(map(places.count, places)) <= 2


def test_expired_address_is_renewed_in_the_middle(short_lived_rig: SliceRig, files: Files) -> None:
    rig = short_lived_rig
    rig.put(files["a.bam"])
    rig.limits = Limits(window_bytes=130_000, connections=1)
    rig.proxy.inject(expired(), when=every(4, of_chunks))
    assert rig.assert_right("c1", "c2").retries >= 2


# Another object


def etag(text: str) -> Change:
    return Change(lambda headers: {name: f'"{text}"' if name.lower() == "etag" else value for name, value in headers.items()})


@pytest.mark.parametrize("regions", [("c1", "c2"), (".",), ("c4", "*")])
def test_replaced_object_is_never_mixed(rig: SliceRig, files: Files, regions: tuple[str, ...]) -> None:
    rig.put(files["a.bam"])
    rig.limits = Limits(window_bytes=130_000, connections=1)
    other = another_bam(files).path.read_bytes()
    rig.proxy.inject(Call(lambda: rig.store(other)), when=every(3, of_data), times=1)
    error = rig.assert_right_or_fails(*regions)
    assert error is None or isinstance(error, ChangedError)
    assert regions == (".",) or error is not None


def test_store_that_ignores_if_match_is_seen_through(rig: SliceRig, files: Files) -> None:
    rig.put(files["a.bam"])
    rig.proxy.inject(etag("another"), when=every(3, of_chunks))
    assert isinstance(rig.assert_fails("c1", "c2"), ChangedError)


def test_object_replaced_after_its_header_is_noticed(rig: SliceRig, files: Files) -> None:
    rig.put(files["a.bam"])
    other = another_bam(files).path.read_bytes()
    rig.proxy.inject(Call(lambda: rig.store(other)), when=of_chunks, times=1)
    assert isinstance(rig.assert_fails(*SOME), ChangedError)


def test_object_gone_in_the_middle_is_not_found(rig: SliceRig, files: Files) -> None:
    rig.put(files["a.bam"])
    path = next((rig.folder / "bucket").rglob(DATA_ID))
    rig.proxy.inject(Call(path.unlink), when=of_chunks, times=1)
    assert isinstance(rig.assert_fails("c1"), ObjectNotFound)


def test_store_without_etags_serves(rig: SliceRig, files: Files) -> None:
    rig.put(files["a.bam"])
    rig.proxy.inject(without_etag(), when=lambda seen: seen.method == "GET")
    rig.assert_right("c1", "c2")


# The index


def another_bam(files: Files, **options: Any) -> Any:
    """With the very same header: same contigs, same length, other reads."""
    return make_alignments(files.folder, files.fasta, "other.bam", text=sam_text(files.fasta, seed=2, **options))


@pytest.mark.parametrize(
    "options",
    [{"shift": 1000}, {"leave_out": ["c4"]}, {"leave_out": ["c1"]}, {"seed": 3}],
    ids=["moved", "without the last", "without the first", "same places"],
)
def test_index_of_another_file_is_noticed(rig: SliceRig, files: Files, options: dict[str, Any]) -> None:
    text = sam_text(files.fasta, **{"seed": 2, **options})
    other = make_alignments(files.folder, files.fasta, "other.bam", text=text)
    for one, index in ((files["a.bam"], other.index), (other, files["a.bam"].index)):
        rig.put(one, index=index.read_bytes())
        for regions in (("c1:1-3000",), ("c4",), ("c1:200001-203000",)):
            assert isinstance(rig.assert_fails(*regions), FormatError)


def test_stream_gets_nothing_when_the_index_is_another_files(files: Files, tmp_path: Path) -> None:
    index = another_bam(files, shift=1000).index
    with (tmp_path / "out").open("wb") as out, pytest.raises(FormatError):
        view_file(files["a.bam"].path, index, Wanted(("c1:1-3000",)), Form("sam", original_header=True), out)
    assert (tmp_path / "out").read_bytes() == b""


@pytest.mark.parametrize("leave_out", [["c4"], ["c2", "c4"], ["c1"]])
def test_index_of_another_file_of_one_block_is_noticed(rig: SliceRig, files: Files, tmp_path: Path, leave_out: list[str]) -> None:
    head = [line for line in sam_text(files.fasta).splitlines() if line.startswith("@")]
    reads = [line for line in sam_text(files.fasta).splitlines() if line.startswith(("r1\t", "r6666\t", "r6667\t", "r11665\t"))]
    few = make_alignments(tmp_path, files.fasta, "few.bam", text="\n".join([*head, *reads, ""]))
    fewer = [line for line in reads if line.split("\t")[2] not in leave_out]
    other = make_alignments(tmp_path, files.fasta, "fewer.bam", text="\n".join([*head, *fewer, ""]))
    assert len(few.rows) > len(other.rows) > 0
    rig.put(few, index=other.index.read_bytes())
    assert isinstance(rig.assert_fails(leave_out[-1]), FormatError)


@pytest.mark.parametrize("options", [{"shift": 1000}, {"leave_out": ["c4"]}], ids=["moved", "without the last"])
def test_index_of_another_cram_is_noticed(rig: SliceRig, files: Files, options: dict[str, Any]) -> None:
    other = make_alignments(files.folder, files.fasta, "other.cram", "version=3.0", text=sam_text(files.fasta, seed=2, **options))
    for one, index in ((files["a.cram"], other.index), (other, files["a.cram"].index)):
        rig.put(one, index=index.read_bytes())
        for regions in (("c1:1-3000",), ("c4",)):
            assert isinstance(rig.assert_fails(*regions), FormatError)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_index_cut_off_is_noticed(rig: SliceRig, files: Files, name: str, share: float) -> None:
    index = files[name].index.read_bytes()
    rig.put(files[name], index=index[: int(len(index) * share)])
    assert isinstance(rig.assert_fails(*SOME), FormatError)


@pytest.mark.parametrize("name", FORMATS)
def test_index_of_another_kind_is_refused(rig: SliceRig, files: Files, name: str) -> None:
    for other in ("a.bam", "a.cram", "v.vcf.gz", "v.bcf"):
        if other[-3:] != name[-3:]:
            rig.put(files[name], index=files[other].index.read_bytes())
            assert isinstance(rig.assert_fails(*SOME), FormatError)


@pytest.mark.parametrize("garbage", [b"", b"x", b"BAI\1", b"<html>" * 100, bytes(1000), b"BAI\1\xff\xff\xff\xff" * 100])
def test_garbage_is_no_index(rig: SliceRig, files: Files, garbage: bytes) -> None:
    rig.put(files["a.bam"], index=garbage)
    assert isinstance(rig.assert_fails(*SOME), FormatError)


def test_data_are_no_index(rig: SliceRig, files: Files) -> None:
    rig.put(files["a.bam"], index=files["a.bam"].path.read_bytes())
    assert isinstance(rig.assert_fails(*SOME), FormatError)


def test_object_is_not_its_own_index(rig: SliceRig, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.slicing.rig.INDEX_ID", DATA_ID)
    rig.put(files["a.bam"])
    assert isinstance(rig.assert_fails(*SOME), FormatError)


def test_index_that_is_too_big_is_not_fetched(rig: SliceRig, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_MAX_INDEX_BYTES", 100)
    rig.put(files["a.bam"])
    assert "more than any index has" in str(rig.assert_fails(*SOME))
    assert not any(map(of_index, rig.proxy.seen))


def test_index_that_is_not_there_is_named(rig: SliceRig, files: Files) -> None:
    rig.put(files["a.bam"], index_is_there=False)
    assert INDEX_ID in str(rig.assert_fails(*SOME))


def test_index_is_held_against_its_digest(rig: SliceRig, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.put(files["a.bam"])
    describe = rig.repository.describe
    monkeypatch.setattr(rig.repository, "describe", lambda object_id: dataclasses.replace(describe(object_id), md5="0" * 32))
    assert isinstance(rig.assert_fails(*SOME), ObjectMismatch)


# The data


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.0001, 0.2, 0.9999])
def test_cut_off_file_gives_no_half_answer(rig: SliceRig, files: Files, name: str, share: float) -> None:
    data = files[name].path.read_bytes()
    rig.put(files[name], data=data[: int(len(data) * share)])
    assert isinstance(rig.assert_fails("."), FormatError)
    error = rig.assert_right_or_fails(*SOME)
    assert isinstance(error, FormatError) or share == 0.9999


@pytest.mark.parametrize("name", ["a.bam", "v.vcf.gz", "v.bcf"])
def test_file_cut_off_between_blocks_gives_no_half_answer(rig: SliceRig, files: Files, name: str) -> None:
    data = files[name].path.read_bytes()
    for at, _ in blocks_of(data)[2::12]:
        rig.put(files[name], data=data[:at])
        assert isinstance(rig.assert_fails("."), FormatError)
        assert isinstance(rig.assert_fails("c1", "c2"), FormatError)


@pytest.mark.parametrize("name", ["a.bam", "a.cram", "v.vcf.gz", "v.bcf"])
def test_file_without_end_marker_has_its_regions(rig: SliceRig, files: Files, name: str) -> None:
    marker = 38 if name == "a.cram" else 28
    rig.put(files[name], data=files[name].path.read_bytes()[:-marker])
    rig.assert_right(*SOME)
    assert "cut off" in str(rig.assert_fails("."))


@pytest.mark.parametrize("name", ["a.bam", "a.cram", "v.vcf.gz", "v.bcf"])
def test_flipped_bit_is_noticed_where_it_matters(rig: SliceRig, files: Files, name: str) -> None:
    data, rng = files[name].path.read_bytes(), random.Random(name)
    outcomes = set()
    for at in rng.sample(range(len(data) - 100), 6):
        rig.put(files[name], data=flipped(data, at))
        error = rig.assert_right_or_fails("c1:1-200000")
        assert error is None or isinstance(error, FormatError)
        outcomes.add(error is None)
        assert isinstance(rig.assert_fails("."), FormatError)
    assert outcomes == {True, False}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("regions", [SOME, ("c1", "c2"), ("c1:300001-310000",)])
def test_hole_that_nobody_planned_is_an_error(
    rig: SliceRig, files: Files, name: str, regions: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not fetched reads as zeros. Iterators of pysam must not end there as at an end of file."""
    rig.put(files[name])
    rig.limits = Limits(connections=1)
    for hole in (_first_gone, _all_gone, _first_half_gone, _second_half_gone, _middle_gone):
        monkeypatch.setattr(view, "plan_slice", _with(hole))
        error = rig.assert_right_or_fails(*regions)
        assert isinstance(error, FormatError) or (error is None and hole in {_second_half_gone, _middle_gone})


def _with(hole: Callable[[tuple[ByteRange, ...]], list[ByteRange]]) -> Callable[..., SlicePlan]:
    def planned(*given: Any, **options: Any) -> SlicePlan:
        whole = plan_slice(*given, **options)
        first, *others = whole.windows
        return SlicePlan((first._replace(ranges=tuple(hole(first.ranges))), *others))

    return planned


def _first_gone(ranges: tuple[ByteRange, ...]) -> list[ByteRange]:
    return list(ranges[1:])


def _all_gone(ranges: tuple[ByteRange, ...]) -> list[ByteRange]:
    return []


def _first_half_gone(ranges: tuple[ByteRange, ...]) -> list[ByteRange]:
    half = ranges[0].size // 2
    return [ByteRange(ranges[0].offset + half, ranges[0].size - half), *ranges[1:]]


def _second_half_gone(ranges: tuple[ByteRange, ...]) -> list[ByteRange]:
    return [ByteRange(ranges[0].offset, ranges[0].size // 2), *ranges[1:]]


def _middle_gone(ranges: tuple[ByteRange, ...]) -> list[ByteRange]:
    third = ranges[0].size // 3
    return [ByteRange(ranges[0].offset, third), ByteRange(ranges[0].offset + 2 * third, ranges[0].size - 2 * third), *ranges[1:]]


# The disk


@pytest.mark.parametrize("name", ["a.bam", "a.cram", "v.vcf.gz", "v.bcf"])
@pytest.mark.parametrize("regions", [("c1", "c2"), (".",)])
def test_full_disk_of_the_output_leaves_nothing(rig: SliceRig, files: Files, name: str, regions: tuple[str, ...]) -> None:
    rig.put(files[name])
    with size_limit(files[name].path.stat().st_size + 50_000):
        assert isinstance(rig.assert_fails(*regions), LocalFileError)


@pytest.mark.parametrize("form", ["bam", "cram"])
def test_full_disk_of_a_packed_output_leaves_nothing(rig: SliceRig, files: Files, form: str, tmp_path: Path) -> None:
    rig.put(files["a.cram" if form == "bam" else "old.cram"])
    rig.format = form
    item, wanted = ViewItem(DATA_ID, "x.cram", INDEX_ID), Wanted(("c1", "c2"))
    ran = view_object(rig.engine, None, item, wanted, Form(form, reference=files.fasta), tmp_path / "whole", limits=rig.limits)
    size = Path(ran.path).stat().st_size
    data = files["a.cram" if form == "bam" else "old.cram"].path.stat().st_size
    if size > data:
        with size_limit((size + data) // 2):
            assert isinstance(rig.assert_fails("c1", "c2"), LocalFileError)


def test_full_disk_on_the_way_is_told(rig: SliceRig, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.put(files["a.bam"])
    write = os.pwrite

    def full(fd: int, data: Any, offset: int) -> int:
        if offset > 200_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    for regions in (("c1", "c2"), (".",), ("*",)):
        error = rig.assert_fails(*regions)
        assert (error.exit_code, isinstance(error, NoSpaceError)) == (8, True)


def test_limit_of_the_disk_is_told_before_anything_is_fetched(rig: SliceRig, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.put(files["a.bam"])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    assert isinstance(rig.assert_fails("c1", "c2"), NoSpaceError)
    assert not any(of_chunks(seen) for seen in rig.proxy.seen)


@contextmanager
def size_limit(most: int) -> Iterator[None]:
    """No file of this process may be longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_disk_holds_two_windows_at_most(rig: SliceRig, monkeypatch: pytest.MonkeyPatch) -> None:
    path = rig.folder / "genome.bam"
    make_genome(path, 5_000_000)
    rig.put(Made(path, path.with_name("genome.bam.bai"), ()))
    rig.limits = Limits(window_bytes=500_000, connections=2)
    taken = []
    drop = RemoteFile.drop

    def counted(self: RemoteFile, ranges: Any) -> None:
        taken.append(os.fstat(self._fd).st_blocks * 512)
        drop(self, ranges)

    monkeypatch.setattr(RemoteFile, "drop", counted)
    assert rig.view("chr1", "chr2", "chr3", "chrX").records > 70_000
    assert len(taken) > 10
    # Blocks that windows share, and two places that all need, the header and the end, come on top
    assert max(taken) < 2 * (500_000 + 2 * MAX_BLOCK_BYTES) + 2 * HEAD_BYTES < path.stat().st_size // 3


def test_memory_does_not_grow_with_regions(files: Files, tmp_path: Path) -> None:
    """Of ten regions first, then of ten thousand, in a process of its own."""
    program = """
import resource, sys
from pathlib import Path
from score_core.slicing.objects import view_file
from score_core.slicing.view import Form, Limits, Wanted
bam, folder = Path(sys.argv[1]), Path(sys.argv[2])
for number, step in ((10, 40_000), (10_000, 70)):
    bed = folder / f"{number}.bed"
    places = [(name, start) for name, end in (("c1", 400_000), ("c2", 300_000)) for start in range(0, end - 100, step)][:number]
    bed.write_text("".join(f"{name}\\t{start}\\t{start + 20}\\n" for name, start in places))
    report = view_file(bam, None, Wanted(bed=bed), Form("bam"), folder, limits=Limits(window_bytes=200_000))
    print(len(places), report.records, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    ran = run_python(program, files["a.bam"].path, tmp_path)
    (few, _, before), (many, records, after) = [[int(number) for number in line.split()] for line in ran.stdout.splitlines()]
    assert (few, many) == (10, 9_998)
    assert records > 10_000
    assert after - before < 25_000  # KiB


def run_python(program: str, *argv: Path, limit_s: float = 60) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", program, *map(str, argv)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, env=environ, capture_output=True, text=True, timeout=limit_s, check=True)


# Never a hang


def test_reading_never_waits_for_a_block_that_is_not_there(files: Files, tmp_path: Path) -> None:
    """The trap of htslib's threads: a block that is cut off, and zeros, behind what is wanted (research: they never end)."""
    data = files["a.bam"].path.read_bytes()
    blocks = blocks_of(data)
    middle = len(blocks) // 2
    at, size = blocks[middle]
    last = blocks[-4][0]
    holed = tmp_path / "holed.bam"
    holed.write_bytes(data[: at + size // 2] + bytes(last - at - size // 2) + data[last:])
    program = """
import sys
from pathlib import Path
from score_core.slicing.objects import view_file
from score_core.slicing.view import Form, Wanted
report = view_file(Path(sys.argv[1]), Path(sys.argv[2]), Wanted(("c1:1-150000",)), Form("sam"), Path(sys.argv[3]))
print(report.records)
"""
    ran = run_python(program, holed, files["a.bam"].index, tmp_path / "out", limit_s=30)
    assert int(ran.stdout) == len(files["a.bam"].wanted("c1:1-150000"))


@pytest.mark.parametrize("name", ["a.bam", "a.cram", "v.vcf.gz", "v.bcf"])
def test_input_is_read_by_one_thread(rig: SliceRig, files: Files, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    for kind in ("AlignmentFile", "VariantFile"):
        real = getattr(pysam, kind)

        def opened(*given: Any, real: Any = real, **options: Any) -> Any:
            mode = given[1] if len(given) > 1 else options.get("mode", "r")
            if mode.startswith("r"):
                asked.append(options.get("threads", 1))
            return real(*given, **options)

        monkeypatch.setattr(pysam, kind, opened)
    rig.put(files[name])
    rig.view("c1", "c2")
    rig.view(".")
    assert len(asked) >= 3
    assert set(asked) == {1}


@pytest.mark.parametrize("when", ["header", "index", "chunks", "stream"])
def test_asked_to_stop_it_stops(rig: SliceRig, files: Files, when: str) -> None:
    rig.put(files["a.bam"])
    picks = {"header": of_data, "index": of_index, "chunks": of_chunks, "stream": of_chunks}[when]
    rig.proxy.inject(Call(lambda: rig.stop.set(2)), when=picks, times=1)
    rig.proxy.inject(Stall(), when=lambda seen: rig.stop.is_set())
    began = time.monotonic()
    assert isinstance(rig.assert_fails(*((".",) if when == "stream" else SOME)), Interrupted)
    assert time.monotonic() - began < 3


@pytest.mark.kill
@pytest.mark.parametrize(
    ("number", "stalls", "region"),
    [
        (signal.SIGINT, of_chunks, "c1"),
        (signal.SIGTERM, of_chunks, "."),
        (signal.SIGINT, of_index, "c1"),
        (signal.SIGTERM, of_chunks, "*"),
    ],
)
def test_signal_ends_it_at_once_and_leaves_nothing(rig: SliceRig, files: Files, number: signal.Signals, stalls: When, region: str) -> None:
    rig.put(files["a.bam"])
    rig.proxy.inject(Stall(after=20_000), when=stalls)
    process = start_view(rig, region)
    wait_until(lambda: any((seen.fault and seen.sent >= 20_000) or (seen.fault and of_index(seen)) for seen in rig.proxy.seen))
    time.sleep(0.1)  # what came is on its way through
    sent = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - sent < 2.5
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    rig.assert_discreet(out + err.strip().replace("\n", " ") + " ")
    rig.assert_tidy()


@pytest.mark.kill
@pytest.mark.parametrize("region", ["c1", "."])
def test_killed_at_any_moment_it_gives_no_file_its_name(rig: SliceRig, files: Files, region: str) -> None:
    rig.put(files["a.bam"])
    rig.proxy.inject(Stall(after=20_000), when=of_chunks)
    process = start_view(rig, region)
    wait_until(lambda: any(seen.fault for seen in rig.proxy.seen))
    process.kill()
    process.communicate()
    assert [path.name for path in Path().iterdir()] == []
    assert not rig.out.exists() or all(re.fullmatch(r"\.score-\w+\.part", path.name) for path in rig.out.iterdir())


def start_view(rig: SliceRig, region: str) -> subprocess.Popen[str]:
    """The program itself, with the rig's store behind its proxy."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SCORE_", "AWS_"))}
    environ |= {
        "PYTHONPATH": str(ROOT),
        "SCORE_CONFIG": os.devnull,
        "SCORE_DATA_DIR": str(rig.folder / "home"),
        "SCORE_SERVE_URL": rig.proxy.url,
        "TMPDIR": str(rig.folder / "temp"),
    }
    words = [sys.executable, "-m", "score_core.cli", "view", "--store", f"file://{rig.folder / 'bucket'}", "--object-id", DATA_ID]
    words += ["--index-object-id", INDEX_ID, "--query", region, "--output-dir", str(rig.out), "--output-format", "bam"]
    return subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)


OUTPUTS = [
    ("a.bam", "sam", False),
    ("a.bam", "bam", False),
    ("a.bam", "bam", True),
    ("a.bam", "cram", True),
    ("v.vcf.gz", "vcf", False),
    ("v.bcf", "vcf.gz", False),
]


@pytest.mark.parametrize(("name", "form", "original"), OUTPUTS)
def test_reader_that_leaves_ends_it_quietly(files: Files, nowhere_else: None, tmp_path: Path, name: str, form: str, original: bool) -> None:
    with view_to(subprocess.PIPE, files[name].path, form, tmp_path, original=original, buffered=form == "sam") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 1
    assert list((tmp_path / "temp").iterdir()) == []


@pytest.mark.parametrize(("name", "form", "original"), OUTPUTS[1::2])
def test_full_disk_behind_standard_output_is_told(
    files: Files, nowhere_else: None, tmp_path: Path, name: str, form: str, original: bool
) -> None:
    with (
        Path("/dev/full").open("wb") as full,
        view_to(full, files[name].path, form, tmp_path, original=original, buffered=False) as process,
    ):
        assert process.stderr is not None
        assert re.fullmatch(rb"error: [^\n]*\n", process.stderr.read())
        assert process.wait(20) in {2, 8}


def view_to(stdout: Any, path: Path, form: str, folder: Path, *, original: bool, buffered: bool) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "score_core.cli", "view", "--input-file", str(path), "--query", "c1", "--output-format", form]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "SCORE_CONFIG": os.devnull, "TMPDIR": str(folder / "temp")}
    environ["PYTHONUNBUFFERED"] = "" if buffered else "1"
    words += ["--output-original-header"] if original else []
    return subprocess.Popen(words, env=environ, stdout=stdout, stderr=subprocess.PIPE)


def test_two_at_once_into_one_place(rig: SliceRig, files: Files) -> None:
    rig.put(files["a.bam"])
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: rig.view("c1", "c2"), range(4)))
    assert len({report.path for report in reports}) == 1
    rig.assert_right("c1", "c2")


@pytest.mark.parametrize("name", ["htsnexus_test_NA12878.bam", "NA12878.embedref.cram"])
def test_local_file_that_changes_while_it_is_read_is_an_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, index = tmp_path / name, next((ROOT / "tests" / "data").glob(f"{name}.?*ai"))
    shutil.copy(ROOT / "tests" / "data" / name, data)
    plan = plan_slice

    def meanwhile_written_to(*given: Any, **more: Any) -> SlicePlan:
        with data.open("ab") as file:
            file.write(b"more")
        return plan(*given, **more)

    monkeypatch.setattr(view, "plan_slice", meanwhile_written_to)
    with pytest.raises(ChangedError, match="changed while it was read"):
        view_file(data, index, Wanted(("11:5000000-5001000",)), Form("sam"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
