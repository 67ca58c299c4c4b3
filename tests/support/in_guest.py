"""Running a program of tests/vm as root in a micro-VM that sees this machine's files."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import prepare_target
from schedagent.core.settings import Settings
from tests.support.paths import ROOT
from verifier.lab.doubt import twice
from verifier.microvm import jobs
from verifier.microvm.image import SnapshotStore
from verifier.microvm.kernels import KernelImage


def guest_objects(settings: Settings, kernel: KernelImage, folder: Path) -> list[Path]:
    """Compile the policies of guest_deploy.py for a kernel."""
    target = prepare_target(kernel.vmlinuz, kernel.release, settings.cache_dir)
    objects = [folder / f"{name}.o" for name in ("starve", "trouble")]
    for path in objects:
        source = ROOT / "tests" / "fixtures" / "policies" / f"{path.stem}.bpf.c"
        path.write_bytes(compile_policy(source, path.stem, target).object_bytes)
    return objects


def told_inside(
    cache_dir: Path, kernel: KernelImage, program: str, *words: object, timeout_s: float, memory_mib: int = 512
) -> Any:
    """Run a Python program of tests/vm; return the JSON of its last line."""
    script = ROOT / "tests" / "vm" / program
    job = jobs.RunWorkload(
        command=" ".join(f"'{word}'" for word in (sys.executable, script, *words)),
        directory="/",
        prepare="",
        environment={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(ROOT)},
        timeout_s=timeout_s,
        uid=0,
        gid=0,
        groups=[],
    )

    def attempt() -> dict[str, Any]:
        with SnapshotStore(cache_dir / "snapshots").open(
            kernel, cpus=2, memory_mib=memory_mib, kvm=False, hostfs=True
        ) as machine:
            machine.call(jobs.Hello(time.time_ns()), 60)
            machine.call(jobs.MountHost(), 60)
            return machine.call(job, timeout_s + 100)

    answer = twice(attempt)
    assert answer["exit_status"] == 0, answer["output"]
    return json.loads(answer["output"].splitlines()[-1])
