"""Headers, blocks and containers: read right when they are long, odd or cut off; refused by `FormatError` alone when they are damaged."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pysam
import pysam.samtools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from score_core.errors import FormatError
from score_core.slicing import bgzf, cram
from score_core.slicing.base import Contig
from score_core.slicing.formats import HEAD_BYTES, Header, contigs_of, read_header
from score_core.slicing.index import read_index
from score_core.slicing.objects import view_file
from score_core.slicing.view import Form, Wanted
from tests.slicing.made import Files, flipped

FILES = ["a.bam", "a.cram", "old.cram", "v.vcf.gz", "v.bcf"]
VCF_LINES = "##fileformat=VCFv4.2\n##contig=<ID=c1,length=9>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def header_of(data: bytes) -> Header:
    return read_header(lambda offset, size: data[offset : offset + size], len(data))


def bam(text: str, contigs: list[tuple[str, int]], *records: bytes, join: bool = False) -> bytes:
    """A BAM. Its records begin a block of their own unless they `join` the header's last one."""
    content = bytearray(b"BAM\1" + struct.pack("<I", len(text)) + text.encode() + struct.pack("<I", len(contigs)))
    for name, length in contigs:
        content += struct.pack("<I", len(name) + 1) + name.encode() + b"\0" + struct.pack("<I", length)
    if join:
        return bgzf.compress(bytes(content) + b"".join(records)) + bgzf.EOF_MARKER
    return bgzf.compress(bytes(content)) + bgzf.compress(b"".join(records)) + bgzf.EOF_MARKER


def bcf(text: str) -> bytes:
    return bgzf.compress(b"BCF\2\2" + struct.pack("<I", len(text) + 1) + text.encode() + b"\0") + bgzf.EOF_MARKER


# What is right


@pytest.mark.parametrize("name", FILES)
def test_index_begins_where_the_header_ends(files: Files, name: str) -> None:
    header = header_of(files[name].path.read_bytes())
    index = read_index(files[name].index.read_bytes(), name="x")
    assert index.first in {header.end, header.end_alias}
    assert [contig.name for contig in contigs_of(header, index).contigs][:2] == ["c1", "c2"]


def test_one_read_does_for_most_files(files: Files) -> None:
    for name in FILES:
        asked: list[int] = []
        data = files[name].path.read_bytes()

        def read(offset: int, size: int, data: bytes = data, asked: list[int] = asked) -> bytes:
            asked.append(size)
            return data[offset : offset + size]

        read_header(read, len(data))
        assert asked == [HEAD_BYTES]


def test_records_may_share_the_block_of_the_header() -> None:
    data = bam("@HD\tVN:1.6\n", [("c1", 9)], b"record", join=True)
    header = header_of(data)
    assert header.end == len(header.start)
    assert bgzf.blocks(data).__next__().data[header.end & 0xFFFF :] == b"record"


@pytest.mark.parametrize("size", [0xFF00, 0xFF00 - 1, 0xFF00 + 1, 2 * 0xFF00])
def test_header_that_fills_its_blocks_has_two_ends(size: int) -> None:
    text = "@CO\t" + "x" * (size - 12 - 5) + "\n"  # 12 bytes of lengths
    data = bam(text, [])
    header = header_of(data)
    blocks = list(bgzf.blocks(data))
    before = [block for block in blocks if block.data][-1]
    assert len(header.start) == size
    assert header.end in {(before.offset + before.size) << 16, before.offset << 16 | len(before.data)}
    assert header.end_alias in {header.end, before.offset << 16 | len(before.data)}


@pytest.mark.parametrize("count", [3_000, 20_000])
def test_long_headers_are_read_to_their_end(count: int) -> None:
    rng = random.Random(1)
    contigs = [(f"scaffold_{number}_{rng.randrange(1 << 60):x}", number + 1) for number in range(count)]
    text = "".join(f"@SQ\tSN:{name}\tLN:{length}\tM5:{rng.randrange(1 << 127):032x}\n" for name, length in contigs)
    data = bam(text, contigs, b"record")
    assert len(data) > HEAD_BYTES
    header = header_of(data)
    assert [(contig.name, contig.length) for contig in header.contigs.contigs] == contigs
    assert header.contigs[0].md5 is not None
    assert data[header.end >> 16 :] == bgzf.compress(b"record") + bgzf.EOF_MARKER


