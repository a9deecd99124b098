"""What the parameters of a request may look like, stricter than a web framework takes them.

pydantic would take ` 5`, `+5`, `5.0` and `1_000` for numbers, and FastAPI the last of two: whatever stands before this server (a proxy, a
firewall, a client that checks) may read them otherwise.
"""

from __future__ import annotations

import re
from typing import Any, Final

from pydantic import BeforeValidator
from starlette.requests import Request

from score_core.server.errors import Refusal

_DECIMAL: Final = re.compile(r"-?[0-9]{1,19}")  # as many digits as 64 bits need


def _decimal(value: Any) -> Any:
    if isinstance(value, str) and _DECIMAL.fullmatch(value) is None:
        raise ValueError("must be a whole number of 64 bits in decimal digits")
    return value


DECIMAL: Final = BeforeValidator(_decimal)
"""Of a whole number's annotation: digits and a minus sign, nothing else."""


async def each_once(request: Request) -> None:
    """A dependency of routes: refuses requests that say a parameter twice. A coroutine, because a function would take a thread."""
    names = [name for name, _ in request.query_params.multi_items()]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise Refusal(400, f"Parameter {twice[:80]!r} is said twice", code="bad-parameter")
