"""Queries: what users write, and what is meant by it. Nothing here asks anybody.

score://<study>/<analysis id>/<file>        a file of an analysis
score://<object id>/<file>                  an object; the name is the local copy's
score://<study>/<any>/<path>/<name>         a named file: an analysis of its own, whose id follows from the name
...?region=chr1:1-1000&region=chr2          of a BAM, CRAM, VCF or BCF file only these regions; &format=sam, bam, ...
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from snakemake_interface_storage_plugins.io import WILDCARD_REGEX

from score_core.checksum import md5_hex
from score_core.errors import ConfigurationError
from score_core.metadata.payload import check_study_id, name_problem

SCHEME: Final = "score://"
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_NAMED: Final = uuid.UUID("8d0c8a0b-3c54-4b8e-9f0a-52b8a1f6e7d3")  # our own namespace of named files' analyses, drawn once
_ALIGNMENTS: Final = ("bam", "cram", "sam")
_VARIANTS: Final = ("vcf.gz", "bcf", "vcf")
_FORMATS: Final = {".bam": "bam", ".cram": "cram", ".vcf.gz": "vcf.gz", ".vcf.bgz": "vcf.gz", ".bcf": "bcf"}
_HOLE: Final = "\ue000"  # stands for a wildcard, which may hold any mark, while a query is taken apart


@dataclass(frozen=True, slots=True)
class Query:
    """One file. It is given by `object_id`, by `study` and `analysis_id`, or, if it `is_named`, by `study` and `path`.

    `path` is all of it without scheme and regions. `regions` as samtools takes them, then with the `format` they are written in.
    """

    path: str
    file_name: str
    study: str = ""
    analysis_id: str = ""
    object_id: str | None = None
    is_named: bool = False
    regions: tuple[str, ...] = ()
    format: str = ""

    def version_id(self, number: int) -> str:
        """The analysis that version `number`, 1 being the first, of a named file is."""
        return str(uuid.uuid5(_NAMED, f"{self.path}\n{number}"))

    @property
    def local_suffix(self) -> str:
        """The local copy's path below the provider's folder: that of the query. A slice has a folder of its own, and tells its regions.

        Raises:
            ConfigurationError: pysam, which slices need, is not installed.
        """
        if not self.regions:
            return self.path
        try:
            from score_core.slicing.objects import slice_name
            from score_core.slicing.view import Wanted
        except ImportError:
            raise ConfigurationError("Regions need pysam, which is not installed: pip install 'score-transfer[snakemake]'") from None
        # Names are cut where they are long, and colons replaced: what tells two slices apart for sure is the digest
        told_apart = md5_hex("\0".join((self.format, *self.regions)).encode())[:12]
        return f"{self.path}~{told_apart}/{slice_name(self.file_name, Wanted(self.regions), self.format)}"


def read_query(text: str) -> Query:
    """The meaning of a query without wildcards.

    Raises:
        ConfigurationError: it is none; says what is wrong with it.
    """
    path, parameters = _taken_apart(text)
    steps = path.split("/")
    file_name, (regions, form) = steps[-1], _slice_of(steps[-1], parameters)
    if len(steps) == 2 and _UUID.fullmatch(steps[0]):
        return Query(path, file_name, object_id=steps[0].lower(), regions=regions, format=form)
    is_named = not (len(steps) == 3 and _UUID.fullmatch(steps[1]))
    analysis_id = "" if is_named else steps[1].lower()
    return Query(path, file_name, steps[0], analysis_id, is_named=is_named, regions=regions, format=form)


def check_query(text: str) -> None:
    """Raises `ConfigurationError` if a query, which may hold wildcards, can be none."""
    _taken_apart(WILDCARD_REGEX.sub(_HOLE, text))


def shown(text: str) -> str:
    """The query without what is no part of one and may be a secret: a user before `@`, and parameters that are not ours."""
    path, mark, parameters = _split(text)
    scheme, _, rest = path.rpartition("://")
    study, slash, rest = rest.partition("/")
    kept = [pair for pair in parameters.split("&") if pair.partition("=")[0] in {"region", "format"}]
    return f"{scheme}://{study.rpartition('@')[2]}{slash}{rest}{mark}{'&'.join(kept) or '...' if mark else ''}"


def wildcard_path(text: str) -> str:
    """What `Query.path` will be, with the wildcards in it."""
    return _split(text)[0].removeprefix(SCHEME)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A query with wildcards, for finding what matches it: None where a wildcard stands. `tail` is put behind each match."""

    study: str | None
    analysis_id: str | None
    tail: str


