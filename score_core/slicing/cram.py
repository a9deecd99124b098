"""As much of CRAM as slicing needs: where containers are, the header's text, and whether a container needs a reference (CRAM 3.1, 6-8)."""

from __future__ import annotations

import bz2
import lzma
import re
import struct
import zlib
from typing import Final, NamedTuple

from score_core.errors import FormatError

DEFINITION_BYTES: Final = 26
MAX_HEADER_BYTES: Final = 256 << 20
EOF_MARKERS: Final = {
    2: bytes.fromhex("0b000000ffffffff0fe0454f460000000001000001000606010001000100"),
    3: bytes.fromhex("0f000000ffffffff0fe0454f4600000000010005bdd94f0001000606010001000100ee63014b"),
}
_MAX_CONTAINER_BYTES: Final = 1 << 29  # writers make them of some megabytes
_MAX_SLICES: Final = 10_000  # in a container; writers make one, and then its header fits 64 KiB
SEVERAL_REFERENCES: Final = -2  # a container's reference id then
_EXTERNAL_REFERENCE: Final = -1
_RAW, _GZIP, _BZIP2, _LZMA = range(4)


class Container(NamedTuple):
    """A container's header. `head` bytes of header come before `length` bytes of blocks; `landmarks` are the slices' places in those."""

    head: int
    length: int
    reference: int
    landmarks: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.head + self.length


class TooShort(Exception):  # a signal between functions here, not a fault
    """More bytes are needed: at least `needed` from the beginning of the data."""

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


def version(data: bytes) -> int:
    """The major version that a file definition tells. Raises `FormatError` for what is no CRAM 2 or 3."""
    if data[:4] != b"CRAM" or len(data) < DEFINITION_BYTES:
        raise FormatError("The file does not begin as a CRAM file does")
    if data[4] not in EOF_MARKERS:
        raise FormatError(f"CRAM {data[4]}.{data[5]} is not supported: only versions 2 and 3 are; write it anew with samtools view -C")
    return data[4]


def container_at(data: bytes, offset: int, major: int) -> Container:
    """The header of the container at `offset` of `data`. Raises `TooShort`, or `FormatError` for what is none."""
    reader = _Reader(data, offset)
    length = reader.int32()
    reference = reader.itf8()
    reader.itf8()  # start
    reader.itf8()  # span
    reader.itf8()  # records
    if major == 2:
        reader.itf8()  # record counter
    else:
        reader.ltf8()
    reader.ltf8()  # bases
    reader.itf8()  # blocks
    count = reader.itf8()
    if not 0 <= length <= _MAX_CONTAINER_BYTES or not 0 <= count <= _MAX_SLICES:
        raise FormatError(f"No CRAM container begins at byte {offset}: the file is damaged")
    landmarks = tuple(reader.itf8() for _ in range(count))
    if major == 3:
        end = reader.at
        if reader.uint32() != zlib.crc32(data[offset:end]):
            raise FormatError(f"The CRAM container at byte {offset} is damaged: its header does not have the checksum that it names")
    return Container(reader.at - offset, length, reference, landmarks)


def header_text(data: bytes, major: int) -> tuple[bytes, int]:
    """The SAM header, and where its container ends. Raises `TooShort`, or `FormatError`."""
    container = container_at(data, DEFINITION_BYTES, major)
    end = DEFINITION_BYTES + container.size
    if container.size > MAX_HEADER_BYTES:
        raise FormatError(f"The CRAM header has more than {MAX_HEADER_BYTES >> 20} MiB, which is not believed")
    if len(data) < end:
        raise TooShort(end)
    block, _ = _block(data, DEFINITION_BYTES + container.head, major)
    (length,) = struct.unpack_from("<i", block.ljust(4, b"\0"))
    if not 0 <= length <= len(block) - 4:
        raise FormatError("The CRAM header is damaged: its text is longer than its block")
    return block[4 : 4 + length], end


def without_paths(start: bytes, major: int) -> bytes:
    """A CRAM's beginning, as long as it was, with a header that names no places of references (`UR`).

    htslib would open them, on the disk or over the network, wherever the author of the file points.

    Raises:
        FormatError: what is left does not fit, which no writer that packs headers gives rise to.
    """
    text, _ = header_text(start, major)
    shorter = re.sub(rb"(?m)^(@SQ\t.*)$", lambda line: re.sub(rb"\tUR:[^\t\n]*", b"", line[0]), text)
    if shorter == text:
        return start
    room = len(start) - DEFINITION_BYTES
    content = struct.pack("<i", len(shorter)) + shorter
    for method, packed in ((_RAW, content), (_GZIP, _gzipped(content))):
        block = _with_crc(bytes([method, 0]) + _itf8(0) + _itf8(len(packed)) + _itf8(len(content)) + packed, major)
        head = _container_head(room, major)
        if len(head) + len(block) <= room:
            return start[:DEFINITION_BYTES] + (head + block).ljust(room, b"\0")
    raise FormatError("The CRAM header cannot be rewritten without the places of references that it names")


def _container_head(size: int, major: int) -> bytes:
    """The header of a container of `size` bytes in all, header included, that holds one block and room."""
    rest = _itf8(0) * 6 + _itf8(1) + _itf8(1) + _itf8(0)
    crc_bytes = 4 if major == 3 else 0
    return _with_crc(struct.pack("<i", size - 4 - len(rest) - crc_bytes) + rest, major)


def _with_crc(data: bytes, major: int) -> bytes:
    return data + struct.pack("<I", zlib.crc32(data)) if major == 3 else data


