"""The steps of an upload. Drivers (the direct engine, Prefect) call them; the order is theirs, the rules are here.

    UploadSession.open  ->  attempt (per part, any order, in parallel)  +  digest_source (beside it)  ->  publish

Nothing of it is kept on this machine: what is stored already is asked of the repository, and every stored part is compared with
the local bytes by its MD5. So an upload can be taken up from another machine, by another driver, or after anything.

Why the object cannot be published with wrong bytes: the sender of each part computes its MD5 from the bytes that it sends, and the
store confirms that MD5; `digest_source` computes the whole file's MD5 in order and, like the senders, a tag per part. `publish` wants the
whole MD5 to be the promised one *and* each part's two tags to be equal: the bytes that were hashed whole are the bytes that were sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from score_core.checksum import Buffer, Digest, digest_of, is_md5_shaped, md5_hex
from score_core.errors import (
    AccessDenied,
    ChangedError,
    Conflict,
    NotResumableError,
    ObjectMismatch,
    ObjectNotFound,
    PartMismatch,
    PermanentError,
    Unavailable,
)
from score_core.model import ObjectSpec, Part, PartReceipt, SignedUrl, StoredPart, TransferReport, Upload
from score_core.repository.base import Repository
from score_core.transfer.files import SourceFile
from score_core.transfer.part import PartTransport, PutReply
from score_core.transfer.stop import Stop
from score_core.transfer.urls import UrlSource

Advance = Callable[[int], None]

_PROBE: Final = b"S"  # one byte whose MD5 is not the one the probe claims


@dataclass(frozen=True, slots=True)
class SourceDigest:
    """A whole file read in order: its MD5 in hex, and the tag of each part by number."""

    md5: str
    tags: Mapping[int, str]


def digest_source(source: SourceFile, parts: Iterable[Part], *, stop: Stop | None = None) -> SourceDigest:
    """Reads the file once, in order.

    Raises:
        ChangedError: it became shorter meanwhile.
        Interrupted: `stop` was set.
    """
    whole, tags = Digest(), {}
    for part in parts:
        tag = Digest(md5=False)
        for block in source.blocks(part.offset, part.size):
            if stop is not None:
                stop.check()
            whole.update(block)
            tag.update(block)
        tags[part.number] = tag.tag
    return SourceDigest(md5=str(whole.md5), tags=tags)


class AlreadyThere(Exception):  # an outcome, not an error
    """The repository has this very object already; `spec` is it."""

    def __init__(self, spec: ObjectSpec) -> None:
        super().__init__(spec.object_id)
        self.spec = spec

    def report(self, path: Path) -> TransferReport:
        """How the upload of `path` ended: with nothing to do."""
        return TransferReport(
            self.spec.object_id, str(path), "already there", size=self.spec.size, md5=self.spec.md5, parts=len(self.spec.parts)
        )


class UploadSession:
    """One upload under way. Thread-safe. Close it when done; what is stored stays for the next run."""

    def __init__(self, repository: Repository, source: SourceFile, upload: Upload, md5: str, *, overwrite: bool) -> None:
        self.repository = repository
        self.source = source
        self.upload = upload
        self.md5 = md5
        self._overwrite = overwrite
        self.urls = UrlSource(upload.parts, lambda parts: repository.sign_uploads(upload, parts))
        self.receipts: dict[int, PartReceipt] = {}
        self._stored = dict(upload.stored)
        self._sent: dict[int, PartReceipt] = {}  # stored, and not recorded yet
        self._is_new = not upload.stored
        self._store_checks_md5: bool | None = None

    @classmethod
    def open(cls, repository: Repository, path: Path, object_id: str, *, md5: str, overwrite: bool = False) -> UploadSession:
        """Begins an upload, or takes up an unfinished one of the same content.

        Raises:
            AlreadyThere: the object is published with this size and MD5, and `overwrite` is false.
            Conflict: it is published, or being uploaded, with other content, and `overwrite` is false.
            LocalFileError: the file cannot be read.
        """
        source = SourceFile(path)
        try:
            upload = _take_up(repository, source, object_id, md5, overwrite=overwrite)
            if upload is None:
                upload = repository.begin_upload(object_id, source.size, md5=md5, file_name=path.name, overwrite=overwrite)
        except BaseException:
            source.close()
            raise
        return cls(repository, source, upload, md5, overwrite=overwrite)

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.upload.parts

    @property
    def object_id(self) -> str:
        return self.upload.object_id

    @property
    def hashes_whole(self) -> bool:
        """Always: the whole file's MD5 was promised."""
        return True

    @property
    def key(self) -> str:
        """What tells this upload from every other of the same object."""
        return self.upload.upload_id

    def claims(self, part: Part) -> bool:
        """Whether the repository says that the part is stored, or this session knows."""
        return part.number in self._stored or part.number in self.receipts

    def proves(self, part: Part, *, stop: Stop | None = None) -> bool:
        """Whether the part is stored with the bytes that the file has now, by reading the file. If not, the claim is dropped."""
        if part.number in self.receipts:
            return True
        stored = self._stored.get(part.number)
        if stored is None:
            return False
        digest = digest_of(_stoppable(self.source.blocks(part.offset, part.size), stop))
        if digest.md5 != stored.md5:
            del self._stored[part.number]
            return False
        self.receipts[part.number] = PartReceipt(part.number, part.size, tag=digest.tag, md5=digest.md5, etag=stored.etag)
        return True

    def attempt(self, part: Part, *, transport: PartTransport, stop: Stop | None = None, advance: Advance | None = None) -> PartReceipt:
        """Makes one attempt at one part: nothing if it is stored, else sent, confirmed by the store to be the same bytes, and recorded.

        `advance` hears of bytes as they leave; it is the driver's to take them back when the attempt fails.

        Raises:
            PartMismatch: the store holds, or received, other bytes.
            NotResumableError: the upload is gone; run again to begin anew.
            Whatever `PartTransport.put` raises.
        """
        if self.proves(part, stop=stop):
            return self.receipts[part.number]
        try:
            receipt = self._sent.pop(part.number, None) or self._send(part, transport, stop, advance)
            try:
                self.repository.commit_part(self.upload, StoredPart(part.number, str(receipt.md5), str(receipt.etag)))
            except Unavailable:
                self._sent[part.number] = receipt  # it is stored: the next attempt only has to say so
                raise
        except ObjectNotFound:
            raise self._dropped() from None
        self.receipts[part.number] = receipt
        return receipt

    def _send(self, part: Part, transport: PartTransport, stop: Stop | None, advance: Advance | None) -> PartReceipt:
        if self._store_checks_md5:
            digest, reply = self._put_checked(part, transport, stop, advance)
        else:
            digest, reply = self._put(part, self.urls.get(part), transport, stop, advance)
            if reply.etag != digest.md5:
                self._explain_etag(part, reply, digest, transport)
                digest, reply = self._put_checked(part, transport, stop, None)
        return PartReceipt(part.number, part.size, tag=digest.tag, md5=digest.md5, etag=reply.etag, moved=part.size)

    def _dropped(self) -> NotResumableError:
        return NotResumableError(
            f"The upload of object {self.upload.object_id} was dropped meanwhile by somebody else; run the same command again"
        )

    def _put(
        self, part: Part, url: SignedUrl, transport: PartTransport, stop: Stop | None, advance: Advance | None
    ) -> tuple[Digest, PutReply]:
        digest = Digest()

        def blocks() -> Iterator[Buffer]:
            for block in self.source.blocks(part.offset, part.size):
                digest.update(block)
                yield block
                if advance is not None:
                    advance(len(block))

        return digest, transport.put(part.size, url, blocks(), stop=stop)

    def _put_checked(self, part: Part, transport: PartTransport, stop: Stop | None, advance: Advance | None) -> tuple[Digest, PutReply]:
        """Sends with a signed `Content-MD5`: the store refuses other bytes, so its ETag need not be an MD5."""
        claimed = str(digest_of(_stoppable(self.source.blocks(part.offset, part.size), stop)).md5)
        digest, reply = self._put(part, self._signed_with_md5(part, claimed), transport, stop, advance)
        if digest.md5 != claimed:
            raise ChangedError(f"{self.source.path} changed while part {part.number} was sent; nothing was published")
        return digest, reply

    def _signed_with_md5(self, part: Part, md5: str) -> SignedUrl:
        return self.repository.sign_uploads(self.upload, [Part(part.number, part.offset, part.size, md5)], content_md5=True)[0]

    def _explain_etag(self, part: Part, reply: PutReply, digest: Digest, transport: PartTransport) -> None:
        """Returns if the ETag is no MD5 by nature and the store checks `Content-MD5` instead; else raises `PartMismatch`.

        An ETag that looks like an MD5 and is not ours means damage, unless the store says that it encrypts (protocol section 6.5).
        """
        if is_md5_shaped(reply.etag) and not reply.encrypted:
            raise PartMismatch(
                f"The store holds part {part.number} of object {self.upload.object_id} with other bytes than were sent",
                expected=str(digest.md5),
                actual=reply.etag,
            )
        if self._store_checks_md5 is None:
            self._store_checks_md5 = self._refuses_wrong_md5(part, transport)
        if not self._store_checks_md5:
            raise PermanentError(
                f"{self.repository.label} neither answers MD5s as ETags nor checks Content-MD5: "
                "nothing proves that it stored what was sent, so nothing was published"
            )

    def _refuses_wrong_md5(self, part: Part, transport: PartTransport) -> bool:
        """Whether the store refuses one byte under a wrong `Content-MD5`. The part itself is sent again afterwards in any case."""
        probe = Part(part.number, part.offset, len(_PROBE))
        try:
            transport.put(len(_PROBE), self._signed_with_md5(probe, md5_hex(b"not " + _PROBE)), [_PROBE])
        except PartMismatch:
            return True
        except PermanentError:
            return False  # refused, and not for the digest: that proves nothing
        return False

    def publish(self, source: SourceDigest) -> None:
        """Publishes the object if, and only if, all parts are stored and the sent bytes are the promised ones.

        Raises:
            ObjectMismatch: the file's MD5 is not the promised one. The upload is dropped: nobody could ever finish it.
            ChangedError: the file is not the same any more as when its parts were sent.
            Conflict: somebody else put other bytes in place of a part, or published the object with other content meanwhile.
            NotResumableError: the upload is gone; run again to begin anew.
        """
        self.check_md5(source)
        self.source.check_unchanged()
        receipts = [self.receipts[part.number] for part in self.parts]
        for receipt in receipts:
            if receipt.tag != source.tags[receipt.number]:
                raise ChangedError(f"{self.source.path} changed while it was sent (part {receipt.number}); nothing was published")
        if not self._overwrite and self._published_meanwhile():
            return
        stored = [StoredPart(receipt.number, str(receipt.md5), str(receipt.etag)) for receipt in receipts]
        try:
            self.repository.commit(self.upload, stored, sealed=True)
        except ObjectNotFound:
            raise self._dropped() from None
        self._confirm()

    def check_md5(self, source: SourceDigest) -> None:
        """Raises `ObjectMismatch` when the file is not what was promised. Whoever catches that stops the senders, then calls `drop`."""
        if source.md5 == self.md5:
            return
        raise ObjectMismatch(
            f"{self.source.path} is not the file that was promised for object {self.upload.object_id}; nothing was published",
            expected=self.md5,
            actual=source.md5,
        )

    def drop(self) -> None:
        """Drops an upload that can never be published.

        Unless parts were in it before this session: those may be the right ones, of somebody who has the right file.
        """
        if self._is_new:
            self.repository.abort(self.upload.object_id)

    def _published_meanwhile(self) -> bool:
        """Whether somebody else's upload of the same content was first; ours is dropped then. Raises `Conflict` if the content is other."""
        if not self.repository.exists(self.upload.object_id):
            return False
        published = self.repository.describe(self.upload.object_id)
        self.repository.abort(self.upload.object_id)
        if (published.size, published.md5) != (self.upload.size, self.md5):
            raise Conflict(
                f"Object {self.upload.object_id} was published with other content by another upload meanwhile; --force replaces it"
            )
        return True

    def _confirm(self) -> None:
        """Exit 0 only after the repository itself says that the object is there, whole."""
        try:
            published = self.repository.describe(self.upload.object_id)
        except AccessDenied:  # who may only upload cannot look closer; `commit` has made sure that it is there
            return
        if published.size != self.upload.size or published.md5 not in (None, self.md5):
            raise Conflict(
                f"Object {self.upload.object_id} is published with MD5 {published.md5}, which another upload claimed for it; "
                "compare before you go on, and use --force if yours is right"
            )

    def close(self) -> None:
        self.source.close()


