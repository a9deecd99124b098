"""The client of Song keeps every promise of metadata over HTTP, and believes no answer that is not about what was asked."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from score_core.errors import AccessDenied, AuthenticationError, ConfigurationError, ObjectNotFound, ScoreError, ServiceError, Unavailable
from score_core.metadata.base import Entity, FileRecord, Metadata, StateChange
from score_core.metadata.registry import Registry
from score_core.metadata.song import SongClient
from score_core.service import Refused, ServiceClient, Token
from score_core.testing.metadata import BAD_IDS, MetadataContract, Shelf, payload_of
from score_core.testing.servers import free_ports
from score_core.transfer.policy import RetryPolicy
from tests.metadata.conftest import needs_the_word, served, song_app

ID = "576f7386-e626-5d99-ae63-1b3ce9de308b"
OTHER = "3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11"
ANALYSIS = "a25ae8b4-097d-11ea-b4b9-41f0d4c18919"
ENTITY = {"id": ID, "gnosId": ANALYSIS, "fileName": "x.bam", "projectCode": "TEST-CA", "access": "open"}
FILE = {
    "info": {"library": "L1"},
    "objectId": ID,
    "studyId": "TEST-CA",
    "analysisId": ANALYSIS,
    "fileName": "x.bam",
    "fileSize": 14,
    "fileType": "BAM",
    "fileMd5sum": "AC5D500EC64FA7DC287050C553B83F3A",
    "fileAccess": "open",
    "dataType": "Aligned reads",
}
# As a Song answers it, written by hand from the protocol's section 10.3, with fields that nobody here knows.
ANALYSIS_BODY = {
    "analysisId": ANALYSIS,
    "studyId": "TEST-CA",
    "analysisState": "PUBLISHED",
    "createdAt": "2024-07-04T12:00:00.5",
    "updatedAt": "2024-07-05T12:00:00",
    "firstPublishedAt": "2024-07-05T12:00:00",
    "publishedAt": "2024-07-05T12:00:00",
    "analysisStateHistory": [{"initialState": "UNPUBLISHED", "updatedState": "PUBLISHED", "updatedAt": "2024-07-05T12:00:00"}],
    "samples": [{"submitterSampleId": "s1"}],
    "files": [FILE],
    "analysisType": {"name": "sequencingRead", "version": 3},
    "experiment": {"platform": "x"},
}


class Canned:
    """An ASGI application that gives each path the answers it was made with, the last one again and again, and remembers the requests."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = {path: list(answer) if isinstance(answer, list) else [answer] for path, answer in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["raw_path"].decode()
        query = scope["query_string"].decode()
        self.asked.append(f"{scope['method']} {path}{'?' if query else ''}{query}")
        answers = self.answers.get(path, [(404, {"message": "not here"})])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer = answer(parse_qs(query)) if callable(answer) else answer
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": data})


@contextmanager
def client_of(url: str, *, token: str | None = None, attempts: int = 2) -> Iterator[SongClient]:
    client = ServiceClient(url, name="Song", token=Token(token), policy=RetryPolicy(attempts=attempts, base_s=0.001))
    with closing(SongClient(client)) as song:
        yield song


class Stage:
    """A server whose application changes from test to test: stopping one takes 0.15 s."""

    def __init__(self, stack: ExitStack) -> None:
        self.app: Canned | None = None
        self.url = stack.enter_context(served(self))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert self.app is not None
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(stack)


@pytest.fixture
def song_with(stage: Stage) -> Iterator[Any]:
    """Makes a client of a Song with canned answers."""
    with ExitStack() as stack:

        def make(answers: dict[str, Any]) -> tuple[SongClient, Canned]:
            stage.app = Canned(answers)
            return stack.enter_context(client_of(stage.url)), stage.app

        yield make


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SongClient, Shelf]]:
    shelf = Shelf()
    path = tmp_path_factory.mktemp("song") / "registry.sqlite"
    with closing(Registry(path, repository=shelf)) as registry, served(song_app(registry)) as url, client_of(url) as song:
        yield song, shelf


class TestSongOverOurRouter(MetadataContract):
    @pytest.fixture
    def metadata(self, site: tuple[SongClient, Shelf]) -> Metadata:
        return site[0]

    @pytest.fixture
    def shelf(self, site: tuple[SongClient, Shelf]) -> Shelf:
        return site[1]


