"""What a server can be told, beside the settings that it shares with every front end (where the objects are, where Song is).

Sources, strongest first: option of `score serve`, environment (`SCORE_SERVER_...`), the Java server's environment names (protocol section
18: keys in upper case, dots as underscores), default.
"""

from __future__ import annotations

import difflib
import ipaddress
import logging
import os
import re
from collections.abc import Mapping, MutableMapping
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlencode, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from score_core.auth.base import ScopeRules
from score_core.auth.options import AuthOptions
from score_core.errors import ConfigurationError

_log = logging.getLogger(__name__)

_PREFIX: Final = "SCORE_SERVER_"
_PORT: Final = 5431
_HOUR_S: Final = 3_600
_DAY_S: Final = 86_400
_MAX_LIFE_S: Final = 7 * _DAY_S  # S3 signs for no longer
_NO: Final = frozenset({"false", "0", "no", "off"})

# The Java server's names -> ours. Those that need more than a rename are in `_java_values`.
_JAVA: Final = {
    "SERVER_PORT": "port",
    "SERVER_CORS_ALLOWEDORIGINS": "allowed_origins",
    "OBJECT_SENTINEL": "sentinel",
    "BUCKET_SIZE_POOL": "pool",
    "BUCKET_SIZE_KEY": "key_digits",
    "S3_DATA_DIRECTORY": "data_directory",
    "S3_UPLOAD_DIRECTORY": "upload_directory",
    "S3_MASTERENCRYPTIONKEYID": "kms_key_id",
    "S3_CUSTOMMD5PROPERTY": "md5_property",
    "AUTH_SERVER_URL": "auth.introspection_url",
    "AUTH_SERVER_TOKENNAME": "auth.token_name",
    "AUTH_SERVER_CLIENTID": "auth.client_id",
    "AUTH_SERVER_CLIENTSECRET": "auth.client_secret",
    "AUTH_SERVER_PROVIDER": "auth.mode",
    "AUTH_SERVER_KEYCLOAK_HOST": "auth.keycloak_host",
    "AUTH_SERVER_KEYCLOAK_REALM": "auth.keycloak_realm",
    "SPRING_SECURITY_OAUTH2_RESOURCESERVER_JWT_JWK_SET_URI": "auth.jwks_url",
    "SPRING_SECURITY_OAUTH2_RESOURCESERVER_JWT_PUBLIC_KEY_LOCATION": "auth.public_key",
    "AUTH_SERVER_SCOPE_DOWNLOAD_SYSTEM": "scopes.download_system",
    "AUTH_SERVER_SCOPE_DOWNLOAD_STUDY_PREFIX": "scopes.download_prefix",
    "AUTH_SERVER_SCOPE_DOWNLOAD_STUDY_SUFFIX": "scopes.download_suffix",
    "AUTH_SERVER_SCOPE_UPLOAD_SYSTEM": "scopes.upload_system",
    "AUTH_SERVER_SCOPE_UPLOAD_STUDY_PREFIX": "scopes.upload_prefix",
    "AUTH_SERVER_SCOPE_UPLOAD_STUDY_SUFFIX": "scopes.upload_suffix",
}


def _listed(value: Any) -> Any:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _directory(value: str) -> str:
    name = value.strip().strip("/")
    if any(step in {".", ".."} for step in name.split("/")) or not name.isprintable():
        raise ValueError("a plain folder name in the bucket, or empty")
    return name


def _network(value: str) -> str:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError(f"an address or a network such as 10.0.0.0/8, not {value[:40]!r}") from None
    return value


