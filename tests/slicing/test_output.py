"""What a slice looks like: headers, formats, indexes and names; and that a file is there whole or not at all."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pysam
import pytest

from score_core import __version__
from score_core.errors import ConfigurationError, ScoreError
from score_core.slicing.output import output_name
from score_core.slicing.view import Form, Wanted
from tests.slicing.oracle import (
    CE,
    DATA,
    EMBEDDED,
    NA12878,
    RANGE,
    Shelf,
    bcftools,
    bed_of,
    header,
    made_bam,
    needs_samtools,
    opened_shelf,
    read_line,
    records,
    samtools,
)

pytestmark = needs_samtools

REGION = "11:5000000-5001000"
GROUPS = 40
SIZES = {"small": "chr1:1-400", "large": "chr1:1-90000", "none": "chr1:199000-199001"}
CONTIGS = {"chr1": 200_000, "chr2": 5000}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with opened_shelf(tmp_path_factory.mktemp("shelf")) as opened:
        opened.remote = False
        yield opened


@pytest.fixture(autouse=True)
def no_reference_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REF_PATH", os.devnull)
    monkeypatch.delenv("REF_CACHE", raising=False)


def headers_of(path: Path | str) -> list[str]:
    return header(samtools("view", "--no-PG", "-H", path))


# Headers of alignments


@pytest.fixture(scope="module")
def grouped(shelf: Shelf) -> Path:
    """Forty read groups, each a stretch of the contig; every third read has none. Comments and programs, too."""
    rng = random.Random(4)
    lines = []
    for number, start in enumerate(range(0, 150_000, 50)):
        tags = "" if number % 3 == 2 else f"\tRG:Z:g{start * GROUPS // 200_000}"
        lines.append(read_line(f"r{number}", "chr1", start, rng=rng, tags=tags))
    groups = "".join(f"@RG\tID:g{number}\tSM:s{number}\tDS:{'d' * 300}\n" for number in range(GROUPS))
    programs = "@PG\tID:bwa\tPN:bwa\tVN:1\n@PG\tID:score\tPN:score\tPP:bwa\n@CO\tremarks of somebody\n"
    return made_bam(shelf.folder, "grouped.bam", CONTIGS, lines, header=groups + programs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["sam", "bam", "cram"])
def test_header_names_the_groups_of_the_reads_alone(shelf: Shelf, grouped: Path, kind: str, size: str, tmp_path: Path) -> None:
    report = shelf.slice(grouped, Wanted((SIZES[size],)), Form(kind, command="score view --query it"), tmp_path)
    samtools("quickcheck", report.path) if kind != "sam" else None
    expected = samtools("view", grouped, SIZES[size])
    assert sorted_tags(samtools("view", report.path)) == sorted_tags(expected)
    hit = {f"g{number}" for number in range(GROUPS) if f"RG:Z:g{number}\n".encode() in expected}
    found = headers_of(report.path)
    assert {line.split("\t")[1].removeprefix("ID:") for line in found if line.startswith("@RG")} == hit
    assert len(hit) == {"small": 1, "large": 18, "none": 0}[size]
    whole = headers_of(grouped)
    assert [line for line in found if line.startswith("@RG")] == [
        line for line in whole if line.startswith("@RG") and line[7:].split("\t")[0] in hit
    ]


def sorted_tags(text: bytes) -> list[tuple[list[bytes], list[bytes]]]:
    """CRAM makes MD and NM anew, puts RG last, and keeps no CIGAR of reads that are not mapped."""
    rows = [line.split(b"\t") for line in text.splitlines()]
    return [
        (row[:5] + ([] if int(row[1]) & 4 else [row[5]]) + row[6:11], sorted(tag for tag in row[11:] if tag[:2] not in {b"MD", b"NM"}))
        for row in rows
    ]


@pytest.mark.parametrize("kind", ["sam", "bam", "cram"])
def test_header_keeps_contigs_and_programs_and_adds_one(shelf: Shelf, grouped: Path, kind: str, tmp_path: Path) -> None:
    report = shelf.slice(grouped, Wanted(("chr1:1-400",)), Form(kind, command="score view --query chr1:1-400"), tmp_path)
    found, whole = headers_of(report.path), headers_of(grouped)
    assert found[0] == "@HD\tVN:1.6\tSO:coordinate"
    assert without_digests(found) == [line for line in whole if line.startswith("@SQ")]
    own = f"@PG\tID:score.1\tPN:score\tPP:score\tVN:{__version__}\tCL:score view --query chr1:1-400"
    assert [line for line in found if line.startswith("@PG")] == [*(line for line in whole if line.startswith("@PG")), own]
    assert not [line for line in found if line.startswith("@CO")]


def without_digests(lines: list[str]) -> list[str]:
    return [line.partition("\tM5:")[0] for line in lines if line.startswith("@SQ")]


@pytest.mark.parametrize("kind", ["sam", "bam", "cram"])
def test_original_header_is_kept_as_it_is(shelf: Shelf, grouped: Path, kind: str, tmp_path: Path) -> None:
    for path in (grouped, NA12878, EMBEDDED):
        region = "chr1:1-400" if path == grouped else REGION
        report = shelf.slice(path, Wanted((region,)), Form(kind, original_header=True), tmp_path)
        assert headers_of(report.path) == headers_of(path)


@pytest.mark.parametrize("kind", ["sam", "bam", "cram"])
def test_header_alone_is_all_of_it_and_no_read(shelf: Shelf, grouped: Path, kind: str, tmp_path: Path) -> None:
    report = shelf.slice(grouped, Wanted(header_only=True), Form(kind, command="c"), tmp_path)
    assert Path(report.path).name == f"grouped.header.{kind}"
    samtools("quickcheck", report.path) if kind != "sam" else None
    assert samtools("view", report.path) == b""
    assert sum(line.startswith("@RG") for line in headers_of(report.path)) == GROUPS
    original = shelf.slice(grouped, Wanted(header_only=True), Form(kind, original_header=True), tmp_path)
    assert headers_of(original.path) == headers_of(grouped)


def test_header_of_many_blocks(shelf: Shelf, tmp_path: Path) -> None:
    contigs = {f"scaffold{number}": 1000 + number for number in range(9000)}
    lines = [read_line(f"r{number}", f"scaffold{number}", 5, tags="\tRG:Z:a") for number in range(0, 9000, 10)]
    path = made_bam(shelf.folder, "scattered.bam", contigs, lines, header="@RG\tID:a\n@RG\tID:b\n")
    for kind in ("sam", "bam", "cram"):
        report = shelf.slice(path, Wanted(("scaffold8000", "scaffold10")), Form(kind, index=kind != "sam"), tmp_path)
        assert sorted_tags(samtools("view", report.path)) == sorted_tags(samtools("view", path, "scaffold10", "scaffold8000"))
        assert len(without_digests(headers_of(report.path))) == 9000


# Files and streams


@pytest.mark.parametrize("kind", ["sam", "bam", "cram"])
@pytest.mark.parametrize("path", [NA12878, EMBEDDED], ids=["BAM", "CRAM"])
@pytest.mark.parametrize("original", [True, False], ids=["whole header", "own header"])
def test_stream_gets_what_a_file_gets(shelf: Shelf, kind: str, path: Path, original: bool, tmp_path: Path) -> None:
    expected = samtools("view", path, "11:5000000-5020000")
    form = Form(kind, original_header=original)
    to_folder = shelf.slice(path, Wanted(("11:5000000-5020000",)), form, tmp_path)
    assert sorted_tags(samtools("view", to_folder.path)) == sorted_tags(expected)
    streamed = through_a_pipe(shelf, path, Wanted(("11:5000000-5020000",)), form, tmp_path / f"streamed.{kind}")
    assert samtools("view", streamed) == samtools("view", to_folder.path)
    assert headers_of(streamed) == headers_of(to_folder.path)


def through_a_pipe(shelf: Shelf, path: Path, wanted: Wanted, form: Form, out: Path) -> Path:
    """To another process: htslib does not let go of this one while it waits for a reader."""
    with out.open("wb") as file, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as reader:
        assert reader.stdin is not None
        shelf.slice(path, wanted, form, reader.stdin)
        reader.stdin.close()
    return out


@pytest.mark.parametrize("kind", ["bam", "cram"])
def test_index_beside_the_slice_serves_samtools(shelf: Shelf, kind: str, tmp_path: Path) -> None:
    report = shelf.slice(NA12878, Wanted(("11:4900000-5100000", "20")), Form(kind, index=True), tmp_path)
    suffix = {"bam": ".bai", "cram": ".crai"}[kind]
    assert {path.name for path in tmp_path.iterdir()} == {Path(report.path).name, Path(report.path).name + suffix}
    assert sorted_tags(samtools("view", report.path, REGION)) == sorted_tags(samtools("view", NA12878, REGION))
    again = shelf.slice(Path(report.path), Wanted((REGION,)), Form("sam"), tmp_path / "again")
    assert again.records == 39


def test_index_of_long_contigs_is_csi(shelf: Shelf, tmp_path: Path) -> None:
    lines = [read_line(f"r{at}", "chr1A", at) for at in (5, 590_000_000)]
    path = made_bam(shelf.folder, "long.bam", {"chr1A": 598_660_471}, lines, csi=True)
    report = shelf.slice(path, Wanted(("chr1A:580000000",)), Form("bam", index=True), tmp_path)
    assert (tmp_path / f"{Path(report.path).name}.csi").is_file()
    assert samtools("view", report.path, "chr1A:590000001-590000001").count(b"\n") == 1


def test_cram_tells_nothing_of_where_the_reference_is(shelf: Shelf, tmp_path: Path) -> None:
    bam = DATA / "range.bam"
    plain = [line for line in headers_of(bam) if line.startswith("@SQ")]
    report = shelf.slice(bam, Wanted(("CHROMOSOME_II",)), Form("cram", reference=CE), tmp_path)
    assert str(DATA) not in samtools("view", "-H", report.path).decode()
    assert without_digests(headers_of(report.path)) == without_digests(plain)
    assert sorted_tags(samtools("view", "-T", CE, report.path)) == sorted_tags(samtools("view", bam, "CHROMOSOME_II"))


def test_cram_is_cram_by_its_content(shelf: Shelf, tmp_path: Path) -> None:
    """The Java client writes SAM text into it."""
    report = shelf.slice(RANGE, Wanted(("CHROMOSOME_I",)), Form("cram", reference=CE), tmp_path)
    assert Path(report.path).read_bytes()[:6] == b"CRAM\3\0"


# Variants


@pytest.mark.parametrize("kind", ["vcf", "vcf.gz", "bcf"])
@pytest.mark.parametrize("path", ["ex1.vcf.gz", "sample1-bcbio-cancer.vcf.gz", "sample1-bcbio-cancer.bcf"])
def test_variants_in_every_format(shelf: Shelf, path: str, kind: str, tmp_path: Path) -> None:
    data = DATA / path
    contig = bcftools("index", "-s", data).split()[0].decode()
    indexed = kind != "vcf"
    report = shelf.slice(data, Wanted((contig,)), Form(kind, index=indexed), tmp_path / "out")
    assert Path(report.path).name == f"{path.partition('.')[0]}.{contig}.{kind}"
    assert bcftools("view", "-H", report.path) == bcftools("view", "-H", "-r", contig, data)
    assert bcftools("view", "--no-version", "-h", report.path) == bcftools("view", "--no-version", "-h", data)
    if indexed:
        assert (tmp_path / "out" / (Path(report.path).name + (".csi" if kind == "bcf" else ".tbi"))).is_file()
        assert bcftools("view", "-H", "-r", contig, report.path) == bcftools("view", "-H", report.path)
    streamed = through_a_pipe(shelf, data, Wanted((contig,)), Form(kind), tmp_path / f"streamed.{kind}")
    assert streamed.read_bytes() == Path(report.path).read_bytes()


@pytest.mark.parametrize("kind", ["vcf", "vcf.gz", "bcf"])
def test_header_of_variants_alone(shelf: Shelf, kind: str, tmp_path: Path) -> None:
    report = shelf.slice(DATA / "ex1.vcf.gz", Wanted(header_only=True), Form(kind), tmp_path)
    assert bcftools("view", "--no-version", report.path) == bcftools("view", "--no-version", "-h", DATA / "ex1.vcf.gz")


UNDECLARED = """##fileformat=VCFv4.2
##contig=<ID=c1,length=1000>
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO
c1\t10\t.\tA\tC,<NON_REF>\t.\tPASS\t.
c1\t11\t.\tA\tC\t0.10\tq10\tEND=11;XX=5
c1\t20\t.\tAC\t<DEL>\t.\tPASS\t.
c2\t11\t.\tA\tC\t.\tPASS\tXX=5
"""


def test_variants_that_their_header_does_not_declare_stay_as_they_are(shelf: Shelf, tmp_path: Path) -> None:
    path = tmp_path / "sloppy.vcf.gz"
    (tmp_path / "sloppy.vcf").write_text(UNDECLARED)
    pysam.tabix_compress(str(tmp_path / "sloppy.vcf"), str(path))
    pysam.tabix_index(str(path), preset="vcf")
    expected = records(UNDECLARED.encode().replace(b"0.10", b"0.1"), b"#")
    for regions in (("c1", "c2"), (".",)):
        assert records(shelf.text(path, *regions), b"#") == expected
        with pytest.raises(ConfigurationError, match="vcf.gz"):
            shelf.slice(path, Wanted(regions), Form("bcf"), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("path", "kind"), [(NA12878, "vcf"), (NA12878, "bcf"), (DATA / "ex1.vcf.gz", "bam"), (EMBEDDED, "fastq")])
def test_format_that_the_data_cannot_have(shelf: Shelf, path: Path, kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can be written as"):
        shelf.slice(path, Wanted(header_only=True), Form(kind), tmp_path)


# Names


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        (Wanted(("11:5000000-5001000",)), "htsnexus_test_NA12878.11_5000000-5001000.sam"),
        (Wanted(("11:5000000-5001000", "20:1-9")), "htsnexus_test_NA12878.11_5000000-5001000__20_1-9.sam"),
        (Wanted(header_only=True), "htsnexus_test_NA12878.header.sam"),
        (Wanted(("*",)), "htsnexus_test_NA12878.unplaced.sam"),
        (Wanted((".",)), "htsnexus_test_NA12878.all.sam"),
    ],
)
def test_file_is_named_as_the_java_client_names_it(shelf: Shelf, wanted: Wanted, name: str, tmp_path: Path) -> None:
    assert shelf.slice(NA12878, wanted, target=tmp_path).path == str(tmp_path / name)


def test_file_is_named_after_the_bed_file(shelf: Shelf, tmp_path: Path) -> None:
    bed = bed_of(tmp_path / "genes.hg19.bed", [("11", 0, 10)])
    assert shelf.slice(NA12878, Wanted(bed=bed), target=tmp_path).path == str(tmp_path / "htsnexus_test_NA12878.genes.hg19.bed.sam")


@pytest.mark.parametrize(
    ("name", "what", "extension", "expected"),
    [
        ("a.bam", "chr1", "sam", "a.chr1.sam"),
        ("a.b.CRAM", "chr1:1-2", "bam", "a.b.chr1_1-2.bam"),
        ("a.vcf.gz", "x", "vcf.gz", "a.x.vcf.gz"),
        ("a.vcf.bgz", "x", "bcf", "a.x.bcf"),
        ("noextension", "x", "sam", "noextension.x.sam"),
        ("a.bam", "HLA/x\n:1", "sam", "a.HLA_x__1.sam"),
        ("a.bam", "x" * 122, "sam", f"a.{'x' * 122}.sam"),
        ("a.bam", "x" * 123, "sam", f"a.{'x' * 123}.s~.sam"),
        ("é.bam", "é" * 90, "sam", f"é.{'é' * 62}~.sam"),
    ],
)
def test_name_of_a_slice(name: str, what: str, extension: str, expected: str) -> None:
    assert output_name(name, what, extension) == expected


# Whole or not at all


def test_existing_file_is_replaced_by_a_new_one(shelf: Shelf, tmp_path: Path) -> None:
    target = tmp_path / "htsnexus_test_NA12878.11_5000000-5001000.bam"
    target.write_bytes(b"old")
    with target.open("rb") as old:
        shelf.slice(NA12878, Wanted((REGION,)), Form("bam", index=True), tmp_path)
        assert old.read() == b"old"
    samtools("quickcheck", target)
    assert {path.name for path in tmp_path.iterdir()} == {target.name, f"{target.name}.bai"}


def test_index_of_a_replaced_file_goes_with_it(shelf: Shelf, tmp_path: Path) -> None:
    """It would lead readers to wrong places of the new one."""
    first = shelf.slice(NA12878, Wanted((REGION,)), Form("bam", index=True), tmp_path)
    again = shelf.slice(NA12878, Wanted((REGION,), contained=True), Form("bam"), tmp_path)
    assert (first.path, [path.name for path in tmp_path.iterdir()]) == (again.path, [Path(again.path).name])


@pytest.mark.parametrize(
    ("source", "kind"), [(NA12878, "sam"), (NA12878, "bam"), (NA12878, "cram"), (DATA / "ex1.vcf.gz", "vcf"), (DATA / "ex1.vcf.gz", "bcf")]
)
def test_failure_leaves_an_existing_file_alone(shelf: Shelf, source: Path, kind: str, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged" / source.name
    damaged.parent.mkdir()
    data = bytearray(source.read_bytes())
    data[len(data) * 3 // 4 : len(data) * 3 // 4 + 200] = bytes(200)
    damaged.write_bytes(data)
    suffix = ".bai" if source == NA12878 else ".tbi"
    damaged.with_name(source.name + suffix).write_bytes(source.with_name(source.name + suffix).read_bytes())
    target = tmp_path / f"{source.name.partition('.')[0]}.all.{kind}"
    target.write_bytes(b"old")
    with pytest.raises(ScoreError):
        shelf.slice(damaged, Wanted((".",)), Form(kind), tmp_path)
    assert target.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {target.name, "damaged"}
