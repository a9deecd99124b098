"""One task run per part (or per run of parts of a very large file): what Prefect retries and caches for resume."""

from __future__ import annotations

import dataclasses
from typing import Any

from prefect import task

from tasks import sessions
from tasks.options import PART_OPTIONS
from tasks.sessions import Ref

Receipts = list[dict[str, Any]]


@task(name="download-part", **PART_OPTIONS)
def download_part(transfer: Ref, number: int, count: int, offset: int, size: int, digest: str) -> Receipts:  # noqa: ARG001  # the cache key
    """Fetches `count` parts from `number` on into the `.part` file, verified and journaled; their receipts."""
    return _move(transfer, number, count)


@task(name="upload-part", **PART_OPTIONS)
def upload_part(transfer: Ref, number: int, count: int, offset: int, size: int, digest: str) -> Receipts:  # noqa: ARG001  # the cache key
    """Sends `count` parts from `number` on, confirmed by the store and recorded with the repository; their receipts."""
    return _move(transfer, number, count)


def _move(ref: Ref, number: int, count: int) -> Receipts:
    transfer = sessions.get(ref)
    parts = transfer.session.parts[number - 1 : number - 1 + count]
    return [dataclasses.asdict(transfer.move(part)) for part in parts]
