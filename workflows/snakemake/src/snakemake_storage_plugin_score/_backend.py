"""What a provider knows and does: the door from Snakemake to score_core. No class of Snakemake's is known here.

Snakemake asks for each file some eight times in a run, and for the existence of files that nobody has made yet, so what is known of an
analysis is kept here, for all files of it: of a published one as long as the process lives, of others for some seconds. That something is
not there is never kept.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Final

from score_core import operations
from score_core.errors import ConfigurationError, Conflict, ObjectMismatch, ObjectNotFound, ServiceError
from score_core.metadata.base import REGION_INDEX_SUFFIXES, Analysis, FileRecord, Metadata, indexes_of
from score_core.operations import DownloadItem, DownloadOptions, UploadItem
from score_core.progress import Silent
from score_core.transfer.stop import Stop
from snakemake_storage_plugin_score._queries import SCHEME, Pattern, Query

if TYPE_CHECKING:
    from score_core.settings import Settings
    from score_core.transfer.engine import Engine

_KEPT_S: Final = 10.0
_INDEXES: Final = sorted(REGION_INDEX_SUFFIXES, key=lambda suffix: suffix != ".csi")  # CSI first: it has no limit on a contig's length


@dataclass(frozen=True, slots=True)
class Known:
    """A file that is there. `size` in bytes, `md5` in hex, None if nobody recorded it.

    `mtime`, in seconds since the epoch, is when its analysis was first published: bytes do not change after that, whatever the store's
    own date is. Before, it is when the analysis was registered, for size and MD5 are fixed since; 0 where neither is known.
    `analysis` is None for an object that is in no analysis.
    """

    object_id: str
    size: int
    md5: str | None
    mtime: float = 0.0
    analysis: Analysis | None = None


@dataclass(slots=True)
class _Kept:
    """An analysis as it was answered, and until when that is believed (None: always). `stored` are the objects known to be there."""

    analysis: Analysis
    until: float | None
    stored: set[str] = field(default_factory=set)
    named: dict[str, FileRecord] = field(init=False)
    by_id: dict[str, FileRecord] = field(init=False)

    def __post_init__(self) -> None:
        self.named = {file.file_name: file for file in self.analysis.files}  # there may be 100,000, each asked for eight times
        self.by_id = {file.object_id: file for file in self.analysis.files}


class Backend:
    """One provider's Score server and metadata, contacted when first asked. Safe to call from several threads. Close it.

    `registers`: named files are registered when they are stored. `state_dir` keeps half-finished downloads.
    """

    def __init__(
        self, load: Callable[[], Settings], logger: Logger, *, state_dir: Path, registers: bool = False, reference: Path | None = None
    ) -> None:
        self._load = load
        self._logger = logger
        self._state_dir = state_dir
        self._registers = registers
        self._reference = reference
        self._closing = ExitStack()
        self._lock = threading.RLock()
        self._kept: dict[tuple[str, str], _Kept] = {}
        self._analysis_of: dict[str, tuple[str, str]] = {}
        self._versions: dict[str, int] = {}  # of named files, the newest, by their path

    def close(self) -> None:
        self._closing.close()

    @cached_property
    def settings(self) -> Settings:
        return self._load()

    @property
    def has_token(self) -> bool:
        return self.settings.token is not None or self.settings.token_file is not None

    @cached_property
    def _engine(self) -> Engine:
        from score_core.session import open_engine

        return self._closing.enter_context(open_engine(self.settings, progress=_Told(self._logger)))

    @cached_property
    def _metadata(self) -> Metadata | None:
        from score_core.session import open_metadata

        metadata = open_metadata(self.settings, self._engine.repository, create=self._registers)
        if metadata is not None:
            self._closing.callback(metadata.close)  # before the repository's, as it must be
        return metadata

    # Reading

    def find(self, query: Query) -> Known | None:
        """What is there under a query; None only if it is sure that nothing is.

        Raises:
            ScoreError: it is not known, or its analysis is withdrawn.
        """
        with self._lock:
            if query.object_id is not None:
                return self._find_object(query.object_id)
            kept = self._asked_for(query)
            record = None if kept is None else kept.named.get(query.file_name)
            return None if kept is None or record is None else self._find_stored(kept, record)

    def _find_object(self, object_id: str) -> Known | None:
        place = self._analysis_of.get(object_id)
        if place is None and self._metadata is not None:
            try:
                entity = self._metadata.entity(object_id)
                place = entity.study_id, entity.analysis_id
            except ObjectNotFound:
                pass
        kept = None if place is None else self._analysis(*place)
        record = None if kept is None else kept.by_id.get(object_id)
        if kept is not None and record is not None:
            return self._find_stored(kept, record)
        try:
            spec = self._engine.repository.describe(object_id)
        except ObjectNotFound:
            return None
        return Known(object_id, spec.size, spec.md5)

    def _find_stored(self, kept: _Kept, record: FileRecord) -> Known | None:
        analysis, object_id = kept.analysis, record.object_id
        if analysis.state == "SUPPRESSED":
            raise Conflict(f"Analysis {analysis.analysis_id} is SUPPRESSED: its files were withdrawn for good; use another one")
        if analysis.state != "PUBLISHED" and object_id not in kept.stored:  # what is published was stored before
            if not self._engine.repository.exists(object_id):
                return None
            kept.stored.add(object_id)
        return Known(object_id, record.size, record.md5, _time_of(analysis), analysis)

    def _asked_for(self, query: Query) -> _Kept | None:
        """The analysis that a query which is not by object id means; of a named file, its newest version."""
        if not query.is_named:
            return self._analysis(query.study, query.analysis_id)
        number = self._versions.get(query.path)
        if number is not None:
            return self._analysis(query.study, query.version_id(number))
        newest, number = None, 1
        while (found := self._analysis(query.study, query.version_id(number))) is not None:
            self._versions[query.path] = number
            newest, number = found, number + 1
        return newest

    def _analysis(self, study: str, analysis_id: str) -> _Kept | None:
        """Asks for an analysis unless it is kept; None if it is not registered."""
        kept = self._kept.get((study, analysis_id))
        if kept is not None and (kept.until is None or time.monotonic() < kept.until):
            return kept
        try:
            analysis = self._required_metadata().analysis(study, analysis_id)
        except ObjectNotFound:
            return None
        kept = _Kept(analysis, None if analysis.state == "PUBLISHED" else time.monotonic() + _KEPT_S)
        self._kept[study, analysis_id] = kept
        self._analysis_of.update({file.object_id: (study, analysis_id) for file in analysis.files})
        return kept

    def _required_metadata(self) -> Metadata:
        if self._metadata is None:
            raise ConfigurationError("Nothing knows of studies and analyses here: set metadata_url to a Song server, or ask by object id")
        return self._metadata

    def forget(self, query: Query) -> None:
        """Drops what is kept of the query's analysis."""
        with self._lock:
            if query.object_id is not None:
                self._kept.pop(self._analysis_of.get(query.object_id, ("", "")), None)
            elif query.is_named:
                self._kept.pop((query.study, query.version_id(self._versions.pop(query.path, 0))), None)
            else:
                self._kept.pop((query.study, query.analysis_id), None)

    def matches(self, pattern: Pattern) -> Iterator[str]:
        """Queries of all registered files that may match, without their tail; in whatever state their analyses are."""
        metadata = self._required_metadata()
        if pattern.study is not None and pattern.analysis_id is not None:
            with self._lock:
                kept = self._analysis(pattern.study, pattern.analysis_id.lower())
            for file in () if kept is None else kept.analysis.files:
                yield f"{SCHEME}{pattern.study}/{pattern.analysis_id}/{file.file_name}"
            return
        for entity in metadata.entities(analysis_id=pattern.analysis_id and pattern.analysis_id.lower(), study_id=pattern.study):
            yield f"{SCHEME}{entity.study_id}/{pattern.analysis_id or entity.analysis_id}/{entity.file_name}"

    # Moving

    def retrieve(self, known: Known, query: Query, path: Path, stop: Stop) -> None:
        """Brings a file, or the regions of it, to `path`; it appears there whole and verified, or not at all.

        Raises:
            ScoreError: what arrived of a whole file is kept for the next run.
        """
        engine = self._engine.stopped_by(stop)
        if query.regions:
            self._cut(engine, known, query, path)
        elif not _is_there(known, path, engine.stop):
            self._download(engine, known, path)
        if path.stat().st_mtime < known.mtime <= time.time():  # the copy of an earlier run: Snakemake would ask for it again and again
            os.utime(path, (known.mtime, known.mtime))

    def _download(self, engine: Engine, known: Known, path: Path) -> None:
        options = DownloadOptions(path.parent, validation=self.settings.validation, force=True, state_dir=self._state_dir)
        spec, target, _ = operations.plan_download(engine, DownloadItem(known.object_id, path.name), options)
        md5 = spec.md5 or known.md5
        if (spec.size, md5) != (known.size, known.md5 or md5):
            raise ObjectMismatch(
                f"Object {known.object_id} is stored with {spec.size:,} bytes and registered with {known.size:,}: tell its operator",
                expected=known.md5 or "unknown",
                actual=md5 or "unknown",
            )
        spec = dataclasses.replace(spec, md5=md5)
        engine.download(spec, target, validation=options.validation, state_dir=options.state_dir)

    def _cut(self, engine: Engine, known: Known, query: Query, path: Path) -> None:
        from score_core.slicing.objects import ViewItem, view_object
        from score_core.slicing.view import Form, Limits, Wanted

        wanted = Wanted(query.regions)
        index = _index_of(known)
        item = ViewItem(known.object_id, query.file_name, None if index is None else index.object_id)
        form = Form(query.format, command=wanted.command("--object-id", known.object_id), reference=self._reference)
        view_object(engine, self._metadata, item, wanted, form, path.parent, limits=Limits(connections=self.settings.workers))

    def store(self, query: Query, path: Path, stop: Stop) -> None:
        """Stores a file as its analysis lists it. Nothing is sent unless size and MD5 are the registered ones.

        Raises:
            ScoreError: it is not what is registered, or not registered, or may not be replaced.
        """
        if query.object_id is not None or query.regions:
            raise ConfigurationError(f"An output is written as {SCHEME}STUDY/ANALYSIS-ID/FILE, which says what it is registered as")
        self.forget(query)
        with self._lock:
            kept = self._asked_for(query)
        engine = self._engine.stopped_by(stop)
        if query.is_named:
            self._store_named(engine, query, path, None if kept is None else kept.analysis)
        elif kept is None:
            raise ObjectNotFound(
                f"Analysis {query.analysis_id} of study {query.study} is not registered, so {query.file_name} cannot be stored in it: "
                "submit it first (score submit), or check both ids",
                status=404,
            )
        elif query.file_name not in kept.named:
            raise Conflict(
                f"Analysis {query.analysis_id} does not list the file {query.file_name}: all files of an analysis are registered "
                "together; write one that it lists, or submit another analysis"
            )
        else:
            self._upload(engine, kept.analysis, kept.named[query.file_name], path)
        self.forget(query)

    def _store_named(self, engine: Engine, query: Query, path: Path, newest: Analysis | None) -> None:
        """Other bytes than those of the newest version become another. It is published: it is complete, and later rules shall read it."""
        from score_core.metadata.registering import new_file, register

        new, metadata = dataclasses.replace(new_file(path), path=path.with_name(query.file_name)), self._required_metadata()
        analysis = newest
        if analysis is None or [(file.size, file.md5) for file in analysis.files] != [(new.size, new.md5)]:
            if not self._registers:
                raise ConfigurationError(
                    f"{SCHEME}{query.path} is not registered with these bytes: write {SCHEME}{query.study}/ANALYSIS-ID/{query.file_name} "
                    "with an analysis that lists it, or set the provider's register to true"
                )
            analysis_id = query.version_id(self._versions.get(query.path, 0) + 1)
            analysis = register(metadata, query.study, [new], analysis_id=analysis_id)
            if analysis.analysis_id != analysis_id:
                raise ServiceError(
                    f"{metadata.label} gave {SCHEME}{query.path} an analysis id of its own, so that nobody would find it: "
                    "such a server takes no named files; submit analyses, and name them by their ids"
                )
        self._upload(engine, analysis, analysis.files[0], path, md5=new.md5)
        if self._registers and analysis.state == "UNPUBLISHED":
            metadata.publish(query.study, analysis.analysis_id)

    def _upload(self, engine: Engine, analysis: Analysis, record: FileRecord, path: Path, *, md5: str | None = None) -> None:
        if md5 is None and path.stat().st_size == record.size:  # else it is refused by the size alone
            md5 = operations.file_md5(path, stop=engine.stop)
        try:
            item = operations.as_registered(UploadItem(record.object_id, path, md5), record)
        except ObjectMismatch as error:
            raise Conflict(f"{error}; what is registered does not change: submit another analysis for other bytes") from None
        if analysis.state == "UNPUBLISHED":
            operations.upload(engine, item)
        elif analysis.state != "PUBLISHED" or record.md5 is None:  # else these bytes are there
            raise Conflict(f"Analysis {analysis.analysis_id} is {analysis.state}: its files are not replaced; submit another analysis")

    def remove(self, query: Query) -> str | None:
        """Drops an unfinished upload. Says why the object stays, if it does: nobody can delete objects in Score.

        Raises:
            ScoreError: it is not known what is there.
        """
        self.forget(query)
        try:
            with self._lock:
                kept = None if query.object_id is not None else self._asked_for(query)
                record = None if kept is None else kept.named.get(query.file_name)
                if kept is not None and record is not None and kept.analysis.state == "UNPUBLISHED":
                    self._engine.repository.abort(record.object_id)
                found = self.find(query)
        finally:
            self.forget(query)
        return None if found is None else f"{SCHEME}{query.path} stays stored: objects are not deleted through Score"


