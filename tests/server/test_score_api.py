"""Every body and every status of protocol section 3, written by hand from its text; where ours differs, docs/compatibility.md says why."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from score_core.auth.base import Principal
from score_core.checksum import md5_hex
from score_core.errors import AuthenticationError, ObjectNotFound, Unavailable
from score_core.metadata.base import Analysis, Entity, FileRecord
from score_core.repository.direct import DirectRepository
from score_core.service import Refused
from score_core.testing.memory import MemoryStore
from tests.server.conftest import Site, StartSite

ID = "3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11"
OTHER = "576f7386-e626-5d99-ae63-1b3ce9de308b"
ANALYSIS = "a25ae8b4-097d-11ea-b4b9-41f0d4c18919"
MIB = 1 << 20
SIZE = 25 * MIB  # two parts of Score's size
DATA = bytes(range(256)) * (SIZE // 256)
FIRST, SECOND = DATA[: 20 * MIB], DATA[20 * MIB :]
md5 = functools.cache(md5_hex)

SCOPES = {
    "system": {"score.READ", "score.WRITE"},
    "reader": {"score.READ"},
    "study": {"PROGRAMDATA-TEST-CA.READ", "PROGRAMDATA-TEST-CA.WRITE"},
    "study-reader": {"PROGRAMDATA-TEST-CA.READ"},
    "neighbour": {"PROGRAMDATA-TEST-CAR.READ", "PROGRAMDATA-TEST-CAR.WRITE", "PROGRAMDATA-TEST.READ", "score.read"},
    "nothing": set(),
}


class Tokens:
    """An authenticator whose tokens are the names above."""

    def authenticate(self, token: str) -> Principal:
        if token == "down":
            raise Unavailable("the auth server is not reached")
        if token not in SCOPES:
            raise AuthenticationError("bad")
        return Principal(token, frozenset(SCOPES[token]))

    def close(self) -> None:
        pass


@dataclass
class Song:
    """Metadata of one analysis, as a test wants them. `calls` counts."""

    state_now: str = "UNPUBLISHED"
    access: str | None = "controlled"
    md5: str | None = None
    size: int = SIZE
    down: bool = False
    fails: Exception | None = None
    calls: list[str] = field(default_factory=list)

    def entity(self, object_id: str) -> Entity:
        self.calls.append("entity")
        if self.down:
            raise Unavailable("Song is not reached")
        if object_id != ID:
            raise ObjectNotFound("unknown", status=404)
        return Entity(ID, ANALYSIS, "x.bam", "TEST-CA", self.access)

    def state(self, study_id: str, analysis_id: str) -> Any:
        self.calls.append("state")
        assert (study_id, analysis_id) == ("TEST-CA", ANALYSIS)
        if self.fails is not None:
            raise self.fails
        return self.state_now

    def analysis(self, study_id: str, analysis_id: str) -> Analysis:
        record = FileRecord(ID, study_id, analysis_id, "x.bam", self.size, self.md5)
        return Analysis(analysis_id, study_id, self.state(study_id, analysis_id), (record,))


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def song() -> Song:
    return Song()


@pytest.fixture
def site(start_site: StartSite, store: MemoryStore, song: Song) -> Site:
    return start_site(DirectRepository(store), metadata=song, authenticator=Tokens())


Call = Callable[..., httpx.Response]


@pytest.fixture
def call(site: Site) -> Iterator[Call]:
    with httpx.Client(base_url=site.url) as client:

        def call(method: str, path: str, token: str | None = "system", **query: Any) -> httpx.Response:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            return client.request(method, path, params=query, headers=headers)

        yield call


def begin(call: Call, **query: Any) -> dict[str, Any]:
    response = call("POST", f"/upload/{ID}/uploads", **{"fileSize": SIZE, "overwrite": "true", "md5": md5(DATA), **query})
    assert response.status_code == 200
    return dict(response.json())


def send(call: Call, store: MemoryStore, upload_id: str, number: int, data: bytes) -> str:
    etag = store.put_part(f"data/{ID}", upload_id, number, data)
    query = {"partNumber": number, "uploadId": upload_id, "md5": md5(data), "etag": etag}
    response = call("POST", f"/upload/{ID}/parts", **query)
    assert (response.status_code, response.content) == (200, b"")
    return etag


@pytest.fixture
def upload_id(call: Call) -> str:
    return str(begin(call)["uploadId"])


@pytest.fixture(scope="module")
def finished() -> dict[str, Any]:
    """What the first test that wants it has published: the store's objects, and the upload's id."""
    return {}


@pytest.fixture
def published(call: Call, store: MemoryStore, song: Song, finished: dict[str, Any]) -> str:
    """An object of two parts, its analysis PUBLISHED; the id of its upload."""
    if finished:
        assert next(store._ids) == finished["upload_id"]
        store._objects.update(finished["objects"])
    else:
        upload_id = str(begin(call)["uploadId"])
        send(call, store, upload_id, 1, FIRST)
        send(call, store, upload_id, 2, SECOND)
        response = call("POST", f"/upload/{ID}", uploadId=upload_id)
        assert (response.status_code, response.content) == (200, b"")
        finished.update(upload_id=upload_id, objects=dict(store._objects))
    song.state_now = "PUBLISHED"
    return str(finished["upload_id"])


def without_urls(body: dict[str, Any]) -> dict[str, Any]:
    """The body with each `url` replaced by whether there is one."""
    parts = [{**part, "url": part["url"] is not None} for part in body["parts"]]
    return {**body, "parts": parts}


def assert_problem(response: httpx.Response, status: int, path: str) -> None:
    """Spring's error JSON, with a message."""
    body = response.json()
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", body.pop("timestamp"))
    assert body.pop("message")
    assert body.pop("code")
    phrases = {400: "Bad Request", 404: "Not Found", 503: "Service Unavailable"}
    assert body == {"status": status, "error": phrases[status], "path": path}


