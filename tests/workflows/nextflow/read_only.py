"""`score` where only the working directory, TMPDIR and SCORE_STATE_DIR can be written to, as in a container with a read-only root.

Root may write anywhere, so Python itself says no. Usage: python read_only.py WORDS...
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

ROOMS = [os.path.realpath(room) for room in (Path.cwd(), os.environ["TMPDIR"], os.environ.get("SCORE_STATE_DIR"), "/dev") if room]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.utime"}


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
        paths = arguments[:1]
    elif event in CHANGES:
        paths = arguments[:2]
    else:
        return
    for path in paths:
        if isinstance(path, str | bytes):
            real = os.path.realpath(os.fsdecode(path))
            if not any(real == room or real.startswith(room + os.sep) for room in ROOMS):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), real)


if __name__ == "__main__":
    sys.addaudithook(refuse)
    from score_core.cli.app import main

    main()
