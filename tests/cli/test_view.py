"""`score view` as people run it: objects with and without metadata, manifests, streams, and what is said."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from score_core.ids import object_id_of
from tests.cli.conftest import ROOT, Ran, Score, object_id, upload_some

DATA = ROOT / "tests" / "data"
BAM = DATA / "htsnexus_test_NA12878.bam"
REGION = "11:5000000-5001000"
READS = 39
ANALYSIS = "a25ae8b4-097d-11ea-b4b9-41f0d4c18919"
CLI = (ROOT / "docs/cli.md").read_text()


@pytest.fixture
def stored(score: Score) -> str:
    """The BAM and its index, stored and unknown to any metadata; the BAM's object id."""
    upload_some(score, BAM, object_id(1))
    upload_some(score, BAM.with_name(f"{BAM.name}.bai"), object_id(2))
    return object_id(1)


@pytest.fixture
def registered(score: Score, tmp_path: Path) -> dict[str, str]:
    """Files of one analysis with their indexes, uploaded by manifest; object ids by name."""
    names = ["range.bam", "range.bam.bai", "ex1.vcf.gz", "ex1.vcf.gz.tbi", "NA12878.embedref.cram", "NA12878.embedref.cram.crai"]
    listed = tmp_path / "upload.tsv"
    ran = score("register", *(DATA / name for name in names), "--study", "ABC", "--analysis-id", ANALYSIS, "--output", listed)
    assert ran.code == 0, ran.err
    assert score("upload", "--manifest", listed).code == 0
    return {name: object_id_of(ANALYSIS, name) for name in names}


def reads(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith(("@", "#"))]


def test_reads_go_to_standard_output_and_talk_does_not(score: Score, stored: str) -> None:
    ran = score("view", "--object-id", stored, "--index-object-id", object_id(2), "--query", REGION)
    assert ran.code == 0, ran.err
    assert len(reads(ran.out)) == READS
    assert all(line.startswith(("@", "SRR")) for line in ran.out.splitlines())
    assert ran.err.splitlines()[-1].startswith(f"{READS} records, fetched ")


def test_global_options_stand_between_regions_too(score: Score, stored: str) -> None:
    regions = ("11:5000000-5000500", "--json", "11:5000501-5001000", "--progress", "none")
    ran = score("view", "--object-id", stored, "--query", *regions, "--index-object-id", object_id(2), "--output-dir", "out")
    assert [row["records"] for row in ran.document["files"]] == [READS]


def test_metadata_find_the_index(score: Score, registered: dict[str, str]) -> None:
    ran = score("view", "--object-id", registered["range.bam"], "--query", "CHROMOSOME_II:1-2000", "--output-dir", "out")
    assert ran.code == 0, ran.err
    assert [path.name for path in Path("out").iterdir()] == ["range.CHROMOSOME_II_1-2000.sam"]


def test_object_without_an_index_is_an_error(score: Score, stored: str) -> None:
    ran = score("view", "--object-id", stored, "--query", REGION, "--output-dir", "out")
    assert ran.code == 5
    assert "has no index" in ran.sentence()
    assert not list(Path().rglob("*.sam"))


def test_header_needs_no_index(score: Score, stored: str) -> None:
    ran = score("view", "--object-id", stored, "--header-only", "--output-original-header")
    assert ran.code == 0, ran.err
    assert ran.out.encode() == samtools_header()


def samtools_header() -> bytes:
    if not shutil.which("samtools"):
        pytest.skip("NOT PROVED: samtools is not installed (apt-get install samtools)")
    return subprocess.run(["samtools", "view", "--no-PG", "-H", str(BAM)], capture_output=True, check=True).stdout


def test_command_is_in_the_header(score: Score) -> None:
    ran = score("view", "--input-file", DATA / "range.bam", "--query", "CHROMOSOME_I:1-9", "CHROMOSOME_II", "--contained")
    (own,) = [line for line in ran.out.splitlines() if line.startswith("@PG\tID:score")]
    assert own.endswith(f"CL:score view --input-file {DATA}/range.bam --query CHROMOSOME_I:1-9 CHROMOSOME_II --contained")


