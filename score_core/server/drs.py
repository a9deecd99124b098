"""GA4GH's Data Repository Service 1.5: objects are blobs, analyses are bundles of their files.

Ids are those of Score and Song: an object's, or an analysis'. Only what is published is here, and only for whom downloads are allowed.
Signed URLs come from `/access`, never with an object. Passports are taken and not looked at: who calls is told by the bearer token.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, NamedTuple, TypeVar
from urllib.parse import quote, urlencode

import orjson
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from score_core import __version__
from score_core.errors import ConfigurationError, ObjectNotFound
from score_core.ids import check_object_id
from score_core.metadata.base import Analysis, FileRecord, Metadata
from score_core.server import openapi
from score_core.server.bodies import parsed, read_body
from score_core.server.errors import Refusal, refusal_of
from score_core.server.parameters import each_once
from score_core.server.published import Ga4ghOptions, Opened, Published, not_found
from score_core.service import Refused

_T = TypeVar("_T")

BASE: Final = "/ga4gh/drs/v1"
VERSION: Final = "1.5.0"

MAX_BULK: Final = 500  # ids of one request: each costs two questions to the store, and eight are asked at a time
_AT_A_TIME: Final = 8
_MAX_BODY_BYTES: Final = 1_000_000
_MAX_CONTENTS: Final = 100_000  # of all bundles of one answer: 25 MB
_SIGNED: Final = "https"  # the access id of a signed URL
_ID: Final = re.compile(r"[A-Za-z0-9._~-]{1,128}")  # of a bundle: what DRS allows in ids
_PORTABLE: Final = re.compile(r"[A-Za-z0-9._-]+")
_SLICED: Final = {  # suffixes of files that htsget serves, and where
    ".bam": ("reads", {}),
    ".cram": ("reads", {"format": "CRAM"}),
    ".vcf.gz": ("variants", {}),
    ".vcf.bgz": ("variants", {}),
    ".bcf": ("variants", {"format": "BCF"}),
}

ObjectId = Annotated[str, Path(description="The id of an object, or of an analysis, which is a bundle.")]
Expand = Annotated[bool, Query(description="Bundles here have no bundles in them: it changes nothing.")]

_TEXTS: Final = {"type": "array", "items": {"type": "string"}}
_PASSPORTS: Final = {"passports": {**_TEXTS, "type": ["array", "null"], "description": "Not looked at: the bearer token says who calls."}}
_POST_BODY: Final = openapi.body_of(
    {"type": "object", "properties": {**_PASSPORTS, "expand": {"type": "boolean"}}, "additionalProperties": True}, required=False
)
_BULK_BODY: Final = openapi.body_of(
    {
        "type": "object",
        "required": ["bulk_object_ids"],
        "properties": {**_PASSPORTS, "bulk_object_ids": {**_TEXTS, "minItems": 1, "maxItems": MAX_BULK}},
    },
    required=True,
)
_BULK_ACCESS_BODY: Final = openapi.body_of(
    {
        "type": "object",
        "required": ["bulk_object_access_ids"],
        "properties": {
            **_PASSPORTS,
            "bulk_object_access_ids": {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_BULK,
                "items": {
                    "type": "object",
                    "required": ["bulk_object_id", "bulk_access_ids"],
                    "properties": {"bulk_object_id": {"type": "string"}, "bulk_access_ids": {**_TEXTS, "minItems": 1}},
                },
            },
        },
    },
    required=True,
)


def drs_error(refusal: Refusal) -> Response:
    """DRS's error JSON."""
    body = {"msg": refusal.message or "The access token is not accepted", "status_code": refusal.status}
    return JSONResponse(body, refusal.status, headers=refusal.headers)


class _Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


class Face(NamedTuple):
    """Where the server is, as the caller sees it."""

    url: str
    host: str


