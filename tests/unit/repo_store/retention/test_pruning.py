"""What is old and needed by nothing in a repository: one case for each reason."""

import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy.orm import Session

from repo_store.database.engine import open_engine
from repo_store.database.tables import DerivedPolicyRow, RunRow, VerdictRow
from repo_store.records import RunStatus
from repo_store.retention.unneeded import Deployed, Question, Stays
from repo_store.store import PolicyRepository
from schedagent.core.policies.policy import CandidatePolicy, Plan
from schedagent.core.policies.proposal import DerivedPolicy, Origin
from schedagent.core.recommendation import ApplyRequest, Progress, Standing
from schedagent.core.trials.lesson import Antipattern
from schedagent.core.trials.trial import Outcome, Verdict
from tests.support.finished_runs import HARDWARE, WORKLOAD, optimise, profile, win

DAY_S = 86400.0
NOW = time.time()
LIBRARY = {"fifo": "11" * 32, "good": "22" * 32}
QUESTION = Question(NOW, 30 * DAY_S, LIBRARY, ())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "repository.sqlite"


@pytest.fixture
def repository(path):
    with PolicyRepository(path) as opened:
        yield opened


def iso(days):
    """So many days ago."""
    return datetime.fromtimestamp(NOW - days * DAY_S, UTC).isoformat(timespec="milliseconds")


@pytest.fixture
def age(path):
    """Make a run as old as a test wants it."""

    def make_old(run_id, days):
        engine = open_engine(path)
        with Session(engine) as session, session.begin():
            run = session.get(RunRow, run_id)
            run.started_at, run.finished_at = iso(days), run.finished_at and iso(days)
            for verdict in session.query(VerdictRow).where(VerdictRow.run_id == run_id):
                verdict.at = iso(days)
        engine.dispose()
        return run_id

    return make_old


def lose(repository, policy="fifo", tunables=(), workload=WORKLOAD):
    """A finished run in which one policy was worse."""
    run_id = repository.create_run(workload, HARDWARE)
    candidate = CandidatePolicy(policy, tunables)
    repository.save_profile(run_id, profile())
    repository.save_plan(run_id, 0, Plan((candidate,), "because"))
    repository.save_verdict(run_id, 0, candidate.key, Verdict(Outcome.WORSE, 1.2, 1.1, 1.3, 0.95, 8, 0, "higher"))
    repository.finish_run(run_id, RunStatus.FINISHED, {"run": run_id})
    return run_id


def names(entries):
    return {entry.name for entry in entries}


