"""Whatever range is asked for, its parts tile it exactly, with absolute offsets, and its URLs bring those bytes (protocol 3.6 and 6.1)."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from score_core.auth.embedded import EmbeddedToken
from score_core.plan import part_size_bytes
from score_core.repository.direct import DirectRepository
from score_core.server.app import ServerParts, create_app
from score_core.server.serving import RestServer
from score_core.stores.local import LocalStore
from tests.server.conftest import TOKEN

ID = "3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11"
PART = 7
DATA = bytes(range(1, 101))  # 100 bytes: 15 parts
EDGES = st.sampled_from([0, 1, 6, 7, 8, 13, 14, 93, 98, 99, 100, 101, 107, 2**31, 2**63 - 1])


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    store = LocalStore(tmp_path_factory.mktemp("ranges") / "bucket")
    store.write(f"data/{ID}", DATA)
    server = RestServer(
        create_app(ServerParts(DirectRepository(store, part_size_bytes=PART), authenticator=EmbeddedToken(TOKEN))), "127.0.0.1", 0
    )
    server.start()
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client
    server.close()
    store.close()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(offset=st.integers(-3, 110) | EDGES, length=st.integers(-3, 110) | EDGES, external=st.booleans(), excludes=st.booleans())
def test_any_range(http: httpx.Client, offset: int, length: int, external: bool, excludes: bool) -> None:
    query = {"offset": offset, "length": length, "external": external, "exclude-urls": excludes}
    response = http.get(f"/download/{ID}", params=query)
    end = len(DATA) if length < 0 else offset + length
    if offset < 0 or offset > len(DATA) or end > len(DATA):
        assert response.status_code == 400
        return
    assert response.status_code == 200
    body = response.json()
    parts = body["parts"]
    assert all((part["url"] is None) == excludes for part in parts)
    if external:
        assert [(part["partNumber"], part["partSize"], part["offset"]) for part in parts] == [(1, -1, 0)]
        assert body["objectSize"] == length
        return
    wanted = DATA[offset:end]
    assert body["objectSize"] == len(wanted)
    assert [part["partNumber"] for part in parts] == list(range(1, len(parts) + 1))
    assert b"".join(DATA[part["offset"] : part["offset"] + part["partSize"]] for part in parts) == wanted
    assert all(part["partSize"] == part_size_bytes(len(wanted), minimum=PART) for part in parts[:-1])
    if parts and not excludes:
        part = parts[-1]
        first, last = part["offset"], part["offset"] + part["partSize"] - 1
        headers = {"Range": f"bytes={first}-{last}", "X-SCORE-TOKEN": "", "Authorization": ""}
        got = http.get(part["url"], headers=headers)
        assert got.content == DATA[first : last + 1]
