"""Where Prefect keeps the results of parts between runs, and for how long: Prefect itself never deletes any."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

from score_core.settings import load
from tasks.options import KEPT_FOR, cache_folders
from tasks.slicing import slices_name


def results_folder() -> Path:
    """The folder of cached part receipts of this user, made if missing: a folder, because a block slug costs two HTTP calls a task.

    Receipts of transfers that nobody took up again are removed once they have expired.
    """
    return _without_expired(load().data_dir / "prefect" / "results")


def slice_results_folder(output_dir: str) -> Path:
    """The folder of cached results of slices that go to `output_dir`, made if missing; those of failed ones have random names."""
    return _without_expired(results_folder() / slices_name(output_dir))


def _without_expired(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        with suppress(FileNotFoundError):  # its own transfer was faster
            if time.time() - entry.stat().st_mtime > KEPT_FOR.total_seconds():
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink()
    return folder


def forget_results(object_id: str, path: str) -> None:
    """Removes the cached part results of a finished transfer, and of all that were begun before it and given up."""
    for entry in results_folder().glob(f"{cache_folders(object_id, path)}*"):
        shutil.rmtree(entry, ignore_errors=True)
