"""What a transfer needs to know of files and analyses: Song's part of the house, as one Protocol (protocol section 10)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, runtime_checkable

AnalysisState = Literal["UNPUBLISHED", "PUBLISHED", "SUPPRESSED"]

INDEX_SUFFIXES: Final = (".crai", ".bai", ".tbi", ".csi", ".idx")  # Java knows all but .csi (protocol section 13.5)
REGION_INDEX_SUFFIXES: Final = (".bai", ".csi", ".crai", ".tbi")  # of these regions can be found by, the usual before the special

# What Song itself says of an analysis, beside its `details`: so an analysis that was read can be submitted again as it stands.
SONG_FIELDS: Final = frozenset(
    {
        "analysisId",
        "analysisState",
        "analysisStateHistory",
        "analysisType",
        "createdAt",
        "files",
        "firstPublishedAt",
        "publishedAt",
        "studyId",
        "updatedAt",
    }
)


@dataclass(frozen=True, slots=True)
class Entity:
    """Song's short view of a file. `access` is as Song says it: `open`, `controlled`, anything, or None: check before you decide by it."""

    object_id: str
    analysis_id: str
    file_name: str
    study_id: str
    access: str | None = None


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A registered file of an analysis. `size` in bytes, `md5` in hex (None: undefined), `access` is `open` or `controlled`."""

    object_id: str
    study_id: str
    analysis_id: str
    file_name: str
    size: int
    md5: str | None
    file_type: str = ""
    access: str = "controlled"
    data_type: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def entity(self) -> Entity:
        return Entity(self.object_id, self.analysis_id, self.file_name, self.study_id, self.access)


@dataclass(frozen=True, slots=True)
class StateChange:
    """`at` in seconds since the epoch, None if the service did not say."""

    before: AnalysisState
    after: AnalysisState
    at: float | None


@dataclass(frozen=True, slots=True)
class Analysis:
    """An analysis with its files, by name. `type_name` and `type_version` are Song's analysis type.

    `details` are its other fields as they were submitted. `created_at` is in seconds since the epoch; `history` is oldest first.
    """

    analysis_id: str
    study_id: str
    state: AnalysisState
    files: tuple[FileRecord, ...]
    type_name: str = ""
    type_version: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    created_at: float | None = None
    history: tuple[StateChange, ...] = ()


@runtime_checkable
class Metadata(Protocol):
    """Safe to call from several threads.

    Raises `ObjectNotFound` for what is not registered, `Conflict` for what its rules forbid, `ConfigurationError` for input that is none,
    `AuthenticationError`, `AccessDenied`, and `Unavailable` when the service is not reached: only "not found" means not found.
    """

    @property
    def label(self) -> str:
        """Where it is, for messages; without secrets."""
        ...

    def entity(self, object_id: str) -> Entity:
        """One file. Raises `ObjectNotFound`."""
        ...

    def entities(self, *, analysis_id: str | None = None, study_id: str | None = None) -> Iterator[Entity]:
        """Files, of one analysis or study or all, whatever the state of their analysis; all pages, each id once."""
        ...

    def state(self, study_id: str, analysis_id: str) -> AnalysisState:
        """The state of an analysis. Raises `ObjectNotFound`."""
        ...

    def analysis(self, study_id: str, analysis_id: str) -> Analysis:
        """An analysis with its files. Raises `ObjectNotFound`."""
        ...

    def studies(self) -> Sequence[str]:
        """The ids of all studies, sorted."""
        ...

    def add_study(self, study_id: str) -> None:
        """Makes a study. Raises `Conflict` when it exists."""
        ...

    def submit(self, study_id: str, payload: Mapping[str, Any]) -> str:
        """Registers an UNPUBLISHED analysis from a Song payload (`analysisType`, `files`, ...) and returns its id.

        Raises `ConfigurationError` (a Song: `Refused`) for a payload that is none, `Conflict` for the id of another analysis.
        """
        ...

    def publish(self, study_id: str, analysis_id: str, *, ignore_undefined_md5: bool = False) -> None:
        """Makes an analysis PUBLISHED once every file of it is stored with the registered size and MD5 (protocol section 10.4).

        Raises `Conflict` when one is not, naming it. Publishing what is published changes nothing.
        """
        ...

    def unpublish(self, study_id: str, analysis_id: str) -> None:
        """Makes a PUBLISHED analysis UNPUBLISHED: its files can be replaced and are not handed out. Raises `Conflict` when suppressed."""
        ...

    def suppress(self, study_id: str, analysis_id: str) -> None:
        """Makes an analysis SUPPRESSED, for good."""
        ...

    def check(self) -> None:
        """Returns if it is reached; raises what is wrong if not."""
        ...

    def close(self) -> None:
        """Frees what it opened."""
        ...


def index_of(entity: Entity, siblings: Sequence[Entity]) -> Entity | None:
    """The index file of `entity` among the files of its analysis: its name and an index suffix, in any case (protocol section 13.5)."""
    return next(iter(_named(siblings, entity.analysis_id, [entity.file_name + suffix for suffix in INDEX_SUFFIXES])), None)


def indexes_of(entity: Entity, siblings: Sequence[Entity], suffixes: Sequence[str]) -> list[Entity]:
    """All index files with one of these suffixes, in their order: behind the file's name, or (`a.bai` of `a.bam`) in place of its own."""
    stem = entity.file_name.rpartition(".")[0] or entity.file_name
    return _named(siblings, entity.analysis_id, [name + suffix for name in (entity.file_name, stem) for suffix in suffixes])


def _named(siblings: Sequence[Entity], analysis_id: str, names: Sequence[str]) -> list[Entity]:
    by_name = {found.file_name.lower(): found for found in siblings if found.analysis_id == analysis_id}
    return [by_name[name.lower()] for name in names if name.lower() in by_name]
