"""The Debian packages schedagent needs, and their installation: the first step of `make setup`. Where schedagent came
without a Makefile, `python -m schedagent.setup.packages` does the same.

Packages that the release carries in a version too old come from its backports. If nothing is missing, apt is not
touched. Standard library only: this runs before the virtual environment exists.
"""

from __future__ import annotations

import logging
import os
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
from verifier.microvm.apt import (
    PrivateApt,
    apt_failure,
    debian_mirror,
    distribution_codename,
    distribution_sources,
    read_sources,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Requirement:
    """A Debian package.

    Args:
        package: its name.
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

_INSTALL_TIMEOUT_S = 1800.0


def requirement(package: str) -> Requirement:
    """Return the entry of REQUIRED for `package`."""
    return next(entry for entry in REQUIRED if entry.package == package)


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the leading dotted numbers of a version, Debian's epoch left out: ``1:10.0.2+ds-2`` is (10, 0, 2)."""
    match = re.match(r"(?:[0-9]+:)?([0-9]+(?:\.[0-9]+)*)", version)
    return tuple(int(part) for part in match.group(1).split(".")) if match else ()


def missing_packages(wanted: Sequence[Requirement]) -> list[Requirement]:
    """Return those of `wanted` that are not installed, or too old."""
    present = _installed_versions([entry.package for entry in wanted])
    return [entry for entry in wanted if entry.package not in present or not entry.met_by(present[entry.package])]


def install(settings: Settings, wanted: Sequence[Requirement]) -> None:
    """Install packages, as root or through sudo.

    Raises:
        SetupError: this user may not install packages (the hint is the command to run), or apt failed.
    """
    for command in install_commands(settings.cache_dir / "apt-packages", wanted):
        _run_as_root(command)


def install_commands(folder: Path, wanted: Sequence[Requirement]) -> list[list[str]]:
    """Return the commands, to be run as root, that install `wanted`; fetches the package lists into `folder`."""
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


def _run_as_root(command: Sequence[str]) -> None:
    by_hand = f"run as root: {shlex.join(command)}"
    if os.geteuid() != 0:
        if shutil.which("sudo") is None:
            raise SetupError("Debian packages are missing and this user cannot install them", by_hand)
        command = ["sudo", *command]
    done = proc.run(command, timeout_s=_INSTALL_TIMEOUT_S)
    if done.returncode != 0:
        raise apt_failure("installing packages", done.returncode, done.stderr, command)


def _installed_versions(packages: Sequence[str]) -> dict[str, str]:
    if shutil.which("dpkg-query") is None:
        raise SetupError("set-up installs Debian packages, and this machine has no dpkg", "use Debian 12 or later")
    row = "${Package} ${db:Status-Status} ${Version}\\n"
    done = proc.run(["dpkg-query", "-W", "-f", row, *packages], timeout_s=30)  # status 1: some are unknown
    rows = [line.split() for line in done.stdout.decode().splitlines()]
    return {words[0]: words[2] for words in rows if len(words) == 3 and words[1] == "installed"}


def main() -> int:
    """Install what is missing; return the exit status."""
    return exit_status(_install_missing)


def _install_missing() -> None:
    own_python = (Requirement("python3-venv"),) if Path(sys.executable).is_relative_to("/usr/bin") else ()
    settings = load_settings()
    writable(settings.cache_dir)  # all of set-up goes there: better fail now than half-way
    checkout = this_installation().by is InstalledBy.CHECKOUT
    wanted = missing_packages([*(entry for entry in REQUIRED if checkout or not entry.only_for_checkout), *own_python])
    if not wanted:
        return
    log.info("installing Debian packages: %s", " ".join(entry.package for entry in wanted))
    install(settings, wanted)
    still = missing_packages(wanted)
    if still:
        raise SetupError(f"apt succeeded, but these are still missing: {' '.join(e.package for e in still)}")


if __name__ == "__main__":
    sys.exit(main())
