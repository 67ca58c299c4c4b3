"""Kernel images for the micro-VM: found in the cache or on the host, or downloaded (never installed) with apt.

A downloaded kernel is a folder ``<cache>/kernels/<release>/`` with vmlinuz, config, modules.builtin and, uncompressed,
the few modules the micro-VM needs. It is filled beside its final place and renamed into it as the last step, so a
folder with that name is complete.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import logging
import lzma
import os
import re
import shutil
import sys
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from schedagent.core.errors import SetupError, UsageError
from schedagent.core.installation import this_installation
from schedagent.core.process import proc
from schedagent.core.process.making import exit_status
from schedagent.core.settings import Settings, load_settings, writable
from verifier.microvm.apt import PrivateApt, Source, debian_mirror, distribution_codename, read_sources

log = logging.getLogger(__name__)

KERNEL_SUITE = "trixie-backports"
"""The Debian suite whose kernels have CONFIG_SCHED_CLASS_EXT=y and still run next to a Debian 12 user space."""

KEPT_MODULES = (
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "netfs",
    "9pnet",
    "9pnet_virtio",
    "9p",
    "overlay",
    "crc32c_generic",
    "crc16",
    "mbcache",
    "jbd2",
    "ext4",
)
"""Kept from a downloaded kernel, with what they depend on; those that are built in are no files and are skipped."""

_NEEDED_MIB = 600


@dataclass(frozen=True)
class KernelImage:
    """A bootable kernel with sched_ext.

    Args:
        release: what uname -r prints under it.
        vmlinuz: the bootable image.
        config: its build configuration.
        modules_dir: folder with its modules, at any depth.
        origin: "cache" if downloaded by set-up, "boot" if it is the host's own.
    """

    release: str
    vmlinuz: Path
    config: Path
    modules_dir: Path
    origin: Literal["cache", "boot"]


def find_kernels(settings: Settings, root: Path = Path("/")) -> list[KernelImage]:
    """Return the usable kernels, newest first; those in the cache come before the host's own of the same release.

    Args:
        root: where to look for the host's own kernel (tests put a tree elsewhere).
    """
    kernels = [_cached(folder) for folder in _cached_folders(settings)]
    own = _boot_kernel(os.uname().release, root)
    if own is not None and all(image.release != own.release for image in kernels):
        kernels.append(own)
    return sorted(kernels, key=lambda image: release_order(image.release), reverse=True)


def default_kernel(settings: Settings, root: Path = Path("/")) -> KernelImage:
    """Return the kernel asked for in the settings, else the newest.

    Raises:
        UsageError: the one that the settings name is not there.
        SetupError: there is none at all.
    """
    kernels = find_kernels(settings, root)
    wanted = settings.kernel_release
    for image in kernels:
        if wanted in ("", image.release):
            return image
    if wanted:
        have = ", ".join(image.release for image in kernels) or "none"
        raise UsageError(
            f"kernel {wanted} is not in {settings.kernels_dir} (there: {have})",
            this_installation().how_to_get_kernel(wanted),
        )
    raise SetupError(
        f"no kernel with sched_ext in {settings.kernels_dir}, and the host's own has none",
        this_installation().how_to_get_kernel(),
    )


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
    with _locked(settings.kernels_dir / ".lock"):
        folders = _cached_folders(settings)
        if release not in [folder.name for folder in folders]:
            apt = PrivateApt(settings.cache_dir / "apt-kernel", [_kernel_source()])
            apt.update()
            release = release or _newest_release(apt)
            if settings.kernels_dir / release not in folders:
                _download(apt, release, settings.kernels_dir / release)
        return _cached(settings.kernels_dir / release)


def fetch_older(settings: Settings) -> KernelImage | None:
    """Have a kernel of the oldest major version on offer beside the newest one, so that policies meet two kernels.

    Returns None, with a notice, if there is none to be had: mirrors drop old kernels, and that is nobody's error.

    Raises:
        SetupError: no space, or a kernel without sched_ext.
    """
    newest = ensure_kernel(settings)
    older = [image for image in find_kernels(settings) if _major(image.release) < _major(newest.release)]
    if older:
        return older[0]
    try:
        apt = PrivateApt(settings.cache_dir / "apt-kernel", [_kernel_source()])
        apt.update()
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


def module_closure(image: KernelImage, names: Sequence[str]) -> list[Path]:
    """Return the files of the named modules and of all they depend on, in an order in which they can be loaded.

    Names without a file are built into the kernel (or do not exist for it) and are skipped.

    Raises:
        SetupError: a module depends on one whose file is missing.
    """
    return _closure(_module_files(image.modules_dir), names)


def read_module(path: Path) -> bytes:
    """Return the bytes of a module, decompressed if its file is (.ko.xz, .ko.zst)."""
    from zstandard import ZstdDecompressor, ZstdError

    content = path.read_bytes()
    try:
        if path.suffix == ".xz":
            return lzma.decompress(content)
        if path.suffix == ".zst":
            return ZstdDecompressor().decompressobj().decompress(content)
    except (lzma.LZMAError, ZstdError) as error:
        raise SetupError(f"module {path} is damaged: {error}", this_installation().how_to_get_kernel()) from None
    return content


def release_order(release: str) -> tuple[tuple[int, ...], bool, str]:
    """Return a key that sorts releases by their leading version, release candidates before the release itself."""
    version = re.match(r"[0-9]+(?:\.[0-9]+)*", release)
    numbers = tuple(int(part) for part in version.group().split(".")) if version else ()
    return numbers, "rc" not in release, release


def has_sched_ext(config: Path) -> bool:
    """Whether a kernel configuration has CONFIG_SCHED_CLASS_EXT=y."""
    return "CONFIG_SCHED_CLASS_EXT=y" in config.read_text(encoding="utf-8", errors="replace").splitlines()


def _cached_folders(settings: Settings) -> list[Path]:
    return [path for path in settings.kernels_dir.glob("[0-9]*") if (path / "vmlinuz").is_file()]


def _cached(folder: Path) -> KernelImage:
    return KernelImage(folder.name, folder / "vmlinuz", folder / "config", folder / "modules", "cache")


def _boot_kernel(release: str, root: Path) -> KernelImage | None:
    """The running kernel's own image, if it has sched_ext and this user may read it."""
    modules = root / "lib/modules" / release
    vmlinuz = _first_file([root / f"boot/vmlinuz-{release}", modules / "vmlinuz"])
    config = _first_file([root / f"boot/config-{release}", modules / "config"])
    if vmlinuz and config and os.access(vmlinuz, os.R_OK) and os.access(config, os.R_OK) and has_sched_ext(config):
        return KernelImage(release, vmlinuz, config, modules, "boot")
    return None