# Texts and lists


def test_profile(call: Call) -> None:
    for token in ("system", None):
        response = call("GET", "/profile", token)
        assert (response.status_code, response.text) == (200, "s3")
        assert response.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("path", ["/health", "/actuator/health"])
def test_health(call: Call, path: str) -> None:
    response = call("GET", path, None)
    assert (response.status_code, response.json()) == (200, {"status": "UP"})


def test_health_of_a_server_without_its_store(start_site: StartSite) -> None:
    class Broken(MemoryStore):
        def check(self) -> None:
            raise Unavailable("down")

    response = start_site(DirectRepository(Broken()), authenticator=Tokens()).anonymous("GET", "/actuator/health")
    assert (response.status_code, response.json()) == (503, {"status": "OUT_OF_SERVICE"})


@pytest.mark.usefixtures("published")
def test_listing(call: Call, store: MemoryStore) -> None:
    store.write("data/heliograph", b"x")
    (row,) = call("GET", "/listing", "nothing").json()
    assert (row["id"], row["size"]) == (ID, SIZE)
    assert isinstance(row["lastModified"], int)
    assert row["lastModified"] > 1_600_000_000_000
    assert set(row) == {"id", "size", "lastModified"}
    assert call("GET", "/listing", None).status_code == 401


def test_ping(call: Call) -> None:
    response = call("GET", "/download/ping", None)
    assert response.status_code == 200
    assert urlsplit(response.text).path == "/data/heliograph"


def test_ping_without_a_sentinel(start_site: StartSite, store: MemoryStore) -> None:
    response = start_site(DirectRepository(store, sentinel=None)).anonymous("GET", "/download/ping")
    assert_problem(response, 400, "/download/ping")


def test_permission_probe(call: Call) -> None:
    assert call("GET", f"/upload/test/{ID}", "study").status_code == 200
    assert call("GET", f"/upload/test/{ID}", "study-reader").status_code == 403


# Uploads