# Golden answers


def test_entity_is_read(song_with) -> None:
    song, _ = song_with({f"/entities/{ID}": {**ENTITY, "createdTime": 5, "unknown": None}})
    assert song.entity(ID) == Entity(ID, ANALYSIS, "x.bam", "TEST-CA", "open")


@pytest.mark.parametrize("gaps", [{"access": None}, {"access": 7, "fileName": None}, dict.fromkeys(("gnosId", "projectCode"))])
def test_gaps_of_an_entity_are_survived(song_with, gaps: dict[str, Any]) -> None:
    song, _ = song_with({f"/entities/{ID}": {**ENTITY, **gaps}, f"/entities/{OTHER}": {"id": OTHER}})
    assert song.entity(ID).object_id == ID
    assert song.entity(OTHER) == Entity(OTHER, "", "", "", None)


def test_analysis_is_read(song_with) -> None:
    song, _ = song_with({f"/studies/TEST-CA/analysis/{ANALYSIS}": ANALYSIS_BODY})
    found = song.analysis("TEST-CA", ANALYSIS)
    assert found.files == (
        FileRecord(
            ID, "TEST-CA", ANALYSIS, "x.bam", 14, "ac5d500ec64fa7dc287050c553b83f3a", "BAM", "open", "Aligned reads", {"library": "L1"}
        ),
    )
    assert (found.state, found.type_name, found.type_version) == ("PUBLISHED", "sequencingRead", 3)
    assert found.details == {"samples": [{"submitterSampleId": "s1"}], "experiment": {"platform": "x"}}
    assert found.created_at == 1720094400.5
    assert found.history == (StateChange("UNPUBLISHED", "PUBLISHED", 1720180800.0),)


def test_files_are_asked_for_when_they_lack(song_with) -> None:
    place = f"/studies/TEST-CA/analysis/{ANALYSIS}"
    bare: dict[str, Any] = {
        "analysisId": ANALYSIS,
        "analysisState": "UNPUBLISHED",
        "createdAt": "some day",
        "analysisStateHistory": [{}, None, 3],
    }
    song, canned = song_with({place: bare, f"{place}/files": (200, [{"objectId": ID, "fileSize": 0}] * 2)})
    found = song.analysis("TEST-CA", ANALYSIS)
    assert found.files == (FileRecord(ID, "TEST-CA", ANALYSIS, "", 0, None),)
    assert (found.created_at, found.history) == (None, ())
    assert canned.asked == [f"GET {place}", f"GET {place}/files"]


def test_studies_are_sorted(song_with) -> None:
    song, _ = song_with({"/studies/all": {"": None}, "/isAlive": b"true"})
    with pytest.raises(ServiceError):
        song.studies()
    song, _ = song_with({"/studies/all": (200, ["B", "A", "B"])})
    assert song.studies() == ["A", "B"]


def test_writes_are_sent_as_song_wants_them(song_with) -> None:
    place = f"/studies/TEST-CA/analysis/publish/{ANALYSIS}"
    song, canned = song_with({"/submit/TEST-CA": {"analysisId": ANALYSIS, "status": "OK"}, place: {"message": "done"}})
    assert song.submit("TEST-CA", payload_of("a.bam")) == ANALYSIS
    song.publish("TEST-CA", ANALYSIS)
    song.publish("TEST-CA", ANALYSIS, ignore_undefined_md5=True)
    assert canned.asked == ["POST /submit/TEST-CA", *(f"PUT {place}?ignoreUndefinedMd5={word}" for word in ("false", "true"))]


def test_submission_without_id_is_sent_once(song_with) -> None:
    song, canned = song_with({"/submit/S": (503, {})})
    for payload, times in ((payload_of("a.bam"), 1), (payload_of("a.bam", analysisId=ANALYSIS), 2)):
        canned.asked.clear()
        with pytest.raises(Unavailable):
            song.submit("S", payload)
        assert len(canned.asked) == times


@pytest.mark.parametrize("body", [{}, {"analysisId": None}, {"analysisId": ""}, [], b"<html>"])
def test_submission_without_answer_is_an_error(song_with, body: Any) -> None:
    song, _ = song_with({"/submit/S": (200, body)})
    with pytest.raises(ServiceError, match="submission"):
        song.submit("S", payload_of("a.bam"))