class TestRuns:
    def test_a_superseded_verdict_teaches_nothing(self, repository, age):
        old, newer = age(lose(repository), 60), age(lose(repository), 50)
        unneeded = repository.unneeded(QUESTION)
        assert (names(unneeded.runs), unneeded.stays) == ({old}, {newer: Stays.LESSON})

    def test_each_configuration_of_a_policy_teaches_for_itself(self, repository, age):
        runs = [age(lose(repository, tunables=(("slice_us", us),)), 60 - us) for us in range(3)]
        assert repository.unneeded(QUESTION).stays == dict.fromkeys(runs, Stays.LESSON)

    def test_a_policy_that_is_planned_with_no_more_teaches_nothing(self, repository, age):
        old = age(lose(repository, "gone"), 60)
        newer = age(lose(repository), 50)
        assert names(repository.unneeded(QUESTION).runs) == {old}
        assert repository.unneeded(replace(QUESTION, library={})).stays == {newer: Stays.LESSON}, "the newest run"

    def test_the_newest_proof_stays_whole_and_older_ones_only_for_what_they_teach(self, repository, age):
        older, newer = age(win(repository), 60), age(win(repository), 50)
        unneeded = repository.unneeded(QUESTION)
        assert (names(unneeded.runs), unneeded.stays) == ({older}, {newer: Stays.PROOF})

    def test_a_proof_within_the_life_of_a_token_stays(self, repository, age):
        older, newer = age(win(repository), 6), age(win(repository), 5)
        question = replace(QUESTION, older_than_s=DAY_S)
        assert repository.unneeded(question).stays == dict.fromkeys((older, newer), Stays.PERMITTED)

    @pytest.mark.parametrize("status", [RunStatus.FAILED, RunStatus.INTERRUPTED, RunStatus.RUNNING])
    def test_what_can_be_resumed_stays_and_what_would_begin_again_goes(self, repository, age, status):
        begun, observed = repository.create_run(WORKLOAD, HARDWARE), repository.create_run(WORKLOAD, HARDWARE)
        repository.save_profile(observed, profile())
        for run_id in (begun, observed):
            if status is not RunStatus.RUNNING:
                repository.finish_run(run_id, status)
            age(run_id, 60)
        unneeded = repository.unneeded(QUESTION)
        assert (names(unneeded.runs), unneeded.stays) == ({begun}, {observed: Stays.UNFINISHED})

    def test_what_a_deployment_may_rest_on_stays(self, repository, age):
        older, newer = age(win(repository), 60), age(win(repository), 50)
        digest = repository.verification(older, repository.candidates(older, 0)[0].key).artifact_digest
        deployed = (Deployed("good", digest, NOW - 58 * DAY_S),)
        assert repository.unneeded(replace(QUESTION, deployed=deployed)).stays == {
            older: Stays.DEPLOYED,
            newer: Stays.PROOF,
        }
        others = (Deployed("good", "00" * 32, NOW - 58 * DAY_S),)
        assert names(repository.unneeded(replace(QUESTION, deployed=others)).runs) == {older}
        assert set(repository.unneeded(replace(QUESTION, deployed=None)).stays.values()) == {Stays.DEPLOYED}

    def test_what_is_young_is_not_mentioned(self, repository, age):
        age(lose(repository), 29)
        unneeded = repository.unneeded(QUESTION)
        assert (unneeded.runs, unneeded.stays) == ((), {})

    def test_a_run_that_has_become_needed_is_not_deleted(self, repository, age):
        runs = [age(lose(repository), days) for days in (60, 55, 50)]
        planned = names(repository.unneeded(QUESTION).runs)
        assert planned == set(runs[:2])
        repository.service.recommend(optimise(now=NOW, run=runs[0]))
        assert repository.prune_runs(planned, QUESTION) == {runs[1]}
        assert set(repository.statuses()) == {runs[0], runs[2]}


class TestPolicies:
    def derive(self, repository, name, *, run_id="", parent="", days=60):
        repository.keep_policy(DerivedPolicy(name, Origin.PATCH, parent, "c", "m", None, run_id, iso(days)))

    def test_those_that_no_run_made_go_when_they_are_old(self, repository):
        self.derive(repository, "old")
        self.derive(repository, "young", days=3, parent="ancestor")
        self.derive(repository, "ancestor")
        self.derive(repository, "deployed")
        deployed = (Deployed("deployed", "00" * 32, NOW),)
        question = replace(QUESTION, deployed=deployed)
        assert names(repository.unneeded(question).policies) == {"old"}
        assert names(repository.unneeded(replace(QUESTION, deployed=None)).policies) == set()
        assert repository.prune_policies({"old", "young"}, question) == {"old"}

    def test_one_that_has_a_run_goes_with_its_last_run(self, repository, age):
        maker = age(lose(repository), 60)
        age(lose(repository), 50)
        self.derive(repository, "lost", run_id=maker)
        unneeded = repository.unneeded(QUESTION)
        assert (names(unneeded.runs), names(unneeded.policies)) == ({maker}, {"lost"})
        assert repository.prune_policies({"lost"}, QUESTION) == set(), "its run is there"
        repository.prune_runs({maker}, QUESTION)
        assert repository.prune_policies({"lost"}, QUESTION) == {"lost"}


class TestAntipatterns:
    def test_only_what_planning_does_not_heed_goes(self, repository):
        for policy, digest, days in (
            ("fifo", LIBRARY["fifo"], 60),  # as it is now
            ("fifo", "", 60),  # whatever its source
            ("fifo", "ff" * 32, 60),  # repaired since
            ("gone", "ff" * 32, 60),
            ("gone", "", 60),
            ("gone", "ff" * 32, 3),  # young
        ):
            key = f"{policy}:{digest}:{days}"
            repository.add_antipattern(Antipattern(policy, key, (), "", HARDWARE.key, "load", "?", iso(days), digest))
        going = names(repository.unneeded(QUESTION).antipatterns)
        assert repository.prune_antipatterns(going, QUESTION) == len(going) == 3
        left = {pattern.candidate_key for pattern in repository.antipatterns("", HARDWARE.key)}
        assert left == {f"fifo:{LIBRARY['fifo']}:60", "fifo::60", f"gone:{'ff' * 32}:3"}
        assert not repository.unneeded(QUESTION).antipatterns


