"""The disk of the host test: a Debian with systemd and Prometheus, made once by mmdebstrap and kept in the cache.

It is of the release whose Python is the one of our virtual environment, because that is what `make install` copies. The
mirror is that of this machine's apt. Delete <cache>/host-test to have it made of newer packages.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import logging
import os
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from schedagent.core.errors import SetupError
from schedagent.core.process import proc
from schedagent.core.settings import Settings
from schedagent.setup.distributions import DEBIAN
from schedagent.setup.packages import Requirement, install, missing_packages
from verifier.microvm.apt import Source, apt_failure, debian_mirror, distribution_codename, read_sources

log = logging.getLogger(__name__)

RELEASES = {"3.11": "bookworm", "3.13": "trixie"}
"""Debian's release by the version of its Python."""

PACKAGES = ("systemd-sysv", "dbus", "udev", "python3", "prometheus", "procps", "redis-server")
BACKPORTS = ("libbpf1",)
"""schedagentd needs libbpf 1.4, see schedagent.setup.packages."""

TOOLS = (Requirement("mmdebstrap"), Requirement("e2fsprogs"))
SIZE_MIB = 2560
BUILD_LIMIT_S = 600.0

SETTLE = r"""
set -e
cd "$1"
chroot . systemctl disable --quiet prometheus.service prometheus-node-exporter.service redis-server.service \
  apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service 2> /dev/null \
  || true
rm -rf usr/share/doc/* usr/share/man/* usr/share/locale/* usr/bin/promtool
echo host-test > etc/hostname
printf '127.0.0.1 localhost host-test\n' > etc/hosts
"""
"""Nothing runs by itself that would disturb; what nobody reads here goes."""


def release() -> str:
    """Return the Debian release whose Python fits our virtual environment; raise SetupError if none does."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if version not in RELEASES:
        known = ", ".join(RELEASES)
        raise SetupError(f"no Debian has Python {version}", f"make the virtual environment with one of these: {known}")
    return RELEASES[version]


def base_image(settings: Settings) -> Path:
    """Return the disk image, made if this is the first time.

    Raises:
        SetupError: not root, no network, no space.
    """
    folder = settings.cache_dir / "host-test"
    folder.mkdir(parents=True, exist_ok=True)
    recipe = inspect.getsource(sys.modules[__name__]) + release()
    image = folder / f"{release()}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.ext4"
    with _locked(folder / "lock"):
        if not image.exists():
            _build(settings, image)
            for other in folder.glob("*.ext4"):
                if other != image:
                    other.unlink()
    return image


@contextmanager
def _locked(path: Path):
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(settings: Settings, image: Path) -> None:
    if os.geteuid() != 0:
        raise SetupError("a root file system with owners and devices can be made only by root", "sudo make test-host")
    missing = missing_packages(DEBIAN, TOOLS)
    if missing:
        install(settings, DEBIAN, missing)
    log.warning("making a Debian %s disk, once: about a minute", release())
    with tempfile.TemporaryDirectory(prefix="schedagent-debian-", dir=image.parent) as name:
        folder = Path(name)
        sources = folder / "private.sources"
        sources.write_text("\n".join(source.deb822() for source in _sources()))
        hook = folder / "settle"
        hook.write_text(f"#!/bin/sh\n{SETTLE}")
        hook.chmod(0o755)
        root = folder / "root"
        argv = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        argv += [f"--customize-hook={hook}", "--quiet"]
        _done([*argv, *_pinned(), release(), root, sources])
        disk(folder / "image", SIZE_MIB, root).rename(image)


def _pinned() -> list[str]:
    """Options that take BACKPORTS from backports, where the release has them too old."""
    if release() != "bookworm":
        return [f"--include={','.join(BACKPORTS)}"]
    return [f"--include={','.join(f'{name}/{release()}-backports' for name in BACKPORTS)}"]


def _sources() -> list[Source]:
    mirror = debian_mirror(read_sources(), distribution_codename())
    suites = (release(), f"{release()}-backports") if release() == "bookworm" else (release(),)
    return [replace(mirror, suites=suites, components=("main",))]


def _done(argv: list[str | Path]) -> None:
    done = proc.run(argv, timeout_s=BUILD_LIMIT_S)
    if done.returncode != 0:
        raise apt_failure(str(argv[0]), done)


def disk(path: Path, size_mib: int, folder: Path | None = None) -> Path:
    """Make a disk with an ext4 file system, which holds what a folder does, or nothing."""
    with path.open("wb") as file:
        file.truncate(size_mib << 20)
    _done(["mkfs.ext4", "-q", "-F", "-m", "0", *(["-d", folder] if folder else []), path])
    path.chmod(0o644)  # QEMU may run as nobody
    return path
