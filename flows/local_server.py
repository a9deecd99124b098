"""A tuned Prefect server on this machine, started or found by ``python -m flows ...``.

Prefect flows need a server. Prefect's own answer without one, the ephemeral server, starts again for every run. Measured here (2 cores
shared with other work, Prefect 3.8.8, interleaved, medians of 3, CPU seconds of the server until ``/api/health`` answers):

===========================================================  ========  =========
variant                                                      new home  used home
===========================================================  ========  =========
as Prefect starts it, no ``.pyc`` files (many containers)    14.7      10.0
the same with ``.pyc`` files                                 12.1      5.3
this module (8.1 while it compiles its bytecode, once)       3.6       3.4
===========================================================  ========  =========

What brings it down, in order of effect: the schema comes from a file instead of 113 migrations (-8 s, once), bytecode is kept
in a directory of ours where the installation has none (-4 s), block types are not registered (-1 s, once), the garbage collector rests
while Prefect is imported (-0.3 s). The rest, 2.7 s, is the import of Prefect's models. A server that already runs costs 0.

The server outlives its starter, even ``kill -9`` (so the run that resumes finds it at once), and ends by itself when nobody has been
connected for ten minutes. It holds an ``flock`` for all its life: a lock that is free proves that no server runs, whatever a state
file of last week says. It listens on 127.0.0.1 only and asks for a password made at each start, because on a shared login node
every other user can reach that port, and Prefect's API hands out the secrets of saved blocks.

Importing this module does not import Prefect. Linux and macOS (``flock``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import gc
import importlib.util
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    import argparse

    import uvicorn

Say = Callable[[str], None]
"""Receives one line for the user."""

START_TIMEOUT_S: Final = 120.0  # 30x the measured start: a machine under heavy load is slow, not broken
IDLE_EXIT_S: Final = 600.0  # an idle server burns 2 % of a core (measured): ten minutes cost 12 s of CPU, three starts
_POLL_S: Final = 0.05
_STOP_S: Final = 15.0  # the server's own grace for open connections is 3 s
_HEALTH_S: Final = 10.0  # a server that digests a burst of task runs answers late

# The recorder writes one row a transaction by default: 42.6 ms of server CPU a task run, 10 ms with these (research: default
# against tuned at equal load). `FLUSH_INTERVAL` bounds how late the UI is, in seconds.
_TUNED: Final = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "500",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # no call home; without network it also logs an error at each start
    "DO_NOT_TRACK": "1",
    "PREFECT__SERVER_FINAL": "1",  # one app in this process: Prefect skips copying its routes
}

# Services for deployments, schedules, workers and automations. A flow that is called directly uses none of them; without them the
# first seconds of an idle server cost a third (0.09 -> 0.03 s of CPU each second). Recorder, event persister and vacuum stay.
_DEPLOYMENT_SERVICES: Final = (
    "CANCELLATION_CLEANUP",
    "CLEANUP_RECONCILER",
    "FOREMAN",
    "LATE_RUNS",
    "PAUSE_EXPIRATIONS",
    "REPOSSESSOR",
    "SCHEDULER",
    "TRIGGERS",
)


class LocalServerError(RuntimeError):
    """No Prefect server could be used; the message is one sentence with the next step."""


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """What a server that has to be started should offer; one that is found must offer at least this.

    Attributes:
        services: Run the services behind deployments: scheduler, late runs, automations, and register the block types.
        ui: Serve Prefect's web pages (copied once).
        idle_exit_s: Stop after this many seconds without any connection, 0 means never; by default 600, and never with `services`,
            because a schedule needs a server when nobody is connected.
    """

    services: bool = False
    ui: bool = False
    idle_exit_s: float | None = None

    def resolved_idle_exit_s(self) -> float:
        if self.idle_exit_s is not None:
            return self.idle_exit_s
        return 0.0 if self.services else IDLE_EXIT_S


@dataclasses.dataclass(frozen=True)
class ServerHandle:
    """A Prefect server that answered a moment ago.

    Attributes:
        url: The API's address, for ``PREFECT_API_URL``.
        origin: ``configured`` is somebody else's server (``PREFECT_API_URL`` or a Prefect profile), ``found`` was left by an earlier run,
            ``started`` is new.
        home: The ``home`` given to `ensure_server`.
        auth: ``user:password`` of a local server.
    """

    url: str
    origin: Literal["configured", "found", "started"]
    home: Path
    auth: str | None = dataclasses.field(default=None, repr=False)

    def environment(self) -> dict[str, str]:
        """Settings for this process and its children, to be put into ``os.environ`` before Prefect is imported.

        A configured server keeps the user's ``PREFECT_HOME``, profile and API key: hiding them would lock the user out.
        """
        if self.origin == "configured":
            return {"PREFECT_API_URL": self.url, **_slim_client(os.environ)}
        return client_environment(self.url, self.home, auth=self.auth)


def ensure_server(
    home: Path,
    *,
    options: ServerOptions = ServerOptions(),
    timeout_s: float = START_TIMEOUT_S,
    say: Say | None = None,
) -> ServerHandle:
    """A healthy Prefect server: the configured one, else the one that runs for this ``home``, else a new one.

    Processes that ask at the same time get the same server. The server runs on when this process ends.

    Args:
        home: The user's data directory for Score; the server's database, log and state file go to ``home/prefect``.
        options: What the server must offer.
        timeout_s: Give up after this many seconds.
        say: Receives one or two lines for the user; the default prints to stderr.

    Raises:
        LocalServerError: The directory cannot be written, the server ended or did not answer in time, or the one that runs lacks an option.
    """
    return start_in_background(home, options=options, say=say).wait(timeout_s)


def start_in_background(home: Path, *, options: ServerOptions = ServerOptions(), say: Say | None = None) -> PendingServer:
    """`ensure_server` in two halves: the server starts (3 s) while the caller imports Prefect (1.5 s).

    Raises:
        LocalServerError: As `ensure_server`, where it can be known at once.
    """
    say = say or _say_to_stderr
    pending = PendingServer(home, options, say=say, handle=_configured_server(home, say))
    pending.advance()
    return pending


class PendingServer:
    """A server that may still be starting. Not for several threads."""

    def __init__(self, home: Path, options: ServerOptions, *, say: Say, handle: ServerHandle | None = None) -> None:
        self._home = home
        self._options = options
        self._say = say
        self._began = time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None
        self._handle = handle
        self._room = _Room.below(home)

    def wait(self, timeout_s: float = START_TIMEOUT_S) -> ServerHandle:
        """The server once it answers.

        Raises:
            LocalServerError: As `ensure_server`.
        """
        deadline = time.monotonic() + timeout_s
        if self.advance() is None:
            self._say("Starting a local Prefect server ...")
        while (handle := self.advance()) is None:
            if time.monotonic() >= deadline:
                raise LocalServerError(self._timed_out(timeout_s))
            time.sleep(_POLL_S)
        return handle

    def advance(self) -> ServerHandle | None:
        """One step that does not wait for a start: find a server, or start one if none runs, or look whether it is ready."""
        if self._handle is None:
            self._handle = self._find()
        if self._handle is None and self._process is None:
            self._process = _spawn_if_none_runs(self._room, self._options)
        elif self._handle is None:
            self._fail_if_ended()
        return self._handle

    def _find(self) -> ServerHandle | None:
        state = self._room.live_state()
        if state is None or not state.ready or not _is_healthy(state.url):
            return None
        state.require(self._options)
        took = time.monotonic() - self._began
        if state.pid == (self._process.pid if self._process else None):
            self._say(f"Local Prefect server ready at {state.url} in {took:.1f} s")
            self._disown()
            return ServerHandle(state.url, "started", self._home, state.auth)
        self._say(f"Using the local Prefect server at {state.url} (started {_ago(time.time() - state.started_at)})")
        return ServerHandle(state.url, "found", self._home, state.auth)

    def _disown(self) -> None:
        """The server outlives us on purpose: stop `subprocess` from warning about that at garbage collection."""
        if self._process is not None:
            self._process.returncode = 0

    def _fail_if_ended(self) -> None:
        if self._process is not None and (code := self._process.poll()) is not None:
            raise LocalServerError(f"The local Prefect server ended with code {code} while starting; its log: {self._room.log}")

    def _timed_out(self, timeout_s: float) -> str:
        self._disown()
        return (
            f"No local Prefect server answered within {timeout_s:.0f} s; see its log {self._room.log}, "
            "or run `python -m flows.local_server stop` and try again"
        )


def stop(home: Path) -> bool:
    """Whether a local server ran for ``home``; it has ended when this returns.

    Raises:
        LocalServerError: The server could not be ended.
    """
    state = _Room.below(home).live_state()
    if state is None:
        return False
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(state.pid, signal_number)
        deadline = time.monotonic() + _STOP_S
        while time.monotonic() < deadline:
            if not state.is_alive():
                return True
            time.sleep(_POLL_S)
    raise LocalServerError(f"The local Prefect server (pid {state.pid}) does not end")


def running(home: Path) -> ServerHandle | None:
    """The local server of ``home`` if one is up and answers; starts nothing."""
    state = _Room.below(home).live_state()
    if state is None or not state.ready or not _is_healthy(state.url):
        return None
    return ServerHandle(state.url, "found", home, state.auth)


def default_home() -> Path:
    """Score's folder in the user's data directory."""
    import platformdirs

    return platformdirs.user_data_path("score", appauthor=False)


# What the client needs


def client_environment(url: str, home: Path, *, auth: str | None = None) -> dict[str, str]:
    """Settings for a client of a local server, to be put into ``os.environ`` before Prefect is imported.

    Args:
        url: The server's API.
        home: The ``home`` given to `ensure_server`.
        auth: The server's ``user:password``.
    """
    directory = home / "prefect" / "client"
    environment = {
        "PREFECT_API_URL": url,
        # Results, memo store and profiles of our runs stay out of the developer's ~/.prefect, and a profile that points
        # elsewhere, with its API key, stays out of our runs.
        "PREFECT_HOME": str(directory),
        "PREFECT_PROFILES_PATH": str(directory / "profiles.toml"),
        "PREFECT_LOCAL_STORAGE_PATH": str(directory / "storage"),
        # Should the address ever be lost: an error now, not a second server of 8 to 17 s of CPU.
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        # Prefect's httpx client and its websocket obey HTTP_PROXY, which cannot reach our loopback.
        "NO_PROXY": _no_proxy(os.environ),
        **_slim_client(os.environ),
    }
    if auth is not None:
        environment["PREFECT_API_AUTH_STRING"] = auth
    return environment


def _slim_client(given: Mapping[str, str]) -> dict[str, str]:
    """What makes part tasks cheap, unless the user has decided otherwise."""
    slim = {
        # INFO lines of every task run to the API: 10.0 against 4.9 ms of client CPU and 12.7 against 7.6 ms of server CPU a part.
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        # Prefect reports usage of its SDK from a background thread.
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    return {name: value for name, value in slim.items() if name not in given}


def _no_proxy(given: Mapping[str, str]) -> str:
    hosts = [host for host in (given.get("NO_PROXY") or given.get("no_proxy") or "").split(",") if host]
    return ",".join(dict.fromkeys([*hosts, "127.0.0.1"]))


@contextlib.contextmanager
def quick_flows() -> Iterator[None]:
    """Flows inside end without waiting for the heartbeat thread: a sync flow took 1.09 s, 0.13 s with this.

    The environment cannot say "no heartbeat" (an empty value fails validation). Imports Prefect. Without heartbeat a server cannot tell
    a killed run from a long one: for runs that somebody watches, not for deployments.
    """
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


@contextlib.contextmanager
def fast_imports(home: Path) -> Iterator[None]:
    """``import prefect`` inside costs 1.2 s of CPU, against 1.4 s, or 2.9 s where the installation has no ``.pyc`` files."""
    prefix, dont_write, collecting = sys.pycache_prefix, sys.dont_write_bytecode, gc.isenabled()
    bytecode = _bytecode_directory(home)
    if bytecode is not None:
        sys.pycache_prefix, sys.dont_write_bytecode = str(bytecode), False
    gc.disable()
    try:
        yield
    finally:
        sys.pycache_prefix, sys.dont_write_bytecode = prefix, dont_write
        if collecting:
            gc.enable()


def _bytecode_directory(home: Path) -> Path | None:
    """Where to keep bytecode if Prefect's installation has none and will get none, else None.

    uv compiles nothing unless asked, and containers set ``PYTHONDONTWRITEBYTECODE`` or mount packages read-only: each start then compiles
    2,200 modules again, 4 s of CPU for the server. This directory (76 MB with Prefect, boto3 and pytest in it) holds no sources.
    """
    spec = importlib.util.find_spec("prefect")
    if spec is None or spec.origin is None or spec.cached is None or sys.pycache_prefix is not None:
        return None
    writes_itself = not sys.dont_write_bytecode and os.access(Path(spec.origin).parent, os.W_OK)
    return None if writes_itself or Path(spec.cached).exists() else home / "prefect" / "bytecode"


# A server that somebody configured


def _configured_server(home: Path, say: Say) -> ServerHandle | None:
    url, where = _configured_url(os.environ)
    if url is None:
        return None
    if _answers(url):
        say(f"Using the Prefect server at {url} ({where})")
        return ServerHandle(url, "configured", home)
    say(f"The Prefect server at {url} ({where}) does not answer, so this run is recorded by a local one")
    return None


def _configured_url(environ: Mapping[str, str]) -> tuple[str | None, str]:
    """The address that Prefect would use, and which setting says so; read without the 1.4 s of importing Prefect."""
    if url := environ.get("PREFECT_API_URL"):
        return url, "PREFECT_API_URL"
    prefect_home = Path(environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    path = Path(environ.get("PREFECT_PROFILES_PATH") or prefect_home / "profiles.toml").expanduser()
    try:
        profiles = tomllib.loads(path.read_text("utf-8"))
        name = environ.get("PREFECT_PROFILE") or profiles["active"]
        return profiles["profiles"][name]["PREFECT_API_URL"], f"profile {name}"
    except (OSError, ValueError, KeyError, TypeError):
        return None, ""  # no profile, or one that is no business of ours


def _answers(url: str) -> bool:
    """Whether a server is there. Prefect Cloud answers 401 without its key and a private authority fails our TLS check: both are there."""
    import ssl

    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=_HEALTH_S):  # noqa: S310 - the user's own setting
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, ValueError):
        return False


# The local server as seen from outside


@dataclasses.dataclass(frozen=True)
class _State:
    """The state file: what the server says of itself, written by the server, readable by its user only."""

    pid: int
    identity: str
    started_at: float
    url: str
    auth: str
    services: bool
    ui: bool
    ready: bool = False

    def is_alive(self) -> bool:
        return _process_identity(self.pid) == self.identity

    def require(self, options: ServerOptions) -> None:
        wanted = [
            ("the deployment services", "--with-services", options.services and not self.services),
            ("the UI", "--ui", options.ui and not self.ui),
        ]
        for what, option, is_missing in wanted:
            if is_missing:  # it may serve other runs right now, so stopping it is the user's decision
                raise LocalServerError(
                    f"The local Prefect server at {self.url} runs without {what}; "
                    f"run `python -m flows.local_server stop`, then `python -m flows.local_server start {option}`"
                )


@dataclasses.dataclass(frozen=True)
class _Room:
    """The server's files.

    One room for each host, because homes on NFS are shared and SQLite and 127.0.0.1 are not; and for each minor version of Prefect,
    because a database moved on by a newer one cannot be opened by an older one.
    """

    home: Path
    directory: Path

    @classmethod
    def below(cls, home: Path) -> _Room:
        version = _prefect_version()
        minor = ".".join(version.split(".")[:2])
        return cls(home, home / "prefect" / f"server-{minor}-{socket.gethostname()}")

    @property
    def state(self) -> Path:
        return self.directory / "state.json"

    @property
    def lock(self) -> Path:
        return self.directory / "server.lock"

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    @property
    def database(self) -> Path:
        return self.directory / "prefect.db"

    def create(self) -> None:
        """Raises `LocalServerError` when it cannot be written."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.lock.touch(mode=0o600)
        except OSError as error:
            raise LocalServerError(
                f"Cannot keep a local Prefect server in {self.directory}: {error.strerror}; give another --home, or set PREFECT_API_URL"
            ) from error

    def live_state(self) -> _State | None:
        """The state of a process that is still the one that wrote it: a pid alone may have been given to another process since."""
        try:
            state = _State(**json.loads(self.state.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        return state if state.is_alive() else None

    def write_state(self, state: _State) -> None:
        aside = self.state.with_suffix(f".{os.getpid()}")
        aside.touch(mode=0o600)  # it holds the password
        aside.write_text(json.dumps(dataclasses.asdict(state)), "utf-8")
        aside.replace(self.state)


def _prefect_version() -> str:
    import importlib.metadata  # half of this module's import time

    return importlib.metadata.version("prefect")


def _spawn_if_none_runs(room: _Room, options: ServerOptions) -> subprocess.Popen[bytes] | None:
    """A new server process, or None if one runs or starts already.

    The lock is taken here and inherited by the server, which holds it until it ends: `flock` belongs to the open file, not to a process. So
    there is no moment, not even when we are killed, at which a second server could start.
    """
    room.create()
    with room.lock.open("r+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        if room.log.exists():
            room.log.replace(room.log.with_suffix(".log.1"))  # the log of a server that died is worth one more start
        with room.log.open("wb") as log:
            return subprocess.Popen(
                _server_command(room.home, options, lock.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=room.directory,  # a prefect.toml or .env in the user's folder is not meant for this server
                env=_process_environment(room.home),
                pass_fds=[lock.fileno()],
                start_new_session=True,  # Ctrl-C in the user's terminal is not for the server
            )


def _server_command(home: Path, options: ServerOptions, lock_fd: int) -> list[str]:
    # -P: this folder does not go onto the import path, where a flow called `http.py` would hide a module of Python's
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "serve", "--home", str(home.resolve()), "--lock-fd", str(lock_fd)]
    command += ["--idle-exit", str(options.resolved_idle_exit_s())]
    command += ["--with-services"] * options.services + ["--ui"] * options.ui
    return command


def _process_environment(home: Path) -> dict[str, str]:
    """Ours, without the user's Prefect settings: their database or profile is not this server's."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    bytecode = _bytecode_directory(home)
    if bytecode is not None:
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = str(bytecode.resolve())
    return environment


def _is_healthy(url: str) -> bool:
    """Whether the local server answers; asked past any proxy, which could not reach our loopback."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=_HEALTH_S) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _process_identity(pid: int) -> str | None:
    """When process ``pid`` began, in a form that no other process of that number ever has, or None if it has ended."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _process_identity_by_ps(pid)
    is_over = after_name[0] in "ZX"  # a zombie keeps its number until its parent looks
    return None if is_over else f"{boot}:{after_name[19]}"


def _process_identity_by_ps(pid: int) -> str | None:
    """The same for macOS, to the second."""
    command = ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)]
    columns = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split(maxsplit=1)
    return None if len(columns) < 2 or columns[0].startswith("Z") else columns[1].strip()


def _ago(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _say_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# The server process itself


def _serve(room: _Room, options: ServerOptions, lock_fd: int) -> int:
    """Runs Prefect's server until it is told to stop or nobody needs it."""
    import secrets

    os.umask(0o077)
    os.set_inheritable(lock_fd, False)  # noqa: FBT003 - a child of the server must not hold the lock in its place
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn stops in order, then raises it again: an end, not a crash
    gc.disable()  # importing Prefect makes a million objects and no garbage
    # The kernel picks the port and the socket is kept: nobody can take it between choice and use. It does not listen before
    # the application is ready, so until then a client is refused at once instead of hanging.
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    state = _State(
        pid=os.getpid(),
        identity=_process_identity(os.getpid()) or "",
        started_at=time.time(),
        url=f"http://127.0.0.1:{listener.getsockname()[1]}/api",
        auth=f"score:{secrets.token_urlsafe(24)}",
        services=options.services,
        ui=options.ui,
    )
    room.write_state(state)
    try:
        os.environ.update(_server_environment(room, state))
        _uvicorn_server(options.resolved_idle_exit_s(), lambda: room.write_state(dataclasses.replace(state, ready=True))).run(
            sockets=[listener]
        )
    finally:
        room.state.unlink(missing_ok=True)
    return 0


def _server_environment(room: _Room, state: _State) -> dict[str, str]:
    is_current = _prepare_database(room.database)
    environment = {
        **_TUNED,
        "PREFECT_HOME": str(room.directory),
        "PREFECT_PROFILES_PATH": str(room.directory / "profiles.toml"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{room.database}",
        "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": str(not is_current).lower(),
        "PREFECT_SERVER_API_AUTH_STRING": state.auth,
        "PREFECT_API_URL": state.url,  # for the pages of the UI, and so that nothing in here looks for another server
        "PREFECT_API_AUTH_STRING": state.auth,
        # A block registers its own type when it is saved; the catalogue of all types matters to the UI's form and to deployments.
        "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": str(state.ui or state.services).lower(),
        # Prefect notes "blocks are registered" even when registration is off, and a later start with the UI would then skip it.
        "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": str(state.ui or state.services).lower(),
        "PREFECT_UI_ENABLED": str(state.ui).lower(),
        "NO_PROXY": _no_proxy(os.environ),
    }
    if not state.services:
        environment |= {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in _DEPLOYMENT_SERVICES}
    return environment


def _uvicorn_server(idle_exit_s: float, on_ready: Callable[[], None]) -> uvicorn.Server:
    import uvicorn
    from prefect.server.api.server import create_app

    class IdleServer(uvicorn.Server):
        """Says when it is ready, and ends after `idle_exit_s` without a request or an open connection.

        A running flow keeps its websocket for events open, so a part that takes an hour is not idleness; the socket of a client that was
        killed is closed by the kernel.
        """

        last_seen = 0.0
        requests_seen = 0

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            gc.freeze()  # what was imported stays for ever: the collector need not look at it again
            gc.enable()
            self.last_seen = time.monotonic()
            on_ready()

        async def on_tick(self, counter: int) -> bool:
            served = self.server_state.total_requests
            if self.server_state.connections or served != self.requests_seen:
                self.last_seen, self.requests_seen = time.monotonic(), served
            is_idle = 0 < idle_exit_s < time.monotonic() - self.last_seen
            return await super().on_tick(counter) or is_idle

    return IdleServer(uvicorn.Config(create_app(), log_level="warning", lifespan="on", timeout_graceful_shutdown=3))


# The database's schema


def _schema_file() -> Path:
    return Path(__file__).with_name(f"prefect_schema_{_prefect_version()}.sql")


def _prepare_database(database: Path) -> bool:
    """Whether the database needs no migration; a new one is made from the schema file of this Prefect version.

    Without such a file Prefect migrates as always: correct, and 8 s slower the first time.
    """
    try:
        script = _schema_file().read_text("utf-8")
    except FileNotFoundError:
        return False
    if not database.exists():
        aside = database.with_suffix(".new")
        aside.unlink(missing_ok=True)  # a start that was killed here
        with contextlib.closing(sqlite3.connect(aside)) as connection:
            connection.executescript(script)
        aside.replace(database)
    return (head := _revision(database)) is not None and f"VALUES ('{head}')" in script


def _revision(database: Path) -> str | None:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.Error:
            return None  # killed amid its first migration, or damaged: Prefect's own message is the better one
    return None if row is None else str(row[0])


def schema_script() -> str:
    """The SQL that makes what Prefect's migrations make, got by running them (10 s) on a database of their own.

    SQLAlchemy's ``create_all`` is no short cut: with 3.8.8 it fails ("index ix_artifact__key already exists") and would lack tables
    that only migrations make. The order of a table's constraints differs from run to run (Alembic keeps them in a set).
    """
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        database = Path(directory) / "prefect.db"
        environment = _process_environment(default_home()) | {
            "PREFECT_HOME": directory,
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
        }
        program = "import asyncio; from prefect.server.database import provide_database_interface as p; asyncio.run(p().create_db())"
        subprocess.run([sys.executable, "-P", "-c", program], env=environment, cwd=directory, check=True)
        statements = _statements(database)
        revision = _revision(database)
    title = f"-- Schema of Prefect {_prefect_version()} on SQLite: `python -m flows.local_server schema` writes this file."
    stamp = f"INSERT INTO alembic_version (version_num) VALUES ('{revision}');"  # noqa: S608 - Prefect's own revision, into a file
    return "\n".join([title, "BEGIN;", *statements, stamp, "COMMIT;", ""])


def _statements(database: Path) -> list[str]:
    query = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY type = 'index', tbl_name, name"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return [f"{sql};" for (sql,) in connection.execute(query)]


# Command line


def main(arguments: list[str] | None = None) -> int:
    """Exit code of ``python -m flows.local_server start|stop|status|env``."""
    asked = _parser().parse_args(arguments)
    options = ServerOptions(services=asked.with_services, ui=asked.ui, idle_exit_s=asked.idle_exit)
    commands: dict[str, Callable[[], int]] = {
        "start": lambda: _start_command(asked.home, options),
        "stop": lambda: _stop_command(asked.home),
        "status": lambda: _status_command(asked.home),
        "env": lambda: _env_command(asked.home),
        "schema": _schema_command,
        "serve": lambda: _serve(_Room.below(asked.home), options, asked.lock_fd),
    }
    try:
        return commands[asked.command]()
    except LocalServerError as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(prog="python -m flows.local_server", description="The Prefect server of this machine.")
    parser.add_argument("command", choices=["start", "stop", "status", "env", "schema", "serve"], metavar="start|stop|status|env")
    parser.add_argument("--home", type=Path, default=default_home(), help="Score's data directory (default: %(default)s)")
    parser.add_argument(
        "--with-services", "--with-scheduler", action="store_true", help="for deployments: scheduler, late runs, automations"
    )
    parser.add_argument("--ui", action="store_true", help="serve Prefect's web pages")
    parser.add_argument(
        "--idle-exit", type=float, metavar="SECONDS", help="end when unused so long; 0: never (default: 600, with services never)"
    )
    parser.add_argument("--lock-fd", type=int, help=argparse.SUPPRESS)
    return parser


def _start_command(home: Path, options: ServerOptions) -> int:
    """Starts a local server whatever ``PREFECT_API_URL`` says: that is what was asked for."""
    handle = PendingServer(home, options, say=_say_to_stderr).wait()
    if options.ui:
        print(
            f"Pages: {handle.url.removesuffix('/api')}, password: `python -m flows.local_server env`, PREFECT_API_AUTH_STRING",
            file=sys.stderr,
        )
    return 0


def _stop_command(home: Path) -> int:
    print("Stopped the local Prefect server" if stop(home) else "No local Prefect server runs", file=sys.stderr)
    return 0


def _status_command(home: Path) -> int:
    room = _Room.below(home)
    state = room.live_state()
    if state is None:
        print("No local Prefect server runs")
        return 1
    health = "healthy" if _is_healthy(state.url) else "starting" if not state.ready else "does not answer"
    print(f"{state.url} {health}, pid {state.pid}, started {_ago(time.time() - state.started_at)}, log {room.log}")
    return 0


def _env_command(home: Path) -> int:
    """Prints what a shell needs to use ``prefect`` with the server: ``eval "$(python -m flows.local_server env)"``."""
    import shlex

    handle = running(home)
    if handle is None:
        raise LocalServerError("No local Prefect server runs; run `python -m flows.local_server start`")
    print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in handle.environment().items()))
    return 0


def _schema_command() -> int:
    _schema_file().write_text(schema_script(), "utf-8")
    print(f"Wrote {_schema_file()}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
