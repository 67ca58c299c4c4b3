"""What each systemd unit of ours must say, and the example configurations; test_units.py holds what all must."""

from __future__ import annotations

import configparser
import dataclasses
import re
import tomllib

from schedagent.cli.verify import DEFAULT_GROUP
from schedagent.client import observer as client_observer
from schedagent.core.process.machine_lock import FILE_NAME, FOLDERS
from schedagent.metrics.server import ADDRESS
from schedagent.observer.__main__ import GROUP as OBSERVER_GROUP
from schedagent.observer.__main__ import SOCKET as OBSERVER_SOCKET
from schedagent.schedagentd.config import Config, load_config
from tests.support.paths import ROOT

UNITS = ROOT / "deploy" / "systemd"
SERVICE, SOCKET = UNITS / "schedagent-verifier.service", UNITS / "schedagent-verifier.socket"
SYSUSERS = UNITS / "schedagent-verifier.sysusers"
DAEMON, DAEMON_SOCKET = UNITS / "schedagentd.service", UNITS / "schedagentd.socket"
METRICS, METRICS_SOCKET = UNITS / "schedagent-metrics.service", UNITS / "schedagent-metrics.socket"


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


def test_only_the_group_may_ask_and_looking_is_another_one():
    socket = unit(SOCKET)["Socket"]
    assert (socket["SocketMode"], socket["SocketGroup"]) == ("0660", "schedagent-sign")
    assert DEFAULT_GROUP == socket["SocketGroup"] != Config().group
    assert f"g {DEFAULT_GROUP} " in re.sub(" +", " ", SYSUSERS.read_text())
    assert f"m schedagent {DEFAULT_GROUP}" in (UNITS / "schedagent.sysusers").read_text().splitlines()


def test_schedagentd_has_few_rights():
    """tests/vm/test_schedagentd_in_vm.py runs it with these capabilities; SCHED_EXT is no real-time policy."""
    service = unit(DAEMON)["Service"]
    assert service["CapabilityBoundingSet"] == "CAP_BPF CAP_PERFMON CAP_SYS_NICE CAP_SYS_PTRACE"
    assert (service["RestrictAddressFamilies"], service["PrivateNetwork"]) == ("AF_UNIX", "yes")
    assert "RestrictRealtime" not in service, "systemd's filter refuses every policy but three, SCHED_EXT too"
    assert (service["Type"], service["WatchdogSec"], service["Restart"]) == ("notify", "30", "on-failure")
    assert unit(DAEMON_SOCKET)["Socket"]["ListenStream"] == str(Config().socket)
    assert service["StateDirectory"] == Config().state_dir.name
    assert f"d {Config().keys_dir} " in re.sub(" +", " ", (UNITS / "schedagentd.tmpfiles").read_text())


def test_the_lab_s_lock_is_in_reach_of_every_unit_that_measures():
    """Of them, not of others: /tmp is private to a unit, and the rest of the system read-only."""
    place = FOLDERS[0] / FILE_NAME
    assert f"f {place} 0666 root root -" in (UNITS / "schedagentd.tmpfiles").read_text()
    for path in (SERVICE, UNITS / "schedagent.service"):
        assert f"ReadWritePaths=-{FOLDERS[0]}" in unit_text(path)


def test_the_exporter_may_only_look():
    """tests/unit/metrics/test_metrics_server.py runs it without a network, and as somebody who may not write."""
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


def test_the_observer_has_two_capabilities_no_network_and_no_root():
    """tests/vm/test_observer_in_vm.py traces with these."""
    lines = unit_text(UNITS / "schedagent-observer.service")
    for line in (
        "CapabilityBoundingSet=CAP_BPF CAP_PERFMON",
        "AmbientCapabilities=CAP_BPF CAP_PERFMON",
        "DynamicUser=yes",
        "PrivateNetwork=yes",
        "RestrictAddressFamilies=AF_UNIX",
    ):
        assert line in lines
    socket = unit(UNITS / "schedagent-observer.socket")["Socket"]
    assert (socket["SocketMode"], socket["SocketGroup"]) == ("0660", OBSERVER_GROUP)
    assert socket["ListenStream"] == str(OBSERVER_SOCKET) == str(client_observer.SOCKET)
