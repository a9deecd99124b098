"""The steps of a download. Drivers (the direct engine, Prefect) call them; the order is theirs, the rules are here.

    Download.open  ->  attempt (per part, any order, in parallel)  ->  verify  ->  publish

On disk during all of this: `<target>.part` and `<target>.part.journal`, or in a folder for what is half done `<object id>.part` and its
journal. The target's own name appears in `publish`, after `verify`, and at no other time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from score_core.checksum import Digest
from score_core.errors import Conflict, LocalFileError, ObjectMismatch, PartMismatch, PlanError, ScoreError, Unverifiable
from score_core.model import ObjectSpec, Part, PartReceipt, Validation
from score_core.plan import plan_parts
from score_core.repository.base import Repository
from score_core.transfer.files import PartFile, check_space, explained, put_aside
from score_core.transfer.journal import Header, Journal, JournalUnusable
from score_core.transfer.part import PartTransport
from score_core.transfer.stop import Stop
from score_core.transfer.urls import UrlSource

Proof = Literal["parts", "whole", "both", "off"]
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes of the object that are wanted: `offset` 0-based; `size` None means to the end."""

    offset: int = 0
    size: int | None = None

    def clipped(self, spec: ObjectSpec) -> Span:
        """This span with its size filled in. Raises `PlanError` when the object does not have these bytes."""
        size = spec.size - self.offset if self.size is None else self.size
        if self.offset < 0 or size < 0 or self.offset + size > spec.size:
            raise PlanError(
                f"Bytes {self.offset} to {self.offset + size} do not exist: object {spec.object_id} has {spec.size} bytes; "
                "give an --offset and --length inside it"
            )
        return Span(self.offset, size)


def choose_proof(validation: Validation, spec: ObjectSpec, *, whole_object: bool = True) -> Proof:
    """How the bytes will be proven. `auto` takes the parts' MD5s when they prove the whole (`sealed`), else the whole MD5.

    Raises:
        Unverifiable: nothing recorded allows what was asked for.
    """
    have_parts = bool(spec.parts) and all(part.md5 for part in spec.parts)
    have_whole = spec.md5 is not None and whole_object
    if validation == "off" or not whole_object:
        return "off"
    if validation == "auto":
        if have_parts and (spec.sealed or not have_whole):
            return "parts"
        validation = "whole"
    if (validation in {"parts", "both"} and not have_parts and spec.size) or (validation in {"whole", "both"} and not have_whole):
        raise Unverifiable(
            f"Object {spec.object_id} has no recorded MD5 to verify it by (--validate {validation}); "
            "--validate off takes the bytes as they come"
        )
    return validation


