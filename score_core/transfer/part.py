"""The narrowest place: one part, one URL, one attempt.

`PartTransport` is all that the rest knows of the network. It makes exactly one attempt, checks that the answer is the answer to what was
asked (status, range, length), and raises an error that says by its class what may be tried next. It neither hashes nor retries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from score_core.checksum import Buffer
from score_core.model import ByteRange, SignedUrl
from score_core.transfer.stop import Stop

Sink = Callable[[Buffer], None]


class PutReply(NamedTuple):
    """What a store answers to a part. `etag` is unquoted; `encrypted` says by SSE header that the ETag is no MD5."""

    etag: str
    encrypted: bool


class PartTransport(Protocol):
    """Moves the bytes of one part. Safe to call from several threads at once."""

    def get(
        self, byte_range: ByteRange, url: SignedUrl, sink: Sink, *, if_match: str | None = None, stop: Stop | None = None
    ) -> str | None:
        """Gives exactly `byte_range.size` bytes to `sink`, in order, in blocks valid only during the call; returns the object's ETag.

        The ETag is without quotes, None if the store named none.

        When it raises, `sink` may have had some of the bytes, but never one from another place or past the range.

        Raises:
            TransientError: dropped, short, overlong, stalled, or the store is busy.
            UrlExpiredError: refused because of the URL's age.
            AccessDenied: refused for another reason.
            ObjectNotFound: the object is not there.
            Interrupted: `stop` was set.
            ChangedError: the object's ETag is not `if_match` (unquoted).
            PermanentError: an answer that no repetition will change.
        """
        ...

    def put(self, size: int, url: SignedUrl, blocks: Iterable[Buffer], *, stop: Stop | None = None) -> PutReply:
        """Sends `blocks`, in all `size` bytes, as one part.

        Raises:
            PartMismatch: the store refused the bytes because of their digest.
            ObjectNotFound: the upload is not there any more.
            TransientError, UrlExpiredError, AccessDenied, PermanentError: as for `get`.
        """
        ...

    def close(self) -> None:
        """Closes all connections."""
        ...
