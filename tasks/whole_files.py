"""A whole file as one task run, for batches of small files, where a run per part would cost more than the transfer."""

from __future__ import annotations

import dataclasses
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from score_core import operations
from score_core.metadata.base import FileRecord
from score_core.operations import DownloadItem, DownloadOptions, UploadItem
from tasks import sessions


@task(name="upload-file", task_run_name="upload {item.object_id}", cache_policy=NO_CACHE, persist_result=False)
def upload_file(store: str | None, item: UploadItem, record: FileRecord | None, *, force: bool) -> dict[str, Any]:
    """Uploads one file with the direct engine, if it is what is registered; the fields of its report."""
    return dataclasses.asdict(operations.upload(sessions.engine(store), operations.as_registered(item, record), force=force))


@task(name="download-file", task_run_name="download {item.object_id}", cache_policy=NO_CACHE, persist_result=False)
def download_file(store: str | None, item: DownloadItem, options: DownloadOptions) -> dict[str, Any]:
    """Downloads one object with the direct engine; the fields of its report."""
    return dataclasses.asdict(operations.download(sessions.engine(store), item, options))
