"""Song's routes: the JSON of each answer as Song writes it, by hand, and no fault without Song's error JSON."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from score_core.checksum import md5_hex
from score_core.errors import NoSpaceError, ServiceError, Unavailable
from score_core.metadata.base import Metadata
from score_core.metadata.registry import Registry
from score_core.testing.metadata import Shelf, file_payload, payload_of
from tests.metadata.conftest import needs_the_word, song_app

ANALYSIS = "a25ae8b4-097d-11ea-b4b9-41f0d4c18919"
BAM = "8e8647ca-960e-58b9-a4f9-8d8b6b7950ce"  # uuid5 of "<ANALYSIS>:a.bam" in Song's namespace, computed apart with SHA-1
ERROR_FIELDS = {
    "errorId",
    "httpStatusCode",
    "httpStatusName",
    "requestUrl",
    "datetime",
    "timestamp",
    "message",
    "debugMessage",
    "stackTrace",
}


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def registry(tmp_path: Path, shelf: Shelf) -> Iterator[Registry]:
    moments = (float(1720094400 + number) for number in range(1_000_000))
    with closing(Registry(tmp_path / "registry.sqlite", repository=shelf, clock=lambda: next(moments))) as registry:
        yield registry


@pytest.fixture
def song(registry: Registry) -> Iterator[TestClient]:
    with TestClient(song_app(registry), raise_server_exceptions=False) as client:
        yield client


def submitted(song: TestClient) -> None:
    bam = file_payload("a.bam", fileAccess="open", info={"library": "L1"})
    body = payload_of(bam, "b.vcf", analysisId=ANALYSIS, experiment={"platform": "x"})
    assert song.post("/submit/TEST-CA", json=body).json() == {"analysisId": ANALYSIS, "status": "OK"}


def assert_error(response: Any, status: int, error_id: str) -> str:
    body = response.json()
    assert (response.status_code, body["httpStatusCode"], body["errorId"]) == (status, status, error_id)
    assert set(body) == ERROR_FIELDS
    assert (body["debugMessage"], body["stackTrace"]) == ("", [])
    message: str = body["message"]
    return message


BAM_ENTITY = {"id": BAM, "gnosId": ANALYSIS, "fileName": "a.bam", "projectCode": "TEST-CA", "access": "open"}
BAM_FILE = {
    "objectId": BAM,
    "studyId": "TEST-CA",
    "analysisId": ANALYSIS,
    "fileName": "a.bam",
    "fileSize": 5,
    "fileType": "BAM",
    "fileMd5sum": md5_hex(b"a.bam"),
    "fileAccess": "open",
    "dataType": "Reads",
    "info": {"library": "L1"},
}


# Golden answers


def test_entity_has_songs_five_fields(song: TestClient) -> None:
    submitted(song)
    assert song.get(f"/entities/{BAM}").json() == BAM_ENTITY


def test_page_has_springs_fields(song: TestClient) -> None:
    submitted(song)
    assert song.get(f"/entities?gnosId={ANALYSIS}&projectCode=TEST-CA&fileName=a.bam&size=2000&page=0").json() == {
        "content": [BAM_ENTITY],
        "last": True,
        "totalPages": 1,
        "totalElements": 1,
        "size": 2000,
        "number": 0,
        "numberOfElements": 1,
        "first": True,
        "empty": False,
    }


def test_analysis_has_songs_fields(song: TestClient, shelf: Shelf, registry: Registry) -> None:
    submitted(song)
    shelf.put_all(registry.analysis("TEST-CA", ANALYSIS))
    for verb in ("publish", "unpublish", "publish"):
        assert song.put(f"/studies/TEST-CA/analysis/{verb}/{ANALYSIS}").status_code == 200
    body = song.get(f"/studies/TEST-CA/analysis/{ANALYSIS}").json()
    assert body.pop("files")[0] == BAM_FILE
    assert body == {
        "analysisId": ANALYSIS,
        "studyId": "TEST-CA",
        "analysisState": "PUBLISHED",
        "analysisType": {"name": "sequencingRead", "version": 1},
        "samples": [],
        "createdAt": "2024-07-04T12:00:00.000000",
        "updatedAt": "2024-07-04T12:00:03.000000",
        "firstPublishedAt": "2024-07-04T12:00:01.000000",
        "publishedAt": "2024-07-04T12:00:03.000000",
        "analysisStateHistory": [
            {"initialState": "UNPUBLISHED", "updatedState": "PUBLISHED", "updatedAt": "2024-07-04T12:00:01.000000"},
            {"initialState": "PUBLISHED", "updatedState": "UNPUBLISHED", "updatedAt": "2024-07-04T12:00:02.000000"},
            {"initialState": "UNPUBLISHED", "updatedState": "PUBLISHED", "updatedAt": "2024-07-04T12:00:03.000000"},
        ],
        "experiment": {"platform": "x"},
    }


def test_files_have_songs_fields(song: TestClient) -> None:
    submitted(song)
    assert song.get(f"/studies/TEST-CA/analysis/{ANALYSIS}/files").json()[0] == BAM_FILE
    assert song.get(f"/studies/TEST-CA/files/{BAM}").json() == BAM_FILE


def test_changes_answer_with_a_message(song: TestClient) -> None:
    submitted(song)
    assert set(song.put(f"/studies/TEST-CA/analysis/suppress/{ANALYSIS}").json()) == {"message"}


def test_studies_are_made_and_listed(song: TestClient) -> None:
    assert song.post("/studies/B/", json={"studyId": "B", "name": "Bee"}).status_code == 200
    assert song.post("/studies/A").status_code == 200
    assert song.get("/studies/all").json() == ["A", "B"]
    assert song.get("/studies/A").json()["studyId"] == "A"
    assert_error(song.post("/studies/A/", json={}), 409, "study.already.exists")
    assert_error(song.post("/studies/C/", json={"studyId": "D"}), 400, "malformed.parameter")
    assert_error(song.post("/studies/C/", json=[]), 400, "malformed.parameter")
    assert_error(song.post("/studies/all/", json={}), 400, "malformed.parameter")


def test_alive_is_a_bare_true(song: TestClient) -> None:
    assert song.get("/isAlive").text == "true"


def test_analyses_of_a_study_are_published_ones(song: TestClient) -> None:
    submitted(song)
    assert song.get("/studies/TEST-CA/analysis").json() == []
    found = song.get("/studies/TEST-CA/analysis?analysisStates=UNPUBLISHED,SUPPRESSED").json()
    assert [analysis["analysisId"] for analysis in found] == [ANALYSIS]
    assert_error(song.get("/studies/TEST-CA/analysis?analysisStates=LOST"), 400, "malformed.parameter")
    assert_error(song.get("/studies/NONE/analysis"), 404, "analysis.id.not.found")


# Pages


def test_only_wanted_fields_are_sent(song: TestClient) -> None:
    submitted(song)
    page = song.get("/entities/?fields=id&fields=fileName&fields=gnosId&size=1").json()
    assert page["content"] == [{"id": BAM, "fileName": "a.bam", "gnosId": ANALYSIS}]
    assert song.get("/entities?fields=id,access&id=" + BAM.upper()).json()["content"] == [{"id": BAM, "access": "open"}]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["a.bam", "b.vcf"]),
        ("access=open", ["a.bam"]),
        ("access=controlled", ["b.vcf"]),
        ("fileName=b.vcf&fileName=c", ["b.vcf"]),
        (f"id={BAM}", ["a.bam"]),
        (f"id={BAM}&access=controlled", []),
        (f"id={BAM}&projectCode=OTHER", []),
        (f"id={BAM}&id={ANALYSIS}", ["a.bam"]),
        ("gnosId=nobody", []),
        (f"gnosId={ANALYSIS}&gnosId=nobody", ["a.bam", "b.vcf"]),
        ("page=1", []),
        ("page=1&size=1", ["b.vcf"]),
    ],
)
def test_entities_are_chosen(song: TestClient, query: str, names: list[str]) -> None:
    submitted(song)
    assert [entity["fileName"] for entity in song.get(f"/entities?{query}").json()["content"]] == names


def test_empty_page_is_first_and_last(song: TestClient) -> None:
    page = song.get("/entities").json()
    assert (page["first"], page["last"], page["empty"], page["totalPages"], page["size"]) == (True, True, True, 0, 20)


def test_page_size_has_a_cap(song: TestClient) -> None:
    assert song.get("/entities?size=999999999").json()["size"] == 2000


@pytest.mark.parametrize(
    "query",
    [
        "sort=id",
        "x=1",
        "fields=secret",
        "fields=",
        "fields=id,,",
        "size=0",
        "size=-1",
        "size=x",
        "page=-1",
        "page=1e9",
        "page=" + "9" * 20,
        "id=x",
        "size=%C2%B2",
    ],
)
def test_odd_queries_are_refused(song: TestClient, query: str) -> None:
    assert_error(song.get(f"/entities?{query}"), 400, "malformed.parameter")


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(total=st.integers(1, 40), size=st.integers(1, 45))
def test_pages_tile_the_listing(song: TestClient, total: int, size: int) -> None:
    study = f"S{total}"
    assert song.post(f"/submit/{study}", json=payload_of(*(f"{number}.bam" for number in range(total)))).status_code == 200
    names, number = [], 0
    while True:
        page = song.get(f"/entities?projectCode={study}&size={size}&page={number}").json()
        names += [entity["fileName"] for entity in page["content"]]
        assert (page["number"], page["first"], page["totalElements"]) == (number, number == 0, total)
        assert page["numberOfElements"] == len(page["content"])
        number += 1
        if page["last"]:
            break
    assert number == page["totalPages"]
    assert sorted(names) == sorted(f"{number}.bam" for number in range(total))


# Faults


@pytest.mark.parametrize(
    ("path", "error_id"),
    [
        (f"/entities/{BAM}", "entity.not.found"),
        (f"/studies/TEST-CA/files/{BAM}", "file.not.found"),
        ("/studies/NONE", "study.id.does.not.exist"),
        (f"/studies/TEST-CA/analysis/{BAM}", "analysis.id.not.found"),
        (f"/studies/TEST-CA/analysis/{BAM}/files", "analysis.id.not.found"),
    ],
)
def test_unknown_ids_have_songs_words(song: TestClient, path: str, error_id: str) -> None:
    assert_error(song.get(path), 404, error_id)


def test_file_of_another_study_is_not_found(song: TestClient) -> None:
    submitted(song)
    assert_error(song.get(f"/studies/OTHER/files/{BAM}"), 404, "file.not.found")


@pytest.mark.parametrize(
    ("body", "error_id"),
    [
        (b"", "payload.parsing"),
        (b"{", "payload.parsing"),
        (b"\xff", "payload.parsing"),
        (b'{"a": NaN}', "payload.parsing"),
        (b'{"a": ' + b"1" * 5000 + b"}", "payload.parsing"),
        (b"[" * 100_000, "payload.parsing"),
        (b'{"a":' * 100_000, "payload.parsing"),
        (b"[]", "schema.violation"),
        (b"null", "schema.violation"),
        (b"{}", "schema.violation"),
        (b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", "schema.violation"),
        (json.dumps(payload_of("a.bam", x=1)).replace("1}", "1e999}").encode(), "schema.violation"),
        (json.dumps(payload_of("a.bam", x="\ud800")).encode(), "schema.violation"),
        (json.dumps(payload_of("../a.bam")).encode(), "schema.violation"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_bad_bodies_are_refused(song: TestClient, body: bytes, error_id: str) -> None:
    assert_error(song.post("/submit/S", content=body), 400, error_id)


def test_large_bodies_are_not_read(song: TestClient) -> None:
    def blocks() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 1_000_000

    for content in (b" " * 10_000_001, blocks()):
        assert_error(song.post("/submit/S", content=content), 413, "payload.too.large")


def test_conflicts_are_409(song: TestClient) -> None:
    submitted(song)
    assert "not stored" in assert_error(song.put(f"/studies/TEST-CA/analysis/publish/{ANALYSIS}"), 409, "mismatching.storage.objects")
    assert_error(song.post("/submit/TEST-CA", json=payload_of("z.bam", analysisId=ANALYSIS)), 409, "duplicate.analysis.attempt")
    song.put(f"/studies/TEST-CA/analysis/suppress/{ANALYSIS}")
    assert_error(song.put(f"/studies/TEST-CA/analysis/unpublish/{ANALYSIS}"), 409, "suppressed.state.transition")


@pytest.mark.parametrize("word", ["true", "TRUE", "1", "yes", "on"])
def test_undefined_md5_is_ignored_in_javas_spellings(song: TestClient, shelf: Shelf, registry: Registry, word: str) -> None:
    submitted(song)
    for file in registry.analysis("TEST-CA", ANALYSIS).files:
        shelf.put(file.object_id, size=file.size, md5=None)
    place = f"/studies/TEST-CA/analysis/publish/{ANALYSIS}"
    assert_error(song.put(place), 409, "mismatching.storage.objects")
    assert_error(song.put(f"{place}?ignoreUndefinedMd5=perhaps"), 400, "malformed.parameter")
    assert song.put(f"{place}?ignoreUndefinedMd5={word}").status_code == 200


def test_permission_comes_before_the_body(registry: Registry) -> None:
    with TestClient(song_app(registry, needs_the_word)) as song:
        for response in (
            song.post("/submit/S", content=b"{" * 11_000_000),
            song.post("/studies/S/", content=b"{"),
            *(song.put(f"/studies/S/analysis/{verb}/x") for verb in ("publish", "unpublish", "suppress")),
        ):
            assert_error(response, 403, "forbidden.token")
        assert song.post("/studies/S/", headers={"Authorization": "Bearer the-word"}).status_code == 200


class Broken:
    """Metadata whose every verb fails in one way."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        def fail(*args: object, **kwargs: object) -> None:
            raise self._error

        return fail


