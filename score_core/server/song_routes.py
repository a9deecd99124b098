"""The part of Song's REST API that a file transfer needs, from any `Metadata` (protocol sections 10.1 to 10.3).

Reads need no token, as with Song. Errors have Song's form, on these routes only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from score_core.errors import Conflict, NoSpaceError, ObjectNotFound, redact
from score_core.ids import check_object_id
from score_core.metadata.base import Entity, Metadata
from score_core.metadata.wire import analysis_json, file_json
from score_core.server import openapi
from score_core.server.bodies import BAD_JSON, parsed, read_body
from score_core.server.errors import Refusal, refusal_of
from score_core.server.parameters import each_once

_MAX_BODY_BYTES: Final = 10_000_000
_MAX_PAGE_SIZE: Final = 2000  # as Song's
_PAGE_SIZE: Final = 20  # Spring's
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_FIELDS: Final[Mapping[str, Callable[[Entity], str | None]]] = {
    "id": lambda entity: entity.object_id,
    "gnosId": lambda entity: entity.analysis_id,
    "fileName": lambda entity: entity.file_name,
    "projectCode": lambda entity: entity.study_id,
    "access": lambda entity: entity.access,
}
_QUERY: Final = frozenset({*_FIELDS, "fields", "size", "page"})
_STATES: Final = frozenset({"UNPUBLISHED", "PUBLISHED", "SUPPRESSED"})
_STATUS_NAMES: Final = {413: "PAYLOAD_TOO_LARGE"}  # Spring's where Python's differs

# Song's words for what is wrong, where the kind of error alone does not say it: by the name of the handler.
_ERROR_IDS: Final[Mapping[tuple[str, int], str]] = {
    ("entity", 404): "entity.not.found",
    ("file", 404): "file.not.found",
    ("study", 404): "study.id.does.not.exist",
    ("add_study", 409): "study.already.exists",
    ("submit", 400): "schema.violation",
    ("submit", 409): "duplicate.analysis.attempt",
    ("publish", 409): "mismatching.storage.objects",
    ("unpublish", 409): "suppressed.state.transition",
}
_BY_STATUS: Final = ""  # instead of a code: the tables say it
_PARSING: Final = "payload.parsing"
_KINDS: Final = {
    400: "malformed.parameter",
    401: "unauthorized.token",
    403: "forbidden.token",
    404: "analysis.id.not.found",
    409: "analysis.state.conflict",
    413: "payload.too.large",
    503: "service.unavailable",
}

_TEXT: Final = {"type": "string"}
_TEXTS: Final = {"type": "array", "items": _TEXT}
_ENTITY_QUERY: Final = openapi.queries(
    **dict.fromkeys(_FIELDS, _TEXTS),
    fields={"type": "array", "items": {"enum": list(_FIELDS)}},
    size={"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": _PAGE_SIZE},
    page={"type": "integer", "minimum": 0, "maximum": 999_999_999, "default": 0},
)
_STUDY_BODY: Final = openapi.body_of({"type": "object", "properties": {"studyId": _TEXT}}, required=False)
_PAYLOAD_BODY: Final = openapi.body_of(
    {
        "type": "object",
        "required": ["analysisType", "files"],
        "properties": {
            "analysisId": _TEXT,
            "studyId": _TEXT,
            "analysisType": {"type": "object", "required": ["name"], "properties": {"name": _TEXT, "version": {"type": "integer"}}},
            "files": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["fileName", "fileSize", "fileMd5sum", "fileType"],
                    "properties": {
                        "fileName": _TEXT,
                        "fileSize": {"type": "integer", "minimum": 0},
                        "fileMd5sum": {"type": "string", "pattern": "^[0-9a-fA-F]{32}$"},
                        "fileType": _TEXT,
                        "fileAccess": {"enum": ["open", "controlled"]},
                        "dataType": _TEXT,
                        "info": {"type": "object"},
                    },
                },
            },
        },
    },
    required=True,
)


def song_router(metadata: Metadata, *, may_write: Callable[[Request, str], None]) -> APIRouter:
    """Song's routes over `metadata`. `may_write` gets each request that writes, with its study, and raises a `Refusal` if it may not."""

    def authorise(request: Request, study: str) -> None:
        may_write(request, study)

    routes = _Routes(metadata)
    analysis = "/studies/{study}/analysis"
    reads: Sequence[tuple[str, Callable[..., Response], Any]] = (
        ("/isAlive", routes.is_alive, str),
        ("/entities", routes.entities, openapi.Page),
        ("/entities/", routes.entities, openapi.Page),
        ("/entities/{object_id}", routes.entity, openapi.Entity),
        ("/studies/all", routes.studies, list[str]),
        ("/studies/{study}", routes.study, openapi.Study),
        ("/studies/{study}/files/{object_id}", routes.file, openapi.File),
        (analysis, routes.analyses, list[openapi.Analysis]),
        (f"{analysis}/{{analysis_id}}", routes.analysis, openapi.Analysis),
        (f"{analysis}/{{analysis_id}}/files", routes.files, list[openapi.File]),
    )
    writes: Sequence[tuple[str, str, Callable[..., Response], Any]] = (
        ("POST", "/studies/{study}", routes.add_study, openapi.Message),
        ("POST", "/studies/{study}/", routes.add_study, openapi.Message),
        ("POST", "/submit/{study}", routes.submit, openapi.Submitted),
        ("PUT", f"{analysis}/publish/{{analysis_id}}", routes.publish, openapi.Message),
        ("PUT", f"{analysis}/unpublish/{{analysis_id}}", routes.unpublish, openapi.Message),
        ("PUT", f"{analysis}/suppress/{{analysis_id}}", routes.suppress, openapi.Message),
    )
    router = APIRouter(route_class=_SongRoute, tags=["song"])

    def add(method: str, path: str, handler: Callable[..., Response], **options: Any) -> None:
        shown = not path.endswith("/")
        router.add_api_route(
            path, handler, methods=[method], response_model=None, response_class=Response, include_in_schema=shown, **options
        )

    for path, handler, body in reads:
        once = [] if handler == routes.entities else [Depends(each_once)]  # whose fields may be said several times
        extra = _ENTITY_QUERY if handler == routes.entities else None
        add("GET", path, handler, dependencies=once, responses=openapi.song_responses(body), openapi_extra=extra)
    for method, path, handler, body in writes:  # the permission comes before the body, which nobody else makes us read
        needs = [Depends(authorise), Depends(each_once)]
        extra = openapi.needs_token() | (_STUDY_BODY if handler == routes.add_study else _PAYLOAD_BODY if handler == routes.submit else {})
        add(method, path, handler, dependencies=needs, responses=openapi.song_responses(body, writes=True), openapi_extra=extra)
    return router


