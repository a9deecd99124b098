"""The local store's signed URLs: making them, and checking a request against them.

A URL is `<base>/<quoted key>?Expires=<epoch>&...&Signature=<hex>`, an HMAC-SHA256 over everything that it permits. `Expires` is readable
because clients decide by it whether a URL is still good (protocol section 8).
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import parse_qsl, quote

from score_core.checksum import md5_base64, parse_md5
from score_core.errors import AccessDenied, ConfigurationError, UrlExpiredError
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

    def sign_gets(self, base_url: str, key: str, ranges: Sequence[ByteRange | None], *, lifetime_s: float) -> list[SignedUrl]:
        expires, start = self._begin(base_url, key, lifetime_s)
        urls = []
        for http in ("" if wanted is None else wanted.http for wanted in ranges):
            signature = self._signature(Grant("GET", key, byte_range=http), expires)
            url = f"{start}{'&SignedHeaders=range' if http else ''}&Signature={signature}"
            urls.append(SignedUrl("GET", url, expires, {"Range": http} if http else {}))
        return urls

    def sign_parts(
        self, base_url: str, key: str, upload_id: str, parts: Sequence[Part], *, lifetime_s: float, content_md5: bool
    ) -> list[SignedUrl]:
        expires, start = self._begin(base_url, key, lifetime_s)
        start = f"{start}&uploadId={quote(upload_id)}"
        urls = []
        for part in parts:
            headers = {"Content-MD5": content_md5_of(part)} if content_md5 else {}
            grant = Grant("PUT", key, "", upload_id, part.number, part.size, part.md5 or "" if content_md5 else "")
            url = (
                f"{start}&partNumber={part.number}&size={part.size}{'&SignedHeaders=content-md5' if content_md5 else ''}"
                f"&Signature={self._signature(grant, expires)}"
            )
            urls.append(SignedUrl("PUT", url, expires, headers))
        return urls

    def _begin(self, base_url: str, key: str, lifetime_s: float) -> tuple[int, str]:
        """When URLs that are made now expire, and what all those of a key begin with."""
        expires = math.ceil(self._clock() + lifetime_s)
        return expires, f"{base_url.rstrip('/')}/{quote(key, safe='/~')}?Expires={expires}"

    def _signature(self, grant: Grant, expires: int) -> str:
        """Fields hold no line breaks (keys and ids are checked, headers are single lines), so that joining them is unambiguous."""
        what = f"{_VERSION}\n{grant.method}\n{grant.key}\n{expires}\n{grant.byte_range}"
        which_part = f"{grant.upload_id}\n{grant.part}\n{grant.size}\n{grant.content_md5}"
        return hmac.digest(self._secret, f"{what}\n{which_part}".encode(), "sha256").hex()

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


def content_md5_of(part: Part) -> str:
    """The `Content-MD5` header that binds a PUT to the bytes of `part`.

    Raises:
        ConfigurationError: its MD5 is not known.
    """
    if part.md5 is None:
        raise ConfigurationError(f"Part {part.number} has no MD5 that could be signed")
    return md5_base64(part.md5)


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
