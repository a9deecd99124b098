"""The tree of commands, as cyclopts sees it. Loaded when a command runs, not for `score --help`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final

from cyclopts import App, Group, Parameter

from score_core import __version__
from score_core.cli.context import GlobalOptions

_EXPLAINS: Final = frozenset({"--help", "-h", "--version"})
_EVERYWHERE = Group("Options of every command", sort_key=1)
_Options = Annotated[GlobalOptions, Parameter(name="*", group=_EVERYWHERE, show_default=False)]
Dispatch = Callable[[App, Sequence[str], GlobalOptions], Any]


def run(commands: Mapping[str, str], argv: Sequence[str], dispatch: Dispatch) -> Any:
    """What a command line comes to. Commands map names to `module:function`: they are named, not imported, and only the one that runs is.

    Global options are taken off the command line wherever they stand; `dispatch` gets them and the other tokens, and its result is
    returned. Help is printed instead; then None is returned.

    Raises:
        CycloptsError: the command line is wrong.
    """
    explains = not _EXPLAINS.isdisjoint(argv)
    app = App(name="score", version=f"Score for Python\n  Version: {__version__}", **(_explaining() if explains else {}))
    for name, where in commands.items():
        app.command(where, name=name)
    if explains:
        return _explained(app, argv, dispatch)
    # cyclopts' own way for such options, a meta app, looks at all of them six times, which takes 30 ms more
    taking = App(help_flags=(), version_flags=())
    taking.default(_take)
    _, bound, tokens, _ = taking.parse_known_args(argv)
    return dispatch(app, tokens, _take(**bound.arguments))


def _take(*, options: _Options = GlobalOptions()) -> GlobalOptions:  # noqa: B008  # frozen
    return options


def _explaining() -> dict[str, Any]:
    from score_core.cli.explaining import Formatter

    return {"help_format": "plaintext", "help_formatter": Formatter()}


def _explained(app: App, argv: Sequence[str], dispatch: Dispatch) -> Any:
    """The same by a meta app, which tells of the global options in every command's help."""

    @app.meta.default
    def launch(
        *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        options: _Options = GlobalOptions(),  # noqa: B008
    ) -> Any:
        return dispatch(app, tokens, options)

    return app.meta(argv, exit_on_error=False, print_error=False, result_action="return_value", verbose=False)
