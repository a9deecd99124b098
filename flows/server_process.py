"""The process of the local Prefect server: Prefect's own application with tuned settings, started by `flows.local_server`.

`python -m flows.server_process schema` writes the schema file of the installed Prefect version.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flows.server_room import Room, ServerOptions, State, no_proxy, prefect_version, process_environment, process_identity

if TYPE_CHECKING:
    import uvicorn

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


def _serve(room: Room, options: ServerOptions, lock_fd: int) -> int:
    """Runs Prefect's server until it is told to stop or nobody needs it."""
    import secrets

    os.umask(0o077)
    os.set_inheritable(lock_fd, False)  # noqa: FBT003 - a child of the server must not hold the lock in its place
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn stops in order, then raises it again: an end, not a crash
    gc.disable()  # importing Prefect makes a million objects and no garbage
    # The kernel picks the port and the socket is kept: nobody can take it between choice and use. It does not listen before
    # the application is ready, so until then a client is refused at once instead of hanging.
    listener = socket.socket()
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # uvicorn sets it on its own sockets only: 40 ms an answer
    listener.bind(("127.0.0.1", 0))
    state = State(
        pid=os.getpid(),
        identity=process_identity(os.getpid()) or "",
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


def _server_environment(room: Room, state: State) -> dict[str, str]:
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
        "NO_PROXY": no_proxy(os.environ),
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
    return Path(__file__).with_name(f"prefect_schema_{prefect_version()}.sql")


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
        environment = process_environment(Path(directory)) | {
            "PREFECT_HOME": directory,
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
        }
        program = "import asyncio; from prefect.server.database import provide_database_interface as p; asyncio.run(p().create_db())"
        subprocess.run([sys.executable, "-P", "-c", program], env=environment, cwd=directory, check=True)
        statements = _statements(database)
        revision = _revision(database)
    title = f"-- Schema of Prefect {prefect_version()} on SQLite: `python -m flows.server_process schema` writes this file."
    stamp = f"INSERT INTO alembic_version (version_num) VALUES ('{revision}');"  # noqa: S608 - Prefect's own revision, into a file
    return "\n".join([title, "BEGIN;", *statements, stamp, "COMMIT;", ""])


def _statements(database: Path) -> list[str]:
    query = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY type = 'index', tbl_name, name"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return [f"{sql};" for (sql,) in connection.execute(query)]


def main() -> int:
    """Runs the server, or writes the schema file."""
    parser = argparse.ArgumentParser(prog="python -m flows.server_process", description="Started by flows.local_server.")
    parser.add_argument("command", choices=["serve", "schema"])
    parser.add_argument("--home", type=Path)
    parser.add_argument("--lock-fd", type=int)
    parser.add_argument("--idle-exit", type=float)
    parser.add_argument("--with-services", action="store_true")
    parser.add_argument("--ui", action="store_true")
    asked = parser.parse_args()
    if asked.command == "schema":
        _schema_file().write_text(schema_script(), "utf-8")
        print(f"Wrote {_schema_file()}", file=sys.stderr)
        return 0
    options = ServerOptions(services=asked.with_services, ui=asked.ui, idle_exit_s=asked.idle_exit)
    return _serve(Room.below(asked.home), options, asked.lock_fd)


if __name__ == "__main__":
    sys.exit(main())