def _gzipped(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(content) + packer.flush()


def _itf8(value: int) -> bytes:
    if value < 1 << 7:
        return bytes([value])
    if value < 1 << 14:
        return struct.pack(">H", value | 0x8000)
    if value < 1 << 21:
        return (value | 0xC00000).to_bytes(3, "big")
    if value < 1 << 28:
        return struct.pack(">I", value | 0xE0000000)
    return bytes([0xF0 | value >> 28, value >> 20 & 0xFF, value >> 12 & 0xFF, value >> 4 & 0xFF, value & 0x0F])


def needs_reference(data: bytes, major: int) -> bool:
    """Whether a container, whole in `data`, holds reads whose bases are told by an external reference only.

    Raises:
        FormatError: the container is damaged.
    """
    try:
        container = container_at(data, 0, major)
        compression, _ = _block(data, container.head, major)
        return _is_referenced(compression) and any(_is_external(_block(data, container.head + at, major)[0]) for at in container.landmarks)
    except TooShort:
        raise FormatError("A CRAM container is damaged: it ends in the middle") from None


def _is_referenced(compression: bytes) -> bool:
    """The preservation map's RR: true unless it says otherwise."""
    reader = _Reader(compression, 0)
    reader.itf8()  # the map's size in bytes
    for _ in range(reader.itf8()):
        key = reader.take(2)
        if key == b"RR":
            return reader.take(1) != b"\0"
        if key in (b"RN", b"AP", b"QO"):
            reader.take(1)
        elif key == b"SM":
            reader.take(5)
        elif key == b"TD":
            reader.take(reader.itf8())
        else:
            return True
    return True


def _is_external(slice_header: bytes) -> bool:
    """Whether a slice has mapped reads and no reference embedded. Multi-reference slices (-2) have none."""
    reader = _Reader(slice_header, 0)
    reference = reader.itf8()
    for _ in range(3):
        reader.itf8()  # start, span, records
    reader.ltf8()  # record counter
    reader.itf8()  # blocks
    for _ in range(reader.itf8()):
        reader.itf8()  # content ids
    embedded = reader.itf8()
    return reference != -1 and embedded == _EXTERNAL_REFERENCE


def _block(data: bytes, at: int, major: int) -> tuple[bytes, int]:
    """A block's content, and where the block ends. Raises `FormatError` for methods that headers do not use."""
    reader = _Reader(data, at)
    method = reader.take(1)[0]
    reader.take(1)  # content type
    reader.itf8()  # content id
    size, raw_size = reader.itf8(), reader.itf8()
    if size < 0 or not 0 <= raw_size <= MAX_HEADER_BYTES:
        raise FormatError("A CRAM block is damaged: its size makes no sense")
    content = reader.take(size)
    if major == 3:
        end = reader.at
        if reader.uint32() != zlib.crc32(data[at:end]):
            raise FormatError("A CRAM block is damaged: its bytes do not have the checksum that it names")
    return _unpacked(method, content, raw_size), reader.at


def _unpacked(method: int, content: bytes, raw_size: int) -> bytes:
    most = raw_size + 1  # for zlib, 0 would mean no limit
    try:
        if method == _GZIP:
            content = zlib.decompressobj(31).decompress(content, most)
        elif method == _BZIP2:
            content = bz2.BZ2Decompressor().decompress(content, most)
        elif method == _LZMA:
            content = lzma.LZMADecompressor(memlimit=MAX_HEADER_BYTES).decompress(content, most)
        elif method != _RAW:
            raise FormatError(f"A CRAM header is packed by method {method}, which is not supported here")
    except (zlib.error, OSError, lzma.LZMAError, ValueError, EOFError):
        raise FormatError("A CRAM block is damaged: it cannot be unpacked") from None
    if len(content) != raw_size:
        raise FormatError("A CRAM block is damaged: it does not hold what it says")
    return content


class _Reader:
    """Numbers as CRAM writes them (section 2.3), from one place on."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self.at = at

    def take(self, count: int) -> bytes:
        if count < 0 or self.at < 0:
            raise FormatError("A CRAM structure is damaged: it has a negative size or place")
        if self.at + count > len(self._data):
            raise TooShort(self.at + count)
        self.at += count
        return self._data[self.at - count : self.at]

    def int32(self) -> int:
        return int(struct.unpack("<i", self.take(4))[0])

    def uint32(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])

    def itf8(self) -> int:
        """A 32-bit number in one to five bytes; the first byte's leading ones say how many more follow."""
        first = self.take(1)[0]
        if first < 0x80:
            return first
        if first < 0xC0:
            return (first & 0x3F) << 8 | self.take(1)[0]
        if first < 0xE0:
            return (first & 0x1F) << 16 | int.from_bytes(self.take(2), "big")
        if first < 0xF0:
            return (first & 0x0F) << 24 | int.from_bytes(self.take(3), "big")
        rest = self.take(4)
        value = (first & 0x0F) << 28 | rest[0] << 20 | rest[1] << 12 | rest[2] << 4 | rest[3] & 0x0F
        return value - (1 << 32) if value >= 1 << 31 else value

    def ltf8(self) -> int:
        """A 64-bit number in one to nine bytes."""
        first = self.take(1)[0]
        more = 8 - (~first & 0xFF).bit_length() if first != 0xFF else 8
        rest = int.from_bytes(self.take(more), "big")
        value = rest if more >= 7 else (first & (0x7F >> more)) << 8 * more | rest
        return value - (1 << 64) if value >= 1 << 63 else value
