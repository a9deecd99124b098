"""Commands about what files are, before and after they move: register, submit, publish, unpublish, analysis, manifest."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from score_core.cli.context import Injected, required
from score_core.cli.output import Result
from score_core.cli.transfer import Study, check_analysis, choice
from score_core.errors import ConfigurationError, LocalFileError, ManifestError
from score_core.manifest import read_text, read_uploads
from score_core.metadata.base import Analysis
from score_core.metadata.registering import download_manifest_text, summary, upload_manifest_text
from score_core.metadata.registering import register as register_files
from score_core.metadata.wire import analysis_json
from score_core.transfer.files import explained

AnalysisId = Annotated[str, Parameter(help="The id of the analysis.")]


def register(
    *files: Annotated[Path, Parameter(help="The files.")],
    study: Study,
    analysis_id: Annotated[str | None, Parameter(help="The id that the analysis shall have; by default it is given one.")] = None,
    access: Annotated[str, Parameter(help="open or controlled.")] = "controlled",
    type_name: Annotated[str, Parameter(name="--type", help="Song's type of the analysis.")] = "file",
    output: Annotated[Path | None, Parameter(help="Write the manifest to this file instead of printing it.")] = None,
    context: Injected,
) -> Result:
    """Register files as one analysis, which gives each its object id, and print the manifest to upload them by.

    Reads the files for their MD5s; nothing is uploaded yet. In the embedded
    registry the same files of a study keep their ids when they are registered again.

    Example: score register a.bam a.bam.bai --study TEST-CA --output manifest.txt

    Example: score register a.vcf.gz --study TEST-CA --access open | score upload --manifest -
    """
    if not files:
        raise ConfigurationError("Name the files to register")
    access = choice("--access", access, ("open", "controlled"))
    if output is not None:
        _check_replaceable(output)
    with context.repository() as repository, context.metadata(repository, create=True) as metadata:
        required(metadata).check()  # before hours of reading
        hashed = context.new_files(files, access)
        analysis = register_files(required(metadata), study, hashed, analysis_id=analysis_id, type_name=type_name)
    text = upload_manifest_text(analysis, {file.name: file.path for file in hashed})
    talk = [f"Registered {len(hashed)} files as analysis {analysis.analysis_id} of study {study}"]
    if output is None:
        return Result(_document(analysis, None), text=text, talk=talk)
    talk.append(_written(text, output, analysis))
    return Result(_document(analysis, output), [f"{file.object_id}\t{file.file_name}" for file in analysis.files], talk=talk)


def _written(text: str, output: Path, analysis: Analysis) -> str:
    """Writes an upload manifest; what to do next."""
    with explained("write the manifest", output):
        output.write_text(text, encoding="utf-8", newline="")
    return f"Now: score upload --manifest {output}, then: score publish --study {analysis.study_id} --analysis-id {analysis.analysis_id}"


def _check_replaceable(output: Path) -> None:
    """Only a manifest is replaced by one."""
    if output.exists():
        try:
            read_uploads(str(output))
        except ManifestError:
            raise LocalFileError(f"{output} exists and is no upload manifest, so it is not replaced; give --output another name") from None


def _document(analysis: Analysis, output: Path | None) -> dict[str, Any]:
    return {**summary(analysis), "manifest": None if output is None else str(output)}


def submit(
    payload: Annotated[str, Parameter(allow_leading_hyphen=True, help="A Song payload, JSON: a path, or - for standard input.")],
    /,
    *,
    study: Study | None = None,
    input_dir: Annotated[Path | None, Parameter(help="The folder of the files, for --output.")] = None,
    output: Annotated[Path | None, Parameter(help="Write the manifest to upload the files by to this file.")] = None,
    context: Injected,
) -> Result:
    """Register an analysis as a Song payload describes it, and print its id.

    A Song makes a new analysis each time; the embedded registry gives the same
    payload the same ids again. Nothing is uploaded yet.

    Example: score submit payload.json --study TEST-CA

    Example: score submit payload.json --input-dir data --output manifest.txt
    """
    if (input_dir is None) != (output is None):
        raise ConfigurationError("--input-dir and --output go together: the manifest lists the files in that folder")
    content = _payload(payload)
    study = study or str(content.get("studyId") or "")
    if not study:
        raise ConfigurationError("Give --study-id: the payload does not say studyId")
    if output is not None:
        _check_replaceable(output)
    with context.repository() as repository, context.metadata(repository, create=True) as metadata:
        analysis = required(metadata).analysis(study, required(metadata).submit(study, content))
    talk = [f"Registered {len(analysis.files)} files as analysis {analysis.analysis_id} of study {study}"]
    if output is not None and input_dir is not None:
        talk.append(_written(upload_manifest_text(analysis, input_dir), output, analysis))
    return Result(_document(analysis, output), [analysis.analysis_id], talk=talk)


def _payload(name: str) -> dict[str, Any]:
    label = "standard input" if name == "-" else name
    try:
        with explained("read", Path(name)):
            content = json.loads(sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes())
    except (ValueError, RecursionError):
        raise ConfigurationError(f"The payload {label} is not JSON") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"The payload {label} is not a JSON object")
    return content


def analysis(
    *,
    study: Study,
    analysis_id: AnalysisId,
    output: Annotated[Path | None, Parameter(help="Write to this file instead of printing.")] = None,
    context: Injected,
) -> Result:
    """Print an analysis as Song says it: its state, and its files with their object ids, sizes and MD5s.

    Example: score analysis --study-id TEST-CA --analysis-id a25ae8b4-097d-11ea-b4b9-41f0d4c18919
    """
    with context.repository() as repository, context.metadata(repository) as metadata:
        document = analysis_json(required(metadata).analysis(study, analysis_id))
    if output is None:
        return Result(document, text=json.dumps(document, indent=2) + "\n")
    with explained("write", output):
        output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return Result(document, talk=[f"Wrote analysis {analysis_id} of study {study} to {output}"])


def publish(
    *,
    study: Study,
    analysis_id: AnalysisId,
    ignore_undefined_md5: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Accept files whose MD5 the store does not know.")
    ] = False,
    context: Injected,
) -> Result:
    """Publish an analysis: from then on its files can be downloaded, and no more be replaced.

    Every file must be stored with the size and MD5 that it is registered with.

    Example: score publish --study TEST-CA --analysis-id a25ae8b4-097d-11ea-b4b9-41f0d4c18919
    """
    with context.repository() as repository, context.metadata(repository) as metadata:
        required(metadata).publish(study, analysis_id, ignore_undefined_md5=ignore_undefined_md5)
    return _state(study, analysis_id, "PUBLISHED")


def unpublish(*, study: Study, analysis_id: AnalysisId, context: Injected) -> Result:
    """Take a published analysis back: its files are not handed out, and can be replaced.

    Example: score unpublish --study TEST-CA --analysis-id a25ae8b4-097d-11ea-b4b9-41f0d4c18919
    """
    with context.repository() as repository, context.metadata(repository) as metadata:
        required(metadata).unpublish(study, analysis_id)
    return _state(study, analysis_id, "UNPUBLISHED")


def _state(study: str, analysis_id: str, state: str) -> Result:
    return Result(
        {"study_id": study, "analysis_id": analysis_id, "state": state}, talk=[f"Analysis {analysis_id} of study {study}: {state}"]
    )


def manifest(
    *,
    manifest: Annotated[
        str | None,
        Parameter(allow_leading_hyphen=True, help="Print this one: path, http(s) address, a portal's id of one, or - for standard input."),
    ] = None,
    analysis_id: Annotated[str | None, Parameter(help="Make one to download this analysis by; needs --study-id.")] = None,
    study_id: Study | None = None,
    context: Injected,
) -> Result:
    """Print a manifest as it stands, or make one for the files of an analysis.

    Example: score manifest --manifest https://portal.example.org/manifest.tsv

    Example: score manifest --analysis-id a25ae8b4-097d-11ea-b4b9-41f0d4c18919 --study-id TEST-CA > manifest.tsv
    """
    if (manifest is None) == (analysis_id is None and study_id is None):
        raise ConfigurationError("Give either --manifest, or --analysis-id with --study-id")
    check_analysis(analysis_id, study_id)
    if manifest is not None:
        text = read_text(context.manifest(manifest))
    else:
        assert study_id is not None
        assert analysis_id is not None
        with context.repository() as repository, context.metadata(repository) as metadata:
            text = download_manifest_text(required(metadata).analysis(study_id, analysis_id))
    return Result({"manifest": text}, text=text)
