"""What to do after a failed attempt: one place for the direct engine, Prefect and whoever else drives parts.

Nobody looks at message texts: the error's class decides.

| error | again? |
| --- | --- |
| `TransientError`, `Unavailable` | yes, after a growing, jittered pause, or as long as the server asked for |
| `UrlExpiredError` | yes, at once, with a new URL; after three it is a clock that is wrong, not an age |
| `PartMismatch` | yes: one part's bytes were damaged on the way |
| `AccessDenied` | once, with a new URL: a clock may be off; then it is final |
| anything else | no |
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

from score_core.errors import AccessDenied, PartMismatch, TransientError, Unavailable, UrlExpiredError

MAX_RETRY_AFTER_S: Final = 300.0  # a longer wish of a server is not obeyed to the letter: it would look like a hang
_DENIED_ATTEMPTS: Final = 2
_MISMATCH_ATTEMPTS: Final = 5
_EXPIRED_ATTEMPTS: Final = 4


def is_retryable(error: BaseException | None) -> bool:
    """Whether another attempt may help at all, whatever the number of attempts so far."""
    return isinstance(error, TransientError | Unavailable | UrlExpiredError | PartMismatch | AccessDenied)


def needs_new_url(error: BaseException | None) -> bool:
    """Whether the URL that was used must not be used again."""
    return isinstance(error, UrlExpiredError | AccessDenied)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and after what pause one part is tried again.

    `attempts` counts tries, the first included. Pauses double from `base_s` up to `cap_s`, each drawn from 50-100 % of that
    ("equal jitter": workers that failed together do not come back together, yet none comes back at once).
    """

    attempts: int = 10
    base_s: float = 0.25
    cap_s: float = 20.0
    rng: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def pause_s(self, error: BaseException, attempt: int, *, alike: int | None = None) -> float | None:
        """Seconds to wait after failed `attempt` (1 is the first), None when it must not be tried again.

        `alike` is how many of these attempts failed in this way; by default all did.
        """
        if not is_retryable(error) or attempt >= self.attempts or (alike or attempt) >= self._limit(error):
            return None
        if needs_new_url(error):
            return 0.0
        asked = getattr(error, "retry_after_s", None)
        if asked is not None:
            return min(float(asked), MAX_RETRY_AFTER_S) + self.rng.uniform(0, 1)
        return min(self.cap_s, self.base_s * 2.0 ** (attempt - 1)) * self.rng.uniform(0.5, 1)

    def _limit(self, error: BaseException) -> int:
        if isinstance(error, AccessDenied):
            return min(self.attempts, _DENIED_ATTEMPTS)
        if isinstance(error, UrlExpiredError):
            return min(self.attempts, _EXPIRED_ATTEMPTS)
        if isinstance(error, PartMismatch):
            return min(self.attempts, _MISMATCH_ATTEMPTS)
        return self.attempts
