"""Commands that move or compare files: upload, download, verify, url."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, cast, get_args

from cyclopts import Parameter

from score_core import operations
from score_core.checksum import parse_md5
from score_core.cli.context import Injected, Manifest, VerifyConnection, boolean, required
from score_core.cli.output import Result
from score_core.errors import ConfigurationError, redact
from score_core.ids import check_object_id
from score_core.java_settings import truth
from score_core.manifest import ManifestSource, read_downloads, read_uploads
from score_core.metadata.base import FileRecord
from score_core.model import TransferReport, Validation
from score_core.operations import DownloadItem, DownloadOptions, OutputLayout, UploadItem
from score_core.transfer.download import Span

_COMPUTE: Final = "compute"
_TO_THE_END: Final = -1  # the Java client's default for --length

ObjectIds = Annotated[
    list[str] | None,
    Parameter(
        name="--object-id", consume_multiple=True, negative=(), show_default=False, help="Ids of objects, separated by spaces or commas."
    ),
]
Force = Annotated[bool, Parameter(negative=(), show_default=False, help="Replace what is there, once the new one is proven good.")]
Study = Annotated[str, Parameter(name=["--study-id", "--study", "--program-id"], help="The study of the analysis.")]


def upload(
    *,
    file: Annotated[Path | None, Parameter(help="The file to upload.")] = None,
    object_id: Annotated[str | None, Parameter(help="The id of the object it becomes.")] = None,
    md5: Annotated[
        str | None,
        Parameter(help="The MD5 that the file must have, or 'compute' to trust the file as it is; by default the registered one."),
    ] = None,
    manifest: Manifest = None,
    force: Force = False,
    verify_connection: VerifyConnection = "true",
    context: Injected,
) -> Result:
    """Upload one file, or all files of a manifest.

    An object is published only if its bytes have the promised MD5. If it is
    registered, size and MD5 must be the registered ones, or nothing is sent
    (exit code 6). Run the same command again after an interruption: parts that
    are stored are not sent again.

    Example: score upload --file a.bam --object-id 5e0a7a2c-6d3e-5b0f-9c55-0d6a4f0e7b11 --md5 6dc47e886b9f2ecef870af88da3ebdd6

    Example: score upload --manifest manifest.txt --json
    """
    check = boolean("--verify-connection", verify_connection)
    if manifest is not None:
        _refuse_beside_manifest(file=file, object_id=object_id, md5=md5)
        items = read_uploads(context.manifest(manifest))
    else:
        items = [_single_upload(file, object_id, md5)]
    with context.engine(check=check) as engine:
        with context.metadata(engine.repository) as metadata:
            records = {} if metadata is None else operations.registered(metadata, [item.object_id for item in items])
        if manifest is None and md5 is None:
            _check_registered_md5(items[0], records)

        def one(item: UploadItem) -> TransferReport:
            return operations.upload(engine, operations.as_registered(item, records.get(item.object_id)), force=force)

        return context.transfer(engine, items, one, lambda item: (item.object_id, str(item.path)))


def _refuse_beside_manifest(**given: object) -> None:
    for name, value in given.items():
        if value:
            raise ConfigurationError(f"Give --manifest or --{name.replace('_', '-')}, not both")


def _single_upload(file: Path | None, object_id: str | None, md5: str | None) -> UploadItem:
    if file is None or object_id is None:
        raise ConfigurationError("Give --file with --object-id and --md5, or --manifest")
    if md5 is None or md5.strip().lower() == _COMPUTE:
        return UploadItem(check_object_id(object_id), file, None)
    promised = parse_md5(md5)
    if promised is None:
        raise ConfigurationError(f"--md5 must be 32 hex digits, an MD5 in base64, or 'compute', got {md5[:80]!r}")
    return UploadItem(check_object_id(object_id), file, promised)


def _check_registered_md5(item: UploadItem, records: Mapping[str, FileRecord]) -> None:
    record = records.get(item.object_id)
    if record is None or record.md5 is None:
        raise ConfigurationError(
            f"Give --md5, for none is registered of object {item.object_id}: the MD5 that the file must have, "
            "or 'compute' to trust the file as it is"
        )


def download(
    *,
    object_id: ObjectIds = None,
    manifest: Manifest = None,
    analysis_id: Annotated[str | None, Parameter(help="All files of this analysis instead; needs --study-id.")] = None,
    study_id: Study | None = None,
    output_dir: Annotated[Path, Parameter(help="The folder for the files; it is made if missing.")],
    output_layout: Annotated[str, Parameter(help="filename, bundle (a folder per analysis) or id.")] = "filename",
    offset: Annotated[int, Parameter(help="Begin at this byte of the object.")] = 0,
    length: Annotated[int, Parameter(help="Take this many bytes; -1 means to the end.")] = _TO_THE_END,
    index: Annotated[str, Parameter(help="false: without the index files (bai, crai, tbi, ...) that are registered beside them.")] = "true",
    force: Force = False,
    validate: Annotated[str | None, Parameter(help="auto, parts, whole, both or off; true means auto and false off.")] = None,
    verify_connection: VerifyConnection = "true",
    context: Injected,
) -> Result:
    """Download objects into a folder.

    A file gets its name only once its MD5 is proven. Run the same command again
    after an interruption: what has arrived is not fetched again, and a file
    that is there already and good is not touched.

    Example: score download --object-id 5e0a7a2c-6d3e-5b0f-9c55-0d6a4f0e7b11 --output-dir data

    Example: score download --manifest manifest.tsv --output-dir data --output-layout bundle

    Example: score download --analysis-id a25ae8b4-097d-11ea-b4b9-41f0d4c18919 --study-id TEST-CA --output-dir data
    """
    _check_one_source(object_id, manifest, analysis_id, study_id)
    validation = choice("--validate", validate, get_args(Validation)) if validate else context.settings.validation
    options = DownloadOptions(
        output_dir=output_dir,
        layout=cast("OutputLayout", choice("--output-layout", output_layout, get_args(OutputLayout))),
        span=_span(offset, length),
        validation=cast("Validation", validation),
        force=force,
        state_dir=context.settings.state_dir,
    )
    with_index = boolean("--index", index) and options.span == operations.WHOLE  # to a piece of a file its index says nothing
    check = boolean("--verify-connection", verify_connection)
    items = read_downloads(context.manifest(manifest)) if manifest is not None else [DownloadItem(name) for name in _ids(object_id)]
    with context.engine(check=check) as engine:
        with context.metadata(engine.repository) as metadata:
            if analysis_id is not None and study_id is not None:
                items = operations.of_analysis(required(metadata), study_id, analysis_id)
            elif metadata is not None and (with_index or options.layout != "id"):
                items = operations.with_metadata(items, metadata, index=with_index)
        return context.transfer(
            engine,
            items,
            lambda item: operations.download(engine, item, options),
            lambda item: (item.object_id, str(output_dir / (item.file_name or item.object_id))),
        )


def _check_one_source(object_id: Sequence[str] | None, manifest: str | None, analysis_id: str | None, study_id: str | None) -> None:
    ways = [object_id is not None, manifest is not None, analysis_id is not None or study_id is not None]
    if ways.count(True) != 1:
        raise ConfigurationError("Give exactly one of --object-id, --manifest, or --analysis-id with --study-id")
    check_analysis(analysis_id, study_id)
    if object_id is not None and not _ids(object_id):
        raise ConfigurationError("--object-id needs at least one id")


def check_analysis(analysis_id: str | None, study_id: str | None) -> None:
    if (analysis_id is None) != (study_id is None):
        raise ConfigurationError("--analysis-id and --study-id go together: give both")


def choice(option: str, text: str, choices: Sequence[str]) -> str:
    """`text` as one of `choices`, in any case (protocol section 14); Java's true and false are auto and off."""
    folded = text.strip().lower()
    if "auto" in choices and folded not in choices:
        folded = {True: "auto", False: "off", None: folded}[truth(folded)]
    if folded not in choices:
        raise ConfigurationError(f"{option} must be one of {', '.join(choices)}, got {text[:80]!r}")
    return folded