@pytest.mark.slow
def test_million_contigs_take_seconds_and_little_memory() -> None:
    contigs = [(f"c{number}", 1000) for number in range(1_000_000)]
    data = bam("", contigs, b"record")
    began = time.process_time()
    header = header_of(data)
    assert (len(header.contigs), header.contigs.ids["c999999"]) == (1_000_000, 999_999)
    assert time.process_time() - began < 15


def test_whole_file_with_a_long_header_comes_through(tmp_path: Path) -> None:
    """Its header is longer than a pipe is: htslib must let the one who fills the pipe go on."""
    rng = random.Random(1)
    contigs = [(f"scaffold_{number}_{rng.randrange(1 << 60):x}", 1000) for number in range(20_000)]
    for name in ("long.bam", "long.cram"):
        path = tmp_path / name
        header = pysam.AlignmentHeader.from_dict({"SQ": [{"SN": contig, "LN": length} for contig, length in contigs]})
        with pysam.AlignmentFile(
            str(path), "wb" if name.endswith("bam") else "wc", header=header, format_options=["no_ref=1"][: name == "long.cram"]
        ) as file:
            read = pysam.AlignedSegment(header)
            read.query_name, read.flag, read.query_sequence = "u1", 4, "ACGT"
            file.write(read)
        assert path.stat().st_size > 2 * HEAD_BYTES
        assert view_file(path, None, Wanted((".",)), Form("bam"), tmp_path / "out").records == 1
    path = tmp_path / "long.vcf.gz"
    lines = "".join(f"##contig=<ID={contig}>\n" for contig, _ in contigs)
    text = VCF_LINES.replace("##contig", lines + "##contig") + "c1\t1\t.\tA\tC\t.\t.\t.\n"
    path.write_bytes(bgzf.compress(text.encode()) + bgzf.EOF_MARKER)
    assert view_file(path, None, Wanted((".",)), Form("vcf"), tmp_path / "out").records == 1


def test_bcf_counts_a_contig_once() -> None:
    lines = "".join(f"##contig=<ID={name},length=9>\n" for name in ("a", "a", "b"))
    header = header_of(bcf(VCF_LINES.replace("##contig=<ID=c1,length=9>\n", lines)))
    assert header.contigs.ids == {"a": 0, "b": 1}


def test_bcf_numbers_contigs_as_it_says() -> None:
    lines = "##contig=<ID=a,IDX=2>\n##contig=<ID=b,length=7,IDX=0>\n"
    contigs = header_of(bcf(VCF_LINES.replace("##contig=<ID=c1,length=9>\n", lines))).contigs
    assert (contigs.ids["a"], contigs.ids["b"], len(contigs)) == (2, 0, 3)


def test_names_in_quotes_may_hold_commas() -> None:
    lines = '##contig=<ID=a,note="x,ID=b,length=3",length=5>\n'
    header = header_of(bgzf.compress(VCF_LINES.replace("##contig=<ID=c1,length=9>\n", lines).encode()))
    assert header.contigs.contigs == (Contig("a", 5),)


# What is cut off, damaged, or made to harm


@pytest.mark.parametrize("name", FILES)
def test_header_cut_off_anywhere_is_refused(files: Files, name: str) -> None:
    data = files[name].path.read_bytes()
    header = header_of(data)
    end = header.end >> 16 or next(bgzf.blocks(data)).size
    for size in {*range(min(end, 60)), *range(0, end, 37), end - 1}:
        with pytest.raises(FormatError):
            header_of(data[:size])


@pytest.mark.parametrize("name", FILES)
def test_damaged_header_is_right_or_refused(files: Files, name: str) -> None:
    data = files[name].path.read_bytes()[: 2 * HEAD_BYTES]
    whole = header_of(data)
    rng = random.Random(name)
    for _ in range(150):
        damaged = data
        for _ in range(rng.choice([1, 1, 3])):
            damaged = flipped(damaged, rng.randrange(3000))
        with suppress(FormatError):
            header_of(damaged)
    assert whole.contigs.ids["c2"] == 1


