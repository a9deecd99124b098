"""Deployments as a data manager makes them: a server with its scheduler, `prefect deploy --all` in a copy of the tree, a real worker."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import prefect.settings
import pytest
from prefect import get_client
from prefect.deployments import run_deployment
from prefect.settings import temporary_settings

from flows import local_server
from flows.local_server import PendingServer
from flows.server_room import ServerOptions
from score_core import operations
from score_core.errors import AuthenticationError, ConfigurationError, Interrupted
from score_core.operations import DownloadItem, DownloadOptions, UploadItem, file_md5
from score_core.session import open_engine
from score_core.settings import load
from score_core.transfer.stop import Stop
from score_core.workflow.prefect import transfer_by
from tests.flows.conftest import ROOT, new_id, same

pytestmark = [pytest.mark.prefect, pytest.mark.slow, pytest.mark.xdist_group("flows"), pytest.mark.timeout(400)]

WAIT_S = 150.0  # a worker starts a Python with Prefect for each run


class Manager:
    """Somebody at a shell, in a checkout, with a server of their own."""

    def __init__(self, folder, server) -> None:
        self.server = server
        self.checkout = folder / "checkout"
        for name in ("flows", "tasks", "score_core"):
            shutil.copytree(ROOT / name, self.checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        deployments = (ROOT / "prefect.yaml").read_text().replace("/data/score/", f"{folder}/")
        (self.checkout / "prefect.yaml").write_text(deployments)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "SCORE"))}
        self.environment = {**kept, **server.environment(), "SCORE_DATA_DIR": str(folder / "data"), "SCORE_PART_SIZE_BYTES": "65536"}

    def prefect(self, *arguments, cwd=None, **more):
        """What the command printed, which must be good."""
        where = cwd or self.checkout
        environment = {**self.environment, "PWD": str(where), **more}  # as a shell sets it
        command = [sys.executable, "-m", "prefect", *arguments]
        done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def work(self):
        """Has a worker, started from another folder, do all that was asked for."""
        self.prefect("worker", "start", "--pool", "transfers", "--limit", "8", "--run-once", cwd=self.checkout.parent)

    def ask(self, deployment, **parameters):
        """Asks for a run of a deployment, as `prefect deployment run` does, without the seconds that a command takes to start."""
        with self.api():
            run_deployment(deployment, parameters=parameters, timeout=0, as_subflow=False)

    def states(self):
        """How all flow runs stand, by their names."""
        with self.api(), get_client(sync_client=True) as client:
            return {run.name: run.state_name for run in client.read_flow_runs()}

    def api(self):
        given = self.server.environment()
        return temporary_settings({getattr(prefect.settings, name): value for name, value in given.items() if name.startswith("PREFECT")})


@pytest.fixture(scope="module")
def manager(tmp_path_factory, prefect_server):
    folder = tmp_path_factory.mktemp("deployments")
    home = folder / "score"
    if (bytecode := prefect_server.home / "prefect" / "bytecode").exists():
        (home / "prefect").mkdir(parents=True)
        (home / "prefect" / "bytecode").symlink_to(bytecode)
    server = PendingServer(home, ServerOptions(services=True, idle_exit_s=300), say=lambda _: None).wait()
    manager = Manager(folder, server)
    manager.prefect("work-pool", "create", "transfers", "--type", "process")
    manager.prefect("deploy", "--all")
    yield manager
    local_server.stop(home)


def test_deployments_move_the_right_bytes(manager, tmp_path, monkeypatch):
    path, object_id, stored_id, missing_id, nightly_id = tmp_path / "reads.bam", new_id(), new_id(), new_id(), new_id()
    path.write_bytes(os.urandom(300_000))
    md5 = file_md5(path)
    (manager.checkout.parent / "nightly.tsv").write_text(f"object_id\tpath\tmd5\n{nightly_id}\t{path}\t{md5}\n")
    monkeypatch.setenv("SCORE_DATA_DIR", manager.environment["SCORE_DATA_DIR"])
    with open_engine(load()) as engine:
        operations.upload(engine, UploadItem(stored_id, path, md5))

    given = [word for each in (f"path={path}", f"object_id={object_id}", f"md5={md5}") for word in ("--param", each)]
    manager.prefect("deployment", "run", "upload/upload", *given)
    manager.ask("download/download", object_id=stored_id, output_dir=str(tmp_path / "out"))
    manager.ask("download/download", object_id=missing_id, output_dir=str(tmp_path / "none"))
    manager.ask("batch/nightly")
    manager.work()

    states = manager.states()
    assert [states[name] for name in (f"upload {object_id}", f"download {stored_id}", f"download {missing_id}")] == [
        "Completed",
        "Completed",
        "Failed",
    ]
    assert [state for name, state in states.items() if name.startswith("batch upload")] == ["Completed"]
    assert same(tmp_path / "out" / "reads.bam", path)
    with open_engine(load()) as engine:
        for uploaded in (object_id, nightly_id):
            operations.download(engine, DownloadItem(uploaded), DownloadOptions(tmp_path / uploaded))
            assert same(tmp_path / uploaded / "reads.bam", path)


# Programs that wait for a run (score_core.workflow.prefect)


@pytest.fixture
def user(manager, monkeypatch):
    """Somebody whose environment names the server."""
    for name, value in manager.server.environment().items():
        monkeypatch.setenv(name, value)


JOB = """
import json, sys
from types import SimpleNamespace
from snakemake.iocontainers import Namedlist
from score_core.workflow import job, steps
asked = json.loads(sys.argv[1])
names = lambda given: Namedlist(fromdict=given)
lists = {kind: names(asked.get(kind, {})) for kind in ("input", "output", "params", "log")}
job.run(getattr(steps, asked["step"]), SimpleNamespace(threads=1, **lists))
"""


def test_rules_have_deployments_make_their_transfers(manager, user, tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_DATA_DIR", manager.environment["SCORE_DATA_DIR"])
    bam, bai = (ROOT / "tests" / "data" / f"htsnexus_test_NA12878.{end}" for end in ("bam", "bam.bai"))
    bam_id, bai_id, missing_id = new_id(), new_id(), new_id()
    rows = [["", "A", bam_id, "", bam.name, "", "", "", "", "", "T"], ["", "A", bai_id, "", bai.name, "", "", "", "", "", "T"]]
    (tmp_path / "down.tsv").write_text("\n".join("\t".join(row) for row in [list("repo_code__"), *rows]))
    wrong = [[new_id(), str(bam), file_md5(bam)], [new_id(), str(bai), "0" * 32]]
    (tmp_path / "up.tsv").write_text("\n".join("\t".join(row) for row in [["analysis", "", ""], *wrong]))
    with open_engine(load()) as engine:
        for object_id, path in ((bam_id, bam), (bai_id, bai)):
            operations.upload(engine, UploadItem(object_id, path, file_md5(path)))
    view = {"object_id": bam_id, "index_object_id": bai_id, "regions": "11:5000000-5001000"}
    jobs = {  # step, input, output, params, deployment, exit code, what came of each file
        "one": ("DOWNLOAD", {}, {"files": "a/mine.bam"}, {"object_id": bam_id}, "download/download", 0, ["downloaded"]),
        "folder": ("DOWNLOAD", {"manifest": "down.tsv"}, {"files": "b"}, {}, "batch/batch", 0, ["downloaded"] * 2),
        "sent": ("UPLOAD", {"file": str(bam)}, {}, {"object_id": new_id(), "md5": file_md5(bam)}, "upload/upload", 0, ["uploaded"]),
        "slice": ("VIEW", {}, {"slice": "c/s.bam", "index": "c/s.bam.bai"}, view, "view/view", 0, ["sliced"]),
        "missing": ("DOWNLOAD", {}, {"files": "a/none.bam"}, {"object_id": missing_id}, "download/download", 5, None),
        "partly": ("UPLOAD", {"manifest": "up.tsv"}, {}, {}, "batch/batch", 9, None),
    }
    before, running = len(manager.states()), {}
    for name, (step, given, made, params, deployment, _, _) in jobs.items():
        asked = {"step": step, "input": given, "params": {**params, "prefect_deployment": deployment}}
        asked |= {"output": {**made, "receipt": f"{name}.json"}, "log": {"log": f"{name}.log"}}
        command = [sys.executable, "-c", JOB, json.dumps(asked)]
        running[name] = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + WAIT_S
        while len(manager.states()) < before + len(jobs):
            assert time.monotonic() < deadline
            assert [name for name, process in running.items() if process.poll() is not None] == []
            time.sleep(0.1)
        manager.work()
        codes = {name: process.wait(WAIT_S) for name, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
            process.wait()

    said = {name: (tmp_path / f"{name}.log").read_text() for name in jobs}
    assert codes == {name: job[5] for name, job in jobs.items()}, said
    receipts = {path.stem: json.loads(path.read_text())["files"] for path in tmp_path.glob("*.json")}
    assert {name: [file["outcome"] for file in files] for name, files in receipts.items()} == {
        name: job[6] for name, job in jobs.items() if job[6]
    }
    assert same(tmp_path / "a" / "mine.bam", bam)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"mine.bam"}
    assert {path.name for path in (tmp_path / "b").iterdir()} == {bam.name, bai.name}
    assert same(tmp_path / "b" / bam.name, bam)
    assert receipts["slice"][0]["records"] == 39
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"s.bam", "s.bam.bai"}
    assert missing_id in said["missing"]
    assert "expected MD5 00000" in said["partly"]


def test_interrupted_wait_cancels_the_run(manager, user, tmp_path):
    stop, object_id, before = Stop(), new_id(), len(manager.states())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(transfer_by, "download/download", {"object_id": object_id, "output_dir": str(tmp_path)}, stop=stop)
        try:
            deadline = time.monotonic() + WAIT_S
            while len(manager.states()) == before:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            stop.set()
        assert isinstance(waiting.exception(WAIT_S), Interrupted)
    with manager.api(), get_client(sync_client=True) as client:
        (run,) = [run for run in client.read_flow_runs() if run.parameters.get("object_id") == object_id]
    assert run.state is not None
    assert run.state.type.value in {"CANCELLING", "CANCELLED"}


@pytest.mark.parametrize(
    ("deployment", "given", "said"),
    [
        ("download", {}, "write FLOW/NAME"),
        ("download/nowhere", {}, "no deployment 'download/nowhere'"),
        ("download/download", {"output_dir": "x"}, "does not take these parameters: .*object_id"),
    ],
)
def test_deployment_that_cannot_be_asked_is_a_sentence(user, deployment, given, said):
    with pytest.raises(ConfigurationError, match=said):
        transfer_by(deployment, given, stop=Stop())


def test_prefect_server_that_refuses_us_is_told(user, monkeypatch):
    monkeypatch.delenv("PREFECT_API_AUTH_STRING")
    with pytest.raises(AuthenticationError, match="PREFECT_API_KEY or PREFECT_API_AUTH_STRING"):
        transfer_by("download/download", {}, stop=Stop())


def test_prefect_server_must_be_named(monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(ConfigurationError, match="PREFECT_API_URL"):
        transfer_by("download/download", {}, stop=Stop())


def test_nightly_deployment_is_scheduled(manager):
    """Also the check that the pinned SQLAlchemy works: with 2.1 the scheduler's loop fails and only the server's log tells."""
    deadline = time.monotonic() + WAIT_S
    while "SCHEDULED" not in (listed := manager.prefect("flow-run", "ls", "--flow-name", "batch", COLUMNS="300")):
        assert time.monotonic() < deadline, listed
        time.sleep(1)

    assert "0 2 * * *" in manager.prefect("deployment", "schedule", "ls", "batch/nightly", COLUMNS="300")
