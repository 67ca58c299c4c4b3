"""The whole loop with a scripted lab: kill it anywhere, resume it, and look at what it stored and said."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import replace

import pytest

from repo_store.records import RunStatus
from repo_store.store import PolicyRepository
from schedagent.approval.approvals import deployment
from schedagent.core.errors import RepositoryError, UsageError, VmLost, WorkloadFailed
from schedagent.core.trials.trial import DEFAULT_ARM, Outcome
from schedagent.run import nodes
from schedagent.run.lifecycle import only_one
from schedagent.run.options import RunOptions
from tests.support import scripted_lab as scripted
from tests.support.killed_runs import held_child, kill_where_held
from tests.support.scripted_lab import HARDWARE, LIBRARY, RULES, WORKLOAD, Script

STOP_S = 2.0


@pytest.fixture
def script(tmp_path) -> Script:
    (tmp_path / "state").mkdir()
    return Script(tmp_path)


def stored(script: Script, run_id: str):
    """All blocks, by (iteration, number)."""
    with PolicyRepository(script.settings.state_dir / "repository.sqlite") as repository:
        return {
            (iteration, block.number): block
            for iteration in repository.iterations(run_id)
            for block in repository.blocks(run_id, iteration)
        }


def status(script: Script, run_id: str) -> RunStatus:
    with PolicyRepository(script.settings.state_dir / "repository.sqlite") as repository:
        return repository.run(run_id).status


def outcomes(report) -> dict[str, str]:
    """The outcome of each policy's first candidate."""
    found = {}
    for iteration in report["iterations"]:
        for candidate in iteration["candidates"]:
            found.setdefault(candidate["policy"], candidate["verdict"]["outcome"])
    return found


def assert_complete(report) -> None:
    assert report["profile"]["kind"] == "batch-long-tail"
    assert report["iterations"]
    for iteration in report["iterations"]:
        assert iteration["candidates"]
        for candidate in iteration["candidates"]:
            assert candidate["verdict"]
            assert candidate["gates"]
    assert report["best"]["policy"] == "longest_first"
    assert outcomes(report)["longest_first"] == "better"


def assert_nothing_twice(script: Script, run_id: str, *, unfinished_runs: int) -> None:
    """Every run of the workload is in exactly one stored sample, but for those of an interrupted block."""
    blocks = stored(script, run_id)
    serials = [sample.wall_ns for block in blocks.values() for sample in block.samples]
    assert len(serials) == len(set(serials)), "a sample is counted twice"
    for iteration in {iteration for iteration, _ in blocks}:
        numbers = sorted(number for which, number in blocks if which == iteration)
        assert numbers == list(range(len(numbers))), "a block is lost"
    for block in blocks.values():
        arms = [sample.arm for sample in block.samples]
        assert arms.count(DEFAULT_ARM) == 1
        assert len(arms) == len(set(arms))
    observed = script.log.count("observe")
    assert script.log.count("run") == len(serials) + observed + unfinished_runs - (script.hold == "observe 1")


def test_an_undisturbed_run(script):
    run_id = script.create()
    report = script.drive(run_id)
    assert_complete(report)
    assert_nothing_twice(script, run_id, unfinished_runs=0)
    assert status(script, run_id) is RunStatus.FINISHED
    assert len(report["iterations"]) == 2
    assert script.log.count("observe") == 1
    assert "iteration 2" in (script.folder / "progress").read_text()


@pytest.mark.parametrize("where", ["before save_costs 1", "after save_costs 1", "observe 1", "after save_profile 1"])
def test_the_costs_of_the_lab_are_measured_once_and_survive_a_kill(script, where):
    held = replace(script, hold=where)
    run_id = held.create()
    kill_where_held(held, run_id)
    changed = replace(script, costs=replace(scripted.COSTS, kappa=99.0))
    changed.drive(run_id)
    stored_before = where != "before save_costs 1"
    assert script.log.count("costs") == (1 if stored_before else 2)
    with script.repository() as repository:
        assert repository.costs(run_id) == (scripted.COSTS if stored_before else changed.costs)


