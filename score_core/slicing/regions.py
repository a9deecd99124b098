"""What users call a region, read against the contigs of a file: `chr1:1,000-2,000`, `{HLA-A*01:01}:5-`, or the rows of a BED file.

The grammar is samtools'. Which colon parts name and range is decided by the contigs, so that names with colons, as HLA's, find their
contig, and a text with two meanings is refused. Where samtools guesses (`chr1:0-100`, `chr1:`) or finds silently nothing (an unknown
contig, a start past its end), this is an error that says so.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Final, NamedTuple

from score_core.errors import ConfigurationError, LocalFileError
from score_core.slicing.base import Contig, Contigs, Interval

MAX_POSITION: Final = (1 << 31) - 1  # the largest that BAM, CRAM and BCF can hold
_RANGE: Final = re.compile(r"(?P<start>[0-9]*)(?P<dash>-?)(?P<end>[0-9]*)")
_MAX_LINE_BYTES: Final = 1 << 20  # a BED12 row with ten thousand exons has a tenth of that; what is longer is no BED file
_MAX_SHOWN: Final = 80  # letters of a text in a message
_MAX_COMPARED: Final = 20_000  # names: comparing letters of more takes too long for a hint
_TIDY_AT: Final = 1 << 16  # intervals out of order that are kept before they are merged
_MAX_DIGITS: Final = 18
_END: Final = (1 << 32) - 1
_NO_DATA: Final = (b"track", b"browser")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"  # Windows' editors write it


class Query(NamedTuple):
    """What was asked for: merged intervals; `unplaced`, the reads without a place; `everything`, all there is."""

    intervals: tuple[Interval, ...]
    unplaced: bool = False
    everything: bool = False


class Bed(NamedTuple):
    """The intervals of a BED file, merged, and the contigs that were skipped because the data do not have them, in order of appearance."""

    intervals: tuple[Interval, ...]
    skipped: tuple[str, ...]


def parse_regions(texts: Sequence[str], contigs: Contigs) -> Query:
    """What the regions of `texts` ask for, together: intervals merged and in the contigs' order, clipped to where contigs end.

    A region is `NAME`, `NAME:N` (from base N to the end), `NAME:N-`, `NAME:-M` or `NAME:N-M`, with `{NAME}` for a name that could be read
    otherwise; positions count from 1, both ends belong to the region, commas in numbers mean nothing. `*` asks for the reads without a
    place, `.` for everything.

    Raises:
        ConfigurationError: a text is no region, has two meanings, or is none of these contigs.
    """
    places = [text for text in texts if text not in {"*", "."}]
    return Query(merged(_region(text, contigs) for text in places), unplaced="*" in texts, everything="." in texts)


def merged(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """The same bases, each once: sorted, overlapping and abutting intervals made one, empty ones left out."""
    found: list[Interval] = []
    for tid, start, end in sorted(intervals):
        if start >= end:
            continue
        if found and found[-1].tid == tid and start <= found[-1].end:
            if end > found[-1].end:
                found[-1] = Interval(tid, found[-1].start, end)
        else:
            found.append(Interval(tid, start, end))
    return tuple(found)


def region_text(interval: Interval, contigs: Contigs) -> str:
    """The interval as a region, 1-based; in braces the name that would otherwise be read as another's."""
    name = contigs[interval.tid].name
    place = f"{interval.start + 1}-{interval.end}"
    return f"{{{name}}}:{place}" if f"{name}:{place}" in contigs.ids else f"{name}:{place}"


def _region(text: str, contigs: Contigs) -> Interval:
    if not text.strip():
        raise ConfigurationError("A region is empty; write it as NAME:START-END, as in chr1:1000-2000")
    if text.startswith("{"):
        return _braced(text, contigs)
    name, colon, place = text.rpartition(":")
    if text in contigs.ids:
        if colon and name in contigs.ids and _is_range(place):
            raise ConfigurationError(
                f"Region {_shown(text)} has two meanings: contigs of both names exist; write {{{text}}} for the whole contig, "
                f"or {{{name}}}:{place} for a part of {name}"
            )
        return _interval(text, text, None, contigs)
    if colon and (name in contigs.ids or _is_range(place)):
        return _interval(text, name, place, contigs)
    return _interval(text, text, None, contigs)


def _braced(text: str, contigs: Contigs) -> Interval:
    name, brace, rest = text[1:].partition("}")
    if not brace:
        raise ConfigurationError(f"Region {_shown(text)} has no closing brace; write {{NAME}} or {{NAME}}:START-END")
    if rest and not rest.startswith(":"):
        raise ConfigurationError(f"Region {_shown(text)} goes on after the brace; write {{NAME}} or {{NAME}}:START-END")
    return _interval(text, name, rest[1:] if rest else None, contigs)


