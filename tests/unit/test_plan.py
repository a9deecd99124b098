"""Parts tile an object exactly, whatever its size; Score's own numbers come out (protocol section 6.1)."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_core.errors import PlanError
from score_core.plan import MAX_OBJECT_SIZE_BYTES, MAX_PART_SIZE_BYTES, MAX_PARTS, MIN_PART_SIZE_BYTES, part_size_bytes, plan_parts
from score_core.repository.layout import tiles

MIB = 1 << 20
TABLE = [
    (0, 0, 0, 0),
    (1, 1, 1, 1),
    (20_971_520, 1, 20_971_520, 20_971_520),
    (20_971_521, 2, 20_971_520, 1),
    (52_428_800, 3, 20_971_520, 10_485_760),
    (209_715_199_999, 10_000, 20_971_520, 20_971_519),
    (209_715_200_000, 10_000, 20_971_521, 20_961_521),
]
SIZES = st.one_of(
    st.integers(0, MAX_OBJECT_SIZE_BYTES), st.integers(0, 200 * MIB), st.integers(0, 10).map(lambda n: MAX_OBJECT_SIZE_BYTES - n)
)


@pytest.mark.parametrize(("length", "count", "first", "last"), TABLE)
def test_score_table_of_sizes(length: int, count: int, first: int, last: int) -> None:
    parts = plan_parts(length)
    assert len(parts) == count
    assert [(parts[0].size, parts[-1].size)] == [(first, last)] if parts else count == 0


@given(SIZES)
def test_parts_tile_any_size(length: int) -> None:
    parts = plan_parts(length)
    assert tiles(parts, length)
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert len(parts) <= MAX_PARTS
    assert all(part.size <= MAX_PART_SIZE_BYTES for part in parts)


@given(SIZES, st.integers(1, MAX_PART_SIZE_BYTES))
def test_part_size_follows_the_formula(length: int, minimum: int) -> None:
    expected = max(minimum, length // MAX_PARTS + 1)
    assert part_size_bytes(length, minimum=minimum) == min(expected, MAX_PART_SIZE_BYTES)


@given(st.integers(1, 10_000_000), st.integers(0, 10**15), st.integers(1, 5 * MIB))
def test_range_is_tiled_from_its_offset(length: int, offset: int, minimum: int) -> None:
    parts = plan_parts(length, offset=offset, minimum=minimum)
    assert parts[0].offset == offset
    assert parts[-1].end == offset + length
    assert all(one.end == other.offset for one, other in pairwise(parts))


def test_fifty_tebibytes_fit() -> None:
    parts = plan_parts(MAX_OBJECT_SIZE_BYTES)
    assert (len(parts), parts[-1].size, parts[-1].end) == (MAX_PARTS, MAX_PART_SIZE_BYTES, MAX_OBJECT_SIZE_BYTES)


def test_one_byte_more_is_refused() -> None:
    with pytest.raises(PlanError, match=str(MAX_PART_SIZE_BYTES)):
        plan_parts(MAX_OBJECT_SIZE_BYTES + 1)


@pytest.mark.parametrize(
    ("length", "options"), [(-1, {}), (1, {"offset": -1}), (1, {"minimum": 0}), (1, {"minimum": MAX_PART_SIZE_BYTES + 1})]
)
def test_impossible_plans_are_refused(length: int, options: dict[str, int]) -> None:
    with pytest.raises(PlanError):
        plan_parts(length, **options)


def test_sparse_object_of_100_gib_is_planned() -> None:
    parts = plan_parts(100 << 30)
    assert len(parts) == (100 << 30) // MIN_PART_SIZE_BYTES
    assert tiles(parts, 100 << 30)
