"""htsget 1.3: tickets that clients read, what is in them against samtools and bcftools, and what is refused."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import logging
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import htsget  # type: ignore[import-untyped]  # it has no types
import httpx
import jsonschema
import pysam
import pytest

from score_core.model import ByteRange
from score_core.repository.direct import DirectRepository
from score_core.server.published import Ga4ghOptions
from score_core.server.tickets import fewer
from score_core.slicing import bgzf
from score_core.testing.memory import MemoryStore
from tests.server.conftest import Stage, StartSite
from tests.server.shelf import DATA, Shelf, shelf_in

NOBODY = "6ba7b814-9dad-41d1-80b4-00c04fd430c8"  # nobody's object: the same in all processes of a test run

BAM, CRAM = "htsnexus_test_NA12878.bam", "NA12878.embedref.cram"
VCF, SHORT_VCF, BCF = "sample1-bcbio-cancer.vcf.gz", "spec-v4.3.vcf.gz", "sample1-bcbio-cancer.bcf"
SUFFIXES = {BAM: ".bai", CRAM: ".crai", VCF: ".tbi", SHORT_VCF: ".tbi", BCF: ".csi"}
KINDS = {BAM: "reads", CRAM: "reads", VCF: "variants", SHORT_VCF: "variants", BCF: "variants"}
FORMATS = {BAM: "BAM", CRAM: "CRAM", VCF: "VCF", SHORT_VCF: "VCF", BCF: "BCF"}
TICKET_TYPE = "application/vnd.ga4gh.htsget.v1.3.0+json; charset=utf-8"
TICKET = {
    "type": "object",
    "required": ["htsget"],
    "additionalProperties": False,
    "properties": {
        "htsget": {
            "type": "object",
            "required": ["format", "urls"],
            "properties": {
                "format": {"enum": ["BAM", "CRAM", "VCF", "BCF"]},
                "urls": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["url"],
                        "properties": {
                            "url": {"type": "string", "pattern": "^(https?://|data:[^,]*;base64,)"},
                            "headers": {"type": "object", "additionalProperties": {"type": "string"}},
                            "class": {"enum": ["header", "body"]},
                        },
                    },
                },
            },
        }
    },
}
ERROR = {
    "type": "object",
    "required": ["htsget"],
    "properties": {
        "htsget": {
            "type": "object",
            "required": ["error", "message"],
            "properties": {"error": {"type": "string"}, "message": {"type": "string", "minLength": 1}},
        }
    },
}
needs_samtools = pytest.mark.skipif(not (shutil.which("samtools") and shutil.which("bcftools")), reason="samtools or bcftools is missing")


class Region(NamedTuple):
    name: str
    start: int
    end: int

    @property
    def json(self) -> dict[str, Any]:
        return {"referenceName": self.name, "start": self.start, "end": self.end}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, idle_stages: list[Stage]) -> Iterator[Shelf]:
    """The test data, each with its index; open to everybody in the group `open`."""
    with shelf_in(tmp_path_factory.mktemp("htsget"), idle_stages) as shelf:
        for name, suffix in SUFFIXES.items():
            shelf.add(name, {name: (DATA / name).read_bytes(), name + suffix: (DATA / (name + suffix)).read_bytes()})
        shelf.add("open", {"open.bam": (DATA / BAM).read_bytes(), "open.bai": (DATA / f"{BAM}.bai").read_bytes()}, access="open")
        yield shelf


def path_of(shelf: Shelf, name: str) -> str:
    return f"/{KINDS.get(name, 'reads')}/{shelf.ids[name]}"


def urls_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == TICKET_TYPE
    assert response.text.startswith('{"htsget":{')
    body = response.json()
    jsonschema.validate(body, TICKET)
    urls: list[dict[str, Any]] = body["htsget"]["urls"]
    assert len({"class" in url for url in urls}) == 1  # on all or none
    return urls


def block(url: dict[str, Any]) -> bytes:
    if url["url"].startswith("data:"):
        return base64.b64decode(url["url"].partition(";base64,")[2], validate=True)
    response = httpx.get(url["url"], headers=url.get("headers", {}))
    assert response.status_code == (206 if "headers" in url else 200)
    return response.content


def joined(response: httpx.Response) -> bytes:
    return b"".join(map(block, urls_of(response)))


def assert_refused(response: httpx.Response, status: int, error: str) -> None:
    assert (response.status_code, response.json()["htsget"]["error"]) == (status, error), response.text
    assert response.headers["content-type"] == TICKET_TYPE
    jsonschema.validate(response.json(), ERROR)


def ran(*command: str | Path) -> bytes:
    done = subprocess.run([str(word) for word in command], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def bed_of(regions: Sequence[Region], path: Path) -> Path:
    path.write_text("".join(f"{name}\t{start}\t{end}\n" for name, start, end in regions))
    return path


# What is in a ticket


def some_regions(seed: int) -> list[Region]:
    rng = random.Random(seed)
    count = rng.choice([1, 3, 10, 40])
    names = {"11": (4_990_000, 5_010_000), "20": (100_000, 64_000_000)}
    found = []
    for _ in range(count):
        name = rng.choice(list(names))
        start = rng.randint(*names[name])
        found.append(Region(name, start, start + rng.choice([1, 100, 10_000, 1_000_000])))
    return found


@needs_samtools
@pytest.mark.parametrize("name", [BAM, CRAM])
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_reads_of_a_ticket_are_those_of_samtools(shelf: Shelf, tmp_path: Path, name: str, seed: int) -> None:
    regions = some_regions(seed)
    bed, slice_ = bed_of(regions, tmp_path / "regions.bed"), tmp_path / "slice"
    body = {"format": FORMATS[name], "regions": [region.json for region in regions]}
    slice_.write_bytes(joined(shelf.post(path_of(shelf, name), json=body)))
    ran("samtools", "quickcheck", slice_)
    wanted = ran("samtools", "view", "-M", "-L", bed, DATA / name)
    assert ran("samtools", "view", "-L", bed, slice_) == wanted
    if len(regions) == 1:
        (only,) = regions
        query = {"format": FORMATS[name], "referenceName": only.name, "start": only.start, "end": only.end}
        assert joined(shelf.get(path_of(shelf, name), params=query)) == slice_.read_bytes()


@needs_samtools
@pytest.mark.parametrize("name", [VCF, SHORT_VCF, BCF])
def test_variants_of_a_ticket_are_those_of_bcftools(shelf: Shelf, tmp_path: Path, name: str) -> None:
    lines = ran("bcftools", "view", "-H", DATA / name).splitlines()
    records = [line.decode().split("\t") for line in lines]
    slice_ = tmp_path / "slice"
    places = {(record[0], int(record[1])) for record in records[:4]} | {(records[0][0], 1), (records[0][0], 100_000_000)}
    for contig, position in places:
        query = {"format": FORMATS[name], "referenceName": contig, "start": position - 1, "end": position}
        slice_.write_bytes(joined(shelf.get(path_of(shelf, name), params=query)))
        bed = bed_of([Region(contig, position - 1, position)], tmp_path / "regions.bed")
        wanted = ran("bcftools", "view", "-H", "-R", bed, DATA / name).splitlines()
        found = ran("bcftools", "view", "-H", slice_).splitlines()
        assert set(wanted) <= set(found)
        assert found == [line for line in lines if line in found]  # in order, and each once


@pytest.mark.parametrize("name", list(SUFFIXES))
def test_whole_file_comes_as_it_is(shelf: Shelf, name: str) -> None:
    assert joined(shelf.get(path_of(shelf, name), params={"format": FORMATS[name].lower()})) == (DATA / name).read_bytes()
    assert joined(shelf.post(path_of(shelf, name), json={"format": FORMATS[name]})) == (DATA / name).read_bytes()


@needs_samtools
@pytest.mark.parametrize("name", [BAM, CRAM])
def test_star_is_the_reads_without_a_place(shelf: Shelf, tmp_path: Path, name: str) -> None:
    slice_ = tmp_path / "slice"
    slice_.write_bytes(joined(shelf.get(path_of(shelf, name), params={"format": FORMATS[name], "referenceName": "*"})))
    wanted = ran("samtools", "view", DATA / name, "*")
    unplaced = [line for line in ran("samtools", "view", slice_).splitlines(keepends=True) if line.split(b"\t")[2] == b"*"]
    assert wanted
    assert b"".join(unplaced) == wanted
    assert slice_.stat().st_size < (DATA / name).stat().st_size / 3


@needs_samtools
@pytest.mark.parametrize("name", list(SUFFIXES))
def test_header_alone_has_no_records(shelf: Shelf, tmp_path: Path, name: str) -> None:
    tool = "samtools" if KINDS[name] == "reads" else "bcftools"
    header = tmp_path / "header"
    for reply in (
        shelf.get(path_of(shelf, name), params={"format": FORMATS[name], "class": "header"}),
        shelf.post(path_of(shelf, name), json={"format": FORMATS[name], "class": "header"}),
    ):
        header.write_bytes(joined(reply))
        no_pg = ("--no-PG",) if tool == "samtools" else ("--no-version",)
        assert ran(tool, "view", "-H" if tool == "samtools" else "-h", *no_pg, header) == ran(
            tool, "view", "-H" if tool == "samtools" else "-h", *no_pg, DATA / name
        )
        assert ran(tool, "view", *(() if tool == "samtools" else ("-H",)), header) == b""


@needs_samtools
@pytest.mark.parametrize("name", list(SUFFIXES))
def test_region_without_records_is_a_whole_file(shelf: Shelf, tmp_path: Path, name: str) -> None:
    slice_ = tmp_path / "slice"
    contig = {BAM: "1", CRAM: "1", SHORT_VCF: "20"}.get(name, "chrM")
    query = {"format": FORMATS[name], "referenceName": contig, "start": 5, "end": 5}
    slice_.write_bytes(joined(shelf.get(path_of(shelf, name), params=query)))
    tool = "samtools" if KINDS[name] == "reads" else "bcftools"
    assert ran(tool, "view", *(() if tool == "samtools" else ("-H",)), slice_) == b""


def test_header_and_body_are_told_apart(shelf: Shelf, tmp_path: Path) -> None:
    urls = urls_of(shelf.get(path_of(shelf, BAM), params={"referenceName": "20"}))
    assert [url["class"] for url in urls] == ["header", "body", "body"]
    assert block(urls[-1]).hex() == "1f8b08040000000000ff0600424302001b0003000000000000000000"
    assert urls[1]["headers"]["Range"].startswith("bytes=")
    assert len(urls[0]["url"]) < 300_000
    (tmp_path / "header").write_bytes(block(urls[0]) + bgzf.EOF_MARKER)
    with pysam.AlignmentFile(str(tmp_path / "header")) as file:
        assert list(file) == []


def test_abutting_regions_come_once(shelf: Shelf) -> None:
    middle = 5_000_500
    halves = [Region("11", middle, 5_001_000).json, Region("11", 5_000_000, middle).json, Region("11", 5_000_100, 5_000_200).json]
    both = urls_of(shelf.post(path_of(shelf, BAM), json={"regions": halves}))
    whole = urls_of(shelf.post(path_of(shelf, BAM), json={"regions": [Region("11", 5_000_000, 5_001_000).json]}))
    assert [url.get("headers") for url in both] == [url.get("headers") for url in whole]


# Clients


@needs_samtools
def test_samtools_reads_a_ticket(shelf: Shelf) -> None:
    url = f"{shelf.site.url}/reads/{shelf.ids['open.bam']}?referenceName=11&start=5000000&end=5001000"
    lines = ran("samtools", "view", url).splitlines()
    wanted = ran("samtools", "view", DATA / BAM, "11:5000001-5001000").splitlines()
    assert [line for line in lines if line in set(wanted)] == wanted
    assert len(wanted) == 39


def test_pysam_reads_a_ticket(shelf: Shelf) -> None:
    url = f"{shelf.site.url}/reads/{shelf.ids['open.bam']}?referenceName=11&start=5000000&end=5001000"
    with pysam.AlignmentFile(url) as file, pysam.AlignmentFile(str(DATA / BAM)) as whole:
        found = [(read.query_name, read.flag, read.reference_start) for read in file.fetch(until_eof=True)]
        wanted = [(read.query_name, read.flag, read.reference_start) for read in whole.fetch("11", 5_000_000, 5_001_000)]
    assert [read for read in found if read in set(wanted)] == wanted


@pytest.mark.parametrize("name", [BAM, CRAM, VCF, BCF])
def test_htsget_client_reads_a_ticket(shelf: Shelf, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with path.open("wb") as output:
        htsget.get(
            f"{shelf.site.url}{path_of(shelf, name)}",
            output,
            reference_name="11" if KINDS[name] == "reads" else "chrM",
            data_format=FORMATS[name],
            bearer_token="reader",
        )
    if KINDS[name] == "reads":
        with pysam.AlignmentFile(str(path)) as file:
            assert sum(read.reference_name == "11" for read in file.fetch(until_eof=True)) == 12_898
    else:
        with pysam.VariantFile(str(path)) as variants:
            assert len(list(variants)) > 0


# Files that need care


def _bam(path: Path, contigs: Sequence[tuple[str, int]], places: Sequence[tuple[int, int]]) -> bytes:
    header = pysam.AlignmentHeader.from_references([name for name, _ in contigs], [length for _, length in contigs])
    with pysam.AlignmentFile(str(path), "wb", header=header) as file:
        for number, (tid, start) in enumerate(places):
            read = pysam.AlignedSegment(header)
            read.query_name, read.reference_id, read.reference_start, read.mapping_quality = f"r{number}", tid, start, 60
            read.query_sequence, read.cigarstring = "ACGT", "4M"
            file.write(read)
    return path.read_bytes()


def test_csi_serves_contigs_that_are_too_long_for_bai(shelf: Shelf, tmp_path: Path) -> None:
    path = tmp_path / "long.bam"
    data = _bam(path, [("chr1", 700_000_000)], [(0, 5), (0, 650_000_000)])
    pysam.index("-c", str(path))
    shelf.add("long", {"long.bam": data, "long.bam.bai": b"not looked at", "long.bam.csi": Path(f"{path}.csi").read_bytes()})
    path.write_bytes(joined(shelf.get(path_of(shelf, "long.bam"), params={"referenceName": "chr1", "start": 650_000_000})))
    with pysam.AlignmentFile(str(path)) as file:
        assert "r1" in [read.query_name for read in file.fetch(until_eof=True)]


def test_long_header_is_a_range(shelf: Shelf, tmp_path: Path) -> None:
    rng = random.Random(7)
    contigs = [(f"{rng.getrandbits(128):032x}", 1000) for _ in range(30_000)]
    path = tmp_path / "many.bam"
    data = bgzf.compress(gzip.decompress(_bam(path, contigs, [(0, 10), (29_999, 10)]))) + bgzf.EOF_MARKER
    path.write_bytes(data)  # header and records share a block
    pysam.index(str(path))
    shelf.add("many", {"many.bam": data, "many.bai": Path(f"{path}.bai").read_bytes()})
    header = urls_of(shelf.get(path_of(shelf, "many.bam"), params={"class": "header"}))
    assert [("headers" in url, url["class"]) for url in header] == [(True, "header"), (False, "header"), (False, "body")]
    assert sum(len(url["url"]) for url in header) < 100_000
    path.write_bytes(b"".join(map(block, header)))
    with pysam.AlignmentFile(str(path)) as file:
        assert file.nreferences == 30_000
        assert list(file.fetch(until_eof=True)) == []
    path.write_bytes(joined(shelf.get(path_of(shelf, "many.bam"), params={"referenceName": contigs[-1][0]})))
    with pysam.AlignmentFile(str(path)) as file:
        assert "r1" in [read.query_name for read in file.fetch(until_eof=True)]


@pytest.mark.parametrize(
    ("group", "index", "stores", "said"),
    [
        ("without", {}, True, "no index"),
        ("other", {"{}.bai": DATA / "range.bam.bai"}, True, "does not belong"),
        ("broken", {"{}.bai": b"BAI\1\xff\xff\xff\xff"}, True, "damaged"),
        ("wrong-kind", {"{}.csi": DATA / f"{BCF}.csi"}, True, "does not belong"),
    ],
)
def test_region_without_its_index_is_refused(shelf: Shelf, group: str, index: dict[str, Any], stores: bool, said: str) -> None:
    name = f"{group}.bam"
    files = {key.format(name): value if isinstance(value, bytes) else value.read_bytes() for key, value in index.items()}
    shelf.add(group, {name: (DATA / BAM).read_bytes(), **files}, stores=stores)
    response = shelf.get(path_of(shelf, name), params={"referenceName": "11"})
    assert_refused(response, 400, "InvalidRange")
    assert said in response.json()["htsget"]["message"]
    assert len(joined(shelf.get(path_of(shelf, name)))) == (DATA / BAM).stat().st_size
    assert_refused(shelf.get(path_of(shelf, name), params={"referenceName": "11", "start": 2, "end": 1}), 400, "InvalidRange")


@pytest.mark.parametrize("content", [b"", b"some text", b"\x1f\x8b\x08\0\0\0\0\0\0\0\0", b"BAM\1" * 9, (DATA / BAM).read_bytes()[:3000]])
def test_object_that_is_no_such_file(shelf: Shelf, content: bytes) -> None:
    name = f"{hashlib.md5(content).hexdigest()}.bam"
    shelf.add(name, {name: content, f"{name}.bai": (DATA / f"{BAM}.bai").read_bytes()})
    for query in ({}, {"referenceName": "11"}, {"class": "header"}):
        assert_refused(shelf.get(path_of(shelf, name), params=query), 400, "UnsupportedFormat")


def test_file_without_end_marker_loses_nothing(shelf: Shelf) -> None:
    data = (DATA / BAM).read_bytes()[:-28]
    shelf.add("cut", {"cut.bam": data, "cut.bam.bai": (DATA / f"{BAM}.bai").read_bytes()})
    found = joined(shelf.get(path_of(shelf, "cut.bam"), params={"referenceName": "*"}))
    assert found.endswith(data[-100:] + bgzf.EOF_MARKER)


# Requests


@pytest.mark.parametrize(
    ("query", "status", "error"),
    [
        ("format=CRAM", 400, "UnsupportedFormat"),
        ("format=VCF", 400, "UnsupportedFormat"),
        ("format=sam", 400, "UnsupportedFormat"),
        ("format=", 400, "UnsupportedFormat"),
        ("class=body", 400, "InvalidInput"),
        ("class=header&referenceName=11", 400, "InvalidInput"),
        ("class=header&fields=QNAME", 400, "InvalidInput"),
        ("class=header&start=1", 400, "InvalidInput"),
        ("class=header&tags=", 400, "InvalidInput"),
        ("start=1", 400, "InvalidInput"),
        ("end=1", 400, "InvalidInput"),
        ("referenceName=*&start=1", 400, "InvalidInput"),
        ("referenceName=*&end=1", 400, "InvalidInput"),
        ("referenceName=11&start=-1", 400, "InvalidInput"),
        ("referenceName=11&start=1.0", 400, "InvalidInput"),
        ("referenceName=11&start=%201", 400, "InvalidInput"),
        ("referenceName=11&start=1_000", 400, "InvalidInput"),
        ("referenceName=11&start=%D9%A1", 400, "InvalidInput"),
        ("referenceName=11&start=", 400, "InvalidInput"),
        ("referenceName=11&end=4294967296", 400, "InvalidInput"),
        ("referenceName=11&end=" + "9" * 5000, 400, "InvalidInput"),
        ("referenceName=11&referenceName=20", 400, "InvalidInput"),
        ("referenceName=11&start=3&end=2", 400, "InvalidRange"),
        ("tags=NM,MD&notags=MD", 400, "InvalidInput"),
        ("fields=QNAME,NAME", 400, "InvalidInput"),
        ("referenceName=chr11", 404, "NotFound"),
        ("referenceName=", 404, "NotFound"),
        ("referenceName=11%0d%0aX:%20y", 404, "NotFound"),
        ("referenceName=11%00", 404, "NotFound"),
        ("referenceName=11:1-2", 404, "NotFound"),
    ],
)
def test_bad_request_is_refused(shelf: Shelf, query: str, status: int, error: str) -> None:
    assert_refused(shelf.get(f"{path_of(shelf, BAM)}?{query}"), status, error)


@pytest.mark.parametrize(
    "query",
    [
        "referenceName=11&start=0&end=4294967295",
        "referenceName=11&start=5&end=5",
        "fields=QNAME,SEQ&tags=&notags=NM",
        "format=bam&unknown=1",
        "referenceName=11&start=135000000",
    ],
)
def test_good_request_is_answered(shelf: Shelf, query: str) -> None:
    urls_of(shelf.get(f"{path_of(shelf, BAM)}?{query}"))


R = {"referenceName": "11"}


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"regions": []}, 400, "InvalidInput"),
        ({"regions": {}}, 400, "InvalidInput"),
        ({"regions": ["11"]}, 400, "InvalidInput"),
        ({"regions": [{}]}, 400, "InvalidInput"),
        ({"regions": [{"referenceName": 11}]}, 400, "InvalidInput"),
        ({"regions": [{**R, "start": 5, "end": 5}]}, 400, "InvalidRange"),
        ({"regions": [{**R, "start": 6, "end": 5}]}, 400, "InvalidRange"),
        ({"regions": [{**R, "start": -1}]}, 400, "InvalidInput"),
        ({"regions": [{**R, "start": True}]}, 400, "InvalidInput"),
        ({"regions": [{**R, "start": 1.5}]}, 400, "InvalidInput"),
        ({"regions": [{**R, "end": "9"}]}, 400, "InvalidInput"),
        ({"regions": [{**R, "end": 2**32}]}, 400, "InvalidInput"),
        ({"regions": [{"referenceName": "*", "start": 1}]}, 400, "InvalidInput"),
        ({"regions": [R, {"referenceName": "chrZZ"}]}, 404, "NotFound"),
        ({"regions": [{"referenceName": "\ud800"}]}, 404, "NotFound"),
        ({"regions": [R], "class": "header"}, 400, "InvalidInput"),
        ({"fields": ["QNAME"], "class": "header"}, 400, "InvalidInput"),
        ({"class": 1}, 400, "InvalidInput"),
        ({"format": "CRAM"}, 400, "UnsupportedFormat"),
        ({"format": ["BAM"]}, 400, "InvalidInput"),
        ({"fields": "QNAME"}, 400, "InvalidInput"),
        ({"fields": ["NAME"]}, 400, "InvalidInput"),
        ({"tags": ["NM"], "notags": ["NM"]}, 400, "InvalidInput"),
        ([], 400, "InvalidInput"),
        (b"", 400, "InvalidInput"),
        (b"{", 400, "InvalidInput"),
        (b'{"regions": NaN}', 400, "InvalidInput"),
        (b"[" * 200_000, 400, "InvalidInput"),
        ({"regions": [R] * 100_001}, 413, "PayloadTooLarge"),
        (b'{"regions": [' + b"1," * 1_000_001 + b"1]}", 413, "PayloadTooLarge"),
        (b" " * 10_000_001, 413, "PayloadTooLarge"),
    ],
)
def test_bad_body_is_refused(shelf: Shelf, body: Any, status: int, error: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body)
    assert_refused(shelf.post(path_of(shelf, BAM), content=content), status, error)


def test_post_has_no_parameters(shelf: Shelf) -> None:
    assert_refused(shelf.post(f"{path_of(shelf, BAM)}?referenceName=11", json={}), 400, "InvalidInput")


def test_star_is_for_reads(shelf: Shelf) -> None:
    assert_refused(shelf.get(path_of(shelf, VCF), params={"referenceName": "*"}), 400, "InvalidInput")
    assert_refused(shelf.post(path_of(shelf, VCF), json={"regions": [{"referenceName": "*"}]}), 400, "InvalidInput")


def test_format_must_be_the_stored_one(shelf: Shelf) -> None:
    assert_refused(shelf.get(path_of(shelf, CRAM)), 400, "UnsupportedFormat")
    assert_refused(shelf.get(path_of(shelf, BCF)), 400, "UnsupportedFormat")
    assert_refused(shelf.get(f"/variants/{shelf.ids[BAM]}"), 400, "UnsupportedFormat")
    assert_refused(shelf.get(f"/reads/{shelf.ids[VCF]}"), 400, "UnsupportedFormat")


def test_many_regions_are_one_ticket(shelf: Shelf) -> None:
    regions = [Region("20", start, start + 10).json for start in range(60_000, 63_000_000, 1_000)]
    assert len(urls_of(shelf.post(path_of(shelf, BAM), json={"regions": regions}))) <= 2_002


def test_fewer_ranges_hold_all_of_them() -> None:
    rng = random.Random(3)
    starts = sorted(rng.sample(range(0, 10_000, 10), 500))
    ranges = [ByteRange(start, rng.randint(1, 9)) for start in starts]
    found = fewer(ranges, 40)
    assert len(found) <= 40
    assert all(any(one.offset <= wanted.offset and wanted.end <= one.end for one in found) for wanted in ranges)
    assert fewer(ranges, 500) == ranges


# Who gets what


@pytest.mark.parametrize(
    ("token", "status", "error"),
    [
        ("bad", 401, "InvalidAuthentication"),
        (None, 403, "PermissionDenied"),
        ("neighbour", 403, "PermissionDenied"),
        ("nothing", 403, "PermissionDenied"),
        ("down", 503, "ServiceUnavailable"),
    ],
)
def test_reads_need_a_scope(shelf: Shelf, token: str | None, status: int, error: str) -> None:
    assert_refused(shelf.get(path_of(shelf, BAM), token), status, error)
    assert_refused(shelf.post(path_of(shelf, BAM), token, content=b" " * 20_000_000), status, error)


def test_study_scope_is_enough(shelf: Shelf) -> None:
    urls_of(shelf.get(path_of(shelf, BAM), "study-reader"))
    urls_of(shelf.get(path_of(shelf, "open.bam"), None, params={"referenceName": "11"}))


def test_what_is_not_published_is_not_found(shelf: Shelf) -> None:
    shelf.add("hidden", {"hidden.bam": (DATA / BAM).read_bytes()}, publishes=False)
    assert_refused(shelf.get(path_of(shelf, "hidden.bam")), 404, "NotFound")


@pytest.mark.parametrize("name", ["", "nothing", "a/b/c", "%2e%2e/x", "a%0d%0aX:%20y", "%00", "x" * 5000, NOBODY, "SERVICE-INFO"])
def test_what_is_not_there_is_not_found(shelf: Shelf, name: str) -> None:
    for kind in ("reads", "variants"):
        assert_refused(shelf.get(f"/{kind}/{name}"), 404, "NotFound")


def test_bad_token_is_refused_whatever_it_asks_for(shelf: Shelf) -> None:
    assert_refused(shelf.get("/reads/nothing", "bad"), 401, "InvalidAuthentication")


def test_other_methods_are_refused(shelf: Shelf) -> None:
    assert_refused(shelf.call("DELETE", path_of(shelf, BAM), "system"), 405, "MethodNotAllowed")


@pytest.mark.parametrize(("kind", "formats"), [("reads", ["BAM", "CRAM"]), ("variants", ["VCF", "BCF"])])
def test_service_info(shelf: Shelf, kind: str, formats: list[str]) -> None:
    body = shelf.get(f"/{kind}/service-info", None).json()
    assert body["type"] == {"group": "org.ga4gh", "artifact": "htsget", "version": "1.3.0"}
    assert body["htsget"] == {"datatype": kind, "formats": formats, "fieldsParameterEffective": False, "tagsParametersEffective": False}
    assert {"id", "name", "organization", "version"} <= set(body)
    assert set(body["organization"]) == {"name", "url"}


# Pages of other origins


def test_every_origin_may_ask(shelf: Shelf) -> None:
    origin = "https://igv.example.org"
    for path, status in ((path_of(shelf, BAM), 200), ("/reads/nothing", 404), ("/variants/service-info", 200)):
        response = shelf.get(path, headers={"Origin": origin})
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (status, origin)
    assert "access-control-allow-origin" not in shelf.get(f"/download/{shelf.ids[BAM]}", headers={"Origin": origin}).headers


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_preflight_is_good_for_a_month(shelf: Shelf, method: str) -> None:
    asked = {"Origin": "https://x.org", "Access-Control-Request-Method": method, "Access-Control-Request-Headers": "authorization"}
    response = shelf.call("OPTIONS", path_of(shelf, BAM), None, headers=asked)
    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] == "https://x.org"
    assert response.headers["access-control-allow-headers"] == "authorization"
    assert method in response.headers["access-control-allow-methods"]
    assert response.headers["access-control-max-age"] == "2592000"
    delete = {**asked, "Access-Control-Request-Method": "DELETE"}
    assert shelf.call("OPTIONS", path_of(shelf, BAM), None, headers=delete).status_code == 405


def test_server_without_tokens_answers_no_foreign_page(start_site: StartSite) -> None:
    site = start_site(DirectRepository(MemoryStore()), authenticator=None)
    response = site.anonymous("GET", f"/reads/{uuid4()}", headers={"Origin": "https://evil.example.org"})
    assert "access-control-allow-origin" not in response.headers


def test_own_rules_hold_beside_those_of_the_server(start_site: StartSite) -> None:
    site = start_site(DirectRepository(MemoryStore()), allowed_origins=("https://portal.example.org",))
    for origin in ("https://portal.example.org", "https://other.example.org"):
        response = site.anonymous("GET", "/reads/service-info", headers={"Origin": origin})
        assert response.headers.get_list("access-control-allow-origin") == [origin]


# What it costs, and what stays secret


def test_second_ticket_asks_the_store_nothing(start_site: StartSite) -> None:
    store, object_id = MemoryStore(), str(uuid4())
    store.write(f"data/{object_id}", (DATA / BAM).read_bytes())
    site = start_site(DirectRepository(store), ga4gh=Ga4ghOptions(url_lifetime_s=7200))
    (url,) = urls_of_memory(site.http.get(f"/reads/{object_id}"))
    assert float(parse_qs(urlsplit(url["url"]).query)["Expires"][0]) - store.clock() == pytest.approx(7200, abs=60)
    before = store.calls.copy()
    urls_of_memory(site.http.get(f"/reads/{object_id}", params={"class": "header"}))
    site.http.get(f"/reads/{object_id}")
    assert store.calls - before == {"presign_gets": 2}
    assert_refused(site.http.get(f"/reads/{object_id}", params={"referenceName": "11"}), 400, "InvalidRange")


def urls_of_memory(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200
    urls: list[dict[str, Any]] = response.json()["htsget"]["urls"]
    return urls


def test_nothing_secret_is_logged(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = urls_of(shelf.get(path_of(shelf, BAM), params={"referenceName": "11"}))[1]["url"]
    shelf.get(path_of(shelf, BAM), params={"referenceName": "token=hunter2hunter2"})
    logged = "\n".join(entry.getMessage() for entry in caplog.records if entry.name.startswith("score_core"))
    assert f"reader GET {path_of(shelf, BAM)} 200" in logged
    assert url.partition("?")[2] not in logged
    assert "hunter2" not in logged
