"""What the kernel of a shaped guest sees, and what the proving ground shows there that a flat guest does not."""

from __future__ import annotations

import json
import sys

import pytest

from schedagent.core.settings import load_settings
from schedagent.run.opening import open_lab
from verifier.microvm import jobs
from verifier.microvm.topology import SHAPED

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

SYSFS = """
import json
from pathlib import Path
system = Path("/sys/devices/system")
def every(pattern):
    return sorted({path.read_text().strip() for path in system.glob(pattern)})
def total_kib(node):
    return int((node / "meminfo").read_text().split("MemTotal:")[1].split()[0])
print(json.dumps({
    "nodes": every("node/node*/cpulist"),
    "llcs": every("cpu/cpu*/cache/index3/shared_cpu_list"),
    "second_level": every("cpu/cpu*/cache/index2/shared_cpu_list"),
    "siblings": every("cpu/cpu*/topology/thread_siblings_list"),
    "distances": every("node/node*/distance"),
    "memory_kib": [total_kib(node) for node in sorted(system.glob("node/node[0-9]*"))],
}))
"""


@pytest.fixture(scope="module")
def lab():
    return open_lab(load_settings())


def test_the_guest_kernel_sees_nodes_caches_and_threads(lab):
    with lab.open(hostfs=True, topology=SHAPED) as machine:
        job = jobs.RunWorkload(
            command=f"'{sys.executable}' -ISc '{SYSFS}'",
            directory="/",
            prepare="",
            environment={"PATH": "/usr/bin:/bin"},
            timeout_s=60,
            uid=0,
            gid=0,
            groups=[0],
        )
        answer = machine.call(job, 120)
    assert answer["exit_status"] == 0, answer["output"]
    seen = json.loads(answer["output"].splitlines()[-1])
    memory_kib = seen.pop("memory_kib")
    pairs = ["0-1", "2-3", "4-5", "6-7"]
    assert seen == {
        "nodes": ["0-3", "4-7"],
        "llcs": pairs,
        "second_level": pairs,
        "siblings": pairs,
        "distances": ["10 20", "20 10"],
    }
    assert min(memory_kib) > 0.8 * max(memory_kib)
