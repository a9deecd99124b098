"""`batch`: a manifest of files, uploaded or downloaded; one bad file never stops the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from prefect import flow, unmapped
from prefect.runtime import flow_run

from flows.download import download
from flows.driving import show_receipts, threads
from flows.upload import upload
from score_core.errors import BatchError, ConfigurationError, Interrupted, ScoreError
from score_core.manifest import read_downloads, read_uploads
from score_core.model import TransferReport, Validation
from score_core.operations import DownloadItem, DownloadOptions, OutputLayout, UploadItem, failed, of_analysis, registered, with_metadata
from tasks import sessions
from tasks.whole_files import download_file, upload_file

LARGE_BYTES: Final = 256 << 20  # a subflow costs about a second; from here on a run per part is worth it
_FILES_AT_ONCE: Final = 4


def _run_name() -> str:
    given = flow_run.parameters
    return f"batch {given['direction']} {given.get('manifest') or given.get('analysis_id')}"


@flow(name="batch", flow_run_name=_run_name, task_runner=threads(_FILES_AT_ONCE))
def batch(
    manifest: str | None,
    direction: Literal["upload", "download"],
    output_dir: str | None = None,
    *,
    study_id: str | None = None,
    analysis_id: str | None = None,
    index: bool = True,
    output_layout: OutputLayout = "filename",
    validation: Validation = "auto",
    force: bool = False,
    store: str | None = None,
    large_bytes: int = LARGE_BYTES,
) -> list[dict[str, Any]]:
    """Transfers every file of a manifest, or downloads an analysis: small files as task runs side by side, large ones as subflows.

    Files that are there already and right are not moved again, so running the same batch once more does only what failed.

    Args:
        manifest: upload manifest (3 columns) or download manifest (11 columns); absolute for deployments. None for an analysis.
        direction: `upload` or `download`.
        output_dir: for downloads: where the files go.
        study_id: instead of a manifest: download all files of an analysis of this study,
        analysis_id: which is this one.
        index: for downloads: the index files of BAM, CRAM and VCF files, too, where metadata know of them.
        output_layout: as for `download`.
        validation: as for `download`.
        force: replaces what is there already.
        store: as for `upload` and `download`.
        large_bytes: files of this size and more are subflows.

    Returns:
        The fields of `TransferReport` for each file, in the manifest's order. The artifact `batch-receipts` shows the same as a table.

    Raises:
        BatchError: some files failed; all others are done.
    """
    with stopping_files_too():
        if direction == "upload":
            if manifest is None:
                raise ConfigurationError("An upload batch needs a manifest")
            reports = _upload_all(read_uploads(manifest), force=force, store=store, large_bytes=large_bytes)
        elif output_dir is None:
            raise ConfigurationError("A download batch needs output_dir: the folder that the files go to")
        else:
            options = DownloadOptions(Path(output_dir).absolute(), layout=output_layout, validation=validation, force=force)
            items = _wanted(manifest, study_id, analysis_id, store, index=index)
            reports = _download_all(items, options, store, large_bytes)
    show_receipts(reports, "batch-receipts")
    return all_done(reports)


@contextmanager
def stopping_files_too() -> Iterator[None]:
    """Stops the files under way when the flow is cancelled or interrupted: Prefect would wait for their ends."""
    try:
        yield
    except Exception:
        raise
    except BaseException:
        sessions.stop_all()
        raise


def _wanted(manifest: str | None, study_id: str | None, analysis_id: str | None, store: str | None, *, index: bool) -> list[DownloadItem]:
    """The objects to download, named by the metadata where there are any."""
    if (manifest is None) == (study_id is None or analysis_id is None):
        raise ConfigurationError("A download batch needs either a manifest, or study_id and analysis_id")
    metadata = sessions.metadata(store)
    if manifest is not None:
        items = read_downloads(manifest)
    elif metadata is None:
        raise ConfigurationError("Nobody knows the files of an analysis: set METADATA_URL to the address of Song")
    else:
        items = of_analysis(metadata, str(study_id), str(analysis_id))
    return items if metadata is None else with_metadata(items, metadata, index=index)


def _upload_all(items: list[UploadItem], *, force: bool, store: str | None, large_bytes: int) -> list[TransferReport]:
    small = [item for item in items if _size(item.path) < large_bytes]
    metadata = sessions.metadata(store)
    records = {} if metadata is None else registered(metadata, [item.object_id for item in small])  # subflows ask for their own
    known = [records.get(item.object_id) for item in small]
    futures = upload_file.map(store=unmapped(store), item=small, record=known, force=unmapped(force))
    runs = dict(zip(small, futures, strict=True))
    return [
        outcome(item.object_id, str(item.path), runs[item].result)
        if item in runs
        else outcome(item.object_id, str(item.path), partial(upload, str(item.path), item.object_id, item.md5, force=force, store=store))
        for item in items
    ]


def _download_all(items: list[DownloadItem], options: DownloadOptions, store: str | None, large_bytes: int) -> list[TransferReport]:
    small = [item for item in items if _stored_size(item, store) < large_bytes]
    futures = download_file.map(store=unmapped(store), item=small, options=unmapped(options))
    runs = dict(zip(small, futures, strict=True))
    return [
        outcome(item.object_id, _path(item, options), runs[item].result if item in runs else _subflow(item, options, store))
        for item in items
    ]


def _path(item: DownloadItem, options: DownloadOptions) -> str:
    """Where a failed file would have been, as far as the manifest tells."""
    name = item.object_id if options.layout == "id" else item.file_name or item.object_id
    folder = options.output_dir / item.analysis_id if options.layout == "bundle" and item.analysis_id else options.output_dir
    return str(folder / name)


def _subflow(item: DownloadItem, options: DownloadOptions, store: str | None) -> Callable[[], dict[str, Any]]:
    return partial(
        download,
        item.object_id,
        str(options.output_dir),
        output_layout=options.layout,
        validation=options.validation,
        force=options.force,
        store=store,
        file_name=item.file_name,
        analysis_id=item.analysis_id,
        expected_md5=item.md5,
        expected_size=item.size,
    )


def outcome(object_id: str, path: str, finish: Callable[[], dict[str, Any]], kind: type[TransferReport] = TransferReport) -> TransferReport:
    """The report of one file, also of one that failed; only a stop of the whole batch gets through."""
    try:
        return kind(**finish())
    except Interrupted:
        raise
    except ScoreError as error:
        return failed(object_id, path, error)
    except Exception as error:  # noqa: BLE001  # a fault in one file must not lose the others; its own run shows the traceback
        return failed(object_id, path, ScoreError(f"Unexpected failure ({type(error).__name__}); its task run has the details"))


def _stored_size(item: DownloadItem, store: str | None) -> int:
    """The manifest's size, else the repository's."""
    if item.size is not None:
        return item.size
    try:
        return sessions.engine(store).repository.describe(item.object_id).size
    except ScoreError:
        return 0  # its own transfer will say what is wrong


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # its own transfer will say what is wrong


def all_done(reports: list[TransferReport]) -> list[dict[str, Any]]:
    """The fields of all reports. Raises `BatchError` if some files failed."""
    bad = [report for report in reports if report.outcome == "failed"]
    if bad:
        raise BatchError(f"{len(bad)} of {len(reports)} files failed, first {bad[0].path}: {bad[0].error}", reports)
    return [dataclasses.asdict(report) for report in reports]
