"""Has a Prefect deployment make a transfer, and waits for its receipts: for sites where transfers run on a host of their own.

Asked over Prefect's REST API, because a workflow's environment need not hold Prefect. The flows leave their receipts as a table of the run
(`flows/driving.py`), so the caller gets the reports that it would have made itself.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any, Final
from urllib.parse import quote, urlsplit

from score_core import errors
from score_core.errors import AuthenticationError, ConfigurationError, Conflict, Interrupted, ObjectNotFound, ScoreError, ServiceError
from score_core.model import SliceReport, TransferReport
from score_core.service import Refused, ServiceClient, ServiceOptions, Token
from score_core.transfer.stop import Stop

_log = logging.getLogger(__name__)

_SLOWEST_POLL_S: Final = 5.0
_LATE_S: Final = 60.0
_CANCEL_S: Final = 2.0  # an interrupted job ends within a few seconds
_GOOD: Final = "COMPLETED"
_ENDS: Final = frozenset({_GOOD, "FAILED", "CRASHED", "CANCELLED"})
_WAITING: Final = frozenset({"SCHEDULED", "PENDING"})
_FAILURE: Final = re.compile(r"\b([A-Z][A-Za-z]+): (.+)", re.DOTALL)  # "Flow run encountered an exception: ObjectNotFound: ..."


def transfer_by(deployment: str, parameters: Mapping[str, Any], *, stop: Stop) -> list[TransferReport]:
    """Runs a deployment (`FLOW/NAME`) with these parameters and waits for its end; the reports of its files, also of those that failed.

    The server is `PREFECT_API_URL`, with `PREFECT_API_KEY` or `PREFECT_API_AUTH_STRING` if they are set. Paths in the parameters are
    those of the transfer host, so both must see the files under one name. When `stop` is set the run is cancelled.

    Raises:
        ConfigurationError: no server is named, or it has no such deployment, or that does not take the parameters.
        ScoreError: the run failed; message and exit code are those of its error.
        Interrupted: `stop` was set.
        Unavailable, AuthenticationError, AccessDenied: the Prefect server is not reached, or refuses us.
    """
    if deployment.count("/") != 1 or not all(deployment.split("/")):
        raise ConfigurationError(f"{deployment[:80]!r} is not a Prefect deployment: write FLOW/NAME, such as download/download")
    run = _Run(deployment, stop)
    try:
        return run.reports(parameters)
    finally:
        run.close()


class _Run:
    """One flow run, asked for and watched."""

    def __init__(self, deployment: str, stop: Stop) -> None:
        self._deployment = deployment
        self._stop = stop
        self._client = _client(stop)
        self._id = ""

    def reports(self, parameters: Mapping[str, Any]) -> list[TransferReport]:
        try:
            self._begin(parameters)
            state = self._wait()
        except AuthenticationError as error:
            raise AuthenticationError(
                f"The Prefect server at {self._client.url} refuses us ({error.status}): set PREFECT_API_KEY or PREFECT_API_AUTH_STRING",
                status=error.status,
            ) from None
        except Interrupted:
            self._cancel()
            raise
        reports = self._receipts()
        if state["type"] == _GOOD and not reports:
            raise ServiceError(f"Prefect run {self._id} of {self._deployment} ended well and left no receipts; is it a flow of Score's?")
        if state["type"] != _GOOD and not any(report.error for report in reports):
            raise self._failure(state)
        return reports

    def _begin(self, parameters: Mapping[str, Any]) -> None:
        flow, name = (quote(word, safe="") for word in self._deployment.split("/"))
        try:
            deployment = self._client.get(f"/deployments/name/{flow}/{name}").json()
            answer = self._client.request("POST", f"/deployments/{deployment['id']}/create_flow_run", json={"parameters": dict(parameters)})
        except ObjectNotFound:
            raise ConfigurationError(
                f"The Prefect server at {self._client.url} has no deployment {self._deployment!r}; `prefect deployment ls` lists them"
            ) from None
        except (Conflict, Refused) as error:  # what a deployment checks its parameters by
            raise ConfigurationError(f"Deployment {self._deployment} does not take these parameters: {error}") from None
        self._id = answer.json()["id"]
        _log.info("Prefect run %s of %s", self._id, self._deployment)

    def _wait(self) -> dict[str, Any]:
        """The state that the run ends in."""
        began, pause, told = time.monotonic(), 0.25, False
        while True:
            state: dict[str, Any] = self._client.get(f"/flow_runs/{self._id}").json()["state"]
            if state["type"] in _ENDS:
                return state
            if not told and state["type"] in _WAITING and time.monotonic() - began > _LATE_S:
                told = True
                _log.warning("Prefect run %s of %s still waits: does a worker serve its work pool?", self._id, self._deployment)
            self._client.pause(pause)
            pause = min(pause * 1.5, _SLOWEST_POLL_S)

    def _cancel(self) -> None:
        """Asks for the run's end; what it has done stays, and the next run takes it up."""
        if not self._id:
            return
        client = _client(Stop())  # the other does not wait any more
        state = {"state": {"type": "CANCELLING", "message": "The job that asked for it was interrupted"}}
        with suppress(ScoreError):
            client.request("POST", f"/flow_runs/{self._id}/set_state", json=state, attempts=2, read_timeout_s=_CANCEL_S)
        client.close()

    def _receipts(self) -> list[TransferReport]:
        wanted = {"artifacts": {"flow_run_id": {"any_": [self._id]}, "type": {"any_": ["table"]}}}
        found = self._client.request("POST", "/artifacts/filter", json=wanted).json()
        return [_report(row) for artifact in found for row in _rows(artifact.get("data"))]

    def _failure(self, state: Mapping[str, Any]) -> ScoreError:
        said = str(state.get("message") or state.get("name") or state["type"])
        found = _FAILURE.search(said)
        kind = getattr(errors, found[1], None) if found else None
        if found is None or not (isinstance(kind, type) and issubclass(kind, ScoreError)):
            return ServiceError(f"Prefect run {self._id} of {self._deployment} ended {state['type']}: {said}")
        error = ScoreError(f"{found[2]} (Prefect run {self._id} of {self._deployment})")
        error.exit_code = kind.exit_code
        return error

    def close(self) -> None:
        self._client.close()


def _client(stop: Stop) -> ServiceClient:
    url = os.environ.get("PREFECT_API_URL", "").strip()
    if urlsplit(url).scheme not in {"http", "https"}:
        raise ConfigurationError("Set PREFECT_API_URL to the address of the Prefect server, such as https://prefect.example.org/api")
    key, user = (os.environ.get(name, "").strip() for name in ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"))
    token = Token(key) if key else Token(base64.b64encode(user.encode()).decode(), scheme="Basic") if user else None
    return ServiceClient(url, name="Prefect", token=token, options=ServiceOptions(), stop=stop)


def _rows(data: Any) -> list[Mapping[str, Any]]:
    """The rows of a table artifact, which come as JSON or as its text."""
    rows = json.loads(data) if isinstance(data, str) else data
    return [row for row in rows or () if isinstance(row, dict) and {"object_id", "path", "outcome"} <= row.keys()]


def _report(row: Mapping[str, Any]) -> TransferReport:
    kind = SliceReport if "records" in row else TransferReport
    return kind(**{field.name: row[field.name] for field in fields(kind) if field.name in row})