class DrsRoutes:
    """The endpoints. Handlers run in threads, where they may wait for the store and the metadata."""

    def __init__(self, published: Published) -> None:
        self._published = published
        self._gate = published.gate
        self._workers = ThreadPoolExecutor(_AT_A_TIME, "score-drs")

    def router(self) -> APIRouter:
        """All endpoints. Fixed paths come before those with an id in their place."""
        router = APIRouter(prefix=BASE, tags=["drs"], dependencies=[Depends(each_once)])
        one, access = "/objects/{object_id}", "/objects/{object_id}/access/{access_id}"
        for method, path, handler, body, extra in (
            ("POST", "/objects", self.bulk, openapi.BulkObjects, _BULK_BODY),
            ("POST", "/objects/access", self.bulk_access, openapi.BulkAccess, _BULK_ACCESS_BODY),
            ("GET", one, self.drs_object, openapi.DrsObject, {}),
            ("POST", one, self.post_drs_object, openapi.DrsObject, _POST_BODY),
            ("OPTIONS", one, self.authorizations, openapi.Authorizations, {}),
            ("GET", access, self.access_url, openapi.AccessUrl, {}),
            ("POST", access, self.post_access_url, openapi.AccessUrl, _POST_BODY),
        ):
            router.add_api_route(
                path,
                handler,
                methods=[method],
                response_model=None,
                response_class=Response,
                responses=openapi.drs_responses(body),
                openapi_extra=openapi.needs_token(always=False) | extra,
            )
        router.add_api_route(
            "/service-info",
            self.drs_service_info,
            methods=["GET"],
            response_model=None,
            response_class=Response,
            responses=openapi.service_responses(openapi.DrsServiceInfo),
        )
        return router

    def drs_service_info(self, request: Request) -> Response:
        """What this service is and how many objects it takes in one request."""
        info = service_info(self._published.options, request, "drs", VERSION, "Data Repository Service")
        return _Json({**info, "maxBulkRequestLength": MAX_BULK, "drs": {"maxBulkRequestLength": MAX_BULK}})

    # One object

    def drs_object(self, request: Request, object_id: ObjectId, expand: Expand = False) -> Response:  # noqa: ARG002
        """An object with its size, checksum and ways to get it; or an analysis with its files."""
        return _Json(self._object(request, object_id, _Budget(_MAX_CONTENTS)))

    async def post_drs_object(self, request: Request, object_id: ObjectId, expand: Expand = False) -> Response:
        """The same, for callers that send passports."""
        _check_post(await _body(request, may_lack=True))
        return await run_in_threadpool(self.drs_object, request, object_id, expand)

    def authorizations(self, object_id: ObjectId) -> Response:
        """Which tokens an object asks for; told to everybody."""
        accesses: set[str | None] = {None}
        if (metadata := self._gate.metadata) is not None:
            try:
                accesses = {self._gate.entity(check_object_id(object_id)).access}
            except (Refusal, ConfigurationError):
                accesses = {file.access for file in self._analysis(metadata, object_id).files}
        return _Json({"drs_object_id": object_id, **self._authorizations(accesses)})

    def _authorizations(self, accesses: Iterable[str | None]) -> dict[str, Any]:
        is_open = not self._gate.asks_for_tokens or {(access or "").lower() for access in accesses} == {"open"}
        return {"supported_types": ["None" if is_open else "BearerAuth"]}

    def _object(self, request: Request, object_id: str, budget: _Budget) -> dict[str, Any]:
        """The object or, if there is none of this id, the bundle. Raises `Refusal`."""
        face = Face(self._published.options.base_url(request), self._published.options.host(request))
        try:
            opened = self._published.open(request, object_id)
        except Refusal as refusal:
            if refusal.status != 404 or self._gate.metadata is None:
                raise
            budget.check()
            analysis = self._analysis(self._gate.metadata, object_id, else_raise=refusal)
        else:
            return self._blob(opened, face)
        self._gate.for_analysis(request, analysis)
        self._published.require(analysis.files[0].entity)
        budget.take(len(analysis.files))
        return _bundle(analysis, face)

    def _analysis(self, metadata: Metadata, analysis_id: str, *, else_raise: Refusal | None = None) -> Analysis:
        """The analysis of that id, with at least one file. Raises `else_raise`, or that there is no such object."""
        if _ID.fullmatch(analysis_id) is not None:
            try:
                first = next(iter(metadata.entities(analysis_id=analysis_id)), None)
                if first is not None and (analysis := metadata.analysis(first.study_id, first.analysis_id)).files:
                    return analysis
            except (ObjectNotFound, Refused):  # Song answers either
                pass
        raise else_raise or not_found(analysis_id)

    def _blob(self, opened: Opened, face: Face) -> dict[str, Any]:
        spec = opened.spec
        open_to_all = self._authorizations({opened.entity.access if opened.entity is not None else None})
        methods: list[dict[str, Any]] = [
            {"type": "https", "access_id": _SIGNED, "available": True, "authorizations": open_to_all},
        ]
        place = next((place for suffix, place in _SLICED.items() if opened.name.lower().endswith(suffix)), None)
        if place is not None:
            query = f"?{urlencode(place[1])}" if place[1] else ""
            address = {"url": f"{face.url}/{place[0]}/{spec.object_id}{query}"}
            methods.append({"type": "htsget", "access_url": address, "available": True, "authorizations": open_to_all})
        return {
            "id": spec.object_id,
            "name": _portable(opened.name, spec.object_id),
            "self_uri": _uri(face, spec.object_id),
            "size": spec.size,
            "created_time": _time(spec.modified_at or 0.0),
            "checksums": [self._checksum(opened)],
            "access_methods": methods,
        }

    def _checksum(self, opened: Opened) -> dict[str, str]:
        """The MD5 that the uploader proved, or else the one of the registration; the store's ETag where there is neither."""
        spec = opened.spec
        record = self._gate.registered(spec.object_id) if spec.md5 is None else None
        md5 = spec.md5 or (record.md5 if record is not None else None)
        return {"checksum": md5, "type": "md5"} if md5 is not None else {"checksum": spec.etag or "", "type": "etag"}

    # Its bytes

    def access_url(self, request: Request, object_id: ObjectId, access_id: str) -> Response:
        """A signed URL of an object, good for some hours."""
        return _Json({"url": self._signed(request, object_id, access_id)})

    async def post_access_url(self, request: Request, object_id: ObjectId, access_id: str) -> Response:
        """The same, for callers that send passports."""
        _check_post(await _body(request, may_lack=True))
        return await run_in_threadpool(self.access_url, request, object_id, access_id)

    def _signed(self, request: Request, object_id: str, access_id: str) -> str:
        opened = self._published.open(request, object_id)
        if access_id != _SIGNED:
            raise Refusal(404, f"Object {opened.spec.object_id} has no access id {access_id[:80]!r}", code="not-found")
        return self._published.sign(opened.spec).url

    # Many

    async def bulk(self, request: Request, expand: Expand = False) -> Response:  # noqa: ARG002
        """Many objects, each once. What cannot be told is listed by the status that it would have had alone."""
        await run_in_threadpool(self._gate.caller, request)
        ids = _distinct(_texts(await _body(request), "bulk_object_ids"))
        return await run_in_threadpool(self._bulk, request, ids)

    def _bulk(self, request: Request, ids: Sequence[str]) -> Response:
        budget = _Budget(_MAX_CONTENTS)
        found = self._each(ids, lambda object_id: self._object(request, object_id, budget))
        return _Json({**_summary(ids, found), "resolved_drs_object": [made for made in found if not isinstance(made, Refusal)]})

    async def bulk_access(self, request: Request) -> Response:
        """Signed URLs of many objects."""
        await run_in_threadpool(self._gate.caller, request)
        pairs = _distinct(_pairs(await _body(request)))
        return await run_in_threadpool(self._bulk_access, request, pairs)

    def _bulk_access(self, request: Request, pairs: Sequence[tuple[str, str]]) -> Response:
        found = self._each(pairs, lambda pair: {"drs_object_id": pair[0], "drs_access_id": pair[1], "url": self._signed(request, *pair)})
        urls = [made for made in found if not isinstance(made, Refusal)]
        return _Json({**_summary([pair[0] for pair in pairs], found), "resolved_drs_object_access_urls": urls})

    def _each(self, asked: Sequence[_T], make: Callable[[_T], dict[str, Any]]) -> list[dict[str, Any] | Refusal]:
        """What is made of each, or why not, in order."""

        def made(one: _T) -> dict[str, Any] | Refusal:
            try:
                return make(one)
            except Exception as error:  # noqa: BLE001  # one of many; what is unexpected is logged in refusal_of
                return refusal_of(error)

        return list(self._workers.map(made, asked))


