"""Which token goes where, what can be configured, and that no secret shows anywhere."""

import logging
import re
import time
import uuid
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_core.auth.base import Authenticator, Principal, ScopeRules
from score_core.auth.cache import Cached
from score_core.auth.embedded import EmbeddedToken
from score_core.auth.options import AuthOptions, Router, is_api_key, open_authenticator
from score_core.errors import AuthenticationError, ConfigurationError, Unavailable

KEY = "d3b07384-d9a0-4e3b-8f3a-1a2b3c4d5e6f"
SECRET = "client-secret-do-not-show"
TOKEN = "correct-horse-battery-staple"
EGO_ANSWER = {"user_id": "ada", "exp": 100, "scope": ["score.READ"]}


class Named:
    """Takes every token."""

    def __init__(self, name):
        self.name, self.is_closed = name, False

    def authenticate(self, token):
        return Principal(self.name, frozenset())

    def close(self):
        self.is_closed = True


@pytest.fixture
def opened():
    """Opens authenticators and closes them at the end."""
    kept = []

    def open_one(options, *rules):
        kept.append(open_authenticator(options, *rules))
        return kept[-1]

    yield open_one
    for authenticator in kept:
        if authenticator:
            authenticator.close()


@pytest.fixture
def ego(web, signer):
    """Ego: its public key and its introspection."""
    web.say(200, signer.public_pem, path="/oauth/token/public_key")
    web.say(200, EGO_ANSWER, path="/o/check_api_key/")
    return AuthOptions(
        mode="ego",
        public_key=web.url + "/oauth/token/public_key",
        introspection_url=web.url + "/o/check_api_key/",
        client_id="score",
        client_secret=SECRET,
    )


@pytest.fixture
def keycloak(web, signer):
    base = "/auth/realms/my%20realm/protocol/openid-connect"
    web.say(200, {"keys": [signer.jwk]}, path=base + "/certs")
    web.say(200, [{"rsname": "PROGRAMDATA-AB", "scopes": ["READ"]}], path=base + "/token")
    web.say(200, EGO_ANSWER, path="/apikey")
    return AuthOptions(mode="keycloak", keycloak_host=web.url + "/auth/", keycloak_realm="my realm", client_id="score")


# Routing


@given(
    st.lists(st.from_regex(r"[0-9A-Fa-f]{1,7}", fullmatch=True), min_size=5, max_size=5).map("-".join).filter(lambda text: len(text) <= 36)
)
def test_five_groups_of_hex_are_an_api_key(token):
    assert is_api_key(token)


@given(st.uuids(), st.booleans())
def test_every_uuid_is_an_api_key(value, upper):
    assert is_api_key(str(value).upper() if upper else str(value))


@pytest.mark.parametrize("token", ["1-1-1-1-1", "00000000-0000-0000-0000-000000000000", KEY, KEY.upper(), "0123456789abcdef-1-1-1-1"])
def test_java_reads_these_as_uuids(token):
    assert is_api_key(token)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "-",
        "----",
        "1-1-1-1",
        "1-1-1-1-1-1",
        "1-1-1-1-",
        "-1-1-1-1",
        "1--1-1-1",
        "g-1-1-1-1",
        "1-1-1-1-1\n",
        " 1-1-1-1-1",
        KEY + "0",
        "{" + KEY + "}",
        "urn:uuid:" + KEY,
        KEY.replace("-", ""),
        KEY.replace("-", "\u2010"),
        "\u0661-1-1-1-1",
        "0x1-1-1-1-1",
        "+1-1-1-1-1",
        "0123456789abcdef0-1-1-1-1",
        "a.b.c",
    ],
)
def test_these_are_no_uuids(token):
    assert not is_api_key(token)


@given(st.text() | st.text(alphabet="0123456789abcdefABCDEF-", max_size=40))
def test_lenient_rule_is_five_groups(token):
    groups = token.split("-")
    is_hex = all(re.fullmatch("[0-9a-fA-F]{1,16}", group) for group in groups)
    assert is_api_key(token) == (len(groups) == 5 and is_hex and len(token) <= 36)


def test_each_kind_goes_where_it_is_known(signer):
    router = Router(embedded=EmbeddedToken(TOKEN), api_keys=Named("keys"), jwts=Named("jwts"))
    assert [router.authenticate(token).name for token in (TOKEN, KEY, signer(), "something")] == ["embedded", "keys", "jwts", "jwts"]
    assert isinstance(router, Authenticator)


