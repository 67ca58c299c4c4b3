"""[daemon] of the settings, and what the service may begin when."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from schedagent.core.errors import UsageError
from schedagent.core.recommendation import RecommendationKind, Standing
from schedagent.core.service_settings import Mode, ServiceSettings, WatchedWorkload
from schedagent.core.settings import load_settings, workload_environment
from schedagent.core.trials.workload import Goal, WorkloadCommand
from schedagent.service.limits import is_quiet, latest_slot, may_begin, slot_s
from tests.support.finished_runs import WORKLOAD, optimise
from tests.support.paths import ROOT

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=timezone(timedelta(hours=1)))
EXAMPLE = ROOT / "deploy/systemd/schedagent.toml"


def read(tmp_path, text):
    path = tmp_path / "schedagent.toml"
    path.write_text(text)
    return load_settings({"HOME": "/h", "SCHEDAGENT_CONFIG": str(path)}).daemon


def at(hour, minute=0):
    return NOON.replace(hour=hour, minute=minute)


def test_without_a_table_it_only_monitors(tmp_path):
    assert load_settings({"HOME": "/h"}).daemon == ServiceSettings() == read(tmp_path, "")
    assert ServiceSettings().mode is Mode.MONITOR


def test_everything_can_be_said(tmp_path):
    chosen = read(
        tmp_path,
        """
        state_dir = "/var/lib/schedagent"
        [daemon]
        mode = "act"
        cgroups = ["/a.slice", "/b.slice"]
        at = "02:00"
        quiet = "22:00-06:00"
        lease_s = 90
        socket = "/run/x.sock"
        [[daemon.workloads]]
        command = "make -j"
        dir = "/srv/project"
        prepare = "make clean"
        cgroup = "/b.slice"
        [[daemon.workloads]]
        command = "./bench"
        dir = "/srv"
        goal = "latency"
        metric = "p99: ([0-9.]+)"
        """,
    )
    bench = WorkloadCommand("./bench", "/srv", Goal.LATENCY, metric="p99: ([0-9.]+)")
    assert chosen.workloads == (WatchedWorkload(WORKLOAD, "/b.slice"), WatchedWorkload(bench))
    assert (chosen.mode, chosen.lease_s, chosen.socket) == (Mode.ACT, 90.0, Path("/run/x.sock"))
    assert chosen.watched == ("/a.slice", "/b.slice")


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("daemon = 3", "a table: [daemon]"),
        ('[daemon]\nmood = "act"', "mood is unknown; known are mode, "),
        ('[daemon]\nmode = "dream"', "mode: monitor, optimise, act"),
        ('[daemon]\ncgroups = ["a"]', "cgroups: the path of a cgroup"),
        ('[daemon]\ncgroups = ["/a/../b"]', "cgroups: the path of a cgroup"),
        ('[daemon]\nevery = "1s"', 'every: a time such as "90m"'),
        ('[daemon]\nevery = "8d"', "from 1m to 7d"),
        ('[daemon]\nat = "25:00"', "at: a time of day"),
        ('[daemon]\nat = "02:00"\nevery = "1d"', "either every or at"),
        ('[daemon]\nquiet = "22-6"', "quiet: hours such as"),
        ('[daemon]\nquiet = "22:00-22:00"', "end at another time"),
        ("[daemon]\nreading_every_s = 0.1", "reading_every_s: seconds, from 1 to 3600"),
        ("[daemon]\nreading_every_s = nan", "reading_every_s: seconds"),
        ("[daemon]\nruns_per_day = true", "runs_per_day: a whole number"),
        ('[daemon]\nsocket = "x.sock"', "socket: the absolute path"),
        ('[[daemon.workloads]]\ncommand = "make"', "workloads: number 1 needs command and dir"),
        ('[[daemon.workloads]]\ncommand = "make"\ndir = "x"', "number 1, dir: an absolute path"),
        ('[[daemon.workloads]]\ncommand = ""\ndir = "/"', "number 1, command: a line of text"),
        ('[[daemon.workloads]]\ncommand = "a"\ndir = "/"\ngoal = "latency"', "or a metric"),
        ('[[daemon.workloads]]\ncommand = "a"\ndir = "/"\nmetric = "(a)(b)"', "with one group"),
        ("daemon.workloads = 3", "workloads: tables"),
    ],
)
def test_mistakes_are_told_by_their_key(tmp_path, text, accepted):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert accepted in caught.value.hint
    assert "is not accepted" in caught.value.message


def test_a_named_file_must_be_there_and_its_name_is_not_told_to_workloads(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load_settings({"HOME": "/h", "SCHEDAGENT_CONFIG": str(tmp_path / "none")})
    assert workload_environment({"SCHEDAGENT_CONFIG": "/x", "A": "b"}) == {"A": "b"}


def test_what_a_make_tells_its_children_is_not_told_to_workloads():
    of_a_make = {"MAKELEVEL": "1", "MAKEFLAGS": " -j2 --jobserver-auth=3,4", "MFLAGS": "-j2", "MAKE_TERMOUT": "/x"}
    assert workload_environment({"A": "b", **of_a_make}) == {"A": "b"}
    assert workload_environment({"MAKEFLAGS": "-j4"}) == {"MAKEFLAGS": "-j4"}


def test_the_example_shows_every_default(tmp_path):
    lines = EXAMPLE.read_text().splitlines()
    assert read(tmp_path, EXAMPLE.read_text()) == ServiceSettings()
    shown = [
        line[1:]
        for line in lines[lines.index("[daemon]") :]
        if line[:1] == "#" and line[1:2].isalpha() and " = " in line
    ]
    table = shown[: next(number for number, line in enumerate(shown) if line.startswith("command"))]
    assert read(tmp_path, "[daemon]\n" + "\n".join(line for line in table if '= ""' not in line)) == ServiceSettings()
    assert {line.split(" = ")[0] for line in table} | {"workloads"} == {one.name for one in fields(ServiceSettings)}
    uncommented = "\n".join(line.removeprefix("#") for line in lines[lines.index("#[[daemon.workloads]]") :])
    assert read(tmp_path, uncommented).workloads[0].workload.command == "make -j"


@pytest.mark.parametrize(
    ("quiet", "hours"),
    [("", []), ("22:00-06:00", [22, 23, 0, 5]), ("09:00-17:00", [9, 12, 16])],
)
def test_quiet_hours(quiet, hours):
    settings = ServiceSettings(quiet=quiet)
    assert [hour for hour in (0, 5, 6, 8, 9, 12, 16, 17, 21, 22, 23) if is_quiet(settings, at(hour))] == sorted(hours)
    if quiet.startswith("22"):
        assert is_quiet(settings, at(5, 59))
        assert not is_quiet(settings, at(21, 59))


def test_slots_of_the_schedule():
    assert latest_slot(ServiceSettings(), NOON) is None
    daily = ServiceSettings(at="02:00")
    assert latest_slot(daily, NOON) == at(2).timestamp()
    assert latest_slot(daily, at(1)) == (at(2) - timedelta(days=1)).timestamp()
    assert slot_s(daily) == 86400
    often = ServiceSettings(every="6h")
    assert latest_slot(often, NOON) == datetime(2026, 11, 22, 6, tzinfo=UTC).timestamp()
    assert slot_s(often) == 6 * 3600


def test_what_may_begin_by_itself():
    now = NOON.timestamp()
    one = optimise(now=now, cgroup="/a")
    deploy = replace(one, kind=RecommendationKind.DEPLOY, policy="good", evidence={"kernel": "7.3"})

    def may(found, begun=0, release="7.3", when=NOON, **settings):
        chosen = ServiceSettings(**{"workloads": (WatchedWorkload(WORKLOAD),)} | settings)
        return may_begin(chosen, found, when, begun=begun, kernel_release=release)

    assert [may(one, mode=mode) for mode in Mode] == [False, True, True]
    assert [may(deploy, mode=mode) for mode in Mode] == [False, False, True]
    assert not may(one, mode=Mode.ACT, quiet="11:00-13:00")
    assert not may(one, mode=Mode.ACT, workloads=()), "a workload that nobody named"
    assert not may(one, mode=Mode.ACT, begun=2)
    assert not may(deploy, mode=Mode.ACT, begun=1)
    assert not may(deploy, mode=Mode.ACT, release="7.4")
    assert not may(replace(deploy, cgroup=""), mode=Mode.ACT)
    assert not may(replace(one, standing=Standing.FAILED), mode=Mode.ACT)
    assert not may(one, mode=Mode.ACT, when=NOON + timedelta(days=2))