def test_initiate(call: Call, store: MemoryStore) -> None:
    body = begin(call)
    upload_id = body["uploadId"]
    assert re.fullmatch(r"[A-Za-z0-9._~-]+", upload_id)
    assert without_urls(body) == {
        "objectKey": f"data/{ID}",
        "objectId": ID,
        "uploadId": upload_id,
        "parts": [
            {"partNumber": 1, "partSize": 20971520, "offset": 0, "url": True, "md5": None},
            {"partNumber": 2, "partSize": 5242880, "offset": 20971520, "url": True, "md5": None},
        ],
        "objectSize": SIZE,
        "objectMd5": md5(DATA),
    }
    query = parse_qs(urlsplit(body["parts"][1]["url"]).query)
    assert (query["partNumber"], query["uploadId"]) == (["2"], [upload_id])
    stored = json.loads(store.read(f"upload/{ID}_{upload_id}/.meta"))
    assert stored["uploadId"] == upload_id
    assert [part["url"] for part in stored["parts"]] == [None, None]


def test_initiate_without_md5(call: Call) -> None:
    response = call("POST", f"/upload/{ID}/uploads", fileSize=SIZE)
    assert (response.status_code, response.json()["objectMd5"]) == (200, None)


@pytest.mark.parametrize(
    ("size", "parts", "first", "last"),
    [
        (1, 1, 1, 1),
        (20971520, 1, 20971520, 20971520),
        (20971521, 2, 20971520, 1),
        (52428800, 3, 20971520, 10485760),
        (209715199999, 10000, 20971520, 20971519),
        (209715200000, 10000, 20971521, 20961521),
    ],
)
def test_part_table(call: Call, song: Song, size: int, parts: int, first: int, last: int) -> None:
    song.size = size
    table = begin(call, fileSize=size)["parts"]
    assert (len(table), table[0]["partSize"], table[-1]["partSize"]) == (parts, first, last)
    assert [row["partNumber"] for row in table] == list(range(1, parts + 1))
    assert all(row["offset"] == (row["partNumber"] - 1) * first for row in table)
    assert sum(row["partSize"] for row in table) == size


def test_initiate_drops_the_older_upload(call: Call, store: MemoryStore, upload_id: str) -> None:
    again = begin(call)["uploadId"]
    assert again != upload_id
    assert {upload.upload_id for upload in store.list_multiparts("")} == {again}
    assert call("POST", f"/upload/{ID}", uploadId=upload_id).status_code == 404


@pytest.mark.parametrize(
    ("state", "query", "status"),
    [
        ("PUBLISHED", {}, 400),
        ("SUPPRESSED", {}, 400),
        ("UNPUBLISHED", {"fileSize": ""}, 400),
        ("UNPUBLISHED", {"fileSize": "-1"}, 400),
        ("UNPUBLISHED", {"fileSize": "x"}, 400),
        ("UNPUBLISHED", {"fileSize": str(2**63)}, 400),
        ("UNPUBLISHED", {"fileSize": str(2**62)}, 400),
        ("UNPUBLISHED", {"overwrite": "maybe"}, 400),
        ("UNPUBLISHED", {"md5": "x" * 32}, 400),
        ("UNPUBLISHED", {"overwrite": "on"}, 200),
        ("UNPUBLISHED", {"overwrite": "0"}, 200),
        ("UNPUBLISHED", {"unknown": "1"}, 200),
    ],
)
def test_initiate_status(call: Call, song: Song, state: str, query: dict[str, str], status: int) -> None:
    song.state_now = state
    song.size = SIZE
    response = call("POST", f"/upload/{ID}/uploads", **{"fileSize": SIZE, "overwrite": "true", **query})
    assert response.status_code == status
    if status == 400:
        assert_problem(response, 400, f"/upload/{ID}/uploads")


def test_initiate_of_an_unknown_object(call: Call) -> None:
    assert_problem(call("POST", f"/upload/{OTHER}/uploads", fileSize=1), 404, f"/upload/{OTHER}/uploads")