class _Told(Silent):
    """Tells Snakemake's log what does not go smoothly; that one shows a format as it stands, without its arguments."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger

    def retry(self, object_id: str, what: str, why: str, pause_s: float) -> None:
        self._logger.info(f"Object {object_id}, {what}: {why}; trying again in {pause_s:.1f} s")  # noqa: G004

    def note(self, object_id: str, message: str) -> None:
        self._logger.info(f"Object {object_id}: {message}")  # noqa: G004


def _time_of(analysis: Analysis) -> float:
    if analysis.state == "PUBLISHED":
        return next((change.at for change in analysis.history if change.after == "PUBLISHED" and change.at is not None), 0.0)
    return analysis.created_at or 0.0


def _is_there(known: Known, path: Path, stop: Stop) -> bool:
    """Whether the local file is the object already."""
    if known.md5 is None or not path.is_file() or path.stat().st_size != known.size:
        return False
    return operations.file_md5(path, stop=stop) == known.md5


def _index_of(known: Known) -> FileRecord | None:
    if known.analysis is None:
        return None
    by_id = {file.object_id: file for file in known.analysis.files}
    siblings = [file.entity for file in known.analysis.files]
    found = indexes_of(by_id[known.object_id].entity, siblings, _INDEXES)
    return by_id[found[0].object_id] if found else None
