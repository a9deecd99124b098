"""What a host says by itself, however it is written."""

import pytest

from score_core.hosts import http_url, is_link_local, is_loopback

LINK_LOCAL = ["169.254.169.254", "0xa9fea9fe", "2852039166", "0251.0376.0251.0376", "::ffff:169.254.169.254", "fe80::1", "fe80::1%eth0"]
OTHER = ["", "localhost", "example.org", "10.0.0.1", "169.253.1.1", "::1", "169.254.example.org"]


@pytest.mark.parametrize("host", LINK_LOCAL)
def test_link_local(host: str) -> None:
    assert is_link_local(host)


@pytest.mark.parametrize("host", OTHER)
def test_not_link_local(host: str) -> None:
    assert not is_link_local(host)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "::1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "localhost.example.org", "2130706433", "10.0.0.1"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_address() -> None:
    assert (http_url("127.0.0.1", 1), http_url("::1", 2)) == ("http://127.0.0.1:1", "http://[::1]:2")
