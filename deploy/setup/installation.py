# SPDX-License-Identifier: GPL-2.0-only
"""`make install`, `make uninstall` and `make purge`: all of schedagent into a system or a folder, and out again.

What is installed is a list of entries made from this checkout (`entries`), and a virtual environment (`environment`).
A manifest beside the environment lists the files and folders that were made; uninstalling removes those. Configuration
that is there is never overwritten, and goes only with `purge`, like everything that schedagent wrote at run time.
"""

from __future__ import annotations

import argparse
import gzip
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.setup import completions, environment, host, manuals
from deploy.setup.environment import ROOT
from schedagent.core.errors import SetupError
from schedagent.core.process.making import exit_status

log = logging.getLogger(__name__)

UNITS = ROOT / "deploy" / "systemd"
UNIT_KINDS = (".service", ".socket", ".timer", ".path", ".target")
DATA_KINDS = (".json", ".yml", ".md")
CONFIGURATION = Path("/etc/schedagent")
STATE = tuple(
    Path(name)
    for name in (
        "/etc/schedagent",
        "/var/lib/schedagentd",
        "/var/lib/schedagent",
        "/var/lib/schedagent-verifier",
        "/var/cache/schedagent",
        "/var/cache/schedagent-verifier",
    )
)
"""What purging removes besides: configuration, trusted keys, records, the signing key, kernels."""
PROGRAMS = {"schedagent": "bin", "schedagentd": "sbin", "schedagent-observer": "sbin"}


@dataclass(frozen=True)
class Place:
    """Where things go.

    Args:
        prefix: absolute path below which everything but configuration lies.
        destdir: folder that stands for the root of the target; empty: this machine itself.
        python: interpreter of the target.
    """

    prefix: Path = Path("/usr/local")
    destdir: Path | None = None
    python: Path = environment.TARGET_PYTHON

    @property
    def venv(self) -> Path:
        """The virtual environment, as the target sees it."""
        return self.prefix / "lib" / "schedagent" / "venv"

    @property
    def manifest(self) -> Path:
        """The list of what was made, as the target sees it: lines of a kind (f, d), a space and a path."""
        return self.prefix / "lib" / "schedagent" / "manifest"

    def here(self, path: Path) -> Path:
        """Where a path of the target is while it is being installed."""
        return self.destdir / path.relative_to("/") if self.destdir else path


@dataclass(frozen=True)
class Entry:
    """One file of the target: its content, or where it points to; configuration is kept if it is there."""

    path: Path
    content: bytes = b""
    link: str = ""
    configuration: bool = False


def entries(place: Place) -> list[Entry]:
    """Return all files but those of the virtual environment."""
    below = place.prefix
    files = [
        Entry(below / folder / name, link=os.path.relpath(place.venv / "bin" / name, below / folder))
        for name, folder in PROGRAMS.items()
    ]
    for source in sorted(UNITS.iterdir()):
        files += _of_systemd(place, source)
    files += [
        Entry(below / "share/doc/schedagent" / source.name, source.read_bytes()) for source in sorted(ROOT.glob("*.md"))
    ]
    files += [
        Entry(below / "share/man" / f"man{name[-1]}" / f"{name}.gz", gzip.compress(text.encode(), mtime=0))
        for name, text in manuals.pages().items()
    ]
    files += [Entry(path, completions.script(shell).encode()) for shell, path in completions.files(below).items()]
    for folder in (ROOT / "deploy" / "prometheus", ROOT / "deploy" / "grafana"):
        files += [
            Entry(below / "share/schedagent" / folder.name / source.name, source.read_bytes())
            for source in sorted(folder.glob("*"))
            if source.suffix in DATA_KINDS and not source.name.endswith(".tests.yml")
        ]
    return files


def _of_systemd(place: Place, source: Path) -> list[Entry]:
    """Units call the programs by their path, which is below /usr in the checkout."""
    text = source.read_text()
    if source.suffix in UNIT_KINDS:
        text = text.replace("=/usr/bin/schedagent", f"={place.prefix}/bin/schedagent")
        text = text.replace("=/usr/sbin/schedagent", f"={place.prefix}/sbin/schedagent")
        text = text.replace("file:///usr/share/doc", f"file://{place.prefix}/share/doc")
        return [Entry(place.prefix / "lib/systemd/system" / source.name, text.encode())]
    if source.suffix in (".sysusers", ".tmpfiles"):
        folder = place.prefix / "lib" / f"{source.suffix[1:]}.d"
        return [Entry(folder / f"{source.stem}.conf", text.encode())]
    if source.suffix == ".toml":
        return [Entry(CONFIGURATION / source.name, text.encode(), configuration=True)]
    raise SetupError(
        f"{source} is of no kind that is installed", f"{', '.join(UNIT_KINDS)}, .sysusers, .tmpfiles, .toml"
    )


