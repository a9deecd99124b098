"""Any S3-compatible object store, through boto3.

Requests go through one boto3 client, which is thread-safe. URLs are signed by `sigv4.py` at 4 us a URL; `generate_presigned_url` walks the
whole request machinery at 300-400 us, and botocore's signer alone takes 100 (10,000 parts: 0.04 s, not 4 or 1).
"""

from __future__ import annotations

import copy
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypedDict
from urllib.parse import quote

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004  # botocore's own: end points, proxies, TLS
    CredentialRetrievalError,
    HTTPClientError,
    InvalidRegionError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
)

from score_core.checksum import md5_base64, md5_hex, parse_md5
from score_core.errors import (
    AccessDenied,
    AuthenticationError,
    ConfigurationError,
    Conflict,
    ObjectNotFound,
    ScoreError,
    ServiceError,
    Unavailable,
)
from score_core.model import ByteRange, Part, SignedUrl
from score_core.stores import S3Options
from score_core.stores.base import ListedPart, MultipartUpload, StoredObject
from score_core.stores.signing import content_md5_of
from score_core.stores.sigv4 import Credentials, QuerySigner, encoded

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, CreateMultipartUploadRequestTypeDef

_MAX_LIFETIME_S: Final = 604_800  # SigV4's limit: 7 days
_DEFAULT_REGION: Final = "us-east-1"  # what S3-compatible stores expect when nobody says otherwise
_PROBE: Final = "probe"
_CONNECTIONS: Final = 32
_READ_TIMEOUT_S: Final = 60
_PART_VERSIONS: Final = 10  # of one part number that are looked at: SeaweedFS 4.48 lists each one that was sent
_REGION: Final = re.compile(r"[a-z0-9-]{2,40}")


class _Condition(TypedDict, total=False):
    IfMatch: str
    IfNoneMatch: str


# The table from S3's answers to ours: by code, else by status, for HEAD has no body and so no code.
_Refusal = tuple[type[ServiceError], str]
_GONE: Final[_Refusal] = (ObjectNotFound, "it is not there")
_UNKNOWN: Final[_Refusal] = (AuthenticationError, "the store does not accept the credentials; check or renew the AWS_* settings")
_DENIED: Final[_Refusal] = (AccessDenied, "the store denies it; ask its owner for the permission")
_BAD_PARTS: Final[_Refusal] = (Conflict, "the store does not hold these parts in this order; list its parts and send what is missing")
_SMALL: Final[_Refusal] = (ServiceError, "a part other than the last is smaller than the store's minimum, which is 5 MiB on S3")
_NO_KEY: Final[_Refusal] = (ServiceError, "the store cannot use the encryption key; ask the operator to enable it or to name another")
_SKEWED: Final[_Refusal] = (AuthenticationError, "this machine's clock differs too much from the store's; set the clock")
_OUT_OF_ORDER: Final[_Refusal] = (Unavailable, "the store is busy or out of order, also after retries; try again later")
_OTHER: Final[_Refusal] = (ServiceError, "the store refuses it")
_REFUSALS: Final[Mapping[str, _Refusal]] = {
    **dict.fromkeys(("NoSuchKey", "NoSuchUpload", "NotFound"), _GONE),
    **dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"), _UNKNOWN),
    **dict.fromkeys(("InvalidPart", "InvalidPartOrder"), _BAD_PARTS),
    **dict.fromkeys(("SlowDown", "RequestTimeout", "Throttling", "ServiceUnavailable", "InternalError"), _OUT_OF_ORDER),
    **dict.fromkeys(("KMS.DisabledException", "KMS.NotFoundException"), _NO_KEY),
    "AccessDenied": _DENIED,
    "EntityTooSmall": _SMALL,
    "RequestTimeTooSkewed": _SKEWED,
}
_REFUSALS_BY_STATUS: Final[Mapping[int, _Refusal]] = {401: _UNKNOWN, 403: _DENIED, 404: _GONE, 429: _OUT_OF_ORDER}
_ANOTHER_VERSION: Final = (404, 409, 412)  # answers to a conditional PUT: nothing to replace, somebody else is at it, another ETag
_CREDENTIAL_TROUBLE: Final = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, TokenRetrievalError)


