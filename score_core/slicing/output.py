"""Where a slice goes: headers, and writers that let nothing appear under its name before it is whole."""

from __future__ import annotations

import errno
import os
import re
import secrets
import select
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, Literal, Self

import pysam
import pysam.bcftools
import pysam.utils

from score_core import __version__
from score_core.errors import ConfigurationError, FormatError, LocalFileError, NoSpaceError
from score_core.metadata.base import REGION_INDEX_SUFFIXES
from score_core.slicing import bgzf, cram
from score_core.slicing.base import Contigs, file_offset
from score_core.slicing.formats import Header, read_header
from score_core.transfer.files import explained

OutputFormat = Literal["sam", "bam", "cram", "vcf", "vcf.gz", "bcf"]
ALIGNMENTS: Final = ("sam", "bam", "cram")
VARIANTS: Final = ("vcf", "vcf.gz", "bcf")
_MODES: Final = {"sam": "w", "bam": "wb", "cram": "wc"}
_CRAM_VERSION: Final = b"version=3.0"  # what every reader of the last ten years reads
_BAM_LEVEL: Final = b"level=4"  # half the time of zlib's usual 6, and 8 % more bytes
_MAX_NAME: Final = 128  # the Java client's (protocol section 17.2)
_COPY_BYTES: Final = 1 << 20
_THREADS: Final = 2  # compress beside the thread that reads; more gain nothing, for that one cannot keep up
_WRITE_ERRORS: Final = frozenset({errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENXIO})
_ID: Final = re.compile(r"\tID:([^\t]*)")


def checked_format(wanted: str | None, header: Header) -> OutputFormat:
    """The output format, by default text. Raises `ConfigurationError` for one that the data cannot be written in."""
    choices = VARIANTS if header.is_variants else ALIGNMENTS
    folded = choices[0] if wanted is None else wanted.strip().lower()
    if folded not in choices:
        what = "variants" if header.is_variants else "alignments"
        raise ConfigurationError(f"A {header.format} file holds {what}: they can be written as {', '.join(choices)}, not as {wanted!r:.40}")
    return folded  # type: ignore[return-value]


def output_name(name: str, what: str, extension: str) -> str:
    """The file name of a slice, as the Java client gives it (protocol section 17.2).

    `what` is the regions joined by `__`, the BED file's name, or `header`. A name of over 128 characters is cut to 127 and `~`, so slices
    by many regions may get the same name.
    """
    stem = re.sub(r"(?i)\.(?:bam|cram|sam|bcf|vcf(?:\.b?gz)?)$", "", name)
    safe = re.sub(r"[/\\\0\x00-\x1f\x7f]", "_", what.replace(":", "_"))
    whole = f"{stem}.{safe}.{extension}"
    if len(whole.encode()) <= _MAX_NAME:
        return whole
    room = _MAX_NAME - 1
    return whole.encode()[:room].decode(errors="ignore") + f"~.{extension}"


# Headers


def sam_header(header: Header, *, command: str | None, read_groups: frozenset[str] | None = None) -> str:
    """The header of a slice of alignments: contigs, programs and one more for this, read groups (all, or those of `read_groups`).

    Comments and what else a header may have are left out, as the Java client does; the order of the reads is by coordinate.
    """
    lines = _sam_lines(header)
    first = next((line for line in lines if line.startswith("@HD\t")), "")
    version = re.search(r"\tVN:([^\t]*)", first)
    programs = [line for line in lines if line.startswith("@PG\t")]
    groups = [line for line in lines if line.startswith("@RG\t") and (read_groups is None or _id_of(line) in read_groups)]
    kept = [f"@HD\tVN:{version[1] if version else '1.6'}\tSO:coordinate", *_contig_lines(lines, header.contigs), *groups, *programs]
    return "\n".join([*kept, _own_program(programs, command)]) + "\n"


def original_sam_header(header: Header) -> str:
    """The header as it is in the file; with the contigs, if it is a BAM that names them only in its binary list."""
    lines = _sam_lines(header)
    missing = [] if any(line.startswith("@SQ\t") for line in lines) else _contig_lines(lines, header.contigs)
    return "".join(line + "\n" for line in [*lines, *missing])


def read_groups_of(header: Header) -> frozenset[str]:
    """The ids of the read groups that a SAM header names."""
    return frozenset(_id_of(line) for line in _sam_lines(header) if line.startswith("@RG\t"))


def _sam_lines(header: Header) -> list[str]:
    return [line for line in header.text.decode("utf-8", "replace").split("\n") if line]


