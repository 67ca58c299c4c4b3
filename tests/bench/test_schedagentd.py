"""What schedagentd costs while nothing is deployed (bounds: issue 5), and 200 pulses in the guest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from schedagent.client.daemon import DaemonClient
from schedagent.core.errors import SetupError
from schedagent.core.settings import load_settings
from tests.support.in_guest import guest_objects, told_inside
from tests.support.paths import ROOT
from verifier.microvm.kernels import default_kernel

pytestmark = [pytest.mark.bench, pytest.mark.timeout(120)]

IDLE_S = 30
MOST_RSS_KIB = 45 * 1024
MOST_CPU = 0.001


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def exact_cpu_s(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) * 1e-9


def test_idle(tmp_path):
    (tmp_path / "c.toml").write_text(f'state_dir = "{tmp_path}/state"\nsocket = "{tmp_path}/s"\n')
    words = [sys.executable, "-m", "schedagent.schedagentd", "--config", str(tmp_path / "c.toml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WATCHDOG_USEC": "60000000"}
    process = subprocess.Popen(words, env=environment)
    try:
        client, begun = DaemonClient(tmp_path / "s"), time.monotonic()
        while True:
            try:
                client.ask("status")
                break
            except SetupError:
                assert time.monotonic() - begun < 20
                time.sleep(0.1)
        started_s, before = cpu_s(process.pid), exact_cpu_s(process.pid)
        time.sleep(IDLE_S)
        share = (exact_cpu_s(process.pid) - before) / IDLE_S
        status = Path(f"/proc/{process.pid}/status").read_text()
        rss_kib = int(re.search(r"VmRSS:\s+(\d+)", status).group(1))
        print(f"\nschedagentd idle: {rss_kib / 1024:.1f} MiB, {share:.4%} of a CPU; {started_s:.2f} s of CPU to start")
        assert rss_kib < MOST_RSS_KIB
        assert share < MOST_CPU
    finally:
        process.terminate()
        process.wait(10)


PULSES, LATE_S = 200, 0.5


@pytest.mark.vm
@pytest.mark.timeout(3600)
def test_pulses(tmp_path):
    """None is longer than the second that it was to be, by more than half a second."""
    settings = load_settings()
    kernel = default_kernel(settings)
    objects = guest_objects(settings, kernel, tmp_path)
    seen = told_inside(settings.cache_dir, kernel, "guest_deploy.py", *objects, PULSES, timeout_s=3000)
    print(f"\n{seen}")
    assert seen["count"] >= PULSES
    assert seen["late_s"][-1] < LATE_S
