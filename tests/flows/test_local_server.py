"""The local Prefect server: real processes, one ready server for the session and short-lived ones for each way it ends."""

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows import server_process
from flows.local_server import ServerHandle, ensure_server, running, start_in_background, stop
from flows.server_room import LocalServerError, Room, ServerOptions, is_healthy

pytestmark = [pytest.mark.prefect, pytest.mark.xdist_group("prefect")]

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_configured_server(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("PREFECT")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(tmp_path / "profiles.toml"))


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory):
    home = tmp_path_factory.mktemp("shared-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        patch.setenv("PREFECT_PROFILES_PATH", str(home / "none.toml"))
        ensure_server(home, say=lambda _: None)
    yield home
    stop(home)


@pytest.fixture(scope="session")
def bytecode(shared_home):
    """The bytecode of the shared server, so that each further start of the session costs 3 s and not 8."""
    return shared_home / "prefect" / "bytecode"


@pytest.fixture
def home(tmp_path, bytecode):
    home = tmp_path / "home"
    if bytecode.exists():
        (home / "prefect").mkdir(parents=True)
        (home / "prefect" / "bytecode").symlink_to(bytecode)
    yield home
    stop(home)


@pytest.fixture
def said():
    return []


def state_of(home: Path) -> dict:
    state: dict = json.loads(Room.below(home).state.read_bytes())
    return state


def wait_until(condition, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.05)


@contextlib.contextmanager
def answering_server(status: int):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()
        thread.join()


# Finding and starting


def test_second_call_finds_the_server(shared_home, said):
    handle = ensure_server(shared_home, say=said.append)

    assert handle.origin == "found"
    assert handle.url == state_of(shared_home)["url"]
    assert said == [f"Using the local Prefect server at {handle.url} (started {said[0].split('started ')[1]}"]


def test_concurrent_calls_get_one_server(home):
    def ask(_):
        return ensure_server(home, say=lambda _: None)

    with ThreadPoolExecutor(4) as pool:
        handles = list(pool.map(ask, range(4)))

    assert len({handle.url for handle in handles}) == 1
    assert sorted(handle.origin for handle in handles) == ["found", "found", "found", "started"]


def test_starter_killed_midway_leaves_one_server(home):
    """`kill -9` of the client right after the spawn: the next one waits for that server instead of starting a second."""
    program = (
        "import os, pathlib, signal, sys; from flows.local_server import start_in_background;"
        "start_in_background(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(home)], cwd=ROOT, check=False).returncode == -signal.SIGKILL

    assert ensure_server(home, say=lambda _: None).origin == "found"


def test_background_start_overlaps_and_stop_ends_it(home, said):
    pending = start_in_background(home, say=said.append)
    assert said == []  # returned before the server was there

    handle = pending.wait()

    assert handle.origin == "started"
    assert [line.split(" at ")[0] for line in said] == ["Starting a local Prefect server ...", "Local Prefect server ready"]
    assert stop(home)
    assert not is_healthy(handle.url)
    assert not stop(home)


def test_stale_state_of_recycled_pid_is_ignored(home):
    room = Room.below(home)
    room.create()
    other = {"pid": os.getpid(), "identity": "boot:1", "started_at": 0.0, "url": "http://127.0.0.1:1/api", "auth": "a:b"}
    room.state.write_text(json.dumps({**other, "services": False, "ui": False, "ready": True}))

    assert running(home) is None
    assert not stop(home)  # and this very process, whose pid it is, lives on


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', '{"unknown": 1}'])
def test_unreadable_state_is_ignored(home, content):
    room = Room.below(home)
    room.create()
    room.state.write_text(content)

    assert room.live_state() is None


# Ending


def test_idle_server_ends_and_killed_one_is_replaced(home):
    """An open connection is not idle."""
    first = ensure_server(home, say=lambda _: None)
    os.kill(state_of(home)["pid"], signal.SIGKILL)

    second = ensure_server(home, options=ServerOptions(idle_exit_s=1.0), say=lambda _: None)
    with socket.create_connection(("127.0.0.1", int(second.url.split(":")[2].split("/")[0]))):
        assert second.origin == "started"
        assert second.url != first.url or second.auth != first.auth
        time.sleep(2.5)  # the subject of the test is time
        assert running(home) is not None

    room = Room.below(home)
    wait_until(lambda: room.live_state() is None)
    assert not room.state.exists()


# What it offers


def test_api_needs_the_password(shared_home):
    import httpx

    handle = ensure_server(shared_home, say=lambda _: None)
    assert handle.auth is not None
    user, password = handle.auth.split(":")

    assert httpx.post(f"{handle.url}/flows/count", json={}).status_code == 401
    assert httpx.post(f"{handle.url}/flows/count", json={}, auth=(user, password)).status_code == 200


def test_answers_leave_at_once(shared_home):
    """Without TCP_NODELAY each answer on a kept connection waits 40 ms for a delayed ACK."""
    import httpx

    handle = ensure_server(shared_home, say=lambda _: None)
    assert handle.auth is not None
    user, password = handle.auth.split(":")
    took = []
    with httpx.Client(auth=(user, password)) as http:
        for _ in range(21):
            began = time.monotonic()
            http.post(f"{handle.url}/flows/count", json={})
            took.append(time.monotonic() - began)
    assert sorted(took)[5] < 0.035


def test_password_is_private(shared_home):
    room = Room.below(shared_home)

    assert room.state.stat().st_mode & 0o077 == 0
    assert room.directory.stat().st_mode & 0o077 == 0
    handle = running(shared_home)
    assert handle is not None
    assert str(handle.auth) not in repr(handle)


def test_missing_option_is_said_not_forced(shared_home):
    with pytest.raises(LocalServerError, match=r"without the deployment services; run `python -m flows.local_server stop`"):
        ensure_server(shared_home, options=ServerOptions(services=True), say=lambda _: None)


def test_flow_runs_and_is_recorded(shared_home, tmp_path):
    handle = ensure_server(shared_home, say=lambda _: None)
    program = tmp_path / "run.py"
    program.write_text(
        "import time\n"
        "from prefect import flow, task\n"
        "from flows.local_server import quick_flows\n"
        "@task\n"
        "def double(x): return 2 * x\n"
        "@flow\n"
        "def doubled(): return [f.result() for f in double.map([1, 2, 3])]\n"
        "with quick_flows():\n"
        "    started = time.monotonic()\n"
        "    print(doubled())\n"
    )
    environment = {**os.environ, **handle.environment(), "PYTHONPATH": str(ROOT)}

    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=60, check=False)

    assert done.stdout == "[2, 4, 6]\n", done.stderr
    database = Room.below(shared_home).database

    def completed():
        with contextlib.closing(sqlite3.connect(database)) as connection:
            return connection.execute("SELECT count(*) FROM task_run WHERE state_type = 'COMPLETED'").fetchone()[0]

    wait_until(lambda: completed() == 3)


@pytest.mark.slow
def test_schema_file_equals_migrations():
    def statements(script):
        """Without the order of a table's constraints, which varies."""
        return sorted(sorted(re.split(r"[,()\s]+", statement)) for statement in script.split(";"))

    assert statements(server_process.schema_script()) == statements(server_process._schema_file().read_text("utf-8"))


def test_new_database_needs_no_migration(tmp_path):
    assert server_process._prepare_database(tmp_path / "prefect.db")


def test_unknown_prefect_version_migrates(tmp_path, monkeypatch):
    monkeypatch.setattr(server_process, "_schema_file", lambda: tmp_path / "none.sql")

    assert not server_process._prepare_database(tmp_path / "prefect.db")
    assert not (tmp_path / "prefect.db").exists()


# Configured servers


def test_configured_server_is_used(tmp_path, monkeypatch, said):
    with answering_server(200) as url:
        monkeypatch.setenv("PREFECT_API_URL", url)
        handle = ensure_server(tmp_path, say=said.append)

    assert (handle.url, handle.origin) == (url, "configured")
    assert said == [f"Using the Prefect server at {url} (PREFECT_API_URL)"]
    assert "PREFECT_HOME" not in handle.environment()  # the user's API key lives there


def test_profile_is_used_and_401_is_an_answer(tmp_path, said):
    with answering_server(401) as url:
        Path(os.environ["PREFECT_PROFILES_PATH"]).write_text(f'active = "work"\n[profiles.work]\nPREFECT_API_URL = "{url}"\n')
        ensure_server(tmp_path, say=said.append)

    assert said == [f"Using the Prefect server at {url} (profile work)"]


def test_silent_configured_server_falls_back(shared_home, monkeypatch, said):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")

    assert ensure_server(shared_home, say=said.append).origin == "found"
    assert said[0].startswith("The Prefect server at http://127.0.0.1:9/api (PREFECT_API_URL) does not answer")


# Failures


def test_unwritable_home_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(LocalServerError, match=r"Cannot keep a local Prefect server in .*Not a directory; give another --home"):
        ensure_server(tmp_path / "file", say=lambda _: None)


def test_server_that_dies_names_its_log(home, monkeypatch):
    room = Room.below(home)
    room.create()
    room.database.mkdir()  # no database can be opened there

    with pytest.raises(LocalServerError, match=f"while starting; its log: {room.log}"):
        ensure_server(home, say=lambda _: None)


def test_time_out_is_not_a_hang(home):
    with pytest.raises(LocalServerError, match="within 0 s; see its log"):
        ensure_server(home, timeout_s=0.0, say=lambda _: None)
    wait_until(lambda: running(home) is not None)  # so that the fixture can stop it


# The client's side


def test_environment_keeps_the_users_choice_and_proxy_list(monkeypatch):
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "DEBUG")
    monkeypatch.setenv("NO_PROXY", "example.org")

    environment = ServerHandle("http://127.0.0.1:1/api", "found", Path("/h"), "u:p").environment()

    assert "PREFECT_LOGGING_LEVEL" not in environment
    assert environment["NO_PROXY"] == "example.org,127.0.0.1"
    assert environment["PREFECT_API_AUTH_STRING"] == "u:p"


def test_import_is_light():
    program = "import sys, flows.local_server; print([m for m in ('prefect', 'uvicorn', 'httpx', 'sqlalchemy') if m in sys.modules])"

    assert subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True) == "[]\n"
