"""The systemd units of verifier, schedagentd and exporter: systemd accepts them, and little is left open."""

from __future__ import annotations

import configparser
import dataclasses
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from schedagent.metrics.server import ADDRESS
from schedagent.schedagentd.config import Config, load_config

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
SERVICE, SOCKET = UNITS / "schedagent-verifier.service", UNITS / "schedagent-verifier.socket"
SYSUSERS = UNITS / "schedagent-verifier.sysusers"
DAEMON, DAEMON_SOCKET = UNITS / "schedagentd.service", UNITS / "schedagentd.socket"
METRICS, METRICS_SOCKET = UNITS / "schedagent-metrics.service", UNITS / "schedagent-metrics.socket"
WORST_EXPOSURE = 2.5

with_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def unit(path):
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str
    parser.read_string(path.read_text())
    return parser


def unit_text(path):
    """The lines of a unit that may have one key twice."""
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


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


def test_schedagentd_has_few_rights():
    """tests/vm/test_schedagentd_in_vm.py runs it with these capabilities; SCHED_EXT is no real-time policy."""
    service = unit(DAEMON)["Service"]
    assert service["CapabilityBoundingSet"] == "CAP_BPF CAP_PERFMON CAP_SYS_NICE CAP_SYS_PTRACE"
    assert (service["RestrictAddressFamilies"], service["PrivateNetwork"]) == ("AF_UNIX", "yes")
    assert "RestrictRealtime" not in service, "systemd's filter refuses every policy but three, SCHED_EXT too"
    assert (service["Type"], service["WatchdogSec"], service["Restart"]) == ("notify", "60", "on-failure")
    assert unit(DAEMON_SOCKET)["Socket"]["ListenStream"] == str(Config().socket)
    assert service["StateDirectory"] == Config().state_dir.name
    assert f"d {Config().keys_dir} " in re.sub(" +", " ", (UNITS / "schedagentd.tmpfiles").read_text())


def test_the_exporter_may_only_look():
    """tests/unit/test_metrics_server.py runs it without a network, and as somebody who may not write."""
    service, told = unit_text(METRICS), unit(METRICS_SOCKET)["Socket"]
    for line in ("RestrictAddressFamilies=AF_UNIX", "PrivateNetwork=yes", "ProtectSystem=strict", "User=schedagent"):
        assert line in service
    assert not [line for line in service if line.startswith(("StateDirectory", "ReadWritePaths"))]
    assert (told["ListenStream"], told["IPAddressDeny"], told["IPAddressAllow"]) == (ADDRESS, "any", "localhost")


def test_the_example_configuration_shows_every_default(tmp_path):
    example = (UNITS / "schedagentd.toml").read_text()
    path = tmp_path / "all.toml"
    path.write_text(re.sub(r"(?m)^#(?=\w+ = |\[)", "", example))
    assert load_config(path) == Config()
    assert set(tomllib.loads(path.read_text())) == {field.name for field in dataclasses.fields(Config)}
    assert tomllib.loads(example) == {}


@with_systemd
@pytest.mark.parametrize("name", ["schedagent-verifier", "schedagentd", "schedagent-metrics"])
def test_systemd_accepts_them(tmp_path, name):
    units = [UNITS / f"{name}.service", UNITS / f"{name}.socket"]
    for path in (tmp_path / "schedagent", tmp_path / "schedagentd"):
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    for path in units:
        text = re.sub("=/usr/s?bin/schedagent", f"={tmp_path}/schedagent", path.read_text())
        (tmp_path / path.name).write_text(text)
    words = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / path.name) for path in units)]
    checked = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    ours = [line for line in checked.stderr.splitlines() if name in line]
    assert ours == []


@with_systemd
@pytest.mark.parametrize("path", [SERVICE, DAEMON, METRICS, UNITS / "schedagent.service"], ids=lambda path: path.stem)
def test_little_is_left_open(path):
    words = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(path)]
    checked = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    if "unrecognized option" in checked.stderr:
        pytest.skip("this systemd-analyze cannot look at files (older than 250)")
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", checked.stdout)
    assert float(exposure.group(1)) <= WORST_EXPOSURE, checked.stdout


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
def test_the_user_can_be_made():
    groups = UNITS / "schedagentd.sysusers"
    made = subprocess.run(
        ["systemd-sysusers", "--dry-run", str(SYSUSERS), str(groups)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert "schedagent-verifier" in made.stdout + made.stderr


def test_the_agent_service_is_an_ordinary_user():
    service = unit(UNITS / "schedagent.service")["Service"]
    assert (service["User"], service["CapabilityBoundingSet"], service["NoNewPrivileges"]) == ("schedagent", "", "yes")
    assert f"u {service['User']} " in re.sub(" +", " ", (UNITS / "schedagent.sysusers").read_text())
    assert (service["Type"], service["StateDirectoryMode"], service["LimitCORE"]) == ("notify", "0700", "0")
    assert service["ProtectHome"] == "read-only", "workloads may lie there; the lab reads them"
    assert "ProtectProc" not in service, "it looks at what all tasks wait for"
    told = dict(one.split("=") for one in service["Environment"].split())
    assert told["SCHEDAGENT_STATE"] == f"/var/lib/{service['StateDirectory']}"
    assert told["SCHEDAGENT_CACHE"] == f"/var/cache/{service['CacheDirectory']}"
    assert told["SCHEDAGENT_CONFIG"] == "/etc/schedagent/schedagent.toml"


@with_systemd
def test_systemd_accepts_the_agent_service(tmp_path):
    program, path = tmp_path / "schedagent", tmp_path / "schedagent.service"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path.write_text((UNITS / path.name).read_text().replace("/usr/bin/schedagent", str(program)))
    words = ["systemd-analyze", "verify", "--man=no", str(path)]
    checked = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert [line for line in checked.stderr.splitlines() if "schedagent.service" in line] == []
