"""What there is to do: opening a transfer, or finding that nothing is left to do."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from score_core import operations
from score_core.model import TransferReport
from score_core.operations import DownloadItem, DownloadOptions, UploadItem
from score_core.transfer.download import Download
from score_core.transfer.upload import AlreadyThere, UploadSession
from tasks import sessions
from tasks.sessions import Ref


@task(name="plan-upload", cache_policy=NO_CACHE, persist_result=False)
def plan_upload(store: str | None, item: UploadItem, *, force: bool) -> Ref | TransferReport:
    """Begins an upload or takes up an unfinished one; the report if the object is there already."""
    engine, metadata = sessions.engine(store), sessions.metadata(store)
    if metadata is not None:
        item = operations.as_registered(item, operations.registered(metadata, [item.object_id]).get(item.object_id))
    md5 = item.md5 if item.md5 is not None else operations.file_md5(item.path)
    try:
        session = UploadSession.open(engine.repository, item.path, item.object_id, md5=md5, overwrite=force)
    except AlreadyThere as there:
        operations.check_already_there(item)
        return there.report(item.path)
    return sessions.add(session, engine, str(item.path))


@task(name="plan-download", cache_policy=NO_CACHE, persist_result=False)
def plan_download(store: str | None, item: DownloadItem, options: DownloadOptions) -> Ref | TransferReport:
    """Begins a download or takes up an unfinished one; the report if the file is there already."""
    engine, metadata = sessions.engine(store), sessions.metadata(store)
    if metadata is not None:
        (item,) = operations.with_metadata([item], metadata, index=False)
    spec, target, report = operations.plan_download(engine, item, options)
    if report is not None:
        return report
    download = Download.open(engine.repository, spec, target, span=options.span, validation=options.validation)
    return sessions.add(download, engine, str(Path(target).absolute()))
