"""Two processes on one bucket: whatever the order of their steps, the published specification is that of the published bytes.

Each process is a thread that stops before every call to the store until it is its turn; the order of turns is the test's to choose.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from score_core.checksum import md5_hex
from score_core.errors import Conflict, ObjectNotFound, ScoreError
from score_core.model import StoredPart
from score_core.repository.direct import DirectRepository
from score_core.stores.base import MultipartStore
from score_core.stores.local import LocalStore
from score_core.testing.memory import MemoryStore

ID = "3f6c1c8e-2b1d-5a57-9a55-0d6f0f5b2c11"
CONTENTS = (b"abcdef", b"ABCDEF")  # two parts each
_LISTS = {"list_objects", "list_parts", "list_multiparts"}


class Turns:
    """Lets one of two threads go on at a time, in the order of `order`; when that has run out, or one has ended, in any."""

    def __init__(self, order: Iterable[int]) -> None:
        self._order = iter(order)
        self._changed = threading.Condition()
        self._running = {0, 1}
        self._next = next(self._order, 0)

    @contextmanager
    def turn(self, me: int) -> Iterator[None]:
        with self._changed:
            assert self._changed.wait_for(lambda: self._next == me or len(self._running) == 1, timeout=20)
            yield  # the lock is held: nobody else moves
            self._next = next(self._order, 1 - me)
            self._changed.notify_all()

    def leave(self, me: int) -> None:
        with self._changed:
            self._running.discard(me)
            self._changed.notify_all()


class Stepping:
    """A store whose every call waits for its thread's turn. Lists are read to their end in one turn."""

    def __init__(self, inner: Any, turns: Turns, me: int) -> None:
        self._inner, self._turns, self._me = inner, turns, me

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*args: Any, **options: Any) -> Any:
            with self._turns.turn(self._me):
                answer = found(*args, **options)
                return iter(list(answer)) if name in _LISTS else answer

        return call


Put = Callable[[str, int, bytes], str]


def upload(repository: DirectRepository, put: Put, data: bytes, *, overwrite: bool, looks: bool) -> None:
    """One process: begins, sends and finishes; with `looks` it also takes up what it finds, as a resumed client does."""
    found = repository.find_upload(ID, len(data)) if looks else None
    begun = found or repository.begin_upload(ID, len(data), md5=md5_hex(data), overwrite=overwrite)
    if begun.md5 != md5_hex(data):
        raise Conflict("Another content is being uploaded")
    for part in begun.parts:
        piece = data[part.offset : part.end]
        repository.record_part(ID, begun.upload_id, StoredPart(part.number, md5_hex(piece), put(begun.upload_id, part.number, piece)))
    repository.finish(ID, begun.upload_id, sealed=True)


def run(store: MultipartStore, order: Iterable[int], work: Callable[[DirectRepository, int], object]) -> list[ScoreError | None]:
    """How each process ended: None is success."""
    turns = Turns(order)
    outcomes: list[Any] = [RuntimeError("did not end"), RuntimeError("did not end")]

    def process(me: int) -> None:
        stepping: Any = Stepping(store, turns, me)
        try:
            work(DirectRepository(stepping, part_size_bytes=4), me)
            outcomes[me] = None
        except ScoreError as error:
            outcomes[me] = error
        finally:
            turns.leave(me)

    threads = [threading.Thread(target=process, args=(me,)) for me in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return outcomes


def assert_agrees(store: MultipartStore, outcomes: list[ScoreError | None]) -> None:
    for outcome in outcomes:
        assert outcome is None or isinstance(outcome, Conflict | ObjectNotFound), outcome
    repository = DirectRepository(store, part_size_bytes=4)
    if None in outcomes:
        assert list(repository.list_uploads()) == []
    elif not repository.exists(ID):
        return
    data, spec = store.read(f"data/{ID}"), repository.describe(ID)
    assert data in CONTENTS
    assert (spec.size, spec.md5) == (len(data), md5_hex(data))
    assert [part.md5 for part in spec.parts] == [md5_hex(data[part.offset : part.end]) for part in spec.parts]


def put_in_memory(store: MemoryStore) -> Put:
    return lambda upload_id, number, data: store.put_part(f"data/{ID}", upload_id, number, data)


def put_in_folder(store: LocalStore) -> Put:
    def put(upload_id: str, number: int, data: bytes) -> str:
        try:
            with store.receive_part(f"data/{ID}", upload_id, number) as writer:
                writer.write(data)
                writer.commit()
                return writer.md5
        except FileNotFoundError as error:
            raise ObjectNotFound("The upload was dropped") from error

    return put


ORDERS = st.lists(st.integers(0, 1), max_size=80)
RUNS = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 12)), max_size=12).map(
    lambda runs: [who for who, count in runs for _ in range(count)]
)


@settings(max_examples=300)
@given(ORDERS | RUNS, st.booleans(), st.booleans())
def test_any_order_of_steps_in_memory_agrees(order: list[int], overwrite: bool, looks: bool) -> None:
    store = MemoryStore()
    put = put_in_memory(store)
    assert_agrees(store, run(store, order, lambda repository, me: upload(repository, put, CONTENTS[me], overwrite=overwrite, looks=looks)))


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_steps_in_a_folder_agrees(tmp_path: Path, seed: int, overwrite: bool) -> None:
    store, random, looks = LocalStore(tmp_path / "bucket"), Random(seed), seed % 2 == 0
    order = [who for _ in range(20) for who in [random.randrange(2)] * random.randrange(1, 10)]
    put = put_in_folder(store)
    assert_agrees(store, run(store, order, lambda repository, me: upload(repository, put, CONTENTS[me], overwrite=overwrite, looks=looks)))


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("moment", range(60))
def test_whole_upload_between_two_steps_agrees(first: int, moment: int) -> None:
    store = MemoryStore()
    put = put_in_memory(store)
    order = [first] * moment + [1 - first] * 60
    assert_agrees(store, run(store, order, lambda repository, me: upload(repository, put, CONTENTS[me], overwrite=True, looks=False)))


@pytest.mark.parametrize("ticks", [True, False])
@given(order=ORDERS | RUNS)
def test_of_uploads_that_begin_at_once_one_goes_on(ticks: bool, order: list[int]) -> None:
    """Also where the store's clock is too coarse to tell which was first."""
    now = count(1)
    store = MemoryStore(clock=lambda: float(next(now)) if ticks else 1.0)
    outcomes = run(store, order, lambda repository, _: repository.begin_upload(ID, 6, md5=None))
    assert all(outcome is None or isinstance(outcome, Conflict) for outcome in outcomes)
    (left,) = DirectRepository(store).list_uploads()
    assert [row.key for row in store.list_objects("")] == [f"upload/{ID}_{left.upload_id}/.meta"]
