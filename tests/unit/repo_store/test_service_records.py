"""What the agent service keeps in the repository: stored once, bounded, and there after an upgrade of the schema."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

import repo_store.database.engine
import repo_store.service_records as module
from repo_store.store import PolicyRepository
from schedagent.core.errors import UsageError
from schedagent.core.recommendation import MACHINE, ApplyRequest, Progress, RecommendationKind, Standing
from schedagent.service.drift import make_baseline
from tests.support.finished_runs import DAY_S, HARDWARE, WORKLOAD, optimise, reading
from tests.support.older_repository import failures_kept

NOW = 1_800_000_000.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "repository.sqlite"


@pytest.fixture
def records(path):
    with PolicyRepository(path) as repository:
        yield repository.service


def request_for(recommendation, **fields):
    return ApplyRequest(0, recommendation.id, "", "ada", NOW, **fields)


def test_a_repository_of_the_schema_before_is_upgraded(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(repo_store.database.engine, "SCHEMA", "0003")
        with PolicyRepository(path) as old, failures_kept(path):
            run_id = old.create_run(WORKLOAD, HARDWARE)
    with closing(sqlite3.connect(path)) as raw:
        assert not raw.execute("SELECT name FROM sqlite_master WHERE name = 'looks'").fetchall()
    with PolicyRepository(path) as upgraded:
        assert upgraded.run(run_id).id == run_id
        upgraded.service.add_readings([reading(1)], keep_since=0)
        assert upgraded.service.readings(MACHINE) == [reading(1)]


def test_readings_come_back_in_order_and_the_idle_ones_can_be_left_out(records):
    idle = reading(2, delay_s=None, commands={})
    records.add_readings([reading(3), reading(1), idle, reading(1, subject="/a")], keep_since=0)
    assert records.readings(MACHINE) == [reading(1), idle, reading(3)]
    assert records.readings(MACHINE, busy=True) == [reading(1), reading(3)]
    assert records.readings(MACHINE, limit=2) == [idle, reading(3)]
    assert records.readings(MACHINE, since=120.0) == [reading(3)]
    assert (records.first_reading_at(), records.readings("/b")) == (60.0, [])


def test_readings_are_bounded_by_age_and_number(records, monkeypatch):
    monkeypatch.setattr(module, "MAX_READINGS", 5)
    for number in range(20):
        records.add_readings([reading(number), reading(number, subject="/a")], keep_since=0)
    assert [one.at / 60 for one in records.readings(MACHINE)] == [15, 16, 17, 18, 19]
    records.add_readings([reading(20)], keep_since=60 * 18)
    assert [one.at / 60 for one in records.readings(MACHINE)] == [18, 19, 20]
    assert [one.at / 60 for one in records.readings("/a")] == [18, 19]


def test_a_baseline_is_replaced_and_forgotten_with_what_it_was_made_of(records):
    first, second = make_baseline([reading(1), reading(2)]), make_baseline([reading(3)])
    assert records.baseline(MACHINE) is None
    for baseline in (first, second):
        records.save_baseline(baseline)
    records.add_readings([reading(3), reading(3, subject="/a")], keep_since=0)
    assert records.baseline(MACHINE) == second
    assert records.baselines() == [second]
    records.forget_baseline(MACHINE)
    assert (records.baseline(MACHINE), records.readings(MACHINE), len(records.readings("/a"))) == (None, [], 1)


def test_the_same_finding_is_stored_once_and_lives_longer(records):
    one = optimise(now=NOW)
    assert records.recommend(one) == one
    later = replace(optimise(now=NOW + 60), why="It waits more.")
    assert records.recommend(later) == replace(later, since=NOW)
    assert records.recommendations() == [replace(later, since=NOW)]
    assert records.recommendation(one.id).expires_at == NOW + 60 + DAY_S
    assert optimise(key="other", now=NOW).id != one.id
    with pytest.raises(UsageError, match="there is no recommendation 'x'") as caught:
        records.recommendation("x")
    assert "recommendations --all" in caught.value.hint


def test_what_was_applied_or_failed_stays_so_and_what_was_withdrawn_comes_back(records):
    one = optimise(now=NOW)
    records.recommend(one)
    for standing, then in (
        (Standing.APPLIED, Standing.APPLIED),
        (Standing.FAILED, Standing.FAILED),
        (Standing.WITHDRAWN, Standing.OPEN),
    ):
        records.set_standing(one.id, standing, "note")
        assert records.recommend(optimise(now=NOW + 60)).standing is then
    deploy = replace(one, id="d", kind=RecommendationKind.DEPLOY)
    records.recommend(deploy)
    records.set_standing("d", Standing.FAILED, "no")
    assert records.recommend(deploy).standing is Standing.FAILED
    assert records.recommend(replace(deploy, expires_at=deploy.expires_at + 1)).standing is Standing.OPEN


def test_expiry_is_told_by_the_time(records):
    one = records.recommend(optimise(now=NOW, lasts_s=10))
    assert [one.at(NOW + 9), one.at(NOW + 10)] == [Standing.OPEN, Standing.EXPIRED]
    records.set_standing(one.id, Standing.APPLIED)
    assert records.recommendation(one.id).at(NOW + 10) is Standing.APPLIED


def test_requests_are_numbered_and_asked_for_once_at_a_time(records):
    one, other = records.recommend(optimise(now=NOW)), records.recommend(optimise(key="b", now=NOW))
    first, second = records.ask(request_for(one)), records.ask(request_for(other))
    assert (first.number, second.number, records.request(2)) == (1, 2, second)
    for progress in (Progress.QUEUED, Progress.RUNNING, Progress.KEEPING):
        records.save_request(replace(first, progress=progress))
        with pytest.raises(UsageError, match=f"already .request 1, {progress}."):
            records.ask(request_for(one))
    records.save_request(replace(first, progress=Progress.DONE, note="fine"), Standing.APPLIED)
    assert (records.recommendation(one.id).standing, records.recommendation(one.id).note) == (Standing.APPLIED, "fine")
    third = records.ask(request_for(one))
    assert [request.number for request in records.requests(Progress.QUEUED)] == [2, 3]
    assert records.latest_requests() == {other.id: second, one.id: third}
    with pytest.raises(UsageError, match="there is no request 9"):
        records.request(9)


def test_what_the_service_began_by_itself_is_counted(records):
    one = records.recommend(optimise(now=NOW))
    for number, (asked_by, at) in enumerate((("", NOW), ("ada", NOW), ("", NOW - 100))):
        made = records.ask(replace(request_for(one), asked_by=asked_by, asked_at=at))
        assert made.number == number + 1
        records.save_request(replace(made, progress=Progress.DONE))
    assert records.begun_by_service(RecommendationKind.OPTIMISE, NOW - 50) == 1
    assert records.begun_by_service(RecommendationKind.OPTIMISE, NOW - 500) == 2
    assert records.begun_by_service(RecommendationKind.DEPLOY, 0) == 0
