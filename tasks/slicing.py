"""Slices: which version of each object there is to cut from, one object's regions to a file, and whether that file is still the one made.

Only a run that slices imports pysam: everything of `score_core.slicing` is imported where it is used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prefect import Task, task
from prefect.cache_policies import NO_CACHE, CacheKeyFnPolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext

from score_core import __version__
from score_core.errors import ChangedError, FormatError, Interrupted, LocalFileError, ObjectNotFound, ScoreError
from score_core.metadata.base import REGION_INDEX_SUFFIXES, Metadata
from score_core.model import ObjectSpec, SliceReport
from score_core.operations import file_md5
from score_core.transfer.policy import is_retryable
from score_core.transfer.stop import Stop
from tasks import sessions
from tasks.options import KEPT_FOR

if TYPE_CHECKING:
    from score_core.slicing.view import Form, Limits, Wanted

_ASKED_AT_ONCE: Final = 8
_RETRIES: Final = 2  # of a whole slice: the engine has tried each of its ranges again and again by then


@dataclasses.dataclass(frozen=True)
class SliceItem:
    """One object to cut from. `version` tells it from any other that has had this id, None as long as that is not known: never cached."""

    object_id: str
    file_name: str | None = None
    index_id: str | None = None
    version: str | None = None


@dataclasses.dataclass(frozen=True)
class SliceOptions:
    """What is wanted of each object, and where it goes. `output_dir` is absolute; `bed_md5` is the digest of what `bed` holds."""

    output_dir: str
    regions: tuple[str, ...] = ()
    bed: str | None = None
    bed_md5: str | None = None
    contained: bool = False
    skip_unknown: bool = False
    header_only: bool = False
    output_format: str | None = None
    original_header: bool = False
    output_index: bool = False
    reference_file: str | None = None
    max_bytes: int | None = None

    @property
    def reference(self) -> Path | None:
        return None if self.reference_file is None else Path(self.reference_file)

    def wanted(self) -> Wanted:
        from score_core.slicing.view import Wanted

        bed = None if self.bed is None else Path(self.bed)
        return Wanted(self.regions, bed, contained=self.contained, header_only=self.header_only, skip_unknown=self.skip_unknown)

    def form(self, object_id: str) -> Form:
        """The form of an object's slice. Its header says which `score view` would make the same."""
        from score_core.slicing.view import Form

        command = self.wanted().command("--object-id", object_id)
        return Form(self.output_format, self.original_header, command, self.output_index, self.reference)

    def limits(self, connections: int) -> Limits:
        from score_core.slicing.view import Limits

        return Limits(self.max_bytes, connections=connections)


@task(name="plan-slices", cache_policy=NO_CACHE, persist_result=False)
def plan_slices(store: str | None, items: list[SliceItem]) -> list[SliceItem]:
    """The items with their names and the versions that are stored now. One that cannot be had stays as it is: its own run says why."""
    engine, metadata = sessions.engine(store), sessions.metadata(store)

    def known(item: SliceItem) -> SliceItem:
        engine.stop.check()
        try:
            spec = engine.repository.describe(item.object_id)
            name = item.file_name or _registered_name(metadata, item.object_id) or spec.file_name or item.object_id
        except Interrupted:
            raise
        except ScoreError:
            return item
        return dataclasses.replace(item, file_name=name, version=_version(spec))

    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        return list(pool.map(known, items))


def _registered_name(metadata: Metadata | None, object_id: str) -> str | None:
    with suppress(ObjectNotFound):
        return None if metadata is None else metadata.entity(object_id).file_name
    return None


def _version(spec: ObjectSpec) -> str | None:
    """None if nothing but its size is known of an object."""
    facts = (spec.etag, spec.md5, spec.upload_id)
    return None if facts == (None, None, None) else json.dumps([spec.size, *facts])


