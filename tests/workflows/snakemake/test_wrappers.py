"""The wrappers, run by Snakemake as their own test Snakefiles say, against a real server; and what their documents promise."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from score_core import __version__
from score_core.checksum import md5_hex
from score_core.ids import object_id_of
from score_core.testing.faults import Stall, moves_part
from score_core.workflow import elsewhere, steps
from score_core.workflow.job import COMMON_PARAMS, Step
from tests.workflows.snakemake.conftest import PART_BYTES, ROOT, STUDY, TOKEN, Ran, Site, Snakemake

WORKFLOWS = ROOT / "workflows" / "snakemake"
WRAPPERS = sorted(path.parent for path in (WORKFLOWS / "wrappers").rglob("wrapper.py"))
DATA = ROOT / "tests" / "data"
BAM = (DATA / "htsnexus_test_NA12878.bam").read_bytes()
ELEGANS = (DATA / "range.bam").read_bytes()
BAI = (DATA / "htsnexus_test_NA12878.bam.bai").read_bytes()
ANALYSIS = "a25ae8b4-097d-11ea-b4b9-41f0d4c18919"  # these ids are in the test Snakefiles
UNPUBLISHED = "b3c1d5f2-4e0a-11ef-9a52-0242ac120002"
UNSTORED = "c4e2d6f3-4e0a-11ef-9a52-0242ac120002"
SIGNATURE = re.compile(r"[?&](?:X-Amz-)?Signature=[^<]", re.IGNORECASE)


def named(folder: Path) -> str:
    """score/download, for example."""
    return str(folder.relative_to(WORKFLOWS / "wrappers"))


def lay_out(work: Path) -> None:
    """A folder that looks like the repository of wrappers, `master` being its branch, with the data that the test Snakefiles want."""
    (work / "master").mkdir(parents=True)
    for name, source in (("score", "wrappers/score"), ("song", "wrappers/song"), ("meta", "meta")):
        (work / "master" / name).symlink_to(WORKFLOWS / source)
    (work / "data").mkdir()
    for name, source in (("NA12878", "htsnexus_test_NA12878"), ("elegans", "range")):
        shutil.copy(DATA / f"{source}.bam", work / "data" / f"{name}.bam")
        shutil.copy(DATA / f"{source}.bam.bai", work / "data" / f"{name}.bam.bai")
    (work / "data" / "regions.bed").write_text("11\t4899999\t5000500\n20\t0\t1000000\n")
    for name in ("song/submit/test/NA12878.payload.json", "song/publish/test/NA12878.analysis_id"):
        shutil.copy(WORKFLOWS / "wrappers" / name, work)


def reads(path: Path, *regions: str) -> list[str]:
    """The records of a file, by samtools."""
    done = subprocess.run(
        ["samtools", "view", *(["-M"] if regions else []), str(path), *regions], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def assert_no_secret(ran: Ran, work: Path) -> None:
    """Neither the token nor a signature is in what Snakemake prints and keeps, nor in any log."""
    texts = {"console": ran.text}
    for folder in (work / ".snakemake", work / "logs"):
        texts |= {str(path): path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()}
    assert len(texts) > 5
    for where, text in texts.items():
        assert TOKEN not in text, where
        assert SIGNATURE.search(text) is None, where


def sentences(ran: Ran) -> list[str]:
    """What our jobs said on stderr."""
    return [line.removeprefix("error: ") for line in ran.text.splitlines() if line.startswith("error: ")]


@pytest.fixture
def example(site: Site) -> Site:
    """A server with the analyses that the test Snakefiles name."""
    site.add({"NA12878.bam": BAM, "NA12878.bam.bai": BAI}, analysis_id=ANALYSIS)
    site.add({"NA12878.bam": BAM}, analysis_id=UNPUBLISHED, publishes=False)
    site.add({"NA12878.bam": BAM}, analysis_id=UNSTORED, publishes=False, stores=False)
    return site


@pytest.mark.slow
def test_every_test_snakefile_runs(example: Site, snakemake: Snakemake, tmp_path: Path) -> None:
    work = tmp_path / "work"
    lay_out(work)
    parts = sorted(str(path.relative_to(WORKFLOWS)).removeprefix("wrappers/") for path in WORKFLOWS.glob("*/**/test/Snakefile"))
    assert len(parts) == len(WRAPPERS) + 1
    targets = [
        "downloaded/NA12878.bam",
        f"downloaded/{ANALYSIS}",
        "from_manifest/NA12878.bam",
        "uploaded/NA12878.json",
        "slices/NA12878.bam",
        "slices/NA12878.sam",
        "headers/NA12878.sam",
        "registered/NA12878.manifest.txt",
        "submitted/NA12878.manifest.txt",
        "published/NA12878.json",
        "published/elegans.published.json",  # the meta-wrapper
    ]
    snakefile = "".join(f'include: "master/{part}"\n' for part in parts)
    options = ("--wrapper-prefix", f"file://{work}/", "--verbose")
    ran = snakemake(snakefile, *targets, *options, **example.environment())
    assert ran.code == 0, ran.text
    assert_no_secret(ran, work)

    assert (work / "downloaded/NA12878.bam").read_bytes() == (work / "from_manifest/NA12878.bam").read_bytes() == BAM
    assert (work / "downloaded/NA12878.bam.bai").read_bytes() == BAI
    assert {path.name: path.read_bytes() for path in (work / "downloaded" / ANALYSIS).glob("[!.]*")} == {
        "NA12878.bam": BAM,
        "NA12878.bam.bai": BAI,
    }
    assert json.loads((work / "from_manifest/receipt.json").read_text())["files"][0]["path"] == "from_manifest/NA12878.bam"
    (uploaded,) = json.loads((work / "uploaded/NA12878.json").read_text())["files"]
    assert (uploaded["outcome"], uploaded["md5"]) == ("uploaded", md5_hex(BAM))
    wanted = reads(work / "data/NA12878.bam", "11:4,900,000-5,000,000", "20:1-1000000")
    assert wanted
    assert reads(work / "slices/NA12878.bam") == reads(work / "slices/NA12878.bam", "11", "20") == wanted
    assert reads(work / "slices/NA12878.sam") == reads(work / "data/NA12878.bam", "11:4,900,000-5,000,500", "20:1-1000000")
    assert "@SQ\tSN:11" in (work / "headers/NA12878.sam").read_text()
    assert not (work / "urls/NA12878.txt").exists()  # temp()
    analysis_id = (work / "registered/NA12878.analysis_id").read_text().strip()
    assert {file.access for file in example.registry.analysis(STUDY, analysis_id).files} == {"open"}
    assert str(work / "data/NA12878.bam") in (work / "registered/NA12878.manifest.txt").read_text()
    submitted = (work / "submitted/NA12878.analysis_id").read_text().strip()
    assert example.registry.analysis(STUDY, submitted).type_name == "sequencing_alignment"
    assert example.registry.state(STUDY, UNPUBLISHED) == "PUBLISHED"
    receipt = json.loads((work / "published/elegans.published.json").read_text())
    assert receipt["state"] == example.registry.state(STUDY, receipt["analysis_id"]) == "PUBLISHED"
    assert list(work.rglob(".*score*")) == []  # nothing half-written is left

    again = snakemake(snakefile, *targets, *options[:2], "--lint", **example.environment())
    assert "in a good condition" in again.text


def test_wrappers_are_found_by_a_git_tag(example: Site, snakemake: Snakemake, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(WORKFLOWS / "wrappers", repository)
    git = ["git", "-c", "user.name=a tester", "-c", "user.email=tester@example.org", "-C", str(repository)]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "Wrappers"], ["tag", "v0.1.0"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    snakefile = (WORKFLOWS / "wrappers/score/manifest/test/Snakefile").read_text().replace('"master/', '"v0.1.0/')
    target = f"manifests/{ANALYSIS}.tsv"
    ran = snakemake(snakefile, target, "--wrapper-prefix", f"git+file://{repository}/", **example.environment())
    assert ran.code == 0, ran.text
    lines = (tmp_path / "work" / target).read_text().splitlines()
    assert [line.split("\t")[4] for line in lines[1:]] == ["NA12878.bam", "NA12878.bam.bai"]


RULE = """
rule {name}:
    input: {inputs}
    output: "{name}.out{suffix}"
    log: "logs/{name}.log"
    params: {params}
    wrapper: "master/{wrapper}"
