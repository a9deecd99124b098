"""What every command is given: the global options, the settings they lead to, and a way to be stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, TypeVar

from cyclopts import Parameter

from score_core.cli.output import Result, of_reports
from score_core.cli.signals import Signals
from score_core.errors import Interrupted
from score_core.model import TransferReport
from score_core.transfer.stop import Stop

if TYPE_CHECKING:
    from score_core.settings import Settings
    from score_core.transfer.engine import Engine

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalOptions:
    """Options of every command, accepted before and after its name."""

    profile: Annotated[str | None, Parameter(help="Use the settings of this profile of the configuration file.")] = None
    config: Annotated[str | None, Parameter(help="The configuration file, instead of the one in your home.")] = None
    store: Annotated[str | None, Parameter(help="Where the objects are: s3://bucket[/prefix][?endpoint=URL] or file:///folder.")] = None
    url: Annotated[str | None, Parameter(help="A Score server (this version cannot talk to one yet, and says so).")] = None
    quiet: Annotated[bool, Parameter(help="Show no progress.", negative=())] = False
    silent: Annotated[bool, Parameter(help="Print nothing at all; the exit code tells.", negative=())] = False
    json: Annotated[bool, Parameter(help="Print one JSON document on stdout, also on failure.", negative=())] = False
    progress: Annotated[str | None, Parameter(help="auto, bar, log (a line every 10 s) or none.")] = None
    debug: Annotated[bool, Parameter(help="Log what happens, and show tracebacks of unexpected errors.", negative=())] = False
    workflow_exit_codes: Annotated[bool, Parameter(help="Exit with 104 instead of 7, for workflow engines that retry it.", negative=())] = (
        False
    )


class Context:
    """One run of the program."""

    def __init__(self, options: GlobalOptions, *, stop: Stop, signals: Signals) -> None:
        self.options = options
        self.stop = stop
        self.signals = signals

    @cached_property
    def settings(self) -> Settings:
        """The settings, read on first use. Raises `ConfigurationError`."""
        from score_core.settings import load

        options = self.options
        flags = {"store": options.store, "url": options.url, "progress": options.progress}
        return load(flags, config=options.config, profile=options.profile)

    def transfer(
        self, items: Sequence[Item], one: Callable[[Engine, Item], TransferReport], describe: Callable[[Item], tuple[str, str]]
    ) -> Result:
        """Runs `one` for each item, shown on the way and stoppable.

        Raises:
            ConfigurationError: nothing was begun.
        """
        from score_core.cli.progress import progress_for
        from score_core.operations import batch
        from score_core.session import open_engine

        settings, began = self.settings, time.monotonic()
        shown = progress_for(settings.progress, len(items), quiet=self.options.quiet or self.options.silent)
        with self.signals.graceful(), open_engine(settings, progress=shown, stop=self.stop) as engine:
            try:
                with shown:
                    reports = batch(
                        items, lambda item: one(engine, item), describe, at_once=settings.transfer.files_at_once, stop=self.stop
                    )
            except Interrupted as stopped:  # what is done is told, too
                return of_reports(shown.reports, time.monotonic() - began, error=str(stopped), exit_code=stopped.exit_code)
        return of_reports(reports, time.monotonic() - began)


Injected = Annotated[Context, Parameter(parse=False)]
