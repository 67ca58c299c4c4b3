"""What the system packages that we need are called, and how they are listed and installed, on each distribution.

Names and commands of Debian are tried by our tests and by CI; those of the others have not been run. Standard library
only: this runs before the virtual environment exists.
"""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from schedagent.core.errors import SetupError
from schedagent.core.process import proc


@dataclass(frozen=True)
class Distribution:
    """A distribution and those like it.

    Args:
        name: for messages.
        ids: what ID or ID_LIKE of os-release(5) is.
        query: command that prints name and version of each package, and, if it may be another, the state installed.
        install: command that installs packages, to be run as root.
        names: its packages by Debian's name; those that are not listed are called the same.
        versions_are_upstream: versions of packages are those of the programs, so that they can be compared.
    """

    name: str
    ids: frozenset[str]
    query: tuple[str, ...]
    install: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    versions_are_upstream: bool = False

    def packages(self, debian: str) -> tuple[str, ...]:
        """Return what provides the Debian package of this name."""
        return self.names.get(debian, (debian,))

    def installed(self, packages: Sequence[str]) -> dict[str, str]:
        """Return the versions of those packages that are installed, by name."""
        done = proc.run([*self.query, *packages], timeout_s=30)  # it fails if some are not installed
        rows = [line.split(" ") for line in done.stdout.decode().splitlines()]
        return {row[0]: row[1] for row in rows if len(row) == 2 or row[2:] == ["installed"]}


DEBIAN = Distribution(
    "Debian or Ubuntu",
    frozenset({"debian", "ubuntu"}),
    ("dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Status}\\n"),
    ("apt-get", "install", "-y", "--no-install-recommends"),
    versions_are_upstream=True,
)
FEDORA = Distribution(
    "Fedora",
    frozenset({"fedora"}),
    ("rpm", "-q", "--queryformat", "%{NAME} %{VERSION}\\n"),
    ("dnf", "install", "-y"),
    {
        "clang-19": ("clang",),
        "clang-format-19": ("clang-tools-extra",),
        "libbpf1": ("libbpf",),
        "libbpf-dev": ("libbpf-devel",),
        "libc6-dev": ("glibc-devel",),
    },
)
ARCH = Distribution(
    "Arch",
    frozenset({"arch"}),
    ("pacman", "-Q"),
    ("pacman", "-S", "--needed", "--noconfirm"),
    {
        "bpftool": ("bpf",),
        "clang-19": ("clang",),
        "clang-format-19": ("clang",),
        "libbpf1": ("libbpf",),
        "libbpf-dev": ("libbpf",),
        "libc6-dev": ("glibc", "linux-api-headers"),
    },
)
OPENSUSE = Distribution(
    "openSUSE",
    frozenset({"opensuse", "suse"}),
    ("rpm", "-q", "--queryformat", "%{NAME} %{VERSION}\\n"),
    ("zypper", "--non-interactive", "install", "--no-recommends"),
    {
        "clang-19": ("clang",),
        "clang-format-19": ("clang-tools",),
        "libbpf-dev": ("libbpf-devel",),
        "libc6-dev": ("glibc-devel",),
        "qemu-system-x86": ("qemu-x86",),
    },
)
DISTRIBUTIONS = (DEBIAN, FEDORA, ARCH, OPENSUSE)


def this_distribution() -> Distribution:
    """Return the entry for this machine; raise SetupError if it is none of those that we know."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    return distribution_of(release)


def distribution_of(release: Mapping[str, str]) -> Distribution:
    """Return the entry for an os-release file: by its ID, else by the first of ID_LIKE that is known.

    Raises:
        SetupError: there is none.
    """
    for name in (release.get("ID", ""), *shlex.split(release.get("ID_LIKE", ""))):
        for distribution in DISTRIBUTIONS:
            if name in distribution.ids:
                return distribution
    known = ", ".join(distribution.name for distribution in DISTRIBUTIONS)
    raise SetupError(
        f"set-up knows the packages of {known}; this is {release.get('PRETTY_NAME', 'something else')}",
        "install the programs that `schedagent doctor` names by hand",
    )