def test_files_that_are_no_list_are_refused(song_with) -> None:
    place = f"/studies/TEST-CA/analysis/{ANALYSIS}"
    song, _ = song_with({place: {**ANALYSIS_BODY, "files": None}, f"{place}/files": {}})
    with pytest.raises(ServiceError, match="files"):
        song.analysis("TEST-CA", ANALYSIS)


# Paging


def page_of(entities: list[dict[str, Any]], last: bool | None = None) -> dict[str, Any]:
    return {"content": entities, **({} if last is None else {"last": last})}


def entity_body(number: int) -> dict[str, Any]:
    return {**ENTITY, "id": f"{number:08x}-0000-0000-0000-000000000000"}


def test_pages_are_asked_for_until_the_last(song_with) -> None:
    pages = [page_of([entity_body(1), entity_body(2)], last=False), page_of([entity_body(2), entity_body(3)], last=True)]
    song, canned = song_with({"/entities": pages})
    assert len(list(song.entities(analysis_id=ANALYSIS, study_id="TEST-CA"))) == 3
    query = f"gnosId={ANALYSIS}&projectCode=TEST-CA&size=2000&page="
    assert canned.asked == [f"GET /entities?{query}0", f"GET /entities?{query}1"]


@pytest.mark.parametrize("last", [None, False])
def test_service_without_paging_is_asked_twice(song_with, last: bool | None) -> None:
    song, canned = song_with({"/entities": page_of([entity_body(1), entity_body(2), entity_body(1)], last)})
    assert len(list(song.entities())) == 2
    assert len(canned.asked) == 2


def test_empty_page_is_the_end(song_with) -> None:
    song, _ = song_with({"/entities": page_of([], last=False)})
    assert list(song.entities()) == []


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(total=st.integers(0, 30), cut=st.integers(1, 12), says_last=st.booleans())
def test_each_entity_comes_once_whatever_the_pages(paged: tuple[SongClient, Canned], total: int, cut: int, says_last: bool) -> None:
    song, canned = paged

    def answer(query: dict[str, list[str]]) -> dict[str, Any]:
        start = int(query["page"][0]) * cut
        return page_of([entity_body(number) for number in range(total)][start : start + cut], (start + cut >= total) if says_last else None)

    canned.answers["/entities"] = [answer]
    assert [entity.object_id for entity in song.entities()] == [entity_body(number)["id"] for number in range(total)]


@pytest.fixture
def paged(song_with) -> tuple[SongClient, Canned]:
    found: tuple[SongClient, Canned] = song_with({})
    return found


def test_entities_of_another_analysis_are_refused(song_with) -> None:
    """B28: a service that does not heed the filter."""
    song, _ = song_with({"/entities": page_of([ENTITY, {**ENTITY, "id": OTHER, "gnosId": OTHER}], last=True)})
    with pytest.raises(ServiceError, match=OTHER):
        list(song.entities(analysis_id=ANALYSIS))


# Answers that are none


@pytest.mark.parametrize(
    "body", [{**ENTITY, "id": OTHER}, {**ENTITY, "id": None}, {}, [], "x", None, 5, b"", b"<html>Login</html>", b"[" * 9999]
)
def test_answer_about_something_else_is_refused(song_with, body: Any) -> None:
    """B28. A Java server checks the same."""
    song, _ = song_with({f"/entities/{ID}": (200, body)})
    with pytest.raises(ServiceError, match=ID) as caught:
        song.entity(ID)
    assert not isinstance(caught.value, ObjectNotFound | Unavailable)


@pytest.mark.parametrize(
    "changes",
    [
        {"analysisId": OTHER},
        {"analysisId": None},
        {"studyId": "OTHER-CA"},
        {"analysisState": "published"},
        {"analysisState": None},
        {"analysisState": ["PUBLISHED"]},
        {"files": [{**FILE, "analysisId": OTHER}]},
        {"files": [{**FILE, "studyId": "OTHER-CA"}]},
        {"files": [{**FILE, "objectId": "../x"}]},
        {"files": [{**FILE, "fileSize": -1}]},
        {"files": [{**FILE, "fileSize": None}]},
        {"files": [None]},
    ],
)
def test_analysis_about_something_else_is_refused(song_with, changes: dict[str, Any]) -> None:
    song, _ = song_with({f"/studies/TEST-CA/analysis/{ANALYSIS}": {**ANALYSIS_BODY, **changes}})
    with pytest.raises(ServiceError, match=ANALYSIS):
        song.analysis("TEST-CA", ANALYSIS)


