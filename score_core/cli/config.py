"""Commands about settings: config show."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from cyclopts import App, Parameter

from score_core.cli.context import Injected
from score_core.cli.output import Result

app = App(name="config", help="Show the configuration.", version_flags=())


@app.command
def show(
    *,
    origin: Annotated[bool, Parameter(negative=(), show_default=False, help="Say where each setting comes from.")] = False,
    context: Injected,
) -> Result:
    """Show every setting that is in force; secrets are masked.

    Example: score config show --origin --profile lab
    """
    settings = context.settings
    origins = settings.origins()
    return Result(
        {
            "profile": settings.profile,
            "config": str(settings.config) if settings.config else None,
            "settings": [dataclasses.asdict(found) for found in origins],
        },
        data=[f"{found.name} = {found.value}" + (f"  ({found.source})" if origin else "") for found in origins],
    )
