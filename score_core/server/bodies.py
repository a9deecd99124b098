"""Request bodies: read by hand, within bounds, before anything is made of them."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request

from score_core.server.errors import Refusal

BAD_JSON: Final = "bad-json"  # the `code` of a body that cannot be read

_MAX_UNSAID_BYTES: Final = 1_000_000  # of a body without Content-Length, which is read before it can be refused
_MAX_VALUES: Final = 1_000_000  # of JSON: 100,000 files have fewer, and 10 MB of `[],` would become 500 MB of memory
_NUMBER: Final = re.compile(r"[0-9]{1,9}")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body, up to the limit and without unpacking anything. Raises a `Refusal`, 413 or 400."""
    unsaid = min(max_bytes, _MAX_UNSAID_BYTES)
    text = f"The body must have at most {max_bytes:,} bytes, {unsaid:,} if it comes without Content-Length"
    too_large = Refusal(413, text, code="too-large")
    said = request.headers.get("content-length")
    if said is not None and (_NUMBER.fullmatch(said) is None or int(said) > max_bytes):
        raise too_large
    limit = unsaid if said is None else max_bytes
    body = bytearray()
    try:
        async for block in request.stream():
            body += block
            if len(body) > limit:
                raise too_large
    except ClientDisconnect:
        raise Refusal(400, "The body ended before its time", code="bad-request") from None
    return bytes(body)


def parsed(body: bytes) -> Any:
    """JSON as the standard has it: no NaN, and no more nesting than can be read. Raises a `Refusal`, 413 or 400 with code `BAD_JSON`."""
    if sum(map(body.count, (b"[", b"{", b","))) > _MAX_VALUES:
        raise Refusal(413, f"The body must have at most {_MAX_VALUES:,} values", code="too-large")
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The body is not JSON that can be read ({type(error).__name__})", code=BAD_JSON) from None


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")
