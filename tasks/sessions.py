"""The transfers that are under way in this process, by key.

Task arguments and results must be small and free of secrets, so tasks pass a `Ref` and find the open files, connections and signed URLs
here. A part task therefore runs in the process of its flow (`ThreadPoolTaskRunner`); to use many hosts, fan out by file with deployments.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from score_core.errors import ConfigurationError, Interrupted, ScoreError
from score_core.metadata.base import Metadata
from score_core.model import Part, PartReceipt
from score_core.session import open_engine, open_metadata
from score_core.settings import Settings, load
from score_core.transfer.download import Download
from score_core.transfer.engine import Engine, Throttle, Tries
from score_core.transfer.stop import Stop
from score_core.transfer.upload import SourceDigest, UploadSession
from score_core.transfer.urls import Signer

_GRACE_S: Final = 1.5  # how long running parts may take to notice a stop; they look between blocks


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
    own signer, below the `sign_urls` task. Thread-safe.
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
    _tries: dict[int, Tries] = field(default_factory=dict)
    _pauses: dict[int, float] = field(default_factory=dict)
    _moving: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def move(self, part: Part) -> PartReceipt:
        """One attempt at one part, as the direct engine makes it.

        A failed one leaves the pause for the next, which is made here and not by Prefect: Prefect's sleep hears of no stop.
        """
        with self._counted():
            self.stop.wait(self._pauses.pop(part.number, 0.0))
            try:
                with self.throttle.slot(self.stop):
                    receipt = self.session.attempt(part, transport=self.engine.transport, stop=self.stop)
            except ScoreError as error:
                self._prepare_next(part, error)
                raise
        self.throttle.went_well()
        self.moved[part.number] = receipt.moved
        return receipt

    def _prepare_next(self, part: Part, error: ScoreError) -> None:
        pause = self._tries.setdefault(part.number, Tries(self.engine, self.session, part)).failed(error)
        if pause is not None:
            self._pauses[part.number] = pause
            with self._changed:
                self.retries += 1

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._changed:
            self._moving += 1
        try:
            yield
        finally:
            with self._changed:
                self._moving -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Stops the parts and closes the files, unless a part is stuck in them: then they are left to the end of the process."""
        self.stop.set()
        with self._changed:
            idle = self._changed.wait_for(lambda: self._moving == 0, _GRACE_S)
        if idle:
            with suppress(OSError):
                self.session.close()


_open: Final[dict[str, Transfer]] = {}
_closed: Final[set[str]] = set()
_engines: Final[dict[str | None, Engine]] = {}
_metadata: Final[dict[str | None, Metadata | None]] = {}
_closing: Final = ExitStack()
_lock: Final = threading.Lock()
atexit.register(_closing.close)


def engine(store: str | None) -> Engine:
    """What transfers with a store, or with the Score server of that address, run with in this process; None means where the settings say.

    Open until the process ends.
    """
    with _lock:
        if store not in _engines:
            _engines[store] = _closing.enter_context(open_engine(_settings(store)))
        return _engines[store]


def metadata(store: str | None) -> Metadata | None:
    """Who knows the files of a store, None if nobody does. Open until the process ends."""
    repository = engine(store).repository
    with _lock:
        if store not in _metadata:
            _metadata[store] = opened = open_metadata(_settings(store), repository)
            if opened is not None:
                _closing.callback(opened.close)
        return _metadata[store]


def _settings(store: str | None) -> Settings:
    is_server = store is not None and store.startswith(("http://", "https://"))
    return load({"url" if is_server else "store": store})


def use_engine(store: str | None, engine: Engine, metadata: Metadata | None = None) -> None:
    """Has transfers with `store` run with an engine of the caller, who closes it: for programs with settings of their own, and tests."""
    with _lock:
        _engines[store] = engine
        _metadata[store] = metadata


def add(session: Download | UploadSession, engine: Engine, path: str) -> Ref:
    """Registers an open transfer until `close`."""
    ref = Ref(key=session.key, object_id=session.object_id, path=path)
    stop = engine.stop.child()
    with _lock:
        _closed.discard(ref.key)
        _open[ref.key] = Transfer(ref, session, engine, stop, engine.throttle, session.urls.sign)
    return ref


def get(ref: Ref) -> Transfer:
    """The open transfer.

    Raises:
        Interrupted: it was closed before this part's turn came.
        ConfigurationError: it was opened in another process.
    """
    transfer = _open.get(ref.key)
    if transfer is None and ref.key in _closed:
        raise Interrupted
    if transfer is None:
        raise ConfigurationError(
            f"The transfer of object {ref.object_id} is not open in this process: run its parts with ThreadPoolTaskRunner"
        )
    return transfer


def stop_all(signal_number: int | None = None) -> None:
    """Asks all transfers of this process, whole files too, to stop at their next block, and those that would come after them."""
    for engine in list(_engines.values()):
        engine.stop.set(signal_number)


def close(ref: Ref) -> None:
    """Ends a transfer's use of its files. Quiet when it is closed already."""
    with _lock:
        transfer = _open.pop(ref.key, None)
        _closed.add(ref.key)
    if transfer is not None:
        transfer.close()
