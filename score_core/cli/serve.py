"""The command that runs a server: serve."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from score_core.cli.context import Injected
from score_core.cli.output import Result, say
from score_core.errors import ConfigurationError


def serve(
    *,
    host: Annotated[str | None, Parameter(help="The address to listen on; 127.0.0.1 by default.")] = None,
    port: Annotated[int | None, Parameter(help="The port of the REST API, by default 5431; 0 takes a free one.")] = None,
    data_port: Annotated[int | None, Parameter(help="The port for bytes, when objects are in a folder; by default a free one.")] = None,
    allow_public: Annotated[bool, Parameter(negative=(), show_default=False, help="Allow an address that other machines reach.")] = False,
    context: Injected,
) -> Result:
    """Run a Score server until stopped; prints its address.

    Objects are where --store says, else in your data directory. Without a Song
    (METADATA_URL) it keeps its own registry and answers as Song, too. Without
    other authentication callers need the token in the file that it names.

    Everything else is set by SCORE_SERVER_... variables: docs/server.md.

    Example: score serve --port 5431

    Example: score serve --store "s3://bucket?endpoint=http://minio:9000"
    """
    try:
        from score_core.server.serving import serving
        from score_core.server.settings import load_server_settings
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"A server needs {error.name}, which is not installed: pip install 'score-transfer[server]'") from None

    options = load_server_settings(host=host, port=port, data_port=data_port, allow_public=allow_public or None)
    with context.signals.graceful(), serving(context.load(at_store=True), options, stop=context.stop) as running:
        print(running.url, flush=True)  # at once, not at the end: somebody waits for it
        say(f"Serving {running.label}" + (f", its bytes at {running.data_url}" if running.data_url else ""))
        if running.token_file is not None:
            say(f"The token is in {running.token_file}; clients find it with SCORE_TOKEN_FILE={running.token_file}")
        say("Stop with Ctrl-C")
        while not context.stop.wait(3600):  # a signal ends the wait: its handler sets the flag
            pass
    return Result()
