"""What is tried again, how often and after how long."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_core import errors
from score_core.errors import (
    AccessDenied,
    Interrupted,
    NotResumableError,
    ObjectNotFound,
    PartMismatch,
    PermanentError,
    ScoreError,
    TransientError,
    Unavailable,
    UrlExpiredError,
)
from score_core.transfer.policy import MAX_RETRY_AFTER_S, RetryPolicy, is_retryable, needs_new_url

MISMATCH = PartMismatch("part 3", expected="a" * 32, actual="b" * 32)


def tries(policy: RetryPolicy, error: ScoreError) -> int:
    """How often something that always fails so is tried."""
    attempt = 1
    while policy.pause_s(error, attempt) is not None:
        attempt += 1
    return attempt


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TransientError("x"), 10),
        (Unavailable("x"), 10),
        (UrlExpiredError("x"), 4),
        (MISMATCH, 5),
        (AccessDenied("x", status=403), 2),
        (PermanentError("x"), 1),
        (NotResumableError("x"), 1),
        (ObjectNotFound("x"), 1),
        (errors.ChangedError("x"), 1),
        (errors.NoSpaceError("x"), 1),
        (errors.ObjectMismatch("x", expected="a", actual="b"), 1),
        (Interrupted(), 1),
    ],
)
def test_each_kind_has_its_number_of_tries(error: ScoreError, expected: int) -> None:
    assert tries(RetryPolicy(), error) == expected
    assert is_retryable(error) == (expected > 1)


@pytest.mark.parametrize("error", [TransientError("x"), MISMATCH, AccessDenied("x"), UrlExpiredError("x")])
def test_one_attempt_means_one(error: ScoreError) -> None:
    assert RetryPolicy(attempts=1).pause_s(error, 1) is None


def test_failures_of_each_kind_are_counted_apart() -> None:
    policy = RetryPolicy(attempts=10)
    assert policy.pause_s(AccessDenied("x"), 8, alike=1) == 0
    assert policy.pause_s(AccessDenied("x"), 9, alike=2) is None
    assert policy.pause_s(MISMATCH, 9, alike=1) is not None
    assert policy.pause_s(MISMATCH, 10, alike=1) is None


@given(st.integers())
def test_retry_after_is_honoured(seed: int) -> None:
    policy = RetryPolicy(rng=random.Random(seed))
    pause = policy.pause_s(TransientError("busy", busy=True, retry_after_s=7), 1)
    assert pause is not None
    assert 7 <= pause <= 8


@given(st.floats(min_value=MAX_RETRY_AFTER_S, allow_infinity=True, allow_nan=False))
def test_absurd_retry_after_is_capped(asked: float) -> None:
    pause = RetryPolicy().pause_s(TransientError("busy", retry_after_s=asked), 1)
    assert pause is not None
    assert pause <= MAX_RETRY_AFTER_S + 1


@given(st.integers(), st.integers(1, 9))
def test_pauses_grow_with_jitter(seed: int, attempt: int) -> None:
    policy = RetryPolicy(base_s=0.25, cap_s=20, rng=random.Random(seed))
    pause = policy.pause_s(TransientError("x"), attempt)
    full = min(20, 0.25 * 2 ** (attempt - 1))
    assert pause is not None
    assert full / 2 <= pause <= full


@pytest.mark.parametrize("error", [UrlExpiredError("x"), AccessDenied("x")])
def test_new_url_is_used_at_once(error: ScoreError) -> None:
    assert needs_new_url(error)
    assert RetryPolicy().pause_s(error, 1) == 0


@pytest.mark.parametrize("error", [TransientError("x"), MISMATCH, None, KeyError("x")])
def test_other_failures_keep_their_url(error: BaseException | None) -> None:
    assert not needs_new_url(error)


def test_foreign_exceptions_are_never_retried() -> None:
    assert not any(is_retryable(error) for error in (None, KeyError("x"), OSError("x"), KeyboardInterrupt()))
