"""`schedagent experiment`: a process that runs, a real Prometheus API, a real schedagentd over a scripted kernel."""

from __future__ import annotations

import json

import pytest

from schedagent.cli import common
from tests.support.running_service import Experiments, service


@pytest.fixture
def running():
    with service() as process:
        yield process


@pytest.fixture
def experiments(folders, kernel, run, monkeypatch):
    made = Experiments(folders, kernel, run, monkeypatch)
    yield made
    made.close()
    made.daemon.tell_kernel("reset")


def test_a_policy_that_helps_is_better_and_the_default_scheduler_is_in_charge_again(experiments, running):
    result = experiments(running.pid, "--policy", "plain", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    print(json.dumps(report, indent=1)[:3000])
    assert report["best"]["policy"] == "plain"
    assert not experiments.daemon.state["enabled"]


def test_show(experiments, running):
    result = experiments(running.pid, "--policy", "plain", "--guard-query", "errors=rate(errors[$window]):lower:10%")
    print(result.stderr)
    print(result.stdout)
    run = result.stdout.split()[1].rstrip(":")
    print(experiments.run("runs", "show", run).stdout)
    print(experiments.run("runs", "report", run).stdout)
    print(experiments.run("runs", "list").stdout)
    print(experiments.prometheus.asked_for[:4])
    experiments.ratio = 1.0
    print(experiments(running.pid, "--policy", "plain", "--policy", "turns").output)
    print(experiments(running.pid).output)
