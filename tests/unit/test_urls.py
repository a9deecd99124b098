"""URLs are signed late, in batches, by one caller at a time, and never handed out stale."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from score_core.errors import Unavailable
from score_core.model import Part, SignedUrl
from score_core.plan import plan_parts
from score_core.transfer.urls import UrlSource


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class RecordingSigner:
    """Signs for `life_s` by `clock`, which may differ from the client's; remembers each batch."""

    def __init__(self, clock: Clock, life_s: float = 100, skew_s: float = 0) -> None:
        self.clock = clock
        self.life_s = life_s
        self.skew_s = skew_s
        self.batches: list[list[int]] = []
        self.at_once = 0
        self._running = threading.Semaphore(1)

    def __call__(self, parts: Sequence[Part]) -> list[SignedUrl]:
        assert self._running.acquire(blocking=False), "two signings at once"
        self.batches.append([part.number for part in parts])
        expires = self.clock() + self.skew_s + self.life_s
        urls = [SignedUrl("GET", f"http://s/{part.number}?n={len(self.batches)}", expires) for part in parts]
        self._running.release()
        return urls


def source(signer: RecordingSigner, count: int, *, batch: int = 32) -> tuple[UrlSource, tuple[Part, ...]]:
    parts = plan_parts(count, minimum=1)
    return UrlSource(parts, signer, batch=batch, clock=signer.clock), parts


def test_urls_are_signed_in_batches() -> None:
    signer = RecordingSigner(Clock())
    urls, parts = source(signer, 64)
    got = [urls.get(part).url for part in parts]
    assert [url.split("?")[0] for url in got] == [f"http://s/{number}" for number in range(1, 65)]
    assert signer.batches == [list(range(1, 33)), list(range(33, 65))]
    assert urls.signings == 2


def test_nothing_is_signed_before_it_is_asked_for() -> None:
    signer = RecordingSigner(Clock())
    source(signer, 64)
    assert signer.batches == []


def test_one_thread_signs_for_all() -> None:
    signer = RecordingSigner(Clock())
    urls, parts = source(signer, 512)
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(urls.get, parts))
    assert {url.url.split("?")[0] for url in got} == {f"http://s/{part.number}" for part in parts}
    assert len(signer.batches) <= 2 * 512 / 32


def test_url_is_replaced_before_it_expires() -> None:
    signer = RecordingSigner(clock := Clock(), life_s=100)
    urls, parts = source(signer, 2)
    urls.get(parts[0])
    clock.now += 81  # the last fifth of its life
    assert urls.get(parts[1]).url.endswith("n=2")


def test_url_is_used_while_it_is_good() -> None:
    signer = RecordingSigner(clock := Clock(), life_s=100)
    urls, parts = source(signer, 2)
    urls.get(parts[0])
    clock.now += 79
    urls.get(parts[1])
    assert urls.signings == 1


def test_long_lived_urls_are_replaced_a_minute_before() -> None:
    signer = RecordingSigner(clock := Clock(), life_s=3600)
    urls, parts = source(signer, 3)
    urls.get(parts[0])
    clock.now += 3539
    urls.get(parts[1])
    assert urls.signings == 1
    clock.now += 2
    urls.get(parts[2])
    assert urls.signings == 2


def test_retry_gets_another_url() -> None:
    urls, parts = source(RecordingSigner(Clock()), 1)
    assert urls.get(parts[0]).url != urls.get(parts[0]).url


def test_refused_url_takes_its_siblings_along() -> None:
    signer = RecordingSigner(Clock())
    urls, parts = source(signer, 4)
    urls.get(parts[0])
    urls.forget()
    assert urls.get(parts[1]).url.endswith("n=2")


def test_short_lives_cost_bounded_signings() -> None:
    signer = RecordingSigner(clock := Clock(), life_s=2)
    urls, parts = source(signer, 64)
    for part in parts:
        urls.get(part)
        clock.now += 0.25  # 64 parts take 16 s, eight lives of a URL
    assert urls.signings <= 16 / 1.6 + 2


@pytest.mark.parametrize("skew_s", [-86_400, -600, 600, 86_400])
def test_wrong_clock_does_not_sign_for_every_part(skew_s: float) -> None:
    signer = RecordingSigner(Clock(), life_s=100, skew_s=skew_s)
    urls, parts = source(signer, 64)
    for part in parts:
        urls.get(part)
    assert urls.signings == 2


def test_failed_signing_is_the_callers_error_and_not_the_end() -> None:
    clock, fail = Clock(), [True]
    honest = RecordingSigner(clock)

    def sign(parts: Sequence[Part]) -> list[SignedUrl]:
        if fail.pop() if fail else False:
            raise Unavailable("the server restarts")
        return honest(parts)

    parts = plan_parts(3, minimum=1)
    urls = UrlSource(parts, sign, clock=clock)
    with pytest.raises(Unavailable):
        urls.get(parts[0])
    assert urls.get(parts[0]).url.endswith("n=1")
