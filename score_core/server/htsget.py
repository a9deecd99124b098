"""GA4GH's htsget 1.3: tickets for reads and variants. What is asked for is read here; `tickets.py` makes the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal

import orjson
from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from score_core.server import openapi
from score_core.server.bodies import parsed, read_body
from score_core.server.drs import service_info
from score_core.server.errors import Refusal
from score_core.server.parameters import each_once
from score_core.server.published import Published
from score_core.server.tickets import INVALID_RANGE, UNPLACED, UNSUPPORTED_FORMAT, Region, Tickets, Wanted

VERSION: Final = "1.3.0"
PREFIXES: Final = ("/reads/", "/variants/")

_MEDIA_TYPE: Final = f"application/vnd.ga4gh.htsget.v{VERSION}+json"
_CONTENT_TYPE: Final = f"{_MEDIA_TYPE}; charset=utf-8"
_DIGITS: Final = re.compile(r"[0-9]{1,10}")
_MAX_POSITION: Final = 2**32 - 1  # 32-bit unsigned, says the specification
_MAX_BODY_BYTES: Final = 10_000_000
_MAX_REGIONS: Final = 100_000
_MAX_NAME: Final = 1000  # letters of a reference's name
_PREFLIGHT_LIFE_S: Final = 30 * 86_400
_FORMATS: Final[Mapping[str, tuple[str, ...]]] = {"reads": ("BAM", "CRAM"), "variants": ("VCF", "BCF")}
_FIELDS: Final = frozenset(["QNAME", "FLAG", "RNAME", "POS", "MAPQ", "CIGAR", "RNEXT", "PNEXT", "TLEN", "SEQ", "QUAL"])
_ERRORS: Final = {400: "InvalidInput", 401: "InvalidAuthentication", 403: "PermissionDenied", 404: "NotFound", 413: "PayloadTooLarge"}
_OURS: Final = frozenset({INVALID_RANGE, UNSUPPORTED_FORMAT})  # codes of refusals that are htsget's own

Kind = Literal["reads", "variants"]
ObjectId = Annotated[str, Path(description="The object's UUID.")]

_TEXTS: Final = {"type": "array", "items": {"type": "string"}}
_POSITION: Final = {"type": "integer", "minimum": 0, "maximum": _MAX_POSITION}


def _query_schema(kind: Kind) -> dict[str, Any]:
    named: dict[str, dict[str, Any]] = {
        "format": {"type": "string", "enum": list(_FORMATS[kind]), "default": _FORMATS[kind][0]},
        "class": {"type": "string", "enum": ["header"]},
        "referenceName": {"type": "string"},
        "start": _POSITION,
        "end": _POSITION,
        "tags": {"type": "string"},
        "notags": {"type": "string"},
    }
    return openapi.queries(**named, **({"fields": {"type": "string"}} if kind == "reads" else {}))


def _body_schema(kind: Kind) -> dict[str, Any]:
    position = {**_POSITION, "type": ["integer", "null"]}  # clients write null for what they do not want to say
    region = {"referenceName": {"type": "string", "maxLength": _MAX_NAME}, "start": position, "end": position}
    properties = {
        "format": {"type": ["string", "null"], "enum": [*_FORMATS[kind], None]},
        "class": {"type": ["string", "null"], "enum": ["header", None]},
        **{name: {**_TEXTS, "type": ["array", "null"]} for name in ("fields", "tags", "notags")},
        "regions": {
            "type": ["array", "null"],
            "minItems": 1,
            "maxItems": _MAX_REGIONS,
            "items": {"type": "object", "required": ["referenceName"], "properties": region},
        },
    }
    return openapi.body_of({"type": "object", "properties": properties}, required=True)


def htsget_error(refusal: Refusal) -> Response:
    """htsget's error JSON."""
    kind = refusal.code if refusal.code in _OURS else _ERRORS.get(refusal.status) or _words(refusal.status)
    body = {"htsget": {"error": kind, "message": refusal.message or "The access token is not accepted"}}
    return JSONResponse(body, refusal.status, headers={**refusal.headers, "content-type": _CONTENT_TYPE})


def _words(status: int) -> str:
    return HTTPStatus(status).phrase.title().replace(" ", "")


class _Ticket(JSONResponse):
    media_type = _MEDIA_TYPE

    @classmethod
    def of(cls, ticket: Mapping[str, Any]) -> _Ticket:
        return cls(ticket, headers={"content-type": _CONTENT_TYPE})

    def render(self, content: Any) -> bytes:
        return orjson.dumps({"htsget": content})


