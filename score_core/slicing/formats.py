"""What kind of file it is, its header, and whether an index belongs to it: all from the first bytes, without htslib."""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Final

from score_core.errors import FormatError
from score_core.model import ByteRange
from score_core.slicing import bgzf, cram
from score_core.slicing.base import Contig, Contigs, Format, Index, ReadRange, file_offset, in_block

HEAD_BYTES: Final = 64 << 10  # the first look: holds most headers, costs no more time than a smaller one
MAX_HEADER_BYTES: Final = 256 << 20  # uncompressed; a million contigs take 40 MB
_MORE_BYTES: Final = (256 << 10, 1 << 20, 4 << 20, 16 << 20)
_MAX_CONTIGS: Final = 1 << 22  # the most scattered assemblies have a million
_MAX_GAP: Final = 1 << 16  # numbers of contigs that a BCF may leave out
_MAX_DIGITS: Final = 18  # Python refuses to read thousands of them
_MIN_RECORD_BYTES: Final = 32  # of a BAM record, its own length not counted
_MAX_MARKERS: Final = 4  # end markers of a CRAM; some have two
_CONTAINER_PROBE_BYTES: Final = 4 << 10  # holds a container's header; one with more than 800 slices is not looked at
_SAM_FIELD: Final = re.compile(rb"\t([A-Z][A-Z0-9]):([^\t\n]*)")
_VCF_CONTIG: Final = re.compile(rb"^##contig=<(.*)>\s*$", re.MULTILINE)
_VCF_FIELD: Final = re.compile(rb"(?:^|,)([A-Za-z]+)=(\"(?:[^\"\\]|\\.)*\"|[^,]*)")


@dataclass(frozen=True)
class Header:
    """What stands before the first record. `start` is all of it as a file of its own begins: uncompressed, but for CRAM as it is stored.

    `end` is the virtual offset of the first record; `end_alias` the same place in its other spelling, where the header fills its last
    block: the end of that block. `major` is CRAM's version, 0 for other formats.
    """

    format: Format
    contigs: Contigs
    text: bytes = field(repr=False)
    start: bytes = field(repr=False)
    end: int
    end_alias: int
    major: int = 0

    @property
    def eof(self) -> bytes:
        """What a whole file ends with."""
        return cram.EOF_MARKERS[self.major] if self.format == "CRAM" else bgzf.EOF_MARKER

    @property
    def is_variants(self) -> bool:
        return self.format in ("VCF", "BCF")


def read_header(read: ReadRange, size: int, *, name: str = "the file") -> Header:
    """The header of a file of `size` bytes, by as few reads from its beginning as will do: one for most files.

    Raises:
        FormatError: it is not BAM, CRAM, or VCF or BCF compressed with bgzip; or it is damaged or cut off there.
    """
    data = read(0, min(size, HEAD_BYTES))
    try:
        if data[:4] == b"CRAM":
            return _cram_header(read, size, data)
        if not bgzf.begins_block(data):
            raise FormatError(_not_ours(data))
        return _bgzf_header(_Inflated(read, size, data))
    except FormatError as error:
        raise error.at(name) from None


def _not_ours(data: bytes) -> str:
    if data[:2] == b"\x1f\x8b":
        return "It is compressed with gzip: regions can be read only from bgzip files; compress it with bgzip and index it"
    if data[:1] == b"@" or data[:2] == b"##" or data[:3] == b"BCF" or data[:4] == b"BAM\1":
        return "It is not compressed: regions can be read only from BAM, CRAM, or VCF and BCF compressed with bgzip"
    return "It is not a BAM, CRAM, VCF or BCF file" if data else "It is empty"


def header_blocks(header: Header) -> bytes:
    """The bytes that a file of its own begins with to have this header and no record: BGZF blocks, or CRAM's beginning."""
    return header.start if header.format == "CRAM" else bgzf.compress(header.start)