class S3Store:
    """A `MultipartStore` in `bucket`, below `prefix`.

    Without `endpoint` it is AWS. Credentials are those of `session`, by default boto3's usual chain (`AWS_*`, profiles, roles); `region`
    falls back on theirs. `retries` are boto3's, after the first attempt.
    """

    def __init__(
        self,
        bucket: str,
        *,
        prefix: str = "",
        endpoint: str | None = None,
        region: str | None = None,
        options: S3Options | None = None,
        session: boto3.Session | None = None,
        retries: int = 5,
        connect_timeout_s: float = 15,
    ) -> None:
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._endpoint = endpoint
        self._options = options or S3Options()
        self._lock = threading.Lock()
        self._base_url: str | None = None
        with self._border("open"):
            self._session = session or boto3.Session()
            self._region = region or self._session.region_name or _DEFAULT_REGION
            # Few S3-compatible stores have a host name per bucket, and AWS's certificate does not cover names with dots. Else "virtual":
            # "auto" presigns for bucket.s3.amazonaws.com, which redirects to the bucket's region, and transports refuse redirects.
            as_path = endpoint is not None or "." in bucket
            config = _config(as_path=as_path, retries=retries, connect_timeout_s=connect_timeout_s)
            self._client: S3Client = self._session.client("s3", endpoint_url=endpoint, region_name=self._region, config=config)

    @property
    def label(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    # Small objects

    def head(self, key: str) -> StoredObject:
        with self._border("look at", key):
            reply = self._client.head_object(Bucket=self._bucket, Key=self._full(key))
        headers = reply["ResponseMetadata"]["HTTPHeaders"]
        recorded = headers.get(f"x-amz-meta-{self._options.md5_property.lower()}")
        md5 = headers.get("content-md5") or recorded or ""  # protocol section 6.5
        return StoredObject(key, reply["ContentLength"], _unquoted(reply["ETag"]), reply["LastModified"].timestamp(), parse_md5(md5))

    def read(self, key: str) -> bytes:
        with self._border("read", key):
            body = self._client.get_object(Bucket=self._bucket, Key=self._full(key))["Body"]
            with body:
                return body.read()

    def read_range(self, key: str, offset: int, size: int) -> bytes:
        with self._border("read", key):
            try:
                reply = self._client.get_object(Bucket=self._bucket, Key=self._full(key), Range=ByteRange(offset, size).http)
            except ClientError as error:
                if _status(error) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # past the end
                    return b""
                raise
            with reply["Body"] as body:
                if reply["ContentLength"] > size:  # never more into memory than was asked for
                    raise ServiceError(f"{self.label} answers with a whole object where a range of it was asked for")
                return body.read()

    def write(self, key: str, data: bytes) -> None:
        with self._border("write", key):
            digest = md5_base64(md5_hex(data))  # so that the store refuses what arrives damaged
            self._client.put_object(Bucket=self._bucket, Key=self._full(key), Body=data, ContentMD5=digest)

    def write_if_unchanged(self, key: str, data: bytes, *, etag: str | None) -> bool:
        condition: _Condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": f'"{etag}"'}
        digest = md5_base64(md5_hex(data))
        with self._border("write", key):
            try:
                self._client.put_object(Bucket=self._bucket, Key=self._full(key), Body=data, ContentMD5=digest, **condition)
            except ClientError as error:
                if _code(error) == "NotImplemented":
                    self.write(key, data)
                elif _status(error) not in _ANOTHER_VERSION or _code(error) == "NoSuchBucket":
                    raise
                else:
                    return False
        return True

    def delete(self, key: str) -> None:
        with self._quiet_when_missing(), self._border("delete", key):
            self._client.delete_object(Bucket=self._bucket, Key=self._full(key))

    def list_objects(self, prefix: str) -> Iterator[StoredObject]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._full(prefix))
        for page in self._pages(pages, "list", prefix):
            for row in page.get("Contents", ()):
                key = row["Key"].removeprefix(self._prefix)
                yield StoredObject(key, row["Size"], _unquoted(row["ETag"]), row["LastModified"].timestamp())

    def presign_gets(self, key: str, ranges: Sequence[ByteRange | None], *, lifetime_s: float) -> list[SignedUrl]:
        batch = self._batch(key, lifetime_s)
        signers = {header: batch.signer("GET", header) for header in {None if wanted is None else "range" for wanted in ranges}}
        return [
            SignedUrl("GET", signers[None].sign(), batch.expires_at)
            if wanted is None
            else SignedUrl("GET", signers["range"].sign(header=wanted.http), batch.expires_at, {"Range": wanted.http})
            for wanted in ranges
        ]

    def check(self) -> None:
        try:
            with self._border("open"):
                self._client.head_bucket(Bucket=self._bucket)
        except ObjectNotFound as error:  # HEAD has no body that could say NoSuchBucket
            raise self._no_bucket() from error

    def close(self) -> None:
        self._client.close()

    def partition(self, number: int) -> S3Store:
        store = copy.copy(self)
        vars(store).update(_bucket=f"{self._bucket}.{number}", _lock=threading.Lock(), _base_url=None)
        return store

    # Uploads in parts

    def create_multipart(self, key: str) -> str:
        request: CreateMultipartUploadRequestTypeDef = {"Bucket": self._bucket, "Key": self._full(key)}
        if self._options.kms_key_id is not None:
            request |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self._options.kms_key_id}
        with self._border("begin an upload of", key):
            return self._client.create_multipart_upload(**request)["UploadId"]

    def presign_parts(
        self, key: str, upload_id: str, parts: Sequence[Part], *, lifetime_s: float, content_md5: bool = False
    ) -> list[SignedUrl]:
        batch = self._batch(key, lifetime_s)
        signer = batch.signer("PUT", "content-md5" if content_md5 else None)
        upload = f"uploadId={encoded(upload_id)}"
        urls = []
        for part in parts:
            digest = content_md5_of(part) if content_md5 else ""
            url = signer.sign(f"partNumber={part.number}&{upload}", digest)
            urls.append(SignedUrl("PUT", url, batch.expires_at, {"Content-MD5": digest} if content_md5 else {}))
        return urls

    def holds_part(self, key: str, upload_id: str, number: int, etag: str) -> bool:
        with self._border("look for a part of", key):
            reply = self._client.list_parts(
                Bucket=self._bucket, Key=self._full(key), UploadId=upload_id, PartNumberMarker=number - 1, MaxParts=_PART_VERSIONS
            )
        return any(row["PartNumber"] == number and _unquoted(row["ETag"]) == etag for row in reply.get("Parts", ()))

    def list_parts(self, key: str, upload_id: str) -> Iterator[ListedPart]:
        newest: tuple[float, ListedPart] | None = None  # SeaweedFS 4.48 lists every version of a part that was sent more than once
        for row in self._part_rows(key, upload_id):
            if newest and newest[1].number != row[1].number:
                yield newest[1]
            elif newest and newest[0] > row[0]:
                continue
            newest = row
        if newest:
            yield newest[1]

    def _part_rows(self, key: str, upload_id: str) -> Iterator[tuple[float, ListedPart]]:
        """Parts as the store lists them, with their time."""
        pages = self._client.get_paginator("list_parts").paginate(Bucket=self._bucket, Key=self._full(key), UploadId=upload_id)
        for page in self._pages(pages, "list the parts of", key):
            for row in page.get("Parts", ()):
                modified_at = row["LastModified"].timestamp() if "LastModified" in row else 0.0
                yield modified_at, ListedPart(row["PartNumber"], row["Size"], _unquoted(row["ETag"]))

    def complete_multipart(self, key: str, upload_id: str, parts: Sequence[ListedPart]) -> None:
        self._check_parts(key, upload_id, parts)
        listed: list[CompletedPartTypeDef] = [{"PartNumber": part.number, "ETag": f'"{part.etag}"'} for part in parts]
        with self._border("publish", key):
            # A 200 with an <Error> in it (F33) is made a 500 by botocore, retried, and arrives here as ClientError: tested.
            reply = self._client.complete_multipart_upload(
                Bucket=self._bucket, Key=self._full(key), UploadId=upload_id, MultipartUpload={"Parts": listed}
            )
        if not reply.get("ETag"):
            raise Unavailable(f"{self.label} did not confirm that {key} is published; look whether it is there, then try again")

    def _check_parts(self, key: str, upload_id: str, parts: Sequence[ListedPart]) -> None:
        """Refuses what S3 itself would, for SeaweedFS 4.48 publishes without a part that it does not hold, and moto in any order."""
        numbers = [part.number for part in parts]
        if not parts or numbers != sorted(set(numbers)):
            raise Conflict(f"The parts of {key} must be given once each and in order; publish it from the list of stored parts", status=400)
        held = {(part.number, part.etag) for _, part in self._part_rows(key, upload_id)}
        for part in parts:
            if (part.number, part.etag) not in held:
                raise Conflict(f"Part {part.number} of {key} is not stored with ETag {part.etag}; send that part again", status=400)

    def abort_multipart(self, key: str, upload_id: str) -> None:
        with self._quiet_when_missing(), self._border("abort the upload of", key):
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=self._full(key), UploadId=upload_id)

    def list_multiparts(self, prefix: str) -> Iterator[MultipartUpload]:
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=self._full(prefix))
        for page in self._pages(pages, "list the uploads of", prefix):
            for row in page.get("Uploads", ()):
                yield MultipartUpload(row["Key"].removeprefix(self._prefix), row["UploadId"], row["Initiated"].timestamp())

    # Signing

    def _batch(self, key: str, lifetime_s: float) -> _Batch:
        if not 1 <= lifetime_s <= _MAX_LIFETIME_S:
            raise ConfigurationError(f"A signed URL can live 1 to {_MAX_LIFETIME_S} seconds (7 days, a limit of S3), got {lifetime_s:g}")
        with self._border("sign a URL for", key):
            found = self._session.get_credentials()
            if found is None:
                raise NoCredentialsError
            frozen = found.get_frozen_credentials()  # once: temporary credentials may be renewed between two looks
            url = self._url_of_bucket() + quote(self._full(key), safe="/~")
        credentials = Credentials(str(frozen.access_key), str(frozen.secret_key), frozen.token)
        return _Batch(credentials, self._region, url, int(time.time()), int(lifetime_s))

    def _url_of_bucket(self) -> str:
        """Scheme, host and path of this bucket; boto3 is asked once, for its rules for end points and bucket names are long."""
        if self._options.public_endpoint is not None:
            return f"{self._options.public_endpoint.rstrip('/')}/{self._bucket}/"
        with self._lock:
            if self._base_url is None:
                url = self._client.generate_presigned_url("get_object", Params={"Bucket": self._bucket, "Key": _PROBE})
                self._base_url = url.partition("?")[0].removesuffix(_PROBE)
            return self._base_url

    # Border

    def _full(self, key: str) -> str:
        return self._prefix + key

    def _pages(self, pages: Any, action: str, what: str) -> Iterator[Any]:
        rows = iter(pages)
        while True:
            with self._border(action, what):
                page = next(rows, None)
            if page is None:
                return
            yield page

    @contextmanager
    def _quiet_when_missing(self) -> Iterator[None]:
        try:
            yield
        except ObjectNotFound as error:
            if isinstance(error.__cause__, ClientError) and _code(error.__cause__) == "NoSuchBucket":
                raise

    @contextmanager
    def _border(self, action: str, key: str = "") -> Iterator[None]:
        what = f"Cannot {action} {self.label}/{key}" if key else f"Cannot {action} {self.label}"
        try:
            yield
        except ClientError as error:
            raise self._refused(error, what) from error
        except BotoCoreError as error:
            raise self._failed(error, what) from error
        except ValueError as error:  # botocore's word for a malformed end point
            if isinstance(error, ScoreError):
                raise
            raise ConfigurationError(f"{what}: {error}; an endpoint looks like http://host:9000") from error

    def _refused(self, error: ClientError, what: str) -> ServiceError:
        code, status = _code(error), _status(error)
        if code == "NoSuchBucket":
            return self._no_bucket()
        if status in (301, 307) or code == "PermanentRedirect":
            region = _true_region(error)
            return ServiceError(f"{what}: the bucket is in region {region}, not {self._region}; add region={region}", status=status)
        kind, why = _REFUSALS.get(code) or _REFUSALS_BY_STATUS.get(status) or (_OUT_OF_ORDER if status >= 500 else _OTHER)
        said = f" {error.response['Error'].get('Message', '')}" if kind is ServiceError else ""
        return kind(f"{what}: {why} ({code}).{said}" if said else f"{what}: {why} ({code})", status=status)

    def _failed(self, error: BotoCoreError, what: str) -> ScoreError:
        """The table from what goes wrong before any answer."""
        place = self._endpoint or f"AWS S3 ({self._bucket})"
        if isinstance(error, _CREDENTIAL_TROUBLE):
            return AuthenticationError(
                f"No usable credentials for {self.label}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )
        if isinstance(error, ProfileNotFound):
            return ConfigurationError(f"{what}: the profile that AWS_PROFILE names does not exist; correct it or unset it")
        if isinstance(error, (ParamValidationError, InvalidRegionError)):
            return ConfigurationError(f"{what}: {error}".replace("\n", " "))
        if isinstance(error, (ConnectionError, HTTPClientError)):
            return Unavailable(f"{what}: {place} is not reached ({type(error).__name__}); check the endpoint, the network and any proxy")
        return Unavailable(f"{what}: {type(error).__name__}; try again")

    def _no_bucket(self) -> ObjectNotFound:
        return ObjectNotFound(
            f"The bucket {self._bucket} does not exist at {self._endpoint or 'AWS S3'}; create it or correct its name", status=404
        )


class _Batch(NamedTuple):
    """What the URLs have in common that are signed together. `signed_at` in whole seconds, as URLs tell it, so that expiry is exact."""

    credentials: Credentials
    region: str
    url: str
    signed_at: int
    lifetime_s: int

    @property
    def expires_at(self) -> float:
        return self.signed_at + self.lifetime_s

    def signer(self, method: str, header: str | None = None) -> QuerySigner:
        return QuerySigner(
            self.credentials,
            self.region,
            method,
            self.url,
            signed_at=self.signed_at,
            lifetime_s=self.lifetime_s,
            signed_header=header,
        )


def _config(*, as_path: bool, retries: int, connect_timeout_s: float) -> Config:
    return Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if as_path else "virtual"},
        # The default since boto3 1.36 adds CRC32 trailers that several stores reject: https://github.com/boto/boto3/issues/4392
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": retries + 1},
        connect_timeout=connect_timeout_s,
        read_timeout=_READ_TIMEOUT_S,
        max_pool_connections=_CONNECTIONS,
    )


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _true_region(error: ClientError) -> str:
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = str(headers.get("x-amz-bucket-region", ""))
    return region if _REGION.fullmatch(region) else "another"


def _unquoted(etag: str) -> str:
    return etag.strip('"')
