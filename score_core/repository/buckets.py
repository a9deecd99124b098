"""Which bucket an object is in (protocol section 5.4)."""

from __future__ import annotations

import heapq
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, Self, TypeVar

from score_core.errors import ConfigurationError, ObjectNotFound, ServiceError
from score_core.stores import S3Options, open_store
from score_core.stores.base import MultipartStore, SupportsPartitions

_Row = TypeVar("_Row")

_MAX_KEY_DIGITS: Final = 7  # Java reads them into a signed 32-bit integer
_HEX: Final = re.compile(r"[0-9a-fA-F]+")


class Place(NamedTuple):
    """An object bucket and the state bucket that goes with it; often one and the same."""

    data: MultipartStore
    state: MultipartStore


class Buckets:
    """Where objects and their state are: two base buckets, or `pool` numbered partitions of each. Safe to call from several threads.

    With a `pool` of P an object lives in the buckets `<base>.<n>`, n being the first `key_digits` hex digits of its id modulo P. What is
    from before the partitioning is still in the base buckets. Buckets are opened when they are first asked for.

    Raises:
        ConfigurationError: `key_digits` is not 1 to 7, the pool is negative, or the stores have no partitions.
    """

    def __init__(self, data: MultipartStore, state: MultipartStore | None = None, *, pool: int = 0, key_digits: int = 2) -> None:
        self.base = Place(data, data if state is None else state)
        if pool < 0:
            raise ConfigurationError(f"The number of partitions must be 0 (none) or more, got {pool}")
        if pool and not 1 <= key_digits <= _MAX_KEY_DIGITS:
            raise ConfigurationError(f"Partitions are chosen by 1 to {_MAX_KEY_DIGITS} digits of an object id, got {key_digits}")
        if pool and not all(isinstance(store, SupportsPartitions) for store in self.base):
            raise ConfigurationError(f"{data.label} cannot be spread over {pool} partitions: that needs S3 buckets")
        self._pool = pool
        self._key_digits = key_digits
        self._lock = threading.Lock()
        self._opened: dict[int, Place] = {}

    @classmethod
    def single(cls, store: MultipartStore) -> Self:
        """One bucket for everything."""
        return cls(store)

    @property
    def label(self) -> str:
        return f"{self.base.data.label} in {self._pool} partitions" if self._pool else self.base.data.label

    @property
    def is_partitioned(self) -> bool:
        return self._pool > 0

    def of(self, object_id: str) -> Place:
        """Where an object belongs: it is written there and nowhere else.

        Raises:
            ServiceError: the buckets are partitioned and the id does not begin with enough hex digits.
        """
        return self._partition(self._number(object_id)) if self._pool else self.base

    def all(self) -> list[Place]:
        """Every partition and at last the base, where older objects may be."""
        return [*(self._partition(number) for number in range(self._pool)), self.base]

    def rows(self, listed: Callable[[Place], Iterable[_Row]], *, by: Callable[[_Row], str]) -> Iterator[_Row]:
        """What `listed` gives of all places, each in the order of `by`, as one list in that order. Of equals the base's comes last.

        Partitions must exist. The base need not, once there are partitions.
        """
        if not self._pool:
            return iter(listed(self.base))
        *partitions, base = self.all()
        return heapq.merge(*map(listed, partitions), _or_nothing(listed, base), key=by)

    def check(self) -> None:
        """Returns if the store is reached and lets us in; of partitions the first is tried, as Java servers do (protocol section 3.14)."""
        place = self._partition(0) if self._pool else self.base
        place.data.check()
        if place.state is not place.data:
            place.state.check()

    def close(self) -> None:
        """Closes every store. Partitions share what their base opened."""
        for store in {id(store): store for store in self.base}.values():
            store.close()

    def _number(self, object_id: str) -> int:
        digits = object_id[: self._key_digits]
        if len(digits) < self._key_digits or _HEX.fullmatch(digits) is None:
            raise ServiceError(
                f"Object {object_id} has no partition: its id must begin with {self._key_digits} hex digits; check the id", status=500
            )
        return int(digits, 16) % self._pool

    def _partition(self, number: int) -> Place:
        with self._lock:
            if number not in self._opened:
                data = _partition_of(self.base.data, number)
                state = data if self.base.state is self.base.data else _partition_of(self.base.state, number)
                self._opened[number] = Place(data, state)
            return self._opened[number]


def open_buckets(
    address: str,
    *,
    state_address: str | None = None,
    pool: int = 0,
    key_digits: int = 2,
    kms_key_id: str | None = None,
    md5_property: str = "md5chksum",
) -> Buckets:
    """The buckets at these addresses, which are as for `open_store`; state is beside the data unless it has an address of its own.

    `pool` and `key_digits` as for `Buckets`, the others as in `S3Options`. Nothing is contacted yet. The caller closes it.

    Raises:
        ConfigurationError: as `open_store` and `Buckets`.
    """
    data = open_store(address, options=S3Options(kms_key_id=kms_key_id, md5_property=md5_property))
    state = None
    try:
        state = None if state_address in (None, address) else open_store(str(state_address))
        return Buckets(data, state, pool=pool, key_digits=key_digits)
    except ConfigurationError:
        for store in filter(None, (data, state)):
            store.close()
        raise


def _partition_of(store: MultipartStore, number: int) -> MultipartStore:
    assert isinstance(store, SupportsPartitions)
    return store.partition(number)


def _or_nothing(listed: Callable[[Place], Iterable[_Row]], place: Place) -> Iterator[_Row]:
    try:
        yield from listed(place)
    except ObjectNotFound:
        return
