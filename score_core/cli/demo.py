"""The guided run: upload, kill, resume, download, verify, refuse, on a folder of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter

from score_core import operations
from score_core.cli.context import Injected
from score_core.cli.output import Result, say
from score_core.errors import ObjectMismatch, ScoreError
from score_core.ids import object_id_of
from score_core.model import TransferReport
from score_core.operations import DownloadItem, DownloadOptions, UploadItem
from score_core.repository.base import Repository
from score_core.session import open_engine, open_repository
from score_core.settings import Settings
from score_core.transfer.engine import Engine
from score_core.transfer.stop import Stop

_BIG_BYTES: Final = 64 << 20
_PART_BYTES: Final = 512 << 10  # 128 parts: small ones, so that there is a half to be killed at
_SEED: Final = 7
_DATA: Final = Path(__file__).parents[2] / "tests" / "data"  # there in a checkout, absent from a wheel
_PATIENCE_S: Final = 30.0


@dataclass
class _File:
    """One file's way through the demo. `resumed` is the report of the run after the kill."""

    path: Path
    object_id: str
    md5: str
    uploaded: TransferReport | None = None
    downloaded: TransferReport | None = None
    verified: bool = False

    @property
    def item(self) -> UploadItem:
        return UploadItem(self.object_id, self.path, self.md5)


def demo(
    *,
    keep: Annotated[bool, Parameter(negative=(), show_default=False, help="Keep the folder that it worked in.")] = False,
    context: Injected,
) -> Result:
    """Show what Score does, on real files, in a temporary folder: about ten seconds.

    Uploads a 64 MiB file in a process that it kills half-way, resumes, downloads
    everything, compares MD5s, and tries to pass off a file with one wrong bit.

    Example: score demo --keep
    """
    with _folder(keep=keep) as folder:
        settings = Settings(data_dir=folder / "data", part_size_bytes=_PART_BYTES)
        files = _made(folder)
        _kill_and_resume(files[0], settings, context.stop)
        with open_engine(settings, stop=context.stop) as engine:
            _upload_others(engine, files[1:])
            _download_all(engine, files, folder / "downloads")
            refused = _refuses_wrong_bit(engine, files[-1], folder)
    good = refused and all(file.verified for file in files)
    document = {"files": [_row(file) for file in files], "wrong_bit_refused": refused, "folder": str(folder) if keep else None}
    error = None if good else "The demo did not end as it must; please report it with the output above"
    return Result(document, data=_table(files), talk=[f"The folder is {folder}"] if keep else [], error=error, exit_code=0 if good else 6)


@contextmanager
def _folder(*, keep: bool) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="score-demo-"))
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _made(folder: Path) -> list[_File]:
    """One big file of reproducible noise, and the shipped real ones."""
    big = folder / "noise.bin"
    noise = random.Random(_SEED)  # noqa: S311  # the same bytes every time, no secret
    with big.open("wb") as out:
        for _ in range(_BIG_BYTES >> 20):
            out.write(noise.randbytes(1 << 20))
    real = sorted(path for path in _DATA.glob("*") if path.suffix != ".md") if _DATA.is_dir() else []
    say(f"1. Files: {big.name} of {_BIG_BYTES:,} bytes, made here, and {len(real)} real BAM, CRAM and VCF files with their indexes")
    analysis = str(uuid.UUID(int=_SEED))
    return [_File(path, object_id_of(analysis, path.name), _md5(path)) for path in [big, *(real or [_small(folder)])]]


def _small(folder: Path) -> Path:
    path = folder / "small.txt"
    path.write_bytes(b"no checkout, no shipped data\n")
    return path