"""
OBJECT = object_id_of(ANALYSIS, "NA12878.bam")
DRAFTS, EMPTY = "c0a8d5f2-4e0a-11ef-9a52-0242ac120002", "d0a8d5f2-4e0a-11ef-9a52-0242ac120002"
DRAFT, OTHER = object_id_of(DRAFTS, "draft.bin"), object_id_of(EMPTY, "other.bam")
NOWHERE = "00000000-0000-0000-0000-000000000001"
# name: wrapper, inputs, params, exit code, what its one sentence must say
BAD: dict[str, tuple[str, str, str, int, str]] = {
    "unknown_object": ("score/download", "", f'object_id="{NOWHERE}"', 5, NOWHERE),
    "unknown_param": ("score/download", "", f'objectid="{OBJECT}"', 2, "did you mean 'object_id'?"),
    "token_in_params": ("score/download", "", f'object_id="{OBJECT}", access_token="zzz"', 2, "SCORE_TOKEN_FILE"),
    "wrong_token": ("score/download", "", f'object_id="{OBJECT}", token_file="wrong-token"', 3, "token"),
    "unpublished": ("score/download", "", f'object_id="{DRAFT}"', 1, "is not PUBLISHED"),
    "wrong_md5": ("score/upload", '"data/elegans.bam"', f'object_id="{OTHER}"', 6, md5_hex(ELEGANS)),
    "not_stored": ("song/publish", "", f'study_id="TEST-CA", analysis_id="{EMPTY}"', 1, "other.bam"),
    "no_payload": ("song/submit", '"data/regions.bed"', "", 2, "data/regions.bed is not JSON"),
}


@pytest.mark.slow
def test_bad_input_is_one_sentence_and_other_jobs_go_on(example: Site, snakemake: Snakemake, tmp_path: Path) -> None:
    work = tmp_path / "work"
    lay_out(work)
    (work / "wrong-token").write_text("not-the-token-of-this-server\n")
    (work / "wrong-token").chmod(0o600)
    example.add({"draft.bin": b"draft"}, analysis_id=DRAFTS, publishes=False)
    example.add({"other.bam": ELEGANS[::-1]}, analysis_id=EMPTY, publishes=False, stores=False)
    rules = [
        RULE.format(name=name, suffix="", wrapper=wrapper, inputs=inputs, params=params)
        for name, (wrapper, inputs, params, _, _) in BAD.items()
    ]
    rules.append(RULE.format(name="good", suffix=".bam", wrapper="score/download", inputs="", params=f'object_id="{OBJECT}"'))
    targets = [*(f"{name}.out" for name in BAD), "good.out.bam"]
    ran = snakemake("".join(rules), *targets, "--keep-going", "--wrapper-prefix", f"file://{work}/", **example.environment())
    assert ran.code == 1
    assert (work / "good.out.bam").read_bytes() == BAM
    told = sentences(ran)
    for name, (_, _, _, _, says) in BAD.items():
        assert not (work / f"{name}.out").exists()
        (line,) = (work / f"logs/{name}.log").read_text().splitlines()
        assert line.startswith("error: ")
        assert says in line, name
        assert line.removeprefix("error: ") in told
    assert len(told) == len(BAD)
    ends = re.findall(r"returned non-zero exit status (\d+)", ran.text)
    assert sorted(map(int, ends)) == sorted(code for _, _, _, code, _ in BAD.values())
    assert "Traceback" not in ran.text
    assert TOKEN not in ran.text


@pytest.mark.kill
@pytest.mark.slow
def test_stopped_workflow_goes_on_where_it_ended(site: Site, snakemake: Snakemake, tmp_path: Path) -> None:
    work = tmp_path / "work"
    lay_out(work)
    record = site.add({"big.bin": BAM}).files[0]
    rule = RULE.format(name="big", suffix="", wrapper="score/download", inputs="", params=f'object_id="{record.object_id}"')
    (work / "Snakefile").write_text(rule)
    assert site.data is not None
    reached = threading.Event()
    site.data.at_byte(10 * PART_BYTES, reached.set)
    site.data.inject(Stall(), when=lambda seen: moves_part(seen) and seen.offset >= 12 * PART_BYTES)
    options = ("big.out", "--wrapper-prefix", f"file://{work}/")
    process = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "1", *options],
        cwd=work,
        env={**os.environ, **site.environment()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert reached.wait(60)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: Interrupted; run the same command again to resume" in err
    assert not (work / "big.out").exists()
    site.forget()
    ran = snakemake(rule, *options, **site.environment())
    assert ran.code == 0, ran.text
    assert (work / "big.out").read_bytes() == BAM
    assert sum(seen.sent for seen in site.gets()) <= len(BAM) - 8 * PART_BYTES


# Documents


def step_of(wrapper: Path) -> Step:
    """What a wrapper does, as its script names it."""
    found = re.search(r"^run\((\w+), snakemake\)", (wrapper / "wrapper.py").read_text(), re.MULTILINE)
    assert found is not None
    step: Step = getattr(steps, found[1])
    return step


def document(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=named)
def test_wrapper_is_documented(wrapper: Path) -> None:
    meta = document(wrapper / "meta.yaml")
    assert list(meta) == ["name", "description", "url", "authors", "input", "output", "params", "notes"]
    assert all(meta.values())
    assert meta["name"] == named(wrapper).replace("/", " ")
    params = [name for entry in meta["params"] for name in entry]
    assert sorted(params) == sorted(step_of(wrapper).params | COMMON_PARAMS)


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=named)
def test_wrapper_has_an_environment_of_this_version(wrapper: Path) -> None:
    environment = document(wrapper / "environment.yaml")
    assert list(environment) == ["channels", "dependencies"]
    assert environment["channels"][0] == "conda-forge"
    assert environment["channels"][-1] == "nodefaults"
    *conda, pip = environment["dependencies"]
    assert "pip" in conda
    assert any(re.fullmatch(r"python =3\.\d+", package) for package in conda)
    extra = "[slicing]" if step_of(wrapper) is steps.VIEW else ""
    assert pip == {"pip": [f"score-transfer{extra}=={__version__}"]}


def test_every_param_of_a_step_is_read() -> None:
    body = Path(steps.__file__).read_text().partition("_ANALYSIS: Final")[0] + Path(elsewhere.__file__).read_text()
    for wrapper in WRAPPERS:
        assert [name for name in step_of(wrapper).params if f'"{name}"' not in body] == []


def test_meta_wrapper_is_documented() -> None:
    folder = WORKFLOWS / "meta" / "register_upload_publish"
    meta = document(folder / "meta.yaml")
    assert list(meta) == ["name", "description", "url", "authors", "used_wrappers", "notes"]
    used = re.findall(r'"master/([\w/]+)"', (folder / "meta_wrapper.smk").read_text())
    assert meta["used_wrappers"] == used


def test_wrapper_scripts_are_not_executable() -> None:
    assert [path for path in WORKFLOWS.rglob("*.py") if path.stat().st_mode & stat.S_IXUSR] == []
