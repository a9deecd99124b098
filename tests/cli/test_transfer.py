"""upload, download, verify, url: what they do when all is well."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from score_core.settings import load
from tests.cli.conftest import OBJECT_ID, PART_BYTES, Score, manifest_of, md5_of, object_id, upload_some


def download_row(name: str, file_name: str = "", analysis: str = "", size: str = "", md5: str = "") -> str:
    return f"\t{analysis}\t{name}\t\t{file_name}\t{size}\t{md5}\t\t\t\t"


def download_manifest(path: Path, *rows: str) -> Path:
    header = "repo_code file_id object_id file_format file_name file_size md5_sum index_object_id donor_id project_id study"
    path.write_text("\n".join(["\t".join(header.split()), *rows]) + "\n")
    return path


def test_round_trip(score: Score, some_file: Path) -> None:
    upload_some(score, some_file)
    assert score("download", "--object-id", OBJECT_ID, "--output-dir", "out").code == 0
    assert Path("out/some.bin").read_bytes() == some_file.read_bytes()


def test_options_with_equals_sign(score: Score, some_file: Path) -> None:
    ran = score("upload", f"--file={some_file}", f"--object-id={OBJECT_ID}", f"--md5={md5_of(some_file).upper()}")
    assert ran.code == 0


def test_md5_can_be_computed(score: Score, some_file: Path) -> None:
    ran = score("upload", "--json", "--file", some_file, "--object-id", OBJECT_ID, "--md5", "compute")
    assert ran.document["files"][0]["md5"] == md5_of(some_file)


def test_several_object_ids_after_one_option(score: Score, some_file: Path) -> None:
    for number in (1, 2, 3):
        upload_some(score, some_file, object_id(number))
    ran = score(
        "download", "--object-id", object_id(1), f"{object_id(2)},{object_id(3)}", "--output-dir", "out", "--output-layout", "ID", "--json"
    )
    assert (ran.code, ran.document["totals"]["files"]) == (0, 3)
    assert {path.name for path in Path("out").iterdir()} == {object_id(1), object_id(2), object_id(3)}


def test_second_upload_moves_nothing(score: Score, some_file: Path) -> None:
    upload_some(score, some_file)
    ran = score("upload", "--json", "--file", some_file, "--object-id", OBJECT_ID, "--md5", md5_of(some_file))
    assert (ran.document["files"][0]["outcome"], ran.document["totals"]["bytes_moved"]) == ("already there", 0)


def test_download_into_bundle_layout(score: Score, some_file: Path) -> None:
    upload_some(score, some_file)
    listed = download_manifest(Path("m.tsv"), download_row(OBJECT_ID, "b.bam", "EGAZ1", str(some_file.stat().st_size), md5_of(some_file)))
    assert score("download", "--manifest", listed, "--output-dir", "out", "--output-layout", "bundle").code == 0
    assert Path("out/EGAZ1/b.bam").read_bytes() == some_file.read_bytes()


def test_download_of_a_range(score: Score, some_file: Path) -> None:
    upload_some(score, some_file)
    assert score("download", "--object-id", OBJECT_ID, "--output-dir", "out", "--offset", "10", "--length", "100000").code == 0
    assert Path("out/some.bin").read_bytes() == some_file.read_bytes()[10:100010]


@pytest.mark.parametrize("validate", ["auto", "parts", "whole", "both", "off", "true", "false", "TRUE"])
def test_every_validation_is_accepted(score: Score, some_file: Path, validate: str) -> None:
    upload_some(score, some_file)
    assert score("download", "--object-id", OBJECT_ID, "--output-dir", "out", "--validate", validate).code == 0


def test_verify_tells_good_from_bad(score: Score, some_file: Path, tmp_path: Path) -> None:
    upload_some(score, some_file)
    assert score("verify", some_file, "--object-id", OBJECT_ID).code == 0
    bad = tmp_path / "bad.bin"
    data = bytearray(some_file.read_bytes())
    data[PART_BYTES * 3] ^= 1
    bad.write_bytes(data)
    ran = score("verify", bad, "--object-id", OBJECT_ID)
    assert ran.code == 6
    assert "part 4" in ran.sentence()


def test_verify_by_manifests(score: Score, some_file: Path) -> None:
    upload_some(score, some_file)
    score("download", "--object-id", OBJECT_ID, "--output-dir", "out")
    assert score("verify", "--manifest", manifest_of(Path("up.tsv"), [(OBJECT_ID, some_file, md5_of(some_file))])).code == 0
    assert (
        score("verify", "--manifest", download_manifest(Path("d.tsv"), download_row(OBJECT_ID, "some.bin")), "--output-dir", "out").code
        == 0
    )


def test_url_with_a_running_server(
    score: Score, start: Callable[..., subprocess.Popen[str]], some_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_some(score, some_file)
    server = start("serve", "--port", "0", SCORE_SERVER_METADATA="none")
    assert server.stdout is not None
    monkeypatch.setenv("STORAGE_URL", server.stdout.readline().strip())
    monkeypatch.setenv("SCORE_TOKEN_FILE", str(load().data_dir / "token"))
    ran = score("url", "--object-id", OBJECT_ID)
    assert ran.code == 0
    import urllib.request

    with urllib.request.urlopen(ran.out.strip()) as answer:
        assert answer.read() == some_file.read_bytes()
    server.terminate()
    assert server.wait(5) == 0


def test_list_and_abort(score: Score, some_file: Path) -> None:
    from score_core.session import open_repository

    upload_some(score, some_file)
    repository = open_repository(load())
    repository.begin_upload(object_id(9), 100, md5="0" * 32)
    repository.close()
    assert score("list").out.split("\t")[:2] == [OBJECT_ID, str(some_file.stat().st_size)]
    assert [row["object_id"] for row in score("list", "--uploads", "--json").document["uploads"]] == [object_id(9)]
    assert score("abort", "--object-id", object_id(9)).code == 0
    assert score("abort", "--object-id", object_id(9)).code == 5


def test_file_store_by_option_before_and_after(score: Score, some_file: Path, tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store%20two"
    ran = score("--store", store, "upload", "--file", some_file, "--object-id", OBJECT_ID, "--md5", md5_of(some_file))
    assert ran.code == 0
    assert OBJECT_ID in score("list", "--store", store).out
    assert (tmp_path / "store two").is_dir()


def test_a_real_process_prints_one_document(start: Callable[..., subprocess.Popen[str]], some_file: Path) -> None:
    process = start("upload", "--json", "--file", some_file, "--object-id", OBJECT_ID, "--md5", md5_of(some_file))
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, json.loads(out)["exit_code"]) == (0, 0)
