"""A real Score server with metadata, in this process, behind proxies that count and break; and Snakemake as a user starts it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import pytest

from score_core import operations
from score_core.auth.embedded import EmbeddedToken
from score_core.checksum import md5_hex
from score_core.java_settings import KEYS, variable
from score_core.metadata.base import Analysis
from score_core.metadata.registering import NewFile, register
from score_core.metadata.registry import Registry
from score_core.operations import UploadItem
from score_core.repository.direct import DirectRepository
from score_core.server.app import ServerParts, create_app
from score_core.server.bytes import ByteServer
from score_core.server.serving import RestServer
from score_core.session import S3_MIN_PART_SIZE_BYTES
from score_core.stores.base import MultipartStore
from score_core.stores.local import LocalStore
from score_core.testing.faults import FaultProxy, Seen, is_get
from score_core.testing.servers import S3Endpoint
from score_core.transfer.engine import Engine
from score_core.transfer.http import HttpTransport

ROOT = Path(__file__).resolve().parents[3]
PLUGIN_SOURCE = ROOT / "workflows" / "snakemake" / "src"
TOKEN = "a-token-that-only-tests-have-0123456789"
STUDY = "TEST-CA"
PART_BYTES = 64 << 10


@dataclass
class Site:
    """A running server. `url` is its REST API, Score's and Song's, behind the proxy `rest`; `data` is in front of the bytes' server."""

    url: str
    rest: FaultProxy
    data: FaultProxy
    registry: Registry
    repository: DirectRepository
    _put: Engine = field(repr=False)

    def add(self, files: Mapping[str, bytes], *, publishes: bool = True, stores: bool = True, analysis_id: str | None = None) -> Analysis:
        """A new analysis with these files, stored and published if so asked, and not counted by the proxies."""
        folder = self.registry._path.parent / "added"
        folder.mkdir(exist_ok=True)
        new = [NewFile(folder / name, len(data), md5_hex(data)) for name, data in files.items()]
        analysis = register(self.registry, STUDY, new, analysis_id=analysis_id or str(uuid4()))
        for record in analysis.files if stores else ():
            path = folder / record.file_name
            path.write_bytes(files[record.file_name])
            operations.upload(self._put, UploadItem(record.object_id, path, record.md5), force=True)
            path.unlink()
        if publishes:
            self.registry.publish(STUDY, analysis.analysis_id)
        self.forget()
        return self.registry.analysis(STUDY, analysis.analysis_id)

    def forget(self) -> None:
        """Both proxies count from nothing, and are honest."""
        for proxy in (self.rest, self.data):
            proxy.heal()
            proxy.forget()

    def metadata_calls(self) -> list[Seen]:
        """The requests that asked for metadata."""
        return [seen for seen in list(self.rest.seen) if seen.key.startswith(("studies", "entities", "submit", "isAlive"))]

    def gets(self) -> list[Seen]:
        """The requests that fetched bytes of objects."""
        return [seen for seen in list(self.data.seen) if is_get(seen)]

    def environment(self) -> dict[str, str]:
        """What a process needs to use this server by the usual settings of `score`."""
        return {"SCORE_URL": self.url, "METADATA_URL": self.url, "ACCESSTOKEN": TOKEN}


@contextmanager
def site_over(store: MultipartStore, folder: Path, data: FaultProxy, *, part_size_bytes: int = PART_BYTES) -> Iterator[Site]:
    """A server over `store`, which is closed with it, with its registry in `folder`."""
    with ExitStack() as closing:
        repository = DirectRepository(store, part_size_bytes=part_size_bytes)
        closing.callback(repository.close)
        registry = Registry(folder / "registry.sqlite3", repository=repository)
        closing.callback(registry.close)
        app = create_app(ServerParts(repository, metadata=registry, song=registry, authenticator=EmbeddedToken(TOKEN)))
        server = RestServer(app, "127.0.0.1", 0)
        closing.callback(server.close)
        server.start()
        rest = closing.enter_context(FaultProxy(server.url))
        transport = HttpTransport(connections=4)
        closing.callback(transport.close)
        yield Site(rest.url, rest, data, registry, repository, Engine(repository, transport))


@pytest.fixture(scope="session")
def folder_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server over a folder, as `score serve` is without any configuration, for all tests."""
    folder = tmp_path_factory.mktemp("site")
    with ExitStack() as closing:
        store = LocalStore(folder / "store")
        closing.callback(store.close)
        server = ByteServer(store)
        closing.callback(server.close)
        server.start()
        data = closing.enter_context(FaultProxy(server.url))
        yield closing.enter_context(site_over(LocalStore(folder / "store", base_url=data.url), folder, data))


@pytest.fixture
def site(folder_site: Site) -> Site:
    """The server over a folder; its proxies have seen nothing."""
    folder_site.forget()
    return folder_site


@pytest.fixture(scope="session")
def s3_site(tmp_path_factory: pytest.TempPathFactory, seaweedfs_server: S3Endpoint) -> Iterator[Site]:
    """A server over a real S3 server."""
    bucket = seaweedfs_server.fresh_bucket()
    with FaultProxy(seaweedfs_server.url) as data:
        store = replace(seaweedfs_server, url=data.url).store(bucket)
        with site_over(store, tmp_path_factory.mktemp("s3-site"), data, part_size_bytes=S3_MIN_PART_SIZE_BYTES) as made:
            yield made


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the `score` command of this tree, whether it is installed or not."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "score"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m score_core.cli "$@"\n')
    script.chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def no_settings_of_the_machine(commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of one's own: no setting of the machine shines through, in this process and those that it starts."""
    for name in list(os.environ):
        if (name.startswith(("SCORE_", "AWS_", "SNAKEMAKE_")) or name in map(variable, KEYS)) and name != "SCORE_VENV":
            monkeypatch.delenv(name)
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))
    monkeypatch.setenv("SCORE_CONFIG", os.devnull)
    monkeypatch.setenv("SCORE_DATA_DIR", str(tmp_path / "home" / "score"))
    monkeypatch.setenv("SCORE_PART_SIZE_BYTES", str(PART_BYTES))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(PLUGIN_SOURCE))))
    monkeypatch.setenv("PATH", os.pathsep.join((str(commands), str(Path(sys.executable).parent))), prepend=os.pathsep)


@dataclass
class Ran:
    """One run of Snakemake: its exit code, and all that it printed."""

    code: int
    text: str


Snakemake = Callable[..., Ran]


@pytest.fixture
def snakemake(tmp_path: Path) -> Snakemake:
    """Runs `snakemake` with a Snakefile's text in a folder, by default always the same one, and environment variables by name."""

    def run(snakefile: str, *argv: str, folder: Path | None = None, **environment: str) -> Ran:
        work = folder or tmp_path / "work"
        work.mkdir(parents=True, exist_ok=True)
        (work / "Snakefile").write_text(snakefile)
        command = [sys.executable, "-m", "snakemake", "--cores", "4", "--nocolor", *argv]
        done = subprocess.run(
            command,
            cwd=work,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )
        return Ran(done.returncode, done.stdout)

    return run
