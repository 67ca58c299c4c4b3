"""Which schedulers with a loader of their own are tried unasked, and what a plan says of those that are missing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.observation import build_profile
from agents.planner.programs import Choice, choose_programs, joined, suited_programs
from kernel_bpf.policies.programs import known_programs
from schedagent.core.policies.policy import CandidatePolicy, Plan
from schedagent.core.policies.program import SchedulerProgram
from schedagent.core.trials.workload import Goal, WorkloadClass
from tests.support.scripted_lab import long_tail

BUILD = replace(build_profile(long_tail()), kind=WorkloadClass.PARALLEL_BUILD)
SUITED = suited_programs(BUILD, known_programs())
OURS = CandidatePolicy("longest_first")


class Shelf:
    """Has the programs of these names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def program(self, name, arguments):
        return SchedulerProgram(f"/usr/bin/{name}", tuple(arguments), "ab" * 32) if name in self.names else None


def test_those_for_the_work_come_first_and_none_for_work_that_nothing_helps():
    names = [info.name for info in SUITED]
    assert names[0] == "scx_rusty"
    assert "scx_flash" not in names
    assert suited_programs(replace(BUILD, kind=WorkloadClass.SERIAL), known_programs()) == []


def test_installed_ones_are_tried_with_the_arguments_for_the_goal():
    choice = choose_programs(SUITED, Shelf("scx_cosmos", "scx_rusty"), Goal.MAKESPAN, limit=2)
    assert [candidate.label for candidate in choice.candidates] == [
        "scx_rusty --kthreads-local",
        "scx_cosmos --slice-us 20000",
    ]
    assert choice.remark == ""
    assert "suits such work" in choice.candidates[0].reason


def test_one_that_failed_here_is_not_tried_again():
    (first,) = choose_programs(SUITED, Shelf("scx_rusty"), Goal.MAKESPAN, limit=1).candidates
    assert choose_programs(SUITED, Shelf("scx_rusty"), Goal.MAKESPAN, limit=1, failed={first.key}).candidates == ()


@pytest.mark.parametrize(
    ("missing", "remark"),
    [
        (("scx_lavd",), "scx_lavd is not installed: it would have been tried"),
        (("scx_lavd", "scx_rusty"), "scx_lavd and scx_rusty are not installed: they would have been tried"),
    ],
)
def test_a_plan_names_what_would_have_been_tried(missing, remark):
    plan = joined(Plan((OURS,), "a build"), (), Choice((), missing), 3)
    assert plan.reason == f"a build; {remark}"
    assert plan.candidates == (OURS,)


def test_two_of_them_are_named_at_most_and_none_where_enough_are_installed():
    assert len(choose_programs(SUITED, Shelf(), Goal.MAKESPAN, limit=2).missing) == 2
    assert choose_programs(SUITED, Shelf("scx_cosmos"), Goal.MAKESPAN, limit=1).missing == ()


def test_what_the_user_named_comes_first_and_nothing_twice():
    named = CandidatePolicy.of_program(Shelf("scx_a").program("scx_a", ()))
    chosen = choose_programs(SUITED, Shelf("scx_rusty"), Goal.MAKESPAN, limit=1)
    planned = tuple(CandidatePolicy(f"p{number}") for number in range(3))
    plan = joined(Plan((OURS, *planned), "why", "learned"), (OURS, named), chosen, 3)
    assert [candidate.policy for candidate in plan.candidates] == ["longest_first", "scx_a", "p0", "scx_rusty"]
    assert plan.reason == "longest_first, scx_a as named; why; installed: scx_rusty --kthreads-local"
    assert plan.learned == "learned"