class TestRecommendations:
    @pytest.mark.parametrize(
        ("expired_days", "asked", "goes"),
        [
            (60, None, True),
            (20, None, False),
            (60, {"progress": Progress.DONE, "ended_at": NOW - 59 * DAY_S}, True),
            (60, {"progress": Progress.DONE, "ended_at": NOW - 3 * DAY_S}, False),
            (60, {"progress": Progress.KEEPING}, False),
            (60, {"progress": Progress.RUNNING}, False),
            (60, {"progress": Progress.QUEUED}, False),
        ],
    )
    def test_only_what_nobody_can_act_upon_goes(self, repository, expired_days, asked, goes):
        stored = repository.service.recommend(optimise(now=1.0, lasts_s=NOW - expired_days * DAY_S))
        if asked:
            request = ApplyRequest(1, stored.id, "", "ada", NOW - 70 * DAY_S, **asked)
            repository.service.save_request(request, Standing.APPLIED)
        going = names(repository.unneeded(QUESTION).recommendations)
        assert going == ({stored.id} if goes else set())
        assert repository.prune_recommendations({stored.id}, QUESTION) == goes
        assert bool(repository.service.recommendations()) is not goes
        assert bool(repository.service.requests()) is (asked is not None and not goes)

    def test_requests_of_the_last_day_count_for_the_services_rate_and_stay(self, repository):
        stored = repository.service.recommend(optimise(now=1.0, lasts_s=NOW - 5 * 3600))
        asked = ApplyRequest(1, stored.id, "", "", NOW - 5 * 3600, progress=Progress.DONE, ended_at=NOW - 4 * 3600)
        repository.service.save_request(asked)
        assert not repository.unneeded(replace(QUESTION, older_than_s=3600)).recommendations


def test_a_run_named_by_a_recommendation_that_stays_stays_with_it(repository, age):
    named, newer = age(lose(repository), 60), age(lose(repository), 50)
    recommended = repository.service.recommend(optimise(now=1.0, lasts_s=NOW - 20 * DAY_S, run=named))
    assert repository.unneeded(QUESTION).stays == {named: Stays.AWAITED, newer: Stays.LESSON}
    older = replace(recommended, expires_at=NOW - 60 * DAY_S)
    repository.service.recommend(older)
    unneeded = repository.unneeded(QUESTION)
    assert (names(unneeded.runs), names(unneeded.recommendations)) == ({named}, {recommended.id})


def test_space_is_given_back_while_another_reads(repository, path, age):
    for number in range(30):
        run_id = repository.create_run(WORKLOAD, HARDWARE, settings={"filling": "x" * 100_000}, run_id=f"r{number}")
        age(run_id, 60)
    repository.close()
    size = path.stat().st_size
    with PolicyRepository(path) as reader:
        assert reader.statuses()
        assert len(repository.prune_runs(reader.statuses(), QUESTION)) == 30
        repository.give_back_space()
        assert reader.statuses() == {}
    assert path.stat().st_size < size / 10
    assert size > 3_000_000


def test_how_large_a_run_is_said_to_be(repository, age):
    small, large = repository.create_run(WORKLOAD, HARDWARE), repository.create_run(WORKLOAD, HARDWARE)
    repository.finish_run(small, RunStatus.FAILED)
    repository.finish_run(large, RunStatus.FAILED, {"text": "x" * 50_000})
    for run_id in (small, large):
        age(run_id, 60)
    sizes = {entry.name: entry.bytes for entry in repository.unneeded(QUESTION).runs}
    assert 50_000 < sizes[large] - sizes[small] < 50_100
    assert 200 < sizes[small] < 2000


def test_the_derived_policy_table_knows_no_run_that_is_gone(repository, path, age):
    maker = age(lose(repository), 60)
    age(lose(repository), 50)
    repository.keep_policy(DerivedPolicy("lost", Origin.PATCH, "", "c", "m", None, maker, iso(60)))
    planned = repository.unneeded(QUESTION)
    repository.prune_runs(names(planned.runs), QUESTION)
    repository.prune_policies(names(planned.policies), QUESTION)
    engine = open_engine(path)
    with Session(engine) as session:
        assert session.query(DerivedPolicyRow).all() == []
    engine.dispose()