def test_initiate_of_what_exists(call: Call, song: Song, published: str) -> None:
    del published
    song.state_now = "UNPUBLISHED"
    assert_problem(call("POST", f"/upload/{ID}/uploads", fileSize=SIZE), 400, f"/upload/{ID}/uploads")
    assert call("POST", f"/upload/{ID}/uploads", fileSize=SIZE, overwrite="true").status_code == 200


@pytest.mark.parametrize("query", [{"md5": "b" * 32}, {"fileSize": SIZE - 1}])
def test_initiate_of_another_file_than_was_registered(call: Call, song: Song, query: dict[str, Any]) -> None:
    song.md5 = "a" * 32
    assert call("POST", f"/upload/{ID}/uploads", **{"fileSize": SIZE, "md5": "a" * 32, **query}).status_code == 400


def test_exists(call: Call, song: Song) -> None:
    response = call("GET", f"/upload/{ID}")
    assert (response.status_code, response.text, response.headers["content-type"]) == (200, "false", "application/json")
    assert song.calls == []


@pytest.mark.usefixtures("published")
def test_exists_when_published(call: Call) -> None:
    assert call("GET", f"/upload/{ID}").text == "true"


def test_status_after_part_1(call: Call, store: MemoryStore, upload_id: str) -> None:
    etag = send(call, store, upload_id, 1, FIRST)
    response = call("GET", f"/upload/{ID}/status", fileSize=SIZE)
    assert response.status_code == 200
    assert without_urls(response.json()) == {
        "objectId": ID,
        "uploadId": upload_id,
        "parts": [
            {"partNumber": 1, "partSize": 20971520, "offset": 0, "url": True, "md5": None, "sourceMd5": md5(FIRST), "etag": etag},
            {"partNumber": 2, "partSize": 5242880, "offset": 20971520, "url": True, "md5": None},
        ],
        "objectSize": SIZE,
        "objectMd5": md5(DATA),
        "fileName": "x.bam",
    }


def test_status_may_mark_md5_for_java(start_site: StartSite, store: MemoryStore, song: Song, call: Call, upload_id: str) -> None:
    send(call, store, upload_id, 1, FIRST)
    marking = start_site(DirectRepository(store), metadata=song, authenticator=Tokens(), marks_md5=True)
    response = httpx.get(f"{marking.url}/upload/{ID}/status?fileSize={SIZE}", headers={"Authorization": "Bearer system"})
    assert [part["md5"] for part in response.json()["parts"]] == [md5(FIRST), None]


@pytest.mark.parametrize(("verb", "path"), [("GET", "status"), ("POST", "recovery")])
def test_upload_in_progress_or_not(call: Call, verb: str, path: str) -> None:
    where = f"/upload/{ID}/{path}"
    assert_problem(call(verb, where, fileSize=SIZE), 404, where)
    begin(call)
    response = call(verb, where, fileSize=SIZE)
    assert response.status_code == 200
    if path == "recovery":
        assert (response.content, response.headers["content-length"]) == (b"", "0")
    assert_problem(call(verb, where, fileSize=SIZE + 1), 400, where)
    assert_problem(call(verb, where), 400, where)


@pytest.mark.parametrize(
    "wrong",
    [
        {"md5": ""},
        {"etag": ""},
        {"md5": "b" * 32},
        {"etag": "b" * 32},
        {"md5": "b" * 32, "etag": "b" * 32},
        {"partNumber": 2},
        {"partNumber": 0},
        {"partNumber": -1},
        {"partNumber": 10_001},
        {"partNumber": "x"},
        {"etag": "x" * 1000},
    ],
)
def test_part_is_not_recorded_under_wrong_words(call: Call, store: MemoryStore, upload_id: str, wrong: dict[str, Any]) -> None:
    etag = store.put_part(f"data/{ID}", upload_id, 1, FIRST)
    query = {"partNumber": 1, "uploadId": upload_id, "md5": md5(FIRST), "etag": etag, **wrong}
    assert_problem(call("POST", f"/upload/{ID}/parts", **query), 400, f"/upload/{ID}/parts")
    assert [row.key for row in store.list_objects(f"upload/{ID}_{upload_id}/part-")] == []


