"""A folder with published and other objects behind a server, for tests of what is handed out: one for a whole module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from score_core.checksum import md5_hex
from score_core.metadata.registry import Registry
from score_core.model import StoredPart
from score_core.repository.direct import DirectRepository
from score_core.stores.local import LocalStore
from tests.server.conftest import Site, Stage, site_over
from tests.server.test_score_api import Tokens

STUDY = "TEST-CA"
DATA = Path(__file__).resolve().parents[1] / "data"


@dataclass
class Shelf:
    """A server whose tokens are the names of `Tokens`. `ids` has the object id of each file, `analyses` the analysis of each group."""

    site: Site
    registry: Registry
    repository: DirectRepository
    ids: dict[str, str]
    analyses: dict[str, str]

    def get(self, path: str, token: str | None = "reader", **options: Any) -> Any:
        return self.call("GET", path, token, **options)

    def post(self, path: str, token: str | None = "reader", **options: Any) -> Any:
        return self.call("POST", path, token, **options)

    def call(self, method: str, path: str, token: str | None, *, headers: dict[str, str] | None = None, **options: Any) -> Any:
        authorization = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self.site.http.request(method, path, headers={**authorization, **(headers or {})}, **options)

    def add(self, group: str, files: dict[str, bytes], *, publishes: bool = True, stores: bool = True, access: str = "controlled") -> None:
        """Registers an analysis, stores its files as Score does, and publishes it."""
        facts = [
            {
                "fileName": name,
                "fileSize": len(data),
                "fileMd5sum": md5_hex(data),
                "fileType": "BAM",
                "fileAccess": access,
                "dataType": "Reads",
                "info": {},
            }
            for name, data in files.items()
        ]
        analysis_id = self.registry.submit(STUDY, {"analysisType": {"name": "sequencingRead"}, "files": facts})
        self.analyses[group] = analysis_id
        for record in self.registry.analysis(STUDY, analysis_id).files:
            self.ids[record.file_name] = record.object_id
            if stores:
                self.put(record.object_id, files[record.file_name])
        if publishes:
            self.registry.publish(STUDY, analysis_id)

    def put(self, object_id: str, data: bytes) -> None:
        upload = self.repository.begin_upload(object_id, len(data), md5=md5_hex(data), overwrite=True)
        if not data:
            self.repository.commit(upload, [])
            return
        store: Any = self.repository._buckets.base.data
        with store.receive_part(f"data/{object_id}", upload.upload_id, 1) as writer:
            writer.write(data)
            writer.commit()
        self.repository.commit(upload, [StoredPart(1, md5_hex(data), md5_hex(data))])


@contextmanager
def shelf_in(folder: Path, stages: list[Stage], **options: Any) -> Iterator[Shelf]:
    """An empty one. `options` are those of `ServerParts`."""
    with closing(LocalStore(folder / "bucket")) as store:
        repository = DirectRepository(store)
        with closing(Registry(folder / "registry.sqlite3", repository=repository)) as registry:
            given = {"metadata": registry, "authenticator": Tokens(), **options}
            with site_over(stages, repository, **given) as site:
                del site.http.headers["authorization"]
                yield Shelf(site, registry, repository, {}, {})
