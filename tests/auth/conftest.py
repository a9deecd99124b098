"""A fake auth server on loopback that records what it is asked, and keys that sign JWTs."""

import base64
import contextlib
import json
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from score_core.auth.server import AuthServer


@dataclass
class Asked:
    method: str
    path: str
    headers: dict
    body: bytes


class FakeAuthServer(ThreadingHTTPServer):
    """Answers every request as `say` was told last, or by path as `serve` was told. `asked` holds the requests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked = []
        self.answers = {}
        self.breaks = 0  # that many requests get no answer
        self.gate = threading.Event()  # closed by a test that holds answers back
        self.gate.set()
        self.say(200, b"")

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def say(self, status, body=b"", *, headers=None, path=None):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answers[path] = (status, content, {"Content-Length": str(len(content)), **(headers or {})})

    def stop(self):
        self.gate.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeAuthServer
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(Asked(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        self.server.gate.wait(10)
        status, content, headers = self.server.answers.get(self.path) or self.server.answers[None]
        if self.server.breaks:
            self.server.breaks -= 1
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def web():
    server = FakeAuthServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.stop()
    thread.join(5)


@pytest.fixture
def reach(web):
    """Opens `AuthServer`s: on the fake one by a path, or by a whole address. All are closed at the end."""
    with contextlib.ExitStack() as opened:

        def open_one(place, options=None):
            server = AuthServer(web.url + place if place.startswith("/") else place, options)
            opened.callback(server.close)
            return server

        yield open_one


class Signer:
    """One private key, and tokens by it."""

    def __init__(self, private, kid):
        self.private, self.kid = private, kid
        public = private.public_key()
        self.public_pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.private_pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.algorithm = "RS256" if isinstance(private, rsa.RSAPrivateKey) else "ES256"
        kind = jwt.get_algorithm_by_name(self.algorithm)
        self.jwk = {**kind.to_jwk(public, as_dict=True), "kid": kid, "use": "sig", "alg": self.algorithm}
        self.jwk.pop("key_ops", None)

    def __call__(self, claims=None, *, headers=None, algorithm=None, scope=("score.READ",), **more):
        """A good token, save for what is given: a claim of None is left out."""
        good = {"sub": "ada", "exp": int(time.time()) + 600, "context": {"scope": list(scope)}, **(claims or {}), **more}
        kept = {name: value for name, value in good.items() if value is not None}
        return jwt.encode(kept, self.private, algorithm or self.algorithm, headers={"kid": self.kid, **(headers or {})})

    def seal(self, header, claims):
        """A token with a true RS256 signature, whatever is in it: what `jwt.encode` would refuse to write."""
        token = f"{b64(header)}.{b64(claims)}"
        return f"{token}.{b64(self.private.sign(token.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def b64(data):
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.fixture(scope="session")
def signer():
    return Signer(rsa.generate_private_key(public_exponent=65537, key_size=2048), "key-1")


@pytest.fixture(scope="session")
def stranger():
    """Another's key."""
    return Signer(rsa.generate_private_key(public_exponent=65537, key_size=2048), "key-2")


@pytest.fixture(scope="session")
def ec_signer():
    return Signer(ec.generate_private_key(ec.SECP256R1()), "key-ec")


@pytest.fixture
def pem(tmp_path, signer):
    path = tmp_path / "public.pem"
    path.write_bytes(signer.public_pem)
    return path


class Clock:
    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()
