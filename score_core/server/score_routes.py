"""Score's REST API over a `DirectRepository` (protocol sections 2 and 3).

Handlers are plain functions: the server runs each in a thread, where it may wait for the store. Every parameter travels in the query; no
request body is read. Unknown parameters are ignored.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse
from pydantic import Field

from score_core.checksum import is_md5_shaped, parse_md5
from score_core.errors import Conflict, ScoreError
from score_core.ids import check_object_id
from score_core.metadata.payload import name_problem
from score_core.model import ObjectSpec, StoredPart, Upload
from score_core.plan import MAX_OBJECT_SIZE_BYTES, MAX_PARTS, part_size_bytes, plan_parts
from score_core.repository import wire
from score_core.repository.direct import DirectRepository
from score_core.server import openapi
from score_core.server.access import Gate
from score_core.server.errors import Refusal
from score_core.server.kept import Kept
from score_core.server.parameters import DECIMAL, each_once

_log = logging.getLogger(__name__)

_INT64: Final = 2**63 - 1
_OPEN: Final = ("/profile", "/actuator", "/download")  # to callers without a token
_MAX_ETAG: Final = 256  # the record of a part is an object's key, which S3 limits to 1024 bytes
_KEPT_BYTES: Final = 64 << 20
_SPEC_LIFE_S: Final = 10.0
_HEALTH_LIFE_S: Final = 3.0
_HEALTH_PATIENCE_S: Final = 5.0
_LISTING_LIFE_S: Final = 60.0

ObjectId = Annotated[str, Path(description="The object's UUID.", examples=["3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11"])]
Offset = Annotated[int, Field(ge=0, le=_INT64), DECIMAL]
Length = Annotated[int, Field(ge=-_INT64 - 1, le=_INT64), DECIMAL]
Size = Annotated[int, Field(ge=0, le=MAX_OBJECT_SIZE_BYTES), DECIMAL, Query(description="Bytes.")]
UploadId = Annotated[str, Query(min_length=1, max_length=1024)]
Number = Annotated[int, Field(ge=1, le=MAX_PARTS), DECIMAL, Query(description="From 1.")]


class _Json(Response):
    """JSON by orjson: a specification of 10,000 parts in milliseconds."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else orjson.dumps(content)


