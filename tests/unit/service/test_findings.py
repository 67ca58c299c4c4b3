"""What the agent service recommends, and that the same finding is the same recommendation."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from repo_store.store import PolicyRepository
from schedagent.core.approval import ApprovalStage
from schedagent.core.recommendation import MACHINE, RecommendationKind, Standing
from schedagent.core.service_settings import ServiceSettings, WatchedWorkload
from schedagent.core.trials.workload import Goal, WorkloadCommand
from schedagent.service.drift import RECENT, drifts, make_baseline, mix_of
from schedagent.service.findings import Findings, optimize_command
from tests.support.finished_runs import BUILD, DAY_S, WORKLOAD, reading, win
from tests.support.scripted_kernel import RELEASE

NAMED = ServiceSettings(workloads=(WatchedWorkload(WORKLOAD, "/build.slice"),))
OTHER = WorkloadCommand("./bench", "/srv", Goal.LATENCY, metric="p99: ([0-9.]+)")


@pytest.fixture
def repository(tmp_path):
    with PolicyRepository(tmp_path / "repository.sqlite") as opened:
        yield opened


def drifted(subject=MACHINE, commands=BUILD, since=0):
    """A baseline, what is not as usual, and the mix by then."""
    usual = [reading(since + number, subject=subject, commands=commands) for number in range(60)]
    latest = [reading(60 + number, subject=subject, delay_s=0.02, commands=commands) for number in range(RECENT)]
    baseline = make_baseline(usual)
    return baseline, drifts(baseline, latest), mix_of(latest)


def test_drift_of_a_named_cgroup_recommends_its_workload(repository):
    findings = Findings(repository, NAMED)
    [one] = findings.of_drift(*drifted("/build.slice"), now=9000.0)
    assert (one.kind, one.workload, one.cgroup) == (RecommendationKind.OPTIMISE, WORKLOAD, "/build.slice")
    assert one.what == "schedagent optimize --workload 'make -j' --dir /srv/project --prepare 'make clean'"
    assert one.why == "cgroup /build.slice is not as usual: its tasks wait 20 ms for a CPU, usually 4 ms."
    assert one.evidence["drift"]["run_queue_delay_s"]["now"]["count"] == RECENT
    assert one.expires_at == 9000.0 + 7 * DAY_S
    [again] = findings.of_drift(*drifted("/build.slice"), now=9999.0)
    assert (again.id, len(one.id)) == (one.id, 8)
    [later] = findings.of_drift(*drifted("/build.slice", since=1), now=9000.0)
    assert later.id != one.id, "it is compared with another baseline"


def test_a_known_workload_is_recognised_by_its_commands(repository):
    findings = Findings(repository, ServiceSettings())
    assert list(findings.of_drift(*drifted(), now=9000.0)) == [], "nobody knows what runs"
    win(repository)
    [one] = findings.of_drift(*drifted(), now=9000.0)
    assert (one.workload, one.cgroup) == (WORKLOAD, "")
    [one] = findings.of_drift(*drifted("/x"), now=9000.0)
    assert one.cgroup == "/x"
    assert list(findings.of_drift(*drifted(commands={"rustc": 9.0, "ld": 1.0}), now=9000.0)) == []


def test_waiting_much_is_recommended_unless_it_was_looked_into_lately(repository):
    findings = Findings(repository, NAMED)
    baseline = make_baseline([reading(number, subject="/build.slice", delay_s=0.05) for number in range(20)])
    [one] = findings.of_waiting(baseline, time.time())
    assert one.why == "cgroup /build.slice usually waits 50 ms for a CPU."
    win(repository)
    assert list(findings.of_waiting(baseline, time.time())) == []
    assert len(list(findings.of_waiting(baseline, time.time() + 8 * DAY_S))) == 1


def test_the_schedule_recommends_each_workload_once_a_slot(repository):
    settings = replace(NAMED, every="6h")
    findings = Findings(repository, settings)
    noon = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
    assert list(findings.of_schedule(noon)) == [], "the service has just come"
    repository.service.add_readings([reading(at=noon.timestamp() - 1000)], keep_since=0)
    assert list(findings.of_schedule(noon)) == [], "the slot began later than that"
    repository.service.add_readings([reading(at=noon.timestamp() - 2000)], keep_since=0)
    [one] = findings.of_schedule(noon)
    assert (one.why, one.expires_at) == ("It is scheduled: every 6h.", noon.replace(hour=18, minute=0).timestamp())
    [same] = findings.of_schedule(noon.replace(hour=17))
    [next_one] = findings.of_schedule(noon.replace(hour=18))
    assert (same.id == one.id, next_one.id == one.id) == (True, False)
    assert list(Findings(repository, NAMED).of_schedule(noon)) == []


def test_a_finished_run_s_winner_is_recommended_while_its_token_holds(repository):
    run_id = win(repository, life_s=DAY_S)
    findings, now = Findings(repository, NAMED), time.time()
    [one] = findings.of_runs(now)
    assert (one.kind, one.policy, one.cgroup, one.workload) == (
        RecommendationKind.DEPLOY,
        "good",
        "/build.slice",
        WORKLOAD,
    )
    assert (one.evidence["run"], one.evidence["kernel"]) == (run_id, RELEASE)
    assert (one.evidence["interval"], one.evidence["pairs"]) == ([0.65, 0.75], 8)
    assert one.what == f"schedagent apply {one.id}"
    assert 0 < one.expires_at - now <= DAY_S
    assert list(findings.of_runs(now + 2 * DAY_S)) == []
    [unnamed] = Findings(repository, ServiceSettings()).of_runs(now)
    assert (unnamed.id, unnamed.cgroup) == (one.id, "")
    assert unnamed.what == one.what


def test_no_token_no_recommendation(repository):
    win(repository, approve=(ApprovalStage.DEPLOY,))
    assert list(Findings(repository, NAMED).of_runs(time.time())) == []


def test_the_latest_run_of_a_workload_counts(repository):
    findings = Findings(repository, NAMED)
    win(repository, policy="good")
    [old] = findings.of_runs(time.time())
    repository.service.recommend(old)
    win(repository, policy="better")
    win(repository, OTHER, policy="third")
    found = list(findings.of_runs(time.time()))
    assert {one.policy for one in found} == {"better", "third"}
    assert findings.outdated(found, time.time()) == [old.id]
    assert findings.outdated(found, time.time() + 2 * DAY_S) == [], "it has expired, which is something else"
    repository.service.set_standing(old.id, Standing.APPLIED)
    assert findings.outdated(found, time.time()) == []


def test_the_same_object_with_a_newer_token_is_the_same_recommendation(repository):
    findings = Findings(repository, NAMED)
    win(repository, life_s=3600)
    [first] = findings.of_runs(time.time())
    win(repository, life_s=7200)
    [second] = findings.of_runs(time.time())
    assert (second.id, second.expires_at > first.expires_at) == (first.id, True)


def test_the_command_says_all_of_a_workload():
    assert optimize_command(OTHER) == (
        "schedagent optimize --workload ./bench --dir /srv --metric 'p99: ([0-9.]+)' --goal latency"
    )
