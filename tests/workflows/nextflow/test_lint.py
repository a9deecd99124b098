"""What others' tools say of the files: reftrace parses them, nf-core's own checks pass."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.workflows.nextflow.rendering import MODULES, PIPELINE

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("nextflow-lint")]  # the first run installs the tools

CONTAINER_CHECKS = {"singularity_tag", "docker_tag"}  # they ask Nextflow itself
Lint = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def found(lint: Lint) -> dict[str, Any]:
    return lint(PIPELINE)


def test_every_file_parses(found: dict[str, Any]) -> None:
    files = {str(path.relative_to(PIPELINE)) for path in PIPELINE.rglob("*.nf")}
    assert found["files"].keys() == files
    assert not [path for path, parsed in found["files"].items() if "error" in parsed]
    processes = {process["name"]: path for path, parsed in found["files"].items() for process in parsed["processes"]}
    assert processes == {name: f"modules/score/{folder}/main.nf" for name, folder in MODULES.items()}
    workflows = [name for parsed in found["files"].values() for name in parsed["workflows"]]
    assert sorted(workflows) == ["", "SONG_SCORE_DOWNLOAD", "SONG_SCORE_UPLOAD"]


@pytest.mark.parametrize("folder", sorted(MODULES.values()))
def test_conventions_of_nf_core_are_kept(found: dict[str, Any], folder: str) -> None:
    module = found["modules"][f"modules/score/{folder}"]
    assert module["warned"] == []
    assert {check for check, _ in module["failed"]} == CONTAINER_CHECKS
    assert {"main_nf_version_topic", "wrong_version_output", "when_condition", "process_standard_label"} <= set(module["passed"])


@pytest.mark.parametrize("folder", sorted(MODULES.values()))
def test_meta_yml_mirrors_main_nf(found: dict[str, Any], folder: str) -> None:
    module = found["modules"][f"modules/score/{folder}"]
    assert module["meta_yml"] == module["main_nf"]
    inputs, outputs, topics = module["main_nf"]
    assert inputs
    assert outputs.keys() >= {"versions_score"}
    assert topics.keys() == {"versions"}


def test_linter_finds_what_is_wrong(lint: Lint, tmp_path: Path) -> None:
    """Or its silence would mean nothing."""
    folder = tmp_path / "modules" / "score" / "song" / "get"
    shutil.copytree(PIPELINE / folder.relative_to(tmp_path), folder)
    path = folder / "main.nf"
    text = path.read_text().replace("    when:\n    task.ext.when == null || task.ext.when\n", "").replace(", emit: json", ", emit: other")
    path.write_text(text.replace("process_single", "process_tiny"))
    module = lint(tmp_path)["modules"]["modules/score/song/get"]
    assert {check for check, _ in module["failed"]} == {*CONTAINER_CHECKS, "when_exist"}
    assert {check for check, _ in module["warned"]} == {"process_standard_label"}
    assert module["meta_yml"] != module["main_nf"]
