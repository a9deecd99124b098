"""Signed URLs for the parts of one transfer: signed late, in small batches, never stored."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from score_core.model import Part, SignedUrl

_MARGIN_SHARE: Final = 0.2  # a URL in the last fifth of its life is not begun with: the request has to arrive in time
_MAX_MARGIN_S: Final = 60.0
_UNKNOWN_LIFE_S: Final = 60.0  # by a clock that is ahead of the signer's, every URL is born expired: then the store's word counts

Signer = Callable[[Sequence[Part]], list[SignedUrl]]


class Urls(Protocol):
    """What a driver needs of a session's URLs. `signings` counts how often somebody was asked for some."""

    signings: int

    def forget(self) -> None:
        """Drops all URLs at hand, after one was refused: its siblings are as old."""
        ...


class UrlSource:
    """Hands out a fresh URL per part. Thread-safe; one caller signs while the others wait for the result.

    A batch begins at the part that is asked for and takes the parts that follow it in `parts` order: they will be asked for next.
    `signings` counts calls of the signer, `sign`, which a driver may wrap (Prefect makes it a task).
    """

    def __init__(self, parts: Sequence[Part], sign: Signer, *, batch: int = 32, clock: Callable[[], float] = time.time) -> None:
        self._parts = list(parts)
        self._place = {part.number: place for place, part in enumerate(self._parts)}
        self.sign = sign
        self._batch = batch
        self._clock = clock
        self._urls: dict[int, tuple[SignedUrl, float]] = {}
        self._lock = threading.Lock()
        self.signings = 0

    def get(self, part: Part) -> SignedUrl:
        """A URL that is still good for a while. It is forgotten here: a retry gets another one."""
        with self._lock:
            cached = self._urls.pop(part.number, None)
            if cached is None or not _is_fresh(*cached, now=self._clock()):
                self._sign_from(part)
                cached = self._urls.pop(part.number)
            return cached[0]

    def _sign_from(self, part: Part) -> None:
        place = self._place[part.number]
        batch = self._parts[place : place + self._batch]
        now = self._clock()
        for signed, url in zip(batch, self.sign(batch), strict=True):
            self._urls[signed.number] = (url, now)
        self.signings += 1

    def forget(self) -> None:
        with self._lock:
            self._urls.clear()


class SharedUrl:
    """Hands out one URL to all who ask, for as long as it is good: for reading here and there in an object. Thread-safe."""

    def __init__(self, sign: Callable[[], SignedUrl], *, clock: Callable[[], float] = time.time) -> None:
        self._sign = sign
        self._clock = clock
        self._url: tuple[SignedUrl, float] | None = None
        self._lock = threading.Lock()
        self.signings = 0

    def get(self) -> SignedUrl:
        """A URL that is still good for a while."""
        with self._lock:
            if self._url is None or not _is_fresh(*self._url, now=self._clock()):
                now = self._clock()
                self._url = (self._sign(), now)
                self.signings += 1
            return self._url[0]

    def forget(self) -> None:
        with self._lock:
            self._url = None


def _is_fresh(url: SignedUrl, signed_at: float, *, now: float) -> bool:
    life_s = url.expires_at - signed_at
    if life_s <= 0:
        return now < signed_at + _UNKNOWN_LIFE_S
    return now < url.expires_at - min(_MAX_MARGIN_S, _MARGIN_SHARE * life_s)
