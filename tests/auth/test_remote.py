"""API keys at an introspection endpoint, permissions at Keycloak, and the rules for talking to auth servers."""

import base64
import contextlib
import socket
import threading
import time
from email import message_from_bytes
from urllib.parse import parse_qs

import pytest

from score_core.auth.base import Authenticator
from score_core.auth.keys import FileKeys
from score_core.auth.remote import ApiKeyIntrospection, KeycloakPermissions
from score_core.auth.server import AuthServer
from score_core.auth.tokens import JwtAuthenticator
from score_core.errors import AuthenticationError, ConfigurationError, Unavailable
from score_core.service import ServiceOptions

KEY = "d3b07384-d9a0-4e3b-8f3a-1a2b3c4d5e6f"
GOOD = {"user_id": "c6608c3e-1181-4957-99c4-094493391096", "exp": 31536000, "scope": ["score.READ", "TEST-CA.WRITE"]}
SCOPES = {"score.READ", "TEST-CA.WRITE"}
SECRET = "client-secret-do-not-show"
QUICK = ServiceOptions(0.3, 0.3)


@pytest.fixture
def api_keys(reach, clock):
    return ApiKeyIntrospection(reach("/o/check_api_key/"), client_id="score", client_secret=SECRET, clock=clock)


@pytest.fixture
def keycloak(reach, pem):
    return KeycloakPermissions(JwtAuthenticator(FileKeys(pem)), reach("/realms/r/protocol/openid-connect/token"), audience="score")


def form(asked):
    """The fields of a multipart body: name to (value, file name)."""
    head = f"Content-Type: {asked.headers['content-type']}\r\n\r\n".encode()
    parts = list(message_from_bytes(head + asked.body).walk())[1:]
    return {part.get_param("name", header="Content-Disposition"): (part.get_payload(), part.get_filename()) for part in parts}


# API keys


@pytest.mark.parametrize("status", [200, 207])
def test_known_key_names_caller_scopes_and_expiry(api_keys, web, clock, status):
    web.say(status, GOOD)
    caller = api_keys.authenticate(KEY)
    assert (caller.name, caller.scopes) == (GOOD["user_id"], SCOPES)
    assert caller.expires_at == clock.now + 31536000
    assert isinstance(api_keys, Authenticator)


@pytest.mark.parametrize("name", ["apiToken", "apiKey"])
def test_key_is_posted_as_a_plain_form_field(web, reach, name):
    web.say(200, GOOD)
    ApiKeyIntrospection(reach("/check"), client_id="score", client_secret="s:é", token_name=name).authenticate(KEY)
    (asked,) = web.asked
    assert (asked.method, asked.path) == ("POST", "/check")
    assert asked.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert form(asked) == {name: (KEY, None)}
    assert asked.headers["authorization"] == "Basic " + base64.b64encode("score:s:é".encode()).decode()


def test_expiry_as_a_date_is_taken_as_it_is(api_keys, web, clock):
    web.say(200, {**GOOD, "exp": int(clock.now) + 60})
    assert api_keys.authenticate(KEY).expires_at == clock.now + 60


def test_key_without_expiry_does_not_expire(api_keys, web):
    web.say(200, {"scope": ["a"]})
    assert api_keys.authenticate(KEY).expires_at is None
    assert api_keys.authenticate(KEY).name == "api-key"


@pytest.mark.parametrize("scope", [[], None, ...])
def test_key_without_scopes_is_a_caller_without_scopes(api_keys, web, scope):
    """Java answers 500 here."""
    web.say(200, {key: value for key, value in {**GOOD, "scope": scope}.items() if value is not ...})
    assert api_keys.authenticate(KEY).scopes == set()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422])
def test_refused_key_is_bad(api_keys, web, status):
    web.say(status, GOOD)
    with pytest.raises(AuthenticationError):
        api_keys.authenticate(KEY)


@pytest.mark.parametrize(
    "bad",
    [
        {"error": "revoked"},
        {"error": ""},
        {"exp": 0},
        {"exp": -1},
        {"exp": 1_700_000_000},
        {"revoked": True},
        {"revoked": "true"},
        {"revoked": ["yes"]},
        {"valid": False},
        {"valid": "false"},
        {"valid": {}},
    ],
    ids=str,
)
def test_key_that_is_said_to_be_bad_is_bad(api_keys, web, bad):
    web.say(200, {**GOOD, **bad})
    with pytest.raises(AuthenticationError):
        api_keys.authenticate(KEY)


