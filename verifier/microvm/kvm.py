"""Whether KVM works here: proved by booting the kernel under it, because an existing /dev/kvm proves nothing.

A nested or para-virtualised host may offer /dev/kvm and then fail to set a register, or hang in early boot.
"""

from __future__ import annotations

import contextlib
import functools
import grp
import hashlib
import json
import os
import pwd
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from schedagent.core.errors import SetupError
from schedagent.core.process import proc
from schedagent.core.settings import Settings, writable
from verifier.microvm.kernels import KernelImage
from verifier.microvm.machine import KVM_DEVICE, kvm_arguments, launcher, readable

BOOT_LIMIT_S = 6.0
"""A kernel under working KVM gets to its root file system in about a second, under emulation in about four."""

_KVM = KVM_DEVICE
_GROUP_MAY_USE = stat.S_IRGRP | stat.S_IWGRP
_BOOTED = "Unable to mount root fs"
"""The panic of a kernel that was given neither an initramfs nor a disk: all of its own start-up went well."""


@dataclass(frozen=True)
class KvmProbe:
    """Whether a kernel really boots under KVM, and what was seen.

    Args:
        remedy: what would have it work; empty if that is not known.
    """

    works: bool
    reason: str
    remedy: str = ""


def kvm_usable(settings: Settings, kernel: KernelImage) -> KvmProbe:
    """Return the result of `probe_kvm`, remembered in the cache folder until kernel, QEMU, user or host boot change."""
    if not _KVM.exists():
        return KvmProbe(False, f"there is no {_KVM}")
    if not os.access(_KVM, os.R_OK | os.W_OK):  # not remembered: groups change at the next login
        return KvmProbe(False, f"{_KVM} may not be opened by this user", how_to_be_admitted(_KVM))
    memory = writable(settings.cache_dir) / "kvm.json"
    key = _probe_key(kernel)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # unreadable or foreign: probe again
        remembered = json.loads(memory.read_text(encoding="utf-8"))
        if remembered["key"] == key:
            return KvmProbe(**remembered["probe"])
    probe = probe_kvm(kernel)
    fresh = memory.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps({"key": key, "probe": asdict(probe)}), encoding="utf-8")
    fresh.replace(memory)
    return probe


def probe_kvm(kernel: KernelImage, limit_s: float = BOOT_LIMIT_S) -> KvmProbe:
    """Boot `kernel` under KVM, with two CPUs and nothing else, and see how far it gets.

    Args:
        limit_s: how long it may take, in seconds.
    """
    try:
        with _opened(_KVM, os.O_RDWR) as kvm, readable(kernel.vmlinuz) as file:
            image = file.fileno()
            return _boot(qemu_command(kvm, image), (kvm, image), limit_s)
    except OSError as error:
        return KvmProbe(False, f"{error.filename} cannot be opened: {error.strerror}")
    except SetupError as error:
        return KvmProbe(False, error.message)


def how_to_be_admitted(device: Path) -> str:
    """Return what gives this user the right to open a device: mostly, to join the group that owns it."""
    status = device.stat()
    try:
        group = grp.getgrgid(status.st_gid)
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"have root let your user read and write {device}"
    if status.st_gid == 0 or status.st_mode & _GROUP_MAY_USE != _GROUP_MAY_USE:
        return f"sudo setfacl -m u:{user}:rw {device}"
    if user in group.gr_mem:
        return f"log in again: this session is not in group {group.gr_name} yet"
    return f"join the group {group.gr_name}: sudo usermod -aG {group.gr_name} {user}; then log in again"


def qemu_command(kvm: int, image: int) -> list[str]:
    """Return the command that boots the kernel in descriptor `image` and ends when it panics."""
    words = ["qemu-system-x86_64", "-machine", "q35", *kvm_arguments(kvm), "-smp", "2", "-m", "512M", "-no-reboot"]
    words += ["-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-serial", "stdio"]
    return [*launcher(False), *words, "-kernel", f"/dev/fd/{image}", "-append", "console=ttyS0 panic=-1 quiet"]


def _boot(command: Sequence[str], descriptors: Sequence[int], limit_s: float) -> KvmProbe:
    with tempfile.TemporaryFile() as console:
        process = proc.start(command, output=console.fileno(), pass_fds=descriptors)
        try:
            status = process.wait(limit_s)
            ended = f"QEMU ended with status {status}"
        except subprocess.TimeoutExpired:
            ended = f"the guest had not booted after {limit_s:g} s"
        finally:
            process.kill()
            process.wait()
        console.seek(0)
        text = console.read().decode(errors="replace")
    if _BOOTED in text:
        return KvmProbe(True, "a kernel boots under it")
    return KvmProbe(False, "; ".join([ended, *_last_words(text)]))


def _last_words(text: str) -> list[str]:
    """QEMU's own first complaint; warnings about missing CPU features come with every healthy start too."""
    lines = [line.strip() for line in text.splitlines() if line.startswith(("qemu-system", "KVM"))]
    return [line.removeprefix("qemu-system-x86_64: ") for line in lines if "warning:" not in line][:1]


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _probe_key(kernel: KernelImage) -> str:
    """What the result depends on; the boot id stands for the host's kernel, its modules and its firmware settings."""
    image = kernel.vmlinuz.stat()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    parts = [boot, os.geteuid(), str(kernel.vmlinuz), image.st_size, image.st_mtime_ns, qemu_version()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@functools.cache
def qemu_version() -> str:
    """What QEMU says it is."""
    return proc.run(["qemu-system-x86_64", "--version"], timeout_s=20).stdout.decode(errors="replace")
