"""`python -m flows demo`: the main job on real files, with a kill in the middle of each direction, and nothing pretended."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

from flows.batch import batch
from flows.download import download
from flows.upload import upload
from flows.view import view
from score_core.errors import ScoreError
from score_core.metadata.base import Analysis
from score_core.metadata.registering import new_file, register
from score_core.operations import file_md5
from score_core.repository.base import Repository
from score_core.transfer.files import journal_path
from tasks import sessions

DATA: Final = Path(__file__).resolve().parent.parent / "tests" / "data"
REAL_FILES: Final = (
    "htsnexus_test_NA12878.bam",
    "htsnexus_test_NA12878.bam.bai",
    "htsnexus_test_NA12878.cram",
    "NA12878.embedref.cram",
    "range.bam",
    "range.cram",
    "ex1.vcf.gz",
    "sample1-bcbio-cancer.vcf.gz",
)
REGION: Final = "11:5000000-5001000"
GENERATED_BYTES: Final = 256 << 20
_SEED: Final = 12878
_STUDY: Final = "DEMO"
_SPACE: Final = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")
_KILL_TIMEOUT_S: Final = 120.0

Report = dict[str, Any]


def demo(folder: Path | None, *, started_s: float, server: bool = False) -> int:
    """Runs the demo in `folder` (a temporary one by default); 0 only if every byte came back as it went.

    With `server`, everything goes through a Score server in a process of its own, over HTTP with a token: files are registered and
    published besides.
    """
    print(f"Prefect is ready after {started_s:.1f} s.")
    work = folder or Path(tempfile.mkdtemp(prefix="score-demo-"))
    work.mkdir(parents=True, exist_ok=True)
    os.environ.update(SCORE_DATA_DIR=str(work / "data"), SCORE_STORE=(work / "store").as_uri())
    try:
        with _serving(work) if server else nullcontext():
            return _demo(work, registers=server)
    finally:
        if folder is None:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _serving(work: Path) -> Iterator[None]:
    """`score serve` on a free port, and an environment in which it is found."""
    environment = {name: value for name, value in os.environ.items() if name not in {"SCORE_URL", "STORAGE_URL", "METADATA_URL"}}
    command = [sys.executable, "-m", "score_core.cli", "serve", "--port", "0"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise ScoreError("`score serve` did not start; run it by itself to see why")
        del os.environ["SCORE_STORE"]
        os.environ.update(SCORE_URL=url, SCORE_TOKEN_FILE=str(work / "data" / "token"), SCORE_DATA_DIR=str(work / "client"))
        print(f"A Score server listens on {url}; its clients need a token.")
        yield
    finally:
        process.terminate()
        process.wait()


def _demo(work: Path, *, registers: bool) -> int:
    began = time.monotonic()
    files = _files(work)
    analysis = _registered(files) if registers else None
    ids = _ids(files, analysis)
    md5s = {path: file_md5(path) for path in files}
    big = files[-1]
    out = work / "downloaded"

    print(f"\n1. Upload {len(files) - 1} real files as one batch, a task run per file.")
    uploads = batch(str(_upload_manifest(work, files[:-1], ids, md5s)), "upload")

    print(f"2. Upload {big.name} ({big.stat().st_size >> 20} MiB), a task run per part; kill -9 half-way.")
    repository = sessions.engine(None).repository
    killed = _kill_half_way(
        ["upload", "--file", str(big), "--object-id", ids[big], "--md5", md5s[big]], lambda: _stored(repository, ids[big])
    )
    uploads.append(upload(str(big), ids[big], md5s[big]))
    _tell_resume(killed, uploads[-1])
    if analysis is not None:
        _publish(analysis)

    print(f"3. Download {big.name}; kill -9 half-way.")
    journal = journal_path(out / big.name)
    killed = _kill_half_way(["download", "--object-id", ids[big], "--output-dir", str(out)], lambda: _journaled(journal))
    downloads = [download(ids[big], str(out))]
    _tell_resume(killed, downloads[0])

    print(f"4. Download the other {len(files) - 1} files as one batch.")
    if analysis is None:
        downloads = [*batch(str(_download_manifest(work, files[:-1], ids, md5s)), "download", str(out)), *downloads]
    else:
        others = batch(None, "download", str(out), study_id=analysis.study_id, analysis_id=analysis.analysis_id)
        downloads = _in_order(files, [*others, *downloads])

    bam, bai = files[:2]
    print(f"5. Read region {REGION} of {bam.name} in the store: its header, its index, and what the reads are in.")
    (cut,) = view(str(work / "slices"), [ids[bam]], index_object_id=ids[bai], regions=[REGION], output_format="bam")
    print(f"   {cut['records']} reads; fetched {cut['bytes_moved']:,} of {cut['size']:,} bytes in {cut['requests']} requests.")

    print("6. Compare every file with what was uploaded, by MD5.\n")
    verified = {path: file_md5(out / path.name) == md5s[path] for path in files}
    _show(files, uploads, downloads, verified)
    good = all(verified.values()) and repository.find_upload(ids[big], GENERATED_BYTES) is None
    print(f"\n{'All files verified' if good else 'NOT all files verified'}; {time.monotonic() - began:.1f} s.")
    return 0 if good else 1


def _registered(files: list[Path]) -> Analysis:
    metadata = sessions.metadata(None)
    assert metadata is not None  # the server keeps some
    analysis = register(metadata, _STUDY, [new_file(path) for path in files])
    print(f"\n0. Registered {len(files)} files as analysis {analysis.analysis_id} of study {_STUDY}: {analysis.state}.")
    return analysis


def _publish(analysis: Analysis) -> None:
    metadata = sessions.metadata(None)
    assert metadata is not None
    metadata.publish(analysis.study_id, analysis.analysis_id)
    print("   Published: the server has compared size and MD5 of every file with what was registered.")


def _ids(files: list[Path], analysis: Analysis | None) -> dict[Path, str]:
    if analysis is None:
        return {path: str(uuid.uuid5(_SPACE, path.name)) for path in files}
    given = {record.file_name: record.object_id for record in analysis.files}
    return {path: given[path.name] for path in files}


def _in_order(files: list[Path], reports: list[Report]) -> list[Report]:
    by_name = {Path(report["path"]).name: report for report in reports}
    return [by_name[path.name] for path in files]


def _files(work: Path) -> list[Path]:
    """The real files that are shipped, then a generated one."""
    big = work / "generated-256MiB.bam"
    if not big.exists() or big.stat().st_size != GENERATED_BYTES:
        randomness = random.Random(_SEED)  # noqa: S311  # reproducible, not secret
        with big.open("wb") as file:
            for _ in range(GENERATED_BYTES >> 20):
                file.write(randomness.randbytes(1 << 20))
    return [*(DATA / name for name in REAL_FILES), big]


def _upload_manifest(work: Path, files: list[Path], ids: dict[Path, str], md5s: dict[Path, str]) -> Path:
    manifest = work / "upload.tsv"
    rows = ["object_id\tpath\tmd5", *("\t".join((ids[path], str(path), md5s[path])) for path in files)]
    manifest.write_text("\n".join(rows) + "\n")
    return manifest


def _download_manifest(work: Path, files: list[Path], ids: dict[Path, str], md5s: dict[Path, str]) -> Path:
    manifest = work / "download.tsv"
    names = "repo_code file_id object_id file_format file_name file_size md5_sum index_object_id donor_id project_id study"
    rows = [
        "\t".join(("", "", ids[path], path.suffix[1:], path.name, str(path.stat().st_size), md5s[path], "", "", "", "")) for path in files
    ]
    manifest.write_text("\n".join([names.replace(" ", "\t"), *rows]) + "\n")
    return manifest


def _kill_half_way(arguments: list[str], parts_done: Callable[[], int]) -> int:
    """Runs a flow in a process of its own and kills it when about half the parts are done; how many were done then."""
    half = GENERATED_BYTES // (20 << 20) // 2
    environment = {**os.environ, "SCORE_WORKERS": "2"}  # slower, so that there is a half-way
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while process.poll() is None and parts_done() < half and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return parts_done()


def _stored(repository: Repository, object_id: str) -> int:
    upload_in_progress = repository.find_upload(object_id, GENERATED_BYTES)
    return len(upload_in_progress.stored) if upload_in_progress else 0


def _journaled(journal: Path) -> int:
    try:
        return journal.read_bytes().count(b'"part":')
    except FileNotFoundError:
        return 0


def _tell_resume(killed: int, report: Report) -> None:
    moved = report["parts"] - report["parts_kept"]
    print(
        f"   killed with {killed} of {report['parts']} parts done; the next run kept {report['parts_kept']} "
        f"({report['parts_cached']} of them Cached in Prefect) and moved {moved}."
    )


def _show(files: list[Path], uploads: list[Report], downloads: list[Report], verified: dict[Path, bool]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("file", "bytes", "parts", "kept up/down", "retries", "MB/s up", "MB/s down", "MD5"):
        table.add_column(name, justify="left" if name in {"file", "MD5"} else "right")
    for path, up, down in zip(files, uploads, downloads, strict=True):
        table.add_row(
            path.name,
            f"{up['size']:,}",
            str(up["parts"]),
            f"{up['parts_kept']}/{down['parts_kept']}",
            str(up["retries"] + down["retries"]),
            _rate(up),
            _rate(down),
            "verified" if verified[path] else "WRONG",
        )
    Console(width=120).print(table)


def _rate(report: Report) -> str:
    return f"{report['bytes_moved'] / 1e6 / report['seconds']:.0f}" if report["seconds"] else "-"
