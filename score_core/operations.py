"""The verbs that every front end calls: the CLI, the flows, the workflow plugins. One file or a batch in, reports out.

A verb for one file raises what went wrong; `batch` turns that into the file's report and goes on.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from score_core.checksum import digest_of, parse_md5
from score_core.errors import (
    BatchError,
    ConfigurationError,
    Conflict,
    LocalFileError,
    ObjectMismatch,
    ObjectNotFound,
    PartMismatch,
    ScoreError,
    Unverifiable,
)
from score_core.ids import check_object_id
from score_core.metadata.base import REGION_INDEX_SUFFIXES, Entity, FileRecord, Metadata, index_of, indexes_of
from score_core.model import ObjectSpec, Part, TransferReport, Validation
from score_core.progress import Progress, Silent
from score_core.transfer.download import Span
from score_core.transfer.engine import Engine
from score_core.transfer.files import SourceFile, explained, safe_folder, safe_target
from score_core.transfer.stop import Stop

if TYPE_CHECKING:
    from score_core.metadata.registering import NewFile

_log = logging.getLogger(__name__)

OutputLayout = Literal["filename", "bundle", "id"]
WHOLE: Final = Span()
_SLICEABLE: Final = (".bam", ".cram", ".vcf.gz", ".vcf.bgz", ".bcf")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class UploadItem:
    """One file to upload. `md5` (hex) is what its owner promises it to be; None has it computed first.

    Not `is_promised`, it is what the object is registered with: nobody has said yet that this file is that object.
    """

    object_id: str
    path: Path
    md5: str | None
    is_promised: bool = True

    @classmethod
    def of(cls, object_id: str, path: Path, md5: str | None) -> UploadItem:
        """An item from what a user wrote: `md5` in hex or base64. Raises `ConfigurationError` for an id or MD5 that is none."""
        parsed = None if md5 is None else parse_md5(md5)
        if md5 is not None and parsed is None:
            raise ConfigurationError(f"{md5[:60]!r} is not an MD5: give the 32 hex digits that `md5sum {path.name}` prints")
        return cls(check_object_id(object_id), path, parsed)


@dataclass(frozen=True, slots=True)
class DownloadItem:
    """One object to download. `file_name` and `analysis_id` come from a manifest or from metadata and are not trusted.

    `size` (bytes) and `md5` (hex), where given, are expectations: a repository that says otherwise is refused before any data moves.
    """

    object_id: str
    file_name: str | None = None
    analysis_id: str | None = None
    size: int | None = None
    md5: str | None = None


@dataclass(frozen=True, slots=True)
class DownloadOptions:
    """How objects are put into a folder. `force` replaces what has the target's name, once the new file is verified.

    `state_dir` is where half-finished files are kept instead of beside their targets, so that a run with other targets continues them.
    `claimed` collects which object got which target: two objects of one batch must not replace each other.
    """

    output_dir: Path
    layout: OutputLayout = "filename"
    span: Span = WHOLE
    validation: Validation = "auto"
    force: bool = False
    state_dir: Path | None = None
    claimed: dict[Path, str] = field(default_factory=dict, compare=False, repr=False)


def upload(engine: Engine, item: UploadItem, *, force: bool = False) -> TransferReport:
    """Uploads one file; it is published only if its bytes are what `item.md5` promises.

    Raises:
        ScoreError: nothing was published.
    """
    item = dataclasses.replace(item, object_id=check_object_id(item.object_id))
    md5 = item.md5 if item.md5 is not None else file_md5(item.path, stop=engine.stop)
    report = engine.upload(item.path, item.object_id, md5=md5, overwrite=force)
    if report.outcome == "already there":
        check_already_there(item, stop=engine.stop)
    engine.progress.end(report)
    return report


def check_already_there(item: UploadItem, *, stop: Stop | None = None) -> None:
    """Reads a file whose object is stored, if nobody promised its MD5. Raises `ObjectMismatch` when it is not that object."""
    if item.md5 is not None and not item.is_promised:
        actual = file_md5(item.path, stop=stop)
        if actual != item.md5:
            raise ObjectMismatch(
                f"{item.path} is not object {item.object_id}, which is stored as it is registered", expected=item.md5, actual=actual
            )


def registered(metadata: Metadata, object_ids: Iterable[str]) -> dict[str, FileRecord]:
    """What is registered of these objects, by id; those that are not are absent. Each analysis is asked for once.

    Raises:
        ServiceError: the metadata service fails, so that it is not known.
    """
    records: dict[str, FileRecord] = {}
    wanted = list(object_ids)
    for object_id in wanted:
        if object_id in records:
            continue
        try:
            entity = metadata.entity(object_id)
            analysis = metadata.analysis(entity.study_id, entity.analysis_id)
        except ObjectNotFound:
            continue
        records.update({record.object_id: record for record in analysis.files})
    return {object_id: records[object_id] for object_id in wanted if object_id in records}


def as_registered(item: UploadItem, record: FileRecord | None) -> UploadItem:
    """The item with the MD5 that is registered for its object; as it is when nothing is.

    Raises:
        ObjectMismatch: the file's size, or the MD5 that is promised, is not what is registered. Nothing was sent.
        LocalFileError: the file cannot be read.
    """
    if record is None:
        return item
    with SourceFile(item.path) as source:
        size = source.size
    if size != record.size:
        raise ObjectMismatch(
            f"{item.path} has {size:,} bytes where object {item.object_id} is registered with {record.size:,}",
            expected=record.md5 or "of another file",
            actual=item.md5 or "another, not computed because the sizes differ",
        )
    if item.md5 is not None and record.md5 is not None and item.md5 != record.md5:
        raise ObjectMismatch(
            f"The MD5 given for {item.path} is not the one that object {item.object_id} is registered with",
            expected=record.md5,
            actual=item.md5,
        )
    return item if item.md5 is not None else dataclasses.replace(item, md5=record.md5, is_promised=False)


def of_analysis(metadata: Metadata, study_id: str, analysis_id: str) -> list[DownloadItem]:
    """All files of an analysis, whatever its state.

    Raises:
        ObjectNotFound: there is no such analysis in the study.
    """
    entities = metadata.entities(analysis_id=analysis_id, study_id=study_id)
    items = [DownloadItem(entity.object_id, entity.file_name, entity.analysis_id) for entity in entities]
    if not items:
        raise ObjectNotFound(f"Analysis {analysis_id} of study {study_id} is not registered in {metadata.label}; check both ids")
    return items


def with_metadata(items: Sequence[DownloadItem], metadata: Metadata, *, index: bool = True) -> list[DownloadItem]:
    """The items with the names and analyses that are registered; with `index`, each followed by its index file, if it has one.

    What an item says itself wins, and what is not registered stays as it is. An index file that is an item already is not repeated.

    Raises:
        ServiceError: the metadata service fails, so that it is not known.
    """
    registry, listed, result = _Siblings(metadata), {item.object_id for item in items}, []
    for item in items:
        entity = registry.entity(item) if index or item.file_name is None or item.analysis_id is None else None
        if entity is None:
            result.append(item)
            continue
        name, analysis_id = item.file_name or entity.file_name, item.analysis_id or entity.analysis_id
        result.append(dataclasses.replace(item, file_name=name, analysis_id=analysis_id))
        found = index_of(entity, registry.of(entity.analysis_id)) if index else None
        if found is not None and found.object_id not in listed:
            listed.add(found.object_id)
            suffix = found.file_name[len(entity.file_name) :]  # tools look for the index under the name that its file has here
            result.append(DownloadItem(found.object_id, name + suffix, analysis_id))
    return result


def viewable(rows: Sequence[DownloadItem]) -> list[tuple[DownloadItem, str | None]]:
    """The rows of a manifest that hold reads or variants by their names, each with the object id of its index if that is a row, too.

    Raises:
        ConfigurationError: there is none.
    """
    entities = [Entity(row.object_id, row.analysis_id or "", row.file_name or "", "") for row in rows]
    found = [(row, entity) for row, entity in zip(rows, entities, strict=True) if entity.file_name.lower().endswith(_SLICEABLE)]
    if not found:
        raise ConfigurationError(f"None of {len(rows)} files is a BAM, CRAM, VCF or BCF file by its name: nothing to view")
    siblings: dict[str, list[Entity]] = {}
    for entity in entities:
        siblings.setdefault(entity.analysis_id, []).append(entity)
    indexes = [indexes_of(entity, siblings[entity.analysis_id], REGION_INDEX_SUFFIXES) for _, entity in found]
    return [(row, index[0].object_id if index else None) for (row, _), index in zip(found, indexes, strict=True)]


class _Siblings:
    """Registered files, asked for by analysis where that is known: one question for all files of it."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._analyses: dict[str, list[Entity]] = {}
        self._known: dict[str, Entity] = {}

    def entity(self, item: DownloadItem) -> Entity | None:
        """None if the object is not registered. A manifest's second column need not be its analysis."""
        if item.object_id not in self._known and item.analysis_id is not None:
            self.of(item.analysis_id)
        if item.object_id not in self._known:
            try:
                self._known[item.object_id] = self._metadata.entity(item.object_id)
            except ObjectNotFound:
                return None
        return self._known[item.object_id]

    def of(self, analysis_id: str) -> list[Entity]:
        if analysis_id not in self._analyses:
            self._analyses[analysis_id] = list(self._metadata.entities(analysis_id=analysis_id))
            self._known.update({entity.object_id: entity for entity in self._analyses[analysis_id]})
        return self._analyses[analysis_id]


