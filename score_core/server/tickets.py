"""From a published object and what is wanted of it to a htsget ticket: ranges of the object, and what must stand around them.

Nothing is decoded or written anew but the header. So a ticket costs what its index costs, and headers and indexes are kept for a minute.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple

from score_core.errors import ConfigurationError, FormatError
from score_core.metadata.base import Entity, indexes_of
from score_core.model import ByteRange, ObjectSpec
from score_core.server.errors import Refusal
from score_core.server.kept import Kept
from score_core.server.published import Opened, Published
from score_core.slicing import bgzf
from score_core.slicing.base import Chunk, Contigs, Format, Index, Interval, ReadRange, file_offset, in_block
from score_core.slicing.formats import Header, check_index, check_probe, contigs_of, header_blocks, probe, read_header
from score_core.slicing.index import read_index
from score_core.slicing.plan import whole_blocks
from score_core.slicing.regions import MAX_POSITION, merged

_log = logging.getLogger(__name__)

INVALID_RANGE: Final = "InvalidRange"
UNSUPPORTED_FORMAT: Final = "UnsupportedFormat"
UNPLACED: Final = "*"

_LIFE_S: Final = 60.0  # of headers and indexes: they are those of one version of an object, so age does them no harm
_KEPT_BYTES: Final = 128 << 20
_CONTIG_BYTES: Final = 300  # of memory, with its place in the table of names
_INDEX_GROWTH: Final = 8  # an index in memory takes about so many times its bytes in the store
_MAX_INDEX_BYTES: Final = 64 << 20  # a BAI of a deep human genome has 9 MB
_MAX_HEADER_BYTES: Final = 32 << 20  # in the store: more are not read for a ticket
_INLINE_BYTES: Final = 256 << 10  # of a header: a longer one is a range
_GAP_BYTES: Final = 64 << 10  # ranges so near to each other are one: a reader waits longer for a request than for these bytes
_BIN_BASES: Final = 1 << 14
_MAX_RANGES: Final = 2_000
_MAX_BLOCK_BYTES: Final = 1 << 30  # of one URL, as the specification asks

_INDEXES: Final[dict[Format, tuple[str, ...]]] = {"BAM": (".bai", ".csi"), "CRAM": (".crai",), "VCF": (".tbi", ".csi"), "BCF": (".csi",)}

Class = Literal["header", "body"]


class Region(NamedTuple):
    """Bases `start` to `end` (exclusive; None: to the end) of a contig; `*` is the reads without a place."""

    name: str
    start: int
    end: int | None


@dataclass(frozen=True)
class Wanted:
    """What a ticket is for. `regions` None: everything."""

    format: str
    regions: tuple[Region, ...] | None = None
    header_only: bool = False


@dataclass(frozen=True)
class _Beginning:
    """How a file begins and ends. `blocks` is its header as a file of its own, None if that is long; `eof_size` 0: no marker is there."""

    header: Header
    blocks: bytes | None
    eof_size: int

    @property
    def memory(self) -> int:
        text = len(self.header.start) + len(self.header.text) + len(self.blocks or b"")
        return text + len(self.header.contigs) * _CONTIG_BYTES


@dataclass(frozen=True)
class _Known:
    """An index that belongs to its file, and how much memory it takes."""

    index: Index
    memory: int


class Tickets:
    """Makes tickets. Thread-safe."""

    def __init__(self, published: Published) -> None:
        self._published = published
        self._beginnings = Kept[_Beginning](_KEPT_BYTES, _LIFE_S, size_of=lambda beginning: beginning.memory)
        self._indexes = Kept[_Known](_KEPT_BYTES, _LIFE_S, size_of=lambda known: known.memory)

    def ticket(self, opened: Opened, wanted: Wanted) -> dict[str, Any]:
        """The value of `htsget` in the answer.

        Raises:
            Refusal: with `UNSUPPORTED_FORMAT` when the object is stored in another format, or in none that can be sliced; with
                `INVALID_RANGE` when regions cannot be served, for want of an index; 404 for an unknown reference.
        """
        beginning = self._beginning(opened.spec)
        header = beginning.header
        if wanted.format != header.format:
            raise Refusal(
                400, f"Object {opened.spec.object_id} is stored as {header.format}: ask for format={header.format}", code=UNSUPPORTED_FORMAT
            )
        if wanted.header_only:
            return self._ticket(opened.spec, header, [*_head(beginning), _inline(header.eof, "body")])
        if wanted.regions is None:
            return self._ticket(opened.spec, header, [_Block(range=ByteRange(0, opened.spec.size))])
        ranges = self._ranges(opened, beginning, wanted.regions)
        return self._ticket(opened.spec, header, _assembled(beginning, ranges))

    def _ticket(self, spec: ObjectSpec, header: Header, blocks: Iterable[_Block]) -> dict[str, Any]:
        signed = self._published.sign(spec).url
        return {"format": header.format, "urls": [url for block in blocks for url in block.urls(signed, spec.size)]}

    # What stands in the object

    def _beginning(self, spec: ObjectSpec) -> _Beginning:
        try:
            return self._beginnings.get(_version(spec), lambda: self._read_beginning(spec))
        except FormatError as error:
            raise Refusal(400, f"Object {spec.object_id} cannot be served by htsget: {error}", code=UNSUPPORTED_FORMAT) from None

    def _read_beginning(self, spec: ObjectSpec) -> _Beginning:
        read = self._reader(spec)
        header = read_header(_bounded(read, _MAX_HEADER_BYTES), spec.size, name=f"object {spec.object_id}")
        size = len(header.eof)
        has_eof = spec.size >= size and read(spec.size - size, size) == header.eof
        blocks = header_blocks(header) if len(header.start) < 8 * _INLINE_BYTES else None
        fits = blocks is not None and len(blocks) <= _INLINE_BYTES
        return _Beginning(header, blocks if fits else None, size if has_eof else 0)

    def _reader(self, spec: ObjectSpec) -> ReadRange:
        return lambda offset, size: self._published.repository.read(spec, ByteRange(offset, size)) if size > 0 else b""

    # Where the regions are

    def _ranges(self, opened: Opened, beginning: _Beginning, regions: Sequence[Region]) -> list[ByteRange]:
        """Whole blocks, or containers, with every record of the regions."""
        spec, index = opened.spec, self._index(opened, beginning)
        contigs = contigs_of(beginning.header, index)
        intervals = []
        for region in regions:
            if region.name != UNPLACED:
                tid = contigs.ids.get(region.name)
                if tid is None:
                    raise Refusal(404, f"Object {spec.object_id} has no reference {region.name[:80]!r}", code="not-found")
                intervals.append(Interval(tid, region.start, MAX_POSITION if region.end is None else region.end))
        try:
            chunks = [chunk for interval in _bridged(merged(intervals)) for chunk in _chunks(index, interval, contigs)]
            found = whole_blocks(index, chunks, size=spec.size, eof_size=beginning.eof_size)
        except (ConfigurationError, FormatError) as error:
            raise _unservable(spec, str(error)) from None
        if any(region.name == UNPLACED for region in regions):
            found.append(_without_place(beginning, index, spec.size))
        return fewer(_joined(found, _GAP_BYTES), _MAX_RANGES)

    def _index(self, opened: Opened, beginning: _Beginning) -> Index:
        """Raises a `Refusal` when there is none, or when it is another file's."""
        spec, header = opened.spec, beginning.header
        known = self._indexes.get(f"{_version(spec)} {header.format}", lambda: self._find_index(opened, header))
        return known.index

    def _find_index(self, opened: Opened, header: Header) -> _Known:
        for entity in self._candidates(opened, header):
            try:
                spec = self._published.describe(entity.object_id)
            except Refusal:  # registered, and never stored
                continue
            try:
                return self._read_index(opened.spec, header, spec, entity.file_name)
            except FormatError as error:
                _log.warning("The index of object %s cannot be used: %s", opened.spec.object_id, error)
                raise _unservable(opened.spec, str(error)) from None
        raise _unservable(opened.spec, "there is no index of it; without a region the whole of it can be had")

    def _candidates(self, opened: Opened, header: Header) -> list[Entity]:
        """Files of the same analysis that are called as indexes of this one are, the likeliest first."""
        metadata, entity = self._published.gate.metadata, opened.entity
        if metadata is None or entity is None:
            return []
        suffixes = _INDEXES[header.format]
        if header.contigs.are_long:
            suffixes = suffixes[::-1]
        return indexes_of(entity, list(metadata.entities(analysis_id=entity.analysis_id)), suffixes)

    def _read_index(self, data: ObjectSpec, header: Header, spec: ObjectSpec, name: str) -> _Known:
        if spec.size > _MAX_INDEX_BYTES:
            raise FormatError(f"{name} has {spec.size:,} bytes, too many for an index")
        content = self._reader(spec)(0, spec.size)
        index = read_index(content, name=name)
        check_index(header, index, data.size, name=name)
        place = probe(header, index, data.size)
        if place is not None:
            check_probe(header, index, self._reader(data)(place.offset, place.size), data.size, name=name)
        return _Known(index, len(content) * _INDEX_GROWTH)


