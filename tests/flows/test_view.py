"""Slices as a flow: the same records as samtools', made once, and made again whenever the world says otherwise."""

import ast
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.flows import load_flow_from_entrypoint

import tests.flows.test_secrets as secrets_search
from flows.results import slice_results_folder
from flows.view import view
from score_core import operations
from score_core.errors import BatchError, ChangedError, ConfigurationError, FormatError, LocalFileError, ObjectNotFound, TransientError
from score_core.metadata.base import Entity
from score_core.operations import UploadItem
from score_core.slicing import view as slicing
from score_core.testing.faults import busy, denied, expired
from tasks import sessions
from tasks.slicing import SliceItem, SliceOptions, may_help, slice_key, slice_regions
from tests.flows.conftest import ROOT, artifacts, new_id, quick_engine

pytestmark = [pytest.mark.prefect, pytest.mark.xdist_group("flows")]

DATA = ROOT / "tests" / "data"
LARGE, SMALL, VARIANTS = "htsnexus_test_NA12878.bam", "range.bam", "ex1.vcf.gz"
BED = "11\t5000000\t5010000\n11\t5005000\t5020000\n20\t6000000\t6005000\nCHROMOSOME_II\t1000\t1500\n"
REGION = "20:6,000,000-6,010,000"


@dataclass
class Catalogue:
    """Metadata that know what was put on the shelf, as files of one analysis."""

    files: dict[str, str] = field(default_factory=dict)

    def entity(self, object_id: str) -> Entity:
        found = next((entity for entity in self.entities() if entity.object_id == object_id), None)
        if found is None:
            raise ObjectNotFound(f"{object_id} is not registered", status=404)
        return found

    def entities(self, *, analysis_id: str | None = None, study_id: str | None = None) -> list[Entity]:
        return [Entity(object_id, "an-1", name, "study") for name, object_id in self.files.items()]


class Shelf:
    """Real files in the store of a site, and a catalogue that names them."""

    def __init__(self, site) -> None:
        self.site = site
        self.catalogue = Catalogue()
        self.use(sessions.engine(None))

    def use(self, engine) -> None:
        metadata: Any = self.catalogue
        sessions.use_engine(None, engine, metadata)

    def put(self, *names: str) -> list[str]:
        """Stores files under new ids, with their indexes where `+` follows the name; the ids."""
        ids = []
        for name in names:
            ids.append(self._store(name.rstrip("+")))
            if name.endswith("+"):
                self._store(min(path.name for path in DATA.glob(f"{name.rstrip('+')}.*")))
        self.site.proxy.forget()
        return ids

    def _store(self, name: str) -> str:
        self.catalogue.files[name] = object_id = new_id()
        self.replace(object_id, DATA / name)
        return object_id

    def replace(self, object_id: str, path: Path) -> None:
        operations.upload(sessions.engine(None), UploadItem(object_id, path, None), force=True)
        self.site.proxy.forget()

    def bed(self, text: str = BED) -> str:
        path = self.site.folder / "genes.bed"
        path.write_text(text)
        return str(path)

    def cut(self, *ids: str, **options: Any) -> list[dict[str, Any]]:
        """What the flow says of these objects; by default of the small one's second contig."""
        given = options or {"regions": ["CHROMOSOME_II"]}
        reports: list[dict[str, Any]] = view(str(self.site.out), list(ids), **given)
        return reports


@pytest.fixture
def shelf(site):
    return Shelf(site)


def records(path):
    return [line for line in Path(path).read_text().splitlines() if not line.startswith("@")]


