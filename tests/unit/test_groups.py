"""Tests that share a costly server run in one process, as `--dist loadgroup` promises."""

import pytest


@pytest.mark.xdist_group("named")
def test_group_is_in_the_name_by_which_xdist_distributes(request: pytest.FixtureRequest) -> None:
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("runs with --dist loadgroup")
    assert request.node.nodeid.endswith("@named")
