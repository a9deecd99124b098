"""The tree of commands, as cyclopts sees it. Loaded when a command runs, not for `score --help`."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import App, Group, Parameter
from cyclopts.help import PlainFormatter

from score_core import __version__
from score_core.cli.context import GlobalOptions

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH: Final = 100
_EVERYWHERE = Group("Options of every command", sort_key=1)
Dispatch = Callable[[App, tuple[str, ...], GlobalOptions], Any]


class _Formatter(PlainFormatter):
    """Options with their explanations below them indented, wrapped once: the library's own wraps twice, at two widths."""

    def _print_plain(self, console: Console, text: str) -> None:
        if text.startswith(self.indent):
            text = textwrap.fill(
                " ".join(text.split()),
                width=min(_WIDTH, console.width),
                initial_indent=self.indent,
                subsequent_indent=3 * self.indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def build(commands: Mapping[str, str], dispatch: Dispatch) -> App:
    """The program. Commands map names to `module:function`: they are named, not imported, and only the one that runs is.

    Global options are taken off the command line wherever they stand; `dispatch` gets them and the other tokens.
    """
    app = App(name="score", help_format="plaintext", help_formatter=_Formatter(), version=f"Score for Python\n  Version: {__version__}")
    for name, where in commands.items():
        app.command(where, name=name)

    @app.meta.default
    def launch(
        *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        options: Annotated[GlobalOptions, Parameter(name="*", group=_EVERYWHERE, show_default=False)] = GlobalOptions(),  # noqa: B008  # frozen
    ) -> Any:
        return dispatch(app, tokens, options)

    return app
