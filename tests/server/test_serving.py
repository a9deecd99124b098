"""`score serve` as a process, and the same application under a process manager."""

from __future__ import annotations

import gzip
import logging
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from score_core.checksum import md5_hex
from score_core.cli.app import main
from score_core.errors import ConfigurationError, ScoreError
from score_core.java_settings import KEYS, variable
from score_core.repository.direct import DirectRepository
from score_core.server import serving as module
from score_core.server.serving import create_app, serving
from score_core.server.settings import load_server_settings
from score_core.settings import load
from score_core.testing.metadata import payload_of
from score_core.testing.servers import free_ports

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of one's own: no setting of the machine shines through."""
    for name in list(os.environ):
        if (name.startswith(("SCORE_", "AWS_")) or name in map(variable, KEYS)) and name != "SCORE_VENV":
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SCORE_CONFIG", os.devnull)
    monkeypatch.setenv("SCORE_DATA_DIR", str(tmp_path / "home"))
    return tmp_path / "home"


@dataclass
class Process:
    """A server that runs. `first` is its first line."""

    process: subprocess.Popen[str]
    first: str

    @property
    def url(self) -> str:
        return self.first

    def ends(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and what it said on stderr, once it is asked to stop; within five seconds."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=5)
        return self.process.returncode, err


Start = Callable[..., Process]
Fails = Callable[..., str]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts programs and waits for their first line; kills what is left of them."""
    started: list[subprocess.Popen[str]] = []

    def run(*argv: str, module: str = "score_core.cli", waits: bool = True, **environ: str) -> Process:
        words = [sys.executable, "-m", module, *argv]
        process = subprocess.Popen(
            words, env={**os.environ, **environ}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        started.append(process)
        assert process.stdout is not None
        return Process(process, process.stdout.readline().strip() if waits else "")

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def serve(start: Start, *argv: str, **environ: str) -> Process:
    running = start("serve", *(() if "--port" in argv else ("--port", "0")), *argv, **environ)
    assert running.first.startswith("http://"), running.process.communicate()
    return running


def token_of(home: Path) -> str:
    return (home / "token").read_text().strip()


def client(url: str, token: str | None = None) -> httpx.Client:
    return httpx.Client(base_url=url, headers={} if token is None else {"Authorization": f"Bearer {token}"}, verify=False, timeout=20)


def upload(http: httpx.Client, object_id: str, data: bytes) -> None:
    begun = http.post(f"/upload/{object_id}/uploads", params={"fileSize": len(data), "md5": md5_hex(data)})
    assert begun.status_code == 200, begun.text
    spec = begun.json()
    etag = httpx.put(spec["parts"][0]["url"], content=data, verify=False).headers["etag"].strip('"')
    part = {"partNumber": 1, "uploadId": spec["uploadId"], "md5": md5_hex(data), "etag": etag}
    assert http.post(f"/upload/{object_id}/parts", params=part).status_code == 200
    assert http.post(f"/upload/{object_id}", params={"uploadId": spec["uploadId"]}).status_code == 200


def register(http: httpx.Client, name: str) -> str:
    """The id of a file whose content is its name."""
    analysis = http.post("/submit/TEST", json=payload_of(name)).json()["analysisId"]
    return str(http.get(f"/studies/TEST/analysis/{analysis}/files").json()[0]["objectId"])


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one sentence that a server says instead of starting, in this process."""

    def run(*argv: str, **environ: str) -> str:
        with monkeypatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            capsys.readouterr()
            assert main(["serve", *argv]) != 0
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        return err

    return run


# As a process


def test_first_start_makes_a_token_and_serves(start: Start, home: Path) -> None:
    running = serve(start)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", running.url)
    assert stat.S_IMODE((home / "token").stat().st_mode) == 0o600
    token = token_of(home)
    with client(running.url) as nobody, client(running.url, token) as http:
        assert nobody.get("/listing").status_code == 401
        object_id = register(http, "a.bam")
        upload(http, object_id, b"a.bam")
        assert [row["id"] for row in http.get("/listing").json()] == [object_id]
        assert httpx.get(nobody.get("/download/ping").text, verify=False).status_code == 200  # the sentinel is there
    code, err = running.ends()
    assert code == 0
    assert token not in err
    assert "Traceback" not in err

    with client(serve(start).url, token) as http:  # which stays the same
        assert [row["id"] for row in http.get("/listing").json()] == [object_id]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_at_once_with_connections_open(start: Start, home: Path, number: int) -> None:
    running = serve(start)
    port = int(running.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as idle, socket.create_connection(("127.0.0.1", port)) as half:
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(4096).startswith(b"HTTP/1.1 200")
        half.sendall(b"GET /health HTTP/1.1\r\nHost:")
        began = time.monotonic()
        code, err = running.ends(number)
    assert code in {0, 128 + number}
    assert time.monotonic() - began < 3.5
    assert "Traceback" not in err
    socket.create_server(("127.0.0.1", port)).close()  # the port is free again


def test_address_for_clients_does_not_hide_the_store(start: Start, tmp_path: Path) -> None:
    """Both are set where one machine has the server and its clients: the server is at the store itself."""
    store = (tmp_path / "elsewhere").as_uri()
    _, err = serve(start, SCORE_STORE=store, STORAGE_URL="https://score.example.org", SCORE_URL="https://score.example.org").ends()
    assert f"Serving {store}" in err


@pytest.mark.parametrize("content", ["", "short", "two words of a token", "t\u00f6ken-t\u00f6ken-t\u00f6ken"])
def test_token_file_with_something_else(home: Path, fails: Fails, content: str) -> None:
    home.mkdir()
    (home / "token").write_text(content)
    said = fails("--port", "0")
    assert "printable ASCII" in said
    assert "short" not in said
    assert (home / "token").read_text() == content


def test_token_file_that_cannot_be_read(home: Path, fails: Fails) -> None:
    (home / "token").mkdir(parents=True)
    assert "token" in fails("--port", "0")


@pytest.mark.parametrize("which", ["--port", "--data-port"])
def test_port_that_is_taken(home: Path, fails: Fails, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        others = [] if which == "--port" else ["--port", "0"]
        assert port in fails(which, port, *others)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", "127.0.0.1.example.org", "localhost.x", "0", ""])
@pytest.mark.parametrize("mode", ["embedded", "none"])
def test_only_loopback_unless_allowed(host: str, mode: str) -> None:
    options = load_server_settings(host=host, port=0, auth={"mode": mode})
    with pytest.raises(ConfigurationError), serving(load(), options):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.2"])
def test_loopback_has_many_names(host: str) -> None:
    try:
        with serving(load(), load_server_settings(host=host, port=0, cleans=False)) as running, client(running.url) as http:
            assert http.get("/health").status_code == 200
    except ConfigurationError as error:
        if ":" in host and "assign" in str(error):
            pytest.skip("this machine has no IPv6")
        raise


def test_nobody_is_let_in_from_outside_without_a_token(fails: Fails) -> None:
    """Not with --allow-public either."""
    assert "without authentication" in fails("--port", "0", "--host", "0.0.0.0", "--allow-public", SCORE_SERVER_AUTH_MODE="none")


def test_public_on_purpose(start: Start, home: Path) -> None:
    running = serve(start, "--host", "0.0.0.0", "--allow-public")
    port = running.url.rpartition(":")[2]
    with client(f"http://127.0.0.1:{port}") as http:
        assert http.get("/listing").status_code == 401


def test_without_authentication_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORE_SERVER_AUTH_MODE", "none")
    with serving(load(at_store=True), load_server_settings(port=0)) as running, client(running.url) as http:
        assert http.get("/listing").json() == []


def test_two_servers_on_one_folder(start: Start, home: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: serve(start), range(2))
    token = token_of(home)
    with client(first.url, token) as one, client(second.url, token) as other:
        object_id = register(one, "a.bam")
        upload(other, object_id, b"a.bam")
        assert one.get(f"/upload/{object_id}").text == "true"
        spec = one.get(f"/download/{object_id}", params={"offset": 0, "length": -1, "exclude-urls": "true"}).json()
        assert spec["objectMd5"] == md5_hex(b"a.bam")


def test_settings_that_do_not_fit_end_in_a_sentence(home: Path, fails: Fails) -> None:
    assert "public_key" in fails("--port", "0", SCORE_SERVER_AUTH_MODE="jwt")
    assert "SCORE_SERVER_AUTH_MODE" in fails("--port", "0", SCORE_SERVER_AUTH="jwt")
    assert "SCORE_SERVER_POOL" in fails("--port", "0", SCORE_SERVER_POOL="many")


def test_store_that_is_not_reached_at_the_start(home: Path, fails: Fails) -> None:
    (port,) = free_ports(1)
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "hunter2", "AWS_DEFAULT_REGION": "x", "AWS_EC2_METADATA_DISABLED": "true"}
    said = fails("--port", "0", "--store", f"s3://bucket?endpoint=http://127.0.0.1:{port}", **keys)
    assert said.startswith("error: ")
    assert "hunter2" not in said


def test_what_was_not_started_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(DirectRepository):
        def ensure_sentinel(self) -> None:
            raise ScoreError("the bucket is gone")

    monkeypatch.setattr(module, "DirectRepository", Broken)
    with pytest.raises(ScoreError, match="the bucket is gone"), serving(load(), load_server_settings(port=0)):
        pass


def test_answers_leave_at_once(home: Path) -> None:
    """Without TCP_NODELAY each answer on a kept connection waits 40 ms for a delayed ACK."""
    with serving(load(), load_server_settings(port=0, cleans=False)) as running, client(running.url) as http:
        http.get("/health")
        took = []
        for _ in range(20):
            began = time.monotonic()
            http.get("/health")
            took.append(time.monotonic() - began)
    assert sorted(took)[5] < 0.035


@pytest.mark.parametrize(("proxies", "shown"), [([], "127.0.0.1"), (["127.0.0.0/8"], "6.6.6.6"), (["10.0.0.1"], "127.0.0.1")])
def test_proxy_says_who_asks_if_it_is_trusted(proxies: list[str], shown: str, caplog: pytest.LogCaptureFixture) -> None:  # B37
    with (
        caplog.at_level(logging.INFO, "score_core.server.audit"),
        serving(load(), load_server_settings(port=0, trusted_proxies=proxies)) as running,
        client(running.url) as http,
    ):
        http.get("/profile", headers={"X-Forwarded-For": "9.9.9.9, 6.6.6.6"})  # what the proxy added is the last
    (line,) = [record.getMessage() for record in caplog.records if record.name == "score_core.server.audit"]
    assert line.split()[0] == shown


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(pid: int) -> int:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")


@needs_proc
def test_bad_requests_leave_no_memory_behind(start: Start, home: Path) -> None:  # B38
    running = serve(start)
    token = token_of(home)
    bodies = (
        b"[" + b" " * 10_000_001 + b"]",
        b"[" * 10_000 + b"]" * 10_000,
        gzip.compress(b"[" + b" " * 100_000_000 + b"]"),
    )
    with client(running.url, token) as http, client(running.url, "wrong") as stranger:

        def ask(times: int) -> None:
            for _ in range(times):
                for body in bodies:
                    assert http.post("/submit/TEST", content=body).status_code in {400, 413}
                    assert stranger.post("/submit/TEST", content=body).status_code == 401
                    assert http.post("/submit/TEST", content=iter([body])).status_code in {400, 413}  # its length is not said
                for length in (60_000, 100_000):
                    assert http.get("/health", headers={"X-Long": "a" * length}).status_code in {200, 400, 431}

        ask(1)  # what is imported and compiled at the first request
        before = resident_bytes(running.process.pid)
        ask(10)
        assert resident_bytes(running.process.pid) - before < 10 * MIB


@needs_proc
def test_small_values_do_not_multiply(start: Start, home: Path) -> None:
    """10 MB of them would be 500 MB of memory."""
    running = serve(start)
    with client(running.url, token_of(home)) as http:
        http.post("/submit/TEST", content=b"{}")
        for one in (b"[],", b"{},", b'"ab",', b"1.5,", b'{"a":1},'):
            Path(f"/proc/{running.process.pid}/clear_refs").write_text("5")  # the peak begins anew: proc(5)
            before = resident_bytes(running.process.pid)
            assert http.post("/submit/TEST", content=b"[" + one * (9_900_000 // len(one)) + b"0]").status_code == 413
            assert (one, peak_bytes(running.process.pid) - before < 40 * MIB) == (one, True)


# Under a process manager


def test_several_workers(start: Start, home: Path) -> None:
    (port,) = free_ports(1)
    words = ["--factory", "score_core.server.serving:create_app", "--workers", "2", "--port", str(port), "--no-access-log"]
    process = start(*words, module="uvicorn", waits=False).process
    url = f"http://127.0.0.1:{port}"
    until_it_answers(url)
    token = token_of(home)
    with client(url, token) as http:
        ids = [register(http, f"{number}.bam") for number in range(4)]

    def one(number: int) -> int:
        with client(url, token) as http:  # a connection of its own, to either worker
            upload(http, ids[number], f"{number}.bam".encode())
            return http.get(f"/download/{ids[number]}?offset=0&length=-1&exclude-urls=true").status_code

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == [200] * 4
    with client(url, token) as http:
        assert {row["id"] for row in http.get("/listing").json()} == set(ids)
        assert httpx.get(http.get("/download/ping").text, verify=False).status_code == 200
    process.terminate()
    _, err = process.communicate(timeout=15)
    assert token not in err
    assert "Traceback" not in err


def until_it_answers(url: str) -> None:
    deadline = time.monotonic() + 40
    while True:
        try:
            if httpx.get(f"{url}/health", verify=False).status_code == 200:
                return
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_process_manager_is_refused_without_authentication(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows where it is going to listen."""
    monkeypatch.setenv("SCORE_SERVER_AUTH_MODE", "none")
    with pytest.raises(ConfigurationError, match="score serve"):
        create_app()
