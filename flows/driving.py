"""How a flow drives the parts of one transfer: mapped task runs in windows, cached ones first, the first final failure ends all."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, cast
from uuid import UUID

from prefect import Task, unmapped
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from score_core.errors import IntegrityError, Interrupted
from score_core.model import Outcome, Part, TransferReport
from tasks import sessions
from tasks.integrity import find_damaged, verify_md5
from tasks.options import cache_folder
from tasks.sessions import Ref, Transfer
from tasks.signing import sign_by_task

MAX_TASK_RUNS: Final = 2_000  # per transfer: beyond that the server's in-memory broker drops events and the UI loses runs
WINDOW: Final = 256  # `map` has no back-pressure: it builds every future before it returns
_ARTIFACT_EVERY_S: Final = 2.0  # an update is an HTTP call of 26 ms

PART_THREADS: Final = 17  # 16 parts, should the settings ask for so many workers, and the whole file's MD5 beside them

Group = Sequence[Part]

_log = logging.getLogger(__name__)


def threads(count: int) -> TaskRunner[Any]:
    """A task runner of `count` threads. Without a bound Prefect starts as many as there are parts."""
    return cast("TaskRunner[Any]", ThreadPoolTaskRunner(max_workers=count))


@contextmanager
def transferring(ref: Ref) -> Iterator[tuple[Transfer, PrefectFuture[str | None]]]:
    """An open transfer and the run that proves its whole MD5 beside the parts; stopped and closed at the end, whatever ends it."""
    sign_by_task(ref)
    opened = sessions.get(ref)
    proof = verify_md5.submit(ref)
    try:
        yield opened, proof
    finally:
        opened.stop.set()
        proof.wait()  # it reads the file that is closed next
        sessions.close(ref)


def move_all(
    opened: Transfer, task: Task[Any, Any], results: Path, proof: PrefectFuture[str | None], *, max_task_runs: int = MAX_TASK_RUNS
) -> int:
    """Moves every part of a transfer by mapped runs of `task`; returns how many parts were there from an earlier run.

    Parts that an earlier run left, proven by reading, go first: Prefect knows most of them as `Cached`. All others run with
    `refresh_cache`, so a result that outlived its bytes is never believed. A failure of `proof` stops the parts and is what is raised.
    """
    find_damaged(opened.ref)
    kept = [part for part in opened.session.parts if opened.session.claims(part)]
    kept_numbers = {part.number for part in kept}
    missing = [part for part in opened.session.parts if part.number not in kept_numbers]
    most = max(1, -(-len(opened.session.parts) // max(1, max_task_runs)))
    meter = _Meter(opened)
    cached = _configured(opened, task, results, most)
    _map(opened, cached, list(_groups(kept, most)), meter, proof)
    _map(opened, cached.with_options(refresh_cache=True), list(_groups(missing, most)), meter, proof)
    return len(kept)


def move_again(opened: Transfer, task: Task[Any, Any], results: Path, numbers: Sequence[int]) -> None:
    """Moves the parts with these numbers once more."""
    parts = [part for part in opened.session.parts if part.number in set(numbers)]
    fresh = _configured(opened, task, results).with_options(refresh_cache=True)
    _map(opened, fresh, [[part] for part in parts], _Meter(opened), None)


def _configured(opened: Transfer, task: Task[Any, Any], results: Path, most: int = 1) -> Task[Any, Any]:
    """The task as this machine's settings want it. Its results have a folder of the transfer's own: those of failures get random names.

    Prefect's count is per task run and the policy's per part: a run of `most` parts may need as many tries as all of them.
    """
    return task.with_options(result_storage=results / cache_folder(opened.ref), retries=(opened.engine.policy.attempts - 1) * most)


def _groups(parts: Sequence[Part], most: int) -> Iterator[Group]:
    """Runs of at most `most` parts with consecutive numbers."""
    group: list[Part] = []
    for part in parts:
        if group and (len(group) == most or part.number != group[-1].number + 1):
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def _map(opened: Transfer, task: Task[Any, Any], groups: Sequence[Group], meter: _Meter, proof: PrefectFuture[Any] | None) -> None:
    for start in range(0, len(groups), WINDOW):
        window = groups[start : start + WINDOW]
        futures = task.map(
            transfer=unmapped(opened.ref),
            number=[group[0].number for group in window],
            count=[len(group) for group in window],
            offset=[group[0].offset for group in window],
            size=[sum(part.size for part in group) for group in window],
            digest=[_digest(group) for group in window],
        )
        _wait(opened, futures, meter, proof)


def _digest(group: Group) -> str:
    """One digest for the parts' reference MD5s, for the cache key."""
    if len(group) == 1:
        return group[0].md5 or "none"
    return sha256(",".join(part.md5 or "none" for part in group).encode()).hexdigest()


