"""Small made-up files of every format with their indexes, and what is in them: what a slice must give is filtered from plain records."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pysam
import pysam.samtools

CONTIGS = {"c1": 400_000, "c2": 300_000, "c3": 5_000, "c4": 100_000}
READ = 100
EVERY = {"c1": 60, "c2": 60, "c4": 60}  # c3 has nothing
UNPLACED = 500


class Row(NamedTuple):
    """A read or variant: its place, and the letters that say all of it."""

    contig: str
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Made:
    """A file, its index, and all of its rows in order; those without a place have no contig."""

    path: Path
    index: Path
    rows: tuple[Row, ...]
    fasta: Path | None = None

    def wanted(self, *regions: str) -> list[str]:
        """The rows of regions (`c1:101-200`, `c1`, `*` or `.`), each once."""
        found = [place_of(region) for region in regions]
        return [row.text for row in self.rows if any(_is_in(row, *place) for place in found)]


def place_of(region: str) -> tuple[str, int, int]:
    """Contig, start and end of a region; no contig for unplaced reads, `.` for all there are."""
    contig, _, places = region.partition(":")
    start, _, end = places.replace(",", "").partition("-")
    return "" if contig == "*" else contig, int(start or 1) - 1, int(end or 1 << 40)


def _is_in(row: Row, contig: str, start: int, end: int) -> bool:
    return contig == "." or (row.contig == contig and (not contig or (row.end > start and row.start < end)))


def make_reference(folder: Path, name: str = "ref.fa", *, seed: int = 1, lengths: dict[str, int] | None = None) -> Path:
    rng = random.Random(seed)
    path = folder / name
    lengths = lengths or CONTIGS
    path.write_text("".join(f">{contig}\n{''.join(rng.choices('ACGT', k=length))}\n" for contig, length in lengths.items()))
    pysam.samtools.faidx(str(path))
    return path


def sam_text(fasta: Path, *, seed: int = 1, shift: int = 0, leave_out: Iterable[str] = ()) -> str:
    """Reads all along the contigs; qualities are random, so that files do not shrink. `shift` moves them all."""
    rng = random.Random(seed)
    lines = ["@HD\tVN:1.6\tSO:coordinate", *(f"@SQ\tSN:{name}\tLN:{length}" for name, length in CONTIGS.items())]
    lines += ["@RG\tID:g1\tSM:s", "@RG\tID:g2\tSM:s"]
    letters = "".join(map(chr, range(40, 74)))
    with pysam.FastaFile(str(fasta)) as file:
        bases = {name: file.fetch(name) for name in CONTIGS}
    number = 0
    for contig, every in EVERY.items():
        if contig in leave_out:
            continue
        for start in range(shift, CONTIGS[contig] - READ, every):
            number += 1
            quality = "".join(rng.choices(letters, k=READ))
            place = f"r{number}\t0\t{contig}\t{start + 1}\t60\t{READ}M\t*\t0\t0"
            lines.append(f"{place}\t{bases[contig][start : start + READ]}\t{quality}\tRG:Z:g{1 + number % 2}")
    for number in range(UNPLACED):
        read, quality = "".join(rng.choices("ACGT", k=READ)), "".join(rng.choices(letters, k=READ))
        lines.append(f"u{number}\t4\t*\t0\t0\t*\t*\t0\t0\t{read}\t{quality}\tRG:Z:g1")
    return "\n".join(lines) + "\n"


def make_alignments(folder: Path, fasta: Path, name: str, *options: str, text: str | None = None) -> Made:
    """A BAM, or a CRAM in small containers, of `sam_text`."""
    sam, path = folder / f"{name}.sam", folder / name
    sam.write_text(text or sam_text(fasta))
    form = ["-C", "-T", str(fasta), "--output-fmt-option", "seqs_per_slice=500"] if name.endswith("cram") else ["-b"]
    form += [word for option in options for word in ("--output-fmt-option", option)]
    pysam.samtools.view(*form, "--no-PG", "-o", str(path), str(sam), catch_stdout=False)
    pysam.samtools.index(str(path))
    rows = tuple(row_of(line) for line in sam.read_text().splitlines() if not line.startswith("@"))
    return Made(path, path.with_name(name + (".crai" if name.endswith("cram") else ".bai")), rows, fasta)


def row_of(line: str) -> Row:
    fields = line.split("\t")
    contig = "" if fields[2] == "*" else fields[2]
    return Row(
        contig,
        int(fields[3]) - 1,
        int(fields[3]) - 1 + READ,
        "\t".join([*fields[:11], *sorted(tag for tag in fields[11:] if tag[:2] == "RG")]),
    )


def vcf_text(*, seed: int = 1, info_bytes: int = 60) -> str:
    rng = random.Random(seed)
    lines = ["##fileformat=VCFv4.2", '##FILTER=<ID=PASS,Description="All filters passed">']
    lines += [f"##contig=<ID={name},length={length}>" for name, length in CONTIGS.items()]
    lines += ['##INFO=<ID=T,Number=1,Type=String,Description="Text">', "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    for contig, every in EVERY.items():
        for start in range(0, CONTIGS[contig] - READ, every):
            text = "".join(rng.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=info_bytes))
            lines.append(f"{contig}\t{start + 1}\t.\tA\tC\t.\tPASS\tT={text}")
    return "\n".join(lines) + "\n"


def make_variants(folder: Path, name: str, *, csi: bool = False) -> Made:
    plain, path = folder / f"{name}.plain.vcf", folder / name
    plain.write_text(vcf_text())
    mode: Any = "wb" if name.endswith("bcf") else "wz"
    with pysam.VariantFile(str(plain)) as records, pysam.VariantFile(str(path), mode, header=records.header) as out:
        for record in records:
            out.write(record)
    is_csi = csi or name.endswith("bcf")
    index = path.with_name(name + (".csi" if is_csi else ".tbi"))
    preset: Any = "bcf" if name.endswith("bcf") else "vcf"
    pysam.tabix_index(str(path), preset=preset, csi=is_csi, index=str(index), keep_original=True, force=True)
    rows = tuple(variant_row(line) for line in plain.read_text().splitlines() if not line.startswith("#"))
    return Made(path, index, rows)


def variant_row(line: str) -> Row:
    fields = line.split("\t")
    return Row(fields[0], int(fields[1]) - 1, int(fields[1]) - 1 + len(fields[3]), line)


def records_in(path: Path, *, reference: Path | None = None) -> list[str]:
    """The records of a finished slice, as `Row.text` writes them."""
    if path.name.endswith((".vcf", ".vcf.gz", ".bcf")):
        with pysam.VariantFile(str(path)) as variants:
            return [str(record).rstrip("\n") for record in variants]
    if path.suffix == ".sam":
        return [row_of(line).text for line in path.read_text().splitlines() if not line.startswith("@")]
    options = ["-T", str(reference)] if reference else []
    return [row_of(line).text for line in str(pysam.samtools.view(*options, str(path))).splitlines()]


def blocks_of(data: bytes) -> list[tuple[int, int]]:
    """Offset and size of each BGZF block, told by its own header."""
    found, at = [], 0
    while at < len(data):
        size = struct.unpack_from("<H", data, at + 16)[0] + 1
        found.append((at, size))
        at += size
    return found


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


class Files:
    """The made-up files, each made when it is first asked for: a.bam, a.cram, old.cram (2.1), v.vcf.gz, csi.vcf.gz and v.bcf."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fasta = make_reference(folder)
        self._made: dict[str, Made] = {}

    def __getitem__(self, name: str) -> Made:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> Made:
        if name.endswith(("vcf.gz", "bcf")):
            return make_variants(self.folder, name, csi=name.startswith("csi"))
        options = {"a.cram": ["version=3.0"], "old.cram": ["version=2.1"]}.get(name, [])
        return make_alignments(self.folder, self.fasta, name, *options)
