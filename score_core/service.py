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

import ipaddress
import logging
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
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
    ServiceError,
    TransientError,
    Unavailable,
)
from score_core.transfer.policy import RetryPolicy
from score_core.transfer.stop import Stop

_log = logging.getLogger(__name__)

Params = Mapping[str, Any]  # values are texts, numbers, booleans, or lists of texts

_BUSY: Final = frozenset({408, 425, 429})
_MAX_SAID_CHARACTERS: Final = 300
_MAX_TOKEN_BYTES: Final = 16_384
_KINDS: Final[dict[int, type[ServiceError]]] = {401: AuthenticationError, 403: AccessDenied, 404: ObjectNotFound, 409: Conflict}
_TEXTS: Final = ("message", "error_description", "detail", "title", "error")  # Spring's, Song's, OAuth's and problem+json's reasons


class Refused(ServiceError):
    """The service says that the request itself is wrong (400 and its kind): nobody needs to send it again."""


class Token:
    """A bearer token: a text, or a file that is read again when a server refuses what was in it. Thread-safe; shows in no `repr`."""

    def __init__(self, text: str | None = None, *, file: Path | None = None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._text = text if file is None else self._read()

    @property
    def text(self) -> str | None:
        """The token, None for an anonymous caller."""
        return self._text

    def renewed(self, refused: str | None) -> bool:
        """Whether there is another token than the refused one: from the file, read again by the first thread that asks."""
        with self._lock:
            if self._text == refused and self._file is not None:
                self._text = self._read()
            return self._text != refused

    def _read(self) -> str | None:
        assert self._file is not None
        try:
            with self._file.open("rb") as file:
                text = file.read(_MAX_TOKEN_BYTES + 1).decode("ascii").strip()
        except OSError as error:
            raise LocalFileError(f"The token file {self._file} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise ConfigurationError(f"The token file {self._file} holds no token: it is not ASCII text") from None
        if len(text) > _MAX_TOKEN_BYTES or not text.isprintable() or " " in text:
            raise ConfigurationError(f"The token file {self._file} must hold one token of at most {_MAX_TOKEN_BYTES} characters")
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
        if self.token.text is not None and not self.options.allow_plain_http and not is_private_line(self.url):
            raise ConfigurationError(
                f"A token is not sent to {self.url} over plain http, where others can read it; use https, or set allow_plain_http"
            )
        self._client = httpx.Client(
            timeout=httpx.Timeout(self.options.read_timeout_s, connect=self.options.connect_timeout_s),
            verify=self.options.certificates(),
            follow_redirects=False,
            headers={"User-Agent": f"score-for-python/{__version__}", "Accept": "application/json, text/plain;q=0.9, */*;q=0.5"},
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=32),
        )

    def get(self, path: str, **options: Any) -> httpx.Response:
        """`request` with GET."""
        return self.request("GET", path, **options)

    def request(
        self,
        method: Literal["GET", "POST", "PUT", "DELETE"],
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
        request: dict[str, Any] = {"params": _texts(params), "json": json}
        if read_timeout_s is not None:
            request["timeout"] = httpx.Timeout(read_timeout_s, connect=self.options.connect_timeout_s)
        last = attempts or self.policy.attempts
        for attempt in range(1, last + 1):
            try:
                return self._authorised(method, path, request)
            except TransientError as error:
                pause = None if attempt == last else self.policy.pause_s(error, attempt)
                if pause is None:
                    raise Unavailable(f"{error}; tried {attempt} times") from None
                _log.info("%s; trying again in %.1f s", error, pause)
                self.pause(pause)
        raise AssertionError("the loop ends by return or raise")

    def _authorised(self, method: str, path: str, request: Mapping[str, Any]) -> httpx.Response:
        """One attempt, and another with a new token if the old one was refused."""
        token = self.token.text
        response = self._sent(method, path, request, token)
        if response.status_code == 401 and self.token.renewed(token):
            response = self._sent(method, path, request, self.token.text)
        return self._checked(response)

    def _sent(self, method: str, path: str, request: Mapping[str, Any], token: str | None) -> httpx.Response:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            return self._client.request(method, self.url + path, headers=headers, **request)
        except httpx.TimeoutException as error:
            raise TransientError(f"{self.name} at {self.url} did not answer in time ({type(error).__name__})") from None
        except httpx.TransportError as error:
            raise TransientError(f"{self.name} at {self.url} is not reached ({_cause(error)}); check the address and the network") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServiceError(f"{self.name} at {self.url} cannot be asked ({type(error).__name__}); check the address") from None

    def _checked(self, response: httpx.Response) -> httpx.Response:
        status = response.status_code
        if status < 300:
            return response
        what = f"{self.name} at {self.url} answered {status} to {response.request.method} {response.request.url.path}"
        if status < 400:
            raise ServiceError(f"{what}, a redirect, which is not followed; use the address that it leads to", status=status)
        said = reason(response)
        what = f"{what}: {said}" if said else what
        if status in _BUSY or status > 500:
            raise TransientError(what, busy=status in {429, 503}, retry_after_s=_retry_after_s(response))
        if status == 401:
            what += "; the token is missing, wrong or expired" if self.token.text else "; no token is set (ACCESSTOKEN or SCORE_TOKEN_FILE)"
        raise _KINDS.get(status, ServiceError if status >= 500 else Refused)(what, status=status)

    def pause(self, seconds: float) -> None:
        """Waits between attempts. Raises `Interrupted` when asked to stop meanwhile."""
        self._stop.wait(seconds)
        self._stop.check()

    def close(self) -> None:
        """Frees connections."""
        self._client.close()


def reason(response: httpx.Response) -> str:
    """What the body says went wrong, in any of the forms that Score, Song and their auth servers use; empty if nothing (section 3.2)."""
    try:
        body = response.json()
    except ValueError:
        text = response.text.strip()
        return "" if text.startswith("<") else text[:_MAX_SAID_CHARACTERS]
    if isinstance(body, dict):
        return next((str(body[key])[:_MAX_SAID_CHARACTERS] for key in _TEXTS if isinstance(body.get(key), str) and body[key].strip()), "")
    return str(body)[:_MAX_SAID_CHARACTERS] if isinstance(body, str) else ""


def problem_code(response: httpx.Response) -> str | None:
    """Our own servers' word for what is wrong, None from others."""
    try:
        code = response.json().get("code")
    except (ValueError, AttributeError):
        return None
    return code if isinstance(code, str) else None


def is_private_line(url: str) -> bool:
    """Whether nobody on a network can listen: https, or a host that is this machine."""
    parts = urlsplit(url)
    if parts.scheme == "https":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.hostname == "localhost"


def _texts(params: Params | None) -> dict[str, Any] | None:
    """Booleans as Java spells them."""
    if params is None:
        return None
    return {name: str(value).lower() if isinstance(value, bool) else value for name, value in params.items()}


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
