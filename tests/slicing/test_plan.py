"""A plan names every byte that reading needs and few others, each once, in time, and until nobody needs it any more."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pysam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from score_core.errors import FormatError
from score_core.slicing.base import Chunk, Index, Interval
from score_core.slicing.index import TO_END, read_index
from score_core.slicing.plan import MAX_PIECE_BYTES, MIN_PIECE_BYTES, SlicePlan, Span, plan_slice, whole_blocks
from score_core.slicing.regions import merged
from tests.slicing.indexes import EOF_SIZE, LENGTH, MadeFile, Record, binning_index, files, intervals, made_file

DATA = Path(__file__).resolve().parents[1] / "data"
MAX_BLOCK = 65_536


def index_of(made: MadeFile, *, csi: bool = False) -> Index:
    return read_index(binning_index(made, 3, csi=csi), name="made up")


def real(name: str) -> tuple[Index, int]:
    return read_index((DATA / name).read_bytes(), name=name), (DATA / name).with_suffix("").stat().st_size


# Promises of any plan

plans = st.tuples(
    files,
    intervals,
    st.sampled_from([0, 1000, 200_000]),
    st.sampled_from([1, 30_000, 10_000_000]),
    st.sampled_from([0, 3000]),
    st.booleans(),
)


@settings(max_examples=50)
@given(plans)
def test_all_that_reading_needs_is_there_in_time(made_plan: tuple[MadeFile, list[Interval], int, int, int, bool]) -> None:
    made, asked, gap, window_bytes, have, csi = made_plan
    index = index_of(made, csi=csi)
    plan = plan_slice(index, merged(asked), size=made.size, have=have, gap=gap, window_bytes=window_bytes)
    head = there = together([(0, have)])
    for window in plan.windows:
        there = together([*there, *((piece.offset, piece.end) for piece in window.ranges)])
        for span in window.spans:
            chunks = index.chunks(span.interval)
            assert chunks
            assert all(is_within((begin >> 16, made.block_end(end)), there) for begin, end in chunks)
        there = without(there, [(piece.offset, piece.end) for piece in window.done])
    assert there == head  # all the rest is given back


@settings(max_examples=50)
@given(plans)
def test_no_byte_is_fetched_twice_and_few_for_nothing(made_plan: tuple[MadeFile, list[Interval], int, int, int, bool]) -> None:
    made, asked, gap, window_bytes, have, csi = made_plan
    index = index_of(made, csi=csi)
    plan = plan_slice(index, merged(asked), size=made.size, have=have, gap=gap, window_bytes=window_bytes)
    for window in plan.windows:
        assert all(one.end <= other.offset for one, other in pairwise(window.ranges))
    assert plan.size == sum(end - begin for begin, end in together((piece.offset, piece.end) for piece in plan.ranges))
    assert all(have <= piece.offset < piece.end <= made.size for piece in plan.ranges)
    spans = [span for window in plan.windows for span in window.spans]
    chunks = [chunk for span in spans for chunk in index.chunks(span.interval)]
    assert plan.size <= sum((end >> 16) - (begin >> 16) + MAX_BLOCK + gap for begin, end in chunks)


@settings(max_examples=50)
@given(plans)
def test_reading_by_the_plan_gives_each_record_once(made_plan: tuple[MadeFile, list[Interval], int, int, int, bool]) -> None:
    made, asked, gap, window_bytes, have, csi = made_plan
    wanted = merged(asked)
    plan = plan_slice(index_of(made, csi=csi), wanted, size=made.size, have=have, gap=gap, window_bytes=window_bytes)
    assert list(read(made, plan)) == [record for record in made.records if any(map(record.overlaps, wanted))]


def read(made: MadeFile, plan: SlicePlan) -> Iterator[Record]:
    """What a reader does with a plan: records that overlap a span's intervals, unless an earlier span had them."""
    before = Interval(-1, 0, 0)
    for window in plan.windows:
        for span in window.spans:
            for record in filter(lambda record: record.overlaps(span.interval), made.records):
                seen = before.end if before.tid == span.tid else 0
                if record.start >= seen and any(map(record.overlaps, span.intervals)):
                    yield record
            before = span.interval


