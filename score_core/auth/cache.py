"""What an authenticator said is remembered for a moment: Java asks the auth server at every request."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from cachetools import TLRUCache, TTLCache

from score_core.auth.base import Authenticator, Principal, refusal
from score_core.errors import AuthenticationError

DEFAULT_LIFE_S: Final = 30.0
_BAD_LIFE_S: Final = 3.0  # enough to take the load of a client that tries again and again


class Cached:
    """An `Authenticator` that asks `authenticator` once per token and `life_s`, and once for all threads that bring a token together.

    So a key that is revoked works for up to `life_s` more; an expired one does not. Bad tokens are remembered for three seconds, in a
    place of their own, so that a flood of them pushes no good one out. `Unavailable` is not remembered. Tokens are known by their SHA-256
    only. Closes `authenticator`.

    Args:
        size: good answers held at once; the least recently used go first. As many bad ones.
        clock: seconds since the epoch, which `Principal.expires_at` counts.
        timer: seconds of a clock that never jumps.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        life_s: float = DEFAULT_LIFE_S,
        size: int = 4096,
        *,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authenticator = authenticator
        self._clock = clock
        self._lock = threading.Lock()
        self._good: TLRUCache[bytes, Principal] = TLRUCache(size, lambda _key, _caller, now: now + life_s, timer)
        self._bad: TTLCache[bytes, None] = TTLCache(size, min(life_s, _BAD_LIFE_S), timer)
        self._asking: dict[bytes, Future[Principal]] = {}

    def authenticate(self, token: str) -> Principal:
        key = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            known = self._good.get(key)
            if known is not None and (known.expires_at is None or self._clock() < known.expires_at):
                return known
            if key in self._bad:
                raise refusal("it was refused a moment ago")
            answer = self._asking.get(key)
            asks = answer is None
            if answer is None:
                answer = self._asking[key] = Future()
        if asks:
            self._ask(token, key, answer)
        return answer.result()

    def close(self) -> None:
        self._authenticator.close()

    def _ask(self, token: str, key: bytes, answer: Future[Principal]) -> None:
        """Settles `answer`, whatever happens: others may be waiting for it."""
        try:
            caller = self._authenticator.authenticate(token)
        except BaseException as error:  # noqa: BLE001  # it is raised by answer.result(), here too
            with self._lock:
                if isinstance(error, AuthenticationError):
                    self._bad[key] = None
                del self._asking[key]
            answer.set_exception(error)
        else:
            with self._lock:
                self._good[key] = caller
                del self._asking[key]
            answer.set_result(caller)
