"""What the doctor says of the kernel that runs on this host: what keeps policies, or proofs, from being true here.

    findings = list(host_kernel_findings())

What is as usual is not listed, except whether the kernel has sched_ext and types at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from kernel_bpf.observe.schedulers import other_schedulers, stop_hint
from kernel_bpf.observe.system import cpus_in
from schedagent.setup.finding import Finding
from verifier.microvm.kernels import parts_of

_HEADER_BYTES = 0x20000
_MAGIC_AT, _MAGIC, _VERSION_AT, _SETUP_BYTES, _VERSION_BYTES = 0x202, b"HdrS", 0x20E, 0x200, 512
"""Documentation/arch/x86/boot.rst: header, kernel_version."""


def host_kernel_findings(root: Path = Path("/"), kernel: os.uname_result | None = None) -> Iterator[Finding]:
    """Yield what is worth knowing, sched_ext first.

    Args:
        root: of the file systems that are read.
        kernel: what uname says; None asks it.
    """
    kernel = kernel or os.uname()
    yield _sched_ext(root, kernel.release)
    yield _types(root)
    parts = (_compiler(root), _lockdown(root), _real_time(root, kernel.version), _cpus(root), _image(root, kernel))
    yield from (part for part in parts if part)
    yield from _others()


def _sched_ext(root: Path, release: str) -> Finding:
    if (root / "sys/kernel/sched_ext/state").exists():
        return Finding("host sched_ext", "info", f"yes, in {release}")
    return Finding("host sched_ext", "info", f"not in {release}", "policies run in the micro-VM only")


def _types(root: Path) -> Finding:
    if (root / "sys/kernel/btf/vmlinux").exists():
        return Finding("host BTF", "info", "yes")
    return Finding("host BTF", "info", "no", "the host itself cannot load policies")


def _compiler(root: Path) -> Finding | None:
    """Kernel functions are called from compiled programs only (add_kfunc_call() in kernel/bpf/verifier.c)."""
    if _text(root / "proc/sys/net/core/bpf_jit_enable") != "0":
        return None
    consequence = "the kernel refuses every policy: it calls kernel functions from compiled programs only"
    remedy = "run as root: sysctl net.core.bpf_jit_enable=1"
    return Finding("host BPF compiler", "warning", "net.core.bpf_jit_enable is 0", consequence, remedy)


def _lockdown(root: Path) -> Finding | None:
    """In confidentiality mode no BPF program reads kernel memory (LOCKDOWN_BPF_READ_KERNEL, security/lockdown)."""
    if "[confidentiality]" not in _text(root / "sys/kernel/security/lockdown"):
        return None
    consequence = "policies and probes that read kernel memory are refused by this kernel, whatever they proved"
    remedy = "boot without lockdown=confidentiality; integrity is no obstacle"
    return Finding("host lockdown", "warning", "confidentiality", consequence, remedy)


def _real_time(root: Path, version: str) -> Finding | None:
    if _text(root / "sys/kernel/realtime") != "1" and "PREEMPT_RT" not in version:
        return None
    consequence = (
        "interrupts are served by real-time threads, above any policy: run-queue delays measured in the VM are not this"
        " host's"
    )
    return Finding("host real time", "warning", "PREEMPT_RT", consequence, "measure on this host before you deploy")


def _cpus(root: Path) -> Finding | None:
    """CPUs that may come later: policies with a queue or a slot for each possible CPU meet them."""
    folder = root / "sys/devices/system/cpu"
    possible, online = (cpus_in(_text(folder / name)) for name in ("possible", "online"))
    if len(possible) <= len(online):
        return None
    consequence = "what a policy keeps for each possible CPU is larger than in the VM, and partly nobody's"
    detail = f"{len(online)} online, {len(possible)} possible"
    return Finding("host CPUs", "info", detail, consequence, "pass possible_cpus= to the kernel if they never come")


def _image(root: Path, kernel: os.uname_result) -> Finding | None:
    """Whether the image that is installed under the running kernel's name is another build, or gone."""
    image, _config, _modules = parts_of(kernel.release, root)
    version = _image_version(image) if image else ""
    if not version or kernel.version in version:
        return None
    detail = f"the installed {kernel.release} is another build than the one that runs"
    consequence = "what is proved on the installed one is not of this kernel: schedagentd refuses it"
    return Finding("host kernel image", "warning", detail, consequence, "boot the installed kernel")


def _image_version(image: Path) -> str:
    """Return the version text of a bzImage, as uname -rv has it in parts; empty if it is none or cannot be read."""
    try:
        with image.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except OSError:
        return ""
    if header[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
        return ""
    start = _SETUP_BYTES + int.from_bytes(header[_VERSION_AT : _VERSION_AT + 2], "little")
    return header[start : start + _VERSION_BYTES].partition(b"\0")[0].decode("ascii", errors="replace")


def _others() -> Iterator[Finding]:
    """Schedulers of others, and scx_loader, which start theirs again when it is stopped."""
    others = list(other_schedulers())
    if others:
        consequence = "two that manage the scheduler get into each other's way: schedagentd deploys nothing meanwhile"
        yield Finding("other schedulers", "warning", ", ".join(map(str, others)), consequence, stop_hint(others))


def _text(path: Path) -> str:
    """Return what a file of the kernel says, empty if it is not there or may not be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
