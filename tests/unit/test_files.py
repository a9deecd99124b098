"""Names from elsewhere stay inside the folder; half-finished files are one process's, and only they become targets."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from score_core.errors import ChangedError, Conflict, LocalFileError, NoSpaceError
from score_core.model import ObjectSpec
from score_core.operations import DownloadItem, DownloadOptions, target_of
from score_core.transfer.files import (
    PartFile,
    SourceFile,
    check_space,
    explained,
    journal_path,
    part_path,
    put_aside,
    safe_folder,
    safe_target,
)

ID = "3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11"
IN_TMP = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
REFUSED = [
    *("../../x", "..", ".", "", " ", "\u3000", "/etc/cron.d/x", "/", "a/../../b", "a//b", "a/", "./a"),  # B01-B03, B05
    *("..\\..\\x", "C:\\x", "C:x", "\\\\host\\share"),  # B04
    *("a\0b", "a\nb", "a\rb", "a\x1b[31mb", "a\x7fb", "a\x85b"),  # B06
    *("x\u202efdp.bam", "a\u200bb", "a\u2066b", "\ufeffa", "a\u2028b", "a\u00adb"),  # B10
    *("a" * 256, "é" * 128, "\udc80.bam"),  # B08
]
LITERAL = ["-rf", "~root", "~", "CON", "aux.bam", "a.", "a ", "a b.bam", "$(x)", "*", "é.bam", "e\u0301.bam", "a" * 230]  # B07, B09, B15
HOSTILE = st.one_of(st.text(), st.text(alphabet="./\\ ~a:\0\n\u202e"), st.sampled_from(REFUSED + LITERAL))


@pytest.mark.parametrize("name", REFUSED)
def test_unsafe_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LocalFileError) as caught:
        safe_target(tmp_path, name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", LITERAL)
def test_odd_name_is_taken_literally(tmp_path: Path, name: str) -> None:
    target = safe_target(tmp_path, name)
    target.write_bytes(b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@IN_TMP
@given(HOSTILE)
@example("../x")
def test_any_name_stays_directly_inside_or_is_refused(tmp_path: Path, name: str) -> None:
    for place in (safe_target, safe_folder):
        try:
            target = place(tmp_path, name)
        except LocalFileError as error:
            assert str(error).isprintable()  # noqa: PT017  # either outcome is right
        else:
            assert Path(os.path.normpath(target)).parent == tmp_path
            assert os.path.normpath(target) == str(tmp_path / name)


@IN_TMP
@given(HOSTILE, HOSTILE)
@example("a.bam", "..")
@example("a.bam", "/tmp")
@example("a.bam", "../..")
def test_bundle_stays_inside_whatever_the_analysis(tmp_path: Path, name: str, analysis: str) -> None:
    folder = tmp_path / "out"
    item = DownloadItem(ID, file_name=name, analysis_id=analysis)
    try:
        target = target_of(item, ObjectSpec(ID, 0, ()), DownloadOptions(folder, layout="bundle"))
    except LocalFileError:
        return
    assert os.path.normpath(target).startswith(f"{folder}{os.sep}")
    assert os.path.realpath(target.parent).startswith(f"{os.path.realpath(tmp_path)}{os.sep}")


def test_every_side_file_of_the_longest_name_can_be_made(tmp_path: Path) -> None:
    target = safe_target(tmp_path, "a" * 230)
    journal_path(target).write_bytes(b"")
    assert put_aside(journal_path(target)) is not None


def test_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "x.bam").symlink_to("/etc/passwd")  # B11
    with pytest.raises(LocalFileError, match="symbolic link"):
        safe_target(tmp_path, "x.bam")


def test_link_as_analysis_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "EGA1").symlink_to("/tmp")
    with pytest.raises(LocalFileError, match="symbolic link"):
        safe_folder(tmp_path, "EGA1")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_special_target_is_refused(tmp_path: Path, make: object) -> None:
    make(tmp_path / "x")  # type: ignore[operator]
    with pytest.raises(LocalFileError, match="not a regular file"):
        safe_target(tmp_path, "x")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/etc/passwd")])
def test_special_part_file_is_refused(tmp_path: Path, make: object) -> None:
    make(tmp_path / "x.part")  # type: ignore[operator]
    with pytest.raises(LocalFileError):
        PartFile(tmp_path / "x")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_special_source_is_refused_at_once(tmp_path: Path, make: object) -> None:
    make(tmp_path / "x")  # type: ignore[operator]
    with pytest.raises(LocalFileError, match="name a file"):
        SourceFile(tmp_path / "x")


def test_part_file_is_one_processs_at_a_time(tmp_path: Path) -> None:
    first = PartFile(tmp_path / "x")
    with pytest.raises(Conflict, match="Another process"):
        PartFile(tmp_path / "x")
    first.close()
    PartFile(tmp_path / "x").close()


def test_part_file_closes_once(tmp_path: Path) -> None:
    file = PartFile(tmp_path / "x")
    file.close()
    other = os.open(tmp_path / "y", os.O_CREAT)  # gets the freed number
    file.close()
    os.close(other)


def test_published_file_replaces_the_old(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    file = PartFile(tmp_path / "x")
    file.write(b"new", 0)
    file.publish()
    file.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": b"new"}


def test_foreign_file_is_never_published(tmp_path: Path) -> None:
    """An object may be called `x.part`: the file of that name is not the one that we filled."""
    file = PartFile(tmp_path / "x")
    file.write(b"mine", 0)
    part_path(tmp_path / "x").unlink()
    part_path(tmp_path / "x").write_bytes(b"somebody else's")
    with pytest.raises(LocalFileError, match="replaced"):
        file.publish()
    file.close()
    assert not (tmp_path / "x").exists()


def test_umask_decides_the_mode(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        file = PartFile(tmp_path / "x")
        file.publish()
        file.close()
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o7777 == 0o640


def test_source_that_is_rewritten_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    times = path.stat()
    with SourceFile(path) as source:
        source.check_unchanged()
        path.write_bytes(b"new")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(ChangedError):
            source.check_unchanged()


@pytest.mark.parametrize("change", ["grown", "shrunk", "replaced", "removed"])
def test_changed_source_is_noticed(tmp_path: Path, change: str) -> None:
    path, other = tmp_path / "x", tmp_path / "y"
    path.write_bytes(b"1234")
    other.write_bytes(b"1234")
    acts = {
        "grown": lambda: path.write_bytes(b"12345"),
        "shrunk": lambda: os.truncate(path, 2),
        "replaced": lambda: other.replace(path),
        "removed": path.unlink,
    }
    with SourceFile(path) as source:
        acts[change]()
        with pytest.raises(ChangedError):
            source.check_unchanged()


def test_reading_past_a_shrunk_end_is_a_change(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"1234")
    with SourceFile(path) as source:
        os.truncate(path, 2)
        with pytest.raises(ChangedError, match="2 bytes short"):
            list(source.blocks(0, 4))


def test_missing_space_is_told_before_in_bytes(tmp_path: Path) -> None:
    with pytest.raises(NoSpaceError, match="1,152,921,504,606,846,976 bytes are missing"):
        check_space(tmp_path / "x", 1 << 60)


@pytest.mark.parametrize(
    ("number", "kind", "word"),
    [
        (errno.ENOSPC, NoSpaceError, "No space"),
        (errno.EDQUOT, NoSpaceError, "No space"),
        (errno.EIO, LocalFileError, "Input/output"),
        (errno.EROFS, LocalFileError, "read-only"),
        (errno.EACCES, LocalFileError, "permission"),
        (errno.EFBIG, LocalFileError, "of that size"),
        (errno.EXDEV, LocalFileError, "Cannot write"),
    ],
)
def test_disk_errors_become_one_sentence(tmp_path: Path, number: int, kind: type[LocalFileError], word: str) -> None:
    with pytest.raises(kind, match=word) as caught, explained("write", tmp_path / "x"):
        raise OSError(number, os.strerror(number))
    assert str(tmp_path / "x") in str(caught.value)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_blocks_are_the_bytes_asked_for(tmp_path: Path, offset: int, size: int, block: int) -> None:
    data = bytes(range(200))
    (tmp_path / "x").write_bytes(data)
    with SourceFile(tmp_path / "x") as source:
        got = b"".join(bytes(view) for view in source.blocks(offset, size, block_bytes=block))
    assert got == data[offset : offset + size]
