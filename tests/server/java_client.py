"""A Java score-client in small: what it sends, in which order, what it believes, and what it does when it is refused.

    java = JavaClient(server.url, metadata_url=server.url, token=token, version=(5, 12, 0))
    assert java.upload(path, object_id, md5).code == 0
    assert java.waits == []         # it did not have to try anything again
    java.names()                    # every request that it made

Written from sections 11 to 13, 10.2, 16 and 20 of the protocol text alone. Nothing of our client is in it, so that both ends of our own
code cannot agree on the same mistake. It keeps the original's faults: ten rounds without success are success (21.3), for example.

It does not wait: `waits` has what it would have waited. `before` and `after` are called around each request; a `Killed` from there is the
end of the process, in every thread.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, quote, urlsplit

Version = tuple[int, int, int]
HEAD: Final[Version] = (5, 12, 0)
Plane = Literal["score", "song", "store"]
Json = dict[str, Any]

_ROUNDS: Final = 10
_JSON: Final = "application/json, application/*+json"
_TEXT: Final = "text/plain, application/json, application/*+json, */*"
_JDK_ACCEPT: Final = "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"
_INT: Final = 2**31
_KEPT_AS_IT_IS: Final = "!$'()*+,;:@/?~"  # Spring's query variables: a `+` stays one (21.33)
_RSA_BYTES: Final = 256  # what PKCS#1 v1.5 makes of at most 245 bytes under a key of 2048 bits
_PAGE: Final = 2000


class Killed(BaseException):
    """The process is gone. What was sent was sent."""


class Failed(Exception):
    """The command ends with exit code 1."""


class NotRetryable(Exception):
    """400 and 404 of services, 403 and 404 of the store: outer loops may begin again."""


class NotResumable(Exception):
    """401, 403 and 500 of services, 500 of the store: the command ends."""


class Retryable(Exception):
    """Everything else."""


class EntityNotFound(Exception):
    """Whatever goes wrong with Song."""


@dataclass(slots=True)
class Call:
    """One request. `status` is 0 while there is no answer."""

    plane: Plane
    method: str
    url: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0
    received: int = 0

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    @property
    def name(self) -> str:
        """Without object ids and queries: `POST /upload/{id}/parts`, of the store `PUT` and `GET`."""
        if self.plane == "store":
            return self.method
        steps = ["{id}" if step.count("-") == 4 else step for step in self.path.split("/")]
        return f"{self.method} {'/'.join(steps)}"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: exit code, what went to stdout, and why it failed."""

    code: int
    out: str = ""
    why: str = ""


