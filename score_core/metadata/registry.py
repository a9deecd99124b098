"""The embedded registry: the part of Song that transfers rest on, in one SQLite file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from score_core.errors import ConfigurationError, Conflict, LocalFileError, NoSpaceError, ObjectNotFound, ScoreError, Unavailable
from score_core.ids import check_object_id
from score_core.metadata.base import Analysis, AnalysisState, Entity, FileRecord, StateChange
from score_core.metadata.payload import check_study_id, read_payload
from score_core.model import ObjectSpec

_VERSION: Final = 1
_APPLICATION: Final = 0x5C07E001  # marks the file as ours (PRAGMA application_id)
_PAGE: Final = 1000
_CONVERT_S: Final = 0.02
_SCHEMA: Final = (
    "CREATE TABLE study (id TEXT PRIMARY KEY NOT NULL)",
    """CREATE TABLE analysis (
        id TEXT PRIMARY KEY NOT NULL,
        study_id TEXT NOT NULL REFERENCES study,
        state TEXT NOT NULL CHECK (state IN ('UNPUBLISHED', 'PUBLISHED', 'SUPPRESSED')),
        type_name TEXT NOT NULL,
        type_version INTEGER,
        details TEXT NOT NULL,
        created_at REAL NOT NULL
    )""",
    # Files are never deleted, so that `position` only grows: pages by it stay stable while others register.
    """CREATE TABLE file (
        position INTEGER PRIMARY KEY,
        object_id TEXT NOT NULL UNIQUE,
        analysis_id TEXT NOT NULL REFERENCES analysis,
        study_id TEXT NOT NULL REFERENCES study,
        name TEXT NOT NULL,
        size INTEGER NOT NULL CHECK (size >= 0),
        md5 TEXT NOT NULL CHECK (length(md5) = 32),
        type TEXT NOT NULL,
        access TEXT NOT NULL CHECK (access IN ('open', 'controlled')),
        data_type TEXT NOT NULL,
        info TEXT NOT NULL,
        UNIQUE (analysis_id, name)
    )""",
    "CREATE INDEX file_of_study ON file (study_id, position)",
    """CREATE TABLE change (
        position INTEGER PRIMARY KEY,
        analysis_id TEXT NOT NULL REFERENCES analysis,
        before TEXT NOT NULL,
        after TEXT NOT NULL,
        at REAL NOT NULL
    )""",
    "CREATE INDEX change_of_analysis ON change (analysis_id)",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_VERSION}",
)


class HoldsObjects(Protocol):
    """What publishing needs of a `Repository`."""

    def exists(self, object_id: str) -> bool: ...

    def describe(self, object_id: str) -> ObjectSpec: ...


class Registry:
    """`Metadata` in the SQLite file at `path`, made with its folder if missing. Several threads and processes may use one file.

    `repository` is asked at publishing whether the files are stored as registered. A study comes into being with its first analysis.
    The file must be on a local disk: SQLite's write-ahead log needs memory that all its processes share. `clock` gives seconds since
    the epoch. What goes wrong with what callers ask for is said without naming the file: servers pass that on to strangers.

    Raises:
        ConfigurationError: the file is another program's database, or was made by a newer version.
        LocalFileError: it cannot be opened, or is no database.
        Unavailable: another process held it for longer than `busy_s` seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        repository: HoldsObjects | None = None,
        busy_s: float = 30.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._repository = repository
        self._busy_s = busy_s
        self._clock = clock
        self._lock = threading.Lock()  # one connection: statements take microseconds, and SQLite has one writer anyway
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise LocalFileError(f"The folder of {self.label} cannot be made: {error.strerror}") from error
        with self._explained():
            self._db = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    @property
    def label(self) -> str:
        return f"the registry {self._path}"

    # Reading

    def entity(self, object_id: str) -> Entity:
        object_id = check_object_id(object_id)
        rows = self._rows("SELECT object_id, analysis_id, name, study_id, access FROM file WHERE object_id = ?", object_id)
        if not rows:
            raise ObjectNotFound(f"Object {object_id} is not registered; check the id", status=404)
        return Entity(*rows[0])

    def entities(self, *, analysis_id: str | None = None, study_id: str | None = None) -> Iterator[Entity]:
        wanted = {"analysis_id": analysis_id, "study_id": study_id}
        given = {column: value for column, value in wanted.items() if value is not None}
        conditions = "".join(f" AND {column} = ?" for column in given)
        query = f"SELECT position, object_id, analysis_id, name, study_id, access FROM file WHERE position > ?{conditions}"  # noqa: S608  # two fixed names
        position = 0
        while rows := self._rows(f"{query} ORDER BY position LIMIT {_PAGE}", position, *given.values()):
            yield from (Entity(*row[1:]) for row in rows)
            position = rows[-1][0]

    def state(self, study_id: str, analysis_id: str) -> AnalysisState:
        rows = self._rows("SELECT state FROM analysis WHERE id = ? AND study_id = ?", analysis_id, study_id)
        if not rows:
            raise _unknown(study_id, analysis_id)
        state: AnalysisState = rows[0][0]
        return state

    def analysis(self, study_id: str, analysis_id: str) -> Analysis:
        with self._transaction("DEFERRED") as db:
            found = _read_analysis(db, analysis_id)
        if found is None or found.study_id != study_id:
            raise _unknown(study_id, analysis_id)
        return found

    def studies(self) -> Sequence[str]:
        return [row[0] for row in self._rows("SELECT id FROM study ORDER BY id")]

    # Writing

    def add_study(self, study_id: str) -> None:
        check_study_id(study_id)
        with self._transaction() as db:
            if db.execute("INSERT INTO study VALUES (?) ON CONFLICT DO NOTHING", (study_id,)).rowcount == 0:
                raise Conflict(f"Study {study_id} exists already", status=409)

    def submit(self, study_id: str, payload: Mapping[str, Any]) -> str:
        """As in the Protocol. The same analysis again gives the same id and changes nothing, whatever its state."""
        new = dataclasses.replace(read_payload(study_id, payload), created_at=self._clock())
        with self._transaction() as db:
            known = _read_analysis(db, new.analysis_id)
            if known is None:
                _insert(db, new)
            elif dataclasses.replace(known, state=new.state, created_at=new.created_at, history=()) != new:
                raise Conflict(
                    f"Analysis {new.analysis_id} is registered with something else; give the new one another analysisId",
                    status=409,
                )
        return new.analysis_id

    def publish(self, study_id: str, analysis_id: str, *, ignore_undefined_md5: bool = False) -> None:
        analysis = self.analysis(study_id, analysis_id)
        if analysis.state == "UNPUBLISHED":  # the store is asked outside of any transaction: it may take its time
            if self._repository is None:
                raise ConfigurationError("Nothing can be published: the registry was opened without the store that holds the files")
            for file in analysis.files:
                _check_stored(self._repository, file, ignore_undefined_md5=ignore_undefined_md5)
        self._change(study_id, analysis_id, "PUBLISHED", since=analysis.history)

    def unpublish(self, study_id: str, analysis_id: str) -> None:
        self._change(study_id, analysis_id, "UNPUBLISHED")

    def suppress(self, study_id: str, analysis_id: str) -> None:
        self._change(study_id, analysis_id, "SUPPRESSED")

    def _change(self, study_id: str, analysis_id: str, after: AnalysisState, *, since: tuple[StateChange, ...] | None = None) -> None:
        """A change to the state that it is in already is none, so that a lost answer can be asked for again.

        With `since`, the history that the caller's decision rests on, somebody else's change in between is a `Conflict`.
        """
        with self._transaction() as db:
            found = _read_analysis(db, analysis_id)
            if found is None or found.study_id != study_id:
                raise _unknown(study_id, analysis_id)
            if found.state == after:
                return
            if found.state == "SUPPRESSED":
                raise Conflict(f"Analysis {analysis_id} is SUPPRESSED, and that is final; register its files anew", status=409)
            if since not in {None, found.history}:
                raise Conflict(f"Analysis {analysis_id} was changed by somebody else meanwhile; look at it and try again", status=409)
            db.execute("UPDATE analysis SET state = ? WHERE id = ?", (after, analysis_id))
            db.execute(
                "INSERT INTO change (analysis_id, before, after, at) VALUES (?, ?, ?, ?)", (analysis_id, found.state, after, self._clock())
            )

    # The file

    def check(self) -> None:
        self._rows("SELECT 1 FROM study LIMIT 1")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _prepare(self) -> None:
        with self._explained():
            self._use_write_ahead_log()
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.execute("PRAGMA synchronous = FULL")  # what was answered survives a power cut
        with self._transaction("DEFERRED") as db:  # waits for nobody, as long as there is nothing to make
            if self._is_made(db):
                return
        with self._transaction() as db:  # of several processes one makes the tables, and the others find them
            if not self._is_made(db):
                for statement in _SCHEMA:
                    db.execute(statement)

    def _is_made(self, db: sqlite3.Connection) -> bool:
        """Whether the tables are there. Raises `ConfigurationError` when others are, or newer ones."""
        ((version,), (application,)) = (db.execute(f"PRAGMA {name}").fetchone() for name in ("user_version", "application_id"))
        if application != _APPLICATION and (version or application or db.execute("SELECT 1 FROM sqlite_master").fetchone()):
            raise ConfigurationError(f"{self._path} is a database of another program; choose another file for the registry")
        if version > _VERSION:
            raise ConfigurationError(f"{self.label} was made by a newer version (schema {version}, known is {_VERSION}); update this one")
        return bool(version)

    def _use_write_ahead_log(self) -> None:
        """Readers and the writer do not wait for each other then.

        SQLite does not wait by itself for the exclusive lock that the conversion needs: the busy handler is not asked.
        """
        deadline = time.monotonic() + self._busy_s
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(_CONVERT_S)

    def _rows(self, query: str, *values: str | int) -> list[tuple[Any, ...]]:
        with self._lock, self._explained():
            return self._db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self, kind: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """All or nothing. IMMEDIATE takes the write lock at once, so that what was read is still true when it writes."""
        with self._lock, self._explained():
            self._db.execute(f"BEGIN {kind}")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite rolls back by itself when the disk is full
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # our own mistake, or it is closed
        except UnicodeEncodeError:  # half a surrogate pair, where SQLite is given a text
            raise ConfigurationError("An id is no valid text") from None
        except sqlite3.Error as error:
            raise self._problem(error) from error

    def _problem(self, error: sqlite3.Error) -> ScoreError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return Unavailable(f"Another process holds {self.label}; try again")
        if code == sqlite3.SQLITE_FULL:
            return NoSpaceError(f"No space left for {self.label}; free some space and try again")
        if code in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
            return LocalFileError(f"{self._path} is not a registry, or is damaged ({error}); restore it from a copy or choose another file")
        return LocalFileError(f"{self.label} cannot be used: {error}; check the rights of the file and of its folder")


