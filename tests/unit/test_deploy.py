"""The systemd units of the verifier service: accepted by systemd's own checkers, and closed where they can be."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
SERVICE, SOCKET = UNITS / "schedagent-verifier.service", UNITS / "schedagent-verifier.socket"
SYSUSERS = UNITS / "schedagent-verifier.sysusers"
WORST_EXPOSURE = 2.5

with_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def unit(path):
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str
    parser.read_string(path.read_text())
    return parser


def test_the_key_is_out_of_everybody_s_reach():
    service = unit(SERVICE)["Service"]
    user = service["User"]
    assert f"u {user} " in re.sub(" +", " ", SYSUSERS.read_text())
    assert service["StateDirectoryMode"] == "0700"
    assert f"SCHEDAGENT_STATE=/var/lib/{service['StateDirectory']}" in service["Environment"]
    assert f"SCHEDAGENT_CACHE=/var/cache/{service['CacheDirectory']}" in service["Environment"]
    assert (service["LimitCORE"], service["UMask"], service["NoNewPrivileges"]) == ("0", "0077", "yes")


def test_only_the_group_may_ask():
    socket = unit(SOCKET)["Socket"]
    assert (socket["SocketMode"], socket["SocketGroup"]) == ("0660", "schedagent")
    assert "g schedagent " in re.sub(" +", " ", SYSUSERS.read_text())


@with_systemd
def test_systemd_accepts_them(tmp_path):
    program = tmp_path / "schedagent"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for path in (SERVICE, SOCKET):
        (tmp_path / path.name).write_text(path.read_text().replace("/usr/local/bin/schedagent", str(program)))
    words = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / path.name) for path in (SERVICE, SOCKET))]
    checked = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    ours = [line for line in checked.stderr.splitlines() if "schedagent-verifier" in line]
    assert ours == []


@with_systemd
def test_little_is_left_open():
    words = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(SERVICE)]
    checked = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    if "unrecognized option" in checked.stderr:
        pytest.skip("this systemd-analyze cannot look at files (older than 250)")
    exposure = re.search(r"Overall exposure level for schedagent-verifier\.service: ([0-9.]+)", checked.stdout)
    assert float(exposure.group(1)) <= WORST_EXPOSURE, checked.stdout


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
def test_the_user_can_be_made():
    made = subprocess.run(
        ["systemd-sysusers", "--dry-run", str(SYSUSERS)], capture_output=True, text=True, timeout=30, check=False
    )
    assert made.returncode == 0, made.stderr
    assert "schedagent-verifier" in made.stdout + made.stderr
