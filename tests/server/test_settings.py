"""The server's settings: its own variables, those of a Java server, and refusals that say which one is meant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from score_core.auth.base import ScopeRules
from score_core.errors import ConfigurationError
from score_core.server import settings as module
from score_core.server.settings import ServerSettings, adopt_java_credentials, load_server_settings

DAY_S = 86_400


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine shines through."""
    others = {"S3_DOWNLOAD_EXPIRATION", "S3_UPLOAD_EXPIRATION", "METADATA_USELEGACYMODE", "UPLOAD_CLEAN_ENABLED"}
    for name in list(os.environ):
        if name.startswith(("SCORE_", "BUCKET_", "S3_")) or name in {*module._JAVA, *others}:
            monkeypatch.delenv(name)


def loaded(monkeypatch: pytest.MonkeyPatch, **environment: str) -> ServerSettings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load_server_settings()


def field(settings: ServerSettings, name: str) -> Any:
    """`auth.mode` and the like."""
    value: Any = settings
    for step in name.split("."):
        value = getattr(value, step)
    return value


@pytest.mark.parametrize(
    ("own", "used"),
    [({}, "java"), ({"AWS_ACCESS_KEY_ID": "own", "AWS_SECRET_ACCESS_KEY": "s"}, "own"), ({"AWS_PROFILE": "lab"}, None)],
    ids=["none", "keys", "profile"],
)
def test_credentials_of_a_java_server_are_used_if_there_are_no_others(own: dict[str, str], used: str | None) -> None:
    environment = {"S3_ACCESSKEY": "java", "S3_SECRETKEY": "secret", **own}
    adopt_java_credentials(environment)
    assert environment.get("AWS_ACCESS_KEY_ID") == used


