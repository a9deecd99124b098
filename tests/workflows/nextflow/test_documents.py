"""What stands beside the processes: configuration, schemas, nf-tests, README; read as its reader would, as far as that goes."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from score_core import __version__
from tests.workflows.nextflow.conftest import STUDY, Server
from tests.workflows.nextflow.rendering import MODULES, PIPELINE, ROOT, SHELL, Shim, module
from tests.workflows.nextflow.test_running import flow, subworkflow, view_of

pytestmark = pytest.mark.xdist_group("nextflow")

README = PIPELINE / "README.md"
CONFIG = PIPELINE / "nextflow.config"
SUBWORKFLOWS = ("song_score_download", "song_score_upload")
ANALYSIS_ID = "3e1d52c8-b94f-4f0a-9a77-0b5a7f2e6c1d"  # of README.md and the nf-tests


def blocks(path: Path, language: str) -> list[str]:
    """The code blocks of a document in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


# Strict syntax, as far as no parser of ours sees it


@pytest.mark.parametrize("path", sorted(PIPELINE.rglob("*.nf")), ids=lambda path: str(path.relative_to(PIPELINE)))
def test_syntax_is_strict(path: Path) -> None:
    text = path.read_text()
    assert not re.search(
        r"\bChannel\b|\bit\b|\bfor *\(|\bwhile *\(|\bswitch *\(|^import |\bclass ", re.sub(r"//.*", "", text), re.MULTILINE
    )
    if path.parent != PIPELINE:
        assert "params" not in text
        assert "publishDir" not in text
    directives = re.search(r"^process \w+ \{\n(.*?)^    input:", text, re.MULTILINE | re.DOTALL)
    for line in directives[1].splitlines() if directives else []:
        assert re.fullmatch(r"(    (tag|label|secret|conda|container) ['\"].*['\"])?", line), line


# Configuration


def test_configuration_reaches_score(nextflow: Shim, server: Server) -> None:
    settings = nextflow.configuration(CONFIG, {"score_url": server.url, "transport_parallel": 3, "score_state_dir": "/scratch/state"})
    shown = shown_settings(server, settings["env"])
    assert {name: shown[name] for name in ("url", "metadata_url", "workers", "state_dir")} == {
        "url": server.url,
        "metadata_url": "",
        "workers": "3",
        "state_dir": "/scratch/state",
    }
    defaults = shown_settings(server, nextflow.configuration(CONFIG)["env"])
    assert {name: defaults[name] for name in ("url", "workers", "state_dir")} == {"url": "", "workers": "8", "state_dir": ""}
    assert tuple(settings["process"]["shell"]) == SHELL


def shown_settings(server: Server, environ: dict[str, str]) -> dict[str, str]:
    environment = {**server.environment, **{name: str(value) for name, value in environ.items()}}
    command = ["score", "config", "show", "--json"]
    done = subprocess.run(command, env=environment, cwd=server.folder, capture_output=True, text=True, check=True)
    return {row["name"]: row["value"] for row in json.loads(done.stdout)["settings"]}


def test_what_is_tried_again(nextflow: Shim) -> None:
    strategies = nextflow.strategies(CONFIG, [104, 130, 137, 143, 1, 2, 3, 4, 5, 6, 8, 9, 10])
    assert [code for code, strategy in strategies.items() if strategy == "retry"] == [104, 130, 137, 143]
    assert set(strategies.values()) == {"retry", "finish"}


def test_profile_test_is_what_the_readme_serves(nextflow: Shim) -> None:
    settings = nextflow.configuration(CONFIG, {"outdir": "results"}, "test")
    assert settings["params"]["input"] == str(PIPELINE / "tests" / "samplesheet.csv")
    assert settings["env"]["STORAGE_URL"] == "http://127.0.0.1:5431"
    assert nextflow.configuration(PIPELINE / "tests" / "nextflow.config")["env"]["STORAGE_URL"] == "http://127.0.0.1:5431"
    for profile in ("conda", "docker", "podman", "singularity", "apptainer"):
        assert nextflow.configuration(CONFIG, profile=profile)[profile]["enabled"] is True


def test_selectors_name_processes(nextflow: Shim) -> None:
    names = {name for name in nextflow.configuration(CONFIG)["process"] if name.isupper()}
    assert names <= set(MODULES)
    labels = {nextflow.configuration(CONFIG)["process"][name]["cpus"] for name in ("process_single", "process_low")}
    assert labels == {1, 2}


# Schemas


def schema(name: str) -> dict[str, Any]:
    found = dict(json.loads((PIPELINE / name).read_text()))
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def rows(path: Path) -> list[dict[str, str]]:
    """As nf-schema reads a samplesheet: an empty cell is no value."""
    with path.open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.parametrize("path", ["assets/samplesheet.csv", "tests/samplesheet.csv"])
