"""The transfers that are under way in this process, by key.

Task arguments and results must be small and free of secrets, so tasks pass a `Ref` and find the open files, connections and signed URLs
here. A part task therefore runs in the process of its flow (`ThreadPoolTaskRunner`); to use many hosts, fan out by file with deployments.
"""

from __future__ import annotations

import atexit
import functools
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Final

from score_core.errors import ConfigurationError, ScoreError, TransientError
from score_core.model import Part, PartReceipt
from score_core.session import open_engine
from score_core.settings import load
from score_core.transfer.download import Download
from score_core.transfer.engine import Engine, Throttle
from score_core.transfer.policy import needs_new_url
from score_core.transfer.stop import Stop
from score_core.transfer.upload import SourceDigest, UploadSession
from score_core.transfer.urls import Signer


@dataclass(frozen=True)
class Ref:
    """Names an open transfer. `key` is a download's journal generation or an upload's id; `path` the local file, absolute."""

    key: str
    object_id: str
    path: str


@dataclass
class Transfer:
    """An open transfer with what its parts need.

    `moved` counts bytes per part that went over the wire in this run, `cached` parts whose result Prefect had. `sign` is the repository's
    own signer, below the `sign_urls` task.
    """

    ref: Ref
    session: Download | UploadSession
    engine: Engine
    stop: Stop
    throttle: Throttle
    sign: Signer
    digest: SourceDigest | None = None
    moved: dict[int, int] = field(default_factory=dict)
    retries: int = 0
    cached: int = 0

    def move(self, part: Part) -> PartReceipt:
        """One attempt at one part, as the direct engine makes it; a failed one leaves a hint for the next."""
        try:
            with self.throttle.slot(self.stop):
                receipt = self.session.attempt(part, transport=self.engine.transport, stop=self.stop)
        except ScoreError as error:
            self.retries += 1
            if needs_new_url(error):
                self.session.urls.forget()
            elif isinstance(error, TransientError) and error.busy:
                self.throttle.went_badly(error.retry_after_s or 0.0)
            raise
        self.throttle.went_well()
        self.moved[part.number] = receipt.moved
        return receipt


_open: Final[dict[str, Transfer]] = {}
_lock: Final = threading.Lock()
_engines: Final = ExitStack()
atexit.register(_engines.close)


@functools.cache
def engine(store: str | None) -> Engine:
    """What transfers with a store run with in this process; None means where the settings say. Open until the process ends."""
    return _engines.enter_context(open_engine(load({"store": store})))


def add(session: Download | UploadSession, engine: Engine, path: str) -> Ref:
    """Registers an open transfer until `close`."""
    ref = Ref(key=session.key, object_id=session.object_id, path=path)
    stop = engine.stop.child()
    with _lock:
        _open[ref.key] = Transfer(ref, session, engine, stop, Throttle(engine.workers), session.urls.sign)
    return ref


def get(ref: Ref) -> Transfer:
    """The open transfer. Raises `ConfigurationError` when it was opened in another process."""
    transfer = _open.get(ref.key)
    if transfer is None:
        raise ConfigurationError(
            f"The transfer of object {ref.object_id} is not open in this process: run its parts with ThreadPoolTaskRunner"
        )
    return transfer


def stop_all(signal_number: int | None = None) -> None:
    """Asks all transfers of this process to stop at their next block."""
    for transfer in list(_open.values()):
        transfer.stop.set(signal_number)


def close(ref: Ref) -> None:
    """Ends a transfer's use of its files. Quiet when it is closed already."""
    with _lock:
        transfer = _open.pop(ref.key, None)
    if transfer is not None:
        transfer.stop.set()
        with suppress(OSError):
            transfer.session.close()