class Download:
    """One download in the making; holds the lock on its `.part` file until `close`.

    `parts` are what has to be in the file. `receipts` say what is in it: from this run, or claimed by an earlier one until `proves` has
    read the bytes. `notes` say what an earlier run's leftovers led to. Thread-safe.
    """

    def __init__(self, repository: Repository, spec: ObjectSpec, span: Span, file: PartFile, journal: Journal, proof: Proof) -> None:
        self.spec = spec
        self.span = span
        self.file = file
        self.journal = journal
        self.proof = proof
        self.parts = parts_of(spec, span)
        self.receipts: dict[int, PartReceipt] = {}
        self.notes: list[str] = []
        self.hasher = WholeHasher(self)
        self._proven: set[int] = set()
        self._verified = False
        self.urls = UrlSource(self.parts, lambda parts: repository.sign_downloads(spec, [part.range for part in parts]))

    @classmethod
    def open(
        cls,
        repository: Repository,
        spec: ObjectSpec,
        target: Path,
        *,
        span: Span = Span(),
        validation: Validation = "auto",
        state_dir: Path | None = None,
    ) -> Download:
        """Begins a download, or takes up the one that an earlier run left beside `target`, or in `state_dir` for whatever target.

        Raises:
            PlanError, Unverifiable, Conflict (another process is at it), NoSpaceError, LocalFileError
        """
        span = span.clipped(spec)
        proof = choose_proof(validation, spec, whole_object=span.size == spec.size)
        size = span.size or 0
        file = PartFile(target) if state_dir is None else _kept_file(target, state_dir, spec, span)
        try:
            journal, notes = _take_up(file, spec, span)
            if journal is None:
                file = _begin_empty(file, notes)
                journal = Journal.create(file.journal_path, Header.new(spec, offset=span.offset, size=size))
            check_space(file.path, size - min(file.allocated_bytes, size))
            if file.path.parent.stat().st_dev != target.parent.stat().st_dev:
                check_space(target, size)
            file.resize(size)
            download = cls(repository, spec, span, file, journal, proof)
        except BaseException:
            file.close()
            raise
        download.notes = notes
        download.receipts = {part.number: receipt for part in download.parts if (receipt := download._usable(part)) is not None}
        return download

    @property
    def target(self) -> Path:
        return self.file.target

    def _usable(self, part: Part) -> PartReceipt | None:
        """What the journal claims of a part, if it is about these bytes: the same version, or the same reference MD5."""
        claim = self.journal.claims(part)
        if claim is None:
            return None
        if part.md5 is not None and claim.md5 is not None:
            return claim if claim.md5 == part.md5 else None
        return claim if self.journal.header.same_version(self.spec) else None

    @property
    def object_id(self) -> str:
        return self.spec.object_id

    @property
    def key(self) -> str:
        """What tells this download from every other, also from an earlier one to the same place."""
        return self.journal.generation

    def claims(self, part: Part) -> bool:
        """Whether an earlier run says that the part is on disk, or this one knows."""
        return part.number in self.receipts

    def proves(self, part: Part, *, stop: Stop | None = None) -> bool:
        """Whether the part is on disk, by reading it if only an earlier run says so. If not, the claim is dropped."""
        if part.number in self._proven:
            return True
        claim = self.receipts.get(part.number)
        if claim is not None:
            unproven = self.proof in {"parts", "both"} and claim.md5 is None  # the earlier run did not ask for part MD5s
            digest = self._digest(part, md5=unproven, stop=stop)
            if digest.tag == claim.tag and (not unproven or digest.md5 == part.md5):
                self._take(part, claim)
                return True
        self.receipts.pop(part.number, None)
        return False

    def _take(self, part: Part, receipt: PartReceipt) -> None:
        self.receipts[part.number] = receipt
        self._proven.add(part.number)
        self.hasher.arrived()

    def has(self, part: Part) -> bool:
        """Whether the part is known to be on disk, without reading."""
        return part.number in self._proven

    def forget(self, parts: Iterable[Part]) -> None:
        """Drops what is known of these parts, so that they are fetched again."""
        self._verified = False
        for part in parts:
            self.receipts.pop(part.number, None)
            self._proven.discard(part.number)

    def _digest(self, part: Part, *, md5: bool, stop: Stop | None = None) -> Digest:
        digest = Digest(md5=md5)
        for block in self.file.blocks(part.offset - self.span.offset, part.size):
            if stop is not None:
                stop.check()
            digest.update(block)
        return digest

    def attempt(self, part: Part, *, transport: PartTransport, stop: Stop | None = None, advance: Advance | None = None) -> PartReceipt:
        """Makes one attempt at one part: nothing if it is on disk, else bytes to disk, checked on the way, recorded in the journal.

        `advance` hears of bytes as they arrive; it is the driver's to take them back when the attempt fails.

        Raises:
            PartMismatch: other bytes arrived than the reference MD5 says.
            Whatever `PartTransport.get` raises.
        """
        if self.proves(part, stop=stop):
            return self.receipts[part.number]
        digest = Digest(md5=self.proof in {"parts", "both"})
        arrived = 0

        def sink(block: bytes | bytearray | memoryview) -> None:
            nonlocal arrived
            digest.update(block)
            self.file.write(block, part.offset - self.span.offset + arrived)
            arrived += len(block)
            if advance is not None:
                advance(len(block))

        transport.get(part.range, self.urls.get(part), sink, if_match=self.spec.etag, stop=stop)
        if digest.md5 is not None and part.md5 is not None and digest.md5 != part.md5:
            raise PartMismatch(f"Part {part.number} of object {self.spec.object_id} arrived damaged", expected=part.md5, actual=digest.md5)
        receipt = PartReceipt(number=part.number, size=part.size, tag=digest.tag, md5=digest.md5, moved=part.size)
        self.journal.append(part, receipt)
        self._take(part, receipt)
        return receipt

    @property
    def hashes_whole(self) -> bool:
        """Whether `verify` needs the whole file's MD5, so that `hasher.follow` is worth a thread."""
        return self.proof in {"whole", "both"}

    def verify(self, *, stop: Stop | None = None) -> str | None:
        """Proves that the file is the object; returns the MD5 that it is proven to have, None with `off`.

        Raises:
            ScoreError: parts are missing.
            ObjectMismatch: the whole file is wrong. `suspects` narrows it down.
        """
        missing = [part.number for part in self.parts if part.number not in self._proven]
        if missing:
            raise ScoreError(f"Object {self.spec.object_id} is not complete: part {missing[0]} and {len(missing) - 1} more are missing")
        if not self.hashes_whole:
            self._verified = True
            return self.spec.md5 if self.proof == "parts" and self.spec.sealed else None
        actual = self.hasher.finish(stop=stop)
        if actual != self.spec.md5:
            raise ObjectMismatch(f"Object {self.spec.object_id} is not what it should be", expected=str(self.spec.md5), actual=actual)
        self._verified = True
        return actual

    def suspects(self, *, stop: Stop | None = None) -> list[Part]:
        """After a failed `verify`: the parts that differ from their reference MD5, forgotten so that they are fetched again.

        Without reference MD5s every part is a suspect.
        """
        wrong = [part for part in self.parts if part.md5 is None or self._digest(part, md5=True, stop=stop).md5 != part.md5]
        self.forget(wrong)
        self.hasher = WholeHasher(self)
        return wrong

    def publish(self, *, stop: Stop | None = None) -> Path:
        """Gives the verified file its name and removes the journal. Raises `ScoreError` when `verify` has not said yes."""
        if not self._verified:
            raise ScoreError(
                f"Object {self.spec.object_id} was not verified, so {self.target} is not published; this is a fault of the driver"
            )
        if not self.file.publish():
            self._copy_over(stop)
            self.file.discard()
        self.journal.discard()
        return self.target

    def _copy_over(self, stop: Stop | None) -> None:
        """Publishes on another file system; what is written there is proven once more, by the tag of each part."""
        copy = _begin_empty(PartFile(self.target), self.notes)
        try:
            for part in self.parts:
                digest, offset = Digest(md5=False), part.offset - self.span.offset
                for block in self.file.blocks(offset, part.size):
                    if stop is not None:
                        stop.check()
                    digest.update(block)
                    copy.write(block, offset)
                    offset += len(block)
                if digest.tag != self.receipts[part.number].tag:
                    raise LocalFileError(f"{self.file.path} changed while it was copied to {self.target}; run the same command again")
            copy.resize(self.span.size or 0)
            if not copy.publish():
                raise LocalFileError(f"Cannot rename {copy.path} to {self.target}: they are on two file systems")
        except BaseException:
            copy.discard()
            raise
        finally:
            copy.close()

    def close(self) -> None:
        """Releases the lock. What is on disk stays for the next run."""
        self.file.close()