def slice_key(context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
    """Object and version, regions or the BED file's content, all that makes the output differ, and where it goes; never a URL."""
    item: SliceItem = parameters["item"]
    options: SliceOptions = parameters["options"]
    if item.version is None:
        return None
    given = {**dataclasses.asdict(options), "output_dir": os.path.realpath(options.output_dir)}
    del given["max_bytes"]  # refuses to begin, and changes nothing of what is made
    bed = None if options.bed is None else Path(options.bed).name  # a part of the output's name
    raw = json.dumps(["v1", __version__, context.task.name, dataclasses.asdict(item), given | {"bed": bed}, _stamp(options.reference_file)])
    return f"slice-{item.object_id}-{_short(raw)}"


def _stamp(path: str | None) -> tuple[str, int, int] | None:
    """Tells a large file from what it was before, without reading it."""
    if path is None or not Path(path).exists():
        return None  # not there: the slice itself will say so
    found = Path(path).stat()
    return os.path.realpath(path), found.st_size, found.st_mtime_ns


def slices_name(output_dir: str) -> str:
    """The folder of the results of all slices that go to `output_dir`."""
    return f"slices-{_short(os.path.realpath(output_dir))}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def may_help(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether the same slice may come out another time. Unlike a part, one on which the engine gave up is begun anew, with new URLs."""
    try:
        error = state.result(raise_on_failure=False)
    except Exception:  # noqa: BLE001  # no result, no reason to repeat
        return False
    return isinstance(error, ScoreError) and is_retryable(error)


@task(
    name="slice-regions",
    task_run_name="slice {item.object_id}",
    cache_policy=CacheKeyFnPolicy(cache_key_fn=slice_key),
    cache_expiration=KEPT_FOR,
    persist_result=True,
    result_serializer="json",
    cache_result_in_memory=False,  # Prefect's in-memory cache is unlocked and shared by threads
    retries=_RETRIES,
    retry_delay_seconds=0,  # the engine has paused for minutes before it gave up, and nothing interrupts Prefect's sleep
    retry_condition_fn=may_help,
    log_prints=False,
)
def slice_regions(store: str | None, item: SliceItem, options: SliceOptions) -> dict[str, Any]:
    """Cuts one object's regions into a file, and reads that again from end to end.

    Returns:
        `report`, the fields of `SliceReport`, and `files`, which tells the output and its index from any others: see `is_still_there`.

    Raises:
        FormatError: the output does not hold the records that were written. It is removed.
        ChangedError: the object or the BED file was replaced meanwhile. The output, which is of neither kind, is removed.
    """
    from score_core.slicing.objects import ViewItem, view_object

    engine = sessions.engine(store)
    asked = ViewItem(item.object_id, item.file_name, item.index_id)
    form, limits = options.form(item.object_id), options.limits(engine.workers)
    target = Path(options.output_dir)
    report = view_object(engine, sessions.metadata(store), asked, options.wanted(), form, target, limits=limits)
    path = Path(report.path)
    try:
        _check(report, path, item, options)
        engine.stop.check()
        files = [_fingerprint(file, engine.stop) for file in _files_of(path, index=options.output_index)]
    except BaseException:
        for file in _files_of(path, index=options.output_index):
            with suppress(OSError):
                file.unlink()
        raise
    return {"report": dataclasses.asdict(report), "files": files}


def _check(report: SliceReport, path: Path, item: SliceItem, options: SliceOptions) -> None:
    from score_core.slicing.view import reread

    if _is_of_another(report, item):
        raise ChangedError(f"Object {item.object_id} was replaced while it was read; run the same command again")
    if options.bed is not None and file_md5(Path(options.bed)) != options.bed_md5:
        raise ChangedError(f"{options.bed} was changed while it was used; run the same command again")
    found = reread(path, reference=options.reference)
    if found != report.records:
        raise FormatError(f"{path} has {found:,} records where {report.records:,} were written; it was removed, run the same command again")


def _is_of_another(report: SliceReport, item: SliceItem) -> bool:
    """Whether the slice is of a later version than the one that its result would be kept for."""
    etag = None if item.version is None else json.loads(item.version)[1]
    return etag is not None and report.version is not None and report.version != etag


def _files_of(path: Path, *, index: bool) -> Iterator[Path]:
    yield path
    if index:
        yield from (beside for suffix in REGION_INDEX_SUFFIXES if (beside := path.with_name(path.name + suffix)).is_file())


def _fingerprint(path: Path, stop: Stop) -> dict[str, Any]:
    return {"path": str(path), "size": path.stat().st_size, "md5": file_md5(path, stop=stop)}


def is_still_there(made: dict[str, Any], stop: Stop) -> bool:
    """Whether what an earlier run of `slice_regions` returned is true: its output, read again, and its index are the ones it made."""

    def is_same(file: dict[str, Any]) -> bool:
        path = Path(file["path"])
        with suppress(OSError, LocalFileError):
            return bool(path.stat().st_size == file["size"] and file_md5(path, stop=stop) == file["md5"])
        return False

    return all(is_same(file) for file in made["files"])


def report_of(made: dict[str, Any], *, cached: bool) -> dict[str, Any]:
    """The fields of the report of what `slice_regions` returned; a cached one moved nothing in this run."""
    report = {**made["report"], "skipped_contigs": tuple(made["report"]["skipped_contigs"])}
    nothing = {"outcome": "already there", "bytes_moved": 0, "requests": 0, "retries": 0, "seconds": 0.0}
    return report | nothing if cached else report