@pytest.mark.parametrize("missing", ["partNumber", "uploadId", "md5", "etag"])
def test_part_needs_all_its_words(call: Call, upload_id: str, missing: str) -> None:
    query = {"partNumber": 1, "uploadId": upload_id, "md5": "a" * 32, "etag": "a" * 32}
    del query[missing]
    assert_problem(call("POST", f"/upload/{ID}/parts", **query), 400, f"/upload/{ID}/parts")


def test_part_of_a_dead_upload(call: Call) -> None:
    query = {"partNumber": 1, "uploadId": "dead", "md5": "a" * 32, "etag": "a" * 32}
    assert_problem(call("POST", f"/upload/{ID}/parts", **query), 404, f"/upload/{ID}/parts")


def test_part_record(call: Call, store: MemoryStore, upload_id: str) -> None:
    etag = send(call, store, upload_id, 1, FIRST)
    send(call, store, upload_id, 1, FIRST)
    record = json.dumps({"partNumber": 1, "md5": md5(FIRST), "etag": etag}, separators=(",", ":"))
    assert [row.key for row in store.list_objects(f"upload/{ID}_{upload_id}/part-")] == [f"upload/{ID}_{upload_id}/part-00000001|{record}"]


def test_part_sent_again_with_other_bytes_leaves_one_record(call: Call, store: MemoryStore, upload_id: str) -> None:
    for data in (SECOND, FIRST):
        send(call, store, upload_id, 1, data)
    assert len(list(store.list_objects(f"upload/{ID}_{upload_id}/part-"))) == 1


def test_deleted_part(call: Call, store: MemoryStore, upload_id: str) -> None:
    send(call, store, upload_id, 1, FIRST)
    for _ in range(2):
        response = call("DELETE", f"/upload/{ID}/parts", partNumber=1, uploadId=upload_id)
        assert (response.status_code, response.content) == (200, b"")
    assert list(store.list_objects(f"upload/{ID}_{upload_id}/part-")) == []


def test_incomplete_upload_is_not_finalised(call: Call, store: MemoryStore, upload_id: str) -> None:
    send(call, store, upload_id, 2, SECOND)
    assert_problem(call("POST", f"/upload/{ID}", uploadId=upload_id), 400, f"/upload/{ID}")
    assert call("GET", f"/upload/{ID}").text == "false"
    send(call, store, upload_id, 1, FIRST)
    assert call("POST", f"/upload/{ID}", uploadId=upload_id).status_code == 200


def test_final_specification_in_the_bucket(store: MemoryStore, published: str) -> None:
    assert json.loads(store.read(f"data/{ID}.meta")) == {
        "objectKey": f"data/{ID}",
        "objectId": ID,
        "uploadId": published,
        "parts": [
            {"partNumber": 1, "partSize": 20971520, "offset": 0, "url": None, "md5": None, "sourceMd5": md5(FIRST)},
            {"partNumber": 2, "partSize": 5242880, "offset": 20971520, "url": None, "md5": None, "sourceMd5": md5(SECOND)},
        ],
        "objectSize": SIZE,
        "objectMd5": md5(DATA),
        "sealed": False,
        "fileName": "x.bam",
    }
    assert [row.key for row in store.list_objects("upload/")] == []


def test_finalise_twice(call: Call, published: str) -> None:
    assert call("POST", f"/upload/{ID}", uploadId=published).status_code == 200


def test_finalise_of_an_upload_that_never_was(call: Call) -> None:
    """Java answers 200 (21.15): a client that believes it has lost a file."""
    assert_problem(call("POST", f"/upload/{ID}", uploadId="bogus"), 404, f"/upload/{ID}")


