"""A running server: from settings to sockets. `score serve` and tests start it in a thread; `create_app` serves process managers."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from score_core.auth.options import open_authenticator
from score_core.errors import ConfigurationError, ScoreError
from score_core.hosts import http_url, is_loopback
from score_core.metadata.base import Metadata
from score_core.metadata.registry import Registry
from score_core.repository.buckets import Buckets, open_buckets
from score_core.repository.direct import DirectRepository
from score_core.repository.layout import Keys
from score_core.server import app as applications
from score_core.server.app import ServerParts
from score_core.server.bytes import ByteServer
from score_core.server.published import Ga4ghOptions
from score_core.server.settings import ServerSettings, adopt_java_credentials, load_server_settings
from score_core.session import open_song, registry_path, store_folder
from score_core.settings import Settings, load
from score_core.stores.local import LocalStore
from score_core.transfer.stop import Stop

_log = logging.getLogger(__name__)

_MAX_HEADER_BYTES: Final = 64 << 10
_START_S: Final = 15.0
_CLEANING_S: Final = 86_400.0


@dataclass(frozen=True)
class Running:
    """A server that answers. `url` is the REST API's, `data_url` that of the bytes, None when a bucket answers for itself.

    `token_file` holds the embedded token, None when tokens come from elsewhere.
    """

    url: str
    data_url: str | None
    token_file: Path | None
    label: str


class RestServer:
    """uvicorn in a thread of its own. Listens from construction on.

    Only what `trusted_proxies` (addresses or networks) say in X-Forwarded-For counts as who asks: everybody can send that header.

    Raises:
        ConfigurationError: the port is taken, or the host is not this machine's.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, *, trusted_proxies: Sequence[str] = ()) -> None:
        try:
            self._socket = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024)
        except OSError as error:
            raise ConfigurationError(f"The server cannot listen on {host}:{port}: {error.strerror}; choose another port") from error
        # asyncio sets it on sockets that say that they are TCP's, which those of create_server do not. Without it uvicorn's second write,
        # the body, waits 40 ms for the client's delayed ACK of the first: measured 45 ms per request on a kept connection, and 3 with it.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # h11 because it limits the size of headers; nothing is logged by uvicorn, whose lines hold queries.
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(trusted_proxies),
            forwarded_allow_ips=list(trusted_proxies),
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
            timeout_keep_alive=30,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, name="score-rest-server", daemon=True)

    @property
    def url(self) -> str:
        host, port = self._socket.getsockname()[:2]
        return http_url(host, port)

    def start(self) -> None:
        """Returns once it answers."""
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while not self._server.started and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        if not self._server.started:
            raise ScoreError("The REST server did not start; its log says why")

    def close(self) -> None:
        """Stops listening, gives running requests a moment, and cuts the rest."""
        self._server.should_exit = True
        if self._thread.ident is not None:  # else: never started
            self._thread.join(1.0)
            self._server.force_exit = True
            self._thread.join(1.0)
        self._socket.close()


@contextmanager
def serving(settings: Settings, options: ServerSettings, *, stop: Stop | None = None) -> Iterator[Running]:
    """A server over what the settings, loaded with `at_store`, name, until the block ends.

    With no configuration: a store and a registry in the user's data directory, on loopback, with a token that is made on first start.

    Raises:
        ConfigurationError: a setting cannot be used, or would let strangers in.
    """
    _check_reach(options)
    settings = _at_the_store(settings, options)
    with ExitStack() as stack:
        data = _open_data(settings, options, stack)
        parts, token_file = open_parts(settings, options, data, stack)
        rest = RestServer(applications.create_app(parts), options.host, options.port, trusted_proxies=options.trusted_proxies)
        stack.callback(rest.close)
        _prepare(parts.repository, options, stop or Stop())
        rest.start()
        yield Running(rest.url, None if data is None else data.base_url, token_file, parts.repository.label)


def create_app() -> FastAPI:
    """An application from the environment alone, for several processes: `uvicorn --factory score_core.server.serving:create_app`.

    Everything that it opens stays open as long as the process.

    Raises:
        ConfigurationError: a setting cannot be used, or nobody would be asked for a token: where it is going to listen is not known here.
    """
    options, stack = load_server_settings(), ExitStack()
    settings = _at_the_store(load(at_store=True), options)
    if options.auth.mode == "none":
        raise ConfigurationError("A server without authentication must listen on loopback: start it with `score serve`, which sees to that")
    parts, _ = open_parts(settings, options, _open_data(settings, options, stack), stack)
    _prepare(parts.repository, options, Stop())
    return applications.create_app(parts)


