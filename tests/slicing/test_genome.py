"""The made-up genome that slicing is measured on (`bench.genome`): is it a BAM that others believe in?"""

from collections import Counter
from random import Random

import pysam
import pytest

from bench import genome

SIZE = 1_500_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("genome") / "small.bam"
    genome.make_genome(path, SIZE)
    return path


def test_htslib_takes_file_and_index(made):
    pysam.quickcheck(str(made))
    with pysam.AlignmentFile(made, index_filename=f"{made}.bai", threads=1) as file:
        assert file.header.to_dict()["HD"]["SO"] == "coordinate"
        assert len(file.header.to_dict()["RG"]) == 4
        assert file.mapped > 20_000
        assert file.nocoordinate > 50


def test_reads_are_sorted_and_of_all_kinds(made):
    kinds: Counter[str | int] = Counter()
    places = []
    with pysam.AlignmentFile(made) as file:
        for read in file:
            places.append((read.reference_id & 0xFFFF, read.reference_start))
            kinds.update(name for name in ("is_duplicate", "is_secondary", "is_supplementary", "mate_is_unmapped") if getattr(read, name))
            kinds.update({operation for operation, _ in read.cigartuples or ()})
    assert places == sorted(places)
    assert set(kinds) >= {"is_duplicate", "is_secondary", "is_supplementary", "mate_is_unmapped", 0, 1, 2, 4}


def test_tags_agree_with_the_reference(made):
    contig = genome.contigs_of(SIZE)[0]
    reference = genome._reference(Random(f"1 {contig.name}"), contig.length).decode()
    with pysam.AlignmentFile(made) as file:
        reads = [read for read in file.fetch(contig.name) if read.has_tag("MD")]
    assert len(reads) >= 5_000
    for read in reads:
        assert read.get_reference_sequence().upper() == reference[read.reference_start : read.reference_end]
        columns = read.get_aligned_pairs(matches_only=True)
        differing = [place for at, place in columns if (read.query_sequence or "")[at] != reference[place]]
        indels = [length for operation, length in read.cigartuples or () if operation in {1, 2}]
        assert read.get_tag("NM") == len(differing) + sum(indels)


def test_seed_decides_every_byte(made, tmp_path):
    again, other = tmp_path / "again.bam", tmp_path / "other.bam"
    genome.make_genome(again, SIZE)
    genome.make_genome(other, SIZE, seed=2)
    assert again.read_bytes() == made.read_bytes()
    assert again.with_name("again.bam.bai").read_bytes() == made.with_name("small.bam.bai").read_bytes()
    assert other.read_bytes() != made.read_bytes()
