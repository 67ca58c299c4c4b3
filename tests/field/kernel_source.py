"""tools/sched_ext and its selftests, out of Debian's package of the kernel's source, in the cache folder."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from schedagent.core.errors import SetupError
from schedagent.core.process import proc
from schedagent.core.settings import Settings, writable
from verifier.microvm.apt import PrivateApt, Source, debian_mirror, distribution_codename, read_sources
from verifier.microvm.kernel_download import KERNEL_SUITE

TOOLS = Path("tools/sched_ext")
SELFTESTS = Path("tools/testing/selftests/sched_ext")
_PACKAGE = "linux-source"
_TIMEOUT_S = 600.0
log = logging.getLogger(__name__)


def kernel_source(settings: Settings) -> Path:
    """Return the folder that holds TOOLS and SELFTESTS, fetching it (170 MB, of which 1 MB is kept) if it is not there.

    Raises:
        SetupError: the package cannot be had, or does not hold them.
    """
    place = settings.cache_dir / "field" / "kernel"
    if not place.is_dir():
        with tempfile.TemporaryDirectory(dir=writable(place.parent), prefix=".partial-") as folder:
            _fetch(settings, Path(folder)).rename(place)
    return place


def _fetch(settings: Settings, folder: Path) -> Path:
    mirror = debian_mirror(read_sources(), distribution_codename())
    archive = Source(mirror.uri, (KERNEL_SUITE,), ("main",), mirror.options)
    apt = PrivateApt(settings.cache_dir / "apt-kernel", [archive])
    apt.update()
    release = apt.depends(_PACKAGE)[0]
    log.warning("downloading %s", release)
    [package] = apt.download([release], folder)
    _run("dpkg-deb", "-x", str(package), str(folder / "package"))
    [archived] = folder.glob("package/usr/src/*.tar.xz")
    inside = archived.name.removesuffix(".tar.xz")
    _run("tar", "-xJf", str(archived), "-C", str(folder), f"{inside}/{TOOLS}", f"{inside}/{SELFTESTS}")
    return folder / inside


def _run(*command: str) -> None:
    done = proc.run(command, timeout_s=_TIMEOUT_S)
    if done.returncode != 0:
        raise SetupError(f"{command[0]} failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