class _SongRoute(APIRoute):
    """A route whose errors have Song's form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except Exception as error:  # noqa: BLE001  # the outermost edge of these routes; what is unexpected is logged in refusal_of
                return _error(request, self.name, _refusal(error))

        return handled


def _refusal(error: Exception) -> Refusal:
    if isinstance(error, RequestValidationError):
        problem = error.errors()[0]
        return Refusal(400, f"Parameter {problem['loc'][-1]!r}: {problem['msg']}", code=_BY_STATUS)
    if isinstance(error, HTTPException):
        return Refusal(error.status_code, str(error.detail), code=_BY_STATUS)
    if isinstance(error, Conflict):
        return Refusal(409, str(error), code=_BY_STATUS)  # Score says 400 for it, Song does not
    if isinstance(error, NoSpaceError):
        return Refusal(503, "This server has no space left for metadata; tell its operator", code=_BY_STATUS)
    return refusal_of(error)


def _error(request: Request, handler: str, refusal: Refusal) -> Response:
    status = refusal.status
    now = datetime.now(UTC)
    body = {
        "errorId": _PARSING if refusal.code == BAD_JSON else _ERROR_IDS.get((handler, status)) or _KINDS.get(status, "unknown.error"),
        "httpStatusCode": status,
        "httpStatusName": _STATUS_NAMES.get(status) or HTTPStatus(status).name,
        "requestUrl": redact(str(request.url)[:500]),
        "datetime": f"{now:%Y-%m-%d %H:%M:%S}",
        "timestamp": int(now.timestamp() * 1000),
        "message": refusal.message,
        "debugMessage": "",
        "stackTrace": [],
    }
    return JSONResponse(body, status, headers=refusal.headers)


async def _read_body(request: Request) -> bytes:
    return await read_body(request, _MAX_BODY_BYTES)


_Body = Annotated[bytes, Depends(_read_body)]


class _Routes:
    """The handlers: plain functions, which FastAPI runs in threads, because metadata may wait for a disk or another service."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def is_alive(self) -> Response:
        """Says true."""
        self._metadata.check()
        return PlainTextResponse("true")

    def entities(self, request: Request) -> Response:
        """A page of files, whatever the state of their analyses."""
        query = _EntityQuery.of(request)
        found = self._found(query.wanted)
        page = found[query.page * query.size : (query.page + 1) * query.size]
        return JSONResponse(_page([_entity_json(entity, query.fields) for entity in page], query, len(found)))

    def _found(self, wanted: Mapping[str, frozenset[str]]) -> list[Entity]:
        """All that match: `Metadata` finds by id, analysis and study, the rest is chosen here."""
        analyses, studies = (_only(wanted.get(name, frozenset())) for name in ("gnosId", "projectCode"))
        entities: Iterable[Entity]
        if "id" in wanted:
            entities = [entity for object_id in sorted(wanted["id"]) for entity in self._known(object_id)]
        else:
            entities = self._metadata.entities(analysis_id=analyses, study_id=studies)
        return [entity for entity in entities if all(_FIELDS[name](entity) in values for name, values in wanted.items())]

    def _known(self, object_id: str) -> list[Entity]:
        try:
            return [self._metadata.entity(object_id)]
        except ObjectNotFound:
            return []

    def entity(self, object_id: str) -> Response:
        """One file's entity."""
        return JSONResponse(_entity_json(self._metadata.entity(object_id)))

    def studies(self) -> Response:
        """The ids of all studies."""
        return JSONResponse(list(self._metadata.studies()))

    def study(self, study: str) -> Response:
        """A study."""
        if study not in self._metadata.studies():
            raise ObjectNotFound(f"Study {study[:80]} does not exist")
        return JSONResponse({"studyId": study, "name": study, "organization": "", "description": "", "info": {}})

    def add_study(self, study: str, body: _Body) -> Response:
        """Makes a study. Of the body only the id is looked at: it must be the path's."""
        payload = parsed(body) if body else {}
        if not isinstance(payload, dict) or (payload.get("studyId") or study) != study:
            raise Refusal(400, f"The body must be a JSON object about study {study[:80]}", code=_BY_STATUS)
        self._metadata.add_study(study)
        return JSONResponse({"message": f"Study {study} was made"})

    def submit(self, study: str, body: _Body) -> Response:
        """Registers an analysis."""
        return JSONResponse({"analysisId": self._metadata.submit(study, parsed(body)), "status": "OK"})

    def analyses(self, study: str, analysisStates: str = "PUBLISHED") -> Response:  # noqa: N803  # Song's name
        """The analyses of a study that are in one of the states."""
        states = frozenset(state.strip() for state in analysisStates.split(","))
        if not states <= _STATES:
            raise Refusal(400, f"analysisStates must be some of {', '.join(sorted(_STATES))}, with commas between", code=_BY_STATUS)
        if study not in self._metadata.studies():
            raise ObjectNotFound(f"Study {study[:80]} does not exist")
        ids = dict.fromkeys(entity.analysis_id for entity in self._metadata.entities(study_id=study))
        found = (self._metadata.analysis(study, analysis_id) for analysis_id in ids)
        return JSONResponse([analysis_json(analysis) for analysis in found if analysis.state in states])

    def analysis(self, study: str, analysis_id: str) -> Response:
        """An analysis with its files."""
        return JSONResponse(analysis_json(self._metadata.analysis(study, analysis_id)))

    def files(self, study: str, analysis_id: str) -> Response:
        """The files of an analysis."""
        return JSONResponse([file_json(file) for file in self._metadata.analysis(study, analysis_id).files])

    def file(self, study: str, object_id: str) -> Response:
        """A file's record."""
        entity = self._metadata.entity(object_id)
        records = self._metadata.analysis(study, entity.analysis_id).files if entity.study_id == study else ()
        record = next((record for record in records if record.object_id == entity.object_id), None)
        if record is None:
            raise ObjectNotFound(f"Study {study[:80]} has no file {entity.object_id}")
        return JSONResponse(file_json(record))

    def publish(self, study: str, analysis_id: str, ignoreUndefinedMd5: bool = False) -> Response:  # noqa: N803  # Song's name
        """Makes an analysis PUBLISHED if all its files are stored as registered."""
        self._metadata.publish(study, analysis_id, ignore_undefined_md5=ignoreUndefinedMd5)
        return JSONResponse({"message": f"Analysis {analysis_id} is PUBLISHED"})

    def unpublish(self, study: str, analysis_id: str) -> Response:
        """Makes an analysis UNPUBLISHED."""
        self._metadata.unpublish(study, analysis_id)
        return JSONResponse({"message": f"Analysis {analysis_id} is UNPUBLISHED"})

    def suppress(self, study: str, analysis_id: str) -> Response:
        """Makes an analysis SUPPRESSED, for good."""
        self._metadata.suppress(study, analysis_id)
        return JSONResponse({"message": f"Analysis {analysis_id} is SUPPRESSED"})