def test_without_settings_nobody_else_comes_in() -> None:
    settings = load_server_settings()
    assert (settings.host, settings.port, settings.allow_public) == ("127.0.0.1", 5431, False)
    assert (settings.auth.mode, settings.trusted_proxies, settings.allowed_origins) == ("embedded", [], [])
    assert settings.scopes == ScopeRules()


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("HOST", "::1", "host", "::1"),
        ("PORT", "0", "port", 0),
        ("DATA_PORT", "8080", "data_port", 8080),
        ("ALLOW_PUBLIC", "yes", "allow_public", True),
        ("ALLOWED_ORIGINS", "https://a.example, https://b.example,", "allowed_origins", ["https://a.example", "https://b.example"]),
        ("TRUSTED_PROXIES", "10.0.0.0/8", "trusted_proxies", ["10.0.0.0/8"]),
        ("STORE", "s3://b", "store", "s3://b"),
        ("POOL", "16", "pool", 16),
        ("KEY_DIGITS", "3", "key_digits", 3),
        ("DATA_DIRECTORY", "/objects/", "data_directory", "objects"),
        ("DATA_DIRECTORY", "/", "data_directory", ""),
        ("SENTINEL", "sun", "sentinel", "sun"),
        ("ETAGS_ARE_MD5", "false", "stores_md5_etags", False),
        ("KMS_KEY_ID", "key", "stores_md5_etags", False),
        ("DOWNLOAD_URL_LIFETIME_S", "900", "download_url_lifetime_s", 900.0),
        ("GA4GH_URL_LIFETIME_S", "3600", "ga4gh_url_lifetime_s", 3600.0),
        ("PUBLIC_URL", "https://score.example.org/api/", "public_url", "https://score.example.org/api"),
        ("ORGANIZATION", "Example", "organization", "Example"),
        ("METADATA", "none", "metadata", "none"),
        ("REMEMBERS_S", "0", "remembers_s", 0.0),
        ("AUTH_MODE", "jwt", "auth.mode", "jwt"),
        ("AUTH_TOKEN_FILE", "a/token", "auth.token_file", Path("a/token")),
        ("AUTH_JWKS_URL", "https://id.example/keys", "auth.jwks_url", "https://id.example/keys"),
        ("AUTH_ALGORITHMS", '["ES256"]', "auth.algorithms", ["ES256"]),
        ("AUTH_ALGORITHMS", "RS256, ES256", "auth.algorithms", ["RS256", "ES256"]),
        ("PORT", "tcp://10.0.0.1:5431", "port", 5431),  # Kubernetes, beside a Service called score-server
        ("AUTH_CACHE_S", "0", "auth.cache_s", 0.0),
        ("AUTH_ALLOW_PLAIN_HTTP", "true", "auth.allow_plain_http", True),
        ("SCOPES_DOWNLOAD_SYSTEM", "x.READ", "scopes.download_system", "x.READ"),
        ("SCOPES_UPLOAD_SUFFIX", ".W", "scopes.upload_suffix", ".W"),
    ],
)
def test_variable(monkeypatch: pytest.MonkeyPatch, variable: str, text: str, name: str, value: object) -> None:
    assert field(loaded(monkeypatch, **{f"SCORE_SERVER_{variable}": text}), name) == value


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("SERVER_PORT", "8087", "port", 8087),
        ("SERVER_CORS_ALLOWEDORIGINS", "https://a.example", "allowed_origins", ["https://a.example"]),
        ("OBJECT_SENTINEL", "sun", "sentinel", "sun"),
        ("BUCKET_SIZE_POOL", "4", "pool", 4),
        ("BUCKET_SIZE_KEY", "3", "key_digits", 3),
        ("S3_DATA_DIRECTORY", "d", "data_directory", "d"),
        ("S3_UPLOAD_DIRECTORY", "u", "upload_directory", "u"),
        ("S3_MASTERENCRYPTIONKEYID", "key", "kms_key_id", "key"),
        ("S3_CUSTOMMD5PROPERTY", "m", "md5_property", "m"),
        ("S3_DOWNLOAD_EXPIRATION", "2", "download_url_lifetime_s", 2.0 * DAY_S),
        ("S3_UPLOAD_EXPIRATION", "3", "upload_url_lifetime_s", 3.0 * DAY_S),
        ("S3_UPLOAD_EXPIRATION", "3", "stale_after_s", 3.0 * DAY_S),  # 3.15
        ("METADATA_USELEGACYMODE", "true", "checks_state", False),
        ("METADATA_USELEGACYMODE", "false", "checks_state", True),
        ("UPLOAD_CLEAN_ENABLED", "false", "cleans", False),
        ("AUTH_SERVER_URL", "https://ego.example/check", "auth.introspection_url", "https://ego.example/check"),
        ("AUTH_SERVER_URL", "https://ego.example/check", "auth.mode", "ego"),  # Java's default provider
        ("AUTH_SERVER_PROVIDER", "Keycloak", "auth.mode", "keycloak"),
        ("AUTH_SERVER_TOKENNAME", "apiKey", "auth.token_name", "apiKey"),
        ("AUTH_SERVER_KEYCLOAK_HOST", "https://kc.example", "auth.keycloak_host", "https://kc.example"),
        ("AUTH_SERVER_KEYCLOAK_REALM", "overture", "auth.keycloak_realm", "overture"),
        ("AUTH_SERVER_SCOPE_UPLOAD_STUDY_PREFIX", "score.", "scopes.upload_prefix", "score."),
        ("AUTH_SERVER_SCOPE_DOWNLOAD_SYSTEM", "r", "auth.mode", "embedded"),  # scopes alone say nothing of how tokens are checked
        ("SPRING_SECURITY_OAUTH2_RESOURCESERVER_JWT_JWK_SET_URI", "https://a.example/k", "auth.jwks_url", "https://a.example/k"),
        ("SPRING_SECURITY_OAUTH2_RESOURCESERVER_JWT_PUBLIC_KEY_LOCATION", "https://a.example/k", "auth.public_key", "https://a.example/k"),
        ("SERVER_PORT", "", "port", 5431),  # set to nothing: not set
    ],
)
def test_java_variable(monkeypatch: pytest.MonkeyPatch, variable: str, text: str, name: str, value: object) -> None:
    assert field(loaded(monkeypatch, **{variable: text}), name) == value


def test_every_java_name_leads_to_a_field(monkeypatch: pytest.MonkeyPatch) -> None:
    for ours in module._JAVA.values():
        field(load_server_settings(), ours)


@pytest.mark.parametrize(
    ("environment", "store"),
    [
        ({}, "s3://objects"),
        ({"S3_ENDPOINT": "s3-external-1.amazonaws.com"}, "s3://objects"),
        ({"S3_ENDPOINT": "minio:9000"}, "s3://objects?endpoint=https%3A%2F%2Fminio%3A9000"),
        ({"S3_ENDPOINT": "minio:9000", "S3_SECURED": "false"}, "s3://objects?endpoint=http%3A%2F%2Fminio%3A9000"),
        ({"S3_ENDPOINT": "http://minio:9000"}, "s3://objects?endpoint=http%3A%2F%2Fminio%3A9000"),
    ],
)
def test_java_bucket(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], store: str) -> None:
    settings = loaded(monkeypatch, BUCKET_NAME_OBJECT="objects", BUCKET_NAME_STATE="objects", **environment)
    assert (settings.store, settings.state_store) == (store, None)


def test_java_state_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(monkeypatch, BUCKET_NAME_OBJECT="objects", BUCKET_NAME_STATE="state").state_store == "s3://state"


