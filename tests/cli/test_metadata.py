"""register, publish, manifest, and what registered metadata change for upload and download; in the embedded registry."""

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.conftest import Ran, Score, manifest_of, md5_of, object_id
from tests.cli.test_transfer import download_manifest, download_row

STUDY = "TEST-CA"
NAMES = ("a.bam", "a.bam.bai", "b.cram")


@dataclass
class Registered:
    """Three files, one of them an index, registered and uploaded."""

    folder: Path
    analysis_id: str
    ids: dict[str, str]

    def path(self, name: str) -> Path:
        return self.folder / name


def register(score: Score, folder: Path, *names: str) -> Ran:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(os.urandom(70_000))
    return score("register", *(folder / name for name in names), "--study", STUDY, "--json", "--output", folder / "m.txt")


@pytest.fixture
def registered(score: Score, tmp_path: Path) -> Registered:
    ran = register(score, tmp_path / "data", *NAMES)
    assert ran.code == 0, ran.err
    assert score("upload", "--manifest", tmp_path / "data" / "m.txt").code == 0
    return Registered(
        tmp_path / "data", ran.document["analysis_id"], {file["file_name"]: file["object_id"] for file in ran.document["files"]}
    )


def downloaded() -> list[str]:
    return sorted(str(path.relative_to("out")) for path in Path("out").rglob("*") if path.is_file())


# register


def test_manifest_is_printed_for_upload_to_read(score: Score, some_file: Path) -> None:
    words = [sys.executable, "-m", "score_core.cli"]
    made = subprocess.run([*words, "register", str(some_file), "--study", STUDY], capture_output=True, check=True)
    assert b"Registered 1 files as analysis" in made.stderr
    subprocess.run([*words, "upload", "--manifest", "-"], input=made.stdout, capture_output=True, check=True)
    name, path, md5 = made.stdout.decode().splitlines()[1].split("\t")
    assert (path, md5) == (str(some_file), md5_of(some_file))
    assert score("verify", some_file, "--object-id", name).code == 0


def test_manifest_in_a_file_leaves_ids_on_stdout(score: Score, some_file: Path) -> None:
    ran = score("register", some_file, "--study-id", STUDY, "--output", "m.txt")
    name, _, _ = Path("m.txt").read_text().splitlines()[1].split("\t")
    assert ran.out == f"{name}\tsome.bin\n"
    assert "score publish --study TEST-CA --analysis-id" in ran.err


def test_registering_again_gives_the_same_ids(score: Score, some_file: Path) -> None:
    first, second = (score("register", some_file, "--program-id", STUDY, "--output", "m.txt") for _ in range(2))
    assert (first.out, second.code) == (second.out, 0)


def test_given_analysis_id_and_access_are_kept(score: Score, some_file: Path) -> None:
    argv = ("register", some_file, "--study", STUDY, "--analysis-id", object_id(3), "--access", "OPEN", "--type", "reads", "--json")
    assert score(*argv).document["analysis_id"] == object_id(3)
    other = some_file.with_name("other")
    other.write_bytes(b"other")
    assert score("register", other, *argv[2:]).code == 1


def test_one_unreadable_file_registers_nothing(score: Score, some_file: Path, tmp_path: Path) -> None:
    ran = score("register", some_file, tmp_path, "--study", STUDY)
    assert (ran.code, "nothing is registered" in ran.sentence()) == (2, True)
    assert score("manifest", "--analysis-id", object_id(1), "--study-id", STUDY).code == 5


# publish


def test_publish_and_take_back(score: Score, registered: Registered) -> None:
    argv = ("--study", STUDY, "--analysis-id", registered.analysis_id)
    assert score("publish", *argv).code == 0
    assert score("publish", *argv, "--json").document["state"] == "PUBLISHED"
    assert score("unpublish", *argv, "--json").document["state"] == "UNPUBLISHED"


def test_what_is_not_stored_is_not_published(score: Score, tmp_path: Path) -> None:
    analysis_id = register(score, tmp_path / "data", "a.bam").document["analysis_id"]
    ran = score("publish", "--study", STUDY, "--analysis-id", analysis_id, "--ignore-undefined-md5")
    assert (ran.code, "a.bam" in ran.sentence()) == (1, True)
    assert score("publish", "--study", STUDY, "--analysis-id", object_id(1)).code == 5


# download


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ((), ["a.bam", "a.bam.bai"]),
        (("--index", "false"), ["a.bam"]),
        (("--index=TRUE", "--output-layout", "bundle"), ["ANALYSIS/a.bam", "ANALYSIS/a.bam.bai"]),
        (("--index", "no", "--output-layout", "bundle"), ["ANALYSIS/a.bam"]),
        (("--output-layout", "id"), ["BAI", "BAM"]),
        (("--output-layout", "id", "--index", "off"), ["BAM"]),
        (("--offset", "100", "--length", "50"), ["a.bam"]),
    ],
)
def test_index_file_comes_along(score: Score, registered: Registered, options: tuple[str, ...], names: list[str]) -> None:
    ran = score("download", "--object-id", registered.ids["a.bam"], "--output-dir", "out", *options)
    assert ran.code == 0, ran.err
    stands_for = {"BAM": registered.ids["a.bam"], "BAI": registered.ids["a.bam.bai"]}
    wanted = [stands_for.get(name, name).replace("ANALYSIS", registered.analysis_id) for name in names]
    assert downloaded() == sorted(wanted)