@dataclass(frozen=True, slots=True)
class _EntityQuery:
    """`wanted` maps names of fields to the values of which one must match; `page` counts from 0."""

    wanted: Mapping[str, frozenset[str]]
    fields: Sequence[str]
    size: int
    page: int

    @classmethod
    def of(cls, request: Request) -> _EntityQuery:
        """Raises a `Refusal` for what Song refuses: names that it does not know."""
        query = request.query_params
        asked = [name for text in query.getlist("fields") for name in text.split(",")]
        unknown = [name for name in query if name not in _QUERY] + [name for name in asked if name not in _FIELDS]
        if unknown:
            raise Refusal(400, f"{unknown[0][:80]!r} is none of {', '.join(_FIELDS)}", code=_BY_STATUS)
        wanted = {name: frozenset(query.getlist(name)) for name in _FIELDS if name in query}
        if "id" in wanted:
            wanted["id"] = frozenset(map(check_object_id, wanted["id"]))
        size = min(_whole(query, "size", _PAGE_SIZE, least=1), _MAX_PAGE_SIZE)
        return cls(wanted, list(dict.fromkeys(asked)) or list(_FIELDS), size, _whole(query, "page", 0, least=0))


def _whole(query: QueryParams, name: str, default: int, *, least: int) -> int:
    said = query.getlist(name) or [str(default)]
    if len(said) > 1 or _NUMBER.fullmatch(said[0]) is None or int(said[0]) < least:
        raise Refusal(400, f"Parameter {name!r} must be a whole number, {least} or more, and be said once", code=_BY_STATUS)
    return int(said[0])


def _only(values: frozenset[str]) -> str | None:
    return next(iter(values)) if len(values) == 1 else None


def _page(content: Sequence[Mapping[str, Any]], query: _EntityQuery, total: int) -> dict[str, Any]:
    pages = -(-total // query.size)
    return {
        "content": content,
        "last": query.page + 1 >= pages,
        "totalPages": pages,
        "totalElements": total,
        "size": query.size,
        "number": query.page,
        "numberOfElements": len(content),
        "first": query.page == 0,
        "empty": not content,
    }


def _entity_json(entity: Entity, fields: Iterable[str] = tuple(_FIELDS)) -> dict[str, str | None]:
    return {name: _FIELDS[name](entity) for name in fields}
