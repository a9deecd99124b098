"""A line between loopback's two ends: round trips take time, connections are slow to start, and what goes over it is counted.

netem would do it better, where the kernel has it; this needs neither root nor a kernel module. Modelled are the handshake of a new
connection (one round trip), half a round trip each way, TCP's slow start (ten segments, doubled every round trip, never idle long enough to
begin again) up to a window, and a rate per connection. Not modelled: loss, a rate for all connections together, TLS.

Bytes are counted when they are handed to the client's socket. A client that hangs up in the middle has left what was under way uncounted,
but for the one or two hundred kilobytes that its kernel has taken for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Final

from score_core.testing.servers import free_ports

_CHUNK: Final = 64 << 10
_FAST_CHUNK: Final = 256 << 10
_FIRST_WINDOW: Final = 10 * 1460  # RFC 6928
_WINDOW: Final = 3 << 20  # what Linux offers at most by default: half of tcp_rmem's 6 MiB
_METHODS: Final = (b"GET ", b"HEAD ", b"PUT ", b"POST ", b"DELETE ")


@dataclass(frozen=True)
class Line:
    """`rtt_s` 0 passes all on at once. `bytes_per_s` is of each connection, towards the client; None is no limit."""

    rtt_s: float = 0.0
    bytes_per_s: float | None = None
    slow_start: bool = True


@dataclass(frozen=True)
class Counts:
    """What went over a line: connections, HTTP requests, and bytes to the client, HTTP's own included."""

    connections: int
    requests: int
    sent_bytes: int

    def since(self, earlier: Counts) -> Counts:
        return Counts(self.connections - earlier.connections, self.requests - earlier.requests, self.sent_bytes - earlier.sent_bytes)


@dataclass(frozen=True)
class DelayProxy:
    """Where it listens, and what went through since it started."""

    port: int
    counts: Callable[[], Counts]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def delay_proxy(origin_port: int, line: Line) -> Iterator[DelayProxy]:
    """A proxy in a process of its own, in front of a port of loopback."""
    context = multiprocessing.get_context("spawn")
    counters = [context.Value("q", 0) for _ in range(3)]
    port = free_ports(1)[0]
    ready = context.Event()
    process = context.Process(target=_run, args=(port, origin_port, line, counters, ready), daemon=True)
    process.start()
    try:
        if not ready.wait(30):
            raise TimeoutError("The proxy does not listen")
        yield DelayProxy(port, lambda: Counts(*(int(counter.value) for counter in counters)))
    finally:
        process.terminate()
        process.join()


def _run(port: int, origin_port: int, line: Line, counters: list[Synchronized[int]], ready: Any) -> None:
    async def serve() -> None:
        with socket.create_server(("127.0.0.1", port), backlog=128) as listening:
            listening.settimeout(0)
            ready.set()
            running = set()
            loop = asyncio.get_running_loop()
            while True:
                client, _ = await loop.sock_accept(listening)
                task = asyncio.create_task(_Connection(client, origin_port, line, counters).run())
                running.add(task)
                task.add_done_callback(running.discard)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


