"""An index tells where every record of an interval is, and hardly more; damaged and hostile ones are refused in one sentence."""

import gzip
import itertools
import struct
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pysam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from score_core.errors import ConfigurationError, FormatError
from score_core.slicing.base import Chunk, Index, Interval
from score_core.slicing.index import MAX_INDEX_BYTES, TO_END, BinningIndex, CraiIndex, read_index
from tests.slicing.indexes import MadeFile, binning_index, files, intervals, made_file

DATA = Path(__file__).resolve().parents[1] / "data"
NA12878 = "htsnexus_test_NA12878.bam.bai"
CRAM_LINES = "".join(
    f"{tid}\t{start}\t1000\t{offset}\t300\t8000\n"
    for tid, start, offset in itertools.islice(
        ((tid, 1 + 1000 * step, 10_000 * (1 + 5 * tid + step)) for tid in range(2) for step in range(5)), 10
    )
)


def index_of(name: str) -> Index:
    return read_index((DATA / name).read_bytes(), name=name)


def binning(data: bytes) -> BinningIndex:
    index = read_index(data, name="made up")
    assert isinstance(index, BinningIndex)
    return index


def crai(text: str) -> CraiIndex:
    index = read_index(text.encode(), name="made up")
    assert isinstance(index, CraiIndex)
    return index


# What an index says of itself


@pytest.mark.parametrize(
    ("name", "kind", "references", "unplaced"),
    [
        ("htsnexus_test_NA12878.bam.bai", "BAI", 86, 12475),
        ("htsnexus_test_NA12878.bam.csi", "CSI", 86, 12475),
        ("wheat_csi.bam.csi", "CSI", 2, 0),
        ("ex1.vcf.gz.tbi", "TBI", len(index_of("ex1.vcf.gz.tbi").names or ()), 0),
        ("sample1-bcbio-cancer.bcf.csi", "CSI", 2, 0),
        ("NA12878.embedref.cram.crai", "CRAI", None, None),
    ],
)
def test_kind_is_told_by_content(name: str, kind: str, references: int | None, unplaced: int | None) -> None:
    index = index_of(name)
    assert (index.kind, index.references, index.unplaced) == (kind, references, unplaced)


def test_tabix_names_its_contigs() -> None:
    assert index_of("sample1-bcbio-cancer.vcf.gz.tbi").names == ("chrM", "chr22")
    assert index_of(NA12878).names is None


@pytest.mark.parametrize("name", ["htsnexus_test_NA12878.bam.bai", "htsnexus_test_NA12878.bam.csi", "wheat_csi.bam.csi", "range.bam.bai"])
def test_records_begin_where_the_header_ends(name: str) -> None:
    with pysam.AlignmentFile(str(DATA / Path(name).stem)) as file:
        assert index_of(name).first == file.tell()


@pytest.mark.parametrize("name", ["htsnexus_test_NA12878.bam.bai", "htsnexus_test_NA12878.bam.csi"])
def test_unplaced_reads_begin_where_the_placed_end(name: str) -> None:
    last = index_of(name).last
    with pysam.AlignmentFile(str(DATA / Path(name).stem)) as file:
        file.seek(last or 0)
        assert [read.reference_id for read in file.fetch(until_eof=True)] == [-1] * 12475


def test_crai_tells_where_containers_with_unplaced_reads_begin() -> None:
    index = index_of("NA12878.embedref.cram.crai")
    assert (index.first, index.last) == (6011 << 16, 1317435 << 16)


def test_packed_and_plain_crai_are_the_same() -> None:
    packed = read_index(gzip.compress(CRAM_LINES.encode()), name="packed")
    assert packed.chunks(Interval(1, 0, 10_000)) == crai(CRAM_LINES).chunks(Interval(1, 0, 10_000))


# Chunks of binning indexes


@settings(max_examples=60)
@given(files, intervals, st.sampled_from([(14, 5, False), (14, 5, True), (12, 4, True), (16, 2, True)]))
def test_every_record_of_an_interval_is_in_a_chunk(made: MadeFile, asked: list[Interval], shape: tuple[int, int, bool]) -> None:
    min_shift, depth, csi = shape
    index = binning(binning_index(made, 3, min_shift=min_shift, depth=depth, csi=csi))
    for interval in asked:
        chunks = index.chunks(interval)
        found = [record for record in made.records if record.overlaps(interval)]
        assert all(any(begin <= record.begin and record.stop <= end for begin, end in chunks) for record in found)
        assert all(begin < end for begin, end in chunks)
        assert all(one.end >> 16 < other.begin >> 16 for one, other in itertools.pairwise(chunks))


