"""Analyses and files as Song's JSON (protocol section 10), for whoever answers like a Song. `song.py` reads it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from score_core.metadata.base import Analysis, FileRecord


def file_json(file: FileRecord) -> dict[str, Any]:
    """A file as Song says it."""
    return {
        "objectId": file.object_id,
        "studyId": file.study_id,
        "analysisId": file.analysis_id,
        "fileName": file.file_name,
        "fileSize": file.size,
        "fileType": file.file_type,
        "fileMd5sum": file.md5,
        "fileAccess": file.access,
        "dataType": file.data_type,
        "info": dict(file.info),
    }


def analysis_json(analysis: Analysis) -> dict[str, Any]:
    """An analysis as Song says it, with its files and the history of its states."""
    changed = [change.at for change in analysis.history if change.at is not None]
    published = [change.at for change in analysis.history if change.at is not None and change.after == "PUBLISHED"]
    return {
        "samples": [],
        **analysis.details,
        "analysisId": analysis.analysis_id,
        "studyId": analysis.study_id,
        "analysisState": analysis.state,
        "analysisType": {"name": analysis.type_name, "version": analysis.type_version or 1},
        "createdAt": _time(analysis.created_at),
        "updatedAt": _time(max(changed, default=analysis.created_at)),
        "firstPublishedAt": _time(min(published, default=None)),
        "publishedAt": _time(max(published, default=None)) if analysis.state == "PUBLISHED" else None,
        "analysisStateHistory": [
            {"initialState": change.before, "updatedState": change.after, "updatedAt": _time(change.at)} for change in analysis.history
        ],
        "files": [file_json(file) for file in analysis.files],
    }


def _time(at: float | None) -> str | None:
    """As Song writes it: of UTC, without saying so."""
    return None if at is None else datetime.fromtimestamp(at, UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