def test_embedded_token_may_look_like_an_api_key():
    router = Router(embedded=EmbeddedToken(KEY), api_keys=Named("keys"))
    assert [router.authenticate(token).name for token in (KEY, str(uuid.uuid4()))] == ["embedded", "keys"]


@pytest.mark.parametrize("router", [Router(), Router(embedded=EmbeddedToken(TOKEN))])
def test_kind_that_is_not_configured_is_refused(router, signer):
    for token in (KEY, signer(), TOKEN[:-1]):
        with pytest.raises(AuthenticationError):
            router.authenticate(token)


def test_api_key_never_goes_to_jwts_nor_back(signer):
    with pytest.raises(AuthenticationError):
        Router(jwts=Named("jwts")).authenticate(KEY)
    with pytest.raises(AuthenticationError):
        Router(api_keys=Named("keys")).authenticate(signer())


@pytest.mark.parametrize("token", ["", " ", TOKEN + "\n", TOKEN + "\r\nX-Evil: 1", "tökén", "\ud800", "x" * 64_000, KEY + "\n"])
def test_what_is_no_token_goes_nowhere(token):
    with pytest.raises(AuthenticationError) as caught:
        Router(embedded=EmbeddedToken(TOKEN), api_keys=Named("keys"), jwts=Named("jwts")).authenticate(token)
    assert len(token) < 5 or token not in str(caught.value)


def test_router_closes_all():
    parts = [Named("keys"), Named("jwts")]
    Router(embedded=EmbeddedToken(TOKEN), api_keys=parts[0], jwts=parts[1]).close()
    assert all(part.is_closed for part in parts)


# Modes


def test_none_is_nobody():
    assert open_authenticator(AuthOptions()) is None


def test_embedded_makes_its_token(tmp_path, opened):
    auth = opened(AuthOptions(mode="embedded", token_file=tmp_path / "token"))
    assert auth.authenticate((tmp_path / "token").read_text().strip()).scopes == {"score.READ", "score.WRITE"}


def test_embedded_token_has_the_system_scopes_of_the_rules(tmp_path, opened):
    rules = ScopeRules(download_system="aws.download", upload_system="aws.upload")
    auth = opened(AuthOptions(mode="embedded", token_file=tmp_path / "token"), rules)
    assert auth.authenticate((tmp_path / "token").read_text().strip()).scopes == {"aws.download", "aws.upload"}


def test_ego_takes_jwts_and_api_keys(ego, opened, web, signer):
    auth = opened(ego)
    assert web.asked == []  # nothing before the first token
    assert auth.authenticate(signer(scope=["score.WRITE"])).scopes == {"score.WRITE"}
    assert auth.authenticate(KEY).scopes == {"score.READ"}
    assert b'name="apiToken"' in web.asked[-1].body


def test_ego_asks_once_per_token(ego, opened, web, signer):
    auth = opened(ego)
    for _ in range(5):
        auth.authenticate(KEY)
    assert len(web.asked) == 1
    uncached = opened(replace(ego, cache_s=0))
    for _ in range(5):
        uncached.authenticate(KEY)
    assert len(web.asked) == 6


def test_jwt_takes_a_file_or_a_jwks(pem, web, opened, signer, stranger):
    web.say(200, {"keys": [signer.jwk]})
    for options in (AuthOptions(mode="jwt", public_key=str(pem)), AuthOptions(mode="jwt", jwks_url=web.url + "/jwks")):
        auth = opened(options)
        assert auth.authenticate(signer()).name == "ada"
        for token in (stranger(), KEY):
            with pytest.raises(AuthenticationError):
                auth.authenticate(token)


def test_checks_of_jwts_are_passed_on(pem, opened, signer, ec_signer):
    options = AuthOptions(mode="jwt", public_key=str(pem), issuer="a", audience="b", leeway_s=0)
    auth = opened(options)
    good = {"iss": "a", "aud": "b"}
    assert auth.authenticate(signer(good)).name == "ada"
    for bad in ({"iss": "x"}, {"aud": "x"}, {"exp": int(time.time()) - 5}):
        with pytest.raises(AuthenticationError):
            auth.authenticate(signer({**good, **bad}))
    with pytest.raises(AuthenticationError):
        opened(replace(options, algorithms=("ES256",))).authenticate(signer(good))


def test_keycloak_knows_its_addresses(keycloak, opened, signer):
    assert opened(keycloak).authenticate(signer()).scopes == {"PROGRAMDATA-AB.READ"}


def test_keycloak_takes_api_keys_by_its_own_field(keycloak, opened, web):
    auth = opened(replace(keycloak, introspection_url=web.url + "/apikey", client_secret=SECRET))
    assert auth.authenticate(KEY).scopes == {"score.READ"}
    assert b'name="apiKey"' in web.asked[-1].body


