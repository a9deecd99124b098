"""The example pipeline, as its README says it is run: from two published BAM files to a published table, and back."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from score_core.cli.app import main
from score_core.metadata.registering import new_file, register
from tests.workflows.snakemake.conftest import ROOT, TOKEN, Site, Snakemake

WORKFLOWS = ROOT / "workflows" / "snakemake"
DATA = ROOT / "tests" / "data"
PICTURE = ROOT / "docs" / "images" / "snakemake-example.svg"
COUNTS = """\
sample\tregion\treads\treads_in_region
NA12878\t11:4,788,501-5,013,659\t39918\t3674
elegans\tCHROMOSOME_II:1-2,500\t112\t26
"""  # as `samtools view -c` counts them


def commands(readme: str) -> list[list[str]]:
    """The `score` commands of the README that put the data where the pipeline finds them."""
    lines = re.findall(r"^score (register|upload|publish) (.*)$", readme, re.MULTILINE)
    return [[name, *rest.split()] for name, rest in lines]


@pytest.fixture
def work(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example in a folder of its own, once what it reads is published by the commands of its README."""
    folder = tmp_path / "work"
    shutil.copytree(WORKFLOWS / "example", folder)
    for name in ("rules", "wrappers"):
        (tmp_path / name).symlink_to(WORKFLOWS / name)
    for name, value in site.environment().items():
        monkeypatch.setenv(name, value)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    found = commands((WORKFLOWS / "example" / "README.md").read_text())
    assert [command[0] for command in found] == ["register", "upload", "publish"] * 2
    for command in found:
        assert main(command) == 0
    return folder


@pytest.mark.slow
def test_example_runs_once(site: Site, snakemake: Snakemake, work: Path) -> None:
    snakefile = (work / "Snakefile").read_text()
    ran = snakemake(snakefile)
    assert ran.code == 0, ran.text
    assert TOKEN not in ran.text
    assert (work / "results/counts.tsv").read_text() == COUNTS
    assert (work / "results/published/counts.tsv").read_bytes() == (work / "results/counts.tsv").read_bytes()
    study = yaml.safe_load((work / "config.yaml").read_text())["study_id"]
    same = register(site.registry, study, [new_file(work / "results/counts.tsv", access="open")])  # the ids that it has
    assert same.state == "PUBLISHED"
    assert [file.access for file in same.files] == ["open"]

    picture = PICTURE.read_text()
    for rule in set(re.findall(r"^(?:local)?rule (\w+):", ran.text, re.MULTILINE)):
        assert rule in picture, f"{rule} is not in {PICTURE}: draw it again as the README of the example says"

    assert "in a good condition" in snakemake(snakefile, "--lint").text
    site.forget()
    again = snakemake(snakefile)
    assert "Nothing to be done" in again.text
    assert site.rest.seen == []