def test_samplesheets_are_valid(path: str) -> None:
    jsonschema.validate(rows(PIPELINE / path), schema("assets/schema_input.json"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"analysis_id": None},
        {"payload": "p.json"},
        {"analysis_id": None, "payload": "p.json"},
        {"folder": "f"},
        {"sample": None},
        {"study_id": "it's"},
        {"sample": "a b"},
        {"analysis_id": "'; rm -rf ~ #"},
    ],
)
def test_wrong_row_is_refused(wrong: dict[str, str | None]) -> None:
    row = {"sample": "s1", "study_id": STUDY, "analysis_id": ANALYSIS_ID, **wrong}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([{name: value for name, value in row.items() if value}], schema("assets/schema_input.json"))


def test_columns_are_those_that_main_nf_takes_apart() -> None:
    properties = schema("assets/schema_input.json")["items"]["properties"]
    assert [name for name, column in properties.items() if "meta" not in column] == ["analysis_id", "payload", "folder"]
    assert {column["meta"][0] for column in properties.values() if "meta" in column} == {"id", "study_id"}


def test_every_parameter_is_described(nextflow: Shim) -> None:
    found = schema("nextflow_schema.json")
    described = {name: each for group in found["$defs"].values() for name, each in group["properties"].items()}
    used = {
        name
        for path in [PIPELINE / "main.nf", CONFIG, *PIPELINE.glob("conf/*.config")]
        for name in re.findall(r"params\.(\w+)", path.read_text())
    }
    declared = nextflow.configuration(CONFIG)["params"]
    assert described.keys() == declared.keys() >= used
    assert {name: each["default"] for name, each in described.items() if "default" in each} == {
        name: value for name, value in declared.items() if value is not None
    }
    assert [each["$ref"] for each in found["allOf"]] == [f"#/$defs/{name}" for name in found["$defs"]]
    good = {"input": "s.csv", "outdir": "o", "score_url": "https://score.example.org", "transport_parallel": 4}
    whole = {**found, "allOf": list(found["$defs"].values())}
    jsonschema.validate(good, whole)
    for wrong in ({"score_url": "score.example.org"}, {"transport_parallel": 0}, {"publish_dir_mode": "teleport"}, {"input": "sheet.xls"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**good, **wrong}, whole)


# Each module's folder


