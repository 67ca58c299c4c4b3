# SPDX-License-Identifier: GPL-2.0-only
"""What installing and uninstalling does to a running systemd: users, folders, units. Nothing is enabled or started."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from schedagent.core.errors import SetupError
from schedagent.core.process import proc

log = logging.getLogger(__name__)

PINS = Path("/sys/fs/bpf/schedagent")
"""What keeps policies loaded without schedagentd."""
SOCKETS = Path("/run/schedagent")
"""systemd made it for schedagentd's socket, and leaves it."""


def after_install(files: Iterable[Path]) -> None:
    """Make users and folders, have systemd read the units, and restart what is running already.

    Args:
        files: what was installed.
    """
    if not _managed():
        return
    wanted = sorted(files)
    for program, folder in ((["systemd-sysusers"], "sysusers.d"), (["systemd-tmpfiles", "--create"], "tmpfiles.d")):
        if named := [str(path) for path in wanted if path.parent.name == folder]:
            _do([*program, *named])
    _do(["systemctl", "daemon-reload"])
    if services := [unit for unit in _units(wanted) if unit.endswith(".service")]:
        _do(["systemctl", "try-restart", *services])
    startable = [path.name for path in wanted if path.name in _units(wanted) and "[Install]" in path.read_text()]
    log.info("to begin: systemctl enable --now %s", " ".join(startable))


def before_uninstall(files: Iterable[Path]) -> None:
    """Stop and disable what runs; what is pinned goes, and with it the last policy of ours."""
    if _managed() and (units := _units(files)):
        _do(["systemctl", "disable", "--now", *units])
    if PINS.exists():
        shutil.rmtree(PINS)
    with suppress(OSError):  # it is not there, or somebody has something of his own in it
        SOCKETS.rmdir()


def after_uninstall() -> None:
    """Let systemd forget the units."""
    if _managed():
        _do(["systemctl", "daemon-reload"])


def _managed() -> bool:
    """Whether this is root on a machine that systemd runs (sd_booted(3))."""
    return os.geteuid() == 0 and Path("/run/systemd/system").is_dir()


def _units(files: Iterable[Path]) -> list[str]:
    return sorted(path.name for path in files if path.parent.name == "system" and path.parent.parent.name == "systemd")


def _do(command: list[str]) -> None:
    done = proc.run(command, timeout_s=120)
    if done.returncode != 0:
        raise SetupError(f"{' '.join(command)}: {done.stderr.decode(errors='replace').strip()}")