def _take_up(repository: Repository, source: SourceFile, object_id: str, md5: str, *, overwrite: bool) -> Upload | None:
    """The unfinished upload to go on with, None to begin one. Looks for it first: a half-committed one is settled by looking."""
    upload = _find(repository, object_id, source.size, overwrite=overwrite)
    if not overwrite and repository.exists(object_id):
        spec = repository.describe(object_id)
        if (spec.size, spec.md5) == (source.size, md5):
            raise AlreadyThere(spec)
        raise Conflict(f"Object {object_id} exists with other content ({spec.size:,} bytes, MD5 {spec.md5}); --force replaces it")
    if upload is None:
        return None
    if upload.md5 in (None, md5):  # a server may not tell; the parts are compared with the file in any case
        return upload
    if overwrite:
        return None
    raise Conflict(
        f"Another file is being uploaded as object {object_id} (MD5 {upload.md5}); wait for it, "
        f"drop it with `score abort --object-id {object_id}`, or replace it with --force"
    )


def _find(repository: Repository, object_id: str, size: int, *, overwrite: bool) -> Upload | None:
    try:
        return repository.find_upload(object_id, size)
    except Conflict as error:
        if overwrite or repository.exists(object_id):  # it will be replaced; or what is published decides
            return None
        raise Conflict(f"{error}; --force replaces it") from None


def _stoppable(blocks: Iterator[memoryview], stop: Stop | None) -> Iterator[memoryview]:
    for block in blocks:
        if stop is not None:
            stop.check()
        yield block
