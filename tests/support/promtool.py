"""promtool, out of Debian's package `prometheus`: unpacked into the cache folder and not installed, so that no service
is started on this machine.

python -m tests.support.promtool    (make promtool) fetches it if it is not there
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

from schedagent.core.errors import SetupError
from schedagent.core.process import proc
from schedagent.core.process.making import exit_status
from schedagent.core.settings import Settings, load_settings, writable
from verifier.microvm.apt import PrivateApt, distribution_codename, distribution_sources, read_sources

PACKAGE = "prometheus"
log = logging.getLogger(__name__)


def promtool(settings: Settings) -> Path:
    """Return the program; raise SetupError if it was not fetched."""
    path = place(settings)
    if not path.is_file():
        raise SetupError(f"promtool is not in {path.parent}", "run: make promtool")
    return path


def place(settings: Settings) -> Path:
    """Where it is, or will be."""
    return settings.cache_dir / "promtool" / "promtool"


def fetch(settings: Settings) -> Path:
    """Have promtool in the cache folder; raise SetupError if that fails, with nothing left behind."""
    path = place(settings)
    if path.is_file():
        return path
    apt = PrivateApt(settings.cache_dir / "apt-promtool", distribution_sources(read_sources(), distribution_codename()))
    apt.update()
    log.info("downloading promtool")
    with tempfile.TemporaryDirectory(dir=writable(path.parent), prefix=".partial-") as folder:
        [package] = apt.download([PACKAGE], Path(folder))
        done = proc.run(["dpkg-deb", "-x", package, f"{folder}/tree"], timeout_s=300)
        if done.returncode != 0:
            raise SetupError(f"cannot unpack {package.name}: {done.stderr.decode(errors='replace').strip()}")
        Path(folder, "tree/usr/bin/promtool").rename(path)
    return path


def main() -> int:
    """Entry for make."""
    return exit_status(lambda: fetch(load_settings()))


if __name__ == "__main__":
    sys.exit(main())
