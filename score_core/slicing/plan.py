"""From intervals to bytes: which ranges of a file to fetch, in which order, and when their place on the disk may be given back.

    intervals -> spans      neighbours that share blocks are read in one go, so that no block is unpacked twice
    spans     -> windows    about so many bytes each: one is fetched while the one before it is read, and the disk holds two
    windows   -> ranges     every byte that htslib will ask for (`Index.chunks` of each span), none of them twice; near ones made one,
                            big ones cut up so that connections share them

Bytes between two spans' needs stay until the last window that needs them is done. Pure: nothing is fetched here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import Final, NamedTuple

from score_core.errors import FormatError
from score_core.model import ByteRange
from score_core.slicing.base import Chunk, Index, Interval, file_offset, in_block
from score_core.slicing.index import TO_END, BinningIndex

GAP_BYTES: Final = 128 << 10  # fetched and thrown away rather than asked for around: a request costs about as much
WINDOW_BYTES: Final = 64 << 20
PIECES: Final = 8
MIN_PIECE_BYTES: Final = 256 << 10
MAX_PIECE_BYTES: Final = 8 << 20
_MAX_BLOCK_BYTES: Final = 1 << 16  # of a BGZF block in the file (SAM specification, section 4.1)
_MAX_CUT: Final = 64  # parts at a time: most of what is cut into more is too big again, or empty
_CUT_BASES: Final = 1 << 14  # the smallest bins of BAI and TBI: cutting finer does not make chunks smaller


class Span(NamedTuple):
    """One stretch of a contig, read in one go by `fetch(contig, start, end)`; `intervals`, in order, say which records are wanted."""

    intervals: tuple[Interval, ...]

    @property
    def tid(self) -> int:
        return self.intervals[0].tid

    @property
    def start(self) -> int:
        return self.intervals[0].start

    @property
    def end(self) -> int:
        return self.intervals[-1].end

    @property
    def interval(self) -> Interval:
        return Interval(self.tid, self.start, self.end)


class Window(NamedTuple):
    """Spans that are read together, once the `ranges` of this and of all earlier windows are there; nobody needs `done` afterwards.

    A record may overlap two spans: the later one must leave out those that begin before the end of the one before it on that contig.
    A reader that was open before a window's ranges came may hand out the emptiness that it read ahead: htslib keeps up to 128 KiB.
    """

    spans: tuple[Span, ...]
    ranges: tuple[ByteRange, ...]
    done: tuple[ByteRange, ...]


@dataclass(frozen=True)
class SlicePlan:
    """Windows in the order to read them: by contig and place, which is the file's. None when no record can be there."""

    windows: tuple[Window, ...]

    @cached_property
    def ranges(self) -> tuple[ByteRange, ...]:
        """All ranges to fetch, window by window."""
        return tuple(chain.from_iterable(window.ranges for window in self.windows))

    @cached_property
    def size(self) -> int:
        """Bytes to fetch in all."""
        return sum(piece.size for piece in self.ranges)


def plan_slice(
    index: Index,
    intervals: Sequence[Interval],
    *,
    size: int,
    have: int = 0,
    gap: int = GAP_BYTES,
    window_bytes: int = WINDOW_BYTES,
    pieces: int = PIECES,
) -> SlicePlan:
    """What to fetch of a file of `size` bytes, whose first `have` bytes are here, to read the records of merged `intervals` by `index`.

    Ranges nearer than `gap` bytes are made one. Windows take about `window_bytes`, of which each request takes about one of `pieces`,
    256 KiB to 8 MiB.

    Raises:
        FormatError: the index names places that the file does not have: it is another file's.
        ConfigurationError: an interval is past what the index can reach.
    """
    planner = _Planner(index, size, have)
    windows = list(_windows(planner, planner.spans(intervals, gap), window_bytes))
    pieces_of = _Pieces(gap, pieces)
    return SlicePlan(tuple(pieces_of.windows(windows)))


def whole_blocks(index: Index, chunks: Iterable[Chunk], *, size: int, eof_size: int) -> list[ByteRange]:
    """Ranges that hold the chunks and begin and end where blocks or containers do, so that they can be joined to a file.

    In order, and merged where they touch. They end at places that the index knows, or before the `eof_size` bytes of the end marker.

    Raises:
        FormatError: the index names places that the file does not have.
    """
    last = size - eof_size
    found: list[tuple[int, int]] = []
    for begin, end in chunks:
        _check(begin, end, size)
        stop = file_offset(end)
        if end == TO_END:
            stop = last
        elif in_block(end) and index.kind != "CRAI":  # of a CRAM, those are bytes of the next container's header
            after = index.block_after(stop)
            stop = last if after is None else after
        found.append((file_offset(begin), min(stop, last)))
    return [ByteRange(begin, end - begin) for begin, end in _union(found)]


