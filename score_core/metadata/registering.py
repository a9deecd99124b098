"""From local files to a registered analysis, in any `Metadata`, and the manifests that follow from it (protocol section 15)."""

from __future__ import annotations

import io
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from score_core.checksum import digest_of
from score_core.errors import ChangedError, ConfigurationError, LocalFileError, ServiceError
from score_core.metadata.base import Analysis, FileRecord, Metadata, index_of
from score_core.metadata.payload import name_problem

_BLOCK_BYTES: Final = 512 << 10  # as in transfer/files.py, where it was measured
_TYPES: Final = {"FQ": "FASTQ"}
_COMPRESSED: Final = ("GZ", "BGZ")
DOWNLOAD_COLUMNS: Final = (
    "repo_code",
    "file_id",
    "object_id",
    "file_format",
    "file_name",
    "file_size",
    "md5_sum",
    "index_object_id",
    "donor_id/donor_count",
    "project_id/project_count",
    "study",
)


@dataclass(frozen=True, slots=True)
class NewFile:
    """A local file to register. `size` in bytes, `md5` in hex, `access` is `open` or `controlled`; `data_type` and `info` are free."""

    path: Path
    size: int
    md5: str
    access: str = "controlled"
    data_type: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.name


def new_file(path: Path, *, md5: str | None = None, access: str = "controlled", on_bytes: Callable[[int], None] | None = None) -> NewFile:
    """The file at `path`, with `md5` or, if that is None, the MD5 of its bytes; `on_bytes` hears of each block that was read.

    Raises:
        LocalFileError: it cannot be read, or is no regular file.
        ChangedError: it was written to meanwhile.
    """
    try:
        before = path.stat()
        if not stat.S_ISREG(before.st_mode):  # before it is opened: a pipe would wait for somebody to write
            raise LocalFileError(f"Cannot register {path}: it is not a regular file")
        with path.open("rb") as file:
            md5 = md5 or digest_of(_blocks(file, on_bytes)).md5
            after = os.fstat(file.fileno())
    except LocalFileError:
        raise
    except OSError as error:
        raise LocalFileError(f"Cannot read {path}: {error.strerror}") from error
    if (before.st_ino, before.st_size, before.st_mtime_ns) != (after.st_ino, after.st_size, after.st_mtime_ns):
        raise ChangedError(f"{path} was written to while it was read; try again when it is finished")
    assert md5 is not None
    return NewFile(path, before.st_size, md5, access)


def _blocks(file: io.BufferedReader, on_bytes: Callable[[int], None] | None) -> Iterator[bytes]:
    while block := file.read(_BLOCK_BYTES):
        yield block
        if on_bytes is not None:
            on_bytes(len(block))


def file_type_of(name: str) -> str:
    """Song's file type by the name's suffix, without that of a compression: `x.vcf.gz` is VCF, `x.fq` FASTQ, `x.bam.bai` BAI."""
    words = name.upper().split(".")[1:]
    if len(words) > 1 and words[-1] in _COMPRESSED:
        words.pop()
    word = words[-1] if words else ""
    return _TYPES.get(word, word) if word.isalnum() and word.isascii() else "OTHER"


def register(
    metadata: Metadata, study_id: str, files: Sequence[NewFile], *, analysis_id: str | None = None, type_name: str = "file"
) -> Analysis:
    """The UNPUBLISHED analysis of these files, with their object ids.

    An embedded registry gives the same files of a study the same ids, also when it is asked again; a Song makes a new analysis each time.

    Raises:
        ConfigurationError: two files have one name, or a name cannot be registered.
        Conflict: there is an analysis `analysis_id` with something else.
        ServiceError: what was registered is not what was asked for.
    """
    twice = [name for name, count in Counter(file.name for file in files).items() if count > 1]
    if twice:
        places = ", ".join(str(file.path) for file in files if file.name == twice[0])
        raise ConfigurationError(f"Files of one analysis must differ by name, but these do not: {places}")
    for file in files:
        problem = name_problem(file.name)
        if problem:
            raise ConfigurationError(f"{file.path} cannot be registered: its name {problem}")
    payload: dict[str, Any] = {"studyId": study_id, "analysisType": {"name": type_name}, "files": [_file_payload(file) for file in files]}
    if analysis_id is not None:
        payload["analysisId"] = analysis_id
    analysis = metadata.analysis(study_id, metadata.submit(study_id, payload))
    if {(file.name, file.size, file.md5.lower()) for file in files} != {(file.file_name, file.size, file.md5) for file in analysis.files}:
        raise ServiceError(f"{metadata.label} registered analysis {analysis.analysis_id} with other files than it was sent")
    return analysis


def summary(analysis: Analysis) -> dict[str, Any]:
    """What receipts and `--json` say of an analysis."""
    return {
        "study_id": analysis.study_id,
        "analysis_id": analysis.analysis_id,
        "state": analysis.state,
        "files": [
            {"object_id": file.object_id, "file_name": file.file_name, "size": file.size, "md5": file.md5} for file in analysis.files
        ],
    }


def _file_payload(file: NewFile) -> dict[str, Any]:
    return {
        "fileName": file.name,
        "fileSize": file.size,
        "fileMd5sum": file.md5,
        "fileType": file_type_of(file.name),
        "fileAccess": file.access,
        "dataType": file.data_type,
        "info": dict(file.info),
    }


def upload_manifest_text(analysis: Analysis, places: Path | Mapping[str, Path]) -> str:
    """Song's manifest of 3 columns: object id, absolute path, MD5 (protocol section 15.3).

    `places` is the folder that holds all files, or the path of each by its name.

    Raises:
        ConfigurationError: a file has no place or no MD5, or its path cannot stand in a manifest.
    """
    lines = [(analysis.analysis_id, "", "")]
    for file in analysis.files:
        path = places / file.file_name if isinstance(places, Path) else places.get(file.file_name)
        if path is None or file.md5 is None:
            raise ConfigurationError(
                f"File {file.file_name} cannot be listed for upload: its {'path' if path is None else 'MD5'} is unknown"
            )
        lines.append((file.object_id, _cell(str(path.absolute())), file.md5))
    return _lines(lines)


def download_manifest_text(analysis: Analysis) -> str:
    """The manifest of 11 columns that downloads read, with a header (protocol section 15.2).

    Raises:
        ConfigurationError: a name cannot stand in a manifest.
    """
    return _lines([DOWNLOAD_COLUMNS, *(_download_row(file, analysis) for file in analysis.files)])


def _download_row(file: FileRecord, analysis: Analysis) -> tuple[str, ...]:
    index = index_of(file.entity, [other.entity for other in analysis.files])
    return (
        "",
        _cell(analysis.analysis_id),
        file.object_id,
        _cell(file.file_type),
        _cell(file.file_name),
        str(file.size),
        file.md5 or "",
        "" if index is None else index.object_id,
        "",
        "",
        _cell(analysis.study_id),
    )


def _cell(text: str) -> str:
    """`text` if a manifest gives it back as it stands: readers split at tabs and line ends, and trim."""
    if text != text.strip() or any(mark in text for mark in "\t\n\r\0") or not _is_utf8(text):
        raise ConfigurationError(f"{text[:200]!r} cannot stand in a manifest; rename it without tabs, line breaks and blanks at its ends")
    return text


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a path whose bytes are no UTF-8
        return False
    return True


def _lines(rows: Sequence[Sequence[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)
