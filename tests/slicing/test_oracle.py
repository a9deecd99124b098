"""A slice is what samtools and bcftools give for the same regions: each record once, in order, whatever the way the bytes come."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pysam
import pytest

from score_core.errors import ConfigurationError, FormatError
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
    made_bam,
    made_cram,
    needs_samtools,
    opened_shelf,
    places_of,
    random_places,
    read_line,
    reads_in,
    records,
    region,
    samtools,
)

pytestmark = needs_samtools

TINY = 3000  # bytes of a window: less than a block, so that every span is cut and every hole is punched
WHEAT = {"chr3B": 830_829_764, "chr1A": 598_660_471}
ODD_NAMES = {
    "HLA-A*01:01:01:01": 3_503,
    "HLA-DRB1*15:01:01": 11_000,
    "HLA-DRB1*15:01:01:01": 11_080,
    "chr1": 20_000,
    "chr1:100-200": 20_000,
    "a,b": 5_000,
    "c{d}": 5_000,
    "none": 1_000,
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with opened_shelf(tmp_path_factory.mktemp("shelf")) as opened:
        yield opened


@pytest.fixture(params=["remote", "local"])
def either(shelf: Shelf, request: pytest.FixtureRequest) -> Shelf:
    return replace(shelf, remote=request.param == "remote")


@pytest.fixture(autouse=True)
def no_reference_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REF_PATH", os.devnull)
    monkeypatch.delenv("REF_CACHE", raising=False)


def by(reference: Path | None) -> list[str | Path]:
    return ["-T", reference] if reference else []


# Two hundred sets of regions


@pytest.fixture(scope="module")
def wheat(shelf: Shelf) -> Path:
    rng = random.Random(6)
    places = [
        (name, rng.choice((rng.randrange(length - 100), length // 7 * 6 + rng.randrange(9000))))
        for name, length in WHEAT.items()
        for _ in range(1500)
    ]
    lines = [read_line(f"r{number}", name, at, rng=rng) for number, (name, at) in enumerate(places)]
    return made_bam(shelf.folder, "wheat.bam", WHEAT, lines, csi=True)


@pytest.fixture(scope="module")
def looked_at(shelf: Shelf, wheat: Path) -> dict[str, tuple[Path, Path | None]]:
    return {"deep": (NA12878, None), "wheat": (wheat, None), "embedded": (EMBEDDED, None), "several contigs": (RANGE, CE)}


SEEDS = {"deep": 40, "wheat": 114, "several contigs": 38, "embedded": 8}


@pytest.mark.parametrize("what", SEEDS)
def test_random_regions_give_what_samtools_gives(shelf: Shelf, looked_at, what: str) -> None:
    path, reference = looked_at[what]
    starts, contigs = places_of(path, reference)
    for seed in range(SEEDS[what]):
        places = random_places(starts, contigs, seed)
        bed = bed_of(shelf.folder / "random.bed", places)
        ways, window_bytes = replace(shelf, remote=seed % 3 != 0), TINY if seed // 4 % 2 else 32 << 20
        asked = () if seed % 2 else map(region, places)
        ours = ways.text(path, *asked, bed=bed if seed % 2 else None, form=Form(reference=reference), window_bytes=window_bytes)
        assert records(ours) == reads_in(path, bed, *by(reference)), f"seed {seed}"


# Rare reads


@pytest.fixture(scope="module")
def rare(shelf: Shelf) -> Path:
    """Introns, reads over many blocks, reads that are placed but not mapped, and every kind of flag; reads without a place at the end."""
    rng = random.Random(5)
    lines = [
        read_line(f"s{number}", "chr1", rng.randrange(900_000), rng=rng, flag=rng.choice((0, 16, 256, 1024, 2048, 512)))
        for number in range(3000)
    ]
    lines += [read_line(f"n{number}", "chr1", rng.randrange(900_000), "50M5000N50M", rng=rng) for number in range(300)]
    lines += [read_line(f"far{number}", "chr1", 1000 * number, "10M600000N90M", rng=rng) for number in range(5)]
    lines += [read_line(f"long{number}", "chr1", 300_000 + 7 * number, "300000M", size=300_000, rng=rng) for number in range(3)]
    lines += [read_line(f"p{number}", "chr1", rng.randrange(900_000), "*", flag=4 | 1 | 8 * (number % 2), rng=rng) for number in range(300)]
    lines += [
        read_line(f"e{number}", "chr2", at, f"{size}M", size=size, rng=rng)
        for number, (at, size) in enumerate([(0, 1), (0, 100), (49_900, 100), (49_999, 1)])
    ]
    lines += [read_line(f"u{number}", "*", -1, "*", flag=4, rng=rng) for number in range(700)]
    return made_bam(shelf.folder, "rare.bam", {"chr1": 1_000_000, "chr2": 50_000, "chr3": 1000}, lines)


@pytest.mark.parametrize("window_bytes", [TINY, 32 << 20])
@pytest.mark.parametrize(
    "places",
    [
        [("chr1", 599_000, 600_000)],
        [("chr1", 610_000, 610_001), ("chr1", 400_000, 400_050), ("chr1", 599_990, 600_010)],
        [("chr1", 0, 1_000_000)],
        [("chr1", start, start + 60) for start in range(0, 900_000, 4000)],
        [("chr2", 0, 1)],
        [("chr2", 49_999, 50_000), ("chr3", 0, 1000)],
        [("chr3", 0, 1000)],
    ],
    ids=["in long reads", "in introns", "contig", "many", "first base", "last base", "no reads"],
)
def test_rare_reads_come_once(either: Shelf, rare: Path, places, window_bytes: int, tmp_path: Path) -> None:
    bed = bed_of(tmp_path / "some.bed", places)
    ours = either.text(rare, bed=bed, window_bytes=window_bytes)
    assert records(ours) == reads_in(rare, bed)


@pytest.mark.parametrize("window_bytes", [TINY, 32 << 20])
@pytest.mark.parametrize("path", ["rare", "deep", "embedded"])
def test_contained_reads_lie_within_one_merged_region(shelf: Shelf, rare: Path, path: str, window_bytes: int) -> None:
    file = {"rare": rare, "deep": NA12878, "embedded": EMBEDDED}[path]
    name, at = ("chr1", 590_000) if path == "rare" else ("11", 5_000_000)
    regions = [f"{name}:{at + 1}-{at + 1000}", f"{name}:{at + 1001}-{at + 7000}", f"{name}:{at + 9000}-{at + 9100}"]  # the first two abut
    within = " || ".join(f"(pos>={begin} && endpos<={end})" for begin, end in [(at + 1, at + 7000), (at + 9000, at + 9100)])
    expected = samtools("view", "-e", f'rname=="{name}" && ({within})', file)
    assert expected
    assert records(shelf.text(file, *regions, contained=True, window_bytes=window_bytes)) == expected


def test_overlapping_regions_give_each_read_once(shelf: Shelf) -> None:
    ours = records(shelf.text(NA12878, "11:5000000-5000500", "11:5000300-5001000", "11:5,000,300-5,000,400"))
    assert ours == samtools("view", NA12878, "11:5000000-5001000")
    assert ours.count(b"\n") == 39


def test_bed_of_ten_thousand_rows(either: Shelf, tmp_path: Path) -> None:
    rng = random.Random(1)
    starts, _ = places_of(NA12878)
    bed = bed_of(tmp_path / "exons.bed", [(name, at, at + rng.randrange(1, 300)) for name, at in rng.choices(starts, k=10_000)])
    assert records(either.text(NA12878, bed=bed)) == reads_in(NA12878, bed)


# Unplaced reads, everything, nothing


@pytest.mark.parametrize("which", ["rare", "deep", "embedded"])
def test_unplaced_reads_are_those_that_samtools_finds(either: Shelf, rare: Path, which: str) -> None:
    path = {"rare": rare, "deep": NA12878, "embedded": EMBEDDED}[which]
    ours = records(either.text(path, "*"))
    assert ours == samtools("view", "-e", 'rname=="*"', path)
    assert ours.count(b"\n") == {"rare": 700, "deep": 12_475, "embedded": 12_475}[which]


def test_unplaced_reads_come_after_those_of_regions(either: Shelf, rare: Path) -> None:
    ours = records(either.text(rare, "*", "chr2", "chr1:599,001-600,000"))
    assert ours == samtools("view", rare, "chr1:599001-600000") + samtools("view", rare, "chr2") + samtools("view", rare, "*")


@pytest.mark.parametrize("path", [NA12878, EMBEDDED], ids=["BAM", "CRAM"])
def test_dot_is_everything(either: Shelf, path: Path) -> None:
    assert records(either.text(path, ".")) == samtools("view", path)


def test_file_without_reads(either: Shelf) -> None:
    empty = made_bam(either.folder, f"empty-{either.remote}.bam", {"chr1": 1000}, [])
    for wanted in ("chr1", "*", "."):
        assert records(either.text(empty, wanted)) == b""


def test_header_alone_takes_two_requests_and_no_index(shelf: Shelf, rare: Path) -> None:
    for path in (NA12878, EMBEDDED, rare):
        report = shelf.slice(path, Wanted(header_only=True), index=path)  # which is none
        assert report.requests <= 2
        assert report.bytes_moved <= 64 << 10
        assert report.records == 0


# Names and the ways to write regions


@pytest.fixture(scope="module")
def odd(shelf: Shelf) -> Path:
    lines = [
        read_line(f"{name}/{start}", name, start)
        for name, length in ODD_NAMES.items()
        if name != "none"
        for start in range(0, length - 99, 150)
    ]
    return made_bam(shelf.folder, "odd.bam", ODD_NAMES, lines)


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ("HLA-A*01:01:01:01", ("HLA-A*01:01:01:01", 0, 3_503)),
        ("HLA-A*01:01:01:01:300-400", ("HLA-A*01:01:01:01", 299, 400)),
        ("{HLA-DRB1*15:01:01:01}", ("HLA-DRB1*15:01:01:01", 0, 11_080)),
        ("{HLA-DRB1*15:01:01:01}:2,000-2,100", ("HLA-DRB1*15:01:01:01", 1999, 2100)),
        ("{HLA-DRB1*15:01:01}:9000", ("HLA-DRB1*15:01:01", 8999, 11_000)),
        ("HLA-DRB1*15:01:01:9000-", ("HLA-DRB1*15:01:01", 8999, 11_000)),
        ("chr1", ("chr1", 0, 20_000)),
        ("chr1:19,000", ("chr1", 18_999, 20_000)),
        ("chr1:19000-", ("chr1", 18_999, 20_000)),
        ("chr1:-150", ("chr1", 0, 150)),
        ("chr1:19000-99999999", ("chr1", 18_999, 20_000)),
        ("{chr1:100-200}", ("chr1:100-200", 0, 20_000)),
        ("{chr1}:100-200", ("chr1", 99, 200)),
        ("chr1:100-200:100-200", ("chr1:100-200", 99, 200)),
        ("a,b", ("a,b", 0, 5_000)),
        ("a,b:1,000-1,1,00", ("a,b", 999, 1100)),
        ("c{d}:1-10", ("c{d}", 0, 10)),
        ("none", ("none", 0, 1000)),
        ("chr1:20000-20000", ("chr1", 19_999, 20_000)),
    ],
)
def test_region_is_read_as_it_is_meant(shelf: Shelf, odd: Path, asked: str, place, tmp_path: Path) -> None:
    assert records(shelf.text(odd, asked)) == reads_in(odd, bed_of(tmp_path / "one.bed", [place]))


@pytest.mark.parametrize("asked", ["HLA-DRB1*15:01:01:01", "chr1:100-200", "chr2", "HLA-A*01:01", "chr1:0-10", "chr1:20001-20002"])
def test_region_of_two_meanings_or_none_is_an_error(shelf: Shelf, odd: Path, asked: str) -> None:
    with pytest.raises(ConfigurationError):
        shelf.text(odd, asked)


# CRAM


@pytest.fixture(scope="module")
def ce(shelf: Shelf) -> Path:
    """The reference of `range.cram`, not compressed."""
    path = shelf.folder / "ce.fa"
    with pysam.FastaFile(str(CE)) as file:
        path.write_text("".join(f">{name}\n{file.fetch(name)}\n" for name in file.references))
    pysam.faidx(str(path))
    return path


@pytest.fixture(scope="module")
def reads(shelf: Shelf, ce: Path) -> Path:
    """A BAM of reads like those of `ce`, with some that have no place."""
    rng = random.Random(3)
    lines = []
    with pysam.FastaFile(str(ce)) as file:
        lengths = dict(zip(file.references, file.lengths, strict=True))
        for name, length in lengths.items():
            for number in range(800):
                start = rng.randrange(length - 120)
                bases = file.fetch(name, start, start + 100)
                lines.append(
                    read_line(
                        f"{name}.{number}",
                        name,
                        start,
                        bases=bases if number % 3 else "N" + bases[1:],
                        flag=1024 * (number % 2),
                        tags="\tRG:Z:g",
                    )
                )
        lines += [read_line(f"p{number}", name, 500, "*", flag=4, rng=rng) for number in range(40)]
    lines += [read_line(f"u{number}", "*", -1, "*", flag=4, rng=rng) for number in range(300)]
    return made_bam(shelf.folder, "reads.bam", lengths, lines, header="@RG\tID:g\tSM:s\n")


KINDS = {
    "2.1": ["version=2.1", "seqs_per_slice=300"],
    "3.0": ["version=3.0", "seqs_per_slice=300"],
    "3.1": ["version=3.1", "seqs_per_slice=300"],
    "several slices": ["version=3.0", "seqs_per_slice=100", "slices_per_container=4"],
    "several contigs": ["version=3.0", "seqs_per_slice=500", "multi_seq_per_slice=1"],
    "embedded": ["version=3.0", "seqs_per_slice=300", "embed_ref=1"],
    "no reference": ["version=3.0", "seqs_per_slice=300", "no_ref=1"],
    "unsorted names": ["version=3.1", "seqs_per_slice=300", "lossy_names=0", "archive"],
}


@pytest.fixture(scope="module")
def crams(shelf: Shelf, reads: Path, ce: Path) -> dict[str, Path]:
    return {kind: made_cram(reads, f"{kind.replace(' ', '-')}.cram", *options, reference=ce) for kind, options in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_cram_of_every_kind(shelf: Shelf, crams, reads: Path, ce: Path, kind: str) -> None:
    reference = None if kind in {"embedded", "no reference"} else ce
    starts, contigs = places_of(reads)
    for seed in range(5):
        places = [(name, start, min(end, start + 9000)) for name, start, end in random_places(starts, contigs, seed)]
        bed = bed_of(shelf.folder / "cram.bed", places)
        ways = replace(shelf, remote=bool(seed % 3))
        ours = ways.text(crams[kind], bed=bed, form=Form(reference=reference), window_bytes=TINY if seed % 2 else 32 << 20)
        assert records(ours) == reads_in(crams[kind], bed, *by(reference)), f"seed {seed}"
    for wanted in ("*", "."):
        ours = shelf.text(crams[kind], wanted, form=Form(reference=reference))
        expected = samtools("view", *by(reference), *(["-e", 'rname=="*"'] if wanted == "*" else []), crams[kind])
        assert records(ours) == expected


def test_bgzipped_reference_serves(either: Shelf) -> None:
    assert records(either.text(RANGE, "CHROMOSOME_II", form=Form(reference=CE))) == samtools("view", "-T", CE, RANGE, "CHROMOSOME_II")


@pytest.mark.parametrize("kind", ["3.0", "several contigs", "2.1"])
@pytest.mark.parametrize("wanted", ["CHROMOSOME_III:1-4000", "."])
def test_missing_reference_is_asked_for(either: Shelf, crams, kind: str, wanted: str) -> None:
    with pytest.raises(ConfigurationError, match="--reference-file"):
        either.text(crams[kind], wanted)


@pytest.mark.parametrize("kind", ["3.0", "several contigs", "2.1"])
@pytest.mark.parametrize("wanted", ["CHROMOSOME_III:1-4000", "."])
def test_wrong_reference_is_an_error(either: Shelf, crams, ce: Path, kind: str, wanted: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.fa"
    other = str.maketrans("ACGT", "CAGT")
    wrong.write_text("".join(line if line[0] == ">" else line.translate(other) for line in ce.read_text().splitlines(keepends=True)))
    pysam.faidx(str(wrong))
    with pytest.raises(FormatError, match="is not the reference genome"):
        either.text(crams[kind], wanted, form=Form(reference=wrong))


@pytest.mark.parametrize("variable", ["REF_CACHE", "REF_PATH"])
def test_cache_by_md5_serves(either: Shelf, crams, ce: Path, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pysam.FastaFile(str(ce)) as file:
        for name in file.references:
            bases = file.fetch(name).upper().encode()
            digest = hashlib.md5(bases).hexdigest()
            place = tmp_path / "cache" / digest[:2] / digest[2:4] / digest[4:]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(bases)
    monkeypatch.setenv(variable, f"{tmp_path}/cache/%2s/%2s/%s")
    for kind in ("3.0", "several contigs"):
        ours = either.text(crams[kind], "CHROMOSOME_III:1-4000")
        assert records(ours) == samtools("view", "-T", ce, crams[kind], "CHROMOSOME_III:1-4000")


@pytest.mark.parametrize("wanted", ["CHROMOSOME_III:1-4000", ".", "*"])
def test_reference_that_a_header_names_is_never_opened(either: Shelf, reads: Path, ce: Path, wanted: str, tmp_path: Path) -> None:
    """The header points to a pipe: who opens it waits for ever, or wakes its writer."""
    pipe = tmp_path / "trap.fa"
    pipe.write_bytes(ce.read_bytes())
    pysam.faidx(str(pipe))
    bam = tmp_path / reads.name
    bam.write_bytes(reads.read_bytes())
    cram = made_cram(bam, "trap.cram", reference=pipe)
    assert f"UR:{pipe}" in samtools("view", "-H", cram).decode()
    pipe.unlink()
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)  # whoever reads gets at once what is in it
    os.write(writer, b"untouched")
    try:
        with pytest.raises(ConfigurationError, match="--reference-file"):
            either.text(cram, wanted)
        assert os.read(writer, 99) == b"untouched"
    finally:
        os.close(writer)


@pytest.mark.parametrize("kind", ["sam", "bam", "cram"])
def test_slice_of_a_cram_reads_back_equal(shelf: Shelf, crams, ce: Path, kind: str, tmp_path: Path) -> None:
    report = shelf.slice(crams["several contigs"], Wanted(("CHROMOSOME_I", "CHROMOSOME_V:1-9000")), Form(kind, reference=ce), tmp_path)
    expected = samtools("view", "-T", ce, crams["several contigs"], "CHROMOSOME_I", "CHROMOSOME_V:1-9000")
    assert samtools("view", "-T", ce, report.path) == expected


@pytest.mark.parametrize("with_reference", [True, False])
def test_bam_written_as_cram_reads_back_equal(shelf: Shelf, reads: Path, ce: Path, with_reference: bool, tmp_path: Path) -> None:
    reference = ce if with_reference else None
    form = Form("cram", reference=reference)
    report = shelf.slice(reads, Wanted(("CHROMOSOME_II:1-9000", "*")), form, tmp_path)
    expected = samtools("view", reads, "CHROMOSOME_II:1-9000") + samtools("view", reads, "*")
    back = samtools("view", *by(reference), report.path)
    assert plain(back) == plain(expected)


def plain(text: bytes) -> list[list[bytes]]:
    """Without MD and NM, which CRAM makes anew."""
    return [sorted(column for column in line.split(b"\t") if column[:5] not in {b"MD:Z:", b"NM:i:"}) for line in text.splitlines()]


# Variants


VCF_HEADER = """##fileformat=VCFv4.3
##FILTER=<ID=PASS,Description="All filters passed">
{contigs}##ALT=<ID=DEL,Description="Deletion">
##INFO=<ID=END,Number=1,Type=Integer,Description="End">
##INFO=<ID=N,Number=1,Type=Integer,Description="Number">
##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tone\ttwo
"""
CONTIG_LINES = "##contig=<ID=chr2,length=900000>\n##contig=<ID=chr1,length=1000000>\n##contig=<ID=chr3>\n"
VARIANT_KINDS = ["a.vcf.gz tbi", "a.vcf.gz csi", "a.bcf csi", "no-contigs.vcf.gz tbi", "no-contigs.vcf.gz csi"]


@pytest.fixture(scope="module")
def variants(shelf: Shelf) -> dict[str, Path]:
    """Single bases, insertions, deletions of up to 3 kb, and records with END up to 20 kb; much of it, so that there are many blocks."""
    rng = random.Random(8)
    lines = []
    for contig in ("chr2", "chr1"):
        for number, at in enumerate(sorted(rng.sample(range(1, 900_000), 4000))):
            bases = "".join(rng.choices("ACGT", k=rng.choice((1, 1, 1, 5, 3000 if number % 50 == 0 else 40))))
            alt, end = ("<DEL>", f"END={at + rng.randrange(20_000)};") if number % 40 == 7 else (rng.choice(("A", "CT", bases[0])), "")
            alt = "G" if alt == bases else alt
            alt += ",<NON_REF>" if number % 30 == 1 else ""  # as in a gVCF: a symbolic allele, and no END
            bases = bases[0] if end else bases
            rest = f"{rng.randrange(99)}\tPASS\t{end}N={number}\tGT\t0/1\t1|1"
            lines.append(f"{contig}\t{at}\tid{rng.getrandbits(60)}\t{bases}\t{alt}\t{rest}\n")
    found = {}
    for stem, contigs in {"a": CONTIG_LINES, "no-contigs": ""}.items():
        text = VCF_HEADER.format(contigs=contigs) + "".join(lines)
        for suffix, kind in (("vcf.gz", "tbi"), ("vcf.gz", "csi"), *((("bcf", "csi"),) if contigs else ())):
            folder = shelf.folder / f"{stem}.{suffix}.{kind}"
            folder.mkdir()
            path = folder / f"{stem}.{suffix}"
            plain_text = folder / "plain.vcf"
            plain_text.write_text(text)
            if suffix == "bcf":
                bcftools("view", "--no-version", "-Ob", "-o", path, plain_text)
            else:
                pysam.tabix_compress(str(plain_text), str(path))
            bcftools("index", "-t" if kind == "tbi" else "-c", path)
            found[f"{stem}.{suffix} {kind}"] = path
    return found


@pytest.mark.parametrize("kind", VARIANT_KINDS)
def test_variants_of_regions_are_those_that_bcftools_gives(shelf: Shelf, variants, kind: str) -> None:
    path, rng = variants[kind], random.Random(kind)
    for seed in range(8):
        places = []
        for _ in range((1, 3, 10, 40)[seed % 4]):
            start = rng.randrange(890_000)
            places.append((rng.choice(("chr1", "chr2")), start, start + int(10 ** rng.uniform(0, 5 if seed > 3 else 3))))
        places = [(name, start, min(end, 900_000)) for name, start, end in places]
        bed = bed_of(shelf.folder / "variants.bed", places)
        ways = replace(shelf, remote=bool(seed % 3))
        ours = records(ways.text(path, bed=bed, window_bytes=TINY if seed % 2 else 32 << 20), b"#")
        assert ours == in_order(bcftools("view", "-H", "-R", bed, path), places), f"seed {seed}"


def in_order(text: bytes, places) -> bytes:
    """bcftools goes by contigs in the order of the regions; a file has its own."""
    lines = text.splitlines(keepends=True)
    return b"".join([line for line in lines if line.startswith(b"chr2\t")] + [line for line in lines if line.startswith(b"chr1\t")])


@pytest.mark.parametrize("kind", ["a.vcf.gz tbi", "a.bcf csi"])
def test_deletion_across_two_regions_comes_once(either: Shelf, variants, kind: str) -> None:
    path = variants[kind]
    lines = [line.split(b"\t") for line in bcftools("view", "-H", path, "chr1").splitlines()]
    deletion = next(line for line in lines if len(line[3]) == 3000)
    ended = next(line for line in lines if line[4] == b"<DEL>" and int(line[7].split(b";")[0][4:]) > int(line[1]) + 3000)
    for line in (deletion, ended):
        at = int(line[1])
        ours = records(either.text(path, f"chr1:{at + 10}-{at + 20}", f"chr1:{at + 2000}-{at + 2010}"), b"#").splitlines()
        assert b"\t".join(line) in ours
        assert len(ours) == len(set(ours))


@pytest.mark.parametrize("kind", VARIANT_KINDS)
def test_whole_contigs_and_everything(either: Shelf, variants, kind: str) -> None:
    everything = bcftools("view", "-H", variants[kind])
    assert records(either.text(variants[kind], "."), b"#") == everything
    assert records(either.text(variants[kind], "chr1", "chr2"), b"#") == everything
    assert records(either.text(variants[kind], "chr1:890000"), b"#") == bcftools("view", "-H", "-r", "chr1:890000-", variants[kind])


def test_contig_without_variants_or_without_a_length(shelf: Shelf, variants) -> None:
    assert records(shelf.text(variants["a.bcf csi"], "chr3"), b"#") == b""
    assert records(shelf.text(variants["a.vcf.gz tbi"], "chr3:5-99"), b"#") == b""
    with pytest.raises(ConfigurationError, match="chr4"):
        shelf.text(variants["no-contigs.vcf.gz tbi"], "chr4")


def test_real_variants(either: Shelf) -> None:
    for name in ("sample1-bcbio-cancer.vcf.gz", "ex1.vcf.gz"):
        path = DATA / name
        contig = bcftools("index", "-s", path).split()[0].decode()
        assert records(either.text(path, contig), b"#") == bcftools("view", "-H", "-r", contig, path)


def test_contained_variants(shelf: Shelf, variants) -> None:
    ours = records(shelf.text(variants["a.bcf csi"], "chr1:1000-90000", contained=True), b"#").splitlines()
    overlapping = bcftools("view", "-H", "-r", "chr1:1000-90000", variants["a.bcf csi"]).splitlines()
    assert ours == [line for line in overlapping if _is_within(line, 1000, 90_000)]


def _is_within(line: bytes, first: int, last: int) -> bool:
    columns = line.split(b"\t")
    start = int(columns[1])
    end = int(columns[7].split(b";")[0][4:]) if columns[7].startswith(b"END=") else start + len(columns[3]) - 1
    return start >= first and end <= last
