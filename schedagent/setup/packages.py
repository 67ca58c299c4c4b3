"""The system packages schedagent needs, by their Debian names, and their installation.

`schedagent setup` goes by this, and so does `make setup`, which runs this module before the virtual environment exists:
standard library only. On Debian, packages that the release carries in a version too old come from its backports. If
nothing is missing, no package manager is touched.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from schedagent.core.errors import SetupError
from schedagent.core.installation import InstalledBy, this_installation
from schedagent.core.process import proc
from schedagent.core.process.making import exit_status
from schedagent.core.settings import Settings, load_settings, writable
from schedagent.setup.distributions import Distribution, this_distribution
from verifier.microvm.apt import (
    PrivateApt,
    debian_mirror,
    distribution_codename,
    distribution_sources,
    last_words,
    read_sources,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Requirement:
    """A system package.

    Args:
        package: its name on Debian.
        minimum: the oldest upstream version that will do; empty: any.
        only_for_checkout: building, formatting and the demo need it, an installed schedagent does not.
    """

    package: str
    minimum: str = ""
    only_for_checkout: bool = False

    def met_by(self, version: str) -> bool:
        """Whether a package or program version is new enough."""
        return version_numbers(version) >= version_numbers(self.minimum)


REQUIRED = (
    Requirement("qemu-system-x86", "9.0"),  # first with mapped-ram migration, which the snapshots need
    Requirement("clang-19", "19"),
    Requirement("clang-format-19", "19", only_for_checkout=True),
    Requirement("libbpf1", "1.4"),  # first that handles a struct_ops link as we use it
    Requirement("libbpf-dev", "1.4"),
    Requirement("bpftool", "7.4"),
    Requirement("bubblewrap", "0.8"),  # first with --disable-userns
    Requirement("gcc", only_for_checkout=True),
    Requirement("libc6-dev"),
    Requirement("make", only_for_checkout=True),
    Requirement("util-linux"),
)
LINTERS = (Requirement("lintian"), Requirement("mandoc"), Requirement("groff-base"), Requirement("shellcheck"))
"""What `make check` needs besides; nobody else does."""

_INSTALL_TIMEOUT_S = 1800.0


def requirement(package: str) -> Requirement:
    """Return the entry of REQUIRED for `package`."""
    return next(entry for entry in REQUIRED if entry.package == package)


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the leading dotted numbers of a version, Debian's epoch left out: ``1:10.0.2+ds-2`` is (10, 0, 2)."""
    match = re.match(r"(?:[0-9]+:)?([0-9]+(?:\.[0-9]+)*)", version)
    return tuple(int(part) for part in match.group(1).split(".")) if match else ()


def needed_here() -> list[Requirement]:
    """Return what the copy that runs needs."""
    checkout = this_installation().by is InstalledBy.CHECKOUT
    return [entry for entry in REQUIRED if checkout or not entry.only_for_checkout]


def missing_packages(distribution: Distribution, wanted: Sequence[Requirement]) -> list[Requirement]:
    """Return those of `wanted` that are not installed, or too old as far as a package's version shows it."""
    present = distribution.installed([name for entry in wanted for name in distribution.packages(entry.package)])

    def met(entry: Requirement, name: str) -> bool:
        return name in present and (not distribution.versions_are_upstream or entry.met_by(present[name]))

    return [entry for entry in wanted if not all(met(entry, name) for name in distribution.packages(entry.package))]


def install_commands(settings: Settings, distribution: Distribution, wanted: Sequence[Requirement]) -> list[list[str]]:
    """Return the commands, to be run as root, that install `wanted`.

    Raises:
        SetupError: Debian's mirror is out of reach, or has no version that will do.
    """
    if platform.freedesktop_os_release().get("ID") == "debian":
        return _with_backports(settings.cache_dir / "apt-packages", wanted)
    names = dict.fromkeys(name for entry in wanted for name in distribution.packages(entry.package))
    return [[*distribution.install, *names]]


def _with_backports(folder: Path, wanted: Sequence[Requirement]) -> list[list[str]]:
    """Return the commands for Debian, whose releases have some packages too old; fetches its lists into `folder`."""
    codename = distribution_codename()
    machine_sources = read_sources()
    mirror = debian_mirror(machine_sources, codename)
    sources = distribution_sources(machine_sources, codename)
    apt = PrivateApt(folder, sources)
    apt.update()
    if any(_choose(apt, entry) is None for entry in wanted):
        apt = PrivateApt(folder, [*sources, replace(mirror, suites=(f"{codename}-backports",), components=("main",))])
        apt.update()
    by_suite: dict[str, list[str]] = {}
    for entry in wanted:
        suite = _choose(apt, entry)
        if suite is None:
            raise SetupError(
                f"{codename} and its backports have no {entry.package} >= {entry.minimum or 'any version'}"
            )
        target = suite if suite.endswith("-backports") else ""
        by_suite.setdefault(target, []).append(entry.package)
    return [apt.install_command(packages, suite) for suite, packages in sorted(by_suite.items())]


def _choose(apt: PrivateApt, entry: Requirement) -> str | None:
    """Return the suite to take a package from: the release itself if it will do, else backports."""
    suites = [suite for version, suite in apt.versions(entry.package) if entry.met_by(version)]
    return min(suites, key=lambda suite: suite.endswith("-backports"), default=None)


def install(settings: Settings, distribution: Distribution, wanted: Sequence[Requirement]) -> None:
    """Install packages: this user is root.

    Raises:
        SetupError: the package manager failed, or what it installed will not do.
    """
    for command in install_commands(settings, distribution, wanted):
        run_as_root(command)
    still = missing_packages(distribution, wanted)
    if still:
        names = " ".join(f"{entry.package} {entry.minimum}".strip() for entry in still)
        raise SetupError(f"the package manager succeeded, but these are still missing or too old: {names}")


def run_as_root(command: Sequence[str]) -> None:
    """Run a command as root, through sudo if this user is another.

    Raises:
        SetupError: there is no sudo (the hint is the command to run), or the command failed, with its last words.
    """
    if os.geteuid() != 0:
        if shutil.which("sudo") is None:
            raise SetupError(
                "packages are missing and this user cannot install them", f"run as root: {shlex.join(command)}"
            )
        command = ["sudo", *command]
    log.info("running: %s", shlex.join(command))
    done = proc.run(command, timeout_s=_INSTALL_TIMEOUT_S)
    if done.returncode != 0:
        raise SetupError(
            f"installing packages failed:\n{last_words(done)}",
            f"check the network and the disk, then run again; by hand: {shlex.join(command)}",
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Install the system packages that a checkout lacks (for make); return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m schedagent.setup.packages", description=main.__doc__)
    parser.add_argument("--linters", action="store_true", help="those that check the package and its manual pages")
    linters = parser.parse_args(arguments).linters
    own_python = [Requirement("python3-venv")] if Path(sys.executable).is_relative_to("/usr/bin") else []

    def step() -> None:
        settings = load_settings()
        writable(settings.cache_dir)  # all of set-up goes there: better fail now than half-way
        distribution = this_distribution()
        wanted = missing_packages(distribution, LINTERS if linters else [*needed_here(), *own_python])
        if wanted:
            install(settings, distribution, wanted)

    return exit_status(step)


if __name__ == "__main__":
    sys.exit(main())