def test_ours_wins_over_javas(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(
        monkeypatch,
        SERVER_PORT="1",
        SCORE_SERVER_PORT="2",
        AUTH_SERVER_PROVIDER="keycloak",
        AUTH_SERVER_CLIENTID="a",
        SCORE_SERVER_AUTH_MODE="jwt",
    )
    assert (settings.port, settings.auth.mode, settings.auth.client_id) == (2, "jwt", "a")
    assert load_server_settings(port=3).port == 3


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("SCORE_SERVER_PORT", "65536", "SCORE_SERVER_PORT) must be less than or equal to 65535"),
        ("SCORE_SERVER_PORT", "-1", "SCORE_SERVER_PORT) must be greater than or equal to 0"),
        ("SCORE_SERVER_PORT", "http", "SCORE_SERVER_PORT) must be a valid integer"),
        ("SCORE_SERVER_ALLOW_PUBLIC", "perhaps", "SCORE_SERVER_ALLOW_PUBLIC) must be"),
        ("SCORE_SERVER_KEY_DIGITS", "8", "SCORE_SERVER_KEY_DIGITS) must be less than or equal to 7"),
        ("SCORE_SERVER_DATA_DIRECTORY", "../x", "SCORE_SERVER_DATA_DIRECTORY) must be a plain folder name"),
        ("SCORE_SERVER_UPLOAD_DIRECTORY", "a\nb", "SCORE_SERVER_UPLOAD_DIRECTORY) must be a plain folder name"),
        ("SCORE_SERVER_DOWNLOAD_URL_LIFETIME_S", "604801", "SCORE_SERVER_DOWNLOAD_URL_LIFETIME_S) must be less"),
        ("SCORE_SERVER_STALE_AFTER_S", "1", "SCORE_SERVER_STALE_AFTER_S) must be greater"),
        ("SCORE_SERVER_PUBLIC_URL", "score.example.org", "SCORE_SERVER_PUBLIC_URL) must be an address such as"),
        ("SCORE_SERVER_PUBLIC_URL", "https://[::", "SCORE_SERVER_PUBLIC_URL) must be an address such as"),
        ("SCORE_SERVER_ORGANIZATION_URL", "https://a.example?b", "SCORE_SERVER_ORGANIZATION_URL) must be an address such as"),
        ("SCORE_SERVER_METADATA", "song", "SCORE_SERVER_METADATA) must be 'auto' or 'none'"),
        ("SCORE_SERVER_AUTH_MODE", "open", "SCORE_SERVER_AUTH_MODE) must be"),
        ("SCORE_SERVER_AUTH_CACHE_S", "soon", "SCORE_SERVER_AUTH_CACHE_S) must be"),
        ("SCORE_SERVER_AUTH_TOKEN_FIEL", "x", "SCORE_SERVER_AUTH_TOKEN_FIEL"),
        ("SCORE_SERVER_AUTH", "jwt", "SCORE_SERVER_AUTH"),
        ("SCORE_SERVER_TRUSTED_PROXIES", "my-proxy", "SCORE_SERVER_TRUSTED_PROXIES) must be"),
        ("S3_DOWNLOAD_EXPIRATION", "a day", "S3_DOWNLOAD_EXPIRATION must be a number of days"),
        ("SERVER_PORT", "x", "port"),
    ],
)  # fmt: skip
def test_refusal_names_the_setting(monkeypatch: pytest.MonkeyPatch, variable: str, text: str, says: str) -> None:  # B44
    with pytest.raises(ConfigurationError) as caught:
        loaded(monkeypatch, **{variable: text})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_misspelt_variable_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    loaded(monkeypatch, SCORE_SERVER_ALOW_PUBLIC="true", SCORE_SERVER_PORT="1", SCORE_SERVER_AUTH_MODE="jwt", SCORE_SERVE_URL="http://x")
    assert [record.getMessage() for record in caplog.records] == [
        "SCORE_SERVER_ALOW_PUBLIC is no setting of the server; is SCORE_SERVER_ALLOW_PUBLIC meant?"
    ]


@pytest.mark.parametrize("variable", ["SCORE_SERVER_AUTH_CLIENT_SECRET", "AUTH_SERVER_CLIENTSECRET"])
def test_secret_is_in_no_text(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    settings = loaded(monkeypatch, **{variable: "hunter2-hunter2"})
    assert settings.auth.client_secret == "hunter2-hunter2"
    assert "hunter2" not in f"{settings!r} {settings}"
    monkeypatch.setenv("SCORE_SERVER_AUTH_CACHE_S", "hunter2")
    with pytest.raises(ConfigurationError) as caught:
        load_server_settings()
    assert "hunter2" not in str(caught.value)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_server_settings().port = 1
