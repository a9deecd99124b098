"""Regions and BED rows mean what samtools means by them; where it guesses or finds silently nothing, a sentence says what is wrong."""

import gzip
import shutil
import subprocess
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from random import Random

import pysam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_core.errors import ConfigurationError, LocalFileError
from score_core.slicing.base import Contig, Contigs, Interval
from score_core.slicing.regions import MAX_POSITION, Query, merged, parse_regions, read_bed, region_text

DATA = Path(__file__).resolve().parents[1] / "data"
NAMES = ("chr1", "chr2", "HLA-A*01:01", "HLA-A*01:01:02", "a", "a:b", "c", "c:5-6", "1,2", "MT", "chrM_alt", "no length")
CONTIGS = Contigs(tuple(Contig(name, None if name == "no length" else 1000) for name in NAMES))


def one(text: str, contigs: Contigs = CONTIGS) -> Interval:
    [interval] = parse_regions([text], contigs).intervals
    return interval


# Regions


@pytest.mark.parametrize(
    ("text", "name", "start", "end"),
    [
        ("chr1", "chr1", 0, 1000),
        ("chr1:100", "chr1", 99, 1000),
        ("chr1:100-", "chr1", 99, 1000),
        ("chr1:-100", "chr1", 0, 100),
        ("chr1:100-200", "chr1", 99, 200),
        ("chr1:100-100", "chr1", 99, 100),
        ("chr1:1,0,0-,2,0,0,", "chr1", 99, 200),
        ("chr1:0100-00200", "chr1", 99, 200),
        ("chr1:100-99999999999999999999", "chr1", 99, 1000),
        ("chr1:1000", "chr1", 999, 1000),
        ("{chr1}", "chr1", 0, 1000),
        ("{chr1}:100-200", "chr1", 99, 200),
        ("HLA-A*01:01:100-200", "HLA-A*01:01", 99, 200),
        ("HLA-A*01:01:02", None, 0, 0),
        ("{HLA-A*01:01:02}", "HLA-A*01:01:02", 0, 1000),
        ("{HLA-A*01:01}:02", "HLA-A*01:01", 1, 1000),
        ("HLA-A*01:01:02:5-6", "HLA-A*01:01:02", 4, 6),
        ("a:b", "a:b", 0, 1000),
        ("a:b:5", "a:b", 4, 1000),
        ("c:5-7", "c", 4, 7),
        ("c:5-6", None, 0, 0),
        ("{c}:5-6", "c", 4, 6),
        ("{c:5-6}", "c:5-6", 0, 1000),
        ("1,2:3", "1,2", 2, 1000),
        ("no length:7", "no length", 6, MAX_POSITION),
    ],
)
def test_region_is_decided_by_the_contigs(text: str, name: str | None, start: int, end: int) -> None:
    if name is None:
        with pytest.raises(ConfigurationError, match=r"has two meanings: .* write \{"):
            one(text)
    else:
        assert one(text) == Interval(NAMES.index(name), start, end)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "A region is empty"),
        (" ", "A region is empty"),
        ("chr9", 'the data have no contig "chr9"$'),
        ("1:5-6", 'the data have no contig "1"; there is "chr1"'),
        ("CHR2:5-6", 'the data have no contig "CHR2"; there is "chr2"'),
        ("chrM", 'the data have no contig "chrM"; there is "MT"'),
        ("chrm_alt:1", 'the data have no contig "chrm_alt"; there is "chrM_alt"'),
        ("no lenght:1", 'the data have no contig "no lenght"; there is "no length"'),
        ("nothing alike:5", 'the data have no contig "nothing alike"$'),
        ("a:c", 'the data have no contig "a:c"|positions that are no numbers'),
        ("chr1:", "no position after the colon; leave the colon out"),
        ("chr1:-", "no position after the colon"),
        ("chr1:,", "no position after the colon"),
        ("{chr1}:", "no position after the colon"),
        ("chr1:0", "position 0; positions count from 1"),
        ("chr1:0-100", "position 0"),
        ("chr1:-0", "position 0"),
        ("chr1:100-0", "position 0"),
        ("chr1:200-100", "ends before it begins"),
        ("chr1:100-99", "ends before it begins"),
        ("chr1:1001", "begins past the end of chr1, which has 1000 bases"),
        ("chr1:" + "9" * 5000, "begins past the end of chr1"),
        ("chr1:10-20-30", "no numbers; .* plain hyphen"),
        ("chr1:-10-20", "no numbers"),
        ("chr1:10\u221220", "no numbers; .* plain hyphen"),
        ("chr1:\u0663", "no numbers; .* digits 0 to 9"),
        ("chr1:1k-2k", "no numbers"),
        ("chr1:1e2", "no numbers"),
        ("chr1:+5", "no numbers"),
        ("chr1:5 - 6", "no numbers"),
        ("{chr1", "no closing brace"),
        ("{chr1}5", "goes on after the brace"),
        ("{chr9}:5", 'no contig "chr9"'),
        ("{}", 'no contig ""'),
        ("x" * 10_000, "the data have no contig"),
    ],
)
def test_wrong_region_is_told_in_a_sentence(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        one(text)
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 300


def test_region_of_a_file_without_contigs_says_so() -> None:
    with pytest.raises(ConfigurationError, match="the data have no contigs at all"):
        one("chr1", Contigs(()))


def test_regions_add_up() -> None:
    query = parse_regions(["chr2:1-10", "chr1:5-20", "chr1:10-30", "*", "chr1:31-40"], CONTIGS)
    assert query == Query((Interval(0, 4, 40), Interval(1, 0, 10)), unplaced=True)
    assert parse_regions(["."], CONTIGS) == Query((), everything=True)
    assert parse_regions([], CONTIGS) == Query(())


@given(st.integers(0, len(NAMES) - 1), st.integers(0, 998), st.integers(1, 1000))
def test_text_of_an_interval_is_a_region_for_it(tid: int, start: int, size: int) -> None:
    interval = Interval(tid, start, min(start + size, 1000))
    assert one(region_text(interval, CONTIGS)) == interval


@given(st.one_of(st.text(max_size=12), st.text("chr12a:b{}-,.0123456789*", max_size=12)))
def test_any_text_is_a_region_or_an_error(text: str) -> None:
    try:
        query = parse_regions([text], CONTIGS)
    except ConfigurationError as error:
        assert str(error).isprintable()  # noqa: PT017 - either outcome is right
    else:
        assert query.unplaced or query.everything or all(0 <= start < end <= MAX_POSITION for _, start, end in query.intervals)


intervals = st.builds(
    lambda tid, start, size: Interval(tid, start, start + size), st.integers(0, 2), st.integers(0, 60), st.integers(-3, 12)
)


@given(st.lists(intervals, max_size=12))
def test_merged_intervals_are_the_same_bases_once(given: list[Interval]) -> None:
    together = merged(given)
    assert bases(together) == bases(given)
    assert sum(end - start for _, start, end in together) == len(bases(given))
    assert merged(together) == together == tuple(sorted(together))
    assert all(one.tid != other.tid or one.end < other.start for one, other in pairwise(together))


def bases(intervals: Iterable[Interval]) -> set[tuple[int, int]]:
    return {(tid, base) for tid, start, end in intervals for base in range(start, end)}


# Where samtools says the same, and where not and why

SAME = [
    "11",
    "11:5000000",
    "11:5000000-",
    "11:-5000000",
    "11:5,000,000-5,001,000",
    "11:,5000000-,5001000,",
    "11:5000000-5000000",
    "11:5000000-99999999999",
    "{11}",
    "{11}:5000000-5001000",
]
OTHERWISE = {  # what it takes them for, None for nothing (with a warning, and exit code 0), and why they are errors here
    "11:": ("11", "a range was forgotten more likely than a colon put there for nothing"),
    "11:-": ("11", "the same"),
    "11:0": ("11", "positions count from 1: whoever writes 0 counts otherwise, and would get other bases than meant"),
    "11:0-5000000": ("11:1-5000000", "the same"),
    "11:5001000-0": ("11:5001000", "the same; and it ends before it begins"),
    "11:5e6-5001000": ("11:5000000-5001000", "there is one way to write a number"),
    "11:5M-5010k": ("11:5000000-5010000", "the same"),
    "11:+5000000-5001000": ("11:5000000-5001000", "the same"),
    "11: 5000000-5001000": ("11:5000000-5001000", "the same"),
    "11:5001000-5000000": (None, "nothing found and nothing asked for must not look the same"),
    "11:999999999": (None, "the same"),
    "99:1": (None, "the same"),
}

needs_samtools = pytest.mark.skipif(
    not shutil.which("samtools"), reason="NOT PROVED: that regions are samtools' (apt-get install samtools)"
)


@needs_samtools
@pytest.mark.parametrize("text", SAME)
def test_samtools_finds_the_same(text: str) -> None:
    contigs, file = real()
    assert samtools_count(file, region_text(one(text, contigs), contigs)) == samtools_count(file, text) > 0


@needs_samtools
@pytest.mark.parametrize("text", OTHERWISE)
def test_what_samtools_guesses_is_an_error(text: str) -> None:
    contigs, file = real()
    meant, _why = OTHERWISE[text]
    assert samtools_count(file, text) == (samtools_count(file, meant) if meant else 0)
    with pytest.raises(ConfigurationError):
        one(text, contigs)


def real() -> tuple[Contigs, Path]:
    file = DATA / "htsnexus_test_NA12878.bam"
    with pysam.AlignmentFile(str(file)) as reads:
        return Contigs(tuple(map(Contig, reads.references, reads.lengths))), file


def samtools_count(file: Path, region: str) -> int:
    return int(subprocess.run(["samtools", "view", "-c", file, region], capture_output=True, check=True).stdout)


@pytest.mark.parametrize(
    ("text", "name"),
    [("chr1", "chr1"), ("chr1:100", None), ("chr1:100-200", None), ("chr2:100-200", "chr2:100-200"), ("chr1,chr3", "chr1,chr3")],
)
def test_contigs_with_colons_are_found_in_a_real_header(text: str, name: str | None) -> None:
    """htslib's own test of this: chr1, chr1:100 and chr1:100-200 are all contigs of the file."""
    with pysam.AlignmentFile(str(DATA / "colons.bam")) as file:
        contigs = Contigs(tuple(map(Contig, file.references, file.lengths)))
    if name is None:
        with pytest.raises(ConfigurationError, match="two meanings"):
            one(text, contigs)
    else:
        assert contigs[one(text, contigs).tid].name == name


# BED


def test_bed_rows_are_intervals() -> None:
    lines = [
        "# comment",
        "track name=x",
        "browser position chr1:1-2",
        "",
        "chr2\t5\t10\texon\t0\t+",
        "chr1 100 200",
        "chr1\t200\t300\r",
        "chr1\t50\t2000",
        "chr1\t7\t7",
    ]
    assert read_bed(lines, CONTIGS) == ((Interval(0, 50, 1000), Interval(1, 5, 10)), ())


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda data: gzip.compress(data[:5]) + gzip.compress(data[5:])])
def test_packed_bed_is_read(tmp_path: Path, pack: object) -> None:
    path = tmp_path / "some.bed"
    path.write_bytes(pack(b"\xef\xbb\xbfchr1\t1\t2\r\nchr1\t5\t9\r\n"))  # type: ignore[operator] # any of the three
    assert read_bed(path, CONTIGS).intervals == (Interval(0, 1, 2), Interval(0, 5, 9))
    assert read_bed(str(path), CONTIGS).intervals == read_bed(path, CONTIGS).intervals


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (b"chr1\t5", "It has 2 columns, and needs three"),
        (b"chr1", "It has 1 column,"),
        (b"chr1\t9\t5", "ends at 5, before it begins at 9"),
        (b"chr1\t-1\t5", 'position "-1" is negative'),
        (b"chr1\tx\t5", '"x" is not a position'),
        (b"chr1\t1_0\t50", '"1_0" is not a position'),
        (b"chr1\t5\t1e3", '"1e3" is not a position'),
        (b"chr1\t5\t" + b"9" * 5000, '"9{80}..." is not a position'),
        (b"chr1\t1000\t1001", "begins at 1000, past the contig's end at 1000; is it of another assembly"),
        (b"chr1\t1001\t1001", "past the contig's end"),
        (b"1\t5\t6", 'the data have no contig "1"; there is "chr1"'),
        (b"\x00\x01\x02\xff", "not text; this is no BED file"),
        (b"\xff\xfe\t1\t2", r'no contig "\\xff\\xfe"'),
        (b"x" * (1 << 20), "more than 1 MiB"),
    ],
)
def test_wrong_bed_row_is_told_with_its_place(tmp_path: Path, row: bytes, why: str) -> None:
    path = tmp_path / "panel.bed"
    path.write_bytes(b"chr1\t1\t2\n\n" + row + b"\nchr1\t1\t2\n")
    with pytest.raises(ConfigurationError, match=rf"panel\.bed, line 3: .*{why}"):
        read_bed(path, CONTIGS)


