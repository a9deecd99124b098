"""What is built is what is meant: the wheel is `score_core` alone, the sdist is the whole project. No network."""

import configparser
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import score_core

ROOT = Path(__file__).resolve().parents[2]


def build(target: str, folder: Path) -> Path:
    # hatchling itself, as a front end would call it, but without an isolated environment that would have to be downloaded
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    with tarfile.open(build("sdist", tmp_path_factory.mktemp("sdist"))) as archive:
        return {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}


def test_wheel_holds_score_core_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/", 1)[0] for name in archive.namelist()}
    assert tops == {"score_core", f"score_transfer-{score_core.__version__}.dist-info"}


def test_wheel_holds_every_module(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.endswith(".py")}
    assert packed == {path.relative_to(ROOT).as_posix() for path in (ROOT / "score_core").rglob("*.py")}


def test_wheel_offers_the_score_command(wheel: Path) -> None:
    entry_points = configparser.ConfigParser()
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        entry_points.read_string(archive.read(name).decode())
    assert dict(entry_points["console_scripts"]) == {"score": "score_core.cli.app:main"}


def test_users_own_flows_still_import_beside_the_wheel(wheel: Path, tmp_path: Path) -> None:
    site, theirs = tmp_path / "site", tmp_path / "theirs"
    for package in ("flows", "tasks"):
        (theirs / package).mkdir(parents=True)
        (theirs / package / "__init__.py").write_text("")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    # Our installation comes first on the path, so anything that leaked from it would win; -S keeps this environment's packages out.
    program = "import flows, tasks, score_core; print(flows.__file__, tasks.__file__, score_core.__file__, sep='\\n')"
    found = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(site), str(theirs)))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    modules = (theirs / "flows", theirs / "tasks", site / "score_core")
    assert [Path(line) for line in found] == [module / "__init__.py" for module in modules]


@pytest.mark.parametrize("folder", ["score_core", "flows", "tasks", "scripts", "docs", "tests/data", "bench", "workflows"])
def test_sdist_carries_the_folder(sdist_names: set[str], folder: str) -> None:
    here = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    if not here:
        pytest.skip(f"{folder} is still empty")
    assert any(name.startswith(f"{folder}/") for name in sdist_names)


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", "README.md", "LICENSE", "CHANGELOG.md", ".ci/run"])
def test_sdist_carries_the_file(sdist_names: set[str], name: str) -> None:
    assert name in sdist_names


def test_sdist_carries_no_caches(sdist_names: set[str]) -> None:
    unwanted = ("__pycache__", ".venv", "_cache/", ".hypothesis", "uv.lock", ".git/")
    assert [name for name in sdist_names if any(part in name for part in unwanted)] == []
