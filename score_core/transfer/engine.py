"""The direct driver: parts in a bounded pool of threads, retried by `policy`, without Prefect or anything else around it."""

from __future__ import annotations

import copy
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

from score_core.errors import IntegrityError, Interrupted, ObjectMismatch, ScoreError, TransientError
from score_core.model import ObjectSpec, Outcome, Part, PartReceipt, TransferReport, Validation
from score_core.progress import Progress, Silent
from score_core.repository.base import Repository
from score_core.transfer.download import Download, Span
from score_core.transfer.part import PartTransport
from score_core.transfer.policy import RetryPolicy, needs_new_url
from score_core.transfer.stop import Stop
from score_core.transfer.upload import AlreadyThere, SourceDigest, UploadSession, digest_source
from score_core.transfer.urls import Urls

_GRACE_S: Final = 1.5  # how long running parts may take to notice a stop; they look between blocks
_FEW_CORES: Final = 4
_BACK_NICE: Final = 10
_TICK_S: Final = 0.1  # how soon the main thread sees a signal while it waits


@dataclass
class Engine:
    """What transfers run with: at most `workers` parts are under way at once, over all files. The transport belongs to the caller."""

    repository: Repository
    transport: PartTransport
    workers: int = 8
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    progress: Progress = field(default_factory=Silent)
    stop: Stop = field(default_factory=Stop)
    throttle: Throttle = field(init=False)

    def __post_init__(self) -> None:
        self.throttle = Throttle(self.workers)

    def stopped_by(self, stop: Stop) -> Engine:
        """This engine for work that may be stopped by itself; it shares connections, and how many parts are under way at once."""
        engine = copy.copy(self)
        engine.stop = stop
        return engine

    def download(
        self, spec: ObjectSpec, target: Path, *, span: Span = Span(), validation: Validation = "auto", state_dir: Path | None = None
    ) -> TransferReport:
        """Downloads an object to `target`, replacing a file of that name only once the new one is verified.

        What is half done lies beside the target, or in `state_dir`, where the next run finds it for another target, too.

        Raises:
            ScoreError: of the kind that says what to do; all that arrived is kept for the next run.
        """
        began = time.monotonic()
        download = Download.open(self.repository, spec, target, span=span, validation=validation, state_dir=state_dir)
        run = Run(self, download)
        try:
            run.announce(target.name)
            for note in download.notes:
                self.progress.note(spec.object_id, note)
            md5 = _fetch_and_verify(run, download)
            download.publish(stop=self.stop)
        finally:
            run.finish()
        return replace(run.report(str(target), "downloaded", began), md5=md5, validation=download.proof)

    def upload(self, path: Path, object_id: str, *, md5: str, overwrite: bool = False) -> TransferReport:
        """Uploads a file whose MD5 is promised to be `md5` (hex); publishes it only if it is.

        Raises:
            ScoreError: nothing was published; all that was stored is kept for the next run, except after `ObjectMismatch`.
        """
        began = time.monotonic()
        try:
            session = UploadSession.open(self.repository, path, object_id, md5=md5, overwrite=overwrite)
        except AlreadyThere as there:
            return there.report(path)
        run = Run(self, session)
        try:
            run.announce(path.name)
            hasher = _SourceHasher(session, run)
            run.move(session.parts)
            session.publish(hasher.result())
        finally:
            run.finish()
        return replace(run.report(str(path), "uploaded", began), md5=md5, validation="both")


def _fetch_and_verify(run: Run, download: Download) -> str | None:
    follower = threading.Thread(target=download.hasher.follow, args=(run.stop,), daemon=True, name="score-md5")
    if download.hashes_whole:
        run.start(follower)
    run.move(download.parts)
    if download.hashes_whole:
        run.wait_for(follower)
    try:
        return download.verify(stop=run.stop)
    except ObjectMismatch:
        suspects = download.suspects(stop=run.stop)
        if not suspects:
            raise  # every part is what its own MD5 says: the recorded whole MD5 is wrong, and no refetch will mend that
        run.note(f"The whole file's MD5 is wrong: fetching {len(suspects)} damaged parts again")
        run.engine.progress.advance(download.object_id, -sum(part.size for part in suspects))
        run.move(suspects)
        return download.verify(stop=run.stop)


class _SourceHasher:
    """`digest_source` in a thread beside the senders; a wrong MD5 stops them at once, long before the last part is sent."""

    def __init__(self, session: UploadSession, run: Run) -> None:
        self._session = session
        self._of = run
        self._digest: SourceDigest | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="score-md5")
        run.start(self._thread)

    def _run(self) -> None:
        try:
            self._digest = digest_source(self._session.source, self._session.parts, stop=self._of.stop)
            self._session.check_md5(self._digest)
        except ObjectMismatch as error:
            self._of.fail(error)  # first: a part that finds its upload gone must not be what the user hears of
            self._session.drop()
        except BaseException as error:  # noqa: BLE001  # handed to the thread that waits
            self._of.fail(error)

    def result(self) -> SourceDigest:
        self._of.wait_for(self._thread)
        self._of.check()
        assert self._digest is not None
        return self._digest


