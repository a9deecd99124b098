"""Servers to measure against: nginx and a discarding sink. The S3 server comes from `score_core.testing`."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import socket
import socketserver
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from score_core.testing.servers import free_ports

_NGINX: Final = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off; sendfile on; tcp_nopush on;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


@contextlib.contextmanager
def nginx(root: Path, folder: Path) -> Iterator[str | None]:
    """nginx serving the files of `root`; its address, or None when the machine has no nginx."""
    binary = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if binary is None:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    port = free_ports(1)[0]
    config = folder / "nginx.conf"
    # Workers of a root master would be `nobody`, who may not read a private folder.
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(user + _NGINX.format(folder=folder, root=root, port=port))
    process = subprocess.Popen([binary, "-c", str(config), "-p", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise TimeoutError(f"Nothing listens on port {port}")


class _Sink(socketserver.StreamRequestHandler):
    """Takes PUTs, reads their bodies into nothing, and says that all is well."""

    def handle(self) -> None:
        buffer = memoryview(bytearray(1 << 20))
        while (length := self._head()) is not None:
            while length:
                count = self.rfile.readinto1(buffer[: min(length, len(buffer))])
                if not count:
                    return
                length -= count
            self.wfile.write(b'HTTP/1.1 200 OK\r\nETag: "sink"\r\nContent-Length: 0\r\n\r\n')

    def _head(self) -> int | None:
        length = None
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return length


class _SinkServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


def _run_sink(port: int) -> None:
    with _SinkServer(("127.0.0.1", port), _Sink) as server:
        server.serve_forever()


@contextlib.contextmanager
def sink() -> Iterator[str]:
    """The address of a server that discards what is PUT to it, in a process of its own."""
    port = free_ports(1)[0]
    process = multiprocessing.get_context("spawn").Process(target=_run_sink, args=(port,), daemon=True)
    process.start()
    try:
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.join()
