# SPDX-License-Identifier: GPL-2.0-only
"""`make deb`: a Debian package of what `make install` installs, put together by dpkg-deb.

A binary package for one's own machines and not for the archive: it carries its Python libraries, like the virtual
environment it is made of.
"""

from __future__ import annotations

import argparse
import email.utils
import gzip
import hashlib
import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy.setup import manuals
from deploy.setup.environment import MINOR, ROOT
from deploy.setup.installation import STATE, Entry, Place, entries, install
from schedagent import __version__
from schedagent.core.errors import SetupError
from schedagent.core.process import proc
from schedagent.core.process.making import exit_status
from schedagent.setup.packages import REQUIRED, Requirement, requirement

log = logging.getLogger(__name__)

SCRIPTS = ROOT / "deploy" / "debian"
PREFIX = Path("/usr")
MAINTAINER = "schedagent <root@localhost>"
MAINTAINER_SCRIPTS = ("postinst", "postrm", "prerm")
RUN_TIME_LIBRARIES = ("libc6", "libgcc-s1", "libstdc++6", "zlib1g")
"""What compiled Python libraries take from the system, whoever built them (PEP 600)."""
UNCOMPRESSED = ("uses-no-compression-for-control-tarball", "uses-no-compression-for-data-tarball")
"""What lintian says of each package that was made in haste."""
COPYRIGHT = """Copyright (C) 2026 the authors of schedagent.
It is licensed under version 2 of the GNU General Public License.
On Debian systems, its text is in /usr/share/common-licenses/GPL-2.

Below /usr/lib/schedagent/venv are libraries of others; the licence of each is in its .dist-info folder.
"""


def build(output: Path, *, bytecode: bool = True, compressed: bool = True) -> Path:
    """Make the package and return its path.

    Args:
        output: folder to write it into.
        bytecode: compile the modules.
        compressed: with xz; else not at all, for a machine that has to be quick.

    Raises:
        SetupError: dpkg-deb is not there, or refuses.
    """
    output.mkdir(parents=True, exist_ok=True)
    package = output / f"schedagent_{__version__}_{_architecture()}.deb"
    with tempfile.TemporaryDirectory(dir=output) as folder:
        root = Path(folder) / "root"
        place = Place(PREFIX, root)
        install(place, bytecode=bytecode, manifest=False)
        _write_documents(root)
        _write_control(root, entries(place))
        compression = ["-Zxz", "-z1"] if compressed else ["-Znone"]
        words = ["dpkg-deb", "--root-owner-group", *compression, "--build", str(root), str(package)]
        done = proc.run(words, timeout_s=900)
        shutil.rmtree(root)
    if done.returncode != 0:
        raise SetupError(f"dpkg-deb: {done.stderr.decode(errors='replace').strip()}")
    return package


def lint(package: Path) -> None:
    """Have lintian look for errors in a package that is not compressed; raise SetupError with what it found."""
    done = proc.run(["lintian", "--suppress-tags", ",".join(UNCOMPRESSED), "--fail-on=error", package], timeout_s=900)
    if done.returncode != 0:
        raise SetupError(f"lintian refuses {package}:\n{done.stdout.decode()}{done.stderr.decode()}".strip())


def control(installed_kib: int, architecture: str) -> str:
    """Return the control file.

    schedagentd needs Python and libbpf; what else set-up installs is for verifying, which another machine can do.
    """
    needed = [f"python{MINOR}", _relation(requirement("libbpf1")), "systemd", *RUN_TIME_LIBRARIES]
    others = {"libbpf1", "util-linux"}  # needed; in every Debian
    useful = [_relation(entry) for entry in REQUIRED if not entry.only_for_checkout and entry.package not in others]
    return (
        f"Package: schedagent\nVersion: {__version__}\nArchitecture: {architecture}\n"
        f"Section: admin\nPriority: optional\nMaintainer: {MAINTAINER}\n"
        f"Installed-Size: {installed_kib}\nDepends: {', '.join(needed)}\nRecommends: {', '.join(useful)}\n"
        "Description: finds, proves and runs a better CPU scheduling policy\n"
        " schedagent observes a workload, makes sched_ext policies for it, proves them in\n"
        " a virtual machine and compares them with the default scheduler. schedagentd\n"
        " runs what was verified on this machine, and takes it away when it does harm.\n"
    )


