"""PID 1 of the host test's initramfs: mounts the Debian root, leaves it an agent in /run, and becomes its systemd.

The agent and its unit lie in /run, which is memory, so that the disk is what Debian's packages made of it, no more.
Imports only the standard library and kernel_bpf.load.linux.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from kernel_bpf.load import linux

ROOT = Path("/root")
DISK = Path("/dev/vda")
MODULES = Path("/modules")
MS_MOVE = 0x2000
UNIT = """[Unit]
Description=Runs what the host test asks for

[Service]
ExecStart=/usr/bin/python3 -ISB /run/host-test/agent.py
CPUSchedulingPolicy=fifo
CPUSchedulingPriority=50
CPUSchedulingResetOnFork=yes
OOMScoreAdjust=-1000
KillMode=process
"""


def main() -> None:
    """Never returns."""
    linux.mount("proc", "/proc", "proc")
    linux.mount("devtmpfs", "/dev", "devtmpfs")
    for module in sorted(MODULES.iterdir()):
        linux.load_module(module)
    while not DISK.exists():
        time.sleep(0.01)
    linux.mount(str(DISK), ROOT, "ext4", 0, "")
    linux.mount("tmpfs", ROOT / "run", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755")
    leave_agent(ROOT / "run")
    os.chdir(ROOT)
    linux.mount(".", "/", "", MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    os.execv("/sbin/init", ["/sbin/init"])


def leave_agent(run: Path) -> None:
    """Put the agent where the systemd to come finds it."""
    script = run / "host-test" / "agent.py"
    script.parent.mkdir()
    script.write_bytes(Path("/agent/guest_agent.py").read_bytes())
    unit = run / "systemd/system/host-test-agent.service"
    wants = unit.parent / "multi-user.target.wants" / unit.name
    wants.parent.mkdir(parents=True)
    unit.write_text(UNIT)
    wants.symlink_to(f"../{unit.name}")
