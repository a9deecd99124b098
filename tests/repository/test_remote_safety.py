"""What a `RemoteRepository` never does: follow a server anywhere, tell secrets, wait for ever, or put odd ids on the wire."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_core.checksum import md5_hex
from score_core.errors import AuthenticationError, ConfigurationError, Interrupted, ScoreError, ServiceError, Unavailable
from score_core.model import Part, SignedUrl
from score_core.repository.remote import RemoteRepository
from score_core.service import ServiceClient, ServiceOptions, Token
from score_core.testing.repositories import BAD_IDS
from tests.repository.conftest import PART, PatientStop, Rig
from tests.repository.java_server import Fault

ID = "3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11"
ODD_IDS = (
    *BAD_IDS,
    f"{ID}/../x",
    f"{ID}%2e%2e%2f",
    "%2e%2e%2f" * 4,
    f"{ID}#x",
    f"{ID}@host",
    f"{ID} ",
    f" {ID}",
    f"{ID}\n",
    f"{ID}\r\nX-Header: y",
    "@127.0.0.1/",
    "//host/x",
    f"{ID}\x00",
    "\uff13f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11",
    "g" * 36,
)


# Ids (B25, B26)


@pytest.mark.parametrize("verb", ["exists", "describe", "sign_external", "abort", "find_upload", "begin_upload"])
@pytest.mark.parametrize("bad", ODD_IDS, ids=lambda text: repr(text[:40]))
def test_odd_id_never_reaches_the_wire(rig: Rig, verb: str, bad: str) -> None:
    machine = rig.machine()
    with pytest.raises(ConfigurationError):
        machine.find_upload(bad, 1) if verb == "find_upload" else (
            machine.begin_upload(bad, 1, md5="a" * 32) if verb == "begin_upload" else getattr(machine, verb)(bad)
        )
    assert rig.java.seen == []


def test_ids_are_asked_for_in_lower_case(rig: Rig) -> None:
    rig.machine().exists(ID.upper())
    assert rig.java.seen[0].path == f"/upload/{ID}"


@pytest.mark.parametrize("upload_id", ["a+b", "a b", "a&uploadId=c", "a/../b", "2~é%2F", "?#"])
def test_upload_id_arrives_as_it_was_given(rig: Rig, upload_id: str) -> None:
    path = rig.source(1)
    old = rig.begin(path)
    rig.java.uploads[rig.id, upload_id] = rig.java.uploads.pop((rig.id, old.upload_id))
    rig.java.multiparts[upload_id] = rig.java.multiparts[old.upload_id]
    machine = rig.machine()
    found = machine.find_upload(rig.id, PART)
    assert found is not None
    assert found.upload_id == upload_id
    with pytest.raises(ScoreError):
        machine.commit(found, [])
    assert machine.abort(rig.id)
    assert {seen.query["uploadId"] for seen in rig.java.all("record")} == {upload_id}


# Where tokens go (B45)


def test_token_over_plain_http_to_another_host_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="plain http"):
        ServiceClient("http://score.example.org", name="The Score server", token=Token("secret-token"))


def test_no_plain_address_is_asked_before_a_token_is_checked(rig: Rig) -> None:
    """A token that appears later, in its file, is no way round."""
    file = rig.folder / "token"
    file.write_text("")
    client = ServiceClient("http://score.example.invalid", name="The Score server", token=Token(file=file))
    file.write_text("secret-token")
    assert client.token.renewed(None)
    with pytest.raises(ConfigurationError, match="plain http"):
        client.get("/profile")
    client.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1", "https://score.example.org"])
def test_token_goes_where_nobody_listens(url: str) -> None:
    ServiceClient(url, name="The Score server", token=Token("secret-token")).close()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1.example.org", "http://localhost.example.org", "http://10.0.0.1", "http://127.0.0.1@evil", "ftp://h", "//h"]
)
def test_look_alikes_of_this_machine_get_no_token(url: str) -> None:
    with pytest.raises(ConfigurationError):
        ServiceClient(url, name="The Score server", token=Token("secret-token"))


def test_plain_http_is_possible_when_asked_for() -> None:
    options = ServiceOptions(allow_plain_http=True)
    ServiceClient("http://score.example.org", name="The Score server", token=Token("secret-token"), options=options).close()


# Redirects (B46)


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server of somebody else, and the headers that it was sent."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(dict(self.headers.items()))
            self.send_response(200)
            self.end_headers()

        do_POST = do_PUT = do_DELETE = do_GET

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://localhost:{server.server_port}", seen
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("what", ["exists", "status", "initiate", "record", "finalise", "download", "ping"])
def test_redirect_is_not_followed(rig: Rig, elsewhere: tuple[str, list[dict[str, str]]], what: str, status: int) -> None:
    url, seen = elsewhere
    rig.java.inject(what, Fault(status=status, headers={"Location": f"{url}/x"}))
    machine = rig.machine()
    with pytest.raises(ServiceError):
        machine.check() if what == "ping" else rig.upload(rig.source(1), machine)
    assert seen == []


@pytest.mark.parametrize("what", ["put", "get"])
def test_redirect_of_the_store_is_not_followed(rig: Rig, elsewhere: tuple[str, list[dict[str, str]]], what: str) -> None:
    url, seen = elsewhere
    rig.put(rig.source(1))
    rig.java.inject(what, Fault(status=307, headers={"Location": f"{url}/x"}))
    with pytest.raises(ScoreError):
        rig.upload(rig.source(1, seed=2), overwrite=True) if what == "put" else rig.download()
    assert seen == []


# Where signed URLs may lead (B47)


def signing(rig: Rig, url: str, *, data_hosts: tuple[str, ...] = (), https: bool = False) -> SignedUrl:
    """What `sign_external` makes of a URL that the server gives."""
    body = {"objectId": rig.id, "parts": [{"partNumber": 1, "partSize": -1, "offset": 0, "url": url}]}

    class Answering(ServiceClient):
        def get(self, path: str, **options: Any) -> Any:
            return type("Answer", (), {"json": lambda _: body})()

    client = Answering("https://score.example.org" if https else rig.java.url, name="The Score server")
    try:
        return RemoteRepository(client, data_hosts=data_hosts).sign_external(rig.id)
    finally:
        client.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://host/x",
        "gopher://host/x",
        "data:text/plain,abc",
        "http:///x",
        "http://",
        "http://[",
        "http://h:99999999/",
        "http://user:password@host/x",
        "http://user@host/x",
        "http://good\\@evil/x",
        "http://host/a b",
        "http://host/\r\nX-Header: y",
        "http://host/\ttab",
        "http://169.254.169.254/latest/meta-data",
        "http://169.254.169.254./latest",
        "http://0xa9fea9fe/",
        "http://2852039166/",
        "http://0251.0376.0251.0376/",
        "http://169.254.43518/",
        "http://[fe80::1]/",
        "http://[fe80::1%25eth0]/",
        "http://[::ffff:169.254.169.254]/",
        "<html>",
    ],
)
def test_url_that_leads_nowhere_good_is_refused(rig: Rig, url: str) -> None:
    with pytest.raises(ServiceError) as caught:
        signing(rig, url)
    assert "password" not in str(caught.value)


@given(url=st.text())
def test_any_text_is_a_good_url_or_refused(url: str) -> None:
    try:
        signed = signing(SimpleNamespace(id=ID, java=SimpleNamespace(url="http://127.0.0.1:1")), url)  # type: ignore[arg-type]
    except ServiceError:
        return
    assert signed.url.startswith(("http://", "https://", "HTTP"))


def test_url_arrives_byte_for_byte(rig: Rig) -> None:
    url = "https://S3.example.org:8443/b/k%2Fx?X-Amz-Credential=A%2F20240704&X-Amz-Signature=%2b+%7E~//"
    assert signing(rig, url, https=True).url == url


@pytest.mark.parametrize("url", ["http://s3.example.org/x", "http://10.0.0.1/x"])
def test_plain_data_url_of_an_https_server_is_refused(rig: Rig, url: str) -> None:
    with pytest.raises(ServiceError, match="plain http"):
        signing(rig, url, https=True)
    assert signing(rig, url).url == url


def test_only_listed_hosts_are_gone_to(rig: Rig) -> None:
    hosts = ("S3.example.org",)
    assert signing(rig, "https://s3.EXAMPLE.org/x", data_hosts=hosts).url == "https://s3.EXAMPLE.org/x"
    for url in ("https://evil.org/x", "https://s3.example.org.evil.org/x", "https://127.0.0.1/x", "https://s3.example.org@evil.org/x"):
        with pytest.raises(ServiceError):
            signing(rig, url, data_hosts=hosts)


def test_no_part_goes_to_a_host_that_is_not_listed(rig: Rig) -> None:
    with pytest.raises(ServiceError, match="data_hosts"):
        rig.upload(rig.source(2), rig.machine(data_hosts=("s3.example.org",)))
    assert rig.java.puts() == {}


# Secrets


SIGNATURES = ("X-Amz-Signature=", "Signature=", "%2Bsecret", "%2F%2Bsecret", "/+secret")


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ("put", Fault(status=403)),
        ("put", Fault(status=500)),
        ("put", Fault(drop=True)),
        ("get", Fault(status=403)),
        ("get", Fault(drop=True)),
        ("record", Fault(status=503)),
        ("record", Fault(status=401)),
        ("finalise", Fault(status=500)),
        ("finalise", Fault(drop=True)),
        ("status", Fault(drop=True)),
        ("status", Fault(status=200, body=b"<html>login</html>")),
        ("initiate", Fault(status=200, body=b'{"parts": []}')),
        ("exists", Fault(status=200, body=b"maybe")),
    ],
    ids=str,
)
def test_no_secret_is_told(rig: Rig, caplog: pytest.LogCaptureFixture, what: str, fault: Fault) -> None:
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, logger="score_core")
    path = rig.source(3)
    if what == "get":
        rig.put(path)
    rig.java.inject(what, fault)
    machine = rig.machine()
    with pytest.raises(ScoreError) as caught:
        rig.download(machine) if what == "get" else rig.upload(path, machine)
    shown = [repr(vars(machine)), repr(vars(machine)["_client"].token), repr(caught.value)]
    told = "\n".join([caplog.text, *traceback.format_exception(caught.value), *shown])
    assert [secret for secret in (rig.java.token, *SIGNATURES) if secret in told] == []


@pytest.mark.parametrize(
    "body", ["bad token {token}", '{{"message":"the token {token} has expired"}}', '{{"error_description":"{token}{token}"}}', '"{token}"']
)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 500, 503])
def test_token_that_a_server_quotes_is_not_repeated(rig: Rig, body: str, status: int) -> None:
    rig.java.inject("exists", Fault(status=status, body=body.format(token=rig.java.token).encode()))
    with pytest.raises(ServiceError) as caught:
        rig.machine().exists(ID)
    assert rig.java.token not in str(caught.value)
    assert rig.java.token[:20] not in str(caught.value)


def test_ping_url_is_not_logged(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rig.machine().check()
    assert "Signature" not in caplog.text


# Answers of something else than a Score server


HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"


@pytest.mark.parametrize("body", [HTML, b"", b"null", b"[]", b'"x"', b"17", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"{"])
@pytest.mark.parametrize("what", ["exists", "status", "initiate", "download", "listing", "ping"])
def test_answer_of_something_else_is_a_service_error(rig: Rig, what: str, body: bytes) -> None:
    rig.java.inject(what, Fault(status=200, body=body))
    machine = rig.machine()
    calls: dict[str, Any] = {
        "exists": lambda: machine.exists(ID),
        "status": lambda: machine.find_upload(ID, 3),
        "initiate": lambda: machine.begin_upload(ID, 3, md5="a" * 32),
        "download": lambda: (machine.describe(ID), machine.sign_external(ID)),
        "listing": lambda: list(machine.list_objects()),
        "ping": machine.check,
    }
    if (what, body) in {("listing", b"[]"), ("status", b"")}:  # an empty listing; an Azure server's status
        calls[what]()
        return
    with pytest.raises(ServiceError):
        calls[what]()


def test_html_error_page_is_not_quoted(rig: Rig) -> None:
    rig.java.inject("exists", Fault(status=403, body=HTML))
    with pytest.raises(ServiceError) as caught:
        rig.machine().exists(ID)
    assert "<" not in str(caught.value)


# Waiting


def test_retry_after_is_obeyed(rig: Rig) -> None:
    rig.java.inject("exists", Fault(status=503, headers={"Retry-After": "7"}), times=2)
    stop = PatientStop()
    assert rig.machine(stop=stop).exists(ID) is False
    assert all(7 <= wait <= 8 for wait in stop.waits)
    assert len(stop.waits) == 2


def test_retry_after_of_finalise_is_obeyed(rig: Rig) -> None:
    rig.java.inject("finalise", Fault(status=503, headers={"Retry-After": "30"}), times=1)
    stop = PatientStop()
    path = rig.source(1)
    rig.upload(path, rig.machine(stop=stop))
    assert [30 <= wait <= 31 for wait in stop.waits] == [True]


def test_pauses_grow_and_differ(rig: Rig) -> None:
    rig.java.inject("exists", Fault(status=502))
    stop = PatientStop()
    with pytest.raises(Unavailable, match="tried 6 times"):
        rig.machine(stop=stop, attempts=6, base_s=1.0, cap_s=8.0, rng=Random(3)).exists(ID)
    assert [most / 2 <= wait <= most for wait, most in zip(stop.waits, [1, 2, 4, 8, 8], strict=True)] == [True] * 5
    assert len(set(stop.waits)) == 5


@pytest.mark.parametrize("what", ["exists", "status", "initiate", "record", "finalise"])
def test_stop_ends_the_waiting(rig: Rig, what: str) -> None:
    rig.java.inject(what, Fault(status=503))
    stop = PatientStop(sets_after=1)
    machine = rig.machine(stop=stop)
    with pytest.raises(Interrupted):
        rig.upload(rig.source(1), machine)
    assert rig.java.count(what) == 1


# The connection


def test_check_goes_the_whole_way(rig: Rig) -> None:
    rig.machine().check()
    assert [seen.what for seen in rig.java.seen] == ["ping", "get"]


@pytest.mark.parametrize("sentinel", ["", "not-put-there", "empty"])
def test_check_is_content_without_the_object_to_try(rig: Rig, sentinel: str) -> None:
    from tests.repository.java_server import _Object

    rig.java.sentinel = sentinel
    rig.java.objects["data/empty"] = _Object(b"", "e", 0)
    rig.machine().check()


@pytest.mark.parametrize("fault", [Fault(status=403), Fault(status=503), Fault(drop=True)], ids=str)
def test_check_names_a_store_that_does_not_let_us_in(rig: Rig, fault: Fault) -> None:
    rig.java.inject("get", fault)
    with pytest.raises(Unavailable, match="object store"):
        rig.machine().check()


def test_check_tells_a_bad_token(rig: Rig) -> None:
    with pytest.raises(AuthenticationError):
        rig.machine(token=Token("another")).check()


def test_server_that_is_not_there_is_unavailable(rig: Rig) -> None:
    with pytest.raises(Unavailable, match="is not reached"):
        rig.machine(url="http://127.0.0.1:9", attempts=2).check()


def test_profile_is_not_needed(rig: Rig) -> None:  # 21.25
    path = rig.source(1)
    rig.java.inject("profile", Fault(status=401))
    rig.upload(path)
    assert md5_hex(rig.java.stored(rig.id)) == md5_hex(path.read_bytes())


def test_signing_nothing_asks_nothing(rig: Rig) -> None:
    path = rig.source(1)
    upload = rig.begin(path)
    machine = rig.machine()
    assert machine.sign_uploads(upload, []) == []
    assert rig.java.seen == []


def test_url_of_a_part_that_the_server_does_not_know_is_an_error(rig: Rig) -> None:
    upload = rig.begin(rig.source(1))
    with pytest.raises(ScoreError):
        rig.machine().sign_uploads(upload, [Part(7, 0, 1)])
