"""Ctrl-C and a polite kill: out within two seconds, and the next run goes on from there."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from score_core.session import open_repository
from score_core.settings import load
from tests.cli.conftest import OBJECT_ID, Relay, Score, md5_of, upload_some, wait_until

pytestmark = pytest.mark.kill

PARTS = 32
SLOW = 400_000.0  # bytes a second and connection: a part takes 0.16 s
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    path = tmp_path / "big.bin"
    path.write_bytes(bytes(range(256)) * (PARTS * 256))
    return path


def interrupt(process: subprocess.Popen[str], number: signal.Signals) -> tuple[str, str]:
    sent = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - sent < 2.5  # 2 s, and a little for a busy machine
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    return out, err


def stored_parts(size: int) -> int:
    repository = open_repository(load())
    try:
        upload = repository.find_upload(OBJECT_ID, size)
        return 0 if upload is None else len(upload.stored)
    finally:
        repository.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_upload_resumes(
    start: Start, score: Score, relay: Callable[[float], Relay], big_file: Path, number: signal.Signals
) -> None:
    argv = ("upload", "--file", big_file, "--object-id", OBJECT_ID, "--md5", md5_of(big_file), "--json")
    process = start(*argv, SCORE_SERVE_URL=relay(SLOW).url, SCORE_WORKERS="2")
    wait_until(lambda: stored_parts(big_file.stat().st_size) >= 4)
    out, err = interrupt(process, number)
    assert "run the same command again to resume" in err
    assert json.loads(out)["exit_code"] == 128 + number
    again = score(*argv).document["files"][0]
    assert again["outcome"] == "uploaded"
    assert again["parts_kept"] >= 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_download_resumes(
    start: Start, score: Score, relay: Callable[[float], Relay], big_file: Path, number: signal.Signals
) -> None:
    upload_some(score, big_file)
    argv = ("download", "--object-id", OBJECT_ID, "--output-dir", "out", "--json")
    process = start(*argv, SCORE_SERVE_URL=relay(SLOW).url, SCORE_WORKERS="2")
    journal = Path("out/big.bin.part.journal")
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b'"part"') >= 4)
    interrupt(process, number)
    assert not Path("out/big.bin").exists()
    again = score(*argv).document["files"][0]
    assert again["parts_kept"] >= 4
    assert sorted(path.name for path in Path("out").iterdir()) == ["big.bin"]


def test_second_signal_leaves_at_once(start: Start, relay: Callable[[float], Relay], big_file: Path) -> None:
    slow = relay(20_000.0)
    process = start("upload", "--file", big_file, "--object-id", OBJECT_ID, "--md5", md5_of(big_file), SCORE_SERVE_URL=slow.url)
    wait_until(lambda: bool(slow.requests))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130


def test_server_ends_cleanly(start: Start) -> None:
    process = start("serve")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0


def test_closed_pipe_is_quiet(environment: None, tmp_path: Path) -> None:
    import sys

    words = [sys.executable, "-c", "import sys, score_core.cli.app as a; sys.stdin.read(); sys.exit(a.main(['config', 'show']))"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(10) == 1
