"""The README's commands, word for word."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from score_core.testing.servers import free_ports

ROOT = Path(__file__).parents[2]


def blocks_below(heading: str) -> list[str]:
    section = (ROOT / "README.md").read_text("utf-8").partition(heading)[2].partition("\n## ")[0]
    return re.findall(r"```bash\n(.*?)```", section, re.DOTALL)


def quick_start() -> list[list[str]]:
    return [shlex.split(line) for line in blocks_below("## Quick start")[0].splitlines()]


def test_quick_start_runs_as_printed(tmp_path: Path) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    environment = {**os.environ, "SCORE_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": str(ROOT)}
    for command in quick_start():
        assert command[0] == "score"
        done = subprocess.run(
            [sys.executable, "-m", "score_core.cli", *command[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    original = ROOT / "tests" / "data" / "htsnexus_test_NA12878.bam"
    assert (tmp_path / "downloads" / original.name).read_bytes() == original.read_bytes()


def in_a_home(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has `score` and nothing else of ours, and the clone's files at `tmp_path`."""
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    score = tmp_path / "bin" / "score"
    score.parent.mkdir()
    score.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m score_core.cli "$@"\n')
    score.chmod(0o755)
    ours = ("SCORE_", "STORAGE_", "METADATA_", "ACCESSTOKEN", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "HOME": str(tmp_path), "PATH": f"{score.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def test_regions_are_cut_as_printed(tmp_path: Path) -> None:
    script = blocks_below("## Look into a file")[0]
    command = ["bash", "-e", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=in_a_home(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sum(1 for line in done.stdout.splitlines() if not line.startswith("@") and "\t11\t" in line) == 39
    assert re.search(r"^39 records, fetched 395 kB of 2.6 MB in 4 requests, \d+\.\d s$", done.stderr, re.MULTILINE)
    assert (tmp_path / "slices" / "htsnexus_test_NA12878.11__20_1-100,000.bam").exists()


def test_server_runs_as_printed(tmp_path: Path) -> None:
    """In two shells, as it says. Only the port is another: 5431 may be taken on this machine."""
    port = free_ports(1)[0]
    serve, use = blocks_below("## A server")
    environment = in_a_home(tmp_path)
    words = ["bash", "-e", "-c"]
    command = [*words, f"exec {serve.strip()} --port {port}"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        assert server.stdout.readline().strip() == f"http://127.0.0.1:{port}".encode()
        script = use.replace(":5431", f":{port}")
        done = subprocess.run([*words, script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        server.terminate()
    assert done.returncode == 0, done.stderr
    for name in ("range.bam", "range.bam.bai"):
        assert (tmp_path / "published" / name).read_bytes() == (ROOT / "tests" / "data" / name).read_bytes()
