"""The tree that a workload sees in the guest: the host's, read-only, under layers that are thrown away."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kernel_bpf.load import linux
from verifier.guest.usage import Layer
from verifier.microvm import jobs

HOST = Path("/host")
TRIAL = Path("/trial")
SETUP = Path("/setup")
MASK = Path("/mask")
"""Where the files that the setup command wrote are kept, if there was one: the layer beneath every run's own."""

ROOT = TRIAL / "root"
_LAYER_SHARE = 0.9
"""Of the free memory, that a throw-away layer may fill: processes need some as well."""


def mount_host(hidden: Sequence[str]) -> None:
    """Mount the host's tree, read-only, cached: it cannot change under us in a way that a trial may see.

    Args:
        hidden: paths of files and folders that nobody is to see.
    """
    options = "trans=virtio,version=9p2000.L,msize=512000,cache=loose"
    linux.mount(jobs.HOST_TAG, HOST, "9p", linux.MS_RDONLY, options)
    MASK.mkdir()
    linux.mount("tmpfs", MASK, "tmpfs", 0, "size=1m,mode=0755")
    for path in hidden:
        hide(Path(path.lstrip("/")))


def hide(path: Path) -> None:
    """Put a whiteout above a file or folder of the host, which leaves no trace of it in any overlay.

    A character device 0:0 is one (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"). The
    folders above it are made like the host's, whose owners and modes they stand for. What lies behind a link is hidden
    by its own path.
    """
    for folder in reversed(path.parents[:-1]):
        with suppress(FileExistsError):
            try:
                status = (HOST / folder).lstat()
            except OSError:
                return
            if not stat.S_ISDIR(status.st_mode):
                return
            (MASK / folder).mkdir()
            (MASK / folder).chmod(stat.S_IMODE(status.st_mode))
            os.chown(MASK / folder, status.st_uid, status.st_gid)
    if os.path.lexists(HOST / path) and not os.path.lexists(MASK / path):
        os.mknod(MASK / path, stat.S_IFCHR, os.makedev(0, 0))


@contextmanager
def fresh_tree(stop: Callable[[], None]) -> Iterator[tuple[Layer, ...]]:
    """A throw-away writable view of the host's tree, with the kernel's file systems in it, at ROOT.

    Args:
        stop: ends whatever works in it.

    Yields:
        Its layers.
    """
    mount_layer(TRIAL)
    try:
        yield from mounted_tree(TRIAL, lower_layers(), stop)
    finally:
        linux.unmount(TRIAL)


@contextmanager
def setup_tree(stop: Callable[[], None]) -> Iterator[tuple[Layer, ...]]:
    """The same, for the setup command: what it writes lies beneath all trees that follow, until it is forgotten."""
    mount_layer(SETUP)
    yield from mounted_tree(SETUP, f"{MASK}:{HOST}", stop)


def forget_setup() -> None:
    """Throw away what the setup command wrote."""
    linux.unmount(SETUP)


def mount_layer(folder: Path) -> None:
    """Mount a throw-away layer that leaves some of the memory that is free now."""
    folder.mkdir(exist_ok=True)
    linux.mount("tmpfs", folder, "tmpfs", 0, f"size={int(available_bytes() * _LAYER_SHARE)}")
    for name in ("upper", "work"):
        (folder / name).mkdir()


def available_bytes() -> int:
    """Memory that can be had without taking it from anybody (MemAvailable in /proc/meminfo)."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) << 10


def lower_layers() -> str:
    """What lies beneath a run's own layer, the topmost first."""
    kept = SETUP / "upper"
    return f"{kept}:{MASK}:{HOST}" if kept.is_dir() else f"{MASK}:{HOST}"


def mounted_tree(layer: Path, lower: str, stop: Callable[[], None]) -> Iterator[tuple[Layer, ...]]:
    """Mount the tree above `lower` that is written to `layer`, yield its layers, and take it all away again."""
    ROOT.mkdir(parents=True, exist_ok=True)
    linux.mount("overlay", ROOT, "overlay", 0, f"lowerdir={lower},upperdir={layer}/upper,workdir={layer}/work")
    try:
        linux.mount("proc", ROOT / "proc", "proc")
        linux.mount("sysfs", ROOT / "sys", "sysfs", linux.MS_RDONLY)
        linux.mount("devtmpfs", ROOT / "dev", "devtmpfs")
        linux.mount("devpts", ROOT / "dev/pts", "devpts", 0, "ptmxmode=666")
        linux.mount("tmpfs", ROOT / "dev/shm", "tmpfs")
        linux.mount("tmpfs", ROOT / "run", "tmpfs")
        memory = [Layer(ROOT / name, ROOT / name, f"/{name}") for name in ("dev/shm", "run")]
        yield (Layer(layer, layer / "upper", "/"), *memory)
    finally:
        stop()
        for name in ("run", "dev/shm", "dev/pts", "dev", "sys", "proc", ""):
            with suppress(OSError):
                linux.unmount(ROOT / name)
