"""From settings to something that transfers: for every front end, the command line and flows alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from score_core.errors import ConfigurationError
from score_core.progress import Progress, Silent
from score_core.repository.base import Repository
from score_core.repository.direct import DirectRepository
from score_core.stores import open_store
from score_core.stores.base import MultipartStore
from score_core.transfer.engine import Engine
from score_core.transfer.http import HttpTransport
from score_core.transfer.policy import RetryPolicy
from score_core.transfer.stop import Stop

if TYPE_CHECKING:
    from score_core.settings import Settings  # 0.1 s to import, and whoever calls us has done so

S3_MIN_PART_SIZE_BYTES: Final = 5 << 20  # S3 refuses to complete an upload with smaller parts before the last


def store_folder(settings: Settings) -> Path | None:
    """The folder that holds the objects; None when they are not in a folder of this machine.

    Raises:
        ConfigurationError: the store's address cannot be used.
    """
    if settings.url is not None:
        return None
    if settings.store is None:
        return settings.data_dir / "store"
    if urlsplit(settings.store).scheme != "file":
        return None
    open_store(settings.store).close()  # it knows which addresses are good
    return Path(unquote(urlsplit(settings.store).path))


def open_repository(settings: Settings) -> Repository:
    """Where the objects are: a Score server, else a store, else a folder in the user's data directory. The caller closes it.

    Raises:
        ConfigurationError: the address cannot be used, or needs what this version does not have.
    """
    if settings.url is not None:
        raise ConfigurationError(
            f"Talking to the Score server {settings.url} comes with the remote client, which this version does not have yet; "
            "unset it to use the local store, or name a bucket with --store"
        )
    transfer = settings.transfer
    return DirectRepository(
        _open_store(settings),
        part_size_bytes=transfer.part_size_bytes,
        download_lifetime_s=transfer.download_url_lifetime_s,
        upload_lifetime_s=transfer.upload_url_lifetime_s,
    )


def _open_store(settings: Settings) -> MultipartStore:
    folder = store_folder(settings)
    if folder is not None:
        from score_core.stores.local import LocalStore

        return LocalStore(folder, base_url=settings.serve_url)
    assert settings.store is not None
    store, part_size_bytes = open_store(settings.store), settings.transfer.part_size_bytes
    if urlsplit(settings.store).scheme == "s3" and part_size_bytes < S3_MIN_PART_SIZE_BYTES:
        store.close()
        raise ConfigurationError(f"part_size_bytes must be at least {S3_MIN_PART_SIZE_BYTES} for an S3 store, got {part_size_bytes}")
    return store


@contextmanager
def open_engine(settings: Settings, *, progress: Progress | None = None, stop: Stop | None = None) -> Iterator[Engine]:
    """An engine with its repository and connections, closed at the end.

    Raises:
        ConfigurationError: as `open_repository`.
    """
    transfer = settings.transfer
    repository = open_repository(settings)
    try:
        transport = HttpTransport(
            connections=transfer.workers,
            connect_timeout_s=transfer.connect_timeout_s,
            stall_s=transfer.stall_s,
            ca_file=None if transfer.ca_file is None else str(transfer.ca_file),
        )
        try:
            yield Engine(
                repository,
                transport,
                workers=transfer.workers,
                policy=RetryPolicy(attempts=transfer.attempts),
                progress=progress or Silent(),
                stop=stop or Stop(),
            )
        finally:
            transport.close()
    finally:
        repository.close()