def by_samtools(*arguments):
    if shutil.which("samtools") is None:
        pytest.skip("samtools is not installed: nothing says whether the slices are right")
    done = subprocess.run(["samtools", "view", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


# The main job


def test_slices_are_those_of_samtools(site, shelf):
    ids, bed = shelf.put(f"{LARGE}+", f"{SMALL}+"), shelf.bed()

    large, small = shelf.cut(*ids, bed=bed, skip_unknown=True)

    assert [large["outcome"], small["outcome"]] == ["sliced", "sliced"]
    assert [Path(report["path"]).name for report in (large, small)] == ["htsnexus_test_NA12878.genes.bed.sam", "range.genes.bed.sam"]
    assert records(large["path"]) == by_samtools("-M", "-L", bed, DATA / LARGE)
    assert records(small["path"]) == by_samtools("-M", "-L", bed, DATA / SMALL)
    assert large["bytes_moved"] < large["size"] / 2
    (table,) = [found for found in artifacts(f"view {ids[0]} and 1 more") if found.type == "table"]
    assert table.key == "view-slices"
    for text in (*ids, "genes.bed", large["path"], f'"records": {large["records"]}', f'"bytes_moved": {large["bytes_moved"]}'):
        assert text in str(table.data)


def test_analysis_gives_a_file_per_object(site, shelf):
    shelf.put(f"{LARGE}+", f"{VARIANTS}+")

    reports = view(str(site.out), study_id="study", analysis_id="an-1", header_only=True)

    assert [Path(report["path"]).name for report in reports] == ["htsnexus_test_NA12878.header.sam", "ex1.header.vcf"]
    assert [report["records"] for report in reports] == [0, 0]


def test_regions_of_a_binary_file_with_its_index(site, shelf):
    (object_id,) = shelf.put(f"{LARGE}+")

    (report,) = shelf.cut(object_id, regions=[REGION, "11:5,000,000-5,002,000"], output_format="bam", output_index=True)

    whole = by_samtools(DATA / LARGE, "11:5,000,000-5,002,000", REGION)
    assert by_samtools(report["path"]) == whole
    assert by_samtools(report["path"], "20") == [line for line in whole if line.split("\t")[2] == "20"]


# The cache is believed only with the output


def test_second_run_fetches_nothing(site, shelf):
    ids = shelf.put(f"{SMALL}+")
    (made,) = shelf.cut(*ids)
    site.proxy.forget()

    (again,) = shelf.cut(*ids)

    assert site.proxy.seen == []
    assert (again["outcome"], again["records"], again["path"]) == ("already there", made["records"], made["path"])
    assert (again["bytes_moved"], again["requests"]) == (0, 0)


def test_output_that_is_not_as_made_is_made_again(site, shelf):
    ids, options = shelf.put(f"{SMALL}+"), {"regions": ["CHROMOSOME_II"], "output_format": "bam", "output_index": True}
    (made,) = shelf.cut(*ids, **options)
    path, index = Path(made["path"]), Path(made["path"] + ".bai")
    right, times = path.read_bytes(), path.stat()

    def changed():
        path.write_bytes(right[:-40] + b"X" + right[-39:])
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    for spoil in (path.unlink, changed, index.unlink):
        spoil()
        site.proxy.forget()
        (again,) = shelf.cut(*ids, **options)
        assert again["outcome"] == "sliced"
        assert site.proxy.seen != []
        assert path.read_bytes() == right
        assert index.is_file()


def test_what_is_asked_for_or_stored_anew_is_made_anew(site, shelf):
    (object_id,) = shelf.put(f"{SMALL}+")
    path = site.folder / SMALL
    shutil.copy(DATA / SMALL, path)
    bed = shelf.bed("CHROMOSOME_II\t1000\t1500\n")
    (narrow,) = shelf.cut(object_id, bed=bed)

    shelf.bed("CHROMOSOME_II\t1000\t5000\n")
    (wide,) = shelf.cut(object_id, bed=bed)
    shelf.replace(object_id, path)
    (replaced,) = shelf.cut(object_id, bed=bed)

    assert narrow["path"] == wide["path"] == replaced["path"]
    assert narrow["records"] < wide["records"] == replaced["records"]
    assert [report["outcome"] for report in (wide, replaced)] == ["sliced", "sliced"]


OTHERS: dict[str, Any] = {
    "output_dir": "/other",
    "regions": ("chr2",),
    "bed_md5": "1" * 32,
    "contained": True,
    "skip_unknown": True,
    "header_only": True,
    "output_format": "bam",
    "original_header": True,
    "output_index": True,
    "reference_file": "/other.fa",
}


def test_cache_key_holds_all_that_makes_a_difference():
    context: Any = SimpleNamespace(task=SimpleNamespace(name="slice-regions"))
    item, options = SliceItem(new_id(), "a.bam", "index", "v1"), SliceOptions("/out", ("chr1",), max_bytes=1)

    def key(item, options):
        return slice_key(context, {"store": None, "item": item, "options": options})

    others = [key(item, dataclasses.replace(options, **{name: value})) for name, value in OTHERS.items()]
    others += [key(dataclasses.replace(item, **{name: "x"}), options) for name in ("object_id", "file_name", "index_id", "version")]
    assert set(OTHERS) | {"bed", "max_bytes"} == {made.name for made in dataclasses.fields(SliceOptions)}
    assert len({key(item, options), *others}) == 1 + len(others)
    assert key(item, options) == key(item, dataclasses.replace(options, max_bytes=None))
    assert key(dataclasses.replace(item, version=None), options) is None


def test_old_results_go(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORE_DATA_DIR", str(tmp_path))
    folder = slice_results_folder("/out")
    for name, age_days in (("slice-new", 29), ("slice-old", 31)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age_days * 86_400,) * 2)

    assert [path.name for path in slice_results_folder("/out").iterdir()] == ["slice-new"]


# Failures


def test_bad_object_does_not_stop_the_rest(site, shelf):
    good, *_ = shelf.put(f"{LARGE}+", f"{SMALL}+", VARIANTS)
    missing = new_id()
    ids = [shelf.catalogue.files[VARIANTS], missing, good, "no-id"]

    with pytest.raises(BatchError, match=r"3 of 4 files failed, first ex1.vcf.gz: ex1.vcf.gz has no index") as raised:
        shelf.cut(*ids, regions=[REGION])

    reports = raised.value.reports
    assert raised.value.exit_code == 9
    assert [report.outcome for report in reports] == ["failed", "failed", "sliced", "failed"]
    assert [report.exit_code for report in reports] == [5, 5, 0, 2]
    (table,) = [found for found in artifacts(f"view {ids[0]} and 3 more") if found.type == "table"]
    assert "has no index" in str(table.data)


def test_two_slices_never_share_a_name(site, shelf):
    shelf.put(SMALL)
    first = shelf.catalogue.files.pop(SMALL)
    shelf.put(SMALL)
    second = shelf.catalogue.files[SMALL]
    shelf.catalogue.files["folder/range.cram"] = first  # of another name, but the slices' would be the same

    with pytest.raises(BatchError, match=f"1 of 2 files failed.*The slice of object {second} has the same name"):
        shelf.cut(second, first, header_only=True)


def test_engine_that_gave_up_is_asked_again(site, shelf, monkeypatch):
    monkeypatch.setenv("SCORE_ATTEMPTS", "1")
    ids = shelf.put(f"{SMALL}+")
    site.proxy.inject(busy(), times=2)

    with quick_engine() as engine:
        shelf.use(engine)
        (report,) = shelf.cut(*ids)

    assert report["outcome"] == "sliced"


def test_only_what_may_help_is_done_again():
    class Failed:
        def __init__(self, error) -> None:
            self.error = error

        def result(self, raise_on_failure):
            return self.error

    def judged(error):
        state: Any = Failed(error)
        nobody: Any = None
        return may_help(nobody, nobody, state)

    given_up = TransientError("busy")
    given_up.is_final = True  # for the engine
    assert judged(given_up)
    assert not judged(FormatError("damaged"))
    assert not judged(LocalFileError("gone"))
    assert not judged(ValueError("a fault of ours"))


def test_output_of_other_records_is_refused_and_removed(site, shelf, monkeypatch):
    (object_id,) = shelf.put(f"{SMALL}+")
    monkeypatch.setattr(slicing, "reread", lambda path, reference: 1)
    options = SliceOptions(str(site.out), ("CHROMOSOME_II",), output_format="bam", output_index=True)

    with pytest.raises(FormatError, match=r"has 1 records where 3\d were written; it was removed"):
        slice_regions.fn(None, SliceItem(object_id), options)

    assert list(site.out.iterdir()) == []


def test_slice_of_another_version_than_planned_is_refused(site, shelf):
    (object_id,) = shelf.put(SMALL)

    with pytest.raises(ChangedError, match="was replaced while it was read"):
        slice_regions.fn(None, SliceItem(object_id, version='[1, "another", null, null]'), SliceOptions(str(site.out), header_only=True))

    assert list(site.out.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give regions or bed"),
        ({"regions": ["."], "skip_unknown": True}, "goes with bed"),
        ({"regions": ["."], "manifest": "m.tsv"}, "Give either object_ids, or manifest, or study_id and analysis_id"),
        ({"bed": "/nowhere.bed"}, "nowhere.bed"),
    ],
)
def test_parameters_that_cannot_be_meant_are_refused(tmp_path, options, message):
    with pytest.raises((ConfigurationError, LocalFileError), match=message):
        view.fn(str(tmp_path), [new_id()], **options)


# What it needs, and what it leaves


def test_missing_pysam_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pysam", None)
    with pytest.raises(ConfigurationError, match=r"needs pysam, which is not installed: pip install 'score-transfer\[slicing\]'"):
        view.fn(str(tmp_path), [new_id()], regions=["."])


@pytest.mark.parametrize("name", ["flows/view.py", "tasks/slicing.py"])
def test_pysam_is_imported_only_where_it_is_used(name):
    """`prefect deploy` loads the flow on machines that only ask for slices."""
    modules = [node.module or "" for node in ast.parse((ROOT / name).read_text()).body if isinstance(node, ast.ImportFrom)]
    assert [module for module in modules if module.startswith(("score_core.slicing", "score_core.cli", "pysam"))] == []


def test_deployment_loads(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert "entrypoint: flows/view.py:view\n" in (ROOT / "prefect.yaml").read_text()
    loaded: Any = load_flow_from_entrypoint("flows/view.py:view")
    assert loaded.name == "view"
    assert {"object_ids", "output_dir", "regions", "bed", "max_bytes"} <= set(loaded.parameters.properties)


def test_nothing_secret_is_kept_by_slices(site):
    """The command, with a manifest: one object without index, and stores that are busy, refuse and expire."""
    columns = "repo_code file_id object_id file_format file_name file_size md5_sum index_object_id donor_id project_id study"
    names = [LARGE, f"{LARGE}.bai", SMALL, f"{SMALL}.bai", "sample1-bcbio-cancer.vcf.gz"]
    ids = dict.fromkeys(names, "")
    for name in names:
        ids[name] = new_id()
        operations.upload(sessions.engine(None), UploadItem(ids[name], DATA / name, None))
    rows = ["\t".join(["", "an-1", ids[name], "", name, "", "", "", "", "", "study"]) for name in names]
    manifest = site.folder / "manifest.tsv"
    manifest.write_text("\n".join([columns.replace(" ", "\t"), *rows]) + "\n")
    bed = site.folder / "genes.bed"
    bed.write_text(BED)
    site.proxy.forget()
    for fault, times in ((expired(), 2), (busy(), 1), (denied(), 1)):  # not of the one that fails: its report counts no retries
        site.proxy.inject(fault, when=lambda seen: ids[names[-1]] not in seen.key, times=times)

    what = ["--manifest", str(manifest), "--bed-query", str(bed), "--skip-unknown", "--output-dir", str(site.out)]
    report, printed = secrets_search.flows(site, "view", *what, "--max-bytes", "500M")

    assert report["exit_code"] == 9
    assert [file["outcome"] for file in report["files"]] == ["sliced", "sliced", "failed"]
    assert sum(file.get("retries", 0) for file in report["files"]) >= 3
    assert b"DEBUG" in printed
    secrets_search.assert_kept_nowhere(site, printed)
