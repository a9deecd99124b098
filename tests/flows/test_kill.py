"""Flows that are killed, or asked to stop, at any moment, and run again: nothing wrong, nothing twice, nothing left."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from flows import local_server
from flows.batch import batch
from flows.upload import upload
from score_core import operations
from score_core.operations import DownloadItem, DownloadOptions, file_md5
from score_core.testing.faults import Call, Stall, part
from tasks import sessions
from tests.flows.conftest import PART_BYTES, ROOT, new_id, same

pytestmark = [pytest.mark.prefect, pytest.mark.kill, pytest.mark.slow, pytest.mark.xdist_group("flows"), pytest.mark.timeout(300)]

PARTS = 24
WORKERS = 4  # as the site says
TRIALS = int(os.environ.get("SCORE_SOAK_KILLS", "8"))  # scripts/soak: 40
SEED = 12878


class Zygote:
    """Runs flows in processes of their own, one after the other."""

    def __init__(self, site) -> None:
        self.log = site.folder / "zygote.log"
        command = [sys.executable, "-m", "tests.flows.zygote"]
        environment = {**site.environment(), **site.server.environment()}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=environment
            )

    def start(self, flow: str, **arguments: str) -> int:
        """Begins a flow; the pid of its process."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"flow": flow, "arguments": arguments}) + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def wait(self) -> int:
        """The wait status of the process, once it has ended."""
        return int(self._line())

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def run(self, flow: str, **arguments: str) -> float:
        """Runs a flow to its end, which must be good; the seconds it took."""
        began = time.monotonic()
        self.start(flow, **arguments)
        assert self.wait() == 0, self.log.read_text()
        return time.monotonic() - began

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture
def zygote(site):
    zygote = Zygote(site)
    yield zygote
    zygote.close()


def kill_at_random_moments(site, zygote, flow, trials):
    """For each trial's arguments, until `TRIALS` kills have landed: starts the flow, kills it at a random moment, runs it to its end.

    Three of four moments are those of a random byte of the parts, the fourth a random time of the whole run.
    """
    random = Random(SEED)
    slow = Call(lambda: time.sleep(0.01))
    usual_s = zygote.run(flow, **next(trials))
    killed = half_way = 0
    for number, arguments in enumerate(trials):
        site.proxy.forget()
        site.proxy.heal()
        site.proxy.inject(slow)
        pid = zygote.start(flow, **arguments)
        if number % 4:
            site.proxy.at_byte(random.randrange(PARTS * PART_BYTES), lambda pid=pid: os.kill(pid, signal.SIGKILL))
        else:
            time.sleep(random.uniform(0, 0.7 * usual_s))  # the first one imports more
            with contextlib.suppress(ProcessLookupError):  # it was faster this time
                os.kill(pid, signal.SIGKILL)
        killed += zygote.wait() == signal.SIGKILL
        half_way += 0 < len(site.proxy.moves()) < PARTS
        site.proxy.heal()
        zygote.run(flow, **arguments)
        yield arguments
        if killed == TRIALS:  # a moment may fall behind the run's end: another one is drawn for it
            break
    assert killed == TRIALS
    assert half_way >= TRIALS // 2


def assert_few_moved_twice(moved):
    times = Counter(moved)
    assert set(times) == set(range(1, PARTS + 1))
    assert set(times.values()) <= {1, 2}
    assert sum(count == 2 for count in times.values()) <= WORKERS


def test_upload_survives_kills_at_random_moments(site, zygote):
    path = site.file(PARTS)
    md5 = file_md5(path)
    trials = ({"path": str(path), "object_id": new_id(), "md5": md5} for _ in range(2 * TRIALS + 1))

    for arguments in kill_at_random_moments(site, zygote, "upload", trials):
        assert_few_moved_twice(site.puts())
        assert list(site.repository.list_uploads()) == []
        assert list(site.results.iterdir()) == []
        operations.download(sessions.engine(None), DownloadItem(arguments["object_id"]), DownloadOptions(site.out, force=True))
        assert same(site.out / path.name, path)


