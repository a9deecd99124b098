import contextlib
import errno
import http.client
import json
import logging
import os
import re
import socket
import struct
import threading
import time
from urllib.parse import urlsplit

import pytest
import urllib3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from score_core.checksum import md5_base64, md5_hex
from score_core.errors import ConfigurationError
from score_core.model import ByteRange, Part
from score_core.server import bytes as byte_server
from score_core.server.bytes import ByteServer
from score_core.stores.local import LocalStore
from score_core.testing.stores import get_url, put_url, request


@pytest.fixture
def store(tmp_path):
    store = LocalStore(tmp_path / "store")
    yield store
    store.close()


@pytest.fixture
def raw(store):
    """A connection that sends bytes as they are, and answers all that comes back until the server closes."""
    address = urlsplit(store.base_url)

    def talk(data, *, shut=True):
        with socket.create_connection((address.hostname, address.port), timeout=10) as sock:
            sock.sendall(data)
            if shut:
                sock.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while block := sock.recv(65536):
                    answer += block
            return answer

    return talk


def path_of(signed):
    parts = urlsplit(signed.url)
    return f"{parts.path}?{parts.query}"


def publish(store, key, *bodies):
    upload_id = store.create_multipart(key)
    for number, body in enumerate(bodies, 1):
        assert request(put_url(store, key, upload_id, Part(number, 0, len(body))), data=body).status == 200
    store.complete_multipart(key, upload_id, list(store.list_parts(key, upload_id)))


@pytest.fixture
def part_url(store):
    """An upload in progress and the URL of its part 1 of 5 bytes."""
    upload_id = store.create_multipart("data/a")
    return upload_id, put_url(store, "data/a", upload_id, Part(1, 0, 5))


# Answers


def test_health_is_up(store):
    response = urllib3.PoolManager().request("GET", store.base_url + "/health")
    assert (response.status, json.loads(response.data)) == (200, {"status": "UP"})


def test_range_answer_is_exact(store):
    publish(store, "data/a", b"01234", b"56789")
    response = request(get_url(store, "data/a", ByteRange(3, 4)))
    assert (response.status, response.data) == (206, b"3456")
    headers = response.headers
    assert (headers["Content-Range"], headers["Content-Length"], headers["Accept-Ranges"]) == ("bytes 3-6/10", "4", "bytes")
    assert headers["ETag"] == f'"{store.head("data/a").etag}"'
    assert headers["Last-Modified"].endswith("GMT")


@pytest.mark.parametrize(
    ("header", "status", "body"),
    [
        ("bytes=0-0", 206, b"0"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=-30", 206, b"0123456789"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=10-", 416, None),
        ("bytes=99-100", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=5-2", 200, b"0123456789"),
        ("bytes=0-1,3-4", 200, b"0123456789"),
        ("bytes=-", 200, b"0123456789"),
        ("lines=0-1", 200, b"0123456789"),
        ("bytes=a-b", 200, b"0123456789"),
        ("bytes=0-99999999999999999999999", 200, b"0123456789"),
    ],
)
def test_range_header_forms(store, header, status, body):
    store.write("a", b"0123456789")
    response = request(get_url(store, "a"), headers={"Range": header})
    assert response.status == status
    if status == 416:
        assert response.headers["Content-Range"] == "bytes */10"
    else:
        assert response.data == body


def test_head_has_the_headers_only(store, raw):
    store.write("a", b"0123456789")
    signed = get_url(store, "a")
    answer = raw(f"HEAD {path_of(signed)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"Content-Length: 10\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_empty_object_is_served(store):
    store.write("a", b"")
    response = request(get_url(store, "a"))
    assert (response.status, response.data) == (200, b"")


@pytest.mark.parametrize(("tags", "status"), [('"{}"', 200), ("*", 200), ('"x", "{}"', 200), ('"x"', 412), ("{}", 412)])
def test_if_match_forms(store, tags, status):
    store.write("a", b"1")
    headers = {"If-Match": tags.format(store.head("a").etag)}
    assert request(get_url(store, "a"), headers=headers).status == status


def test_one_connection_serves_many_requests(store):
    store.write("a", b"0123456789")
    upload_id = store.create_multipart("b")
    with urllib3.PoolManager(maxsize=1, retries=False) as pool:
        for number in range(1, 4):
            signed = put_url(store, "b", upload_id, Part(number, 0, 5))
            assert pool.urlopen("PUT", signed.url, body=b"hello").status == 200
            signed = get_url(store, "a", ByteRange(number, 2))
            assert len(pool.urlopen("GET", signed.url, headers=dict(signed.headers)).data) == 2
            assert pool.urlopen("GET", signed.url + "0").status == 403
        (opened,) = (connections.num_connections for connections in [pool.connection_from_url(store.base_url)])
    assert opened == 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=4), cut=st.tuples(st.integers(0, 12_000), st.integers(0, 12_000)))