class HtsgetRoutes:
    """The endpoints of reads and variants."""

    def __init__(self, published: Published) -> None:
        self._published = published
        self._tickets = Tickets(published)

    def router(self) -> APIRouter:
        router = APIRouter(tags=["htsget"], dependencies=[Depends(each_once)])

        def add(kind: Kind, path: str, name: str, handler: Callable[..., Any], **options: Any) -> None:
            router.add_api_route(f"/{kind}/{path}", handler, name=f"{kind}_{name}", response_model=None, **options)

        kinds: tuple[Kind, Kind] = ("reads", "variants")
        for kind in kinds:
            info = openapi.service_responses(openapi.HtsgetServiceInfo)
            add(kind, "service-info", "service_info", self._info(kind), methods=["GET"], response_class=Response, responses=info)
        for kind in kinds:
            shown = {"response_class": _Ticket, "responses": openapi.htsget_responses()}
            open_too = openapi.needs_token(always=False)
            get, post = open_too | _query_schema(kind), open_too | _body_schema(kind)
            add(kind, "{object_id:path}", "ticket", self._get(kind), methods=["GET"], openapi_extra=get, **shown)
            add(kind, "{object_id:path}", "ticket_of_regions", self._post(kind), methods=["POST"], openapi_extra=post, **shown)
        return router

    def _info(self, kind: Kind) -> Callable[[Request], Response]:
        def info(request: Request) -> Response:
            """What this service is, and which parameters have an effect."""
            facts = {
                "datatype": kind,
                "formats": list(_FORMATS[kind]),
                "fieldsParameterEffective": False,
                "tagsParametersEffective": False,
            }
            service = service_info(self._published.options, request, "htsget", VERSION, f"htsget, {kind}")
            return JSONResponse({**service, "id": f"{service['id']}.{kind}", "htsget": facts})

        info.__annotations__ = {"request": Request, "return": Response}
        return info

    def _get(self, kind: Kind) -> Callable[..., Response]:
        def get(request: Request, object_id: ObjectId) -> Response:
            """A ticket for all, or for what overlaps a region. More may come along than was asked for, never less."""
            wanted = _got(kind, request.query_params)
            return _Ticket.of(self._tickets.ticket(self._published.open(request, object_id), wanted))

        get.__annotations__ = {"request": Request, "object_id": ObjectId, "return": Response}
        return get

    def _post(self, kind: Kind) -> Callable[..., Coroutine[Any, Any, Response]]:
        async def post(request: Request, object_id: ObjectId) -> Response:
            """A ticket for many regions. Each record comes once, in the order of the file."""
            opened = await run_in_threadpool(self._published.open, request, object_id)  # strangers' bodies are not read
            body = await read_body(request, _MAX_BODY_BYTES)

            def answered() -> Response:
                if request.url.query:
                    raise _invalid("A POST request has no parameters in its address")
                return _Ticket.of(self._tickets.ticket(opened, _posted(kind, parsed(body))))

            return await run_in_threadpool(answered)

        post.__annotations__ = {"request": Request, "object_id": ObjectId, "return": Response}
        return post


def _got(kind: Kind, query: QueryParams) -> Wanted:
    """What a GET asks for. Raises a `Refusal` for what the specification does not allow."""
    lists = {name: query[name].split(",") for name in ("fields", "tags", "notags") if name in query}
    _check_lists(kind, lists)
    name, start, end = query.get("referenceName"), *(_decimal(query, name) for name in ("start", "end"))
    if name is None and (start is not None or end is not None):
        raise _invalid("start and end need a referenceName")
    if start is not None and end is not None and start > end:
        raise _no_range(start, end)
    header_only = _is_header(query.get("class"), others=bool(lists) or name is not None)
    regions = None if name is None else (_region(kind, name, start, end),)
    return Wanted(_format(kind, query.get("format")), regions, header_only)


def _posted(kind: Kind, body: Any) -> Wanted:
    """What the body of a POST asks for. Raises a `Refusal`."""
    if not isinstance(body, dict):
        raise _invalid("The body must be a JSON object")
    lists = {name: _texts(body, name) for name in ("fields", "tags", "notags") if body.get(name) is not None}
    _check_lists(kind, lists)
    listed = body.get("regions")
    header_only = _is_header(_text(body, "class"), others=bool(lists) or listed is not None)
    regions = None if listed is None else _regions(kind, listed)
    return Wanted(_format(kind, _text(body, "format")), regions, header_only)