@pytest.mark.parametrize("page", [[], {}, {"content": None}, {"content": [{}]}, {"content": [None]}, {"content": [{"id": "../x"}]}])
def test_page_that_is_none_is_refused(song_with, page: Any) -> None:
    song, _ = song_with({"/entities": (200, page)})
    with pytest.raises(ServiceError, match="entities"):
        list(song.entities())


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"errorId": "malformed.parameter", "message": "No such study"}, Refused),
        (401, {}, AuthenticationError),
        (403, b"no", AccessDenied),
        (404, {"errorId": "entity.not.found", "message": "No such file"}, ObjectNotFound),
        (500, b"<html>500</html>", ServiceError),
        (502, b"<html>Bad gateway</html>", Unavailable),
        (503, {}, Unavailable),
    ],
)
def test_each_refusal_has_its_kind(song_with, status: int, body: Any, kind: type[ScoreError]) -> None:
    song, _ = song_with({f"/entities/{ID}": (status, body)})
    with pytest.raises(ServiceError) as caught:
        song.entity(ID)
    assert type(caught.value) is kind
    assert "<html" not in str(caught.value)
    if isinstance(body, dict) and body:
        assert body["message"] in str(caught.value)


def test_song_that_is_down_is_unavailable() -> None:
    with client_of(f"http://127.0.0.1:{free_ports(1)[0]}") as song:
        for ask in (song.check, song.studies, lambda: song.entity(ID), lambda: list(song.entities())):
            with pytest.raises(Unavailable):
                ask()


@pytest.mark.parametrize("body", [b"false", b"<html>true</html>", b""])
def test_song_that_is_not_alive_is_said_to_be(song_with, body: bytes) -> None:
    song, _ = song_with({"/isAlive": body})
    with pytest.raises(ServiceError, match="isAlive"):
        song.check()


# B26: paths stay what they are


@pytest.mark.parametrize("bad", BAD_IDS)
def test_ids_never_change_the_path(song_with, bad: str) -> None:
    song, canned = song_with({})
    for ask in (song.analysis, song.publish, song.suppress):
        for place in ((bad, ANALYSIS), ("TEST-CA", bad)):
            with pytest.raises((ConfigurationError, ObjectNotFound)):
                ask(*place)
    with pytest.raises((ConfigurationError, ObjectNotFound)):
        song.submit(bad, {})
    step = r"[A-Za-z0-9._~%-]+"
    shapes = re.compile(
        rf"(GET /studies/{step}/analysis/{step}|PUT /studies/{step}/analysis/(publish|suppress)/{step}(\?ignore.*)?|POST /submit/{step})"
    )
    assert [line for line in canned.asked if not shapes.fullmatch(line)] == []


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_two_ids_are_two_steps(study: str, analysis: str) -> None:
    from score_core.metadata.song import _analysis_path

    try:
        path = _analysis_path(study, analysis)
    except ConfigurationError:
        return
    assert re.fullmatch(r"/studies/[A-Za-z0-9._~%-]+/analysis/[A-Za-z0-9._~%-]+", path)
    assert not {".", "..", "%2e", "%2E%2E"} & set(path.split("/"))


# Tokens


def test_writing_needs_what_reading_does_not(tmp_path: Path) -> None:
    with closing(Registry(tmp_path / "registry.sqlite")) as registry, served(song_app(registry, needs_the_word)) as url:
        with client_of(url, token="the-word") as song:
            analysis_id = song.submit("S", payload_of("a.bam"))
        with client_of(url) as song:
            assert song.state("S", analysis_id) == "UNPUBLISHED"
            for write in (
                lambda: song.submit("S", payload_of("b.bam")),
                lambda: song.add_study("T"),
                lambda: song.suppress("S", analysis_id),
            ):
                with pytest.raises(AccessDenied, match="may not write"):
                    write()
        assert registry.studies() == ["S"]