def _contig_lines(lines: Iterable[str], contigs: Contigs) -> list[str]:
    found = [line for line in lines if line.startswith("@SQ\t")]
    return found or [f"@SQ\tSN:{contig.name}\tLN:{contig.length}" for contig in contigs.contigs]


def _id_of(line: str) -> str:
    found = _ID.search(line)
    return found[1] if found else ""


def _own_program(programs: list[str], command: str | None) -> str:
    taken = [_id_of(line) for line in programs]
    name = next(name for name in ("score", *(f"score.{number}" for number in range(1, len(taken) + 2))) if name not in taken)
    before = f"\tPP:{taken[-1]}" if taken else ""
    said = f"\tCL:{command}" if command else ""
    return f"@PG\tID:{name}\tPN:score{before}\tVN:{__version__}" + said.replace("\n", " ")


# Writers


class Place:
    """Where a slice goes: a path, at which it appears whole or not at all, or an open stream. In a `with`: what was not published goes.

    `folder` is a private one for what is on its way to a stream.
    """

    def __init__(self, target: Path | IO[bytes], folder: Path) -> None:
        self._target = target
        self._scratch: list[Path] = []
        self._opened: list[IO[bytes] | pysam.AlignmentFile] = []
        self._folder = folder
        if isinstance(target, Path):
            self._folder = target.parent
            with explained("make the folder", target.parent):
                target.parent.mkdir(parents=True, exist_ok=True)

    @property
    def label(self) -> str:
        return str(self._target) if isinstance(self._target, Path) else "-"

    @property
    def is_path(self) -> bool:
        """Whether nothing shows before all is there."""
        return isinstance(self._target, Path)

    def scratch(self) -> Path:
        """The path of a new file, on the file system where it will be published."""
        self._scratch.append(self._folder / f".score-{secrets.token_hex(6)}.part")
        return self._scratch[-1]

    def opened(self, path: Path) -> IO[bytes]:
        """The file at a path, new, and closed with the place at the latest."""
        file = path.open("wb")
        self._opened.append(file)
        return file

    def closes(self, file: pysam.AlignmentFile) -> pysam.AlignmentFile:
        """This file, closed with the place at the latest: left to itself, htslib would tell the terminal that it could not be."""
        self._opened.append(file)
        return file

    def stream(self) -> IO[bytes] | None:
        """The stream as a file with a descriptor of its own, to be written to directly; None for a path."""
        if isinstance(self._target, Path):
            return None
        try:
            self._target.flush()
            file = os.fdopen(os.dup(self._target.fileno()), "wb")
            self._opened.append(file)
            return file
        except OSError:  # one in memory
            return None

    def stream_is_gone(self) -> bool:
        """Whether nobody reads the stream any more."""
        if isinstance(self._target, Path):
            return False
        look = select.poll()
        try:
            look.register(self._target.fileno(), 0)
        except OSError:
            return False
        return bool(look.poll(0))

    def publish(self, path: Path) -> None:
        """Gives a finished file its name, or copies it to the stream. Indexes of an earlier file of that name go: they are not its."""
        if not isinstance(self._target, Path):
            # Buffered by us: Python's own stdout takes a part and says how much, when it is told to be unbuffered (PYTHONUNBUFFERED)
            stream = self.stream() or self._target
            with writing(self), path.open("rb") as file:
                shutil.copyfileobj(file, stream, _COPY_BYTES)
                stream.flush()
            return
        for suffix in REGION_INDEX_SUFFIXES:
            with explained("remove", stale := self._target.with_name(self._target.name + suffix)):
                stale.unlink(missing_ok=True)
        _rename(path, self._target)

    def publish_beside(self, path: Path, suffix: str) -> None:
        """Gives a finished file the target's name and `suffix`; does nothing for a stream."""
        if isinstance(self._target, Path):
            _rename(path, self._target.with_name(self._target.name + suffix))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for file in reversed(self._opened):
            with suppress(OSError):
                file.close()
        for path in self._scratch:
            for left in (path, *path.parent.glob(f"{path.name}.*")):
                with suppress(OSError):
                    left.unlink()


def _rename(path: Path, target: Path) -> None:
    with explained("write", target):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.replace(target)


