"""Cutting the records of regions out of a file: what to fetch is planned, fetched a window ahead, read by htslib and written as it comes.

The only module that reads records, by pysam; it may be imported only where slices are made, for pysam is an extra.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import pysam

from score_core.errors import ConfigurationError, FormatError, NoSpaceError, ObjectNotFound, ScoreError
from score_core.model import ByteRange
from score_core.slicing import bgzf, cram
from score_core.slicing.base import Chunk, Contigs, Index, Interval, file_offset, in_block
from score_core.slicing.files import DataFile, Fetching
from score_core.slicing.formats import check_index, check_probe, contigs_of, header_blocks, probe, read_header
from score_core.slicing.index import read_index
from score_core.slicing.output import AlignmentWriter, OutputFormat, Place, VariantWriter, checked_format, is_indexable, writing
from score_core.slicing.plan import SlicePlan, Span, Window, plan_slice
from score_core.slicing.references import PassingContainers, References
from score_core.slicing.regions import Query, parse_regions, read_bed
from score_core.transfer.files import explained
from score_core.transfer.stop import Stop

WINDOW_BYTES: Final = 32 << 20
_AT_ONCE: Final = 1024  # records between two looks at `stop`
_STREAM_BYTES: Final = 4 << 20
_CRAM_HEAD_BYTES: Final = 64 << 10  # of a container, with its landmarks

_log = logging.getLogger(__name__)

pysam.set_verbosity(0)  # htslib talks to the terminal, with addresses and paths in what it says; what matters is said by our errors


class Wanted(NamedTuple):
    """Which records. `regions` as samtools takes them; `bed` is the path of a BED file, which wins over them.

    `contained`: only records that lie wholly within one of the merged regions. `skip_unknown`: contigs of the BED file that the data do not
    have are left out, rather than an error.
    """

    regions: tuple[str, ...] = ()
    bed: Path | None = None
    contained: bool = False
    header_only: bool = False
    skip_unknown: bool = False

    def command(self, *source: str) -> str:
        """The command line that takes these from `source`, such as `--object-id` and an id, as the header of a slice tells it."""
        what = ["--bed-query", str(self.bed)] if self.bed else ["--query", *self.regions] if self.regions else []
        flags = [*(["--contained"] if self.contained else []), *(["--header-only"] if self.header_only else [])]
        return shlex.join(["score", "view", *source, *what, *flags])


@dataclass(frozen=True, slots=True)
class Form:
    """How records are written. `format` by default text (SAM, VCF). `original_header`: the header as it is in the data.

    `command` is what the header says of how it came about. `index`: write an index, too. `reference`: the FASTA file of a CRAM.
    """

    format: str | None = None
    original_header: bool = False
    command: str | None = None
    index: bool = False
    reference: Path | None = None


class Slice(NamedTuple):
    """What came of it. `planned_bytes` are those of the data that regions needed, the header's not counted."""

    format: OutputFormat
    records: int
    planned_bytes: int
    skipped_contigs: tuple[str, ...] = ()


class Limits(NamedTuple):
    """`max_bytes`: fetch no more than that of the data. `window_bytes`: about so much is on disk, twice. `connections` share a window."""

    max_bytes: int | None = None
    window_bytes: int = WINDOW_BYTES
    connections: int = 8


class IndexFile(NamedTuple):
    """An index's bytes and name."""

    data: bytes
    name: str


IndexOf = Callable[[Contigs], IndexFile | None]
"""The index of a file with these contigs, None if there is none: which one may depend on their lengths."""


