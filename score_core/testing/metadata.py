"""What all metadata promise, as tests: subclass with a `metadata` over a `Shelf`, on which the tests put what is stored.

    class TestMine(MetadataContract):
        @pytest.fixture
        def metadata(self, shelf): ...

Each test gets a fresh study, so a service may be shared by all tests of a class.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal
from uuid import uuid4

import pytest

from score_core.checksum import md5_hex
from score_core.errors import ConfigurationError, Conflict, ObjectNotFound, ScoreError
from score_core.ids import is_object_id, object_id_of
from score_core.metadata.base import Analysis, Metadata
from score_core.model import ObjectSpec
from score_core.service import Refused

# Texts that end a path, a query, a host, a line or a statement somewhere.
BAD_IDS = (
    "",
    ".",
    "..",
    "../../etc/passwd",
    "a/b",
    "a%2Fb",
    "a\\b",
    "a?b=c",
    "a#b",
    "a@b",
    "a b",
    "a\r\nX: y",
    "a\0b",
    "\ud800",
    "x'); DROP TABLE file; --",
    "' OR '1'='1",
    "a" * 5_000,
)
NOT_KNOWN = (ConfigurationError, ObjectNotFound, Refused)


class Shelf:
    """The two questions that publishing asks of a `Repository`, and the answers that a test put there."""

    def __init__(self) -> None:
        self.objects: dict[str, ObjectSpec] = {}

    def put(self, object_id: str, *, size: int, md5: str | None) -> None:
        self.objects[object_id] = ObjectSpec(object_id, size, (), md5=md5)

    def put_all(self, analysis: Analysis) -> None:
        """Everything as it was registered."""
        for file in analysis.files:
            self.put(file.object_id, size=file.size, md5=file.md5)

    def exists(self, object_id: str) -> bool:
        return object_id in self.objects

    def describe(self, object_id: str) -> ObjectSpec:
        try:
            return self.objects[object_id]
        except KeyError:
            raise ObjectNotFound(f"Object {object_id} is not on the shelf", status=404) from None


def file_payload(name: str = "a.bam", **changes: Any) -> dict[str, Any]:
    """One file of a Song payload."""
    return {
        "fileName": name,
        "fileSize": len(name),
        "fileMd5sum": md5_hex(name.encode()),
        "fileType": "BAM",
        "fileAccess": "controlled",
        "dataType": "Reads",
        "info": {},
        **changes,
    }


def payload_of(*files: str | Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A Song payload with these files, by name or as they stand."""
    listed = [file_payload(file) if isinstance(file, str) else dict(file) for file in files]
    return {"analysisType": {"name": "sequencingRead"}, "files": listed, **changes}


