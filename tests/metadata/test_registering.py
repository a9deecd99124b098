"""Local files become an analysis with stable ids, and manifests that read back as what they list."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_core.checksum import md5_hex
from score_core.errors import ChangedError, ConfigurationError, Conflict, LocalFileError, ServiceError
from score_core.ids import object_id_of
from score_core.manifest import read_downloads, read_uploads
from score_core.metadata.base import Analysis, FileRecord
from score_core.metadata.payload import name_problem
from score_core.metadata.registering import (
    NewFile,
    download_manifest_text,
    file_type_of,
    new_file,
    register,
    upload_manifest_text,
)
from score_core.metadata.registry import Registry
from score_core.operations import DownloadItem, UploadItem
from tests.metadata.test_song import ANALYSIS, ANALYSIS_BODY, song_with, stage  # noqa: F401  # fixtures

NAMES = st.lists(st.text(min_size=1, max_size=20).filter(lambda name: name_problem(name) is None), min_size=1, max_size=8, unique=True)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with closing(Registry(tmp_path / "registry.sqlite")) as registry:
        yield registry


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("a.bam", "a.bam.bai", "b.vcf.gz")]
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


def analysis_of(names: list[str]) -> Analysis:
    records = [FileRecord(object_id_of(ANALYSIS, name), "S", ANALYSIS, name, len(name), md5_hex(name.encode()), "BAM") for name in names]
    return Analysis(ANALYSIS, "S", "UNPUBLISHED", tuple(records))


# Files


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.bam", "BAM"),
        ("a.BAM.bai", "BAI"),
        ("a.cram", "CRAM"),
        ("a.cram.crai", "CRAI"),
        ("a.vcf", "VCF"),
        ("a.vcf.gz", "VCF"),
        ("a.vcf.gz.tbi", "TBI"),
        ("a.bcf", "BCF"),
        ("a.bcf.csi", "CSI"),
        ("a_R1.fastq.gz", "FASTQ"),
        ("a_R1.fq", "FASTQ"),
        ("a.tsv", "TSV"),
        ("a.gz", "GZ"),
        ("README", "OTHER"),
        ("a.", "OTHER"),
        ("a.b b", "OTHER"),
    ],
)
def test_file_type_is_the_suffix(name: str, kind: str) -> None:
    assert file_type_of(name) == kind


def test_md5_is_computed_while_somebody_watches(tmp_path: Path) -> None:
    path = tmp_path / "a.bam"
    path.write_bytes(b"x" * 1_300_000)
    seen: list[int] = []
    assert new_file(path, on_bytes=seen.append) == NewFile(path, 1_300_000, md5_hex(b"x" * 1_300_000))
    assert len(seen) == 3
    assert sum(seen) == 1_300_000


def test_known_md5_is_not_computed_again(files: list[Path]) -> None:
    assert new_file(files[0], md5="b" * 32, on_bytes=lambda count: pytest.fail("read")).md5 == "b" * 32


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing"):
        with pytest.raises(LocalFileError, match=str(path)):
            new_file(path)


def test_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bam"
    path.write_bytes(b"x" * 10)

    def overwrite(count: int) -> None:
        path.write_bytes(b"other bytes")

    with pytest.raises(ChangedError, match="written to"):
        new_file(path, on_bytes=overwrite)


# Registering


def test_same_command_twice_gives_the_same_ids(registry: Registry, files: list[Path]) -> None:
    first = register(registry, "S", [new_file(path) for path in files])
    again = register(registry, "S", [new_file(path) for path in reversed(files)])
    assert first == again
    assert [(file.file_name, file.file_type, file.size) for file in first.files] == [
        ("a.bam", "BAM", 5),
        ("a.bam.bai", "BAI", 9),
        ("b.vcf.gz", "VCF", 8),
    ]


def test_changed_file_gives_other_ids(registry: Registry, files: list[Path]) -> None:
    first = register(registry, "S", [new_file(files[0])])
    files[0].write_bytes(b"other")
    assert register(registry, "S", [new_file(files[0])]).analysis_id != first.analysis_id
    with pytest.raises(Conflict):
        register(registry, "S", [new_file(files[0])], analysis_id=first.analysis_id)


def test_given_analysis_id_is_used(registry: Registry, files: list[Path]) -> None:
    found = register(registry, "S", [new_file(files[0], access="open")], analysis_id=ANALYSIS, type_name="reads")
    assert (found.analysis_id, found.type_name, found.files[0].access) == (ANALYSIS, "reads", "open")


def test_two_files_of_one_name_are_refused(registry: Registry, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    twin = tmp_path / "sub" / "a.bam"
    twin.write_bytes(b"x")
    with pytest.raises(ConfigurationError, match=str(twin)):
        register(registry, "S", [new_file(files[0]), new_file(twin)])


@pytest.mark.parametrize("name", ["a\tb.bam", "a\nb.bam", " a.bam", "a\x1b[31m.bam"])
def test_name_that_no_manifest_holds_is_refused(registry: Registry, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="name"):
        register(registry, "S", [NewFile(tmp_path / name, 1, "a" * 32)])
    assert registry.studies() == []


def test_nothing_is_not_registered(registry: Registry) -> None:
    with pytest.raises(ConfigurationError, match="files"):
        register(registry, "S", [])


def test_song_that_registers_something_else_is_noticed(song_with, files: list[Path]) -> None:  # noqa: F811  # the fixture
    answers = {"/submit/TEST-CA": {"analysisId": ANALYSIS}, f"/studies/TEST-CA/analysis/{ANALYSIS}": ANALYSIS_BODY}
    song, _ = song_with(answers)
    with pytest.raises(ServiceError, match="other files"):
        register(song, "TEST-CA", [new_file(files[0])])
    found = register(song, "TEST-CA", [NewFile(Path("x.bam"), 14, "AC5D500EC64FA7DC287050C553B83F3A")])
    assert found.analysis_id == ANALYSIS


# Manifests


def test_upload_manifest_is_songs(tmp_path: Path) -> None:
    text = upload_manifest_text(analysis_of(["a.bam"]), Path("/data"))
    assert text == f"{ANALYSIS}\t\t\n{object_id_of(ANALYSIS, 'a.bam')}\t/data/a.bam\t{md5_hex(b'a.bam')}\n"


def test_download_manifest_has_eleven_columns() -> None:
    bam, bai = object_id_of(ANALYSIS, "a.bam"), object_id_of(ANALYSIS, "a.bam.bai")
    lines = download_manifest_text(analysis_of(["a.bam", "a.bam.bai"])).splitlines()
    header = (
        "repo_code file_id object_id file_format file_name file_size md5_sum index_object_id donor_id/donor_count project_id/project_count"
    )
    assert lines[0].split("\t") == [*header.split(), "study"]
    assert lines[1].split("\t") == ["", ANALYSIS, bam, "BAM", "a.bam", "5", md5_hex(b"a.bam"), bai, "", "", "S"]
    assert lines[2].split("\t")[7] == ""


@given(NAMES)
def test_upload_manifests_read_back(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    analysis, manifest = analysis_of(names), tmp_path_factory.mktemp("m") / "manifest.tsv"
    manifest.write_text(upload_manifest_text(analysis, Path("/data")), encoding="utf-8", newline="")
    assert read_uploads(str(manifest)) == [UploadItem(file.object_id, Path("/data") / file.file_name, file.md5) for file in analysis.files]


@given(NAMES)
def test_download_manifests_read_back(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    analysis, manifest = analysis_of(names), tmp_path_factory.mktemp("m") / "manifest.tsv"
    manifest.write_text(download_manifest_text(analysis), encoding="utf-8", newline="")
    assert read_downloads(str(manifest)) == [
        DownloadItem(object_id=file.object_id, file_name=file.file_name, analysis_id=ANALYSIS, size=file.size, md5=file.md5)
        for file in analysis.files
    ]


def test_files_may_lie_in_several_folders(files: list[Path], registry: Registry) -> None:
    analysis = register(registry, "S", [new_file(path) for path in files])
    text = upload_manifest_text(analysis, {path.name: path for path in files})
    assert [line.split("\t")[1] for line in text.splitlines()[1:]] == [str(path) for path in files]
    with pytest.raises(ConfigurationError, match=r"a\.bam"):
        upload_manifest_text(analysis, {})


@pytest.mark.parametrize("folder", ["/data\t", "/da\nta", "/data\udcff"])
def test_folder_that_breaks_a_manifest_is_refused(folder: str) -> None:
    with pytest.raises(ConfigurationError, match="manifest"):
        upload_manifest_text(analysis_of(["a.bam"]), Path(folder))
