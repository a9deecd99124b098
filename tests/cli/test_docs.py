"""The documentation names what there is."""

import re
import tomllib
from pathlib import Path

import pytest

from score_core.cli.app import COMMANDS
from score_core.settings import KEYS, load
from tests.cli.conftest import ROOT

CLI = (ROOT / "docs/cli.md").read_text()
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_documented(name: str) -> None:
    assert re.search(rf"`{name}\b", CLI)


@pytest.mark.parametrize("name", KEYS)
def test_setting_is_documented(name: str) -> None:
    assert re.search(rf"^\| `{name}` \| .*`SCORE_{name.upper()}`", CONFIGURATION, re.MULTILINE)


def test_example_file_works(environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCORE_PART_SIZE_BYTES")
    (example,) = re.findall(r"```toml\n(.*?)```", CONFIGURATION, re.DOTALL)
    assert tomllib.loads(example)
    path = tmp_path / "config.toml"
    path.write_text(example)
    assert (load(config=path).workers, load(config=path, profile="test").part_size_bytes) == (16, 1 << 20)
