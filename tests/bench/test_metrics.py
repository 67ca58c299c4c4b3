"""What the exporter costs: one scrape of this machine, and the process between scrapes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from schedagent.metrics.run_queue import RunQueue
from tests.support.paths import ROOT

pytestmark = [pytest.mark.bench, pytest.mark.timeout(180)]

SCRAPES = 10
APART_S = 1.5
IDLE_S = 30
MOST_RSS_KIB = 128 * 1024
MOST_IDLE_CPU = 0.0005
MOST_SCRAPE_CPU_S = 0.2
MOST_LOOK_S = 50e-6
"""For each thread."""


def cpu_s(pid: int) -> float:
    """CPU time of all threads that live, in seconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) * 1e-9


def process_cpu_s(pid: int) -> float:
    """CPU time of the process, threads that ended included, in seconds (to a hundredth)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_scrapes_and_idle(tmp_path):
    words = [sys.executable, "-m", "schedagent", "metrics", "serve", "--listen", "127.0.0.1:0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SCHEDAGENT_STATE": str(tmp_path)}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        address = process.stderr.readline().strip()
        sizes = [len(opener.open(address).read())]
        started_s = process_cpu_s(process.pid)
        waited = 0.0
        for _scrape in range(SCRAPES):
            time.sleep(APART_S)
            asked = time.monotonic()
            sizes.append(len(opener.open(address).read()))
            waited += time.monotonic() - asked
        each_s = (process_cpu_s(process.pid) - started_s) / SCRAPES
        before = cpu_s(process.pid)
        time.sleep(IDLE_S)
        idle = (cpu_s(process.pid) - before) / IDLE_S
        rss_kib = int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text()).group(1))
        print(
            f"\nexporter: {rss_kib / 1024:.0f} MiB, {idle:.4%} of a CPU idle, {started_s:.2f} s of CPU to the first"
            f"; {each_s * 1e3:.0f} ms of CPU, {waited / SCRAPES * 1e3:.0f} ms and {sizes[-1]} bytes for each"
        )
        assert rss_kib < MOST_RSS_KIB
        assert idle < MOST_IDLE_CPU
        assert each_s < MOST_SCRAPE_CPU_S
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_each_thread():
    queue = RunQueue()
    queue.read()
    begun = time.process_time()
    for _look in range(20):
        queue.read()
    each = (time.process_time() - begun) / 20 / queue.threads
    print(f"\na look at run queues: {each * 1e6:.1f} us for each of {queue.threads} threads")
    assert each < MOST_LOOK_S
