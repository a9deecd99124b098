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
PLUGIN = "snakemake_storage_plugin_score"
PLUGIN_SOURCE = ROOT / "workflows" / "snakemake" / "src"


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


def test_wheel_holds_score_core_and_the_snakemake_plugin_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/", 1)[0] for name in archive.namelist()}
    assert tops == {"score_core", PLUGIN, f"score_transfer-{score_core.__version__}.dist-info"}


def test_wheel_holds_every_module(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.endswith(".py")}
    sources = {root: sorted((root / package).rglob("*.py")) for root, package in ((ROOT, "score_core"), (PLUGIN_SOURCE, PLUGIN))}
    assert packed == {path.relative_to(root).as_posix() for root, paths in sources.items() for path in paths}


def test_wheel_offers_the_score_command(wheel: Path) -> None:
    entry_points = configparser.ConfigParser()
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        entry_points.read_string(archive.read(name).decode())
    assert dict(entry_points["console_scripts"]) == {"score": "score_core.cli.app:main"}


def install(folder: Path, *what: str) -> None:
    """Without an isolated environment for the build, which would have to be downloaded."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(folder)]
    done = subprocess.run([*pip, *what], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(program: str, folder: Path, *options: str, **environment: str) -> list[str]:
    """The lines that a Python program prints, which sees nothing of this repository."""
    command = [sys.executable, *options, "-c", program]
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


SHOWS_OPTIONS = """
import sys
from snakemake.cli import get_argument_parser
print(*(option for action in get_argument_parser()._actions for option in action.option_strings if "-score-" in option), sep="\\n")
"""


def test_snakemake_finds_the_plugin_of_the_wheel(wheel: Path, tmp_path: Path) -> None:
    install(tmp_path / "site", str(wheel))
    options = run(SHOWS_OPTIONS, tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert {"--storage-score-url", "--storage-score-token", "--storage-score-register"} <= set(options)


def test_editable_install_shows_snakemake_the_plugin_and_hides_flows_and_tasks(tmp_path: Path) -> None:
    install(tmp_path / "site", "--editable", str(ROOT))
    program = f"""
import importlib.util, pkgutil, site
site.addsitedir({str(tmp_path / "site")!r})  # where .pth files count
import score_core, {PLUGIN}
print(score_core.__file__, {PLUGIN}.__file__, sep="\\n")
print([name for name in ("flows", "tasks", "tests", "bench") if importlib.util.find_spec(name)])
print(sorted({{found.name for found in pkgutil.iter_modules() if found.name.startswith({PLUGIN!r})}}))
{SHOWS_OPTIONS}
"""
    ours, plugin, leaked, found, *options = run(program, tmp_path, PYTHONPATH="")
    assert [Path(ours), Path(plugin)] == [ROOT / "score_core" / "__init__.py", PLUGIN_SOURCE / PLUGIN / "__init__.py"]
    assert (leaked, found) == ("[]", f"['{PLUGIN}']")
    assert "--storage-score-url" in options


def test_users_own_flows_still_import_beside_the_wheel(wheel: Path, tmp_path: Path) -> None:
    site, theirs = tmp_path / "site", tmp_path / "theirs"
    for package in ("flows", "tasks"):
        (theirs / package).mkdir(parents=True)
        (theirs / package / "__init__.py").write_text("")
    install(site, str(wheel))
    # Our installation comes first on the path, so anything that leaked from it would win; -S keeps this environment's packages out.
    program = "import flows, tasks, score_core; print(flows.__file__, tasks.__file__, score_core.__file__, sep='\\n')"
    found = run(program, tmp_path, "-S", PYTHONPATH=os.pathsep.join((str(site), str(theirs))))
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
