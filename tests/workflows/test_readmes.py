"""The pages on pipelines, word for word, and all that they link to. (Nextflow's has tests of its own.)"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import pytest
from snakefmt.formatter import Formatter
from snakefmt.parser.parser import Snakefile

from score_core.testing.servers import free_ports
from tests.cli.test_readme import in_a_home

ROOT = Path(__file__).parents[2]
PAGES = {
    name: (ROOT / "workflows" / name).read_text("utf-8") for name in ("README.md", "snakemake/README.md", "snakemake/example/README.md")
}
_LEFT_BEHIND = ("__pycache__", ".snakemake", "results", "logs")  # by somebody who ran the example here
WORM = ROOT / "tests" / "data" / "range.bam"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_snakefiles_are_formatted(page: str) -> None:
    for code in blocks(page, "snakemake"):
        assert Formatter(Snakefile(StringIO(code))).get_formatted() == code


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", PAGES[page]):
        assert ((ROOT / "workflows" / page).parent / link).exists(), link


def home_of(tmp_path: Path) -> dict[str, str]:
    environment = in_a_home(tmp_path)
    shutil.copytree(ROOT / "workflows" / "snakemake", tmp_path / "workflows" / "snakemake", ignore=shutil.ignore_patterns(*_LEFT_BEHIND))
    snakemake = tmp_path / "bin" / "snakemake"
    snakemake.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m snakemake "$@"\n')
    snakemake.chmod(0o755)
    source = ROOT / "workflows" / "snakemake" / "src"
    return {**environment, "PYTHONPATH": f"{ROOT}{os.pathsep}{source}", "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}


def shell(script: str, folder: Path, environment: Mapping[str, str]) -> str:
    """What the commands said, which must all be good."""
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@contextmanager
def serving(command: str, environment: Mapping[str, str]) -> Iterator[int]:
    """Runs the page's server, at another port."""
    port = free_ports(1)[0]
    words = ["bash", "-e", "-c", f"exec {command} --port {port}"]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().strip() == f"http://127.0.0.1:{port}".encode()
            yield port
        finally:
            server.terminate()


def test_pages_run_as_printed(tmp_path: Path) -> None:
    """In two shells, as they say; only the port is another, and the installation is this environment."""
    serve, prepare, run, other = blocks("README.md", "bash")
    (snakefile,) = blocks("README.md", "snakemake")
    fetch, fetch_there = blocks("snakemake/README.md", "snakemake")
    environment = home_of(tmp_path)
    with serving(serve.splitlines()[1], environment) as port:
        export = prepare.splitlines()[0].replace(":5431", f":{port}") + "\n"
        shell(export + prepare.partition("\n")[2], tmp_path, environment)
        (tmp_path / "try" / "Snakefile").write_text(f"{snakefile}\n\n{fetch}\n\n{fetch_there}")

        said = shell(export + run, tmp_path, environment)
        assert (tmp_path / "try" / "size.txt").read_text() == f"{WORM.stat().st_size}\n"
        assert "26 records, fetched " in said
        assert "Nothing to be done" in shell(export + run, tmp_path, environment)

        shell(export + run.splitlines()[0] + " data/any.bam", tmp_path, environment)
        assert (tmp_path / "try" / "data" / "any.bam").read_bytes() == WORM.read_bytes()
        assert (tmp_path / "try" / "data" / "any.bam.bai").read_bytes() == WORM.with_suffix(".bam.bai").read_bytes()
        assert "rule fetch_there" in shell(export + run.splitlines()[0] + " --dry-run data/there.bam", tmp_path, environment)

        shell(export + other, tmp_path, environment)
        assert (tmp_path / "try" / "in" / "range.bam").read_bytes() == WORM.read_bytes()


def test_example_runs_as_printed(tmp_path: Path) -> None:
    serve, export, prepare, run, _ = blocks("snakemake/example/README.md", "sh")
    environment = home_of(tmp_path)
    with serving(serve.strip(), environment) as port:
        token_file = tmp_path / ".local" / "share" / "score" / "token"  # as the server says
        export = export.replace(":5431", f":{port}").replace("=...", f"={token_file}")
        assert "NA12878\t" in shell(export + prepare + run, tmp_path, environment)
