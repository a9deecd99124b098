"""Requests made up from our OpenAPI, right and wrong ones: no answer is a fault (503 neither), and each is as documented.

`scripts/soak` runs many more of them. `SCORE_SOAK_EXAMPLES` is how many of each operation are made up beside those that are the same in
every run (limits of numbers, missing parameters, other types), `SCORE_SOAK_SEED` another seed.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis import engine
from schemathesis.config import SchemathesisConfig
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished

from score_core.checksum import md5_hex
from score_core.metadata.registry import Registry
from score_core.model import StoredPart
from score_core.repository.direct import DirectRepository
from score_core.testing.memory import MemoryStore
from score_core.testing.metadata import file_payload, payload_of
from tests.server.conftest import TOKEN, Site, StartSite

SOAKS = "SCORE_SOAK_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("SCORE_SOAK_EXAMPLES", "3"))
METHODS = ["get", "put", "post", "delete", "options", "patch", "trace"] if SOAKS else []  # where the document has none
SEED = int(os.environ.get("SCORE_SOAK_SEED", "20240704"))
STUDY = "TEST-CA"
DATA = Path(__file__).resolve().parents[1] / "data"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)


@pytest.fixture
def furnished(start_site: StartSite, tmp_path: Path) -> Iterator[Site]:
    """A whole server: a registry with analyses in every state, objects, and an upload half done."""
    repository = DirectRepository(MemoryStore())
    with closing(Registry(tmp_path / "registry.sqlite3", repository=repository)) as registry:
        for state in ("UNPUBLISHED", "PUBLISHED", "SUPPRESSED"):
            files = {f"{state}.bam": DATA / "range.bam", f"{state}.bai": DATA / "range.bam.bai", f"{state}.vcf.gz": DATA / "ex1.vcf.gz"}
            analysis = registry.submit(STUDY, payload_of(*(_facts(name, path.read_bytes()) for name, path in files.items())))
            if state == "PUBLISHED":
                for file in registry.analysis(STUDY, analysis).files:
                    _store(repository, file.object_id, files[file.file_name].read_bytes())
                registry.publish(STUDY, analysis)
            if state == "SUPPRESSED":
                registry.suppress(STUDY, analysis)
        yield start_site(repository, metadata=registry, song=registry)


def _facts(name: str, data: bytes) -> dict[str, Any]:
    return file_payload(name, fileSize=len(data), fileMd5sum=md5_hex(data))


def _store(repository: DirectRepository, object_id: str, data: bytes) -> None:
    upload = repository.begin_upload(object_id, len(data), md5=md5_hex(data))
    store: Any = repository._buckets.base.data
    etag = store.put_part(f"data/{object_id}", upload.upload_id, 1, data)
    repository.commit(upload, [StoredPart(1, md5_hex(data), etag)])


@pytest.fixture
def api(furnished: Site) -> Any:
    """The schema, in which names of what is there are as likely as made-up ones."""
    document = furnished.http.get("/openapi.json").json()
    registry: Any = furnished.parts.metadata
    entities = list(registry.entities())
    there = {
        "object_id": sorted({entity.object_id for entity in entities}),
        "analysis_id": sorted({entity.analysis_id for entity in entities}),
        "study": [STUDY],
        "access_id": ["https"],
    }
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path":
                    parameter["schema"] = {"anyOf": [{"enum": there[parameter["name"]]}, parameter["schema"]]}
    config = SchemathesisConfig.from_dict(
        {
            "seed": SEED,
            "base-url": furnished.url,
            "headers": {"Authorization": f"Bearer {TOKEN}"},
            "continue-on-failure": True,
            "generation": {"max-examples": EXAMPLES, "database": "none"},
            "phases": {
                "coverage": {"generate-duplicate-query-parameters": True, "unexpected-methods": METHODS},
                "stateful": {"enabled": SOAKS},
            },
            "checks": {"enabled": False, **{name: {"enabled": True} for name in CHECKS}},
        }
    )
    return schemathesis.openapi.from_dict(document, config=config)


@pytest.mark.timeout(3600)
def test_every_answer_is_as_documented(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    statuses, failures, began = Counter[int](), set[str](), time.monotonic()
    for event in engine.from_schema(api).execute():
        assert not isinstance(event, FatalError | NonFatalError), event
        if isinstance(event, ScenarioFinished):
            recorder = event.recorder
            statuses.update(talk.response.status_code for talk in recorder.interactions.values() if talk.response is not None)
            failures |= {
                f"{recorder.label}: {check.failure_info.failure}\n{check.failure_info.code_sample}"
                for checks in recorder.checks.values()
                for check in checks
                if check.failure_info is not None
            }
    with capsys.disabled():
        seen = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
        sys.stdout.write(f"\n{statuses.total()} requests in {time.monotonic() - began:.0f} s (seed {SEED}, {EXAMPLES} examples): {seen}\n")
    assert not failures, "\n\n".join(sorted(failures))
    assert statuses.total() > 300