def test_file_without_an_index_comes_alone(score: Score, registered: Registered) -> None:
    assert score("download", "--object-id", registered.ids["b.cram"], "--output-dir", "out").code == 0
    assert downloaded() == ["b.cram"]


def test_listed_index_is_downloaded_once(score: Score, registered: Registered) -> None:
    ids = [registered.ids[name] for name in ("a.bam.bai", "a.bam")]
    assert score("download", "--object-id", *ids, "--output-dir", "out", "--json").document["totals"]["files"] == 2


def test_manifest_names_win_over_metadata(score: Score, registered: Registered) -> None:
    listed = download_manifest(
        Path("m.tsv"), download_row(registered.ids["a.bam"], "mine.bam", "EGAZ1"), download_row(registered.ids["b.cram"])
    )
    assert score("download", "--manifest", listed, "--output-dir", "out", "--output-layout", "bundle").code == 0
    assert downloaded() == sorted(["EGAZ1/mine.bam.bai", "EGAZ1/mine.bam", f"{registered.analysis_id}/b.cram"])


def test_missing_index_file_is_an_error(score: Score, tmp_path: Path) -> None:
    ids = {file["file_name"]: file["object_id"] for file in register(score, tmp_path / "data", "a.bam", "a.bam.bai").document["files"]}
    path = tmp_path / "data" / "a.bam"
    score("upload", "--file", path, "--object-id", ids["a.bam"], "--md5", md5_of(path))
    ran = score("download", "--object-id", ids["a.bam"], "--output-dir", "out")
    assert (ran.code, ids["a.bam.bai"] in ran.err) == (9, True)
    assert downloaded() == ["a.bam"]


@pytest.mark.parametrize("study", ["--study-id", "--program-id", "--study"])
def test_whole_analysis(score: Score, registered: Registered, study: str) -> None:
    assert score("download", "--analysis-id", registered.analysis_id, study, STUDY, "--output-dir", "out").code == 0
    assert downloaded() == sorted(NAMES)


@pytest.mark.parametrize(("analysis_id", "study_id"), [("OURS", "OTHER-CA"), (object_id(1), STUDY)])
def test_unknown_analysis(score: Score, registered: Registered, analysis_id: str, study_id: str) -> None:
    analysis_id = registered.analysis_id if analysis_id == "OURS" else analysis_id
    ran = score("download", "--analysis-id", analysis_id, "--study-id", study_id, "--output-dir", "out")
    assert (ran.code, "is not registered" in ran.sentence()) == (5, True)


def test_manifest_of_an_analysis_is_one_to_download_by(score: Score, registered: Registered) -> None:
    ran = score("manifest", "--analysis-id", registered.analysis_id, "--study-id", STUDY)
    assert ran.code == 0
    Path("m.tsv").write_text(ran.out)
    assert score("download", "--manifest", "m.tsv", "--output-dir", "out").code == 0
    assert downloaded() == sorted(NAMES)


def test_metadata_that_fail_are_no_empty_metadata(score: Score, registered: Registered, tmp_path: Path) -> None:
    (tmp_path / "home" / "registry.sqlite3").write_bytes(b"rubbish" * 1000)
    for suffix in ("-wal", "-shm"):
        (tmp_path / "home" / f"registry.sqlite3{suffix}").unlink(missing_ok=True)
    ran = score("download", "--object-id", registered.ids["a.bam"], "--output-dir", "out")
    assert (ran.code, "registry" in ran.sentence()) == (2, True)
    assert not Path("out").exists()


def test_nothing_registered_makes_no_registry(score: Score, some_file: Path, tmp_path: Path) -> None:
    name = object_id(1)
    assert score("upload", "--file", some_file, "--object-id", name, "--md5", "compute").code == 0
    assert score("download", "--object-id", name, "--output-dir", "out").code == 0
    assert not (tmp_path / "home" / "registry.sqlite3").exists()


# upload


def test_registered_md5_need_not_be_given(score: Score, tmp_path: Path) -> None:
    (file,) = register(score, tmp_path / "data", "a.bam").document["files"]
    path = tmp_path / "data" / "a.bam"
    ran = score("upload", "--file", path, "--object-id", file["object_id"], "--json")
    assert (ran.code, ran.document["files"][0]["md5"]) == (0, file["md5"])


def test_md5_that_nobody_knows_must_be_given(score: Score, registered: Registered, some_file: Path) -> None:
    ran = score("upload", "--file", some_file, "--object-id", object_id(1))
    assert (ran.code, "Give --md5, for none is registered" in ran.sentence()) == (2, True)


