"""The command line over a Score server, here a stand-in for a Java one, and a stand-in for Song."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from score_core.errors import Unavailable
from score_core.session import open_metadata, open_repository
from score_core.settings import load
from tests.cli.conftest import OBJECT_ID, Score, md5_of, object_id
from tests.cli.test_transfer import download_manifest, download_row
from tests.repository.java_server import Fault, JavaServer

ANALYSIS = "a25ae8b4-097d-11ea-b4b9-41f0d4c18919"
UPLOAD = ("upload", "--file", "FILE", "--object-id", OBJECT_ID, "--md5", "compute")
DOWNLOAD = ("download", "--object-id", OBJECT_ID, "--output-dir", "out")


class Song:
    """One analysis of study TEST-CA, whose files are `files` (Song's JSON). With `status` it answers nothing else."""

    def __init__(self) -> None:
        self.files: list[dict[str, object]] = []
        self.status = 200
        self.lives_with_score: bool | None = None
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        song = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                song.asked.append(self.path)
                song.tokens.add(self.headers["Authorization"])
                body = song.answer(self.path) if song.status == 200 else None
                data = json.dumps(body if body is not None else {"message": "no"}).encode()
                self.send_response(song.status if song.status != 200 else 404 if body is None else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def add(self, name: str, path: Path, file_name: str) -> None:
        facts = {"fileSize": path.stat().st_size, "fileMd5sum": md5_of(path), "fileType": "BAM", "fileAccess": "open"}
        self.files.append({"objectId": name, "studyId": "TEST-CA", "analysisId": ANALYSIS, "fileName": file_name, **facts})

    def answer(self, path: str) -> object:
        parts, query = urlsplit(path).path.strip("/").split("/"), parse_qs(urlsplit(path).query)
        entities = [
            {"id": file["objectId"], "gnosId": ANALYSIS, "fileName": file["fileName"], "projectCode": "TEST-CA", "access": "open"}
            for file in self.files
        ]
        if parts == ["isAlive"]:
            return self.lives_with_score
        if parts == ["entities"]:
            return {"content": entities if query.get("gnosId") == [ANALYSIS] else [], "last": True}
        if parts[0] == "entities":
            return next((entity for entity in entities if entity["id"] == parts[1]), None)
        if parts == ["studies", "TEST-CA", "analysis", ANALYSIS]:
            kind = {"name": "file", "version": 1}
            return {"analysisId": ANALYSIS, "studyId": "TEST-CA", "analysisState": "PUBLISHED", "analysisType": kind, "files": self.files}
        return None


@pytest.fixture
def song() -> Iterator[Song]:
    song = Song()
    yield song
    song.server.shutdown()
    song.server.server_close()


@pytest.fixture
def server(environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[JavaServer]:
    """A Score server that all commands are told of by the Java client's variables."""
    with JavaServer() as server:
        monkeypatch.setenv("STORAGE_URL", server.url)
        monkeypatch.setenv("ACCESSTOKEN", server.token)
        monkeypatch.setenv("STORAGE_RETRYNUMBER", "2")
        yield server


def argv(words: tuple[str, ...], path: Path) -> list[str]:
    return [str(path) if word == "FILE" else word for word in words]


def test_round_trip(score: Score, server: JavaServer, some_file: Path) -> None:
    assert score(*argv(UPLOAD, some_file)).code == 0
    assert score("list").out.split("\t")[0] == OBJECT_ID
    assert score(*DOWNLOAD).code == 0
    assert Path("out", OBJECT_ID).read_bytes() == some_file.read_bytes()  # nobody knows a name
    assert score("verify", some_file, "--object-id", OBJECT_ID).code == 0
    assert server.data_url in score("url", "--object-id", OBJECT_ID).out


def test_abort_over_a_server(score: Score, server: JavaServer, some_file: Path) -> None:
    server.inject("put", Fault(status=400))
    assert score(*argv(UPLOAD, some_file)).code != 0
    assert server.in_progress(OBJECT_ID)
    assert score("abort", "--object-id", OBJECT_ID).code == 0
    assert not server.in_progress(OBJECT_ID)
    assert score("abort", "--object-id", OBJECT_ID).code == 5


@pytest.mark.parametrize("words", [UPLOAD, DOWNLOAD])
@pytest.mark.parametrize("what", ["ping", "get"])
def test_broken_connection_is_found_out_before_anything_is_moved(
    score: Score, server: JavaServer, some_file: Path, words: tuple[str, ...], what: str
) -> None:
    score(*argv(UPLOAD, some_file))
    server.forget()
    server.inject(what, Fault(status=503))
    ran = score(*argv(words, some_file))
    assert (ran.code, server.count("put"), Path("out").exists()) == (7, 0, False)
    ran.sentence()


@pytest.mark.parametrize("words", [UPLOAD, DOWNLOAD])
def test_connection_need_not_be_tried(score: Score, server: JavaServer, some_file: Path, words: tuple[str, ...]) -> None:
    score(*argv(UPLOAD, some_file))
    server.forget()
    server.inject("ping", Fault(status=503))
    assert score(*argv(words, some_file), "--verify-connection", "false", "--force").code == 0
    assert server.count("ping") == 0


def test_java_properties_are_enough(
    score: Score, server: JavaServer, song: Song, some_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STORAGE_URL", "ACCESSTOKEN", "STORAGE_RETRYNUMBER"):
        monkeypatch.delenv(name)
    song.add(OBJECT_ID, some_file, "named by Song.bam")
    config = tmp_path / "application.properties"
    config.write_text(f"accessToken={server.token}\nstorage.url: {server.url}\nmetadata.url = {song.url}\\\n\nclient.ansi=true\n")
    config.chmod(0o600)
    assert score("--config", config, *argv(UPLOAD, some_file)).code == 0
    assert score("--config", config, *DOWNLOAD).code == 0
    assert Path("out/named by Song.bam").exists()
    assert f"url = {server.url}  (storage.url in {config})" in score("config", "show", "--origin", "--config", config).out
    assert song.tokens == {f"Bearer {server.token}"}


# Song


@pytest.fixture
def analysis(score: Score, server: JavaServer, song: Song, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Song:
    """Three files, uploaded and registered; the second is the index of the first."""
    for number, name in enumerate(("a.bam", "a.bam.bai", "b.vcf.gz"), start=1):
        path = tmp_path / name
        path.write_bytes(bytes([number]) * 100_000)
        assert score("upload", "--file", path, "--object-id", object_id(number), "--md5", md5_of(path)).code == 0
        song.add(object_id(number), path, name)
    monkeypatch.setenv("METADATA_URL", song.url)
    server.forget()
    return song


def downloaded() -> list[str]:
    return sorted(path.name for path in Path("out").iterdir())


def test_one_question_for_an_analysis(score: Score, analysis: Song) -> None:
    listed = download_manifest(Path("m.tsv"), *(download_row(object_id(number), analysis=ANALYSIS) for number in (1, 3)))
    assert score("download", "--manifest", listed, "--output-dir", "out").code == 0
    assert downloaded() == ["a.bam", "a.bam.bai", "b.vcf.gz"]
    assert len(analysis.asked) == 1


def test_column_that_is_no_analysis(score: Score, analysis: Song) -> None:
    listed = download_manifest(Path("m.tsv"), download_row(object_id(1), analysis="FI1234"))
    assert score("download", "--manifest", listed, "--output-dir", "out").code == 0
    assert downloaded() == ["a.bam", "a.bam.bai"]


def test_object_that_song_does_not_know(score: Score, analysis: Song, some_file: Path) -> None:
    assert score(*argv(UPLOAD, some_file)).code == 0
    assert score(*DOWNLOAD).code == 0
    assert downloaded() == [OBJECT_ID]


@pytest.mark.parametrize(("status", "code"), [(401, 3), (403, 4), (500, 1), (503, 7)])
@pytest.mark.parametrize("words", [("upload", "--file", "FILE", "--object-id", object_id(1), "--md5", "compute"), DOWNLOAD])
def test_failing_song_is_never_success(
    score: Score, analysis: Song, server: JavaServer, some_file: Path, words: tuple[str, ...], status: int, code: int
) -> None:
    analysis.status = status
    ran = score(*argv(words, some_file))
    assert (ran.code, server.count("put"), Path("out").exists()) == (code, 0, False)
    assert analysis.url in ran.sentence()


def test_song_is_not_asked_for_what_nobody_wants(score: Score, analysis: Song) -> None:
    analysis.status = 503
    words = ("download", "--object-id", object_id(1), "--output-dir", "out", "--output-layout", "id", "--index", "false")
    assert score(*words).code == 0
    assert (downloaded(), analysis.asked) == ([object_id(1)], [])


def test_other_file_than_registered_is_not_sent(score: Score, analysis: Song, server: JavaServer, tmp_path: Path) -> None:
    path = tmp_path / "a.bam"
    path.write_bytes(b"x" * 100_000)
    ran = score("upload", "--file", path, "--object-id", object_id(1), "--md5", md5_of(path), "--force")
    assert (ran.code, server.count("initiate"), server.count("put")) == (6, 0, 0)


@pytest.mark.parametrize(("alive", "found"), [(True, True), (False, False), (None, False)])
def test_score_server_may_keep_metadata_too(environment: None, song: Song, alive: bool | None, found: bool) -> None:
    song.lives_with_score = alive
    settings = load({"url": song.url})
    repository = open_repository(settings)
    metadata = open_metadata(settings, repository)
    assert (metadata is not None and metadata.label) == (song.url if found else False)
    assert song.asked == ["/isAlive"]
    if metadata is not None:
        metadata.close()
    repository.close()


def test_server_that_is_out_of_order_is_not_one_without_metadata(environment: None, song: Song, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORE_ATTEMPTS", "2")
    song.status = 503
    settings = load({"url": song.url})
    repository = open_repository(settings)
    with pytest.raises(Unavailable):
        open_metadata(settings, repository)
    assert len(song.asked) == 2
    repository.close()


def test_server_without_metadata_is_not_asked_for_names(score: Score, server: JavaServer, some_file: Path) -> None:
    assert score(*argv(UPLOAD, some_file)).code == 0
    assert [seen.path for seen in server.seen if "/entities" in seen.path] == []
    ran = score("download", "--analysis-id", ANALYSIS, "--study-id", "TEST-CA", "--output-dir", "out")
    assert (ran.code, "METADATA_URL" in ran.sentence()) == (2, True)


# Tokens and places (bad inputs B25, B26, B41, B42, B45, B60)


def test_token_file_is_used_and_never_shown(
    score: Score, server: JavaServer, some_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACCESSTOKEN")
    path = tmp_path / "token"
    path.write_text(server.token + "\n")
    monkeypatch.setenv("SCORE_TOKEN_FILE", str(path))
    runs = [score(*argv(UPLOAD, some_file), "--debug"), score(*DOWNLOAD, "--debug"), score("info", "--verbose"), score("info", "--json")]
    assert [ran.code for ran in runs] == [0, 0, 0, 0]
    assert [ran for ran in runs if server.token in ran.out + ran.err] == []
    assert f"token_file = {path}  (environment SCORE_TOKEN_FILE)" in runs[2].out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"s3cr3t two words", "without blanks"),
        (b"s3cr3t\ns3cr3t", "one line"),
        (b"s3cr3t\xff", "ASCII"),
        (b"s3cr3t" * 10_000, "at most"),
        (None, "cannot be read"),
    ],
)
def test_bad_token_file_is_one_sentence(
    score: Score, server: JavaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, says: str
) -> None:
    monkeypatch.delenv("ACCESSTOKEN")
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("SCORE_TOKEN_FILE", str(path))
    ran = score("list")
    assert (ran.code, says in ran.sentence(), "s3cr3t" in ran.err, str(path) in ran.err) == (2, True, False, True)
    assert server.seen == []


@pytest.mark.parametrize("token", ["", "wrong"])
def test_missing_or_wrong_token(score: Score, server: JavaServer, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("ACCESSTOKEN", token)
    ran = score("list")
    assert (ran.code, "token" in ran.sentence(), "expired" in ran.err) == (3, True, token == "wrong")


@pytest.mark.parametrize("variable", ["STORAGE_URL", "METADATA_URL"])
def test_token_does_not_go_over_plain_http(
    score: Score, server: JavaServer, monkeypatch: pytest.MonkeyPatch, some_file: Path, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://score.example.org")
    ran = score(*argv(UPLOAD, some_file))
    assert (ran.code, "allow_plain_http" in ran.sentence()) == (2, True)


def test_plain_http_can_be_allowed(score: Score, server: JavaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_URL", server.url.replace("127.0.0.1", "host.invalid"))
    monkeypatch.setenv("SCORE_ALLOW_PLAIN_HTTP", "yes")
    ran = score("list")
    assert (ran.code, "is not reached" in ran.sentence()) == (7, True)


def test_data_hosts_are_held_to(score: Score, server: JavaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORE_DATA_HOSTS", "s3.example.org")
    ran = score(*DOWNLOAD)
    assert (ran.code, "not among data_hosts" in ran.sentence()) == (1, True)


@pytest.mark.parametrize(
    "name",
    ["x", "ID/../y", "%2e%2e%2f", "a" * 10_000, "ID?external=true", "ID#x", "@host/ID", " ID/x"],
)
@pytest.mark.parametrize("command", ["url", "abort", "download", "upload"])
def test_odd_id_reaches_no_server(score: Score, server: JavaServer, some_file: Path, command: str, name: str) -> None:
    more = {"download": ["--output-dir", "out"], "upload": ["--file", str(some_file), "--md5", "compute"]}.get(command, [])
    ran = score(command, "--object-id", name.replace("ID", OBJECT_ID), *more)
    assert (ran.code, "is not an object id" in ran.sentence(), server.seen) == (2, True, [])


def test_who_won_when_all_speak(score: Score, server: JavaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        "url = 'https://file.example.org'\ntoken = 'f'\nworkers = 1\n"
        "[profiles.a]\nurl = 'https://a.example.org'\nworkers = 2\n[profiles.b]\nworkers = 3\ntoken_file = '/b'\n"
    )
    config.chmod(0o600)
    monkeypatch.delenv("ACCESSTOKEN")
    monkeypatch.setenv("STORAGE_PROFILE", "a")
    shown = score("config", "show", "--origin", "--config", config, "--profile", "b", "--url", "https://flag.example.org").out.splitlines()
    assert "url = https://flag.example.org  (option --url)" in shown
    assert f"workers = 3  (profile b in {config})" in shown
    assert f"token_file = /b  (profile b in {config})" in shown
    assert "token =   (default)" in shown
    assert "attempts = 2  (environment STORAGE_RETRYNUMBER)" in shown
