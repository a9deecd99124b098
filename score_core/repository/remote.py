"""A Score server, ours or the Java one, as a `Repository` (protocol sections 2, 3 and 23.1).

Where Java servers and clients are known to fail it does better: status marks are believed only with the local bytes' MD5, a finalise whose
answer is lost is settled by looking, nothing counts as published before `exists` says so, and a dead URL costs one part, not the transfer.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import httpx

from score_core.checksum import EMPTY_MD5, md5_base64
from score_core.errors import (
    AccessDenied,
    AuthenticationError,
    ChangedError,
    ConfigurationError,
    Conflict,
    NotResumableError,
    ObjectNotFound,
    ServiceError,
    TransferError,
    TransientError,
    Unavailable,
    UrlExpiredError,
)
from score_core.hosts import is_link_local
from score_core.ids import check_object_id
from score_core.model import ByteRange, ObjectInfo, ObjectSpec, Part, SignedUrl, StoredPart, Upload, UploadInfo
from score_core.repository import wire
from score_core.service import Method, Refused, ServiceClient, is_private_line
from score_core.transfer.http import HttpTransport

_log = logging.getLogger(__name__)

_FINISH_TIMEOUT_S: Final = 900.0  # a store may take minutes to put 10,000 parts together
_PROBE_TIMEOUT_S: Final = 10.0
_UNKNOWN_LIFE_S: Final = 300.0  # of a URL that does not say until when it is good
_ASK_AGAIN_S: Final = 5.0  # a server is not asked for URLs more often than this because of failures: it answers with all parts' URLs
_MARGIN_S: Final = 30.0
_FEW_ATTEMPTS: Final = 3  # before finding out whether an upload that answers 503 is dead (3.9, step 2)
_SURELY_OVER: Final = 3  # refusals after a lost answer to finalise before it is taken that nothing is running there any more (21.16)
_MAX_ABORTS: Final = 100
_NO_ETAG: Final = "no-such-etag"


@dataclass(slots=True)
class _PutUrls:
    """The PUT URLs of one upload, as of one answer. `asked_at` is monotonic; `skew_s` is what the server's clock is ahead of ours.

    `given` are the parts whose URL was handed out since: who asks again has met a failure.
    """

    urls: dict[int, str] = field(repr=False)
    asked_at: float
    skew_s: float
    given: set[int] = field(default_factory=set)


class RemoteRepository:
    """`Repository` over a Score server's REST API. Closes `client` with itself.

    `data_hosts`, if not empty, are the only hosts that signed URLs may lead to. No token ever goes to them.
    """

    def __init__(self, client: ServiceClient, *, data_hosts: Sequence[str] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._data_hosts = frozenset(host.lower() for host in data_hosts)
        self._allows_plain_data = client.options.allow_plain_http or urlsplit(client.url).scheme == "http"
        self._lock = threading.Lock()
        self._puts: dict[str, _PutUrls] = {}
        self._records: dict[tuple[str, int], StoredPart] = {}  # what this process put on record, or tried to
        self._free: deque[str] = deque(maxlen=64)  # objects that were seen to have no upload in progress

    @property
    def label(self) -> str:
        return self._client.url

    # Objects

    def exists(self, object_id: str) -> bool:
        text = self._ask("GET", f"/upload/{check_object_id(object_id)}").text.strip().lower()
        if text not in {"true", "false"}:
            raise ServiceError(f"{self.label} does not say whether object {object_id} exists; is it a Score server?")
        return text == "true"

    def describe(self, object_id: str) -> ObjectSpec:
        object_id = check_object_id(object_id)
        return wire.read_spec(self._spec(object_id, **{"exclude-urls": True}), object_id)

    def _spec(self, object_id: str, **options: bool) -> Any:
        def ask() -> Any:
            return _json(self._client.get(f"/download/{object_id}", params={"offset": 0, "length": -1, **options}))

        try:
            return ask()
        except ObjectNotFound as error:
            raise self._unknown(object_id, error) from None
        except ServiceError as error:
            if error.status != 500:
                raise
            if self._is_missing(object_id):
                raise self._unknown(object_id, error) from None
            return ask()  # it may have been published in between

    def _is_missing(self, object_id: str) -> bool:
        """Java servers answer 500 for an object that is known and not stored (3.6), as for other things: one look decides."""
        try:
            return not self.exists(object_id)
        except (AccessDenied, AuthenticationError):  # who may only download cannot look
            return False

    def _unknown(self, object_id: str, error: ServiceError) -> ObjectNotFound:
        return ObjectNotFound(f"Object {object_id} is not in {self.label}; check the id and the server ({error})", status=404)

    def sign_downloads(self, spec: ObjectSpec, ranges: Sequence[ByteRange]) -> list[SignedUrl]:
        if not ranges:
            return []
        urls = self._get_urls(spec.object_id)
        whole = urls.get(None)
        if whole is not None:
            return [self._get_url(whole)] * len(ranges)
        found = [urls.get((wanted.offset, wanted.size)) for wanted in ranges]  # a server that knows no `external`
        if None in found:
            raise ServiceError(f"{self.label} gives no URL for the bytes that are wanted of object {spec.object_id}; ask its operator")
        return [self._get_url(url, wanted) for url, wanted in zip(found, ranges, strict=True) if url is not None]

    def sign_external(self, object_id: str) -> SignedUrl:
        urls = self._get_urls(check_object_id(object_id))
        if None not in urls:
            raise ServiceError(f"{self.label} gives no single URL for object {object_id}; ask its operator")
        return self._get_url(urls[None])

    def _get_urls(self, object_id: str) -> dict[tuple[int, int] | None, str]:
        try:
            body = self._spec(object_id, external=True)
        except Refused as error:
            why = error.reason or f"{error}; most likely its analysis is not published"
            raise Conflict(f"Object {object_id} cannot be downloaded: {why}", status=error.status) from None
        return wire.read_url(body, object_id)

    def list_objects(self) -> Iterator[ObjectInfo]:
        yield from sorted(wire.read_listing(_json(self._client.get("/listing"))), key=lambda row: row.object_id)

    # Uploads

    def _ask(self, method: Method, path: str, **options: Any) -> httpx.Response:
        """A request about uploads, which Java servers answer with 400 when no token comes with it (3.1)."""
        try:
            return self._client.request(method, path, **options)
        except Refused:
            if self._client.token.text is None:
                raise AuthenticationError(
                    f"{self.label} wants a token for uploads; set ACCESSTOKEN or SCORE_TOKEN_FILE", status=401
                ) from None
            raise

    def find_upload(self, object_id: str, size: int) -> Upload | None:
        upload = self._look(check_object_id(object_id), size)
        if upload is None:
            self._free.append(check_object_id(object_id))
            return None
        missing = [part for part in upload.parts if part.number not in upload.stored]
        if missing and not any(self._is_good(upload.upload_id, part.number) for part in missing):
            _log.info("The URLs of the upload of object %s are dead and %s does not renew them: it begins anew", object_id, self.label)
            return None
        if not self._is_alive(upload):
            _log.info("The store has dropped the upload of object %s: it begins anew", object_id)
            return None
        return upload

    def _look(self, object_id: str, size: int) -> Upload | None:
        """The upload in progress as the server tells it; its URLs are remembered. Raises `Conflict` for a file of another size."""
        try:
            response = self._ask("GET", f"/upload/{object_id}/status", params={"fileSize": size})
        except ObjectNotFound:
            return None
        except (Refused, Conflict) as error:
            raise Conflict(f"Object {object_id} is being uploaded from a file of another size ({error})", status=error.status) from None
        if not response.content:  # Azure: its uploads leave no trace before they are done (section 19)
            return None
        upload, urls = wire.read_upload(_json(response), object_id, size=size)
        self._remember(upload, urls, response)
        return upload

    def _look_again(self, upload: Upload) -> Upload | None:
        """The upload as it is now; None if it is over, or another has taken its place."""
        try:
            found = self._look(upload.object_id, upload.size)
        except Conflict:
            return None
        return found if found is not None and found.upload_id == upload.upload_id else None

    def _is_alive(self, upload: Upload) -> bool:
        """Whether the store still knows the upload: a Java server goes on telling of one that a lifecycle rule has dropped.

        Of all verbs only this one makes such a server ask the store (3.9, step 2). It records nothing, for no part has this ETag. Servers
        of ours, which tell the upload's MD5, have asked the store already.
        """
        if upload.md5 is not None or not upload.parts:
            return True
        record = {"uploadId": upload.upload_id, "partNumber": upload.parts[0].number, "md5": EMPTY_MD5, "etag": _NO_ETAG}
        try:
            self._client.request("POST", f"/upload/{upload.object_id}/parts", params=record, attempts=_FEW_ATTEMPTS)
        except (Unavailable, ObjectNotFound):
            return False
        except (Refused, Conflict):
            pass
        return True

    def begin_upload(self, object_id: str, size: int, *, md5: str, file_name: str | None = None, overwrite: bool = False) -> Upload:
        object_id = check_object_id(object_id)
        self._make_way(object_id, overwrite=overwrite)
        params = {"fileSize": size, "overwrite": overwrite, "md5": md5, **({} if file_name is None else {"fileName": file_name})}
        try:
            response = self._ask("POST", f"/upload/{object_id}/uploads", params=params)
        except ObjectNotFound as error:
            raise ObjectNotFound(f"{self.label} knows no object {object_id}: register it first ({error})", status=404) from None
        except Refused as error:
            why = error.reason or f"{error}; most likely its analysis is published already"
            raise Conflict(f"Object {object_id} cannot be uploaded: {why}", status=error.status) from None
        except ServiceError as error:
            if error.status == 500 and not overwrite and self.exists(object_id):
                raise self._exists_already(object_id) from None
            raise
        upload, urls = wire.read_upload(_json(response), object_id, size=size, md5=md5)
        if upload.upload_id == object_id:  # no S3 upload has such an id
            raise ConfigurationError(f"{self.label} stores in Azure: uploads to that are not supported; use the Java client")
        self._remember(upload, urls, response)
        return upload

    def _make_way(self, object_id: str, *, overwrite: bool) -> None:
        """Drops an older upload: Java servers would forget it and leave its parts in the bucket (3.8, step 3).

        Nothing to do when `find_upload`, with which all drivers begin, has just found none; then the server says whether the object exists.
        """
        try:
            self._free.remove(object_id)
            return
        except ValueError:
            pass
        if not overwrite and self.exists(object_id):
            raise self._exists_already(object_id)
        self._abort_quietly(object_id)

    def _abort_quietly(self, object_id: str) -> None:
        try:
            self._abort(object_id, attempts=1)
        except ServiceError as error:  # such as 503 for ever, when the store has dropped the upload already
            _log.info("An older upload of object %s could not be dropped; the server will sweep it up (3.15): %s", object_id, error)

    def _exists_already(self, object_id: str) -> Conflict:
        return Conflict(f"Object {object_id} exists already in {self.label}; --force replaces it")

    def sign_uploads(self, upload: Upload, parts: Sequence[Part], *, content_md5: bool = False) -> list[SignedUrl]:
        if not parts:
            return []
        with self._lock:
            if not all(self._may_give(upload.upload_id, part.number) for part in parts):
                self._ask_for_urls(upload, parts)
            known = self._puts[upload.upload_id]
            signed = []
            for part in parts:
                url = known.urls.get(part.number)
                if url is None:
                    raise ServiceError(f"{self.label} gives no URL for part {part.number} of object {upload.object_id}; ask its operator")
                known.given.add(part.number)
                # Content-MD5 need not be signed for the store to check it; whether it does, the session finds out before it relies on it.
                headers = {"Content-MD5": md5_base64(str(part.md5))} if content_md5 else {}
                signed.append(self._signed("PUT", url, headers, skew_s=known.skew_s))
            return signed

    def _may_give(self, upload_id: str, number: int) -> bool:
        """Whether the URL at hand will do: good by its own word, and not given before, unless the server was asked just now."""
        if not self._is_good(upload_id, number):
            return False
        known = self._puts[upload_id]
        return number not in known.given or self._clock() - known.asked_at < _ASK_AGAIN_S

    def _is_good(self, upload_id: str, number: int) -> bool:
        known = self._puts.get(upload_id)
        url = known.urls.get(number) if known else None
        if known is None or url is None:
            return False
        signed_at, expires_at = wire.lifetime_of(url)
        if expires_at is None:
            return self._clock() - known.asked_at < _UNKNOWN_LIFE_S
        now = time.time() + known.skew_s
        known_since = now - (self._clock() - known.asked_at) if signed_at is None else signed_at  # V2 and folders do not say when
        return now < expires_at - min(_MARGIN_S, max(0.0, expires_at - known_since) / 5)

    def _ask_for_urls(self, upload: Upload, parts: Sequence[Part]) -> None:
        if self._look_again(upload) is None:
            raise self._dropped(upload)
        if not any(self._is_good(upload.upload_id, part.number) for part in parts):
            self._abort_quietly(upload.object_id)  # nobody can send these parts any more, and the next run would take it up again
            raise NotResumableError(
                f"The URLs of the upload of object {upload.object_id} have expired and {self.label} does not renew them; "
                "run the same command again to begin anew"
            )

    def _dropped(self, upload: Upload) -> ObjectNotFound:
        return ObjectNotFound(f"The upload of object {upload.object_id} is gone from {self.label}; upload it again", status=404)

    def _remember(self, upload: Upload, urls: dict[int, str], response: httpx.Response) -> None:
        self._puts[upload.upload_id] = _PutUrls(urls, self._clock(), _skew_s(response))

    def commit_part(self, upload: Upload, part: StoredPart) -> None:
        path = f"/upload/{upload.object_id}/parts"
        key, names = (upload.upload_id, part.number), {"uploadId": upload.upload_id, "partNumber": part.number}
        old = self._records.get(key) or upload.stored.get(part.number)
        if old is not None and old != part:  # two records of one part block a Java server's finalise (21.14)
            self._client.request("DELETE", path, params=names)
        self._records[key] = part  # before it is: the answer may be lost
        record = {**names, "md5": part.md5, "etag": part.etag}
        try:
            self._patiently(upload, lambda attempts: self._client.request("POST", path, params=record, attempts=attempts))
        except (Refused, Conflict) as error:
            self._client.request("DELETE", path, params=names)
            raise TransientError(f"{self.label} does not find part {part.number} as it was sent ({error}); it is sent again") from None

    def _patiently(self, upload: Upload, ask: Callable[[int | None], object]) -> None:
        """Asks as often as the policy says, but for an upload that is gone, which a Java server also answers with 503, not for long."""
        try:
            ask(_FEW_ATTEMPTS)
        except Unavailable:
            if self._look_again(upload) is None:
                raise self._dropped(upload) from None
            ask(None)

    def commit(self, upload: Upload, parts: Sequence[StoredPart], *, sealed: bool = False) -> None:
        if self._records_are(upload, parts):
            self._finish(upload, parts, sealed=sealed)
        elif not self._is_ours(upload, parts):
            raise self._not_published(upload)
        self._puts.pop(upload.upload_id, None)
        for part in parts:
            self._records.pop((upload.upload_id, part.number), None)

    def _records_are(self, upload: Upload, parts: Sequence[StoredPart]) -> bool:
        """Whether the server has exactly these parts on record; False if the upload is over.

        Raises:
            Conflict: a part is missing there, or is another.
        """
        found = self._look_again(upload)
        if found is None:
            return False
        for part in parts:
            stored = found.stored.get(part.number)
            if stored is None or stored.md5 != part.md5:
                raise Conflict(
                    f"Part {part.number} of object {upload.object_id} is not stored in {self.label} as it was sent; run it again"
                )
        return True

    def _finish(self, upload: Upload, parts: Sequence[StoredPart], *, sealed: bool) -> None:
        """Asks until the object is there. A 200 alone proves nothing (21.15); any other answer, or none, may hide success (21.16)."""
        doubt: Unavailable | TransientError | None = None
        mended = False
        for attempt in itertools.count(1):
            refusal: ServiceError | None = None
            try:
                self._ask_to_finish(upload, sealed=sealed)
            except TransientError as error:
                doubt = error
            except ServiceError as error:
                refusal = error
            try:
                is_over = doubt is not None and self._look_again(upload) is None  # asked first: servers drop an upload last
                if self._is_ours(upload, parts):
                    return
                if is_over:
                    raise self._not_published(upload)
            except Unavailable as error:
                doubt = error
            if isinstance(refusal, Refused | Conflict) and not mended and (doubt is None or attempt > _SURELY_OVER):
                mended = True
                if self._record_anew(upload, parts):
                    continue
            pause_s = None if doubt is None else self._client.policy.pause_s(doubt, attempt)
            if pause_s is None:
                raise self._unfinished(upload, refusal or doubt)
            self._client.pause(pause_s)

    def _ask_to_finish(self, upload: Upload, *, sealed: bool) -> None:
        params = {"uploadId": upload.upload_id, **({"sealed": True} if sealed else {})}
        try:
            self._client.once("POST", f"/upload/{upload.object_id}", params=params, read_timeout_s=_FINISH_TIMEOUT_S)
        except ObjectNotFound:
            _log.info("The upload of object %s is over", upload.object_id)  # how it ended, the object tells

    def _unfinished(self, upload: Upload, error: ServiceError | TransientError | None) -> ServiceError:
        what = f"{self.label} does not publish object {upload.object_id}: {error}"
        if error is None:
            return self._not_published(upload)
        if isinstance(error, Refused | Conflict):
            return Conflict(what, status=error.status)
        if isinstance(error, TransientError | Unavailable):
            advice = "run the same command again to go on" if upload.parts else "Java servers cannot store an empty file"
            return Unavailable(f"{what}; {advice}")
        return error

    def _not_published(self, upload: Upload) -> ServiceError:
        if not self.exists(upload.object_id):
            return self._dropped(upload)
        return Conflict(f"Object {upload.object_id} in {self.label} is another upload's; compare, and use --force if yours is right")

    def _record_anew(self, upload: Upload, parts: Sequence[StoredPart]) -> bool:
        """Replaces all records of an upload that a server refuses to finish though none is missing: one is there twice (21.14).

        False if some could not be: these parts count as missing from now on.
        """
        path, lost = f"/upload/{upload.object_id}/parts", 0
        for part in parts:
            names = {"uploadId": upload.upload_id, "partNumber": part.number}
            self._client.request("DELETE", path, params=names)
            try:
                self._client.request("POST", path, params={**names, "md5": part.md5, "etag": part.etag})
            except (Refused, Conflict):  # after a resume the ETag may be a guess: Java servers do not tell it
                lost += 1
        _log.info("The parts of object %s were recorded anew, but for %d", upload.object_id, lost)
        return lost == 0

    def _is_ours(self, upload: Upload, parts: Sequence[StoredPart]) -> bool:
        """Whether the object is published with just these parts, or, where the server does not know parts' MD5s, with the same whole one.

        Part MD5s are told from `.meta` only, which is what makes an object exist (3.7). So the usual end of an upload takes one look.
        """
        try:
            spec = self.describe(upload.object_id)
        except ObjectNotFound:
            return False
        except AccessDenied:  # who may only upload cannot look closer
            return self.exists(upload.object_id) and self._look_again(upload) is None
        if spec.size != upload.size:
            return False
        theirs = {part.number: part.md5 for part in spec.parts}
        if None not in theirs.values():
            return theirs == {part.number: part.md5 for part in parts}
        return spec.md5 is not None and spec.md5 == upload.md5 and self.exists(upload.object_id)

    def abort(self, object_id: str) -> bool:
        return self._abort(check_object_id(object_id))

    def _abort(self, object_id: str, *, attempts: int | None = None) -> bool:
        for count in range(_MAX_ABORTS):
            try:
                self._ask("DELETE", f"/upload/{object_id}", attempts=attempts)
            except ObjectNotFound:
                return count > 0
        return True

    def list_uploads(self) -> Iterator[UploadInfo]:
        try:
            response = self._client.get("/uploads")
        except ObjectNotFound:
            raise ServiceError(f"{self.label} cannot list unfinished uploads: Java servers do not") from None
        yield from sorted(wire.read_uploads(_json(response)), key=lambda row: (row.object_id, row.upload_id))

    # The connection

    def check(self) -> None:
        try:
            url = self._client.get("/download/ping").text.strip()
        except (Refused, ObjectNotFound):
            return  # it is there and lets us in, but was given no object to try
        signed = self._signed("GET", url, {})
        ca_file = self._client.options.ca_file
        transport = HttpTransport(
            connections=1, connect_timeout_s=_PROBE_TIMEOUT_S, stall_s=_PROBE_TIMEOUT_S, ca_file=None if ca_file is None else str(ca_file)
        )
        try:
            transport.get(ByteRange(0, 1), signed, lambda _: None)
        except (AccessDenied, UrlExpiredError) as error:
            raise Unavailable(
                f"The object store refuses the URL that {self.label} signed ({error}); ask its operator, and check the clock"
            ) from None
        except TransientError as error:
            host = urlsplit(url).netloc
            raise Unavailable(
                f"The object store {host}, where {self.label} sends us, is not reached ({error}); "
                "check the network and any proxy, or use --verify-connection false"
            ) from None
        except (ServiceError, TransferError, ChangedError) as error:  # empty, or not put there by the operator: but the store has let us in
            _log.debug("The object for trying the connection cannot be read: %s", error)
        finally:
            transport.close()

    def close(self) -> None:
        self._client.close()

    # URLs

    def _get_url(self, url: str, wanted: ByteRange | None = None) -> SignedUrl:
        """A fresh GET URL. Its life counts from now by our clock: it was signed for this very answer."""
        signed_at, _ = wire.lifetime_of(url)
        skew_s = 0.0 if signed_at is None else signed_at - time.time()
        return self._signed("GET", url, {} if wanted is None else {"Range": wanted.http}, skew_s=skew_s)

    def _signed(self, method: Literal["GET", "PUT"], url: str, headers: dict[str, str], *, skew_s: float = 0.0) -> SignedUrl:
        """The URL byte for byte as it came (section 8), if it leads where bytes may go.

        Raises:
            ServiceError: it does not.
        """
        try:
            parts = urlsplit(url)
            host, _ = (parts.hostname or "").lower(), parts.port
        except ValueError:
            host = ""
        if not host or parts.scheme not in {"http", "https"} or "@" in parts.netloc or not url.isprintable() or " " in url:
            raise ServiceError(f"{self.label} answered something else than a URL; ask its operator")
        if parts.scheme == "http" and not self._allows_plain_data and not is_private_line(url):
            raise ServiceError(
                f"{self.label} sends us to {host} over plain http, where others can read along; set allow_plain_http to accept it"
            )
        if self._data_hosts and host not in self._data_hosts:
            raise ServiceError(f"{self.label} sends us to {host}, which is not among data_hosts; add it if that is right")
        if is_link_local(host):
            raise ServiceError(f"{self.label} sends us to {host}: link-local addresses are refused")
        _, expires_at = wire.lifetime_of(url)
        good_until = time.time() + _UNKNOWN_LIFE_S if expires_at is None else expires_at - skew_s
        return SignedUrl(method, url, good_until, headers)


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        raise ServiceError(f"{response.request.url.host} answered something else than JSON; is it a Score server?") from None


def _skew_s(response: httpx.Response) -> float:
    """What the server's clock is ahead of ours, by its `Date`; small differences are the way's, not the clock's."""
    try:
        skew_s = parsedate_to_datetime(response.headers["Date"]).timestamp() - time.time()
    except (KeyError, TypeError, ValueError):
        return 0.0
    return skew_s if abs(skew_s) > 5 else 0.0
