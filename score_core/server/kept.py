"""Answers and what they are made from, kept for some seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from cachetools import TTLCache

_V = TypeVar("_V")


class Kept(Generic[_V]):
    """Values that are good for `life_s` seconds, by key, of no more than `max_bytes` together by what `size_of` says of each.

    Who asks for one that is being made waits for it. Thread-safe.
    """

    def __init__(self, max_bytes: int, life_s: float, *, size_of: Callable[[_V], int]) -> None:
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._values: TTLCache[str, _V] = TTLCache(max_bytes, life_s, timer=time.monotonic, getsizeof=size_of)
        self._making: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: str, make: Callable[[], _V]) -> _V:
        """The value at hand, or a new one. What `make` raises is nobody else's answer."""
        with self._lock:
            if (known := self._values.get(key)) is not None:
                return known
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                known = self._values.get(key)
            return self._made(key, make) if known is None else known

    def _made(self, key: str, make: Callable[[], _V]) -> _V:
        try:
            value = make()
            with self._lock:
                if self._size_of(value) <= self._max_bytes:
                    self._values[key] = value
            return value
        finally:
            with self._lock:
                self._making.pop(key, None)

    def forget(self, key: str) -> None:
        with self._lock:
            self._values.pop(key, None)
