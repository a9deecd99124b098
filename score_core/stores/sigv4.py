"""Query signatures of AWS version 4, quickly: a server signs up to 10,000 URLs of one object for one request.

The rules are AWS's ("Authenticating Requests: Using Query Parameters", Amazon S3 API reference); the URLs equal, to the last byte, those
of botocore's `S3SigV4QueryAuth`, which `tests/stores/test_sigv4.py` asks as an oracle. What the URLs of one key share is worked out once:
the signing key, the query's text, and the SHA-256 state after the part of the canonical request that comes before what differs.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import time
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_UNRESERVED: Final = "-._~"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Credentials(NamedTuple):
    """Who signs. `token` belongs to temporary credentials."""

    access_key: str
    secret_key: str
    token: str | None = None

    def __repr__(self) -> str:
        return f"Credentials({self.access_key!r})"


class QuerySigner:
    """Signs URLs of one key with one method, all for the same moment.

    Args:
        url: scheme, host and percent-encoded path, without a query.
        signed_at: seconds since the epoch, as the URLs' `X-Amz-Date` says it.
        lifetime_s: 1 to 604,800 (7 days, the limit of S3), counted from `signed_at`.
        signed_header: the lower-case name of the header, besides `host`, that is signed in each URL.
    """

    def __init__(
        self,
        credentials: Credentials,
        region: str,
        method: str,
        url: str,
        *,
        signed_at: int,
        lifetime_s: int,
        signed_header: str | None = None,
    ) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(signed_at))
        scope = f"{stamp[:8]}/{region}/s3/aws4_request"
        names = ";".join(sorted(filter(None, ("host", signed_header))))
        query = {
            "X-Amz-Algorithm": _ALGORITHM,
            "X-Amz-Credential": f"{credentials.access_key}/{scope}",
            "X-Amz-Date": stamp,
            "X-Amz-Expires": str(lifetime_s),
            "X-Amz-SignedHeaders": names,
        }
        if credentials.token is not None:
            query["X-Amz-Security-Token"] = credentials.token
        fields = [f"{name}={encoded(value)}" for name, value in query.items()]
        self._url = url
        self._auth = "&".join(fields)
        self._begun = hashlib.sha256(f"{method}\n{urlsplit(url).path}\n{'&'.join(sorted(fields))}".encode())
        before, after = _around_value(_host(url), signed_header)
        self._before_value = f"\n{before}"
        self._after_value = f"{after}\n\n{names}\nUNSIGNED-PAYLOAD"
        self._to_sign = f"{_ALGORITHM}\n{stamp}\n{scope}\n"
        self._key = _signing_key(credentials.secret_key, stamp[:8], region)

    def sign(self, query: str = "", header: str = "") -> str:
        """The signed URL.

        Args:
            query: percent-encoded fields in the order of their names, which must come after `X-Amz-` in that order: `partNumber=1&...`.
            header: the value of the signed header, without blanks at its ends.
        """
        digest = self._begun.copy()
        digest.update(f"{query and '&'}{query}{self._before_value}{header}{self._after_value}".encode())
        signature = hmac.digest(self._key, f"{self._to_sign}{digest.hexdigest()}".encode(), "sha256").hex()
        return f"{self._url}?{query}{query and '&'}{self._auth}&X-Amz-Signature={signature}"


def encoded(text: str) -> str:
    """`text` as it stands in a query that is signed."""
    return quote(text, safe=_UNRESERVED)


def _around_value(host: str, name: str | None) -> tuple[str, str]:
    """The canonical headers, which are in the order of their names, before and after the value of the header `name`."""
    if name is None:
        return f"host:{host}", ""
    return (f"{name}:", f"\nhost:{host}") if name < "host" else (f"host:{host}\n{name}:", "")


def _host(url: str) -> str:
    """The `Host` header that clients send: lower case, the port only where it is not the scheme's."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return host if parts.port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f"{host}:{parts.port}"


@functools.lru_cache(maxsize=16)  # credentials times regions of one process; a new day makes a new key
def _signing_key(secret_key: str, date: str, region: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for step in (date, region, "s3", "aws4_request"):
        key = hmac.digest(key, step.encode(), "sha256")
    return key