def _span(offset: int, length: int) -> Span:
    if offset < 0 or length < _TO_THE_END or max(offset, length) >= 2**63:
        raise ConfigurationError("--offset must be 0 or more, and --length 0 or more or -1 for all that follows")
    return Span(offset, None if length == _TO_THE_END else length)


def _ids(given: Sequence[str] | None) -> list[str]:
    """Object ids, each once, also from lists with commas as the Java client takes them."""
    ids = [name.strip() for text in given or () for name in text.split(",") if name.strip()]
    return list(dict.fromkeys(check_object_id(name) for name in ids))


def verify(
    *paths: Annotated[Path, Parameter(help="Local files.")],
    object_id: ObjectIds = None,
    manifest: Manifest = None,
    output_dir: Annotated[Path | None, Parameter(help="The folder that the files of a download manifest are in.")] = None,
    context: Injected,
) -> Result:
    """Compare local files with what the repository says of them; nothing is moved.

    Exit code 6 means that a file differs; the message says in which part. The
    manifest is one of uploads, or with --output-dir one of downloads.

    Example: score verify data/a.bam --object-id 5e0a7a2c-6d3e-5b0f-9c55-0d6a4f0e7b11

    Example: score verify --manifest manifest.tsv --output-dir data
    """
    if manifest is None:
        pairs = _paired(paths, object_id)
    else:
        _refuse_beside_manifest(object_id=object_id)
        if paths:
            raise ConfigurationError("Give --manifest or files, not both")
        pairs = _listed(context.manifest(manifest), output_dir)
    with context.engine() as engine:

        def one(pair: tuple[DownloadItem, Path]) -> TransferReport:
            spec = engine.repository.describe(pair[0].object_id)
            operations.check_expectations(pair[0], spec)
            return operations.verify(spec, pair[1], stop=engine.stop)

        return context.transfer(engine, pairs, one, lambda pair: (pair[0].object_id, str(pair[1])))