def test_published_object_is_not_replaced_by_an_upload_that_began_before(
    call: Call, store: MemoryStore, song: Song, published: str
) -> None:
    del published
    song.state_now = "UNPUBLISHED"
    upload_id = begin(call)["uploadId"]
    send(call, store, upload_id, 1, FIRST)
    send(call, store, upload_id, 2, SECOND)
    song.state_now = "PUBLISHED"
    assert_problem(call("POST", f"/upload/{ID}", uploadId=upload_id), 400, f"/upload/{ID}")


def test_cancel(call: Call, store: MemoryStore, upload_id: str) -> None:
    send(call, store, upload_id, 1, FIRST)
    response = call("DELETE", f"/upload/{ID}")
    assert (response.status_code, response.content) == (200, b"")
    assert_problem(call("DELETE", f"/upload/{ID}"), 404, f"/upload/{ID}")
    assert [row.key for row in store.list_objects("")] == []
    assert list(store.list_multiparts("")) == []


def test_cancel_all_is_not_offered(call: Call) -> None:
    assert call("POST", "/upload/cancel", uploadId="x").status_code == 400


def test_unfinished_uploads_are_listed_for_the_system(call: Call, upload_id: str) -> None:
    (row,) = call("GET", "/uploads").json()
    assert (row["objectId"], row["uploadId"]) == (ID, upload_id)
    assert call("GET", "/uploads", "study").status_code == 403
    assert call("GET", "/uploads", None).status_code == 401


# Downloads


def get(call: Call, token: str | None = "system", **query: Any) -> httpx.Response:
    return call("GET", f"/download/{ID}", token, **{"offset": 0, "length": -1, **query})


@pytest.mark.parametrize("urls", [True, False])
def test_whole_object(call: Call, store: MemoryStore, published: str, urls: bool) -> None:
    body = get(call, **({} if urls else {"exclude-urls": "true"})).json()
    assert without_urls(body) == {
        "objectKey": f"data/{ID}",
        "objectId": ID,
        "uploadId": published,
        "parts": [
            {"partNumber": 1, "partSize": 20971520, "offset": 0, "url": urls, "md5": None, "sourceMd5": md5(FIRST)},
            {"partNumber": 2, "partSize": 5242880, "offset": 20971520, "url": urls, "md5": None, "sourceMd5": md5(SECOND)},
        ],
        "objectSize": SIZE,
        "objectMd5": md5(DATA),
        "etag": store.head(f"data/{ID}").etag,
        "fileName": "x.bam",
    }


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    ("offset", "length", "parts"),
    [
        (1000, 500, [(1000, 500)]),
        (0, 500, [(0, 500)]),
        (0, SIZE, [(0, 20971520), (20971520, 5242880)]),
        (10, -1, [(10, 20971520), (20971530, 5242870)]),
        (SIZE, 0, []),
        (0, 0, []),
        (SIZE, -1, []),
    ],
)
def test_range(call: Call, offset: int, length: int, parts: list[tuple[int, int]]) -> None:
    body = get(call, offset=offset, length=length).json()
    assert [(row["offset"], row["partSize"]) for row in body["parts"]] == parts
    assert [row["partNumber"] for row in body["parts"]] == list(range(1, len(parts) + 1))
    assert all("sourceMd5" not in row and row["md5"] is None and row["url"] for row in body["parts"])
    assert (body["objectSize"], body["objectMd5"], body["uploadId"]) == (sum(size for _, size in parts), md5(DATA), ID)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("length", [-1, 7])
def test_external(call: Call, length: int) -> None:
    body = get(call, external="true", length=length).json()
    assert body["parts"][0]["url"]
    assert without_urls(body)["parts"] == [{"partNumber": 1, "partSize": -1, "offset": 0, "url": True, "md5": None}]
    assert (body["objectSize"], body["objectMd5"], body["uploadId"]) == (length, md5(DATA), ID)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    "query",
    [
        {"offset": -1},
        {"offset": SIZE + 1},
        {"offset": SIZE, "length": 1},
        {"length": SIZE + 1},
        {"offset": 1, "length": SIZE},
        {"length": 2**63 - 1},
        {"offset": 2**63 - 1, "length": 2**63 - 1},
        {"offset": 2**63},
        {"length": -(2**63) - 1},
        {"offset": "abc"},
        {"length": ""},
        {"external": "true", "length": SIZE + 1},
        {"external": "perhaps"},
    ],
)
def test_bad_range(call: Call, query: dict[str, Any]) -> None:
    assert_problem(get(call, **query), 400, f"/download/{ID}")


