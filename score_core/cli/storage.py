"""Commands about what is stored, and about this program: list, abort, info, version."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from score_core import __version__
from score_core.cli.context import Context, Injected
from score_core.cli.output import Result
from score_core.errors import ObjectNotFound, redact
from score_core.ids import check_object_id
from score_core.session import registry_path

if TYPE_CHECKING:
    from score_core.settings import Settings


def list_(
    *,
    uploads: Annotated[bool, Parameter(negative=(), show_default=False, help="List unfinished uploads instead of objects.")] = False,
    context: Injected,
) -> Result:
    """List what is stored: object id, bytes, time, separated by tabs.

    With --uploads: object id, upload id, time of its begin.

    Example: score list --uploads
    """
    with context.repository() as repository:
        rows = [dataclasses.asdict(row) for row in (repository.list_uploads() if uploads else repository.list_objects())]
        where = redact(repository.label)
    return Result(
        {"store": where, "uploads" if uploads else "objects": rows},
        data=["\t".join(_cell(name, value) for name, value in row.items()) for row in rows],
        talk=[f"{where}: {'unfinished uploads' if uploads else 'objects'}: {len(rows)}"],
    )


def _cell(name: str, value: Any) -> str:
    return datetime.fromtimestamp(value, UTC).isoformat(timespec="seconds") if name.endswith("_at") else str(value)


def abort(
    *,
    object_id: Annotated[str, Parameter(help="The id of the object whose upload is unfinished.")],
    context: Injected,
) -> Result:
    """Drop an unfinished upload and the parts that it has stored. Published objects are not touched.

    Example: score abort --object-id 5e0a7a2c-6d3e-5b0f-9c55-0d6a4f0e7b11
    """
    with context.repository() as repository:
        where = redact(repository.label)
        if not repository.abort(check_object_id(object_id)):
            raise ObjectNotFound(f"There is no unfinished upload of object {object_id} in {where}; `score list --uploads` shows all")
    return Result({"object_id": object_id, "aborted": True}, talk=[f"Dropped the unfinished upload of object {object_id} from {where}"])


def info(
    *,
    verbose: Annotated[bool, Parameter(negative=(), show_default=False, help="All settings, each with where it comes from.")] = False,
    context: Injected,
) -> Result:
    """Show the settings that matter; never a token.

    Example: score info --verbose
    """
    facts = dict(_facts(context))
    document: dict[str, Any] = dict(facts)
    lines = [f"{name}: {value}" for name, value in facts.items()]
    if verbose:
        origins = context.settings.origins()
        document["settings"] = [dataclasses.asdict(origin) for origin in origins]
        lines += [f"{origin.name} = {origin.value}  ({origin.source})" for origin in origins]
    return Result(document, data=lines)


def _facts(context: Context) -> Iterator[tuple[str, str]]:
    settings = context.settings
    yield "version", __version__
    yield "python", platform.python_version()
    yield "profile", settings.profile
    yield "config file", str(settings.config or "none")
    yield "objects", redact(settings.url or settings.store or f"file://{settings.data_dir / 'store'}")
    yield "metadata", redact(_metadata(settings))
    given = next((name for name in ("token", "token_file") if name in settings.sources), None)
    yield "token", "none" if given is None else f"set ({settings.sources[given]})"
    yield "validation", settings.validation
    yield "workers", str(settings.workers)


def _metadata(settings: Settings) -> str:
    if settings.metadata_url is not None:
        return settings.metadata_url
    return f"{settings.url}, if it keeps them" if settings.url is not None else str(registry_path(settings))


def version() -> Result:
    """Print the version.

    Example: score version
    """
    return Result({"version": __version__}, data=["Score for Python", f"  Version: {__version__}"])
