"""The values that slicing passes on: contigs, intervals, places in compressed files, and what an index answers.

Positions on a contig are 0-based, `end` exclusive, everywhere but in what users write. A *virtual offset* is a place in a BGZF file: the
offset of a block in the file << 16 | the offset in that block's uncompressed bytes (SAM specification, section 4.1.1). For CRAM, which is
not BGZF, it is the offset of a container << 16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, NamedTuple, Protocol

from score_core.errors import ConfigurationError

Format = Literal["BAM", "CRAM", "VCF", "BCF"]
IndexKind = Literal["BAI", "CSI", "TBI", "CRAI"]

_MAX_BAI_LENGTH: Final = 1 << 29

ReadRange = Callable[[int, int], bytes]
"""Bytes of a file: from an offset, so many, fewer only where the file ends. Raises `ScoreError`."""


class Contig(NamedTuple):
    """A reference sequence. `length` in bases, None when the header does not say (VCF). `md5` is the `M5` of a SAM header."""

    name: str
    length: int | None = None
    md5: str | None = None


@dataclass(frozen=True)
class Contigs:
    """The reference sequences of a file, in the file's order: a contig's place here is its id (`tid`)."""

    contigs: tuple[Contig, ...]

    @cached_property
    def ids(self) -> dict[str, int]:
        """Contig names to their ids."""
        return {contig.name: tid for tid, contig in enumerate(self.contigs)}

    @property
    def are_long(self) -> bool:
        """Whether one has more bases than BAI and TBI can tell of: then the index must be a CSI (SAM specification, section 5.1.1)."""
        return any((contig.length or 0) > _MAX_BAI_LENGTH for contig in self.contigs)

    def __len__(self) -> int:
        return len(self.contigs)

    def __getitem__(self, tid: int) -> Contig:
        return self.contigs[tid]


class Interval(NamedTuple):
    """Bases `start` to `end` of contig number `tid`."""

    tid: int
    start: int
    end: int


class Chunk(NamedTuple):
    """Virtual offsets `begin` (inclusive) to `end` (exclusive) that may hold records of an interval."""

    begin: int
    end: int


class Index(Protocol):
    """What a BAI, CSI, TBI or CRAI index knows. All offsets are virtual."""

    @property
    def kind(self) -> IndexKind: ...

    @property
    def names(self) -> tuple[str, ...] | None:
        """The contigs in order, where the index says (TBI, CSI of a VCF); None where only the data file's header does."""
        ...

    @property
    def references(self) -> int | None:
        """How many contigs the index has; None for CRAI, which lists only those with reads."""
        ...

    @property
    def first(self) -> int | None:
        """Where the first placed record begins; None when there is none."""
        ...

    @property
    def last(self) -> int | None:
        """Where the last placed record ends, which is where unplaced reads begin; None when there is none, or (CRAI) nobody knows."""
        ...

    @property
    def unplaced(self) -> int | None:
        """How many reads have no place; None when the index does not say."""
        ...

    def chunks(self, interval: Interval) -> list[Chunk]:
        """Where records that overlap the interval are: merged, by place in the file, as few bytes as the index allows.

        Unknown ids have none.
        """
        ...

    def block_after(self, offset: int) -> int | None:
        """The smallest known start of a block or container past `offset`, both in bytes of the file, not virtual; None if none is known."""
        ...


Intervals = Sequence[Interval]


def file_offset(virtual: int) -> int:
    """The offset in the file of the block that a virtual offset is in."""
    return virtual >> 16


def in_block(virtual: int) -> int:
    """How many uncompressed bytes of its block come before a virtual offset."""
    return virtual & 0xFFFF


def require_pysam(who: str) -> None:
    """Raises `ConfigurationError` where pysam, an extra, is not installed; the sentence begins with `who`."""
    try:
        import pysam  # noqa: F401
    except ImportError:
        raise ConfigurationError(f"{who} needs pysam, which is not installed: pip install 'score-transfer[slicing]'") from None
