"""Where the bytes are: `open_store` turns an address into a store. Importing this loads no store's library."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from score_core.errors import ConfigurationError
from score_core.stores.base import MultipartStore

_FORMS: Final = "s3://bucket/prefix (with ?endpoint= and &region= for a store other than AWS) or file:///absolute/folder"
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")  # older and foreign stores take more than AWS does today
_REGION: Final = re.compile(r"[A-Za-z0-9-]{1,64}")


@dataclass(frozen=True, slots=True)
class S3Options:
    """What an operator may set for an S3 store beyond its address.

    `public_endpoint`: URLs are signed for it, while requests of our own go to the endpoint (containers see another address than clients).
    `kms_key_id`: the key with which the store encrypts what is uploaded in parts (SSE-KMS, protocol section 3.8, step 4).
    `md5_property`: the user metadata in which other tools record an object's MD5 (protocol section 6.5).
    """

    public_endpoint: str | None = None
    kms_key_id: str | None = None
    md5_property: str = "md5chksum"


def open_store(url: str, *, options: S3Options = S3Options()) -> MultipartStore:
    """The store at `url`: `s3://bucket[/prefix][?endpoint=http://host:port&region=name]` or `file:///absolute/folder`.

    `&public_endpoint=` in the address stands for that of `options`. Nothing is contacted or created yet; `check()` does. The caller closes
    it. Credentials come from the environment, never from the URL.

    Raises:
        ConfigurationError: the address is none of these, or is malformed; or a folder shall encrypt.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # parsed on access
    except ValueError as error:
        raise _refused(url, "it is malformed") from error
    if "@" in parts.netloc or parts.password:
        raise ConfigurationError(
            f"Credentials do not belong into a store's address; set AWS_ACCESS_KEY_ID, AWS_PROFILE, ... and use {_FORMS}"
        )
    if parts.scheme == "s3":
        return _open_s3(url, parts, options)
    if parts.scheme == "file" and options.kms_key_id is not None:
        raise ConfigurationError("A folder has no encryption by keys of a store; unset the key, or name an S3 store")
    if parts.scheme == "file":
        return _open_folder(url, parts)
    raise _refused(url, f"unknown kind {parts.scheme!r}" if parts.scheme else "it has no kind such as s3:")


def _open_s3(url: str, parts: SplitResult, options: S3Options) -> MultipartStore:
    named = _options(url, parts.query)
    endpoint, region = named.get("endpoint"), named.get("region")
    options = dataclasses.replace(options, public_endpoint=named.get("public_endpoint", options.public_endpoint))
    if not _BUCKET.fullmatch(parts.netloc):
        raise _refused(url, f"{parts.netloc!r} is not a bucket's name")
    if parts.fragment:
        raise _refused(url, "'#' has no meaning here; write %23 in a prefix")
    for address in (endpoint, options.public_endpoint):
        if address is not None:
            _check_endpoint(address)
    if region is not None and not _REGION.fullmatch(region):
        raise _refused(url, f"{region!r} is not a region's name")
    from score_core.stores.s3 import S3Store  # boto3 takes 0.2 s to import

    return S3Store(parts.netloc, prefix=unquote(parts.path), endpoint=endpoint, region=region, options=options)


def _open_folder(url: str, parts: SplitResult) -> MultipartStore:
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise _refused(url, "a folder's address is absolute and has three slashes")
    path = unquote(parts.path)
    if parts.query or parts.fragment:
        raise _refused(url, "'?' and '#' have no meaning here; write %3F and %23 in a folder's name")
    if "\0" in path or ".." in path.split("/") or not path.strip("/"):
        raise _refused(url, "it names no folder of its own")
    from score_core.stores.local import LocalStore

    return LocalStore(Path(path))


def _options(url: str, query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    unknown = options.keys() - {"endpoint", "region", "public_endpoint"}
    if unknown or len(options) != len(pairs):
        raise _refused(url, f"unknown option {min(unknown)!r}" if unknown else "an option is given twice")
    return options


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and parts.path in ("", "/")
    except ValueError:
        good = False
    else:
        good = bool(good) and "@" not in parts.netloc and not parts.query and not parts.fragment
    if not good:
        raise ConfigurationError("The endpoint of an S3 store must look like http://host:9000 or https://host, without path or credentials")


def _refused(url: str, reason: str) -> ConfigurationError:
    """`redact` drops the address's query, so the message never repeats options."""
    return ConfigurationError(f"The store address {url[:200]!r} cannot be used: {reason}; use {_FORMS}")