def test_json_tells_of_a_slice(score: Score, stored: str) -> None:
    words = ["view", "--object-id", stored, "--index-object-id", object_id(2), "--query", REGION, "--json"]
    ran = score(*words, "--output-dir", "out", "--output-format", "bam", "--output-index")
    assert ran.code == 0, ran.err
    (row,) = ran.document["files"]
    assert (row["outcome"], row["records"], row["format"], row["retries"]) == ("sliced", READS, "bam", 0)
    assert Path(row["path"]).is_file()
    assert Path(f"{row['path']}.bai").is_file()
    assert 0 < row["bytes_moved"] < BAM.stat().st_size / 2
    assert row["requests"] <= 4
    refused = score(*words)
    assert refused.code == 2
    assert "--output-dir" in refused.document["error"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "exactly one of"),
        (["--object-id", object_id(1), "--input-file", "x", "--query", "1"], "exactly one of"),
        (["--input-file", "x"], "--query"),
        (["--input-file", "x", "--query", "1", "--skip-unknown"], "--bed-query"),
        (["--input-file", "x", "--query", "1", "--stdout", "--output-dir", "out"], "not both"),
        (["--input-file", "x", "--query", "1", "--index-object-id", object_id(2)], "--object-id"),
        (["--object-id", object_id(1), "--query", "1", "--input-file-index", "x"], "--input-file"),
        (["--manifest", "m.tsv", "--query", "1"], "--output-dir"),
        (["--input-file", "x", "--query", "1", "--output-type", "merged"], "trimmed"),
        (["--input-file", "x", "--query", "1", "--max-bytes", "lots"], "--max-bytes"),
        (["--input-file", "missing.bam", "--query", "1"], "missing.bam"),
        (["--input-file", str(BAM), "--query", "chr11:1-2"], '"11"'),
        (["--input-file", str(BAM), "--query", "11", "--output-format", "vcf"], "sam, bam, cram"),
        (["--input-file", str(DATA / "range.cram"), "--query", "CHROMOSOME_I"], "--reference-file"),
        (["--input-file", str(BAM), "--query", "11", "--bed-query", "missing.bed"], "missing.bed"),
        (["--input-file", str(BAM), "--query", "11", "--max-bytes", "1K"], "--max-bytes allows 1,024"),
    ],
)
def test_wrong_usage_is_one_sentence(score: Score, words: list[str], said: str) -> None:
    ran = score("view", *words)
    assert ran.code == 2
    assert said in ran.sentence()
    assert ran.out == ""
    assert not list(Path().iterdir())


def test_stdout_gets_bam_when_asked_for(start, score: Score) -> None:
    process = start("view", "--input-file", BAM, "--query", REGION, "--output-format", "bam", "--stdout")
    out, err = process.stdout.buffer.read(), process.stderr.read()
    assert process.wait() == 0, err
    Path("got.bam").write_bytes(out)
    assert score("view", "--input-file", "got.bam", "--query", ".").out.count("\nSRR") == READS
    assert err.startswith(f"{READS} records, from ")


def test_reader_that_leaves_early_is_no_error(environment: None) -> None:
    words = [sys.executable, "-m", "score_core.cli", "view", "--input-file", str(BAM), "--query", "."]
    script = f"{shlex.join(words)} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("@HD")
    assert "Traceback" not in done.stderr


# Manifests


