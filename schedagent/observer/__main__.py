"""schedagent-observer: listen, trace on demand, and end when nobody asks any more."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from schedagent.core.errors import SchedagentError, UsageError
from schedagent.core.process.listener import Admission, activated, group_id, listen
from schedagent.core.process.systemd import Notifier
from schedagent.core.settings import activated_descriptors, service_watch
from schedagent.core.terminal.printable import OneLineFormatter
from schedagent.observer.server import Server
from schedagent.observing.measure import observe

log = logging.getLogger("schedagent.observer")

SOCKET = Path("/run/schedagent/observer.sock")
GROUP = "schedagent"
EXIT_FAILED, EXIT_USAGE = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the program; returns its exit status."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLineFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        serve(_socket(sys.argv[1:] if arguments is None else arguments))
    except UsageError as error:
        log.error("%s", error)
        return EXIT_USAGE
    except SchedagentError as error:
        log.error("%s", error)
        return EXIT_FAILED
    return 0


def serve(socket: Path) -> None:
    """Be the observer until SIGTERM or SIGINT, or, started by systemd's socket, until nobody asks any more.

    Raises:
        SetupError: the socket cannot be had.
    """
    passed = activated(activated_descriptors())
    group = group_id(GROUP)
    if group is None:
        log.warning("there is no group %s: only root may ask", GROUP)
    listener = passed or listen(socket, group)
    admission = Admission(groups=frozenset() if group is None else frozenset({group}))
    notifier = Notifier(*service_watch())
    try:
        asyncio.run(Server(listener, admission, observe, notifier, ends_idle=passed is not None).run())
    finally:
        notifier.close()
        listener.close()
        if passed is None:
            socket.unlink(missing_ok=True)


def _socket(arguments: Sequence[str]) -> Path:
    match list(arguments):
        case []:
            return SOCKET
        case ["--socket", path]:
            return Path(path)
    raise UsageError(f"unknown arguments: {' '.join(arguments)}", "schedagent-observer [--socket PATH]")


if __name__ == "__main__":
    raise SystemExit(main())
