"""A real server on loopback, in this process, over whatever a test gives it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fastapi.routing
import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from score_core.auth.embedded import EmbeddedToken
from score_core.metadata.registry import Registry
from score_core.repository.direct import DirectRepository
from score_core.repository.remote import RemoteRepository
from score_core.server.app import ServerParts, create_app
from score_core.server.serving import RestServer
from score_core.service import ServiceClient, Token
from score_core.stores.local import LocalStore
from score_core.transfer.policy import RetryPolicy

TOKEN = "a-token-that-only-tests-have-0123456789"
PART_BYTES = 64 << 10


@dataclass
class Site:
    """A running server and what is behind it. `http` is an httpx client with the token; `url` the server's address."""

    url: str
    http: httpx.Client
    parts: ServerParts
    repository: Any  # the DirectRepository, whose insides tests may look at

    def anonymous(self, method: str, path: str, **options: Any) -> httpx.Response:
        return httpx.request(method, self.url + path, verify=False, **options)  # reading certificates would take 20 ms


StartSite = Callable[..., Site]


def client_of(url: str, token: str | None = TOKEN, *, attempts: int = 3) -> ServiceClient:
    return ServiceClient(url, name="The Score server", token=Token(token), policy=RetryPolicy(attempts=attempts, base_s=0.01))


def remote(url: str, token: str | None = TOKEN) -> RemoteRepository:
    return RemoteRepository(client_of(url, token))


class Stage:
    """A running server whose application changes from test to test: starting and stopping one takes 0.3 s."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None
        self.server = RestServer(self, "127.0.0.1", 0)
        self.server.start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        await self.app(scope, receive, send)


@pytest.fixture(scope="session", autouse=True)
def documented_answers_are_modelled_once() -> Iterator[None]:
    """FastAPI models each documented answer of each application anew, most of the 0.1 s that making one takes."""
    make = vars(fastapi.routing)["create_model_field"]
    made: dict[Any, Any] = {}

    def create_model_field(*, name: str, type_: Any, mode: Any) -> Any:
        if type_ not in made:
            made[type_] = make(name=name, type_=type_, mode=mode)
        field = copy.copy(made[type_])
        field.name = name
        return field

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastapi.routing, "create_model_field", create_model_field)
        yield


@pytest.fixture(scope="session")
def idle_stages() -> Iterator[list[Stage]]:
    stages: list[Stage] = []
    yield stages
    for stage in stages:
        stage.server.close()


@contextmanager
def site_over(stages: list[Stage], repository: DirectRepository, **options: Any) -> Iterator[Site]:
    """A server over `repository`, on a stage that is idle; `options` replace what `ServerParts` has."""
    parts = replace(ServerParts(repository, authenticator=EmbeddedToken(TOKEN)), **options)
    stage = stages.pop() if stages else Stage()
    try:
        stage.app, url = create_app(parts), stage.server.url
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, verify=False) as http:
            yield Site(url, http, parts, repository)
    finally:
        stages.append(stage)


@pytest.fixture
def start_site(idle_stages: list[Stage]) -> Iterator[StartSite]:
    """Starts servers; `options` as of `site_over`."""
    with ExitStack() as stack:

        def start(repository: DirectRepository, **options: Any) -> Site:
            return stack.enter_context(site_over(idle_stages, repository, **options))

        yield start


@pytest.fixture
def folder_repository(tmp_path: Path) -> Iterator[DirectRepository]:
    store = LocalStore(tmp_path / "bucket")
    yield DirectRepository(store, part_size_bytes=PART_BYTES)
    store.close()


@pytest.fixture
def site(start_site: StartSite, folder_repository: DirectRepository, tmp_path: Path) -> Iterator[Site]:
    """A server with the embedded registry, as `score serve` starts it without any configuration."""
    registry = Registry(tmp_path / "registry.sqlite3", repository=folder_repository)
    yield start_site(folder_repository, metadata=registry, song=registry)
    registry.close()
