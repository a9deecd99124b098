"""Many files: one bad file never stops the rest, and the next run does only what is missing."""

from pathlib import Path

from tests.cli.conftest import Score, manifest_of, md5_of, object_id

COUNT = 40
BAD = (7, 23)


def rows(folder: Path) -> list[tuple[str, Path | str, str]]:
    folder.mkdir(exist_ok=True)
    found: list[tuple[str, Path | str, str]] = []
    for number in range(COUNT):
        path = folder / f"file-{number}"
        path.write_bytes(f"content of {number}".encode() * 100)
        found.append((object_id(number), path, md5_of(path)))
    return found


def test_two_bad_files_of_forty(score: Score, tmp_path: Path) -> None:
    good = rows(tmp_path / "files")
    bad = [(name, path, "0" * 32 if number in BAD else md5) for number, (name, path, md5) in enumerate(good)]
    ran = score("upload", "--manifest", manifest_of(tmp_path / "bad.tsv", bad), "--json")
    assert (ran.code, ran.document["totals"]["failed"]) == (9, 2)
    assert [place for place, row in enumerate(ran.document["files"]) if row["outcome"] == "failed"] == list(BAD)
    assert all(object_id(number) in ran.err for number in BAD)

    again = score("upload", "--manifest", manifest_of(tmp_path / "good.tsv", good), "--json")
    assert again.code == 0
    assert [place for place, row in enumerate(again.document["files"]) if row["bytes_moved"]] == list(BAD)


def test_failed_files_are_named_with_their_reasons(score: Score, tmp_path: Path) -> None:
    bad = [*rows(tmp_path / "files")[:2], (object_id(99), tmp_path / "missing", "0" * 32)]
    ran = score("upload", "--manifest", manifest_of(tmp_path / "m.tsv", bad))
    assert ran.code == 9
    assert ran.err.splitlines()[-1] == "error: 1 of 3 files failed; the others are done"
    assert f"failed: object {object_id(99)}, {tmp_path}/missing (code 2): Cannot read {tmp_path}/missing: it does not exist" in ran.err


def test_all_failed_for_one_reason_gives_its_code(score: Score) -> None:
    ran = score("download", "--object-id", object_id(1), object_id(2), "--output-dir", "out")
    assert ran.code == 5


def test_batch_of_one_gives_its_own_code(score: Score, tmp_path: Path) -> None:
    ran = score("upload", "--manifest", manifest_of(tmp_path / "m.tsv", [(object_id(1), tmp_path / "missing", "0" * 32)]))
    assert ran.code == 2
    assert "does not exist" in ran.sentence()


def test_manifest_from_standard_input(start, tmp_path: Path) -> None:
    import subprocess
    import sys

    listed = manifest_of(tmp_path / "m.tsv", rows(tmp_path / "files")[:2])
    words = [sys.executable, "-m", "score_core.cli", "upload", "--manifest", "-"]
    done = subprocess.run(words, input=listed.read_bytes(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