def _md5(path: Path) -> str:
    """With hashlib alone: the demo's judge must not be the code that it judges."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _kill_and_resume(file: _File, settings: Settings, stop: Stop) -> None:
    killed = _start_upload(file, settings)
    stored, parts = _kill_at_half(killed, file, settings, stop)
    if killed.returncode == -9:
        say(f"2. Upload of {file.path.name}: killed with SIGKILL when {stored} of {parts} parts were stored")
    else:
        say(f"2. Upload of {file.path.name}: it ended before the kill; this machine is too fast for this part of the demo")
    answer, _ = _start_upload(file, settings).communicate(timeout=_PATIENCE_S)
    row: dict[str, Any] = json.loads(answer)["files"][0]
    row.pop("megabytes_per_s")
    report = TransferReport(**row)
    if report.error is not None:
        raise ScoreError(f"The demo's second upload failed: {report.error}")
    file.uploaded = report
    say(f"3. The same command again: {report.parts_kept} of {report.parts} parts kept, {report.bytes_moved:,} bytes sent, published")


def _start_upload(file: _File, settings: Settings) -> subprocess.Popen[bytes]:
    words = ["upload", "--file", str(file.path), "--object-id", file.object_id, "--md5", file.md5, "--json", "--progress", "none"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SCORE_", "STORAGE_"))}
    own = {"SCORE_DATA_DIR": str(settings.data_dir), "SCORE_PART_SIZE_BYTES": str(_PART_BYTES), "SCORE_CONFIG": os.devnull}
    return subprocess.Popen(
        [sys.executable, "-m", "score_core.cli", *words], env={**kept, **own}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def _kill_at_half(process: subprocess.Popen[bytes], file: _File, settings: Settings, stop: Stop) -> tuple[int, int]:
    """Waits until half of the parts are stored, and kills; how many of how many parts the store then has."""
    repository = open_repository(settings)
    deadline = time.monotonic() + _PATIENCE_S
    try:
        while process.poll() is None and time.monotonic() < deadline:
            stored, parts = _stored(repository, file)
            if parts and stored * 2 >= parts:
                break
            time.sleep(0.002)
            stop.check()
        process.kill()
        process.communicate()
        return _stored(repository, file)
    finally:
        process.kill()
        repository.close()


def _stored(repository: Repository, file: _File) -> tuple[int, int]:
    upload = repository.find_upload(file.object_id, _BIG_BYTES)
    return (0, 0) if upload is None else (len(upload.stored), len(upload.parts))


def _upload_others(engine: Engine, files: list[_File]) -> None:
    for file in files:
        file.uploaded = operations.upload(engine, file.item)
    say(f"4. Uploaded the other {len(files)}, each proven against its MD5 before it was published")


def _download_all(engine: Engine, files: list[_File], folder: Path) -> None:
    for file in files:
        file.downloaded = operations.download(engine, DownloadItem(file.object_id), DownloadOptions(folder))
        file.verified = _md5(Path(file.downloaded.path)) == file.md5
    say(f"5. Downloaded {len(files)} files; hashed again from disk: {sum(file.verified for file in files)} have the right MD5")


def _refuses_wrong_bit(engine: Engine, file: _File, folder: Path) -> bool:
    """Whether a copy with one flipped bit is refused and leaves nothing behind."""
    data = bytearray(file.path.read_bytes())
    data[len(data) // 2] ^= 1
    copy = folder / f"flipped-{file.path.name}"
    copy.write_bytes(data)
    other_id = object_id_of(file.object_id, copy.name)
    try:
        operations.upload(engine, UploadItem(other_id, copy, file.md5))
    except ObjectMismatch as error:
        published = engine.repository.exists(other_id)
        say(f"6. One bit of {file.path.name} flipped, uploaded under its old MD5: {'published!' if published else 'refused'}: {error}")
        return not published
    say(f"6. One bit of {file.path.name} flipped, uploaded under its old MD5: accepted, which must not happen")
    return False


def _row(file: _File) -> dict[str, Any]:
    return {
        "name": file.path.name,
        "object_id": file.object_id,
        "md5": file.md5,
        "upload": None if file.uploaded is None else dataclasses.asdict(file.uploaded),
        "download": None if file.downloaded is None else dataclasses.asdict(file.downloaded),
        "verified": file.verified,
    }


def _table(files: list[_File]) -> Iterator[str]:
    yield f"{'file':<32} {'bytes':>11} {'parts':>6} {'kept':>5} {'sent':>11} {'fetched':>11}  verified"
    for file in files:
        up, down = file.uploaded, file.downloaded
        if up is not None and down is not None:
            moved = f"{up.parts:>6} {up.parts_kept:>5} {up.bytes_moved:>11,} {down.bytes_moved:>11,}"
            yield f"{file.path.name:<32} {up.size:>11,} {moved}  {'yes' if file.verified else 'NO'}"