def dense() -> MadeFile:
    """A read of 150 bases at every fiftieth base, 2 kb of them in a block; each two-hundredth of them has an intron of 100 kb."""
    reads = [(0, start, start + (100_150 if start % 10_000 == 0 else 150), True) for start in range(0, 900_000, 50)]
    return made_file(reads, [1600] * len(reads), [20_000])


@pytest.mark.parametrize("csi", [False, True])
def test_a_small_interval_is_in_few_bytes(csi: bool) -> None:
    """Those of its window of 16 kb, and of the reads that reach over: not the beginnings of all bins above."""
    made = dense()
    index = binning(binning_index(made, 1, csi=csi))
    for start in range(200_000, 800_000, 37_000):
        chunks = index.chunks(Interval(0, start, start + 500))
        assert len(chunks) <= 16  # 73 with no end to them, 68 with no beginning
        assert sum(made.block_end(end) - (begin >> 16) for begin, end in chunks) <= 30 * 20_000


def test_nothing_past_the_next_bin_is_read() -> None:
    index = index_of(NA12878)
    assert len(index.chunks(Interval(10, 5_000_000, 5_000_500))) == 1


@pytest.mark.parametrize(("tid", "start", "end"), [(10, 0, 4_000_000), (0, 0, 249_250_621), (99, 0, 10), (-1, 0, 10), (10, 7, 7)])
def test_no_record_no_chunk(tid: int, start: int, end: int) -> None:
    assert index_of(NA12878).chunks(Interval(tid, start, end)) == []


def test_whole_contigs_tile_the_file_to_its_unplaced_reads() -> None:
    index = index_of(NA12878)
    chunks = [chunk for tid in range(86) for chunk in index.chunks(Interval(tid, 0, 1 << 29))]
    assert (chunks[0].begin, chunks[-1].end) == (index.first, index.last)


def test_places_past_the_reach_of_bai_are_an_error() -> None:
    with pytest.raises(ConfigurationError, match="BAI index reaches to position 536870912 .* index the file anew as CSI"):
        index_of(NA12878).chunks(Interval(10, 1 << 29, (1 << 29) + 10))
    assert index_of("wheat_csi.bam.csi").chunks(Interval(1, 1 << 29, 830_829_764))


def test_end_past_the_reach_is_no_error() -> None:
    index = index_of("ex1.vcf.gz.tbi")
    assert index.chunks(Interval(0, 0, (1 << 31) - 1)) == index.chunks(Interval(0, 0, 1 << 29))


def test_index_without_what_later_versions_added_is_read() -> None:
    """No pseudo-bins (samtools before 0.1.8), no count of unplaced reads, windows left out."""
    chunk = struct.pack("<2Q", 100 << 16, 900 << 16)
    data = b"BAI\1" + struct.pack("<I", 1) + struct.pack("<I2I", 1, 4681 + 3, 1) + chunk + struct.pack("<I5Q", 5, 0, 0, 0, 100 << 16, 0)
    index = binning(data)
    assert (index.first, index.last, index.unplaced) == (100 << 16, 900 << 16, None)
    assert index.chunks(Interval(0, 3 << 14, (3 << 14) + 1)) == [Chunk(100 << 16, 900 << 16)]


@pytest.mark.parametrize("name", ["htsnexus_test_NA12878.bam.bai", "wheat_csi.bam.csi", "ex1.vcf.gz.tbi"])
def test_known_blocks_are_blocks(name: str) -> None:
    data, index = (DATA / Path(name).stem).read_bytes(), index_of(name)
    offset, known = index.block_after(-1), 0
    while offset is not None:
        assert data[offset : offset + 4] == b"\x1f\x8b\x08\x04"
        offset, known = index.block_after(offset), known + 1
    assert known > 1


# Containers of CRAM


