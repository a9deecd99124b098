"""DRS 1.5: replies against the specification's schemas, who gets what, and what is refused."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import jsonschema
import pytest

from score_core.checksum import md5_hex
from score_core.repository.direct import DirectRepository
from score_core.server.drs import BASE, MAX_BULK
from score_core.server.published import Ga4ghOptions
from score_core.testing.memory import MemoryStore
from tests.server.conftest import Stage, StartSite
from tests.server.shelf import Shelf, shelf_in

NOBODY = "6ba7b814-9dad-41d1-80b4-00c04fd430c8"  # nobody's object: the same in all processes of a test run

# The schemas of openapi/components/schemas of the specification's repository, as of 1.5.0: what is required, and what else has a type.

TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT}
COUNT = {"type": "integer", "minimum": 0}


def record(required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": properties}


AUTHORIZATIONS = record(
    "",
    drs_object_id=TEXT,
    supported_types={"type": "array", "items": {"enum": ["None", "BasicAuth", "BearerAuth", "PassportAuth"]}},
    passport_auth_issuers=TEXTS,
    bearer_auth_issuers=TEXTS,
)
ACCESS_URL = record("url", url=TEXT, headers=TEXTS)
ACCESS_METHOD = {
    **record(
        "type",
        type={"enum": ["s3", "gs", "ftp", "gsiftp", "globus", "htsget", "https", "file"]},
        access_url=ACCESS_URL,
        access_id=TEXT,
        cloud=TEXT,
        region=TEXT,
        available={"type": "boolean"},
        authorizations=AUTHORIZATIONS,
    ),
    "anyOf": [{"required": ["access_url"]}, {"required": ["access_id"]}],
}
CHECKSUM = record("checksum type", checksum=TEXT, type=TEXT)
CONTENTS = record("name", name={"type": "string", "pattern": "^[A-Za-z0-9._-]+$"}, id=TEXT, drs_uri=TEXTS)
DRS_OBJECT = record(
    "id self_uri size created_time checksums",
    id=TEXT,
    name={"type": "string", "pattern": "^[A-Za-z0-9._-]+$"},
    self_uri={"type": "string", "pattern": "^drs://[A-Za-z0-9.-]+/[A-Za-z0-9._~%-]+$"},
    size=COUNT,
    created_time={"type": "string", "format": "date-time"},
    updated_time={"type": "string", "format": "date-time"},
    checksums={"type": "array", "minItems": 1, "items": CHECKSUM},
    access_methods={"type": "array", "minItems": 1, "items": ACCESS_METHOD},
    contents={"type": "array", "items": CONTENTS},
)
BLOB = {**DRS_OBJECT, "required": [*DRS_OBJECT["required"], "access_methods"]}
SUMMARY = record("", requested=COUNT, resolved=COUNT, unresolved=COUNT)
UNRESOLVED = {"type": "array", "items": record("", error_code={"type": "integer"}, object_ids=TEXTS)}
BULK = record("", summary=SUMMARY, unresolved_drs_objects=UNRESOLVED, resolved_drs_object={"type": "array", "items": DRS_OBJECT})
BULK_URL = record("url", drs_object_id=TEXT, drs_access_id=TEXT, url=TEXT, headers=TEXTS)
BULK_ACCESS = record(
    "", summary=SUMMARY, unresolved_drs_objects=UNRESOLVED, resolved_drs_object_access_urls={"type": "array", "items": BULK_URL}
)
ERROR = record("msg status_code", msg={"type": "string", "minLength": 1}, status_code={"type": "integer"})
LIMIT = {"type": "integer", "minimum": 1}
SERVICE_INFO = record(
    "id name type organization version maxBulkRequestLength",
    id=TEXT,
    name=TEXT,
    type=record("group artifact version", group={"const": "org.ga4gh"}, artifact={"const": "drs"}, version={"pattern": r"^1\.5"}),
    organization=record("name url", name=TEXT, url={"type": "string", "format": "uri", "pattern": "^https?://"}),
    version=TEXT,
    maxBulkRequestLength=LIMIT,
    drs=record("maxBulkRequestLength", maxBulkRequestLength=LIMIT, objectCount=COUNT, totalObjectSize=COUNT),
)

BAM, INDEX, NOTES = b"BAM\1" * 1000, b"BAI\1", b"for everybody"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, idle_stages: list[Stage]) -> Iterator[Shelf]:
    with shelf_in(tmp_path_factory.mktemp("drs"), idle_stages) as shelf:
        shelf.add("reads", {"a.bam": BAM, "a.bam.bai": INDEX, "a b.cram": b"CRAM"})
        shelf.add("open", {"notes.txt": NOTES}, access="open")
        shelf.add("hidden", {"b.bam": BAM}, publishes=False)
        yield shelf


def checked(response: Any, schema: dict[str, Any]) -> Any:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    jsonschema.validate(body, schema, format_checker=jsonschema.FormatChecker())
    return body


def assert_refused(response: Any, status: int) -> None:
    assert response.status_code == status, response.text
    jsonschema.validate(response.json(), ERROR)
    assert response.json()["status_code"] == status


def one(name: str) -> str:
    return f"{BASE}/objects/{name}"


def test_service_info(shelf: Shelf) -> None:
    body = checked(shelf.get(f"{BASE}/service-info", None), SERVICE_INFO)
    assert body["maxBulkRequestLength"] == body["drs"]["maxBulkRequestLength"] == MAX_BULK


def test_service_info_names_who_runs_it(start_site: StartSite) -> None:
    options = Ga4ghOptions("https://score.example.org/api", organization="Example", organization_url="https://example.org")
    site = start_site(DirectRepository(MemoryStore()), ga4gh=options)
    body = checked(site.anonymous("GET", f"{BASE}/service-info"), SERVICE_INFO)
    assert (body["id"], body["organization"]) == ("org.example.score.drs", {"name": "Example", "url": "https://example.org"})


def test_object_is_a_blob(shelf: Shelf) -> None:
    object_id = shelf.ids["a.bam"]
    body = checked(shelf.get(one(object_id.upper())), BLOB)
    assert (body["id"], body["name"], body["size"]) == (object_id, "a.bam", len(BAM))
    assert body["self_uri"] == f"drs://127.0.0.1/{object_id}"
    assert body["checksums"] == [{"checksum": md5_hex(BAM), "type": "md5"}]
    assert "contents" not in body


def test_blob_is_got_by_url_or_by_htsget(shelf: Shelf) -> None:
    methods = {method["type"]: method for method in shelf.get(one(shelf.ids["a.bam"])).json()["access_methods"]}
    assert set(methods) == {"https", "htsget"}
    assert methods["htsget"]["access_url"] == {"url": f"{shelf.site.url}/reads/{shelf.ids['a.bam']}"}
    assert methods["https"]["authorizations"] == {"supported_types": ["BearerAuth"]}
    assert "access_url" not in methods["https"]  # a signed URL is handed out when it is asked for
    assert [method["type"] for method in shelf.get(one(shelf.ids["a.bam.bai"])).json()["access_methods"]] == ["https"]
    (cram,) = [method for method in shelf.get(one(shelf.ids["a b.cram"])).json()["access_methods"] if method["type"] == "htsget"]
    assert cram["access_url"]["url"].endswith("?format=CRAM")


def test_name_has_portable_characters(shelf: Shelf) -> None:
    object_id = shelf.ids["a b.cram"]
    assert shelf.get(one(object_id)).json()["name"] == f"{object_id}-a_b.cram"


def test_analysis_is_a_bundle(shelf: Shelf) -> None:
    analysis_id = shelf.analyses["reads"]
    for expand in ("", "?expand=true"):
        body = checked(shelf.get(one(analysis_id) + expand), DRS_OBJECT)
        assert body["size"] == len(BAM) + len(INDEX) + 4
        assert {item["id"] for item in body["contents"]} == {shelf.ids[name] for name in ("a.bam", "a.bam.bai", "a b.cram")}
        assert all(item["drs_uri"] == [f"drs://127.0.0.1/{item['id']}"] for item in body["contents"])
        digests = "".join(sorted(md5_hex(data) for data in (BAM, INDEX, b"CRAM")))
        assert body["checksums"] == [{"checksum": hashlib.md5(digests.encode()).hexdigest(), "type": "md5"}]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_access_gives_a_url_of_the_bytes(shelf: Shelf, method: str) -> None:
    body = checked(shelf.call(method, f"{one(shelf.ids['a.bam'])}/access/https", "reader"), ACCESS_URL)
    assert httpx.get(body["url"]).content == BAM
    assert httpx.get(body["url"], headers={"Range": "bytes=4-7"}).content == BAM[4:8]


def test_posted_passports_are_taken(shelf: Shelf) -> None:
    for path in (one(shelf.ids["a.bam"]), f"{one(shelf.ids['a.bam'])}/access/https"):
        assert shelf.post(path, json={"passports": ["e30.e30.x"], "expand": True}).status_code == 200
        assert_refused(shelf.post(path, "neighbour", json={"passports": ["e30.e30.x"]}), 403)
        assert_refused(shelf.post(path, json={"passports": "e30"}), 400)
        assert_refused(shelf.post(path, content=b"[1"), 400)


def test_many_objects_at_once(shelf: Shelf) -> None:
    unknown = str(uuid4())
    ids = [shelf.ids["a.bam"], unknown, shelf.analyses["reads"], shelf.ids["b.bam"], "\ud800", "a/../b\r\n", shelf.ids["a.bam"]]
    body = checked(shelf.post(f"{BASE}/objects", content=json.dumps({"bulk_object_ids": ids})), BULK)
    assert body["summary"] == {"requested": 6, "resolved": 2, "unresolved": 4}
    assert [found["id"] for found in body["resolved_drs_object"]] == [ids[0], ids[2]]  # each once
    assert body["unresolved_drs_objects"] == [{"error_code": 404, "object_ids": [unknown, ids[3], "?", ids[5]]}]


def test_many_are_told_apart_by_permission(shelf: Shelf) -> None:
    ids = [shelf.ids["a.bam"], shelf.ids["notes.txt"], shelf.analyses["open"], shelf.analyses["reads"]]
    for token in (None, "neighbour"):
        body = checked(shelf.post(f"{BASE}/objects", token, json={"bulk_object_ids": ids}), BULK)
        assert [found["id"] for found in body["resolved_drs_object"]] == ids[1:3]
        assert body["unresolved_drs_objects"] == [{"error_code": 403, "object_ids": [ids[0], ids[3]]}]
    assert_refused(shelf.post(f"{BASE}/objects", "bad", json={"bulk_object_ids": ids}), 401)


def test_many_urls_at_once(shelf: Shelf) -> None:
    asked = [
        {"bulk_object_id": shelf.ids["a.bam"], "bulk_access_ids": ["https", "s3"]},
        {"bulk_object_id": shelf.analyses["reads"], "bulk_access_ids": ["https"]},
    ]
    body = checked(shelf.post(f"{BASE}/objects/access", json={"bulk_object_access_ids": asked, "passports": []}), BULK_ACCESS)
    assert body["summary"] == {"requested": 3, "resolved": 1, "unresolved": 2}
    (found,) = body["resolved_drs_object_access_urls"]
    assert (found["drs_object_id"], found["drs_access_id"]) == (shelf.ids["a.bam"], "https")
    assert httpx.get(found["url"]).content == BAM


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("", {"bulk_object_ids": ["x"] * (MAX_BULK + 1)}, 413),
        ("", b'{"bulk_object_ids": ["' + b"x" * 1_000_000 + b'"]}', 413),
        ("", b"[" * 100_000, 400),
        ("", {"bulk_object_ids": []}, 400),
        ("", {"bulk_object_ids": [1]}, 400),
        ("", {"bulk_object_ids": "x"}, 400),
        ("", [], 400),
        ("", b"", 400),
        ("", b"\xff", 400),
        ("/access", {"bulk_object_access_ids": [{"bulk_object_id": "x", "bulk_access_ids": ["y"] * (MAX_BULK + 1)}]}, 413),
        ("/access", {"bulk_object_access_ids": [{"bulk_object_id": "x", "bulk_access_ids": []}]}, 400),
        ("/access", {"bulk_object_access_ids": [{"bulk_object_id": "x"}]}, 400),
        ("/access", {"bulk_object_access_ids": ["x"]}, 400),
        ("/access", {"bulk_object_access_ids": []}, 400),
    ],
)
def test_bad_bulk_request_is_refused(shelf: Shelf, path: str, body: Any, status: int) -> None:
    sent = {"content": body} if isinstance(body, bytes) else {"json": body}
    assert_refused(shelf.post(f"{BASE}/objects{path}", **sent), status)


@pytest.mark.parametrize(
    ("token", "status"), [("reader", 200), ("study-reader", 200), ("neighbour", 403), ("nothing", 403), (None, 403), ("bad", 401)]
)
def test_controlled_objects_need_a_scope(shelf: Shelf, token: str | None, status: int) -> None:
    for path in (one(shelf.ids["a.bam"]), f"{one(shelf.ids['a.bam'])}/access/https", one(shelf.analyses["reads"])):
        response = shelf.get(path, token)
        if status == 200:
            assert response.status_code == 200
        else:
            assert_refused(response, status)


def test_open_objects_need_no_token(shelf: Shelf) -> None:
    for path in (one(shelf.ids["notes.txt"]), one(shelf.analyses["open"])):
        checked(shelf.get(path, None), DRS_OBJECT)
    url = checked(shelf.get(f"{one(shelf.ids['notes.txt'])}/access/https", None), ACCESS_URL)["url"]
    assert httpx.get(url).content == NOTES
    assert_refused(shelf.get(one(shelf.ids["notes.txt"]), "bad"), 401)


def test_what_is_not_published_is_not_found(shelf: Shelf) -> None:
    for path in (one(shelf.ids["b.bam"]), f"{one(shelf.ids['b.bam'])}/access/https", one(shelf.analyses["hidden"])):
        assert_refused(shelf.get(path), 404)


@pytest.mark.parametrize(
    "path",
    [
        *("nothing", "...", "%2e%2e%2f", "a%2Fb", "a%0d%0aX:%20y", "%00", "%ff", "x" * 5000, NOBODY, f"{NOBODY}/access/https"),
        *("a/b/c", "", "%7B%7D", "{id}/access/s3", "{id}/access/%0d%0a", "{id}/access/", "{id}/access/https/x", "{analysis}/access/https"),
    ],
)
def test_what_is_not_there_is_not_found(shelf: Shelf, path: str) -> None:
    known = path.replace("{id}", shelf.ids["a.bam"]).replace("{analysis}", shelf.analyses["reads"])
    assert_refused(shelf.get(one(known)), 404)


def test_other_methods_are_refused(shelf: Shelf) -> None:
    assert_refused(shelf.call("DELETE", one(shelf.ids["a.bam"]), "system"), 405)
    assert_refused(shelf.get(f"{one(shelf.ids['a.bam'])}?expand=1&expand=0"), 400)
    assert_refused(shelf.get(f"{one(shelf.ids['a.bam'])}?expand=perhaps"), 400)


def test_options_tell_which_tokens_are_asked_for(shelf: Shelf) -> None:
    wanted = {shelf.ids["a.bam"]: "BearerAuth", shelf.analyses["reads"]: "BearerAuth", shelf.ids["notes.txt"]: "None"}
    for name, kind in wanted.items():
        body = checked(shelf.call("OPTIONS", one(name), None), AUTHORIZATIONS)
        assert body == {"drs_object_id": name, "supported_types": [kind]}
    assert_refused(shelf.call("OPTIONS", one("nothing"), None), 404)


def test_replaced_object_is_told_anew(start_site: StartSite, folder_repository: DirectRepository) -> None:
    site, object_id = start_site(folder_repository), str(uuid4())
    for data in (b"old", b"newer"):
        begun = site.http.post(f"/upload/{object_id}/uploads", params={"fileSize": len(data), "overwrite": "true"}).json()
        etag = httpx.put(begun["parts"][0]["url"], content=data).headers["etag"].strip('"')
        part = {"partNumber": 1, "uploadId": begun["uploadId"], "md5": md5_hex(data), "etag": etag}
        site.http.post(f"/upload/{object_id}/parts", params=part).raise_for_status()
        site.http.post(f"/upload/{object_id}", params={"uploadId": begun["uploadId"]}).raise_for_status()
        assert checked(site.http.get(one(object_id)), BLOB)["size"] == len(data)


def test_objects_of_a_server_without_metadata(start_site: StartSite) -> None:
    store, object_id = MemoryStore(), str(uuid4())
    store.write(f"data/{object_id}", b"1234")
    site = start_site(DirectRepository(store))
    body = checked(site.http.get(one(object_id)), BLOB)
    assert (body["name"], body["checksums"]) == (object_id, [{"checksum": md5_hex(b"1234"), "type": "etag"}])
    assert checked(site.http.get(f"{one(object_id)}/access/https"), ACCESS_URL)["url"].startswith("memory://")
    assert_refused(site.http.get(one(str(uuid4()))), 404)
    assert_refused(site.anonymous("GET", one(object_id)), 401)


def test_host_is_that_of_the_request(shelf: Shelf) -> None:
    path = one(shelf.ids["a.bam"])
    for host, wanted in (("score.example.org:8443", "score.example.org"), ("[::", "127.0.0.1"), ('a"b', "127.0.0.1")):
        body = checked(shelf.get(path, headers={"Host": host}), BLOB)
        assert body["self_uri"] == f"drs://{wanted}/{shelf.ids['a.bam']}"


def test_nothing_secret_is_logged(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = shelf.get(f"{one(shelf.ids['a.bam'])}/access/https").json()["url"]
    shelf.post(f"{BASE}/objects/access", json={"bulk_object_access_ids": [{"bulk_object_id": "x", "bulk_access_ids": ["y"]}]})
    logged = "\n".join(entry.getMessage() for entry in caplog.records if entry.name.startswith("score_core"))
    assert f"GET {BASE}/objects/{shelf.ids['a.bam']}/access/https 200" in logged
    assert url.partition("?")[2] not in logged
    assert "Bearer reader" not in logged