def test_token_file_works_beside_an_auth_server(ego, opened, tmp_path, web):
    auth = opened(replace(ego, token_file=tmp_path / "token"))
    assert auth.authenticate((tmp_path / "token").read_text().strip()).name == "embedded"
    assert isinstance(auth, Cached)
    assert web.asked == []


def test_outage_passes_through_the_cache(ego, opened, web, signer):
    auth = opened(ego)
    web.say(500, path="/o/check_api_key/")
    with pytest.raises(Unavailable):
        auth.authenticate(KEY)
    web.say(200, EGO_ANSWER, path="/o/check_api_key/")
    assert auth.authenticate(KEY).name == "ada"


# What cannot be used

INTROSPECTION = {"introspection_url": "https://ego.example.org/o/check_api_key/"}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"mode": "ldap"}, "mode.*ldap"),
        ({"mode": "embedded"}, "token_file"),
        ({"mode": "jwt"}, "public_key.*jwks_url"),
        ({"mode": "ego"}, "'ego' needs public_key"),
        ({"mode": "keycloak"}, "needs keycloak_host, keycloak_realm, client_id$"),
        ({"mode": "keycloak", "keycloak_host": "https://id.example.org", "client_id": "score"}, "needs keycloak_realm$"),
        ({"mode": "jwt", "public_key": "a", "jwks_url": "https://b.example.org"}, "set one of them"),
        ({"mode": "jwt", "jwks_url": "https://b.example.org", **INTROSPECTION}, "client_id and client_secret"),
        ({"mode": "jwt", "jwks_url": "https://b.example.org", **INTROSPECTION, "client_id": "score"}, "client_secret"),
        ({"mode": "jwt", "jwks_url": "/a/file"}, "^jwks_url: .* must be such as"),
        ({"mode": "jwt", "jwks_url": "http://b.example.org"}, "_(url|key): .* allow_plain_http"),
        ({"mode": "jwt", "public_key": "http://b.example.org"}, "_(url|key): .* allow_plain_http"),
        ({"mode": "jwt", "public_key": "/no/such/file"}, "/no/such/file cannot be read"),
        ({"mode": "jwt", "public_key": "file:///etc/hostname"}, "cannot be read"),
        ({"mode": "jwt", "jwks_url": "https://b.example.org", "algorithms": ("HS256",)}, "HS256"),
        ({"mode": "jwt", "jwks_url": "https://b.example.org", "ca_file": "/no/such/file"}, "/no/such/file"),
        (
            {"mode": "keycloak", "keycloak_host": "id.example.org", "keycloak_realm": "r", "client_id": "c"},
            "^keycloak_host: .*must be such as",
        ),
        ({"leeway_s": -1}, "leeway_s must be 0 to 600 seconds, got -1"),
        ({"leeway_s": 3601}, "leeway_s"),
        ({"cache_s": 1e9}, "cache_s"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
    ],
    ids=str,
)
def test_what_is_missing_or_wrong_is_named(options, names):
    if "client_secret" not in names:
        options = {**options, "client_secret": SECRET}
    with pytest.raises(ConfigurationError, match=names) as caught:
        open_authenticator(AuthOptions(**options))
    assert SECRET not in str(caught.value)


# Secrets


def test_no_secret_in_options_objects_messages_or_logs(ego, keycloak, opened, web, signer, stranger, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    ego = replace(ego, token_file=tmp_path / "token")
    keycloak = replace(keycloak, introspection_url=web.url + "/apikey", client_secret=SECRET)
    tokens = [KEY, signer(), stranger(), signer(exp=1), TOKEN, "x" * 20_000, "bad\ntoken-that-is-secret"]
    said = [repr(ego), str(keycloak)]
    for broken in (False, True):
        for options in (ego, keycloak):
            auth = opened(options)
            said += [repr(auth), str(auth)]
            for token in tokens:
                try:
                    said.append(repr(auth.authenticate(token)))
                except (AuthenticationError, Unavailable) as error:
                    said.append(f"{error} {error!r} {error.__cause__!r}")
        if not broken:
            for path in list(web.answers):
                web.say(500, path=path)
    made = (tmp_path / "token").read_text().strip()
    everything = "\n".join([*said, caplog.text])
    assert [secret for secret in (*tokens, SECRET, made) if secret in everything] == []
    assert not any(part in everything for token in tokens if token.count(".") == 2 for part in token.split(".")[1:])
    assert "c2NvcmU6" not in everything  # "score:" of HTTP Basic
