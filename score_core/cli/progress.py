"""Shows a transfer while it runs: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Self

from score_core.cli.output import say
from score_core.errors import redact
from score_core.model import TransferReport

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from score_core.settings import ProgressMode

_LINE_EVERY_S: Final = 10.0


class Quiet:
    """A `Progress` that remembers what ended and shows notes only. To be entered while transfers run."""

    def __init__(self) -> None:
        self.reports: list[TransferReport] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def begin(self, object_id: str, name: str, size: int, kept: int, parts: int) -> None: ...
    def part_done(self, object_id: str) -> None: ...
    def advance(self, object_id: str, count: int) -> None: ...
    def retry(self, object_id: str, what: str, why: str, pause_s: float) -> None: ...

    def note(self, object_id: str, message: str) -> None:
        say(f"note: object {object_id}: {redact(message)}")

    def end(self, report: TransferReport) -> None:
        self.reports.append(report)


class Lines(Quiet):
    """Sums over all files, said in one plain line every ten seconds: for logs, where a bar would be noise."""

    def __init__(self, files: int, *, every_s: float = _LINE_EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._files = files
        self._every_s = every_s
        self._clock = clock
        self._began = clock()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._size = self._done = self._kept = self._retries = self._parts = self._parts_done = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._talk, daemon=True, name="score-progress").start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()

    def _talk(self) -> None:
        while not self._over.wait(self._every_s):
            say(self.line())

    def line(self) -> str:
        with self._lock:
            rate = (self._done - self._kept) / max(1e-9, self._clock() - self._began)
            left = self._size - self._done
            eta = f"{max(0, left) / rate:,.0f} s left" if rate > 0 else "waiting"
            share = f"{self._done / self._size:.1%}" if self._size else "0.0%"
            files = f", file {min(len(self.reports) + 1, self._files)} of {self._files}" if self._files > 1 else ""
            return (
                f"progress: {share} of {self._size / 1e6:,.1f} MB, {self._parts_done} of {self._parts} parts, "
                f"{rate / 1e6:,.1f} MB/s, {eta}, "
                f"{self._retries} {'retry' if self._retries == 1 else 'retries'}{files}"
            )

    def begin(self, object_id: str, name: str, size: int, kept: int, parts: int) -> None:  # noqa: ARG002
        with self._lock:
            self._size += size
            self._done += kept
            self._kept += kept
            self._parts += parts

    def part_done(self, object_id: str) -> None:  # noqa: ARG002
        with self._lock:
            self._parts_done += 1

    def advance(self, object_id: str, count: int) -> None:  # noqa: ARG002
        with self._lock:
            self._done += count

    def retry(self, object_id: str, what: str, why: str, pause_s: float) -> None:  # noqa: ARG002
        with self._lock:
            self._retries += 1


class Bars(Quiet):
    """One rich bar per file that is under way."""

    def __init__(self) -> None:
        super().__init__()
        self._bars = _rich_progress()
        self._tasks: dict[str, TaskID] = {}
        self._parts: dict[str, tuple[int, int]] = {}  # done, of
        self._retries: dict[str, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def begin(self, object_id: str, name: str, size: int, kept: int, parts: int) -> None:
        with self._lock:
            self._parts[object_id] = (0, parts)
            self._tasks[object_id] = self._bars.add_task(redact(name), total=size, completed=kept, parts=f"0/{parts} parts", retries="")

    def part_done(self, object_id: str) -> None:
        with self._lock:
            done, parts = self._parts.get(object_id, (0, 0))
            self._parts[object_id] = (done + 1, parts)
            task = self._tasks.get(object_id)
        if task is not None:
            self._bars.update(task, parts=f"{done + 1}/{parts} parts")

    def advance(self, object_id: str, count: int) -> None:
        task = self._tasks.get(object_id)
        if task is not None:
            self._bars.advance(task, count)

    def retry(self, object_id: str, what: str, why: str, pause_s: float) -> None:  # noqa: ARG002
        with self._lock:
            self._retries[object_id] = count = self._retries.get(object_id, 0) + 1
            task = self._tasks.get(object_id)
        if task is not None:
            self._bars.update(task, retries=f"{count} {'retry' if count == 1 else 'retries'}")

    def end(self, report: TransferReport) -> None:
        super().end(report)
        with self._lock:
            task = self._tasks.pop(report.object_id, None)
        if task is not None:
            self._bars.remove_task(task)


def _rich_progress() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns: list[Any] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[parts]}", markup=False),
        TextColumn("{task.fields[retries]}", markup=False),
    ]
    return Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)


def progress_for(mode: ProgressMode, files: int, *, quiet: bool) -> Quiet:
    """The display for a batch of `files` files. `auto` is a bar where somebody can see it move."""
    if mode == "auto":
        mode = "bar" if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else "log"
    if quiet or mode == "none":
        return Quiet()
    return Bars() if mode == "bar" else Lines(files)
