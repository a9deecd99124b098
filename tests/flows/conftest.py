"""One real Prefect server for all flow tests, and a site: a store behind a proxy that counts and breaks, with small parts."""

import dataclasses
import fcntl
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from flows import local_server
from flows.local_server import PendingServer, ServerHandle
from flows.server_room import ServerOptions
from score_core import operations
from score_core.operations import UploadItem, file_md5
from score_core.repository.direct import DirectRepository
from score_core.server.bytes import ByteServer
from score_core.session import open_engine
from score_core.settings import load
from score_core.stores.local import LocalStore
from score_core.testing.faults import FaultProxy, is_get, is_put
from score_core.transfer.engine import Engine

with pytest.MonkeyPatch.context() as _patch:  # importing Prefect makes its home: not the developer's
    for _name in [_name for _name in os.environ if _name.startswith("PREFECT")]:
        _patch.delenv(_name)
    _patch.setenv("PREFECT_HOME", str(Path(tempfile.gettempdir()) / f"score-tests-prefect-{os.getuid()}"))
    _patch.setenv("PREFECT_LOGGING_LEVEL", "CRITICAL")  # Prefect configures its loggers once per process, whoever runs a flow first
    import prefect.main
    import prefect.settings
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId, FlowRunFilterName
from prefect.client.schemas.objects import Artifact, FlowRun, TaskRun
from prefect.settings import temporary_settings

from tasks import sessions

PART_BYTES = 64 << 10
ROOT = Path(__file__).parents[2]
SERVER_IDLE_S = 120.0  # should all pytest processes be killed


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """The server of this session, shared by xdist's processes; the last of them to end stops it."""
    shared = tmp_path_factory.getbasetemp()
    home = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "prefect" / "score"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "users.lock").open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        yield PendingServer(home, ServerOptions(idle_exit_s=SERVER_IDLE_S), say=lambda _: None).wait()
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        local_server.stop(home)


@pytest.fixture
def prefect_client(prefect_server):
    """This process uses the session's server, without heartbeat, and nothing of the developer's own Prefect."""
    given = prefect_server.environment()
    wanted = {getattr(prefect.settings, name): value for name, value in given.items() if name.startswith("PREFECT")}
    with temporary_settings(wanted), local_server.quick_flows():
        yield


@dataclass
class Site:
    """A store, the way to it, and a folder to work in."""

    folder: Path
    proxy: FaultProxy
    server: ServerHandle

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def results(self) -> Path:
        return self.folder / "data" / "prefect" / "results"

    @property
    def repository(self) -> DirectRepository:
        return DirectRepository(LocalStore(self.folder / "store", base_url=self.proxy.url), part_size_bytes=PART_BYTES)

    def file(self, parts: float, name: str = "reads.bam", seed: int = 1) -> Path:
        """A file of so many parts."""
        path = self.folder / name
        path.write_bytes(Random(seed).randbytes(int(parts * PART_BYTES)))
        return path

    def stored(self, parts: float, name: str = "reads.bam", seed: int = 1) -> tuple[str, Path]:
        """An object of so many parts that is in the store, put there by the direct engine; its id and the file."""
        path, object_id = self.file(parts, name, seed), new_id()
        operations.upload(sessions.engine(None), UploadItem(object_id, path, None))
        self.proxy.forget()
        return object_id, path

    def cached_results(self) -> list[Path]:
        """The files of parts' results, failed ones' not counted."""
        return list(self.results.rglob("part-*"))

    def puts(self) -> list[int]:
        """The numbers of the parts that were sent whole and taken, in order."""
        return sorted(seen.part for seen in self.proxy.moves() if is_put(seen) and seen.status == 200)

    def gets(self) -> list[int]:
        """The numbers of the parts that were fetched whole, in order."""
        return sorted(seen.offset // PART_BYTES + 1 for seen in self.proxy.moves() if is_get(seen) and seen.sent >= seen.size)

    def environment(self) -> dict[str, str]:
        """For a flow in a process of its own, which finds the session's server where a user's would be."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
        return {**own, "XDG_DATA_HOME": str(self.server.home.parent)}


@pytest.fixture
def site(tmp_path, monkeypatch, prefect_server, prefect_client):
    """A store behind a counting proxy, and settings that lead there: 64 KiB parts, four at once."""
    store = LocalStore(tmp_path / "store")
    with ExitStack() as closing:
        server = ByteServer(store)
        closing.callback(store.close)
        closing.callback(server.close)
        server.start()
        proxy = closing.enter_context(FaultProxy(server.url))
        settings = {"PART_SIZE_BYTES": PART_BYTES, "WORKERS": 4, "SERVE_URL": proxy.url, "DATA_DIR": tmp_path / "data", "CONFIG": ""}
        for name, value in settings.items():
            monkeypatch.setenv(f"SCORE_{name}", str(value))
        monkeypatch.setenv("SCORE_STORE", (tmp_path / "store").as_uri())
        sessions.use_engine(None, closing.enter_context(quick_engine()))
        yield Site(tmp_path, proxy, prefect_server)


@contextmanager
def quick_engine() -> Iterator[Engine]:
    """As the settings say, with pauses that take no time."""
    with open_engine(load()) as engine:
        yield dataclasses.replace(engine, policy=dataclasses.replace(engine.policy, base_s=0.001))


def new_id() -> str:
    return str(uuid.uuid4())


def same(path: Path, other: Path) -> bool:
    return file_md5(path) == file_md5(other)


def flow_run(name: str) -> FlowRun:
    """The newest flow run of that name."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
    return max(runs, key=lambda run: run.created.timestamp() if run.created else 0.0)


def task_runs(name: str, count: int, timeout_s: float = 20) -> dict[str, TaskRun]:
    """The task runs of the newest flow run of that name, by name, once there are `count` and all have ended: records lag a second."""
    found: list[TaskRun] = []
    run = flow_run(name)
    deadline = time.monotonic() + timeout_s
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])), limit=200)
            ended = [task for task in found if task.state is not None and task.state.is_final()]
            if len(ended) >= count and len(ended) == len(found):
                break
            time.sleep(0.2)
    return {task.name: task for task in found}


def artifacts(name: str) -> list[Artifact]:
    run = flow_run(name)
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id])))
