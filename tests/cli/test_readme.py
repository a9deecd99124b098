"""The README's quick start, word for word."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def quick_start() -> list[list[str]]:
    section = (ROOT / "README.md").read_text("utf-8").partition("## Quick start")[2]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [shlex.split(line) for line in block[1].splitlines()]


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
