"""Running a program of tests/vm as root in a micro-VM that sees this machine's files."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT
from verifier.lab.doubt import twice
from verifier.microvm import jobs
from verifier.microvm.image import SnapshotStore
from verifier.microvm.kernels import KernelImage


def told_inside(cache_dir: Path, kernel: KernelImage, program: str, *words: object, timeout_s: float) -> Any:
    """Run a Python program of this folder; return the JSON of its last line."""
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
            kernel, cpus=2, memory_mib=512, kvm=False, hostfs=True
        ) as machine:
            machine.call(jobs.Hello(time.time_ns()), 60)
            machine.call(jobs.MountHost(), 60)
            return machine.call(job, timeout_s + 100)

    answer = twice(attempt)
    assert answer["exit_status"] == 0, answer["output"]
    return json.loads(answer["output"].splitlines()[-1])
