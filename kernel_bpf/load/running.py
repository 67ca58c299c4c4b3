"""The kernel that runs here: what it is, and what was changed in it since."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from schedagent.core.errors import SetupError

NOTES = Path("/sys/kernel/notes")
LIVE_PATCHES, MODULES = Path("/sys/kernel/livepatch"), Path("/sys/module")

_NOTE = struct.Struct("=III")  # Elf64_Nhdr: sizes of name and content, type
_GNU_BUILD_ID = 3


def running_release() -> str:
    """What uname -r prints."""
    return os.uname().release


def running_build_id(notes: Path = NOTES) -> str:
    """Return the hex GNU build id of the running kernel, which is that of its vmlinux.

    Raises:
        SetupError: the kernel does not tell.
    """
    try:
        content = notes.read_bytes()
    except OSError as error:
        raise SetupError(f"{notes} cannot be read: {error.strerror}") from None
    build_id = _build_id(content)
    if not build_id:
        raise SetupError(f"{notes} names no build id", "use a kernel built with --build-id, as distributions do")
    return build_id


def live_patches(patches: Path = LIVE_PATCHES, modules: Path = MODULES) -> tuple[str, ...]:
    """Return the live patches at work, or on their way in or out: each as the module's name and build id, in order.

    The build id of a kernel is that of the file it began as; a live patch replaces functions in it since
    (Documentation/ABI/testing/sysfs-kernel-livepatch).

    Raises:
        SetupError: the kernel does not tell.
    """
    try:
        names = sorted(path.name for path in patches.iterdir()) if patches.exists() else []
        at_work = [
            name for name in names if any(_number(patches / name / state) for state in ("enabled", "transition"))
        ]
        return tuple(f"{name}:{_module_build_id(modules / name)}" for name in at_work)
    except (OSError, ValueError) as error:
        raise SetupError(f"the live patches in {patches} cannot be read: {error}") from None


def _number(path: Path) -> int:
    return int(path.read_text())


def _module_build_id(module: Path) -> str:
    """The build id of a loaded module, "unknown" if it has none."""
    try:
        return _build_id((module / "notes/.note.gnu.build-id").read_bytes()) or "unknown"
    except FileNotFoundError:
        return "unknown"


def _build_id(content: bytes) -> str:
    """Return the GNU build id among ELF notes; empty if there is none."""
    at = 0
    while at + _NOTE.size <= len(content):
        name_size, size, kind = _NOTE.unpack_from(content, at)
        name = at + _NOTE.size
        begin = name + (name_size + 3 & ~3)
        if kind == _GNU_BUILD_ID and content[name : name + name_size] == b"GNU\0":
            return content[begin : begin + size].hex()
        at = begin + (size + 3 & ~3)
    return ""
