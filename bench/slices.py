"""`scripts/bench --only slice`: regions of a BAM in a store, cut out by `score view`, samtools and pysam, side by side.

All get the same signed URLs of the same store, over the same line (`bench.delay`), which counts what they ask for. They run in turn, and
every answer is held against what `samtools view` finds in the file itself. Seconds are those of the whole process, imports and the
writing of the BAM included.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

from bench.delay import Counts, DelayProxy, Line, delay_proxy
from bench.genome import make_genome
from bench.measure import BenchFailed, Run, run
from score_core.server.bytes import ByteServer
from score_core.slicing.base import Interval
from score_core.slicing.index import read_index
from score_core.slicing.plan import plan_slice
from score_core.stores.local import LocalStore

_CONNECTION_BYTES_PER_S: Final = 40e6  # what one connection to S3 gives, where there is a distance at all
TOOLS: Final = ("score", "samtools", "pysam")
_PEER: Final = "samtools"
_URL_LIFETIME_S: Final = 6 * 3600
_LONG_S: Final = 60  # what takes longer is not repeated
_SEED: Final = 7


class Region(NamedTuple):
    """0-based, `end` exclusive."""

    contig: str
    start: int
    end: int


@dataclass(frozen=True)
class Budget:
    """What `score view` may take; None is not limited. `faster` is at 50 ms, as a multiple of samtools' speed.

    `excess` multiplies the bytes of all that the index names for the regions.
    """

    mb: float | None = None
    excess: float | None = None
    requests: int | None = None
    faster: float | None = None


@dataclass(frozen=True)
class Case:
    """Regions, which do not overlap, and how they are asked for: by `--query`, or all in a BED file."""

    name: str
    regions: Sequence[Region]
    budget: Budget
    by_bed: bool = False


@dataclass(frozen=True)
class Wanted:
    """A case made ready: its BED file, how many reads there are, the MD5 of their text, and the bytes that the index names."""

    case: Case
    bed: Path
    reads: int
    digest: str
    named_bytes: int


@dataclass(frozen=True)
class Site:
    """A store with the object and its index, and the way to it. `folder` is for what tools write."""

    folder: Path
    proxy: DelayProxy
    url: str
    index_url: str
    object_id: str
    index_id: str
    environment: Mapping[str, str]


class Sliced(NamedTuple):
    """One run, and what went over the line for it."""

    run: Run
    counts: Counts


Contender = Callable[[Site, Wanted, Path], Run]


@dataclass(frozen=True)
class Options:
    """`genome` is a BAM with a BAI beside, made of about `size` bytes if it is not there."""

    rounds: int
    rtts_ms: Sequence[float]
    genome: Path
    size: int
    tools: Sequence[str] = TOOLS
    slow_start: bool = True


def bench_slices(work: Path, options: Options) -> None:
    """Prints a table for each case and round-trip time."""
    genome = options.genome
    if not genome.exists():
        print(f"making {genome.name} ...", flush=True)
        make_genome(genome, options.size)
    wanted = [_wanted(genome, case, work) for case in _cases(genome)]
    with _store(work, genome) as (folder, port, ids):
        print(f"{genome.stat().st_size / 1e6:.0f} MB of BAM; {_version()}")
        for rtt_ms in options.rtts_ms:
            line = Line(rtt_ms / 1000, _CONNECTION_BYTES_PER_S if rtt_ms else None, options.slow_start)
            with delay_proxy(port, line) as proxy:
                site = _site(work, proxy, folder, ids)
                _measured(site, wanted[0], replace(options, rounds=1))  # compiles modules, and fills caches
                for one in wanted:
                    _table(one, rtt_ms, _measured(site, one, options))


def _cases(genome: Path) -> list[Case]:
    random = Random(_SEED)
    contigs = _big(_contigs(genome))
    small = sum(contigs.values()) < 50e6  # then the budgets, which are for a gigabyte, say nothing
    genes, length = (10, 20_000) if small else (500, 60_000)
    exons = [region for gene in _apart(random, contigs, genes, length) for region in _exons(random, gene)]
    budgets = (
        [Budget()] * 4 if small else [Budget(mb=1, requests=4), Budget(mb=8, requests=30, faster=2), Budget(), Budget(excess=1.1, faster=2)]
    )
    return [
        Case("1 x 500 bp", _apart(random, contigs, 1, 500), budgets[0]),
        Case("20 x 10 kb", _apart(random, contigs, 20, 10_000), budgets[1]),
        Case("1 x 1 Mb", _apart(random, contigs, 1, 100_000 if small else 1_000_000), budgets[2]),
        Case(f"BED of {len(exons):,} exons in {genes} genes", exons, budgets[3], by_bed=True),
    ]


def _contigs(genome: Path) -> dict[str, int]:
    """Names and lengths, in the file's order."""
    text = _output(["samtools", "view", "-H", str(genome)]).decode()
    fields = [dict(field.split(":", 1) for field in line.split("\t")[1:]) for line in text.splitlines() if line.startswith("@SQ")]
    return {field["SN"]: int(field["LN"]) for field in fields}


