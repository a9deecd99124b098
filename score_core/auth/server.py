"""Questions to an auth server over HTTP: to the one address that was configured, and nowhere else."""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final

import httpx

from score_core.errors import ConfigurationError, Unavailable
from score_core.service import ServiceOptions, is_private_line

_log = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S: Final = 10.0
_MAX_ANSWER_BYTES: Final = 1 << 20  # key sets and permissions have a few kB
_SIMPLE: Final = re.compile(r"[\w.:/-]*")  # an address with nothing secret in it
_HOST: Final = re.compile(r"[\w.:-]+")
_LATER: Final = frozenset({408, 425, 429})  # client errors that say nothing about the token


@dataclass(frozen=True, slots=True)
class Answer:
    """A status of 2xx or 4xx, and the body."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON. Raises `Unavailable` when it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise unavailable("its answer is not JSON") from None


class AuthServer:
    """One address of an auth server. Safe to use from several threads.

    Unlike a `ServiceClient`, which goes on trying for its own user, it gives up at once: callers with a token in hand are waiting, and try
    again themselves. Redirects are not followed, so no token goes to another place; no cookies are kept, so no caller gets into another's
    session.

    Args:
        url: https, or http on loopback; without user, password, query and fragment.
        options: the time to read is also that for a whole answer. `allow_plain_http` accepts http to other hosts, where anyone on the
            way can read tokens and replace keys.

    Raises:
        ConfigurationError: the address or the certificate authorities cannot be used.
    """

    def __init__(self, url: str, options: ServiceOptions | None = None) -> None:
        options = options or ServiceOptions(DEFAULT_TIMEOUT_S, DEFAULT_TIMEOUT_S)
        self._url = _checked(url, allow_plain_http=options.allow_plain_http)
        self._answer_s = options.read_timeout_s
        is_local = is_private_line(str(self._url.copy_with(scheme="http")))
        self._client = httpx.Client(
            timeout=httpx.Timeout(options.read_timeout_s, connect=options.connect_timeout_s),
            follow_redirects=False,
            verify=options.certificates(),
            headers={"Accept-Encoding": "identity"},  # so that _MAX_ANSWER_BYTES bounds what is held
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            mounts=dict.fromkeys(("all://", "http://", "https://")) if is_local else None,  # not through the environment's proxy
        )

    def ask(self, method: str, **request: Any) -> Answer:
        """The answer to one request; `request` is what `httpx.Client.stream` takes.

        Raises:
            Unavailable: no connection, no answer in time, a redirect, too long an answer, or a status that is neither 2xx nor 4xx.
        """
        try:
            status, body = self._exchange(method, request)
        except httpx.HTTPError as error:
            raise self._unavailable(type(error).__name__) from error
        if not (200 <= status < 300 or 400 <= status < 500) or status in _LATER:
            raise self._unavailable(f"status {status}")
        return Answer(status, body)

    def close(self) -> None:
        self._client.close()

    def _exchange(self, method: str, request: dict[str, Any]) -> tuple[int, bytes]:
        try:
            return self._once(method, request)
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            # Most likely a kept connection that the server closed just as we used it; all our questions may be repeated.
            return self._once(method, request)

    def _once(self, method: str, request: dict[str, Any]) -> tuple[int, bytes]:
        with self._client.stream(method, self._url, **request) as response:
            return response.status_code, self._body(response)

    def _body(self, response: httpx.Response) -> bytes:
        deadline, body = time.monotonic() + self._answer_s, bytearray()
        for block in response.iter_raw():
            body += block
            if len(body) > _MAX_ANSWER_BYTES:
                raise self._unavailable("an answer that is too long")
            if time.monotonic() > deadline:
                raise self._unavailable("an answer that does not end")
        return bytes(body)

    def _unavailable(self, why: str) -> Unavailable:
        return unavailable(f"{self._url.scheme}://{self._url.netloc.decode('ascii')}: {why}")


def unavailable(why: str) -> Unavailable:
    """What callers get while an auth server is out of order. Its address, in `why`, is the operator's business: it goes to the log."""
    _log.warning("The authentication service did not help: %s", why)
    return Unavailable("The authentication service is not answering as it should; try again later")


def is_web_address(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def _checked(text: str, *, allow_plain_http: bool) -> httpx.URL:
    try:
        url = httpx.URL(text.strip())
    except httpx.InvalidURL:
        url = httpx.URL()
    is_place = is_web_address(str(url)) and _HOST.fullmatch(url.host) and 0 < (url.port or 443) < 65536 and url.port != 0
    if not is_place or url.userinfo or url.query or url.fragment:
        got = f", got {text!r}" if _SIMPLE.fullmatch(text) else ""
        raise ConfigurationError(
            f"An auth server's address must be such as https://id.example.org/path, without user, password and query{got}"
        )
    if not allow_plain_http and not is_private_line(str(url)):
        raise ConfigurationError(f"{url} would carry tokens unencrypted: use https, or set allow_plain_http if the network is trusted")
    return url
