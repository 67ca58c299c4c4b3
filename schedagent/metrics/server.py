"""The exporter over HTTP, on a socket that is open already: the process itself may be unable to make one."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import BaseServer, ThreadingMixIn
from typing import Any, NoReturn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from schedagent.core.errors import SetupError, UsageError

log = logging.getLogger(__name__)

ADDRESS = "127.0.0.1:9759"
"""Where schedagent-metrics.socket listens."""
PATH = "/metrics"
AT_ONCE = 16
"""Requests that are answered at a time; others are refused."""
SILENCE_S = 5.0
"""How long a client may send nothing, or not read."""

_IDLE_S = 3600.0
_BACKLOG = 16
_App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Handler(WSGIRequestHandler):
    """One request on one connection."""

    timeout = SILENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes come every few seconds: they are for those who debug."""
        log.debug(format, *args)


class MetricsServer(ThreadingMixIn, WSGIServer):
    """Answers each request in a thread, at most AT_ONCE of them.

    Args:
        listener: of the network or of this machine (unix); stays the caller's to close.
        registry: what is scraped.
    """

    daemon_threads = True

    def __init__(self, listener: socket.socket, registry: CollectorRegistry) -> None:
        # Not what HTTPServer does: it makes a socket, binds it and looks up its name.
        BaseServer.__init__(self, listener.getsockname(), Handler)
        listener.setblocking(False)
        self.socket = listener
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()
        self.set_app(_application(registry))
        self._room = threading.BoundedSemaphore(AT_ONCE)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a thread, if there is room for one more."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, then make room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no news; anything else is a mistake of ours."""
        log.debug("a request could not be answered", exc_info=True)


def _application(registry: CollectorRegistry) -> _App:
    """Metrics at PATH, a hint at the root, nothing else."""
    metrics = make_wsgi_app(registry)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == PATH:
            return metrics(environ, start_response)  # type: ignore[no-any-return]
        status, text = ("200 OK", f"metrics: {PATH}\n") if path == "/" else ("404 Not Found", f"only {PATH}\n")
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [text.encode()]

    return application


def listen(address: str) -> socket.socket:
    """Listen at HOST:PORT, or [HOST]:PORT.

    Raises:
        UsageError: that is no address.
        SetupError: it cannot be had.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise UsageError(f"{address!r} is no address to listen at", f"HOST:PORT, such as {ADDRESS}")
    try:
        family, *_rest, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        return socket.create_server(place[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SetupError(f"cannot listen at {address}: {error.strerror or error}", "choose another: --listen") from None


def serve(listener: socket.socket, registry: CollectorRegistry) -> None:
    """Answer until SIGTERM or SIGINT."""
    server = MetricsServer(listener, registry)
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        server.serve_forever(poll_interval=_IDLE_S)
    except KeyboardInterrupt:
        log.info("stopped")
    finally:
        listener.close()


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt
