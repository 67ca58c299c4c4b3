"""How this copy of schedagent was installed, and so which command gets what it lacks.

A checkout has a Makefile that sets everything up. A Debian package and `make install` bring a virtual environment of
their own, /usr/lib/schedagent/venv or /usr/local/lib/schedagent/venv, whose programs need Debian packages. pip brings
the Python packages only.
"""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

PACKAGE_OF: Mapping[str, str] = {
    "bpftool": "bpftool",
    "bwrap": "bubblewrap",
    "clang-19": "clang-19",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
}
"""The Debian package of each program we call that is not part of every Debian."""

VENV_ENDS_WITH = ("lib", "schedagent", "venv")
"""Where below their prefix a Debian package and `make install` put the virtual environment."""
MANIFEST = "manifest"
"""`make install` leaves it beside that environment; dpkg keeps a list of its own."""


class InstalledBy(StrEnum):
    """Who put this copy where it is."""

    CHECKOUT = "checkout"
    DEBIAN = "Debian package"
    MAKE_INSTALL = "make install"
    PIP = "pip"
    """Or anything else, such as a source tree without its Makefile."""


@dataclass(frozen=True)
class Installation:
    """One copy of schedagent. Its methods return hints, each with a command that works for this copy.

    Args:
        root: the folder that holds its packages.
        by: how it was installed.
        python: the interpreter that runs it.
    """

    root: Path
    by: InstalledBy
    python: Path

    def how_to_install(self, *packages: str, too_old: bool = False) -> str:
        """Return how to install Debian packages.

        Args:
            packages: their names.
            too_old: they are there, but not in a version that will do, so apt's first choice may not do either.
        """
        if self.by is InstalledBy.CHECKOUT:
            return f"run: {self._make('setup')}"
        if self.by is InstalledBy.PIP:
            return f"run: {self._module('schedagent.setup.packages')}"
        if too_old:
            return f"run as root: {self._module('schedagent.setup.packages')}"
        return f"run as root: apt install {' '.join(packages)}"

    def how_to_install_program(self, program: str) -> str:
        """Return how to install a program, which may be named by its path."""
        package = PACKAGE_OF.get(Path(program).name)
        return self.how_to_install(package) if package else "install it, or check its name and PATH"

    def how_to_get_kernel(self, release: str = "") -> str:
        """Return how to get a kernel for the micro-VM.

        Args:
            release: which one (uname -r); empty: the newest.
        """
        if self.by is InstalledBy.CHECKOUT:
            return f"run: {self._make('kernel', *([f'KERNEL={release}'] if release else []))}"
        return f"run: {self._module('verifier.microvm.kernels', '--fetch', *([release] if release else []))}"

    def how_to_restore_libraries(self) -> str:
        """Return how to get the Python libraries in the versions that were tested."""
        return {
            InstalledBy.CHECKOUT: f"run: {self._make('setup')}",
            InstalledBy.DEBIAN: "install the package again: apt install --reinstall ./schedagent_VERSION.deb",
            InstalledBy.MAKE_INSTALL: "run make install again, in the checkout it was installed from",
            InstalledBy.PIP: "the tested versions are in requirements.lock of the sources: make setup installs them",
        }[self.by]

    def _make(self, *words: str) -> str:
        here = [] if _is_working_directory(self.root) else ["-C", str(self.root)]
        return shlex.join(["make", *here, *words])

    def _module(self, *words: str) -> str:
        isolated = "-m" if self.by is InstalledBy.PIP else "-Im"
        return shlex.join([str(self.python), isolated, *words])


def installation_of(root: Path, python: Path) -> Installation:
    """Return how the copy whose packages are in `root` was installed."""
    if (root / "Makefile").is_file() and (root / "pyproject.toml").is_file():
        return Installation(root, InstalledBy.CHECKOUT, python)
    venv = root.parents[2] if len(root.parents) > 2 else root
    if root.name == "site-packages" and venv.parts[-3:] == VENV_ENDS_WITH:
        by_make = venv.with_name(MANIFEST).is_file()
        return Installation(root, InstalledBy.MAKE_INSTALL if by_make else InstalledBy.DEBIAN, python)
    return Installation(root, InstalledBy.PIP, python)


@functools.cache
def this_installation() -> Installation:
    """Return how the copy that runs was installed."""
    return installation_of(Path(__file__).resolve().parents[2], Path(sys.executable))


def _is_working_directory(folder: Path) -> bool:
    try:
        return Path.cwd() == folder
    except OSError:  # it was removed
        return False