class _Part(NamedTuple):
    """A span, or a part of one, and the bytes that it needs."""

    span: Span
    needs: list[tuple[int, int]]

    @property
    def size(self) -> int:
        return _total(self.needs)


class _Planner:
    """Bytes of intervals in one file."""

    def __init__(self, index: Index, size: int, have: int) -> None:
        self._index = index
        self._size = size
        self._have = have
        self._reach = index.max_position if isinstance(index, BinningIndex) else None

    def _needs(self, chunks: Iterable[Chunk]) -> list[tuple[int, int]]:
        """From where to where bytes are needed, besides those that are here."""
        found = []
        for begin, end in chunks:
            _check(begin, end, self._size)
            first, last = max(file_offset(begin), self._have), self._stop(end)
            if first < last:
                found.append((first, last))
        return _union(found)

    def _stop(self, end: int) -> int:
        """Where in the file what ends at a virtual offset ends: its block's end, if that is known or else at the latest."""
        stop, rest = file_offset(end), in_block(end)
        if not rest or end == TO_END:
            return min(stop, self._size)
        if self._index.kind == "CRAI":
            return min(stop + rest, self._size)
        after = self._index.block_after(stop)
        furthest = stop + _MAX_BLOCK_BYTES
        return min(furthest if after is None else min(after, furthest), self._size)

    def spans(self, intervals: Iterable[Interval], gap: int) -> Iterator[Span]:
        """Spans of the intervals that have chunks, joined where they would unpack the same blocks.

        Reads with long introns make intervals share blocks that are far apart otherwise; those are not joined, if more than `gap` bytes
        would come with what lies between.
        """
        joined: list[Interval] = []
        last: list[Chunk] = []
        for interval in intervals:
            chunks = self._index.chunks(interval)
            if not chunks:
                continue
            if joined and not (
                joined[-1].tid == interval.tid
                and chunks[0].begin < last[-1].end
                and self._between(joined[-1], last, interval, chunks) <= gap
            ):
                yield Span(tuple(joined))
                joined = []
            joined.append(interval)
            last = chunks
        if joined:
            yield Span(tuple(joined))

    def _between(self, one: Interval, one_chunks: list[Chunk], other: Interval, other_chunks: list[Chunk]) -> int:
        """How many bytes are needed for what lies between two intervals, besides those of the two."""
        middle = self._index.chunks(Interval(one.tid, one.end, other.start)) if one.end < other.start else []
        ours = _union([(begin, end) for begin, end in (*one_chunks, *other_chunks)])
        return sum(file_offset(end) - file_offset(begin) for begin, end in _without([(begin, end) for begin, end in middle], ours))

    def parts(self, span: Span, limit: int) -> Iterator[_Part]:
        """The span, cut so that each part needs at most `limit` bytes, or as few as it helps to cut for.

        Parts without chunks are left out: no record is there, and of a CRAM htslib would read what is nearest.
        """
        chunks = self._index.chunks(span.interval)
        if chunks:
            yield from self._smaller(_Part(span, self._needs(chunks)), limit)

    def _smaller(self, whole: _Part, limit: int) -> Iterator[_Part]:
        parts = self._cut(whole, limit) if whole.size > limit else []
        sizes = [part.size for part in parts]
        # No more cutting where each part needs nearly all: of one block, or of a place that is deeper than a window.
        if not parts or (len(parts) > 1 and sum(sizes) > 1.5 * whole.size and max(sizes) > 0.75 * whole.size):
            yield whole
            return
        for part in parts:
            yield from self._smaller(part, limit)

    def _cut(self, whole: _Part, limit: int) -> list[_Part]:
        """The part in two, or in so many as the limit asks for if they are not too small for that; none if it is too short."""
        span = whole.span
        end = span.end if self._reach is None else min(span.end, self._reach)  # the end of a contig of unknown length may be past it
        count = max(2, min(-(-whole.size // limit), whole.size // MIN_PIECE_BYTES, _MAX_CUT))
        cuts = {(span.start + (end - span.start) * number // count) // _CUT_BASES * _CUT_BASES for number in range(1, count)}
        places = [span.start, *sorted(cut for cut in cuts if cut > span.start), span.end]
        parts = []
        for start, stop in pairwise(places) if len(places) > 2 else ():
            clipped = (_clipped(interval, start, stop) for interval in span.intervals)
            intervals = tuple(interval for interval in clipped if interval.start < interval.end)
            chunks = self._index.chunks(Interval(span.tid, intervals[0].start, intervals[-1].end)) if intervals else []
            if chunks:
                parts.append(_Part(Span(intervals), self._needs(chunks)))
        return parts


def _clipped(interval: Interval, start: int, end: int) -> Interval:
    return Interval(interval.tid, max(start, interval.start), min(end, interval.end))


def _check(begin: int, end: int, size: int) -> None:
    """Raises `FormatError` unless a chunk is within the file."""
    if file_offset(begin) >= size or (end != TO_END and file_offset(end) + (in_block(end) > 0) > size):
        raise FormatError("The index does not belong to this file: it tells of places past the file's end, or the file was cut off")


# Windows


def _windows(planner: _Planner, spans: Iterable[Span], window_bytes: int) -> Iterator[list[_Part]]:
    window: list[_Part] = []
    total = 0
    for span in spans:
        for part in planner.parts(span, window_bytes):
            if window and total + part.size > window_bytes:
                yield window
                window, total = [], 0
            window.append(part)
            total += part.size
    if window:
        yield window


class _Stretch(NamedTuple):
    """Bytes that are first needed by one window, and last by another."""

    begin: int
    end: int
    first: int
    last: int


class _Pieces:
    """Ranges of windows: each byte is fetched for the first window that needs it, and done with after the last."""

    def __init__(self, gap: int, pieces: int) -> None:
        self._gap = gap
        self._pieces = max(1, pieces)

    def windows(self, windows: list[list[_Part]]) -> Iterator[Window]:
        fetched: list[list[tuple[int, int]]] = [[] for _ in windows]
        done: list[list[tuple[int, int]]] = [[] for _ in windows]
        needs = [_union(chain.from_iterable(part.needs for part in parts)) for parts in windows]
        for begin, end, first, last in self._bridged(_stretches(needs)):
            fetched[first].append((begin, end))
            done[last].append((begin, end))
        for number, parts in enumerate(windows):
            ranges = _union(fetched[number])
            total = _total(ranges)
            yield Window(
                tuple(part.span for part in parts),
                tuple(self._cut(ranges, total)),
                tuple(ByteRange(begin, end - begin) for begin, end in _union(done[number])),
            )

    def _bridged(self, stretches: Iterable[_Stretch]) -> Iterator[_Stretch]:
        """The stretches, and between near ones of one window the bytes that nobody needs."""
        before: _Stretch | None = None
        for stretch in stretches:
            if before is not None and before.first == stretch.first and 0 < stretch.begin - before.end < self._gap:
                yield _Stretch(before.end, stretch.begin, stretch.first, stretch.first)
            yield stretch
            before = stretch

    def _cut(self, ranges: list[tuple[int, int]], total: int) -> Iterator[ByteRange]:
        """Big ranges in pieces of about the same size."""
        most = min(MAX_PIECE_BYTES, max(MIN_PIECE_BYTES, -(-total // self._pieces)))
        for begin, end in ranges:
            count = -(-(end - begin) // most)
            size = -(-(end - begin) // count)
            for offset in range(begin, end, size):
                yield ByteRange(offset, min(size, end - offset))


def _stretches(needs: list[list[tuple[int, int]]]) -> Iterator[_Stretch]:
    """The bytes that windows need, in order, apart where the windows that need them differ."""
    ranges = sorted((begin, end, window) for window, found in enumerate(needs) for begin, end in found)
    edges = sorted({edge for begin, end, _ in ranges for edge in (begin, end)})
    active: dict[int, int] = {}  # windows that need what is at the edge, and how far
    place = 0
    for edge, following in pairwise(edges):
        while place < len(ranges) and ranges[place][0] == edge:
            active[ranges[place][2]] = ranges[place][1]
            place += 1
        for window in [window for window, end in active.items() if end <= edge]:
            del active[window]
        if active:
            yield _Stretch(edge, following, min(active), max(active))


def _union(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges in order, those that overlap or touch made one, empty ones left out."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if begin >= end:
            continue
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found


def _total(ranges: Iterable[tuple[int, int]]) -> int:
    return sum(end - begin for begin, end in ranges)


def _without(ranges: list[tuple[int, int]], others: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What is in `ranges` and not in `others`, both in order."""
    for begin, end in ranges:
        place = begin
        for other_begin, other_end in others:
            if other_end > place and other_begin < end:
                if other_begin > place:
                    yield place, other_begin
                place = max(place, other_end)
        if place < end:
            yield place, end
