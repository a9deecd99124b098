"""Runs the real program, in this process where it can be, and slow or curious networks for it."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from score_core.checksum import md5_hex
from score_core.cli.app import main
from score_core.java_settings import KEYS, variable

ROOT = Path(__file__).resolve().parents[2]
OBJECT_ID = "5e0a7a2c-6d3e-5b0f-9c55-0d6a4f0e7b11"
PART_BYTES = 64 << 10


def object_id(number: int) -> str:
    return f"5e0a7a2c-6d3e-5b0f-9c55-{number:012x}"


@dataclass
class Ran:
    """What one run of the program gave back."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        return dict(json.loads(self.out))

    def sentence(self) -> str:
        """The one line that stderr must hold after a failure."""
        assert "Traceback" not in self.err + self.out
        (line,) = self.err.splitlines()
        assert line.startswith("error: ")
        return line


Score = Callable[..., Ran]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of one's own: no setting of the machine shines through."""
    for name in list(os.environ):
        if (name.startswith(("SCORE_", "AWS_")) or name in map(variable, KEYS)) and name != "SCORE_VENV":
            monkeypatch.delenv(name)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SCORE_CONFIG", os.devnull)
    monkeypatch.setenv("SCORE_DATA_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("SCORE_PART_SIZE_BYTES", str(PART_BYTES))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # or a test without credentials asks the network
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


@pytest.fixture
def score(environment: None, capsys: pytest.CaptureFixture[str]) -> Score:
    def run(*argv: str | Path) -> Ran:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def start(environment: None) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the program as a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def run(*argv: str | Path, **environ: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "score_core.cli", *map(str, argv)]
        process = subprocess.Popen(
            words, env={**os.environ, **environ}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def some_file(tmp_path: Path) -> Path:
    """Ten parts and a bit."""
    path = tmp_path / "some.bin"
    path.write_bytes(bytes(range(256)) * (PART_BYTES * 10 // 256) + b"and a bit")
    return path


def md5_of(path: Path) -> str:
    return md5_hex(path.read_bytes())


def upload_some(score: Score, path: Path, name: str = OBJECT_ID) -> None:
    assert score("upload", "--file", path, "--object-id", name, "--md5", md5_of(path)).code == 0


def manifest_of(path: Path, rows: list[tuple[str, Path | str, str]]) -> Path:
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in [("a25ae8b4-097d-11ea-b4b9-41f0d4c18919", "", ""), *rows]))
    return path


@dataclass
class Relay:
    """A TCP relay on loopback in front of `port`: at most `bytes_per_s` per connection and direction; remembers the request lines."""

    port: int
    bytes_per_s: float
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.port))
            self._open += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(16 << 10):
                self.requests += [line.decode() for line in re.findall(rb"(?:GET|PUT) (\S+) HTTP", data)]
                time.sleep(len(data) / self.bytes_per_s)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        for opened in self._open:
            opened.close()


def wait_until(ready: Callable[[], bool], *, patience_s: float = 30.0) -> None:
    deadline = time.monotonic() + patience_s
    while not ready():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


@pytest.fixture
def relay(tmp_path: Path, environment: None) -> Iterator[Callable[[float], Relay]]:
    """`score serve`'s server over the embedded store, behind a relay of the given speed."""
    from score_core.server.bytes import ByteServer
    from score_core.stores.local import LocalStore

    store = LocalStore(tmp_path / "home" / "store")
    server = ByteServer(store)
    server.start()
    relays: list[Relay] = []

    def make(bytes_per_s: float) -> Relay:
        relays.append(Relay(int(server.url.rpartition(":")[2]), bytes_per_s))
        return relays[-1]

    yield make
    for each in relays:
        each.close()
    server.close()
    store.close()
