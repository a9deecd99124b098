"""A stand-in for a Java Score server and the S3 store behind it, on two loopback ports; written from the protocol's text alone.

    with JavaServer() as server:
        client = ServiceClient(server.url, name="The Score server", token=Token(server.token))
        server.inject("finalise", Fault(status=503), times=2)
        ...
        assert server.count("record") == 3

It behaves as HEAD (5.12); `version` makes it an older one where section 20 names a difference. Nothing here is shared with our server or
with `DirectRepository`, so that both ends of our own code cannot agree on the same mistake.
"""

from __future__ import annotations

import base64
import calendar
import copy
import hashlib
import hmac
import json
import os
import re
import secrets
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Literal, Self
from urllib.parse import parse_qs, parse_qsl, quote, urlsplit

BUCKET: Final = "score.data"
MAX_PARTS: Final = 10_000
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_RANGE: Final = re.compile(r"bytes=(\d+)-(\d+)")
_REASONS: Final = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 500: "Internal Server Error"}

Version = tuple[int, int, int]
HEAD: Final[Version] = (5, 12, 0)

Json = dict[str, Any]


class Refusal(Exception):
    """An answer of section 3.2, or of the store when it has a `code`."""

    def __init__(self, status: int, code: str = "", text: str = "") -> None:
        super().__init__(status, code)
        self.status = status
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class Fault:
    """What meets one request instead of the honest answer.

    With `does` the server does what it is asked to first, with `later_s` in the background after it has answered. Then the answer is
    `status`, or, with `drop`, a reset connection. `act` is called before anything else, `wait_s` is how slow the answer is.
    """

    status: int | None = None
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    does: bool = False
    later_s: float | None = None
    drop: bool = False
    wait_s: float = 0.0
    act: Callable[[], object] | None = None


@dataclass(slots=True)
class Seen:
    """One request. `what` is its name here (`initiate`, `record`, ..., of the store `put` and `get`)."""

    what: str
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    status: int = 0

    @property
    def part(self) -> int:
        return int(self.query.get("partNumber", 0))

    @property
    def object_id(self) -> str:
        return self.path.rsplit("/", maxsplit=1)[-1] if self.what in {"put", "get"} else self.path.split("/")[2]

    @property
    def has_token(self) -> bool:
        return "authorization" in self.headers


@dataclass(slots=True)
class _Rule:
    what: str
    fault: Fault
    left: int | None
    when: Callable[[Seen], bool]


@dataclass(slots=True)
class _Object:
    data: bytes
    etag: str
    modified_at: float


@dataclass(slots=True)
class _State:
    """An upload in progress as Score keeps it: the specification, and records whose names are all there is to them (5.3)."""

    spec: Json
    records: set[str] = field(default_factory=set)

    def sorted_records(self) -> list[Json]:
        return [json.loads(name.split("|", 1)[1]) for name in sorted(self.records)]


@dataclass(slots=True)
class _Multipart:
    object_id: str
    parts: dict[int, tuple[bytes, str]] = field(default_factory=dict)


Answer = tuple[int, dict[str, str], bytes]