def test_any_range_over_http_equals_the_bytes(store, sizes, cut):
    bodies = [os.urandom(size) for size in sizes]
    publish(store, "data/a", *bodies)
    data = b"".join(bodies)
    offset, end = sorted(value % (len(data) + 1) for value in cut)
    if offset < end:
        assert request(get_url(store, "data/a", ByteRange(offset, end - offset))).data == data[offset:end]


# Parts


def test_part_over_several_buffers_arrives(store):
    body = os.urandom(3_333_333)
    publish(store, "data/a", body, b"end")
    assert store.read("data/a") == body + b"end"


def test_etag_of_a_part_is_quoted_md5(part_url):
    assert request(part_url[1], data=b"hello").headers["ETag"] == f'"{md5_hex(b"hello")}"'


def test_empty_part_is_stored(store):
    upload_id = store.create_multipart("a")
    assert request(put_url(store, "a", upload_id, Part(1, 0, 0)), data=b"").status == 200


def test_unsigned_content_md5_is_checked_too(store, part_url):
    upload_id, signed = part_url
    response = request(signed, data=b"hello", headers={"Content-MD5": md5_base64(md5_hex(b"HELLO"))})
    assert response.status == 400
    assert b"<Code>BadDigest</Code>" in response.data
    assert list(store.list_parts("data/a", upload_id)) == []


@pytest.mark.parametrize("body", [b"", b"hell", b"hello!"])
def test_other_size_is_refused(store, part_url, body):
    upload_id, signed = part_url
    response = request(signed, data=body)
    assert response.status == 400
    assert (response.headers.get("Connection") == "close") == bool(body)
    assert list(store.list_parts("data/a", upload_id)) == []


def test_part_without_length_is_refused(part_url, raw):
    answer = raw(f"PUT {path_of(part_url[1])} HTTP/1.1\r\nHost: x\r\n\r\nhello".encode())
    assert answer.startswith(b"HTTP/1.1 411 ")


@pytest.mark.parametrize(
    "headers",
    [
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 5, 5",
        "Content-Length: 99999999999999999999",
    ],
)
def test_ambiguous_framing_is_refused_and_closed(store, part_url, raw, headers):
    upload_id, signed = part_url
    answer = raw(f"PUT {path_of(signed)} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n5\r\nhello\r\n0\r\n\r\n".encode())
    assert re.match(rb"HTTP/1.1 4\d\d ", answer)
    assert answer.count(b"HTTP/1.1") == 1
    assert list(store.list_parts("data/a", upload_id)) == []


def test_torn_put_leaves_nothing(store, part_url, raw, tmp_path):
    upload_id, signed = part_url
    assert raw(f"PUT {path_of(signed)} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel".encode()) == b""
    assert list((tmp_path / "store/.objects" / upload_id).iterdir()) == []
    assert list(store.list_parts("data/a", upload_id)) == []


def test_reset_put_leaves_nothing(store, tmp_path):
    upload_id = store.create_multipart("data/a")
    signed = put_url(store, "data/a", upload_id, Part(1, 0, 10_000_000))
    address = urlsplit(store.base_url)
    with socket.create_connection((address.hostname, address.port)) as sock:
        sock.sendall(f"PUT {path_of(signed)} HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n".encode() + b"x" * 3_000_000)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset, as a killed machine's peer sees it
    store.close()
    folder = tmp_path / "store/.objects" / upload_id
    for _ in range(10_000):
        if not list(folder.iterdir()):
            break
        os.sched_yield()
    assert list(folder.iterdir()) == []


def test_refused_upload_is_answered_while_the_client_still_sends(store, part_url):
    _, signed = part_url
    response = request(signed, url=signed.url.replace("partNumber=1", "partNumber=2"), data=b"x" * 20_000_000)
    assert (response.status, response.headers["Connection"]) == (403, "close")


def test_continue_is_said_to_good_requests_only(store, part_url, raw):
    _, signed = part_url
    head = f"PUT {path_of(signed)} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    assert raw((head + "hello").encode()).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")
    assert raw(head.replace("partNumber=1", "partNumber=2").encode()).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_507_and_leaves_nothing(store, part_url, monkeypatch, tmp_path, number):
    def full(*_):
        raise OSError(number, "full")

    monkeypatch.setattr(os, "fdatasync", full)  # a full disk cannot be had without root
    upload_id, signed = part_url
    response = request(signed, data=b"hello")
    assert response.status == 507
    assert b"<Code>InsufficientStorage</Code>" in response.data
    assert list((tmp_path / "store/.objects" / upload_id).iterdir()) == []