def install(place: Place, *, bytecode: bool = True, manifest: bool = True) -> None:
    """Install all, or bring an older installation up to date; what that one had and this one lacks is removed.

    Args:
        bytecode: compile the modules.
        manifest: write the list that uninstalling needs.

    Raises:
        SetupError: the interpreter does not fit, or the target cannot be written.
    """
    if place.destdir is None or place.here(place.python).exists():
        environment.check_python(place.here(place.python))
    before = _read_manifest(place)
    made = _Made()
    made.folder(place.here(place.venv.parent))
    _replace_environment(place, bytecode)
    wanted = entries(place)
    for entry in wanted:
        made.write(place.here(entry.path), entry)
    files = {entry.path for entry in wanted if not entry.configuration}
    folders = _folders(before) | {_of_target(place, folder) for folder in made.folders}
    for path in _files(before) - files:
        place.here(path).unlink(missing_ok=True)
    if manifest:
        lines = [f"f {path}" for path in sorted(files)] + [f"d {path}" for path in sorted(folders)]
        text = "".join(f"{line}\n" for line in lines)
        made.write(place.here(place.manifest), Entry(place.manifest, text.encode()))


def uninstall(place: Place) -> None:
    """Remove what was installed; state and configuration stay.

    Raises:
        SetupError: nothing is installed there, or not by `make install`.
    """
    manifest = _read_manifest(place)
    if not manifest:
        raise SetupError(f"there is no {place.here(place.manifest)}", "name the PREFIX and DESTDIR of make install")
    if place.here(place.venv).exists():
        shutil.rmtree(place.here(place.venv))
    for path in (*_files(manifest), place.manifest):
        place.here(path).unlink(missing_ok=True)
    for folder in sorted(_folders(manifest), reverse=True):
        _remove_empty(place.here(folder))


def purge(place: Place) -> None:
    """Remove state and configuration, too."""
    for path in map(place.here, STATE):
        if path.exists():
            shutil.rmtree(path)
    if place.destdir:
        for folder in ("/etc", "/var/lib", "/var/cache", "/var"):
            _remove_empty(place.here(Path(folder)))


def installed(place: Place) -> set[Path]:
    """Return the files that were installed, as the target sees them; none if nothing is."""
    return _files(_read_manifest(place))


class _Made:
    """Writes files, and remembers the folders that had to be made."""

    def __init__(self) -> None:
        self.folders: list[Path] = []

    def folder(self, path: Path) -> None:
        if not path.is_dir():
            self.folder(path.parent)
            path.mkdir()
            path.chmod(0o755)
            self.folders.append(path)

    def write(self, path: Path, entry: Entry) -> None:
        """Write beside the place and rename, so that nobody sees half a file."""
        if entry.configuration and path.exists():
            return
        self.folder(path.parent)
        beside = path.with_name(f".{path.name}.new")
        beside.unlink(missing_ok=True)
        if entry.link:
            beside.symlink_to(entry.link)
        else:
            beside.write_bytes(entry.content)
            beside.chmod(0o644)
        beside.rename(path)


def _replace_environment(place: Place, bytecode: bool) -> None:
    venv = place.here(place.venv)
    new, old = venv.with_name("venv.new"), venv.with_name("venv.old")
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir()
    environment.build(new, place.venv, place.python, bytecode=bytecode)
    if venv.exists():
        venv.rename(old)
    new.rename(venv)
    shutil.rmtree(old, ignore_errors=True)


def _read_manifest(place: Place) -> list[tuple[str, Path]]:
    try:
        lines = place.here(place.manifest).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [(line[:1], Path(line[2:])) for line in lines]


def _files(manifest: Sequence[tuple[str, Path]]) -> set[Path]:
    return {path for kind, path in manifest if kind == "f"}


def _folders(manifest: Sequence[tuple[str, Path]]) -> set[Path]:
    return {path for kind, path in manifest if kind == "d"}


def _of_target(place: Place, path: Path) -> Path:
    return Path("/") / path.relative_to(place.destdir) if place.destdir else path


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _place(arguments: argparse.Namespace) -> Place:
    prefix = Path(arguments.prefix)
    if not prefix.is_absolute():
        raise SetupError(f"PREFIX={arguments.prefix} is not an absolute path")
    destdir = Path(arguments.destdir).absolute() if arguments.destdir else None
    return Place(prefix, destdir, Path(arguments.python or environment.TARGET_PYTHON))


def _run(arguments: argparse.Namespace) -> None:
    place = _place(arguments)
    try:
        if arguments.action == "install":
            install(place, bytecode=not arguments.no_bytecode)
            if place.destdir is None:
                host.after_install(installed(place))
            return
        if place.destdir is None:
            host.before_uninstall(installed(place))
        if arguments.action == "uninstall" or installed(place):
            uninstall(place)
        if arguments.action == "purge":
            purge(place)
        if place.destdir is None:
            host.after_uninstall()
    except PermissionError as error:
        raise SetupError(f"{error.filename} cannot be written", "run it with sudo, or name a DESTDIR") from None
    except OSError as error:
        raise SetupError(f"{error.filename}: {error.strerror}", "fix that and run it again: it continues") from None


def main(words: Sequence[str] | None = None) -> int:
    """Entry for make; returns the exit status."""
    parser = argparse.ArgumentParser(prog="installation", description=__doc__)
    parser.add_argument("action", choices=("install", "uninstall", "purge"))
    parser.add_argument("--destdir", default="", help="folder that stands for the root of the target")
    parser.add_argument("--prefix", default="/usr/local", help="where everything but configuration goes")
    parser.add_argument("--python", default="", help="the target's interpreter")
    parser.add_argument("--no-bytecode", action="store_true", help="do not compile the modules")
    chosen = parser.parse_args(words)
    return exit_status(lambda: _run(chosen))


if __name__ == "__main__":
    sys.exit(main())