@pytest.mark.parametrize(
    ("data", "md5", "says"),
    [(b"short", "OWN", "is registered with"), (None, "0" * 32, "registered with: expected MD5"), (None, "compute", "expected MD5")],
)
def test_other_bytes_than_registered_are_refused(score: Score, tmp_path: Path, data: bytes | None, md5: str, says: str) -> None:
    (file,) = register(score, tmp_path / "data", "a.bam").document["files"]
    path = tmp_path / "data" / "a.bam"
    path.write_bytes(os.urandom(70_000) if data is None else data)
    ran = score("upload", "--file", path, "--object-id", file["object_id"], "--md5", md5_of(path) if md5 == "OWN" else md5)
    assert (ran.code, says in ran.sentence()) == (6, True)
    assert score("list").out == ""
    if md5 != "compute":  # found out before anything was begun
        assert score("list", "--uploads").out == ""


def test_one_wrong_file_of_a_manifest_stops_no_other(score: Score, tmp_path: Path) -> None:
    ran = register(score, tmp_path / "data", *NAMES)
    (tmp_path / "data" / "a.bam").write_bytes(b"another")
    ran = score("upload", "--manifest", tmp_path / "data" / "m.txt", "--json")
    assert ran.code == 9
    assert [file["exit_code"] for file in ran.document["files"]] == [6, 0, 0]


def test_manifest_of_unregistered_files_works_as_before(score: Score, registered: Registered, some_file: Path) -> None:
    listed = manifest_of(Path("m.txt"), [(object_id(1), some_file, md5_of(some_file))])
    assert score("upload", "--manifest", listed).code == 0


def test_stdin_manifest_is_verbatim(score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"x\ty\n")))
    assert score("manifest", "--manifest", "-").out == "x\ty\n"


# submit and analysis


def payload_of(registered: Registered, **fields: object) -> dict[str, object]:
    files = [
        {"fileName": name, "fileSize": 70_000, "fileMd5sum": md5_of(registered.path(name)), "fileType": "BAM", "fileAccess": "open"}
        for name in NAMES
    ]
    return {"studyId": STUDY, "analysisType": {"name": "variants"}, "files": files, **fields}


def test_payload_is_registered_uploaded_and_shown(score: Score, registered: Registered) -> None:
    Path("payload.json").write_text(json.dumps(payload_of(registered, studyId="OTHER", workflow="align")))
    ran = score("submit", "payload.json", "--input-dir", registered.folder, "--output", "m.txt")
    analysis_id = ran.out.strip()
    assert ran.code == 0, ran.err
    assert f"Registered 3 files as analysis {analysis_id} of study OTHER" in ran.err
    assert score("submit", "payload.json").out == ran.out  # the embedded registry gives the same ids
    assert score("upload", "--manifest", "m.txt").code == 0
    assert score("publish", "--study", "OTHER", "--analysis-id", analysis_id).code == 0
    shown = json.loads(score("analysis", "--study-id", "OTHER", "--analysis-id", analysis_id).out)
    assert (shown["analysisState"], shown["workflow"], shown["analysisType"]["name"]) == ("PUBLISHED", "align", "variants")
    assert {(file["fileName"], file["fileMd5sum"]) for file in shown["files"]} == {(name, md5_of(registered.path(name))) for name in NAMES}
    assert score("analysis", "--study-id", "OTHER", "--analysis-id", analysis_id, "--output", "a.json").out == ""
    assert json.loads(Path("a.json").read_text()) == shown


@pytest.mark.parametrize(
    ("words", "text", "said"),
    [
        (["payload.json"], "{", "payload.json is not JSON"),
        (["payload.json"], "[" * 100_000, "payload.json is not JSON"),
        (["payload.json"], "[]", "is not a JSON object"),
        (["payload.json"], "{}", "Give --study-id"),
        (["payload.json", "--study", STUDY], "{}", "files"),
        (["missing.json"], "{}", "does not exist"),
        (["payload.json", "--output", "m.txt"], "{}", "--input-dir and --output go together"),
    ],
)
def test_payload_that_is_none_is_a_sentence(score: Score, words: list[str], text: str, said: str) -> None:
    Path("payload.json").write_text(text)
    ran = score("submit", *words)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


def test_analysis_that_is_not_registered_is_not_found(score: Score, registered: Registered) -> None:
    ran = score("analysis", "--study-id", STUDY, "--analysis-id", object_id(99))
    assert (ran.code, ran.out) == (5, "")
    assert registered.analysis_id not in ran.err


def test_half_a_download_continues_from_the_state_folder(score: Score, registered: Registered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORE_STATE_DIR", "state")
    assert score("download", "--object-id", registered.ids["a.bam"], "--output-dir", "out").code == 0
    assert Path("state").is_dir()
    assert downloaded() == ["a.bam", "a.bam.bai"]


def test_other_bytes_of_the_same_size_are_not_already_there(score: Score, registered: Registered) -> None:
    Path("other.bam").write_bytes(os.urandom(70_000))
    ran = score("upload", "--file", "other.bam", "--object-id", registered.ids["a.bam"])
    assert ran.code == 6, ran.err
    assert "other.bam is not" in ran.err
    ran = score("upload", "--file", registered.path("a.bam"), "--object-id", registered.ids["a.bam"])
    assert ran.code == 0
    assert "already there" in ran.err