@contextmanager
def writing(place: Place) -> Iterator[None]:
    """Turns what htslib says when it cannot write into one sentence; a stream that nobody reads raises `BrokenPipeError`."""
    try:
        yield
    except (BrokenPipeError, LocalFileError):
        raise
    except (OSError, pysam.utils.SamtoolsError) as error:  # the latter is of what makes indexes
        if place.stream_is_gone():
            raise BrokenPipeError from None
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(f"No space left to write {place.label}: free some space and run the same command again") from error
        raise LocalFileError(f"Cannot write {place.label}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """htslib often tells the number of something that went wrong before, so only what can stop a write is believed."""
    number = getattr(error, "errno", None)
    return os.strerror(number).lower() if number in _WRITE_ERRORS else "is the disk full?"


@contextmanager
def _hushed() -> Iterator[None]:
    """Without the word on the terminal of a file that fails as it is made: that goes away unclosed, and complains of it."""
    before = sys.unraisablehook, sys.excepthook
    sys.unraisablehook, sys.excepthook = lambda _: None, lambda *_: None  # Cython uses both
    try:
        yield
    finally:
        sys.unraisablehook, sys.excepthook = before


class AlignmentWriter:
    """Writes pysam's alignments with the header that is asked for.

    The default header names only the read groups of the reads that came, which nobody knows before the last: the records are written
    behind a whole header, and when some groups did not come, they are put behind a shorter one in the end.
    """

    def __init__(
        self,
        header: Header,
        form: OutputFormat,
        place: Place,
        *,
        original: bool,
        command: str | None,
        reference: Path | None,
        trim: bool = True,
    ) -> None:
        self._header = header
        self._form = form
        self._place = place
        self._command = command
        self._reference = reference
        self.unseen_groups = set(read_groups_of(header)) if trim and not original else set()
        self._groups = frozenset(self.unseen_groups)
        text = original_sam_header(header) if original else sam_header(header, command=command)
        self._tells_path = form == "cram" and reference is not None  # htslib writes it into the header, from where it is taken out again
        direct = self._direct = place.stream() if not self._groups and not self._tells_path else None
        # CRAM's records name read groups by their place in the header, so those are not put behind another one
        self._body_form: OutputFormat = "bam" if form == "cram" and self._groups else form
        self._body = None if direct is not None else place.scratch()
        self._file = self._open(direct or self._body, self._body_form, text)
        self.write = self._file.write

    def _open(self, where: Any, form: OutputFormat, text: str) -> pysam.AlignmentFile:
        options: dict[str, Any] = {}
        if form == "bam":
            options["format_options"] = [_BAM_LEVEL]
        if form == "cram":
            options["format_options"] = [_CRAM_VERSION] if self._reference else [_CRAM_VERSION, b"no_ref=1"]
            options["reference_filename"] = str(self._reference) if self._reference else None
        where = str(where) if isinstance(where, Path) else where
        threads = _THREADS if form != "sam" else 1
        with writing(self._place), _hushed():
            header = pysam.AlignmentHeader.from_text(text)
            return self._place.closes(pysam.AlignmentFile(where, _MODES[form], header=header, threads=threads, **options))

    def finish(self, *, index: bool = False) -> None:
        """Completes the output and publishes it, with `index` after its index."""
        with writing(self._place):
            self._file.close()
            if self._direct is not None:
                self._direct.close()
            if self._body is None:
                if self._place.stream_is_gone():  # pysam keeps that to itself when a file is closed
                    raise BrokenPipeError
                return
            body = self._body
            if self.unseen_groups or self._body_form != self._form:
                body = self._behind_shorter_header(body)
            if self._tells_path:
                _forget_reference(body)
            indexed = _index_alignments(body, self._form, self._header.contigs) if index else None
        self._place.publish(body)
        if indexed is not None:
            self._place.publish_beside(*indexed)

    def _behind_shorter_header(self, body: Path) -> Path:
        text = sam_header(self._header, command=self._command, read_groups=self._groups - self.unseen_groups)
        whole = self._place.scratch()
        if self._form == "cram":
            with pysam.AlignmentFile(str(body), "rb", check_sq=False) as records, self._open(whole, "cram", text) as out:
                for record in records.fetch(until_eof=True):
                    out.write(record)
            return whole
        with body.open("rb") as records, whole.open("wb") as out:
            if self._form == "sam":
                out.write(text.encode())
                _skip_sam_header(records)
            else:
                out.write(_bam_header(text, self._place.scratch()))
                records.seek(file_offset(_read_header_of(body).end))
            shutil.copyfileobj(records, out, _COPY_BYTES)
        return whole


def _forget_reference(path: Path) -> None:
    header = _read_header_of(path)
    with path.open("r+b") as file:
        file.write(cram.without_paths(header.start, header.major))


def _skip_sam_header(records: IO[bytes]) -> None:
    at = 0
    for line in records:
        if not line.startswith(b"@"):
            break
        at += len(line)
    records.seek(at)


def _bam_header(text: str, scratch: Path) -> bytes:
    """The BGZF blocks of a header alone: htslib ends a block behind it."""
    pysam.AlignmentFile(str(scratch), "wb", header=pysam.AlignmentHeader.from_text(text)).close()
    data = scratch.read_bytes()
    return data[: file_offset(_read_header_of(scratch).end)]


def _read_header_of(path: Path) -> Header:
    with path.open("rb") as file:

        def read(offset: int, size: int) -> bytes:
            return os.pread(file.fileno(), size, offset)

        return read_header(read, path.stat().st_size)


def _index_alignments(path: Path, form: OutputFormat, contigs: Contigs) -> tuple[Path, str]:
    """Makes the index of a finished file; its path, and the suffix that it is to have."""
    if form == "cram":
        pysam.index(str(path))
        return path.with_name(path.name + ".crai"), ".crai"
    if contigs.are_long:
        pysam.index("-c", str(path))
        return path.with_name(path.name + ".csi"), ".csi"
    pysam.index(str(path))
    return path.with_name(path.name + ".bai"), ".bai"


class VariantWriter:
    """Writes pysam's variants, as text, behind the header that they had; BCF is made of that in the end.

    pysam's own writer changes records: it adds END to those with symbolic alleles, as all of a gVCF have, takes it from others, and fails
    on what no line of the header declares.
    """

    unseen_groups: Final[set[str]] = set()

    def __init__(self, header: Header, form: OutputFormat, place: Place, *, like: pysam.VariantHeader) -> None:
        self._header = header
        self._form = form
        self._place = place
        self._body: Path | None = None
        as_it_was = header.format == "VCF" and form != "bcf"
        with writing(place):
            self._file = self._opened()
            self._packed = _Packed(self._file) if form == "vcf.gz" else None
            self._write = (self._packed or self._file).write
            self._write(header.text if as_it_was else str(like).encode())

    def _opened(self) -> IO[bytes]:
        direct = None if self._form == "bcf" else self._place.stream()
        if direct is not None:
            return direct
        self._body = self._place.scratch()
        return self._place.opened(self._body)

    def write(self, record: pysam.VariantRecord) -> None:
        try:
            self._write(str(record).encode())
        except UnicodeDecodeError:
            raise FormatError(f"The variant at {record.chrom}:{record.pos} is damaged, or not in UTF-8, as VCF must be") from None

    def finish(self, *, index: bool = False) -> None:
        """Completes the output and publishes it, with `index` after its index."""
        with writing(self._place):
            if self._packed is not None:
                self._packed.finish()
            self._file.close()
            if self._body is None:
                return
            body = _as_bcf(self._body, self._place.scratch()) if self._form == "bcf" else self._body
            indexed = _index_variants(body, self._form, self._header.contigs) if index else None
        self._place.publish(body)
        if indexed is not None:
            self._place.publish_beside(*indexed)


class _Packed:
    """What is written goes on as BGZF."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._pending = bytearray()

    def write(self, data: bytes) -> None:
        self._pending += data
        if len(self._pending) >= _COPY_BYTES:
            self._flush()

    def finish(self) -> None:
        self._flush()
        self._file.write(bgzf.EOF_MARKER)

    def _flush(self) -> None:
        self._file.write(bgzf.compress(bytes(self._pending)))
        self._pending.clear()


def _as_bcf(text: Path, whole: Path) -> Path:
    """Raises `ConfigurationError` for variants that use what their header does not declare: in BCF, that has no number."""
    try:
        pysam.bcftools.view("--no-version", "-Ob", "-o", str(whole), str(text), catch_stdout=False)
    except pysam.utils.SamtoolsError:
        raise ConfigurationError(
            "The variants cannot be written as bcf: they use contigs, filters or fields that their header does not declare, or the disk is "
            "full; write them as vcf.gz"
        ) from None
    return whole


def _index_variants(path: Path, form: OutputFormat, contigs: Contigs) -> tuple[Path, str]:
    as_csi = form == "bcf" or contigs.are_long
    suffix = ".csi" if as_csi else ".tbi"
    index = path.with_name(path.name + suffix)
    preset: Any = "bcf" if form == "bcf" else "vcf"  # pysam knows both, its type stubs one
    pysam.tabix_index(str(path), preset=preset, csi=as_csi, index=str(index), keep_original=True, force=True)
    return index, suffix


def is_indexable(form: OutputFormat) -> bool:
    """Whether there can be an index of such a file: not of text."""
    return form not in ("sam", "vcf")