def parts_of(spec: ObjectSpec, span: Span) -> tuple[Part, ...]:
    """The parts to fetch for a span: the object's own for all of it, else fresh ones without reference MD5s."""
    if span == Span(0, spec.size):
        return spec.parts
    return plan_parts(span.size or 0, offset=span.offset)


def _kept_file(target: Path, state_dir: Path, spec: ObjectSpec, span: Span) -> PartFile:
    """The half-finished file of this object in the folder, for a workflow engine gives each attempt a folder of its own.

    While another process fills it for a target of its own, this download stands by itself.
    """
    with explained("make the folder", state_dir):
        state_dir.mkdir(parents=True, exist_ok=True)
    piece = "" if span == Span(0, spec.size) else f".{span.offset}-{span.size}"
    try:
        return PartFile(target, state_dir / f"{spec.object_id}{piece}.part")
    except Conflict:
        return PartFile(target)


def _take_up(file: PartFile, spec: ObjectSpec, span: Span) -> tuple[Journal | None, list[str]]:
    """The journal of an earlier run if it is about this download, else None; with what to tell the user."""
    path = file.journal_path
    try:
        journal = Journal.load(path)
    except JournalUnusable as error:
        put_aside(path)
        return None, [f"Starting afresh: {path.name} cannot be used, {error}"]
    if journal is None:
        return None, []
    header = journal.header
    if file.size == 0 and header.size:  # the bytes were deleted: nothing that is known of them may outlive them
        return None, [f"Starting afresh: {file.path.name} is gone"]
    if header.object_id != spec.object_id or (header.offset, header.size) != (span.offset, span.size):
        put_aside(path)
        return None, [f"Starting afresh: {path.name} belongs to another download (object {header.object_id})"]
    if header.same_version(spec):
        return journal, []
    renewed = Journal.create(path, Header.new(spec, offset=span.offset, size=span.size or 0))
    for part in parts_of(spec, span):
        claim = journal.claims(part)
        if claim is not None and claim.md5 is not None and claim.md5 == part.md5:
            renewed.append(part, claim)
    unchanged = f"{len(renewed.receipts)} of its parts are unchanged, the others are fetched again"
    return renewed, [f"Object {spec.object_id} was replaced since the last run: {unchanged}"]