def test_unknown_contigs_are_skipped_when_that_is_asked() -> None:
    rows = ["chrX\t5\t6", "chr1\t5\t6", "chrY\t5\t6", "chrX\t9\t10"]
    assert read_bed(rows, CONTIGS, skip_unknown=True) == ((Interval(0, 5, 6),), ("chrX", "chrY"))


def test_bed_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(LocalFileError, match="Cannot read the BED file .*missing.bed: No such file"):
        read_bed(tmp_path / "missing.bed", CONTIGS)
    (tmp_path / "cut.bed.gz").write_bytes(gzip.compress(b"chr1\t1\t2\n" * 1000)[:-10])
    with pytest.raises(ConfigurationError, match="cut.bed.gz is damaged or cut off"):
        read_bed(tmp_path / "cut.bed.gz", CONTIGS)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 900), st.integers(0, 300)), max_size=30))
def test_bed_in_any_order_is_merged(rows: list[tuple[int, int, int]]) -> None:
    lines = [f"{NAMES[tid]}\t{start}\t{start + size}" for tid, start, size in rows]
    expected = merged(Interval(tid, start, min(start + size, 1000)) for tid, start, size in rows)
    assert read_bed(lines, CONTIGS).intervals == expected


def test_big_bed_out_of_order_is_merged() -> None:
    """More rows than are kept before they are merged."""
    random, length = Random(1), 10_000_000
    rows = [(random.randrange(length - 100), random.randrange(1, 100)) for _ in range(70_000)]
    got = read_bed((f"big\t{start}\t{start + size}" for start, size in rows), Contigs((Contig("big", length),)))
    assert got.intervals == merged(Interval(0, start, start + size) for start, size in rows)