def _paired(paths: Sequence[Path], object_id: Sequence[str] | None) -> list[tuple[DownloadItem, Path]]:
    if not paths or not object_id:
        raise ConfigurationError("Give files with the --object-id of each, or --manifest")
    ids = _ids(object_id)
    if len(ids) != len(paths):
        raise ConfigurationError(f"There are {len(paths)} files and {len(ids)} object ids; give one id per file, in the same order")
    return [(DownloadItem(name), path) for name, path in zip(ids, paths, strict=True)]


def _listed(manifest: ManifestSource, output_dir: Path | None) -> list[tuple[DownloadItem, Path]]:
    if output_dir is None:
        return [(DownloadItem(item.object_id, md5=item.md5), item.path) for item in read_uploads(manifest)]
    return [(item, output_dir / (item.file_name or item.object_id)) for item in read_downloads(manifest)]


def url(
    *,
    object_id: Annotated[str, Parameter(help="The id of the object.")],
    context: Injected,
) -> Result:
    """Print a time-limited address of an object.

    Whoever has the address may read the object until it expires: treat it like a password.

    Example: samtools view "$(score url --object-id 5e0a7a2c-6d3e-5b0f-9c55-0d6a4f0e7b11)"
    """
    with context.repository() as repository:
        if context.settings.serve_url is None and repository.label.startswith("file://"):
            raise ConfigurationError(
                f"Nobody would answer an address into {redact(repository.label)}; run `score serve`, and set STORAGE_URL to what it prints"
            )
        signed = repository.sign_external(check_object_id(object_id))
    return Result({"object_id": object_id, "url": signed.url, "expires_at": signed.expires_at}, data=[signed.url])
