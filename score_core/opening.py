"""Opens, for as long as a command or job needs them, what its settings lead to. Cheap to import: nothing is loaded before it is opened."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from score_core.transfer.stop import Stop

if TYPE_CHECKING:
    from score_core.metadata.base import Metadata
    from score_core.repository.base import Repository
    from score_core.settings import Settings
    from score_core.transfer.engine import Engine


class Opening(ABC):
    """Something with settings, and a way to be stopped."""

    stop: Stop

    @property
    @abstractmethod
    def settings(self) -> Settings:
        """Raises `ConfigurationError`."""

    @contextmanager
    def repository(self) -> Iterator[Repository]:
        """Where the objects are, closed at the end. Raises `ConfigurationError`."""
        from score_core.session import open_repository

        repository = open_repository(self.settings, stop=self.stop)
        try:
            yield repository
        finally:
            repository.close()

    @contextmanager
    def metadata(self, repository: Repository, *, create: bool = False) -> Iterator[Metadata | None]:
        """Who knows files and analyses, as `session.open_metadata` finds it, closed at the end."""
        from score_core.session import open_metadata

        metadata = open_metadata(self.settings, repository, create=create, stop=self.stop)
        try:
            yield metadata
        finally:
            if metadata is not None:
                metadata.close()

    @contextmanager
    def engine(self, *, check: bool = False) -> Iterator[Engine]:
        """What transfers run with, closed at the end; with `check`, once its repository is known to be reached and to let us in.

        A folder of this machine needs no connection, and is made by the first upload.

        Raises:
            ConfigurationError: nothing was begun.
            ServiceError: the check failed.
        """
        from score_core.session import open_engine, store_folder

        with open_engine(self.settings, stop=self.stop) as engine:
            if check and store_folder(self.settings) is None:
                engine.repository.check()
            yield engine
