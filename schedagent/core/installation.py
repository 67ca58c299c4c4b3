"""How this copy of schedagent was installed, and so which command gets what it lacks.

A checkout has a Makefile that sets everything up. A Debian package and `make install` bring a virtual environment of
their own, /usr/lib/schedagent/venv or /usr/local/lib/schedagent/venv; pip, pipx and uv make one. Those are set up by
`schedagent setup`.
"""

from __future__ import annotations

import functools
import shlex
import shutil
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

PROGRAM = "schedagent"

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

    def command(self, *words: str) -> str:
        """Return the command line that calls this copy with these words."""
        return shlex.join([*self._program(), *words])

    def how_to_set_up(self) -> str:
        """Return how to get the programs and libraries of the system that this copy needs."""
        return f"run: {self._make('setup') if self.by is InstalledBy.CHECKOUT else self.command('setup')}"

    def how_to_install_program(self, program: str) -> str:
        """Return how to install a program, which may be named by its path."""
        known = Path(program).name in PACKAGE_OF
        return self.how_to_set_up() if known else "install it, or check its name and PATH"

    def how_to_get_kernel(self, release: str = "") -> str:
        """Return how to get a kernel for the micro-VM.

        Args:
            release: which one (uname -r); empty: the newest.
        """
        if self.by is InstalledBy.CHECKOUT:
            return f"run: {self._make('kernel', *([f'KERNEL={release}'] if release else []))}"
        return f"run: {self.command('kernels', 'fetch', *([release] if release else []))}"

    def how_to_use_kernel(self) -> str:
        """Return how to give the micro-VM a kernel that lies on this machine."""
        return f"run: {self.command('kernels', 'use', 'PATH')}"

    def how_to_restore_libraries(self) -> str:
        """Return how to get the Python libraries in the versions that were tested."""
        return {
            InstalledBy.CHECKOUT: f"run: {self._make('setup')}",
            InstalledBy.DEBIAN: "install the package again: apt install --reinstall ./schedagent_VERSION.deb",
            InstalledBy.MAKE_INSTALL: "run make install again, in the checkout it was installed from",
            InstalledBy.PIP: "the tested versions are in the sources: pip install -r requirements.lock",
        }[self.by]

    def _make(self, *words: str) -> str:
        here = [] if _is_working_directory(self.root) else ["-C", str(self.root)]
        return shlex.join(["make", *here, *words])

    def _program(self) -> list[str]:
        """How this copy is called: by its name if PATH leads to it, else by its path, else as a module."""
        script = self.python.with_name(PROGRAM)
        if not script.is_file():
            return [str(self.python), "-m" if self.by is InstalledBy.PIP else "-Im", PROGRAM]
        on_path = shutil.which(PROGRAM)
        return [PROGRAM] if on_path and Path(on_path).resolve() == script.resolve() else [str(script)]


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