def contigs_of(header: Header, index: Index | None) -> Contigs:
    """The contigs by the ids that the index knows them by.

    BAM, CRAM and BCF count them in their headers. The index of a VCF has names of its own, in the order of the file; those that only the
    header knows come after them, and have no records.
    """
    if index is None or index.names is None or header.format != "VCF":
        return header.contigs
    known = {contig.name: contig for contig in header.contigs.contigs}
    ours = [known.pop(name, Contig(name)) for name in index.names]
    return Contigs((*ours, *known.values()))


def check_index(header: Header, index: Index, size: int, *, name: str = "The index") -> None:
    """Raises `FormatError` unless the index can be one of the file with this header and `size`: before anything is believed of it.

    An index of another file, or of an older version of this one, would give other reads or, worse, none. All indexers note where the first
    record begins, which is where the header ends.
    """
    wanted = {"BAM": ("BAI", "CSI"), "CRAM": ("CRAI",), "VCF": ("TBI", "CSI"), "BCF": ("CSI",)}[header.format]
    if index.kind not in wanted:
        raise FormatError(f"{name} is a {index.kind}, which is no index of a {header.format} file: that is a {' or '.join(wanted)}")
    if index.names is None and index.references is not None and index.references > len(header.contigs):
        raise _foreign(name, f"it has {index.references} contigs, the file {len(header.contigs)}")
    if index.first is not None and index.first not in (header.end, header.end_alias):
        raise _foreign(name, "it says that the records begin at another place than they do")
    last = _last_place(header, index, size)
    if last is not None and last > size:
        raise _foreign(name, "it tells of places past the end of the file, or the file was cut off")


def probe(header: Header, index: Index, size: int) -> ByteRange | None:
    """Some bytes to look at, which `check_probe` takes: at the last place that the index names. None if there is no such place."""
    at = _last_place(header, index, size)
    if at is None or at >= size:
        return None
    return ByteRange(at, min(_CONTAINER_PROBE_BYTES if header.format == "CRAM" else bgzf.MAX_BLOCK_BYTES, size - at))


def check_probe(header: Header, index: Index, data: bytes, size: int, *, name: str = "The index") -> None:
    """Raises `FormatError` unless what stands where the index ends is what stands behind the last placed record of a file.

    The index of another file, or of an older version of this one, hardly ever ends at the end of this one's records, be it as long and
    have it the same header.
    """
    if header.format == "CRAM":
        _check_last_container(header, data, size, _last_container(index, size) or 0, name)
        return
    last = index.last or 0
    try:
        block = next(bgzf.blocks(data, offset=file_offset(last)), None)
    except FormatError:
        block = None
    if block is None:
        raise _foreign(name, "there is no block of the file where it says that the last one begins")
    rest = block.data[in_block(last) :]
    if len(block.data) < in_block(last):
        raise _foreign(name, "it tells of more than there is in the last block")
    if (header.format == "BAM" and not _is_unplaced(rest)) or (header.format != "BAM" and rest and rest[:1] not in b"#\r\n"):
        raise _foreign(name, "the file has more records than it knows of")


def _is_unplaced(rest: bytes) -> bool:
    """Whether a read without a place begins here, as far as the bytes tell (SAM specification, section 4.2)."""
    if len(rest) < 8:
        return True
    length, contig = struct.unpack_from("<ii", rest)
    return bool(length >= _MIN_RECORD_BYTES and contig == -1)


def _last_place(header: Header, index: Index, size: int) -> int | None:
    """The offset of the last block or container that the index names; None if it names none."""
    if header.format == "CRAM":
        return _last_container(index, size)
    return None if index.last is None else file_offset(index.last)


def _last_container(index: Index, size: int) -> int | None:
    """The last place that an index knows, by bisection; None if it knows none."""
    if index.block_after(-1) is None:
        return None
    low, high = -1, size  # something is known past `low`, nothing past `high`
    if index.block_after(high) is not None:
        return high + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if index.block_after(middle) is not None else (low, middle)
    return high


def _check_last_container(header: Header, data: bytes, size: int, at: int, name: str) -> None:
    try:
        end = at + cram.container_at(data, 0, header.major).size
    except cram.TooShort:
        return
    except FormatError:
        raise _foreign(name, "there is no container of the file where it says that the last one begins") from None
    markers, rest = divmod(size - end, len(header.eof))
    if rest or not 0 <= markers <= _MAX_MARKERS:
        raise _foreign(name, "the file has more records than it knows of, or was cut off")


