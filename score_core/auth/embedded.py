"""One shared token: what a server has that nobody configured."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from score_core.auth.base import MAX_TOKEN_CHARACTERS, Principal, ScopeRules, is_sendable, refusal
from score_core.errors import ConfigurationError

_log = logging.getLogger(__name__)

NAME: Final = "embedded"
SYSTEM_SCOPES: Final = frozenset({ScopeRules().download_system, ScopeRules().upload_system})
_TOKEN_BYTES: Final = 32
_MIN_CHARACTERS: Final = 16  # a shared token never expires and can be guessed at leisure


class EmbeddedToken:
    """An `Authenticator` that knows one token, which may do everything `scopes` say and does not expire.

    Args:
        token: a `Path` is a file that holds it, a `str` the token itself.
        scopes: by default reading and writing everything.

    Raises:
        ConfigurationError: the file cannot be read, or the token is too short or not printable ASCII.
    """

    def __init__(self, token: str | Path, *, scopes: Iterable[str] = SYSTEM_SCOPES) -> None:
        value = _read(token) if isinstance(token, Path) else _usable(token, "The embedded token")
        self._digest = _digest(value)
        self._caller = Principal(NAME, frozenset(scopes))

    def matches(self, token: str) -> bool:
        """Whether it is the one, in a time that says nothing about how much of it is right, or how long the right one is."""
        return hmac.compare_digest(_digest(token), self._digest)

    def authenticate(self, token: str) -> Principal:
        if not self.matches(token):
            raise refusal("it is not the embedded token")
        return self._caller

    def close(self) -> None:
        """Nothing to free."""


def make_token_file(path: Path) -> str:
    """The token in the file `path`. A missing file is made, with 32 random bytes (urlsafe base64) and for its owner only.

    Processes that start at once agree on one token, and none sees half of it. A file that others can read is used, with a warning.

    Raises:
        ConfigurationError: the file cannot be made or read, or what it holds is no token.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _publish(path, secrets.token_urlsafe(_TOKEN_BYTES))
    except OSError as error:
        raise ConfigurationError(f"The token file {path} cannot be made: {error.strerror}") from error
    return _read(path)


def _publish(path: Path, token: str) -> None:
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(aside, "x", encoding="ascii", opener=functools.partial(os.open, mode=0o600)) as file:
            file.write(f"{token}\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was first: its token counts
            os.link(aside, path)  # unlike a rename, never over an existing file
    finally:
        aside.unlink(missing_ok=True)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MAX_TOKEN_CHARACTERS + 2)  # and a line break
    except OSError as error:
        raise ConfigurationError(f"The token file {path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        _log.warning("%s holds a token and other users can read it; run: chmod 600 %s", path, path)
    return _usable(content.decode("ascii", "replace").strip(), f"The token in {path}")


def _usable(token: str, what: str) -> str:
    if len(token) < _MIN_CHARACTERS or not is_sendable(token):
        raise ConfigurationError(f"{what} must be {_MIN_CHARACTERS} to {MAX_TOKEN_CHARACTERS} printable ASCII characters without spaces")
    return token


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
