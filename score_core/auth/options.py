"""From what was configured to one `Authenticator`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, get_args
from urllib.parse import quote

from score_core.auth.base import Authenticator, Principal, ScopeRules, is_sendable, refusal
from score_core.auth.cache import DEFAULT_LIFE_S, Cached
from score_core.auth.embedded import EmbeddedToken, make_token_file
from score_core.auth.keys import FileKeys, Keys, RemoteKeys
from score_core.auth.remote import DEFAULT_TOKEN_NAME, ApiKeyIntrospection, KeycloakPermissions
from score_core.auth.server import DEFAULT_TIMEOUT_S, AuthServer, is_web_address
from score_core.auth.tokens import DEFAULT_ALGORITHMS, DEFAULT_LEEWAY_S, JwtAuthenticator
from score_core.errors import ConfigurationError
from score_core.service import ServiceOptions

AuthMode = Literal["none", "embedded", "jwt", "ego", "keycloak"]

_LENIENT_UUID: Final = re.compile(r"[0-9A-Fa-f]{1,16}(-[0-9A-Fa-f]{1,16}){4}")  # each group is a Java long
_UUID_CHARACTERS: Final = 36
_KEYCLOAK_TOKEN_NAME: Final = "apiKey"  # noqa: S105  # the field's name in Keycloak's API-key extension
_RANGES: Final = {"leeway_s": (0, 600), "cache_s": (0, 3600), "timeout_s": (0.1, 120)}


@dataclass(frozen=True, slots=True)
class AuthOptions:
    """How callers of the server prove who they are. Addresses are https, or http on loopback."""

    mode: AuthMode = "none"
    """`none`: nobody is asked. `embedded`: the token of `token_file`. `jwt` and `ego`: JWTs with Ego's scopes. `keycloak`: JWTs with
    Keycloak's permissions. The last three also take API keys, where `introspection_url` is set, and the token of a `token_file`."""
    jwks_url: str | None = None
    """Where the keys that sign JWTs are; `keycloak` knows by itself."""
    public_key: str | None = None
    """The same as a PEM: a file, or an address (Ego's `/oauth/token/public_key`)."""
    algorithms: Sequence[str] = DEFAULT_ALGORITHMS
    issuer: str | None = None
    """The only `iss` of JWTs that is accepted; None: any, as in Java."""
    audience: str | None = None
    """Must be in `aud` of JWTs; None: not checked, as in Java."""
    leeway_s: float = DEFAULT_LEEWAY_S
    introspection_url: str | None = None
    """Where API keys are looked up (Java's `auth.server.url`)."""
    client_id: str | None = None
    client_secret: str | None = field(default=None, repr=False)
    token_name: str | None = None
    """The form field for an API key; None: `apiKey` for `keycloak`, else `apiToken`."""
    keycloak_host: str | None = None
    """Such as https://id.example.org, with whatever comes before `/realms`."""
    keycloak_realm: str | None = None
    token_file: Path | None = None
    """Is made if it is missing."""
    cache_s: float = DEFAULT_LIFE_S
    """How long an answer is remembered, and so how long a revoked token may still work; 0: not at all."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """For each wait for an auth server."""
    ca_file: Path | None = None
    """Certificate authorities (PEM) for auth servers instead of the public ones."""
    allow_plain_http: bool = False
    """Auth servers on other hosts may be http: for a trusted network only."""


class Router:
    """An `Authenticator` that sends each token where its kind is known, and no token anywhere else. Closes what it is given.

    The embedded token goes first. Then what Java would read as a UUID is an API key, and all else a JWT (protocol section 9.2).
    """

    def __init__(
        self, *, embedded: EmbeddedToken | None = None, api_keys: Authenticator | None = None, jwts: Authenticator | None = None
    ) -> None:
        self._embedded, self._api_keys, self._jwts = embedded, api_keys, jwts

    def authenticate(self, token: str) -> Principal:
        if not is_sendable(token):
            raise refusal("it is empty, too long, or not printable ASCII")
        if self._embedded and self._embedded.matches(token):
            return self._embedded.authenticate(token)
        known_by = self._api_keys if is_api_key(token) else self._jwts
        if known_by is None:
            raise refusal("this server is not configured for tokens of its kind")
        return known_by.authenticate(token)

    def close(self) -> None:
        for part in (self._embedded, self._api_keys, self._jwts):
            if part:
                part.close()


def is_api_key(token: str) -> bool:
    """Whether Java's lenient reader takes this for a UUID: five groups of hex digits of any length, 36 characters at most."""
    return len(token) <= _UUID_CHARACTERS and _LENIENT_UUID.fullmatch(token) is not None


