"""The classes that Snakemake asks for. They stand in one module, because Snakemake looks for `StorageObject` beside the provider."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import cached_property
from typing import Any, Final
from urllib.parse import urlsplit

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_storage_plugins.common import Operation
from snakemake_interface_storage_plugins.io import IOCacheStorageInterface, Mtime, get_constant_prefix
from snakemake_interface_storage_plugins.storage_object import StorageObjectGlob, StorageObjectRead, StorageObjectWrite
from snakemake_interface_storage_plugins.storage_provider import (
    ExampleQuery,
    QueryType,
    StorageProviderBase,
    StorageQueryValidationResult,
)

from score_core.errors import AccessDenied, AuthenticationError, ConfigurationError, ScoreError, ServiceError, Unavailable
from score_core.transfer.stop import Stop
from snakemake_storage_plugin_score._backend import Backend, Known
from snakemake_storage_plugin_score._queries import SCHEME, Query, check_query, read_pattern, read_query, shown, wildcard_path
from snakemake_storage_plugin_score._settings import StorageProviderSettings

_STATE_FOLDER: Final = ".score-parts"  # no study has a name that begins with a dot
_LIMITED: Final = (Operation.RETRIEVE, Operation.STORE, Operation.REMOVE)
_ANALYSIS: Final = "d8f5f5b4-3f0c-5c46-8a7e-2b6f1f0c9e11"
_OBJECT: Final = "5e0a7a2c-6d3e-5b0f-9c55-0d6a4f0e7b11"


class StorageProvider(StorageProviderBase):
    """One Score server, or store, with the settings of one tag."""

    settings: StorageProviderSettings

    def __post_init__(self) -> None:
        problem = self.settings.problem()
        if problem is not None:
            raise WorkflowError(f"Storage provider score: {problem}")

    @cached_property
    def backend(self) -> Backend:
        """What is asked; made on first use, for a provider that is only declared must cost nothing."""

        def load() -> Any:
            from score_core import settings

            return settings.load(self.settings.flags(), profile=self.settings.profile)

        made = Backend(
            load,
            self.logger,
            state_dir=self.local_prefix / _STATE_FOLDER,
            registers=self.settings.register,
            reference=self.settings.reference,
        )
        weakref.finalize(self, made.close)  # at the latest when the process ends
        return made

    @classmethod
    def example_queries(cls) -> list[ExampleQuery]:
        return [
            ExampleQuery(f"{SCHEME}BRCA-CA/{_ANALYSIS}/sample.bam", "A file of an analysis", QueryType.ANY),
            ExampleQuery(f"{SCHEME}{_OBJECT}/sample.bam", "An object by its id; the name is the local copy's", QueryType.INPUT),
            ExampleQuery(
                f"{SCHEME}BRCA-CA/{_ANALYSIS}/sample.bam?region=chr17:43044295-43125364&region=chr13",
                "The reads of two regions; of the file only what holds them is fetched",
                QueryType.INPUT,
            ),
            ExampleQuery(
                f"{SCHEME}BRCA-CA/results/counts.tsv", "A named file, registered when it is stored (setting register)", QueryType.ANY
            ),
        ]

    @classmethod
    def is_valid_query(cls, query: str) -> StorageQueryValidationResult:
        try:
            check_query(query)
        except ConfigurationError as error:
            return StorageQueryValidationResult(shown(query), valid=False, reason=str(error))
        return StorageQueryValidationResult(shown(query), valid=True)

    def safe_print(self, query: str) -> str:
        return shown(query)

    # Limits. Score's client heeds what a server asks for by itself (429, Retry-After), so a limit is only what a user sets.

    def use_rate_limiter(self) -> bool:
        return self.settings.max_requests_per_second is not None

    def default_max_requests_per_second(self) -> float:
        return 20.0

    def rate_limiter_key(self, query: str, operation: Operation) -> str:  # noqa: ARG002  # Snakemake's signature
        return urlsplit(self.settings.url or "").netloc

    def rate_limiter(self, query: str, operation: Operation) -> AbstractAsyncContextManager[Any]:
        """What is known of files comes from memory: to limit that would make a workflow of 1,000 files wait for minutes."""
        limiter = super().rate_limiter(query, operation) if operation in _LIMITED else self._noop_context()
        found: AbstractAsyncContextManager[Any] = limiter
        return found

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """Moves `parallel` files at once. asyncio's own threads are few on small machines, and belong to one of Snakemake's event loops."""
        return ThreadPoolExecutor(self.settings.parallel, thread_name_prefix="score-file")


class StorageObject(StorageObjectRead, StorageObjectWrite, StorageObjectGlob):
    """One query of a provider. Everything raises `WorkflowError` with one sentence that says what to do."""

    provider: StorageProvider

    @cached_property
    def _query(self) -> Query:
        with self._explained():
            return read_query(self.query)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ScoreError as error:
            raise WorkflowError(f"{self.print_query}: {error}{self._hint(error)}") from None

    def _hint(self, error: ScoreError) -> str:
        """What Snakemake's user can do, where score's own words are about the command line."""
        where = "set SNAKEMAKE_STORAGE_SCORE_TOKEN, or the provider's token_file"
        if isinstance(error, AuthenticationError):
            return f"; {where}"
        if isinstance(error, AccessDenied):
            has_token = self.provider.backend.has_token
            return "; ask the operator for access to the study, or use another token" if has_token else f"; no token is set; {where}"
        if isinstance(error, Unavailable) or (isinstance(error, ServiceError) and (error.status or 0) >= 500):
            return "; try again later, or tell the server's operator"
        return ""

    def _found(self) -> Known | None:
        with self._explained():
            return self.provider.backend.find(self._query)

    def _known(self) -> Known:
        found = self._found()
        if found is None:
            raise WorkflowError(f"{self.print_query} is not found: check study, analysis id and name")
        return found

    def local_suffix(self) -> str:
        if get_constant_prefix(self.query) != self.query:
            return wildcard_path(self.query)
        with self._explained():
            return self._query.local_suffix

    # What there is

    async def inventory(self, cache: IOCacheStorageInterface) -> None:
        key = self.cache_key()
        found = self._found()
        cache.exists_in_storage[key] = found is not None
        if found is not None:
            cache.mtime[key] = Mtime(storage=found.mtime)
            cache.size[key] = found.size
            cache.checksum[key] = self.checksum()

    def get_inventory_parent(self) -> str | None:
        return None

    def exists(self) -> bool:
        return self._found() is not None

    def mtime(self) -> float:
        return self._known().mtime

    def size(self) -> int:
        """In bytes; of a slice, the size of what it is cut from."""
        return self._known().size

    def checksum(self) -> str | None:
        found = self._found()
        return None if found is None or found.md5 is None or self._query.regions else f"md5:{found.md5}"

    def local_footprint(self) -> int:
        """In bytes; how big a slice is nobody knows before it is cut."""
        return 0 if self._query.regions else self.size()

    def list_candidate_matches(self) -> Iterable[str]:
        with self._explained():
            pattern = read_pattern(self.query)
            return [found + pattern.tail for found in self.provider.backend.matches(pattern)]

    # Moving it

    def retrieve_object(self) -> None:
        self._retrieve(Stop())

    def _retrieve(self, stop: Stop) -> None:
        known, path = self._known(), self.local_path()
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.provider.backend.retrieve(known, self._query, path, stop)

    async def managed_retrieve(self) -> None:
        """As the base class does it, but several at once, and in threads. No half file is at the local path, so none is removed."""
        await self.wait_for_free_space()  # type: ignore[no-untyped-call]  # the interface has few annotations
        await self._in_thread(self._retrieve, Operation.RETRIEVE, "retrieve")

    def store_object(self) -> None:
        self._store(Stop())

    def _store(self, stop: Stop) -> None:
        with self._explained():
            self.provider.backend.store(self._query, self.local_path(), stop)

    async def managed_store(self) -> None:
        await self._in_thread(self._store, Operation.STORE, "store")

    async def _in_thread(self, move: Callable[[Stop], None], operation: Operation, verb: str) -> None:
        stop = Stop()
        try:
            async with self._rate_limiter(operation):
                running = self.provider.pool.submit(move, stop)
                waiting = asyncio.wrap_future(running)
                try:
                    await asyncio.shield(waiting)
                except asyncio.CancelledError:  # another file failed, or the user wants to leave
                    stop.set()
                    running.cancel()
                    await asyncio.gather(waiting, return_exceptions=True)  # nothing is still at work on what the next run takes up
                    raise
        except WorkflowError:
            raise
        except Exception as error:
            raise WorkflowError(f"{self.print_query}: cannot {verb} it", error) from error

    def remove(self) -> None:
        with self._explained():
            why = self.provider.backend.remove(self._query)
        if why is not None:
            self.provider.logger.warning(why)

    def cleanup(self) -> None:
        """Nothing is left of a file that was retrieved; what is half done is for the next run."""
