"""`score view`: the reads or variants of regions."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from score_core.cli.context import Context, Injected, Manifest, VerifyConnection, boolean
from score_core.cli.output import Result, of_reports
from score_core.errors import ConfigurationError
from score_core.ids import check_object_id
from score_core.model import TransferReport

if TYPE_CHECKING:
    from score_core.slicing.objects import ViewItem
    from score_core.slicing.view import Form, Limits, Wanted

_BINARY: Final = ("bam", "cram", "vcf.gz", "bcf")
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def view(
    *,
    object_id: Annotated[str | None, Parameter(help="The object to read from.")] = None,
    input_file: Annotated[Path | None, Parameter(help="A local file instead.")] = None,
    manifest: Manifest = None,
    query: Annotated[
        list[str] | None,
        Parameter(
            consume_multiple=True,
            negative=(),
            show_default=False,
            help="Regions as samtools takes them, 1-based: chr1, chr1:1,000-2,000, chr1:1000 (to the end), {HLA-A*01:01}:1-9, "
            "* (unplaced reads), . (everything).",
        ),
    ] = None,
    bed_query: Annotated[Path | None, Parameter(help="The regions of a BED file (0-based, end exclusive) instead.")] = None,
    contained: Annotated[bool, Parameter(negative=(), show_default=False, help="Only what lies wholly within the regions.")] = False,
    skip_unknown: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Leave out contigs of the BED file that the data do not have.")
    ] = False,
    header_only: Annotated[bool, Parameter(negative=(), show_default=False, help="The header, and no records; needs no index.")] = False,
    output_format: Annotated[
        str | None, Parameter(help="sam, bam or cram; for variants vcf, vcf.gz or bcf. Text by default.", show_default=False)
    ] = None,
    output_dir: Annotated[Path | None, Parameter(help="The folder for the result; standard output if not given.")] = None,
    stdout: Annotated[bool, Parameter(negative=(), show_default=False, help="Write to standard output.")] = False,
    output_original_header: Annotated[
        bool,
        Parameter(
            negative=(), show_default=False, help="The header as it is, with all read groups and comments; else it is made for the slice."
        ),
    ] = False,
    output_index: Annotated[bool, Parameter(negative=(), show_default=False, help="Write an index beside the result.")] = False,
    reference_file: Annotated[Path | None, Parameter(help="The FASTA file (with .fai) of a CRAM that needs one.")] = None,
    index_object_id: Annotated[str | None, Parameter(help="The object of the index, if the metadata do not know it.")] = None,
    input_file_index: Annotated[Path | None, Parameter(help="The index of --input-file, if it is not beside it.")] = None,
    max_bytes: Annotated[str | None, Parameter(help="Refuse to fetch more than this of the data, such as 500M.")] = None,
    output_type: Annotated[str, Parameter(help="trimmed: the only kind there is.")] = "trimmed",
    verify_connection: VerifyConnection = "true",
    context: Injected,
) -> Result | None:
    """Show the reads or variants of regions, without fetching the file.

    Works on BAM, CRAM, and bgzip-compressed VCF and BCF, with their indexes.
    Each record comes once, in the file's order. A file appears only once it is
    complete; on standard output the exit code tells.

    Example: score view --object-id 5e0a7a2c-6d3e-5b0f-9c55-0d6a4f0e7b11 --query chr7:55019017-55211628

    Example: score view --manifest manifest.tsv --bed-query genes.bed --output-dir slices --output-format bam --output-index

    Example: score view --input-file a.cram --reference-file hg38.fa --header-only
    """
    if output_type.strip().lower() != "trimmed":
        raise ConfigurationError(f"--output-type {output_type[:40]!r} is not offered: only 'trimmed' is")
    _check_sources(object_id, input_file, manifest, index_object_id, input_file_index)
    check = boolean("--verify-connection", verify_connection)
    wanted = _wanted(query, bed_query, contained=contained, skip_unknown=skip_unknown, header_only=header_only)
    target = _target(context, output_dir, output_format, stdout=stdout, manifest=manifest)
    source = ["--object-id", object_id] if object_id else ["--input-file", str(input_file)] if input_file else ["--manifest", str(manifest)]
    form = _form(output_format, reference_file, command=wanted.command(*source), original=output_original_header, index=output_index)
    limits = _limits(context, max_bytes)
    if input_file is not None:
        return _view_file(context, input_file, input_file_index, wanted, form, target, limits)
    with context.engine(check=check) as engine, context.metadata(engine.repository) as metadata:
        from score_core.slicing.objects import ViewItem, check_names, view_object

        def one(item: ViewItem) -> TransferReport:
            return view_object(engine, metadata, item, wanted, form, target, limits=limits)

        if manifest is not None:
            from score_core import operations
            from score_core.manifest import read_downloads

            rows = operations.viewable(read_downloads(context.manifest(manifest)))
            items = [ViewItem(row.object_id, row.file_name, index_id) for row, index_id in rows]
            check_names(items, wanted)
            return context.transfer(engine, items, one, lambda item: (item.object_id, item.file_name or item.object_id))
        item = ViewItem(check_object_id(str(object_id)), index_id=None if index_object_id is None else check_object_id(index_object_id))
        began = time.monotonic()
        engine.progress = shown = context.progress(1)
        with context.signals.graceful(), shown:
            report = one(item)
        return of_reports([report], time.monotonic() - began)


def _view_file(
    context: Context, path: Path, index: Path | None, wanted: Wanted, form: Form, target: Path | IO[bytes], limits: Limits
) -> Result:
    from score_core.slicing.objects import view_file

    began = time.monotonic()
    with context.signals.graceful():
        report = view_file(path, index, wanted, form, target, limits=limits, stop=context.stop)
    return of_reports([report], time.monotonic() - began)


def _check_sources(
    object_id: str | None, input_file: Path | None, manifest: str | None, index_object_id: str | None, input_file_index: Path | None
) -> None:
    if [object_id is not None, input_file is not None, manifest is not None].count(True) != 1:
        raise ConfigurationError("Give exactly one of --object-id, --input-file and --manifest")
    if index_object_id is not None and object_id is None:
        raise ConfigurationError("--index-object-id goes with --object-id")
    if input_file_index is not None and input_file is None:
        raise ConfigurationError("--input-file-index goes with --input-file")


def _wanted(query: Sequence[str] | None, bed: Path | None, *, contained: bool, skip_unknown: bool, header_only: bool) -> Wanted:
    from score_core.slicing.base import require_pysam

    require_pysam("score view")
    from score_core.slicing.view import Wanted

    if not (query or bed or header_only):
        raise ConfigurationError("Give --query or --bed-query; --header-only for the header alone, --query . for everything")
    if skip_unknown and bed is None:
        raise ConfigurationError("--skip-unknown goes with --bed-query")
    return Wanted(tuple(query or ()), bed, contained=contained, header_only=header_only, skip_unknown=skip_unknown)


def _target(context: Context, output_dir: Path | None, form: str | None, *, stdout: bool, manifest: str | None) -> Path | IO[bytes]:
    if output_dir is not None:
        if stdout:
            raise ConfigurationError("Give --stdout or --output-dir, not both")
        return output_dir
    if manifest is not None:
        raise ConfigurationError("--manifest needs --output-dir: a file is written for each of its rows")
    if context.options.json:
        raise ConfigurationError("--json needs --output-dir: standard output cannot hold both the slice and the report")
    if (form or "").strip().lower() in _BINARY and sys.stdout.isatty():
        raise ConfigurationError(f"A terminal cannot show {form}: give --output-dir, or send standard output to a file")
    return sys.stdout.buffer


def _form(output_format: str | None, reference: Path | None, *, command: str, original: bool, index: bool) -> Form:
    from score_core.slicing.view import Form

    return Form(output_format, original_header=original, command=command, index=index, reference=reference)


def _limits(context: Context, max_bytes: str | None) -> Limits:
    from score_core.slicing.view import Limits

    most = None if max_bytes is None else size_of("--max-bytes", max_bytes)
    return Limits(max_bytes=most, connections=context.settings.transfer.workers)


def size_of(option: str, text: str) -> int:
    """A size in bytes from what a user wrote: `500M` is 500 times 2^20. Raises `ConfigurationError`."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ConfigurationError(f"{option} must be a number of bytes such as 500M or 2G, got {text[:40]!r}")
    return int(float(found[1]) * _UNITS[found[2].upper()])