def _begin_empty(file: PartFile, notes: list[str]) -> PartFile:
    """An empty `.part` file; bytes that no journal explains are kept aside, for they may be somebody's."""
    if file.size == 0:
        return file
    aside = put_aside(file.path)
    notes.append(f"Kept the earlier {file.path.name} as {aside.name if aside else '?'}: no journal says what is in it")
    file.close()
    return PartFile(file.target, file.path)


_STEP_WAIT_S: Final = 0.2


class WholeHasher:
    """The whole file's MD5, computed behind the frontier of finished parts while later parts still arrive.

    Run `follow` in a thread of its own, or only call `finish`. So a fresh file needs no second pass; after a resume, the bytes that were
    there are read once.
    """

    def __init__(self, download: Download) -> None:
        self._download = download
        self._digest = Digest()
        self._done = 0
        self._arrived = threading.Condition()
        self._error: BaseException | None = None

    def arrived(self) -> None:
        """Says that a part was finished."""
        with self._arrived:
            self._arrived.notify()

    def follow(self, stop: Stop) -> None:
        """Hashes finished parts in order until all are hashed or `stop` is set."""
        try:
            while self._done < len(self._download.parts) and not stop.is_set():
                part = self._download.parts[self._done]
                if self._download.has(part):
                    self._take(part, stop)
                else:
                    with self._arrived:
                        self._arrived.wait(_STEP_WAIT_S)
        except BaseException as error:  # noqa: BLE001  # handed to the thread that calls `finish`
            self._error = error

    def wait_for_all(self, stop: Stop) -> None:
        """Waits until every part is there or `stop` is set, and hashes nothing."""
        while not stop.is_set() and not all(self._download.has(part) for part in self._download.parts):
            with self._arrived:
                self._arrived.wait(_STEP_WAIT_S)

    def _take(self, part: Part, stop: Stop | None) -> None:
        for block in self._download.file.blocks(part.offset - self._download.span.offset, part.size):
            if stop is not None:
                stop.check()
            self._digest.update(block)
        self._done += 1

    def finish(self, *, stop: Stop | None = None) -> str:
        """Hashes what is left; the MD5 in hex. Call it when all parts are there and `follow` has ended."""
        if self._error is not None:
            raise self._error
        while self._done < len(self._download.parts):
            self._take(self._download.parts[self._done], stop)
        return str(self._digest.md5)