def _write_documents(root: Path) -> None:
    """Write what Debian wants of every package: copyright, changelog, and which of lintian's errors are none here."""
    changelog = (
        f"schedagent ({__version__}) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n"
        f" -- {MAINTAINER}  {email.utils.format_datetime(manuals.changed())}\n"
    )
    for path, content in {
        "doc/schedagent/copyright": COPYRIGHT.encode(),
        "doc/schedagent/changelog.gz": gzip.compress(changelog.encode(), mtime=0),
        "lintian/overrides/schedagent": (SCRIPTS / "lintian-overrides").read_bytes(),
    }.items():
        (root / "usr/share" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "usr/share" / path).write_bytes(content)


def _write_control(root: Path, wanted: Sequence[Entry]) -> None:
    folder = root / "DEBIAN"
    sums, size = [], 0
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            size += -(-len(content) // 1024)
            sums.append(f"{hashlib.md5(content, usedforsecurity=False).hexdigest()}  {path.relative_to(root)}\n")
    folder.mkdir()
    (folder / "md5sums").write_text("".join(sums))
    (folder / "control").write_text(control(size, _architecture()))
    (folder / "conffiles").write_text("".join(f"{entry.path}\n" for entry in wanted if entry.configuration))
    for name, text in maintainer_scripts(wanted):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def maintainer_scripts(wanted: Sequence[Entry]) -> Iterator[tuple[str, str]]:
    """Yield each script's name and text, with the names of all that is installed filled in."""
    files: dict[str, list[str]] = {}
    for entry in wanted:
        files.setdefault(entry.path.parent.name, []).append(entry.path.name)
    units = files["system"]
    words = {
        "@SYSUSERS@": files["sysusers.d"],
        "@TMPFILES@": files["tmpfiles.d"],
        "@UNITS@": units,
        "@SERVICES@": [unit for unit in units if unit.endswith(".service")],
        "@STATE@": [str(path) for path in STATE],
    }
    for name in MAINTAINER_SCRIPTS:
        text = (SCRIPTS / name).read_text()
        for mark, names in words.items():
            text = text.replace(mark, " ".join(names))
        yield name, text


def _relation(wanted: Requirement) -> str:
    """Say it as a package relation; the epoch is the one of the version that is installed here."""
    if not wanted.minimum:
        return wanted.package
    shown = proc.run(["dpkg-query", "-W", "-f", "${Version}", wanted.package], timeout_s=30).stdout.decode()
    epoch = f"{shown.partition(':')[0]}:" if ":" in shown else ""
    return f"{wanted.package} (>= {epoch}{wanted.minimum})"


def _architecture() -> str:
    return proc.run(["dpkg", "--print-architecture"], timeout_s=30).stdout.decode().strip()


def main(words: Sequence[str] | None = None) -> int:
    """Entry for make; returns the exit status."""
    parser = argparse.ArgumentParser(prog="package", description=__doc__)
    parser.add_argument("output", type=Path, help="folder for the package")
    parser.add_argument("--lint", action="store_true", help="make it quickly, and have lintian look for errors")
    chosen = parser.parse_args(words)
    output: Path = chosen.output

    def step() -> None:
        if chosen.lint:
            lint(build(output, bytecode=False, compressed=False))
            return
        package = build(output)
        log.info("%s: %d MiB; to install it: apt install %s", package, package.stat().st_size >> 20, package.absolute())

    return exit_status(step)


if __name__ == "__main__":
    sys.exit(main())
