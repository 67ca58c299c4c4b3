"""Kernel images for the micro-VM, and where they are: in the cache, or the host's own.

A kernel in the cache is a folder ``<cache>/kernels/<release>/`` with vmlinuz, config and, uncompressed, the few modules
the micro-VM needs. It is filled beside its final place and renamed into it as the last step
(`kernel_store`), so a folder with that name is complete.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import re
import stat
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from schedagent.core.errors import SetupError, UsageError
from schedagent.core.installation import this_installation
from schedagent.core.settings import Settings

SCHED_EXT = "CONFIG_SCHED_CLASS_EXT"
RUNNING_CONFIG = "proc/config.gz"
"""The configuration of the running kernel, if it was built with CONFIG_IKCONFIG_PROC."""


@dataclass(frozen=True)
class KernelImage:
    """A bootable kernel with sched_ext.

    Args:
        release: what uname -r prints under it.
        vmlinuz: the bootable image.
        config: its build configuration, gzipped if its name ends so.
        modules_dir: folder with its modules, at any depth.
        origin: "cache" if it was downloaded or taken into the cache, "host" if it is the host's own.
    """

    release: str
    vmlinuz: Path
    config: Path
    modules_dir: Path
    origin: Literal["cache", "host"]


@dataclass(frozen=True)
class HostKernel:
    """The running kernel as one for the micro-VM.

    Args:
        release: what uname -r prints.
        image: None if it cannot serve.
        reason: why it cannot.
        remedy: what would change that; empty: nothing.
    """

    release: str
    image: KernelImage | None = None
    reason: str = ""
    remedy: str = ""


def find_kernels(settings: Settings, root: Path = Path("/")) -> list[KernelImage]:
    """Return the usable kernels, newest first; those in the cache come before the host's own of the same release.

    Args:
        root: where to look for the host's own kernel (tests put a tree elsewhere).
    """
    kernels = [cached(folder) for folder in cached_folders(settings)]
    own = host_kernel(root).image
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
        f"no kernel with sched_ext in {settings.kernels_dir}, and the host's own cannot serve",
        this_installation().how_to_get_kernel(),
    )


def host_kernel(root: Path = Path("/")) -> HostKernel:
    """Return whether the running kernel serves the micro-VM too: its image and configuration are here, and have what
    it takes."""
    release = os.uname().release
    vmlinuz, config, modules = parts_of(release, root)
    if vmlinuz is None:
        reason = f"its image is neither {root / 'boot' / f'vmlinuz-{release}'} nor {modules / 'vmlinuz'}"
        return HostKernel(release, reason=reason)
    if config is None:
        reason = f"its configuration is neither in {root / 'boot'}, nor in {modules}, nor {root / RUNNING_CONFIG}"
        return HostKernel(release, reason=reason)
    for path in (vmlinuz, config):
        if not os.access(path, os.R_OK):
            reason = f"{path} may not be read (mode {stat.S_IMODE(path.stat().st_mode):04o})"
            return HostKernel(release, reason=reason, remedy=f"run as root: chmod a+r {path}")
    if not has_sched_ext(config):
        return HostKernel(release, reason=f"it is built without {SCHED_EXT}")
    return HostKernel(release, KernelImage(release, vmlinuz, config, modules, "host"))


def parts_of(release: str, root: Path = Path("/")) -> tuple[Path | None, Path | None, Path]:
    """Return where an installed kernel's image and configuration are, and the folder of its modules."""
    folders = [root / "lib/modules" / release, root / "usr/lib/modules" / release]
    modules = next((folder for folder in folders if folder.is_dir()), folders[0])
    configs = [root / f"boot/config-{release}", modules / "config"]
    if release == os.uname().release:
        configs.append(root / RUNNING_CONFIG)
    return first_file([root / f"boot/vmlinuz-{release}", modules / "vmlinuz"]), first_file(configs), modules


def module_closure(image: KernelImage, names: Sequence[str]) -> list[Path]:
    """Return the files of the named modules and of all they depend on, in an order in which they can be loaded.

    Names without a file are built into the kernel (or do not exist for it) and are skipped.

    Raises:
        SetupError: a module depends on one whose file is missing.
    """
    return closure(module_files(image.modules_dir), names)


def read_module(path: Path) -> bytes:
    """Return the bytes of a module, decompressed if its file is (.ko.xz, .ko.zst, .ko.gz)."""
    from zstandard import ZstdDecompressor, ZstdError

    content = path.read_bytes()
    try:
        if path.suffix == ".xz":
            return lzma.decompress(content)
        if path.suffix == ".gz":
            return gzip.decompress(content)
        if path.suffix == ".zst":
            return ZstdDecompressor().decompressobj().decompress(content)
    except (lzma.LZMAError, zlib.error, gzip.BadGzipFile, ZstdError) as error:
        raise SetupError(f"module {path} is damaged: {error}", this_installation().how_to_get_kernel()) from None
    return content


def release_order(release: str) -> tuple[tuple[int, ...], bool, str]:
    """Return a key that sorts releases by their leading version, release candidates before the release itself."""
    version = re.match(r"[0-9]+(?:\.[0-9]+)*", release)
    numbers = tuple(int(part) for part in version.group().split(".")) if version else ()
    return numbers, "rc" not in release, release


def config_text(config: Path) -> str:
    """Return a kernel's configuration; it is gzipped if its name ends so."""
    content = config.read_bytes()
    return (gzip.decompress(content) if config.suffix == ".gz" else content).decode(errors="replace")


def options(config: Path) -> dict[str, str]:
    """Return the options that are set in a kernel's configuration: {"CONFIG_SMP": "y", ...}."""
    lines = (line.partition("=") for line in config_text(config).splitlines() if line.startswith("CONFIG_"))
    return {name: value for name, _, value in lines}


def has_sched_ext(config: Path) -> bool:
    """Whether a kernel configuration has CONFIG_SCHED_CLASS_EXT=y."""
    return options(config).get(SCHED_EXT) == "y"


def cached_folders(settings: Settings) -> list[Path]:
    """Return the folders of complete kernels in the cache."""
    return [path for path in settings.kernels_dir.glob("[0-9]*") if (path / "vmlinuz").is_file()]


def cached(folder: Path) -> KernelImage:
    """Return the kernel in a folder of the cache."""
    return KernelImage(folder.name, folder / "vmlinuz", folder / "config", folder / "modules", "cache")


def first_file(paths: Sequence[Path]) -> Path | None:
    """Return the first that is a file; what is in a folder that may not be entered is not there."""
    for path in paths:
        with suppress(PermissionError):
            if path.is_file():
                return path
    return None


def module_files(modules_dir: Path) -> dict[str, Path]:
    return {module_name(path): path for path in modules_dir.rglob("*.ko*")}


def module_name(path: Path) -> str:
    """The name the kernel knows a module by: dashes and underscores are the same to it."""
    return path.name.partition(".ko")[0].replace("-", "_")


def closure(files: dict[str, Path], names: Sequence[str]) -> list[Path]:
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
