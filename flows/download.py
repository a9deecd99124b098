"""`download`: one object to a folder, one task run per part."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture

from flows.driving import MAX_TASK_RUNS, PART_THREADS, move_again, move_all, report_of, show_receipts, threads, transferring
from flows.results import forget_results, results_folder
from score_core.errors import ObjectMismatch
from score_core.model import TransferReport, Validation
from score_core.operations import DownloadItem, DownloadOptions, OutputLayout
from score_core.transfer.download import Download
from tasks.finalising import finalise_download
from tasks.integrity import find_suspects, verify_md5
from tasks.parts import download_part
from tasks.planning import plan_download
from tasks.sessions import Ref, Transfer


@flow(name="download", flow_run_name="download {object_id}", task_runner=threads(PART_THREADS))
def download(  # a flow's parameters are the fields of its form in the UI
    object_id: str,
    output_dir: str,
    *,
    output_layout: OutputLayout = "filename",
    validation: Validation = "auto",
    force: bool = False,
    store: str | None = None,
    file_name: str | None = None,
    analysis_id: str | None = None,
    expected_md5: str | None = None,
    expected_size: int | None = None,
    max_task_runs: int = MAX_TASK_RUNS,
) -> dict[str, Any]:
    """Downloads an object in parts, each a task run that Prefect retries and caches for resume; it gets its name only once verified.

    Args:
        object_id: the object's UUID.
        output_dir: where it goes; absolute for deployments, whose working directory is the worker's.
        output_layout: `filename`, `bundle` or `id`.
        validation: `auto`, `parts`, `whole`, `both` or `off`.
        force: replaces a file of that name, once the new one is verified.
        store: `s3://...`, `file:///...` or a Score server's `https://...`; by default what the settings of the machine say. Credentials and
            tokens come from its environment.
        file_name: its name, for the layouts `filename` and `bundle`; by default what metadata call it, else its uploader.
        analysis_id: the analysis that it belongs to, for the layout `bundle`; by default what metadata say.
        expected_md5: refuses an object of another MD5 before any data moves.
        expected_size: the same for its size in bytes.
        max_task_runs: an object of more parts than this gets a task run per group of consecutive parts.

    Returns:
        The fields of `score_core.model.TransferReport`.
    """
    began = time.monotonic()
    options = DownloadOptions(Path(output_dir).absolute(), layout=output_layout, validation=validation, force=force)
    item = DownloadItem(object_id, file_name=file_name, analysis_id=analysis_id, md5=expected_md5, size=expected_size)
    planned = plan_download(store, item, options)
    report = planned if isinstance(planned, TransferReport) else _run(planned, began, max_task_runs)
    forget_results(report.object_id, report.path)
    show_receipts([report], f"receipt-{report.object_id.lower()}")
    return dataclasses.asdict(report)


def _run(ref: Ref, began: float, max_task_runs: int) -> TransferReport:
    results = results_folder()
    with transferring(ref) as (opened, proof):
        download = opened.session
        assert isinstance(download, Download)
        kept = move_all(opened, download_part, results, proof, max_task_runs=max_task_runs)
        md5 = _proven(opened, proof, results)
        finalise_download(ref)
        return report_of(opened, "downloaded", began, md5=md5, validation=download.proof, parts_kept=kept)


def _proven(opened: Transfer, proof: PrefectFuture[str | None], results: Path) -> str | None:
    """The MD5 that the file is proven to have; after a wrong one the damaged parts are fetched again, once."""
    try:
        return proof.result()
    except ObjectMismatch:
        suspects = find_suspects(opened.ref)
        if not suspects:
            raise  # every part is what its own MD5 says: the recorded whole MD5 is wrong
        move_again(opened, download_part, results, suspects)
        return verify_md5(opened.ref)
