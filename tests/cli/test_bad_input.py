"""Whatever a user gives wrongly: the documented exit code, one sentence, no traceback, nothing left behind."""

import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import OBJECT_ID, Score, manifest_of, md5_of, object_id, upload_some
from tests.cli.test_transfer import download_manifest, download_row

DOWNLOAD = ("download", "--object-id", OBJECT_ID, "--output-dir", "out")


def names_here() -> list[str]:
    return [path.name for path in Path().iterdir()]


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (("upload", "--file", "/nope/a.bam", "--object-id", OBJECT_ID, "--md5", "0" * 32), 2, "does not exist"),
        (("upload", "--file", "/etc/passwd/a.bam", "--object-id", OBJECT_ID, "--md5", "0" * 32), 2, "a folder on the way to it is a file"),
        (("upload", "--file", "/", "--object-id", OBJECT_ID, "--md5", "compute"), 2, "it is a directory"),
        (("upload", "--file", "/dev/null", "--object-id", OBJECT_ID, "--md5", "0" * 32), 2, "not a regular file"),
        (("upload", "--file", "FILE", "--object-id", "not-a-uuid", "--md5", "0" * 32), 2, "is not an object id"),
        (("upload", "--file", "FILE", "--object-id", "../" + OBJECT_ID, "--md5", "0" * 32), 2, "is not an object id"),
        (("upload", "--file", "FILE", "--object-id", OBJECT_ID), 2, "Give --md5"),
        (("upload", "--file", "FILE", "--object-id", OBJECT_ID, "--md5", "abc"), 2, "32 hex digits"),
        (("upload", "--file", "FILE", "--object-id", OBJECT_ID, "--md5", "0" * 32), 6, "expected MD5 0000"),
        (("upload", "--object-id", OBJECT_ID, "--md5", "0" * 32), 2, "Give --file"),
        (("upload", "--manifest", "m", "--file", "FILE"), 2, "not both"),
        (("upload", "--manifest", "/nope"), 2, "does not exist"),
        (("upload", "--manifest", "file:///etc/passwd"), 2, "file: is none of these"),
        (("upload", "--manifest", "http://169.254.169.254/latest"), 2, "link-local"),
        (("upload", "--manifest", "http://127.0.0.1:9/m.tsv"), 7, "ConnectError"),
        (("download", "--object-id", "x/../y", "--output-dir", "out"), 2, "is not an object id"),
        (("download", "--object-id", "%2e%2e%2f", "--output-dir", "out"), 2, "is not an object id"),
        (("download", "--object-id", "a" * 10_000, "--output-dir", "out"), 2, "is not an object id"),
        ((*DOWNLOAD,), 5, "is not in file://"),
        (("download", "--output-dir", "out"), 2, "exactly one of --object-id, --manifest"),
        (("download", "--object-id", OBJECT_ID), 2, "--output-dir"),
        ((*DOWNLOAD, "--validate", "maybe"), 2, "--validate must be one of"),
        ((*DOWNLOAD, "--output-layout", "tree"), 2, "--output-layout must be one of"),
        ((*DOWNLOAD, "--offset", "-1"), 2, "--offset must be 0 or more"),
        ((*DOWNLOAD, "--offset", "abc"), 2, "--offset"),
        ((*DOWNLOAD, "--length", str(2**63)), 2, "--length"),
        (("verify", "FILE"), 2, "--object-id of each"),
        (("verify", "FILE", "FILE", "--object-id", OBJECT_ID), 2, "2 files and 1 object ids"),
        (("url", "--object-id", OBJECT_ID), 2, "score serve"),
        (("list", "--store", "gopher://x"), 2, "unknown kind 'gopher'"),
        (("list", "--store", "file://relative"), 2, "absolute"),
        (("list", "--store", "s3://user:pw@bucket"), 2, "Credentials do not belong"),
        (("list", "--store", "s3://bucket"), 3, "credentials"),
        (("list", "--url", "https://u:p@score.example.org"), 2, "url must be an address"),
        (("list", "--profile", "lab"), 2, "no profile 'lab'"),
        (("list", "--config", "/nope.toml"), 2, "/nope.toml does not exist"),
        (("list", "--progress", "fancy"), 2, "progress must be 'auto'"),
        (("serve", "--host", "0.0.0.0"), 2, "open to the network"),
        (("serve", "--port", "99999"), 2, "port (SCORE_SERVER_PORT) must be"),
        (("serve", "--port", "0", "--store", "s3://bucket"), 3, "credentials"),
        (("uplaod",), 2, "did you mean upload?"),
        (("upload", "--forse"), 2, "did you mean --force?"),
        (("upload", "stray"), 2, "Unexpected argument 'stray'"),
        (("--json-lines", "list"), 2, "--json-lines"),
        (("--quiet",), 2, "No command is given"),
    ],
)
def test_one_sentence_and_the_code(
    score: Score, some_file: Path, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], code: int, says: str
) -> None:
    monkeypatch.delenv("SCORE_PART_SIZE_BYTES")
    ran = score(*(str(some_file) if word == "FILE" else word for word in argv))
    assert ran.code == code, ran.err
    assert says in ran.sentence()
    assert ran.out == ""
    assert names_here() == []


def test_failure_as_json_is_one_document(score: Score) -> None:
    ran = score(*DOWNLOAD, "--json")
    assert ran.document["files"][0]["exit_code"] == ran.document["exit_code"] == ran.code == 5
    assert ran.document["error"] == ran.document["files"][0]["error"]