class MetadataContract:
    """Every promise of `metadata/base.py`.

    `derives_ids` says whether the same files get the same analysis again without naming it: our registry does that, Song does not.
    """

    derives_ids = True

    @pytest.fixture
    def shelf(self) -> Shelf:
        return Shelf()

    @pytest.fixture
    def study(self) -> str:
        return f"TEST-{uuid4().hex[:12]}"

    def submitted(self, metadata: Metadata, study: str, *files: str | Mapping[str, Any], **changes: Any) -> Analysis:
        return metadata.analysis(study, metadata.submit(study, payload_of(*files or ("a.bam",), **changes)))

    def published(self, metadata: Metadata, shelf: Shelf, study: str) -> str:
        analysis = self.submitted(metadata, study)
        shelf.put_all(analysis)
        metadata.publish(study, analysis.analysis_id)
        return analysis.analysis_id

    # Reached

    def test_metadata_are_some(self, metadata: Metadata) -> None:
        assert isinstance(metadata, Metadata)
        assert not {"?", "@"} & set(metadata.label)
        metadata.check()

    # Submitting

    def test_submitted_analysis_is_read_back(self, metadata: Metadata, study: str) -> None:
        info = {"lane": 3, "µ": [1.5, None, "x"]}
        found = self.submitted(metadata, study, file_payload("b.vcf", fileAccess="open", info=info), "a.bam", experiment={"kind": "WGS"})
        assert (found.study_id, found.state, found.type_name) == (study, "UNPUBLISHED", "sequencingRead")
        assert [file.file_name for file in found.files] == ["a.bam", "b.vcf"]
        assert [(file.size, file.md5) for file in found.files] == [(5, md5_hex(b"a.bam")), (5, md5_hex(b"b.vcf"))]
        assert [(file.access, file.info) for file in found.files] == [("controlled", {}), ("open", info)]
        assert found.details["experiment"] == {"kind": "WGS"}
        assert found.created_at is not None

    def test_object_ids_follow_from_analysis_and_name(self, metadata: Metadata, study: str) -> None:
        found = self.submitted(metadata, study, "a.bam", "b.bam")
        assert [file.object_id for file in found.files] == [object_id_of(found.analysis_id, name) for name in ("a.bam", "b.bam")]

    def test_given_analysis_id_is_kept(self, metadata: Metadata, study: str) -> None:
        given = str(uuid4())
        assert metadata.submit(study, payload_of("a.bam", analysisId=given.upper())) == given
        assert metadata.analysis(study, given).files[0].object_id == object_id_of(given, "a.bam")

    def test_same_submission_again_changes_nothing(self, metadata: Metadata, study: str) -> None:
        first = self.submitted(metadata, study, "a.bam", "b.bam", analysisId=str(uuid4()))
        assert self.submitted(metadata, study, "b.bam", "a.bam", analysisId=first.analysis_id) == first

    def test_same_files_get_the_same_ids(self, metadata: Metadata, study: str) -> None:
        if not self.derives_ids:
            pytest.skip("this service makes a new analysis each time")
        first, again = self.submitted(metadata, study, "a.bam", "b.bam"), self.submitted(metadata, study, "b.bam", "a.bam")
        assert first == again
        assert self.submitted(metadata, f"{study}-2", "a.bam", "b.bam").analysis_id != first.analysis_id

    @pytest.mark.parametrize(
        "other",
        [
            payload_of("a.bam", "b.bam"),
            payload_of(file_payload("a.bam", fileSize=6)),
            payload_of(file_payload("a.bam", fileAccess="open")),
            payload_of("a.bam", more=1),
            payload_of("a.bam", analysisType={"name": "other"}),
        ],
    )
    def test_id_of_another_analysis_is_a_conflict(self, metadata: Metadata, study: str, other: dict[str, Any]) -> None:
        first = self.submitted(metadata, study, analysisId=str(uuid4()))
        with pytest.raises(Conflict):
            metadata.submit(study, {**other, "analysisId": first.analysis_id})
        assert metadata.analysis(study, first.analysis_id) == first

    def test_id_of_another_study_is_a_conflict(self, metadata: Metadata, study: str) -> None:
        first = self.submitted(metadata, study, analysisId=str(uuid4()))
        with pytest.raises(Conflict):
            metadata.submit(f"{study}-2", payload_of("a.bam", analysisId=first.analysis_id))

    @pytest.mark.parametrize(
        "payload",
        [
            {},
            {"files": [file_payload()]},
            {"analysisType": "reads", "files": [file_payload()]},
            {"analysisType": {"name": ""}, "files": [file_payload()]},
            payload_of(),
            payload_of("a.bam", "a.bam"),
            payload_of("a.bam", studyId="ANOTHER"),
            payload_of("a.bam", studyId=["x"]),
            payload_of("a.bam", analysisId="x"),
            payload_of("a.bam", analysisId=7),
            payload_of(file_payload(fileSize=-1)),
            payload_of(file_payload(fileSize=1.5)),
            payload_of(file_payload(fileSize=True)),
            payload_of(file_payload(fileSize="1")),
            payload_of(file_payload(fileSize=2**63)),
            payload_of(file_payload(fileMd5sum="a" * 31)),
            payload_of(file_payload(fileMd5sum=None)),
            payload_of(file_payload(fileMd5sum="g" * 32)),
            payload_of(file_payload(fileAccess="secret")),
            payload_of(file_payload(fileAccess=["open"])),
            payload_of(file_payload(fileType=None)),
            payload_of(file_payload(info=[1])),
            payload_of(file_payload("")),
            payload_of(file_payload("..")),
            payload_of(file_payload("../a.bam")),
            payload_of(file_payload("a\\b.bam")),
            payload_of(file_payload("a\tb.bam")),
            payload_of(file_payload(" a.bam")),
            payload_of(file_payload("a\u202egpj.bam")),
            payload_of(file_payload("a" * 256)),
            {"analysisType": {"name": "x"}, "files": ["a.bam"]},
            {"analysisType": {"name": "x"}, "files": {"fileName": "a.bam"}},
        ],
    )
    def test_bad_payload_is_refused(self, metadata: Metadata, study: str, payload: dict[str, Any]) -> None:
        with pytest.raises((ConfigurationError, Refused)):
            metadata.submit(study, payload)
        assert study not in metadata.studies()

    @pytest.mark.parametrize("bad", BAD_IDS)
    def test_bad_study_is_refused(self, metadata: Metadata, bad: str) -> None:
        with pytest.raises(NOT_KNOWN):
            metadata.submit(bad, payload_of("a.bam"))
        with pytest.raises(NOT_KNOWN):
            metadata.add_study(bad)

    # Looking up

    def test_entity_is_found(self, metadata: Metadata, study: str) -> None:
        analysis = self.submitted(metadata, study, file_payload(fileAccess="open"))
        entity = metadata.entity(analysis.files[0].object_id.upper())
        assert entity == analysis.files[0].entity
        assert (entity.analysis_id, entity.study_id, entity.access) == (analysis.analysis_id, study, "open")

    @pytest.mark.parametrize("bad", BAD_IDS)
    def test_entity_of_what_is_no_id_is_refused(self, metadata: Metadata, bad: str) -> None:
        with pytest.raises(ConfigurationError):
            metadata.entity(bad)

    def test_unknown_ids_are_not_found(self, metadata: Metadata, study: str) -> None:
        with pytest.raises(ObjectNotFound):
            metadata.entity(str(uuid4()))
        for ask in (metadata.state, metadata.analysis, metadata.publish, metadata.unpublish, metadata.suppress):
            with pytest.raises(ObjectNotFound):
                ask(study, str(uuid4()))

    @pytest.mark.parametrize("bad", BAD_IDS)
    def test_bad_ids_find_nothing(self, metadata: Metadata, study: str, bad: str) -> None:
        analysis = self.submitted(metadata, study)
        for place in ((study, bad), (bad, analysis.analysis_id)):
            for ask in (metadata.state, metadata.analysis, metadata.publish, metadata.suppress):
                with pytest.raises(NOT_KNOWN):
                    ask(*place)
        assert metadata.analysis(study, analysis.analysis_id) == analysis

    def test_analysis_of_another_study_is_not_given(self, metadata: Metadata, study: str) -> None:
        analysis = self.submitted(metadata, study)
        self.submitted(metadata, f"{study}-2", "other.bam")
        with pytest.raises((ObjectNotFound, Refused)):
            metadata.state(f"{study}-2", analysis.analysis_id)

    def test_entities_are_listed_by_analysis_and_study(self, metadata: Metadata, study: str) -> None:
        one, two = (self.submitted(metadata, study, f"{name}.bam", f"{name}.bam.bai") for name in "ab")
        other = self.submitted(metadata, f"{study}-2", "a.bam")
        assert {entity.object_id for entity in metadata.entities(analysis_id=one.analysis_id)} == {file.object_id for file in one.files}
        listed = list(metadata.entities(study_id=study))
        assert sorted(entity.object_id for entity in listed) == sorted(file.object_id for file in (*one.files, *two.files))
        assert list(metadata.entities(study_id=study, analysis_id=other.analysis_id)) == []
        assert {file.entity for file in (*one.files, *two.files, *other.files)} <= set(metadata.entities())

    def test_nothing_is_listed_for_unknown_ids(self, metadata: Metadata, study: str) -> None:
        assert list(metadata.entities(study_id=study)) == []
        assert list(metadata.entities(analysis_id="x' OR '1'='1")) == []

    def test_study_is_made_once(self, metadata: Metadata, study: str) -> None:
        metadata.add_study(study)
        assert study in metadata.studies()
        assert list(metadata.studies()) == sorted(metadata.studies())
        with pytest.raises(Conflict):
            metadata.add_study(study)

    # States

    def test_complete_analysis_is_published(self, metadata: Metadata, shelf: Shelf, study: str) -> None:
        analysis_id = self.published(metadata, shelf, study)
        assert metadata.state(study, analysis_id) == "PUBLISHED"
        changes = metadata.analysis(study, analysis_id).history
        assert [(change.before, change.after) for change in changes] == [("UNPUBLISHED", "PUBLISHED")]
        assert changes[0].at is not None

    def test_missing_file_is_named(self, metadata: Metadata, shelf: Shelf, study: str) -> None:
        analysis = self.submitted(metadata, study, "a.bam", "b.bam")
        shelf.put_all(analysis)
        del shelf.objects[analysis.files[1].object_id]
        with pytest.raises(Conflict, match=r"b\.bam"):
            metadata.publish(study, analysis.analysis_id)
        assert metadata.state(study, analysis.analysis_id) == "UNPUBLISHED"

    @pytest.mark.parametrize(
        ("size", "md5", "said"),
        [(6, md5_hex(b"a.bam"), "6 bytes"), (5, "b" * 32, "b" * 32), (5, None, "without an MD5")],
    )
    def test_other_bytes_are_not_published(
        self, metadata: Metadata, shelf: Shelf, study: str, size: int, md5: str | None, said: str
    ) -> None:
        analysis = self.submitted(metadata, study)
        shelf.put(analysis.files[0].object_id, size=size, md5=md5)
        with pytest.raises(Conflict, match=said):
            metadata.publish(study, analysis.analysis_id)
        assert metadata.state(study, analysis.analysis_id) == "UNPUBLISHED"

    def test_undefined_md5_can_be_ignored(self, metadata: Metadata, shelf: Shelf, study: str) -> None:
        analysis = self.submitted(metadata, study)
        shelf.put(analysis.files[0].object_id, size=5, md5=None)
        metadata.publish(study, analysis.analysis_id, ignore_undefined_md5=True)
        assert metadata.state(study, analysis.analysis_id) == "PUBLISHED"

    def test_wrong_md5_is_never_ignored(self, metadata: Metadata, shelf: Shelf, study: str) -> None:
        analysis = self.submitted(metadata, study)
        shelf.put(analysis.files[0].object_id, size=5, md5="b" * 32)
        with pytest.raises(Conflict):
            metadata.publish(study, analysis.analysis_id, ignore_undefined_md5=True)

    def test_published_goes_back_and_forth(self, metadata: Metadata, shelf: Shelf, study: str) -> None:
        analysis_id = self.published(metadata, shelf, study)
        metadata.publish(study, analysis_id)
        metadata.unpublish(study, analysis_id)
        assert metadata.state(study, analysis_id) == "UNPUBLISHED"
        metadata.publish(study, analysis_id)
        assert [change.after for change in metadata.analysis(study, analysis_id).history] == ["PUBLISHED", "UNPUBLISHED", "PUBLISHED"]

    def test_publishing_the_published_asks_nobody(self, metadata: Metadata, shelf: Shelf, study: str) -> None:
        analysis_id = self.published(metadata, shelf, study)
        shelf.objects.clear()
        metadata.publish(study, analysis_id)
        assert metadata.state(study, analysis_id) == "PUBLISHED"

    @pytest.mark.parametrize("verb", ["publish", "unpublish"])
    def test_suppressed_is_final(self, metadata: Metadata, shelf: Shelf, study: str, verb: Literal["publish", "unpublish"]) -> None:
        analysis_id = self.published(metadata, shelf, study)
        metadata.suppress(study, analysis_id)
        with pytest.raises(Conflict):
            getattr(metadata, verb)(study, analysis_id)
        assert metadata.state(study, analysis_id) == "SUPPRESSED"

    # Many at once

    def test_one_submission_by_many_is_one_analysis(self, metadata: Metadata, study: str) -> None:
        payload = payload_of("a.bam", "b.bam", analysisId=str(uuid4()))
        with ThreadPoolExecutor(8) as pool:
            ids = set(pool.map(lambda _: metadata.submit(study, payload), range(24)))
        assert ids == {payload["analysisId"]}
        assert len(list(metadata.entities(study_id=study))) == 2

    def test_different_claims_to_an_id_have_one_winner(self, metadata: Metadata, study: str) -> None:
        analysis_id = str(uuid4())

        def claim(number: int) -> ScoreError | None:
            try:
                metadata.submit(study, payload_of(f"{number}.bam", analysisId=analysis_id))
            except ScoreError as error:
                return error
            return None

        with ThreadPoolExecutor(8) as pool:
            errors = list(pool.map(claim, range(16)))
        assert errors.count(None) == 1
        assert all(isinstance(error, Conflict) for error in errors if error is not None)
        assert len(metadata.analysis(study, analysis_id).files) == 1

    def test_publishing_by_many_is_one_change(self, metadata: Metadata, shelf: Shelf, study: str) -> None:
        analysis = self.submitted(metadata, study)
        shelf.put_all(analysis)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: metadata.publish(study, analysis.analysis_id), range(16)))
        assert len(metadata.analysis(study, analysis.analysis_id).history) == 1

    def test_analysis_ids_are_ids(self, metadata: Metadata, study: str) -> None:
        assert is_object_id(self.submitted(metadata, study).analysis_id)
