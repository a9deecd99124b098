"""What `/openapi.json` says of the answers. Bodies are made by hand, for speed, and not checked against this: tests do that.

The types are shapes of JSON, by the names of protocol sections 4 and 10.3, of htsget 1.3 and of DRS 1.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Annotated, Any, Final, Literal, NotRequired

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads typing's only from Python 3.12 on

Responses = dict[int | str, dict[str, Any]]

_BEARER: Final = "bearer"
_SECURITY: Final = {
    _BEARER: {
        "type": "http",
        "scheme": "bearer",
        "description": "A JWT, an API key or the server's own token, with the word Bearer spelled exactly so.",
    }
}


class Part(TypedDict):
    partNumber: int
    partSize: int
    offset: int
    url: str | None
    md5: str | None
    sourceMd5: NotRequired[str]
    etag: NotRequired[str]


class UploadProgress(TypedDict):
    objectId: str
    uploadId: str
    parts: list[Part]
    objectSize: int
    objectMd5: str | None
    fileName: NotRequired[str]


class ObjectSpecification(UploadProgress):
    objectKey: str
    sealed: NotRequired[bool]
    etag: NotRequired[str]


class ObjectInfo(TypedDict):
    id: str
    lastModified: int
    size: int


class UploadInfo(TypedDict):
    objectId: str
    uploadId: str
    startedAt: int


class Health(TypedDict):
    status: str


class Problem(TypedDict):
    timestamp: str
    status: int
    error: str
    path: str
    message: str
    code: str


class Entity(TypedDict, total=False):
    id: str
    gnosId: str
    fileName: str
    projectCode: str
    access: str | None


class Page(TypedDict):
    content: list[Entity]
    last: bool
    totalPages: int
    totalElements: int
    size: int
    number: int
    numberOfElements: int
    first: bool
    empty: bool


class Study(TypedDict):
    studyId: str
    name: str
    organization: str
    description: str
    info: dict[str, Any]


class File(TypedDict):
    objectId: str
    studyId: str
    analysisId: str
    fileName: str
    fileSize: int
    fileType: str
    fileMd5sum: str
    fileAccess: str
    dataType: str
    info: dict[str, Any]


class Analysis(TypedDict):
    analysisId: str
    studyId: str
    analysisState: str
    analysisType: dict[str, Any]
    samples: list[Any]
    files: list[File]
    createdAt: str | None
    updatedAt: str | None
    firstPublishedAt: str | None
    publishedAt: str | None
    analysisStateHistory: list[dict[str, Any]]


class Submitted(TypedDict):
    analysisId: str
    status: str


class Message(TypedDict):
    message: str


class SongError(TypedDict):
    errorId: str
    httpStatusCode: int
    httpStatusName: str
    requestUrl: str
    datetime: str
    timestamp: int
    message: str
    debugMessage: str
    stackTrace: list[str]


class TicketUrl(TypedDict):
    url: str
    headers: NotRequired[dict[str, str]]
    class_: NotRequired[Annotated[Literal["header", "body"], Field(alias="class")]]


class TicketBody(TypedDict):
    format: Literal["BAM", "CRAM", "VCF", "BCF"]
    urls: list[TicketUrl]


class Ticket(TypedDict):
    htsget: TicketBody


class HtsgetErrorBody(TypedDict):
    error: str
    message: str


class HtsgetError(TypedDict):
    htsget: HtsgetErrorBody


class ServiceType(TypedDict):
    group: str
    artifact: str
    version: str


class Organization(TypedDict):
    name: str
    url: str


class _ServiceInfo(TypedDict):
    id: str
    name: str
    type: ServiceType
    description: str
    organization: Organization
    version: str


class HtsgetInfo(TypedDict):
    datatype: Literal["reads", "variants"]
    formats: list[Literal["BAM", "CRAM", "VCF", "BCF"]]
    fieldsParameterEffective: bool
    tagsParametersEffective: bool


class HtsgetServiceInfo(_ServiceInfo):
    htsget: HtsgetInfo


class DrsLimits(TypedDict):
    maxBulkRequestLength: int


class DrsServiceInfo(_ServiceInfo):
    maxBulkRequestLength: int
    drs: DrsLimits


class Checksum(TypedDict):
    checksum: str
    type: str


class AccessUrl(TypedDict):
    url: str


class Authorizations(TypedDict):
    drs_object_id: NotRequired[str]
    supported_types: list[Literal["None", "BasicAuth", "BearerAuth", "PassportAuth"]]


class AccessMethod(TypedDict):
    type: Literal["https", "htsget"]
    access_url: NotRequired[AccessUrl]
    access_id: NotRequired[str]
    available: bool
    authorizations: Authorizations


class Content(TypedDict):
    name: str
    id: str
    drs_uri: list[str]


class DrsObject(TypedDict):
    id: str
    name: str
    self_uri: str
    size: int
    created_time: str
    checksums: list[Checksum]
    access_methods: NotRequired[list[AccessMethod]]
    contents: NotRequired[list[Content]]


class Summary(TypedDict):
    requested: int
    resolved: int
    unresolved: int


class Unresolved(TypedDict):
    error_code: int
    object_ids: list[str]


class _Bulk(TypedDict):
    summary: Summary
    unresolved_drs_objects: list[Unresolved]


class BulkObjects(_Bulk):
    resolved_drs_object: list[DrsObject]


class BulkAccessUrl(TypedDict):
    drs_object_id: str
    drs_access_id: str
    url: str


class BulkAccess(_Bulk):
    resolved_drs_object_access_urls: list[BulkAccessUrl]


class DrsError(TypedDict):
    msg: str
    status_code: int


def htsget_responses() -> Responses:
    """Of a route that answers with tickets."""
    return {200: _success(Ticket), **_errors(HtsgetError, (400, 401, 403, 404, 413, 500, 503), "htsget's error JSON")}


def drs_responses(body: Any) -> Responses:
    """Of a route of DRS that answers with `body`."""
    return {200: _success(body), **_errors(DrsError, (400, 401, 403, 404, 413, 500, 503), "DRS's error JSON")}


def service_responses(body: Any) -> Responses:
    """Of a route that tells about a service, to everybody."""
    return {200: _success(body)}


def score_responses(body: Any = None) -> Responses:
    """Of a Score route that answers with `body`: a type, `str` for plain text, None for nothing."""
    return {
        200: _success(body),
        401: {"description": "The token is bad or expired; no body"},
        403: {"description": "The token lacks the scope; a sentence", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **_errors(Problem, (400, 404, 503), "Spring's error JSON, with a message"),
    }


def song_responses(body: Any, *, writes: bool = False) -> Responses:
    """Of a route of Song that answers with `body`."""
    statuses = (400, 401, 403, 404, 409, 413, 503) if writes else (400, 404, 503)
    return {200: _success(body), **_errors(SongError, statuses, "Song's error JSON")}


def health_responses() -> Responses:
    return {**score_responses(Health), 503: {"description": "The store is not reached", "model": Health | Problem}}


def needs_token(*, always: bool = True) -> dict[str, Any]:
    """Of an operation. Without `always` anonymous callers may be let in, too."""
    return {"security": [{_BEARER: []}, *([] if always else [{}])]}


def body_of(schema: dict[str, Any], *, required: bool) -> dict[str, Any]:
    """Of an operation whose body is read by hand."""
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def queries(**schemas: dict[str, Any]) -> dict[str, Any]:
    """Of an operation whose parameters are read by hand."""
    return {"parameters": [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in schemas.items()]}


def _success(body: Any) -> dict[str, Any]:
    if body is None:
        return {"description": "Done; no body"}
    if body is str:
        return {"description": "A text, without quotes or line end", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {"description": "Done", "model": body}


def _errors(model: Any, statuses: Iterable[int], text: str) -> Responses:
    return {status: {"description": f"{HTTPStatus(status).phrase}: {text}", "model": model} for status in statuses}


class Api(FastAPI):
    """An application whose document has the names of the handlers as operation ids, tells of tokens, and of no 422, which is never sent."""

    def __init__(self, **options: Any) -> None:
        super().__init__(generate_unique_id_function=_operation_id, **options)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is not None:
            return self.openapi_schema
        document = super().openapi()
        components = document["components"]
        components["securitySchemes"] = _SECURITY
        for name in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(name, None)
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        return document


def _operation_id(route: APIRoute) -> str:
    return route.name