def test_a_lab_that_is_the_hardware_has_no_costs(script):
    native = replace(script, costs=None)
    run_id = native.create()
    assert_complete(native.drive(run_id))
    with native.repository() as repository:
        assert repository.costs(run_id) is None


KILLS = [
    # (where, finished steps done again because they were the interrupted one, runs that are in no stored block)
    ("observe 1", "observe", 0),
    ("before save_profile 1", "observe", 0),
    ("after save_profile 1", "", 0),
    ("before save_plan 1", "", 0),
    ("after save_plan 1", "", 0),
    ("verify 2", "verify", 0),
    ("before save_verification 1", "verify", 0),
    ("after save_verification 2", "", 0),
    ("run 3", "", 2),  # inside the warm-up: its first run is lost, the second was not ended
    ("run 12", "", None),  # in the middle of a block
    ("before add_block 3", "", None),
    ("after add_block 3", "", 1),  # only the unrecorded run that warms the new machine
    ("before save_verdict 1", "", 0),
    ("after save_verdict 1", "", 0),
    ("before save_plan 2", "", 0),
    ("before finish_run 1", "", 0),
]


@pytest.mark.parametrize(("where", "repeated", "unfinished_runs"), KILLS, ids=[kill[0] for kill in KILLS])
def test_kill_and_resume(script, where, repeated, unfinished_runs):
    held = replace(script, hold=where)
    run_id = held.create()
    kill_where_held(held, run_id)
    before, runs_before = stored(script, run_id), script.log.count("run")
    assert status(script, run_id) is RunStatus.RUNNING

    report = script.drive(run_id)

    assert_complete(report)
    assert len(report["iterations"]) == 2
    after = stored(script, run_id)
    assert {key: after[key] for key in before} == before, "a finished block was lost or measured again"
    new_samples = sum(len(block.samples) for key, block in after.items() if key not in before)
    resumed_trial = 0 < len(before) < len(after) and "save_plan" not in where and "save_verdict" not in where
    expected = new_samples + (repeated == "observe") + resumed_trial
    assert script.log.count("run") - runs_before == expected, "a finished run was repeated"
    if unfinished_runs is not None:
        assert_nothing_twice(held, run_id, unfinished_runs=unfinished_runs)
    assert script.log.count("observe") == 1 + (repeated == "observe")
    verified = Counter(line for line in script.log if line.startswith("verify "))
    again = [key for key, count in verified.items() if count > 1]
    assert len(again) == (repeated == "verify")
    assert max(verified.values()) <= 2
    assert script.log.count("after save_plan") == 2


def test_killed_after_its_last_step_the_run_is_finished(script):
    held = replace(script, hold="after finish_run 1")
    run_id = held.create()
    kill_where_held(held, run_id)
    with script.repository() as repository:
        assert_complete(repository.run(run_id).report)
    with pytest.raises(UsageError, match="is finished") as caught:
        script.drive(run_id)
    assert f"schedagent runs show {run_id}" in caught.value.hint


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("observe 1", signal.SIGINT),
        ("before save_plan 1", signal.SIGINT),
        ("verify 2", signal.SIGINT),
        ("run 9", signal.SIGINT),
        ("before save_verdict 1", signal.SIGINT),
        ("run 9", signal.SIGTERM),
    ],
)
def test_stopped_by_the_user(script, where, kind):
    held = replace(script, hold=where)
    run_id = held.create()
    child = held_child(held, run_id)
    os.kill(child.pid, kind)
    child.join(STOP_S)
    assert child.exitcode == 130, "it did not stop in time"
    said = (script.folder / "output").read_text()
    assert f"schedagent resume {run_id}" in said
    assert "Traceback" not in said
    assert status(script, run_id) is RunStatus.INTERRUPTED
    assert_complete(script.drive(run_id))
    assert status(script, run_id) is RunStatus.FINISHED


