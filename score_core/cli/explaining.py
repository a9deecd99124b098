"""How help looks. Loaded when a command is to be explained, not when one runs."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

from cyclopts.help import PlainFormatter

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH: Final = 100


class Formatter(PlainFormatter):
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
