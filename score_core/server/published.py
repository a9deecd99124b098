"""Published objects, as htsget and DRS hand them out: to whom downloads are allowed, and nothing that is not published.

These APIs know no states and no ids of a certain form: what cannot be handed out is simply not found.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request

from score_core.errors import ObjectNotFound
from score_core.ids import is_object_id
from score_core.metadata.base import Entity
from score_core.model import ObjectSpec, SignedUrl
from score_core.repository.direct import DirectRepository
from score_core.server.access import WRONG_STATE, Gate
from score_core.server.errors import Refusal
from score_core.server.kept import Kept

_KEPT_BYTES: Final = 64 << 20
_PART_BYTES: Final = 300  # of a description: measured, with its MD5
_SPEC_LIFE_S: Final = 10.0  # as Score's own downloads
_HOST: Final = re.compile(r"[A-Za-z0-9.-]{1,253}")


@dataclass(frozen=True)
class Ga4ghOptions:
    """What a server says of itself to clients of htsget and DRS.

    `url` is its address for clients, without a trailing slash; None: what the request says. `url_lifetime_s` is how long the signed URLs
    live that these clients get: a reader of a ticket comes to its last block when it has worked through all before.
    """

    url: str | None = None
    url_lifetime_s: float = 21_600.0
    organization: str = "Score for Python"
    organization_url: str | None = None

    def base_url(self, request: Request) -> str:
        return self.url or str(request.base_url).rstrip("/")

    def host(self, request: Request) -> str:
        """The host name alone, as DRS URIs have it: a port would make another kind of URI of them."""
        try:
            host = urlsplit(self.base_url(request)).hostname or ""
        except ValueError:  # a Host header can be anything
            host = ""
        return host if _HOST.fullmatch(host) else "localhost"


@dataclass(frozen=True, slots=True)
class Opened:
    """An object that the caller may have. `entity` is what the metadata say of it, None when there are none."""

    spec: ObjectSpec
    entity: Entity | None

    @property
    def name(self) -> str:
        """What the file is called, for people and for its suffix; empty if nobody knows."""
        return self.entity.file_name if self.entity is not None else self.spec.file_name or ""


class Published:
    """Objects and their signed URLs for htsget and DRS. Thread-safe."""

    def __init__(self, repository: DirectRepository, gate: Gate, options: Ga4ghOptions) -> None:
        self.repository: Final = repository
        self.gate: Final = gate
        self.options: Final = options
        self._specs = Kept[ObjectSpec](_KEPT_BYTES, _SPEC_LIFE_S, size_of=_size_of_spec)

    def open(self, request: Request, object_id: str) -> Opened:
        """The object, after the same questions as a download is asked (`Gate.for_download`).

        Raises:
            Refusal: 401, 403, or 404 for what is no object id, unknown, not stored, or not published.
        """
        if not is_object_id(object_id):
            self.gate.caller(request)  # a bad token is refused, whatever it asks for
            raise not_found(object_id)
        object_id = object_id.lower()
        entity = self.gate.for_download(request, object_id)
        if self.gate.metadata is not None:
            entity = entity or self.gate.entity(object_id)
            self.require(entity)
        return Opened(self.describe(object_id), entity)

    def require(self, entity: Entity) -> None:
        """Raises a `Refusal`, 404, unless the analysis of the file is published."""
        try:
            self.gate.require(entity.object_id, "PUBLISHED", entity)
        except Refusal as refusal:
            if refusal.code != WRONG_STATE:
                raise
            raise Refusal(404, f"Analysis {entity.analysis_id} is not published", code="not-found") from None

    def describe(self, object_id: str) -> ObjectSpec:
        """What the store says of an object, at most some seconds old. Raises a `Refusal`, 404, when it is not there."""
        try:
            return self._specs.get(object_id, lambda: self.repository.describe(object_id))
        except ObjectNotFound:
            raise not_found(object_id) from None

    def sign(self, spec: ObjectSpec) -> SignedUrl:
        """A URL for the whole object or any range of it."""
        return self.repository.sign_downloads(spec, [None], lifetime_s=self.options.url_lifetime_s)[0]

    def forget(self, object_id: str) -> None:
        """To be called when an object got other bytes."""
        self._specs.forget(object_id)


def not_found(name: str) -> Refusal:
    return Refusal(404, f"There is no object {name[:80]!r} here", code="not-found")


def _size_of_spec(spec: ObjectSpec) -> int:
    return sys.getsizeof(spec) + len(spec.parts) * _PART_BYTES
