"""Asking running work to stop."""

from __future__ import annotations

import threading
import weakref

from score_core.errors import Interrupted


class Stop:
    """A flag that work looks at between blocks. Setting one sets its children; a child can be set alone.

    `set` is safe in a signal handler of the main thread: it takes no lock that a reader holds.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._children: weakref.WeakSet[Stop] = weakref.WeakSet()
        self.signal_number: int | None = None

    def child(self) -> Stop:
        """A flag that is set with this one, for a group of work that may also be stopped by itself."""
        child = Stop()
        self._children.add(child)
        if self.is_set():
            child.set(self.signal_number)
        return child

    def set(self, signal_number: int | None = None) -> None:
        self.signal_number = signal_number
        self._event.set()
        for child in list(self._children):
            child.set(signal_number)

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleeps for `seconds` unless asked to stop before; True if asked to."""
        return self._event.wait(seconds)

    def check(self) -> None:
        """Raises `Interrupted` when asked to stop."""
        if self._event.is_set():
            raise Interrupted(signal_number=self.signal_number or 2)