def together(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return [(begin, end) for begin, end in found if begin < end]


def without(ranges: list[tuple[int, int]], others: list[tuple[int, int]]) -> list[tuple[int, int]]:
    for low, high in others:
        ranges = [piece for begin, end in ranges for piece in ((begin, min(end, low)), (max(begin, high), end)) if piece[0] < piece[1]]
    return ranges


def is_within(piece: tuple[int, int], ranges: list[tuple[int, int]]) -> bool:
    return any(begin <= piece[0] and piece[1] <= end for begin, end in ranges)


# Spans, windows and pieces


def steady(step: int = 100, block: int = 10_000) -> MadeFile:
    """A read of 100 bases at every `step`th base of the first contig: 32 of them in a block."""
    starts = range(0, LENGTH - 100, step)
    return made_file([(0, start, start + 100, True) for start in starts], [2000] * len(starts), [block])


def test_neighbours_that_share_blocks_are_read_in_one_go() -> None:
    exons = [Interval(0, start, start + 200) for start in range(20_000, 60_000, 1000)]
    plan = plan_slice(index_of(steady()), [*exons, Interval(0, 500_000, 500_200)], size=steady().size)
    assert [window.spans for window in plan.windows] == [(Span(tuple(exons)), Span((Interval(0, 500_000, 500_200),)))]


def test_intervals_far_apart_are_not_joined_by_a_long_read() -> None:
    """One intron of half a megabase would else bring all that it passes over."""
    starts = range(0, LENGTH - 100, 100)
    made = made_file(
        [(0, 9_990, 600_000, True), *((0, start, start + 100, True) for start in starts)], [2000] * (len(starts) + 1), [10_000]
    )
    plan = plan_slice(index_of(made), [Interval(0, 9_000, 10_000), Interval(0, 590_000, 590_100)], size=made.size)
    assert len(plan.windows[0].spans) == 2
    assert plan.size < made.size / 5


def test_big_interval_is_read_in_windows() -> None:
    made = steady()
    plan = plan_slice(index_of(made), [Interval(0, 0, LENGTH)], size=made.size, window_bytes=300_000)
    assert all(sum(piece.size for piece in window.ranges) <= 300_000 for window in plan.windows)
    assert made.size - EOF_SIZE <= plan.size <= made.size
    assert [span.end for window in plan.windows[:-1] for span in window.spans] == [window.spans[0].start for window in plan.windows[1:]]


def test_what_a_window_is_done_with_is_not_kept() -> None:
    made = steady()
    kept = most = 0
    for window in plan_slice(index_of(made), [Interval(0, 0, LENGTH)], size=made.size, window_bytes=300_000).windows:
        kept += sum(piece.size for piece in window.ranges)
        most = max(most, kept)
        kept -= sum(piece.size for piece in window.done)
    assert kept == 0
    assert most <= 300_000 + 2 * 10_000  # and the blocks at its edges


def test_what_cannot_be_made_smaller_is_not_cut() -> None:
    """A megabase in one block, and a place deeper than a window."""
    one_block = made_file([(0, start, start + 100, True) for start in range(0, LENGTH - 100, 5000)], [100] * 200, [50_000])
    deep = made_file([(0, 500_000, 500_100, True)] * 2000, [2000] * 2000, [30_000])
    for made in (one_block, deep):
        plan = plan_slice(index_of(made), [Interval(0, 0, LENGTH)], size=made.size, window_bytes=1)
        assert len(plan.windows) == 1


def test_contig_of_unknown_length_is_read_in_windows() -> None:
    """Its end may be past what the index can reach."""
    made = steady()
    known, unknown = (
        plan_slice(index_of(made), [Interval(0, 0, end)], size=made.size, window_bytes=300_000) for end in (LENGTH, (1 << 31) - 1)
    )
    assert unknown.size == known.size
    assert len(unknown.windows) > 1


def test_near_ranges_are_one() -> None:
    made = steady()
    asked = [Interval(0, 100_000, 100_100), Interval(0, 400_000, 400_100)]
    near, far = (plan_slice(index_of(made), asked, size=made.size, gap=gap, pieces=1).ranges for gap in (1 << 20, 0))
    assert (len(near), len(far)) == (1, 2)
    assert (near[0].offset, near[0].end) == (far[0].offset, far[1].end)


@pytest.mark.parametrize(("block", "pieces"), [(60_000, 8), (3_000, 8), (60_000, 1)])
def test_big_ranges_are_cut_for_the_connections(block: int, pieces: int) -> None:
    made = steady(block=block)
    plan = plan_slice(index_of(made), [Interval(0, 0, LENGTH)], size=made.size, pieces=pieces)
    [window] = plan.windows
    sizes = [piece.size for piece in window.ranges]
    assert max(sizes) <= min(MAX_PIECE_BYTES, max(MIN_PIECE_BYTES, -(-plan.size // pieces)))
    assert max(sizes) - min(sizes) < max(sizes) / 8
    assert all(one.end == other.offset for one, other in pairwise(window.ranges))


def test_the_head_is_not_fetched_again() -> None:
    made = steady()
    plan = plan_slice(index_of(made), [Interval(0, 0, 100)], size=made.size, have=made.size)
    assert (plan.size, plan.ranges, len(plan.windows)) == (0, (), 1)


@pytest.mark.parametrize("asked", [[], [Interval(0, 0, 4_000_000)], [Interval(200, 0, 10)]])
def test_no_record_no_window(asked: list[Interval]) -> None:
    index, size = real("htsnexus_test_NA12878.bam.bai")
    assert plan_slice(index, asked, size=size).windows == ()


@pytest.mark.parametrize("size", [0, 100, 100_000, 600_000])
def test_index_of_a_bigger_file_is_refused(size: int) -> None:
    index, _ = real("htsnexus_test_NA12878.bam.bai")
    with pytest.raises(FormatError, match="does not belong to this file") as caught:
        plan_slice(index, [Interval(10, 0, 135_000_000)], size=size)
    assert caught.value.exit_code == 6


def test_small_region_of_a_real_file_is_a_few_blocks() -> None:
    index, size = real("htsnexus_test_NA12878.bam.csi")
    plan = plan_slice(index, [Interval(10, 5_013_000, 5_013_500)], size=size)
    assert plan.size < size / 4


# Whole blocks, for tickets


@settings(max_examples=50)
@given(files, intervals, st.booleans())
def test_whole_blocks_begin_and_end_where_blocks_do(made: MadeFile, asked: list[Interval], csi: bool) -> None:
    index = index_of(made, csi=csi)
    chunks = [chunk for interval in merged(asked) for chunk in index.chunks(interval)]
    ranges = whole_blocks(index, chunks, size=made.size, eof_size=EOF_SIZE)
    edges = {*made.blocks, made.size - EOF_SIZE}
    assert all(piece.offset in edges and piece.end in edges for piece in ranges)
    assert all(one.end < other.offset for one, other in pairwise(ranges))
    held = [(piece.offset, piece.end) for piece in ranges]
    assert all(is_within((begin >> 16, made.block_end(end)), held) for begin, end in chunks)


def test_whole_containers_end_where_the_next_one_begins() -> None:
    """And the last before the end marker. With the first of the next contig: htslib may have to unpack it."""
    index, size = real("NA12878.embedref.cram.crai")
    first, last = (
        [(piece.offset, piece.end) for piece in whole_blocks(index, chunks, size=size, eof_size=38)]
        for chunks in (index.chunks(Interval(10, 5_000_000, 5_000_100)), [Chunk(1_592_488 << 16, TO_END)])
    )
    assert (first, last) == ([(6011, 477_513)], [(1_592_488, size - 38)])


# The same records from what was fetched as from the whole file

REAL = [
    ("htsnexus_test_NA12878.bam.bai", 65_536, 28),
    ("htsnexus_test_NA12878.bam.csi", 65_536, 28),
    ("wheat_csi.bam.csi", 2_000, 28),
    ("NA12878.embedref.cram.crai", 65_536, 38),
    ("ex1.vcf.gz.tbi", 2_000, 28),
    ("sample1-bcbio-cancer.bcf.csi", 3_530, 28),
]


@pytest.mark.parametrize(("name", "head", "eof"), REAL)
def test_records_are_the_same_from_what_was_fetched(name: str, head: int, eof: int, tmp_path: Path) -> None:
    original, sparse, random = (DATA / name).with_suffix(""), tmp_path / "sparse", Random(11)
    index, size = real(name)
    data = original.read_bytes()
    with opened(original, name) as file:
        contigs, every = all_records(file, index)
        for _ in range(6):
            wanted = merged(around(random.choice(every), random) for _ in range(random.choice([1, 3, 12])))
            plan = plan_slice(
                index, wanted, size=size, have=head, gap=random.choice([0, 128 << 10]), window_bytes=random.choice([20_000, 64 << 20])
            )
            sparse.write_bytes(data[:head] + bytes(size - head - eof) + data[size - eof :])
            expected = [
                text for tid, start, end, text in every if any(tid == one.tid and start < one.end and end > one.start for one in wanted)
            ]
            assert list(fetched(plan, data, sparse, name, contigs)) == expected


def opened(path: Path, name: str) -> Any:
    kind = pysam.VariantFile if "vcf" in name or "bcf" in name else pysam.AlignmentFile
    return kind(str(path), index_filename=str(DATA / name))


def all_records(file: Any, index: Index) -> tuple[list[str], list[tuple[int, int, int, str]]]:
    """The contigs in the index's order, and each placed record: its place, and itself as text."""
    if isinstance(file, pysam.VariantFile):
        contigs = [str(name) for name in index.names or file.header.contigs]
        return contigs, [(contigs.index(record.chrom), record.start, record.stop, str(record)) for record in file]
    contigs = [str(name) for name in file.references]
    reads = (read for read in file.fetch(until_eof=True) if read.reference_id >= 0)
    return contigs, [
        (read.reference_id, read.reference_start, read.reference_end or read.reference_start + 1, read.to_string()) for read in reads
    ]


def around(record: tuple[int, int, int, str], random: Random) -> Interval:
    tid, start, *_ = record
    begin = max(0, start - random.randrange(500))
    return Interval(tid, begin, begin + random.choice([1, 600, 20_000, 3_000_000]))


def fetched(plan: SlicePlan, data: bytes, sparse: Path, name: str, contigs: list[str]) -> Iterator[str]:
    """The records that htslib finds when nothing is there but what the plan says, at the time that it says."""
    before = Interval(-1, 0, 0)
    for window in plan.windows:
        with sparse.open("r+b") as out:
            for piece in window.ranges:
                out.seek(piece.offset)
                out.write(data[piece.offset : piece.end])
        with opened(sparse, name) as file:
            for span in window.spans:
                seen = before.end if before.tid == span.tid else 0
                for record in file.fetch(contigs[span.tid], span.start, span.end):
                    start, end, text = place_of(record)
                    if start >= seen and any(start < one.end and end > one.start for one in span.intervals):
                        yield text
                before = span.interval
        with sparse.open("r+b") as out:
            for piece in window.done:
                out.seek(piece.offset)
                out.write(bytes(min(piece.end, len(data) - 38) - piece.offset))


def place_of(record: Any) -> tuple[int, int, str]:
    if isinstance(record, pysam.VariantRecord):
        return record.start, record.stop, str(record)
    return record.reference_start, record.reference_end or record.reference_start + 1, record.to_string()