# What a ticket is put together from


@dataclass(frozen=True)
class _Block:
    """One piece of the file that the ticket stands for: bytes of the object, or `data` in the ticket itself."""

    range: ByteRange | None = None
    data: bytes = b""
    kind: Class | None = None

    def urls(self, signed: str, size: int) -> Iterable[dict[str, Any]]:
        kind = {"class": self.kind} if self.kind is not None else {}
        if self.range is None:
            yield {"url": "data:;base64," + base64.b64encode(self.data).decode(), **kind}
        elif self.range == ByteRange(0, size) and size <= _MAX_BLOCK_BYTES:
            yield {"url": signed, **kind}
        else:
            for offset in range(self.range.offset, self.range.end, _MAX_BLOCK_BYTES):
                piece = ByteRange(offset, min(_MAX_BLOCK_BYTES, self.range.end - offset))
                yield {"url": signed, "headers": {"Range": piece.http}, **kind}


def _inline(data: bytes, kind: Class | None) -> _Block:
    return _Block(data=data, kind=kind)


def _head(beginning: _Beginning) -> list[_Block]:
    """The header and not a record: inline, or its blocks in the object and what it has of the block that it shares with records."""
    if beginning.blocks is not None:
        return [_inline(beginning.blocks, "header")]
    header = beginning.header
    found = [_Block(ByteRange(0, file_offset(header.end)), kind="header")]
    shared = in_block(header.end)
    return [*found, _inline(bgzf.compress(header.start[-shared:]), "header")] if shared else found


