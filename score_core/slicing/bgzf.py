"""BGZF: gzip in blocks that can be read one by one (SAM specification, section 4.1)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from score_core.errors import FormatError

EOF_MARKER: Final = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
MAX_BLOCK_BYTES: Final = 1 << 16  # of a block in the file, and of what is in it
_PAYLOAD_BYTES: Final = 0xFF00  # what htslib puts into a block, so that it fits even if it cannot be compressed
_FIXED: Final = struct.Struct("<4BI2BH")
_TRAILER: Final = struct.Struct("<2I")


class Block(NamedTuple):
    """One block: where it begins in the file, how many bytes it takes there, and what it holds."""

    offset: int
    size: int
    data: bytes


def begins_block(data: bytes) -> bool:
    """Whether a BGZF block begins here: at least 18 bytes are needed to tell."""
    return _block_size(data, 0) is not None


def blocks(data: bytes, *, offset: int = 0) -> Iterator[Block]:
    """The whole blocks of `data`, which begins at `offset` in its file; a block cut off at the end is left out.

    Raises:
        FormatError: what stands there is no block, or is damaged (its CRC is wrong).
    """
    at = 0
    while len(data) - at >= 18:
        size = _block_size(data, at)
        if size is None:
            raise FormatError(f"No BGZF block begins at byte {offset + at}: the file is damaged, or not compressed with bgzip")
        if at + size > len(data):
            return
        yield Block(offset + at, size, _inflated(data, at, size, offset + at))
        at += size


def _block_size(data: bytes, at: int) -> int | None:
    """The size that a block's header tells; None where no block begins."""
    if len(data) - at < 18:
        return None
    id1, id2, method, flags, _time, _extra, _system, extra_bytes = _FIXED.unpack_from(data, at)
    if (id1, id2, method, flags) != (31, 139, 8, 4) or len(data) - at < 12 + extra_bytes:
        return None
    place, end = at + 12, at + 12 + extra_bytes
    while place + 4 <= end:
        name, (length,) = data[place : place + 2], struct.unpack_from("<H", data, place + 2)
        if name == b"BC" and length == 2 and place + 6 <= end:
            size: int = struct.unpack_from("<H", data, place + 4)[0] + 1
            return size if size >= 12 + extra_bytes + _TRAILER.size else None
        place += 4 + length
    return None


def _inflated(data: bytes, at: int, size: int, offset: int) -> bytes:
    (extra_bytes,) = struct.unpack_from("<H", data, at + 10)
    body = data[at + 12 + extra_bytes : at + size - _TRAILER.size]
    checksum, length = _TRAILER.unpack_from(data, at + size - _TRAILER.size)
    try:
        content = zlib.decompressobj(-15).decompress(body, MAX_BLOCK_BYTES + 1)
    except zlib.error:
        content = None
    if content is None or len(content) != length or zlib.crc32(content) != checksum:
        raise FormatError(f"The BGZF block at byte {offset} is damaged: its bytes do not have the checksum that it names")
    return content


def compress(data: bytes, *, level: int = 6) -> bytes:
    """`data` as BGZF blocks, without the EOF marker."""
    pieces = []
    for start in range(0, len(data), _PAYLOAD_BYTES):
        content = data[start : start + _PAYLOAD_BYTES]
        packer = zlib.compressobj(level, zlib.DEFLATED, -15)
        body = packer.compress(content) + packer.flush()
        header = _FIXED.pack(31, 139, 8, 4, 0, 0, 255, 6) + struct.pack("<2sHH", b"BC", 2, 12 + 6 + len(body) + _TRAILER.size - 1)
        pieces.append(header + body + _TRAILER.pack(zlib.crc32(content), len(content)))
    return b"".join(pieces)
