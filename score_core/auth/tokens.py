"""JSON Web Tokens (protocol section 9.3), as strictly as RFC 8725 asks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import jwt

from score_core.auth.base import Principal, is_sendable, refusal
from score_core.auth.keys import Key, Keys
from score_core.errors import ConfigurationError

DEFAULT_ALGORITHMS: Final = ("RS256",)
DEFAULT_LEEWAY_S: Final = 30.0
# What a public key can verify. HS* is not here: we only ever hold public keys, and whoever verifies HS256 by one accepts anybody's tokens.
ALGORITHMS: Final = frozenset({f"{kind}{bits}" for kind in ("RS", "PS", "ES") for bits in (256, 384, 512)} | {"EdDSA"})
_COMPACT: Final = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)  # one signature; no JSON form, no encryption
_BAD: Final = (jwt.PyJWTError, ValueError, TypeError, KeyError, OverflowError, RecursionError)  # what made-up tokens raise inside PyJWT


class JwtAuthenticator:
    """An `Authenticator` for JWTs: signature, time, and issuer and audience where they are given. Closes `keys`.

    Scopes are the strings in claim `context.scope`, as Ego writes them; without it the caller has none. The headers `jku`, `x5u`, `jwk`
    and `x5c` are ignored, and a token with `crit` is refused.

    Args:
        algorithms: the names that are accepted, of those in `ALGORITHMS`.
        issuer: the only `iss` that is accepted; None accepts all.
        audience: must be in `aud`; None accepts all.
        leeway_s: how much clocks may differ, for `exp` and `nbf`. (Java has 60 s.)
        require_exp: refuse tokens that never expire.

    Raises:
        ConfigurationError: an algorithm is not known, or shares its secret (HS256).
    """

    def __init__(
        self,
        keys: Keys,
        *,
        algorithms: Sequence[str] = DEFAULT_ALGORITHMS,
        issuer: str | None = None,
        audience: str | None = None,
        leeway_s: float = DEFAULT_LEEWAY_S,
        require_exp: bool = True,
    ) -> None:
        unknown = [name for name in algorithms if name not in ALGORITHMS]
        if unknown or not algorithms:
            raise ConfigurationError(f"JWT algorithms must be among {', '.join(sorted(ALGORITHMS))}, got {', '.join(unknown) or 'none'}")
        self._keys = keys
        self._algorithms = tuple(algorithms)
        self._issuer, self._audience, self._leeway_s = issuer, audience, leeway_s
        self._jwt = jwt.PyJWT(
            options={
                "require": ["exp"] if require_exp else [],
                "verify_aud": audience is not None,
                "verify_iat": False,  # says when it was issued, not from when it holds (RFC 7519, section 4.1.6); Java does not look either
                "enforce_minimum_key_length": True,
            }
        )

    def authenticate(self, token: str) -> Principal:
        if not is_sendable(token) or not _COMPACT.fullmatch(token):
            raise refusal("it is not a JWT in compact form")
        try:
            header = jwt.get_unverified_header(token)
        except _BAD as error:
            raise refusal(type(error).__name__) from None
        algorithm = header.get("alg")
        if algorithm not in self._algorithms:  # before any key is looked for, so that such tokens cost nothing
            raise refusal("its algorithm is not allowed")
        if "crit" in header:
            raise refusal("it has critical headers, and we know none")
        keys = [key for key in self._keys.matching(header.get("kid")) if key.algorithm in (None, algorithm)]
        return _caller(self._claims(token, str(algorithm), keys))

    def close(self) -> None:
        self._keys.close()

    def _claims(self, token: str, algorithm: str, keys: Sequence[Key]) -> dict[str, Any]:
        """What a good token says. Its error is the last key's: with a kid there is one, without it any of a few may fit."""
        why = "its key is not known"
        for key in keys:
            try:
                return self._jwt.decode(token, key.public, [algorithm], issuer=self._issuer, audience=self._audience, leeway=self._leeway_s)
            except _BAD as error:
                why = type(error).__name__
        raise refusal(why)


def _caller(claims: dict[str, Any]) -> Principal:
    context, subject, expiry = claims.get("context"), claims.get("sub"), claims.get("exp")
    scopes = context.get("scope") if isinstance(context, dict) else None
    try:
        return Principal(
            name=subject if isinstance(subject, str) and subject else "unknown",
            scopes=frozenset(scope for scope in scopes if isinstance(scope, str)) if isinstance(scopes, list) else frozenset(),
            expires_at=None if expiry is None else float(expiry),
        )
    except (OverflowError, ValueError):
        raise refusal("its expiry is beyond all time") from None
