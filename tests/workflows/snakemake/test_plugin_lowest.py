"""The plugin with the lowest Snakemake that is allowed, in an environment of its own: made by pip once, then kept in the root."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.workflows.snakemake.conftest import ROOT

FOLDER = ROOT / ".venv-snakemake-lowest"
SUITE = Path(__file__).with_name("test_plugin_shared.py")


TELLS_VERSIONS = """
import importlib.metadata as metadata, json
found = {each.metadata["Name"]: each.version for each in reversed([*metadata.distributions()])}  # the first on the path wins
print(json.dumps([{name: version for name, version in found.items() if name.startswith("snakemake")}, metadata.requires("snakemake")]))
"""


def full(pin: str) -> str:
    """`x==1.22` as `x==1.22.0`, as packages say it."""
    return pin if pin.count(".") == 2 else f"{pin}.0"


def lowest() -> list[str]:
    """What pyproject.toml allows at least of Snakemake and of its interfaces."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["snakemake"]
    found = [Requirement(text) for text in wanted if text.startswith("snakemake")]
    return [f"{each.name}=={next(bound.version for bound in each.specifier if bound.operator == '>=')}" for each in found]


@pytest.fixture(scope="session")
def old_python() -> Path:
    """An environment with these versions; everything else is this one's.

    Only what is named is installed, without its dependencies: some seconds instead of a minute. Two pytest processes make it once.
    """
    stamp, made = FOLDER / "stamp", FOLDER / "env"
    FOLDER.mkdir(exist_ok=True)
    key = "\n".join([sys.version, sysconfig.get_path("purelib"), *lowest()])
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != key:
            venv.create(made, clear=True, with_pip=False, symlinks=True)
            (site,) = made.glob("lib/python*/site-packages")
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(site)]
            done = subprocess.run([*pip, *lowest()], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
            if done.returncode:
                pytest.skip(f"pip cannot install {', '.join(lowest())} here: {done.stderr.strip().splitlines()[-1]}")
            (site / "the-other-environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
            stamp.write_text(key)
    return made / "bin" / "python"


@pytest.mark.slow
def test_shared_tests_pass_with_the_lowest_snakemake(old_python: Path, tmp_path: Path) -> None:
    seen = subprocess.run([old_python, "-c", TELLS_VERSIONS], capture_output=True, text=True, check=True).stdout
    versions, needs = json.loads(seen)
    assert {f"{name}=={versions[name]}" for name in versions} >= set(map(full, lowest()))
    for need in map(Requirement, needs):  # what Snakemake itself wants of its interfaces: else pip could not install these together
        assert need.name not in versions or need.specifier.contains(versions[need.name]), need
    command = [str(old_python), "-m", "pytest", str(SUITE), "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    ran = subprocess.run(
        [*command, "--basetemp", str(tmp_path / "runs")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"\b24 passed", ran.stdout), ran.stdout
