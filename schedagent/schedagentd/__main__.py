"""schedagentd [--config FILE]: begin, reconcile, serve, and end what is not meant to survive."""

from __future__ import annotations

import grp
import logging
import pwd
import sys
from collections.abc import Sequence
from pathlib import Path

from schedagent.core.errors import SchedagentError, UsageError
from schedagent.core.process.listener import activated, group_id, listen
from schedagent.core.process.systemd import Notifier
from schedagent.core.settings import activated_descriptors, service_watch
from schedagent.core.terminal.printable import OneLineFormatter
from schedagent.core.trusted import load_trusted
from schedagent.schedagentd import protection
from schedagent.schedagentd.config import CONFIG, Config, load_config
from schedagent.schedagentd.kernel import HostKernel, Kernel
from schedagent.schedagentd.record import Record
from schedagent.schedagentd.rollout import Rollout
from schedagent.schedagentd.server import Gate, Server

log = logging.getLogger("schedagent.schedagentd")

EXIT_FAILED = 1
EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the program; returns its exit status."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLineFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        config = load_config(_config_path(sys.argv[1:] if arguments is None else arguments))
        for lack in protection.protect():
            log.error("no policy will be loaded, because what is loaded could starve or kill this process: %s", lack)
        serve(config, HostKernel(config.watchdog_ms))
    except UsageError as error:
        log.error("%s", error)
        return EXIT_USAGE
    except SchedagentError as error:
        log.error("%s", error)
        return EXIT_FAILED
    except Exception:  # the boundary of this process: what is not caught would be printed as it is
        log.critical("schedagentd ends by a mistake of its own", exc_info=True)
        return EXIT_FAILED
    return 0


def serve(config: Config, kernel: Kernel) -> None:
    """Be schedagentd until SIGTERM or SIGINT.

    Raises:
        SetupError: another one is there, or the socket cannot be had.
        RecordError: the record cannot be used.
    """
    gate = _gate(config)
    record = Record.open(config.state_dir)
    try:
        handed_over = activated(activated_descriptors())
        listener = handed_over or listen(config.socket, group_id(config.group))
        rollout = Rollout(kernel, record, config, lambda: load_trusted(config.keys_dir))
        notifier = Notifier(*service_watch())
        try:
            rollout.reconcile()
            log.info("in charge: %s", rollout.in_charge)
            Server(listener, rollout, gate, notifier).run()
        finally:
            rollout.stop()
            notifier.close()
            listener.close()
            if handed_over is None:
                config.socket.unlink(missing_ok=True)
    finally:
        record.close()


def _gate(config: Config) -> Gate:
    """Look names up; a group that does not exist admits nobody, a user that does not exist is a mistake."""
    try:
        users = frozenset(pwd.getpwnam(name).pw_uid for name in config.users)
    except KeyError as error:
        raise UsageError(f"users of the configuration: there is no user {error}") from None
    try:
        groups = frozenset({grp.getgrnam(config.group).gr_gid})
    except KeyError:
        log.warning("there is no group %s: only root and the users of the configuration may ask", config.group)
        groups = frozenset()
    return Gate(groups, users)


def _config_path(arguments: Sequence[str]) -> Path:
    match list(arguments):
        case []:
            return CONFIG
        case ["--config", path]:
            if not Path(path).exists():
                raise UsageError(f"there is no configuration {path}")
            return Path(path)
    raise UsageError(f"unknown arguments: {' '.join(arguments)}", "schedagentd [--config FILE]")


if __name__ == "__main__":
    raise SystemExit(main())