def test_download_survives_kills_at_random_moments(site, zygote):
    object_id, path = site.stored(PARTS)
    trials = ({"object_id": object_id, "output_dir": str(site.out / str(number))} for number in range(2 * TRIALS + 1))

    for arguments in kill_at_random_moments(site, zygote, "download", trials):
        assert_few_moved_twice(site.gets())
        assert list(site.results.iterdir()) == []
        assert [entry.name for entry in Path(arguments["output_dir"]).iterdir()] == [path.name]
        assert same(Path(arguments["output_dir"]) / path.name, path)


# Signals to the real command: each of the two, with parts that move and with one that stands still; resumed in this process


@pytest.fixture
def command(site):
    """Starts `python -m flows ...`; kills at the end what a failed test left."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "flows", *arguments]
        process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=site.environment() | environment
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def signalled(process, number):
    """Sends the signal; exit code, stderr and the seconds that it took to end."""
    began = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    return process.returncode, errors, time.monotonic() - began


@pytest.mark.parametrize(("number", "code", "stalled"), [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, True)])
def test_signal_stops_an_upload_that_resumes(site, command, number, code, stalled):
    path, object_id = site.file(PARTS), new_id()
    site.proxy.inject(Call(lambda: time.sleep(0.1)), when=lambda seen: seen.part % 8 != 5)
    if stalled:
        site.proxy.inject(Stall(after=1000), when=part(5))
    process = command("upload", "--file", str(path), "--object-id", object_id)
    wait_for(lambda: len(site.puts()) >= 6)

    returned, errors, took_s = signalled(process, number)

    assert returned == code
    assert took_s < 2.5  # 2 s, and what a loaded machine adds
    assert "run the same command again to resume" in errors
    assert "Traceback" not in errors
    done = set(site.puts())
    site.proxy.heal()
    site.proxy.forget()
    report = upload(str(path), object_id)
    assert report["outcome"] == "uploaded"
    assert report["parts_kept"] >= len(done)
    assert set(site.puts()).isdisjoint(done)


def test_signal_stops_a_stalled_download(site, command):
    object_id, path = site.stored(PARTS)
    site.proxy.inject(Stall(after=1000), when=part(20, PART_BYTES))
    process = command("download", "--object-id", object_id, "--output-dir", str(site.out))
    wait_for(lambda: len(site.gets()) == PARTS - 1)

    returned, errors, took_s = signalled(process, signal.SIGINT)

    assert (returned, took_s < 2.5) == (130, True)
    assert "Traceback" not in errors
    assert not (site.out / path.name).exists()


def test_signal_stops_a_batch_that_resumes(site, command):
    path, object_id = site.file(PARTS), new_id()
    manifest = site.folder / "upload.tsv"
    manifest.write_text(f"object_id\tpath\tmd5\n{object_id}\t{path}\t{file_md5(path)}\n")
    site.proxy.inject(Stall(after=1000), when=part(PARTS))
    process = command("batch", "--manifest", str(manifest), "--direction", "upload")
    wait_for(lambda: len(site.puts()) == PARTS - 1)

    returned, errors, took_s = signalled(process, signal.SIGTERM)

    assert (returned, took_s < 2.5) == (143, True)
    assert "Traceback" not in errors
    site.proxy.heal()
    site.proxy.forget()
    batch(str(manifest), "upload")
    assert site.puts() == [PARTS]


def test_signal_amid_the_start_of_the_server(site, command, tmp_path):
    home = tmp_path / "fresh"
    process = command("download", "--object-id", new_id(), "--output-dir", str(site.out), XDG_DATA_HOME=str(home))
    assert process.stderr
    assert "Starting a local Prefect server" in process.stderr.readline()

    returned, errors, took_s = signalled(process, signal.SIGINT)

    assert (returned, took_s < 2.5) == (130, True)
    assert "Traceback" not in errors
    wait_for(lambda: local_server.stop(home / "score"))