def only_format_errors(act: Callable[[], Any]) -> Any:
    with suppress(FormatError):
        return act()
    return None


@given(st.binary(max_size=300), st.sampled_from([b"", b"CRAM\3\0" + bytes(20), b"CRAM\2\1" + bytes(20), b"\x1f\x8b", b"BAM\1"]))
def test_any_bytes_are_refused_politely(tail: bytes, head: bytes) -> None:
    only_format_errors(lambda: header_of(head + tail))


@given(
    st.binary(max_size=200), st.sampled_from([b"BAM\1", b"BCF\2\2", b"BCF\1\1", b"##", b"", b"#CHROM", b"BAM\1\0\0\0\0\xff\xff\xff\xff"])
)
def test_any_content_of_blocks_is_refused_politely(tail: bytes, head: bytes) -> None:
    only_format_errors(lambda: header_of(bgzf.compress(head + tail) + bgzf.EOF_MARKER))


@given(st.binary(min_size=1, max_size=200), st.integers(0, 300), st.sampled_from([2, 3]))
def test_any_bytes_as_a_container_are_refused_politely(data: bytes, at: int, major: int) -> None:
    for act in (lambda: cram.container_at(data, min(at, len(data)), major), lambda: cram.header_text(bytes(26) + data, major)):
        with suppress(cram.TooShort):
            only_format_errors(act)
    only_format_errors(lambda: cram.needs_reference(data, major))


@settings(max_examples=60)
@given(st.data())
def test_damaged_container_is_refused_politely(files: Files, data: st.DataObject) -> None:
    for name, major in (("a.cram", 3), ("old.cram", 2)):
        content = files[name].path.read_bytes()
        at = header_of(content).end >> 16
        size = cram.container_at(content, at, major).size
        container = bytearray(content[at : at + size])
        for _ in range(3):
            container[data.draw(st.integers(0, 400))] = data.draw(st.integers(0, 255))
        with suppress(FormatError):
            cram.needs_reference(bytes(container), major)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 1 << 31, (1 << 31) - 1, 300 << 20])
@pytest.mark.parametrize("place", [4, 12])
def test_lengths_beyond_belief_are_refused_at_once(length: int, place: int) -> None:
    content = bytearray(b"BAM\1" + struct.pack("<I", 0) + struct.pack("<I", 2) + struct.pack("<I", 3) + b"c1\0" + bytes(200))
    content[place : place + 4] = struct.pack("<I", length)
    peak = measured(lambda: refused(bgzf.compress(bytes(content)) + bgzf.EOF_MARKER))
    assert peak < 10 << 20


def test_contigs_beyond_number_are_refused_at_once() -> None:
    content = b"BAM\1" + struct.pack("<II", 0, 0xFFFFFFFF) + bytes(1000)
    assert measured(lambda: refused(bgzf.compress(content) + bgzf.EOF_MARKER)) < 10 << 20
    lines = VCF_LINES.replace("length=9", "IDX=16777215")
    assert measured(lambda: refused(bcf(lines))) < 10 << 20


def test_few_bytes_that_unpack_to_many_are_not_unpacked() -> None:
    """A VCF of one endless line: 65,280 letters in a hundred bytes, a block after the other."""
    block = bgzf.compress(b"##" + b"x" * 0xFE00)
    data = block * 20_000  # 1.3 GB
    assert len(data) < 4 << 20
    assert measured(lambda: refused(data)) < 600 << 20
    small = bam("@HD\tVN:1.6\n", [("c1", 9)]) + bgzf.compress(bytes(0xFF00)) * 2_000
    assert measured(lambda: header_of(small)) < 2 << 20


def refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        header_of(data)


