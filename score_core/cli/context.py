"""What every command is given: the global options, the settings they lead to, and a way to be stopped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

from cyclopts import Parameter

from score_core.cli.running import Running
from score_core.cli.signals import Signals
from score_core.errors import ConfigurationError
from score_core.java_settings import truth
from score_core.transfer.stop import Stop

if TYPE_CHECKING:
    from score_core.cli.progress import Quiet
    from score_core.manifest import ManifestSource
    from score_core.metadata.base import Metadata
    from score_core.settings import Settings

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalOptions:
    """Options of every command, accepted before and after its name."""

    profile: Annotated[str | None, Parameter(help="Use the settings of this profile of the configuration file.")] = None
    config: Annotated[str | None, Parameter(help="The configuration file, instead of the one in your home.")] = None
    store: Annotated[str | None, Parameter(help="Where the objects are: s3://bucket[/prefix][?endpoint=URL] or file:///folder.")] = None
    url: Annotated[str | None, Parameter(help="A Score server; the token comes from ACCESSTOKEN or SCORE_TOKEN_FILE.")] = None
    quiet: Annotated[bool, Parameter(help="Show no progress.", negative=())] = False
    silent: Annotated[bool, Parameter(help="Print nothing at all; the exit code tells.", negative=())] = False
    json: Annotated[bool, Parameter(help="Print one JSON document on stdout, also on failure.", negative=())] = False
    progress: Annotated[str | None, Parameter(help="auto, bar, log (a line every 10 s) or none.")] = None
    debug: Annotated[bool, Parameter(help="Log what happens, and show tracebacks of unexpected errors.", negative=())] = False
    workflow_exit_codes: Annotated[bool, Parameter(help="Exit with 104 if only the network failed, for workflow engines.", negative=())] = (
        False
    )


class Context(Running):
    """One run of the program."""

    def __init__(self, options: GlobalOptions, *, stop: Stop, signals: Signals) -> None:
        self.options = options
        self.stop = stop
        self.signals = signals

    @cached_property
    def settings(self) -> Settings:
        """The settings, read on first use. Raises `ConfigurationError`."""
        return self.load()

    def load(self, *, at_store: bool = False) -> Settings:
        """The settings, for a server with `at_store`. Raises `ConfigurationError`."""
        from score_core.settings import load

        options = self.options
        flags = {"store": options.store, "url": options.url, "progress": options.progress}
        return load(flags, config=options.config, profile=options.profile, at_store=at_store)

    def manifest(self, name: str) -> ManifestSource:
        """The manifest that an option names."""
        from score_core.manifest import ManifestSource

        return ManifestSource(name, self.settings.portal_url)

    def progress(self, files: int) -> Quiet:
        from score_core.cli.progress import progress_for

        return progress_for(self.settings.progress, files, quiet=self.options.quiet or self.options.silent)


def required(metadata: Metadata | None) -> Metadata:
    """The metadata service of a command that is nothing without one. Raises `ConfigurationError`."""
    if metadata is None:
        raise ConfigurationError("Nothing knows of studies and analyses here: set METADATA_URL to a Song server, or `score register` files")
    return metadata


Injected = Annotated[Context, Parameter(parse=False)]

# Options of several commands

_MANIFEST_HELP: Final = "A manifest instead: path, http(s) address, a portal's id of one, or - for standard input."

Manifest = Annotated[str | None, Parameter(allow_leading_hyphen=True, help=_MANIFEST_HELP)]  # hyphen: for "-"
# The Java client's booleans have a value (protocol section 14), so these are texts here.
VerifyConnection = Annotated[str, Parameter(help="false: do not try the server and the object store before anything is moved.")]


def boolean(option: str, text: str) -> bool:
    """What a boolean option's value says. Raises `ConfigurationError`."""
    found = truth(text)
    if found is None:
        raise ConfigurationError(f"{option} must be true or false, got {text[:80]!r}")
    return found
