"""What a transfer tells about itself while it runs. The library never prints: it calls a `Progress`, and the CLI or a flow shows it."""

from __future__ import annotations

from typing import Protocol

from score_core.model import TransferReport


class Progress(Protocol):
    """Receives the events of one or more transfers. Called from worker threads: must be thread-safe, quick, and must not raise."""

    def begin(self, object_id: str, name: str, size: int, kept: int, parts: int) -> None:
        """A transfer of `size` bytes in `parts` parts begins; `kept` bytes are there from an earlier run."""
        ...

    def part_done(self, object_id: str) -> None:
        """One more part is where it belongs, whether it was moved now or earlier."""
        ...

    def advance(self, object_id: str, count: int) -> None:
        """`count` more bytes are where they belong; negative when a failed attempt's bytes are taken back."""
        ...

    def retry(self, object_id: str, what: str, why: str, pause_s: float) -> None:
        """`what` (such as "part 17") failed and is tried again after `pause_s` seconds."""
        ...

    def note(self, object_id: str, message: str) -> None:
        """Something a user should know and need not act on."""
        ...

    def end(self, report: TransferReport) -> None:
        """The transfer is over, well or not."""
        ...


class Silent:
    """A `Progress` that tells nobody."""

    def begin(self, object_id: str, name: str, size: int, kept: int, parts: int) -> None: ...
    def part_done(self, object_id: str) -> None: ...
    def advance(self, object_id: str, count: int) -> None: ...
    def retry(self, object_id: str, what: str, why: str, pause_s: float) -> None: ...
    def note(self, object_id: str, message: str) -> None: ...
    def end(self, report: TransferReport) -> None: ...