def _foreign(name: str, why: str) -> FormatError:
    return FormatError(f"{name} does not belong to this version of the file: {why}; make a new index, and store it beside the file")


# CRAM


def _cram_header(read: ReadRange, size: int, data: bytes) -> Header:
    major = cram.version(data)
    while True:
        try:
            text, end = cram.header_text(data, major)
            break
        except cram.TooShort as short:
            if short.needed > size or short.needed > cram.MAX_HEADER_BYTES:
                raise FormatError("The CRAM header is cut off") from None
            data += read(len(data), min(size, max(short.needed, len(data) + _MORE_BYTES[0])) - len(data))
    return Header("CRAM", _sam_contigs(text), text, data[:end], end << 16, end << 16, major)


# BAM, VCF, BCF


class _Inflated:
    """The beginning of a BGZF file, uncompressed as far as somebody asked, and where each block of it begins."""

    def __init__(self, read: ReadRange, size: int, data: bytes) -> None:
        self._read = read
        self._size = size
        self._step = 0
        self._pending = data
        self._read_bytes = len(data)
        self._starts: list[tuple[int, int]] = []  # uncompressed and compressed offset of each block
        self._next_block = 0
        self._blocks = bgzf.blocks(data)
        self.content = bytearray()
        self.grow()

    def grow(self) -> bool:
        """Has one block more; False at the end of the file. Raises `FormatError` for a header beyond belief.

        A block at a time, for a few bytes may hold a lot: zeros shrink to a thousandth.
        """
        if len(self.content) > MAX_HEADER_BYTES:
            raise FormatError(f"Its header has more than {MAX_HEADER_BYTES >> 20} MiB, which is not believed")
        while (block := next(self._blocks, None)) is None:
            if not self._read_on():
                return False
        self._starts.append((len(self.content), block.offset))
        self.content += block.data
        self._next_block = block.offset + block.size
        return True

    def _read_on(self) -> bool:
        wanted = min(_MORE_BYTES[min(self._step, len(_MORE_BYTES) - 1)], self._size - self._read_bytes)
        more = self._read(self._read_bytes, wanted) if wanted > 0 else b""
        self._step += 1
        self._pending = self._pending[self._next_block - (self._read_bytes - len(self._pending)) :] + more
        self._read_bytes += len(more)
        self._blocks = bgzf.blocks(self._pending, offset=self._next_block)
        return bool(more)

    def need(self, count: int) -> None:
        """Has at least so many uncompressed bytes. Raises `FormatError` when the file ends before that."""
        if count > MAX_HEADER_BYTES:
            raise FormatError("Its header is damaged: a length in it makes no sense")
        while len(self.content) < count:
            if not self.grow():
                raise FormatError("It ends in the middle of its header")

    def places(self, end: int) -> tuple[int, int]:
        """The virtual offset of the uncompressed byte `end`, and its other spelling if that is the beginning of a block."""
        number = bisect_right(self._starts, (end, 1 << 62)) - 1
        start, offset = self._starts[-1]
        if end == len(self.content) > start:  # the block after the last; a file without records ends with an empty one, the EOF marker
            return self._next_block << 16, offset << 16 | end - start if end - start < bgzf.MAX_BLOCK_BYTES else self._next_block << 16
        start, offset = self._starts[number]
        if end > start or number == 0:
            return offset << 16 | end - start, offset << 16 | end - start
        while number > 0 and self._starts[number - 1][0] == end:  # an empty block: htslib begins at the first of those
            number -= 1
        before, offset_before = self._starts[number - 1]
        return offset << 16, offset_before << 16 | end - before if end - before < bgzf.MAX_BLOCK_BYTES else offset << 16


def _bgzf_header(data: _Inflated) -> Header:
    data.need(min(4, len(data.content) or 1))
    magic = bytes(data.content[:5])
    if magic[:4] == b"BAM\1":
        return _bam_header(data)
    if magic[:3] == b"BCF":
        return _bcf_header(data)
    if magic[:2] == b"##":
        return _vcf_header(data)
    raise FormatError("It is compressed with bgzip, but holds no BAM, VCF or BCF")


