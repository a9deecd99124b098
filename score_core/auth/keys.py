"""The public keys that sign JWTs: from a file, or from a web address where they change now and then."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import PyJWK, PyJWTError

from score_core.auth.server import AuthServer, unavailable
from score_core.errors import ConfigurationError, Unavailable

_log = logging.getLogger(__name__)

_LIFE_S: Final = 300.0  # a key that its owner withdrew is used no longer than this
_REFETCH_S: Final = 30.0  # at most one look for a kid that we do not know, since anybody can make up kids
_FIRST_RETRY_S: Final = 5.0  # while we have no keys at all
_STALE_S: Final = 86_400.0  # tokens from before an outage of the auth server go on working for a day, if they live that long
_PUBLIC_KINDS: Final = ("RSA", "EC", "OKP")  # never "oct", a shared secret
_MAX_KEY_FILE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Key:
    """A public key. `kid` None: it may be any token's. `algorithm` is the only one that it is for, None: any of its kind."""

    public: Any
    kid: str | None = None
    algorithm: str | None = None


class Keys(Protocol):
    """Where keys come from. Safe to use from several threads."""

    def matching(self, kid: str | None) -> tuple[Key, ...]:
        """The keys that may have signed a token with this `kid`, or with none. `kid` is compared, never followed.

        Raises:
            Unavailable: the key is not known, and the place where it might be is not reached.
        """
        ...

    def close(self) -> None:
        """Frees connections."""
        ...


class FileKeys:
    """The keys of a file, PEM or JWKS, read once.

    Raises:
        ConfigurationError: it cannot be read, or holds no public key.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                content = file.read(_MAX_KEY_FILE_BYTES)
            self.keys = parse_keys(content)
        except OSError as error:
            raise ConfigurationError(f"The public key {path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigurationError(f"{path} cannot be used as a public key: {error}") from None

    def matching(self, kid: str | None) -> tuple[Key, ...]:
        return _matching(self.keys, kid)

    def close(self) -> None:
        """Nothing to free."""


class RemoteKeys:
    """The keys at a web address, PEM or JWKS: fetched when first needed, and again every five minutes.

    A kid that is not among them makes for one more fetch, at most every 30 s. While the server is out of order, the keys it had are used
    for up to a day. Closes `server`. `clock` counts seconds.
    """

    def __init__(self, server: AuthServer, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._clock = clock
        self._fetching = threading.Lock()
        self._keys: tuple[Key, ...] = ()
        self._tried_at = self._fetched_at = float("-inf")
        self._failed = False  # the last try

    def matching(self, kid: str | None) -> tuple[Key, ...]:
        found = self._known(kid)
        if self._is_due(found) and self._fetching.acquire(blocking=not found):  # who has a key does not wait for newer ones
            try:
                if self._is_due(self._known(kid)):  # else: another thread was before us
                    self._fetch()
            finally:
                self._fetching.release()
            found = self._known(kid)
        if not found and self._failed:
            raise unavailable("it gave no keys when last asked, and this one is not among those it gave before")
        return found

    def close(self) -> None:
        self._server.close()

    def _known(self, kid: str | None) -> tuple[Key, ...]:
        return _matching(self._keys, kid) if self._clock() - self._fetched_at < _STALE_S else ()

    def _is_due(self, found: tuple[Key, ...]) -> bool:
        pause = _FIRST_RETRY_S if not self._keys else _LIFE_S if found and not self._failed else _REFETCH_S
        return self._clock() - self._tried_at >= pause

    def _fetch(self) -> None:
        """Gets newer keys; keeps the old ones if there are none to be had."""
        self._failed = True
        try:
            answer = self._server.ask("GET")
            if answer.status != 200:
                raise ValueError(f"status {answer.status}")
            self._keys = parse_keys(answer.body)
            self._fetched_at = self._clock()
            self._failed = False
        except Unavailable:
            pass  # logged where it was raised; `matching` decides what the caller gets
        except ValueError as error:
            _log.warning("The auth server gave no keys: %s", error)
        finally:
            self._tried_at = self._clock()  # after a wait, so that callers who waited too do not begin another one


def parse_keys(content: bytes) -> tuple[Key, ...]:
    """The public keys in a PEM or a JWKS document; entries of a JWKS that are private, shared, for encryption or unknown are left out.

    Raises:
        ValueError: there is none; never shows the content.
    """
    content = content.strip()
    if content.startswith(b"-----BEGIN"):
        return (_pem_key(content),)
    try:
        entries = json.loads(content)["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError("it is neither a PEM (BEGIN PUBLIC KEY) nor a JWKS") from None
    keys = tuple(_jwks_keys(entries if isinstance(entries, list) else []))
    if not keys:
        raise ValueError("there is no usable public key in this JWKS")
    return keys


def _pem_key(content: bytes) -> Key:
    if b"PRIVATE" in content.partition(b"\n")[0]:
        raise ValueError("it is a private key, which must not be here")
    try:
        return Key(load_pem_public_key(content))
    except Exception:  # noqa: BLE001  # cryptography's list is long: ValueError, UnsupportedAlgorithm, ...
        raise ValueError("it is not a PEM public key (BEGIN PUBLIC KEY)") from None


def _jwks_keys(entries: Iterable[Any]) -> Iterable[Key]:
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("kty") not in _PUBLIC_KINDS or "d" in entry or entry.get("use", "sig") != "sig":
            continue
        try:
            yield Key(PyJWK(entry).key, entry.get("kid"), entry.get("alg"))
        except (PyJWTError, ValueError, TypeError):
            continue  # such as alg RSA-OAEP, which Keycloak lists too


def _matching(keys: tuple[Key, ...], kid: str | None) -> tuple[Key, ...]:
    return tuple(key for key in keys if kid is None or key.kid is None or key.kid == kid)
