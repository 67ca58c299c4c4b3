"""Runs of schedulers that somebody named: what is measured, verified, stored, resumed, and said in the end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from repo_store.store import PolicyRepository
from schedagent.approval.approvals import deployment
from schedagent.core.approval import ApprovalStage
from schedagent.core.policies.program import SchedulerProgram
from schedagent.core.policies.proposal import Origin, Proposal
from schedagent.report.faces.again import repeat_command
from schedagent.run.options import RunOptions
from tests.support.killed_runs import kill_where_held
from tests.support.scripted_lab import RULES, Script

PROGRAM = SchedulerProgram("/usr/bin/scx_ours", ("--slice-us", "20000"), "ab" * 32)
OURS = Proposal(Origin.PROGRAM, "scx_ours", program=PROGRAM, reason="it was named")
BUNDLED = Proposal(Origin.CONFIGURE, "plain", reason="it was named")
MANIFEST = """\
name = "Mine_Own_Scheduler"
description = "Ours."
target_workloads = []
algorithm = "unknown"
limitations = "unknown"
inputs = []
"""
BROUGHT = Proposal(Origin.BROUGHT, "Mine_Own_Scheduler", source="int x;\n", manifest=MANIFEST, path="/home/me/m.bpf.c")
COMPARE = RunOptions(1, 600, rules=RULES, schedulers=(OURS, BUNDLED, BROUGHT), include=("/headers",), compare=True)


class Shelf:
    """Has scx_rusty, and nothing else."""

    def program(self, name, arguments):
        return replace(PROGRAM, path=f"/usr/bin/{name}", arguments=tuple(arguments)) if name == "scx_simple" else None


@pytest.fixture
def script(tmp_path) -> Script:
    (tmp_path / "state").mkdir()
    return Script(tmp_path, ratios={"scx_ours": 0.8}, options=COMPARE)


def arms(report) -> dict[str, str]:
    return {each["policy"]: each["verdict"]["outcome"] for each in report["iterations"][0]["candidates"]}


def test_what_was_named_is_measured_and_nothing_is_planned(script):
    run_id = script.create()
    report = script.drive(run_id)
    assert list(arms(report)) == ["scx_ours", "plain", "mine_own_schedu"]
    assert len(report["iterations"]) == 1
    assert report["best"]["policy"] == "scx_ours"
    assert report["iterations"][0]["reason"].endswith("as named")
    assert script.log.count("verify") == 2, "a program is not verified"
    assert len(report["iterations"][0]["candidates"][0]["gates"]) == 0
    program = report["iterations"][0]["candidates"][0]["program"]
    assert program == {"path": PROGRAM.path, "arguments": list(PROGRAM.arguments), "digest": PROGRAM.digest}


def test_a_program_that_wins_is_started_as_its_users_do_and_never_by_us(script):
    signed = replace(script, signs=True)
    run_id = signed.create()
    signed.drive(run_id)
    shown = signed.shown(run_id)
    assert "Verdict: scx_ours is better" in shown
    assert "Next: start it as its users do: sudo scx_ours --slice-us 20000" in shown
    assert "SCX_SCHEDULER=scx_ours" in shown
    assert "no gate saw its policy, and schedagentd loads no program" in shown
    assert "schedagent deploy" not in shown
    assert "loads its policy itself, which no gate saw" in shown
    with script.repository() as repository:
        assert deployment(repository, run_id) is None


def test_a_brought_policy_that_wins_can_be_deployed(script):
    signed = replace(script, signs=True, ratios={"mine_own_schedu": 0.8})
    run_id = signed.create()
    assert signed.drive(run_id)["deployment"]["policy"] == "mine_own_schedu"


@pytest.mark.parametrize("fault", ["ejected", "exit", "lost", "rejected"])
def test_a_program_that_fails_does_not_end_the_run(script, fault):
    faulty = replace(script, faults={"scx_ours": fault}, ratios={"plain": 0.8})
    report = faulty.drive(faulty.create())
    assert arms(report)["scx_ours"] == ("inconclusive" if fault == "lost" else "failed")
    assert report["best"]["policy"] == "plain"


def test_one_that_failed_is_not_tried_unasked_again(script):
    options = RunOptions(1, 600, 2, rules=RULES)
    first = replace(script, options=options, programs=Shelf(), faults={"scx_simple": "ejected"})
    report = first.drive(first.create())
    assert arms(report)["scx_simple"] == "failed"
    with PolicyRepository(script.settings.state_dir / "repository.sqlite") as repository:
        (failed,) = repository.antipatterns(*keys(repository))
    assert (failed.policy, failed.gate, failed.source_digest) == ("scx_simple", "trial", PROGRAM.digest)
    assert "scx_simple" not in arms(first.drive(first.create()))


def keys(repository) -> tuple[str, str]:
    run = repository.list_runs()[0]
    return run.workload.key, run.hardware.key


def test_an_installed_one_takes_its_place_in_the_first_plan_only(script):
    options = RunOptions(2, 600, 2, rules=RULES)
    planned = replace(script, options=options, programs=Shelf(), ratios={})
    report = planned.drive(planned.create())
    first, *others = [[each["policy"] for each in plan["candidates"]] for plan in report["iterations"]]
    assert first == ["longest_first", "scx_simple"]
    assert all("scx_simple" not in later for later in others)
    assert "installed: scx_simple" in report["iterations"][0]["reason"]


def test_what_the_user_names_joins_the_first_plan_of_optimize(script):
    options = RunOptions(1, 600, 1, rules=RULES, schedulers=(OURS, BROUGHT))
    named = replace(script, options=options)
    assert list(arms(named.drive(named.create()))) == ["scx_ours", "mine_own_schedu", "longest_first"]


@pytest.mark.parametrize(
    "where", ["before save_plan 1", "after save_plan 1", "verify 2", "run 9", "before save_verdict 2"]
)
def test_a_comparison_that_was_killed_continues(script, where):
    held = replace(script, hold=where)
    run_id = held.create()
    kill_where_held(held, run_id)
    report = script.drive(run_id)
    assert list(arms(report)) == ["scx_ours", "plain", "mine_own_schedu"]
    assert report["best"]["policy"] == "scx_ours"
    assert script.log.count("verify") - (where == "verify 2") == 2


def test_what_is_approved_names_the_program_and_where_it_runs(script):
    asking = replace(script, options=replace(COMPARE, approve=(ApprovalStage.PLAN,)))
    run_id = asking.create()
    waiting = asking.drive(run_id)["waiting"]
    first, second, _third = waiting["candidates"]
    assert first["argv"] == PROGRAM.argv
    assert first["source_digest"] == PROGRAM.digest
    assert "argv" not in second
    assert "started as root in that micro-VM, and nowhere else" in waiting["allows"]


def test_the_command_that_repeats_it_names_the_same(script):
    run_id = script.create()
    command = repeat_command(script.report(run_id))
    assert command.startswith("schedagent compare --dir /tmp ")
    assert "--scheduler '/usr/bin/scx_ours --slice-us 20000' --scheduler plain --scheduler /home/me/m.bpf.c" in command
    assert "--include /headers" in command
    assert "--iterations" not in command


def test_a_brought_policy_stays_in_its_run(script):
    won = replace(script, ratios={"mine_own_schedu": 0.8})
    won.drive(won.create())
    later = replace(script, options=RunOptions(1, 600, 3, rules=RULES))
    assert "mine_own_schedu" not in arms(later.drive(later.create()))


def test_the_only_candidate_of_a_plan_is_the_planners(script):
    planned = replace(script, options=RunOptions(1, 600, 1, rules=RULES), programs=Shelf(), ratios={})
    assert list(arms(planned.drive(planned.create()))) == ["longest_first"]
