"""What a job of a workflow engine can do: each step reads its rule's files and params, and calls what every front end calls."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast, get_args

from score_core import operations
from score_core.cli.output import Result, of_reports
from score_core.cli.progress import Lines
from score_core.errors import ConfigurationError, Conflict, ObjectNotFound, ScoreError, redact
from score_core.ids import check_object_id
from score_core.manifest import read_downloads, read_uploads
from score_core.metadata.base import INDEX_SUFFIXES, Analysis, Metadata, indexes_of
from score_core.metadata.registering import download_manifest_text, register, summary, upload_manifest_text
from score_core.model import TransferReport, Validation
from score_core.operations import DownloadItem, DownloadOptions, OutputLayout, UploadItem
from score_core.session import store_folder
from score_core.slicing.base import require_pysam
from score_core.transfer.files import explained
from score_core.workflow.elsewhere import DEPLOYMENT, flow_of, is_elsewhere, transferred
from score_core.workflow.job import RECEIPT, Job, Step, known, write_whole

if TYPE_CHECKING:
    from score_core.slicing.view import Form, Wanted
    from score_core.transfer.engine import Engine

_COMPUTE: Final = "compute"
_FORMATS: Final = ("sam", "bam", "cram", "vcf", "vcf.gz", "bcf")  # by a name's end


# Download


@dataclass(frozen=True, slots=True)
class _Fetch:
    """An object and the output that it becomes."""

    item: DownloadItem
    path: Path


def _download(job: Job) -> Result:
    outputs = job.outputs()
    if is_elsewhere(job):
        return _download_elsewhere(job, outputs)
    with job.engine(check=True) as engine:
        with job.metadata(engine.repository) as metadata:
            items = _wanted_items(job, metadata)
            fetches = _fetches(job, items, outputs, metadata)
            if fetches is None and metadata is not None:
                items = operations.with_metadata(items, metadata, index=job.flag("index", default=True))
        if fetches is None:
            return _download_folder(job, engine, items, outputs[0])
        return job.transfer(
            engine, fetches, lambda fetch: _download_file(job, engine, fetch), lambda fetch: (fetch.item.object_id, str(fetch.path))
        )


def _wanted_items(job: Job, metadata: Metadata | None) -> list[DownloadItem]:
    """The objects that the rule names in one of three ways."""
    ids, manifest, analysis_id = job.texts("object_id"), job.input("manifest"), _analysis_id(job)
    if [bool(ids), manifest is not None, analysis_id is not None].count(True) != 1:
        raise ConfigurationError("download needs one of: the param object_id, an input manifest=..., or an analysis_id with study_id")
    if ids:
        return [DownloadItem(check_object_id(name)) for name in ids]
    if manifest is not None:
        return read_downloads(str(manifest))
    return operations.of_analysis(known(metadata), job.required("study_id"), cast("str", analysis_id))


def _fetches(job: Job, items: Sequence[DownloadItem], outputs: Sequence[Path], metadata: Metadata | None) -> list[_Fetch] | None:
    """Which object becomes which output; None if they all go into one folder."""
    if job.texts("object_id"):
        return _in_order(items, outputs, metadata)
    by_name: dict[str, list[DownloadItem]] = {}
    for item in items:
        by_name.setdefault(item.file_name or item.object_id, []).append(item)
    if len(outputs) == 1 and outputs[0].name not in by_name:
        return None
    for path in outputs:
        if len(by_name.get(path.name, ())) != 1:
            why = "has several files" if path.name in by_name else "has no file"
            raise ConfigurationError(f"The list {why} called {path.name}, the name of an output; it has {', '.join(sorted(by_name))[:400]}")
    return [_Fetch(by_name[path.name][0], path) for path in outputs]


def _in_order(items: Sequence[DownloadItem], outputs: Sequence[Path], metadata: Metadata | None) -> list[_Fetch] | None:
    """The outputs of object ids in their order; outputs that are indexes by their names may come on top, and are looked up."""
    if len(items) == len(outputs):
        return [_Fetch(item, path) for item, path in zip(items, outputs, strict=True)]
    data = [path for path in outputs if path.suffix not in INDEX_SUFFIXES]
    if len(data) != len(items):
        if len(outputs) == 1:
            return None
        raise ConfigurationError(f"There are {len(items)} object ids for {len(data)} outputs; name one output per id, in the same order")
    fetches = [_Fetch(item, path) for item, path in zip(items, data, strict=True)]
    return fetches + [_Fetch(_index_item(path, fetches, metadata), path) for path in outputs if path not in data]


def _index_item(path: Path, fetches: Sequence[_Fetch], metadata: Metadata | None) -> DownloadItem:
    """The registered index that goes to `path`: of the output that its name continues, as a.bam.bai or a.bai do a.bam."""
    of = next((fetch for fetch in fetches if path.with_suffix("") in {fetch.path, fetch.path.with_suffix("")}), None)
    if of is None:
        raise ConfigurationError(f"{path} is the index of no other output by its name; call it as that, with {path.suffix} behind it")
    registry = known(metadata)
    entity = registry.entity(of.item.object_id)
    siblings = list(registry.entities(analysis_id=entity.analysis_id, study_id=entity.study_id))
    found = indexes_of(entity, siblings, [path.suffix])
    if not found:
        raise ObjectNotFound(f"No index {path.suffix} is registered beside {entity.file_name}, object {entity.object_id}", status=404)
    return DownloadItem(found[0].object_id, found[0].file_name, entity.analysis_id)


def _options(job: Job, folder: Path) -> DownloadOptions:
    settings = job.settings
    validation = job.choice("validation", get_args(Validation)) if job.text("validation") else settings.validation
    return DownloadOptions(
        output_dir=folder,
        layout=cast("OutputLayout", job.choice("layout", get_args(OutputLayout))),
        validation=cast("Validation", validation),
        state_dir=settings.state_dir,
    )


def _download_file(job: Job, engine: Engine, fetch: _Fetch) -> TransferReport:
    options = dataclasses.replace(_options(job, fetch.path.parent), layout="filename", force=True)
    return operations.download(engine, dataclasses.replace(fetch.item, file_name=fetch.path.name), options)


def _download_folder(job: Job, engine: Engine, items: Sequence[DownloadItem], folder: Path) -> Result:
    """All items in a folder, which appears when it is complete.

    Until then they are beside it, where the engine, which removes the outputs of what failed, leaves them for the next run.
    """
    aside = folder.with_name(f".{folder.name}.score-part")
    options = _options(job, aside)

    def one(item: DownloadItem) -> TransferReport:
        try:
            report = operations.download(engine, item, options)
        except Conflict:  # left by a run that wanted something else, or there is more to it: then it is raised again
            report = operations.download(engine, item, dataclasses.replace(options, force=True))
        return dataclasses.replace(report, path=str(folder / Path(report.path).relative_to(aside)))

    result = job.transfer(engine, items, one, lambda item: (item.object_id, str(folder / (item.file_name or item.object_id))))
    if result.error is None:
        _publish_folder(aside, folder, [Path(row["path"]) for row in result.document["files"]])
    return result


def _publish_folder(aside: Path, folder: Path, files: Sequence[Path]) -> None:
    """Gives a complete folder its name; it holds these files, whose paths are in `folder` already, and nothing else."""
    wanted = {path.relative_to(folder) for path in files}
    with explained("make the folder", folder):
        for path in sorted(aside.rglob("*"), reverse=True):  # what is in a folder before the folder
            if path.is_file() and path.relative_to(aside) not in wanted:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        aside.replace(folder)


def _download_elsewhere(job: Job, outputs: Sequence[Path]) -> Result:
    """One object by the flow `download`, or a folder of them by the flow `batch`."""
    ids, target = job.texts("object_id"), outputs[0]
    if len(ids) > 1 or len(outputs) > 1:
        raise ConfigurationError("A deployment makes one file of one object_id, or one directory(...) of a manifest or an analysis")
    validation = job.text("validation")
    if ids:
        flow_of(job, "download")
        given = {"object_id": check_object_id(ids[0]), "output_dir": target.parent, "file_name": target.name, "validation": validation}
        return of_reports(*transferred(job, {**given, "force": True}))
    flow_of(job, "batch")
    manifest, analysis_id = job.input("manifest"), _analysis_id(job)
    if (manifest is None) == (analysis_id is None):
        raise ConfigurationError("download needs one of: the param object_id, an input manifest=..., or an analysis_id with study_id")
    aside = target.with_name(f".{target.name}.score-part")
    reports, seconds = transferred(
        job,
        {
            "direction": "download",
            "manifest": manifest,
            "study_id": job.text("study_id"),
            "analysis_id": analysis_id,
            "output_dir": aside,
            "output_layout": job.choice("layout", get_args(OutputLayout)),
            "index": job.flag("index", default=True),
            "validation": validation,
        },
    )
    moved = [dataclasses.replace(report, path=str(target / Path(report.path).relative_to(aside.absolute()))) for report in reports]
    result = of_reports(moved, seconds)
    if result.error is None:
        _publish_folder(aside, target, [Path(report.path) for report in moved])
    return result


def _analysis_id(job: Job) -> str | None:
    """From a param, or an input `analysis_id`: a text with nothing else in it, or a receipt."""
    said, path = job.text("analysis_id"), job.input("analysis_id")
    if path is None:
        return said
    if said is not None:
        raise ConfigurationError("Give analysis_id as a param or as an input, not both")
    with explained("read the analysis id", path):
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    if text.startswith("{"):
        text = str(_json_object(path).get("analysis_id") or "")
    if not text or not text.isprintable() or len(text) > 512:
        raise ConfigurationError(f"{path} holds no analysis id: it must be its only line, or stand under analysis_id in a receipt")
    return text


def _json_object(path: Path) -> dict[str, Any]:
    try:
        with explained("read", path):
            content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ConfigurationError(f"{path} is not JSON") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} is not a JSON object")
    return content


# Upload


def _upload(job: Job) -> Result:
    job.needed_output()
    if is_elsewhere(job):
        return _upload_elsewhere(job)
    items = _upload_items(job)
    with job.engine(check=True) as engine:
        with job.metadata(engine.repository) as metadata:
            records = {} if metadata is None else operations.registered(metadata, [item.object_id for item in items])
        trusts, force = job.texts("md5") == [_COMPUTE], job.flag("force")
        for item in items:
            record = records.get(item.object_id)
            if item.md5 is None and not trusts and (record is None or record.md5 is None):
                raise ConfigurationError(
                    f"No MD5 is registered of object {item.object_id}: give the param md5, which {item.path} must have, "
                    "or md5='compute' to trust the file as it is"
                )

        def one(item: UploadItem) -> TransferReport:
            return operations.upload(engine, operations.as_registered(item, records.get(item.object_id)), force=force)

        return job.transfer(engine, items, one, lambda item: (item.object_id, str(item.path)))


def _upload_elsewhere(job: Job) -> Result:
    """One file by the flow `upload`, or those of a manifest by the flow `batch`."""
    items, force = _upload_items(job), job.flag("force")
    manifest = job.input("manifest")
    if manifest is not None:
        flow_of(job, "batch")
        return of_reports(*transferred(job, {"direction": "upload", "manifest": manifest, "force": force}))
    flow_of(job, "upload")
    if len(items) > 1:
        raise ConfigurationError("A deployment of the flow upload takes one file; give several as a manifest to one of the flow batch")
    (item,) = items
    return of_reports(*transferred(job, {"path": item.path, "object_id": item.object_id, "md5": item.md5, "force": force}))


def _upload_items(job: Job) -> list[UploadItem]:
    manifest, ids, md5s, files = job.input("manifest"), job.texts("object_id"), job.texts("md5"), job.inputs(but=["manifest"])
    if (manifest is None) == (not ids):
        raise ConfigurationError("upload needs either an input manifest=..., or the param object_id")
    if manifest is not None:
        if md5s:
            raise ConfigurationError("The manifest has the MD5s: leave out the param md5")
        return _at_inputs(read_uploads(str(manifest)), files, manifest)
    promised: Sequence[str | None] = [None] * len(ids) if md5s in ([], [_COMPUTE]) else md5s
    if not len(files) == len(ids) == len(promised):
        raise ConfigurationError(
            f"There are {len(files)} input files, {len(ids)} object ids and {len(promised)} MD5s; give one each per file"
        )
    return [UploadItem.of(name, path, md5) for name, path, md5 in zip(ids, files, promised, strict=True)]


def _at_inputs(items: Sequence[UploadItem], files: Sequence[Path], manifest: Path) -> list[UploadItem]:
    """The listed files where the job has them: its inputs by their names, if it has any beside the manifest."""
    if not files:
        return list(items)
    places = _by_name(files)
    missing = [item.path.name for item in items if item.path.name not in places]
    if missing:
        raise ConfigurationError(f"{manifest} lists {missing[0]}, which is none of the rule's inputs; add it, or leave all files out")
    return [dataclasses.replace(item, path=places[item.path.name]) for item in items]


def _by_name(files: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        if found.setdefault(path.name, path) != path:
            raise ConfigurationError(f"Two inputs have one name, {path} and {found[path.name]}; an analysis tells its files by their names")
    return found


# View


def _view(job: Job) -> Result:
    require_pysam("view")
    from score_core.slicing.objects import ViewItem, view_file, view_object
    from score_core.slicing.view import Limits

    target, index = job.needed_output(), job.output("index")
    object_id, source = job.text("object_id"), job.input("data")
    bed, reference, local_index = job.input("bed"), job.input("reference"), job.input("index")
    unnamed = job.inputs(but=["data", "bed", "reference", "index"])
    source = source or (unnamed[0] if unnamed and object_id is None else None)
    if (object_id is None) == (source is None):
        raise ConfigurationError("view needs either the param object_id, or an input file")
    wanted = _wanted(job, bed)
    limits = Limits(max_bytes=_size(job, "max_bytes"), connections=job.settings.transfer.workers)
    command = wanted.command(*(["--object-id", object_id] if object_id else ["--input-file", str(source)]))
    form = _form(job, target, index, command, reference)
    with _aside(target) as folder:
        if is_elsewhere(job):
            report = _view_elsewhere(job, wanted, form, limits.max_bytes, folder)
        elif source is not None:
            with job.signals.graceful():
                report = view_file(source, local_index, wanted, form, folder, limits=limits, stop=job.stop)
        else:
            index_id = job.text("index_object_id")
            item = ViewItem(check_object_id(str(object_id)), index_id=None if index_id is None else check_object_id(index_id))
            with job.engine(check=True) as engine, job.metadata(engine.repository) as metadata, job.signals.graceful(), Lines(1) as shown:
                engine.progress = shown
                report = view_object(engine, metadata, item, wanted, form, folder, limits=limits)
        _move_slice(Path(report.path), target, index)
    return of_reports([dataclasses.replace(report, path=str(target))], report.seconds)


def _view_elsewhere(job: Job, wanted: Wanted, form: Form, max_bytes: int | None, folder: Path) -> TransferReport:
    object_id = job.text("object_id")
    if object_id is None:
        raise ConfigurationError("A deployment cuts out of objects: give the param object_id instead of an input file")
    flow_of(job, "view")
    given = {
        "output_dir": folder,
        "object_ids": [object_id],
        "index_object_id": job.text("index_object_id"),
        "regions": wanted.regions or None,
        "bed": wanted.bed,
        "contained": wanted.contained,
        "skip_unknown": wanted.skip_unknown,
        "header_only": wanted.header_only,
        "output_format": form.format,
        "original_header": form.original_header,
        "output_index": form.index,
        "reference_file": form.reference,
        "max_bytes": max_bytes,
    }
    ((report,), _) = transferred(job, given)
    if report.error is not None:
        error = ScoreError(report.error)
        error.exit_code = report.exit_code
        raise error
    return report


def _wanted(job: Job, bed: Path | None) -> Wanted:
    from score_core.slicing.view import Wanted

    regions, header_only = job.texts("regions"), job.flag("header_only")
    if not (regions or bed or header_only):
        raise ConfigurationError("view needs the param regions, an input bed=..., or header_only=True; regions='.' means everything")
    if regions and bed:
        raise ConfigurationError("Give the param regions or an input bed=..., not both")
    return Wanted(tuple(regions), bed, contained=job.flag("contained"), header_only=header_only, skip_unknown=job.flag("skip_unknown"))


def _form(job: Job, target: Path, index: Path | None, command: str, reference: Path | None) -> Form:
    """How the slice is written: its format is what the output's name ends with."""
    from score_core.slicing.view import Form

    form = next((name for name in _FORMATS if target.name.lower().endswith(f".{name}")), None)
    if form is None:
        raise ConfigurationError(f"The name of the output {target} must end with the format to write: .{', .'.join(_FORMATS)}")
    return Form(form, original_header=job.flag("original_header"), command=command, index=index is not None, reference=reference)