def test_two_processes_on_one_run(script):
    held = replace(script, hold="verify 1")
    run_id = held.create()
    child = held_child(held, run_id)
    try:
        with pytest.raises(UsageError, match="another process is working on run"):
            script.drive(run_id)
        assert status(script, run_id) is RunStatus.RUNNING
    finally:
        child.kill()
        child.join()
    assert_complete(script.drive(run_id))


def test_a_run_can_be_locked_again(script):
    with only_one(script.settings, "run"), pytest.raises(UsageError), only_one(script.settings, "run"):
        pass
    with only_one(script.settings, "run"):
        pass


def open_to_others(folder):
    """What somebody else may read or enter below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.stat().st_mode & 0o077}


def test_nobody_else_can_read_what_a_run_leaves_whatever_the_umask_is(script):
    before = os.umask(0o022)
    try:
        held = replace(script, hold="after add_block 4")
        run_id = held.create()
        kill_where_held(held, run_id)
        state = script.settings.state_dir
        assert (state / "checkpoints.sqlite-wal").exists()
        assert open_to_others(state) == set()

        for path in state.rglob("*"):  # as earlier versions left them
            path.chmod(0o755 if path.is_dir() else 0o644)
        script.drive(run_id)
        assert open_to_others(state) == set()
    finally:
        os.umask(before)


def test_a_corrupted_checkpoint_file(script):
    held = replace(script, hold="after add_block 4")
    run_id = held.create()
    kill_where_held(held, run_id)
    checkpoints = script.settings.state_dir / "checkpoints.sqlite"
    checkpoints.with_name(checkpoints.name + "-wal").unlink()
    checkpoints.write_bytes(b"this is no database" * 500)
    with pytest.raises(RepositoryError, match=r"checkpoint file .* cannot be used") as caught:
        script.drive(run_id)
    assert f"rm {checkpoints}*" in caught.value.hint
    assert f"schedagent resume {run_id}" in caught.value.hint
    assert status(script, run_id) is RunStatus.FAILED

    for path in checkpoints.parent.glob("checkpoints.sqlite*"):  # what the hint says
        path.unlink()
    before = stored(script, run_id)
    assert_complete(script.drive(run_id))
    after = stored(script, run_id)
    assert {key: after[key] for key in before} == before
    assert script.log.count("observe") == 1
    assert max(Counter(line for line in script.log if line.startswith("verify ")).values()) == 1


def test_without_its_checkpoints_a_judged_iteration_is_not_measured_on(script):
    """What learning has judged is settled, even if there is time for more pairs now."""
    hurried = replace(script, blocks_in_time=3, hold="before finish_run 1")
    run_id = hurried.create()
    kill_where_held(hurried, run_id)
    for path in script.settings.state_dir.glob("checkpoints.sqlite*"):
        path.unlink()
    before = stored(script, run_id)
    report = script.drive(run_id)
    after = stored(script, run_id)
    assert {key for key in after if key[0] == 0} == set(before) == {(0, 0), (0, 1), (0, 2)}
    assert {found["verdict"]["pairs"] for found in report["iterations"][0]["candidates"]} == {2}
    assert len(report["iterations"]) == 2


def test_the_second_run_starts_from_what_the_first_learned(script):
    first = script.drive(script.create())
    assert first["iterations"][0]["learned"] == ""
    second = script.drive(script.create())
    plan = second["iterations"][0]
    assert "starts from longest_first better, ratio 0." in plan["learned"]
    assert plan["candidates"][0]["policy"] == "longest_first"
    assert "won in an earlier run" in plan["candidates"][0]["reason"]
    assert plan["learned"] in (script.folder / "progress").read_text()


def test_an_unfair_candidate_is_measured_and_gets_no_token(script):
    """Whoever runs it decides what it may cost others; what was measured is no antipattern."""
    unfair = replace(script, faults={"longest_first": scripted.UNFAIR}, signs=True)
    report = unfair.drive(unfair.create())
    assert outcomes(report)["longest_first"] == "better"
    assert report["best"]["policy"] == "longest_first"
    with script.repository() as repository:
        assert repository.antipatterns("whatever the workload", HARDWARE.key) == []
        assert deployment(repository, report["run"]) is None
    assert "safe, but unfair: gate proving ground failed, so there is no token" in unfair.shown(report["run"])


@pytest.mark.parametrize("gate", ["compile", "proving ground"])
def test_a_candidate_whose_gate_fails(script, gate):
    faulty = replace(script, faults={"longest_first": gate})
    report = faulty.drive(faulty.create())
    assert outcomes(report)["longest_first"] == "failed"
    [candidate] = [found for found in report["iterations"][0]["candidates"] if found["policy"] == "longest_first"]
    assert gate in candidate["verdict"]["reason"]
    assert "this was seen" in candidate["verdict"]["reason"]
    assert report["best"] is None
    with script.repository() as repository:
        [antipattern] = repository.antipatterns("whatever the workload", HARDWARE.key)
        measured = {sample.arm for block in stored(script, report["run"]).values() for sample in block.samples}
    assert (antipattern.policy, antipattern.gate) == ("longest_first", gate)
    assert candidate["key"] not in measured, "what a gate refused was run"
    second = faulty.drive(faulty.create())
    planned = {found["policy"] for iteration in second["iterations"] for found in iteration["candidates"]}
    assert "longest_first" not in planned
    assert f"longest_first (failed at {gate})" in second["iterations"][0]["learned"]


@pytest.mark.parametrize(
    ("fault", "why", "runs"),
    [
        ("exit", "exit status 1", 2),  # real programs fail now and then: once is no rule
        ("rejected", "init failed", 1),
        ("ejected", "runnable task stall", 1),
        ("no number", "no number that --metric could find", 2),
    ],
)
def test_a_candidate_that_fails_only_under_the_policy(script, fault, why, runs):
    faulty = replace(script, faults={"longest_first": fault})
    report = faulty.drive(faulty.create())
    assert outcomes(report)["longest_first"] == "failed"
    [candidate] = [found for found in report["iterations"][0]["candidates"] if found["policy"] == "longest_first"]
    assert why in candidate["verdict"]["reason"]
    samples = [block.sample(candidate["key"]) for block in stored(script, report["run"]).values()]
    assert sum(sample is not None for sample in samples) == runs, "a failed candidate was run again"
    with script.repository() as repository:
        [antipattern] = repository.antipatterns(WORKLOAD.key, HARDWARE.key)
        assert repository.antipatterns("another workload", HARDWARE.key) == []
    assert antipattern.gate == "trial"
    others = [name for name, outcome in outcomes(report).items() if outcome in ("no difference", "better")]
    assert others, "the other candidates were not measured"


@pytest.mark.parametrize(("fault", "why"), [("lost", "0 pairs"), ("lost while verified", "the VM was lost twice")])
def test_a_lost_vm_is_neither_a_pass_nor_a_failure(script, fault, why):
    faulty = replace(script, faults={"longest_first": fault})
    report = faulty.drive(faulty.create())
    assert outcomes(report)["longest_first"] == "inconclusive"
    [candidate] = [found for found in report["iterations"][0]["candidates"] if found["policy"] == "longest_first"]
    assert why in candidate["verdict"]["reason"]
    assert report["best"] is None
    with script.repository() as repository:
        assert repository.antipatterns(WORKLOAD.key, HARDWARE.key) == []
    assert status(script, report["run"]) is RunStatus.FINISHED


def test_the_workload_fails_under_the_default(script):
    failing = replace(script, default_fails_at=4)
    run_id = failing.create()
    with pytest.raises(WorkloadFailed, match="its output"):
        failing.drive(run_id)
    assert status(script, run_id) is RunStatus.FAILED
    assert len(stored(script, run_id)) == 3
    assert_complete(script.drive(run_id))  # repaired, and resumed


def test_the_machine_is_lost_under_the_default(script, monkeypatch):
    def lost(_lab, _beside=None):
        raise VmLost("the guest said nothing")

    run_id = script.create()
    with monkeypatch.context() as patched:
        patched.setattr(scripted.Lab, "run_default", lost)
        with pytest.raises(VmLost) as caught:
            script.drive(run_id)
    assert status(script, run_id) is RunStatus.FAILED
    assert f"schedagent resume {run_id}" in caught.value.hint
    assert_complete(script.drive(run_id))


def test_no_time_left_for_any_candidate(script):
    hurried = replace(script, options=replace(script.options, budget_s=0.0))
    report = hurried.drive(hurried.create())
    assert report["out_of_time"]
    assert len(report["iterations"]) == 1
    assert set(outcomes(report).values()) == {"inconclusive"}
    assert script.log.count("verify") == script.log.count("run default") == 0
    assert {"not reached" in found["verdict"]["reason"] for found in report["iterations"][0]["candidates"]} == {True}
    assert status(script, report["run"]) is RunStatus.FINISHED


def test_time_runs_out_in_the_middle(script):
    """The budget ends while the third block is measured: that block is finished, and no other begins."""
    hurried = replace(script, blocks_in_time=3)
    report = hurried.drive(hurried.create())
    assert report["out_of_time"]
    assert len(stored(script, report["run"])) == 3
    assert set(outcomes(report).values()) == {"inconclusive"}
    reasons = [candidate["verdict"]["reason"] for candidate in report["iterations"][0]["candidates"]]
    assert all("in 2 shared blocks" in reason for reason in reasons)


def test_the_default_and_the_candidates_take_turns(script):
    run_id = script.create()
    script.drive(run_id)
    blocks = [block for (iteration, _), block in sorted(stored(script, run_id).items()) if iteration == 0]
    orders = {tuple(sample.arm for sample in block.samples) for block in blocks}
    assert len(orders) > 1, "the order inside the blocks never changes"
    assert all(DEFAULT_ARM in order for order in orders)


def test_a_policy_that_changed_since_it_was_verified(script, monkeypatch):
    held = replace(script, hold="after add_block 2")
    run_id = held.create()
    kill_where_held(held, run_id)
    changed = scripted.PolicyArtifact("changed", b"other bytes", "source", "btf")
    monkeypatch.setattr(scripted.Verifier, "compile", lambda _verifier, _info: changed)
    with pytest.raises(UsageError, match="changed since this run verified it") as caught:
        script.drive(run_id)
    assert "resume" not in caught.value.hint, "it cannot be resumed, so it must not say so"


def test_options_survive_being_stored(script):
    options = RunOptions(3, 61.5, 4, replace(RULES, confidence=0.9))
    run_id = replace(script, options=options).create()
    with script.repository() as repository:
        assert RunOptions.from_json(repository.run(run_id).settings) == options


def test_nothing_is_traced_to_elsewhere(script, monkeypatch):
    """LangGraph would send every state to a tracing service if the user's environment asked for it."""
    from langsmith.utils import get_env_var, tracing_is_enabled

    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    get_env_var.cache_clear()
    seen = []
    monkeypatch.setattr(scripted.Lab, "observe", _watched(scripted.Lab.observe, seen, tracing_is_enabled))
    assert tracing_is_enabled()
    script.drive(script.create())
    monkeypatch.undo()
    get_env_var.cache_clear()
    assert seen == [False]


def _watched(function, seen, look):
    def watched(*arguments):
        seen.append(look())
        return function(*arguments)

    return watched


def test_outcomes_of_the_script_are_core_outcomes():
    assert {"better", "failed", "inconclusive"} <= {outcome.value for outcome in Outcome}
    assert "longest_first" in LIBRARY


def test_each_plan_has_an_equal_share_of_the_time_that_is_left(monkeypatch):
    """A first plan that nothing decides leaves time for a second one, and what it does not need goes to that."""
    now = 1000.0
    monkeypatch.setattr(nodes.time, "monotonic", lambda: now)
    budget = nodes.TimeBudget(600.0)
    first = budget.share(2)
    now += 299
    assert not first()
    now += 2
    assert first()
    assert not budget()
    last = budget.share(1)
    now += 298
    assert not last()
    now += 2
    assert last()
    assert budget()