def _bam_header(data: _Inflated) -> Header:
    data.need(8)
    (text_bytes,) = struct.unpack_from("<I", data.content, 4)
    data.need(12 + text_bytes)
    text = bytes(data.content[8 : 8 + text_bytes]).rstrip(b"\0")
    (count,) = struct.unpack_from("<I", data.content, 8 + text_bytes)
    if count > _MAX_CONTIGS:
        raise FormatError("Its header is damaged: a length in it makes no sense")
    at, names = 12 + text_bytes, []
    for _ in range(count):
        data.need(at + 4)
        (name_bytes,) = struct.unpack_from("<I", data.content, at)
        data.need(at + 8 + name_bytes)
        (length,) = struct.unpack_from("<I", data.content, at + 4 + name_bytes)
        names.append((bytes(data.content[at + 4 : at + 3 + name_bytes]).decode("utf-8", "replace"), length))
        at += 8 + name_bytes
    digests = {contig.name: contig.md5 for contig in _sam_contigs(text).contigs}
    contigs = Contigs(tuple(Contig(name, length, digests.get(name)) for name, length in names))
    return Header("BAM", contigs, text, bytes(data.content[:at]), *data.places(at))


def _sam_contigs(text: bytes) -> Contigs:
    found = []
    for line in text.split(b"\n"):
        if line.startswith(b"@SQ\t"):
            tags = {tag[0]: tag[1].decode("utf-8", "replace").strip() for tag in _SAM_FIELD.findall(line)}
            length = tags.get(b"LN", "")
            found.append(Contig(tags.get(b"SN", ""), int(length) if _is_number(length) else None, tags.get(b"M5")))
    return Contigs(tuple(found))


def _bcf_header(data: _Inflated) -> Header:
    data.need(9)
    if data.content[:4] != b"BCF\2":
        raise FormatError("It is of BCF version 1, which is not supported; write it anew with bcftools view -Ob")
    (text_bytes,) = struct.unpack_from("<I", data.content, 5)
    data.need(9 + text_bytes)
    text = bytes(data.content[9 : 9 + text_bytes]).rstrip(b"\0")
    return Header("BCF", _vcf_contigs(text), text, bytes(data.content[: 9 + text_bytes]), *data.places(9 + text_bytes))


def _vcf_header(data: _Inflated) -> Header:
    at = looked_at = 0
    while True:
        line_end = data.content.find(b"\n", looked_at)
        if line_end < 0:
            looked_at = len(data.content)
            if not data.grow():
                raise FormatError("It ends in the middle of its header")
            continue
        if data.content[at : at + 1] != b"#":  # no column line: as far as htslib is concerned, that is no header
            raise FormatError("Its header has no line that begins with #CHROM")
        is_last = data.content.startswith(b"#CHROM", at)
        at = looked_at = line_end + 1
        if is_last:
            break
    text = bytes(data.content[:at])
    return Header("VCF", _vcf_contigs(text), text, text, *data.places(at))


def _vcf_contigs(text: bytes) -> Contigs:
    """In order of their `IDX`, where a BCF has such; of several lines of one name the first counts, as for htslib."""
    found: dict[int, Contig] = {}
    names: set[str] = set()
    for line in _VCF_CONTIG.findall(text):
        fields = {key: value.strip(b'"').decode("utf-8", "replace") for key, value in _VCF_FIELD.findall(line)}
        name = fields.get(b"ID")
        if name is None or name in names:
            continue
        names.add(name)
        length, place = fields.get(b"length", ""), fields.get(b"IDX", "")
        contig = Contig(name, int(length) if _is_number(length) else None)
        found[int(place) if _is_number(place) else len(found)] = contig
    if not found:
        return Contigs(())
    if max(found) >= len(found) + _MAX_GAP:
        raise FormatError("Its header is damaged: it numbers a contig far beyond the others")
    return Contigs(tuple(found.get(place, Contig(f"\0{place}")) for place in range(max(found) + 1)))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