def download(engine: Engine, item: DownloadItem, options: DownloadOptions) -> TransferReport:
    """Downloads one object into `options.output_dir`; it gets its name only once it is verified.

    A file that is there already and is the object counts as done.

    Raises:
        ScoreError: no file appeared; what arrived is kept beside the target for the next run.
    """
    spec, target, report = plan_download(engine, item, options)
    if report is None:
        report = engine.download(spec, target, span=options.span, validation=options.validation, state_dir=options.state_dir)
    engine.progress.end(report)
    return report


def plan_download(engine: Engine, item: DownloadItem, options: DownloadOptions) -> tuple[ObjectSpec, Path, TransferReport | None]:
    """The object, where it goes, and its report if that file is there already and right."""
    spec = engine.repository.describe(check_object_id(item.object_id))
    check_expectations(item, spec)
    options.span.clipped(spec)
    target = target_of(item, spec, options)
    if options.claimed.setdefault(target, spec.object_id) != spec.object_id:
        raise Conflict(f"{target} is also the name of object {options.claimed[target]}: download one of them with --output-layout id")
    return spec, target, None if options.force else already_there(spec, target, options, stop=engine.stop)


def check_expectations(item: DownloadItem, spec: ObjectSpec) -> None:
    """Raises when the object is not the one that a manifest lists."""
    if item.size is not None and item.size != spec.size:
        raise Conflict(f"Object {spec.object_id} has {spec.size} bytes where the manifest says {item.size}; fetch a new manifest")
    if item.md5 is not None and spec.md5 is not None and item.md5 != spec.md5:
        raise ObjectMismatch(f"Object {spec.object_id} is not the one in the manifest", expected=item.md5, actual=spec.md5)


