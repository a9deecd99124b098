"""The one table from errors to answers (protocol section 3.2).

Statuses are those that a Java client understands: 400 and 404 are final to it, 401, 403 and 500 end its run, everything else it repeats
for a minute. So what can never succeed is 400, never 409 or 422 (section 21.10).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from score_core.errors import (
    ConfigurationError,
    Conflict,
    ManifestError,
    ObjectNotFound,
    PlanError,
    ScoreError,
    ServiceError,
    redact,
)

_log = logging.getLogger(__name__)

_INVALID_TOKEN: Final = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
_MAX_PATH: Final = 300


class Refusal(Exception):  # an answer, not a fault
    """An answer other than success. `code` is a stable word for programs: ours puts it into the JSON, Java does not."""

    def __init__(self, status: int, message: str, *, code: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = redact(message)
        self.code = code
        self.headers = dict(headers or {})


def unauthorised() -> Refusal:
    """For every token that is bad, whatever is wrong with it: nobody learns more."""
    return Refusal(401, "", code="unauthorised", headers=_INVALID_TOKEN)


def forbidden(action: str) -> Refusal:
    return Refusal(403, f"The token does not have the scope that is needed to {action} this", code="forbidden")


def refusal_of(error: Exception) -> Refusal:
    """What an error of a lower room is to a client. What the store or the metadata said goes to the log, not to strangers."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ConfigurationError | PlanError | ManifestError):
        return Refusal(400, str(error), code="bad-request")
    if isinstance(error, ObjectNotFound):
        return Refusal(404, str(error), code="not-found")
    if isinstance(error, Conflict):
        return Refusal(400, str(error), code="conflict")
    if isinstance(error, ServiceError):  # the store or the metadata refuse us, or are out of order
        _log.error("%s", error)
        text = "A service behind this server is out of order; try again later"
        return Refusal(503, text, code="unavailable", headers={"Retry-After": "5"})
    if isinstance(error, ScoreError):
        _log.error("%s", error)
    else:
        _log.exception("Unexpected error", exc_info=error)
    return Refusal(500, "This server failed; its log says why", code="failed")


def answer(request: Request, refusal: Refusal) -> Response:
    """In Score's shapes: 401 has no body, 403 is a bare sentence, all else is Spring's error JSON, with a reason."""
    if refusal.status == 401:
        return Response(status_code=401, headers=refusal.headers)
    if refusal.status == 403:
        return PlainTextResponse(refusal.message, 403, headers=refusal.headers)
    return JSONResponse(problem(request.scope["path"], refusal), refusal.status, headers=refusal.headers)


def problem(path: str, refusal: Refusal) -> dict[str, object]:
    """Spring Boot's error JSON, as of 5.11.0, with `message`; `code` is ours."""
    now = datetime.now(UTC)
    return {
        "timestamp": f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03d}+00:00",
        "status": refusal.status,
        "error": HTTPStatus(refusal.status).phrase,
        "path": redact(path[:_MAX_PATH]),
        "message": refusal.message,
        "code": refusal.code,
    }
