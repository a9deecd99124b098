"""Runs flows in forked children of a process that has imported Prefect once: a child is ready after milliseconds instead of seconds.

Reads one JSON document `{"flow": ..., "arguments": {...}}` per line; answers the child's pid, and when it has ended its wait status.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable

import prefect.engine
import prefect.flow_engine
import prefect.task_engine
import prefect.telemetry.run_telemetry  # noqa: F401  # what Prefect would import in each child

import score_core.server.bytes  # noqa: F401
from flows.download import download
from flows.upload import upload

FLOWS: dict[str, Callable[..., object]] = {"upload": upload, "download": download}


def run(line: str) -> int:
    from flows import local_server

    wanted = json.loads(line)
    try:
        with local_server.quick_flows():
            FLOWS[wanted["flow"]](**wanted["arguments"])
    except BaseException:  # noqa: BLE001  # a child must never return into the loop of its parent
        traceback.print_exc()
        return 1
    return 0


def answer(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def main() -> None:
    assert threading.active_count() == 1, "only a single-threaded process may fork"
    for line in iter(sys.stdin.readline, ""):
        pid = os.fork()
        if pid == 0:
            code = run(line)
            sys.stderr.flush()
            os._exit(code)
        answer(pid)
        answer(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    main()
