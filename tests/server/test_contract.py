"""A remote repository keeps every promise of a repository: over our server, over a folder and a real S3 store, over two servers at once."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from score_core.auth.embedded import EmbeddedToken
from score_core.repository.base import Repository
from score_core.repository.direct import DirectRepository
from score_core.server.app import ServerParts, create_app
from score_core.stores.local import LocalStore
from score_core.testing.pytest_plugin import StoreFactory
from score_core.testing.repositories import RepositoryContract
from score_core.testing.servers import S3Endpoint
from score_core.transfer.http import HttpTransport
from score_core.transfer.part import PartTransport
from tests.server.conftest import TOKEN, Stage, remote

MIB = 1 << 20


@contextmanager
def served(repository: DirectRepository, stages: list[Stage]) -> Iterator[Repository]:
    """Our server over it, seen by a client."""
    stage = stages.pop() if stages else Stage()
    stage.app = create_app(ServerParts(repository, authenticator=EmbeddedToken(TOKEN)))
    client = remote(stage.server.url)
    yield client
    client.close()
    stages.append(stage)


class OverServer(RepositoryContract):
    @pytest.fixture(scope="class")
    @classmethod
    def transport(cls) -> Iterator[PartTransport]:
        transport = HttpTransport()
        yield transport
        transport.close()


class TestOverServerOverFolder(OverServer):
    @pytest.fixture(scope="class")
    @classmethod
    def repository(cls, idle_stages: list[Stage], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
        store = LocalStore(tmp_path_factory.mktemp("bucket"))
        with served(DirectRepository(store, part_size_bytes=cls.part_size), idle_stages) as repository:
            yield repository
        store.close()


@pytest.mark.s3
class TestOverServerOverSeaweed(OverServer):
    part_size: ClassVar[int] = 5 * MIB

    @pytest.fixture(scope="class")
    @classmethod
    def repository(cls, idle_stages: list[Stage], seaweedfs_server: S3Endpoint, s3_store_factory: StoreFactory) -> Iterator[Repository]:
        behind = DirectRepository(s3_store_factory(seaweedfs_server), part_size_bytes=cls.part_size)
        with served(behind, idle_stages) as repository:
            yield repository


class _InTurns:
    """One repository made of several: each call goes to the next of them, so that none may keep anything to itself."""

    def __init__(self, repositories: list[Any]) -> None:
        self._turns = itertools.cycle(repositories)
        self._all = repositories

    def __getattr__(self, name: str) -> Any:
        return getattr(next(self._turns), name)

    def close(self) -> None:
        for repository in self._all:
            repository.close()


def start_serve(folder: Path, stack: ExitStack, **environment: str) -> str:
    """`score serve` as a process of its own; its address."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SCORE_", "STORAGE_", "AWS_", "METADATA_"))}
    own = {"SCORE_DATA_DIR": str(folder), "SCORE_CONFIG": os.devnull, "SCORE_SERVER_METADATA": "none"}
    process = subprocess.Popen(
        [sys.executable, "-m", "score_core.cli", "serve", "--port", "0"],
        env={**clean, **own, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    stack.callback(process.wait, 10)
    stack.callback(process.terminate)
    assert process.stdout is not None
    stack.callback(process.stdout.close)
    return process.stdout.readline().strip()


def start_two(folder: Path, stack: ExitStack, **environment: str) -> list[str]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda _: start_serve(folder, stack, **environment), range(2)))


class OverTwoServers(OverServer):
    @pytest.fixture(scope="class")
    @classmethod
    def home(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("two-servers")

    @pytest.fixture(scope="class")
    @classmethod
    def repository(cls, addresses: list[str], home: Path) -> Iterator[Repository]:
        token = (home / "token").read_text().strip()
        repository = _InTurns([remote(address, token) for address in addresses])
        yield repository
        repository.close()

    def test_repository_is_one(self, repository: Repository) -> None:
        assert repository.exists("3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11") is False


@pytest.mark.xdist_group("two servers over a folder")
class TestOverTwoServersOverFolder(OverTwoServers):
    @pytest.fixture(scope="class")
    @classmethod
    def addresses(cls, home: Path) -> Iterator[list[str]]:
        with ExitStack() as stack:
            yield start_two(home, stack, SCORE_PART_SIZE_BYTES=str(cls.part_size))


@pytest.mark.s3
@pytest.mark.xdist_group("two servers over seaweed")
class TestOverTwoServersOverSeaweed(OverTwoServers):
    part_size: ClassVar[int] = 5 * MIB

    @pytest.fixture(scope="class")
    @classmethod
    def addresses(cls, home: Path, seaweedfs_server: S3Endpoint) -> Iterator[list[str]]:
        environment = {
            **seaweedfs_server.environment(),
            "SCORE_STORE": seaweedfs_server.store_url(seaweedfs_server.fresh_bucket()),
            "SCORE_PART_SIZE_BYTES": str(cls.part_size),
        }
        with ExitStack() as stack:
            yield start_two(home, stack, **environment)
