"""Each process as Nextflow would run it: rendered by Groovy, run by bash with the real `score` against a real `score serve`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from score_core import __version__
from score_core.checksum import md5_hex
from score_core.testing.faults import Flip, Reset, Seen, is_get
from score_core.testing.servers import free_ports
from tests.workflows.nextflow.conftest import DATA, STUDY, Analysis, Server, payload_of
from tests.workflows.nextflow.rendering import MODULES, PIPELINE, Shim

pytestmark = pytest.mark.xdist_group("nextflow")  # one server and one JVM are enough

ABSENT = "00000000-0000-4000-8000-000000000000"
VERSIONS = {name: (name, "score", __version__) for name in MODULES}
META = {"id": "range", "study_id": STUDY}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Files that a task may get as inputs."""
    found = {}
    for name, data in {
        "a.analysis.json": b"{}",
        "payload.json": json.dumps(payload_of({"a.bam": b"reads", "b.bam": b"more"})).encode(),
        "manifest.txt": b"",
        "a.bam": b"reads",
        "b.bam": b"more",
    }.items():
        found[name] = tmp_path / name
        found[name].write_bytes(data)
    return found


@pytest.fixture
def inputs(files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Values for the inputs of each process."""
    return {
        "SCORE_DOWNLOAD": {"study_id": STUDY, "analysis_id": ABSENT, "analysis": files["a.analysis.json"]},
        "SCORE_UPLOAD": {"meta": META, "analysis_id": ABSENT, "manifest": files["manifest.txt"], "upload": [files["a.bam"]]},
        "SCORE_VIEW": view_of(ABSENT),
        "SONG_GET": {"study_id": STUDY, "analysis_id": ABSENT},
        "SONG_PUBLISH": {"meta": META, "analysis_id": ABSENT},
        "SONG_SUBMIT": {"meta": META, "payload": files["payload.json"], "files": [files["a.bam"], files["b.bam"]]},
    }


def view_of(object_id: str, **given: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = {"manifest": [], "regions": [], "bed": [], "meta2": {}, "fasta": [], "fai": []}
    return {"meta": META, "object_id": object_id, **nothing, **given}


def download_of(analysis: Analysis, metadata: Path) -> dict[str, Any]:
    return {"study_id": STUDY, "analysis_id": analysis.analysis_id, "analysis": metadata}


# Rendering


@pytest.mark.parametrize("process", MODULES)
def test_interface_is_what_main_nf_declares(nextflow: Shim, inputs: dict[str, dict[str, Any]], process: str) -> None:
    rendered = nextflow.render(process, inputs[process])
    assert rendered.name == process
    assert rendered.when is True
    assert [name for channel in rendered.inputs for name in channel] == list(inputs[process])
    assert rendered.directives.keys() == {"tag", "label", "secret", "conda", "container"}
    assert rendered.directives["secret"] == ["SCORE_TOKEN"]


@pytest.mark.parametrize("process", MODULES)
def test_stub_makes_every_output(server: Server, inputs: dict[str, dict[str, Any]], process: str) -> None:
    done = server.run(process, inputs[process], stub=True)
    assert done.code == 0, done.err
    assert done.outputs["versions_score"] == VERSIONS[process]
    assert server.proxy.seen == []


@pytest.mark.parametrize("process", MODULES)
def test_script_does_not_depend_on_the_token(nextflow: Shim, inputs: dict[str, dict[str, Any]], process: str) -> None:
    """Nor on what ICGC-ARGO's modules took it from: so a new token lets `-resume` use what is there."""
    tokens = ("the-first-token-0123456789", "the-second-token-0123456789")
    scripts = {nextflow.render(process, inputs[process], ext={"api_token": token, "api_download_token": token}).script for token in tokens}
    assert len(scripts) == 1
    assert "token" not in scripts.pop().lower()


@pytest.mark.parametrize("process", MODULES)
def test_arguments_and_prefix_of_the_configuration(nextflow: Shim, inputs: dict[str, dict[str, Any]], process: str) -> None:
    rendered = nextflow.render(process, inputs[process], ext={"args": "--debug --profile lab", "prefix": "mine", "when": False})
    assert re.search(r"(?m)^ *--debug --profile lab( \\)?$", rendered.script)
    assert "mine." in rendered.script
    assert rendered.when is False


# What they do


def test_download(server: Server, reads: Analysis, files: dict[str, Path]) -> None:
    done = server.run("SCORE_DOWNLOAD", download_of(reads, files["a.analysis.json"]))
    assert done.code == 0, done.err
    assert {path.name: path.read_bytes() for path in done.outputs["files"]} == reads.data
    assert done.outputs["analysis_files"] == (done.outputs["analysis_json"], done.outputs["files"])
    report = json.loads(done.outputs["report"].read_text())
    assert {row["outcome"] for row in report["files"]} == {"downloaded"}
    assert done.outputs["versions_score"] == VERSIONS["SCORE_DOWNLOAD"]


def test_metadata(server: Server, reads: Analysis) -> None:
    done = server.run("SONG_GET", {"study_id": STUDY, "analysis_id": reads.analysis_id})
    assert done.code == 0, done.err
    analysis = json.loads(done.outputs["json"].read_text())
    assert (analysis["analysisId"], analysis["analysisState"]) == (reads.analysis_id, "PUBLISHED")
    assert {file["fileName"]: file["objectId"] for file in analysis["files"]} == reads.ids
    assert done.outputs["analysis_json"] == (STUDY, reads.analysis_id, done.outputs["json"])


def test_manifest_of_another_task_means_the_files_of_this_one(server: Server, reads: Analysis, tmp_path: Path) -> None:
    names = ("range.bam", "range.bam.bai")
    lines = [f"{reads.ids[name]}\t/work/4f/gone/{name}\t{md5_hex(reads.data[name])}\n" for name in names]
    manifest = tmp_path / "manifest.txt"
    manifest.write_text("".join([f"{reads.analysis_id}\t\t\n", *lines]))
    upload = {"meta": META, "analysis_id": reads.analysis_id, "manifest": manifest, "upload": [DATA / name for name in names]}
    done = server.run("SCORE_UPLOAD", upload)
    assert done.code == 0, done.err
    assert done.outputs["ready_to_publish"] == (META, reads.analysis_id)
    report = json.loads(done.outputs["report"][1].read_text())
    assert [(Path(row["path"]).name, row["outcome"]) for row in report["files"]] == [(name, "already there") for name in names]


def test_view_of_regions(server: Server, reads: Analysis) -> None:
    regions = ["CHROMOSOME_II:1-1000", "CHROMOSOME_IV"]
    ext = {"args": "--output-format bam --output-index"}
    done = server.run("SCORE_VIEW", view_of(reads.ids["range.bam"], regions=regions), ext=ext)
    assert done.code == 0, done.err
    _, slice_ = done.outputs["slices"]
    _, index = done.outputs["index"]
    assert slice_.name.startswith("range.CHROMOSOME_II_1-1000__CHROMOSOME_IV")
    assert (slice_.suffix, index.name) == (".bam", slice_.name + ".bai")
    assert json.loads(done.outputs["report"][1].read_text())["files"][0]["records"] > 0


def test_view_of_a_manifest_by_a_bed_file_and_a_reference(server: Server, reads: Analysis, tmp_path: Path) -> None:
    manifest, bed = tmp_path / "manifest.tsv", tmp_path / "genes.bed"
    manifest.write_text(server.score("manifest", "--study-id", STUDY, "--analysis-id", reads.analysis_id))
    bed.write_text("CHROMOSOME_I\t0\t2000\n")
    reference = {"fasta": DATA / "ce.fa.gz", "fai": [DATA / "ce.fa.gz.fai", DATA / "ce.fa.gz.gzi"]}
    done = server.run("SCORE_VIEW", view_of("", manifest=manifest, bed=bed, **reference))
    assert done.code == 0, done.err
    assert [path.name for path in done.outputs["slices"][1]] == ["other.genes.bed.sam", "range.genes.bed.sam"]
    assert done.outputs["index"][1] == []
    assert {row["records"] > 0 for row in json.loads(done.outputs["report"][1].read_text())["files"]} == {True}


def test_view_of_nothing_is_wrong_usage(server: Server, reads: Analysis) -> None:
    done = server.run("SCORE_VIEW", view_of(reads.ids["range.bam"]))
    assert (done.code, "Give --query or --bed-query" in done.sentence()) == (2, True)


def test_rest_of_the_disk_is_read_only(server: Server, reads: Analysis, tmp_path: Path) -> None:
    """Which is what the other tests rest on."""
    ext = {"prefix": str(tmp_path / "elsewhere")}
    done = server.run("SONG_GET", {"study_id": STUDY, "analysis_id": reads.analysis_id}, ext=ext)
    assert done.code != 0
    assert "read-only" in done.sentence().lower()
    assert not list(tmp_path.iterdir())


# Whole workflows, as their files wire them


def flow(server: Server, path: Path, given: tuple[Any, ...]) -> dict[str, Any]:
    """What a subworkflow emits for one item: its processes run in the order of its calls, on what it hands them."""
    found = server.nextflow.workflow(path)
    channels: dict[str, Any] = {found["take"][0]: given, "empty": None}
    for call in found["calls"]:
        rendered = server.nextflow.render(call["name"], {"meta": {}, "payload": Path("x.json"), **dict.fromkeys(ALL_INPUTS, "x")})
        values = [channels[argument["channel"]] for argument in call["arguments"]]
        inputs = {
            name: value for names, items in zip(rendered.inputs, values, strict=True) for name, value in zip(names, items, strict=True)
        }
        done = server.run(call["name"], inputs)
        assert done.code == 0, done.err
        channels |= {f"{call['name']}.{emit}": value for emit, value in done.outputs.items()}
    return {name: channels[channel["channel"]] for name, channel in found["emit"].items()}


ALL_INPUTS = ("study_id", "analysis_id", "analysis", "manifest", "upload", "files")


def test_files_go_up_and_come_back(server: Server, tmp_path: Path) -> None:
    data = {"s1.bam": bytes(range(256)) * 1000, "s1 of blanks.bam": b"a name with blanks"}
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    payload = tmp_path / "s1.payload.json"
    payload.write_text(json.dumps(payload_of(data, workflow="align")))
    up = flow(server, subworkflow("song_score_upload"), ({"id": "s1", "study_id": STUDY}, payload, [tmp_path / name for name in data]))
    assert set(up) == {"analysis_id", "report", "versions"}
    _, analysis_id = up["analysis_id"]
    down = flow(server, subworkflow("song_score_download"), (STUDY, analysis_id))
    assert set(down) == {"analysis_json", "files", "analysis_files", "report", "versions"}
    assert {path.name: path.read_bytes() for path in down["files"]} == data
    assert json.loads(down["analysis_json"].read_text())["workflow"] == "align"


def subworkflow(name: str) -> Path:
    return PIPELINE / "subworkflows" / "score" / name / "main.nf"


def test_rows_of_the_samplesheet_go_where_they_belong(nextflow: Shim) -> None:
    meta = {"id": "s1", "study_id": STUDY}
    rows: list[Any] = [[meta, "an-id", [], []], [meta, [], "p.json", "folder"]]  # as nf-schema reads them: what is not given is []
    found = nextflow.workflow(PIPELINE / "main.nf", rows)
    calls = {call["name"]: call["arguments"][0]["items"] for call in found["calls"]}
    assert calls == {"SONG_SCORE_DOWNLOAD": [[STUDY, "an-id"]], "SONG_SCORE_UPLOAD": [[meta, "p.json", {"pattern": "folder/*"}]]}


# How they fail


@pytest.mark.parametrize("process", ["SCORE_DOWNLOAD", "SONG_GET", "SONG_PUBLISH", "SCORE_VIEW"])
def test_not_found(server: Server, inputs: dict[str, dict[str, Any]], process: str) -> None:
    given = {**inputs[process], "regions": "1:1-2"} if process == "SCORE_VIEW" else inputs[process]
    done = server.run(process, given)
    assert (done.code, ABSENT in done.sentence()) == (5, True)


@pytest.mark.parametrize("process", MODULES)
def test_wrong_token_and_server_that_is_not_there(server: Server, inputs: dict[str, dict[str, Any]], process: str) -> None:
    """One script, three worlds: it says nothing of either; a retry helps only against the second."""
    inputs["SCORE_UPLOAD"]["manifest"].write_text(f"{ABSENT}\t\t\n{ABSENT}\t/elsewhere/a.bam\t{'0' * 32}\n")
    given = {**inputs[process], "regions": "1:1-2"} if process == "SCORE_VIEW" else inputs[process]
    rendered = server.nextflow.render(process, given)
    wrong = "not-the-token-0123456789"
    refused = server.run_rendered(rendered, given, SCORE_TOKEN=wrong)
    assert refused.code == (5 if process == "SONG_GET" else 3), refused.err  # whoever asks may read metadata here
    nobody = server.run_rendered(rendered, given, STORAGE_URL=f"http://127.0.0.1:{free_ports(1)[0]}", SCORE_ATTEMPTS="1")
    assert nobody.code == 104, nobody.err
    for done in (refused, nobody):
        assert not [path for path in done.folder.rglob("*") if path.is_file() and server_secret_in(server, wrong, path)]
        assert wrong not in done.out + done.err
        assert server.token not in done.out + done.err


def server_secret_in(server: Server, wrong: str, path: Path) -> bool:
    content = path.read_bytes()
    return wrong.encode() in content or server.token.encode() in content


def fetches_a_part(seen: Seen) -> bool:
    return is_get(seen) and seen.size > 1  # one byte tries the connection


def test_broken_connections_are_worth_another_attempt(server: Server, reads: Analysis, files: dict[str, Path]) -> None:
    server.proxy.inject(Reset(after=1000), when=fetches_a_part)
    done = server.run("SCORE_DOWNLOAD", download_of(reads, files["a.analysis.json"]), environ={"SCORE_ATTEMPTS": "2"})
    assert done.code == 104, done.err
    assert not (done.folder / "out" / "noise.bin").exists()


def test_wrong_bytes_are_not(server: Server, reads: Analysis, files: dict[str, Path]) -> None:
    server.proxy.inject(Flip(at=17), when=fetches_a_part)
    done = server.run("SCORE_DOWNLOAD", download_of(reads, files["a.analysis.json"]), environ={"SCORE_ATTEMPTS": "2"})
    assert done.code == 6, done.err
    assert not (done.folder / "out" / "noise.bin").exists()


def test_upload_of_other_bytes_than_registered(server: Server, files: dict[str, Path]) -> None:
    submitted = server.run("SONG_SUBMIT", {"meta": META, "payload": files["payload.json"], "files": [files["a.bam"], files["b.bam"]]})
    assert submitted.code == 0, submitted.err
    _, analysis_id, manifest, _ = submitted.outputs["manifest_upload"]
    assert submitted.outputs["analysis_id"] == analysis_id
    files["b.bam"].write_bytes(b"MORE")
    done = server.run(
        "SCORE_UPLOAD", {"meta": META, "analysis_id": analysis_id, "manifest": manifest, "upload": [files["a.bam"], files["b.bam"]]}
    )
    assert done.code == 9, done.err
    early = server.run("SONG_PUBLISH", {"meta": META, "analysis_id": analysis_id})
    assert (early.code, "b.bam" in early.sentence()) == (1, True)
