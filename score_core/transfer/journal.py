"""What a download has done so far: JSON lines beside the target, `<target>.part.journal`.

Line 1 says what is being downloaded; each further line is one part that is in the `.part` file. Lines are appended with one `write` each:
threads and processes may share the file and a crash can tear only the last line, which is then ignored. The journal is a claim, never a
proof: whoever resumes reads the bytes and compares (`Download.proves`). It holds no URL.

`generation` is drawn anew whenever a download begins from nothing. Caches that outlive the file (Prefect's results) carry it in their
keys, so that nothing remembered of an earlier `.part` file can be taken for a fact about this one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from score_core.model import ObjectSpec, Part, PartReceipt
from score_core.transfer.files import explained

_FORMAT: Final = 1
_MAX_BYTES: Final = 64 << 20  # 10,000 parts take 2 MB; more is not ours
_DAMAGE: Final = (KeyError, TypeError, ValueError, OverflowError)  # JSON has infinite numbers


class JournalUnusable(Exception):
    """The file cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the journal is about. `offset` and `size` give the byte range of the object that the file will hold."""

    generation: str
    object_id: str
    offset: int
    size: int
    etag: str | None
    md5: str | None

    @classmethod
    def new(cls, spec: ObjectSpec, *, offset: int, size: int) -> Header:
        return cls(secrets.token_hex(8), spec.object_id, offset, size, spec.etag, spec.md5)

    def same_version(self, spec: ObjectSpec) -> bool:
        """Whether the object is, as far as digests tell, still the one this journal began with."""
        return (self.etag, self.md5) == (spec.etag, spec.md5) and (self.etag is not None or self.md5 is not None)


class Journal:
    """An open journal. `receipts` is what it claims, by part number."""

    def __init__(self, path: Path, header: Header, receipts: dict[int, PartReceipt], spans: dict[int, tuple[int, int]]) -> None:
        self.path = path
        self.header = header
        self.receipts = receipts
        self._spans = spans

    @property
    def generation(self) -> str:
        return self.header.generation

    @classmethod
    def create(cls, path: Path, header: Header) -> Journal:
        """Begins a journal, replacing any older file of that name."""
        line = json.dumps({"score_journal": _FORMAT, **dataclasses.asdict(header)}) + "\n"
        with explained("write", path):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                os.write(fd, line.encode())
            finally:
                os.close(fd)
        return cls(path, header, {}, {})

    @classmethod
    def load(cls, path: Path) -> Journal | None:
        """The journal at `path`, None if there is none.

        Raises:
            JournalUnusable: the file is there and is not a journal that this version understands.
        """
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):  # a FIFO or a link to a device would never end
                raise JournalUnusable("it is not a regular file")
            if status.st_size > _MAX_BYTES:
                raise JournalUnusable("it is far too large for a journal")
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise JournalUnusable(f"it cannot be read: {error.strerror}") from None
        first, *rest = text.split(b"\n")
        journal = cls(path, _header(first), {}, {})
        for line in rest:
            journal._take(line)
        return journal

    def _take(self, line: bytes) -> None:
        record = _json(line)
        if record is None:
            return  # the torn last line of a crash, or damage: the part counts as not done
        try:
            receipt = PartReceipt(
                number=int(record["part"]), size=int(record["size"]), tag=str(record["tag"]), md5=record.get("md5"), moved=0
            )
            self._spans[receipt.number] = (int(record["offset"]), receipt.size)
            self.receipts[receipt.number] = receipt
        except _DAMAGE:
            return

    def claims(self, part: Part) -> PartReceipt | None:
        """The receipt for exactly this part (same number, place and size), None if there is none."""
        if self._spans.get(part.number) != (part.offset, part.size):
            return None
        return self.receipts.get(part.number)

    def append(self, part: Part, receipt: PartReceipt) -> None:
        """Records that the part's bytes have been handed to the operating system. Thread-safe."""
        record: dict[str, Any] = {"part": part.number, "offset": part.offset, "size": part.size, "tag": receipt.tag, "md5": receipt.md5}
        # The line break in front closes a line that a crash may have torn.
        line = "\n" + json.dumps(record, separators=(",", ":")) + "\n"
        with explained("write", self.path):
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.write(fd, line.encode())
            finally:
                os.close(fd)
        self.receipts[part.number] = dataclasses.replace(receipt, moved=0)
        self._spans[part.number] = (part.offset, part.size)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


def _header(line: bytes) -> Header:
    record = _json(line)
    if record is None or "score_journal" not in record:
        raise JournalUnusable("it is not a Score journal")
    if record["score_journal"] != _FORMAT:
        raise JournalUnusable(f"it was written by another version (format {record['score_journal']!r}, this one reads {_FORMAT})")
    try:
        return Header(
            generation=str(record["generation"]),
            object_id=str(record["object_id"]),
            offset=int(record["offset"]),
            size=int(record["size"]),
            etag=record["etag"],
            md5=record["md5"],
        )
    except _DAMAGE:
        raise JournalUnusable("its first line is damaged") from None


def _json(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