def test_broken_disk_is_500_without_details(store, part_url, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error", "/secret/place")

    monkeypatch.setattr(os, "fdatasync", broken)
    response = request(part_url[1], data=b"hello")
    assert response.status == 500
    assert b"/secret" not in response.data


# Bad requests


def test_get_with_a_body_is_refused(store, raw):
    store.write("a", b"1")
    signed = get_url(store, "a")
    answer = raw(f"GET {path_of(signed)} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc".encode())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"Connection: close" in answer


@pytest.mark.parametrize("head", ["X: " + "y" * 40_000, "\r\n".join(f"X-{number}: y" for number in range(200)), "X: " + "y" * 100_000])
def test_big_headers_are_431(raw, head):
    assert raw(f"GET /health HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode()).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    "line",
    [
        "GET",
        "GET /a?Signature=hunter2 HTTP/9",
        "GET /a?Signature=hunter2 NOTHTTP",
        "BREW /a?Signature=hunter2 HTTP/1.1",
        "\x16\x03\x01",
        "GET /" + "a" * 70_000,
    ],
)
def test_nonsense_is_refused_without_echo(raw, line):
    answer = raw(f"{line}\r\n\r\n".encode("latin-1"))
    assert b"hunter2" not in answer
    assert b"HTTP/1.1 2" not in answer


@pytest.mark.parametrize(
    "path", ["/../secret", "/%2e%2e/secret", "/.secret", "//etc/passwd", "/", "/a%00b", "/%ff", "/data/../../x", "http://other/a", "*"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "POST"])
def test_unsigned_paths_are_denied(store, raw, method, path):
    store.write("a", b"1")
    answer = raw(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 403 ")


def test_no_log_has_a_query(store, part_url, raw, caplog):
    caplog.set_level(logging.DEBUG)
    upload_id, signed = part_url
    request(signed, data=b"hello")
    request(signed, url=signed.url + "0", data=b"hello")
    raw(f"GET {path_of(signed)} NOTHTTP\r\n\r\n".encode())
    raw(f"GET {path_of(signed)} HTTP/1.1\r\nX: {'y' * 40_000}\r\n\r\n".encode())
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("score_core"))
    assert "PUT /data/a 200" in ours
    assert "Signature" not in ours
    assert upload_id not in ours


def test_object_shorter_than_its_manifest_is_a_short_body(store, tmp_path):
    publish(store, "data/a", b"0" * 1000, b"1" * 1000)
    (second,) = (tmp_path / "store/.objects").glob("*/part-000002.*")
    second.write_bytes(b"1")
    with pytest.raises((urllib3.exceptions.ProtocolError, http.client.IncompleteRead)):
        request(get_url(store, "data/a"))


# The server itself


def test_public_host_needs_permission(store):
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(ConfigurationError, match="open to the network"):
            ByteServer(store, host)
    server = ByteServer(store, "0.0.0.0", allow_public=True)
    server.close()


def test_taken_port_is_a_clear_error(store):
    server = ByteServer(store)
    with pytest.raises(ConfigurationError, match="choose another port"):
        ByteServer(store, port=int(server.url.rpartition(":")[2]))
    server.close()


def test_close_cuts_connections_and_may_be_repeated(store):
    server = ByteServer(store)
    server.start()
    with contextlib.closing(http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)) as connection:
        connection.request("GET", "/health")
        connection.getresponse().read()
        server.close()
        server.close()
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            connection.request("GET", "/health")
            connection.getresponse()


def test_idle_connections_are_cut(store, monkeypatch, raw):
    monkeypatch.setattr(byte_server._Handler, "timeout", 0.2)
    assert raw(b"GET /health HTT", shut=False) == b""


def test_stores_of_one_folder_serve_each_others_urls(store, tmp_path):
    store.write("a", b"1")
    other = LocalStore(tmp_path / "store", base_url=store.base_url)
    assert request(get_url(other, "a")).data == b"1"


def test_part_of_an_upload_that_is_aborted_as_it_begins_to_come(store, monkeypatch, caplog):
    upload_id = store.create_multipart("data/x")
    url = put_url(store, "data/x", upload_id, Part(1, 0, 5))
    receive = store.receive_part

    def aborted_behind_our_back(*place):
        writer = receive(*place)
        store.abort_multipart("data/x", upload_id)
        return writer

    monkeypatch.setattr(store, "receive_part", aborted_behind_our_back)
    answer = request(url, data=b"bytes")
    assert (answer.status, b"NoSuchUpload" in answer.data) == (404, True)
    assert "The store failed" not in caplog.text


def test_reader_that_hangs_up_is_no_fault(store, caplog):
    """htslib does so at each jump."""
    publish(store, "data/x", b"bytes")
    address, signed = urlsplit(store.base_url), get_url(store, "data/x")
    with socket.create_connection((address.hostname, address.port), timeout=10) as sock:
        sock.sendall(f"GET {path_of(signed)} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
        assert b"bytes" in sock.recv(65536)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing sends a reset
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("Thread-") and "process_request" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert caplog.text == ""
