"""What Ctrl-C and a polite kill do."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, Self

from score_core.errors import Interrupted
from score_core.transfer.stop import Stop

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """While entered: the first signal sets `stop`, the second leaves at once.

    Inside `graceful` the running work is trusted to look at `stop`; outside, the first signal raises `Interrupted` where the main
    thread stands, for example in a request. Does nothing in a thread other than the main one.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._graceful = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._arrived) for number in _SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned

    @contextmanager
    def graceful(self) -> Iterator[None]:
        self._graceful = True
        try:
            self._stop.check()
            yield
        finally:
            self._graceful = False

    def _arrived(self, number: int, _frame: FrameType | None) -> None:
        if self._stop.is_set():
            os._exit(128 + number)
        self._stop.set(number)
        if not self._graceful:
            raise Interrupted(signal_number=number)
