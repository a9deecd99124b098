"""A made-up whole genome, sequenced: a coordinate-sorted BAM of any size, with its index, for slicing to be measured on.

What slicing costs depends on how many bytes a base of the genome takes and on how an index cuts the file, so what matters is true to life:
pairs of 150 bases at thirtyfold depth on two haplotypes, 41 % GC with repeats, qualities in NovaSeq's four sticky bins, Illumina's names,
the tags of `bwa mem`, about 50 bytes a read, records that never cross blocks of 65,280 bytes (as htslib writes them). There are duplicates,
clips, indels, secondary, supplementary and unmapped reads, and unplaced ones at the end. `MD` and `NM` agree with the reference, which is
not kept.

The records depend on the seed and the size only: the Mersenne Twister is the same in all Pythons. The file's bytes also depend on the zlib
that Python was built with (figures in docs/performance.md: 1.2.13). One gigabyte takes five minutes on a core and a half.

python -m bench.genome --size 1G big.bam
"""

from __future__ import annotations

import argparse
import hashlib
import struct
import sys
import zlib
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import BinaryIO, Final, Literal, NamedTuple, Self

_READ: Final = 150
_DEPTH: Final = 30
_BYTES_A_READ: Final = 50  # compressed, measured: what a size in bytes is turned into bases with
_SHARES: Final = {"chr1": 0.4, "chr2": 0.3, "chr3": 0.2, "chrX": 0.1}
_SMALL: Final = {"chrM": (16_569, 4), "chrUn_KI270302v1": (2_274, 1), "HLA-A*01:01:01:01": (3_503, 1), "chrEBV": (171_823, 0)}
_SNP_EVERY: Final = 900  # bases, on each haplotype
_FLOWCELL: Final = "A00684:261:HNJK2DRXY"
_LANES: Final = 4

_BASES: Final = b"ACGT"
_CODES: Final = bytes.maketrans(_BASES, bytes((1, 2, 4, 8)))  # SAM specification, 4.2.3: =ACMGRSVTWYHKDBN
_LETTERS: Final = bytes.maketrans(bytes((1, 2, 4, 8)), _BASES)
# Random bytes to bases: 104, 76, 76, 104 of 360 is 41 to 42 % GC; of 256: 75, 53, 53, 75.
_FROM_RANDOM: Final = b"A" * 75 + b"C" * 53 + b"G" * 53 + b"T" * 75
_OTHER: Final = {1: 4, 2: 8, 4: 1, 8: 2}  # a wrong base: transitions, the commonest

_FIXED: Final = struct.Struct("<iiiBBHHHiiii")
_PAIRED, _PROPER, _UNMAPPED, _MATE_UNMAPPED, _REVERSE, _MATE_REVERSE, _FIRST, _SECOND = (1 << bit for bit in range(8))
_SECONDARY, _DUPLICATE, _SUPPLEMENTARY = 256, 1024, 2048

_BLOCK_BYTES: Final = 0xFF00  # htslib's, of uncompressed data
_BLOCK_HEAD: Final = bytes.fromhex("1f8b08040000000000ff060042430200")
_END_OF_FILE: Final = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


class Contig(NamedTuple):
    """A reference sequence to make: its length in bases, and its depth as a multiple of the genome's."""

    name: str
    length: int
    depth: float


class _Haplotype(NamedTuple):
    packed: tuple[bytes, bytes]  # four bits a base, from the first and from the second base on: any even stretch is a slice of one of them
    snps: list[int]
    near: bytes  # for every 128 bases, whether a read that begins there may reach a SNP


class _Shape(NamedTuple):
    """How a read aligns: `M` runs are (offset in the read, offset on the reference, length), all even."""

    text: bytes
    operations: tuple[int, ...]
    runs: tuple[tuple[int, int, int], ...]
    on_reference: int
    inserted: int = 0


class _Quality(NamedTuple):
    values: bytes
    errors: tuple[int, ...]  # offsets in the read


class _Read(NamedTuple):
    """One mapped read before its mate is known."""

    position: int
    shape: _Shape
    bases: bytes
    quality: _Quality
    edits: int
    md: bytes


