"""The embedded registry keeps every promise of metadata, and its file survives neighbours, kills and strangers."""

import multiprocessing
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_core.errors import ConfigurationError, Conflict, LocalFileError, NoSpaceError, ObjectNotFound, Unavailable
from score_core.ids import is_object_id
from score_core.metadata.base import Metadata
from score_core.metadata.payload import derived_analysis_id, read_payload
from score_core.metadata.registry import Registry
from score_core.model import ObjectSpec
from score_core.testing.metadata import MetadataContract, Shelf, file_payload, payload_of

MD5S = st.text("0123456789abcdef", min_size=32, max_size=32)
FILES = st.lists(st.tuples(st.text(min_size=1, max_size=20), MD5S, st.integers(0, 2**63 - 1)), min_size=1, unique_by=lambda file: file[0])
SPAWN = multiprocessing.get_context("spawn")


class TestRegistry(MetadataContract):
    @pytest.fixture
    def metadata(self, tmp_path: Path, shelf: Shelf) -> Iterator[Metadata]:
        with closing(Registry(tmp_path / "deep" / "registry.sqlite", repository=shelf)) as registry:
            yield registry


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.sqlite"


@pytest.fixture
def registry(path: Path) -> Iterator[Registry]:
    with closing(Registry(path)) as registry:
        yield registry


# Ids


@given(FILES, st.randoms())
def test_order_does_not_change_the_derived_id(files, random) -> None:
    shuffled = random.sample(files, len(files))
    assert derived_analysis_id("S", files) == derived_analysis_id("S", shuffled)
    assert is_object_id(derived_analysis_id("S", files))


@given(FILES, st.data())
def test_any_other_fact_changes_the_derived_id(files, data) -> None:
    number = data.draw(st.integers(0, len(files) - 1))
    name, md5, size = files[number]
    other = data.draw(st.sampled_from([(name + "x", md5, size), (name, md5[::-1] + "x", size), (name, md5, size + 1)]))
    assert derived_analysis_id("S", files) != derived_analysis_id("S", [*files[:number], other, *files[number + 1 :]])
    assert derived_analysis_id("S", files) != derived_analysis_id("T", files)


def test_derived_ids_stay_for_ever() -> None:
    """Golden: people's manifests hold ids that were derived in this way."""
    analysis = read_payload("TEST-CA", payload_of("a.bam", "a.bam.bai"))
    assert analysis.analysis_id == "a17acacc-af3e-5b60-a2da-304c5ee467dd"
    assert analysis.files[0].object_id == "19383dd6-320b-5486-a7d4-e46e1e194fdb"


def test_read_analysis_can_be_submitted_again(registry: Registry) -> None:
    body = payload_of("a.bam", analysisState="PUBLISHED", createdAt="2024-01-01", analysisStateHistory=[], samples=[])
    analysis = registry.analysis("S", registry.submit("S", body))
    assert (analysis.state, dict(analysis.details)) == ("UNPUBLISHED", {"samples": []})


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "\ud800", object(), 10**5000], ids=["nan", "inf", "surrogate", "object", "long"]
)
def test_what_is_no_json_is_refused(registry: Registry, value) -> None:
    with pytest.raises(ConfigurationError):
        registry.submit("S", payload_of("a.bam", extra=[value]))


@pytest.mark.parametrize("depth", [100, 100_000])
def test_deep_nesting_is_refused(registry: Registry, depth: int) -> None:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    with pytest.raises(ConfigurationError, match="nested"):
        registry.submit("S", payload_of("a.bam", extra=value))
    while value:  # freed step by step: CPython 3.11 frees deep lists by recursion, too
        value = value.pop()  # type: ignore[assignment]  # every element is a list


@pytest.mark.parametrize("version", [0, -1, 1.5, True, "1", 2**31])
def test_odd_type_version_is_refused(registry: Registry, version) -> None:
    with pytest.raises(ConfigurationError, match="version"):
        registry.submit("S", payload_of("a.bam", analysisType={"name": "x", "version": version}))


def test_bare_file_gets_the_usual(registry: Registry) -> None:
    bare = {key: value for key, value in file_payload("a.bam").items() if key not in {"fileAccess", "dataType", "info"}}
    file = registry.analysis("S", registry.submit("S", payload_of(bare, analysisType={"name": "x", "version": 2}))).files[0]
    assert (file.access, file.data_type, file.info) == ("controlled", "", {})


@pytest.mark.parametrize("payload", [None, [], "x"])
def test_payload_must_be_an_object(registry: Registry, payload) -> None:
    with pytest.raises(ConfigurationError, match="object"):
        registry.submit("S", payload)