@pytest.mark.parametrize("missing", ["offset", "length"])
def test_range_must_be_said(call: Call, missing: str) -> None:
    query = {"offset": 0, "length": -1}
    del query[missing]
    assert_problem(call("GET", f"/download/{ID}", **query), 400, f"/download/{ID}")


def test_download_of_an_unknown_object(call: Call) -> None:
    where = f"/download/{OTHER}"
    assert_problem(call("GET", where, "study", offset=0, length=-1), 404, where)
    assert_problem(call("GET", where, "system", offset=0, length=-1), 404, where)
    assert_problem(call("GET", where, "nothing", offset=0, length=-1), 404, where)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("state", ["UNPUBLISHED", "SUPPRESSED"])
def test_unpublished_is_described_and_not_handed_out(call: Call, song: Song, state: str) -> None:
    song.state_now = state
    assert_problem(get(call), 400, f"/download/{ID}")
    song.calls.clear()
    assert get(call, **{"exclude-urls": "true"}).status_code == 200
    assert song.calls == []  # Song itself asks this when it publishes: it must not be asked back (10.4)


def test_published_and_not_stored(call: Call, song: Song) -> None:
    """Java: 500 (404 up to 5.10.0)."""
    song.state_now = "PUBLISHED"
    assert_problem(get(call), 404, f"/download/{ID}")


def test_object_that_came_without_score(call: Call, store: MemoryStore, song: Song) -> None:
    song.state_now = "PUBLISHED"
    store.write(f"data/{ID}", DATA)
    body = get(call).json()
    assert [(row["offset"], row["partSize"]) for row in body["parts"]] == [(0, 20971520), (20971520, 5242880)]
    assert (body["objectSize"], body["objectMd5"], body["uploadId"]) == (SIZE, None, ID)
    assert all("sourceMd5" not in row for row in body["parts"])


def test_objects_of_old_servers_load(call: Call, store: MemoryStore, song: Song) -> None:  # 5.2
    song.state_now = "PUBLISHED"
    store.write(f"data/{ID}", DATA)
    part = {"partNumber": 1, "partSize": SIZE, "offset": 0, "url": "https://old?AWSAccessKeyId=a&Expires=1&Signature=b", "md5": "x"}
    old = {"objectKey": f"data/{ID}", "objectId": ID, "uploadId": "u", "parts": [part], "objectSize": SIZE, "relocated": False}
    store.write(f"data/{ID}.meta", json.dumps(old).encode())
    body = get(call).json()
    assert (body["objectMd5"], body["uploadId"], len(body["parts"])) == (None, "u", 1)
    assert "old" not in body["parts"][0]["url"]
    assert body["parts"][0]["md5"] is None


# Who may


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    ("access", "token", "status"),
    [
        ("controlled", "system", 200),
        ("controlled", "reader", 200),
        ("controlled", "study", 200),
        ("controlled", "study-reader", 200),
        ("controlled", "neighbour", 403),
        ("controlled", "nothing", 403),
        ("controlled", None, 403),
        ("controlled", "bad", 401),
        ("CONTROLLED", "study", 200),
        (None, "study", 200),
        (None, None, 403),
        ("", "nothing", 403),
        ("null", "study", 200),
        ("open", None, 200),
        ("OPEN", None, 200),
        ("open", "nothing", 200),
        ("open", "bad", 401),
        ("secret", "study", 400),
        ("secret", None, 400),
        ("secret", "reader", 200),
    ],
)
def test_download_rule(call: Call, song: Song, access: str | None, token: str | None, status: int) -> None:
    song.access = access
    response = get(call, token)
    assert response.status_code == status
    if status == 401:
        assert response.content == b""
        assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    if status == 403:
        assert response.headers["content-type"].startswith("text/plain")
        assert response.text