def _first_file(paths: Sequence[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel releases it when the process ends, however it ends."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another set-up that is downloading a kernel")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _kernel_source() -> Source:
    mirror = debian_mirror(read_sources(), distribution_codename())
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


def _download(apt: PrivateApt, release: str, folder: Path) -> None:
    """Fill `folder`, or leave nothing behind."""
    packages = _packages_of(apt, release)
    free_mib = shutil.disk_usage(folder.parent).free >> 20
    if free_mib < _NEEDED_MIB:
        raise SetupError(
            f"{folder.parent} has {free_mib} MiB free, a kernel needs {_NEEDED_MIB} while it is unpacked",
            "free some space or set SCHEDAGENT_CACHE",
        )
    partial = folder.parent / ".partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a set-up that was killed: we hold the lock
    try:
        (partial / "debs").mkdir(parents=True)
        log.info("downloading %s", " ".join(packages))
        for deb in apt.download(packages, partial / "debs"):
            done = proc.run(["dpkg-deb", "-x", deb, partial / "tree"], timeout_s=300)
            if done.returncode != 0:
                raise SetupError(f"cannot unpack {deb.name}: {done.stderr.decode(errors='replace').strip()}")
        _keep_needed(partial / "tree", release, partial / "kept")
        (partial / "kept").rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.info("kernel %s is in %s", release, folder)


def _keep_needed(tree: Path, release: str, kept: Path) -> None:
    """Copy what the micro-VM needs of an unpacked kernel; every file reaches the disk before this returns."""
    modules = _modules_root(tree, release)
    vmlinuz = _first_file([modules / "vmlinuz", tree / f"boot/vmlinuz-{release}"])
    config = _first_file([modules / "config", tree / f"boot/config-{release}"])
    if vmlinuz is None or config is None:
        raise SetupError(f"the packages of kernel {release} hold no vmlinuz or no config where they are known to be")
    if not has_sched_ext(config):
        raise SetupError(
            f"kernel {release} is built without CONFIG_SCHED_CLASS_EXT",
            f"choose another: {this_installation().how_to_get_kernel('RELEASE')}",
        )
    (kept / "modules").mkdir(parents=True)
    _write(kept / "vmlinuz", vmlinuz.read_bytes())
    _write(kept / "config", config.read_bytes())
    builtin = modules / "modules.builtin"
    if builtin.is_file():
        _write(kept / "modules.builtin", builtin.read_bytes())
    for path in _closure(_module_files(modules), KEPT_MODULES):
        _write(kept / "modules" / f"{_module_name(path)}.ko", read_module(path))


def _modules_root(tree: Path, release: str) -> Path:
    roots = [tree / "usr/lib/modules" / release, tree / "lib/modules" / release]
    return next((root for root in roots if root.is_dir()), roots[0])


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def _module_files(modules_dir: Path) -> dict[str, Path]:
    return {_module_name(path): path for path in modules_dir.rglob("*.ko*")}


def _module_name(path: Path) -> str:
    """The name the kernel knows a module by: dashes and underscores are the same to it."""
    return path.name.partition(".ko")[0].replace("-", "_")


def _closure(files: dict[str, Path], names: Sequence[str]) -> list[Path]:
    ordered: dict[str, Path] = {}

    def visit(name: str) -> None:
        if name in ordered:
            return
        for dependency in _dependencies(files[name]):
            if dependency not in files:
                raise SetupError(
                    f"module {name} depends on {dependency}, which is missing", this_installation().how_to_get_kernel()
                )
            visit(dependency)
        ordered[name] = files[name]

    for name in names:
        if name.replace("-", "_") in files:
            visit(name.replace("-", "_"))
    return list(ordered.values())


def _dependencies(path: Path) -> list[str]:
    """Read a module's own list (``depends=`` in its .modinfo): packages carry no modules.dep, depmod makes it later."""
    from elftools.elf.elffile import ELFFile

    section = ELFFile(io.BytesIO(read_module(path))).get_section_by_name(".modinfo")
    entries = section.data().split(b"\0") if section else []
    listed = next((entry[len(b"depends=") :] for entry in entries if entry.startswith(b"depends=")), b"")
    return [name.replace("-", "_") for name in listed.decode().split(",") if name]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry for make: have a kernel (``--fetch`` for the newest or the named one even if another is there)."""
    parser = argparse.ArgumentParser(prog="python -m verifier.microvm.kernels", description=main.__doc__)
    parser.add_argument("--fetch", action="store_true", help="download the newest, or RELEASE, if it is not there")
    parser.add_argument("--older", action="store_true", help="also have one of an older major version, if there is one")
    parser.add_argument("release", nargs="?", default="", help="kernel release, such as 6.18.15+deb13-amd64")
    chosen = parser.parse_args(arguments)

    def step() -> None:
        settings = load_settings()
        wants_new = chosen.fetch or chosen.release
        image = fetch_kernel(settings, chosen.release or None) if wants_new else ensure_kernel(settings)
        older = fetch_older(settings) if chosen.older else None
        for kernel in (image, older):
            if kernel:
                log.info("kernel %s (%s)", kernel.release, kernel.vmlinuz)

    return exit_status(step)


if __name__ == "__main__":
    sys.exit(main())
