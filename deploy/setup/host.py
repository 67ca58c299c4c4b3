# SPDX-License-Identifier: GPL-2.0-only
"""What installing and uninstalling does to a running systemd: users, folders, units. Nothing is enabled or started."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from schedagent.core import proc
from schedagent.core.errors import SetupError

log = logging.getLogger(__name__)

PINS = Path("/sys/fs/bpf/schedagent")
SERVICES = ("schedagentd.service", "schedagent-verifier.service", "schedagent.service", "schedagent-metrics.service")
SOCKETS = ("schedagentd.socket", "schedagent-verifier.socket", "schedagent-metrics.socket")


class _HasPath(Protocol):
    @property
    def path(self) -> Path: ...


def after_install(entries: Iterable[_HasPath]) -> None:
    """Make users and folders, tell systemd of the units, and restart what is running already."""
    if not _managed():
        return
    for program, folder in (("systemd-sysusers", "sysusers.d"), ("systemd-tmpfiles", "tmpfiles.d")):
        files = [str(entry.path) for entry in entries if entry.path.parent.name == folder]
        _do([program, *(["--create"] if folder == "tmpfiles.d" else []), *files])
    _do(["systemctl", "daemon-reload"])
    _do(["systemctl", "try-restart", *_known(SERVICES)])
    log.info("to begin: systemctl enable --now %s", " ".join(_known(SOCKETS)))


def before_uninstall() -> None:
    """Stop and disable what runs; what a policy of ours has pinned ends, and with it the policy."""
    if _managed() and (known := _known((*SOCKETS, *SERVICES))):
        _do(["systemctl", "disable", "--now", *known])
    shutil.rmtree(PINS, ignore_errors=True)


def after_uninstall() -> None:
    """Let systemd forget the units."""
    if _managed():
        _do(["systemctl", "daemon-reload"])
        _do(["systemctl", "reset-failed"])


def _managed() -> bool:
    """Whether this is root on a machine that systemd runs (sd_booted(3))."""
    return os.geteuid() == 0 and Path("/run/systemd/system").is_dir()


def _known(units: Iterable[str]) -> list[str]:
    """Those of the units that systemd finds."""
    return [unit for unit in units if proc.run(["systemctl", "cat", unit], timeout_s=30).returncode == 0]


def _do(command: list[str]) -> None:
    done = proc.run(command, timeout_s=120)
    if done.returncode != 0:
        raise SetupError(f"{' '.join(command)}: {done.stderr.decode(errors='replace').strip()}")
