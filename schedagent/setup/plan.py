"""`schedagent setup`: what this machine lacks for the main job, the commands that bring it, and running them."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass
from typing import Any

from schedagent.core.errors import SetupError, UsageError
from schedagent.core.settings import Settings, writable
from schedagent.setup.distributions import Distribution, this_distribution
from schedagent.setup.packages import Requirement, install, install_commands, missing_packages, needed_here
from verifier.microvm.kernel_download import fetch_kernel
from verifier.microvm.kernels import default_kernel


@dataclass(frozen=True)
class Plan:
    """What set-up has to do on this machine.

    Args:
        distribution: whose packages are installed; None if it is not known.
        missing: packages that are not installed, or too old.
        commands: what installs them, to be run as root.
        kernel: release of the kernel that the micro-VM boots; empty if there is none.
        obstacles: what keeps set-up from knowing what to do.
    """

    distribution: Distribution | None
    missing: tuple[Requirement, ...]
    commands: tuple[tuple[str, ...], ...]
    kernel: str
    obstacles: tuple[SetupError, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether nothing is missing, as far as set-up can know."""
        return not (self.missing or self.obstacles) and bool(self.kernel)

    @property
    def packages(self) -> tuple[str, ...]:
        """What is missing, by the distribution's names."""
        if self.distribution is None:
            return ()
        return tuple(name for entry in self.missing for name in self.distribution.packages(entry.package))

    def to_json(self) -> dict[str, Any]:
        """Return the plan for machines."""
        return {
            "done": self.is_done,
            "distribution": self.distribution.name if self.distribution else "",
            "packages": list(self.packages),
            "commands": [list(command) for command in self.commands],
            "commands_need_root": not is_root(),
            "kernel": self.kernel,
            "obstacles": [{"message": error.message, "hint": error.hint} for error in self.obstacles],
        }


def make_plan(settings: Settings) -> Plan:
    """Find out what is missing; changes nothing but the package lists in the cache folder.

    Raises:
        SetupError: the cache folder cannot be written.
    """
    writable(settings.cache_dir)
    distribution, missing, commands, obstacles = None, [], [], []
    try:
        distribution = this_distribution()
        missing = missing_packages(distribution, needed_here())
        commands = install_commands(settings, distribution, missing) if missing else []
    except SetupError as error:
        obstacles.append(error)
    try:
        kernel = default_kernel(settings).release
    except (SetupError, UsageError):
        kernel = ""
    return Plan(distribution, tuple(missing), tuple(map(tuple, commands)), kernel, tuple(obstacles))


def carry_out(settings: Settings, plan: Plan) -> list[SetupError]:
    """Do what this user may do of a plan; return what failed.

    Packages are installed by root only: without root, they are left alone, and the rest is done.
    """
    failures = []
    if plan.distribution and plan.missing and is_root():
        try:
            install(settings, plan.distribution, plan.missing)
        except SetupError as error:
            failures.append(error)
    if not plan.kernel:
        try:
            fetch_kernel(settings, settings.kernel_release or None)
        except SetupError as error:
            failures.append(error)
    return failures


def is_root() -> bool:
    """Whether this user may install packages."""
    return os.geteuid() == 0


def root_command(plan: Plan) -> str:
    """Return the commands of a plan as one line to paste, with sudo if that is what this user has and needs."""
    sudo = ["sudo"] if not is_root() and shutil.which("sudo") else []
    return " && ".join(shlex.join([*sudo, *command]) for command in plan.commands)
