"""What an experiment is asked for: stored and read again, and each mistake is one clear line."""

from __future__ import annotations

import json

import pytest

from schedagent.core.errors import UsageError
from schedagent.core.trials.objective import Direction
from schedagent.core.trials.workload import Goal
from schedagent.experiment.spec import Experiment, Kind, NumberSource, checked, read_guard, seconds

QUERY = NumberSource(Kind.QUERY, "up", "http://127.0.0.1:9090")
GUARD = read_guard(Kind.QUERY, "errors=sum(rate(e[$window])):lower:10%", 1, "http://127.0.0.1:9090")
EXPERIMENT = Experiment(("unit", "nginx.service"), QUERY, Direction.HIGHER, (GUARD,), 30.0, 5.0, 600.0)


def test_it_is_stored_and_read_again():
    assert Experiment.from_json(json.loads(json.dumps(EXPERIMENT.to_json()))) == EXPERIMENT


def test_it_is_a_workload_of_its_own():
    workload = EXPERIMENT.workload
    assert (workload.command, workload.running, workload.goal) == ("unit nginx.service", True, Goal.THROUGHPUT)
    assert workload.metric == "query http://127.0.0.1:9090 up"
    assert [guard.metric.name for guard in workload.guards] == ["errors"]
    assert workload.key != Experiment(("unit", "nginx.service")).workload.key


@pytest.mark.parametrize(
    ("text", "name", "body", "direction", "margin"),
    [
        ("up", "guard 3", "up", Direction.LOWER, 0.05),
        ("errors=rate(e[1m])", "errors", "rate(e[1m])", Direction.LOWER, 0.05),
        ("up:higher", "guard 3", "up", Direction.HIGHER, 0.05),
        ('job:rate{a="b"}:lower:7.5%', "guard 3", 'job:rate{a="b"}', Direction.LOWER, 0.075),
        ("up==1", "guard 3", "up==1", Direction.LOWER, 0.05),
        ("my rate=up", "my rate", "up", Direction.LOWER, 0.05),
    ],
)
def test_a_guard_has_a_name_a_direction_and_a_margin(text, name, body, direction, margin):
    guard = read_guard(Kind.QUERY, text, 3)
    assert (guard.name, guard.source.text, guard.direction, guard.margin) == (name, body, direction, margin)


@pytest.mark.parametrize("text", ["", "name=", ":lower", "x:lower:0%", "x:lower:200%"])
def test_what_is_no_guard_is_refused(text):
    with pytest.raises(UsageError, match="cannot be read"):
        read_guard(Kind.QUERY, text, 1)


@pytest.mark.parametrize(
    ("text", "value"), [("20", 20), ("20s", 20), ("0.5s", 0.5), ("5min", 300), ("2m", 120), ("1h", 3600)]
)
def test_times(text, value):
    assert seconds(text, "--for") == value


@pytest.mark.parametrize("text", ["", "0", "-5s", "soon", "1 h", "5d", "1e3"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(UsageError, match="is no time"):
        seconds(text, "--window")


def changed(**fields):
    return Experiment(**{"scope": ("pid", "1"), **fields})


@pytest.mark.parametrize(
    ("experiment", "why"),
    [
        (changed(window_s=2.0, wash_out_s=2.0), "no longer than its wash-out of 2 s"),
        (changed(window_s=0.5, wash_out_s=0.1), "a window of 0.5 s is not possible"),
        (changed(window_s=3600.0), "a window of 3600 s is not possible"),
        (changed(for_s=60.0), "in 60 s there are 1 pairs of windows of 20 s"),
        (changed(for_s=1e9), "accepted: --for 255s to 168h"),
        (changed(metric=NumberSource(Kind.QUERY, "rate(x[5m])", QUERY.place)), "looks back 300 s, and only 16 s"),
        (changed(metric=NumberSource(Kind.QUERY, "up", "nowhere")), "is not the address of a Prometheus server"),
        (changed(metric=NumberSource(Kind.COMMAND, "a 'b")), "cannot be read"),
        (changed(metric=NumberSource(Kind.LOG, "(", "/dev/null")), "is not a regular expression"),
        (changed(metric=NumberSource(Kind.LOG, "x", "/no/such.log")), "there is no log /no/such.log"),
        (changed(guards=(GUARD, GUARD)), "two guards have the same name"),
        (changed(guards=(GUARD,) * 20), "20 guards are named"),
    ],
)
def test_what_makes_no_sense_is_refused(experiment, why):
    with pytest.raises(UsageError) as refused:
        checked(experiment)
    assert why in f"{refused.value.message} {refused.value.hint}"


def test_what_makes_sense_is_accepted():
    assert checked(EXPERIMENT) == EXPERIMENT


@pytest.mark.parametrize(
    ("scope", "why"),
    [
        (("unit", "no-such-unit-here"), "has no cgroup"),
        (("cgroup", "/no/such"), "there is no cgroup"),
        (("pid", "4194304"), "there is no process"),
        (("container", "no-such-container-here"), "has no cgroup"),
    ],
)
def test_what_does_not_run_is_named(scope, why):
    with pytest.raises(UsageError, match=why):
        Experiment(scope).target()
