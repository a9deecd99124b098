"""Whole workflows whose files are in Score, run by Snakemake as a user starts it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pysam
import pytest

from score_core.testing.faults import Call, Fault, Reset
from tests.workflows.snakemake.conftest import PART_BYTES, STUDY, TOKEN, Ran, Site, Snakemake

DATA = Path(__file__).resolve().parents[2] / "data"
NOTHING = "Nothing to be done"


def settings(site: Site) -> tuple[str, ...]:
    return "--storage-score-url", site.url, "--storage-score-metadata-url", site.url


def check_no_secret(folder: Path, ran: Ran) -> None:
    """Neither the console nor anything that Snakemake writes of a run holds the token or a signature."""
    texts = {path: path.read_bytes() for path in (folder / ".snakemake").rglob("*") if path.is_file() and "storage" not in path.parts}
    for place, text in [("console", ran.text.encode()), *texts.items()]:
        assert TOKEN.encode() not in text, place
        assert re.search(rb"[Ss]ignature=", text) is None, place


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


def joined(analysis_id: str, count: int) -> str:
    """A workflow that puts so many files of an analysis into one."""
    return f"""
rule all:
    input: [storage(f"score://{STUDY}/{analysis_id}/{{number}}.txt") for number in range({count})]
    output: "all.txt"
    shell: "cat {{input}} > {{output}}"
"""


class Held(Fault):
    """Answers half a second late, and remembers how many waited at once."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def play(self, exchange) -> None:  # one thread more or less in a count of the most does not matter
        self.now += 1
        self.most = max(self.most, self.now)
        time.sleep(0.5)
        self.now -= 1
        super().play(exchange)


@pytest.mark.slow
def test_twelve_files_four_at_once_one_question_and_no_secrets(site: Site, snakemake: Snakemake, work: Path, tmp_path: Path) -> None:
    files = {f"{number}.txt": bytes([65 + number]) * (PART_BYTES + 1) for number in range(12)}
    analysis = site.add(files)
    snakefile, held = joined(analysis.analysis_id, 12), Held()
    site.data.inject(held)
    ran = snakemake(snakefile, "--verbose", *settings(site), SNAKEMAKE_STORAGE_SCORE_TOKEN=TOKEN)
    assert ran.code == 0, ran.text
    assert (work / "all.txt").read_bytes() == b"".join(files.values())
    assert len(site.gets()) == 24  # two parts of each
    assert held.most <= 8  # two parts of four files
    assert len(site.metadata_calls()) == 1

    site.forget()
    (tmp_path / "token").write_text(TOKEN)
    ran_again = snakemake(snakefile, "--verbose", *settings(site), "--storage-score-token-file", str(tmp_path / "token"))
    assert NOTHING in ran_again.text, ran_again.text
    assert site.gets() == []
    assert len(list((work / ".snakemake" / "log").iterdir())) == 2
    for each in (ran, ran_again):
        check_no_secret(work, each)

    site.registry.unpublish(STUDY, analysis.analysis_id)
    site.registry.publish(STUDY, analysis.analysis_id)
    site.forget()
    ran = snakemake(snakefile, "--dry-run", *settings(site), SNAKEMAKE_STORAGE_SCORE_TOKEN=TOKEN)
    assert NOTHING in ran.text, ran.text
    assert len(site.metadata_calls()) == 1
    assert site.gets() == []


def test_a_thousand_files_cost_one_question(site: Site, snakemake: Snakemake) -> None:
    analysis = site.add({f"{number}.txt": b"" for number in range(1000)}, publishes=False, stores=False)
    site.registry._db.execute("UPDATE analysis SET state = 'PUBLISHED' WHERE id = ?", (analysis.analysis_id,))  # 1,000 uploads take long
    ran = snakemake(joined(analysis.analysis_id, 1000), "--dry-run", *settings(site), SNAKEMAKE_STORAGE_SCORE_TOKEN=TOKEN)
    assert ran.code == 0, ran.text
    assert "This was a dry-run" in ran.text
    assert len(site.rest.seen) == 1