def test_usage_error_as_json(score: Score) -> None:
    ran = score("--json", "upload", "--what")
    assert json.loads(ran.out)["exit_code"] == ran.code == 2


def test_no_command_shows_help(score: Score) -> None:
    ran = score()
    assert ran.code == 2
    assert "Exit codes" in ran.err


def test_unreachable_endpoint(score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.delenv("SCORE_PART_SIZE_BYTES")
    store = "s3://bucket?endpoint=http://127.0.0.1:9"
    ran = score("list", "--store", store)
    assert (ran.code, "not reached" in ran.sentence()) == (7, True)
    assert score("--workflow-exit-codes", "list", "--store", store).code == 104


def test_small_parts_are_refused_for_s3(score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORE_PART_SIZE_BYTES", "65536")
    assert "part_size_bytes must be at least 5242880" in score("list", "--store", "s3://bucket").sentence()


def test_other_object_is_not_overwritten(score: Score, some_file: Path, tmp_path: Path) -> None:
    upload_some(score, some_file)
    other = tmp_path / "other"
    other.write_bytes(b"other")
    argv = ("upload", "--file", other, "--object-id", OBJECT_ID, "--md5", md5_of(other))
    ran = score(*argv)
    assert (ran.code, "--force replaces it" in ran.sentence()) == (1, True)
    assert score(*argv, "--force").code == 0
    assert score("verify", other, "--object-id", OBJECT_ID).code == 0


def test_other_file_is_not_overwritten(score: Score, some_file: Path) -> None:
    upload_some(score, some_file)
    Path("out").mkdir()
    Path("out/some.bin").write_bytes(b"mine")
    ran = score(*DOWNLOAD)
    assert (ran.code, "--force replaces it" in ran.sentence()) == (1, True)
    assert [path.read_bytes() for path in Path("out").iterdir()] == [b"mine"]
    assert score(*DOWNLOAD, "--force").code == 0
    assert Path("out/some.bin").read_bytes() == some_file.read_bytes()


@pytest.mark.parametrize("folder", ["/proc/score", "/etc/passwd/out"])
def test_folder_that_cannot_be_written(score: Score, some_file: Path, folder: str) -> None:
    upload_some(score, some_file)
    ran = score("download", "--object-id", OBJECT_ID, "--output-dir", folder)
    assert (ran.code, folder in ran.sentence()) == (2, True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(score: Score, some_file: Path) -> None:
    upload_some(score, some_file)
    Path("out").mkdir(mode=0o500)
    ran = score(*DOWNLOAD)
    assert (ran.code, "permission denied" in ran.sentence()) == (2, True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(score: Score, some_file: Path) -> None:
    some_file.chmod(0)
    ran = score("upload", "--file", some_file, "--object-id", OBJECT_ID, "--md5", "0" * 32)
    assert (ran.code, "permission denied" in ran.sentence()) == (2, True)


ESCAPES = ["../../x", "/etc/cron.d/x", "..", ".", "..\\..\\x", "C:\\x", "a/../../b", "a//b", "a/", "\x1b[2Jx", "x\u202ey", "n" * 300, "C:x"]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_leave_the_folder_are_refused(score: Score, some_file: Path, tmp_path: Path, name: str) -> None:
    upload_some(score, some_file)
    before = {path for path in tmp_path.rglob("*") if "home" not in path.parts}
    ran = score("download", "--manifest", download_manifest(tmp_path / "m.tsv", download_row(OBJECT_ID, name)), "--output-dir", "out")
    assert ran.code == 2, ran.err
    ran.sentence()
    assert {path for path in tmp_path.rglob("*") if "home" not in path.parts} - before <= {tmp_path / "m.tsv"}


@pytest.mark.parametrize("name", ["..", "/etc", "../..", "."])
def test_analysis_that_leaves_the_folder_is_refused(score: Score, some_file: Path, name: str) -> None:
    upload_some(score, some_file)
    listed = download_manifest(Path("m.tsv"), download_row(OBJECT_ID, "x", analysis=name))
    ran = score("download", "--manifest", listed, "--output-dir", "out", "--output-layout", "bundle")
    assert ran.code == 2
    assert "column 2" in ran.sentence()
    assert names_here() == ["m.tsv"]


def test_symbolic_link_is_not_followed(score: Score, some_file: Path, tmp_path: Path) -> None:
    upload_some(score, some_file)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    Path("out").mkdir()
    Path("out/some.bin").symlink_to(victim)
    ran = score(*DOWNLOAD, "--force")
    assert (ran.code, "symbolic link" in ran.sentence()) == (2, True)
    assert victim.read_bytes() == b"precious"


def test_manifest_error_names_line_and_column(score: Score, some_file: Path) -> None:
    listed = manifest_of(Path("m.tsv"), [(object_id(1), some_file, md5_of(some_file)), (object_id(2), some_file, "nonsense")])
    ran = score("upload", "--manifest", listed)
    assert ran.code == 2
    assert "line 3, column 3" in ran.sentence()
    assert score("list").out == ""


def test_manifest_that_disagrees_with_the_object(score: Score, some_file: Path) -> None:
    upload_some(score, some_file)
    listed = download_manifest(Path("m.tsv"), download_row(OBJECT_ID, "x", size="1"))
    ran = score("download", "--manifest", listed, "--output-dir", "out")
    assert (ran.code, "where the manifest says 1" in ran.sentence()) == (1, True)
    assert names_here() == ["m.tsv"]
