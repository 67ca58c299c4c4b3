"""Kernels of Debian's backports, downloaded into the cache with apt; nothing is installed."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Container
from pathlib import Path

from schedagent.core.errors import SetupError, UsageError
from schedagent.core.installation import this_installation
from schedagent.core.process import proc
from schedagent.core.settings import Settings, writable
from verifier.microvm import kernels
from verifier.microvm.apt import PrivateApt, Source, debian_mirror, distribution_codename, read_sources
from verifier.microvm.kernel_store import KEPT, Parts, check_sched_ext, filling, keep, locked
from verifier.microvm.kernels import KernelImage, default_kernel, release_order

log = logging.getLogger(__name__)

KERNEL_SUITE = "trixie-backports"
"""The Debian suite whose kernels have CONFIG_SCHED_CLASS_EXT=y and still run next to a Debian 12 user space."""
_NEEDED_MIB = 600


def ensure_kernel(settings: Settings) -> KernelImage:
    """Return the default kernel, downloading it only if there is none."""
    try:
        return default_kernel(settings)
    except (SetupError, UsageError):
        return fetch_kernel(settings, settings.kernel_release or None)


def fetch_kernel(settings: Settings, release: str | None = None) -> KernelImage:
    """Download a kernel from Debian's backports into the cache, unless it is there already.

    Args:
        release: None for the newest.

    Raises:
        SetupError: no network, no space, no such release, or a kernel without sched_ext.
    """
    writable(settings.kernels_dir)
    with locked(settings):
        present = [folder.name for folder in kernels.cached_folders(settings)]
        if release not in present:
            apt = _private_apt(settings)
            release = release or _newest_release(apt)
            if release not in present:
                _download(apt, settings, release)
        return kernels.cached(settings.kernels_dir / release)


def fetch_older(settings: Settings) -> KernelImage | None:
    """Have a kernel of the oldest major version on offer beside the newest one, so that policies meet two kernels.

    Returns None, with a notice, if there is none to be had: mirrors drop old kernels, and that is nobody's error.

    Raises:
        SetupError: no space, or a kernel without sched_ext.
    """
    newest = ensure_kernel(settings)
    older = [image for image in kernels.find_kernels(settings) if _major(image.release) < _major(newest.release)]
    if older:
        return older[0]
    try:
        apt = _private_apt(settings)
        releases = [release for release in _complete_releases(apt) if _major(release) < _major(newest.release)]
    except SetupError as error:
        log.warning("policies will be checked on %s only: %s", newest.release, error.message)
        return None
    if not releases:
        log.warning("policies will be checked on %s only: %s offers no older one", newest.release, KERNEL_SUITE)
        return None
    return fetch_kernel(settings, releases[0])


def _major(release: str) -> int:
    return int(release.partition(".")[0])


def _private_apt(settings: Settings) -> PrivateApt:
    """Return apt with the lists of KERNEL_SUITE just fetched."""
    apt = PrivateApt(settings.cache_dir / "apt-kernel", [_kernel_source()])
    apt.update()
    return apt


def _kernel_source() -> Source:
    try:
        mirror = debian_mirror(read_sources(), distribution_codename())
    except SetupError as error:
        raise SetupError(
            f"kernels are downloaded from Debian's archive only: {error.message}",
            f"take one from this machine instead; {this_installation().how_to_use_kernel()}",
        ) from None
    return Source(mirror.uri, (KERNEL_SUITE,), ("main",), mirror.options)


def _newest_release(apt: PrivateApt) -> str:
    """Follow the metapackage of the full (not the cloud) image to the release it stands for."""
    for dependency in apt.depends("linux-image-amd64"):
        match = re.fullmatch(r"linux-image-([0-9].*-amd64)", dependency)
        if match:
            return match.group(1)
    raise SetupError(f"{KERNEL_SUITE} has no linux-image-amd64 that names a kernel")


def _packages_of(apt: PrivateApt, release: str) -> list[str]:
    """Return the packages that make up a kernel; raise SetupError naming the releases on offer if it is not."""
    on_offer = set(apt.names("linux-"))
    packages = _linked_packages(apt, release, on_offer)
    if not packages:
        have = ", ".join(_complete_releases(apt)) or "none"
        raise SetupError(f"{KERNEL_SUITE} has no complete kernel {release}", f"it has: {have}")
    return packages


def _complete_releases(apt: PrivateApt) -> list[str]:
    """Return the kernels on offer with all that they need, newest first."""
    on_offer = set(apt.names("linux-"))
    images = [name.removeprefix("linux-image-") for name in on_offer if name.startswith("linux-image-")]
    releases = [name for name in images if re.fullmatch(r"[0-9][^-]*-amd64", name)]
    complete = [name for name in releases if _linked_packages(apt, name, on_offer)]
    return sorted(complete, key=release_order, reverse=True)


def _linked_packages(apt: PrivateApt, release: str, on_offer: Container[str]) -> list[str]:
    """Return linux-image-RELEASE and what it needs of the same release; nothing if one of them is not on offer.

    Up to 6.18 the image is one package; since 6.19 it is split into image, binary, modules and base. Debian keeps
    some older images in the suite without the modules they depend on, or (harmless before the split) without base.
    """
    packages: list[str] = []
    queue = [f"linux-image-{release}"]
    while queue:
        package = queue.pop()
        if package not in on_offer:
            if package == f"linux-base-{release}":
                continue
            return []
        packages.append(package)
        related = [name for name in apt.depends(package) if name.endswith(f"-{release}")]
        queue += [name for name in related if name not in packages and name not in queue]
    return sorted(packages)


def _download(apt: PrivateApt, settings: Settings, release: str) -> None:
    """Put a kernel into the cache, or leave nothing behind; the caller holds the lock."""
    packages = _packages_of(apt, release)
    free_mib = shutil.disk_usage(settings.kernels_dir).free >> 20
    if free_mib < _NEEDED_MIB:
        raise SetupError(
            f"{settings.kernels_dir} has {free_mib} MiB free, a kernel needs {_NEEDED_MIB} while it is unpacked",
            "free some space or set SCHEDAGENT_CACHE",
        )
    with filling(settings, release) as partial:
        debs, tree = partial / "debs", partial / "tree"
        debs.mkdir()
        log.info("downloading %s", " ".join(packages))
        for deb in apt.download(packages, debs):
            done = proc.run(["dpkg-deb", "-x", deb, tree], timeout_s=300)
            if done.returncode != 0:
                raise SetupError(f"cannot unpack {deb.name}: {done.stderr.decode(errors='replace').strip()}")
        parts = _unpacked(tree, release)
        check_sched_ext(parts)
        keep(parts, partial / KEPT)


def _unpacked(tree: Path, release: str) -> Parts:
    vmlinuz, config, modules = kernels.parts_of(release, tree)
    if vmlinuz is None or config is None:
        raise SetupError(f"the packages of kernel {release} hold no vmlinuz or no config where they are known to be")
    return Parts(release, vmlinuz, config, modules)