def measured(act: Callable[[], Any]) -> int:
    """How much memory it takes at most."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def block_of_cram(method: int, packed: bytes, raw_size: int) -> bytes:
    block = bytes([method, 0, 0]) + cram._itf8(len(packed)) + cram._itf8(raw_size) + packed
    return block + struct.pack("<I", zlib.crc32(block))


@pytest.mark.parametrize(("method", "pack"), [(1, gzip.compress), (2, bz2.compress), (3, lzma.compress)])
@pytest.mark.parametrize("claimed", [0, 1000])
def test_block_that_unpacks_to_more_than_it_says_is_refused(method: int, pack: Callable[[bytes], bytes], claimed: int) -> None:
    data = block_of_cram(method, pack(bytes(12 << 20)), claimed)

    def read() -> None:
        with pytest.raises(FormatError):
            cram._block(data, 0, 3)

    assert measured(read) < 10 << 20  # of which the dictionary of lzma takes 8


@pytest.mark.parametrize(("method", "pack"), [(0, bytes), (1, gzip.compress), (2, bz2.compress), (3, lzma.compress)])
def test_blocks_of_every_packing_are_read(method: int, pack: Callable[[bytes], bytes]) -> None:
    data = block_of_cram(method, pack(b"content"), 7)
    assert cram._block(data, 0, 3) == (b"content", len(data))


def test_block_of_unknown_packing_is_named() -> None:
    with pytest.raises(FormatError, match="method 9"):
        cram._block(block_of_cram(9, b"x", 1), 0, 3)


@given(st.integers(-(1 << 31), (1 << 31) - 1))
def test_numbers_of_cram_survive(value: int) -> None:
    if value >= 0:
        assert cram._Reader(cram._itf8(value), 0).itf8() == value


@pytest.mark.parametrize("major", [2, 3])
def test_zeros_are_no_reads_of_a_cram(major: int) -> None:
    """What was not fetched: in version 2 nothing but its size tells that it is no container."""
    with pytest.raises(FormatError):
        cram.needs_reference(bytes(1000), major)


# BGZF


@given(st.binary(max_size=200_000))
@settings(max_examples=20)
def test_blocks_hold_what_was_put_in(data: bytes) -> None:
    packed = bgzf.compress(data)
    found = list(bgzf.blocks(packed, offset=100))
    assert b"".join(block.data for block in found) == data
    assert all(one.offset + one.size == other.offset for one, other in pairwise(found))
    assert gzip.decompress(packed + bgzf.EOF_MARKER) == data


@pytest.mark.parametrize("size", range(0, 60, 7))
def test_block_cut_off_is_left_out(size: int) -> None:
    block = bgzf.compress(b"some content that is long enough")
    assert [found.data for found in bgzf.blocks(block + block[:size])] == [b"some content that is long enough"]


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 0), (1, 0), (2, 0), (3, 0), (10, 0), (10, 255), (12, 0), (14, 9), (16, 0), (17, 255)],
)
def test_block_with_a_wrong_field_is_none(at: int, value: int) -> None:
    block = bytearray(bgzf.compress(b"content"))
    block[at] = value
    found = only_format_errors(lambda: list(bgzf.blocks(bytes(block))))
    assert not found


def test_flip_anywhere_in_a_block_is_noticed() -> None:
    content = random.Random(1).randbytes(300)
    block = bgzf.compress(content)
    for at in range(18, len(block)):
        with suppress(FormatError):  # some bits of deflate mean nothing
            assert [found.data for found in bgzf.blocks(flipped(block, at))] == [content]


def test_other_extra_fields_are_no_matter() -> None:
    plain = bgzf.compress(b"content")
    extra = b"XY\3\0abc"
    size = len(plain) + len(extra)
    block = plain[:10] + struct.pack("<H", 6 + len(extra)) + extra + b"BC\2\0" + struct.pack("<H", size - 1) + plain[18:]
    assert [found.data for found in bgzf.blocks(block)] == [b"content"]


def test_block_that_unpacks_to_more_than_blocks_may_hold_is_refused() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packer.compress(bytes(10 << 20)) + packer.flush()
    head = struct.pack("<4BI2BH", 31, 139, 8, 4, 0, 0, 255, 6) + b"BC\2\0" + struct.pack("<H", 18 + len(body) + 8 - 1)
    block = head + body + struct.pack("<II", zlib.crc32(bytes(10 << 20)), 10 << 20)

    def read() -> None:
        with pytest.raises(FormatError):
            list(bgzf.blocks(block))

    assert measured(read) < 1 << 20