def _big(contigs: Mapping[str, int]) -> dict[str, int]:
    return {name: length for name, length in contigs.items() if length >= max(contigs.values()) / 10}


def _apart(random: Random, contigs: Mapping[str, int], count: int, length: int) -> list[Region]:
    """Regions anywhere, in order, at least their length apart from each other and from the ends."""
    found: list[Region] = []
    for _ in range(1000 * count):
        contig = random.choices(list(contigs), list(contigs.values()))[0]
        if contigs[contig] < 3 * length:
            continue
        start = random.randrange(length, contigs[contig] - 2 * length)
        if all(other.contig != contig or abs(other.start - start) >= 2 * length for other in found):
            found.append(Region(contig, start, start + length))
            if len(found) == count:
                order = list(contigs)
                return sorted(found, key=lambda region: (order.index(region.contig), region.start))
    raise BenchFailed(f"The genome is too small for {count} regions of {length} bases")


def _exons(random: Random, gene: Region) -> Iterator[Region]:
    """Twenty in a gene, most of them of 80 to 300 bases."""
    reach = random.randrange((gene.end - gene.start) // 4, gene.end - gene.start)
    step = reach // 20
    for number in range(20):
        length = min(int(random.lognormvariate(5.0, 0.5)) + 30, step - 100)
        start = gene.start + number * step + random.randrange(step - length)
        yield Region(gene.contig, start, start + length)


def _wanted(genome: Path, case: Case, work: Path) -> Wanted:
    bed = work / f"{hashlib.md5(case.name.encode(), usedforsecurity=False).hexdigest()[:8]}.bed"
    bed.write_text("".join(f"{region.contig}\t{region.start}\t{region.end}\n" for region in case.regions))
    reads, digest = _reads(["-M", "-L", str(bed), str(genome)])
    return Wanted(case, bed, reads, digest, _named_bytes(genome, case.regions))


def _named_bytes(genome: Path, regions: Sequence[Region]) -> int:
    """Bytes of all blocks that the index names for the regions, no gap bridged: what must be fetched, headers and index aside."""
    index_path = genome.with_name(f"{genome.name}.bai")
    tids = {name: tid for tid, name in enumerate(_contigs(genome))}
    intervals = [Interval(tids[region.contig], region.start, region.end) for region in regions]
    index = read_index(index_path.read_bytes(), name=index_path.name)
    return plan_slice(index, intervals, size=genome.stat().st_size, gap=0, window_bytes=genome.stat().st_size).size


def _reads(arguments: Sequence[str]) -> tuple[int, str]:
    """How many reads `samtools view` prints, and the MD5 of their text."""
    digest, lines = hashlib.md5(usedforsecurity=False), 0
    with subprocess.Popen(["samtools", "view", *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while block := process.stdout.read(1 << 20):
            digest.update(block)
            lines += block.count(b"\n")
    if process.returncode:
        raise BenchFailed(f"samtools view {' '.join(arguments)} exited {process.returncode}")
    return lines, digest.hexdigest()


@contextlib.contextmanager
def _store(work: Path, genome: Path) -> Iterator[tuple[Path, int, tuple[str, str]]]:
    """A folder with the BAM and its index in it as objects, the port of a server of its bytes, and the objects' ids."""
    folder = work / "store"
    ids = str(uuid.uuid4()), str(uuid.uuid4())
    for object_id, path in zip(ids, (genome, genome.with_name(f"{genome.name}.bai")), strict=True):
        command = [sys.executable, "-m", "score_core.cli", "upload", "--file", str(path), "--object-id", object_id, "--md5", "compute"]
        run(command, _environment(work, folder))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(folder, theirs), daemon=True)
    process.start()
    try:
        yield folder, int(ours.recv()), ids
    finally:
        process.terminate()
        process.join()
        shutil.rmtree(folder, ignore_errors=True)


def _serve(folder: Path, tell: Any) -> None:
    logging.disable()  # htslib hangs up in the middle of most answers, and each time is a traceback
    server = ByteServer(LocalStore(folder))
    tell.send(int(server.url.rpartition(":")[2]))
    server.serve_forever()


def _environment(work: Path, folder: Path) -> dict[str, str]:
    # As installed: compiled modules are kept, wherever and however this program was started.
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(work / "compiled")}
    return {"SCORE_STORE": folder.as_uri(), "SCORE_DATA_DIR": str(work / "data"), "SCORE_CONFIG": "", "SCORE_URL": "", **compiled}


def _site(work: Path, proxy: DelayProxy, folder: Path, ids: tuple[str, str]) -> Site:
    with contextlib.closing(LocalStore(folder, base_url=proxy.url)) as store:
        urls = [store.presign_gets(f"data/{object_id}", [None], lifetime_s=_URL_LIFETIME_S)[0].url for object_id in ids]
    environment = {**_environment(work, folder), "SCORE_SERVE_URL": proxy.url}
    return Site(work / "out", proxy, urls[0], urls[1], ids[0], ids[1], environment)


def _contenders(wanted: Wanted, tools: Sequence[str]) -> dict[str, Contender]:
    found: dict[str, Contender] = {}
    if "score" in tools:
        found["score view"] = _score
        found["score view, whole header"] = partial(_score, more=["--output-original-header"])
    if "samtools" in tools:
        found[_PEER] = _samtools
    if "pysam" in tools:
        found["pysam view -M -L"] = partial(_python, _PYSAM_VIEW)
        if not wanted.case.by_bed:  # reads that reach into two exons would come twice
            found["pysam fetch"] = partial(_python, _PYSAM_FETCH)
    return found


def _score(site: Site, wanted: Wanted, out: Path, more: Sequence[str] = ()) -> Run:
    command = [sys.executable, "-m", "score_core.cli", "view", "--object-id", site.object_id, "--index-object-id", site.index_id]
    if wanted.case.by_bed:
        command += ["--bed-query", str(wanted.bed)]
    else:
        command += ["--query", *(f"{region.contig}:{region.start + 1}-{region.end}" for region in wanted.case.regions)]
    return run([*command, "--output-format", "bam", "--output-dir", str(out), *more], site.environment)


def _samtools(site: Site, wanted: Wanted, out: Path) -> Run:
    # `-X` with two URLs is refused by 1.16. The folder: htslib saves the index where it runs, and would find it there the next time.
    command = ["samtools", "view", "-M", "-L", str(wanted.bed), "-b", "-o", str(out / "x.bam"), f"{site.url}##idx##{site.index_url}"]
    return run(["sh", "-c", 'cd "$0" && exec "$@"', str(out), *command])


def _python(program: str, site: Site, wanted: Wanted, out: Path) -> Run:
    command = [sys.executable, "-c", program, site.url, site.index_url, str(wanted.bed), "x.bam"]
    return run(["sh", "-c", 'cd "$0" && exec "$@"', str(out), *command])


_PYSAM_VIEW: Final = """
import sys, pysam
url, index, bed, out = sys.argv[1:]
pysam.view("-M", "-L", bed, "-b", "-o", out, f"{url}##idx##{index}", catch_stdout=False)
"""
_PYSAM_FETCH: Final = """
import sys, pysam
url, index, bed, out = sys.argv[1:]
with pysam.AlignmentFile(url, index_filename=index) as file, pysam.AlignmentFile(out, "wb", template=file) as made:
    for line in open(bed):
        contig, start, end = line.split()
        for read in file.fetch(contig, int(start), int(end)):
            made.write(read)
"""


def _measured(site: Site, wanted: Wanted, options: Options) -> dict[str, list[Sliced]]:
    """What each tool took, round by round. Raises `BenchFailed` if any found other reads than there are."""
    contenders = _contenders(wanted, options.tools)
    found: dict[str, list[Sliced]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, contender in contenders.items():
            if found[name] and found[name][0].run.wall_s > _LONG_S:
                continue
            site.folder.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=site.folder) as out:
                before = site.proxy.counts()
                taken = contender(site, wanted, Path(out))
                found[name].append(Sliced(taken, site.proxy.counts().since(before)))
                _check(name, wanted, Path(out))
    return found


def _check(name: str, wanted: Wanted, out: Path) -> None:
    made = list(out.glob("*.bam"))
    if len(made) != 1:
        raise BenchFailed(f"{name} left {[path.name for path in out.iterdir()]}, not one BAM")
    reads, digest = _reads([str(made[0])])
    if digest != wanted.digest:
        raise BenchFailed(f"{name}, {wanted.case.name}: {reads} reads, there are {wanted.reads}, or they are others")


def _table(wanted: Wanted, rtt_ms: float, runs: Mapping[str, Sequence[Sliced]]) -> None:
    """A row per tool: medians, and how many times as fast as samtools (over 1 is faster)."""
    wide = max(len(name) for name in runs)
    peer = _seconds(runs[_PEER]) if _PEER in runs else None
    print(f"\n{wanted.case.name}, {wanted.reads:,} reads, round trip {rtt_ms:g} ms")
    print(f"{'':{wide}}  seconds  x {_PEER}  CPU s       MB  requests  connections  peak MiB")
    for name, found in sorted(runs.items(), key=lambda item: _seconds(item[1])):
        seconds, cpu, memory = _seconds(found), _median(one.run.cpu_s for one in found), _median(one.run.rss_mib for one in found)
        mb, requests = _mb(found), _median(one.counts.requests for one in found)
        connections = _median(one.counts.connections for one in found)
        ratio = f"{peer / seconds:10.2f}" if peer else "         -"
        print(f"{name:{wide}} {seconds:8.2f} {ratio} {cpu:6.2f} {mb:8.1f} {requests:9.0f} {connections:12.0f} {memory:9.0f}", flush=True)
    if (ours := runs.get("score view")) is not None:
        _judge(wanted, rtt_ms, ours, peer)


def _judge(wanted: Wanted, rtt_ms: float, ours: Sequence[Sliced], peer: float | None) -> None:
    budget, told = wanted.case.budget, []
    if budget.mb is not None:
        told.append(_verdict("MB", _mb(ours), budget.mb))
    if budget.excess is not None:
        told.append(_verdict("x the bytes that the index names", _mb(ours) * 1e6 / wanted.named_bytes, budget.excess))
    if budget.requests is not None:
        told.append(_verdict("requests", _median(one.counts.requests for one in ours), budget.requests))
    if peer and rtt_ms == 0 and budget.faster is not None:  # a smaller slice is over before a Python has started
        told.append(_verdict("x samtools' time", _seconds(ours) / peer, 1.5))
    if peer and rtt_ms >= 50 and budget.faster is not None:
        told.append(_verdict("x samtools' time", _seconds(ours) / peer, 1 / budget.faster))
    if told:
        print(f"budget: {'; '.join(told)}")


def _verdict(what: str, taken: float, allowed: float) -> str:
    return f"{taken:.2f} of {allowed:g} {what}{'' if taken <= allowed else ' MISSED'}"


def _seconds(found: Sequence[Sliced]) -> float:
    return _median(one.run.wall_s for one in found)


def _mb(found: Sequence[Sliced]) -> float:
    return _median(one.counts.sent_bytes for one in found) / 1e6


def _median(values: Any) -> float:
    return float(statistics.median(values))


def _version() -> str:
    first = _output(["samtools", "--version"]).splitlines()[0].decode()
    return f"{first}, pysam {metadata.version('pysam')}"


def _output(command: Sequence[str]) -> bytes:
    try:
        return subprocess.run(command, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchFailed(f"{command[0]} is needed: {error}") from error
