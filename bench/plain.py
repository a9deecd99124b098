"""A client process for servers that are no object store: plain files of nginx, and the discarding sink."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from score_core.checksum import Buffer
from score_core.model import ByteRange, ObjectInfo, ObjectSpec, Part, SignedUrl, StoredPart, Upload, UploadInfo
from score_core.plan import plan_parts
from score_core.transfer.engine import Engine
from score_core.transfer.http import HttpTransport
from score_core.transfer.part import PutReply
from score_core.transfer.stop import Stop

OBJECT_ID: Final = "00000000-0000-4000-8000-000000000001"
_FOR_EVER: Final = float("inf")


class PlainRepository:
    """One object at one address, without a store behind it: enough of a `Repository` to move bytes through the real engine."""

    def __init__(self, address: str, spec: ObjectSpec) -> None:
        self.label = address
        self._address = address
        self._spec = spec

    def exists(self, object_id: str) -> bool:
        return False

    def describe(self, object_id: str) -> ObjectSpec:
        return self._spec

    def sign_downloads(self, spec: ObjectSpec, ranges: Sequence[ByteRange]) -> list[SignedUrl]:
        return [SignedUrl("GET", self._address, _FOR_EVER) for _ in ranges]

    def sign_external(self, object_id: str) -> SignedUrl:
        return SignedUrl("GET", self._address, _FOR_EVER)

    def find_upload(self, object_id: str, size: int) -> Upload | None:
        return None

    def begin_upload(self, object_id: str, size: int, *, md5: str, file_name: str | None = None, overwrite: bool = False) -> Upload:
        return Upload(object_id, "bench", size, self._spec.parts, md5)

    def sign_uploads(self, upload: Upload, parts: Sequence[Part], *, content_md5: bool = False) -> list[SignedUrl]:
        return [SignedUrl("PUT", f"{self._address}?part={part.number}", _FOR_EVER) for part in parts]

    def commit_part(self, upload: Upload, part: StoredPart) -> None: ...
    def commit(self, upload: Upload, parts: Sequence[StoredPart], *, sealed: bool = False) -> None: ...

    def abort(self, object_id: str) -> bool:
        return False

    def list_objects(self) -> Iterator[ObjectInfo]:
        return iter(())

    def list_uploads(self) -> Iterator[UploadInfo]:
        return iter(())

    def check(self) -> None: ...
    def close(self) -> None: ...


class SinkTransport(HttpTransport):
    """Answers ETags from a table made beforehand, since the sink hashes nothing: a server's MD5 would be measured otherwise."""

    def __init__(self, etags: dict[str, str]) -> None:
        super().__init__()
        self._etags = etags

    def put(self, size: int, url: SignedUrl, blocks: Iterable[Buffer], *, stop: Stop | None = None) -> PutReply:
        super().put(size, url, blocks, stop=stop)
        return PutReply(self._etags[url.url.rpartition("=")[2]], encrypted=False)


def main(arguments: list[str]) -> int:
    """`get ADDRESS SPEC TARGET VALIDATION` or `put ADDRESS SPEC SOURCE`; SPEC is a JSON file with `size`, `md5` and the parts' `etags`."""
    verb, address, facts_file, path, *rest = arguments
    facts = json.loads(Path(facts_file).read_text())
    parts = tuple(Part(part.number, part.offset, part.size, facts["etags"][str(part.number)]) for part in plan_parts(facts["size"]))
    spec = ObjectSpec(OBJECT_ID, facts["size"], parts, md5=facts["md5"], sealed=True)
    repository = PlainRepository(address, spec)
    if verb == "get":
        Engine(repository, HttpTransport()).download(spec, Path(path), validation=rest[0])  # type: ignore[arg-type]  # our own caller
    else:
        Engine(repository, SinkTransport(facts["etags"])).upload(Path(path), OBJECT_ID, md5=facts["md5"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