def _wait(opened: Transfer, futures: Sequence[PrefectFuture[Any]], meter: _Meter, proof: PrefectFuture[Any] | None) -> None:
    """Waits for all; raises the first final failure, after the others were told to stop."""
    failure: BaseException | None = None
    for future in as_completed(list(futures)):
        future.wait()  # sets the final state here; without it `state` would be an HTTP call for a stale one
        if future.state.is_completed():
            receipts = future.state.result()
            meter.add(receipts)
            opened.cached += len(receipts) if future.state.name == "Cached" else 0
            continue
        error = error_of(future)
        if failure is None or isinstance(failure, Interrupted):
            failure = error
        opened.stop.set()
    if failure is not None:
        raise _explained(failure, proof)


def error_of(future: PrefectFuture[Any]) -> BaseException:
    """Why a run failed; `Interrupted` if it was dropped without one."""
    error = future.state.result(raise_on_failure=False)
    return error if isinstance(error, BaseException) else Interrupted()


def _explained(failure: BaseException, proof: PrefectFuture[Any] | None) -> BaseException:
    """The failure of the proof, if that made the parts fail: it stops them, and a wrong MD5 drops the upload that they belong to."""
    if proof is None:
        return failure
    proof.wait()  # it was told to stop too
    if not proof.state.is_failed():
        return failure
    error = error_of(proof)
    explains = isinstance(error, IntegrityError) or (isinstance(failure, Interrupted) and not isinstance(error, Interrupted))
    return error if explains else failure


class _Meter:
    """The progress artifact of a transfer: one update every two seconds, however many parts there are."""

    def __init__(self, opened: Transfer) -> None:
        self._size = sum(part.size for part in opened.session.parts) or 1
        self._done = 0
        self._name = Path(opened.ref.path).name
        self._said = time.monotonic()
        created = create_progress_artifact(
            progress=0.0, key=f"transfer-{opened.ref.object_id.lower()}", description=f"Object {opened.ref.object_id}"
        )
        self._artifact = cast("UUID", created)  # a coroutine only inside async flows

    def add(self, receipts: Sequence[dict[str, Any]]) -> None:
        self._done += sum(receipt["size"] for receipt in receipts)
        now = time.monotonic()
        if now - self._said >= _ARTIFACT_EVERY_S or self._done >= self._size:
            self._said = now
            _log.info("%s: %s of %s bytes (%.0f %%)", self._name, f"{self._done:,}", f"{self._size:,}", 100 * self._done / self._size)
            update_progress_artifact(self._artifact, progress=min(100.0, 100.0 * self._done / self._size))


def show_receipts(reports: Sequence[TransferReport], key: str, **more: str) -> None:
    """What happened to each file, as a table of the run: for people in the UI, and for programs that wait for the run."""
    create_table_artifact(
        table=[{**dataclasses.asdict(report), **more} for report in reports], key=key, description=f"{len(reports)} files"
    )


def report_of(opened: Transfer, outcome: Outcome, began: float, **facts: Any) -> TransferReport:
    """The report of a finished transfer, in the direct engine's terms."""
    parts = opened.session.parts
    size = sum(part.size for part in parts)
    moved = sum(opened.moved.values())
    return TransferReport(
        object_id=opened.ref.object_id,
        path=opened.ref.path,
        outcome=outcome,
        size=size,
        parts=len(parts),
        bytes_moved=moved,
        bytes_kept=size - moved,
        parts_cached=opened.cached,
        retries=opened.retries,
        signings=opened.session.urls.signings,
        seconds=time.monotonic() - began,
        **facts,
    )
