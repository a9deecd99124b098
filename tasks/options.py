"""How part tasks are retried and cached. The decisions are `score_core`'s; here they are put in Prefect's terms."""

from __future__ import annotations

import hashlib
import os
from datetime import timedelta
from typing import Any, Final

from prefect import Task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext

from score_core.errors import ScoreError
from score_core.transfer.policy import RetryPolicy, is_retryable
from tasks.sessions import Ref

KEPT_FOR: Final = timedelta(days=30)  # results of parts, if the transfer is never finished


def retryable(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether Prefect may try again: `Transfer.move` has asked the engine's policy. A plain function: Prefect takes others for "no"."""
    try:
        error = state.result(raise_on_failure=False)
    except Exception:  # noqa: BLE001  # no result, no reason to repeat
        return False
    return isinstance(error, ScoreError) and is_retryable(error) and not error.is_final


def part_key(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """Object, version, place, size and digest of the parts, the target and the transfer's key; never a URL.

    The transfer's key is the journal's generation or the upload id, so a deleted `.part` file or an aborted upload cannot give a false hit.
    """
    ref: Ref = parameters["transfer"]
    facts = [parameters[name] for name in ("number", "count", "offset", "size", "digest")]
    raw = "|".join(map(str, ["v1", context.task.name, ref.object_id, ref.key, *facts, os.path.realpath(ref.path)]))
    return f"part-{parameters['number']:06d}-{hashlib.sha256(raw.encode()).hexdigest()[:24]}"


def cache_folder(ref: Ref) -> str:
    """The folder of the results of a transfer's parts, also of failed ones."""
    return f"{cache_folders(ref.object_id, ref.path)}{_short(ref.key)}"


def cache_folders(object_id: str, path: str) -> str:
    """How the names of the folders of this transfer and of its earlier beginnings start; removed when one is finalised."""
    return f"{object_id}-{_short(os.path.realpath(path))}-"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


PART_OPTIONS: Final[dict[str, Any]] = {
    "task_run_name": "part-{number:06d}",
    "cache_policy": CacheKeyFnPolicy(cache_key_fn=part_key),
    "cache_expiration": KEPT_FOR,
    "persist_result": True,
    "result_serializer": "json",
    "cache_result_in_memory": False,  # Prefect's in-memory cache is unlocked and shared by threads
    "retries": RetryPolicy().attempts - 1,  # the settings of the machine may say otherwise: `flows.driving`
    "retry_delay_seconds": 0,  # `Transfer.move` makes the policy's pause itself, because nothing interrupts Prefect's sleep
    "retry_condition_fn": retryable,
    "log_prints": False,
}