def test_id_that_is_no_text_is_refused(registry: Registry) -> None:
    with pytest.raises(ConfigurationError):
        list(registry.entities(analysis_id="\ud800"))


def test_closed_registry_says_so(path: Path) -> None:
    registry = Registry(path)
    registry.close()
    registry.close()
    with pytest.raises(sqlite3.ProgrammingError):
        registry.studies()


def test_names_that_look_like_sql_are_names(registry: Registry) -> None:
    name = "x'); DROP TABLE file; --"
    analysis = registry.analysis("S", registry.submit("S", payload_of(name, analysisType={"name": name})))
    assert (analysis.files[0].file_name, analysis.type_name) == (name, name)
    assert [entity.file_name for entity in registry.entities()] == [name]


# Paging


def test_listing_goes_on_over_many_pages(registry: Registry) -> None:
    registry.submit("S", payload_of(*(f"{number}.bam" for number in range(2500))))
    listing = registry.entities()
    first = next(listing)
    registry.submit("S", payload_of("late.bam"))  # a reader in the middle of a page holds up nobody
    names = [first.file_name, *(entity.file_name for entity in listing)]
    assert len(names) == len(set(names)) == 2501


# Publishing


def test_registry_without_store_publishes_nothing(registry: Registry) -> None:
    analysis_id = registry.submit("S", payload_of("a.bam"))
    with pytest.raises(ConfigurationError, match="store"):
        registry.publish("S", analysis_id)


class MeddlingShelf(Shelf):
    """Does something when publishing begins to ask about an object."""

    def __init__(self, meddle: Callable[[], None]) -> None:
        super().__init__()
        self.meddle = meddle

    def describe(self, object_id: str) -> ObjectSpec:
        self.meddle()
        return super().describe(object_id)


@pytest.mark.parametrize("verbs", [["publish", "unpublish"], ["suppress"]])
def test_change_during_publishing_is_a_conflict(path: Path, verbs: list[str]) -> None:
    def meddle() -> None:
        for verb in verbs:
            getattr(other, verb)("S", analysis.analysis_id)

    shelf, meddling = Shelf(), MeddlingShelf(meddle)
    with closing(Registry(path, repository=shelf)) as other, closing(Registry(path, repository=meddling)) as registry:
        analysis = other.analysis("S", other.submit("S", payload_of("a.bam")))
        shelf.put_all(analysis)
        meddling.put_all(analysis)
        with pytest.raises(Conflict):
            registry.publish("S", analysis.analysis_id)
        assert other.state("S", analysis.analysis_id) != "PUBLISHED"


def test_object_that_vanishes_meanwhile_is_a_conflict(path: Path) -> None:
    shelf = MeddlingShelf(lambda: shelf.objects.clear())  # noqa: PLW0108  # there is no shelf yet
    with closing(Registry(path, repository=shelf)) as registry:
        analysis = registry.analysis("S", registry.submit("S", payload_of("a.bam")))
        shelf.put_all(analysis)
        with pytest.raises(Conflict, match="not stored"):
            registry.publish("S", analysis.analysis_id)


def test_times_are_the_clocks(path: Path) -> None:
    moments = iter([100.5, 200.25])
    shelf = Shelf()
    with closing(Registry(path, repository=shelf, clock=lambda: next(moments))) as registry:
        analysis = registry.analysis("S", registry.submit("S", payload_of("a.bam")))
        registry.suppress("S", analysis.analysis_id)
        assert (analysis.created_at, registry.analysis("S", analysis.analysis_id).history[0].at) == (100.5, 200.25)


# The file


def test_registry_is_there_after_reopening(path: Path) -> None:
    with closing(Registry(path)) as registry:
        analysis_id = registry.submit("S", payload_of("a.bam"))
    with closing(Registry(path)) as registry:
        assert registry.state("S", analysis_id) == "UNPUBLISHED"


def test_newer_registry_is_refused(path: Path) -> None:
    Registry(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 2")
    with pytest.raises(ConfigurationError, match="newer"):
        Registry(path)


@pytest.mark.parametrize("version", [0, 1, 7])
def test_database_of_another_program_is_refused(path: Path, version: int) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE recipes (name TEXT)")
        db.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(ConfigurationError, match="another program"):
        Registry(path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]


def test_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"a.bam is here\n" * 1000)
    with pytest.raises(LocalFileError, match="not a registry"):
        Registry(path)
    assert path.read_bytes().startswith(b"a.bam is here")