def make_genome(path: Path, size: int, *, seed: int = 1) -> None:
    """Writes a BAM of about `size` bytes (never under 1 MB, which the small contigs take) to `path`, and its BAI to `path`.bai."""
    import pysam

    contigs = contigs_of(size)
    beside = path.with_name(f"{path.name}.part")
    with beside.open("wb") as file, _BgzfWriter(file) as writer:
        references = [_reference(Random(f"{seed} {contig.name}"), contig.length) for contig in contigs]
        writer.write([_header(contigs, references)])
        qualities = _qualities(Random(f"{seed} qualities"), max(256, min(4_096, size >> 12)))
        made = 0
        for tid, contig in enumerate(contigs):
            sequencer = _Sequencer(Random(f"{seed} reads {contig.name}"), tid, contig, references[tid], qualities)
            for batch in sequencer.batches():
                made += len(batch)
                writer.write(batch)
        writer.write(_unplaced(Random(f"{seed} unplaced"), made // 200, qualities))
    beside.rename(path)
    pysam.index(str(path))


def contigs_of(size: int) -> list[Contig]:
    """The contigs of a file of about `size` bytes."""
    bases = size / _BYTES_A_READ * _READ / _DEPTH
    small = [Contig(name, length, depth) for name, (length, depth) in _SMALL.items()]
    left = max(bases - sum(contig.length * contig.depth for contig in small), 40_000)
    return [*(Contig(name, int(left * share), 1) for name, share in _SHARES.items()), *small]


def _header(contigs: list[Contig], references: list[bytes]) -> bytes:
    lines = ["@HD\tVN:1.6\tSO:coordinate"]
    for contig, reference in zip(contigs, references, strict=True):
        digest = hashlib.md5(reference, usedforsecurity=False).hexdigest()
        lines.append(f"@SQ\tSN:{contig.name}\tLN:{contig.length}\tM5:{digest}\tSP:Homo sapiens (made up)")
    lines += [
        f"@RG\tID:HNJK2.{lane}\tPL:ILLUMINA\tPU:HNJK2DRXY.{lane}\tLB:WGS-LIB-1\tSM:SAMPLE-1\tCN:BENCH\tDT:2024-03-05T00:00:00+0000"
        for lane in range(1, _LANES + 1)
    ]
    for lane in range(1, _LANES + 1):
        read_group = rf"@RG\tID:HNJK2.{lane}\tSM:SAMPLE-1"
        lines.append(f"@PG\tID:bwa.{lane}\tPN:bwa\tVN:0.7.17-r1188\tCL:bwa mem -Y -K 100000000 -R {read_group} ref.fa 1.fq.gz 2.fq.gz")
    lines += [
        "@PG\tID:samtools\tPN:samtools\tVN:1.16.1\tPP:bwa.4\tCL:samtools sort -@ 8 -o sorted.bam -",
        "@PG\tID:MarkDuplicates\tPN:MarkDuplicates\tVN:2.27.5\tPP:samtools\tCL:MarkDuplicates INPUT=sorted.bam OUTPUT=marked.bam",
        "@CO\tMade by bench.genome: nobody's reads",
    ]
    text = ("\n".join(lines) + "\n").encode()
    parts = [b"BAM\1", struct.pack("<i", len(text)), text, struct.pack("<i", len(contigs))]
    for contig in contigs:
        name = contig.name.encode() + b"\0"
        parts.append(struct.pack("<i", len(name)) + name + struct.pack("<i", contig.length))
    return b"".join(parts)


def _reference(random: Random, length: int) -> bytes:
    """Bases, 41 % GC, a third of them in copies of some families of repeats that have drifted apart by a tenth."""
    made = bytearray(random.randbytes(length).translate(_FROM_RANDOM))
    families = [random.randbytes(random.choice((300, 300, 320, 1_200, 6_000))).translate(_FROM_RANDOM) for _ in range(40)]
    at = random.randrange(2_000)
    while at < length:
        family = random.choice(families)
        begin = random.randrange(len(family) // 2)
        copy = bytearray(family[begin : begin + length - at])
        for _ in range(len(copy) // 10):
            copy[random.randrange(len(copy))] = _BASES[random.getrandbits(2)]
        made[at : at + len(copy)] = copy
        at += len(copy) + random.randrange(4_000)
    return bytes(made)


def _haplotypes(random: Random, codes: bytes) -> tuple[_Haplotype, _Haplotype]:
    """Two: some SNPs are on both, most on one."""
    places: tuple[set[int], set[int]] = (set(), set())
    for _ in range(len(codes) // _SNP_EVERY * 3 // 2):
        place, kind = random.randrange(len(codes)), random.randrange(3)
        for number in (0, 1):
            if kind in (number, 2):
                places[number].add(place)
    return _haplotype(codes, sorted(places[0])), _haplotype(codes, sorted(places[1]))


def _haplotype(codes: bytes, snps: list[int]) -> _Haplotype:
    bases, near = bytearray(codes), bytearray((len(codes) >> 7) + 1)
    for place in snps:
        bases[place] = _OTHER[bases[place]]
        for bucket in range(max(place - _READ - 8, 0) >> 7, (place >> 7) + 1):  # 8: deletions reach further
            near[bucket] = 1
    return _Haplotype((_pack(bytes(bases)), _pack(bytes(bases[1:]))), snps, bytes(near))


def _pack(codes: bytes) -> bytes:
    """Two bases a byte. As big integers, because nothing else in the standard library does bytes by the million at once."""
    high, low = codes[0::2], codes[1::2]
    low += bytes(len(high) - len(low))
    return ((int.from_bytes(high, "big") << 4) | int.from_bytes(low, "big")).to_bytes(len(high), "big")


def _shapes() -> list[_Shape]:
    """The first is a read that aligns from end to end."""
    made = [_Shape(b"%dM" % _READ, (_operation(_READ, "M"),), ((0, 0, _READ),), _READ)]
    for clip in range(4, 100, 6):
        kept = _READ - clip
        made.append(_Shape(b"%dS%dM" % (clip, kept), (_operation(clip, "S"), _operation(kept, "M")), ((clip, 0, kept),), kept))
        made.append(_Shape(b"%dM%dS" % (kept, clip), (_operation(kept, "M"), _operation(clip, "S")), ((0, 0, kept),), kept))
    for first in range(20, 132, 14):
        for length in (2, 4):
            rest = _READ - first
            runs = ((0, 0, first), (first, first + length, rest))
            operations = _operation(first, "M"), _operation(length, "D"), _operation(rest, "M")
            made.append(_Shape(b"%dM%dD%dM" % (first, length, rest), operations, runs, _READ + length))
            rest -= length
            runs = ((0, 0, first), (first + length, first, rest))
            operations = _operation(first, "M"), _operation(length, "I"), _operation(rest, "M")
            made.append(_Shape(b"%dM%dI%dM" % (first, length, rest), operations, runs, _READ - length, length))
    return made


def _operation(length: int, letter: Literal["M", "I", "D", "S", "H"]) -> int:
    return length << 4 | "MIDNSH".index(letter)


def _qualities(random: Random, count: int) -> list[_Quality]:
    """Four bins that stay as they are for long, worse towards the end; some of the bases of the low bins are wrong."""
    made = []
    for _ in range(count):
        values, errors, level = bytearray(), [], 37
        poor = random.random() ** 6 * 0.25
        for offset in range(_READ):
            if random.random() < 0.07 + poor + 0.03 * offset / _READ:
                level = random.choices((37, 23, 12, 2), (75, 12, 12, 1 + 40 * poor))[0]
            elif level < 37 and random.random() < 0.6:
                level = 37
            values.append(level)
            if random.random() < (0.0004 if level == 37 else 0.005 if level == 23 else 0.03):
                errors.append(offset)
        made.append(_Quality(bytes(values), tuple(errors)))
    return made


_SHAPES: Final = _shapes()
_WHOLE: Final = _SHAPES[0]


class _Sequencer:
    """The reads of one contig, in order."""

    _WINDOW: Final = 20_000

    def __init__(self, random: Random, tid: int, contig: Contig, reference: bytes, qualities: list[_Quality]) -> None:
        self._random = random
        self._tid = tid
        self._contig = contig
        self._codes = reference.translate(_CODES)
        self._haplotypes = _haplotypes(random, self._codes)
        self._qualities = qualities
        self._inserts = [max(_READ + 10, int(random.gauss(430, 90))) for _ in range(4_096)]
        self._foreign = random.randbytes(1 << 16).translate(_FROM_RANDOM).translate(_CODES)
        self._names = _Names(random)
        self._made = 0
        self._batch: list[tuple[int, int, bytes]] = []

    def batches(self) -> Iterator[list[bytes]]:
        """Records, some thousands at once, sorted over all."""
        for begin in range(0, self._contig.length, self._WINDOW):
            end = min(begin + self._WINDOW, self._contig.length)
            depth = _DEPTH * self._contig.depth * self._random.uniform(0.7, 1.3)
            last = self._contig.length - max(self._inserts) - 8  # 8: deletions
            for start in sorted(self._random.choices(range(begin, end), k=int(depth * (end - begin) / _READ / 2 / 1.08))):
                if start < last:
                    self._fragment(start)
            self._batch.sort()
            cut = len(self._batch) if end == self._contig.length else bisect_left(self._batch, (end,))
            yield [record for _, _, record in self._batch[:cut]]
            del self._batch[:cut]

    def _fragment(self, start: int) -> None:
        drawn = self._random.getrandbits(64)
        haplotype = self._haplotypes[drawn & 1]
        mate = start + self._inserts[drawn >> 1 & 0xFFF] - _READ
        shape = _WHOLE if drawn >> 13 & 0x1F else _SHAPES[(drawn >> 18 & 0xFF) % len(_SHAPES)]
        shape_2 = _WHOLE if drawn >> 26 & 0x1F else _SHAPES[(drawn >> 31 & 0xFF) % len(_SHAPES)]
        name, tail = self._names.next()
        left = self._read(haplotype, start, shape)
        if drawn >> 39 & 0xFF == 0:
            self._lone(left, name, tail)
            return
        right = self._read(haplotype, mate, shape_2)
        forward = _FIRST if drawn >> 47 & 1 else _SECOND
        mapq = 60 if drawn >> 48 & 0xF else drawn >> 52 & 0x3F
        self._pair(left, right, name, tail, forward, mapq, 0)
        if drawn >> 58 & 0xF == 0:  # a duplicate: the same molecule read twice, under another name and with qualities of its own
            name, tail = self._names.next()
            left, right = self._read(haplotype, start, shape), self._read(haplotype, mate, shape_2)
            self._pair(left, right, name, tail, forward, mapq, _DUPLICATE)
        if drawn >> 58 == 1:
            self._elsewhere(left, name, tail, forward)

    def _pair(self, left: _Read, right: _Read, name: bytes, tail: bytes, forward: int, mapq: int, more: int) -> None:
        length = right.position + right.shape.on_reference - left.position
        flag = _PAIRED | _PROPER | more
        backward = _FIRST + _SECOND - forward
        self._add(left, right, name, tail, flag | _MATE_REVERSE | forward, mapq, length)
        self._add(right, left, name, tail, flag | _REVERSE | backward, mapq, -length)

    def _read(self, haplotype: _Haplotype, position: int, shape: _Shape) -> _Read:
        random = self._random
        quality = self._qualities[random.getrandbits(12) % len(self._qualities)]
        if shape is _WHOLE:
            at = position >> 1
            bases = haplotype.packed[position & 1][at : at + _READ // 2]
            if not quality.errors and not haplotype.near[position >> 7]:
                return _Read(position, shape, bases, quality, 0, b"150")
        else:
            bases = self._aligned(haplotype, position, shape)
        return self._compared(haplotype, position, shape, bases, quality)

    def _aligned(self, haplotype: _Haplotype, position: int, shape: _Shape) -> bytes:
        """The bases of a read whose clips and insertions come from elsewhere."""
        made = bytearray(_READ // 2)
        foreign = self._random.randrange(len(self._foreign) - 2 * _READ)
        made[:] = _pack(self._foreign[foreign : foreign + _READ])
        for offset, on_reference, length in shape.runs:
            at = position + on_reference
            made[offset >> 1 : (offset + length) >> 1] = haplotype.packed[at & 1][at >> 1 : (at + length) >> 1]
        return bytes(made)

    def _compared(self, haplotype: _Haplotype, position: int, shape: _Shape, bases: bytes, quality: _Quality) -> _Read:
        """A read with its errors in it, and how it differs from the reference."""
        codes, snps = self._codes, haplotype.snps
        edited = bytearray(bases)
        text: list[bytes] = []
        matches = differing = deleted = 0
        reached = 0  # on the reference, from the position
        for offset, on_reference, length in shape.runs:
            if on_reference > reached:
                gone = codes[position + reached : position + on_reference].translate(_LETTERS)
                text.append(b"%d^%b" % (matches, gone))
                matches, deleted = 0, deleted + len(gone)
            begin = position + on_reference
            places = set(snps[bisect_left(snps, begin) : bisect_left(snps, begin + length)])
            wrong = {begin + error - offset for error in quality.errors if offset <= error < offset + length} - places
            done = begin
            for place in sorted(places | wrong):
                matches += place - done
                text.append(b"%d%c" % (matches, codes[place : place + 1].translate(_LETTERS)[0]))
                matches, done, differing = 0, place + 1, differing + 1
                if place in wrong:
                    _put(edited, offset + place - begin, _OTHER[codes[place]])
            matches += begin + length - done
            reached = on_reference + length
        text.append(b"%d" % matches)
        return _Read(position, shape, bytes(edited), quality, differing + deleted + shape.inserted, b"".join(text))

    def _add(self, read: _Read, mate: _Read, name: bytes, tail: bytes, flag: int, mapq: int, length: int) -> None:
        shape = read.shape
        cigar = struct.pack(f"<{len(shape.operations)}I", *shape.operations)
        score = max(0, shape.on_reference - 5 * read.edits)
        tags = b"NMC%cMDZ%b\0MCZ%b\0ASC%cXSC%c%b" % (read.edits, read.md, mate.shape.text, score, score >> 3 if mapq == 60 else score, tail)
        start = read.position
        size = 32 + len(name) + len(cigar) + _READ // 2 + _READ + len(tags)
        bin_number = 4681 + (start >> 14)
        if start >> 14 != (start + shape.on_reference - 1) >> 14:
            bin_number = _bin(start, start + shape.on_reference)
        fixed = _FIXED.pack(
            size, self._tid, start, len(name), mapq, bin_number, len(shape.operations), flag, _READ, self._tid, mate.position, length
        )
        self._put(start, b"".join((fixed, name, cigar, read.bases, read.quality.values, tags)))

    def _lone(self, read: _Read, name: bytes, tail: bytes) -> None:
        """A read whose mate did not align: that one is placed beside it."""
        self._add(read, read, name, tail, _PAIRED | _MATE_UNMAPPED | _FIRST, 37, 0)
        bases, values = _pack(self._foreign[:_READ]), self._random.choice(self._qualities).values
        tags = b"MCZ%b\0ASC\0XSC\0%b" % (read.shape.text, tail)
        place = (self._tid, read.position)
        self._put(read.position, _record(place, place, _PAIRED | _UNMAPPED | _SECOND, (), name, bases, values, tags))

    def _elsewhere(self, read: _Read, name: bytes, tail: bytes, which: int) -> None:
        """A supplementary alignment of a read's end, or a secondary one, which has no bases, some way on."""
        place = read.position + self._random.randrange(20_000)
        if place + _READ >= self._contig.length:
            return
        forward = b"%b,%d,+,%b,60,%d;" % (self._contig.name.encode(), read.position + 1, read.shape.text, read.edits)
        operations: tuple[int, ...]
        if self._random.getrandbits(1):
            flag, operations = _SUPPLEMENTARY, (_operation(90, "H"), _operation(60, "M"))
            bases = self._haplotypes[0].packed[place & 1][place >> 1 : (place >> 1) + 30]
            tags = b"ASC%cSAZ%b\0%b" % (60, forward, tail)
            values = read.quality.values[90:]
        else:
            flag, operations, bases, values = _SECONDARY, (_operation(_READ, "M"),), b"", b""
            tags = b"ASC%c%b" % (100, tail)
        flag |= _PAIRED | which
        self._put(place, _record((self._tid, place), (self._tid, read.position), flag, operations, name, bases, values, tags))

    def _put(self, position: int, record: bytes) -> None:
        self._made += 1
        self._batch.append((position, self._made, record))


class _Names:
    """Names of clusters on a flow cell, with the last tag of their reads: the lane is the read group."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._prefixes = [f"{_FLOWCELL}:{lane}:".encode() for lane in range(1, _LANES + 1)]
        self._tails = [f"RGZHNJK2.{lane}\0".encode() for lane in range(1, _LANES + 1)]

    def next(self) -> tuple[bytes, bytes]:
        drawn = self._random.getrandbits(40)
        lane = drawn & 3
        tile = 1101 + (drawn >> 2 & 1) * 1000 + (drawn >> 3 & 3) * 100 + (drawn >> 5 & 63)
        x, y = 1000 + (drawn >> 11 & 0x3FFF) * 2, 1000 + (drawn >> 25)
        return b"%b%d:%d:%d\0" % (self._prefixes[lane], tile, x, y), self._tails[lane]


def _unplaced(random: Random, count: int, qualities: list[_Quality]) -> Iterator[bytes]:
    """So many reads, in pairs, that align nowhere."""
    names = _Names(random)
    for _ in range(count // 2):
        name, tail = names.next()
        for flag in (_FIRST, _SECOND):
            bases = _pack(random.randbytes(_READ).translate(_FROM_RANDOM).translate(_CODES))
            flags = _PAIRED | _UNMAPPED | _MATE_UNMAPPED | flag
            yield _record((-1, -1), (-1, -1), flags, (), name, bases, random.choice(qualities).values, b"ASC\0XSC\0" + tail)


def _record(
    place: tuple[int, int],
    mate: tuple[int, int],
    flag: int,
    operations: tuple[int, ...],
    name: bytes,
    bases: bytes,
    values: bytes,
    tags: bytes,
) -> bytes:
    """A record, slowly. Places are contig and position."""
    tid, position = place
    on_reference = sum(operation >> 4 for operation in operations if operation & 15 == 0) or 1
    number = _bin(position, position + on_reference) if position >= 0 else 4680
    cigar = struct.pack(f"<{len(operations)}I", *operations)
    body = b"".join((name, cigar, bases, values, tags))
    fixed = _FIXED.pack(32 + len(body), tid, position, len(name), 0, number, len(operations), flag, len(values), *mate, 0)
    return fixed + body


def _bin(begin: int, end: int) -> int:
    """The smallest bin that holds it all (SAM specification, 5.3)."""
    end -= 1
    for shift, first in ((14, 4681), (17, 585), (20, 73), (23, 9), (26, 1)):
        if begin >> shift == end >> shift:
            return first + (begin >> shift)
    return 0


def _put(packed: bytearray, offset: int, code: int) -> None:
    at = offset >> 1
    packed[at] = packed[at] & 0xF0 | code if offset & 1 else packed[at] & 0x0F | code << 4


class _BgzfWriter:
    """Records into blocks, compressed by one thread beside the one that makes them. No record crosses blocks, as with htslib."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="bgzf")
        self._waiting: deque[Future[bytes]] = deque()
        self._block: list[bytes] = []
        self._size = 0

    def write(self, records: Iterable[bytes]) -> None:
        block, size = self._block, self._size
        for record in records:
            if size + len(record) > _BLOCK_BYTES and block:
                self._flush(block)
                block, size = [], 0
            block.append(record)
            size += len(record)
        self._block, self._size = block, size

    def _flush(self, records: list[bytes]) -> None:
        self._waiting.append(self._pool.submit(_block, b"".join(records)))
        if len(self._waiting) > 64:
            self._file.write(self._waiting.popleft().result())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            self._flush(self._block)
            for future in self._waiting:
                self._file.write(future.result())
            self._file.write(_END_OF_FILE)
        self._pool.shutdown(cancel_futures=True)


def _block(data: bytes) -> bytes:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = compressor.compress(data) + compressor.flush()
    size = len(_BLOCK_HEAD) + 2 + len(body) + 8 - 1
    return b"".join((_BLOCK_HEAD, struct.pack("<H", size), body, struct.pack("<II", zlib.crc32(data), len(data))))


def size_in_bytes(text: str) -> int:
    """`20M`, `1G`: powers of 1,024."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(float(text[:-1]) * units[text[-1].upper()]) if text[-1].upper() in units else int(text)


def main() -> int:
    told = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench.genome", description=__doc__, formatter_class=told)
    parser.add_argument("path", type=Path)
    parser.add_argument("--size", type=size_in_bytes, default=1 << 30, help="about so many bytes; default 1G")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    make_genome(given.path, given.size, seed=given.seed)
    print(f"{given.path}: {given.path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
