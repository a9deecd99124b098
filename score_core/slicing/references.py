"""Reference genomes for CRAM: a FASTA file that the user names, or the local cache by MD5; nothing that a header names, nor the network."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Final

import pysam

from score_core.errors import ConfigurationError, FormatError, LocalFileError
from score_core.slicing import cram
from score_core.slicing.base import Contig, Contigs
from score_core.transfer.files import explained

_HEAD_BYTES: Final = 64 << 10  # of a container, with its landmarks
_DEFAULT_CACHE: Final = "~/.cache/hts-ref/%2s/%2s/%s"  # where samtools keeps it


class References:
    """Where the bases of contigs come from. Making one keeps htslib, in this whole process, from looking anywhere else.

    The cache is the folder that `REF_CACHE` or `REF_PATH` name, as for samtools, if they name one of this machine.

    Raises:
        LocalFileError: `fasta` or its index is not there.
    """

    def __init__(self, fasta: Path | None, *, name: str) -> None:
        self.fasta = fasta
        self._name = name
        self._caches = _local_patterns()
        self._lengths = {} if fasta is None else _lengths_of(fasta)
        self._proven: set[tuple[str, bool]] = set()
        os.environ["REF_PATH"] = ":".join(pattern.replace(":", "::") for pattern in self._caches) or os.devnull
        os.environ.pop("REF_CACHE", None)  # htslib would write there, too

    def require(self, contig: Contig, *, exactly: bool) -> None:
        """Raises unless the bases of a contig are at hand; with `exactly` they are compared with the MD5 that the header names.

        htslib compares those of most CRAM files itself, slice by slice; not those of slices with reads of several contigs.
        """
        if (contig.name, exactly) in self._proven:
            return
        if self.fasta is None:
            if contig.md5 is None or not self._is_cached(contig.md5):
                raise ConfigurationError(
                    f"{self._name} is compressed against a reference genome, and that of contig {contig.name} is not at hand: name its "
                    "FASTA file by --reference-file"
                )
        else:
            self._check_fasta(self.fasta, contig, exactly=exactly)
        self._proven.add((contig.name, exactly))

    def require_any(self, contigs: Contigs) -> None:
        """The same for reads of nobody knows which of the contigs: there must be bases of some, and those must be the right ones."""
        at_hand = [contig for contig in contigs.contigs if self._is_at_hand(contig)]
        for contig in at_hand or contigs.contigs[:1]:
            self.require(contig, exactly=True)

    def _is_at_hand(self, contig: Contig) -> bool:
        return contig.name in self._lengths or (self.fasta is None and contig.md5 is not None and self._is_cached(contig.md5))

    def _is_cached(self, md5: str) -> bool:
        return any(Path(_filled(pattern, md5)).is_file() for pattern in self._caches)

    def _check_fasta(self, fasta: Path, contig: Contig, *, exactly: bool) -> None:
        length = self._lengths.get(contig.name)
        if length is None:
            raise ConfigurationError(f"{fasta} has no contig {contig.name}, which {self._name} needs: it is another reference genome")
        if contig.length is not None and length != contig.length:
            raise FormatError(
                f"{fasta} is not the reference genome of {self._name}: "
                f"contig {contig.name} has {length:,} bases there, {contig.length:,} here"
            )
        if exactly and contig.md5 is not None:
            self.prove(contig)

    def prove(self, contig: Contig) -> None:
        """Raises `FormatError` if the FASTA file's bases of a contig are not those that the header's MD5 names."""
        if self.fasta is None or contig.md5 is None:
            return
        with explained("read", self.fasta), pysam.FastaFile(str(self.fasta)) as file:
            bases = file.fetch(contig.name).upper().encode()
        if hashlib.md5(bases, usedforsecurity=False).hexdigest() != contig.md5.lower():
            raise FormatError(f"{self.fasta} is not the reference genome of {self._name}: the bases of contig {contig.name} differ")

    def prove_used(self, contigs: Contigs) -> None:
        """`prove` for all contigs that were required so far."""
        for contig in contigs.contigs:
            if (contig.name, False) in self._proven:
                self.prove(contig)


class PassingContainers:
    """Looks at the containers of a CRAM as its bytes go by, each before its last byte is passed on: are there the references it needs?

    Without, htslib would only say "truncated file"; with a wrong one, slices with reads of several contigs would come with wrong bases.
    """

    def __init__(self, references: References, contigs: Contigs, major: int) -> None:
        self._references = references
        self._contigs = contigs
        self._major = major
        self._pending = bytearray()
        self._is_done = False

    def take(self, data: bytes) -> None:
        """The next bytes, the first of them the beginning of a container. Raises as `References.require` does."""
        if self._is_done:
            return
        self._pending += data
        try:
            while self._pending:
                container = cram.container_at(bytes(self._pending[:_HEAD_BYTES]), 0, self._major)
                if len(self._pending) < container.size:
                    return
                self._check(container, bytes(self._pending[: container.size]))
                del self._pending[: container.size]
        except cram.TooShort:
            return

    def _check(self, container: cram.Container, data: bytes) -> None:
        if not container.landmarks or not cram.needs_reference(data, self._major):
            return
        if container.reference == cram.SEVERAL_REFERENCES:
            self._references.require_any(self._contigs)
            self._is_done = self._references.fasta is not None
        elif 0 <= container.reference < len(self._contigs):
            self._references.require(self._contigs[container.reference], exactly=False)


def _lengths_of(fasta: Path) -> dict[str, int]:
    index = fasta.with_name(fasta.name + ".fai")
    if not fasta.is_file():
        raise LocalFileError(f"Cannot read the reference {fasta}: it does not exist, or is no file")
    if not index.is_file():
        raise LocalFileError(f"The reference {fasta} has no index; make it: samtools faidx {fasta}")
    if fasta.suffix in (".gz", ".bgz") and not fasta.with_name(fasta.name + ".gzi").is_file():
        raise LocalFileError(f"The reference {fasta} is compressed and has no .gzi index; make it: samtools faidx {fasta}")
    with explained("read", index):
        rows = [line.split("\t") for line in index.read_text(errors="replace").splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _local_patterns() -> list[str]:
    """Patterns of paths by MD5, such as `DIR/%2s/%2s/%s`; none that leads to the network."""
    given = [os.environ.get("REF_CACHE", ""), *re.split(r"(?<!:):(?!:|//)", os.environ.get("REF_PATH", ""))]
    kept = [
        pattern.replace("::", ":") for pattern in given if pattern and pattern != os.devnull and not re.match(r"[a-z]+:+//|URL=", pattern)
    ]
    default = str(Path(_DEFAULT_CACHE).expanduser())
    return list(dict.fromkeys([*(pattern if "%" in pattern else f"{pattern}/%s" for pattern in kept), default]))


def _filled(pattern: str, md5: str) -> str:
    """`%2s` takes the next two digits, `%s` all that are left (samtools(1), REFERENCE SEQUENCES)."""
    rest = md5

    def take(match: re.Match[str]) -> str:
        nonlocal rest
        count = int(match[1]) if match[1] else len(rest)
        taken, rest = rest[:count], rest[count:]
        return taken

    return re.sub(r"%(\d*)s", take, pattern)