@dataclass(slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Part:
    number: int
    size: int
    offset: int
    url: str | None
    md5: str | None
    source_md5: str | None

    @classmethod
    def of(cls, row: Json) -> Part:
        """Types as Jackson reads them: a number where a Java int is, a text or null where a String is."""
        number, size, offset = row["partNumber"], row["partSize"], row["offset"]
        assert all(type(value) is int for value in (number, size, offset))
        assert number < _INT
        assert size < _INT  # the client maps a part into memory
        assert all(isinstance(row.get(name), str | None) for name in ("url", "md5", "sourceMd5"))
        return cls(number, size, offset, row["url"], row["md5"], row.get("sourceMd5"))

    def json(self) -> Json:
        given = {"partNumber": self.number, "partSize": self.size, "offset": self.offset, "url": self.url, "md5": self.md5}
        return given if self.source_md5 is None else {**given, "sourceMd5": self.source_md5}


def parts_of(spec: Json) -> list[Part]:
    parts = [Part.of(row) for row in spec["parts"]]
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    return parts


@dataclass
class JavaClient:
    """One installation. `attempts` is `storage.retryNumber`; `state_dir` is `client.uploadStateDir`, from 5.4.0 on."""

    url: str
    metadata_url: str | None = None
    token: str = ""
    version: Version = HEAD
    state_dir: Path | None = None
    parallel: int = 6
    attempts: int = 10
    before: Callable[[Call], object] = lambda call: None
    after: Callable[[Call], object] = lambda call: None
    calls: list[Call] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    flavour: str = "s3"
    _dead: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def names(self, *planes: Plane) -> list[str]:
        with self._lock:
            return [call.name for call in self.calls if call.plane in (planes or ("score", "song", "store"))]

    def count(self, name: str) -> int:
        return self.names().count(name)

    # Section 11.1, 11.5: a command

    def _command(self, act: Callable[[], str | None]) -> Ended:
        try:
            self._ask_for_profile()
            return Ended(0, act() or "")
        except EntityNotFound as error:
            return Ended(0, "", f"Entity not found: {error}")
        except (Failed, NotRetryable, NotResumable, Retryable) as error:
            return Ended(1, "", f"Command error: {error}")

    def _ask_for_profile(self) -> None:
        if self.version < (5, 10, 0):
            return
        try:
            said = self._service("GET", "/profile", accept=_TEXT, attempts=1).body.decode()
        except (NotRetryable, NotResumable, Retryable):
            return
        if said not in {"s3", "az"}:
            raise Failed(f"no bean is called {said!r}")
        self.flavour = said

    def _verify_connection(self) -> None:
        url = self._service("GET", "/download/ping", accept=_TEXT).body.decode()
        reply = self._exchange("store", "GET", url, {"Accept": _JDK_ACCEPT}, timeout_s=5)
        if reply.status >= 400:
            raise Failed(f"the store answers {reply.status}")

    # Sections 11.3, 11.4: requests

    def _exchange(
        self,
        plane: Plane,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | None = None,
        *,
        limit: int = -1,
        timeout_s: int = 60,
    ) -> Reply:
        split = urlsplit(url)
        target = url[len(f"{split.scheme}://{split.netloc}") :]  # byte for byte (8)
        call = Call(plane, method, url, headers, sent=len(body or b""))
        with self._lock:
            self._die_if(self._dead)
            self.calls.append(call)
        self._hook(self.before, call)
        connection = http.client.HTTPConnection(split.netloc, timeout=timeout_s)
        try:
            connection.putrequest(method, target, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            content = response.read() if limit < 0 or response.status >= 300 else response.read(limit)
            reply = Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, content)
        except (OSError, http.client.HTTPException) as error:
            raise Retryable(f"{type(error).__name__} of {method} {split.path}") from error
        finally:
            connection.close()
        call.status, call.received = reply.status, len(reply.body)
        self._hook(self.after, call)
        return reply

    def _hook(self, hook: Callable[[Call], object], call: Call) -> None:
        try:
            hook(call)
        except Killed:
            self._dead = True
            raise
        self._die_if(self._dead)

    def _die_if(self, dead: bool) -> None:
        if dead:
            raise Killed

    def _service(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, object]] = (),
        *,
        plane: Plane = "score",
        accept: str = _JSON,
        attempts: int | None = None,
    ) -> Reply:
        """An answer of Score or Song with a good status; tried again as section 11.4 says."""
        base = self.url if plane == "score" else str(self.metadata_url)
        url = base + path + ("?" if query else "") + "&".join(f"{name}={_variable(value)}" for name, value in query)
        headers = {"Accept": accept, "Accept-Encoding": "gzip,deflate", "Connection": "Keep-Alive"}
        if plane == "score":
            headers["User-Agent"] = ".".join(map(str, self.version))
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        body = b"" if method in {"POST", "DELETE"} else None
        if body is not None:
            headers["Content-Length"] = "0"
        return self._again(lambda: _checked(self._exchange(plane, method, url, headers, body)), attempts or self.attempts)

    def _again(self, act: Callable[[], Reply], attempts: int) -> Reply:
        for attempt in range(1, attempts):
            try:
                return act()
            except Retryable:
                self._wait(attempt)
        return act()

    def _wait(self, attempt: int) -> None:
        with self._lock:
            self.waits.append(min(0.1 * 2 ** (attempt - 1), 30.0))

    def _json(self, method: str, path: str, query: Sequence[tuple[str, object]] = (), *, plane: Plane = "score") -> Any:
        """Its JSON, if the type says that it is some; anything else is an I/O error, which is tried again (11.4)."""
        for attempt in range(1, self.attempts + 1):
            reply = self._service(method, path, query, plane=plane)
            try:
                assert reply.headers.get("content-type", "").startswith("application/json")
                return json.loads(reply.body)
            except (AssertionError, ValueError):
                self._wait(attempt)
        raise Retryable(f"no JSON from {method} {path}")

    def _data(self, method: str, url: str, headers: dict[str, str], body: bytes | None = None, *, limit: int = -1) -> Reply:
        """One attempt at a URL of the store, by the JDK's connection."""
        common = {"User-Agent": "Java/11.0.22", "Accept": _JDK_ACCEPT, "Connection": "keep-alive"}
        if body is not None:
            common["Content-Length"] = str(len(body))
        reply = self._exchange("store", method, url, {**common, **headers}, body, limit=limit)
        if reply.status < 300:
            return reply
        why = f"{reply.status} of the store"
        if reply.status in {403, 404}:
            raise NotRetryable(why)
        raise NotResumable(why) if reply.status == 500 else Retryable(why)

    def _token_header(self) -> dict[str, str]:
        """The token under RSA: bytes that look random, or nothing for a token that is too long for that."""
        name = "X-SCORE-TOKEN" if self.version >= HEAD else "X-ICGC-TOKEN"
        fits = len(self.token) <= 245
        return {name: base64.b64encode(secrets.token_bytes(_RSA_BYTES)).decode() if fits and self.token else ""}

    def _in_parallel(self, act: Callable[[Part], None], parts: list[Part]) -> None:
        """All of them, whatever becomes of one; then what went wrong first."""
        with ThreadPoolExecutor(self.parallel) as pool:
            errors = [future.exception() for future in [pool.submit(act, part) for part in parts]]
        found = [error for error in errors if error is not None]
        for error in sorted(found, key=lambda error: not isinstance(error, Killed)):
            raise error

    # Section 12: upload

    def upload(self, path: Path, object_id: str, md5: str, *, force: bool = False, verify_connection: bool = True) -> Ended:
        def act() -> None:
            if verify_connection:
                self._verify_connection()
            self._upload(path, object_id, md5, force=force)

        return self._command(act)

    def upload_manifest(self, rows: list[tuple[str, Path, str]], *, force: bool = False) -> Ended:
        """In order; the first failure ends the run (14.3)."""

        def act() -> None:
            self._verify_connection()
            for object_id, path, md5 in rows:
                self._upload(path, object_id, md5, force=force)

        return self._command(act)

    def _upload(self, path: Path, object_id: str, md5: str, *, force: bool) -> None:
        size = path.stat().st_size
        if not size:
            raise Failed("the file is empty")
        if self._json("GET", f"/upload/{object_id}") and not force:
            raise Failed("the object exists")
        redo = force
        for _ in range(_ROUNDS):
            try:
                if redo:
                    self._send_anew(path, object_id, md5)
                else:
                    self._resume_upload(path, object_id, md5)
                return
            except NotRetryable:
                try:
                    self._service("POST", f"/upload/{object_id}/recovery", [("fileSize", size)])
                    redo = False
                except NotRetryable:
                    redo = True
        # all rounds used up, and still the method returns (21.3)

    def _resume_upload(self, path: Path, object_id: str, md5: str) -> None:
        local = self._local_upload_id(path, object_id)
        try:
            progress = self._json("GET", f"/upload/{object_id}/status", [("fileSize", path.stat().st_size)])
        except NotRetryable:
            return self._send_anew(path, object_id, md5)
        if local is None or local.lower() != progress["uploadId"].lower():
            raise Failed("somebody else uploads this object")
        try:
            return self._send(path, object_id, progress["uploadId"], parts_of(progress))
        except NotRetryable:
            return self._send_anew(path, object_id, md5)

    def _send_anew(self, path: Path, object_id: str, md5: str) -> None:
        query = [("fileSize", path.stat().st_size), ("overwrite", "true"), ("md5", md5)]
        try:
            spec = self._json("POST", f"/upload/{object_id}/uploads", query)
        except NotRetryable as error:
            raise Failed(str(error)) from error
        folder = self._upload_state(path, object_id)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "uploadId").write_text(spec["uploadId"] + "\n")
        self._send(path, object_id, spec["uploadId"], parts_of(spec))

    def _send(self, path: Path, object_id: str, upload_id: str, parts: list[Part]) -> None:
        data = path.read_bytes()

        def send(part: Part) -> None:
            self._send_part(object_id, upload_id, part, data[part.offset : part.offset + part.size])

        self._in_parallel(send, [part for part in parts if part.md5 is None])
        self._service("POST", f"/upload/{object_id}", [("uploadId", upload_id)])
        shutil.rmtree(self._upload_state(path, object_id), ignore_errors=True)

    def _send_part(self, object_id: str, upload_id: str, part: Part, data: bytes) -> None:
        for attempt in range(1, self.attempts + 1):
            try:
                return self._try_part(object_id, upload_id, part, data)
            except Retryable as error:
                if attempt == self.attempts:
                    raise Failed(f"part {part.number}: {error}") from error
                self._wait(attempt)
        return None

    def _try_part(self, object_id: str, upload_id: str, part: Part, data: bytes) -> None:
        assert part.url is not None
        reply = self._data("PUT", part.url, {}, data)
        md5, etag = hashlib.md5(data).hexdigest(), reply.headers["etag"].replace('"', "")
        if etag != md5 and reply.headers.get("x-amz-server-side-encryption") != "aws:kms":
            raise Retryable("the ETag is not the MD5")
        record = [("uploadId", upload_id), ("partNumber", part.number), ("md5", md5), ("etag", etag)]
        try:
            self._service("POST", f"/upload/{object_id}/parts", record)
        except NotRetryable as error:
            raise Retryable(str(error)) from error

    def _upload_state(self, path: Path, object_id: str) -> Path:
        return (self.state_dir if self.state_dir and self.version >= (5, 4, 0) else path.parent) / f".{object_id}"

    def _local_upload_id(self, path: Path, object_id: str) -> str | None:
        try:
            return (self._upload_state(path, object_id) / "uploadId").read_text().strip()
        except OSError:
            return None

    # Section 13: download

    def download(
        self,
        out: Path,
        *object_ids: str,
        analysis: tuple[str, str] | None = None,
        layout: Literal["filename", "bundle", "id"] = "filename",
        offset: int = 0,
        length: int = -1,
        index: bool = True,
        force: bool = False,
        validate: bool = True,
        verify_connection: bool = True,
    ) -> Ended:
        """`analysis` is (study, analysis id). Not in here: manifests, which are lists of ids."""

        def act() -> None:
            if verify_connection:
                self._verify_connection()
            out.mkdir(exist_ok=True)
            wanted = self._wanted(object_ids, analysis, index=index)
            self._check_space(out, wanted)
            targets = {_target(out, entity, layout): entity for entity in wanted}
            for target in targets if force else ():
                target.unlink(missing_ok=True)
            for target, entity in targets.items():
                if target.exists() and not force:
                    continue
                self._download(out, entity["id"], (offset, length), force=force, validate=validate)
                target.parent.mkdir(exist_ok=True)
                (out / entity["id"]).replace(target)

        return self._command(act)

    def _wanted(self, object_ids: Sequence[str], analysis: tuple[str, str] | None, *, index: bool) -> list[Json]:
        if analysis is not None:
            study, analysis_id = analysis
            found = list(self._entities([("gnosId", analysis_id), ("projectCode", study)]))
        else:
            found = [self._song(f"/entities/{object_id}") for object_id in object_ids]
        if index:
            found += [other for entity in list(found) if (other := self._index_of(entity)) is not None]
        return list({entity["id"]: entity for entity in found}.values())

    def _song(self, path: str, query: Sequence[tuple[str, object]] = ()) -> Any:
        try:
            return json.loads(self._service("GET", path, query, plane="song", attempts=1).body)
        except (NotRetryable, NotResumable, Retryable, ValueError) as error:
            raise EntityNotFound(path) from error

    def _entities(self, query: Sequence[tuple[str, object]], path: str = "/entities") -> Iterator[Json]:
        seen: set[str] = set()
        page, is_last = 0, False
        while not is_last:
            answer = self._song(path, [*query, ("size", _PAGE), ("page", page)])
            for entity in answer["content"]:
                if entity["id"] not in seen:
                    seen.add(entity["id"])
                    yield entity
            page, is_last = page + 1, answer["last"]

    def _index_of(self, entity: Json) -> Json | None:
        names = {f"{entity['fileName']}{end}".lower() for end in (".crai", ".bai", ".tbi", ".idx")}
        return next((other for other in self._entities([("gnosId", entity["gnosId"])]) if other["fileName"].lower() in names), None)

    def _spec(self, object_id: str, offset: int = 0, length: int = -1, *, external: bool = False) -> Json:
        query: list[tuple[str, object]] = [("offset", offset), ("length", length)]
        found = self._json("GET", f"/download/{object_id}", [*query, ("external", "true")] if external else query)
        assert isinstance(found["objectSize"], int)
        assert isinstance(found["uploadId"], str)
        return dict(found)

    def _check_space(self, out: Path, wanted: list[Json]) -> None:
        if sum(self._spec(entity["id"])["objectSize"] for entity in wanted) > shutil.disk_usage(out).free:
            raise Failed("not enough space")

    def _download(self, out: Path, object_id: str, wanted: tuple[int, int], *, force: bool, validate: bool) -> None:
        redo = force
        for number in range(_ROUNDS):
            spec: Json | None = None
            try:
                spec = None if redo else self._resumable(out, object_id, check=number == 0)
                if spec is None:
                    spec = self._begin_download(out, object_id, wanted)
                self._fetch(out, spec)
                if validate:
                    self._validate(out, spec)
                return
            except NotRetryable:
                data = out / object_id
                redo = spec is None or not data.exists() or data.stat().st_size != spec["objectSize"]
            except Retryable:
                redo = True
        raise Failed("ten rounds, and no file")

    def _begin_download(self, out: Path, object_id: str, wanted: tuple[int, int]) -> Json:
        (out / object_id).unlink(missing_ok=True)
        spec = self._spec(object_id, *wanted)
        folder = out / f".{object_id}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "meta").write_text(json.dumps(spec))
        return spec

    def _resumable(self, out: Path, object_id: str, *, check: bool) -> Json | None:
        """What is left of an earlier run, its finished parts with their `md5`; None if there is nothing that can be used."""
        folder = out / f".{object_id}"
        try:
            spec = json.loads((folder / "meta").read_text())
            for row in spec["parts"]:
                marker = _marker(folder, row["partNumber"])
                if marker.exists():
                    row["md5"] = json.loads(marker.read_text())["md5"]
        except (OSError, ValueError, KeyError):
            return None
        if any(row["md5"] is None and expires_at(row["url"]) <= time.time() for row in spec["parts"]):
            return None
        if check:
            self._check_finished(out, spec)
        return dict(spec)

    def _check_finished(self, out: Path, spec: Json) -> None:
        data = (out / spec["objectId"]).read_bytes()
        begin = _begin(spec)
        for row in spec["parts"]:
            position = row["offset"] - begin
            actual = hashlib.md5(data[position : position + row["partSize"]]).hexdigest()
            if row["md5"] is not None and row.get("sourceMd5") != actual:
                row["md5"] = None
                _marker(out / f".{spec['objectId']}", row["partNumber"]).unlink()

    def _fetch(self, out: Path, spec: Json) -> None:
        target, folder, begin = out / spec["objectId"], out / f".{spec['objectId']}", _begin(spec)
        parts = parts_of(spec)
        if not parts:
            raise Failed("ArithmeticException: / by zero")  # its progress meter (6.4)
        with target.open("ab") as file:
            file.truncate(sum(part.size for part in parts))
        descriptor = os.open(target, os.O_WRONLY)

        def fetch(part: Part) -> None:
            data = self._fetch_part(part)
            os.pwrite(descriptor, data, part.offset - begin)
            done = Part(part.number, part.size, part.offset, part.url, hashlib.md5(data).hexdigest(), part.source_md5)
            _marker(folder, part.number).write_text(json.dumps(done.json()))

        try:
            self._in_parallel(fetch, [part for part in parts if part.md5 is None])
        finally:
            os.close(descriptor)
        if not all(_marker(folder, part.number).exists() for part in parts):
            raise Retryable("a part is missing")
        shutil.rmtree(folder)

    def _fetch_part(self, part: Part) -> bytes:
        assert part.url is not None
        headers = {"Range": f"bytes={part.offset}-{part.offset + part.size - 1}", **self._token_header()}
        for attempt in range(1, self.attempts + 1):
            try:
                data = self._data("GET", part.url, headers, limit=part.size).body
                if (part.source_md5 or "").strip() and hashlib.md5(data).hexdigest() != part.source_md5:
                    raise Retryable(f"part {part.number} has another MD5")
                return data
            except Retryable:
                if attempt == self.attempts:
                    raise
                self._wait(attempt)
        raise AssertionError

    def _validate(self, out: Path, spec: Json) -> None:
        wanted = spec["objectMd5"]
        digest = hashlib.md5((out / spec["objectId"]).read_bytes())
        if wanted is not None and wanted not in {digest.hexdigest(), base64.b64encode(digest.digest()).decode()}:
            raise Retryable("the file has another MD5")

    # Sections 14.4, 16, 17: url, mount, view

    def external_url(self, object_id: str) -> Ended:
        def act() -> str:
            spec = self._spec(object_id, external=True)
            if len(spec["parts"]) != 1:
                raise Failed("not one part")
            return str(spec["parts"][0]["url"])

        return self._command(act)

    def mount(self) -> Ended:
        """What the mounted folder would list: a line per file that is both in Song and in the listing, `analysis/name size`."""

        def act() -> str:
            fields = [("fields", name) for name in ("id", "fileName", "gnosId")]
            entities = list(self._entities(fields, "/entities/"))
            objects = {row["id"]: row for row in self._json("GET", "/listing")}
            self._probe(entities)
            for row in objects.values():
                datetime.fromtimestamp(row["lastModified"] / 1000)  # noqa: DTZ006  # only that it is a time
            both = [entity for entity in entities if entity["id"] in objects]
            return "\n".join(sorted(f"{entity['gnosId']}/{entity['fileName']} {objects[entity['id']]['size']}" for entity in both))

        return self._command(act)

    def _probe(self, entities: list[Json]) -> None:
        """Opens the last entity of all Song: denied there means denied."""
        url = self._spec(entities[-1]["id"], external=True)["parts"][0]["url"]
        if self._exchange("store", "GET", url, {"Range": "bytes=0-0"}, timeout_s=30).status >= 400:
            raise Failed("access is denied")

    def read(self, url: str, position: int, size: int, count: int) -> bytes:
        """A mounted file's read: from there to the end of the object, of which `count` bytes are taken (16.3)."""
        return self._data("GET", url, {"Range": f"bytes={position}-{size - 1}"}, limit=count).body


