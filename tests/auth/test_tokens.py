"""JWTs: what is good, and every forgery of B39 and B42."""

import base64
import hashlib
import hmac
import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import example, given
from hypothesis import strategies as st

from score_core.auth.base import Authenticator
from score_core.auth.keys import FileKeys, RemoteKeys
from score_core.auth.tokens import JwtAuthenticator
from score_core.errors import AuthenticationError, ConfigurationError

SCOPES = frozenset({"score.READ"})


@pytest.fixture
def auth(pem):
    return JwtAuthenticator(FileKeys(pem))


def b64(data):
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def claims(token):
    return jwt.decode(token, options={"verify_signature": False})


def refused(auth, token):
    with pytest.raises(AuthenticationError) as caught:
        auth.authenticate(token)
    assert len(token) < 20 or token not in str(caught.value)
    return str(caught.value)


# Good ones


def test_good_token_names_caller_scopes_and_expiry(auth, signer):
    token = signer(scope=["score.READ", "PROGRAMDATA-AB.WRITE"], exp=int(time.time()) + 60)
    caller = auth.authenticate(token)
    assert (caller.name, caller.scopes) == ("ada", {"score.READ", "PROGRAMDATA-AB.WRITE"})
    assert caller.expires_at == claims(token)["exp"]
    assert isinstance(auth, Authenticator)


@pytest.mark.parametrize(
    ("context", "scopes"),
    [
        (None, set()),
        ({}, set()),
        ({"scope": []}, set()),
        ({"scope": None}, set()),
        ({"scope": "score.READ"}, set()),  # a text is no array, and not one letter of it a scope
        ({"scope": {"score.READ": True}}, set()),
        ("score.READ", set()),
        (["score.READ"], set()),
        ({"scope": ["a", 1, None, ["score.READ"], "b "]}, {"a", "b "}),
    ],
)
def test_scopes_are_strings_of_context_scope(auth, signer, context, scopes):
    assert auth.authenticate(signer(context=context, scope=())).scopes == scopes


def test_scopes_elsewhere_do_not_count(auth, signer):
    assert auth.authenticate(signer(context=None, claims={"scope": "score.READ", "scopes": ["score.READ"]})).scopes == set()


@pytest.mark.parametrize("subject", [None, ""])
def test_caller_without_subject_is_unknown(auth, signer, subject):
    assert auth.authenticate(signer(sub=subject)).name == "unknown"


def test_issuer_and_audience_do_not_matter_unless_set(auth, signer):
    assert auth.authenticate(signer(iss="anyone", aud=["others"])).scopes == SCOPES


def test_audience_is_one_of_several(pem, signer):
    auth = JwtAuthenticator(FileKeys(pem), audience="score", issuer="https://id.example.org")
    assert auth.authenticate(signer(aud=["song", "score"], iss="https://id.example.org")).scopes == SCOPES


def test_clocks_may_differ_by_leeway(auth, signer):
    now = int(time.time())
    assert auth.authenticate(signer(exp=now - 15, nbf=now + 15, iat=now + 3600)).scopes == SCOPES


def test_other_algorithms_can_be_allowed(tmp_path, ec_signer):
    (tmp_path / "ec.pem").write_bytes(ec_signer.public_pem)
    auth = JwtAuthenticator(FileKeys(tmp_path / "ec.pem"), algorithms=["ES256", "RS256"])
    assert auth.authenticate(ec_signer()).scopes == SCOPES


def test_token_may_live_for_ever_if_allowed(pem, signer):
    auth = JwtAuthenticator(FileKeys(pem), require_exp=False)
    assert auth.authenticate(signer(exp=None)).expires_at is None


# Forgeries


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", None, 1, ["RS256"], {"RS256": 1}, "RS512", "HS256", "rs256"])
@pytest.mark.parametrize("signature", ["", "AAAA"])
def test_other_algorithm_is_refused(auth, signer, alg, signature):
    refused(auth, f"{b64({'alg': alg, 'typ': 'JWT'})}.{b64(claims(signer()))}.{signature}")


def test_missing_algorithm_is_refused(auth, signer):
    refused(auth, f"{b64({'typ': 'JWT'})}.{signer().partition('.')[2]}")


