"""The local store's signed URLs: making them, and checking a request against them.

A URL is `<base>/<quoted key>?Expires=<epoch>&...&Signature=<hex>`, an HMAC-SHA256 over everything that it permits. `Expires` is readable
because clients decide by it whether a URL is still good (protocol section 8).
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import parse_qsl, quote, urlencode

from score_core.checksum import md5_base64, parse_md5
from score_core.errors import AccessDenied, UrlExpiredError
from score_core.model import ByteRange, Part, SignedUrl

_VERSION: Final = "score-url-1"
_NAMES: Final = frozenset({"Expires", "SignedHeaders", "uploadId", "partNumber", "size", "Signature"})
_NO_MATCH: Final = "The request does not match its signature; ask for a new URL and send it, with its headers, exactly as it was given"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a signed URL permits. `byte_range` is the exact `Range` header to send, empty for any range.

    `upload_id`, `part`, `size` and `content_md5` (hex, empty when the bytes may be any) belong to a PUT.
    """

    method: Literal["GET", "PUT"]
    key: str
    byte_range: str = ""
    upload_id: str = ""
    part: int = 0
    size: int = 0
    content_md5: str = ""


class UrlSigner:
    """Makes and checks URLs with one secret. Safe to call from several threads."""

    def __init__(self, secret: bytes, clock: Callable[[], float]) -> None:
        self._secret = secret
        self._clock = clock

    def sign_get(self, base_url: str, key: str, byte_range: ByteRange | None, *, lifetime_s: float) -> SignedUrl:
        if byte_range is None:
            return self._signed(base_url, Grant("GET", key), {}, {}, lifetime_s)
        grant = Grant("GET", key, byte_range=byte_range.http)
        return self._signed(base_url, grant, {"SignedHeaders": "range"}, {"Range": byte_range.http}, lifetime_s)

    def sign_part(self, base_url: str, key: str, upload_id: str, part: Part, *, lifetime_s: float, content_md5: str | None) -> SignedUrl:
        grant = Grant("PUT", key, upload_id=upload_id, part=part.number, size=part.size, content_md5=content_md5 or "")
        query = {"uploadId": upload_id, "partNumber": str(part.number), "size": str(part.size)}
        if content_md5 is None:
            return self._signed(base_url, grant, query, {}, lifetime_s)
        return self._signed(base_url, grant, query | {"SignedHeaders": "content-md5"}, {"Content-MD5": md5_base64(content_md5)}, lifetime_s)

    def _signed(self, base_url: str, grant: Grant, query: dict[str, str], headers: dict[str, str], lifetime_s: float) -> SignedUrl:
        expires = math.ceil(self._clock() + lifetime_s)
        query = {"Expires": str(expires), **query, "Signature": self._signature(grant, expires)}
        url = f"{base_url.rstrip('/')}/{quote(grant.key, safe='/~')}?{urlencode(query)}"
        return SignedUrl(method=grant.method, url=url, expires_at=float(expires), headers=headers)

    def _signature(self, grant: Grant, expires: int) -> str:
        """Fields hold no line breaks (keys and ids are checked, headers are single lines), so that joining them is unambiguous."""
        what = (grant.method, grant.key, str(expires), grant.byte_range)
        which_part = (grant.upload_id, str(grant.part), str(grant.size), grant.content_md5)
        return hmac.new(self._secret, "\n".join((_VERSION, *what, *which_part)).encode(), hashlib.sha256).hexdigest()

    def verify(self, method: str, key: str, query: str, headers: Mapping[str, str]) -> Grant:
        """What the request is permitted. HEAD counts as GET. `headers` is looked up by the names `Range` and `Content-MD5`.

        Raises:
            UrlExpiredError: rightly signed, and too late.
            AccessDenied: anything else that does not match; the message never says which field.
        """
        values = _parsed(query)
        grant = _requested(method, key, values, headers)
        expires = _number(values.get("Expires", ""))
        if not hmac.compare_digest(self._signature(grant, expires).encode(), values.get("Signature", "").encode()):
            raise AccessDenied(_NO_MATCH, status=403)
        if self._clock() >= expires:
            raise UrlExpiredError("Request has expired; ask for a new URL")
        return grant


def _parsed(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=len(_NAMES))
    except ValueError as error:
        raise AccessDenied(_NO_MATCH, status=403) from error
    values = dict(pairs)
    if len(values) != len(pairs) or not values.keys() <= _NAMES:
        raise AccessDenied(_NO_MATCH, status=403)
    return values


def _requested(method: str, key: str, values: Mapping[str, str], headers: Mapping[str, str]) -> Grant:
    signed = values.get("SignedHeaders", "")
    if method in ("GET", "HEAD"):
        return Grant("GET", key, byte_range=headers.get("Range", "") if signed == "range" else "")
    if method != "PUT":
        raise AccessDenied(_NO_MATCH, status=403)
    return Grant(
        "PUT",
        key,
        upload_id=values.get("uploadId", ""),
        part=_number(values.get("partNumber", "")),
        size=_number(values.get("size", "")),
        content_md5=(parse_md5(headers.get("Content-MD5", "")) or "missing") if signed == "content-md5" else "",
    )


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise AccessDenied(_NO_MATCH, status=403)
    return int(text)