def _address(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        parts = urlsplit(value)
        known = parts.scheme in {"http", "https"} and bool(parts.hostname) and not (parts.query or parts.fragment or parts.username)
    except ValueError:
        known = False
    if not known or not value.isprintable():
        raise ValueError(f"an address such as https://score.example.org, not {value[:80]!r}")
    return value.rstrip("/")


def _port(value: Any) -> Any:
    """Kubernetes sets SCORE_SERVER_PORT=tcp://10.0.0.1:5431 for every pod beside a Service called score-server."""
    return _PORT if isinstance(value, str) and value.startswith("tcp://") else value


def _auth(value: Any) -> Any:
    """The list of algorithms as a text: JSON, or with commas."""
    if isinstance(value, Mapping) and isinstance(value.get("algorithms"), str):
        return {**value, "algorithms": re.findall(r"[A-Za-z0-9]+", value["algorithms"])}
    return value


_Life = Annotated[float, Field(ge=10, le=_MAX_LIFE_S)]
_Directory = Annotated[str, AfterValidator(_directory)]


class ServerSettings(BaseSettings):
    """The settings of `score serve`. `docs/server.md` describes each for operators."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535), BeforeValidator(_port)] = _PORT
    """Of the REST API; 0 takes a free one."""
    data_port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """Of the bytes, when the store is a folder; 0 takes a free one."""
    allow_public: bool = False
    """Listen where other machines reach it."""
    allowed_origins: Annotated[list[str], NoDecode, BeforeValidator(_listed)] = []
    """Web pages that may call the API (CORS)."""
    trusted_proxies: Annotated[list[Annotated[str, AfterValidator(_network)]], NoDecode, BeforeValidator(_listed)] = []
    """Addresses and networks of proxies whose X-Forwarded-For says who asks."""

    store: str | None = None
    """`s3://...` or `file:///...`; by default what clients on this machine would use."""
    state_store: str | None = None
    """Another bucket for specifications and upload state."""
    pool: Annotated[int, Field(ge=0)] = 0
    """How many buckets `<name>.<n>` the objects are spread over; 0: one bucket."""
    key_digits: Annotated[int, Field(ge=1, le=7)] = 2
    """How many hex digits of an object id choose its bucket."""
    data_directory: _Directory = "data"
    upload_directory: _Directory = "upload"
    sentinel: str = "heliograph"
    kms_key_id: str | None = None
    md5_property: str = "md5chksum"
    etags_are_md5: bool | None = None
    """False for stores that encrypt with keys of their own; by default true unless `kms_key_id` is set."""
    keep_upload_urls: bool = False
    """Store signed URLs with upload state, for a Java server behind the same address."""

    download_url_lifetime_s: _Life = float(_DAY_S)
    """Java clients get all URLs of a file at once and cannot renew one: a day, as Java servers give."""
    upload_url_lifetime_s: _Life = 6.0 * _DAY_S
    ga4gh_url_lifetime_s: _Life = 6.0 * _HOUR_S
    """URLs in htsget's tickets and of DRS: a reader comes to its last block when it has worked through all before."""
    public_url: Annotated[str | None, AfterValidator(_address)] = None
    """Where clients find this server; by default what each request says."""
    organization: Annotated[str, Field(min_length=1, max_length=200)] = "Score for Python"
    """Who runs the server, for the service-info of htsget and DRS."""
    organization_url: Annotated[str | None, AfterValidator(_address)] = None
    stale_after_s: Annotated[float, Field(ge=3600)] = 6.0 * _DAY_S
    """Unfinished uploads older than this are dropped."""
    cleans: bool = True
    marks_md5: bool = False
    """Let Java clients resume: stored parts are passed over, unchecked (docs/compatibility.md)."""
    metadata: Literal["auto", "none"] = "auto"
    """`auto`: Song, where one is configured, else our own registry. `none`: the bucket alone; only the system's scopes open anything."""
    checks_state: bool = True
    remembers_s: Annotated[float, Field(ge=0, le=300)] = 10.0
    """How long what Song said is believed."""

    auth: Annotated[AuthOptions, BeforeValidator(_auth)] = AuthOptions(mode="embedded")
    scopes: ScopeRules = ScopeRules()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # pydantic-settings' signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _JavaNames(settings_cls)

    @property
    def stores_md5_etags(self) -> bool:
        return self.kms_key_id is None if self.etags_are_md5 is None else self.etags_are_md5


class _JavaNames(PydanticBaseSettingsSource):
    """The environment of a Java server, said in our names."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002  # pydantic-settings' signature
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        return _java_values(os.environ)


def _java_values(environment: Mapping[str, str]) -> dict[str, Any]:
    given = {name: value for name, value in environment.items() if value}
    found: dict[str, Any] = {}
    for name, ours in _JAVA.items():
        if name in given:
            room, _, key = ours.rpartition(".")
            (found.setdefault(room, {}) if room else found)[key] = given[name]
    if "auth" in found:
        provider = str(found["auth"].get("mode", "ego")).lower()
        found["auth"]["mode"] = provider
    for name, ours in (("S3_DOWNLOAD_EXPIRATION", "download_url_lifetime_s"), ("S3_UPLOAD_EXPIRATION", "upload_url_lifetime_s")):
        if name in given:
            found[ours] = _days(name, given[name])
    if "upload_url_lifetime_s" in found:
        found["stale_after_s"] = found["upload_url_lifetime_s"]
    if "METADATA_USELEGACYMODE" in given:
        found["checks_state"] = given["METADATA_USELEGACYMODE"].lower() in _NO
    if "UPLOAD_CLEAN_ENABLED" in given:
        found["cleans"] = given["UPLOAD_CLEAN_ENABLED"].lower() not in _NO
    return {**found, **_java_buckets(given)}


def _days(name: str, text: str) -> float:
    try:
        return float(text) * _DAY_S
    except ValueError:
        raise ConfigurationError(f"{name} must be a number of days, got {text[:40]!r}") from None


def _java_buckets(given: Mapping[str, str]) -> dict[str, Any]:
    if "BUCKET_NAME_OBJECT" not in given:
        return {}
    endpoint = given.get("S3_ENDPOINT", "")
    if endpoint and not urlsplit(endpoint).netloc:
        endpoint = ("http://" if given.get("S3_SECURED", "true").lower() in _NO else "https://") + endpoint
    query = f"?{urlencode({'endpoint': endpoint})}" if endpoint and not endpoint.endswith("amazonaws.com") else ""
    stores = {"store": f"s3://{given['BUCKET_NAME_OBJECT']}{query}"}
    if given.get("BUCKET_NAME_STATE", given["BUCKET_NAME_OBJECT"]) != given["BUCKET_NAME_OBJECT"]:
        stores["state_store"] = f"s3://{given['BUCKET_NAME_STATE']}{query}"
    return stores


def adopt_java_credentials(environment: MutableMapping[str, str]) -> None:
    """Lets boto3 find the credentials of a Java server's environment, unless there are some in its own form."""
    given = environment.get("S3_ACCESSKEY"), environment.get("S3_SECRETKEY")
    if all(given) and not any(name in environment for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE")):
        environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"] = map(str, given)


def load_server_settings(**options: Any) -> ServerSettings:
    """The server's settings; `options` that are not None win over everything.

    Raises:
        ConfigurationError: a value is wrong; names the setting.
    """
    _warn_of_unknown(os.environ)
    try:
        return ServerSettings(**{name: value for name, value in options.items() if value is not None})
    except SettingsError as error:  # SCORE_SERVER_AUTH, which is none
        raise ConfigurationError(f"The server's settings cannot be read: {error}; write SCORE_SERVER_AUTH_MODE and the like") from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = "_".join(step for step in problem["loc"] if isinstance(step, str))
        wanted = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else problem["msg"].removeprefix("Input should be ")
        raise ConfigurationError(f"The server's setting {name} (SCORE_SERVER_{name.upper()}) must be {wanted}") from None


def _warn_of_unknown(environment: Mapping[str, str]) -> None:
    """A misspelt variable would be passed over in silence. No error: Kubernetes sets SCORE_SERVER_SERVICE_HOST and others by itself."""
    for name in environment:
        key = name.upper().removeprefix(_PREFIX).lower()
        if name.upper().startswith(_PREFIX) and key not in ServerSettings.model_fields and not key.startswith(("auth_", "scopes_")):
            near = difflib.get_close_matches(key, ServerSettings.model_fields, n=1)
            _log.warning("%s is no setting of the server%s", name, f"; is {_PREFIX}{near[0].upper()} meant?" if near else "")