@pytest.mark.parametrize("process", MODULES)
def test_module_is_complete(process: str) -> None:
    folder = module(process)
    meta = yaml.safe_load((folder / "meta.yml").read_text())
    assert meta["name"] == process.lower()
    assert len(meta["keywords"]) >= 3
    environment = yaml.safe_load((folder / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "bioconda"]
    assert environment["dependencies"][-1] == {"pip": [f"score-transfer[slicing]=={__version__}"]}
    assert f"container 'score-transfer:{__version__}'" in (folder / "main.nf").read_text()
    text = (folder / "README.md").read_text()
    elements = [element for channel in meta["input"] for element in channel]
    assert not [name for name in [*meta["output"], *(next(iter(element)) for element in elements)] if f"| `{name}` |" not in text]


@pytest.mark.parametrize(
    "folder", [*(f"modules/score/{name}" for name in MODULES.values()), *(f"subworkflows/score/{name}" for name in SUBWORKFLOWS)]
)
def test_nf_test_has_the_right_shape(folder: str) -> None:
    """One for real and one of the stub, with the tags that nf-core picks tests by. No parser of nf-test is to be had without Nextflow."""
    text = (PIPELINE / folder / "tests" / "main.nf.test").read_text()
    kind, name = ("workflow", Path(folder).name) if folder.startswith("sub") else ("process", "_".join(Path(folder).parts[-2:]))
    assert text.startswith(f"nextflow_{kind} {{")
    assert re.search(rf'^    script "\.\./main\.nf"\n    {kind} "{name.upper()}"$', text, re.MULTILINE)
    real, stub = re.findall(r'^    test\("(.*)"\) \{$', text, re.MULTILINE)
    assert stub == f"{real} - stub"
    assert text.count('options "-stub"') == 1
    assert text.count(f"assert {kind}.success") == 2
    tags = set(re.findall(r'^    tag "(.*)"$', text, re.MULTILINE))
    tool = "/".join(Path(folder).parts[-2:])
    assert tags >= (
        {"modules", "modules_score", tool, tool.split("/")[0]} if kind == "process" else {"subworkflows", f"subworkflows/{name}"}
    )
    assert [text.count(pair[0]) - text.count(pair[1]) for pair in ("{}", "[]", "()")] == [0, 0, 0]
    main = (PIPELINE / folder / "main.nf").read_text()
    emits = set(re.findall(r"emit: (\w+)", main) or re.findall(r"^    (\w+) = ", main, re.MULTILINE))
    assert set(re.findall(rf"{kind}\.out\.(\w+)", text)) <= emits


@pytest.mark.parametrize("name", SUBWORKFLOWS)
def test_subworkflow_is_described(nextflow: Shim, name: str) -> None:
    folder = PIPELINE / "subworkflows" / "score" / name
    meta = yaml.safe_load((folder / "meta.yml").read_text())
    found = nextflow.workflow(folder / "main.nf")
    assert [next(iter(each)) for each in meta["input"]] == found["take"]
    assert [next(iter(each)) for each in meta["output"]] == list(found["emit"])
    assert meta["components"] == [MODULES[call["name"]] for call in found["calls"]]


# README


def test_readme_names_what_there_is() -> None:
    text = README.read_text()
    for process in MODULES:
        outputs = yaml.safe_load((module(process) / "meta.yml").read_text())["output"].keys() - {"versions_score"}
        (row,) = re.findall(rf"^\| `{process}` \|.*$", text, re.MULTILINE)
        assert set(re.findall(r"`(\w+)`", row.rpartition(" | ")[2])) == outputs


@pytest.mark.parametrize("path", sorted(PIPELINE.rglob("README.md")), ids=lambda path: str(path.relative_to(PIPELINE)))
def test_examples_call_what_there_is(nextflow: Shim, path: Path, tmp_path: Path) -> None:
    examples = blocks(path, "nextflow")
    assert examples
    for number, example in enumerate(examples):
        for place in re.findall(r"from '(.*)'", example):
            assert (PIPELINE / f"{place}.nf").is_file()
        written = tmp_path / f"example_{number}.nf"
        written.write_text(example)
        called = nextflow.workflow(written)["calls"]
        assert {call["name"] for call in called} == set(re.findall(r"include \{ (\w+) ", example))


def test_examples_of_configuration_are_read(nextflow: Shim, server: Server, tmp_path: Path) -> None:
    variables: dict[str, str] = {}
    for number, block in enumerate(blocks(README, "groovy")):
        path = tmp_path / f"{number}.config"
        path.write_text(block)
        settings = nextflow.configuration(path)
        variables |= settings["env"]
        assert {name for name in settings["process"] if name in MODULES or re.fullmatch(r"[A-Z_.*|]+", name)} == settings["process"].keys()
    shown = shown_settings(server, {**variables, "SCORE_TOKEN": ""})
    assert {shown["url"], shown["metadata_url"], shown["workers"]} == {"https://score.example.org", "https://song.example.org", "16"}
    assert (shown["state_dir"], shown["token_file"]) == ("/scratch/score-state", "/etc/score/token")


def test_samplesheet_of_the_readme_is_the_shipped_one() -> None:
    assert (PIPELINE / "assets" / "samplesheet.csv").read_text() in blocks(README, "text")


def test_setting_up_for_nf_test_makes_what_the_tests_ask_for(server: Server) -> None:
    """The commands of "Tests with Nextflow", against the server that runs here; then what the nf-tests do, with their files."""
    serve, fill = blocks(README, "bash")
    assert serve == "score serve --port 5431\n"
    script = fill.replace("http://127.0.0.1:5431", server.url).replace("~/.local/share/score/token", str(server.data_dir / "token"))
    done = subprocess.run([*SHELL, "-c", script], cwd=ROOT, env=server.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    data = [ROOT / "tests" / "data" / name for name in ("range.bam", "range.bam.bai")]
    meta = {"id": "range", "study_id": STUDY}
    manifest, payload = PIPELINE / "tests" / "manifest.txt", PIPELINE / "tests" / "payload.json"
    uploaded = server.run("SCORE_UPLOAD", {"meta": meta, "analysis_id": ANALYSIS_ID, "manifest": manifest, "upload": data})
    assert uploaded.code == 0, uploaded.err
    (object_id,) = re.findall(r"'([0-9a-f-]{36})', \[\]\]", (module("SCORE_VIEW") / "tests" / "main.nf.test").read_text())[:1]
    viewed = server.run("SCORE_VIEW", view_of(object_id, regions=["CHROMOSOME_II:1-1000", "CHROMOSOME_IV"]))
    assert viewed.code == 0, viewed.err
    submission = {"meta": meta, "payload": payload, "files": data}
    emitted = flow(server, subworkflow("song_score_upload"), (meta, payload, data))
    submitted = server.run("SONG_SUBMIT", submission)  # two nf-tests do, in any order
    assert submitted.code == 0, submitted.err
    assert submitted.outputs["analysis_id"] == emitted["analysis_id"][1]