@pytest.mark.parametrize(
    ("error", "status", "error_id"),
    [
        (Unavailable("Another process holds the registry /srv/secret"), 503, "service.unavailable"),
        (ServiceError("s3://secret is odd"), 503, "service.unavailable"),
        (NoSpaceError("No space left for the registry /srv/secret"), 503, "service.unavailable"),
        (ValueError("secret"), 500, "unknown.error"),
    ],
)
def test_inner_faults_say_nothing_of_the_inside(error: Exception, status: int, error_id: str) -> None:
    broken: Metadata = Broken(error)  # answers to every name
    with TestClient(song_app(broken)) as song:
        for path in ("/isAlive", "/entities", f"/entities/{BAM}", "/studies/all", "/studies/S", "/studies/S/analysis/x"):
            assert "secret" not in assert_error(song.get(path), status, error_id)


def test_request_url_shows_no_secret(song: TestClient) -> None:
    response = song.get("/entities?access_token=hush-hush")
    assert_error(response, 400, "malformed.parameter")
    assert "hush" not in response.text


def test_other_routes_keep_their_own_errors(registry: Registry) -> None:
    app = song_app(registry)
    app.add_api_route("/other", lambda number: number, methods=["GET"])
    with TestClient(app) as client:
        assert client.get("/other").status_code == 422
        assert client.get("/nowhere").json() == {"detail": "Not Found"}


def test_routes_are_documented_once(song: TestClient) -> None:
    paths = song.get("/openapi.json").json()["paths"]
    assert "/entities/{object_id}" in paths
    assert "/entities/" not in paths
