"""One program run from outside: wall time, CPU time and peak memory as the kernel accounts them."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SAMPLE_S: Final = 0.005


@dataclass(frozen=True)
class Run:
    """`cpu_s` is user and system time of the process and the children it waited for; `rss_mib` the peak of its own anonymous memory.

    The kernel's `ru_maxrss` is of no use here: a child inherits that of the Python that started it.
    """

    wall_s: float
    cpu_s: float
    rss_mib: float


class BenchFailed(Exception):
    """A program that was to be measured did not do its work."""


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Run:
    """Runs `command` and waits for it. Raises `BenchFailed` when it does not exit 0."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, stdout=output, stderr=subprocess.STDOUT)
        peak_kib = 0
        while (waited := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            peak_kib = max(peak_kib, _anonymous_kib(process.pid))
            time.sleep(_SAMPLE_S)
        wall = time.perf_counter() - began
        _, status, usage = waited
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            told = output.read()[-600:].decode(errors="replace")
            raise BenchFailed(f"{' '.join(command[:6])} exited {process.returncode}: {told}")
    return Run(wall, usage.ru_utime + usage.ru_stime, peak_kib / 1024)


def _anonymous_kib(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def alternate(rounds: int, contenders: Mapping[str, Callable[[], Run]]) -> dict[str, Run]:
    """The median run of each contender, by wall time, over `rounds` rounds in which each runs once: noise meets all alike."""
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            runs[name].append(contender())
    return {name: _median(found) for name, found in runs.items()}


def _median(runs: list[Run]) -> Run:
    middle = statistics.median_low([found.wall_s for found in runs])
    return next(found for found in runs if found.wall_s == middle)