def _interval(text: str, name: str, place: str | None, contigs: Contigs) -> Interval:
    """The interval of `place` (None: all) on the contig `name`."""
    tid = contigs.ids.get(name)
    if tid is None:
        raise ConfigurationError(f"Region {_shown(text)} is nowhere: {_unknown(name, contigs)}")
    length = _length(contigs[tid])
    if place is None:
        return Interval(tid, 0, length)
    start, end = _positions(text, place)
    if start > length:
        raise ConfigurationError(f"Region {_shown(text)} begins past the end of {name}, which has {length} bases")
    return Interval(tid, start - 1, min(end, length))


def _is_range(place: str) -> bool:
    """Whether what stands after a colon has the form of a range, be its numbers right or wrong."""
    found = _RANGE.fullmatch(place.replace(",", ""))
    return found is not None and bool(found["start"] or found["end"])


def _positions(text: str, place: str) -> tuple[int, int]:
    """Start and end, 1-based and inclusive; an end that is not told is beyond every contig's."""
    found = _RANGE.fullmatch(place.replace(",", ""))
    if found is None:
        raise ConfigurationError(
            f"Region {_shown(text)} has positions that are no numbers; write them as START-END, with the digits 0 to 9 and a plain hyphen"
        )
    if not found["start"] and not found["end"]:
        raise ConfigurationError(f"Region {_shown(text)} has no position after the colon; leave the colon out for the whole contig")
    start = _number(found["start"]) if found["start"] else 1
    end = _number(found["end"]) if found["end"] else MAX_POSITION
    if start == 0 or end == 0:
        raise ConfigurationError(f"Region {_shown(text)} has the position 0; positions count from 1")
    if end < start and found["end"]:
        raise ConfigurationError(f"Region {_shown(text)} ends before it begins")
    return start, end


def _number(digits: str) -> int:
    """The number, or a very large one: Python refuses to read thousands of digits."""
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) <= _MAX_DIGITS else 10**_MAX_DIGITS


def _length(contig: Contig) -> int:
    return min(contig.length or MAX_POSITION, MAX_POSITION)  # VCF headers say 0 or nothing where nobody knew


def _unknown(name: str, contigs: Contigs) -> str:
    if not len(contigs):
        return f"the data have no contigs at all, so no {_shown(name)}"
    near = _near(name, contigs)
    return f"the data have no contig {_shown(name)}" + (f"; there is {_shown(near)}" if near else "")


def _near(name: str, contigs: Contigs) -> str | None:
    """A contig that was perhaps meant: by the other fashion of naming, by case, or by letters (chr1 is no near name of chr2)."""
    bare = name[3:] if name[:3].lower() == "chr" else name
    bare = {"M": "MT", "MT": "M"}.get(bare, bare) if bare != name or bare in {"M", "MT"} else bare
    for other in (bare, f"chr{bare}", f"chr{name}", name.upper(), name.lower()):
        if other in contigs.ids:
            return other
    folded = name.casefold()
    alike = next((contig.name for contig in contigs.contigs if contig.name.casefold() == folded), None)
    if alike is not None or len(contigs) > _MAX_COMPARED or len(name) > _MAX_SHOWN:
        return alike
    return next((other for other in get_close_matches(name, contigs.ids, cutoff=0.75) if _digits(other) == _digits(name)), None)


def _digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def _shown(text: str) -> str:
    return f'"{text}"' if len(text) <= _MAX_SHOWN else f'"{text[:_MAX_SHOWN]}..."'


# BED


def read_bed(source: str | os.PathLike[str] | Iterable[str], contigs: Contigs, *, skip_unknown: bool = False) -> Bed:
    """The intervals of a BED file (plain, gzip or bgzip) or of its lines.

    Columns are name, start and end, apart by tabs or spaces; positions count from 0 and the end does not belong to the interval; further
    columns, comments, blank, `track` and `browser` lines mean nothing. An interval whose start is its end holds no base and is left out
    (samtools view -L takes the reads across that place, and fails on it with -M). Ends are clipped to where contigs
    end. With `skip_unknown`, rows of contigs that the data do not have are skipped.

    Takes a second or two for a million rows, and memory for the merged ones.

    Raises:
        ConfigurationError: a row is wrong (the message says where), or of no contig of the data.
        LocalFileError: the file cannot be read.
    """
    rows = _Rows(contigs, skip_unknown=skip_unknown)
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        with _opened(Path(name)) as file:
            rows.take(name, iter(partial(file.readline, _MAX_LINE_BYTES), b""))
    else:
        rows.take("BED", (line.encode(errors="surrogateescape") for line in source))
    return Bed(rows.merged(), tuple(rows.skipped))


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's content, unpacked. What goes wrong with the file itself is told in our errors."""
    try:
        with ExitStack() as stack:
            file: io.BufferedReader = stack.enter_context(path.open("rb"))
            if file.peek(2)[:2] != b"\x1f\x8b":
                yield file
            else:
                yield io.BufferedReader(stack.enter_context(gzip.GzipFile(fileobj=file)), 1 << 18)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigurationError(f"The BED file {path} is damaged or cut off: it cannot be unpacked") from error
    except OSError as error:
        raise LocalFileError(f"Cannot read the BED file {path}: {error.strerror or error}") from error