@dataclass
class _Budget:
    """How many contents of bundles an answer may still have."""

    left: int

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Once it was not enough, nothing is left: else many bundles would be read to be refused."""
        with self._lock:
            self.left -= count
            self._check()

    def check(self) -> None:
        """Before a bundle is read. Raises a `Refusal` if no more can be had."""
        with self._lock:
            self._check()

    def _check(self) -> None:
        if self.left < 0:
            raise Refusal(413, f"One answer holds at most {_MAX_CONTENTS:,} files of bundles; ask for fewer", code="too-large")


def service_info(options: Ga4ghOptions, request: Request, artifact: str, version: str, name: str) -> dict[str, Any]:
    """What GA4GH's service-info 1.0 requires of every service."""
    host = options.host(request)
    return {
        "id": ".".join([*reversed(host.split(".")), artifact]),
        "name": f"{options.organization}: {name}",
        "type": {"group": "org.ga4gh", "artifact": artifact, "version": version},
        "description": f"{name} over the objects of a Score server",
        "organization": {"name": options.organization, "url": options.organization_url or options.base_url(request)},
        "version": __version__,
    }


def _bundle(analysis: Analysis, face: Face) -> dict[str, Any]:
    digests = "".join(sorted(file.md5 or "" for file in analysis.files))
    changes = [change.at for change in analysis.history if change.at is not None]
    created_at = analysis.created_at if analysis.created_at is not None else min(changes, default=0.0)
    return {
        "id": analysis.analysis_id,
        "name": _portable(analysis.analysis_id, analysis.analysis_id),
        "self_uri": _uri(face, analysis.analysis_id),
        "size": sum(file.size for file in analysis.files),
        "created_time": _time(created_at),
        "checksums": [{"checksum": hashlib.md5(digests.encode(), usedforsecurity=False).hexdigest(), "type": "md5"}],
        "contents": [_content(file, face) for file in analysis.files],
    }


