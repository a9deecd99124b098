"""`rules/score.smk` included and as a module with an override, the profile, and how all of our Snakefiles are written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import yaml

from score_core.ids import object_id_of
from tests.workflows.snakemake.conftest import ROOT, STUDY, TOKEN, Site, Snakemake

WORKFLOWS = ROOT / "workflows" / "snakemake"
DATA = ROOT / "tests" / "data"
ANALYSIS = "f7c1d5f2-4e0a-11ef-9a52-0242ac120002"
BAM = (DATA / "range.bam").read_bytes()
BAI = (DATA / "range.bam.bai").read_bytes()

CONFIG: Final = {
    "score": {
        "study_id": STUDY,
        "settings": {"attempts": 3},
        "objects": {"worm.bam": object_id_of(ANALYSIS, "range.bam")},
        "analyses": {"worm": ANALYSIS},
        "regions": {"gene": "CHROMOSOME_II:1-2,500"},
        "submissions": {"answer": ["answer.txt"]},
    }
}

SNAKEFILE = """
include: "score/rules/score.smk"

module other:
    snakefile: "score/rules/score.smk"
    config: config
    pathvars:
        results="elsewhere",
        logs="elsewhere/logs",

use rule * from other as score_*

use rule download_object from other as score_download_object with:
    output: "elsewhere/overridden/{score_object}"

rule answer:
    output: "answer.txt"
    log: "logs/answer.log"
    conda: "score/wrappers/score/view/environment.yaml"
    shell: "echo 42 > {output} 2> {log}"
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder from which a Snakefile finds ours by relative paths."""
    folder = tmp_path / "work"
    (folder / "score").mkdir(parents=True)
    for name in ("rules", "wrappers"):
        (folder / "score" / name).symlink_to(WORKFLOWS / name)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


@pytest.mark.slow
def test_rules_work_included_and_as_a_module(site: Site, snakemake: Snakemake, work: Path) -> None:
    site.add({"range.bam": BAM, "range.bam.bai": BAI}, analysis_id=ANALYSIS)
    targets = [
        "results/score/objects/worm.bam",
        "results/score/slices/gene/worm.bam",
        "results/score/submissions/answer.published.json",
        "elsewhere/overridden/worm.bam",
        "elsewhere/score/analyses/worm",
        "elsewhere/score/manifests/worm.tsv",
    ]
    options = ("--configfile", "config.yaml", "--profile", str(WORKFLOWS / "profiles/default"))
    ran = snakemake(SNAKEFILE, *targets, *options, **site.environment())
    assert ran.code == 0, ran.text
    assert (work / "results/score/objects/worm.bam").read_bytes() == (work / "elsewhere/overridden/worm.bam").read_bytes() == BAM
    assert (work / "elsewhere/score/analyses/worm/range.bam.bai").read_bytes() == BAI
    counted = subprocess.run(
        ["samtools", "view", "-c", str(work / "results/score/slices/gene/worm.bam")], capture_output=True, text=True, check=True
    )
    assert int(counted.stdout) == 26  # as samtools says of the region in the whole file
    assert (work / "results/score/slices/gene/worm.bam.bai").exists()
    assert len((work / "elsewhere/score/manifests/worm.tsv").read_text().splitlines()) == 3
    published = json.loads((work / "results/score/submissions/answer.published.json").read_text())
    (record,) = site.registry.analysis(STUDY, published["analysis_id"]).files
    assert (published["state"], record.file_name, record.size) == ("PUBLISHED", "answer.txt", 3)
    assert {path.parent.name for path in (work / "logs").rglob("*.log")} >= {"download", "register", "upload", "publish"}
    assert (work / "elsewhere/logs/score/download/worm.bam.log").exists()
    assert TOKEN not in ran.text

    linted = snakemake(SNAKEFILE, *targets, *options[:2], "--lint", **site.environment())
    assert "in a good condition" in linted.text, linted.text


def test_every_rule_has_a_log_and_an_environment() -> None:
    text = (WORKFLOWS / "rules" / "score.smk").read_text()
    rules = text.split("\nrule ")[1:]
    assert len(rules) == 7
    for rule in rules:
        for directive in ("    log:\n", "    conda:\n", "    script:\n", '**config["score"].get("settings", {}),'):
            assert rule.count(directive) == 1, rule
        wrapper = rule.rsplit('"../', 1)[1].partition('"')[0]
        assert (WORKFLOWS / wrapper).is_file()
        assert f'"../{wrapper.removesuffix("wrapper.py")}environment.yaml"' in rule


def test_all_snakefiles_are_formatted() -> None:
    files = [path for path in WORKFLOWS.rglob("*") if path.name == "Snakefile" or path.suffix == ".smk"]
    assert len(files) >= 12
    done = subprocess.run(
        [sys.executable, "-m", "snakefmt", "--check", *map(str, files)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_profile_names_options_of_snakemake_and_no_secret() -> None:
    from snakemake.cli import get_argument_parser

    profile = yaml.safe_load((WORKFLOWS / "profiles" / "default" / "config.yaml").read_text())
    options = {option for action in get_argument_parser()._actions for option in action.option_strings}
    assert {f"--{name}" for name in profile} <= options
    assert not any("token" in name or "secret" in name for name in profile)