class _Rows:
    """What the rows so far add up to."""

    def __init__(self, contigs: Contigs, *, skip_unknown: bool) -> None:
        self._contigs = contigs
        self._skip_unknown = skip_unknown
        self._found: dict[bytes, _Found] = {}
        self.skipped: dict[str, None] = {}

    def merged(self) -> tuple[Interval, ...]:
        in_order = sorted(self._found.values(), key=lambda found: found.tid)
        return tuple(chain.from_iterable(found.merged() for found in in_order))

    def take(self, source: str, lines: Iterable[bytes]) -> None:
        for number, line in enumerate(lines, start=1):
            try:
                self._take_row(line if number > 1 else line.removeprefix(_BYTE_ORDER_MARK))
            except ConfigurationError as error:
                raise error.at(f"{source}, line {number}") from None

    def _take_row(self, line: bytes) -> None:
        row = line.split(None, 3)
        if not row or row[0].startswith(b"#") or row[0] in _NO_DATA:
            return
        if len(row) < 3 or not (row[1].isdigit() and row[2].isdigit()) or len(row[1]) > _MAX_DIGITS or len(row[2]) > _MAX_DIGITS:
            raise ConfigurationError(_wrong(row, line))
        found = self._found.get(row[0]) or self._new(row[0])
        if found is not None:
            found.add(int(row[1]), int(row[2]))

    def _new(self, contig: bytes) -> _Found | None:
        name = contig.decode(errors="backslashreplace")
        tid = self._contigs.ids.get(name)
        if tid is None:
            if not self._skip_unknown:
                raise ConfigurationError(_unknown(name, self._contigs))
            self.skipped[name] = None
            return None
        found = self._found[contig] = _Found(tid, _length(self._contigs[tid]))
        return found


class _Found:
    """The intervals of one contig. In order, as nearly all BED files have them, they are merged as they come."""

    def __init__(self, tid: int, length: int) -> None:
        self.tid = tid
        self._length = length
        self._kept = array("Q")  # start << 32 | end, for a million of them to take 8 MB and be sorted at once
        self._start = self._end = 0  # of the last one, still growing
        self._in_order = True
        self._tidy_at = _TIDY_AT

    def add(self, start: int, end: int) -> None:
        if start >= end or start >= self._length:
            self._check(start, end)
            return
        end = min(end, self._length)
        if self._start <= start <= self._end:
            self._end = max(self._end, end)
            return
        if start < self._start:
            self._in_order = False
        self._keep()
        self._start, self._end = start, end

    def _check(self, start: int, end: int) -> None:
        """Raises `ConfigurationError` unless an interval without bases of the contig is an empty one."""
        if start > end:
            raise ConfigurationError(f"The interval ends at {end}, before it begins at {start}")
        if start > self._length or start < end:
            raise ConfigurationError(f"The interval begins at {start}, past the contig's end at {self._length}; is it of another assembly?")

    def _keep(self) -> None:
        if self._end:
            self._kept.append(self._start << 32 | self._end)
        if not self._in_order and len(self._kept) >= self._tidy_at:
            self._tidy()
            self._tidy_at = max(_TIDY_AT, 2 * len(self._kept))

    def _tidy(self) -> None:
        tidy: list[int] = []
        last_end = -1
        for key in sorted(self._kept):
            end = key & _END
            if key >> 32 > last_end:
                tidy.append(key)
            elif end > last_end:
                tidy[-1] += end - last_end
            last_end = max(last_end, end)
        self._kept = array("Q", tidy)

    def merged(self) -> Iterator[Interval]:
        self._keep()
        if not self._in_order:
            self._tidy()
        return (Interval(self.tid, key >> 32, key & _END) for key in self._kept)


def _wrong(row: list[bytes], line: bytes) -> str:
    if len(line) >= _MAX_LINE_BYTES:
        return f"The line has more than {_MAX_LINE_BYTES >> 20} MiB; this is no BED file"
    if any(byte < 9 for byte in line[:1000]):
        return "The line is not text; this is no BED file"
    if len(row) < 3:
        return f"It has {len(row)} column{'s' if len(row) > 1 else ''}, and needs three: contig, start and end"
    wrong = next(column for column in row[1:3] if not column.isdigit() or len(column) > _MAX_DIGITS).decode(errors="backslashreplace")
    if wrong.startswith("-") and wrong[1:].isdigit():
        return f"The position {_shown(wrong)} is negative; positions count from 0"
    return f"{_shown(wrong)} is not a position; BED has whole numbers in its second and third column"