def test_containers_of_an_interval_and_the_next_ones_header() -> None:
    """htslib goes by the headers: the one after the last tells it to stop."""
    [chunk] = crai(CRAM_LINES).chunks(Interval(0, 1500, 1900))
    assert (chunk.begin, chunk.end >> 16, chunk.end & 0xFFFF) == (20_000 << 16, 30_000, 65)


def test_last_container_ends_with_the_file() -> None:
    assert crai(CRAM_LINES).chunks(Interval(1, 4500, 4600)) == [Chunk(100_000 << 16, TO_END)]


def test_no_container_no_chunk() -> None:
    index = crai(CRAM_LINES + "-1\t0\t1\t110000\t300\t8000\n")
    assert [index.chunks(Interval(tid, 9_000, 9_001)) for tid in (0, 1, 2, -1)] == [[], [], [], []]
    assert index.last == 110_000 << 16


def test_containers_between_are_skipped_by_their_headers() -> None:
    """A read with an intron of a megabase makes its container overlap what is far behind it."""
    long = "0\t1\t900000\t1000\t300\t8000\n" + "".join(
        f"0\t{1 + 1000 * step}\t1000\t{10_000 + 2000 * step}\t300\t1500\n" for step in range(100)
    )
    chunks = crai(long).chunks(Interval(0, 98_100, 98_200))
    whole = [chunk for chunk in chunks if chunk.end >> 16 != chunk.begin >> 16]
    assert [chunk.begin >> 16 for chunk in whole] == [1000, 10_000 + 2000 * 98]
    assert sum((chunk.end >> 16) - (chunk.begin >> 16) + (chunk.end & 0xFFFF) for chunk in chunks) < 9000 + 2000 + 100 * 70


def test_containers_that_may_mix_contigs_are_read_whole() -> None:
    """htslib unpacks those to see what they hold, even where they follow the last one of the interval."""
    mixed = "0\t1\t1000\t1000\t300\t8000\n0\t2001\t100\t9000\t300\t8000\n1\t1\t500\t9000\t300\t8000\n1\t501\t500\t17000\t300\t8000\n"
    [chunk] = crai(mixed).chunks(Interval(0, 0, 100))
    assert chunk.end >> 16 == 17_000


def test_contigs_in_one_container_are_found_there() -> None:
    mixed = "".join(f"{tid}\t1\t100\t5000\t300\t8000\n" for tid in range(50)) + "50\t1\t100\t14000\t300\t900\n"
    index = crai(mixed)
    assert all(index.chunks(Interval(tid, 0, 100))[0].begin == 5000 << 16 for tid in range(50))


def test_crai_of_a_file_without_reads_is_empty() -> None:
    index = read_index(gzip.compress(b""), name="empty")
    assert (index.kind, index.first, index.last, index.chunks(Interval(0, 0, 10))) == ("CRAI", None, None, [])


# Damage


def all_of(index: Index) -> None:
    """Everything that slicing asks an index."""
    _ = index.first, index.last, index.names, index.unplaced
    for interval in (Interval(0, 0, 1000), Interval(1, 5_000_000, 6_000_000), Interval(10, 0, 1 << 29)):
        index.chunks(interval)
    index.block_after(0)


@pytest.mark.parametrize("name", ["colons.bam.bai", "range.bam.bai"])
def test_index_cut_off_anywhere_is_refused(name: str) -> None:
    data = (DATA / name).read_bytes()
    for length in range(len(data) - 8):  # the last eight bytes, the count of unplaced reads, may be missing
        with pytest.raises(FormatError, match=r"^cut\.bai: "):
            read_index(data[:length], name="cut.bai")


@pytest.mark.parametrize("name", ["wheat_csi.bam.csi", "ex1.vcf.gz.tbi", "NA12878.embedref.cram.crai"])
def test_packed_index_cut_off_is_refused(name: str) -> None:
    data = (DATA / name).read_bytes()
    for length in range(0, len(data) - 28, 97):
        with pytest.raises(FormatError):
            all_of(read_index(data[:length], name=name))


@pytest.mark.parametrize("name", [NA12878, "wheat_csi.bam.csi", "ex1.vcf.gz.tbi", "htsnexus_test_NA12878.cram.crai"])
def test_damaged_index_is_refused_or_answers(name: str) -> None:
    data, random = (DATA / name).read_bytes(), Random(7)
    plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    for _ in range(40):
        damaged = bytearray(plain)
        for _ in range(random.choice([1, 3, 20])):
            damaged[random.randrange(min(len(damaged), random.choice([40, 1 << 30])))] = random.randrange(256)
        with suppress(FormatError):
            all_of(read_index(bytes(damaged), name=name))


