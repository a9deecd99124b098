"""`scripts/bench`: throughput, CPU and memory beside other tools, in one run, as ratios.

scripts/bench                      64 MiB to 4 GiB, three rounds (one of 4 GiB): half an hour on two cores, 40 GiB of disk
scripts/bench --sizes 64M,256M     other sizes
scripts/bench --only prefect       the cost of Prefect per part
scripts/bench --only slice         regions of a BAM, beside samtools and pysam; needs samtools
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bench.genome import size_in_bytes
from bench.measure import BenchFailed, Run, alternate, run
from bench.rest import bench_rest
from bench.servers import nginx, sink
from bench.slices import TOOLS, Options, bench_slices
from score_core.operations import file_md5
from score_core.plan import plan_parts
from score_core.testing.servers import S3Endpoint, seaweedfs

_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_BLOCK: Final = 1 << 20
_LARGE_BYTES: Final = 1 << 30  # larger sizes get one round: each round of 4 GiB leaves 16 GiB in the servers
Contenders = dict[str, Callable[[], Run]]


@dataclass(frozen=True)
class Source:
    """A generated file, what is known of it, and a JSON file of the same facts for `bench.plain`."""

    path: Path
    size: int
    md5: str
    facts: Path


def main() -> int:
    given = _parser().parse_args()
    work = Path(tempfile.mkdtemp(prefix="score-bench-", dir=given.dir))
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}; medians of {given.rounds} alternating rounds; MB/s = 10^6 bytes/s")
    try:
        if given.only in (None, "transfer"):
            for size in given.sizes:
                _bench_size(work, size, given.rounds if size <= _LARGE_BYTES else 1)
        if given.only in (None, "prefect"):
            _bench_prefect(work, given.rounds)
        if given.only in (None, "rest"):
            bench_rest(work)
        if given.only == "slice":  # only when asked for: it makes a gigabyte first
            genome = given.genome or work / "genome.bam"
            bench_slices(work, Options(given.rounds, given.rtt, genome, given.genome_size, given.tools, given.slow_start))
        if given.only in (None, "start"):
            _bench_start(given.rounds)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def _bench_size(work: Path, size: int, rounds: int) -> None:
    source = _source(work, size)
    limit = _md5_rate(source)
    print(f"\n== {_human(size)}; one core's MD5: {limit:.0f} MB/s")
    folder = work / "out"
    folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        s3 = stack.enter_context(seaweedfs(work / f"weed-{size}"))
        plain = stack.enter_context(nginx(work, work / "nginx"))
        discard = stack.enter_context(sink())
        _table("upload", alternate(rounds, _uploads(work, source, s3, discard)), size, limit)
        _table("download", alternate(rounds, _downloads(work, source, s3, plain, folder)), size, limit)
    source.path.unlink()


def _uploads(work: Path, source: Source, s3: S3Endpoint, discard: str) -> Contenders:
    contenders: Contenders = {
        "score -> embedded": lambda: _score_upload(source, _embedded(work)),
        "score -> S3": lambda: _score_upload(source, _in_bucket(s3)),
        "score -> sink": lambda: run([sys.executable, "-m", "bench.plain", "put", f"{discard}/x", str(source.facts), str(source.path)]),
        "boto3 -> S3": lambda: run([sys.executable, "-c", _BOTO3, "up", s3.url, s3.fresh_bucket(), str(source.path)], s3.environment()),
    }
    if s5cmd := _beside_python("s5cmd"):
        contenders["s5cmd -> S3"] = lambda: run(
            [s5cmd, "--endpoint-url", s3.url, "cp", str(source.path), f"s3://{s3.fresh_bucket()}/x"], s3.environment()
        )
    return contenders


def _downloads(work: Path, source: Source, s3: S3Endpoint, plain: str | None, folder: Path) -> Contenders:
    embedded, in_s3 = _embedded(work), _in_bucket(s3)
    local_id, s3_id = str(uuid.uuid4()), str(uuid.uuid4())
    _score_upload(source, embedded, local_id)
    _score_upload(source, in_s3, s3_id)
    bucket = s3.fresh_bucket()
    run([sys.executable, "-c", _BOTO3, "up", s3.url, bucket, str(source.path)], s3.environment())
    target = str(folder / "x")
    md5sum = f"&& md5sum {target}"
    contenders: Contenders = {
        "score <- embedded": lambda: _score_download(local_id, folder, embedded),
        "score <- S3": lambda: _score_download(s3_id, folder, in_s3),
        "score <- S3, whole MD5": lambda: _score_download(s3_id, folder, in_s3, "whole"),
        "boto3 <- S3": lambda: run([sys.executable, "-c", _BOTO3, "down", s3.url, bucket, target], s3.environment()),
        "boto3 + md5sum <- S3": lambda: run(
            ["sh", "-c", f'"$0" -c "$1" down {s3.url} {bucket} {target} {md5sum}', sys.executable, _BOTO3], s3.environment()
        ),
    }
    if s5cmd := _beside_python("s5cmd"):
        copy = f"{s5cmd} --endpoint-url {s3.url} cp s3://{bucket}/x {target}"
        contenders["s5cmd <- S3"] = lambda: run(["sh", "-c", copy], s3.environment())
        contenders["s5cmd + md5sum <- S3"] = lambda: run(["sh", "-c", f"{copy} {md5sum}"], s3.environment())
    if plain is not None:
        address = f"{plain}/{source.path.name}"
        for validation in ("parts", "whole"):
            command = [sys.executable, "-m", "bench.plain", "get", address, str(source.facts), target, validation]
            contenders[f"score <- nginx, {validation} MD5"] = partial(run, command)
        if shutil.which("curl"):
            contenders["curl + md5sum <- nginx"] = lambda: run(["sh", "-c", f"curl -s -o {target} {address} {md5sum}"])
    return contenders


_PEERS: Final = ("s5cmd", "boto3")  # neither verifies anything; what they take with md5sum behind is a row of its own
_BOTO3: Final = """
import sys, boto3
from botocore.config import Config
verb, endpoint, bucket, path = sys.argv[1:]
s3 = boto3.client("s3", endpoint_url=endpoint, config=Config(s3={"addressing_style": "path"}))
s3.upload_file(path, bucket, "x") if verb == "up" else s3.download_file(bucket, "x", path)
"""


def _beside_python(name: str) -> str | None:
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def _embedded(work: Path) -> Mapping[str, str]:
    return {"SCORE_DATA_DIR": str(work / "data")}


def _in_bucket(s3: S3Endpoint) -> Mapping[str, str]:
    return {**s3.environment(), "SCORE_STORE": s3.store_url(s3.fresh_bucket())}


def _score_upload(source: Source, environment: Mapping[str, str], object_id: str | None = None) -> Run:
    arguments = ["upload", "--file", str(source.path), "--object-id", object_id or str(uuid.uuid4()), "--md5", source.md5]
    return run([sys.executable, "-m", "score_core.cli", *arguments], environment)


def _score_download(object_id: str, folder: Path, environment: Mapping[str, str], validation: str = "auto") -> Run:
    arguments = ["download", "--object-id", object_id, "--output-dir", str(folder), "--force", "--validate", validation]
    return run([sys.executable, "-m", "score_core.cli", *arguments], environment)


def _table(title: str, runs: Mapping[str, Run], size: int, limit: float) -> None:
    """One row per contender, the quickest first. Ratios over 1 mean quicker than that peer, which verifies nothing."""
    wide = max(len(name) for name in runs)
    peers = [_peer(runs, name) for name in _PEERS]
    print(f"\n{title:{wide}}   MB/s  of MD5  x s5cmd  x boto3  CPU s/GiB  peak MiB  seconds")
    for name, found in sorted(runs.items(), key=lambda item: item[1].wall_s):
        rate = size / 1e6 / found.wall_s
        ratios = " ".join(f"{peer / found.wall_s:8.2f}" if peer else "       -" for peer in peers)
        cost = f"{found.cpu_s * (1 << 30) / size:10.2f} {found.rss_mib:9.0f} {found.wall_s:8.2f}"
        print(f"{name:{wide}} {rate:6.0f} {rate / limit:6.0%} {ratios} {cost}")


def _peer(runs: Mapping[str, Run], tool: str) -> float | None:
    """Seconds of a tool by itself, None if it is not here."""
    return next((found.wall_s for name, found in runs.items() if name.startswith(f"{tool} ") and "+" not in name), None)


def _bench_prefect(work: Path, rounds: int) -> None:
    """The client CPU that Prefect adds to a part: many small parts, by flow and by the direct engine, beside few."""
    few, many = 20, 520
    part_bytes = 64 << 10
    environment = {
        "SCORE_PART_SIZE_BYTES": str(part_bytes),
        "SCORE_STORE": (work / "prefect").as_uri(),
        "SCORE_DATA_DIR": str(work / "data"),
    }
    sources = {count: _source(work, count * part_bytes) for count in (few, many)}

    def flow(source: Source) -> Run:
        return run(
            [sys.executable, "-m", "flows", "upload", "--file", str(source.path), "--object-id", str(uuid.uuid4()), "--md5", source.md5],
            environment,
        )

    flow(sources[few])  # starts the server
    names: Contenders = {}
    for count, source in sources.items():
        names[f"flow {count}"] = partial(flow, source)
        names[f"direct {count}"] = partial(_score_upload, source, environment)
    runs = alternate(rounds, names)
    print(f"\n== Prefect: {many} parts against {few}, client side")
    for kind in ("flow", "direct"):
        more, less = runs[f"{kind} {many}"], runs[f"{kind} {few}"]
        cpu, wall = ((getattr(more, field) - getattr(less, field)) / (many - few) * 1e3 for field in ("cpu_s", "wall_s"))
        print(f"{kind:7} {cpu:6.2f} ms CPU a part, {wall:6.2f} ms wall a part; whole process with {few} parts {less.wall_s:.2f} s")


def _bench_start(rounds: int) -> None:
    commands = {"python -c pass": ["-c", "pass"], "score --help": ["-m", "score_core.cli", "--help"]}
    runs = alternate(max(rounds, 5), {name: partial(run, [sys.executable, *command]) for name, command in commands.items()})
    print("\n== Start")
    for name, found in runs.items():
        print(f"{name:16} {found.wall_s:.2f} s, {found.cpu_s:.2f} s CPU")


def _source(work: Path, size: int) -> Source:
    """A file of `size` bytes that no store can compress or deduplicate."""
    path = work / f"source-{size}.bin"
    etags: dict[str, str] = {}
    with path.open("wb") as file:
        for start in range(0, size, 16 * _BLOCK):
            file.write(os.urandom(min(16 * _BLOCK, size - start)))
    with path.open("rb") as file:
        for part in plan_parts(size):
            etags[str(part.number)] = hashlib.md5(file.read(part.size), usedforsecurity=False).hexdigest()
    md5 = file_md5(path)
    facts = path.with_suffix(".json")
    facts.write_text(json.dumps({"size": size, "md5": md5, "etags": etags}))
    return Source(path, size, md5, facts)


def _md5_rate(source: Source) -> float:
    """MB/s of one core's MD5 over the cached file, the best of three."""

    def once() -> float:
        began = time.perf_counter()
        file_md5(source.path)
        return time.perf_counter() - began

    return source.size / 1e6 / min(once() for _ in range(3))


def _human(size: int) -> str:
    return f"{size >> 30} GiB" if size >= 1 << 30 else f"{size >> 20} MiB"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=_sizes, default=_sizes("64M,256M,1G,4G"), help="default 64M,256M,1G,4G")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["transfer", "prefect", "rest", "slice", "start"])
    parser.add_argument("--dir", help="where to work: needs five times the largest size")
    slices = parser.add_argument_group("slice")
    slices.add_argument("--rtt", type=_milliseconds, default=[0.0, 50.0], help="round trips in milliseconds, default 0,50")
    slices.add_argument("--genome", type=Path, help="a BAM with its .bai beside; made there if it is missing, and kept")
    slices.add_argument("--genome-size", type=size_in_bytes, default=1 << 30, help="of the BAM that is made, default 1G")
    slices.add_argument("--tools", type=lambda text: text.split(","), default=list(TOOLS), help="all by default")
    slices.add_argument("--no-slow-start", action="store_false", dest="slow_start", help="connections are at full speed at once")
    return parser


def _milliseconds(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def _sizes(text: str) -> list[int]:
    return [int(word[:-1]) * _UNITS[word[-1].upper()] for word in text.split(",")]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchFailed as error:
        sys.exit(f"ERROR: {error}")
