"""`schedagent metrics serve` and `show`: what Prometheus scrapes."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schedagent.cli.common import Json, guarded, print_json, settings

if TYPE_CHECKING:
    from schedagent.metrics.parts import Part

metrics_app = typer.Typer(help="Serve or print metrics for Prometheus.", no_args_is_help=True, rich_markup_mode=None)

Daemon = Annotated[
    Path | None,
    typer.Option("--socket", metavar="PATH", help="Socket of schedagentd, if it is not the usual one."),
]


@metrics_app.command()
def serve(
    at: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where to listen, if systemd passes no socket.")
    ] = "",
    daemon: Daemon = None,
) -> None:
    """Answer scrapes at /metrics until Ctrl-C.

    If systemd passes a socket, it is used.

    Example: schedagent metrics serve --listen 127.0.0.1:9759
    """

    def command() -> int:
        from schedagent.core.errors import UsageError
        from schedagent.core.process.listener import activated
        from schedagent.core.settings import activated_descriptors
        from schedagent.metrics.exporter import build_registry
        from schedagent.metrics.server import ADDRESS, PATH, listen
        from schedagent.metrics.server import serve as answer

        logging.getLogger("schedagent.metrics").setLevel(logging.INFO)
        passed = activated(activated_descriptors(), (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX))
        if passed and at:
            raise UsageError("systemd passed a socket already", "leave --listen out, or change ListenStream=")
        listener = passed or listen(at or ADDRESS)
        if passed is None:
            host, port = listener.getsockname()[:2]
            typer.echo(f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}", err=True)
        answer(listener, build_registry(parts(daemon)))
        return 0

    guarded(command)


@metrics_app.command()
def show(daemon: Daemon = None, as_json: Json = False) -> None:
    """Print once what a scrape would get now.

    Example: schedagent metrics show
    """

    def command() -> int:
        from prometheus_client import generate_latest

        from schedagent.metrics.exporter import build_registry, to_json

        registry = build_registry(parts(daemon))
        if as_json:
            print_json(to_json(registry))
        else:
            typer.echo(generate_latest(registry).decode(), nl=False)
        return 0

    guarded(command)


def parts(daemon: Path | None) -> list[Part]:
    """Return what is measured."""
    from schedagent.client.daemon import SOCKET
    from schedagent.metrics.exporter import machine_parts

    return machine_parts(settings(), daemon or SOCKET)
