"""The same steps on a host of its own: a Prefect deployment makes the transfer, this job waits and leaves what it would have made itself.

Paths mean the same there, on a file system that both see. Settings and tokens are those of that host.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from score_core.errors import ConfigurationError
from score_core.model import TransferReport
from score_core.workflow.job import Job

DEPLOYMENT: Final = "prefect_deployment"


def is_elsewhere(job: Job) -> bool:
    """Whether the rule has a deployment make its transfer."""
    return job.text(DEPLOYMENT) is not None


def flow_of(job: Job, *flows: str) -> str:
    """The flow of the rule's deployment, one of `flows`, which fit what the rule asks for. Raises `ConfigurationError`."""
    deployment = job.required(DEPLOYMENT)
    flow = deployment.split("/")[0]
    if flow not in flows:
        raise ConfigurationError(f"What this rule asks for needs a deployment of the flow {' or '.join(flows)}, not {deployment[:80]!r}")
    return flow


def transferred(job: Job, parameters: Mapping[str, Any]) -> tuple[list[TransferReport], float]:
    """The reports of the deployment's files, and the seconds it took; parameters that are None are left to the flow.

    Raises:
        ScoreError: as `prefect.transfer_by`.
    """
    from score_core.workflow.prefect import transfer_by

    began = time.monotonic()
    given = {"store": job.text("url") or job.text("store"), **parameters}
    with job.signals.graceful():
        reports = transfer_by(
            job.required(DEPLOYMENT), {name: _plain(value) for name, value in given.items() if value is not None}, stop=job.stop
        )
    return reports, time.monotonic() - began


def _plain(value: Any) -> Any:
    """A parameter as JSON, with absolute paths: a run's working folder is its worker's."""
    if isinstance(value, Path):
        return str(value.absolute())
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