class JavaServer:
    """Both servers, from `__init__` to `close`. Set attributes to change how it behaves; all of it is thread-safe.

    `part_size` stands for Score's floor of 20 MiB. `tokens` maps each accepted token to its scopes.
    """

    def __init__(self, *, part_size: int = 64 << 10, version: Version = HEAD) -> None:
        self.part_size = part_size
        self.version = version
        self.token = "java-token-" + secrets.token_hex(16)
        self.tokens: dict[str, set[str]] = {self.token: {"READ", "WRITE"}}
        self.open_access = False
        self.flavour: Literal["s3", "az"] = "s3"
        self.unknown_to_song: set[str] = set()
        self.states: dict[str, str] = {}  # analysis states by object id; others may do anything
        self.etags: Literal["md5", "kms", "opaque"] = "md5"
        self.checks_content_md5 = True
        self.signature: Literal["v4", "v2"] = "v4"
        self.put_life_s = 6 * 86_400 - 1
        self.get_life_s = 86_400
        self.clock_ahead_s = 0.0
        self.loses_meta = False  # D4: completes, and answers 200, without writing `.meta`
        self.sentinel = "heliograph"

        self.seen: list[Seen] = []
        self.objects: dict[str, _Object] = {f"data/{self.sentinel}": _Object(b"sun", "sun", time.time())}
        self.metas: dict[str, Json] = {}
        self.uploads: dict[tuple[str, str], _State] = {}
        self.multiparts: dict[str, _Multipart] = {}
        self.completions: Counter[str] = Counter()
        self._rules: list[_Rule] = []
        self._key = secrets.token_bytes(16)
        self._lock = threading.RLock()
        self.closing = threading.Event()
        self._control = _Server(self, _Control)
        self._data = _Server(self, _Data)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._control.server_address[1]}"

    @property
    def data_url(self) -> str:
        return f"http://127.0.0.1:{self._data.server_address[1]}"

    def now(self) -> float:
        return time.time() + self.clock_ahead_s

    # What tests say and ask

    def inject(self, what: str, fault: Fault, *, times: int | None = None, when: Callable[[Seen], bool] = lambda seen: True) -> None:
        """From now on `fault` meets requests of the name `what`, `times` of them at most."""
        with self._lock:
            self._rules.append(_Rule(what, fault, times, when))

    def heal(self) -> None:
        with self._lock:
            self._rules.clear()

    def forget(self) -> None:
        """Counts from nothing again."""
        self.seen.clear()

    def count(self, what: str) -> int:
        return len(self.all(what))

    def all(self, what: str) -> list[Seen]:
        return [seen for seen in list(self.seen) if seen.what == what]

    def puts(self) -> dict[int, int]:
        """How often each part was sent, by number."""
        return dict(Counter(seen.part for seen in self.all("put")))

    def control_calls(self) -> int:
        return sum(1 for seen in list(self.seen) if seen.what not in {"put", "get"})

    def stored(self, object_id: str) -> bytes:
        return self.objects[f"data/{object_id}"].data

    def is_published(self, object_id: str) -> bool:
        return object_id in self.metas

    def in_progress(self, object_id: str) -> list[str]:
        return sorted(upload_id for found, upload_id in self.uploads if found == object_id)

    def expire_urls(self, *, by_s: float = 7 * 86_400) -> None:
        """Lets time pass for the signatures of uploads in progress: what is stored of them, and their URLs, get older."""
        for state in self.uploads.values():
            for part in state.spec["parts"]:
                query = parse_qsl(urlsplit(part["url"]).query)
                number, upload_id = (dict(query)[name] for name in ("partNumber", "uploadId"))
                part["url"] = self._sign(
                    "PUT", state.spec["objectId"], self.put_life_s, at=self.now() - by_s, partNumber=number, uploadId=upload_id
                )

    def drop_multiparts(self) -> None:
        """The store forgets its uploads behind Score's back, as a lifecycle rule does."""
        self.multiparts.clear()

    def drop_uploads(self) -> None:
        """Both forget: as when somebody has aborted the uploads."""
        self.multiparts.clear()
        self.uploads.clear()

    def store_without_meta(self, object_id: str, data: bytes) -> None:
        """An object that was put into the bucket by hand (3.6, step 5)."""
        self.objects[f"data/{object_id}"] = _Object(data, _md5(data), time.time())

    def close(self) -> None:
        self.closing.set()
        for server in (self._control, self._data):
            server.shutdown()
            server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def fault_for(self, seen: Seen) -> Fault | None:
        with self._lock:
            self.seen.append(seen)
            for rule in self._rules:
                if rule.what == seen.what and rule.left != 0 and rule.when(seen):
                    rule.left = None if rule.left is None else rule.left - 1
                    return rule.fault
        return None

    # Section 9

    def authorise(self, seen: Seen) -> None:
        scheme, _, token = seen.headers.get("authorization", "").partition(" ")
        scopes = self.tokens.get(token) if scheme == "Bearer" else set()
        if scopes is None:
            raise Refusal(401)
        if seen.path.startswith("/upload/"):
            if "authorization" not in seen.headers and seen.what != "cancel all":
                raise Refusal(400)
            if "WRITE" not in scopes:
                raise Refusal(403)
        elif seen.what == "download":
            if "READ" not in scopes and not self.open_access:
                self._entity(seen.object_id)  # 404 before 403
                raise Refusal(403)
        elif seen.what in {"profile", "listing", "unknown"} and not scheme:
            raise Refusal(401)

    def _entity(self, object_id: str) -> None:
        if object_id in self.unknown_to_song:
            raise Refusal(404)

    def _require_state(self, object_id: str, state: str) -> None:
        self._entity(object_id)
        if self.states.get(object_id, state) != state:
            raise Refusal(400)

    # Section 3. Each answers a body: JSON, a text, or nothing.

    def serve(self, seen: Seen) -> Any:
        with self._lock:
            self.authorise(seen)
            handler = getattr(self, "_" + seen.what.replace(" ", "_"), None)
            if handler is None or (seen.what == "profile" and self.version < (5, 10, 0)):
                raise Refusal(404)
            if self.flavour == "az" and seen.what in {"status", "record", "unrecord", "finalise", "abort"}:
                return None
            return handler(seen)

    def _profile(self, _: Seen) -> str:
        return self.flavour

    def _health(self, _: Seen) -> Json:
        return {"status": "UP"}

    def _ping(self, _: Seen) -> str:
        if not self.sentinel:
            raise Refusal(400)
        return self._sign("GET", self.sentinel, 300)

    def _listing(self, _: Seen) -> list[Json]:
        return [
            {"id": name, "lastModified": int(found.modified_at * 1000), "size": len(found.data)}
            for key, found in sorted(self.objects.items())
            if _UUID.fullmatch(name := key.removeprefix("data/"))
        ]

    def _exists(self, seen: Seen) -> bool:
        return seen.object_id in self.metas

    def _download(self, seen: Seen) -> Json:
        object_id = seen.object_id
        offset, length = _number(seen, "offset"), _number(seen, "length")
        external, bare = _flag(seen, "external"), _flag(seen, "exclude-urls")
        if not bare:
            self._require_state(object_id, "PUBLISHED")
        if offset < 0:
            raise Refusal(500)
        spec = self._stored_spec(object_id, offset, length)
        if external or offset or length >= 0:
            spec = self._respec(spec, offset, length, external=external)
        for part in spec["parts"]:
            byte_range = None if external else f"bytes={part['offset']}-{part['offset'] + part['partSize'] - 1}"
            part["url"] = None if bare else self._sign("GET", object_id, self.get_life_s, byte_range=byte_range)
        return spec

    def _stored_spec(self, object_id: str, offset: int, length: int) -> Json:
        if object_id in self.metas:
            return copy.deepcopy(self.metas[object_id])
        found = self.objects.get(f"data/{object_id}")
        if found is None:
            raise Refusal(500 if self.version > (5, 10, 0) else 404)
        if self.version <= (5, 10, 0):
            raise Refusal(404)
        rest = len(found.data) - offset if length < 0 else length
        return self._spec(object_id, object_id, len(found.data), self._plan(rest, offset), None)

    def _respec(self, spec: Json, offset: int, length: int, *, external: bool) -> Json:
        if length < 0 and not external:
            length = spec["objectSize"] - offset
        if offset + length > spec["objectSize"]:
            raise Refusal(500)
        parts = [{"partNumber": 1, "partSize": -1, "offset": 0, "url": None, "md5": None}] if external else self._plan(length, offset)
        return self._spec(spec["objectId"], spec["objectId"], length, parts, spec["objectMd5"])

    def _spec(self, object_id: str, upload_id: str, size: int, parts: list[Json], md5: str | None) -> Json:
        return {
            "objectKey": f"data/{object_id}",
            "objectId": object_id,
            "uploadId": upload_id,
            "parts": parts,
            "objectSize": size,
            "objectMd5": md5,
        }

    def _plan(self, length: int, offset: int = 0) -> list[Json]:
        size = max(self.part_size, length // MAX_PARTS + 1)
        return [
            {"partNumber": number, "partSize": min(size, length - start), "offset": offset + start, "url": None, "md5": None}
            for number, start in enumerate(range(0, length, size), start=1)
        ]

    def _find(self, object_id: str) -> tuple[str, _State]:
        """The upload in progress: of several the smallest id, not the newest (5.3)."""
        ids = self.in_progress(object_id)
        if not ids:
            raise Refusal(404)
        return ids[0], self.uploads[object_id, ids[0]]

    def _status(self, seen: Seen) -> Json:
        size = _number(seen, "fileSize")
        upload_id, state = self._find(seen.object_id)
        if state.spec["objectSize"] != size:
            raise Refusal(400)
        parts = [dict(part) for part in state.spec["parts"]]
        for record in state.sorted_records():
            parts[record["partNumber"] - 1]["sourceMd5"] = record["md5"]
        return {"objectId": seen.object_id, "uploadId": upload_id, "parts": parts}

    def _recovery(self, seen: Seen) -> None:
        if self._find(seen.object_id)[1].spec["objectSize"] != _number(seen, "fileSize"):
            raise Refusal(400)

    def _initiate(self, seen: Seen) -> Json:
        object_id, size = seen.object_id, _number(seen, "fileSize")
        if self.flavour == "az":
            url = f"{self.data_url}/{BUCKET}/{object_id}?sv=2020&se=2999-01-01T00%3A00%3A00Z&sig=azure-signature"
            part = {"partNumber": 1, "partSize": size, "offset": 0, "url": url, "md5": seen.query.get("md5")}
            return self._spec(object_id, object_id, size, [part], seen.query.get("md5"))
        self._require_state(object_id, "UNPUBLISHED")
        if not _flag(seen, "overwrite") and object_id in self.metas:
            raise Refusal(500)
        ids = self.in_progress(object_id)
        if ids:
            del self.uploads[object_id, ids[0]]  # its parts stay in the store
        upload_id = f"2~{secrets.token_urlsafe(12)}.{len(self.multiparts)}"
        self.multiparts[upload_id] = _Multipart(object_id)
        parts = self._plan(size)
        for part in parts:
            part["url"] = self._sign("PUT", object_id, self.put_life_s, partNumber=str(part["partNumber"]), uploadId=upload_id)
        spec = self._spec(object_id, upload_id, size, parts, seen.query.get("md5"))
        self.uploads[object_id, upload_id] = _State(copy.deepcopy(spec))
        return spec

    def _record(self, seen: Seen) -> None:
        number, upload_id = _number(seen, "partNumber"), _text(seen, "uploadId")
        md5, etag = _text(seen, "md5"), _text(seen, "etag")
        if not md5 or not etag:
            raise Refusal(400)
        multipart = self.multiparts.get(upload_id)
        if multipart is None or multipart.object_id != seen.object_id:
            raise Refusal(503)
        stored = multipart.parts.get(number)
        if stored is None or stored[1] != etag:
            raise Refusal(400)
        record = json.dumps({"partNumber": number, "md5": md5, "etag": etag}, separators=(",", ":"))
        state = self.uploads.get((seen.object_id, upload_id))
        if state is not None:
            state.records.add(f"part-{number:08x}|{record}")

    def _unrecord(self, seen: Seen) -> None:
        number, state = _number(seen, "partNumber"), self.uploads.get((seen.object_id, _text(seen, "uploadId")))
        if state is not None:
            state.records = {name for name in state.records if not name.startswith(f"part-{number:08x}|")}

    def _finalise(self, seen: Seen) -> None:
        object_id, upload_id = seen.object_id, _text(seen, "uploadId")
        state = self.uploads.get((object_id, upload_id))
        if state is None:
            if self.version <= (5, 8, 1):
                raise Refusal(503)
            return
        records = state.sorted_records()
        numbers = [record["partNumber"] for record in records]
        if numbers != [part["partNumber"] for part in state.spec["parts"]]:
            raise Refusal(400)
        if not self._complete(object_id, upload_id, records):
            return
        if not self.loses_meta:
            parts = [{**part, "sourceMd5": record["md5"]} for part, record in zip(state.spec["parts"], records, strict=True)]
            self.metas[object_id] = {**state.spec, "parts": parts}
        self.uploads.pop((object_id, upload_id), None)

    def _complete(self, object_id: str, upload_id: str, records: Iterable[Json]) -> bool:
        """CompleteMultipartUpload; False when the store does not know the upload, which Score takes for done."""
        multipart = self.multiparts.get(upload_id)
        if multipart is None:
            return False
        chosen = [multipart.parts.get(record["partNumber"]) for record in records]
        if not chosen or any(part is None or part[1] != record["etag"] for part, record in zip(chosen, records, strict=True)):
            raise Refusal(503)
        data = b"".join(part[0] for part in chosen if part)
        digests = b"".join(bytes.fromhex(_md5(part[0])) for part in chosen if part)
        etag = f"{hashlib.md5(digests + os.urandom(self.etags != 'md5')).hexdigest()}-{len(chosen)}"
        self.objects[f"data/{object_id}"] = _Object(data, etag, time.time())
        self.completions[object_id] += 1
        del self.multiparts[upload_id]
        return True

    def _abort(self, seen: Seen) -> None:
        upload_id, _ = self._find(seen.object_id)
        if self.multiparts.pop(upload_id, None) is None:
            raise Refusal(503)
        del self.uploads[seen.object_id, upload_id]

    def _cancel_all(self, _: Seen) -> None:
        raise Refusal(500)

    def _probe(self, _: Seen) -> str:
        return "fine"

    # Section 8, and the store

    def _sign(self, method: str, name: str, life_s: float, *, at: float | None = None, byte_range: str | None = None, **more: str) -> str:
        """A URL that looks like S3's; its signature is ours."""
        at = self.now() if at is None else at
        path = f"/{BUCKET}/data/{name}"
        if self.signature == "v2":
            query = {**more, "AWSAccessKeyId": "AK", "Expires": str(int(at + life_s))}
            return f"{self.data_url}{path}?{_query(query)}&Signature={quote(self._mac(method, path, query, None), safe='')}"
        query = {
            **more,
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Date": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at)),
            "X-Amz-SignedHeaders": "host" if byte_range is None else "host;range",
            "X-Amz-Expires": str(int(life_s)),
            "X-Amz-Credential": f"AK/{time.strftime('%Y%m%d', time.gmtime(at))}/us-east-1/s3/aws4_request",
        }
        return f"{self.data_url}{path}?{_query(query)}&X-Amz-Signature={quote(self._mac(method, path, query, byte_range), safe='')}"

    def _mac(self, method: str, path: str, query: Mapping[str, str], byte_range: str | None) -> str:
        text = "\n".join([method, path, _query(query), byte_range or ""])
        return base64.b64encode(hmac.digest(self._key, text.encode(), "sha256")).decode() + "/+secret"

    def check_signature(self, seen: Seen) -> None:
        if seen.has_token:
            raise Refusal(400, "InvalidArgument", "Only one auth mechanism allowed")
        query = dict(seen.query)
        given = query.pop("X-Amz-Signature", None) or query.pop("Signature", "")
        byte_range = seen.headers.get("range") if "range" in query.get("X-Amz-SignedHeaders", "") else None
        if not hmac.compare_digest(given, self._mac(seen.method, seen.path, query, byte_range)):
            raise Refusal(403, "SignatureDoesNotMatch", "The request signature we calculated does not match")
        if "Expires" in query:
            expires_at = float(query["Expires"])
        else:
            signed_at = time.strptime(query["X-Amz-Date"] + "+0000", "%Y%m%dT%H%M%SZ%z")
            expires_at = calendar.timegm(signed_at) + int(query["X-Amz-Expires"])
        if self.now() >= expires_at:
            raise Refusal(403, "AccessDenied", "Request has expired")

    def put(self, seen: Seen, body: bytes) -> Answer:
        self.check_signature(seen)
        claimed = seen.headers.get("content-md5")
        if claimed and self.checks_content_md5 and base64.b64decode(claimed) != hashlib.md5(body).digest():
            raise Refusal(400, "BadDigest")
        with self._lock:
            multipart = self.multiparts.get(seen.query["uploadId"])
            if multipart is None:
                raise Refusal(404, "NoSuchUpload")
            etag = {"md5": _md5(body), "kms": secrets.token_hex(16), "opaque": f"etag_{secrets.token_hex(6)}"}[self.etags]
            multipart.parts[seen.part] = (body, etag)
        more = {"x-amz-server-side-encryption": "aws:kms"} if self.etags == "kms" else {}
        return 200, {"ETag": f'"{etag}"', **more}, b""

    def get(self, seen: Seen) -> Answer:
        self.check_signature(seen)
        found = self.objects.get(seen.path.removeprefix(f"/{BUCKET}/"))
        if found is None:
            raise Refusal(404, "NoSuchKey")
        wanted = seen.headers.get("if-match")
        if wanted and wanted.strip('"') != found.etag:
            raise Refusal(412, "PreconditionFailed")
        byte_range = _RANGE.fullmatch(seen.headers.get("range", ""))
        if byte_range is None:
            return 200, {"ETag": f'"{found.etag}"'}, found.data
        first, last = int(byte_range[1]), min(int(byte_range[2]), len(found.data) - 1)
        if first > last:
            raise Refusal(416, "InvalidRange")
        return 206, {"ETag": f'"{found.etag}"', "Content-Range": f"bytes {first}-{last}/{len(found.data)}"}, found.data[first : last + 1]


# Routes of section 2: verb, path, name
_ROUTES: Final = [
    ("GET", r"/profile", "profile"),
    ("GET", r"/listing", "listing"),
    ("GET", r"/actuator/health", "health"),
    ("GET", r"/download/ping", "ping"),
    ("GET", r"/download/[^/]+", "download"),
    ("GET", r"/upload/test/[^/]+", "probe"),
    ("POST", r"/upload/cancel", "cancel all"),
    ("GET", r"/upload/[^/]+", "exists"),
    ("GET", r"/upload/[^/]+/status", "status"),
    ("POST", r"/upload/[^/]+/recovery", "recovery"),
    ("POST", r"/upload/[^/]+/uploads", "initiate"),
    ("POST", r"/upload/[^/]+/parts", "record"),
    ("DELETE", r"/upload/[^/]+/parts", "unrecord"),
    ("POST", r"/upload/[^/]+", "finalise"),
    ("DELETE", r"/upload/[^/]+", "abort"),
]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (OSError, ValueError):
            self.close_connection = True

    def _handle(self) -> None:
        java = self.server.java
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        split = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(split.query, keep_blank_values=True).items()}
        seen = Seen(self._name(split.path), self.command, split.path, query, {k.lower(): v for k, v in self.headers.items()})
        fault = java.fault_for(seen)
        if fault is None:
            return self._answer(seen, self._honest(seen))
        if fault.act is not None:
            fault.act()
        if fault.wait_s and java.closing.wait(fault.wait_s):
            return self._reset()
        if fault.later_s is not None:
            threading.Timer(fault.later_s, self._honest, [seen]).start()
        honest = self._honest(seen) if fault.does or (fault.status is None and not fault.drop) else None
        if fault.drop:
            return self._reset()
        if fault.status is None:
            assert honest is not None
            return self._answer(seen, honest)
        return self._answer(seen, (fault.status, dict(fault.headers), fault.body))

    do_GET = do_PUT = do_POST = do_DELETE = _handle

    def _name(self, path: str) -> str:
        raise NotImplementedError

    def _honest(self, seen: Seen) -> Answer:
        raise NotImplementedError

    def _answer(self, seen: Seen, answer: Answer) -> None:
        seen.status, headers, body = answer
        self.send_response_only(seen.status)
        self.send_header("Date", formatdate(self.server.java.now(), usegmt=True))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.server.forget(self.connection)
        os.close(self.connection.detach())

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Silence."""


class _Control(_Handler):
    def _name(self, path: str) -> str:
        return next((name for verb, pattern, name in _ROUTES if verb == self.command and re.fullmatch(pattern, path)), "unknown")

    def _honest(self, seen: Seen) -> Answer:
        try:
            body = self.server.java.serve(seen)
        except Refusal as refusal:
            return self._refusal(seen, refusal.status)
        if body is None:
            return 200, {}, b""
        if isinstance(body, str):
            return 200, {"Content-Type": "text/plain;charset=UTF-8"}, body.encode()
        return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()

    def _refusal(self, seen: Seen, status: int) -> Answer:
        """Section 3.2."""
        is_old = self.server.java.version <= (5, 10, 1)
        if status == 401:
            challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"' if seen.has_token else "Bearer"}
            old = b'{"error":"invalid_token","error_description":"Cannot convert access token to JSON"}'
            return 401, challenge, old if is_old else b""
        if status == 403:
            wanted = seen.headers.get("accept", "text/plain").split(",")[0].split(";")[0]
            return 403, {"Content-Type": wanted}, b"The token has not the scope that this needs"
        body = {"timestamp": "2024-07-04T12:00:00.000+00:00", "status": status, "error": _REASONS.get(status, "Error"), "path": seen.path}
        if is_old:
            body["message"] = "the reason in a sentence"
        return status, {"Content-Type": "application/json"}, json.dumps(body).encode()


class _Data(_Handler):
    def _name(self, path: str) -> str:
        return self.command.lower()

    def _honest(self, seen: Seen) -> Answer:
        java = self.server.java
        try:
            return java.put(seen, self._body) if seen.method == "PUT" else java.get(seen)
        except Refusal as refusal:
            text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{refusal.code}</Code><Message>{refusal.text}</Message></Error>'
            return refusal.status, {"Content-Type": "application/xml"}, text.encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, java: JavaServer, handler: type[_Handler]) -> None:
        self.java = java
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True, name="java-server").start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.forget(request)
        super().shutdown_request(request)

    def forget(self, connection: socket.socket) -> None:
        self._open.discard(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that `_reset` took away, or a client that left."""

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def _md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def _query(values: Mapping[str, str]) -> str:
    return "&".join(f"{name}={quote(value, safe='')}" for name, value in values.items())


def _text(seen: Seen, name: str) -> str:
    if name not in seen.query:
        raise Refusal(400)
    return seen.query[name]


def _number(seen: Seen, name: str) -> int:
    try:
        return int(_text(seen, name))
    except ValueError:
        raise Refusal(400) from None


def _flag(seen: Seen, name: str) -> bool:
    return seen.query.get(name, "false") in {"true", "1", "yes", "on"}