def read_pattern(text: str) -> Pattern:
    """What to list for a query with wildcards. Raises `ConfigurationError` if nobody can list that."""
    path, mark, parameters = _split(text)
    steps = WILDCARD_REGEX.sub(_HOLE, path.removeprefix(SCHEME)).split("/")
    analysis_id = None if _HOLE in steps[1] else steps[1]
    if len(steps) != 3 or (analysis_id is not None and not _UUID.fullmatch(analysis_id)):
        raise ConfigurationError(
            f"{shown(text)} cannot be listed: write {SCHEME}STUDY/ANALYSIS-ID/FILE with wildcards in it; named files are not listed"
        )
    return Pattern(None if _HOLE in steps[0] else steps[0], analysis_id, mark + parameters)


def _split(text: str) -> tuple[str, str, str]:
    """What stands before the first question mark outside of a wildcard, the mark, and what follows."""
    wildcards = [found.span() for found in WILDCARD_REGEX.finditer(text)]
    for place in (found.start() for found in re.finditer(r"\?", text)):
        if not any(start < place < end for start, end in wildcards):
            return text[:place], "?", text[place + 1 :]
    return text, "", ""


def _taken_apart(text: str) -> tuple[str, str | None]:
    """Path and parameters, checked; `_HOLE`s stand for what is not known yet."""
    if not text.startswith(SCHEME):
        raise ConfigurationError(f"it does not begin with {SCHEME}")
    path, mark, parameters = text.removeprefix(SCHEME).partition("?")
    steps = path.split("/")
    if len(steps) < 2:
        raise ConfigurationError(f"it has no file: write {SCHEME}STUDY/ANALYSIS-ID/FILE or {SCHEME}OBJECT-ID/FILE")
    if "@" in steps[0]:  # before anything quotes it
        raise ConfigurationError("it has a user in it: names and secrets belong into the provider's settings")
    for step in steps:
        problem = None if _HOLE in step else name_problem(step)
        if problem:
            raise ConfigurationError(f"a step of its path {problem}: {step[:80]!r}")
    if _HOLE not in steps[0] and not (len(steps) == 2 and _UUID.fullmatch(steps[0])):
        check_study_id(steps[0])
    _slice_of(steps[-1], parameters if mark else None)
    return path, parameters if mark else None


def _slice_of(file_name: str, parameters: str | None) -> tuple[tuple[str, ...], str]:
    """The regions and their format; none, if there are no parameters."""
    if parameters is None:
        return (), ""
    given: dict[str, list[str]] = {}
    for pair in parameters.split("&"):
        key, _, value = pair.partition("=")
        given.setdefault(key, []).append(unquote(value))
    regions, formats = given.pop("region", []), given.pop("format", [])
    if given:
        raise ConfigurationError("behind the question mark it has more than region=... and format=...; write %3F, %26 for marks in a value")
    if not regions or not all(regions):
        raise ConfigurationError("it has a question mark and no region: write ?region=chr1:1-1000")
    if _HOLE in file_name:
        return tuple(regions), ""
    return tuple(regions), _format(file_name, formats)


def _format(file_name: str, formats: Sequence[str]) -> str:
    own = next((form for suffix, form in _FORMATS.items() if file_name.lower().endswith(suffix)), None)
    if own is None:
        raise ConfigurationError(f"regions are read from files named {', '.join(_FORMATS)}, not from {file_name[:80]!r}")
    choices = _ALIGNMENTS if own in _ALIGNMENTS else _VARIANTS
    form = formats[-1].lower() if formats else own
    if form not in choices and _HOLE not in form:
        raise ConfigurationError(f"{file_name[:80]!r} can be written as {', '.join(choices)}, not as {form[:20]!r}")
    return form
