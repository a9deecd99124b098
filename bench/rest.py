"""`scripts/bench --only rest`: download specifications with 1,000 signed URLs each, asked for at a fixed rate of a server on one core.

The server's process is bound to one core, all else to the others. A request is sent when it is due, whether or not earlier ones are
answered, as users do: a server that falls behind shows in the latency. Time counts from when a request was due.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from bench.measure import BenchFailed
from score_core.checksum import md5_hex
from score_core.testing.servers import S3Endpoint, seaweedfs

_PARTS: Final = 1000
_PART_BYTES: Final = 1024
_CONNECTIONS: Final = 32
_OBJECTS: Final = 400
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """What a server made of a load: answers per second, latencies in milliseconds, its CPU milliseconds per answer."""

    per_s: float
    median_ms: float
    p95_ms: float
    cpu_ms: float


def bench_rest(work: Path, *, rate_per_s: int = 200, seconds: float = 10.0) -> None:
    """Prints a table: one object asked for again and again, and another object each time."""
    print(f"\n== REST: {rate_per_s} download specifications/s of {_PARTS} signed URLs, server on one core, {seconds:.0f} s")
    print(f"{'':<34} {'answers/s':>9} {'median ms':>9} {'p95 ms':>8} {'server CPU ms':>14}")
    cores = sorted(os.sched_getaffinity(0))
    with seaweedfs(work / "weed-rest") as s3:
        bucket = s3.fresh_bucket()
        ids = _objects(s3, bucket)
        with _server(work / "rest", s3, bucket, core=cores[0]) as (url, token, pid):
            os.sched_setaffinity(0, set(cores[1:]) or set(cores))
            try:
                for name, wanted in (("one object", ids[:1]), (f"{len(ids)} objects in turn", ids)):
                    _run(url, token, pid, wanted, rate_per_s, 1.0)  # connections, caches of the interpreter
                    load = _run(url, token, pid, wanted, rate_per_s, seconds)
                    print(f"{name:<34} {load.per_s:>9.0f} {load.median_ms:>9.1f} {load.p95_ms:>8.1f} {load.cpu_ms:>14.2f}")
            finally:
                os.sched_setaffinity(0, set(cores))


def _objects(s3: S3Endpoint, bucket: str) -> list[str]:
    """Objects of 1,000 small parts, as a finished upload leaves them."""
    data = bytes(_PARTS * _PART_BYTES)
    digest = md5_hex(data[:_PART_BYTES])
    ids = [str(uuid.uuid5(uuid.NAMESPACE_OID, str(number))) for number in range(_OBJECTS)]
    parts = [
        {"partNumber": number + 1, "partSize": _PART_BYTES, "offset": number * _PART_BYTES, "url": None, "md5": None, "sourceMd5": digest}
        for number in range(_PARTS)
    ]
    with contextlib.closing(s3.client()) as client:
        for object_id in ids:
            spec = {"objectId": object_id, "uploadId": "x", "parts": parts, "objectSize": len(data), "objectMd5": md5_hex(data)}
            client.put_object(Bucket=bucket, Key=f"data/{object_id}", Body=data)
            client.put_object(Bucket=bucket, Key=f"data/{object_id}.meta", Body=json.dumps(spec).encode())
    return ids


@contextlib.contextmanager
def _server(home: Path, s3: S3Endpoint, bucket: str, *, core: int) -> Iterator[tuple[str, str, int]]:
    environment = {
        **os.environ,
        **s3.environment(),
        "SCORE_DATA_DIR": str(home),
        "SCORE_CONFIG": os.devnull,
        "SCORE_STORE": s3.store_url(bucket),
        "SCORE_SERVER_METADATA": "none",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "score_core.cli", "serve", "--port", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    os.sched_setaffinity(process.pid, {core})
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise BenchFailed("`score serve` did not start")
        yield url, (home / "token").read_text().strip(), process.pid
    finally:
        process.terminate()
        process.wait()


def _run(url: str, token: str, pid: int, ids: Sequence[str], rate_per_s: int, seconds: float) -> Load:
    due: queue.SimpleQueue[tuple[float, str] | None] = queue.SimpleQueue()
    latencies: list[float] = []
    failures: list[str] = []

    def ask() -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        while (wanted := due.get()) is not None:
            at, object_id = wanted
            connection.request("GET", f"/download/{object_id}?offset=0&length=-1", headers={"Authorization": f"Bearer {token}"})
            response = connection.getresponse()
            body = response.read()
            latencies.append(time.perf_counter() - at)
            if response.status != 200 or len(body) < _PARTS * 100:
                failures.append(f"{response.status}: {body[:200]!r}")
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(_CONNECTIONS)]
    for thread in threads:
        thread.start()
    began, cpu = time.perf_counter(), _cpu_s(pid)
    for number in range(int(rate_per_s * seconds)):
        at = began + number / rate_per_s
        time.sleep(max(0.0, at - time.perf_counter()))
        due.put((at, ids[number % len(ids)]))
    for _ in threads:
        due.put(None)
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - began
    if failures:
        raise BenchFailed(f"{len(failures)} answers were no specifications, first {failures[0]}")
    milliseconds = sorted(latency * 1000 for latency in latencies)
    return Load(
        per_s=len(latencies) / wall,
        median_ms=statistics.median(milliseconds),
        p95_ms=milliseconds[int(len(milliseconds) * 0.95)],
        cpu_ms=(_cpu_s(pid) - cpu) * 1000 / len(latencies),
    )


def _cpu_s(pid: int) -> float:
    """User and system time that a process has used so far (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
