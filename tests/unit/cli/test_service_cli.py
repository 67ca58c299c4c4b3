"""`schedagent recommendations` and `apply`, on a real repository and a real schedagentd over a scripted kernel."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from repo_store.store import PolicyRepository
from schedagent.approval.approvals import user
from schedagent.cli.app import app
from schedagent.core.recommendation import MACHINE, ApplyRequest, Progress, Standing
from schedagent.core.service_settings import ServiceSettings, WatchedWorkload
from schedagent.run.lifecycle import REPOSITORY
from schedagent.service import acting
from schedagent.service.drift import make_baseline
from schedagent.service.findings import Findings
from schedagent.service.loop import only_service
from tests.support.daemon_processes import Daemon, scripted_kernel, until
from tests.support.deploy_orders import CANARY
from tests.support.finished_runs import WORKLOAD, ScriptedLab, optimise, reading, win

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    (tmp_path / "config.toml").write_text(f'[daemon]\nsocket = "{tmp_path}/d/d.sock"\n')
    for name, value in {
        "STATE": tmp_path / "state",
        "CACHE": tmp_path / "c",
        "CONFIG": tmp_path / "config.toml",
    }.items():
        monkeypatch.setenv(f"SCHEDAGENT_{name}", str(tmp_path / value))
    (tmp_path / "state").mkdir()
    with PolicyRepository(tmp_path / "state" / REPOSITORY) as opened:
        yield opened


@pytest.fixture
def lab(repository, monkeypatch):
    """Has the program use a lab that needs no machine; returns what it is asked to do."""
    monkeypatch.setattr(acting, "WiredLab", lambda settings: ScriptedLab(settings, repository))


def run(*words, columns="200"):
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": columns})
    return result.exit_code, result.output


def stored(repository, **fields):
    return repository.service.recommend(replace(optimise(now=time.time(), subject="/a", baseline_since=0.0), **fields))


def deployable(repository):
    win(repository)
    found = Findings(repository, ServiceSettings(workloads=(WatchedWorkload(WORKLOAD, CANARY),))).of_runs(time.time())
    return repository.service.recommend(next(found))


def test_nothing_to_recommend(repository):
    assert "nothing is recommended; nothing is known yet: the agent service" in run("recommendations")[1]
    repository.service.save_baseline(make_baseline([reading(1)]))
    assert run("recommendations") == (0, f"nothing is recommended; what is usual is known for: {MACHINE}\n")
    assert run("recommendations", "--json") == (0, "[]\n")


def test_recommendations_with_their_evidence(repository):
    one, two = stored(repository), deployable(repository)
    repository.service.ask(ApplyRequest(0, one.id, "", "ada", time.time()))
    status, output = run("recommendations")
    assert status == 0
    for told in (one.id, two.id, "It waits.", "0.700", "in 8 pairs", "queued", "schedagent apply", "open"):
        assert told in output.replace("\n", " "), told
    told = {one["id"]: one for one in json.loads(run("recommendations", "--json")[1])}
    assert told[two.id]["evidence"]["interval"] == [0.65, 0.75]
    assert told[two.id]["request"] is None
    assert (told[one.id]["request"]["progress"], told[one.id]["workload"]["command"]) == ("queued", "make -j")


@pytest.mark.parametrize("columns", ["80", "120", None])
def test_a_recommendation_is_a_card_of_whole_words(repository, columns):
    """A table with sentences in its cells was a column of eight letters at 80 columns."""
    why = "The workload was slower than usual in 7 of 9 intervals, most of all in /system.slice/build-farm@7.service."
    one = stored(repository, why=why)
    lines = run("recommendations", columns=columns)[1].splitlines()
    assert lines[0] == f"{one.id}  {one.kind.value}, open"
    assert all(line.startswith("    ") for line in lines[1:])
    assert not set("│┃━┏") & set("".join(lines))
    assert f"Why: {why}" in " ".join(" ".join(lines).split())
    if columns:
        assert max(map(len, lines)) <= int(columns)
        assert len([line for line in lines if line]) < 12
    else:
        assert f"    Why: {why}" in lines, "nothing is wrapped in a pipe"


def test_what_is_through_is_shown_on_request(repository):
    old = stored(repository, expires_at=time.time() - 1)
    done = stored(repository, id="done")
    repository.service.set_standing("done", Standing.APPLIED, "run r: fair is better")
    assert json.loads(run("recommendations", "--json")[1]) == []
    told = {one["id"]: one["standing"] for one in json.loads(run("recommendations", "--all", "--json")[1])}
    assert told == {old.id: "expired", done.id: "applied"}
    assert "run r: fair is better" in run("recommendations", "--all")[1]


def test_what_cannot_be_applied_says_why(repository):
    assert run("apply", "nope")[0] == 2
    assert "hint: see which there are: schedagent recommendations --all" in run("apply", "nope")[1]
    old = stored(repository, expires_at=time.time() - 1)
    status, output = run("apply", old.id)
    assert (status, f"recommendation {old.id} expired at 20" in output) == (2, True)
    for standing, word in ((Standing.APPLIED, "was applied: note"), (Standing.WITHDRAWN, "was withdrawn: note")):
        one = stored(repository, id=standing.value)
        repository.service.set_standing(one.id, standing, "note")
        status, output = run("apply", one.id)
        assert (status, word in output) == (2, True)
    status, output = run("apply", stored(repository, id="c").id, "--cgroup", "/x")
    assert (status, "--cgroup is for recommendations to deploy" in output) == (2, True)
    assert repository.service.requests() == []


def test_optimising_now_ends_like_optimize(repository, lab, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "schedagent.cli.optimize.show_report", lambda report, as_json: shown.append((report, as_json)) or 3
    )
    one = stored(repository)
    assert run("apply", one.id, "--json")[0] == 3
    [request] = repository.service.requests()
    assert (request.asked_by, request.progress, request.run_id) == (user(), Progress.DONE, shown[0][0].run)
    assert repository.service.recommendation(one.id).standing is Standing.APPLIED


def test_stopping_it_says_how_to_go_on(repository, lab, monkeypatch):
    def stopped(*_arguments):
        raise KeyboardInterrupt("Go on: schedagent resume r1")

    monkeypatch.setattr(ScriptedLab, "start", stopped)
    one = stored(repository)
    status, output = run("apply", one.id)
    assert (status, "Go on: schedagent resume r1" in output) == (130, True)
    [request] = repository.service.requests()
    assert (request.progress, request.note) == (Progress.FAILED, "stopped by its user")
    assert repository.service.recommendation(one.id).standing is Standing.OPEN


def test_queueing_leaves_it_to_the_service(repository, tmp_path):
    from schedagent.core.settings import load_settings

    one, other = stored(repository), stored(repository, id="other")
    status, output = run("apply", one.id, "--queue")
    assert (status, output.splitlines()) == (
        0,
        ["request 1 is queued for the agent service", "the agent service is not running; start it: schedagent daemon"],
    )
    with only_service(load_settings()):
        assert json.loads(run("apply", other.id, "--queue", "--json")[1])["service_lives"]
    assert [request.progress for request in repository.service.requests()] == [Progress.QUEUED] * 2
    status, output = run("apply", one.id)
    assert (status, "is being carried out already (request 1, queued)" in output) == (2, True)


def test_deploying_now(repository, lab, tmp_path):
    with scripted_kernel(tmp_path) as kernel:
        one = deployable(repository)
        status, output = run("apply", one.id)
        assert (status, "schedagentd is not running" in output) == (1, True)
        assert repository.service.recommendation(one.id).standing is Standing.FAILED
        daemon = Daemon(tmp_path / "d", kernel).start()
        try:
            status, output = run("apply", one.id)
            assert (status, "deployment 1: good slice_us=5000" in output, "nobody renews" in output) == (0, True, True)
            until(lambda: daemon.state["enabled"])
            assert repository.service.requests()[-1].progress is Progress.KEEPING
        finally:
            daemon.end()
