"""What holds for every systemd unit of deploy/systemd, whoever added it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

UNITS = ROOT / "deploy" / "systemd"
SERVICES = sorted(UNITS.glob("*.service"))
WORST_EXPOSURE = 2.5
PROGRAMS = ("/usr/bin/schedagent", "/usr/sbin/schedagentd", "/usr/sbin/schedagent-observer")
OF_THE_SYSTEM = ("/bin/sh", "/bin/rm", "/bin/systemctl")
HARDENED = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "PrivateTmp=yes",
    "LimitCORE=0",
    "SystemCallFilter=@",
    "UMask=0077",
)

with_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.stem)
def test_a_service_is_hardened_and_calls_what_is_installed(path):
    text = path.read_text()
    assert [line for line in HARDENED if f"\n{line}" not in text] == []
    for started in re.findall(r"(?m)^Exec\w+=(\S+)", text):
        assert started in (*PROGRAMS, *OF_THE_SYSTEM), "make install puts PREFIX there"
    for documented in re.findall(r"file://(\S+)", text):
        assert (UNITS.parents[1] / Path(documented).name).exists()
    assert re.search(r"(?m)^CapabilityBoundingSet=", text)
    assert re.search(r"(?m)^RestrictAddressFamilies=", text)


@with_systemd
def test_systemd_accepts_all_of_them_together(tmp_path):
    """In a root of their own, with the programs where they will be."""
    folder = tmp_path / "usr/lib/systemd/system"
    folder.mkdir(parents=True)
    for path in UNITS.iterdir():
        if path.suffix in (".service", ".socket", ".timer"):
            shutil.copy(path, folder)
    for name in ("sysinit", "basic", "shutdown", "sockets", "timers", "time-sync", "network", "multi-user"):
        (folder / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    for program in (path.lstrip("/") for path in (*PROGRAMS, *OF_THE_SYSTEM)):
        (tmp_path / program).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    names = sorted(path.name for path in folder.glob("schedagent*"))
    words = ["systemd-analyze", "verify", "--man=no", f"--root={tmp_path}", *names]
    checked = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert [line for line in checked.stderr.splitlines() if "schedagent" in line] == []


@with_systemd
@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.stem)
def test_little_is_left_open_by_any(path):
    words = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(path)]
    checked = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", checked.stdout)
    assert float(exposure.group(1)) <= WORST_EXPOSURE, checked.stdout


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
def test_all_users_can_be_made_together():
    words = ["systemd-sysusers", "--dry-run", *map(str, sorted(UNITS.glob("*.sysusers")))]
    made = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert made.returncode == 0, made.stderr
    assert "onflicting" not in made.stderr
