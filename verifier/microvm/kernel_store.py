"""Taking a kernel into the cache: checked, with the few modules the micro-VM needs, and complete or not at all."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kernel_bpf.build.target import extract_elf
from schedagent.core.errors import SetupError, UsageError
from schedagent.core.installation import this_installation
from schedagent.core.retention import lock
from schedagent.core.settings import Settings, writable
from verifier.microvm import kernels
from verifier.microvm.kernels import KernelImage

log = logging.getLogger(__name__)

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

KEPT = "kept"
DRIVERS = {
    "CONFIG_VIRTIO_PCI": "virtio_pci",
    "CONFIG_VIRTIO_CONSOLE": "virtio_console",
    "CONFIG_NET_9P_VIRTIO": "9pnet_virtio",
    "CONFIG_9P_FS": "9p",
    "CONFIG_OVERLAY_FS": "overlay",
}
"""The options without which the micro-VM's guest gets neither its orders nor the host's files, and their modules."""
_VERSION_AT = 0x20E
"""Offset in a bzImage of a 16-bit pointer to its release, counted from 0x200 (Documentation/arch/x86/boot.rst)."""


@dataclass(frozen=True)
class Parts:
    """What a kernel is made of, wherever it lies now; the modules may be missing if all that is needed is built in."""

    release: str
    vmlinuz: Path
    config: Path
    modules: Path


def use_kernel(settings: Settings, path: Path, root: Path = Path("/")) -> KernelImage:
    """Take a kernel that lies on this machine into the cache, in the place of one of the same release.

    Args:
        path: a vmlinuz, or a folder that holds one.
        root: where installed kernels have their configuration and modules (tests put a tree elsewhere).

    Raises:
        UsageError: there is no such file.
        SetupError: it cannot be read, is incomplete, or lacks what the micro-VM needs.
    """
    try:
        parts = _parts(path.resolve(), root)
        check(parts)
        writable(settings.kernels_dir)
        with locked(settings), filling(settings, parts.release) as partial:
            keep(parts, partial / KEPT)
    except PermissionError as error:
        raise SetupError(f"{error.filename} may not be read", f"run as root: chmod a+r {error.filename}") from None
    return kernels.cached(settings.kernels_dir / parts.release)


def _parts(path: Path, root: Path) -> Parts:
    vmlinuz = path / "vmlinuz" if path.is_dir() else path
    if not vmlinuz.is_file():
        raise UsageError(f"{vmlinuz} is not there", "give a vmlinuz, or a folder with vmlinuz, config and modules")
    release = release_of(vmlinuz)
    _, installed_config, installed_modules = kernels.parts_of(release, root)
    folder = vmlinuz.parent
    config = kernels.first_file([folder / "config", folder / f"config-{release}"]) or installed_config
    if config is None:
        raise SetupError(
            f"the configuration of kernel {release} is neither in {folder} nor where installed kernels have theirs",
            f"put it beside the image, as {folder / 'config'}",
        )
    is_modules = (folder / "modules.builtin").is_file() and (folder / "kernel").is_dir()
    beside = folder if is_modules else folder / "modules"
    return Parts(release, vmlinuz, config, beside if beside.is_dir() else installed_modules)


def release_of(vmlinuz: Path) -> str:
    """Return the release that a bzImage's header names; raise SetupError if it is none."""
    image = vmlinuz.read_bytes()
    if image[0x202:0x206] != b"HdrS":
        raise SetupError(f"{vmlinuz} is no bootable x86 kernel image", "give the vmlinuz that your boot loader starts")
    pointer = int.from_bytes(image[_VERSION_AT : _VERSION_AT + 2], "little")
    words = image[pointer + 0x200 :][:256].partition(b"\0")[0].decode(errors="replace").split()
    if not words or "/" in words[0] or not words[0][0].isdigit():
        raise SetupError(f"{vmlinuz} does not name its release")
    return words[0]


def check(parts: Parts) -> None:
    """See that a kernel has sched_ext, its types, and drivers for the micro-VM's devices.

    Raises:
        SetupError: it lacks one of them.
    """
    check_sched_ext(parts)
    if b".BTF\0" not in extract_elf(parts.vmlinuz.read_bytes()):
        raise SetupError(f"kernel {parts.release} has no BTF", "it has to be built with CONFIG_DEBUG_INFO_BTF=y")
    options, files = kernels.options(parts.config), kernels.module_files(parts.modules)
    for option, module in DRIVERS.items():
        if option not in options:
            raise SetupError(f"kernel {parts.release} is built without {option}, which the micro-VM needs")
        if options[option] == "m" and module not in files:
            raise SetupError(
                f"module {module} of kernel {parts.release} is not in {parts.modules}",
                f"put its modules beside the image, as {parts.vmlinuz.parent / 'modules'}",
            )


def check_sched_ext(parts: Parts) -> None:
    """Raise SetupError if a kernel is built without sched_ext."""
    if not kernels.has_sched_ext(parts.config):
        raise SetupError(
            f"kernel {parts.release} is built without {kernels.SCHED_EXT}",
            this_installation().how_to_get_kernel("RELEASE"),
        )


@contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """Hold the lock on the kernels of the cache; it ends with the process, however that ends."""
    path = settings.kernels_dir / ".lock"
    with ExitStack() as held:
        try:
            held.enter_context(lock.locked(path, wait=False))
        except UsageError:
            log.warning("waiting for another set-up that is getting a kernel")
            held.enter_context(lock.locked(path, wait=True))
        yield


@contextmanager
def filling(settings: Settings, release: str) -> Iterator[Path]:
    """Give an empty folder; what is in its subfolder `KEPT` at the end becomes the kernel `release` of the cache.

    The caller holds the lock. What goes wrong meanwhile leaves nothing behind.
    """
    partial, place = settings.kernels_dir / ".partial", settings.kernels_dir / release
    shutil.rmtree(partial, ignore_errors=True)  # of a set-up that was killed
    try:
        partial.mkdir()
        yield partial
        shutil.rmtree(place, ignore_errors=True)
        (partial / KEPT).rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.info("kernel %s is in %s", release, place)


def keep(parts: Parts, kept: Path) -> None:
    """Copy what the micro-VM needs of a kernel; every file reaches the disk before this returns."""
    (kept / "modules").mkdir(parents=True)
    _write(kept / "vmlinuz", parts.vmlinuz.read_bytes())
    _write(kept / "config", kernels.config_text(parts.config).encode())
    for path in kernels.closure(kernels.module_files(parts.modules), KEPT_MODULES):
        _write(kept / "modules" / f"{kernels.module_name(path)}.ko", kernels.read_module(path))


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
