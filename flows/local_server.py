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
import os
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from flows.server_room import (
    HEALTH_S,
    LocalServerError,
    Room,
    ServerOptions,
    bytecode_directory,
    is_healthy,
    no_proxy,
    process_environment,
)

if TYPE_CHECKING:
    import argparse


Say = Callable[[str], None]
"""Receives one line for the user."""

START_TIMEOUT_S: Final = 120.0  # 30x the measured start: a machine under heavy load is slow, not broken
_POLL_S: Final = 0.05
_STOP_S: Final = 15.0  # the server's own grace for open connections is 3 s


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
        self._room = Room.below(home)

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
        if state is None or not state.ready or not is_healthy(state.url):
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
    state = Room.below(home).live_state()
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
    state = Room.below(home).live_state()
    if state is None or not state.ready or not is_healthy(state.url):
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
        "NO_PROXY": no_proxy(os.environ),
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
    bytecode = bytecode_directory(home)
    if bytecode is not None:
        sys.pycache_prefix, sys.dont_write_bytecode = str(bytecode), False
    gc.disable()
    try:
        yield
    finally:
        sys.pycache_prefix, sys.dont_write_bytecode = prefix, dont_write
        if collecting:
            gc.enable()


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
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=HEALTH_S):  # noqa: S310 - the user's own setting
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, ValueError):
        return False


def _spawn_if_none_runs(room: Room, options: ServerOptions) -> subprocess.Popen[bytes] | None:
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
                env={**process_environment(room.home), "PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
                pass_fds=[lock.fileno()],
                start_new_session=True,  # Ctrl-C in the user's terminal is not for the server
            )


def _server_command(home: Path, options: ServerOptions, lock_fd: int) -> list[str]:
    # -P: this folder does not go onto the import path, where a flow called `http.py` would hide a module of Python's
    command = [sys.executable, "-P", "-m", "flows.server_process", "serve", "--home", str(home.resolve()), "--lock-fd", str(lock_fd)]
    command += ["--idle-exit", str(options.resolved_idle_exit_s())]
    command += ["--with-services"] * options.services + ["--ui"] * options.ui
    return command


def _ago(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _say_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
    }
    try:
        return commands[asked.command]()
    except LocalServerError as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(prog="python -m flows.local_server", description="The Prefect server of this machine.")
    parser.add_argument("command", choices=["start", "stop", "status", "env"])
    parser.add_argument("--home", type=Path, default=default_home(), help="Score's data directory (default: %(default)s)")
    parser.add_argument(
        "--with-services", "--with-scheduler", action="store_true", help="for deployments: scheduler, late runs, automations"
    )
    parser.add_argument("--ui", action="store_true", help="serve Prefect's web pages")
    parser.add_argument(
        "--idle-exit", type=float, metavar="SECONDS", help="end when unused so long; 0: never (default: 600, with services never)"
    )
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
    room = Room.below(home)
    state = room.live_state()
    if state is None:
        print("No local Prefect server runs")
        return 1
    health = "healthy" if is_healthy(state.url) else "starting" if not state.ready else "does not answer"
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


if __name__ == "__main__":
    sys.exit(main())