def _checked(reply: Reply) -> Reply:
    """Section 11.4, first table."""
    if reply.headers.get("content-encoding") == "gzip":
        reply.body = gzip.decompress(reply.body)
    if reply.status < 400:
        return reply
    why = f"{reply.status} {reply.body.decode(errors='replace')[:500]}"
    if reply.status in {400, 404}:
        raise NotRetryable(why)
    raise NotResumable(why) if reply.status in {401, 403, 500} else Retryable(why)


def _variable(value: object) -> str:
    return quote(str(value), safe=_KEPT_AS_IT_IS)


def _begin(spec: Json) -> int:
    return int(spec["parts"][0]["offset"]) if spec["parts"] else 0


def _marker(folder: Path, number: int) -> Path:
    return folder / f"part-{number:08x}"


def _target(out: Path, entity: Json, layout: str) -> Path:
    if layout == "id":
        return out / str(entity["id"])
    return (out / str(entity["gnosId"]) if layout == "bundle" else out) / str(entity["fileName"])


def expires_at(url: str) -> float:
    """Section 8: names that are unique ignoring case, and one of two spellings of the expiry. Otherwise the command ends in an error."""
    pairs = parse_qsl(urlsplit(url).query, keep_blank_values=True, strict_parsing=True)
    query = {name.lower(): value for name, value in pairs}
    if len(query) != len(pairs):
        raise Failed("IllegalStateException: duplicate key")
    if "x-amz-date" in query and "x-amz-expires" in query:
        signed = datetime.strptime(query["x-amz-date"] + "+0000", "%Y%m%dT%H%M%SZ%z")
        return signed.timestamp() + int(query["x-amz-expires"])
    if "expires" in query:
        return float(int(query["expires"]))
    raise Failed("the URL does not say until when it is good")
