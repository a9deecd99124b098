"""Who may do what with an object, and in which state of its analysis (protocol sections 9.5, 9.6, 3.6, 3.8)."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from cachetools import TTLCache
from starlette.requests import Request

from score_core.auth.base import Authenticator, Principal, ScopeRules
from score_core.errors import AuthenticationError, ObjectNotFound, ServiceError
from score_core.metadata.base import Analysis, AnalysisState, Entity, FileRecord, Metadata
from score_core.server.errors import Refusal, forbidden, unauthorised
from score_core.service import Refused

_BEARER: Final = "Bearer "
_OPEN: Final = "open"
_CONTROLLED: Final = frozenset({"controlled", "", "null"})
_REMEMBERED: Final = 4096

ANYONE: Final = "anyone"
WRONG_STATE: Final = "wrong-state"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `principal` is None for the anonymous; `has_header` says whether an Authorization header came along."""

    principal: Principal | None
    has_header: bool

    @property
    def name(self) -> str:
        """For the audit log."""
        return "anonymous" if self.principal is None else self.principal.name


class Gate:
    """Decides before anything is done. Thread-safe.

    Without an `authenticator` everybody may do everything: for a server that only this machine reaches. Without `metadata` nobody knows
    studies and states, so that only the system's scopes open anything. `checks_state=False` is Java's legacy mode.
    `remembers_s` is for how long entities and PUBLISHED states are believed without asking again; UNPUBLISHED ones always are asked for.
    """

    def __init__(
        self,
        authenticator: Authenticator | None,
        metadata: Metadata | None,
        scopes: ScopeRules,
        *,
        checks_state: bool = True,
        remembers_s: float = 0.0,
    ) -> None:
        self._authenticator = authenticator
        self.metadata = metadata
        self._scopes = scopes
        self._checks_state = checks_state
        self._entities: TTLCache[str, Entity] = TTLCache(_REMEMBERED, remembers_s)
        self._published: TTLCache[tuple[str, str], bool] = TTLCache(_REMEMBERED, remembers_s)
        self._lock = threading.Lock()

    def caller(self, request: Request) -> Caller:
        """Who asks, by the Authorization header. Only `Bearer` names somebody; a bad token is refused everywhere (3.1)."""
        headers = request.headers.getlist("authorization")
        if len(headers) > 1:
            raise unauthorised()  # what is in front of us may have looked at the other one
        header = headers[0] if headers else None
        if self._authenticator is None:
            everything = frozenset({self._scopes.download_system, self._scopes.upload_system})
            caller = Caller(Principal(ANYONE, everything), has_header=True)
        elif header is None or not header.startswith(_BEARER):
            if header is not None and header[: len(_BEARER)].lower() == _BEARER.lower():
                raise unauthorised()  # `bearer` in another spelling never got anybody in (9.2)
            caller = Caller(None, has_header=header is not None)
        else:
            try:
                caller = Caller(self._authenticator.authenticate(header[len(_BEARER) :].strip(" ")), has_header=True)
            except AuthenticationError:
                raise unauthorised() from None
        request.scope["score.caller"] = caller.name
        return caller

    @property
    def asks_for_tokens(self) -> bool:
        """Whether it makes a difference who calls."""
        return self._authenticator is not None

    def known(self, request: Request) -> Caller:
        """The caller if it has any good token; 401 if not."""
        caller = self.caller(request)
        if caller.principal is None:
            raise unauthorised()
        return caller

    def for_download(self, request: Request, object_id: str) -> Entity | None:
        """The entity if it had to be asked for. In this order: system scope, unknown object, open access, study scope (9.5)."""
        principal = self.caller(request).principal
        if self._scopes.downloads_all(principal):
            return None
        if self.metadata is None:
            raise unauthorised() if principal is None else forbidden("download")
        entity = self.entity(object_id)
        self._check_download(principal, entity.study_id, {entity.access}, f"object {object_id}")
        return entity

    def for_analysis(self, request: Request, analysis: Analysis) -> None:
        """Whether the caller may download every file of the analysis."""
        principal = self.caller(request).principal
        if not self._scopes.downloads_all(principal):
            accesses = {file.access for file in analysis.files}
            self._check_download(principal, analysis.study_id, accesses, f"a file of analysis {analysis.analysis_id}")

    def _check_download(self, principal: Principal | None, study_id: str, accesses: Collection[str | None], what: str) -> None:
        kinds = {(access or "").lower() for access in accesses}
        if kinds == {_OPEN}:
            return
        if not kinds <= {_OPEN, *_CONTROLLED}:
            raise Refusal(400, f"The access of {what} is neither open nor controlled in its metadata", code="bad-access")
        if not self._scopes.may_download(principal, study_id):
            raise forbidden("download")

    def for_upload(self, request: Request, object_id: str) -> None:
        """In this order: header, token, system scope, unknown object, study scope (9.6)."""
        caller = self.caller(request)
        if not caller.has_header:
            raise Refusal(400, "Uploads need an Authorization header", code="no-authorization")
        if self._scopes.uploads_all(caller.principal):
            return
        if caller.principal is None or self.metadata is None:
            raise forbidden("upload")
        if not self._scopes.may_upload(caller.principal, self.entity(object_id).study_id):
            raise forbidden("upload")

    def for_study(self, request: Request, study_id: str) -> None:
        """Whether metadata of a study may be written: with what its uploads need."""
        caller = self.known(request)
        if not self._scopes.may_upload(caller.principal, study_id):
            raise forbidden("upload")

    def for_operation(self, request: Request) -> None:
        """Whether the caller may see or do what concerns all studies."""
        if not self._scopes.uploads_all(self.known(request).principal):
            raise forbidden("upload")

    # What the metadata say

    def entity(self, object_id: str) -> Entity:
        assert self.metadata is not None
        with self._lock:
            known = self._entities.get(object_id)
        if known is None:
            try:
                known = self.metadata.entity(object_id)
            except ObjectNotFound:
                raise Refusal(404, f"Object {object_id} is not registered", code="not-found") from None
            if known.object_id != object_id:  # Java refuses it, too: access and state would be another object's
                raise ServiceError(f"The metadata answer with object {known.object_id[:80]} when asked for {object_id}")
            with self._lock:
                self._entities[object_id] = known
        return known

    def require(self, object_id: str, state: AnalysisState, entity: Entity | None = None) -> None:
        """Raises 400 unless the analysis of the object is in `state`, 404 if the object or the analysis is unknown."""
        if self.metadata is None:
            return
        entity = entity or self.entity(object_id)
        if self._checks_state and not self._is(entity, state):
            raise Refusal(400, f"Analysis {entity.analysis_id} of object {object_id} is not {state}", code=WRONG_STATE)

    def is_unpublished(self, object_id: str) -> bool:
        """Whether the object may still be replaced."""
        return self.metadata is None or not self._checks_state or self._is(self.entity(object_id), "UNPUBLISHED")

    def _is(self, entity: Entity, state: AnalysisState) -> bool:
        assert self.metadata is not None
        place = (entity.study_id, entity.analysis_id)
        with self._lock:
            if state == "PUBLISHED" and self._published.get(place):
                return True
        try:
            actual = self.metadata.state(*place)
        except (ObjectNotFound, Refused):  # Song answers either for an analysis of another study (10.1)
            raise Refusal(404, f"Analysis {entity.analysis_id} of object {entity.object_id} is unknown", code="not-found") from None
        with self._lock:
            if actual == "PUBLISHED":
                self._published[place] = True
            else:
                self._published.pop(place, None)
        return actual == state

    def registered(self, object_id: str) -> FileRecord | None:
        """Size and MD5 that the file was registered with; None if the metadata do not say."""
        if self.metadata is None:
            return None
        entity = self.entity(object_id)
        files = self.metadata.analysis(entity.study_id, entity.analysis_id).files
        return next((record for record in files if record.object_id == object_id), None)