@pytest.mark.parametrize("hash_name", ["sha256", "sha384", "sha512"])
def test_public_key_as_shared_secret_is_refused(auth, signer, hash_name):
    """The classic: HS256 with the bytes of the RSA public key as its secret."""
    for secret in (signer.public_pem, signer.public_pem.strip(), signer.jwk["n"].encode()):
        body = f"{b64({'alg': f'HS{hash_name[3:]}'})}.{b64(claims(signer()))}"
        refused(auth, f"{body}.{b64(hmac.new(secret, body.encode(), getattr(hashlib, hash_name)).digest())}")


@pytest.mark.parametrize("algorithms", [["HS256"], ["RS256", "HS256"], ["none"], ["RS256", "None"], [], "RS256", ["RS1"]])
def test_shared_secrets_and_unknown_algorithms_cannot_be_configured(pem, algorithms):
    with pytest.raises(ConfigurationError, match="algorithms"):
        JwtAuthenticator(FileKeys(pem), algorithms=algorithms)


def test_strangers_signature_is_refused(auth, signer, stranger):
    refused(auth, stranger(headers={"kid": signer.kid}))


def test_key_that_the_token_brings_is_not_used(auth, stranger):
    refused(auth, stranger(headers={"jwk": stranger.jwk}))
    refused(auth, stranger(headers={"x5c": ["MIIB"], "x5t": "AA"}))


def test_changed_claims_are_refused(auth, signer):
    header, _, signature = signer(scope=[]).split(".")
    refused(auth, f"{header}.{b64(claims(signer(scope=['score.WRITE'])))}.{signature}")


def test_changed_signature_is_refused(auth, signer):
    token = signer()
    refused(auth, token[:-8] + ("AAAAAAAA" if not token.endswith("AAAAAAAA") else "BBBBBBBB"))


@pytest.mark.parametrize(
    "bad",
    [
        {"exp": int(time.time()) - 60},
        {"exp": 0},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": [int(time.time()) + 600]},
        {"exp": {"at": 1}},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"exp": 10**400},
        {"exp": -(10**400)},
        {"nbf": int(time.time()) + 3600},
        {"nbf": "tomorrow"},
        {"nbf": float("inf")},
        {"sub": 7},
        {"sub": ["ada"]},
        {"jti": 7},
    ],
    ids=range(16),  # not by value: times differ between the processes that collect
)
def test_bad_time_or_subject_is_refused(auth, signer, bad):
    refused(auth, signer.seal({"alg": "RS256"}, {**claims(signer()), **bad}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"iss": None},
        {"iss": "https://id.example.org/"},
        {"iss": "https://ID.example.org"},
        {"iss": ["https://id.example.org"]},
        {"iss": "https://id.example.org.evil.example"},
    ],
    ids=str,
)
def test_wrong_issuer_is_refused(pem, signer, wrong):
    auth = JwtAuthenticator(FileKeys(pem), issuer="https://id.example.org")
    refused(auth, signer.seal({"alg": "RS256"}, {**claims(signer()), **wrong}))


@pytest.mark.parametrize("audience", [None, "song", "Score", "score ", [], ["song"], {"score": 1}, 7, ["score", 7]], ids=str)
def test_wrong_audience_is_refused(pem, signer, audience):
    auth = JwtAuthenticator(FileKeys(pem), audience="score")
    refused(auth, signer.seal({"alg": "RS256"}, {**claims(signer()), "aud": audience}))


@pytest.mark.parametrize("crit", [["exp"], ["b64"], [], None, "exp", ["http://example.org/x"], {}], ids=str)
def test_critical_headers_are_refused(auth, signer, crit):
    refused(auth, signer.seal({"alg": "RS256", "crit": crit, "exp": 1, "b64": True}, claims(signer())))


def test_detached_payload_is_refused(auth, signer):
    refused(auth, signer.seal({"alg": "RS256", "b64": False}, claims(signer())))
    refused(auth, signer.seal({"alg": "RS256", "b64": False, "crit": ["b64"]}, claims(signer())))


@pytest.mark.parametrize("content", [b"[]", b'"text"', b"7", b"null", b"{", b"\xff\xfe", b"[" * 9000, b'{"a":' * 2000, b"1" * 5000])
def test_strange_json_is_refused(auth, signer, content):
    refused(auth, signer.seal(content, claims(signer())))
    refused(auth, signer.seal({"alg": "RS256"}, content))


