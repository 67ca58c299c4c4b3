"""A run is settled by what its first run printed: its objective and guards, once, before anything is planned."""

from __future__ import annotations

from dataclasses import replace

import pytest

from repo_store.records import RunStatus
from schedagent.core.errors import MetricError, RepositoryError, UsageError
from schedagent.core.trials.objective import Direction, Guard, Metric
from schedagent.core.trials.workload import Goal, WorkloadCommand
from schedagent.run.options import RunOptions
from tests.support.benchmark_outputs import HACKBENCH, SCHBENCH
from tests.support.killed_runs import kill_where_held
from tests.support.scripted_lab import OPTIONS, WORKLOAD, Script

OPEN = replace(OPTIONS, recognise=True)
ERRORS = Guard(Metric("errors", r"errors: (\d+)", Direction.LOWER), 0.5)


@pytest.fixture
def script(tmp_path) -> Script:
    (tmp_path / "state").mkdir()
    return Script(tmp_path, options=OPEN, output=SCHBENCH)


def workload_of(script: Script, run_id: str) -> WorkloadCommand:
    with script.repository() as repository:
        return repository.run(run_id).workload


def shown(script: Script) -> str:
    return (script.folder / "progress").read_text()


def test_a_benchmark_is_recognised_stored_and_shown(script):
    run_id = script.create()
    script.drive(run_id)
    workload = workload_of(script, run_id)
    assert (workload.preset, workload.objective, workload.goal) == ("schbench", "wake-up p99", Goal.LATENCY)
    assert [guard.metric.name for guard in workload.guards] == ["requests/s", "request p99"]
    assert workload.command == WORKLOAD.command
    for words in (
        "looks like schbench: objective wake-up p99, guards requests/s and request p99",
        "wake-up p99: read 3.06 ms from: `* 99.0th: 3060 ",
        "requests/s: read 7324.45 from: `average rps: 7324.45`",
    ):
        assert words in shown(script)


def test_lessons_are_found_by_what_is_compared(script):
    first, second = script.create(), script.create()
    script.drive(first)
    by_wall_time = replace(script, options=OPTIONS)
    wall = by_wall_time.create()
    by_wall_time.drive(wall)
    key = workload_of(script, first).key
    with script.repository() as repository:
        hardware = repository.run(first).hardware.key
        assert {lesson.run_id for lesson in repository.lessons(key, hardware)} == {first}
        assert {lesson.run_id for lesson in repository.lessons(WORKLOAD.key, hardware)} == {wall}
    script.drive(second)
    assert workload_of(script, second).key == key
    assert "learned earlier" in shown(script)


def test_nothing_is_recognised_where_the_user_has_chosen(script):
    chosen = replace(script, options=OPTIONS)
    run_id = chosen.create()
    chosen.drive(run_id)
    assert workload_of(chosen, run_id) == WORKLOAD
    assert "looks like" not in shown(chosen)


def test_options_of_older_versions_recognise_nothing():
    stored = {"rules": {}, "iterations": 1}
    assert RunOptions.from_json(stored) == RunOptions(iterations=1)
    assert not RunOptions.from_json(stored).recognise


@pytest.mark.parametrize("place", ["before save_profile 1", "after save_profile 1"])
def test_a_run_that_was_killed_around_its_observation_is_settled_the_same(script, place):
    held = replace(script, hold=place)
    run_id = held.create()
    kill_where_held(held, run_id)
    script.drive(run_id)
    assert workload_of(script, run_id).preset == "schbench"


def test_a_metric_that_is_not_printed_ends_the_run_with_the_end_of_the_output(script):
    asking = replace(script, workload=replace(WORKLOAD, metric=r"p50: (\d+)"), options=OPTIONS)
    run_id = asking.create()
    with pytest.raises(MetricError, match=r"--metric 'p50: \(\\d\+\)' matched nothing .*\n(?s:.*)average rps: 7324.45"):
        asking.drive(run_id)
    with asking.repository() as repository:
        assert repository.run(run_id).status is RunStatus.FAILED
        assert repository.profile(run_id) is None


def test_a_guard_of_the_user_stands_beside_those_of_the_preset(script):
    guarded = replace(script, workload=replace(WORKLOAD, guards=(ERRORS,)), output=HACKBENCH + "errors: 0\n")
    run_id = guarded.create()
    guarded.drive(run_id)
    assert workload_of(guarded, run_id).guards == (ERRORS,)
    assert workload_of(guarded, run_id).preset == "hackbench"


def test_what_is_compared_stands_once_the_run_is_observed(script):
    run_id = script.create()
    script.drive(run_id)
    with script.repository() as repository:
        repository.settle_workload(run_id, repository.run(run_id).workload)
        with pytest.raises(RepositoryError, match="was observed already"):
            repository.settle_workload(run_id, WORKLOAD)
        with pytest.raises(UsageError, match="there is no run 'nothing'"):
            repository.settle_workload("nothing", WORKLOAD)