def _assembled(beginning: _Beginning, ranges: Sequence[ByteRange]) -> list[_Block]:
    """Header, blocks, end. Where the first records share a block with the header, it is sent as it stands, and nothing has a class."""
    header = beginning.header
    first = file_offset(header.end)
    if in_block(header.end) and ranges and ranges[0].offset <= first:
        whole = _joined([ByteRange(0, first), *ranges], 0) if first else list(ranges)
        return [*(_Block(wanted) for wanted in whole), _inline(header.eof, None)]
    clipped = [ByteRange(max(first, wanted.offset), wanted.end - max(first, wanted.offset)) for wanted in ranges if wanted.end > first]
    return [*_head(beginning), *(_Block(wanted, kind="body") for wanted in clipped), _inline(header.eof, "body")]


def _bridged(intervals: Iterable[Interval]) -> list[Interval]:
    """Merged intervals, and those one that are as near as the smallest bins are long: an index tells them hardly apart, at 25 us each."""
    found: list[Interval] = []
    for interval in intervals:
        if found and found[-1].tid == interval.tid and interval.start - found[-1].end <= _BIN_BASES:
            found[-1] = Interval(interval.tid, found[-1].start, interval.end)
        else:
            found.append(interval)
    return found


def _chunks(index: Index, interval: Interval, contigs: Contigs) -> list[Chunk]:
    """As `Index.chunks`, and none past the end of a contig, where an index need not reach."""
    try:
        return index.chunks(interval)
    except ConfigurationError:
        if interval.start < (contigs[interval.tid].length or MAX_POSITION):
            raise
        return []


def _without_place(beginning: _Beginning, index: Index, size: int) -> ByteRange:
    """From the block of the first read without a place to the end. A CRAI lists those; other indexes tell where the placed ones end."""
    end = size - beginning.eof_size
    nowhere = end << 16 if index.kind == "CRAI" else beginning.header.end
    start = min(end, file_offset(nowhere if index.last is None else index.last))
    return ByteRange(start, end - start)


def _joined(ranges: Iterable[ByteRange], gap: int) -> list[ByteRange]:
    """In order, and those one that overlap or are at most `gap` bytes apart. More than was asked for may come; never less."""
    found: list[ByteRange] = []
    for wanted in sorted(ranges, key=lambda wanted: wanted.offset):
        if wanted.size <= 0:
            continue
        if found and wanted.offset <= found[-1].end + gap:
            found[-1] = ByteRange(found[-1].offset, max(found[-1].end, wanted.end) - found[-1].offset)
        else:
            found.append(wanted)
    return found


def fewer(ranges: list[ByteRange], most: int) -> list[ByteRange]:
    """At most so many ranges, with everything in them: those with the smallest gaps between them become one. `ranges` is in order."""
    if len(ranges) <= most:
        return ranges
    gaps = sorted(after.offset - before.end for before, after in pairwise(ranges))
    return _joined(ranges, gaps[len(ranges) - most - 1])


def _bounded(read: ReadRange, max_bytes: int) -> Callable[[int, int], bytes]:
    def bounded(offset: int, size: int) -> bytes:
        if offset + size > max_bytes:
            raise FormatError(f"its header has more than {max_bytes >> 20} MiB")
        return read(offset, size)

    return bounded


def _unservable(spec: ObjectSpec, why: str) -> Refusal:
    return Refusal(400, f"Regions of object {spec.object_id} cannot be served: {why}", code=INVALID_RANGE)


def _version(spec: ObjectSpec) -> str:
    return f"{spec.object_id} {spec.etag} {spec.size}"