def manifest(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    lines = ["\t".join(f"c{number}" for number in range(11))]
    lines += ["\t".join(["", analysis, name_id, "", name, *[""] * 6]) for name_id, analysis, name in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def run_manifest(score: Score, rows: list[tuple[str, str, str]], *words: str) -> Ran:
    return score("view", "--manifest", manifest(Path("m.tsv"), rows), "--output-dir", "out", *words)


def test_manifest_makes_a_file_for_each_row_of_data(score: Score, stored: str) -> None:
    upload_some(score, DATA / "README.md", object_id(3))
    rows = [(stored, "x", "one.bam"), (object_id(2), "x", "one.bam.bai"), (object_id(3), "x", "README.md")]
    ran = run_manifest(score, rows, "--query", REGION)
    assert ran.code == 0, ran.err
    assert [path.name for path in Path("out").iterdir()] == ["one.11_5000000-5001000.sam"]


@pytest.mark.parametrize("index_name", ["one.bam.bai", "ONE.bai", "one.bai"])
def test_index_of_a_row_is_another_row(score: Score, stored: str, index_name: str) -> None:
    ran = run_manifest(score, [(object_id(2), "x", index_name), (stored, "x", "One.bam")], "--query", REGION)
    assert ran.code == 0, ran.err
    assert len(reads((Path("out") / "One.11_5000000-5001000.sam").read_text())) == READS


def test_row_without_its_index_in_the_manifest_asks_the_metadata(score: Score, registered: dict[str, str]) -> None:
    rows = [(registered["range.bam"], ANALYSIS, "range.bam"), (registered["NA12878.embedref.cram"], ANALYSIS, "NA12878.embedref.cram")]
    ran = run_manifest(score, rows, "--header-only")
    assert ran.code == 0, ran.err
    assert {path.name for path in Path("out").iterdir()} == {"range.header.sam", "NA12878.embedref.header.sam"}
    ran = run_manifest(score, rows[:1], "--query", "CHROMOSOME_II")
    assert ran.code == 0, ran.err


def test_one_bad_row_stops_no_other(score: Score, stored: str) -> None:
    rows = [(object_id(9), "x", "gone.bam"), (stored, "y", "one.bam"), (object_id(2), "y", "one.bam.bai")]
    ran = run_manifest(score, rows, "--query", REGION, "--json")
    assert ran.code == 9
    assert [row["outcome"] for row in ran.document["files"]] == ["failed", "sliced"]
    assert [path.name for path in Path("out").iterdir()] == ["one.11_5000000-5001000.sam"]
    assert object_id(9) in ran.err


@pytest.mark.parametrize(
    ("one", "other"), [("same.bam", "same.bam"), ("same.bam", "same.cram"), (f"{'x' * 130}1.bam", f"{'x' * 130}2.bam")]
)
def test_two_rows_never_write_to_one_file(score: Score, stored: str, one: str, other: str) -> None:
    ran = run_manifest(score, [(stored, "x", one), (object_id(7), "y", other)], "--header-only")
    assert ran.code == 2
    assert "the same file name" in ran.sentence()
    assert not Path("out").exists()


def test_manifest_without_data_is_an_error(score: Score, stored: str) -> None:
    ran = run_manifest(score, [(stored, "x", "notes.txt")], "--query", REGION)
    assert ran.code == 2
    assert "nothing to view" in ran.sentence()


# The documentation


def test_every_option_is_documented(score: Score) -> None:
    chapter = CLI.partition("\n## view")[2].partition("\n## ")[0]
    options = set(re.findall(r"--[a-z][a-z-]+", score("view", "--help").out.partition("Session")[0]))
    known = {"--help", "--version", *re.findall(r"--[a-z][a-z-]+", CLI.partition("\n## view")[0])}
    assert {option for option in options if option not in chapter and option not in known} == set()


def test_examples_of_the_documentation_run(score: Score) -> None:
    chapter = CLI.partition("\n## view")[2].partition("\n## ")[0]
    Path("tests").symlink_to(ROOT / "tests")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", chapter, re.DOTALL) for line in block.splitlines()]
    assert len(lines) >= 5
    for line in lines:
        command, _, comment = line.partition("  # ")
        ran = score(*shlex.split(command)[1:])
        assert ran.code == 0, (line, ran.err)
        (count,) = re.findall(r"[\d,]+ records", comment)
        assert re.search(rf"(^|: ){count}, ", ran.err.splitlines()[-1]), line
