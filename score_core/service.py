"""Requests to a service (Score, Song): the one place for tokens, retries, refusals and redirects of the control plane.

| answer | is |
| --- | --- |
| 401 | `AuthenticationError`, after the token was read again from its file, once |
| 403 | `AccessDenied`: final |
| 404 | `ObjectNotFound`: final |
| 409 | `Conflict`: final |
| 400 and other 4xx | `Refused`: final; the caller knows what it means here |
| 500 | `ServiceError`: final, for Java servers answer it for many mistakes of the user (protocol section 21.10) |
| 408, 425, 429, other 5xx, no answer | tried again with growing pauses or as long as the server asks, then `Unavailable` |

A redirect is never followed: the token would go to whoever it names.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import httpx

from score_core import __version__
from score_core.errors import (
    AccessDenied,
    AuthenticationError,
    ConfigurationError,
    Conflict,
    LocalFileError,
    ObjectNotFound,
    ScoreError,
    ServiceError,
    TransientError,
    Unavailable,
    redact,
)
from score_core.hosts import is_loopback
from score_core.transfer.policy import RetryPolicy
from score_core.transfer.stop import Stop

_log = logging.getLogger(__name__)

Method = Literal["GET", "POST", "PUT", "DELETE"]
Params = Mapping[str, Any]  # values are texts, numbers, booleans (written as Java does), or lists of texts

_TELLS_AT: Final = 4  # attempts, some 2 s
_BUSY: Final = frozenset({408, 425, 429})
_MAX_SAID_CHARACTERS: Final = 300
_MAX_TOKEN_BYTES: Final = 16_384
_KINDS: Final[dict[int, type[ServiceError]]] = {401: AuthenticationError, 403: AccessDenied, 404: ObjectNotFound, 409: Conflict}
_PHRASES: Final = frozenset(status.phrase for status in HTTPStatus)  # what Spring says without `message` is the status once more
_TEXTS: Final = ("message", "error_description", "detail", "title", "error")  # Spring's, Song's, OAuth's and problem+json's reasons


class Refused(ServiceError):
    """The service says that the request itself is wrong (400 and its kind): nobody needs to send it again.

    `reason` is its own word for why, empty if it gives none (Java servers since 5.11 do not).
    """

    def __init__(self, message: str, *, status: int | None = None, reason: str = "") -> None:
        super().__init__(message, status=status)
        self.reason = redact(reason)


class Token:
    """A bearer token: a text, or a file that is read again when a server refuses what was in it. Thread-safe; shows in no `repr`.

    `scheme` is what it is sent as (RFC 9110, 11.6.2).

    Raises:
        ConfigurationError: it is no token: not ASCII, several lines, or too long.
        LocalFileError: the file cannot be read.
    """

    def __init__(self, text: str | None = None, *, file: Path | None = None, scheme: str = "Bearer") -> None:
        self.scheme = scheme
        self._file = file
        self._lock = threading.Lock()
        self._text = _token(text or "", "The token") if file is None else _read_token(file)

    @property
    def text(self) -> str | None:
        """The token, None for an anonymous caller."""
        return self._text

    def renewed(self, refused: str | None) -> bool:
        """Whether there is another token than the refused one: from the file, read again by the first thread that asks."""
        with self._lock:
            if self._text == refused and self._file is not None:
                try:
                    self._text = _read_token(self._file) or refused  # empty: somebody is just writing it
                except ScoreError as error:
                    _log.warning("The token was refused, and there is no new one: %s", error)
            return self._text != refused


def _read_token(file: Path) -> str | None:
    try:
        with file.open("rb") as opened:
            text = opened.read(_MAX_TOKEN_BYTES + 1).decode("latin-1")  # anything goes here: what is no token is refused below
    except OSError as error:
        raise LocalFileError(f"The token file {file} cannot be read: {error.strerror}") from error
    return _token(text, f"The token in {file}")


def _token(text: str, what: str) -> str | None:
    text = text.strip()
    if len(text) > _MAX_TOKEN_BYTES or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigurationError(f"{what} is none: it must be one line of at most {_MAX_TOKEN_BYTES} ASCII characters without blanks")
    return text or None


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """How a service is talked to. `ca_file` holds certificate authorities (PEM) instead of the system's.

    `allow_plain_http` lets a token go over http to another machine, where others can read it.
    """

    connect_timeout_s: float = 30.0
    read_timeout_s: float = 60.0
    ca_file: Path | None = None
    allow_plain_http: bool = False

    def certificates(self) -> ssl.SSLContext | bool:
        """For httpx' `verify`. Raises `ConfigurationError`."""
        if self.ca_file is None:
            return True
        try:
            return ssl.create_default_context(cafile=str(self.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"The certificates in {self.ca_file} cannot be used: {error}") from error


class ServiceClient:
    """One service at `url`. Safe to call from several threads; close it.

    `name` is what messages call it. Nothing is sent before the first request. `stop` ends waiting between attempts.

    Raises:
        ConfigurationError: a token would go over plain http to another machine, and `allow_plain_http` is false.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        token: Token | None = None,
        policy: RetryPolicy | None = None,
        options: ServiceOptions | None = None,
        stop: Stop | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.name = name
        self.token = token or Token()
        self.policy = policy or RetryPolicy()
        self.options = options or ServiceOptions()
        self._stop = stop or Stop()
        self._headers(self.token.text)
        self._client = httpx.Client(
            timeout=httpx.Timeout(self.options.read_timeout_s, connect=self.options.connect_timeout_s),
            verify=self.options.certificates(),
            follow_redirects=False,
            trust_env=not is_loopback(_host(self.url)),  # a proxy elsewhere does not reach this machine, and would read the token
            headers={"User-Agent": f"score-for-python/{__version__}", "Accept": "application/json, text/plain;q=0.9, */*;q=0.5"},
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=32),
        )

    def get(self, path: str, **options: Any) -> httpx.Response:
        """`request` with GET."""
        return self.request("GET", path, **options)

    def request(
        self,
        method: Method,
        path: str,
        *,
        params: Params | None = None,
        json: Any = None,
        attempts: int | None = None,
        read_timeout_s: float | None = None,
    ) -> httpx.Response:
        """The answer, with a status below 300. `path` is put behind the service's address as it stands: quote what is in it.

        Raises:
            ServiceError: as the table of this module says.
            Interrupted: `stop` was set while it waited to try again.
        """
        last = attempts or self.policy.attempts
        for attempt in range(1, last + 1):
            try:
                return self.once(method, path, params=params, json=json, read_timeout_s=read_timeout_s)
            except TransientError as error:
                pause = None if attempt == last else self.policy.pause_s(error, attempt)
                if pause is None:
                    raise Unavailable(f"{error}; tried {attempt} times" if attempt > 1 else str(error)) from None
                level = logging.WARNING if attempt == _TELLS_AT else logging.INFO  # once: whoever waits at a terminal shall know for what
                _log.log(level, "%s; trying again in %.1f s", error, pause)
                self.pause(pause)
        raise AssertionError("the loop ends by return or raise")

    def once(
        self, method: Method, path: str, *, params: Params | None = None, json: Any = None, read_timeout_s: float | None = None
    ) -> httpx.Response:
        """As `request`, with one attempt (and another with a new token if the old one was refused).

        Raises:
            TransientError: the same may work later.
            ServiceError: for all else.
        """
        request: dict[str, Any] = {"params": params, "json": json}
        if read_timeout_s is not None:
            request["timeout"] = httpx.Timeout(read_timeout_s, connect=self.options.connect_timeout_s)
        token = self.token.text
        response = self._sent(method, path, request, token)
        if response.status_code == 401 and self.token.renewed(token):
            token = self.token.text
            response = self._sent(method, path, request, token)
        return self._checked(response, token)

    def _sent(self, method: str, path: str, request: Mapping[str, Any], token: str | None) -> httpx.Response:
        try:
            return self._client.request(method, self.url + path, headers=self._headers(token), **request)
        except httpx.TimeoutException as error:
            raise TransientError(f"{self.name} at {self.url} did not answer in time ({type(error).__name__})") from None
        except httpx.TransportError as error:
            raise TransientError(f"{self.name} at {self.url} is not reached ({_cause(error)}); check the address and the network") from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise ServiceError(f"{self.name} at {self.url} cannot be asked ({type(error).__name__}); check the address") from None

    def _headers(self, token: str | None) -> dict[str, str]:
        if token is None:
            return {}
        if not self.options.allow_plain_http and not is_private_line(self.url):
            raise ConfigurationError(
                f"A token is not sent to {self.url} over plain http, where others can read it; use https, or set allow_plain_http"
            )
        return {"Authorization": f"{self.token.scheme} {token}"}

    def _checked(self, response: httpx.Response, token: str | None) -> httpx.Response:
        status = response.status_code
        if status < 300:
            return response
        what = f"{self.name} at {self.url} answered {status} to {response.request.method} {response.request.url.path}"
        if status < 400:
            raise ServiceError(f"{what}, a redirect, which is not followed; use the address that it leads to", status=status)
        said = reason(response, secret=token)
        what = f"{what}: {said}" if said else what
        if status in _BUSY or status > 500:
            raise TransientError(what, busy=status in {429, 503}, retry_after_s=_retry_after_s(response))
        if not token and status in {401, 403}:  # our server answers 403 where a token would have made a difference
            what += "; no token is set (ACCESSTOKEN or SCORE_TOKEN_FILE)"
        elif status == 401:
            what += "; the token is wrong or has expired"
        kind = _KINDS.get(status) or (ServiceError if status >= 500 else None)
        raise Refused(what, status=status, reason=said) if kind is None else kind(what, status=status)

    def pause(self, seconds: float) -> None:
        """Waits between attempts. Raises `Interrupted` when asked to stop meanwhile."""
        self._stop.wait(seconds)
        self._stop.check()

    def close(self) -> None:
        """Frees connections."""
        self._client.close()


def reason(response: httpx.Response, *, secret: str | None = None) -> str:
    """What the body says went wrong, in any of the forms that Score, Song and their auth servers use; empty if nothing (section 3.2).

    `secret` is what it must not repeat: some servers quote the token that they refuse.
    """
    try:
        said = _said(response.json())
    except (ValueError, RecursionError):
        said = "" if response.text.lstrip().startswith("<") else response.text.strip()
    if secret:
        said = said.replace(secret, "<redacted>")
    return said[:_MAX_SAID_CHARACTERS]


def _said(body: Any) -> str:
    if isinstance(body, dict):
        texts = [text for key in _TEXTS if isinstance(text := body.get(key), str) and text.strip()]
        return next((text for text in texts if text not in _PHRASES), "")
    return body if isinstance(body, str) else ""


def is_private_line(url: str) -> bool:
    """Whether nobody on a network can listen: https, or a host that is this machine."""
    return url.lower().startswith("https://") or is_loopback(_host(url))


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _cause(error: Exception) -> str:
    return type(error).__name__ if not str(error) else f"{type(error).__name__}: {str(error)[:120]}"


def _retry_after_s(response: httpx.Response) -> float | None:
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        sent = parsedate_to_datetime(response.headers["Date"])
        return max(0.0, (parsedate_to_datetime(text) - sent).total_seconds())
    except (KeyError, TypeError, ValueError):
        return None
