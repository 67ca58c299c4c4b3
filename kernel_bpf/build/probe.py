"""Compiles the scheduling probe that the package brings (make probe), in the sandbox that policies are compiled in."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

from kernel_bpf import BPF
from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import KernelTarget

FOLDER = BPF / "observe"
SOURCE, OBJECT = FOLDER / "sched_probe.bpf.c", FOLDER / "sched_probe.o"
_LOADER = BPF.parent / "observe" / "sched_probe.py"
_DIGEST = re.compile(r'^DIGEST = "[0-9a-f]{64}"$', re.MULTILINE)


def compile_probe() -> bytes:
    """Return the probe's object; it needs no kernel's types, for its own header has all that it reads.

    Raises:
        CompileError, SetupError: as compile_policy.
    """
    no_kernel = KernelTarget("any", "", Path(), FOLDER)
    return compile_policy(SOURCE, "sched_probe", no_kernel).object_bytes


def main() -> int:
    """Write the object, and its digest into its loader."""
    content = compile_probe()
    OBJECT.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    _LOADER.write_text(_DIGEST.sub(f'DIGEST = "{digest}"', _LOADER.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
