"""Look-ups at an auth server (protocol section 9.4): API keys at Ego's or Keycloak's introspection, permissions at Keycloak."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import httpx

from score_core.auth.base import Authenticator, Principal, is_sendable, refusal
from score_core.auth.server import AuthServer, unavailable

DEFAULT_TOKEN_NAME: Final = "apiToken"  # noqa: S105  # Java's shipped default for the field's name
_EPOCH_FROM: Final = 10**9  # a smaller `exp` is seconds left (Ego's answer is a year: 31536000), a bigger one a date after 2001
_END_OF_TIME: Final = 10**15


class ApiKeyIntrospection:
    """An `Authenticator` for opaque API keys: it asks `server`, with our client id and secret, whose they are. Closes `server`.

    `token_name` is the form field that the key goes into. A key without scopes belongs to a caller who may do nothing that needs one.
    """

    def __init__(
        self,
        server: AuthServer,
        *,
        client_id: str,
        client_secret: str,
        token_name: str = DEFAULT_TOKEN_NAME,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._server = server
        self._credentials = httpx.BasicAuth(client_id, client_secret)
        self._token_name = token_name
        self._clock = clock

    def authenticate(self, token: str) -> Principal:
        if not is_sendable(token):
            raise refusal("it is not an API key")
        answer = self._server.ask(
            "POST", auth=self._credentials, files={self._token_name: (None, token)}
        )  # None: no file name, a plain field
        if 400 <= answer.status < 500:  # also what a wrong client secret gets
            raise refusal(f"introspection answered with status {answer.status}")
        if answer.status not in {200, 207}:
            raise unavailable(f"introspection answered with status {answer.status}")
        return _key_owner(answer.json(), self._clock())

    def close(self) -> None:
        self._server.close()


def _key_owner(body: Any, now: float) -> Principal:
    if not isinstance(body, dict):
        raise unavailable("introspection answered with something else than an object")
    if body.get("error") is not None or body.get("revoked") not in (None, False) or body.get("valid") not in (None, True):
        raise refusal("introspection says that it is not valid")
    name, scopes, expiry = body.get("user_id"), body.get("scope") or [], body.get("exp")
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise unavailable("introspection answered with something else than a list of scopes")
    return Principal(
        name=name if isinstance(name, str) and name else "api-key",
        scopes=frozenset(scopes),
        expires_at=None if expiry is None else _expires_at(expiry, now),
    )


def _expires_at(expiry: Any, now: float) -> float:
    if isinstance(expiry, bool) or not isinstance(expiry, int | float) or not expiry < _END_OF_TIME:
        raise unavailable("introspection answered with something else than a time as expiry")
    expires_at = now + expiry if expiry < _EPOCH_FROM else float(expiry)
    if expires_at <= now:
        raise refusal("introspection says that it has expired")
    return expires_at


class KeycloakPermissions:
    """An `Authenticator` for Keycloak's JWTs, whose scopes are permissions that only Keycloak knows: `<rsname>.<scope>` each.

    Args:
        jwts: verifies a token before it is sent anywhere; name and expiry of the caller are from there.
        server: the realm's token endpoint, `<host>/realms/<realm>/protocol/openid-connect/token`.
        audience: our client id; the permissions are those for it.

    Closes `jwts` and `server`.
    """

    def __init__(self, jwts: Authenticator, server: AuthServer, *, audience: str) -> None:
        self._jwts = jwts
        self._server = server
        self._form = {
            "grant_type": "urn:ietf:params:oauth:grant-type:uma-ticket",
            "audience": audience,
            "response_mode": "permissions",
        }

    def authenticate(self, token: str) -> Principal:
        caller = self._jwts.authenticate(token)
        answer = self._server.ask("POST", data=self._form, headers={"Authorization": f"Bearer {token}"})
        if 400 <= answer.status < 500:  # 403: no permission at all
            raise refusal(f"Keycloak answered with status {answer.status}")
        return Principal(caller.name, _permissions(answer.json()), caller.expires_at)

    def close(self) -> None:
        self._jwts.close()
        self._server.close()


def _permissions(body: Any) -> frozenset[str]:
    if not isinstance(body, list) or not all(isinstance(entry, dict) for entry in body):
        raise unavailable("Keycloak answered with something else than a list of permissions")
    pairs = [(entry.get("rsname"), scope) for entry in body for scope in _list(entry.get("scopes"))]
    return frozenset(f"{name}.{scope}" for name, scope in pairs if isinstance(name, str) and isinstance(scope, str))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