MANY = struct.pack("<I", 0xFFFFFFFF)
HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "text": b"hello\n",
    "contigs": b"BAI\1" + MANY + bytes(100),
    "bins": b"BAI\1" + struct.pack("<I", 1) + MANY + bytes(100),
    "chunks": b"BAI\1" + struct.pack("<3I", 1, 1, 4681) + MANY + bytes(100),
    "windows": b"BAI\1" + struct.pack("<2I", 1, 0) + MANY + bytes(100),
    "names": b"TBI\1" + struct.pack("<I", 1) + bytes(24) + MANY + bytes(100),
    "addition": b"CSI\1" + struct.pack("<2I", 14, 5) + MANY + bytes(100),
    "depth": b"CSI\1" + struct.pack("<4I", 14, 60, 0, 1) + bytes(100),
    "shift": b"CSI\1" + struct.pack("<4I", 4_000_000_000, 5, 0, 1) + bytes(100),
    "same bin twice": b"BAI\1" + struct.pack("<I", 1) + struct.pack("<I4I", 2, 4681, 0, 4681, 0) + bytes(4),
    "bin out of range": b"BAI\1" + struct.pack("<I", 1) + struct.pack("<I2I", 1, 37451, 0) + bytes(4),
    "pseudo-bin of one": b"BAI\1" + struct.pack("<I", 1) + struct.pack("<I2I2Q", 1, 37450, 1, 0, 0) + bytes(4),
    "many contigs": b"CSI\1" + struct.pack("<4I", 14, 5, 0, 50_000_000) + bytes(100),
    "bomb": gzip.compress(bytes(8 << 20)) * (MAX_INDEX_BYTES // (8 << 20) + 1),
    "damaged gzip": gzip.compress(b"0\t1\t1\t1\t1\t1\n")[:-6] + bytes(6),
    "five columns": b"0\t1\t1\t1\t1\t1\n0\t1\t1\t1\t1\n",
    "contig -2": b"0\t1\t1\t1\t1\t1\n-2\t1\t1\t1\t1\t1\n",
    "huge number": b"0\t1\t1\t" + b"9" * 5000 + b"\t1\t1\n",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_index_is_refused_in_a_sentence(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"^it\.bai: [A-Z]") as caught:
        read_index(data, name="it.bai")
    assert len(str(caught.value)) < 150


def test_chunk_that_ends_before_it_begins_is_refused() -> None:
    data = b"BAI\1" + struct.pack("<I", 1) + struct.pack("<I2I2Q", 1, 4681, 1, 90 << 16, 80 << 16) + struct.pack("<I", 0)
    with pytest.raises(FormatError, match="a chunk ends before it begins"):
        binning(data).chunks(Interval(0, 0, 10))


# The same reads as from the file itself: its records' places, told by htslib


@pytest.mark.parametrize("name", ["htsnexus_test_NA12878.bam.bai", "htsnexus_test_NA12878.bam.csi", "wheat_csi.bam.csi"])
def test_real_reads_are_in_their_chunks(name: str) -> None:
    index, random = index_of(name), Random(3)
    reads = records_of(DATA / Path(name).stem)
    for _ in range(100):
        tid, at, *_ = random.choice(reads)
        interval = Interval(tid, max(0, at - random.randrange(300)), at + random.choice([1, 100, 5000, 200_000]))
        chunks = index.chunks(interval)
        found = [(begin, end) for mine, start, stop, begin, end in reads if mine == tid and start < interval.end and stop > interval.start]
        assert found
        assert all(any(low <= begin and end <= high for low, high in chunks) for begin, end in found)


def records_of(path: Path) -> list[tuple[int, int, int, int, int]]:
    found: list[Any] = []
    with pysam.AlignmentFile(str(path)) as file:
        begin = file.tell()
        for read in file.fetch(until_eof=True):
            end = file.tell()
            if read.reference_id >= 0:
                found.append((read.reference_id, read.reference_start, read.reference_end or read.reference_start + 1, begin, end))
            begin = end
    return found
