"""A real Song as `Metadata` (protocol sections 10.2 and 10.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NoReturn
from urllib.parse import quote

from score_core.checksum import parse_md5
from score_core.errors import ConfigurationError, ServiceError
from score_core.ids import check_object_id, is_object_id
from score_core.metadata.base import SONG_FIELDS, Analysis, AnalysisState, Entity, FileRecord, StateChange
from score_core.service import ServiceClient

_PAGE_SIZE: Final = 2000  # Song's cap
_MAX_PAGES: Final = 100_000  # 200 million files: beyond that somebody makes them up
_STATES: Final[dict[object, AnalysisState]] = {"UNPUBLISHED": "UNPUBLISHED", "PUBLISHED": "PUBLISHED", "SUPPRESSED": "SUPPRESSED"}
_PUBLISH_TIMEOUT_S: Final = 600.0  # Song asks Score about each file, and waits 15 s and more before it asks again (section 10.4)


class SongClient:
    """`Metadata` over Song's REST API. Closes `client` with itself.

    An answer about something else than was asked is a `ServiceError`: who may read what is decided by these answers. Song answers 400
    (`service.Refused`) for some ids that it does not know, such as those of an analysis of another study.
    """

    def __init__(self, client: ServiceClient) -> None:
        self._client = client

    @property
    def label(self) -> str:
        return self._client.url

    # Reading

    def entity(self, object_id: str) -> Entity:
        object_id = check_object_id(object_id)
        what = f"object {object_id}"
        body = self._object(f"/entities/{object_id}", what)
        self._check_is(what, body.get("id"), object_id, ignore_case=True)
        return _entity(body, object_id)

    def entities(self, *, analysis_id: str | None = None, study_id: str | None = None) -> Iterator[Entity]:
        asked = {key: value for key, value in (("gnosId", analysis_id), ("projectCode", study_id)) if value is not None}
        seen: set[str] = set()
        for number in range(_MAX_PAGES):
            page = self._object("/entities", "entities", {**asked, "size": _PAGE_SIZE, "page": number})
            content = page.get("content")
            if not isinstance(content, list):
                self._odd("entities", "sent no page of them")
            fresh = [entity for entity in self._listed(content, asked) if entity.object_id not in seen]
            for entity in fresh:
                if entity.object_id not in seen:  # one page may name it twice
                    seen.add(entity.object_id)
                    yield entity
            if page.get("last") is True or not fresh:  # nothing new: a service without paging, or one that never says `last`
                return
        self._odd("entities", f"sent {_MAX_PAGES:,} pages of them without an end")

    def _listed(self, content: Sequence[object], asked: Mapping[str, str]) -> Iterator[Entity]:
        for item in content:
            object_id = item.get("id") if isinstance(item, dict) else None
            if not isinstance(item, dict) or not isinstance(object_id, str) or not is_object_id(object_id):
                self._odd("entities", "sent one without an id")
            for key, value in asked.items():
                if item.get(key) is not None:
                    self._check_is(f"the files with {key} {value}", item[key], value)
            yield _entity({**item, **asked}, object_id.lower())

    def state(self, study_id: str, analysis_id: str) -> AnalysisState:
        return self._state(self._analysis(study_id, analysis_id), f"analysis {analysis_id}")

    def analysis(self, study_id: str, analysis_id: str) -> Analysis:
        what = f"analysis {analysis_id}"
        body = self._analysis(study_id, analysis_id)
        files = body.get("files")
        if not isinstance(files, list):
            files = self._json(f"{_analysis_path(study_id, analysis_id)}/files", what)
        if not isinstance(files, list):
            self._odd(what, "sent no list of its files")
        records = {record.object_id: record for record in (self._file(item, study_id, analysis_id) for item in files)}
        kind = _mapping(body.get("analysisType"))
        history = body.get("analysisStateHistory")
        version = kind.get("version")
        return Analysis(
            analysis_id=analysis_id,
            study_id=study_id,
            state=self._state(body, what),
            files=tuple(sorted(records.values(), key=lambda record: record.file_name)),
            type_name=_text(kind.get("name")) or "",
            type_version=version if type(version) is int else None,
            details={key: value for key, value in body.items() if key not in SONG_FIELDS},
            created_at=_epoch(body.get("createdAt")),
            history=tuple(_changes(history)) if isinstance(history, list) else (),
        )

    def studies(self) -> Sequence[str]:
        body = self._json("/studies/all", "studies")
        if not isinstance(body, list) or not all(isinstance(item, str) for item in body):
            self._odd("studies", "sent no list of ids")
        return sorted(set(body))

    # Writing

    def add_study(self, study_id: str) -> None:
        study = {"studyId": study_id, "name": study_id, "description": "", "organization": "", "info": {}}
        self._client.request("POST", f"/studies/{_segment(study_id)}/", json=study)

    def submit(self, study_id: str, payload: Mapping[str, Any]) -> str:
        """As in the Protocol. Sent once only when the payload has no `analysisId`: Song would make another analysis each time."""
        attempts = None if payload.get("analysisId") else 1
        response = self._client.request("POST", f"/submit/{_segment(study_id)}", json=dict(payload), attempts=attempts)
        body = self._decoded(response.json, "a submission")
        analysis_id = body.get("analysisId") if isinstance(body, dict) else None
        if not isinstance(analysis_id, str) or not analysis_id:
            self._odd("a submission", "sent no analysis id")
        return analysis_id

    def publish(self, study_id: str, analysis_id: str, *, ignore_undefined_md5: bool = False) -> None:
        self._put("publish", study_id, analysis_id, {"ignoreUndefinedMd5": ignore_undefined_md5})

    def unpublish(self, study_id: str, analysis_id: str) -> None:
        self._put("unpublish", study_id, analysis_id)

    def suppress(self, study_id: str, analysis_id: str) -> None:
        self._put("suppress", study_id, analysis_id)

    def _put(self, verb: str, study_id: str, analysis_id: str, params: Mapping[str, Any] | None = None) -> None:
        path = f"/studies/{_segment(study_id)}/analysis/{verb}/{_segment(analysis_id)}"
        self._client.request("PUT", path, params=params, read_timeout_s=_PUBLISH_TIMEOUT_S)

    # The service

    def check(self) -> None:
        if self._client.get("/isAlive").text.strip().lower() != "true":
            self._odd("/isAlive", "did not say true")

    def close(self) -> None:
        self._client.close()

    # Answers

    def _analysis(self, study_id: str, analysis_id: str) -> dict[str, Any]:
        what = f"analysis {analysis_id}"
        body = self._object(_analysis_path(study_id, analysis_id), what)
        self._check_is(what, body.get("analysisId"), analysis_id)
        if body.get("studyId") is not None:
            self._check_is(f"{what} of study {study_id}", body["studyId"], study_id)
        return body

    def _file(self, item: object, study_id: str, analysis_id: str) -> FileRecord:
        what = f"the files of analysis {analysis_id}"
        fields = _mapping(item)
        object_id, size, md5 = _text(fields.get("objectId")), fields.get("fileSize"), _text(fields.get("fileMd5sum"))
        if object_id is None or not is_object_id(object_id):
            self._odd(what, "sent one without an object id")
        if type(size) is not int or size < 0:
            self._odd(what, f"sent no size of object {object_id}")
        for key, value in (("analysisId", analysis_id), ("studyId", study_id)):
            if fields.get(key) is not None:
                self._check_is(what, fields[key], value)
        return FileRecord(
            object_id=object_id.lower(),
            study_id=study_id,
            analysis_id=analysis_id,
            file_name=_text(fields.get("fileName")) or "",
            size=size,
            md5=None if md5 is None else parse_md5(md5),
            file_type=_text(fields.get("fileType")) or "",
            access=_text(fields.get("fileAccess")) or "controlled",
            data_type=_text(fields.get("dataType")) or "",
            info=_mapping(fields.get("info")),
        )

    def _state(self, body: Mapping[str, Any], what: str) -> AnalysisState:
        state = _STATES.get(_text(body.get("analysisState")))
        if state is None:
            self._odd(what, "did not say a state that is known")
        return state

    def _object(self, path: str, what: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        body = self._json(path, what, params)
        if not isinstance(body, dict):
            self._odd(what, "sent no JSON object")
        return body

    def _json(self, path: str, what: str, params: Mapping[str, Any] | None = None) -> Any:
        return self._decoded(self._client.get(path, params=params).json, what)

    def _decoded(self, read: Callable[[], Any], what: str) -> Any:
        try:
            return read()
        except (ValueError, RecursionError):
            self._odd(what, "sent something that is not JSON")

    def _check_is(self, what: str, said: object, asked: str, *, ignore_case: bool = False) -> None:
        if not isinstance(said, str) or (said.lower() if ignore_case else said) != asked:
            self._odd(what, f"answered about {str(said)[:80]!r}")

    def _odd(self, what: str, did: str) -> NoReturn:
        raise ServiceError(f"{self.label} was asked for {what[:200]} and {did}; is it the address of a Song?")


def _segment(text: str) -> str:
    """A study or analysis id as one step of a path.

    Quoting keeps most texts in their place. Not so dots, which clients and proxies resolve, and slashes, which some servers unquote
    before they look for the path's steps; no id of Song's has them.

    Raises:
        ConfigurationError: it cannot be an id.
    """
    if not text.strip(". ") or "/" in text or "\\" in text or not text.isprintable():
        raise ConfigurationError(f"{text[:80]!r} is not an id of a study or an analysis")
    return quote(text, safe="")


def _analysis_path(study_id: str, analysis_id: str) -> str:
    return f"/studies/{_segment(study_id)}/analysis/{_segment(analysis_id)}"


def _entity(fields: Mapping[str, Any], object_id: str) -> Entity:
    return Entity(
        object_id=object_id,
        analysis_id=_text(fields.get("gnosId")) or "",
        file_name=_text(fields.get("fileName")) or "",
        study_id=_text(fields.get("projectCode")) or "",
        access=_text(fields.get("access")),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _changes(history: Sequence[object]) -> Iterator[StateChange]:
    """Oldest first; the order in which Song sends them is nowhere promised."""
    for item in sorted(map(_mapping, history), key=lambda item: _epoch(item.get("updatedAt")) or 0.0):
        before, after = (_STATES.get(_text(item.get(key))) for key in ("initialState", "updatedState"))
        if before is not None and after is not None:
            yield StateChange(before, after, _epoch(item.get("updatedAt")))


def _epoch(value: object) -> float | None:
    """Seconds since the epoch. Song writes the time of its machine without a zone; in its containers that is UTC."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        return None if moment is None else moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None
