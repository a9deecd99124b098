"""Where Prefect keeps the results of parts between runs."""

from __future__ import annotations

from pathlib import Path

from score_core.settings import load


def results_folder() -> Path:
    """The folder of cached part receipts of this user, made if missing: a folder, because a block slug costs two HTTP calls a task."""
    folder = load().data_dir / "prefect" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
