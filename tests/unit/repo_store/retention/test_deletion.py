"""Runs leave the repository whole, or not at all if something rests on them."""

import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from repo_store.records import RunStatus
from repo_store.store import PolicyRepository
from schedagent.core.approval import ApprovalRequest, ApprovalStage, Decision
from schedagent.core.errors import StillNeeded, UsageError
from schedagent.core.policies.policy import CandidatePolicy, Plan, PolicyInfo
from schedagent.core.policies.proposal import DerivedPolicy, Origin
from schedagent.core.recommendation import ApplyRequest, Progress, Standing
from schedagent.core.trials.lesson import Insight, Meaning
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Outcome, Sample, Verdict
from tests.support.finished_runs import HARDWARE, WORKLOAD, optimise, profile, win

BETTER = Verdict(Outcome.BETTER, 0.7, 0.65, 0.75, 0.95, 8, 0, "lower")
EMPTY_AFTERWARDS = {"alembic_version", "policies", "sqlite_sequence"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "repository.sqlite"


@pytest.fixture
def repository(path):
    with PolicyRepository(path) as opened:
        yield opened


def derive(repository, name, run_id="", parent=""):
    repository.keep_policy(DerivedPolicy(name, Origin.PATCH, parent, f"c of {name}", "m", None, run_id, "2026-08-07"))


def ids(repository):
    return {run.id for run in repository.list_runs()}


def rows(path):
    """How many rows each table has that is not empty."""
    with closing(sqlite3.connect(path)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        tables = [name for name in names if not name.startswith("policy_search")]
        counts = {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}
    return {name: count for name, count in counts.items() if count}


def everything(repository, run_id):
    """Store of a run whatever one can store, under a policy that it derived itself and that lost."""
    win(repository, run_id=run_id)
    derive(repository, f"mine_{run_id}", run_id)
    candidate = CandidatePolicy(f"mine_{run_id}", reason="worth a try")
    repository.save_meaning(run_id, Meaning("a build", "shorter"))
    repository.save_plan(run_id, 1, Plan((candidate,), "because"))
    sample = Sample(DEFAULT_ARM, 2.0, 7, 5, 0, "2026-08-02", 9, "printed", "")
    repository.add_block(run_id, 1, Block(0, (sample,)), argv=["make"])
    repository.save_verdict(run_id, 1, candidate.key, replace(BETTER, outcome=Outcome.WORSE))
    asked = ApprovalRequest(ApprovalStage.DEPLOY, 1, {"run": run_id})
    repository.ask_approval(run_id, asked)
    repository.decide_approval(run_id, asked.digest, Decision(True, "ada", "2026-08-04"))
    repository.add_insight(Insight("so it is", (candidate.key,), run_id, "2026-08-05"))
    repository.finish_run(run_id, RunStatus.FINISHED, {"run": run_id})


def test_a_run_goes_whole_and_takes_nothing_of_another_with_it(path, repository):
    everything(repository, "stays")
    alone = rows(path)
    everything(repository, "goes")
    stored = ("runs", "profiles", "meanings", "plans", "candidates", "verifications", "samples", "verdicts")
    assert alone.keys() >= {*stored, "approvals", "insights", "derived_policies"}, "something is in every table"
    repository.delete_runs(["goes"])
    assert rows(path) == alone
    assert ids(repository) == {"stays"}
    assert [made.name for made in repository.derived_policies()] == ["mine_stays"]
    with pytest.raises(UsageError, match="no run 'goes'"):
        repository.run("goes")


def test_the_words_of_a_deleted_runs_workload_find_no_policy_any_more(repository):
    repository.sync_policies([PolicyInfo("good", "Fair.", (), "Orders.", "None", (), (), Path("good.bpf.c"))])
    run_id = win(repository)
    assert [match.name for match in repository.search_policies("make")] == ["good"]
    repository.delete_runs([run_id])
    assert repository.search_policies("make") == []


def test_nothing_goes_if_one_of_them_is_unknown(repository):
    everything(repository, "there")
    with pytest.raises(UsageError, match="no run 'nowhere'"):
        repository.delete_runs(["there", "nowhere"])
    assert ids(repository) == {"there"}


def test_what_waits_for_an_approval_stays(repository):
    run_id = repository.create_run(WORKLOAD, HARDWARE)
    repository.ask_approval(run_id, ApprovalRequest(ApprovalStage.PLAN, 0, {"run": run_id}))
    with pytest.raises(StillNeeded, match=f"run {run_id}: it waits for an approval"):
        repository.delete_runs([run_id])
    assert ids(repository) == {run_id}


@pytest.mark.parametrize(
    ("standing", "lasts_s", "needed"),
    [(Standing.OPEN, 60, True), (Standing.OPEN, -1, False), (Standing.WITHDRAWN, 60, False)],
)
def test_what_an_open_recommendation_rests_on_stays(repository, standing, lasts_s, needed):
    run_id = win(repository)
    recommended = repository.service.recommend(optimise(now=time.time(), lasts_s=lasts_s, run=run_id))
    repository.service.set_standing(recommended.id, standing)
    if needed:
        with pytest.raises(StillNeeded, match=f"recommendation {recommended.id} rests on it"):
            repository.delete_runs([run_id])
    else:
        repository.delete_runs([run_id])
    assert bool(ids(repository)) is needed


@pytest.mark.parametrize("progress", Progress)
@pytest.mark.parametrize("through_evidence", [False, True])
def test_what_a_request_works_with_stays_until_that_has_ended(repository, progress, through_evidence):
    run_id = win(repository)
    evidence = {"run": run_id} if through_evidence else {}
    recommended = repository.service.recommend(optimise(now=0, lasts_s=1, **evidence))
    request = ApplyRequest(1, recommended.id, "/canary", "ada", 1.0, run_id="" if through_evidence else run_id)
    repository.service.save_request(replace(request, progress=progress))
    if progress in (Progress.DONE, Progress.FAILED):
        repository.delete_runs([run_id])
    else:
        with pytest.raises(StillNeeded, match="request 1 of the agent service needs it"):
            repository.delete_runs([run_id])


def test_the_last_proof_of_a_derived_policy_stays(repository):
    derive(repository, "good")
    first, second = win(repository), win(repository)
    with pytest.raises(StillNeeded, match="policy good was proven better nowhere else"):
        repository.delete_runs([first, second])
    repository.delete_runs([first])
    with pytest.raises(StillNeeded, match=f"run {second}: policy good"):
        repository.delete_runs([second])
    assert repository.winners() == {"good"}


def test_a_bundled_policy_needs_no_proof(repository):
    repository.delete_runs([win(repository)])
    assert ids(repository) == set()


def test_a_policy_stays_while_another_run_or_a_descendant_knows_it(repository):
    maker = repository.create_run(WORKLOAD, HARDWARE)
    user = repository.create_run(WORKLOAD, HARDWARE)
    derive(repository, "grandparent", maker, parent="fair")
    derive(repository, "parent", maker, parent="grandparent")
    derive(repository, "child", user, parent="parent")
    derive(repository, "shared", maker)
    derive(repository, "nobodys", maker, parent="child")
    repository.save_profile(user, profile())
    repository.save_plan(user, 0, Plan((CandidatePolicy("shared"),), "because"))
    repository.delete_runs([maker])
    assert [made.name for made in repository.derived_policies()] == ["child", "grandparent", "parent", "shared"]
    repository.delete_runs([user])
    assert repository.derived_policies() == []


def test_more_runs_than_one_statement_takes(path, repository, monkeypatch):
    monkeypatch.setattr("repo_store.retention.deletion._AT_ONCE", 3)
    for number in range(8):
        everything(repository, f"r{number}")
    repository.delete_runs([f"r{number}" for number in range(8)])
    assert rows(path).keys() <= EMPTY_AFTERWARDS
