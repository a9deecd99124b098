"""Debian's samtools and bcftools, whose word counts, and files to ask them and us about: real ones, and made-up ones with what is rare."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pysam
import pytest

from score_core.checksum import md5_hex
from score_core.model import SliceReport
from score_core.repository.direct import DirectRepository
from score_core.slicing.objects import Target, ViewItem, view_file, view_object
from score_core.slicing.view import Form, Limits, Wanted
from score_core.stores.local import LocalStore
from score_core.transfer.engine import Engine
from score_core.transfer.http import HttpTransport
from score_core.transfer.policy import RetryPolicy

DATA = Path(__file__).resolve().parents[1] / "data"
NA12878 = DATA / "htsnexus_test_NA12878.bam"
EMBEDDED = DATA / "NA12878.embedref.cram"
RANGE = DATA / "range.cram"
CE = DATA / "ce.fa.gz"

needs_samtools = pytest.mark.skipif(
    not (shutil.which("samtools") and shutil.which("bcftools")),
    reason="NOT PROVED: slices are compared with nothing where samtools and bcftools are missing (apt-get install samtools bcftools)",
)

TEXT = Form()
Place = tuple[str, int, int]
"""A contig, and bases 0-based, end exclusive."""


# The other programs


def samtools(*words: str | Path) -> bytes:
    return _said_by("samtools", words)


def bcftools(*words: str | Path) -> bytes:
    return _said_by("bcftools", words)


def _said_by(program: str, words: Sequence[str | Path]) -> bytes:
    offline = {**os.environ, "REF_PATH": os.devnull}
    done = subprocess.run([program, *map(str, words)], capture_output=True, check=False, env=offline)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def records(text: bytes, mark: bytes = b"@") -> bytes:
    """The lines after the header of SAM text, or with the mark `#` of VCF."""
    return b"".join(line for line in text.splitlines(keepends=True) if not line.startswith(mark))


def header(text: bytes) -> list[str]:
    return [line.decode() for line in text.splitlines() if line.startswith(b"@")]


def bed_of(path: Path, places: Iterable[Place]) -> Path:
    path.write_text("".join(f"{name}\t{start}\t{end}\n" for name, start, end in places))
    return path


def reads_in(path: Path, bed: Path, *options: str | Path) -> bytes:
    """samtools' answer. Of a CRAM by a look at every read: with -M, samtools 1.16 adds reads of other contigs in the same container."""
    return samtools("view", *(["-M"] if path.suffix == ".bam" else []), "-L", bed, *options, path)


# Ours


@dataclass
class Shelf:
    """Files as objects of a store, and slices of them over signed URLs or, not `remote`, from the disk; indexes lie beside the files."""

    folder: Path
    engine: Engine
    ids: dict[Path, str] = field(default_factory=dict)
    remote: bool = True

    def slice(
        self,
        path: Path,
        wanted: Wanted,
        form: Form = TEXT,
        target: Target | None = None,
        *,
        window_bytes: int = 32 << 20,
        index: Path | None = None,
    ) -> SliceReport:
        where, limits = io.BytesIO() if target is None else target, Limits(window_bytes=window_bytes)
        index = index or beside(path)
        if not self.remote:
            return view_file(path, index, wanted, form, where, limits=limits)
        item = ViewItem(self.put(path), path.name, None if index is None else self.put(index))
        return view_object(self.engine, None, item, wanted, form, where, limits=limits)

    def text(self, path: Path, *regions: str, form: Form = TEXT, window_bytes: int = 32 << 20, **wanted: Any) -> bytes:
        """The slice as text, header and all."""
        out = io.BytesIO()
        self.slice(path, Wanted(regions, **wanted), form, out, window_bytes=window_bytes)
        return out.getvalue()

    def put(self, path: Path) -> str:
        if path not in self.ids:
            self.ids[path] = str(UUID(int=len(self.ids) + 1))
            self.engine.upload(path, self.ids[path], md5=md5_hex(path.read_bytes()))
        return self.ids[path]


