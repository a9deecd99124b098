"""The local Prefect server as its client and its own process both see it: its files, its state, whether it lives."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Final

IDLE_EXIT_S: Final = 600.0  # an idle server burns 2 % of a core (measured): ten minutes cost 12 s of CPU, three starts
HEALTH_S: Final = 10.0  # a server that digests a burst of task runs answers late


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
class State:
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
        return process_identity(self.pid) == self.identity

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
class Room:
    """The server's files.

    One room for each host, because homes on NFS are shared and SQLite and 127.0.0.1 are not; and for each minor version of Prefect,
    because a database moved on by a newer one cannot be opened by an older one.
    """

    home: Path
    directory: Path

    @classmethod
    def below(cls, home: Path) -> Room:
        version = prefect_version()
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

    def live_state(self) -> State | None:
        """The state of a process that is still the one that wrote it: a pid alone may have been given to another process since."""
        try:
            state = State(**json.loads(self.state.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        return state if state.is_alive() else None

    def write_state(self, state: State) -> None:
        aside = self.state.with_suffix(f".{os.getpid()}")
        aside.touch(mode=0o600)  # it holds the password
        aside.write_text(json.dumps(dataclasses.asdict(state)), "utf-8")
        aside.replace(self.state)


def is_healthy(url: str) -> bool:
    """Whether the local server answers; asked past any proxy, which could not reach our loopback."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=HEALTH_S) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def process_identity(pid: int) -> str | None:
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


def process_environment(home: Path) -> dict[str, str]:
    """Ours, without the user's Prefect settings: their database or profile is not this server's."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    bytecode = bytecode_directory(home)
    if bytecode is not None:
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = str(bytecode.resolve())
    return environment


def bytecode_directory(home: Path) -> Path | None:
    """Where to keep bytecode if Prefect's installation has none and will get none, else None.

    uv compiles nothing unless asked, and containers set ``PYTHONDONTWRITEBYTECODE`` or mount packages read-only: each start then compiles
    2,200 modules again, 4 s of CPU for the server. This directory (76 MB with Prefect, boto3 and pytest in it) holds no sources.
    """
    spec = importlib.util.find_spec("prefect")
    if spec is None or spec.origin is None or spec.cached is None or sys.pycache_prefix is not None:
        return None
    writes_itself = not sys.dont_write_bytecode and os.access(Path(spec.origin).parent, os.W_OK)
    return None if writes_itself or Path(spec.cached).exists() else home / "prefect" / "bytecode"


def no_proxy(given: Mapping[str, str]) -> str:
    hosts = [host for host in (given.get("NO_PROXY") or given.get("no_proxy") or "").split(",") if host]
    return ",".join(dict.fromkeys([*hosts, "127.0.0.1"]))


def prefect_version() -> str:
    import importlib.metadata  # half of this module's import time

    return importlib.metadata.version("prefect")
