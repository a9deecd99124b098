"""The shipped data are what their README says."""

import hashlib
import re
import stat
from pathlib import Path
from typing import NamedTuple

import pytest

DATA = Path(__file__).resolve().parents[1] / "data"
ROW = re.compile(r"^\| (?P<name>[\w.-]+) \| (?P<size>\d+) \| (?P<md5>[0-9a-f]{32}) \| (?P<origin>[^|]+) \| (?P<licence>[^|]+) \|$")


class Row(NamedTuple):
    name: str
    size: int
    md5: str


def table() -> list[Row]:
    lines = (DATA / "README.md").read_text(encoding="utf-8").splitlines()
    return [Row(m["name"], int(m["size"]), m["md5"]) for m in map(ROW.match, lines) if m]


@pytest.mark.parametrize("row", table(), ids=lambda row: row.name)
def test_file_is_as_listed(row: Row) -> None:
    content = (DATA / row.name).read_bytes()
    assert (len(content), hashlib.md5(content).hexdigest()) == (row.size, row.md5)


def test_every_file_is_listed() -> None:
    assert {path.name for path in DATA.iterdir()} - {"README.md"} == {row.name for row in table()}


def test_every_index_has_its_file() -> None:
    names = {row.name for row in table()}
    indexes = {name for name in names if name.endswith((".bai", ".crai", ".csi", ".tbi", ".fai", ".gzi"))}
    assert {Path(name).stem for name in indexes} == names - indexes


def test_no_file_is_executable() -> None:
    executable = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
    assert [path.name for path in DATA.iterdir() if path.stat().st_mode & executable] == []