def _unknown(study_id: str, analysis_id: str) -> ObjectNotFound:
    return ObjectNotFound(f"Analysis {analysis_id[:80]} of study {study_id[:80]} is not registered; check both ids", status=404)


def _read_analysis(db: sqlite3.Connection, analysis_id: str) -> Analysis | None:
    query = "SELECT study_id, state, type_name, type_version, details, created_at FROM analysis WHERE id = ?"
    row = db.execute(query, (analysis_id,)).fetchone()
    if row is None:
        return None
    study_id, state, type_name, type_version, details, created_at = row
    query = "SELECT object_id, study_id, analysis_id, name, size, md5, type, access, data_type, info FROM file WHERE analysis_id = ?"
    files = (FileRecord(*(*fields, json.loads(info))) for *fields, info in db.execute(f"{query} ORDER BY position", (analysis_id,)))
    query = "SELECT before, after, at FROM change WHERE analysis_id = ? ORDER BY position"
    history = (StateChange(*change) for change in db.execute(query, (analysis_id,)))
    return Analysis(analysis_id, study_id, state, tuple(files), type_name, type_version, json.loads(details), created_at, tuple(history))


def _insert(db: sqlite3.Connection, new: Analysis) -> None:
    db.execute("INSERT INTO study VALUES (?) ON CONFLICT DO NOTHING", (new.study_id,))
    db.execute(
        "INSERT INTO analysis VALUES (?, ?, ?, ?, ?, ?, ?)",
        (new.analysis_id, new.study_id, new.state, new.type_name, new.type_version, json.dumps(new.details), new.created_at),
    )
    db.executemany(
        "INSERT INTO file (object_id, analysis_id, study_id, name, size, md5, type, access, data_type, info)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                file.object_id,
                file.analysis_id,
                file.study_id,
                file.file_name,
                file.size,
                file.md5,
                file.file_type,
                file.access,
                file.data_type,
                json.dumps(file.info),
            )
            for file in new.files
        ],
    )


def _check_stored(repository: HoldsObjects, file: FileRecord, *, ignore_undefined_md5: bool) -> None:
    """Raises `Conflict` unless the file is stored with the registered size and MD5 (protocol section 10.4)."""
    what = f"File {file.file_name} (object {file.object_id})"
    try:
        stored = repository.describe(file.object_id) if repository.exists(file.object_id) else None
    except ObjectNotFound:
        stored = None
    if stored is None:
        raise Conflict(f"{what} is not stored yet; upload it, then publish", status=409)
    if stored.size != file.size:
        raise Conflict(f"{what} is stored with {stored.size:,} bytes and registered with {file.size:,}; upload the right one", status=409)
    if stored.md5 is None and not ignore_undefined_md5:
        raise Conflict(
            f"{what} is stored without an MD5 and registered with {file.md5}; upload it again, or publish ignoring undefined MD5s",
            status=409,
        )
    if stored.md5 not in {None, file.md5}:
        raise Conflict(f"{what} is stored with MD5 {stored.md5} and registered with {file.md5}; upload the right one", status=409)
