"""A Song made of our own router, over HTTP on loopback."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI, Request
from starlette.types import ASGIApp

from score_core.metadata.base import Metadata
from score_core.server.errors import Refusal
from score_core.server.song_routes import song_router


def nobody_is_refused(request: Request, study: str) -> None:
    pass


def needs_the_word(request: Request, study: str) -> None:
    if request.headers.get("authorization") != "Bearer the-word":
        raise Refusal(403, f"The token may not write study {study}", code="forbidden")


def song_app(metadata: Metadata, may_write: Callable[[Request, str], None] = nobody_is_refused) -> FastAPI:
    app = FastAPI(redirect_slashes=False)
    app.include_router(song_router(metadata, may_write=may_write))
    return app


@contextlib.contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The address of an application in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join()
