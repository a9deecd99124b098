"""Proofs: which parts of an earlier run are really there, and whether the whole file is what it should be."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from prefect import task
from prefect.cache_policies import NO_CACHE

from score_core.errors import ObjectMismatch
from score_core.model import Part
from score_core.transfer.download import Download
from score_core.transfer.upload import digest_source
from tasks import sessions
from tasks.sessions import Ref, Transfer


@task(name="find-damaged", cache_policy=NO_CACHE, persist_result=False)
def find_damaged(transfer: Ref) -> list[int]:
    """The numbers of parts that an earlier run claims and the bytes belie: on disk (download) or against the file (upload)."""
    opened = sessions.get(transfer)
    claimed = [part for part in opened.session.parts if opened.session.claims(part)]

    def damaged(part: Part) -> bool:
        return not opened.session.proves(part, stop=opened.stop)

    with ThreadPoolExecutor(max_workers=opened.engine.workers) as pool:
        return [part.number for part, bad in zip(claimed, pool.map(damaged, claimed), strict=True) if bad]


@task(name="verify-md5", cache_policy=NO_CACHE, persist_result=False)
def verify_md5(transfer: Ref) -> str | None:
    """The MD5 that the file is proven to have, once all parts are there; runs beside them.

    Uploads and `whole` downloads are hashed here; other downloads were proven part by part, and this makes sure that none is missing. None
    when nothing recorded the whole file's MD5, or nothing was to be proven (`off`).

    Raises:
        ObjectMismatch: the file is not what was promised. The parts of an upload are stopped then: no byte more needs to be sent.
    """
    opened = sessions.get(transfer)
    if isinstance(opened.session, Download):
        return _verify_download(opened, opened.session)
    opened.digest = digest_source(opened.session.source, opened.session.parts, stop=opened.stop)
    try:
        opened.session.check_md5(opened.digest)
    except ObjectMismatch:
        opened.stop.set()
        opened.session.drop()
        raise
    return opened.digest.md5


def _verify_download(opened: Transfer, download: Download) -> str | None:
    if download.hashes_whole:
        download.hasher.follow(opened.stop)
    else:
        download.hasher.wait_for_all(opened.stop)
    opened.stop.check()
    return download.verify(stop=opened.stop)


@task(name="find-suspects", cache_policy=NO_CACHE, persist_result=False)
def find_suspects(transfer: Ref) -> list[int]:
    """After a wrong whole MD5: the numbers of the parts that differ from their own MD5s and have to be fetched again."""
    opened = sessions.get(transfer)
    assert isinstance(opened.session, Download)
    return [part.number for part in opened.session.suspects(stop=opened.stop)]
