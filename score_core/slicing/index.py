"""What an index knows: which bytes of a file hold the records of an interval. BAI, CSI, TBI and CRAI, without htslib.

The answers are what htslib 1.24 will read for the same question, for it reads from a file that holds nothing else: what is left out here is
an error there.

In a binning index (BAI, CSI, TBI; SAM specification 5.1 to 5.3, CSIv1, tabix) each record is in the smallest bin that holds it whole, and
bins name chunks of the file. Two clips make the answer tight: nothing before the first record that reaches into the interval (linear index,
`loffset`), nothing from the first record of the next bin to the right on; without the second, 500 bases of a deep genome come in 14 pieces.
A CRAI (CRAM specification, section 12) lists slices by contig, place and container.
"""

from __future__ import annotations

import gzip
import io
import re
import struct
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from operator import gt
from typing import Final, Literal, NamedTuple

from score_core.errors import ConfigurationError, FormatError
from score_core.slicing.base import Chunk, Index, Interval, file_offset

TO_END: Final = (1 << 64) - 1
"""The virtual offset that stands for the end of the data where the index does not tell it."""

MAX_INDEX_BYTES: Final = 256 << 20  # unpacked; those of plants with 30 Gb of genome have about a hundred
_MAX_REFERENCES: Final = 1 << 23  # the most scattered assemblies have some millions of contigs
_MAX_BINS: Final = 1 << 23
_MAX_DEPTH: Final = 10  # with one more level, the numbers of bins would not fit their 32 bits
_TABIX_BYTES: Final = 28  # numbers before the names (tabix specification)
_UNSET: Final = (1 << 64) - 1  # in linear indexes
_GZIP_MAGIC: Final = b"\x1f\x8b"
_INT: Final = struct.Struct("<I")
_LONG: Final = struct.Struct("<Q")
_BIN: Final = struct.Struct("<II")  # number, count of chunks
_CSI_BIN: Final = struct.Struct("<IQI")  # number, loffset, count of chunks


def read_index(data: bytes, *, name: str) -> Index:
    """The index that these bytes are: told by what they hold, not by `name`, which is for messages.

    Raises:
        FormatError: it is no BAI, CSI, TBI or CRAI, or it is damaged, cut off, or larger than is believed.
    """
    try:
        content = _unpacked(data)
        if content[:4] in _LAYOUTS:
            return _read_binning(content)
        if _CRAI_LINE.match(content) or (data and not content):  # the CRAI of a CRAM without reads is an empty file, packed
            return _read_crai(content)
        raise FormatError("This is no BAI, CSI, TBI or CRAI index")
    except FormatError as error:
        raise error.at(name) from None


def _unpacked(data: bytes) -> bytes:
    if not data.startswith(_GZIP_MAGIC):
        return data
    try:
        content = gzip.GzipFile(fileobj=io.BytesIO(data)).read(MAX_INDEX_BYTES + 1)
    except (EOFError, zlib.error, OSError):
        raise FormatError("The index is damaged or cut off: it cannot be unpacked") from None
    if len(content) > MAX_INDEX_BYTES:
        raise FormatError(f"The index has more than {MAX_INDEX_BYTES >> 20} MiB, which is not believed")
    return content


def _merged(chunks: Iterable[tuple[int, int]]) -> list[Chunk]:
    """The chunks in order, those that overlap or share a block made one."""
    found: list[Chunk] = []
    for begin, end in sorted(chunks):
        if found and begin >> 16 <= found[-1].end >> 16:
            found[-1] = Chunk(found[-1].begin, max(found[-1].end, end))
        else:
            found.append(Chunk(begin, end))
    return found


# BAI, CSI, TBI


class _Layout(NamedTuple):
    kind: Literal["BAI", "CSI", "TBI"]
    bin: struct.Struct
    has_linear: bool


_LAYOUTS: Final = {
    b"BAI\1": _Layout("BAI", _BIN, has_linear=True),
    b"CSI\1": _Layout("CSI", _CSI_BIN, has_linear=False),
    b"TBI\1": _Layout("TBI", _BIN, has_linear=True),
}