def target_of(item: DownloadItem, spec: ObjectSpec, options: DownloadOptions) -> Path:
    """Where an object goes; makes the folder.

    Layouts (protocol section 13.1): `filename` <dir>/<file name>, `bundle` <dir>/<analysis id>/<file name>, `id` <dir>/<object id>.
    The name is the manifest's, else the one that the uploader gave, else the object id.
    """
    folder = options.output_dir
    name = spec.object_id if options.layout == "id" else item.file_name or spec.file_name or spec.object_id
    target = safe_target(folder, name)
    if options.layout == "bundle":
        if item.analysis_id is None:
            raise LocalFileError(f"The bundle layout needs the analysis of object {spec.object_id}, which is not known; use another layout")
        folder = safe_folder(folder, item.analysis_id)
        target = safe_target(folder, name)
    with explained("make the folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    return target


def already_there(spec: ObjectSpec, target: Path, options: DownloadOptions, *, stop: Stop | None = None) -> TransferReport | None:
    """The report of a target that is the object already; None when there is no such file.

    Raises:
        Conflict: there is a file of that name with other bytes.
    """
    if not target.exists():
        return None
    if options.span == WHOLE and target.stat().st_size == spec.size:
        try:
            return dataclasses.replace(verify(spec, target, stop=stop), outcome="already there")
        except (PartMismatch, ObjectMismatch, Unverifiable):
            pass
    raise Conflict(f"{target} exists and is not object {spec.object_id}; --force replaces it")


def verify(spec: ObjectSpec, path: Path, *, stop: Stop | None = None) -> TransferReport:
    """Reads a local file and compares it with what the repository says of the object; moves nothing.

    Raises:
        PartMismatch, ObjectMismatch: it differs, where the message says.
        Unverifiable: the repository has no MD5 of the object.
    """
    with SourceFile(path) as source:
        if spec.md5 is None and not all(part.md5 for part in spec.parts):
            raise Unverifiable(f"Object {spec.object_id} has no recorded MD5 to verify {path} by")
        if source.size != spec.size:
            raise ObjectMismatch(
                f"{path} has {source.size:,} bytes where object {spec.object_id} has {spec.size:,}",
                expected=spec.md5 or "of its parts",
                actual="another, not computed because the sizes differ",
            )
        if spec.md5 is None:
            _check_parts(source, spec, stop)
        else:
            _check_whole(source, spec.md5, spec, stop)
    return TransferReport(spec.object_id, str(path), "verified", size=spec.size, md5=spec.md5, parts=len(spec.parts))


def _check_whole(source: SourceFile, md5: str, spec: ObjectSpec, stop: Stop | None) -> None:
    actual = _md5(source, Part(0, 0, source.size), stop)
    if actual != md5:
        wrong = [part for part in spec.parts if part.md5 and _md5(source, part, stop) != part.md5]
        where = f", first in part {wrong[0].number} (bytes {wrong[0].offset} to {wrong[0].end})" if wrong else ""
        raise ObjectMismatch(f"{source.path} differs from object {spec.object_id}{where}", expected=md5, actual=actual)


def _check_parts(source: SourceFile, spec: ObjectSpec, stop: Stop | None) -> None:
    for part in spec.parts:
        actual = _md5(source, part, stop)
        if actual != part.md5:
            raise PartMismatch(
                f"{source.path} differs from object {spec.object_id} in part {part.number}", expected=str(part.md5), actual=actual
            )


def _md5(source: SourceFile, part: Part, stop: Stop | None) -> str:
    def blocks() -> Iterator[memoryview]:
        for block in source.blocks(part.offset, part.size):
            if stop is not None:
                stop.check()
            yield block

    return str(digest_of(blocks()).md5)


def file_md5(path: Path, *, stop: Stop | None = None) -> str:
    """The MD5 of a local file in hex. Raises `LocalFileError`."""
    with SourceFile(path) as source:
        return _md5(source, Part(0, 0, source.size), stop)


def new_files(
    paths: Sequence[Path], *, access: str, at_once: int = 4, progress: Progress | None = None, stop: Stop | None = None
) -> list[NewFile]:
    """Local files to register, with their MD5s, read `at_once` at a time; `progress` hears of each by its path.

    Raises:
        BatchError: some cannot be read; exit code of the first.
        Interrupted: `stop` was set.
    """
    from score_core.metadata.registering import new_file

    shown, stop, found = progress or Silent(), stop or Stop(), dict[Path, "NewFile"]()

    def one(path: Path) -> TransferReport:
        name = str(path)

        def read(count: int) -> None:
            stop.check()
            shown.advance(name, count)

        with explained("read", path):
            shown.begin(name, path.name, path.stat().st_size, 0, 1)
        found[path] = file = new_file(path, access=access, on_bytes=read)
        shown.part_done(name)
        report = TransferReport(name, name, "verified", size=file.size, md5=file.md5)
        shown.end(report)
        return report

    reports = batch(paths, one, lambda path: (str(path), str(path)), at_once=at_once, stop=stop)
    bad = [report for report in reports if report.outcome == "failed"]
    if bad:
        error = BatchError(f"{bad[0].error}; nothing is registered", reports)
        error.exit_code = bad[0].exit_code
        raise error
    return [found[path] for path in paths]


def failed(object_id: str, path: str, error: ScoreError) -> TransferReport:
    """The report of a file that did not make it."""
    return TransferReport(object_id, path, "failed", error=str(error), exit_code=error.exit_code)


def batch(
    items: Sequence[Item],
    one: Callable[[Item], TransferReport],
    describe: Callable[[Item], tuple[str, str]],
    *,
    at_once: int = 4,
    stop: Stop | None = None,
) -> list[TransferReport]:
    """Runs `one` for every item, `at_once` at a time; a bad file never stops the rest. Reports come in the items' order.

    `describe` gives an item's object id and path for the report of a failure.

    Raises:
        Interrupted: `stop` was set. What was done stays done.
    """
    stop = stop or Stop()
    reports: dict[int, TransferReport] = {}
    waiting = deque(enumerate(items))

    def work() -> None:
        while not stop.is_set():
            try:
                place, item = waiting.popleft()
            except IndexError:
                return
            reports[place] = _one_of_many(item, one, describe)

    threads = [threading.Thread(target=work, daemon=True, name=f"score-file-{n}") for n in range(min(at_once, len(items)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and not stop.is_set():
            thread.join(0.1)
    deadline = time.monotonic() + 1.8  # what running files take to stop by themselves
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()) if stop.is_set() else None)
    stop.check()
    return [reports[place] for place in range(len(items))]


def _one_of_many(item: Item, one: Callable[[Item], TransferReport], describe: Callable[[Item], tuple[str, str]]) -> TransferReport:
    object_id, path = describe(item)
    try:
        return one(item)
    except ScoreError as error:
        return failed(object_id, path, error)
    except Exception as error:  # noqa: BLE001  # the edge of one file: a fault of ours in one must not lose the others
        _log.exception("Unexpected failure of object %s", object_id)
        return failed(object_id, path, ScoreError(f"Unexpected failure ({type(error).__name__}); the log has the details"))