class ScoreRoutes:
    """The endpoints. `marks_md5` lets Java clients pass over stored parts unchecked (21.1).

    `etags_are_md5` refuses a part whose MD5 is not its ETag: right for every store but those that encrypt with keys of their own.
    `replaced` is told the id of each object that has got other bytes here.
    """

    def __init__(
        self,
        repository: DirectRepository,
        gate: Gate,
        *,
        marks_md5: bool = False,
        etags_are_md5: bool = True,
        replaced: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._repository = repository
        self._gate = gate
        self._marks_md5 = marks_md5
        self._etags_are_md5 = etags_are_md5
        self._replaced = replaced
        self._specs = Kept[bytes](_KEPT_BYTES, _SPEC_LIFE_S, size_of=len)
        self._listing = Kept[bytes](_KEPT_BYTES, _LISTING_LIFE_S, size_of=len)
        self._pulse = _Pulse(repository.check)

    def router(self) -> APIRouter:
        """All endpoints. Fixed paths come before those with an id in their place."""
        router = APIRouter(tags=["score"], dependencies=[Depends(each_once)])
        for method, path, handler, body in (
            ("GET", "/profile", self.profile, str),
            ("GET", "/listing", self.listing, list[openapi.ObjectInfo]),
            ("GET", "/actuator/health", self.health, openapi.Health),
            ("GET", "/uploads", self.uploads, list[openapi.UploadInfo]),
            ("GET", "/download/ping", self.ping, str),
            ("GET", "/download/{object_id}", self.download, openapi.ObjectSpecification),
            ("GET", "/upload/test/{object_id}", self.test, str),
            ("GET", "/upload/{object_id}", self.exists, bool),
            ("GET", "/upload/{object_id}/status", self.status, openapi.UploadProgress),
            ("POST", "/upload/{object_id}/uploads", self.initiate, openapi.ObjectSpecification),
            ("POST", "/upload/{object_id}/parts", self.finalise_part, None),
            ("DELETE", "/upload/{object_id}/parts", self.delete_part, None),
            ("POST", "/upload/{object_id}/recovery", self.recovery, None),
            ("POST", "/upload/{object_id}", self.finalise, None),
            ("DELETE", "/upload/{object_id}", self.cancel, None),
        ):
            router.add_api_route(
                path,
                handler,
                methods=[method],
                response_model=None,
                response_class=Response,  # of no media type: the document has those that `responses` say
                responses=openapi.health_responses() if body is openapi.Health else openapi.score_responses(body),
                openapi_extra=openapi.needs_token(always=not path.startswith(_OPEN)),
            )
        router.add_api_route("/health", self.health, methods=["GET"], response_model=None, include_in_schema=False)
        return router

    # The server

    def profile(self, request: Request) -> Response:
        """The flavour of storage: what Java clients build their data plane from (3.3)."""
        self._gate.caller(request)
        return PlainTextResponse("s3")

    def listing(self, request: Request) -> Response:
        """Every stored object, for every good token, as Java servers do (3.4). At most a minute old."""
        self._gate.known(request)
        return _Json(self._listing.get("", lambda: orjson.dumps(wire.listing_body(self._repository.list_objects()))))

    def uploads(self, request: Request) -> Response:
        """Ours: all unfinished uploads, for the system's upload scope."""
        self._gate.for_operation(request)
        return _Json(wire.uploads_body(self._repository.list_uploads()))

    async def health(self, request: Request) -> Response:
        """UP, or 503 OUT_OF_SERVICE when the store is not reached (3.14).

        A coroutine: it answers when all threads wait for a slow store. Only a token, which probes do not have, needs one of them.
        """
        if "authorization" in request.headers:
            await run_in_threadpool(self._gate.caller, request)
        status, code = ("UP", 200) if await self._pulse.is_felt() else ("OUT_OF_SERVICE", 503)
        return _Json({"status": status}, code)

    def ping(self, request: Request) -> Response:
        """A URL of the sentinel, a small object that proves that URLs of the store lead somewhere (3.5)."""
        self._gate.caller(request)
        return PlainTextResponse(self._repository.sign_sentinel().url)

    # Downloads

    def download(
        self,
        request: Request,
        object_id: ObjectId,
        offset: Annotated[Offset, Query(description="The first byte wanted.")],
        length: Annotated[Length, Query(description="Bytes wanted; negative: to the end.")],
        external: Annotated[bool, Query(description="One URL for the whole object.")] = False,
        exclude_urls: Annotated[bool, Query(alias="exclude-urls", description="Describe only.")] = False,
    ) -> Response:
        """The specification of an object, or of a range of it, with a signed URL for each part (3.6)."""
        object_id = check_object_id(object_id)
        entity = self._gate.for_download(request, object_id)
        if not exclude_urls:
            self._gate.require(object_id, "PUBLISHED", entity)
        if external or offset != 0 or length >= 0:
            return _Json(self._piece(object_id, offset, length, external=external, signs=not exclude_urls))
        if exclude_urls:
            return _Json(self._whole(object_id, signs=False))
        return _Json(self._specs.get(object_id, lambda: self._whole(object_id, signs=True)))

    def _whole(self, object_id: str, *, signs: bool) -> bytes:
        spec = self._repository.describe(object_id)
        return orjson.dumps(wire.spec_body(self._key(object_id), spec, spec.upload_id or object_id, self._get_urls(spec, signs=signs)))

    def _piece(self, object_id: str, offset: int, length: int, *, external: bool, signs: bool) -> bytes:
        """Steps 7 and 8: other parts than those that were uploaded, or one URL for everything."""
        spec = self._repository.describe(object_id)
        if offset > spec.size or (length > 0 and offset + length > spec.size):
            raise Refusal(400, f"Object {object_id} has {spec.size} bytes: there is no range of {length} from {offset}", code="range")
        if external:
            url = self._repository.sign_external(object_id).url if signs else None
            return orjson.dumps(wire.external_body(self._key(object_id), spec, length, url))
        size = spec.size - offset if length < 0 else length
        parts = plan_parts(size, offset=offset, minimum=self._repository.part_size_bytes)
        piece = ObjectSpec(object_id, size, parts, md5=spec.md5, etag=spec.etag, file_name=spec.file_name, relocated=spec.relocated)
        return orjson.dumps(wire.spec_body(self._key(object_id), piece, object_id, self._get_urls(piece, signs=signs)))

    def _get_urls(self, spec: ObjectSpec, *, signs: bool) -> wire.Urls | None:
        if not signs:
            return None
        signed = self._repository.sign_downloads(spec, [part.range for part in spec.parts])
        return {part.number: url.url for part, url in zip(spec.parts, signed, strict=True)}

    # Uploads

    def test(self, request: Request, object_id: ObjectId) -> Response:
        """A short text, if the caller may upload this object (3.13)."""
        self._gate.for_upload(request, check_object_id(object_id))
        return PlainTextResponse("allowed")

    def exists(self, request: Request, object_id: ObjectId) -> Response:
        """`true` or `false`: whether the object is published in the store (3.7)."""
        object_id = check_object_id(object_id)
        self._gate.for_upload(request, object_id)
        return _Json(self._repository.exists(object_id))

    def status(self, request: Request, object_id: ObjectId, size: Annotated[Size, Query(alias="fileSize")]) -> Response:
        """The upload in progress: its parts, which of them are stored, and new URLs for all (3.12)."""
        upload = self._in_progress(request, object_id, size)
        return _Json(wire.progress_body(upload, self._put_urls(upload), marks_md5=self._marks_md5))

    def recovery(self, request: Request, object_id: ObjectId, size: Annotated[Size, Query(alias="fileSize")]) -> Response:
        """Nothing, if an upload of that size is in progress (3.12)."""
        self._in_progress(request, object_id, size)
        return Response()

    def _in_progress(self, request: Request, object_id: str, size: int) -> Upload:
        object_id = check_object_id(object_id)
        self._gate.for_upload(request, object_id)
        upload = self._repository.find_upload(object_id, size)
        if upload is None:
            raise Refusal(404, f"No upload of object {object_id} is in progress", code="no-upload")
        return upload

    def initiate(
        self,
        request: Request,
        object_id: ObjectId,
        size: Annotated[Size, Query(alias="fileSize")],
        overwrite: bool = False,
        md5: Annotated[str | None, Query(max_length=64, description="What the whole file's MD5 is going to be, in hex.")] = None,
        file_name: Annotated[str | None, Query(alias="fileName", max_length=255)] = None,
    ) -> Response:
        """Begins an upload and drops an unfinished older one. Answers the part table with a signed URL for each part (3.8)."""
        object_id = check_object_id(object_id)
        self._gate.for_upload(request, object_id)
        promised = parse_md5(md5) if md5 else None
        if md5 and promised is None:
            raise Refusal(400, "md5 is not an MD5 of 32 hex digits", code="bad-md5")
        if self._gate.metadata is not None:
            entity = self._gate.entity(object_id)
            self._gate.require(object_id, "UNPUBLISHED", entity)
            self._check_registered(object_id, size, promised)
            file_name = entity.file_name
        elif file_name is not None and (problem := name_problem(file_name)):
            raise Refusal(400, f"fileName {problem}", code="bad-parameter")
        part_size_bytes(size, minimum=self._repository.part_size_bytes)  # no plan: refused before an older upload is dropped
        try:
            upload = self._repository.begin_upload(object_id, size, md5=promised, file_name=file_name, overwrite=overwrite)
        except Conflict as error:
            raise Refusal(400, str(error), code="exists") from None
        return _Json(wire.begun_body(self._key(object_id), upload, self._put_urls(upload)))

    def _check_registered(self, object_id: str, size: int, md5: str | None) -> None:
        """A file that could never be published is refused before a byte of it is sent (section 22)."""
        record = self._gate.registered(object_id)
        if record is None:
            return
        if record.size != size:
            raise Refusal(400, f"Object {object_id} was registered with {record.size} bytes, not {size}", code="registered-otherwise")
        if record.md5 is not None and md5 is not None and record.md5 != md5:
            raise Refusal(400, f"Object {object_id} was registered with MD5 {record.md5}, not {md5}", code="registered-otherwise")

    def finalise_part(
        self,
        request: Request,
        object_id: ObjectId,
        number: Annotated[Number, Query(alias="partNumber")],
        upload_id: Annotated[UploadId, Query(alias="uploadId")],
        md5: Annotated[str, Query(description="Of the part, in hex.")],
        etag: Annotated[str, Query(max_length=_MAX_ETAG, description="What the store answered to the part's PUT, without quotes.")],
    ) -> Response:
        """Records a part that the store holds with this ETag. The same again changes nothing (3.9)."""
        object_id = check_object_id(object_id)
        self._gate.for_upload(request, object_id)
        etag, parsed = etag.strip('"'), parse_md5(md5)
        if not etag or parsed is None:
            raise Refusal(400, f"Part {number} needs its MD5 of 32 hex digits and its ETag", code="bad-md5")
        if self._etags_are_md5 and is_md5_shaped(etag) and etag != parsed:
            raise Refusal(400, f"Part {number} is stored with MD5 {etag}, not {parsed}", code="wrong-md5")
        self._repository.record_part(object_id, upload_id, StoredPart(number, parsed, etag))
        return Response()

    def delete_part(
        self,
        request: Request,
        object_id: ObjectId,
        number: Annotated[Number, Query(alias="partNumber")],
        upload_id: Annotated[UploadId, Query(alias="uploadId")],
    ) -> Response:
        """Forgets that a part is stored; quiet when it was not known (3.10)."""
        object_id = check_object_id(object_id)
        self._gate.for_upload(request, object_id)
        self._repository.forget_part(object_id, upload_id, number)
        return Response()

    def finalise(
        self,
        request: Request,
        object_id: ObjectId,
        upload_id: Annotated[UploadId, Query(alias="uploadId")],
        sealed: Annotated[bool, Query(description="Ours: the uploader has proven the whole MD5 on the same bytes.")] = False,
    ) -> Response:
        """Publishes the object from its recorded parts. The same again, after success, is success (3.11)."""
        object_id = check_object_id(object_id)
        self._gate.for_upload(request, object_id)
        if not self._gate.is_unpublished(object_id) and self._repository.is_in_progress(object_id, upload_id):
            raise Refusal(400, f"Object {object_id} cannot be replaced: its analysis is not UNPUBLISHED", code="wrong-state")
        try:
            self._repository.finish(object_id, upload_id, sealed=sealed)
        except Conflict as error:
            raise Refusal(400, str(error), code="incomplete") from None
        self._specs.forget(object_id)
        self._replaced(object_id)
        return Response()

    def cancel(self, request: Request, object_id: ObjectId) -> Response:
        """Drops the unfinished uploads of the object and their parts (3.12)."""
        object_id = check_object_id(object_id)
        self._gate.for_upload(request, object_id)
        if not self._repository.abort(object_id):
            raise Refusal(404, f"No upload of object {object_id} is in progress", code="no-upload")
        return Response()

    def _put_urls(self, upload: Upload) -> wire.Urls:
        return {part.number: url.url for part, url in zip(upload.parts, self._repository.sign_uploads(upload, upload.parts), strict=True)}

    def _key(self, object_id: str) -> str:
        return self._repository.keys.data(object_id)


class _Pulse:
    """Whether the store answers, as of some seconds ago. One thread looks at a time, outside of those that serve requests."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._lock = threading.Lock()
        self._seen = False, float("-inf")  # whether it answered, and when
        self._looking: Future[bool] | None = None

    async def is_felt(self) -> bool:
        """False as well when it takes longer than anybody who asks for health would wait."""
        felt, at = self._seen
        if time.monotonic() - at < _HEALTH_LIFE_S:
            return felt
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._look())), _HEALTH_PATIENCE_S)
        except TimeoutError:
            return False

    def _look(self) -> Future[bool]:
        """The look that is being taken, or a new one."""
        with self._lock:
            if self._looking is None:
                self._looking = Future()
                threading.Thread(target=self._feel, args=(self._looking,), name="score-health", daemon=True).start()
            return self._looking

    def _feel(self, answer: Future[bool]) -> None:
        felt = False
        try:
            self._check()
            felt = True
        except ScoreError as error:
            _log.warning("The store does not answer: %s", error)
        finally:
            with self._lock:
                self._seen, self._looking = (felt, time.monotonic()), None
            answer.set_result(felt)