def test_null_fields_mean_nothing(api_keys, web):
    web.say(200, {**GOOD, "error": None, "revoked": None, "valid": None, "user_id": None})
    assert api_keys.authenticate(KEY).scopes == SCOPES


@pytest.mark.parametrize(
    "answer",
    [
        (500, GOOD),
        (503, GOOD),
        (429, GOOD),  # our fault, not the token's
        (408, GOOD),
        (200, b""),
        (204, b""),
        (201, GOOD),
        (200, b"<html>sign in</html>"),
        (200, b"[" * 90_000),
        (200, b"[]"),
        (200, b"null"),
        (200, b" " * (2 << 20) + b'{"scope": ["score.READ"]}'),
        (200, {**GOOD, "scope": "score.READ"}),
        (200, {**GOOD, "scope": ["score.READ", 7]}),
        (200, {**GOOD, "scope": {"score.READ": 1}}),
        (200, {**GOOD, "exp": "31536000"}),
        (200, {**GOOD, "exp": True}),
        (200, {**GOOD, "exp": float("nan")}),
        (200, {**GOOD, "exp": float("inf")}),
        (200, {**GOOD, "exp": 10**400}),
        (302, b""),
    ],
    ids=lambda answer: str(answer)[:60],
)
def test_strange_or_no_answer_is_an_outage(api_keys, web, answer):
    web.say(*answer)
    with pytest.raises(Unavailable):
        api_keys.authenticate(KEY)


@pytest.mark.parametrize("token", ["", "a b", "a\r\nX-Evil: 1", "é" * 36, "x" * 64_000])
def test_unsendable_key_is_refused_unasked(api_keys, web, token):
    with pytest.raises(AuthenticationError):
        api_keys.authenticate(token)
    assert web.asked == []


# Keycloak

PERMISSIONS = [{"rsid": "1", "rsname": "score", "scopes": ["READ", "WRITE"]}, {"rsid": "2", "rsname": "PROGRAMDATA-AB", "scopes": ["READ"]}]


def test_permissions_become_scopes(keycloak, web, signer):
    web.say(200, PERMISSIONS)
    token = signer(scope=["claims.DO_NOT_COUNT"])
    caller = keycloak.authenticate(token)
    assert (caller.name, caller.scopes) == ("ada", {"score.READ", "score.WRITE", "PROGRAMDATA-AB.READ"})
    assert caller.expires_at == JwtAuthenticator(keycloak._jwts._keys).authenticate(token).expires_at


def test_permissions_are_asked_for_as_the_caller(keycloak, web, signer):
    web.say(200, PERMISSIONS)
    token = signer()
    keycloak.authenticate(token)
    (asked,) = web.asked
    assert (asked.method, asked.path) == ("POST", "/realms/r/protocol/openid-connect/token")
    assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
    assert asked.headers["authorization"] == f"Bearer {token}"
    assert parse_qs(asked.body.decode()) == {
        "grant_type": ["urn:ietf:params:oauth:grant-type:uma-ticket"],
        "audience": ["score"],
        "response_mode": ["permissions"],
    }


def test_permissions_without_scopes_are_skipped(keycloak, web, signer):
    odd = [{"rsname": "score"}, {"rsname": "score", "scopes": None}, {"scopes": ["READ"]}, {"rsname": "a", "scopes": ["B", 7]}, {}]
    web.say(200, odd)
    assert keycloak.authenticate(signer()).scopes == {"a.B"}


def test_bad_token_is_not_sent_to_keycloak(keycloak, web, signer, stranger):
    for token in (stranger(), signer(exp=1), "x", KEY):
        with pytest.raises(AuthenticationError):
            keycloak.authenticate(token)
    assert web.asked == []


@pytest.mark.parametrize("status", [400, 401, 403])
def test_refusal_by_keycloak_is_final(keycloak, web, signer, status):
    web.say(status, {"error": "access_denied", "error_description": "not_authorized"})
    with pytest.raises(AuthenticationError):
        keycloak.authenticate(signer())


