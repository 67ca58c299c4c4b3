"""`schedagent mcp`: the atomic tools for other agents."""

from __future__ import annotations

import socket
from typing import Annotated

import typer

from schedagent.cli.common import guarded, settings
from schedagent.core.errors import SetupError, UsageError

DEFAULT_PORT = 8421


def mcp(
    http: Annotated[
        bool, typer.Option("--http", help="Listen on 127.0.0.1 with a bearer token, instead of on stdin.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, metavar="PORT", help=f"Port of --http; 0: any free one; else {DEFAULT_PORT}."),
    ] = None,
    allow_trials: Annotated[
        bool,
        typer.Option(
            "--allow-trials",
            help="Also offer to measure policies on workloads that you optimised before: their commands run in the "
            "micro-VM, which sees your files read-only.",
        ),
    ] = False,
) -> None:
    """Offer the tools of our agents to other agents over MCP.

    It serves until stdin ends or Ctrl-C. Reading, composing, compiling and verifying are always offered; nothing can be
    deployed.

    Example: schedagent mcp --http --port 8421
    """

    def command() -> int:
        import asyncio

        from schedagent.mcp.server import opened, serve_http, serve_stdio

        if port is not None and not http:
            raise UsageError("--port is for --http", "add --http, or leave out --port")
        with opened(settings(), measures=allow_trials) as server:
            if not http:
                asyncio.run(serve_stdio(server))
                return 0
            from schedagent.mcp.bearer import bearer_token

            token, where = bearer_token(settings())
            with loopback(DEFAULT_PORT if port is None else port) as listener:
                typer.echo(
                    f"MCP at http://127.0.0.1:{listener.getsockname()[1]}/mcp; the token is in {where}", err=True
                )
                asyncio.run(serve_http(server, listener, token))
        return 0

    guarded(command)


def loopback(port: int) -> socket.socket:
    """Listen on the loopback interface, and on no other.

    Raises:
        SetupError: the port is taken.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise SetupError(
            f"cannot listen on 127.0.0.1:{port}: {error.strerror}", "choose another port: --port 0 takes any free one"
        ) from None
    return listener