def _regions(kind: Kind, listed: Any) -> tuple[Region, ...]:
    if not isinstance(listed, list) or not listed:
        raise _invalid("regions must be a list of at least one region")
    if len(listed) > _MAX_REGIONS:
        raise Refusal(413, f"One request may have at most {_MAX_REGIONS:,} regions", code="too-large")
    found = []
    for item in listed:
        name = item.get("referenceName") if isinstance(item, dict) else None
        if not isinstance(name, str) or len(name) > _MAX_NAME:
            raise _invalid("Each region must be an object with a referenceName")
        start, end = _position(item, "start"), _position(item, "end")
        if start is not None and end is not None and start >= end:
            raise _no_range(start, end)
        found.append(_region(kind, name, start, end))
    return tuple(found)


def _region(kind: Kind, name: str, start: int | None, end: int | None) -> Region:
    if name == UNPLACED:
        if kind == "variants":
            raise _invalid("Every variant has a place: * is for reads")
        if start is not None or end is not None:
            raise _invalid("The reads without a place (*) have no start and end")
    return Region(name, start or 0, end)


def _format(kind: Kind, text: str | None) -> str:
    chosen = _FORMATS[kind][0] if text is None else text.upper()
    if chosen not in _FORMATS[kind]:
        raise Refusal(400, f"The formats of {kind} are {' and '.join(_FORMATS[kind])}, not {chosen[:40]!r}", code=UNSUPPORTED_FORMAT)
    return chosen


def _is_header(text: str | None, *, others: bool) -> bool:
    if text not in (None, "header"):
        raise _invalid("class can only be header")
    if text is not None and others:
        raise _invalid("With class=header there can be a format, and nothing else")
    return text is not None


def _check_lists(kind: Kind, lists: Mapping[str, Sequence[str]]) -> None:
    unknown = set(lists.get("fields", ())) - _FIELDS
    if unknown and kind == "reads":
        raise _invalid(f"{min(unknown)[:40]!r} is no field of a read")
    both = set(lists.get("tags", ())) & set(lists.get("notags", ()))
    if both:
        raise _invalid(f"Tag {min(both)[:40]!r} is in tags and in notags")


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise _invalid(f"{name} must be a text")
    return value


def _texts(body: Mapping[str, Any], name: str) -> list[str]:
    value = body[name]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise _invalid(f"{name} must be a list of texts")
    return value


def _decimal(query: QueryParams, name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    return _in_bounds(name, int(text) if _DIGITS.fullmatch(text) else None)


def _position(item: Mapping[str, Any], name: str) -> int | None:
    value = item.get(name)
    return None if value is None else _in_bounds(name, value if type(value) is int else None)


def _in_bounds(name: str, value: int | None) -> int:
    if value is None or not 0 <= value <= _MAX_POSITION:
        raise _invalid(f"{name} must be a whole number from 0 to {_MAX_POSITION}")
    return value


def _invalid(text: str) -> Refusal:
    return Refusal(400, text, code="bad-request")


def _no_range(start: int, end: int) -> Refusal:
    return Refusal(400, f"There is no range from {start} to {end}", code=INVALID_RANGE)


class HtsgetCors:
    """htsget's rules for pages of other origins, for its addresses alone: every origin may ask, and preflights are good for 30 days.

    Who asks is told by a bearer token, which no browser adds by itself, so the origin opens nothing. A server that asks nobody for a token
    does without this: any page in a browser on its machine could read from it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = Headers(scope=scope).get("origin") if scope["type"] == "http" and scope["path"].startswith(PREFIXES) else None
        if origin is None:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        if scope["method"] == "OPTIONS" and headers.get("access-control-request-method") in {"GET", "POST"}:
            given |= {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Max-Age": str(_PREFLIGHT_LIFE_S)}
            if asked := headers.get("access-control-request-headers"):
                given["Access-Control-Allow-Headers"] = asked
            await Response(status_code=204, headers=given)(scope, receive, send)
            return
        extra = [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()]

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        # For these addresses the rules of other middleware do not count. In place: what is noted in a scope is for the audit log.
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"origin"]
        await self._app(scope, receive, sending)
