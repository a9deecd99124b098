"""The last step: what makes a transfer visible, and what drops one."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from score_core.transfer.download import Download
from score_core.transfer.upload import UploadSession
from tasks import sessions
from tasks.sessions import Ref


@task(name="finalise-upload", cache_policy=NO_CACHE, persist_result=False)
def finalise_upload(transfer: Ref) -> None:
    """Publishes the object if all parts are stored and the bytes are the promised ones."""
    opened = sessions.get(transfer)
    assert isinstance(opened.session, UploadSession)
    assert opened.digest is not None, "verify_md5 comes first"
    opened.session.publish(opened.digest)


@task(name="finalise-download", cache_policy=NO_CACHE, persist_result=False)
def finalise_download(transfer: Ref) -> None:
    """Gives the file that `verify_md5` has proven its final name."""
    opened = sessions.get(transfer)
    assert isinstance(opened.session, Download)
    opened.session.publish()


@task(name="abort", cache_policy=NO_CACHE, persist_result=False)
def abort(store: str | None, object_id: str) -> bool:
    """Drops the unfinished uploads of an object; False if there were none."""
    return sessions.engine(store).repository.abort(object_id)