class Session(Protocol):
    """What a driver needs of a transfer: `Download` and `UploadSession` are such."""

    @property
    def urls(self) -> Urls: ...
    @property
    def object_id(self) -> str: ...
    @property
    def parts(self) -> tuple[Part, ...]: ...
    @property
    def hashes_whole(self) -> bool: ...
    def claims(self, part: Part) -> bool: ...
    def attempt(self, part: Part, *, transport: PartTransport, stop: Stop | None, advance: Callable[[int], None] | None) -> PartReceipt: ...
    def close(self) -> None: ...


class Run:
    """Parts of one session on their way: the pool, the retries, the counts. `finish` it in the end, whatever happens."""

    def __init__(self, engine: Engine, session: Session) -> None:
        self.engine = engine
        self.session = session
        self.object_id = session.object_id
        self.stop = engine.stop.child()
        self.moved: dict[int, int] = {}
        self.retries = 0
        self._claimed: set[int] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._error: BaseException | None = None
        self._deadline: float | None = None
        self._throttle = engine.throttle

    def announce(self, name: str) -> None:
        """Tells progress that the transfer of `name` begins, and what it claims to have already."""
        parts = self.session.parts
        self._claimed = {part.number for part in parts if self.session.claims(part)}
        kept = sum(part.size for part in parts if part.number in self._claimed)
        self.engine.progress.begin(self.object_id, name, sum(part.size for part in parts), kept, len(parts))

    def note(self, message: str) -> None:
        self.engine.progress.note(self.object_id, message)

    def start(self, thread: threading.Thread) -> None:
        """Starts a thread that uses the session's file: `finish` ends it before the file is closed."""
        self._threads.append(thread)
        thread.start()

    def move(self, parts: Sequence[Part]) -> None:
        """Brings every part to its place, several at once, each until it succeeds or fails for good; the first final failure ends all."""
        waiting = deque(parts)
        count = min(self.engine.workers, len(waiting))
        threads = [threading.Thread(target=self._work, args=(waiting,), daemon=True, name=f"score-part-{n}") for n in range(count)]
        for thread in threads:
            self.start(thread)
        for thread in threads:
            self.wait_for(thread)
        self.check()

    def check(self) -> None:
        """Raises what made the transfer fail or stop, if something did."""
        if self._error is not None:
            raise self._error
        self.engine.stop.check()

    def wait_for(self, thread: threading.Thread) -> None:
        """Joins a thread; after a stop only for a moment, because it may sit in a read that nothing interrupts."""
        while thread.is_alive() and not self.stop.is_set():
            thread.join(_TICK_S)
        if thread.is_alive():
            self._give_grace(thread)
        if self._error is None:
            self.engine.stop.check()

    def _give_grace(self, thread: threading.Thread) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + _GRACE_S
        thread.join(max(0.0, self._deadline - time.monotonic()))

    def _work(self, waiting: deque[Part]) -> None:
        if self.session.hashes_whole:
            _step_back()
        while not self.stop.is_set():
            try:
                part = waiting.popleft()
            except IndexError:
                return
            try:
                self.moved[part.number] = self._until_done(part).moved
            except BaseException as error:  # noqa: BLE001  # handed to the thread that waits in `parts`
                self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Ends the transfer: the first error is the one that is raised."""
        with self._lock:
            if self._error is None and not (isinstance(error, Interrupted) and self.stop.is_set()):
                self._error = error
        self.stop.set()

    def _until_done(self, part: Part) -> PartReceipt:
        tries = Tries(self.engine, self.session, part)
        while True:
            counted = _Counted(self)
            try:
                with self._throttle.slot(self.stop):
                    receipt = self.session.attempt(part, transport=self.engine.transport, stop=self.stop, advance=counted)
                self._throttle.went_well()
                self._settle_claim(part, receipt)
                self.engine.progress.part_done(self.object_id)
                return receipt
            except ScoreError as error:
                counted.take_back()
                pause = tries.failed(error)
                if pause is None:
                    raise
                self._before_retry(error, part, pause)

    def _settle_claim(self, part: Part, receipt: PartReceipt) -> None:
        """A part that had been counted as kept and was moved after all must not count twice."""
        if receipt.moved and part.number in self._claimed:
            self._claimed.discard(part.number)
            self.engine.progress.advance(self.object_id, -part.size)

    def _before_retry(self, error: ScoreError, part: Part, pause: float) -> None:
        with self._lock:
            self.retries += 1
        if not needs_new_url(error):
            self.engine.progress.retry(self.object_id, f"part {part.number}", str(error), pause)
        self.stop.wait(pause)

    def finish(self) -> None:
        """Ends the threads and closes what they used, unless one is stuck in it: then it is left to the end of the process."""
        self.stop.set()
        for thread in self._threads:
            self._give_grace(thread)
        if not any(thread.is_alive() for thread in self._threads):
            self.session.close()

    def report(self, path: str, outcome: Outcome, began: float) -> TransferReport:
        parts = self.session.parts
        moved = sum(self.moved.values())
        size = sum(part.size for part in parts)
        return TransferReport(
            object_id=self.object_id,
            path=path,
            outcome=outcome,
            size=size,
            parts=len(parts),
            parts_kept=sum(1 for moved in self.moved.values() if not moved),
            bytes_moved=moved,
            bytes_kept=size - moved,
            retries=self.retries,
            signings=self.session.urls.signings,
            seconds=time.monotonic() - began,
        )


def _step_back() -> None:
    """Lets the thread that hashes the whole file go first where cores are few: it is one thread, and the last to end.

    On two cores an upload went from 320 to 440 MB/s by it, a download from 410 to 450. Linux gives priorities to threads; elsewhere, and
    on machines with cores to spare, nothing happens.
    """
    if (os.cpu_count() or 1) > _FEW_CORES or sys.platform != "linux":
        return
    me = threading.get_native_id()
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, me, max(_BACK_NICE, os.getpriority(os.PRIO_PROCESS, me)))


class Tries:
    """The failed attempts at one part: counts them by kind, asks the policy, and draws the consequences. For every driver."""

    def __init__(self, engine: Engine, session: Session, part: Part) -> None:
        self._engine = engine
        self._session = session
        self._part = part
        self._kinds: Counter[type[ScoreError]] = Counter()

    def failed(self, error: ScoreError) -> float | None:
        """Seconds to wait before the next attempt; None when there is none: then the error says where it came from and `is_final`."""
        self._kinds[type(error)] += 1
        pause = self._engine.policy.pause_s(error, self._kinds.total(), alike=self._kinds[type(error)])
        if pause is None:
            self._conclude(error)
        elif needs_new_url(error):
            self._session.urls.forget()
        elif isinstance(error, TransientError) and error.busy:
            self._engine.throttle.went_badly(pause if error.retry_after_s is not None else 0.0)
        return pause

    def _conclude(self, error: ScoreError) -> None:
        error.is_final = True
        tries = self._kinds.total()
        if isinstance(error, IntegrityError):
            error.at(f"Gave up after {tries} tries")
        elif not isinstance(error, Interrupted) and self._session.object_id not in str(error):
            error.at(f"Part {self._part.number} of object {self._session.object_id}" + (f" after {tries} tries" if tries > 1 else ""))


class _Counted:
    """Tells progress of one attempt's bytes, and takes them back when the attempt failed."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._count = 0

    def __call__(self, count: int) -> None:
        self._count += count
        self._run.engine.progress.advance(self._run.object_id, count)

    def take_back(self) -> None:
        if self._count > 0:
            self(-self._count)


