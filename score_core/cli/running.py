"""What a command and a job of a workflow engine have in common: what their settings lead to is opened, transfers are shown and stoppable.

Cheap to import: nothing is loaded before it is opened.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from score_core.cli.output import Result, of_reports
from score_core.cli.signals import Signals
from score_core.errors import Interrupted
from score_core.model import TransferReport
from score_core.transfer.stop import Stop

if TYPE_CHECKING:
    from score_core.cli.progress import Quiet
    from score_core.metadata.base import Metadata
    from score_core.metadata.registering import NewFile
    from score_core.repository.base import Repository
    from score_core.settings import Settings
    from score_core.transfer.engine import Engine


Item = TypeVar("Item")


class Running(ABC):
    """Something with settings, and a way to be stopped."""

    stop: Stop
    signals: Signals

    @property
    @abstractmethod
    def settings(self) -> Settings:
        """Raises `ConfigurationError`."""

    @abstractmethod
    def progress(self, files: int) -> Quiet:
        """A display for work on `files` files, to be entered while it goes on."""

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

    def transfer(
        self, engine: Engine, items: Sequence[Item], one: Callable[[Item], TransferReport], describe: Callable[[Item], tuple[str, str]]
    ) -> Result:
        """Runs `one` for each item, shown on the way and stoppable."""
        from score_core.operations import batch

        began = time.monotonic()
        engine.progress = shown = self.progress(len(items))
        try:
            with self.signals.graceful(), shown:
                reports = batch(items, one, describe, at_once=self.settings.files_at_once, stop=self.stop)
        except Interrupted as stopped:  # what is done is told, too
            return of_reports(shown.reports, time.monotonic() - began, error=str(stopped), exit_code=stopped.exit_code)
        return of_reports(reports, time.monotonic() - began)

    def new_files(self, paths: Sequence[Path], access: str) -> list[NewFile]:
        """Local files to register, with their MD5s, as `operations.new_files` reads them."""
        from score_core.operations import new_files

        shown = self.progress(len(paths))
        with self.signals.graceful(), shown:
            return new_files(paths, access=access, at_once=self.settings.files_at_once, progress=shown, stop=self.stop)
