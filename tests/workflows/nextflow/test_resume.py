"""An attempt that is killed half-way, and the next one, which gets a new and empty folder."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from score_core.testing.faults import Call
from tests.workflows.nextflow.conftest import NOISE_PARTS, PART_BYTES, STUDY, Analysis, Server
from tests.workflows.nextflow.rendering import start

pytestmark = [pytest.mark.kill, pytest.mark.xdist_group("nextflow")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_next_attempt_fetches_what_is_missing(server: Server, reads: Analysis, tmp_path: Path, number: signal.Signals) -> None:
    metadata, state = tmp_path / "a.analysis.json", tmp_path / "state"
    metadata.write_text("{}")
    inputs: dict[str, Any] = {"study_id": STUDY, "analysis_id": reads.analysis_id, "analysis": metadata}
    shared = {"SCORE_STATE_DIR": str(state), "SCORE_WORKERS": "2"}
    rendered = server.nextflow.render("SCORE_DOWNLOAD", inputs)
    server.proxy.inject(Call(lambda: time.sleep(0.01)))
    with start(rendered, inputs, server.new_folder(), {**server.environment, **shared}) as process:
        server.proxy.at_byte(NOISE_PARTS * PART_BYTES // 2, lambda: os.killpg(process.pid, number))
        _, err = process.communicate(timeout=60)
    assert process.returncode in {-number, 128 + number}, err
    assert server.proxy.wait_until_left(10)
    (journal,) = state.glob(f"{reads.ids['noise.bin']}*.journal")
    done = sum('"part"' in line for line in journal.read_text().splitlines()) * PART_BYTES
    assert done >= NOISE_PARTS * PART_BYTES // 4

    server.forget()
    again = server.run_rendered(rendered, inputs, **shared)
    assert again.code == 0, again.err
    assert {path.name: path.read_bytes() for path in again.outputs["files"]} == reads.data
    size = sum(map(len, reads.data.values()))
    assert server.proxy.moved_bytes <= size - done + PART_BYTES
    assert list(state.iterdir()) == []


def test_without_a_state_folder_nothing_is_left_elsewhere(server: Server, reads: Analysis, tmp_path: Path) -> None:
    metadata = tmp_path / "a.analysis.json"
    metadata.write_text("{}")
    done = server.run("SCORE_DOWNLOAD", {"study_id": STUDY, "analysis_id": reads.analysis_id, "analysis": metadata})
    assert done.code == 0, done.err
    left = {path.name for path in done.folder.iterdir()}
    assert left == {".command.sh", "a.analysis.json", "out", f"{reads.analysis_id}.download.json"}
    assert list(Path(server.environment["TMPDIR"]).iterdir()) == []
