"""What a Song payload must be before the embedded registry takes it in (protocol section 10.3).

Song itself checks payloads by schemas of its operator; here are the rules that transfers rest on: every file has a plain name that is its
own within the analysis, a size, an MD5 and an access, and ids follow from names.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Final

from score_core.errors import ConfigurationError
from score_core.ids import is_object_id, object_id_of
from score_core.metadata.base import SONG_FIELDS, Analysis, FileRecord

_STUDY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MD5: Final = re.compile(r"[0-9a-fA-F]{32}")
_ANALYSES: Final = uuid.UUID("0b5a7f2e-6c1d-4f0a-9a77-3d1e52c8b94f")  # our own namespace of analysis ids, drawn once
_ACCESSES: Final = ("open", "controlled")
_MAX_SIZE: Final = 2**63 - 1  # Java's long
_MAX_NAME_BYTES: Final = 255  # of common file systems
_MAX_TEXT: Final = 255
_MAX_DEPTH: Final = 64  # far from the recursion limits of every JSON reader and writer that will meet it
_MAX_FILES: Final = 100_000


def check_study_id(text: str) -> str:
    """`text` if it can be a study id of ours. Raises `ConfigurationError`."""
    if _STUDY.fullmatch(text) is None or text == "all":  # GET /studies/all lists them
        raise ConfigurationError(
            f"{text[:80]!r} is not a study id: that is 1 to 64 letters, digits, '-', '_' and '.', a letter or digit first, and not 'all'"
        )
    return text


def read_payload(study_id: str, payload: Mapping[str, Any]) -> Analysis:
    """The UNPUBLISHED analysis that a payload describes, with its ids.

    Without an `analysisId` of its own its id follows from the study and the files' names, sizes and MD5s, so that the same files give
    the same ids again.

    Raises:
        ConfigurationError: something is missing or wrong; names it.
    """
    check_study_id(study_id)
    if not isinstance(payload, Mapping):
        raise ConfigurationError("The payload cannot be registered: it is not a JSON object")
    _check_depth(payload)
    if (payload.get("studyId") or study_id) != study_id:
        raise _wrong("studyId", f"is another study than {study_id}")
    files = _list(payload, "files")
    facts = [_file_facts(study_id, f"files[{number}]", file) for number, file in enumerate(files)]
    _check_names_differ(fact["file_name"] for fact in facts)
    analysis_id = _analysis_id(payload) or derived_analysis_id(study_id, [(f["file_name"], f["md5"], f["size"]) for f in facts])
    kind = payload.get("analysisType")
    if not isinstance(kind, Mapping):
        raise _wrong("analysisType", 'must be an object such as {"name": "file"}')
    version = kind.get("version")
    if version is not None and (type(version) is not int or not 0 < version < 2**31):
        raise _wrong("analysisType.version", "must be a positive whole number")
    return Analysis(
        analysis_id=analysis_id,
        study_id=study_id,
        state="UNPUBLISHED",
        files=tuple(
            FileRecord(object_id=object_id_of(analysis_id, fact["file_name"]), analysis_id=analysis_id, **fact)
            for fact in sorted(facts, key=lambda fact: fact["file_name"])
        ),
        type_name=_text(kind, "name", "analysisType."),
        type_version=version,
        details=_storable({key: value for key, value in payload.items() if key not in SONG_FIELDS}, "payload"),
    )


def derived_analysis_id(study_id: str, files: Iterable[tuple[str, str, int]]) -> str:
    """The id of an analysis that was given none: UUID version 5 of its study and the name, MD5 and size of each file, in any order."""
    return str(uuid.uuid5(_ANALYSES, json.dumps([study_id, sorted(files)], separators=(",", ":"))))


def name_problem(name: str) -> str | None:
    """Why `name` cannot be the name of a file, None if it can. Manifests trim their cells and are split at tabs and line ends."""
    if not name or name != name.strip():
        return "is empty, or begins or ends with a blank"
    if name in {".", ".."} or "/" in name or "\\" in name:
        return "must be a plain name without a folder"
    if not name.isprintable():
        return "holds control or invisible characters"
    if len(name.encode()) > _MAX_NAME_BYTES:
        return f"is longer than {_MAX_NAME_BYTES} bytes"
    return None


def _file_facts(study_id: str, place: str, file: object) -> dict[str, Any]:
    """The fields of a `FileRecord` that the payload says."""
    if not isinstance(file, Mapping):
        raise _wrong(place, "must be an object")
    at = f"{place}."
    name, size, md5, access = _text(file, "fileName", at), file.get("fileSize"), file.get("fileMd5sum"), file.get("fileAccess")
    problem = name_problem(name)
    if problem:
        raise _wrong(f"{at}fileName", f"{problem}: {name[:80]!r}")
    if type(size) is not int or not 0 <= size <= _MAX_SIZE:
        raise _wrong(f"{at}fileSize", "must be a whole number of bytes, 0 or more")
    if not isinstance(md5, str) or _MD5.fullmatch(md5) is None:
        raise _wrong(f"{at}fileMd5sum", "must be an MD5 of 32 hex digits")
    if access is not None and access not in _ACCESSES:
        raise _wrong(f"{at}fileAccess", "must be open or controlled")
    info = file.get("info")
    if info is not None and not isinstance(info, Mapping):
        raise _wrong(f"{at}info", "must be an object")
    return {
        "study_id": study_id,
        "file_name": name,
        "size": size,
        "md5": md5.lower(),
        "file_type": _text(file, "fileType", at),
        "access": access or "controlled",
        "data_type": _text(file, "dataType", at, may_lack=True),
        "info": _storable(info or {}, f"{at}info"),
    }


def _check_names_differ(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise _wrong("files", f"holds the name {name!r} twice")
        seen.add(name)


def _analysis_id(payload: Mapping[str, Any]) -> str | None:
    text = payload.get("analysisId")
    if text is None:
        return None
    if not isinstance(text, str) or not is_object_id(text):
        raise _wrong("analysisId", "must be a UUID")
    return text.lower()


def _list(payload: Mapping[str, Any], key: str) -> list[Any]:
    value = payload.get(key)
    if not isinstance(value, list | tuple) or not 0 < len(value) <= _MAX_FILES:
        raise _wrong(key, f"must be a list of 1 to {_MAX_FILES:,} files")
    return list(value)


def _text(fields: Mapping[str, Any], key: str, at: str, *, may_lack: bool = False) -> str:
    value = fields.get(key)
    if value is None and may_lack:
        return ""
    if not isinstance(value, str) or not (value.strip() or may_lack) or not value.isprintable() or len(value) > _MAX_TEXT:
        raise _wrong(f"{at}{key}", f"must be a text of 1 to {_MAX_TEXT} printable characters")
    return value


def _storable(value: Mapping[str, Any], place: str) -> dict[str, Any]:
    """`value` as JSON gives it back."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()  # half a surrogate pair is legal in JSON, and no text
    except (TypeError, ValueError) as error:
        raise _wrong(place, f"cannot be written as JSON ({type(error).__name__})") from None
    return dict(json.loads(text))


def _check_depth(payload: object) -> None:
    """Walks without recursion, for it must survive what it refuses."""
    level: list[object] = [payload]
    for _ in range(_MAX_DEPTH):
        below = [value for value in level if isinstance(value, Mapping | list | tuple)]
        if not below:
            return
        level = [inner for value in below for inner in (value.values() if isinstance(value, Mapping) else value)]
    raise ConfigurationError(f"The payload is nested more than {_MAX_DEPTH} levels deep")


def _wrong(place: str, what: str) -> ConfigurationError:
    return ConfigurationError(f"The payload cannot be registered: {place} {what}")
