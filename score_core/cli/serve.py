"""The command that keeps the embedded store's addresses answered: serve."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from score_core.cli.context import Injected
from score_core.cli.output import Result, say
from score_core.errors import ConfigurationError
from score_core.session import store_folder


def serve(
    *,
    host: Annotated[str, Parameter(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="The port; 0 takes a free one.")] = 0,
    allow_public: Annotated[bool, Parameter(negative=(), show_default=False, help="Allow an address that other machines reach.")] = False,
    context: Injected,
) -> Result:
    """Answer signed addresses into the local store until stopped; prints where it listens.

    Set SCORE_SERVE_URL to that address for the programs that sign, such as `score url`.

    Example: score serve --port 8087
    """
    from score_core.server.bytes import ByteServer
    from score_core.stores.local import LocalStore

    folder = store_folder(context.settings)
    if folder is None:
        raise ConfigurationError("Only a store in a folder is served; a bucket answers its own addresses")
    if not 0 <= port <= 65_535:
        raise ConfigurationError(f"--port must be from 0 to 65535, got {port}")
    store = LocalStore(folder)
    server = ByteServer(store, host, port, allow_public=allow_public)
    with context.signals.graceful():
        server.start()
        print(server.url, flush=True)  # at once, not at the end: somebody waits for it
        say(f"Serving {store.label}; stop with Ctrl-C")
        while not context.stop.wait(3600):  # a signal ends the wait: its handler sets the flag
            pass
    server.close()
    store.close()
    return Result()
