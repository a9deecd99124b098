"""The REST server as an ASGI application: Score's API, htsget and DRS, and Song's where the metadata are our own.

It keeps nothing: all state is in the bucket and the registry, so any number of processes may serve the same ones.
"""

from __future__ import annotations

import logging
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from score_core import __version__
from score_core.auth.base import Authenticator, ScopeRules
from score_core.errors import ScoreError, redact
from score_core.metadata.base import Metadata
from score_core.repository.direct import DirectRepository
from score_core.server.access import Gate
from score_core.server.drs import BASE as DRS
from score_core.server.drs import DrsRoutes, drs_error
from score_core.server.errors import Refusal, answer, refusal_of
from score_core.server.htsget import PREFIXES, HtsgetCors, HtsgetRoutes, htsget_error
from score_core.server.openapi import Api
from score_core.server.published import Ga4ghOptions, Published
from score_core.server.score_routes import ScoreRoutes
from score_core.server.song_routes import song_router

_log = logging.getLogger(__name__)
_audit = logging.getLogger("score_core.server.audit")

_HEADERS: Final = (
    (b"cache-control", b"no-cache, no-store, max-age=0, must-revalidate"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
_IDS: Final = ("/download/", "/upload/")
_MAX_HEADER_BYTES: Final = 64 << 10  # uvicorn's limit is on what has not arrived whole: a client that sends all at once passes it
_LOGGED_CHARACTERS: Final = 300


@dataclass(frozen=True)
class ServerParts:
    """What a server is made of. `metadata` None: nobody knows studies and states, only the system's scopes open anything.

    `song` is served as Song besides, when it is ours: usually the same as `metadata`. `authenticator` None lets everybody in.
    """

    repository: DirectRepository
    metadata: Metadata | None = None
    song: Metadata | None = None
    authenticator: Authenticator | None = None
    scopes: ScopeRules = field(default_factory=ScopeRules)
    checks_state: bool = True
    marks_md5: bool = False
    etags_are_md5: bool = True
    remembers_s: float = 0.0
    allowed_origins: Sequence[str] = ()
    ga4gh: Ga4ghOptions = field(default_factory=Ga4ghOptions)


def create_app(parts: ServerParts) -> FastAPI:
    """The application. The caller closes the parts after it."""
    app = Api(
        title="Score for Python",
        version=__version__,
        description="Time-limited pre-signed URLs for genomics files: Score's REST API, and GA4GH's htsget and DRS.",
        redirect_slashes=False,
    )
    gate = Gate(parts.authenticator, parts.metadata, parts.scopes, checks_state=parts.checks_state, remembers_s=parts.remembers_s)
    published = Published(parts.repository, gate, parts.ga4gh)
    routes = ScoreRoutes(parts.repository, gate, marks_md5=parts.marks_md5, etags_are_md5=parts.etags_are_md5, replaced=published.forget)
    app.include_router(routes.router())
    app.include_router(HtsgetRoutes(published).router())
    app.include_router(DrsRoutes(published).router())
    if parts.song is not None:
        app.include_router(song_router(parts.song, may_write=gate.for_study))
    _answer_errors(app)
    if parts.allowed_origins:
        origins, methods = list(parts.allowed_origins), ["GET", "PUT", "POST", "DELETE"]
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=["Authorization"])
    if gate.asks_for_tokens:
        app.add_middleware(HtsgetCors)
    app.add_middleware(_Edge)
    return app


def _answer(request: Request, refusal: Refusal) -> Response:
    """The answer in the form of the API that the address belongs to. Song's routes do that for themselves."""
    path = request.scope["path"]
    if path.startswith(PREFIXES):
        return htsget_error(refusal)
    return drs_error(refusal) if path.startswith(f"{DRS}/") else answer(request, refusal)


def _answer_errors(app: FastAPI) -> None:
    """One way out for everything that is not success."""

    async def failed(request: Request, error: Exception) -> Response:
        return _answer(request, refusal_of(error))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        problem = error.errors()[0]
        name, text = str(problem["loc"][-1]), str(problem["msg"]).removeprefix("Value error, ")
        return _answer(request, Refusal(400, f"Parameter {name!r}: {text}", code="bad-parameter"))

    async def unrouted(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.url.path
        if error.status_code == 404 and path.startswith(_IDS):
            return answer(request, Refusal(400, "This address holds something else than an object id", code="bad-request"))
        text = "There is nothing at this address" if error.status_code == 404 else str(error.detail)
        return _answer(request, Refusal(error.status_code, text, code="no-endpoint", headers=error.headers))

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, unrouted)
    app.add_exception_handler(Refusal, failed)
    app.add_exception_handler(ScoreError, failed)


class _Hung(Exception):  # an event, not a fault
    """Nobody takes the answer any more: the connection ended, or what came after the request was no HTTP."""


class _Edge:
    """The outermost layer: security headers, an audit line per request, and an answer to what nobody expected."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            try:
                await send(message)
            except Exception as error:  # uvicorn lets h11's through
                raise _Hung from error

        try:
            await self._answer(scope, receive, sending)
        except _Hung as error:
            _log.debug("An answer was not taken: %r", error.__cause__)
        except Exception as error:  # noqa: BLE001  # the outermost edge; what is unexpected is logged in refusal_of
            refusal = refusal_of(error)
            if not status:
                await _answer(Request(scope), refusal)(scope, receive, sending)
        finally:
            _audited(scope, status or 500, time.perf_counter() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _MAX_HEADER_BYTES:
            refusal = Refusal(431, f"The headers must have at most {_MAX_HEADER_BYTES:,} bytes", code="too-large")
            await _answer(Request(scope), refusal)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _audited(scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
    """Who asked for what and what became of it: always six words and "ms". Without query and headers, which may hold secrets."""
    level = logging.WARNING if status in {401, 403} or status >= 500 else logging.INFO
    if _audit.isEnabledFor(level):
        client = scope.get("client") or ("-", 0)
        words = (client[0], scope.get("score.caller", "-"), scope["method"], scope["path"])
        _audit.log(level, "%s %d %.1f ms", " ".join(map(_word, words)), status, seconds * 1000)


def _word(text: str) -> str:
    """One word in a log: a path, or a name from a token, with blanks in it would make others out of what follows."""
    return redact(quote(text[:_LOGGED_CHARACTERS], safe="/:@!$&'()*+,;=", errors="replace")) or "-"
