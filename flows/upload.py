"""`upload`: one file into the repository, one task run per part."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from prefect import flow

from flows.driving import MAX_TASK_RUNS, PART_THREADS, move_all, report_of, show_receipts, threads, transferring
from flows.results import forget_results, results_folder
from score_core.model import TransferReport
from score_core.operations import UploadItem
from tasks.finalising import finalise_upload
from tasks.parts import upload_part
from tasks.planning import plan_upload
from tasks.sessions import Ref


@flow(name="upload", flow_run_name="upload {object_id}", task_runner=threads(PART_THREADS))
def upload(  # a flow's parameters are the fields of its form in the UI
    path: str,
    object_id: str,
    md5: str | None = None,
    *,
    force: bool = False,
    store: str | None = None,
    max_task_runs: int = MAX_TASK_RUNS,
) -> dict[str, Any]:
    """Uploads a file in parts, each a task run that Prefect retries and caches for resume; publishes it only if its MD5 is right.

    Args:
        path: the local file; absolute for deployments, whose working directory is the worker's.
        object_id: the UUID it gets, from Song or your own.
        md5: what the file promises to be, in hex or base64; if not given, what it is registered with, else computed first.
        force: replaces an object that exists, or another file's unfinished upload.
        store: `s3://...`, `file:///...` or a Score server's `https://...`; by default what the settings of the machine say. Credentials and
            tokens come from its environment.
        max_task_runs: a file of more parts than this gets a task run per group of consecutive parts.

    Returns:
        The fields of `score_core.model.TransferReport`.
    """
    began = time.monotonic()
    planned = plan_upload(store, UploadItem.of(object_id, Path(path), md5), force=force)
    report = planned if isinstance(planned, TransferReport) else _run(planned, began, max_task_runs)
    forget_results(report.object_id, report.path)
    show_receipts([report], f"receipt-{report.object_id.lower()}")
    return dataclasses.asdict(report)


def _run(ref: Ref, began: float, max_task_runs: int) -> TransferReport:
    results = results_folder()
    with transferring(ref) as (opened, proof):
        kept = move_all(opened, upload_part, results, proof, max_task_runs=max_task_runs)
        md5 = proof.result()
        finalise_upload(ref)
        return report_of(opened, "uploaded", began, md5=md5, validation="both", parts_kept=kept)
