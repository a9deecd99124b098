"""Whatever a user gives `score view` wrongly: the documented exit code, one sentence, nothing on standard output, nothing left behind."""

from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pysam
import pysam.samtools
import pytest

from score_core.cli.app import main
from score_core.errors import LocalFileError
from score_core.repository.layout import Keys
from score_core.slicing.objects import ViewItem, view_object
from score_core.slicing.view import Form, Wanted
from score_core.stores.local import LocalStore
from tests.cli.conftest import Ran
from tests.slicing.made import CONTIGS, Files, make_reference
from tests.slicing.rig import DATA_ID, INDEX_ID, SliceRig

Score = Callable[..., Ran]


@pytest.fixture
def score(tmp_path: Path, nowhere_else: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Score:
    for name in [name for name in os.environ if name.startswith(("SCORE_", "AWS_", "REF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SCORE_CONFIG", os.devnull)
    monkeypatch.setenv("SCORE_DATA_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def run(*argv: str | Path) -> Ran:
        capsys.readouterr()
        code = main(["view", *map(str, argv)])
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def given(paths: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Files to be named in capital letters, and an empty folder."""
    folder = tmp_path / "folder"
    folder.mkdir()
    return {**paths, "FOLDER": str(folder)}


@pytest.fixture(scope="module")
def paths(files: Files, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("given")
    bam = files["a.bam"]
    made = {
        "TEXT": b"This is no BAM file.\n" * 10,
        "EMPTY": b"",
        "SAM": b"@HD\tVN:1.6\n@SQ\tSN:c1\tLN:100\n",
        "GZIP": gzip.compress(b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"),
        "PLAINVCF": b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n",
        "ZIP": b"PK\3\4" + bytes(100),
        "BGZIPPED": gzip.compress(b""),
        "ALONE": bam.path.read_bytes(),
        "BACKWARDS": b"c1\t200\t100\n",
        "SHORTBED": b"c1\t100\n",
        "BINARYBED": bytes(range(256)) * 4,
        "OTHERBED": b"chrZZ\t1\t2\n",
        "PASTBED": b"c1\t999999999\t1999999999\n",
    }
    paths = {}
    for name, data in made.items():
        path = folder / f"{name.lower()}.{'bed' if name.endswith('BED') or name == 'BACKWARDS' else 'bam'}"
        path.write_bytes(data)
        paths[name] = str(path)
    no_fai = folder / "no_fai.fa"
    no_fai.write_text(files.fasta.read_text())
    shorter = make_reference(folder, "shorter.fa", lengths={name: length - 10 for name, length in CONTIGS.items()})
    differs = make_reference(folder, "differs.fa", seed=2)
    few = make_reference(folder, "few.fa", lengths={"other": 1000})
    paths |= {"NOFAI": str(no_fai), "SHORTER": str(shorter), "DIFFERS": str(differs), "FEW": str(few), "REF": str(files.fasta)}
    (folder / "file").write_text("")
    paths |= {"FILE": str(folder / "file"), "NOTHING": str(folder / "nothing")}
    paths |= {"BAM": str(bam.path), "CRAM": str(files["a.cram"].path), "VCF": str(files["v.vcf.gz"].path), "BAI": str(bam.index)}
    return paths


BAM = ("--input-file", "BAM")
CRAM = ("--input-file", "CRAM")
VCF = ("--input-file", "VCF")

CASES = [
    # Regions
    ((*BAM, "--query", "chrZZ:1-2"), 2, "chrZZ"),
    ((*BAM, "--query", "c1:20-10"), 2, "ends before it begins"),
    ((*BAM, "--query", "c1:0-10"), 2, "positions count from 1"),
    ((*BAM, "--query", "c1:99999999-999999999"), 2, "begins past the end"),
    ((*BAM, "--query", "c1:1\u2212100"), 2, "plain hyphen"),
    ((*BAM, "--query", "c1:"), 2, "no position after the colon"),
    ((*BAM, "--query", ""), 2, "empty"),
    ((*BAM, "--query", "{c1"), 2, "no closing brace"),
    ((*BAM, "--query", "c1:1-x"), 2, "c1"),
    ((*BAM, "--query", "c1\x1b[2J"), 2, "no contig"),
    ((*BAM, "--query", "c" * 10_000), 2, "no contig"),
    ((*BAM,), 2, "--query"),
    ((*BAM, "--query"), 2, "--query"),
    ((*VCF, "--query", "*"), 2, "unplaced"),
    ((*BAM, "--query", ".", "--contained"), 2, "--contained"),
    # BED
    ((*BAM, "--bed-query", "NOTHING"), 2, "No such file"),
    ((*BAM, "--bed-query", "FOLDER"), 2, "directory"),
    ((*BAM, "--bed-query", "BACKWARDS"), 2, "before it begins"),
    ((*BAM, "--bed-query", "SHORTBED"), 2, "needs three"),
    ((*BAM, "--bed-query", "BINARYBED"), 2, "no BED file"),
    ((*BAM, "--bed-query", "OTHERBED"), 2, "chrZZ"),
    ((*BAM, "--bed-query", "PASTBED"), 2, "past the contig's end"),
    # References
    ((*CRAM, "--query", "c1:1-5000"), 2, "--reference-file"),
    ((*CRAM, "--query", "."), 2, "--reference-file"),
    ((*CRAM, "--query", "c1:1-5000", "--reference-file", "NOTHING"), 2, "does not exist"),
    ((*CRAM, "--query", "c1:1-5000", "--reference-file", "NOFAI"), 2, "samtools faidx"),
    ((*CRAM, "--query", "c1:1-5000", "--reference-file", "SHORTER"), 6, "not the reference genome"),
    ((*CRAM, "--query", "c1:1-5000", "--reference-file", "DIFFERS"), 6, "not the reference genome"),
    ((*CRAM, "--query", ".", "--reference-file", "DIFFERS"), 6, "not the reference genome"),
    ((*CRAM, "--query", "c1:1-5000", "--reference-file", "FEW"), 2, "no contig c1"),
    # Formats and options
    ((*BAM, "--query", "c1", "--output-format", "vcf"), 2, "not as 'vcf'"),
    ((*VCF, "--query", "c1", "--output-format", "bam"), 2, "not as 'bam'"),
    ((*BAM, "--query", "c1", "--output-format", "nonsense"), 2, "nonsense"),
    ((*BAM, "--query", "c1", "--output-type", "merged"), 2, "merged"),
    ((*BAM, "--query", "c1", "--max-bytes", "1K"), 2, "--max-bytes allows 1,024"),
    ((*BAM, "--query", ".", "--max-bytes", "1K"), 2, "--max-bytes allows 1,024"),
    ((*BAM, "--query", "c1", "--max-bytes", "lots"), 2, "--max-bytes must be"),
    ((*BAM, "--query", "c1", "--max-bytes", "-1"), 2, "--max-bytes"),
    ((*BAM, "--query", "c1", "--stdout", "--output-dir", "out"), 2, "not both"),
    ((*BAM, "--query", "c1", "--skip-unknown"), 2, "--bed-query"),
    ((*BAM, "--object-id", DATA_ID, "--query", "c1"), 2, "exactly one of"),
    (("--query", "c1"), 2, "exactly one of"),
    ((*BAM, "--index-object-id", INDEX_ID, "--query", "c1"), 2, "--index-object-id"),
    (("--object-id", "../x", "--query", "c1"), 2, "is not an object id"),
    (("--object-id", DATA_ID, "--index-object-id", "x", "--query", "c1"), 2, "is not an object id"),
    (("--object-id", DATA_ID, "--query", "c1"), 5, "is not in"),
    (("--manifest", "NOTHING", "--query", "c1"), 2, "--output-dir"),
    # Files
    (("--input-file", "NOTHING", "--query", "c1"), 2, "does not exist"),
    (("--input-file", "FOLDER", "--query", "c1"), 2, "directory"),
    (("--input-file", "/dev/null", "--query", "c1"), 2, "not a regular file"),
    (("--input-file", "TEXT", "--query", "c1"), 6, "not a BAM, CRAM, VCF or BCF file"),
    (("--input-file", "ZIP", "--query", "c1"), 6, "not a BAM, CRAM, VCF or BCF file"),
    (("--input-file", "EMPTY", "--query", "c1"), 6, "empty"),
    (("--input-file", "SAM", "--query", "c1"), 6, "not compressed"),
    (("--input-file", "PLAINVCF", "--query", "c1"), 6, "not compressed"),
    (("--input-file", "GZIP", "--query", "c1"), 6, "compress it with bgzip"),
    (("--input-file", "ALONE", "--query", "c1"), 5, "has no index"),
    ((*BAM, "--input-file-index", "NOTHING", "--query", "c1"), 2, "does not exist"),
    ((*BAM, "--input-file-index", "FOLDER", "--query", "c1"), 2, "directory"),
    ((*BAM, "--input-file-index", "TEXT", "--query", "c1"), 6, "no BAI, CSI, TBI or CRAI"),
    ((*BAM, "--input-file-index", "EMPTY", "--query", "c1"), 6, "no BAI, CSI, TBI or CRAI"),
    ((*CRAM, "--input-file-index", "BAI", "--query", "c1", "--reference-file", "REF"), 6, "no index of a CRAM file"),
    # Places
    ((*BAM, "--query", "c1", "--output-dir", "FILE"), 2, "file"),
    ((*BAM, "--query", "c1", "--output-dir", "/proc/score"), 2, "/proc/score"),
    ((*BAM, "--query", "c1", "--output-dir", "/dev/null/x"), 2, "/dev/null"),
    ((*BAM, "--query", "c1", "--output-index"), 2, "index"),
    ((*BAM, "--query", "c1", "--output-index", "--output-dir", "FOLDER"), 2, "index"),
]


@pytest.mark.parametrize(("argv", "code", "says"), CASES, ids=[f"{number} {case[2]}" for number, case in enumerate(CASES)])
def test_one_sentence_and_the_code(
    score: Score, given: dict[str, str], argv: tuple[str, ...], code: int, says: str, tmp_path: Path
) -> None:
    ran = score(*(given.get(word, word) for word in argv))
    assert ran.code == code, ran.err
    assert says in ran.sentence()
    assert ran.out == ""
    left = [*Path().iterdir(), *(tmp_path / "temp").iterdir(), *(Path(given["FOLDER"]).iterdir())]
    assert left == []


def test_report_and_slice_do_not_share_standard_output(score: Score, given: dict[str, str]) -> None:
    ran = score("--input-file", given["BAM"], "--query", "c1", "--json")
    assert ran.document["exit_code"] == ran.code == 2
    assert "--json needs --output-dir" in ran.document["error"]


def test_name_with_two_meanings_is_asked_about(score: Score, tmp_path: Path, files: Files) -> None:
    path = tmp_path / "colons.bam"
    header = pysam.AlignmentHeader.from_dict({"SQ": [{"SN": "c1", "LN": 100}, {"SN": "c1:1-10", "LN": 100}]})
    with pysam.AlignmentFile(str(path), "wb", header=header):
        pass
    pysam.samtools.index(str(path))
    ran = score("--input-file", path, "--query", "c1:1-10")
    assert (ran.code, "two meanings" in ran.sentence()) == (2, True)
    assert score("--input-file", path, "--query", "{c1:1-10}").code == 0


def test_index_by_id_that_is_not_there(score: Score, tmp_path: Path, files: Files) -> None:
    with_object(tmp_path, files["a.bam"].path.read_bytes())
    ran = score("--object-id", DATA_ID, "--index-object-id", INDEX_ID, "--query", "c1")
    assert (ran.code, INDEX_ID in ran.sentence()) == (5, True)
    ran = score("--object-id", DATA_ID, "--query", "c1")
    assert (ran.code, "has no index" in ran.sentence()) == (5, True)


def test_empty_object(score: Score, tmp_path: Path) -> None:
    with_object(tmp_path, b"")
    ran = score("--object-id", DATA_ID, "--header-only")
    assert (ran.code, "empty" in ran.sentence()) == (6, True)


def with_object(tmp_path: Path, data: bytes) -> None:
    store = LocalStore(tmp_path / "home" / "store")
    store.write(Keys().data(DATA_ID), data)
    store.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_may_not_be_written(score: Score, given: dict[str, str]) -> None:
    Path(given["FOLDER"]).chmod(0o500)
    ran = score("--input-file", given["BAM"], "--query", "c1", "--output-dir", given["FOLDER"])
    assert (ran.code, "permission denied" in ran.sentence()) == (2, True)


def test_folder_where_the_file_should_be(score: Score, given: dict[str, str]) -> None:
    taken = Path(given["FOLDER"]) / "a.c1.sam"
    taken.mkdir()
    ran = score("--input-file", given["BAM"], "--query", "c1", "--output-dir", given["FOLDER"])
    assert (ran.code, "not a regular file" in ran.sentence()) == (2, True)
    assert list(taken.parent.iterdir()) == [taken]


def test_link_where_the_file_should_be_is_not_followed(score: Score, given: dict[str, str], tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (Path(given["FOLDER"]) / "a.c1.sam").symlink_to(victim)
    ran = score("--input-file", given["BAM"], "--query", "c1", "--output-dir", given["FOLDER"])
    assert (ran.code, "symbolic link" in ran.sentence()) == (2, True)
    assert victim.read_bytes() == b"precious"


NAMES = [
    "../../x.bam",
    "/etc/cron.d/x.bam",
    "..",
    ".",
    "../..",
    "a/../../b.bam",
    "..\\..\\x.bam",
    "x\0y.bam",
    "x\n.bam",
    "\x1b[2J.bam",
    "n" * 300,
]


@pytest.mark.parametrize("name", NAMES)
def test_names_from_the_server_never_leave_the_folder(rig: SliceRig, files: Files, name: str) -> None:
    rig.put(files["a.bam"])
    before = {path for path in rig.folder.rglob("*") if "bucket" not in path.parts}
    with suppress(LocalFileError):
        view_object(rig.engine, None, ViewItem(DATA_ID, name, INDEX_ID), Wanted(("c1:1-3000",)), Form(), rig.out)
    after = {path for path in rig.folder.rglob("*") if "bucket" not in path.parts}
    assert {path.parent for path in after - before} <= {rig.folder, rig.out}
    assert after - before <= {rig.out, *rig.out.glob("*.c1_1-3000.sam"), *rig.out.glob("*~.sam")}
    assert tempfile.tempdir == str(rig.folder / "temp")
    assert list((rig.folder / "temp").iterdir()) == []
