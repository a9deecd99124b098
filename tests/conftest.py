"""Fixtures for all tests: real and simulated S3 servers come from the shipped plugin."""

import socketserver
import ssl
from collections.abc import Iterator
from typing import Any

import certifi
import pytest
from hypothesis import settings

pytest_plugins = ["score_core.testing.pytest_plugin"]

POLL_S = 0.005

settings.register_profile("suite", deadline=None)  # a busy machine is no fault
settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "xdist_group(name): runs in one process with others of that name; known without xdist, too")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Names the group of a test in its id, and puts the longest group first: what comes last should be short, or one process waits.

    pytest-xdist 3.8 writes the name where pytest 9.2 does not read it, and `--dist loadgroup` then groups nothing (pytest-xdist#1386).
    """
    if not getattr(config.option, "loadgroup", False):  # set in the processes of xdist
        return
    for item in items:
        group = group_of(item)
        if group and not item.nodeid.endswith(f"@{group}"):
            item._id = type(item._id).parse(f"{item.nodeid}@{group}")
    items.sort(key=lambda item: group_of(item) != "flows")


def group_of(item: pytest.Item) -> str | None:
    mark = item.get_closest_marker("xdist_group")
    return None if mark is None else str(mark.args[0])


@pytest.fixture(scope="session", autouse=True)
def servers_end_at_once() -> Iterator[None]:
    """`shutdown` waits until a server of the standard library looks up, which ours do every 0.1 s: with hundreds of servers, a minute."""
    serve = socketserver.BaseServer.serve_forever

    def serve_forever(server: socketserver.BaseServer, poll_interval: float = POLL_S) -> None:
        serve(server, min(poll_interval, POLL_S))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socketserver.BaseServer, "serve_forever", serve_forever)
        yield


@pytest.fixture(scope="session", autouse=True)
def authorities_are_read_once() -> Iterator[None]:
    """Each client reads all authorities of the world, 20 ms, whether it speaks TLS or not; those of a test's own are not kept."""
    make = ssl.create_default_context
    world = make(cafile=certifi.where())

    def create_default_context(purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH, **given: Any) -> ssl.SSLContext:
        return world if given == {"cafile": certifi.where()} else make(purpose, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", create_default_context)
        yield
