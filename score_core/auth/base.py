"""Who is calling, and what a scope allows (protocol section 9)."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from score_core.errors import AuthenticationError

_log = logging.getLogger(__name__)

MAX_TOKEN_CHARACTERS: Final = 16_384  # real ones have 36 to about 4,000; nothing longer is parsed, hashed or sent on
_SENDABLE: Final = re.compile(r"[\x21-\x7e]+")  # printable ASCII without blanks


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose token was found good. `name` is for the audit log; `expires_at` in seconds since the epoch, None: it does not."""

    name: str
    scopes: frozenset[str]
    expires_at: float | None = None


@runtime_checkable
class Authenticator(Protocol):
    """Turns the text after `Bearer ` into a caller. Safe to call from several threads."""

    def authenticate(self, token: str) -> Principal:
        """The caller.

        Raises:
            AuthenticationError: the token is bad, expired or foreign. The message never says more, and never holds the token.
            Unavailable: the service that knows it cannot be asked.
        """
        ...

    def close(self) -> None:
        """Frees connections."""
        ...


@dataclass(frozen=True, slots=True)
class ScopeRules:
    """Which scopes allow what. A study's scope is prefix, study id and suffix put together, nothing more (protocol section 9.7).

    Scopes are compared as they stand: Java's comparison ignores case, so that two studies that differ by case share their scopes.
    """

    download_system: str = "score.READ"
    download_prefix: str = "PROGRAMDATA-"
    download_suffix: str = ".READ"
    upload_system: str = "score.WRITE"
    upload_prefix: str = "PROGRAMDATA-"
    upload_suffix: str = ".WRITE"

    def downloads_all(self, caller: Principal | None) -> bool:
        return caller is not None and self.download_system in caller.scopes

    def uploads_all(self, caller: Principal | None) -> bool:
        return caller is not None and self.upload_system in caller.scopes

    def may_download(self, caller: Principal | None, study_id: str) -> bool:
        return self.downloads_all(caller) or _has(caller, self.download_prefix, study_id, self.download_suffix)

    def may_upload(self, caller: Principal | None, study_id: str) -> bool:
        return self.uploads_all(caller) or _has(caller, self.upload_prefix, study_id, self.upload_suffix)


def _has(caller: Principal | None, prefix: str, study_id: str, suffix: str) -> bool:
    return caller is not None and bool(study_id) and f"{prefix}{study_id}{suffix}" in caller.scopes


def refusal(why: str) -> AuthenticationError:
    """What every bad token gets, whatever is wrong with it. `why` goes to the log, so it must hold nothing that a caller sent."""
    _log.info("Access token refused: %s", why)
    return AuthenticationError("The access token is not accepted: it is wrong, has expired, or was made for another service")


def is_sendable(token: str) -> bool:
    """Whether this can be a token at all: not empty, not long, printable ASCII without blanks or line breaks."""
    return len(token) <= MAX_TOKEN_CHARACTERS and _SENDABLE.fullmatch(token) is not None
