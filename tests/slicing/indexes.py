"""Made-up records in BGZF blocks, and the indexes that htslib would write for them, said as plainly as the specifications do."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from hypothesis import strategies as st

from score_core.slicing.base import Interval

EOF_SIZE = 28


class Record(NamedTuple):
    """A read or variant: where it is on the contigs, and where in the file (virtual offsets)."""

    tid: int
    start: int
    end: int
    begin: int
    stop: int
    mapped: bool = True

    def overlaps(self, interval: Interval) -> bool:
        return self.tid == interval.tid and self.start < interval.end and self.end > interval.start


@dataclass(frozen=True)
class MadeFile:
    """Sorted records, and the blocks that they are in: where those begin, and where the file ends."""

    records: tuple[Record, ...]
    blocks: tuple[int, ...]
    size: int
    header_end: int

    def block_end(self, virtual: int) -> int:
        """Where the block that is needed up to a virtual offset ends in the file."""
        if virtual & 0xFFFF == 0:
            return virtual >> 16
        return min(start for start in (*self.blocks, self.size - EOF_SIZE) if start > virtual >> 16)


def made_file(places: Sequence[tuple[int, int, int, bool]], sizes: Sequence[int], blocks: Sequence[int], *, header: int = 1000) -> MadeFile:
    """Records at (contig, start, end, mapped) of `sizes` uncompressed bytes, after `header` such bytes, in blocks of 64,000 of them.

    `blocks` are the compressed sizes, taken in turn.
    """
    ends = list(accumulate(sizes, initial=header))
    count = ends[-1] // 64_000 + 1
    starts = list(accumulate((blocks[number % len(blocks)] for number in range(count)), initial=0))

    def virtual(place: int) -> int:
        return starts[place // 64_000] << 16 | place % 64_000

    records = tuple(
        Record(tid, start, end, virtual(begin), virtual(stop), mapped)
        for (tid, start, end, mapped), begin, stop in zip(sorted(places), ends, ends[1:], strict=False)
    )
    return MadeFile(records, tuple(starts[:-1]), starts[-1] + EOF_SIZE, virtual(header))


def binning_index(made: MadeFile, contigs: int, *, min_shift: int = 14, depth: int = 5, csi: bool = False) -> bytes:
    """The BAI, or CSI before it is packed, of a file (SAM specification 5.2, CSIv1). Bins are never merged, as htslib merges small ones."""
    parts = [b"CSI\1" + struct.pack("<3I", min_shift, depth, 0) if csi else b"BAI\1", struct.pack("<I", contigs)]
    for tid in range(contigs):
        mine = [record for record in made.records if record.tid == tid]
        linear = _linear(mine, min_shift)
        bins = _bins(mine, min_shift, depth)
        if mine:
            counts = (sum(record.mapped for record in mine), sum(not record.mapped for record in mine))
            bins[_first(depth + 1) + 1] = [(mine[0].begin, mine[-1].stop), counts]
        parts.append(struct.pack("<I", len(bins)))
        for number, chunks in bins.items():
            window = _leftmost(number, depth)
            loffset = linear[window] if window < len(linear) and number < _first(depth + 1) else 0
            parts.append(struct.pack("<IQI", number, loffset, len(chunks)) if csi else struct.pack("<II", number, len(chunks)))
            parts.extend(struct.pack("<2Q", *chunk) for chunk in chunks)
        if not csi:
            parts.append(struct.pack(f"<I{len(linear)}Q", len(linear), *linear))
    return b"".join([*parts, struct.pack("<Q", 0)])


def _bins(records: list[Record], min_shift: int, depth: int) -> dict[int, list[tuple[int, int]]]:
    bins: dict[int, list[tuple[int, int]]] = {}
    last = -1
    for record in records:
        number = _smallest_bin(record, min_shift, depth)
        chunks = bins.setdefault(number, [])
        if number == last:
            chunks[-1] = (chunks[-1][0], record.stop)
        else:
            chunks.append((record.begin, record.stop))
        last = number
    return bins


def _smallest_bin(record: Record, min_shift: int, depth: int) -> int:
    for level in range(depth, -1, -1):
        shift = min_shift + 3 * (depth - level)
        if record.start >> shift == (record.end - 1) >> shift:
            return _first(level) + (record.start >> shift)
    raise AssertionError(record)


def _linear(records: list[Record], min_shift: int) -> list[int]:
    """The first record that reaches into each window; where there is none, what is to its right."""
    reaching: dict[int, int] = {}
    for record in records:
        for window in range(record.start >> min_shift, ((record.end - 1) >> min_shift) + 1):
            reaching.setdefault(window, record.begin)
    offsets: list[int] = []
    following = 0
    for window in range(max(reaching, default=-1), -1, -1):
        following = reaching.get(window, following)
        offsets.append(following)
    return offsets[::-1]


def _first(level: int) -> int:
    """The first bin of a level."""
    return ((1 << 3 * level) - 1) // 7


def _leftmost(number: int, depth: int) -> int:
    while number < _first(depth):
        number = number * 8 + 1
    return number - _first(depth)


# Made up at random

LENGTH = 1_000_000
_places = st.tuples(st.integers(0, 2), st.integers(0, LENGTH - 1), st.sampled_from([1, 100, 150, 20_000, 400_000]), st.booleans())
files = st.builds(
    lambda places, sizes, blocks, header: made_file(
        [(tid, start, min(start + size, LENGTH), mapped) for tid, start, size, mapped in places], sizes * len(places), blocks, header=header
    ),
    st.lists(_places, min_size=1, max_size=60),
    st.lists(st.sampled_from([100, 1000, 30_000, 64_000, 200_000]), min_size=1, max_size=4),
    st.lists(st.integers(100, 65_536), min_size=1, max_size=5),
    st.sampled_from([64, 1000, 64_000, 128_000, 130_000]),
)
intervals = st.lists(
    st.builds(
        lambda tid, start, size: Interval(tid, start, min(start + size, LENGTH)),
        st.integers(0, 3),
        st.integers(0, LENGTH - 1),
        st.sampled_from([1, 500, 16_384, 100_000, LENGTH]),
    ),
    min_size=1,
    max_size=6,
)
