"""Deployments as a data manager makes them: a server with its scheduler, `prefect deploy --all` in a copy of the tree, a real worker."""

import os
import shutil
import subprocess
import sys
import time

import prefect.settings
import pytest
from prefect import get_client
from prefect.deployments import run_deployment
from prefect.settings import temporary_settings

from flows import local_server
from flows.local_server import PendingServer
from flows.server_room import ServerOptions
from score_core import operations
from score_core.operations import DownloadItem, DownloadOptions, UploadItem, file_md5
from score_core.session import open_engine
from score_core.settings import load
from tests.flows.conftest import ROOT, new_id, same

pytestmark = [pytest.mark.prefect, pytest.mark.slow, pytest.mark.xdist_group("flows"), pytest.mark.timeout(240)]

WAIT_S = 60.0


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
        self.prefect("worker", "start", "--pool", "transfers", "--limit", "4", "--run-once", cwd=self.checkout.parent)

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


def test_nightly_deployment_is_scheduled(manager):
    """Also the check that the pinned SQLAlchemy works: with 2.1 the scheduler's loop fails and only the server's log tells."""
    deadline = time.monotonic() + WAIT_S
    while "SCHEDULED" not in (listed := manager.prefect("flow-run", "ls", "--flow-name", "batch", COLUMNS="300")):
        assert time.monotonic() < deadline, listed
        time.sleep(1)

    assert "0 2 * * *" in manager.prefect("deployment", "schedule", "ls", "batch/nightly", COLUMNS="300")
