"""Carrying recommendations out and keeping what was deployed, with a real schedagentd over a scripted kernel."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from repo_store.records import RunStatus
from repo_store.store import PolicyRepository
from schedagent.cli.app import app
from schedagent.client.daemon import DaemonClient
from schedagent.core.approval import ApprovalStage
from schedagent.core.errors import PolicyError, SchedagentError, SetupError, UsageError
from schedagent.core.recommendation import MACHINE, ApplyRequest, Progress, Standing
from schedagent.core.service_settings import ServiceSettings, WatchedWorkload
from schedagent.core.settings import Settings
from schedagent.run.lifecycle import REPOSITORY, only_one
from schedagent.run.progress import PlainReporter
from schedagent.service.acting import Hands
from schedagent.service.drift import make_baseline
from schedagent.service.findings import Findings
from schedagent.service.keeping import Keeper
from tests.support.daemon_processes import Daemon, until
from tests.support.deploy_orders import CANARY
from tests.support.finished_runs import HARDWARE, WORKLOAD, ScriptedLab, optimise, reading, win

pytestmark = pytest.mark.timeout(60)
SERVICE = ServiceSettings(workloads=(WatchedWorkload(WORKLOAD, CANARY),), lease_s=90)


@pytest.fixture
def daemon(tmp_path, kernel):
    made = Daemon(tmp_path / "d", kernel).start()
    yield made
    made.end()
    made.tell_kernel("reset")


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "state").mkdir()
    service = replace(SERVICE, socket=tmp_path / "d" / "d.sock")
    return Settings(cache_dir=tmp_path / "cache", state_dir=tmp_path / "state", daemon=service)


@pytest.fixture
def repository(settings):
    with PolicyRepository(settings.state_dir / REPOSITORY) as opened:
        yield opened


@pytest.fixture
def hands(settings, repository):
    return Hands(settings, repository, ScriptedLab(settings, repository), time.time)


@pytest.fixture
def reporter():
    from rich.console import Console

    return PlainReporter(Console(quiet=True))


def asked(repository, one, cgroup=""):
    repository.service.recommend(one)
    return repository.service.ask(ApplyRequest(0, one.id, cgroup, "ada", time.time())).number


def deployable(repository, settings, policy="good", **order):
    """A recommendation to deploy, with the run behind it."""
    win(repository, policy=policy, **order)
    return next(Findings(repository, settings.daemon).of_runs(time.time()))


def keeper_of(repository, settings, **changes):
    client = DaemonClient(settings.daemon.socket)
    return Keeper(repository.service, client, replace(settings.daemon, **changes), time.time)


def kept(hands, repository, settings, reporter, **order):
    """Deploy, wait until the pulses are over, and return the request's number and the deployment's."""
    number = asked(repository, deployable(repository, settings, **order))
    deployment = hands.carry_out(number, reporter)["deployment"]
    client = DaemonClient(settings.daemon.socket)
    until(lambda: (client.ask("status")["active"] or {}).get("proven"))
    return number, deployment


def lab_log(settings):
    path = settings.state_dir / "lab.log"
    return path.read_text().splitlines() if path.exists() else []


# --- optimise


def test_optimising_runs_the_loop_once_under_an_id_that_was_stored_before(hands, repository, settings, reporter):
    repository.service.save_baseline(make_baseline([reading(1, subject="/a")]))
    one = optimise(now=time.time(), subject="/a")
    number = asked(repository, one)
    report = hands.carry_out(number, reporter)
    request = repository.service.request(number)
    assert (request.progress, request.run_id) == (Progress.DONE, report.run)
    assert (request.note, request.started_at > 0) == (f"run {report.run}: nothing better was found", True)
    stored = repository.service.recommendation(one.id)
    assert (stored.standing, stored.note) == (Standing.APPLIED, request.note)
    assert repository.service.baseline("/a") is None, "what was examined is still called unusual"
    assert lab_log(settings) == [f"start {report.run}", f"by {os.getpid()}"]


@pytest.mark.parametrize("status", [RunStatus.INTERRUPTED, RunStatus.FINISHED])
def test_what_was_cut_short_goes_on_and_what_was_through_is_not_repeated(hands, repository, settings, reporter, status):
    number = asked(repository, optimise(now=time.time()))
    request = repository.service.request(number)
    repository.service.save_request(replace(request, progress=Progress.RUNNING, run_id="r1", started_at=5.0))
    repository.create_run(WORKLOAD, HARDWARE, run_id="r1")
    repository.finish_run("r1", status, {"best": {"policy": "fair"}, "run": "r1"} if status == "finished" else None)
    hands.carry_out(number, reporter)
    after = repository.service.request(number)
    assert (after.progress, after.run_id, after.started_at) == (Progress.DONE, "r1", 5.0)
    assert lab_log(settings) == ([] if status is RunStatus.FINISHED else ["resume r1", f"by {os.getpid()}"])


def test_a_failure_is_stored_and_raised(hands, repository, settings, reporter):
    (settings.state_dir / "fail").touch()
    one = optimise(now=time.time())
    number = asked(repository, one)
    with pytest.raises(SetupError, match="the lab is broken"):
        hands.carry_out(number, reporter)
    assert repository.service.request(number).progress is Progress.FAILED
    assert repository.service.recommendation(one.id).note == "the lab is broken"


def test_two_processes_do_not_carry_out_the_same(hands, repository, settings, reporter):
    number = asked(repository, optimise(now=time.time()))
    with only_one(settings, f"request-{number}"), pytest.raises(UsageError, match="another process"):
        hands.carry_out(number, reporter)
    assert repository.service.request(number).progress is Progress.QUEUED


# --- deploy


def test_deploying_asks_schedagentd_with_the_run_s_token(hands, repository, settings, reporter, daemon):
    one = deployable(repository, settings)
    number = asked(repository, one)
    told = hands.carry_out(number, reporter)
    request = repository.service.request(number)
    assert (request.progress, request.deployment, request.cgroup) == (Progress.KEEPING, told["deployment"], CANARY)
    assert (told["policy"], told["stage"], told["cgroup"]) == ("good", "pulse", CANARY)
    assert told["lease_left_s"] <= 90
    assert repository.service.recommendation(one.id).standing is Standing.APPLIED
    assert lab_log(settings) == [f"compile good of {one.evidence['run']} for {one.evidence['kernel']}"]
    until(lambda: daemon.state["enabled"])


def test_a_deployment_that_was_asked_for_before_a_crash_is_not_asked_for_twice(
    hands, repository, settings, reporter, daemon
):
    number, deployment = kept(hands, repository, settings, reporter)
    crashed = replace(repository.service.request(number), progress=Progress.RUNNING, deployment=0)
    repository.service.save_request(crashed)
    assert hands.carry_out(number, reporter)["deployment"] == deployment
    assert repository.service.request(number).deployment == deployment
    assert len(daemon.client.ask("history")["history"]) == 1


def test_another_object_than_was_verified_is_not_deployed(hands, repository, settings, reporter, daemon):
    (settings.state_dir / "differ").touch()
    number = asked(repository, deployable(repository, settings))
    with pytest.raises(PolicyError, match="gives another object"):
        hands.carry_out(number, reporter)
    assert daemon.client.ask("history")["history"] == []
    assert repository.service.request(number).progress is Progress.FAILED


def test_what_schedagentd_refuses_is_told_as_its_words(hands, repository, settings, reporter, daemon):
    one = deployable(repository, settings, kernel_release="6.1.0")
    with pytest.raises(SchedagentError, match=r"schedagentd: the token is for kernel_release='6\.1\.0'"):
        hands.carry_out(asked(repository, one), reporter)
    assert repository.service.recommendation(one.id).standing is Standing.FAILED


@pytest.mark.parametrize("cgroup", ["", CANARY])
def test_whose_tasks_pulses_are_judged_by_may_be_said(hands, repository, settings, reporter, daemon, cgroup):
    one = replace(deployable(repository, settings), cgroup="")
    assert hands.carry_out(asked(repository, one, cgroup), reporter)["cgroup"] == cgroup


def test_a_run_that_hands_out_no_token_any_more(hands, repository, settings, reporter, daemon):
    one = replace(deployable(repository, settings), policy="another")
    with pytest.raises(UsageError, match="issues no token for another"):
        hands.carry_out(asked(repository, one), reporter)


def test_the_winner_of_a_run_is_deployed_by_the_run(repository, settings, daemon, monkeypatch):
    run_id = win(repository)
    monkeypatch.setenv("SCHEDAGENT_STATE", str(settings.state_dir))
    monkeypatch.setattr("schedagent.service.acting.WiredLab", lambda _found: ScriptedLab(settings, repository))
    words = ["deploy", run_id, "--cgroup", CANARY, "--json", "--socket", str(daemon.config.socket)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["policy"] == "good"
    assert daemon.client.ask("history")["history"][0]["cgroup"] == CANARY
    unknown = CliRunner().invoke(app, ["deploy", "no-such-run", "--cgroup", CANARY])
    assert (unknown.exit_code, "schedagent runs list" in unknown.output) == (2, True), unknown.output


# --- keep


def test_a_lease_is_renewed_while_the_service_lives(hands, repository, settings, reporter, daemon):
    _number, deployment = kept(hands, repository, settings, reporter)
    keeper = keeper_of(repository, settings, lease_s=3000)
    assert keeper.poll_s == 20
    keeper.tick()
    active = daemon.client.ask("status")["active"]
    assert (active["deployment"], active["lease_left_s"] > 2900) == (deployment, True)
    assert active["stage"] == "full"
    assert keeper_of(repository, settings, lease_s=30).poll_s == 10


def test_a_token_that_ends_soon_is_replaced_by_a_newer_one(hands, repository, settings, reporter, daemon):
    number, deployment = kept(hands, repository, settings, reporter, life_s=3600)
    keeper = keeper_of(repository, settings)
    keeper.tick()
    assert keeper.wants_token == {number}
    told = hands.carry_out(number, reporter)
    assert (told["deployment"], told["token_left_s"] > 80000) == (deployment, True)
    assert repository.service.request(number).progress is Progress.KEEPING
    keeper.tick()
    assert keeper.wants_token == set()


def test_no_newer_token_leaves_the_first_one_to_its_end(hands, repository, settings, reporter, daemon):
    number, _deployment = kept(hands, repository, settings, reporter, life_s=3600)
    (settings.state_dir / "unsigned").touch()
    with pytest.raises(PolicyError, match="did not get a token again"):
        hands.carry_out(number, reporter)
    assert repository.service.request(number).progress is Progress.KEEPING
    assert 3000 < daemon.client.ask("status")["active"]["token_left_s"] < 3600


def test_what_a_person_approved_is_one_token(hands, repository, settings, reporter, daemon):
    number, _deployment = kept(hands, repository, settings, reporter, life_s=3600)
    request = repository.service.request(number)
    one = repository.service.recommendation(request.recommendation_id)
    asking = win(repository, approve=(ApprovalStage.DEPLOY,))
    repository.service.recommend(replace(one, id="asked", evidence={**one.evidence, "run": asking}))
    repository.service.save_request(replace(request, recommendation_id="asked"))
    with pytest.raises(UsageError, match="a person approved one token"):
        hands.carry_out(number, reporter)


@pytest.mark.parametrize("trips", [False, True])
def test_the_end_of_a_deployment_is_noted(hands, repository, settings, reporter, daemon, trips):
    number, _deployment = kept(hands, repository, settings, reporter)
    keeper = keeper_of(repository, settings)
    if trips:
        daemon.tell_kernel("end_policy")
    else:
        daemon.client.ask("rollback")
    until(lambda: daemon.client.ask("status")["active"] is None)
    keeper.tick()
    request = repository.service.request(number)
    assert request.progress is Progress.DONE
    assert ("ended: stall" if trips else "ended: rolled back: asked for") in request.note
    standing = repository.service.recommendation(request.recommendation_id).standing
    assert standing is (Standing.FAILED if trips else Standing.APPLIED)


def test_what_was_replaced_is_kept_on_when_it_is_restored(hands, repository, settings, reporter, daemon):
    number, first = kept(hands, repository, settings, reporter)
    keeper = keeper_of(repository, settings, lease_s=3000)
    daemon.deploy("persons")
    keeper.tick()
    assert repository.service.request(number).progress is Progress.KEEPING
    daemon.tell_kernel("end_policy")
    until(lambda: (daemon.client.ask("status")["active"] or {}).get("restores") == first)
    keeper.tick()
    assert daemon.client.ask("status")["active"]["lease_left_s"] > 2900
    daemon.client.ask("rollback")
    keeper.tick()
    request = repository.service.request(number)
    assert (request.progress, "rolled back" in request.note) == (Progress.DONE, True)


@pytest.mark.parametrize("cgroup", ["", CANARY])
def test_what_makes_its_workload_wait_more_is_not_renewed(hands, repository, settings, reporter, daemon, cgroup):
    subject = cgroup or MACHINE
    usual = make_baseline([reading(subject=subject, at=float(number)) for number in range(60)])
    repository.service.save_baseline(usual)
    nameless = replace(settings, daemon=replace(settings.daemon, workloads=()))
    number, _deployment = kept(hands, repository, settings if cgroup else nameless, reporter)
    keeper, begin = keeper_of(repository, settings), time.time()
    for minute in range(1, 15):
        at = begin + 60 * minute
        repository.service.add_readings([reading(subject=subject, at=at, delay_s=0.03)], keep_since=0)
        keeper.tick()
        progress = repository.service.request(number).progress
        assert progress is (Progress.KEEPING if minute < 14 else Progress.DONE), minute
        keeper.tick()
    assert (
        "is not renewed any more: its tasks wait 30 ms for a CPU, usually 4 ms"
        in repository.service.request(number).note
    )
    assert daemon.client.ask("status")["active"], "it lapses by itself"


def test_waiting_as_usual_is_no_reason(hands, repository, settings, reporter, daemon):
    repository.service.save_baseline(make_baseline([reading(subject=CANARY, at=float(one)) for one in range(60)]))
    number, _deployment = kept(hands, repository, settings, reporter)
    readings = [reading(subject=CANARY, at=time.time() + 60 * minute) for minute in range(1, 20)]
    for later in readings:
        repository.service.add_readings([later], keep_since=0)
        keeper_of(repository, settings).tick()
    assert repository.service.request(number).progress is Progress.KEEPING


def test_an_unreachable_schedagentd_is_asked_again_later(hands, repository, settings, reporter, daemon, caplog):
    number, _deployment = kept(hands, repository, settings, reporter)
    daemon.end()
    keeper_of(repository, settings).tick()
    assert "a lease could not be renewed" in caplog.text
    assert repository.service.request(number).progress is Progress.KEEPING
