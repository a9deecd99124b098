"""Public keys from files and from the web: which are used, when they are fetched, and what an outage means."""

import json
import threading
import time

import pytest
from jwt.algorithms import RSAAlgorithm

from score_core.auth.keys import FileKeys, RemoteKeys, parse_keys
from score_core.auth.tokens import JwtAuthenticator
from score_core.errors import AuthenticationError, ConfigurationError, Unavailable


@pytest.fixture
def keys(web, reach, signer, clock):
    web.say(200, {"keys": [signer.jwk]})
    return RemoteKeys(reach("/certs"), clock=clock)


def kids(found):
    return [key.kid for key in found]


# Documents


def test_pem_is_for_any_kid(signer):
    (key,) = parse_keys(b"\n" + signer.public_pem + b"\n")
    assert key.kid is None


def test_pem_without_line_breaks_in_it_is_read(signer):
    """As Ego's server writes it."""
    first, *lines, last = signer.public_pem.decode().strip().split("\n")
    assert parse_keys(f"{first}\n{''.join(lines)}\n{last}".encode())


def test_private_shared_and_encryption_keys_are_left_out(signer, stranger):
    entries = [
        {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "kid": "shared", "alg": "HS256"},
        {**RSAAlgorithm.to_jwk(stranger.private, as_dict=True), "kid": "private"},
        {**stranger.jwk, "use": "enc", "kid": "for encryption"},
        {**stranger.jwk, "alg": "RSA-OAEP", "kid": "Keycloak's"},
        {**stranger.jwk, "n": 7, "kid": "broken"},
        {**stranger.jwk, "alg": ["RS256"], "kid": "broken too"},
        {"kty": ["RSA"]},
        "text",
        None,
        signer.jwk,
    ]
    assert kids(parse_keys(json.dumps({"keys": entries}).encode())) == ["key-1"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"keys": []}',
        b'{"keys": {}}',
        b'{"keys": ["x"]}',
        b"<html>sign in</html>",
        b"\xff",
        b"[" * 9000,
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        b"-----BEGIN CERTIFICATE-----",
    ],
)
def test_document_without_keys_is_an_error(content):
    with pytest.raises(ValueError, match="it is|there is no"):
        parse_keys(content)


def test_private_key_is_refused_without_showing_it(tmp_path, signer):
    path = tmp_path / "private.pem"
    path.write_bytes(signer.private_pem)
    with pytest.raises(ConfigurationError, match="private key") as caught:
        FileKeys(path)
    assert signer.private_pem.decode().split("\n")[1] not in str(caught.value)


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        FileKeys(tmp_path / "none.pem")


def test_key_is_used_only_for_its_own_algorithm(web, reach, signer):
    auth = JwtAuthenticator(RemoteKeys(reach("/certs")), algorithms=["RS256", "RS512", "ES256"])
    web.say(200, {"keys": [{**signer.jwk, "alg": "RS512"}]})
    auth.authenticate(signer(algorithm="RS512"))
    for algorithm in ("RS256", "RS384"):
        with pytest.raises(AuthenticationError):
            auth.authenticate(signer(algorithm=algorithm))


def test_key_without_algorithm_is_for_any_of_its_kind(web, reach, signer, ec_signer):
    auth = JwtAuthenticator(RemoteKeys(reach("/certs")), algorithms=["RS256", "PS256", "ES256"])
    web.say(200, {"keys": [{**key.jwk, "alg": None} for key in (ec_signer, signer)]})
    for token in (signer(), signer(algorithm="PS256"), ec_signer(), signer.seal({"alg": "RS256"}, {"sub": "ada", "exp": 2**40})):
        assert auth.authenticate(token).name == "ada"


# Fetching


def test_keys_are_fetched_once(keys, web):
    assert [kids(keys.matching("key-1")) for _ in range(5)] == [["key-1"]] * 5
    assert [asked.method for asked in web.asked] == ["GET"]