def open_authenticator(options: AuthOptions, rules: ScopeRules | None = None) -> Authenticator | None:
    """What checks tokens as `options` say, None if nothing does. The caller closes it. No auth server is asked before the first token.

    The token of `token_file` has the two system scopes of `rules`.

    Raises:
        ConfigurationError: something is missing or cannot be used; names it, and never shows a secret.
    """
    _check(options)
    if options.mode == "none":
        return None
    rules, path = rules or ScopeRules(), options.token_file
    embedded = EmbeddedToken(make_token_file(path), scopes={rules.download_system, rules.upload_system}) if path else None
    if options.mode == "embedded":
        assert embedded
        return embedded
    router = Router(embedded=embedded, api_keys=_api_keys(options), jwts=_jwts(options))
    return Cached(router, options.cache_s) if options.cache_s else router


def _check(options: AuthOptions) -> None:
    mode = options.mode
    if mode not in get_args(AuthMode):
        raise ConfigurationError(f"The authentication mode must be one of {', '.join(get_args(AuthMode))}, got {mode!r}")
    for name, (low, high) in _RANGES.items():
        if not low <= getattr(options, name) <= high:
            raise ConfigurationError(f"{name} must be {low} to {high} seconds, got {getattr(options, name)}")
    if mode == "embedded" and not options.token_file:
        raise ConfigurationError("Authentication mode 'embedded' needs token_file, the path of the token")
    if mode in {"jwt", "ego"} and not (options.public_key or options.jwks_url):
        raise ConfigurationError(f"Authentication mode {mode!r} needs public_key (a PEM file or its address) or jwks_url")
    if mode == "keycloak":
        missing = [name for name in ("keycloak_host", "keycloak_realm", "client_id") if not getattr(options, name)]
        if missing:
            raise ConfigurationError(f"Authentication mode 'keycloak' needs {', '.join(missing)}")
    if options.public_key and options.jwks_url:
        raise ConfigurationError("public_key and jwks_url both say where keys are: set one of them")
    if options.introspection_url and not (options.client_id and options.client_secret):
        raise ConfigurationError("introspection_url needs client_id and client_secret, by which the auth server knows us")


def _server(options: AuthOptions, name: str, url: str) -> AuthServer:
    """`name` is the option that says `url`."""
    try:
        return AuthServer(url, ServiceOptions(options.timeout_s, options.timeout_s, options.ca_file, options.allow_plain_http))
    except ConfigurationError as error:
        raise error.at(name) from None


def _api_keys(options: AuthOptions) -> Authenticator | None:
    if not options.introspection_url:
        return None
    return ApiKeyIntrospection(
        _server(options, "introspection_url", options.introspection_url),
        client_id=options.client_id or "",
        client_secret=options.client_secret or "",
        token_name=options.token_name or (_KEYCLOAK_TOKEN_NAME if options.mode == "keycloak" else DEFAULT_TOKEN_NAME),
    )


def _jwts(options: AuthOptions) -> Authenticator:
    jwts = JwtAuthenticator(
        _keys(options),
        algorithms=options.algorithms,
        issuer=options.issuer,
        audience=options.audience,
        leeway_s=options.leeway_s,
    )
    if options.mode != "keycloak":
        return jwts
    return KeycloakPermissions(jwts, _server(options, "keycloak_host", _realm(options) + "/token"), audience=options.client_id or "")


def _keys(options: AuthOptions) -> Keys:
    if options.public_key and not is_web_address(options.public_key):
        return FileKeys(Path(options.public_key).expanduser())
    if options.public_key:
        return RemoteKeys(_server(options, "public_key", options.public_key))
    if options.jwks_url:
        return RemoteKeys(_server(options, "jwks_url", options.jwks_url))
    return RemoteKeys(_server(options, "keycloak_host", _realm(options) + "/certs"))


def _realm(options: AuthOptions) -> str:
    host = (options.keycloak_host or "").rstrip("/")
    return f"{host}/realms/{quote(options.keycloak_realm or '', safe='')}/protocol/openid-connect"
