"""`kill -9` at random moments of a transfer, then the same command again: the file is right, and what was finished is not moved twice.

The store and the counting proxy live in the test's process, so counts survive; the proxy kills the client at an exact byte.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import score_core
from score_core.testing.faults import Call, Stall
from score_core.transfer.files import journal_path
from score_core.transfer.journal import Journal

PART = 64 << 10
COUNT = 32
SIZE = COUNT * PART
WORKERS = 4
DRIVER = Path(__file__).with_name("driver.py")
MOMENTS = [random.Random(seed).randrange(SIZE) for seed in range(8)] + [0, SIZE - 1]


def start(rig: Any, way: str) -> subprocess.Popen[bytes]:
    rig.target.parent.mkdir(exist_ok=True)
    here = {**os.environ, "PYTHONPATH": str(Path(score_core.__file__).parents[1])}
    return subprocess.Popen([sys.executable, str(DRIVER), way, str(rig.folder), rig.proxy.url, rig.id], env=here)


def run_until_killed(rig: Any, way: str, moment: int) -> None:
    processes: list[subprocess.Popen[bytes]] = []
    rig.proxy.at_byte(moment, lambda: processes[0].kill())  # noqa: PLW0108  # it is not there yet
    processes.append(start(rig, way))
    assert processes[0].wait(30) == -signal.SIGKILL
    assert rig.proxy.wait_until_left(10)  # what was in the air has landed, or is lost


def run_to_the_end(rig: Any, way: str) -> set[int]:
    """The numbers of the parts that moved."""
    rig.proxy.forget()
    assert start(rig, way).wait(30) == 0
    assert set(rig.tries().values()) <= {1}
    return set(rig.tries())


@pytest.mark.kill
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_download_goes_on(rig: Any, moment: int) -> None:  # F01, F02
    data = rig.put(SIZE)
    run_until_killed(rig, "download", moment)
    first = sum(rig.tries().values())
    found = Journal.load(journal_path(rig.target))
    finished = set(found.receipts) if found else set()
    again = run_to_the_end(rig, "download")
    assert rig.target.read_bytes() == data
    assert again == set(range(1, COUNT + 1)) - finished
    assert first + len(again) <= COUNT + WORKERS
    assert rig.leftovers == {"x.bam"}


@pytest.mark.kill
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_upload_goes_on(rig: Any, moment: int) -> None:  # F03
    path = rig.source(SIZE)
    run_until_killed(rig, "upload", moment)
    first = sum(rig.tries().values())
    upload = rig.repository.find_upload(rig.id, SIZE)
    finished = set(upload.stored) if upload else set()
    again = run_to_the_end(rig, "upload")
    assert rig.stored() == path.read_bytes()
    assert not again & finished
    assert first + len(again) <= COUNT + WORKERS
    rig.assert_nothing_unfinished()


@pytest.mark.kill
@pytest.mark.parametrize("way", ["upload", "download"])
def test_killed_again_and_again_it_ends(rig: Any, way: str) -> None:
    path = rig.source(SIZE)
    if way == "download":
        rig.put(SIZE)
    for _ in range(3):
        run_until_killed(rig, way, 6 * PART)
    run_to_the_end(rig, way)
    assert (rig.target.read_bytes() if way == "download" else rig.stored()) == path.read_bytes()
    rig.assert_nothing_unfinished()


@pytest.mark.kill
@pytest.mark.parametrize(
    ("way", "stalled", "number"),
    [
        ("upload", True, signal.SIGINT),
        ("upload", False, signal.SIGTERM),
        ("download", True, signal.SIGTERM),
        ("download", False, signal.SIGINT),
    ],
)
def test_signal_stops_within_two_seconds(rig: Any, way: str, stalled: bool, number: signal.Signals) -> None:  # F10
    path = rig.source(SIZE)
    if way == "download":
        rig.put(SIZE)
    under_way = threading.Event()
    picks = rig.get if way == "download" else rig.put_of
    rig.proxy.inject(Call(under_way.set), when=picks(8), times=1)
    if stalled:
        rig.proxy.inject(Stall(after=100), when=lambda seen: under_way.is_set())
    else:
        rig.proxy.inject(Call(lambda: time.sleep(0.2)))  # so that there is something left to stop
    process = start(rig, way)
    assert under_way.wait(30)
    began = time.monotonic()
    os.kill(process.pid, number)
    assert process.wait(30) == 128 + number
    assert time.monotonic() - began <= 2
    rig.proxy.heal()
    run_to_the_end(rig, way)
    assert (rig.target.read_bytes() if way == "download" else rig.stored()) == path.read_bytes()
    rig.assert_nothing_unfinished()