def test_token_without_kid_may_be_by_any_key(keys, web, signer, stranger):
    web.say(200, {"keys": [stranger.jwk, signer.jwk]})
    assert kids(keys.matching(None)) == ["key-2", "key-1"]
    assert JwtAuthenticator(keys).authenticate(signer()).name == "ada"


def test_unknown_kid_makes_for_one_fetch_in_thirty_seconds(keys, web, clock):
    keys.matching("key-1")
    for _ in range(100):
        assert keys.matching("made up") == ()
        clock.now += 0.2
    assert len(web.asked) == 1
    clock.now += 30
    for number in range(100):
        assert keys.matching(f"made up {number}") == ()
    assert len(web.asked) == 2


def test_new_key_is_found_when_it_is_first_used(keys, web, clock, signer, stranger):
    keys.matching("key-1")
    web.say(200, {"keys": [signer.jwk, stranger.jwk]})
    clock.now += 31
    assert kids(keys.matching("key-2")) == ["key-2"]


def test_withdrawn_key_is_dropped_after_five_minutes(keys, web, clock, stranger):
    keys.matching("key-1")
    web.say(200, {"keys": [stranger.jwk]})
    clock.now += 299
    assert keys.matching("key-1")
    clock.now += 2
    assert keys.matching("key-1") == ()


def test_pem_at_an_address_changes_too(keys, web, clock, signer, stranger):
    web.say(200, signer.public_pem)
    auth = JwtAuthenticator(keys)
    auth.authenticate(signer())
    web.say(200, stranger.public_pem)
    clock.now += 301
    with pytest.raises(AuthenticationError):
        auth.authenticate(signer())
    auth.authenticate(stranger())


@pytest.mark.parametrize("outage", [(500, b""), (404, b""), (302, b""), (200, b"<html>"), (200, b'{"keys": []}')])
def test_old_keys_are_used_during_an_outage(keys, web, clock, outage):
    keys.matching("key-1")
    web.say(*outage)
    for _ in range(20):
        clock.now += 301
        assert kids(keys.matching("key-1")) == ["key-1"]
    with pytest.raises(Unavailable):  # this one might be good
        keys.matching("key-2")


def test_an_outage_is_asked_about_twice_a_minute_at_most(keys, web, clock):
    keys.matching("key-1")
    web.say(500)
    clock.now += 301
    for _ in range(60):
        clock.now += 1
        keys.matching("key-1")
    assert len(web.asked) == 1 + 2


def test_keys_of_yesterday_are_used_no_more(keys, web, clock):
    keys.matching("key-1")
    web.say(500)
    clock.now += 86_400
    with pytest.raises(Unavailable):
        keys.matching("key-1")


def test_first_fetch_is_tried_again_soon(keys, web, clock, signer):
    web.say(500)
    for _ in range(3):
        with pytest.raises(Unavailable):
            keys.matching("key-1")
    assert len(web.asked) == 1
    web.say(200, {"keys": [signer.jwk]})
    clock.now += 5
    assert keys.matching("key-1")


def test_threads_fetch_once_together(keys, web):
    web.gate.clear()
    found, threads = [], []
    for _ in range(8):
        threads.append(threading.Thread(target=lambda: found.append(kids(keys.matching("key-1")))))
        threads[-1].start()
    web.gate.set()
    for thread in threads:
        thread.join(10)
    assert found == [["key-1"]] * 8
    assert len(web.asked) == 1


def test_known_key_does_not_wait_for_a_slow_fetch(keys, web, clock):
    keys.matching("key-1")
    clock.now += 301
    web.gate.clear()
    slow = threading.Thread(target=lambda: keys.matching("key-1"))
    slow.start()
    while len(web.asked) < 2:
        time.sleep(0.001)
    assert kids(keys.matching("key-1")) == ["key-1"]
    assert slow.is_alive()
    web.gate.set()
    slow.join(10)