@dataclass(frozen=True)
class _Shape:
    """How bins tile a contig: the smallest have 2**min_shift bases, and there are `depth` levels above them, each eight times as wide."""

    min_shift: int
    depth: int

    @cached_property
    def max_position(self) -> int:
        return 1 << self.min_shift + 3 * self.depth

    @cached_property
    def bins(self) -> int:
        """How many bins there are; they are numbered from 0."""
        return ((1 << 3 * (self.depth + 1)) - 1) // 7

    @cached_property
    def first_leaf(self) -> int:
        return ((1 << 3 * self.depth) - 1) // 7

    @property
    def pseudo_bin(self) -> int:
        """The number of the bin that tells about its contig instead: 37450 in a BAI (SAM specification, section 5.2)."""
        return self.bins + 1

    def levels(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """First and last bin that overlap the interval, on each level."""
        first = 0
        for level in range(self.depth + 1):
            shift = self.min_shift + 3 * (self.depth - level)
            yield first + (start >> shift), first + ((min(end, self.max_position) - 1) >> shift)
            first = first * 8 + 1

    def leftmost_window(self, number: int) -> int:
        """The window (smallest bin, counted from 0) where a bin begins."""
        while number < self.first_leaf:
            number = number * 8 + 1
        return number - self.first_leaf


_BAI_SHAPE: Final = _Shape(min_shift=14, depth=5)  # TBI's too: windows of 16 kb, up to 2**29 (SAM specification, section 5.1)


class _Reference(NamedTuple):
    """One contig. `bins` maps numbers to where their count of chunks stands in the index; `extent` and `unmapped` are the pseudo-bin's."""

    bins: dict[int, int]
    extent: tuple[int, int] | None
    unmapped: int | None
    linear_at: int
    windows: int


class BinningIndex:
    """A BAI, CSI or TBI index, as `Index` says. Safe for several threads."""

    def __init__(
        self,
        data: bytes,
        layout: _Layout,
        shape: _Shape,
        references: list[_Reference | None],
        *,
        names: tuple[str, ...] | None,
        unplaced: int | None,
    ) -> None:
        self._data = data
        self._layout = layout
        self._shape = shape
        self._references = references
        self._names = names
        self._unplaced = unplaced
        self._linears: dict[int, list[int]] = {}

    @property
    def kind(self) -> Literal["BAI", "CSI", "TBI"]:
        return self._layout.kind

    @property
    def names(self) -> tuple[str, ...] | None:
        return self._names

    @property
    def references(self) -> int:
        return len(self._references)

    @property
    def unplaced(self) -> int | None:
        return self._unplaced

    @property
    def max_position(self) -> int:
        """The index knows of no position from this on."""
        return self._shape.max_position

    @cached_property
    def first(self) -> int | None:
        return min((begin for begin, _ in self._extents()), default=None)

    @cached_property
    def last(self) -> int | None:
        return max((end for _, end in self._extents()), default=None)

    def chunks(self, interval: Interval) -> list[Chunk]:
        """As `Index.chunks`.

        Raises:
            ConfigurationError: the interval begins where this kind of index cannot reach, so that it would seem to be empty.
            FormatError: the index is damaged here.
        """
        tid, start, end = interval
        if start >= self._shape.max_position:
            raise ConfigurationError(
                f"The {self.kind} index reaches to position {self._shape.max_position} of a contig only; "
                "index the file anew as CSI (samtools index -c, bcftools index -c) to find what is past it"
            )
        reference = self._references[tid] if 0 <= tid < len(self._references) else None
        if reference is None or start >= end:
            return []
        low, high = self._low(tid, reference, start), self._high(reference, end)
        found = []
        for number in self._bins(reference, start, end):
            for begin, stop in self._chunks_at(reference.bins[number]):
                if stop > low and begin < high:
                    found.append((max(begin, low), min(stop, high)))
        return _merged(found)

    def block_after(self, offset: int) -> int | None:
        place = bisect_right(self._blocks, offset)
        return self._blocks[place] if place < len(self._blocks) else None

    @cached_property
    def _blocks(self) -> list[int]:
        """Where blocks begin, as far as the index tells."""
        chunks: list[bytes] = []
        others: set[int] = set()
        for tid, reference in enumerate(self._references):
            if reference is not None:
                chunks += map(self._raw_chunks_at, reference.bins.values())
                others.update(reference.extent or (), self._linear(tid, reference))
        together = b"".join(chunks)  # and read at once: thousands of bins one by one take half as long again
        return sorted(set(map(file_offset, others.union(struct.unpack(f"<{len(together) // 8}Q", together)))))

    def _extents(self) -> Iterator[tuple[int, int]]:
        """From where to where the records of each contig are; from its chunks, where an old indexer wrote no pseudo-bin."""
        for reference in self._references:
            if reference is None:
                continue
            if reference.extent is not None:
                yield reference.extent
            else:
                yield from (chunk for place in reference.bins.values() for chunk in self._chunks_at(place))

    def _raw_chunks_at(self, place: int) -> bytes:
        (count,) = _INT.unpack_from(self._data, place)
        return self._data[place + 4 : place + 4 + 16 * count]

    def _chunks_at(self, place: int) -> Iterator[tuple[int, int]]:
        raw = self._raw_chunks_at(place)
        numbers = struct.unpack(f"<{len(raw) // 8}Q", raw)
        begins, ends = numbers[::2], numbers[1::2]
        if any(map(gt, begins, ends)):
            raise FormatError(f"The {self.kind} index is damaged: a chunk ends before it begins")
        return zip(begins, ends, strict=True)

    def _linear(self, tid: int, reference: _Reference) -> list[int]:
        """Where the first record that reaches into each window is. Windows that older indexers left out get what is to their right."""
        linear = self._linears.get(tid)
        if linear is None:
            place = reference.linear_at
            linear = list(struct.unpack_from(f"<{reference.windows}Q", self._data, place))
            known = next((window for window, offset in enumerate(linear) if offset), 0)
            for window in range(len(linear) - 2, -1, -1):
                if linear[window] == _UNSET or (window > known and linear[window] == 0):
                    linear[window] = linear[window + 1]
            self._linears[tid] = linear
        return linear

    def _bins(self, reference: _Reference, start: int, end: int) -> list[int]:
        """The bins that may hold records which overlap the interval, of those that the contig has."""
        levels = list(self._shape.levels(start, end))
        if sum(last - first for first, last in levels) < len(reference.bins):
            return [number for first, last in levels for number in range(first, last + 1) if number in reference.bins]
        return [number for number in reference.bins if any(first <= number <= last for first, last in levels)]

    def _low(self, tid: int, reference: _Reference, start: int) -> int:
        """No record that ends in the file at or before this reaches to `start`: htslib's min_off."""
        window = start >> self._shape.min_shift
        number = self._shape.first_leaf + window
        while number and number not in reference.bins:  # the nearest one to the left that has the same parent, or else the parent
            number = number >> 3 if number % 8 == 1 else number - 1
        if not self._layout.has_linear:
            return int(_LONG.unpack_from(self._data, reference.bins[number] - 8)[0]) if number in reference.bins else 0
        linear = self._linear(tid, reference)
        leftmost = self._shape.leftmost_window(number)
        floor = linear[leftmost] if number in reference.bins and leftmost < len(linear) else 0
        if window >= len(linear):
            return floor
        low = max(floor, linear[window])
        if reference.unmapped == 0:
            return low
        # Unmapped reads that have a place are not in the linear index: they may stand before the first read that it tells of.
        before = _last_below(low, linear, window)
        return floor if before is None and number in reference.bins else max(floor, low if before is None else before)

    def _high(self, reference: _Reference, end: int) -> int:
        """No record that begins in the file at or after this begins before `end`: htslib's max_off."""
        number = self._shape.first_leaf + ((end - 1) >> self._shape.min_shift) + 1
        if end > self._shape.max_position or number >= self._shape.bins:
            return TO_END
        while True:  # to the right, from a first sibling up to the parent, which begins at the same place
            while number % 8 == 1:
                number >>= 3
            if number == 0:
                return TO_END
            place = reference.bins.get(number)
            if place is not None and _INT.unpack_from(self._data, place)[0]:
                return int(_LONG.unpack_from(self._data, place + 4)[0])
            number += 1


def _last_below(value: int, linear: list[int], end: int) -> int | None:
    """The last of the numbers before place `end` that is smaller than `value`. They ascend, save in odd indexes."""
    place = bisect_left(linear, value, 0, end)
    if place and linear[place - 1] < value and (place == end or linear[end - 1] >= value):
        return linear[place - 1]
    return next((offset for offset in reversed(linear[:end]) if offset < value), None)


def _read_binning(data: bytes) -> BinningIndex:
    layout, shape, names = _LAYOUTS[data[:4]], _BAI_SHAPE, None
    try:
        if layout.kind == "BAI":
            count, at = _INT.unpack_from(data, 4)[0], 8
        elif layout.kind == "TBI":
            count, at = _INT.unpack_from(data, 4)[0], 8
            (names_size,) = _INT.unpack_from(data, at + _TABIX_BYTES - 4)
            names = _tabix_names(data[at : at + _TABIX_BYTES + names_size])
            at += _TABIX_BYTES + names_size
        else:
            min_shift, depth, extra_size = struct.unpack_from("<3I", data, 4)
            if min_shift > 31 or depth > _MAX_DEPTH:
                raise FormatError("The CSI index is damaged: its bins are of no possible size")
            shape = _Shape(min_shift, depth)
            names = _tabix_names(data[16 : 16 + extra_size])
            at = 16 + extra_size
            count, at = _INT.unpack_from(data, at)[0], at + 4
        references, at = _read_references(data, at, count, layout, shape)
    except struct.error:
        raise FormatError(f"The {layout.kind} index is damaged or cut off: it ends in the middle") from None
    unplaced = _LONG.unpack_from(data, at)[0] if len(data) >= at + 8 else None
    return BinningIndex(data, layout, shape, references, names=names, unplaced=unplaced)


def _tabix_names(extra: bytes) -> tuple[str, ...] | None:
    """The contigs that a TBI, or a CSI made by tabix, names; None for other additions to a CSI."""
    if len(extra) < _TABIX_BYTES or len(extra) < _TABIX_BYTES + _INT.unpack_from(extra, _TABIX_BYTES - 4)[0]:
        return None
    names = extra[_TABIX_BYTES : _TABIX_BYTES + _INT.unpack_from(extra, _TABIX_BYTES - 4)[0]]
    return tuple(name.decode("utf-8", "replace") for name in names.split(b"\0")[:-1])


def _read_references(data: bytes, at: int, count: int, layout: _Layout, shape: _Shape) -> tuple[list[_Reference | None], int]:
    """The contigs, and where the index goes on. Raises `struct.error` where it ends in the middle of them."""
    if count > _MAX_REFERENCES:
        raise FormatError(f"The {layout.kind} index is damaged: {count} contigs are not believed")
    if count * (8 if layout.has_linear else 4) > len(data) - at:
        raise FormatError(f"The {layout.kind} index is damaged or cut off: {count} contigs do not fit its size")
    references: list[_Reference | None] = []
    bins_left = _MAX_BINS
    for _ in range(count):
        (bin_count,) = _INT.unpack_from(data, at)
        bins_left -= bin_count
        if bins_left < 0:
            raise FormatError(f"The {layout.kind} index is damaged: its number of bins is not believed")
        bins, at = _read_bins(data, at + 4, bin_count, layout, shape)
        windows = 0
        if layout.has_linear:
            (windows,) = _INT.unpack_from(data, at)
            at += 4
        references.append(_reference(data, bins, at, windows, layout, shape) if bins or windows else None)
        at += 8 * windows
        if at > len(data):
            raise struct.error
    return references, at


def _read_bins(data: bytes, at: int, count: int, layout: _Layout, shape: _Shape) -> tuple[dict[int, int], int]:
    bins: dict[int, int] = {}
    unpack, size, largest = layout.bin.unpack_from, layout.bin.size, shape.pseudo_bin
    for _ in range(count):
        head = unpack(data, at)
        at += size
        number, chunks = head[0], head[-1]
        if number in bins or number > largest:
            raise FormatError(f"The {layout.kind} index is damaged: bin {number} makes no sense there")
        bins[number] = at - 4
        at += 16 * chunks
        if at > len(data):
            raise struct.error
    return bins, at


def _reference(data: bytes, bins: dict[int, int], at: int, windows: int, layout: _Layout, shape: _Shape) -> _Reference:
    if windows > shape.max_position >> shape.min_shift:
        raise FormatError(f"The {layout.kind} index is damaged: a contig has {windows} windows")
    place = bins.pop(shape.pseudo_bin, None)
    if place is None:
        return _Reference(bins, None, None, at, windows)
    if _INT.unpack_from(data, place)[0] != 2:
        raise FormatError(f"The {layout.kind} index is damaged: what it tells about a contig is not two pairs of numbers")
    begin, end, _, unmapped = struct.unpack_from("<4Q", data, place + 4)
    if begin > end:
        raise FormatError(f"The {layout.kind} index is damaged: a contig's records end before they begin")
    return _Reference(bins, (begin, end) if end else None, unmapped, at, windows)


# CRAI


_CRAI_LINE: Final = re.compile(
    rb"(-?\d{1,10})[\t ]+(-?\d{1,10})[\t ]+(-?\d{1,10})[\t ]+(\d{1,15})[\t ]+(\d{1,10})[\t ]+(\d{1,10})[\t \r]*(?=\n|\Z)"
)
_HEAD_BYTES: Final = 60  # the most that a container's header takes without its landmarks, of which each takes ...
_LANDMARK_BYTES: Final = 5  # ... so many (CRAM specification, section 7; numbers of 32 bits take five bytes, of 64 bits nine)
_UNSURE_AFTER: Final = 32  # containers: writers with threads learn so late that they may stop mixing contigs


class _Slice(NamedTuple):
    """A line of a CRAI: a contig's bases in one slice."""

    tid: int
    start: int
    end: int
    container: int
    landmark: int


class _Containers(NamedTuple):
    """A contig's containers: their numbers, and which bases each has. `furthest` and `nearest` are what bisection may go by."""

    numbers: array[int]
    starts: array[int]
    ends: array[int]
    furthest: list[int]
    nearest: list[int]

    def overlapping(self, start: int, end: int) -> list[int]:
        low, high = bisect_right(self.furthest, start), bisect_left(self.nearest, end)
        return [self.numbers[place] for place in range(low, high) if self.starts[place] < end and self.ends[place] > start]


class CraiIndex:
    """A CRAI index, as `Index` says. Safe for several threads.

    A virtual offset is a container's << 16; one with low bits says how many bytes of the container at its beginning are needed. htslib goes
    from the first container of an interval to the one after its last by their headers, so those are in the chunks as well.
    """

    kind: Final = "CRAI"
    names: Final = None
    references: Final = None
    unplaced: Final = None

    def __init__(self, slices: list[_Slice]) -> None:
        self._offsets = sorted({line.container for line in slices})
        number_of = {offset: number for number, offset in enumerate(self._offsets)}
        landmarks: list[set[int]] = [set() for _ in self._offsets]
        contigs: list[set[int]] = [set() for _ in self._offsets]
        extents: dict[int, dict[int, tuple[int, int]]] = {}
        for line in slices:
            number = number_of[line.container]
            landmarks[number].add(line.landmark)
            contigs[number].add(line.tid)
            mine = extents.setdefault(line.tid, {})
            start, end = mine.get(number, (line.start, line.end))
            mine[number] = (min(start, line.start), max(end, line.end))
        self._heads = [min(_HEAD_BYTES + _LANDMARK_BYTES * len(found), 0xFFFF) for found in landmarks]
        self._is_unsure = _unsure(contigs)
        self._contigs = {tid: _containers(mine) for tid, mine in extents.items()}

    @property
    def first(self) -> int | None:
        """Where the first container with placed reads begins."""
        return min((self._offsets[mine.numbers[0]] << 16 for tid, mine in self._contigs.items() if tid >= 0), default=None)

    @property
    def last(self) -> int | None:
        """Where the first container with unplaced reads begins, which may hold placed ones before them; None if there is none."""
        unplaced = self._contigs.get(-1)
        return self._offsets[unplaced.numbers[0]] << 16 if unplaced else None

    def chunks(self, interval: Interval) -> list[Chunk]:
        tid, start, end = interval
        mine = self._contigs.get(tid) if tid >= 0 and start < end else None
        wanted = mine.overlapping(start, end) if mine else []
        if not wanted:
            return []
        found = []
        for one, other in pairwise(wanted):
            found.append(self._whole(one))
            found.extend(self._whole(number) if self._is_unsure[number] else self._head(number) for number in range(one + 1, other))
        found.append(self._whole(wanted[-1]))
        after = wanted[-1] + 1
        if after < len(self._offsets) and self._is_unsure[after]:
            found.append(self._whole(after))
        return _merged(found)

    def block_after(self, offset: int) -> int | None:
        place = bisect_right(self._offsets, offset)
        return self._offsets[place] if place < len(self._offsets) else None

    def _whole(self, number: int) -> tuple[int, int]:
        """A container and the header of the next."""
        after = number + 1
        return self._offsets[number] << 16, self._head(after)[1] if after < len(self._offsets) else TO_END

    def _head(self, number: int) -> tuple[int, int]:
        begin = self._offsets[number] << 16
        return begin, begin | self._heads[number]


def _unsure(contigs: list[set[int]]) -> list[bool]:
    """Which containers may be declared as of several contigs, whatever they hold, so that htslib must unpack them to see.

    The index shows only which contigs a container holds. In files written so throughout, contigs change within containers only; otherwise
    writers begin with it after a change of contig, and end soon after the last container that holds several.
    """
    changes = [number for number, (one, other) in enumerate(pairwise(contigs), start=1) if one.isdisjoint(other)]
    mixed = [number for number, found in enumerate(contigs) if len(found) > 1]
    if mixed and all(-1 in contigs[number] for number in changes):
        return [True] * len(contigs)
    unsure = [False] * len(contigs)
    for number in (*changes, *mixed):
        for place in range(number, min(number + _UNSURE_AFTER, len(contigs))):
            unsure[place] = True
    return unsure


def _containers(extents: dict[int, tuple[int, int]]) -> _Containers:
    numbers = sorted(extents)
    starts, ends = [extents[number][0] for number in numbers], [extents[number][1] for number in numbers]
    nearest = list(accumulate(reversed(starts), min))[::-1]
    return _Containers(array("l", numbers), array("q", starts), array("q", ends), list(accumulate(ends, max)), nearest)


def _read_crai(content: bytes) -> CraiIndex:
    slices = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line:
            continue
        found = _CRAI_LINE.fullmatch(line)
        if found is None:
            raise FormatError(f"The CRAI index is damaged or cut off: line {number} is not six numbers")
        tid, start, span, container, landmark, _ = map(int, found.groups())
        if tid < -1:
            raise FormatError(f"The CRAI index is damaged: line {number} names contig {tid}")
        slices.append(_Slice(tid, start - 1, start - 1 + span, container, landmark))
    return CraiIndex(slices)