@contextmanager
def opened_shelf(folder: Path) -> Iterator[Shelf]:
    store = LocalStore(folder / "bucket")
    transport = HttpTransport(connections=8)
    repository = DirectRepository(store, part_size_bytes=8 << 20)
    try:
        yield Shelf(folder, Engine(repository, transport, 8, RetryPolicy(base_s=0.001, cap_s=0.01)))
    finally:
        transport.close()
        store.close()


def beside(path: Path) -> Path | None:
    return next((found for suffix in (".bai", ".csi", ".crai", ".tbi") if (found := path.with_name(path.name + suffix)).is_file()), None)


# Where to look


def places_of(path: Path, reference: Path | None = None) -> tuple[list[tuple[str, int]], list[Place]]:
    """Where the reads of a file begin, and its contigs from end to end."""
    fasta = None if reference is None else str(reference)
    with pysam.AlignmentFile(str(path), check_sq=False, reference_filename=fasta) as file:
        starts = [(str(read.reference_name), read.reference_start) for read in file.fetch(until_eof=True) if read.reference_id >= 0]
        return starts, [(name, 0, length) for name, length in zip(file.references, file.lengths, strict=True)]


def random_places(starts: list[tuple[str, int]], contigs: list[Place], seed: int) -> list[Place]:
    """1, 3, 10 or 40 regions of 1 base to 100 kb, in no order, most of them where there are reads."""
    rng, lengths, found = random.Random(seed), {name: length for name, _, length in contigs}, []
    for _ in range((1, 3, 10, 40)[seed % 4]):
        name, at = rng.choice(starts) if rng.random() < 0.9 else (other := rng.choice(contigs)[0], rng.randrange(lengths[other]))
        size = min(int(10 ** rng.uniform(0, 5)), lengths[name])
        start = max(0, min(at - rng.randrange(size + 1), lengths[name] - size))
        found.append((name, start, start + size))
    return found


def region(place: Place) -> str:
    return f"{{{place[0]}}}:{place[1] + 1}-{place[2]}"


# Made-up files


def made_bam(folder: Path, name: str, contigs: dict[str, int], lines: Iterable[str], *, header: str = "", csi: bool = False) -> Path:
    """A sorted and indexed BAM of SAM lines in any order."""
    sequences = "".join(f"@SQ\tSN:{contig}\tLN:{length}\n" for contig, length in contigs.items())
    sam, path = folder / f"{name}.sam", folder / name
    sam.write_text(f"@HD\tVN:1.6\n{sequences}{header}" + "".join(f"{line}\n" for line in lines))
    pysam.sort("--no-PG", "-o", str(path), str(sam))
    pysam.index(*(["-c"] if csi else []), str(path))
    return path


def made_cram(bam: Path, name: str, *options: str, reference: Path | None = None) -> Path:
    path = bam.with_name(name)
    words = [word for option in options for word in ("--output-fmt-option", option)]
    pysam.view("-C", "--no-PG", *words, *(["-T", str(reference)] if reference else []), "-o", str(path), str(bam), catch_stdout=False)
    pysam.index(str(path))
    return path


def read_line(name: str, contig: str, start: int, cigar: str = "100M", *, flag: int = 0, size: int = 100, **letters: Any) -> str:
    """A SAM line; `start` is 0-based. `bases`, or those of `rng`, or such as shrink well; `tags` with a tab before each."""
    rng, bases, tags = letters.get("rng"), letters.get("bases"), letters.get("tags", "")
    bases = bases or ("".join(rng.choices("ACGT", k=size)) if rng else "A" * size)
    quality = "".join(map(chr, rng.choices(range(35, 74), k=size))) if rng else "I" * size
    return f"{name}\t{flag}\t{contig}\t{start + 1}\t{60 if cigar != '*' else 0}\t{cigar}\t*\t0\t0\t{bases}\t{quality}{tags}"
