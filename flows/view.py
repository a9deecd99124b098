"""`view`: the reads or variants of regions, of one object or of many; one bad object never stops the rest."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

from prefect import flow, unmapped
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run

from flows.batch import all_done, outcome, stopping_files_too
from flows.driving import show_receipts, threads
from flows.results import slice_results_folder
from score_core.errors import ConfigurationError, Conflict
from score_core.manifest import read_downloads
from score_core.metadata.base import Metadata
from score_core.model import SliceReport, TransferReport
from score_core.operations import file_md5, of_analysis, viewable
from tasks import sessions
from tasks.slicing import SliceItem, SliceOptions, is_still_there, plan_slices, report_of, slice_regions

_OBJECTS_AT_ONCE: Final = 4  # each has several connections, and htslib's work is mostly one thread's
_MAX_SHOWN: Final = 200  # letters of the regions, in the table


def _run_name() -> str:
    given = flow_run.parameters
    ids = given.get("object_ids") or []
    more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
    return f"view {given.get('manifest') or given.get('analysis_id') or (ids[0] if ids else 'nothing')}{more}"


@flow(name="view", flow_run_name=_run_name, task_runner=threads(_OBJECTS_AT_ONCE))
def view(  # a flow's parameters are the fields of its form in the UI
    output_dir: str,
    object_ids: list[str] | None = None,
    *,
    manifest: str | None = None,
    study_id: str | None = None,
    analysis_id: str | None = None,
    index_object_id: str | None = None,
    regions: list[str] | None = None,
    bed: str | None = None,
    contained: bool = False,
    skip_unknown: bool = False,
    header_only: bool = False,
    output_format: str | None = None,
    original_header: bool = False,
    output_index: bool = False,
    reference_file: str | None = None,
    max_bytes: int | None = None,
    store: str | None = None,
) -> list[dict[str, Any]]:
    """Cuts the records of regions out of objects, a task run and a file per object, without fetching the objects.

    Each file is read again from end to end before it counts. Running the same once more cuts only what failed, what was replaced since, and
    what is not any more as it was made.

    Args:
        output_dir: the folder that the files go to; absolute for deployments, as all paths are. Files are named as by `score view`.
        object_ids: the objects. None for those of a manifest or an analysis.
        manifest: instead of object ids: a download manifest (11 columns), of which the BAM, CRAM, VCF and BCF files are taken,
        study_id: or all such files of an analysis of this study,
        analysis_id: which is this one.
        index_object_id: the object of the index, for a single object of which the metadata know none.
        regions: as samtools takes them, 1-based: `chr1`, `chr1:1,000-2,000`, `*` (unplaced reads), `.` (everything).
        bed: the regions of a BED file (0-based, end exclusive) instead.
        contained: only what lies wholly within the regions.
        skip_unknown: leaves out contigs of the BED file that the data do not have.
        header_only: the header, and no records.
        output_format: `sam`, `bam` or `cram`; for variants `vcf`, `vcf.gz` or `bcf`. Text by default.
        original_header: the header as it is in the data; else it is made for the slice.
        output_index: writes an index beside each file.
        reference_file: the FASTA file (with .fai) of CRAM files that need one.
        max_bytes: an object of which more would have to be fetched fails.
        store: as for `download`.

    Returns:
        The fields of `SliceReport` for each object, in the given order. The artifact `view-slices` shows the same as a table.

    Raises:
        BatchError: some objects failed; all others are done.
        ConfigurationError: the parameters contradict each other, or pysam is missing.
    """
    from score_core.slicing.base import require_pysam

    require_pysam("The flow view")
    if not (regions or bed or header_only):
        raise ConfigurationError("Give regions or bed; header_only for the headers alone, the region . for everything")
    if skip_unknown and bed is None:
        raise ConfigurationError("skip_unknown goes with bed")
    options = SliceOptions(
        str(Path(output_dir).absolute()),
        regions=tuple(regions or ()),
        bed=bed,
        bed_md5=None if bed is None else file_md5(Path(bed)),
        contained=contained,
        skip_unknown=skip_unknown,
        header_only=header_only,
        output_format=output_format,
        original_header=original_header,
        output_index=output_index,
        reference_file=reference_file,
        max_bytes=max_bytes,
    )
    with stopping_files_too():
        items = _wanted(object_ids, index_object_id, manifest, (study_id, analysis_id), store)
        reports = _slice_all(plan_slices(store, items), options, store)
    _show(reports, options)
    return all_done(reports)


def _wanted(
    object_ids: list[str] | None,
    index_object_id: str | None,
    manifest: str | None,
    analysis: tuple[str | None, str | None],
    store: str | None,
) -> list[SliceItem]:
    """The objects to cut from, each once; of a manifest or an analysis the reads and variants, with the indexes that it lists."""
    if [bool(object_ids), manifest is not None, None not in analysis].count(True) != 1:
        raise ConfigurationError("Give either object_ids, or manifest, or study_id and analysis_id")
    if index_object_id is not None and len(object_ids or ()) != 1:
        raise ConfigurationError("index_object_id goes with a single object id")
    if object_ids:
        return [SliceItem(object_id, index_id=index_object_id) for object_id in dict.fromkeys(object_ids)]
    rows = read_downloads(manifest) if manifest is not None else of_analysis(_metadata(store), *map(str, analysis))
    return list({row.object_id: SliceItem(row.object_id, row.file_name, index_id) for row, index_id in viewable(rows)}.values())


def _metadata(store: str | None) -> Metadata:
    metadata = sessions.metadata(store)
    if metadata is None:
        raise ConfigurationError("Nobody knows the files of an analysis: set METADATA_URL to the address of Song")
    return metadata


def _slice_all(items: list[SliceItem], options: SliceOptions, store: str | None) -> list[TransferReport]:
    """A task run per object. What Prefect has from an earlier run is believed only if the output says the same; else it is made again."""
    task = slice_regions.with_options(result_storage=slice_results_folder(options.output_dir))
    writers: dict[str, str] = {}
    mine = [item for item in items if writers.setdefault(_file_name(item, options), item.object_id) == item.object_id]
    futures = task.map(store=unmapped(store), item=mine, options=unmapped(options))
    runs = dict(zip([item.object_id for item in mine], futures, strict=True))
    stop = sessions.engine(store).stop
    for item in mine:
        future = runs[item.object_id]
        future.wait()
        if _is_cached(future) and not is_still_there(future.state.result(), stop):
            runs[item.object_id] = task.with_options(refresh_cache=True).submit(store=store, item=item, options=options)

    return [
        outcome(
            item.object_id,
            item.file_name or item.object_id,
            partial(_finished, runs.get(item.object_id), writers[_file_name(item, options)]),
            SliceReport,
        )
        for item in items
    ]


def _finished(run: PrefectFuture[Any] | None, writer: str) -> dict[str, Any]:
    """The fields of a slice's report. No `run`: `writer` is the object whose slice has the same name."""
    if run is None:
        raise Conflict(f"The slice of object {writer} has the same name: give each a folder of its own")
    return report_of(run.result(), cached=_is_cached(run))


def _is_cached(future: PrefectFuture[Any]) -> bool:
    return future.state.name == "Cached"


def _file_name(item: SliceItem, options: SliceOptions) -> str:
    """What tells an object's output from those of the others in the folder."""
    from score_core.slicing.output import output_name

    name = (item.file_name or item.object_id).rpartition("/")[2]
    is_variants = name.lower().endswith((".vcf", ".vcf.gz", ".vcf.bgz", ".bcf"))
    return output_name(name, "", options.output_format or ("vcf" if is_variants else "sam"))


def _show(reports: list[TransferReport], options: SliceOptions) -> None:
    """The table in the UI: what was cut out of each object, and what that cost."""
    asked = "header" if options.header_only else Path(options.bed).name if options.bed else " ".join(options.regions)
    shown = asked if len(asked) <= _MAX_SHOWN else f"{asked[:_MAX_SHOWN]}..."
    show_receipts(reports, "view-slices", regions=shown)
