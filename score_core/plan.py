"""How an object is cut into parts. Pure: sizes in, parts out (protocol section 6.1)."""

from __future__ import annotations

from typing import Final

from score_core.errors import PlanError
from score_core.model import Part

MIN_PART_SIZE_BYTES: Final = 20 * 1024 * 1024  # Score's floor
MAX_PARTS: Final = 10_000  # S3's limit on parts of one upload
MAX_PART_SIZE_BYTES: Final = 5 * 1024**3  # S3's limit on one part
JAVA_MAX_PART_SIZE_BYTES: Final = 2**31 - 1  # Java clients map a part into one buffer
MAX_OBJECT_SIZE_BYTES: Final = MAX_PARTS * MAX_PART_SIZE_BYTES


def part_size_bytes(length: int, *, minimum: int = MIN_PART_SIZE_BYTES) -> int:
    """The size of every part but the last for `length` bytes: Score's `max(minimum, length // 10000 + 1)`.

    Raises:
        PlanError: the length is negative, or 10,000 parts of 5 GiB do not hold it.
    """
    if length < 0:
        raise PlanError(f"An object cannot have {length} bytes; sizes are 0 or more")
    if minimum < 1:
        raise PlanError(f"The part size must be at least 1 byte, got {minimum}")
    size = max(minimum, length // MAX_PARTS + 1)
    if size > MAX_PART_SIZE_BYTES:
        if length <= MAX_OBJECT_SIZE_BYTES and minimum <= MAX_PART_SIZE_BYTES:
            return MAX_PART_SIZE_BYTES  # the formula's +1 oversteps only for an object of exactly 10,000 x 5 GiB
        raise PlanError(
            f"{length} bytes in parts of at least {minimum} bytes need parts over S3's limit of {MAX_PART_SIZE_BYTES} bytes; "
            f"the largest object is {MAX_OBJECT_SIZE_BYTES} bytes"
        )
    return size


def plan_parts(length: int, *, offset: int = 0, minimum: int = MIN_PART_SIZE_BYTES) -> tuple[Part, ...]:
    """Parts 1, 2, ... that tile `length` bytes from `offset` exactly, in order; none for an empty object.

    Raises:
        PlanError: as `part_size_bytes`, or a negative offset.
    """
    if offset < 0:
        raise PlanError(f"A range cannot begin at byte {offset}; offsets are 0 or more")
    size = part_size_bytes(length, minimum=minimum)
    return tuple(
        Part(number=number, offset=offset + start, size=min(size, length - start))
        for number, start in enumerate(range(0, length, size), start=1)
    )
