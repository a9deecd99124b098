"""Made-up files and a rig of faults, for all tests of slices that may fail."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slicing.made import Files
from tests.slicing.rig import SliceRig, open_rig


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("made"))


@pytest.fixture
def nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and a place of their own for temporary files."""
    for name in ("here", "temp"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))


@pytest.fixture
def rig(tmp_path: Path, nowhere_else: None) -> Iterator[SliceRig]:
    with open_rig(tmp_path) as opened:
        yield opened


@pytest.fixture
def hasty_rig(tmp_path: Path, nowhere_else: None) -> Iterator[SliceRig]:
    """The same, and a connection without bytes is given up after half a second."""
    with open_rig(tmp_path, stall_s=0.5) as opened:
        yield opened


@pytest.fixture
def short_lived_rig(tmp_path: Path, nowhere_else: None) -> Iterator[SliceRig]:
    """The same, with URLs that live for a second."""
    with open_rig(tmp_path, life_s=1) as opened:
        yield opened