@pytest.mark.parametrize("answer", [(500, b""), (429, b""), (200, b""), (200, {}), (200, ["x"]), (200, b"null"), (302, b"")], ids=str)
def test_outage_of_keycloak_is_an_outage(keycloak, web, signer, answer):
    web.say(*answer)
    with pytest.raises(Unavailable):
        keycloak.authenticate(signer())


# The way there


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(api_keys, keycloak, web, signer, status):
    web.say(status, headers={"Location": web.url + "/elsewhere"})
    web.say(200, GOOD, path="/elsewhere")
    for auth, token in ((api_keys, KEY), (keycloak, signer())):
        with pytest.raises(Unavailable):
            auth.authenticate(token)
    assert "/elsewhere" not in {asked.path for asked in web.asked}


def test_cookies_of_one_caller_are_not_another_callers(keycloak, web, signer):
    web.say(200, PERMISSIONS, headers={"Set-Cookie": "AUTH_SESSION_ID=ada; Path=/"})
    keycloak.authenticate(signer())
    keycloak.authenticate(signer(sub="bob"))
    assert ["cookie" in asked.headers for asked in web.asked] == [False, False]


def test_proxy_of_the_environment_gets_no_local_token(web, reach, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        web.say(200, GOOD)
        auth = ApiKeyIntrospection(reach("/"), client_id="score", client_secret=SECRET)
        assert auth.authenticate(KEY).scopes == SCOPES


def test_server_that_is_silent_is_an_outage(reach):
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Unavailable):
        reach(f"http://127.0.0.1:{silent.getsockname()[1]}", QUICK).ask("GET")


def test_server_that_is_not_there_is_an_outage(reach):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unavailable):
        reach(f"http://127.0.0.1:{port}").ask("GET")


@pytest.mark.parametrize(("breaks", "asked"), [(1, 3), (2, 3)])
def test_kept_connection_that_breaks_is_opened_again_once(web, reach, breaks, asked):
    server = reach("/")
    server.ask("GET")
    web.breaks = breaks
    with contextlib.nullcontext() if breaks == 1 else pytest.raises(Unavailable):
        assert server.ask("GET").status == 200
    assert len(web.asked) == asked


def test_answer_that_drips_is_cut_off(reach):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip():
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                while True:
                    connection.sendall(b"x")
                    time.sleep(0.02)

        dripping = threading.Thread(target=drip, daemon=True)
        dripping.start()
        with pytest.raises(Unavailable):
            reach(f"http://127.0.0.1:{listener.getsockname()[1]}", QUICK).ask("GET")
        dripping.join(5)
        assert not dripping.is_alive()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "id.example.org",
        "ftp://id.example.org",
        "file:///etc/passwd",
        "https://",
        "https:///path",
        "http://[",
        "https://a b/",
        "https://h:0/",
        "https://h:99999/",
        "https://h:x/",
        "https://h\n/",
        "https://id.example.org/?token=hunter2",
        "https://id.example.org/#hunter2",
        "https://:hunter2@id.example.org",
        "https://user:hunter2@id.example.org/",
        "https://u:hunter2'hunter2@id.example.org",
        'https://u:hunter2"?@id.example.org',
    ],
)
def test_address_must_be_plain(url):
    with pytest.raises(ConfigurationError, match="must be such as") as caught:
        AuthServer(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("host", ["id.example.org", "10.0.0.1", "localhost.example.org", "127.0.0.1.example.org", "0.0.0.0", "[::]"])
def test_plain_http_is_for_this_machine(host):
    with pytest.raises(ConfigurationError, match="allow_plain_http"):
        AuthServer(f"http://{host}/certs")
    AuthServer(f"http://{host}/certs", ServiceOptions(allow_plain_http=True)).close()


@pytest.mark.parametrize(
    "url", ["http://localhost:8080/x", "http://127.0.0.1/x", "http://[::1]:8080/x", "https://id.example.org/x", "HTTPS://ID.example.org"]
)
def test_https_and_loopback_are_accepted(url):
    AuthServer(url).close()


def test_outages_say_nothing_of_the_inside(api_keys, web, caplog):
    web.say(500, {"error": "stack trace"})
    with pytest.raises(Unavailable) as caught:
        api_keys.authenticate(KEY)
    assert web.url not in str(caught.value)
    assert web.url in caplog.text  # for the operator
