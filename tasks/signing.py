"""URL signing as a task: seen in the UI, never stored."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from score_core.model import SignedUrl
from tasks import sessions
from tasks.sessions import Ref


@task(name="sign-urls", task_run_name="sign-{first:06d}", cache_policy=NO_CACHE, persist_result=False, cache_result_in_memory=False)
def sign_urls(transfer: Ref, first: int, count: int) -> list[SignedUrl]:
    """Signs the URLs of `count` parts from `first` on. A URL is a bearer secret: the result stays in this process's memory."""
    open_transfer = sessions.get(transfer)
    return open_transfer.sign(open_transfer.session.parts[first - 1 : first - 1 + count])


def sign_by_task(ref: Ref) -> None:
    """Has a transfer's URLs signed by `sign_urls`, when first needed and whenever they have expired."""
    sessions.get(ref).session.urls.sign = lambda parts: sign_urls(ref, parts[0].number, len(parts))