class Throttle:
    """How many parts may be under way: all workers at first, half after each complaint of the store, one more after a run of successes.

    A store that says how long to wait (`Retry-After`) is left alone for that long by all workers.
    """

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._allowed = most
        self._running = 0
        self._well = 0
        self._quiet_until = 0.0
        self._clock = clock
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def allowed(self) -> int:
        return self._allowed

    @contextmanager
    def slot(self, stop: Stop) -> Iterator[None]:
        """Waits for a place and holds it, first come, first served. Raises `Interrupted` when `stop` is set meanwhile."""
        self._enter(stop)
        try:
            stop.check()
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _enter(self, stop: Stop) -> None:
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            while not stop.is_set():
                quiet_s = self._quiet_until - self._clock()
                if quiet_s <= 0 and self._running < self._allowed and self._waiting[0] is ticket:
                    break
                self._changed.wait(_TICK_S)
            self._waiting.remove(ticket)
            self._running += 1
            self._changed.notify_all()

    def went_well(self) -> None:
        with self._changed:
            self._well += 1
            if self._well >= 2 * self._allowed and self._allowed < self._most:
                self._allowed, self._well = self._allowed + 1, 0
                self._changed.notify_all()

    def went_badly(self, quiet_s: float) -> None:
        with self._changed:
            self._allowed, self._well = max(1, self._allowed // 2), 0
            self._quiet_until = max(self._quiet_until, self._clock() + quiet_s)