def test_failure_for_good_names_the_object_and_the_next_run_continues(site: Site, snakemake: Snakemake, work: Path) -> None:
    data = bytes(range(256)) * (5 * PART_BYTES // 256)
    analysis = site.add({"a.bin": data})
    snakefile = f"""
import os
storage:
    provider="score", url="{site.url}", metadata_url="{site.url}", token=os.environ["THE_WORD"], attempts=2, workers=1
rule all:
    input: storage.score("score://{STUDY}/{analysis.analysis_id}/a.bin")
    output: "copy.bin"
    shell: "cp {{input}} {{output}}"
"""
    site.data.inject(Reset(after=100), when=lambda seen: seen.offset == 3 * PART_BYTES)
    ran = snakemake(snakefile, "--verbose", "--keep-going", THE_WORD=TOKEN)
    assert ran.code == 1
    (said,) = [line for line in ran.text.splitlines() if "after 2 tries" in line][:1]
    assert f"score://{STUDY}/{analysis.analysis_id}/a.bin: Part 4 of object {analysis.files[0].object_id}" in said
    assert "reset" in said.lower()
    assert f"Object {analysis.files[0].object_id}, part 4:" in ran.text  # it was told before, too
    assert "trying again in 0." in ran.text
    assert not (work / "copy.bin").exists()
    assert list((work / ".snakemake" / "storage").rglob("a.bin*")) == []
    check_no_secret(work, ran)

    site.forget()
    ran = snakemake(snakefile, THE_WORD=TOKEN)
    assert ran.code == 0, ran.text
    assert (work / "copy.bin").read_bytes() == data
    assert [seen.offset // PART_BYTES for seen in site.gets()] == [3, 4]


def test_globs_regions_wildcards_and_outputs(site: Site, snakemake: Snakemake, work: Path) -> None:
    name = "htsnexus_test_NA12878"
    reads = site.add({f"{name}.bam{end}": (DATA / f"{name}.bam{end}").read_bytes() for end in ("", ".bai")})
    target = site.add({"copy.bai": (DATA / f"{name}.bam.bai").read_bytes()}, publishes=False, stores=False)
    named = f"score://{STUDY}/run-{uuid.uuid4()}"
    snakefile = f"""
storage: provider="score", register=True
READS = "score://{STUDY}/{reads.analysis_id}"
names, = glob_wildcards(storage(READS + "/{{name}}.bam"))
rule all:
    input:
        expand("{{name}}.{{contig}}.count", name=names, contig=["11", "20"]),
        storage("score://{STUDY}/{target.analysis_id}/copy.bai"),
        storage("{named}/copy.bai.md5"),
rule count:
    input: storage(READS + "/{{name}}.bam?region={{contig}}&format=sam")
    output: "{{name}}.{{contig}}.count"
    shell: "grep -vc ^@ {{input}} > {{output}}"
rule copy:
    input: storage(READS + "/{name}.bam.bai")
    output: storage("score://{STUDY}/{target.analysis_id}/copy.{{end}}")
    shell: "cp {{input}} {{output}}"
rule digest:
    input: storage("score://{STUDY}/{target.analysis_id}/{{file}}")
    output: storage("{named}/{{file}}.md5")
    shell: "md5sum < {{input}} > {{output}}"
"""
    ran = snakemake(snakefile, **site.environment())
    assert ran.code == 0, ran.text
    with pysam.AlignmentFile(str(DATA / f"{name}.bam")) as whole:
        counts = {contig: whole.count(contig) for contig in ("11", "20")}
    assert {contig: int((work / f"{name}.{contig}.count").read_text()) for contig in counts} == counts
    assert site.repository.describe(target.files[0].object_id).md5 == target.files[0].md5
    site.forget()
    ran = snakemake(snakefile, "--dry-run", **site.environment())
    assert NOTHING in ran.text, ran.text
    site.registry.publish(STUDY, target.analysis_id)


def test_failed_job_is_run_again_where_score_is_the_default_storage(site: Site, snakemake: Snakemake) -> None:
    snakefile = """
rule a:
    output: "a.txt"
    log: "a.log"
    shell: 'echo hello > {output}; echo "$SAID" > {log}; [ "$SAID" = well ]'
"""
    place = "--default-storage-provider", "score", "--default-storage-prefix", f"score://{STUDY}/run-{uuid.uuid4()}"
    codes = [snakemake(snakefile, *place, "--storage-score-register", **site.environment(), SAID=said).code for said in ("badly", "well")]
    assert codes == [1, 0]
    ran = snakemake(snakefile, *place, **site.environment())
    assert NOTHING in ran.text, ran.text


def test_missing_file_and_missing_right_are_told_apart(site: Site, snakemake: Snakemake) -> None:
    analysis = site.add({"0.txt": b"hello"})
    ran = snakemake(joined(analysis.analysis_id, 2), *settings(site), SNAKEMAKE_STORAGE_SCORE_TOKEN=TOKEN)
    assert ran.code == 1
    assert "MissingInputException" in ran.text
    assert f"score://{STUDY}/{analysis.analysis_id}/1.txt (in storage)" in ran.text
    ran = snakemake(joined(analysis.analysis_id, 1), *settings(site), SNAKEMAKE_STORAGE_SCORE_TOKEN="another-token-that-is-wrong")
    assert ran.code == 1
    assert "set SNAKEMAKE_STORAGE_SCORE_TOKEN" in ran.text
    assert "MissingInputException" not in ran.text
    assert "another-token-that-is-wrong" not in ran.text


@pytest.mark.slow
@pytest.mark.kill
def test_killed_run_is_continued_by_the_next(site: Site, snakemake: Snakemake, work: Path) -> None:
    data = bytes(range(256)) * (30 * PART_BYTES // 256)
    analysis = site.add({"a.bin": data})
    snakefile = f"""
rule all:
    input: storage("score://{STUDY}/{analysis.analysis_id}/a.bin")
    output: "copy.bin"
    shell: "cp {{input}} {{output}}"
"""
    work.mkdir()
    (work / "Snakefile").write_text(snakefile)
    held = threading.Event()
    site.data.inject(Call(lambda: held.wait(60)), when=lambda seen: seen.offset >= 20 * PART_BYTES)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--storage-score-workers", "2"]
    process = subprocess.Popen(
        command, cwd=work, env={**os.environ, **site.environment()}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while len(site.gets()) < 22:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    held.set()
    site.forget()
    ran = snakemake(snakefile, "--unlock", **site.environment())
    ran = snakemake(
        snakefile, "--rerun-incomplete", "--storage-score-parallel", "2", "--storage-score-validation", "both", **site.environment()
    )
    assert ran.code == 0, ran.text
    assert (work / "copy.bin").read_bytes() == data
    assert sorted(seen.offset // PART_BYTES for seen in site.gets()) == list(range(20, 30))