def test_damaged_registry_is_said_to_be(path: Path) -> None:
    with closing(Registry(path)) as registry:
        registry.submit("S", payload_of(*(f"{number}.bam" for number in range(500))))
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    with closing(Registry(path)) as registry, pytest.raises(LocalFileError, match="damaged"):
        list(registry.entities())


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "registry.sqlite", tmp_path):
        with pytest.raises(LocalFileError, match=str(tmp_path)):
            Registry(place)


def test_held_registry_is_unavailable(path: Path) -> None:
    with closing(Registry(path, busy_s=0.1)) as registry, closing(sqlite3.connect(path, isolation_level=None)) as holder:
        analysis_id = registry.submit("S", payload_of("a.bam"))
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="Another process"):
            registry.suppress("S", analysis_id)
        assert registry.state("S", analysis_id) == "UNPUBLISHED"  # readers go on
        with closing(Registry(path, busy_s=0.1)) as another:  # and new ones come
            assert another.studies() == ["S"]
        holder.execute("ROLLBACK")
        registry.suppress("S", analysis_id)


def test_new_registry_waits_for_whoever_holds_the_file(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Unavailable, match="Another process"):
            Registry(path, busy_s=0.1)
        with ThreadPoolExecutor(1) as pool:
            opened = pool.submit(Registry, path, busy_s=60)
            holder.execute("ROLLBACK")
            opened.result().close()


def test_full_disk_loses_nothing(path: Path) -> None:
    with closing(Registry(path)) as registry:
        first = registry.submit("S", payload_of("a.bam"))
        registry._db.execute(f"PRAGMA max_page_count = {registry._db.execute('PRAGMA page_count').fetchone()[0]}")
        with pytest.raises(NoSpaceError):
            registry.submit("S", payload_of(*(f"{number}.bam" for number in range(2000))))
        assert len(list(registry.entities())) == 1
        registry.suppress("S", first)


def test_interrupted_submission_leaves_nothing(registry: Registry) -> None:
    class Stubborn(dict[str, object]):
        def items(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.submit("S", Stubborn(payload_of("a.bam")))
    assert list(registry.studies()) == []
    registry.submit("S", payload_of("a.bam"))


# Several processes


def _submit_some(path: Path, worker: int) -> list[str]:
    with closing(Registry(path)) as registry:
        own = [registry.submit("S", payload_of(f"{worker}-{number}.bam")) for number in range(10)]
        return [*own, registry.submit("S", payload_of("shared.bam"))]


def test_processes_may_make_and_fill_one_registry(path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=SPAWN) as pool:
        ids = [name for names in pool.map(_submit_some, [path] * 4, range(4)) for name in names]
    with closing(Registry(path)) as registry:
        assert {entity.analysis_id for entity in registry.entities()} == set(ids)
        assert len(set(ids)) == 41


def test_threads_may_open_one_new_registry(path: Path) -> None:
    barrier = threading.Barrier(8)

    def opened(number: int) -> str:
        barrier.wait()
        with closing(Registry(path)) as registry:
            return registry.submit("S", payload_of("a.bam"))

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(opened, range(8)))) == 1


def _submit_for_ever(path: Path, ready) -> None:
    with closing(Registry(path)) as registry:
        number = 0
        while True:
            registry.submit("S", payload_of(*(f"{number}-{part}.bam" for part in range(20))))
            number += 1
            if number == 3:
                ready.set()


@pytest.mark.kill
def test_killed_writer_leaves_a_good_registry(path: Path) -> None:
    for _ in range(5):
        ready = SPAWN.Event()
        process = SPAWN.Process(target=_submit_for_ever, args=(path, ready))
        process.start()
        assert ready.wait(60)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        process.close()
        with closing(Registry(path)) as registry:
            counts: dict[str, int] = {}
            for entity in registry.entities():
                counts[entity.analysis_id] = counts.get(entity.analysis_id, 0) + 1
            assert set(counts.values()) == {20}
            assert registry._rows("PRAGMA integrity_check") == [("ok",)]
            assert registry._rows("PRAGMA foreign_key_check") == []


def test_unknown_object_says_nothing_of_the_file(registry: Registry, path: Path) -> None:
    """Servers hand this on to whoever asks."""
    for ask in (lambda: registry.entity("1-1-1-1-1"), lambda: registry.analysis("S", "x")):
        with pytest.raises(ObjectNotFound) as caught:
            ask()
        assert str(path.parent) not in str(caught.value)


def test_files_must_be_named_once_even_so(registry: Registry) -> None:
    with pytest.raises(ConfigurationError, match="twice"):
        registry.submit("S", payload_of(file_payload("a.bam"), file_payload("a.bam", fileSize=9)))