def test_two_signatures_are_refused(auth, signer):
    token = signer()
    header, payload, signature = token.split(".")
    refused(auth, f"{token}.{signature}")
    refused(auth, f"{token}.{token}")
    refused(auth, json.dumps({"payload": payload, "signatures": [{"protected": header, "signature": signature}] * 2}))
    refused(auth, json.dumps({"payload": payload, "protected": header, "signature": signature}))


def test_encrypted_tokens_are_refused(auth):
    refused(auth, f"{b64({'alg': 'RSA-OAEP', 'enc': 'A256GCM'})}.AAAA.AAAA.AAAA.AAAA")


@pytest.mark.parametrize("kid", ["../../etc/passwd", "/dev/zero", "file:///etc/passwd", "key-1\0", "' OR 1=1 --", "", "KEY-1", "key-1 "])
def test_kid_is_compared_and_never_followed(web, reach, signer, kid):
    web.say(200, {"keys": [signer.jwk]})
    auth = JwtAuthenticator(RemoteKeys(reach("/certs")))
    refused(auth, signer(headers={"kid": kid}))
    assert {asked.path for asked in web.asked} == {"/certs"}


def test_addresses_in_headers_are_never_followed(web, reach, signer, stranger):
    web.say(200, {"keys": [signer.jwk]}, path="/certs")
    web.say(200, {"keys": [{**stranger.jwk, "kid": signer.kid}]})
    auth = JwtAuthenticator(RemoteKeys(reach("/certs")))
    evil = web.url + "/evil"
    for kid in (signer.kid, evil):
        refused(auth, stranger(headers={"kid": kid, "jku": evil, "x5u": evil}))
    assert {asked.path for asked in web.asked} == {"/certs"}
    assert auth.authenticate(signer(headers={"jku": evil, "x5u": evil})).scopes == SCOPES


@pytest.mark.parametrize("kid", [7, None, ["key-1"], {"key-1": 1}])
def test_kid_that_is_no_text_is_refused(auth, signer, kid):
    refused(auth, signer.seal({"alg": "RS256", "kid": kid}, claims(signer())))


@pytest.mark.parametrize("change", [lambda t: t + "\n", lambda t: "\n" + t, lambda t: t.replace(".", ".\n", 1), lambda t: t + "\0"])
@pytest.mark.parametrize("extra", ["", "é", "\u2028", "\ud800", "=", "==", " "])
def test_blanks_padding_and_other_letters_are_refused(auth, signer, change, extra):
    refused(auth, change(signer()) + extra)


@pytest.mark.parametrize("extra", ["é", "\u0661", "=", "==", "%3D"])
def test_letters_outside_the_alphabet_are_refused(auth, signer, extra):
    refused(auth, signer() + extra)


def test_long_tokens_are_refused_before_they_are_parsed(auth, signer):
    refused(auth, signer(claims={"filler": "x" * 64_000}))
    refused(auth, "a" * 64_000)
    refused(auth, signer.seal({"alg": "RS256"}, {**claims(signer()), "filler": "x" * 12_400}))
    assert auth.authenticate(signer(claims={"filler": "x" * 11_000})).name == "ada"


def test_weak_key_is_refused(tmp_path):
    private = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        token = jwt.encode({"sub": "ada", "exp": int(time.time()) + 60}, private, "RS256")
    path = tmp_path / "weak.pem"
    path.write_bytes(private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    refused(JwtAuthenticator(FileKeys(path)), token)


def test_all_refusals_say_the_same(auth, signer, stranger):
    assert len({refused(auth, token) for token in ("", "x", stranger(), signer(exp=1), signer(nbf=2**40), "a.b.c")}) == 1


# Anything at all

MADE_UP = st.text() | st.from_regex(r"[\w-]{0,40}\.[\w-]{0,40}\.[\w-]{0,40}", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@pytest.fixture(scope="module")
def known(tmp_path_factory, signer):
    path = tmp_path_factory.mktemp("key") / "public.pem"
    path.write_bytes(signer.public_pem)
    return JwtAuthenticator(FileKeys(path))


@given(MADE_UP)
@example("..")
@example("a..b")
def test_made_up_tokens_are_refused(known, token):
    with pytest.raises(AuthenticationError):
        known.authenticate(token)


@given(header=st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "zip"]), JSON), body=JSON)
def test_made_up_content_is_refused(known, signer, header, body):
    """True signatures, so that it is the content that is judged."""
    with pytest.raises(AuthenticationError):
        known.authenticate(signer.seal({"alg": "RS256", **header}, body))