class _Connection:
    def __init__(self, client: socket.socket, origin_port: int, line: Line, counters: list[Synchronized[int]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._line = line
        self._connections, self._requests, self._sent = counters
        self._client = client
        self._origin_port = origin_port
        self._open_at = self._loop.time() + line.rtt_s  # the kernel shook hands at once

    async def run(self) -> None:
        _add(self._connections, 1)
        with self._client, socket.socket() as origin:
            for end in (self._client, origin):
                end.settimeout(0)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError):
                await self._loop.sock_connect(origin, ("127.0.0.1", self._origin_port))
                ways = [asyncio.create_task(way) for way in self._ways(origin)]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)

    def _ways(self, origin: socket.socket) -> list[Any]:
        if not self._line.rtt_s and self._line.bytes_per_s is None:
            return [self._pass_requests(origin), self._pass_answers(origin)]
        requests: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        answers: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        window = _Window(self._loop, self._line)
        return [
            self._take_requests(requests),
            self._deliver(requests, origin, None),
            self._take_answers(origin, answers, window),
            self._deliver(answers, self._client, window),
        ]

    async def _pass_requests(self, origin: socket.socket) -> None:
        while data := await self._loop.sock_recv(self._client, _CHUNK):
            self._count_request(data)
            await self._loop.sock_sendall(origin, data)

    async def _pass_answers(self, origin: socket.socket) -> None:
        buffer = memoryview(bytearray(_FAST_CHUNK))
        while count := await self._loop.sock_recv_into(origin, buffer):
            await self._loop.sock_sendall(self._client, buffer[:count])
            _add(self._sent, count)

    async def _take_requests(self, queue: asyncio.Queue[tuple[float, bytes]]) -> None:
        while data := await self._loop.sock_recv(self._client, _CHUNK):
            self._count_request(data)
            queue.put_nowait((max(self._loop.time(), self._open_at) + self._line.rtt_s / 2, data))

    async def _take_answers(self, origin: socket.socket, queue: asyncio.Queue[tuple[float, bytes]], window: _Window) -> None:
        free_at = 0.0
        while data := await self._loop.sock_recv(origin, await window.room()):
            window.sent(len(data))
            free_at = max(self._loop.time(), free_at)
            if self._line.bytes_per_s is not None:
                free_at += len(data) / self._line.bytes_per_s
            queue.put_nowait((free_at + self._line.rtt_s / 2, data))
        queue.put_nowait((free_at + self._line.rtt_s / 2, b""))
        await asyncio.Event().wait()  # the connection ends when all has been delivered

    async def _deliver(self, queue: asyncio.Queue[tuple[float, bytes]], to: socket.socket, window: _Window | None) -> None:
        while True:
            due, data = await queue.get()
            if (wait := due - self._loop.time()) > 0:
                await asyncio.sleep(wait)
            if not data:
                return
            await self._loop.sock_sendall(to, data)
            if window is not None:
                _add(self._sent, len(data))
                window.delivered(len(data))

    def _count_request(self, data: bytes) -> None:
        # No pipelining, and a head comes in one piece: nobody's is longer than a chunk.
        if data.startswith(_METHODS):
            _add(self._requests, 1)


class _Window:
    """How much may be under way: what the sender was told has arrived makes room, and twice that while the connection starts."""

    def __init__(self, loop: asyncio.AbstractEventLoop, line: Line) -> None:
        self._loop = loop
        self._line = line
        self._size = _FIRST_WINDOW if line.slow_start else _WINDOW
        self._under_way = 0
        self._told: deque[tuple[float, int]] = deque()  # when the sender hears of so many bytes
        self._delivered = asyncio.Event()

    async def room(self) -> int:
        while True:
            now = self._loop.time()
            while self._told and self._told[0][0] <= now:
                count = self._told.popleft()[1]
                self._under_way -= count
                self._size = min(self._size + count, _WINDOW)
            if self._under_way < self._size:
                return min(_CHUNK, self._size - self._under_way)
            if self._told:
                await asyncio.sleep(self._told[0][0] - now)
            else:
                self._delivered.clear()
                await self._delivered.wait()

    def sent(self, count: int) -> None:
        self._under_way += count

    def delivered(self, count: int) -> None:
        self._told.append((self._loop.time() + self._line.rtt_s / 2, count))
        self._delivered.set()


def _add(counter: Synchronized[int], count: int) -> None:
    counter.value += count  # one process writes


def main() -> int:
    """For trying it out: `python -m bench.delay ORIGIN_PORT RTT_MS [MB_PER_S]`, until a line comes on stdin."""
    origin, rtt_ms, *rate = sys.argv[1:]
    with delay_proxy(int(origin), Line(float(rtt_ms) / 1000, float(rate[0]) * 1e6 if rate else None)) as proxy:
        print(proxy.url, flush=True)
        sys.stdin.readline()
        print(proxy.counts())
    return 0


if __name__ == "__main__":
    sys.exit(main())
