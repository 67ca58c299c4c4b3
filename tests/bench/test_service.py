"""What the agent service costs while it only watches: CPU time of a reading, and of the process between readings."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kernel_bpf.observe.tasks import Threads
from schedagent.service.reading import HostMeter
from tests.support.paths import ROOT

pytestmark = [pytest.mark.bench, pytest.mark.timeout(180)]

IDLE_S = 60
MOST_US_A_THREAD = 200
MOST_CPU = 0.01


def test_a_look():
    meter, used_s = HostMeter(()), []
    meter.read()
    for _ in range(20):
        time.sleep(0.1)
        begun = time.process_time()
        meter.read()
        used_s.append(time.process_time() - begun)
    threads = len(list(Threads("", Path("/")).now()))
    each_us = statistics.median(used_s) * 1e6 / threads
    print(
        f"\na reading of {threads} threads: {statistics.median(used_s) * 1e3:.1f} ms of CPU, {each_us:.0f} us a thread"
    )
    assert each_us < MOST_US_A_THREAD


def test_the_process(tmp_path):
    """With its default intervals of a minute; the first seconds, in which it starts, do not count."""
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "SCHEDAGENT_STATE": str(tmp_path / "s"),
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen([sys.executable, "-m", "schedagent", "daemon"], env=environment, cwd=tmp_path)
    try:
        time.sleep(15)
        before = ran_s(process.pid)
        time.sleep(IDLE_S)
        share = (ran_s(process.pid) - before) / IDLE_S
        rss = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmRSS" in line)
    finally:
        process.terminate()
        process.wait()
    print(f"\nthe agent service: {share:.3%} of a CPU, {rss}")
    assert share < MOST_CPU


def ran_s(pid: int) -> float:
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) * 1e-9