@pytest.mark.parametrize(
    ("token", "status"),
    [
        ("system", 200),
        ("study", 200),
        ("reader", 403),
        ("study-reader", 403),
        ("neighbour", 403),
        ("bad", 401),
        (None, 400),
    ],
)
def test_upload_rule(call: Call, song: Song, token: str | None, status: int) -> None:
    song.access = "open"  # does not help
    assert call("GET", f"/upload/{ID}", token).status_code == status


@pytest.mark.parametrize(
    ("header", "upload", "download"),
    [
        ("Basic eDp5", 403, 403),
        ("bearer system", 401, 401),
        ("Bearer", 403, 403),
    ],
)
def test_other_headers_than_bearer(site: Site, song: Song, published: str, header: str, upload: int, download: int) -> None:
    del published, song
    headers = {"Authorization": header}
    assert httpx.get(f"{site.url}/upload/{ID}", headers=headers).status_code == upload
    assert httpx.get(f"{site.url}/download/{ID}?offset=0&length=-1", headers=headers).status_code == download


def test_unknown_object_is_404_before_403(call: Call) -> None:
    assert call("GET", f"/upload/{OTHER}", "study").status_code == 404
    assert call("GET", f"/upload/{OTHER}", "system").status_code == 200


def test_song_or_auth_out_of_order(call: Call, song: Song) -> None:
    song.down = True
    assert_problem(get(call, "study"), 503, f"/download/{ID}")
    assert_problem(get(call, "down"), 503, f"/download/{ID}")


@pytest.mark.parametrize("error", [ObjectNotFound("none", status=404), Refused("of another study", status=400)])
def test_analysis_that_song_does_not_know(call: Call, song: Song, error: Exception) -> None:  # 10.1
    song.fails = error
    assert_problem(get(call, "study"), 404, f"/download/{ID}")


# What is no request of ours


@pytest.mark.parametrize(
    "bad",
    [
        "x",
        "..",
        "%2e%2e",
        "..%2f..%2fetc",
        f"{ID}%2f..",
        f"{ID}%0d%0aX-Evil:1",
        f"{ID}%20",
        "a" * 8000,
        f"{ID}.meta",
        "%00",
        f"{ID}%3fa=b",
    ],
)
@pytest.mark.parametrize(
    ("verb", "path"), [("GET", "/download/{}?offset=0&length=-1"), ("GET", "/upload/{}"), ("POST", "/upload/{}/uploads?fileSize=1")]
)
def test_what_is_no_id(site: Site, store: MemoryStore, verb: str, path: str, bad: str) -> None:  # B25
    store.calls.clear()
    response = httpx.request(verb, site.url + path.format(bad), headers={"Authorization": "Bearer system"})
    assert response.status_code in ({400, 404, 405} if ".." in bad or "%2e" in bad else {400})  # dots are gone before they are sent
    assert not store.calls
    assert "x-evil" not in response.headers


def test_unknown_paths_and_methods(call: Call) -> None:
    assert call("GET", "/nothing").status_code == 404
    assert call("PUT", f"/upload/{ID}").status_code == 405
    assert call("GET", "/v2/../download/").status_code in {400, 404}


@pytest.mark.usefixtures("published")
def test_security_headers(call: Call) -> None:
    headers = get(call).headers
    assert "no-store" in headers["cache-control"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


@pytest.mark.usefixtures("published")
def test_log_holds_no_secret(call: Call, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        get(call, "study")
        get(call, "bad-token-that-is-a-secret")
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("score_core.server")]
    assert any(f"study GET /download/{ID} 200" in line for line in lines)
    assert not [line for line in lines if "secret" in line or "offset" in line]