def _size(job: Job, name: str) -> int | None:
    from score_core.cli.view import size_of

    text = job.text(name)
    return None if text is None else size_of(f"The param {name}", text)


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A folder of one's own on the target's file system."""
    with explained("write", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".score-view-", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_slice(made: Path, target: Path, index: Path | None) -> None:
    """The index first: a slice that is there is complete."""
    if index is not None:
        made_index = next((path for path in made.parent.iterdir() if path != made), None)
        if made_index is None or made_index.suffix != index.suffix:
            has = "no index" if made_index is None else f"an index {made_index.suffix}"
            raise ConfigurationError(f"{target.name} gets {has}, so the output index cannot be {index.name}")
        with explained("write", index):
            index.parent.mkdir(parents=True, exist_ok=True)
            made_index.replace(index)
    with explained("write", target):
        made.replace(target)


# Manifests, addresses


def _manifest(job: Job) -> Result:
    target = job.needed_output()
    analysis_id = _analysis_id(job)
    if analysis_id is None:
        raise ConfigurationError("manifest needs an analysis_id, as a param or an input")
    with job.known() as metadata:
        analysis = metadata.analysis(job.required("study_id"), analysis_id)
    write_whole(target, download_manifest_text(analysis))
    return Result(summary(analysis), talk=[f"{target}: {len(analysis.files)} files of analysis {analysis_id}"])


def _url(job: Job) -> Result:
    target = job.needed_output()
    object_id = check_object_id(job.required("object_id"))
    if job.settings.serve_url is None and store_folder(job.settings) is not None:
        raise ConfigurationError("Nobody would answer an address into a folder: run `score serve`, and set the param url to what it prints")
    with job.repository() as repository:
        signed = repository.sign_external(object_id)
        where = redact(repository.label)
    write_whole(target, signed.url + "\n", private=True)
    return Result(
        {"object_id": object_id, "expires_at": signed.expires_at},  # the address itself is a secret, and a receipt is none
        talk=[f"{target}: an address of object {object_id} at {where}; whoever reads it may read the object until it expires"],
    )


# Song


def _register(job: Job) -> Result:
    _check_outputs(job)
    files, access, study_id = job.inputs(), job.choice("access", ("controlled", "open")), job.required("study_id")
    if not files:
        raise ConfigurationError("register needs the files as inputs")
    _by_name(files)
    with job.known(create=True) as metadata:
        metadata.check()  # before hours of reading
        hashed = job.new_files(files, access)
        analysis = register(metadata, study_id, hashed, analysis_id=job.text("analysis_id"), type_name=job.text("type") or "file")
    return _written(job, analysis, {file.name: file.path for file in hashed})


def _submit(job: Job) -> Result:
    _check_outputs(job)
    payload, files = job.input("payload"), job.inputs(but=["payload"])
    if payload is None:
        if not files:
            raise ConfigurationError("submit needs a Song payload as its input: payload=...")
        payload, *files = files
    places, content = _by_name(files), _json_object(payload)
    study_id = job.text("study_id") or str(content.get("studyId") or "")
    if not study_id:
        raise ConfigurationError(f"submit needs the param study_id: {payload} does not say studyId")
    with job.known(create=True) as metadata:
        analysis = metadata.analysis(study_id, metadata.submit(study_id, content))
    return _written(job, analysis, places)


def _check_outputs(job: Job) -> None:
    if all(job.output(name) is None for name in ("manifest", "analysis_id", RECEIPT)):
        raise ConfigurationError(f"{job.step.name} needs an output: manifest=..., analysis_id=... or receipt=...")


def _written(job: Job, analysis: Analysis, places: Mapping[str, Path]) -> Result:
    """Writes what the rule wants to keep of a new analysis."""
    manifest, analysis_id = job.output("manifest"), job.output("analysis_id")
    if manifest is not None:
        write_whole(manifest, upload_manifest_text(analysis, places))
    if analysis_id is not None:
        write_whole(analysis_id, analysis.analysis_id + "\n")
    what = f"Registered {len(analysis.files)} files as analysis {analysis.analysis_id} of study {analysis.study_id}"
    return Result(summary(analysis), talk=[what])


def _publish(job: Job) -> Result:
    job.needed_output()
    study_id, analysis_id = job.required("study_id"), _analysis_id(job)
    if analysis_id is None:
        raise ConfigurationError("publish needs an analysis_id, as a param or an input")
    with job.known() as metadata:
        metadata.publish(study_id, analysis_id, ignore_undefined_md5=job.flag("ignore_undefined_md5"))
    document = {"study_id": study_id, "analysis_id": analysis_id, "state": "PUBLISHED"}
    return Result(document, talk=[f"Analysis {analysis_id} of study {study_id}: PUBLISHED"])


_ANALYSIS: Final = frozenset({"study_id", "analysis_id"})

DOWNLOAD: Final = Step("download", "files", frozenset({"object_id", "validation", "layout", "index", DEPLOYMENT}) | _ANALYSIS, _download)
UPLOAD: Final = Step("upload", RECEIPT, frozenset({"object_id", "md5", "force", DEPLOYMENT}), _upload)
VIEW: Final = Step(
    "view",
    "slice",
    frozenset(
        {"object_id", "index_object_id", "regions", "contained", "header_only", "skip_unknown", "original_header", "max_bytes", DEPLOYMENT}
    ),
    _view,
)
MANIFEST: Final = Step("manifest", "manifest", _ANALYSIS, _manifest)
URL: Final = Step("url", "url", frozenset({"object_id"}), _url)
REGISTER: Final = Step("register", "manifest", frozenset({"access", "type"}) | _ANALYSIS, _register)
SUBMIT: Final = Step("submit", "analysis_id", frozenset({"study_id"}), _submit)
PUBLISH: Final = Step("publish", RECEIPT, frozenset({"ignore_undefined_md5"}) | _ANALYSIS, _publish)
