"""From settings to something that transfers: for every front end, the command line and flows alike."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from score_core.errors import ConfigurationError, ServiceError, Unavailable
from score_core.metadata.base import Metadata
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
    from score_core.service import ServiceClient  # imports httpx, which takes 0.3 s and a local store does not need
    from score_core.settings import Settings

_log = logging.getLogger(__name__)

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


def open_repository(settings: Settings, *, stop: Stop | None = None) -> Repository:
    """Where the objects are: a Score server, else a store, else a folder in the user's data directory. The caller closes it.

    Nothing is contacted yet. `stop` ends its waiting between attempts.

    Raises:
        ConfigurationError: the address cannot be used, or a token would go there in the open.
        LocalFileError: the token's file cannot be read.
    """
    if settings.url is not None:
        from score_core.repository.remote import RemoteRepository

        return RemoteRepository(_service(settings, settings.url, "The Score server", stop), data_hosts=settings.data_hosts)
    transfer = settings.transfer
    return DirectRepository(
        _open_store(settings),
        part_size_bytes=transfer.part_size_bytes,
        download_lifetime_s=transfer.download_url_lifetime_s,
        upload_lifetime_s=transfer.upload_url_lifetime_s,
    )


def _service(settings: Settings, url: str, name: str, stop: Stop | None) -> ServiceClient:
    from score_core.service import ServiceClient, ServiceOptions, Token

    transfer, text = settings.transfer, settings.token
    return ServiceClient(
        url,
        name=name,
        token=Token(None if text is None else text.get_secret_value(), file=settings.token_file),
        policy=RetryPolicy(attempts=transfer.attempts),
        options=ServiceOptions(transfer.connect_timeout_s, transfer.read_timeout_s, transfer.ca_file, transfer.allow_plain_http),
        stop=stop,
    )


def registry_path(settings: Settings) -> Path:
    """The embedded registry's file."""
    return settings.data_dir / "registry.sqlite3"


def open_metadata(settings: Settings, repository: Repository, *, create: bool = False, stop: Stop | None = None) -> Metadata | None:
    """Who knows files and analyses: Song, else the Score server if it keeps metadata as well, else the embedded registry.

    None when nobody does: the server keeps none, or the registry was never written to and `create` is false. The caller closes it,
    and before `repository`, which an embedded registry asks what is stored.

    Raises:
        ConfigurationError, LocalFileError: as `open_repository`.
        Unavailable: the Score server, which might keep metadata, does not answer.
    """
    if settings.metadata_url is not None:
        return open_song(settings, stop=stop)
    if settings.url is None:
        return _open_registry(settings, repository) if create or registry_path(settings).exists() else None
    client = _service(settings, settings.url, "The Score server", stop)
    return _song(client) if _is_alive(client) else None


def open_song(settings: Settings, *, stop: Stop | None = None) -> Metadata:
    """The Song server that `metadata_url`, which must be set, names. Nothing is contacted yet. The caller closes it.

    Raises:
        ConfigurationError, LocalFileError: as `open_repository`.
    """
    assert settings.metadata_url is not None
    return _song(_service(settings, settings.metadata_url, "The metadata service", stop))


def _song(client: ServiceClient) -> Metadata:
    from score_core.metadata.song import SongClient

    return SongClient(client)


def _open_registry(settings: Settings, repository: Repository) -> Metadata:
    from score_core.metadata.registry import Registry

    return Registry(registry_path(settings), repository=repository)


def _is_alive(client: ServiceClient) -> bool:
    """Whether a Score server speaks Song, too, as ours does; a Java one does not know the question. If not, `client` is closed.

    Raises:
        Unavailable: nobody answers there.
    """
    try:
        if client.get("/isAlive").text.strip().lower() == "true":
            return True
        _log.info("%s keeps no metadata", client.url)
    except Unavailable:
        client.close()
        raise
    except ServiceError as error:
        _log.info("%s keeps no metadata: %s", client.url, error)
    client.close()
    return False


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
        ConfigurationError, LocalFileError: as `open_repository`.
    """
    transfer = settings.transfer
    stop = stop or Stop()
    repository = open_repository(settings, stop=stop)
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
                stop=stop,
            )
        finally:
            transport.close()
    finally:
        repository.close()