def cut(
    data: DataFile,
    index_file: IndexOf,
    wanted: Wanted,
    form: Form,
    place: Callable[[OutputFormat], Place],
    *,
    folder: Path,
    limits: Limits = Limits(),
    stop: Stop | None = None,
) -> Slice:
    """Writes the wanted records of `data` to the `place` for their format, each once, in the file's order.

    `index_file` is asked when an index is needed. `folder` is a private one for what is on its way.

    Raises:
        ConfigurationError: a region, format or option cannot be used with this file.
        ObjectNotFound: an index is needed, and there is none.
        FormatError: data or index are damaged, or do not belong together.
        NoSpaceError: what is on its way does not fit the disk.
    """
    return _Job(data, wanted, form, place, folder, limits, stop or Stop()).run(index_file)


class _Job:
    def __init__(
        self,
        data: DataFile,
        wanted: Wanted,
        form: Form,
        place: Callable[[OutputFormat], Place],
        folder: Path,
        limits: Limits,
        stop: Stop,
    ) -> None:
        self._data = data
        self._wanted = wanted
        self._form = form
        self._folder = folder
        self._limits = limits
        self._stop = stop
        self._have = 0
        self._header = read_header(self._read, data.size, name=data.name)
        self._format = checked_format(form.format, self._header)
        if form.index and not is_indexable(self._format):
            better = "vcf.gz or bcf" if self._header.is_variants else "bam or cram"
            raise ConfigurationError(f"There is no index of {self._format} output: write {better}, or leave the index out")
        self._place = place(self._format)
        self._records = 0
        self._index_name = ""
        self._contigs = self._header.contigs
        self._index_path = folder / "index"
        self._start = self._header.start
        self._references = References(form.reference, name=data.name)
        if self._header.format == "CRAM":
            self._data = data = data.to_patch(folder)
            self._start = cram.without_paths(self._header.start, self._header.major)
            data.patch(self._start, 0)
            self._have = len(self._start)

    def _read(self, offset: int, size: int) -> bytes:
        data = self._data.read(offset, size)
        self._have = max(self._have, offset + len(data))
        return data

    def run(self, index_file: IndexOf) -> Slice:
        if self._wanted.header_only:
            return self._take_header()
        if self._wanted.bed is None and "." in self._wanted.regions:
            return self._take_all()
        return self._take_regions(self._index(index_file))

    # Regions

    def _index(self, index_file: IndexOf) -> Index:
        found = index_file(self._header.contigs)
        if found is None:
            raise ObjectNotFound(
                f"{self._data.name} has no index, so no region of it can be found: store its index beside it, name one, "
                "or take all of it with --query ."
            )
        index = read_index(found.data, name=found.name)
        self._index_name = found.name
        check_index(self._header, index, self._data.size, name=found.name)
        with explained("write", self._index_path):
            self._index_path.write_bytes(found.data)
        return index

    def _take_regions(self, index: Index) -> Slice:
        contigs = self._contigs = contigs_of(self._header, index)
        query, skipped = self._query(contigs)
        plan = plan_slice(
            index,
            query.intervals,
            size=self._data.size,
            have=self._have,
            window_bytes=self._limits.window_bytes,
            pieces=self._limits.connections,
        )
        unplaced = self._unplaced(index) if query.unplaced else []
        planned = plan.size + sum(piece.size for piece in unplaced if isinstance(piece, ByteRange))
        self._check_room(planned)
        look = self._look(index, plan)
        self._data.announce(planned + sum(found.size for found in look), len(plan.ranges) + len(look))
        first = self._data.fetch([*(plan.windows[0].ranges if plan.windows else ()), *look])
        # A BAM is begun while the first bytes come, for that takes htslib 10 ms, asleep. A stream gets nothing before they are proven good
        writer: Writer | None = self._alignment_writer() if self._place.is_path and not self._header.is_variants else None
        first.wait()
        self._check_probe(index)
        if writer is None:
            with self._opened(self._data.path) as records:
                writer = self._writer(records)
        chosen = _Chosen(query.intervals, contigs, contained=self._wanted.contained, variants=self._header.is_variants)
        for window in self._windows(plan, index, contigs, first):
            # One each: htslib keeps 128 KiB of what it read, perhaps the emptiness from before this window's bytes came
            with self._opened(self._data.path, index=self._index_path) as records:
                for span in window.spans:
                    with self._reading(span):
                        found = chosen.of(records, span)
                    self._copy(writer, found, where=span)
        if query.unplaced:
            self._copy_unplaced(writer, unplaced)
        self._publish(writer)
        return Slice(self._format, self._records, planned, skipped)

    def _query(self, contigs: Contigs) -> tuple[Query, tuple[str, ...]]:
        if self._wanted.bed is not None:
            bed = read_bed(self._wanted.bed, contigs, skip_unknown=self._wanted.skip_unknown)
            return Query(bed.intervals), bed.skipped
        query = _parsed(self._wanted.regions, contigs)
        if query.unplaced and self._header.is_variants:
            raise ConfigurationError("The region * means unplaced reads, which a file of variants does not have")
        return query, ()

    def _check_room(self, planned: int) -> None:
        """Before the first byte of data: the guard that the user set, and the disk's."""
        most = self._limits.max_bytes
        if most is not None and planned > most:
            raise ConfigurationError(
                f"The slice needs {planned:,} bytes of {self._data.name}, and --max-bytes allows {most:,}: narrow the regions or raise it"
            )
        needed, free = min(planned, 2 * self._limits.window_bytes), shutil.disk_usage(self._folder).free
        if needed > free:
            raise NoSpaceError(f"{self._folder} has {free:,} bytes free, and {needed:,} are needed on the way: set TMPDIR to a larger disk")

    def _look(self, index: Index, plan: SlicePlan) -> list[ByteRange]:
        """The bytes that show whether the index is this file's, unless the first window has them anyway."""
        found = probe(self._header, index, self._data.size)
        first = plan.windows[0].ranges if plan.windows else ()
        if found is None or found.end <= self._have or any(known.offset <= found.offset and found.end <= known.end for known in first):
            return []
        return [found]

    def _check_probe(self, index: Index) -> None:
        look = probe(self._header, index, self._data.size)
        if look is not None:
            check_probe(self._header, index, self._data.peek(look.offset, look.size), self._data.size, name=self._index_name)

    def _windows(self, plan: SlicePlan, index: Index, contigs: Contigs, first: Fetching) -> Iterator[Window]:
        """Each window once its bytes are there, while the next one's are on their way."""
        ahead = first
        for number, window in enumerate(plan.windows, 1):
            ahead.wait()
            ahead = self._data.fetch(plan.windows[number].ranges if number < len(plan.windows) else ())
            if self._header.format == "CRAM":
                self._check_references(window, index, contigs)
            yield window
            self._data.drop(window.done)

    def _check_references(self, window: Window, index: Index, contigs: Contigs) -> None:
        """Raises unless the references that the containers of a window need are there: htslib would only say "truncated file"."""
        for span in window.spans:
            for container, data in self._containers(index.chunks(Interval(span.tid, span.start, span.end))):
                if cram.needs_reference(data, self._header.major):
                    self._references.require(contigs[span.tid], exactly=container.reference == cram.SEVERAL_REFERENCES)

    def _containers(self, chunks: Iterable[Chunk]) -> Iterator[tuple[cram.Container, bytes]]:
        for chunk in chunks:
            at, end = file_offset(chunk.begin), min(file_offset(chunk.end), self._data.size)
            while at < end:
                try:
                    container = cram.container_at(self._data.peek(at, _CRAM_HEAD_BYTES), 0, self._header.major)
                except (cram.TooShort, FormatError):
                    raise FormatError(f"{self._data.name} is damaged: there is no CRAM container at byte {at:,}") from None
                if at + container.size > self._data.size:
                    raise FormatError(f"{self._data.name} is damaged: its container at byte {at:,} goes beyond its end")
                yield container, self._data.peek(at, container.size)
                at += container.size

    # Unplaced reads, and whole files: read as a stream, which needs no room

    def _unplaced(self, index: Index) -> list[bytes | ByteRange]:
        """The pieces of a file of its own that holds the unplaced reads, and perhaps some placed ones before them."""
        size, eof = self._data.size, self._header.eof
        if self._header.format == "CRAM":
            at = file_offset(index.last) if index.last is not None else size - len(eof)
            return [self._start, ByteRange(at, size - at)]
        begin = index.last if index.last is not None else self._header.end
        at, skipped = file_offset(begin), in_block(begin)
        pieces: list[bytes | ByteRange] = [header_blocks(self._header)]
        if skipped:
            block = next(bgzf.blocks(self._read(at, bgzf.MAX_BLOCK_BYTES), offset=at))
            pieces.append(bgzf.compress(block.data[skipped:]))
            at += block.size
        return [*pieces, ByteRange(at, size - at)]

    def _copy_unplaced(self, writer: Writer, pieces: Sequence[bytes | ByteRange]) -> None:
        with self._piped(pieces) as records:
            self._copy(writer, (read for read in records if read.reference_id < 0), where="the unplaced reads")

    def _take_all(self) -> Slice:
        if self._wanted.contained:
            raise ConfigurationError("--contained asks for records within regions, and --query . names none")
        size, done = self._data.size, len(self._header.start) if self._header.format == "CRAM" else 0
        self._check_room(size)
        self._data.announce(size, -(-size // _STREAM_BYTES))
        pieces: list[bytes | ByteRange] = [*([self._start] if done else []), ByteRange(done, size - done)]
        with self._piped(pieces) as records:
            writer = self._writer(records)
            self._copy(writer, records, where="it")
        self._publish(writer)
        return Slice(self._format, self._records, size)

    @contextmanager
    def _piped(self, pieces: Sequence[bytes | ByteRange]) -> Iterator[Any]:
        """Pieces of the file as htslib reads them one after another, fetched a step ahead."""
        read_fd, write_fd = os.pipe()
        feeding = Fetching(lambda: self._feed(pieces, write_fd), self._stop)
        try:
            with os.fdopen(read_fd, "rb") as reading, self._opened(reading) as records:
                yield records
        except FormatError:
            feeding.wait()  # what kept the bytes from coming says more than htslib, which misses them
            raise
        feeding.wait()

    def _feed(self, pieces: Sequence[bytes | ByteRange], fd: int) -> None:
        tail = b""
        containers = PassingContainers(self._references, self._header.contigs, self._header.major)
        with os.fdopen(fd, "wb", buffering=0) as pipe, suppress(BrokenPipeError):
            for piece in pieces:
                for data in self._stepped(piece) if isinstance(piece, ByteRange) else (piece,):
                    if self._header.format == "CRAM" and isinstance(piece, ByteRange):
                        containers.take(data)
                    tail = (tail + data)[-len(self._header.eof) :]
                    view = memoryview(data)
                    while view:
                        self._stop.check()
                        view = view[pipe.write(view) :]
            if tail != self._header.eof:
                raise FormatError(f"{self._data.name} is cut off: it does not end as a {self._header.format} file ends; upload it again")

    def _stepped(self, whole: ByteRange) -> Iterator[bytes]:
        steps = [ByteRange(at, min(_STREAM_BYTES, whole.end - at)) for at in range(whole.offset, whole.end, _STREAM_BYTES)]
        few = max(1, min(self._limits.connections, self._limits.window_bytes // _STREAM_BYTES))
        windows = [steps[at : at + few] for at in range(0, len(steps), few)]
        ahead = self._data.fetch(windows[0] if windows else ())
        for number, window in enumerate(windows, 1):
            ahead.wait()
            ahead = self._data.fetch(windows[number] if number < len(windows) else ())
            for step in window:
                yield self._data.peek(step.offset, step.size)
                self._data.drop([step])

    # Reading and writing records

    def _open(self, where: Path | IO[bytes], *, index: Path | None = None) -> Any:
        """pysam's reader. One thread only: read-ahead that meets a hole never ends (htslib 1.16 and 1.24).

        The file's end is not looked at: it need not be there, and where it is read, its marker is asked for by us.
        """
        name = str(where) if isinstance(where, Path) else where
        options: dict[str, Any] = {"ignore_truncation": True, "threads": 1}
        if index is not None:
            options["index_filename"] = str(index)
        with self._reading("its header"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no marker at the end
            if self._header.is_variants:
                return self._declared(pysam.VariantFile(name, "r", **options))
            mode, fasta = ("rc", self._references.fasta) if self._header.format == "CRAM" else ("rb", None)
            return pysam.AlignmentFile(name, mode, check_sq=False, reference_filename=None if fasta is None else str(fasta), **options)

    @contextmanager
    def _opened(self, where: Path | IO[bytes], *, index: Path | None = None) -> Iterator[Any]:
        """The same, closed at the end, which is when htslib may tell that something was wrong before."""
        records = self._open(where, index=index)
        try:
            yield records
        except BaseException:
            with suppress(Exception):  # it complains again of what is on its way up already
                records.close()
            raise
        with self._reading("it to its end"):
            records.close()

    def _declared(self, records: pysam.VariantFile) -> pysam.VariantFile:
        """With the contigs that only the index knows: pysam finds those of the header alone."""
        for contig in self._contigs.contigs if self._header.format == "VCF" else ():
            if contig.name not in records.header.contigs:
                records.header.contigs.add(contig.name)
        return records

    @contextmanager
    def _reading(self, where: Span | str) -> Iterator[None]:
        try:
            yield
        except ScoreError:
            raise
        except Exception as error:  # noqa: BLE001  # pysam raises whatever comes to hand, TypeErrors included
            raise self._unreadable(where, error) from None

    def _unreadable(self, where: Span | str, error: Exception) -> FormatError:
        if isinstance(where, Span):
            contig = self._header.contigs[where.tid] if where.tid < len(self._header.contigs) else None
            if contig is not None and self._header.format == "CRAM":
                self._references.prove(contig)
            where = f"{contig.name if contig else 'a contig'}:{where.start + 1}-{where.end}"
        elif self._header.format == "CRAM":
            self._references.prove_used(self._header.contigs)
        _log.debug("htslib: %s", error)
        return FormatError(f"{self._data.name} is damaged: htslib cannot read {where}; nothing was written")

    def _writer(self, records: Any) -> Writer:
        if self._header.is_variants:
            return VariantWriter(self._header, self._format, self._place, like=records.header)
        return self._alignment_writer()

    def _alignment_writer(self) -> AlignmentWriter:
        form = self._form
        return AlignmentWriter(
            self._header, self._format, self._place, original=form.original_header, command=form.command, reference=form.reference
        )

    def _publish(self, writer: Writer) -> None:
        self._stop.check()
        self._data.check_unchanged()
        writer.finish(index=self._form.index)

    def _copy(self, writer: Writer, records: Iterable[Any], *, where: Span | str) -> None:
        remaining = iter(records)
        write, unseen = writer.write, writer.unseen_groups
        while True:
            self._stop.check()
            with self._reading(where):
                batch = list(islice(remaining, _AT_ONCE))
            if not batch:
                return
            with writing(self._place):
                for record in batch:
                    write(record)
            self._records += len(batch)
            if unseen:
                for record in batch:
                    if record.has_tag("RG"):
                        unseen.discard(record.get_tag("RG"))

    def _take_header(self) -> Slice:
        if self._header.is_variants:
            alone = self._folder / "header"
            with explained("write", alone):
                alone.write_bytes(header_blocks(self._header) + self._header.eof)
            with self._opened(alone) as records:
                VariantWriter(self._header, self._format, self._place, like=records.header).finish()
        else:
            form = self._form
            AlignmentWriter(
                self._header, self._format, self._place, original=form.original_header, command=form.command, reference=None, trim=False
            ).finish()
        return Slice(self._format, 0, 0)


Writer = AlignmentWriter | VariantWriter


def _parsed(regions: Sequence[str], contigs: Contigs) -> Query:
    """The regions; where they make no sense otherwise, commas separate them, as in the Java client (protocol section 17.2)."""
    try:
        return parse_regions(regions, contigs)
    except ConfigurationError:
        pieces = [piece for region in regions for piece in region.split(",")]
        if len(pieces) > len(regions):
            with suppress(ConfigurationError):
                return parse_regions(pieces, contigs)
        raise


class _Chosen:
    """The records of spans that overlap a query's intervals, or lie within them, each once: spans come in the order of the file."""

    def __init__(self, intervals: Sequence[Interval], contigs: Contigs, *, contained: bool, variants: bool) -> None:
        self._by_contig: dict[int, list[Interval]] = {}
        for interval in intervals:
            self._by_contig.setdefault(interval.tid, []).append(interval)
        self._contigs = contigs
        self._contained = contained
        self._start_of: Callable[[Any], int] = attrgetter("start" if variants else "reference_start")
        self._end_of = _variant_end if variants else _alignment_end
        self._before = Interval(-1, 0, 0)

    def of(self, file: Any, span: Span) -> Iterable[Any]:
        """The records of a span that no span before it had. Spans come in order."""
        records = file.fetch(self._contigs[span.tid].name, span.start, span.end)
        before, self._before = self._before, Interval(span.tid, span.start, span.end)
        seen = before.end if before.tid == span.tid else 0
        if not self._contained and len(span.intervals) == 1:  # what htslib gives is what is wanted
            return self._from(records, span.start, seen) if seen else records
        return self._picked(records, self._by_contig[span.tid], span, seen)

    def _from(self, records: Iterator[Any], begin: int, seen: int) -> Iterator[Any]:
        """Without those that reach over from an earlier span, which had them: they begin before this one does."""
        start_of = self._start_of
        for record in records:
            start = start_of(record)
            if start >= seen:
                yield record
            if start >= begin:
                break
        yield from records

    def _picked(self, records: Iterable[Any], intervals: list[Interval], span: Span, seen: int) -> Iterator[Any]:
        start_of, end_of, contained = self._start_of, self._end_of, self._contained
        at = bisect_right(intervals, span.start, key=lambda interval: interval.end)
        wanted = intervals[at]
        for record in records:  # a million of them a second come by here: most are told by their starts
            start = start_of(record)
            if start < seen:
                continue
            while wanted.end <= start:
                at += 1
                if at == len(intervals):
                    return
                wanted = intervals[at]
            if contained:
                if start >= wanted.start and end_of(record) <= wanted.end:
                    yield record
            elif start >= wanted.start or end_of(record) > wanted.start:
                yield record


def _alignment_end(read: Any) -> int:
    """Placed, but not mapped, is one base long (SAM specification, section 1.4)."""
    return int(read.reference_end or read.reference_start + 1)


def _variant_end(record: Any) -> int:
    return max(int(record.stop), int(record.start) + 1)


def reread(path: Path, *, reference: Path | None = None) -> int:
    """Reads a finished slice from its first to its last record; how many there are.

    Raises:
        FormatError: it is damaged or cut off, so that htslib cannot read it to its end.
    """
    is_variants = path.name.endswith((".vcf", ".vcf.gz", ".bcf"))
    if not is_variants:
        References(reference, name=path.name)
    try:
        if is_variants:
            with pysam.VariantFile(str(path)) as variants:
                return sum(1 for _ in variants)
        with pysam.AlignmentFile(str(path), check_sq=False, reference_filename=None if reference is None else str(reference)) as reads:
            return sum(1 for _ in reads.fetch(until_eof=True))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read to its end ({error})") from None