def _content(file: FileRecord, face: Face) -> dict[str, Any]:
    return {"name": _portable(file.file_name, file.object_id), "id": file.object_id, "drs_uri": [_uri(face, file.object_id)]}


def _uri(face: Face, name: str) -> str:
    return f"drs://{face.host}/{quote(name, safe='')}"


def _portable(name: str, unique: str) -> str:
    """The name if it has DRS's characters only; else with others replaced, and what makes it unique before it."""
    return name if _PORTABLE.fullmatch(name) else f"{unique}-{re.sub(r'[^A-Za-z0-9._-]', '_', name)}" if name else unique


def _time(at: float) -> str:
    """RFC 3339, in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# Bodies


async def _body(request: Request, *, may_lack: bool = False) -> Mapping[str, Any]:
    data = await read_body(request, _MAX_BODY_BYTES)
    body = parsed(data) if data or not may_lack else {}
    if not isinstance(body, dict):
        raise _wrong("The body must be a JSON object")
    if body.get("passports") is not None:
        _texts(body, "passports")
    return body


def _check_post(body: Mapping[str, Any]) -> None:
    if not isinstance(body.get("expand", False), bool):
        raise _wrong("expand must be true or false")


def _texts(body: Mapping[str, Any], name: str) -> list[str]:
    value = body.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise _wrong(f"{name} must be a list of texts")
    return value


def _pairs(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    value = body.get("bulk_object_access_ids")
    if not isinstance(value, list) or not all(isinstance(item, dict) and isinstance(item.get("bulk_object_id"), str) for item in value):
        raise _wrong("bulk_object_access_ids must be a list of objects with a bulk_object_id and bulk_access_ids")
    pairs = []
    for item in value:
        access_ids = _texts(item, "bulk_access_ids")
        if not access_ids:
            raise _wrong("bulk_access_ids must not be empty")
        pairs += [(item["bulk_object_id"], access_id) for access_id in access_ids]
    return pairs


def _distinct(asked: Sequence[_T]) -> list[_T]:
    """Each once: a bundle that is asked for 500 times would be an answer of gigabytes."""
    if not asked:
        raise _wrong("There is no id in the request")
    if len(asked) > MAX_BULK:
        raise Refusal(413, f"One request may ask for at most {MAX_BULK} ids, not {len(asked)}", code="too-large")
    return list(dict.fromkeys(asked))


def _summary(ids: Sequence[str], found: Sequence[dict[str, Any] | Refusal]) -> dict[str, Any]:
    missing: dict[int, list[str]] = {}
    for name, made in zip(ids, found, strict=True):
        if isinstance(made, Refusal):
            missing.setdefault(made.status, []).append(name.encode(errors="replace").decode())  # JSON can spell half a character
    unresolved = sum(map(len, missing.values()))
    return {
        "summary": {"requested": len(ids), "resolved": len(ids) - unresolved, "unresolved": unresolved},
        "unresolved_drs_objects": [{"error_code": status, "object_ids": names} for status, names in sorted(missing.items())],
    }


def _wrong(text: str) -> Refusal:
    return Refusal(400, text, code="bad-request")