def _check_reach(options: ServerSettings) -> None:
    if is_loopback(options.host):
        return
    if options.auth.mode == "none":
        raise ConfigurationError(
            f"A server without authentication listens on loopback only, not on {options.host}: set SCORE_SERVER_AUTH_MODE"
        )
    if not options.allow_public:
        raise ConfigurationError(
            f"The server would be open to the network on {options.host}; use 127.0.0.1 behind a proxy that speaks https, or --allow-public"
        )


def _at_the_store(settings: Settings, options: ServerSettings) -> Settings:
    """The settings with the server's own store, where it has one."""
    return replace(settings, store=options.store or settings.store)


def _open_data(settings: Settings, options: ServerSettings, stack: ExitStack) -> LocalStore | None:
    """The folder with the objects and who serves its bytes; None when they are in a bucket."""
    folder = store_folder(settings)
    if folder is None:
        return None
    store = LocalStore(folder)
    server = ByteServer(store, options.host, options.data_port, allow_public=options.allow_public)
    server.start()
    stack.callback(store.close)
    stack.callback(server.close)
    return LocalStore(folder, base_url=settings.serve_url or server.url)


def open_parts(settings: Settings, options: ServerSettings, data: LocalStore | None, stack: ExitStack) -> tuple[ServerParts, Path | None]:
    """What the application is made of, closed with `stack`; and the file of the embedded token, if that is what lets callers in."""
    repository = DirectRepository(
        _open_buckets(settings, options, data),
        part_size_bytes=settings.part_size_bytes,
        download_lifetime_s=options.download_url_lifetime_s,
        upload_lifetime_s=options.upload_url_lifetime_s,
        sentinel=options.sentinel or None,
        keep_upload_urls=options.keep_upload_urls,
        keys=Keys(options.data_directory, options.upload_directory),
    )
    stack.callback(repository.close)
    auth = options.auth
    if auth.mode == "embedded" and auth.token_file is None:
        auth = replace(auth, token_file=settings.data_dir / "token")
    if auth.token_file is not None and settings.token_file == auth.token_file.absolute():
        settings = replace(settings, token_file=None)  # it opens this server: nobody else gets it, and Song needs none
    metadata, song = (None, None) if options.metadata == "none" else _open_metadata(settings, repository)
    if metadata is not None:
        stack.callback(metadata.close)
    authenticator = open_authenticator(auth, options.scopes)
    if authenticator is not None:
        stack.callback(authenticator.close)
    parts = ServerParts(
        repository,
        metadata=metadata,
        song=song,
        authenticator=authenticator,
        scopes=options.scopes,
        checks_state=options.checks_state,
        marks_md5=options.marks_md5,
        etags_are_md5=options.stores_md5_etags,
        remembers_s=0.0 if song is not None else options.remembers_s,
        allowed_origins=options.allowed_origins,
        ga4gh=Ga4ghOptions(options.public_url, options.ga4gh_url_lifetime_s, options.organization, options.organization_url),
    )
    return parts, auth.token_file


def _open_buckets(settings: Settings, options: ServerSettings, data: LocalStore | None) -> Buckets:
    if data is not None:
        return Buckets.single(data)
    adopt_java_credentials(os.environ)
    return open_buckets(
        str(settings.store),
        state_address=options.state_store,
        pool=options.pool,
        key_digits=options.key_digits,
        kms_key_id=options.kms_key_id,
        md5_property=options.md5_property,
    )


def _open_metadata(settings: Settings, repository: DirectRepository) -> tuple[Metadata, Metadata | None]:
    """Song if there is one; else our registry, which is then served as Song, too."""
    if settings.metadata_url is not None:
        return open_song(settings), None
    registry = Registry(registry_path(settings), repository=repository)
    return registry, registry


def _prepare(repository: DirectRepository, options: ServerSettings, stop: Stop) -> None:
    """What the bucket needs of one of its servers; of several at once, too."""
    repository.ensure_sentinel()
    if options.cleans:
        _start_cleaning(repository, options.stale_after_s, stop)


def _start_cleaning(repository: DirectRepository, stale_after_s: float, stop: Stop) -> None:
    """Drops abandoned uploads now and once a day. Several servers may do so at once."""

    def clean() -> None:
        while not stop.is_set():
            try:
                dropped = repository.drop_stale_uploads(stale_after_s)
                _log.info("Dropped %d abandoned uploads", len(dropped))
            except ScoreError as error:
                _log.warning("Abandoned uploads could not be dropped: %s", error)
            stop.wait(_CLEANING_S)

    threading.Thread(target=clean, name="score-cleaning", daemon=True).start()
