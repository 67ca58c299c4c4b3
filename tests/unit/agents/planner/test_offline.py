"""The rule-based planner and the planning node."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import pytest

import kernel_bpf
from agents.planner import inputs
from agents.planner import rules as offline
from agents.planner.rules import plan
from agents.planning import propose
from schedagent.core.errors import PolicyError, TunableError
from schedagent.core.policies.identity import cmdline_identity, comm_identity
from schedagent.core.policies.policy import CandidatePolicy, Plan, PolicyInfo, Tunable
from schedagent.core.trials.lesson import Antipattern, Lesson
from schedagent.core.trials.trial import Hardware, Outcome, Verdict
from schedagent.core.trials.workload import CommandStats, Goal, WorkloadClass, WorkloadCommand, WorkloadProfile

MS = 1_000_000


def tunable(name, unit, minimum, maximum, default, type_="u64"):
    return Tunable(name, type_, unit, minimum, maximum, default, "does something")


SLICE = tunable("slice_us", "us", 500, 100_000, 10_000)
STARVATION = tunable("starvation_ms", "ms", 100, 3000, 1500)


def info(name, targets, tunables=(SLICE,), inputs=()):
    return PolicyInfo(name, "d", tuple(targets), "a", "l", tuple(tunables), tuple(inputs), Path(f"{name}.bpf.c"))


LIBRARY = {
    policy.name: policy
    for policy in (
        info("fair", ["mixed", "cpu-batch"], [SLICE, STARVATION]),
        info("batch", ["cpu-batch", "parallel-build"], [tunable("slice_us", "us", 10_000, 100_000, 50_000)]),
        info("local_steal", ["parallel-build"]),
        info(
            "longest_first",
            ["batch-long-tail"],
            [SLICE, STARVATION, tunable("unknown_ms", "ms", 0, 600_000, 100)],
            ["history"],
        ),
        info(
            "interactive", ["latency-sensitive"], [SLICE, STARVATION, tunable("background_us", "us", 200, 50_000, 3000)]
        ),
        dataclasses.replace(
            info("layered", ["latency-sensitive", "batch-long-tail"], [SLICE], ["classes"]),
            classes=(("short_bursts", 1), ("workers", 2), ("background", 3)),
        ),
    )
}


def row(comm, cpu_ms, count=1, sleeps=0, line=b"", p50_ms=None):
    identity = cmdline_identity(line) if line else comm_identity(comm)
    p50 = int((cpu_ms / count if p50_ms is None else p50_ms) * MS)
    total = int(cpu_ms * MS)
    return CommandStats(comm, identity, comm, count, p50, p50, total, total, 0, 0, 0, sleeps, 0)


def profile(kind, rows=None, ratio=1.0, wall_s=2.0):
    rows = rows or (row("spin", 3200, 10, p50_ms=200), row("sh", 3, sleeps=12))
    return WorkloadProfile(
        wall_s, 3.2, 2, (), 0.8, tuple(rows), tuple(rows), -1, -1, -1, kind, ("measured so",), 0, ratio
    )


TAIL = profile(
    WorkloadClass.BATCH_LONG_TAIL,
    (row("spin", 3200, 10, p50_ms=200), row("spin", 1400, line=b"spin\x001400\0"), row("sh", 3, sleeps=12)),
    ratio=0.73,
)


def verdict(outcome, ratio=1.0):
    return Verdict(outcome, ratio, ratio - 0.02, ratio + 0.02, 0.95, 8, 0, "")


def lesson(policy, outcome, ratio, tunables=None, at="2026-01-01"):
    settled = LIBRARY[policy].configured(tunables or {})
    return Lesson("w", "h", policy, "key", settled, outcome, ratio, ratio - 0.02, ratio + 0.02, 8, "run1", at)


def first(kind_or_profile, lessons=(), antipatterns=(), tried=(), iteration=1, **options):
    shape = kind_or_profile if isinstance(kind_or_profile, WorkloadProfile) else profile(kind_or_profile)
    return plan(shape, LIBRARY, lessons, antipatterns, iteration=iteration, tried=tried, **options)


def policies(plan_):
    return [candidate.policy for candidate in plan_.candidates]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (WorkloadClass.BATCH_LONG_TAIL, ["longest_first", "layered"]),
        (WorkloadClass.PARALLEL_BUILD, ["local_steal", "batch"]),
        (WorkloadClass.LATENCY_SENSITIVE, ["interactive", "layered"]),
        (WorkloadClass.CPU_BATCH, ["batch", "fair"]),
        (WorkloadClass.MIXED, ["fair"]),
    ],
)
def test_the_policies_meant_for_a_kind_come_best_first(kind, expected):
    assert policies(first(kind)) == expected


def test_a_build_with_a_long_tail_gets_the_policies_of_both():
    chosen = first(profile(WorkloadClass.PARALLEL_BUILD, ratio=0.78))
    assert policies(chosen) == ["longest_first", "local_steal", "layered"]
    assert "long tail" in chosen.reason
    assert "22 %" in chosen.reason


def test_serial_work_keeps_the_default():
    chosen = first(WorkloadClass.SERIAL)
    assert chosen.candidates == ()
    assert "keep the default" in chosen.reason
    assert "measured so" in chosen.reason


def test_longest_first_gets_measured_times_of_everything_with_a_margin():
    candidate = first(TAIL).candidates[0]
    assert dict(candidate.history) == {
        comm_identity("spin"): 220 * MS,
        cmdline_identity(b"spin\x001400\0"): 1500 * MS,
        comm_identity("sh"): 3_300_000,
    }
    assert candidate.classes == ()
    assert dict(candidate.tunables) == {"slice_us": 10_000, "starvation_ms": 1000, "unknown_ms": 200}
    assert "unknown_ms=200: the median of the heaviest command" in candidate.reason


def test_what_taskstats_could_not_resolve_counts_as_a_millisecond():
    rows = (row("spin", 100), row("true", 0))
    assert dict(inputs.expected_times(profile(WorkloadClass.CPU_BATCH, rows)))[comm_identity("true")] == MS


def test_a_small_change_of_the_measured_times_keeps_the_candidate():
    noisy = profile(TAIL.kind, (row("spin", 3201, 10, p50_ms=200.4), *TAIL.commands[1:]), ratio=0.73)
    assert first(TAIL).candidates[0].key == first(noisy).candidates[0].key


def test_classes_follow_measured_bursts():
    rows = (row("server", 100, sleeps=1000), row("hog", 2000, 2))
    heaviest_first = (rows[1], rows[0])
    latency = first(profile(WorkloadClass.LATENCY_SENSITIVE, heaviest_first)).candidates[1]
    assert latency.policy == "layered"
    assert dict(latency.classes) == {comm_identity("server"): 1, comm_identity("hog"): 3}
    batch = first(profile(WorkloadClass.BATCH_LONG_TAIL, heaviest_first)).candidates[1]
    assert dict(batch.classes) == {comm_identity("server"): 1, comm_identity("hog"): 2}


def test_the_background_threshold_lies_between_the_measured_bursts():
    rows = (row("hog", 2000, 2), row("server", 100, sleeps=1000))
    candidate = first(profile(WorkloadClass.LATENCY_SENSITIVE, rows)).candidates[0]
    background_us = dict(candidate.tunables)["background_us"]
    assert 100 < background_us <= 50_000
    assert background_us == pytest.approx(math.sqrt(100 * 1e6), rel=0.05)


@pytest.mark.parametrize("typical_ms", [0.001, 1, 50, 100_000])
def test_derived_tunables_stay_in_range_and_near_the_policys_own(typical_ms):
    rows = (row("x", typical_ms * 4, 4),)
    for kind in (WorkloadClass.CPU_BATCH, WorkloadClass.BATCH_LONG_TAIL, WorkloadClass.LATENCY_SENSITIVE):
        for candidate in first(profile(kind, rows, wall_s=10_000)).candidates:
            described = LIBRARY[candidate.policy]
            assert described.configured(dict(candidate.tunables)) == candidate.tunables
            slice_us, default = dict(candidate.tunables)["slice_us"], described.tunable("slice_us").default
            assert default / 2 <= slice_us <= default * 2


def test_a_winner_of_an_earlier_run_comes_first_and_the_plan_says_so():
    won = lesson("layered", Outcome.BETTER, 0.8, {"slice_us": 20_000})
    chosen = first(TAIL, [won])
    assert (chosen.candidates[0].policy, chosen.candidates[0].tunables) == ("layered", won.tunables)
    assert chosen.candidates[0].classes == inputs.program_classes(LIBRARY["layered"].classes, TAIL)
    assert policies(chosen)[1:] == ["layered", "longest_first"], "a neighbour of the winner, then what is unknown"
    assert "starts from layered better, ratio 0.80 [0.78, 0.82] in an earlier run" in chosen.learned


def test_the_latest_of_several_lessons_counts():
    old = lesson("layered", Outcome.BETTER, 0.8, at="2026-01-01")
    new = lesson("layered", Outcome.NO_DIFFERENCE, 1.0, at="2026-02-01")
    chosen = first(TAIL, [new, old])
    assert policies(chosen)[0] == "longest_first"
    assert "layered (no difference)" in chosen.learned


def test_what_was_worse_is_not_configured_again():
    chosen = first(WorkloadClass.CPU_BATCH, [lesson("batch", Outcome.WORSE, 1.1)])
    assert policies(chosen)[0] == "fair"
    tried = {(one.policy, one.tunables) for one in chosen.candidates}
    assert ("batch", LIBRARY["batch"].configured({})) not in tried
    assert "batch (worse)" in chosen.learned


def test_an_inconclusive_lesson_leaves_the_question_open():
    assert policies(first(WorkloadClass.MIXED, [lesson("fair", Outcome.INCONCLUSIVE, 0.97)]))[0] == "fair"


def test_a_policy_that_failed_a_gate_is_left_out():
    failed = Antipattern("longest_first", "k", (), "", "h", "stress", "a task starved", "2026-01-01")
    chosen = first(TAIL, (), [failed])
    assert policies(chosen) == ["layered"]
    assert "left out: longest_first (failed at stress)" in chosen.learned
    assert first(WorkloadClass.MIXED, (), [Antipattern("fair", "k", (), "", "h", "load", "", "")]).candidates == ()


def test_a_lesson_about_tunables_that_no_longer_exist_is_ignored():
    stale = Lesson("w", "h", "fair", "k", (("gone", 1),), Outcome.BETTER, 0.5, 0.4, 0.6, 8, "r", "2026")
    unknown = Lesson("w", "h", "removed", "k", (), Outcome.BETTER, 0.5, 0.4, 0.6, 8, "r", "2026")
    chosen = first(WorkloadClass.MIXED, [stale, unknown])
    assert policies(chosen) == ["fair"]
    assert chosen.learned == ""


def test_later_iterations_search_next_to_the_best_and_never_repeat():
    start = first(TAIL)
    tried = [
        (start.candidates[0], verdict(Outcome.BETTER, 0.8)),
        (start.candidates[1], verdict(Outcome.NO_DIFFERENCE)),
    ]
    best = dict(start.candidates[0].tunables)
    seen = {candidate.key for candidate, _ in tried}
    for iteration in range(2, 6):
        chosen = first(TAIL, tried=tried, iteration=iteration)
        assert chosen.candidates
        assert "searching around longest_first better, ratio 0.80" in chosen.reason
        for candidate in chosen.candidates:
            assert candidate.key not in seen
            seen.add(candidate.key)
            assert candidate.policy == "longest_first"
            assert candidate.history == start.candidates[0].history
            changed = [name for name, value in candidate.tunables if value != best[name]]
            assert len(changed) == 1
            tried.append((candidate, verdict(Outcome.NO_DIFFERENCE)))


def test_the_search_is_repeatable_and_ends():
    tried = [(first(WorkloadClass.MIXED).candidates[0], verdict(Outcome.BETTER, 0.9))]
    assert first(WorkloadClass.MIXED, tried=tried, iteration=2) == first(WorkloadClass.MIXED, tried=tried, iteration=2)
    for iteration in range(2, 50):
        chosen = first(WorkloadClass.MIXED, tried=tried, iteration=iteration)
        if not chosen.candidates:
            break
        tried += [(candidate, verdict(Outcome.NO_DIFFERENCE)) for candidate in chosen.candidates]
    assert chosen.candidates == ()
    assert "nothing is left to try" in chosen.reason


def test_a_candidate_that_failed_here_takes_its_policy_out():
    start = first(TAIL)
    tried = [(start.candidates[0], verdict(Outcome.FAILED, math.nan))]
    chosen = first(TAIL, tried=tried, iteration=2)
    assert "longest_first" not in policies(chosen)
    assert "longest_first (failed in this run)" in chosen.learned


def test_with_throughput_the_largest_ratio_is_the_best():
    start = first(WorkloadClass.CPU_BATCH)
    tried = [
        (start.candidates[0], verdict(Outcome.BETTER, 1.2)),
        (start.candidates[1], verdict(Outcome.BETTER, 1.1)),
    ]
    chosen = first(WorkloadClass.CPU_BATCH, tried=tried, iteration=2, lower_is_better=False)
    assert policies(chosen)[0] == start.candidates[0].policy
    assert "ratio 1.20" in chosen.reason


def test_the_derivation_rules_name_tunables_that_the_library_has():
    sources = Path(kernel_bpf.__file__).parent.glob("bpf/policies/*.bpf.c")
    declared = {name for path in sources for name in re.findall(r"^const volatile \w+ (\w+)", path.read_text(), re.M)}
    assert set(offline._DERIVATIONS) <= declared


def test_the_limit_holds():
    assert len(first(TAIL, limit=1).candidates) == 1


@pytest.mark.parametrize(
    ("value", "factor", "expected"),
    [(10_000, 2.0, 20_000), (600, 0.5, 500), (100_000, 2.0, 100_000), (90_000, 4.0, 100_000)],
)
def test_steps_stay_in_range(value, factor, expected):
    assert offline.step(SLICE, value, factor) == expected


def test_steps_of_switches_zeros_and_ones():
    assert offline.step(tunable("flag", "none", 0, 1, 1, "bool"), 1, 2.0) == 0
    assert offline.step(tunable("credit", "ms", 0, 100, 10), 0, 2.0) == 10
    assert offline.step(tunable("count", "tasks", 0, 64, 16), 1, 0.5) == 0


class Store:
    def __init__(self, lessons=(), antipatterns=()):
        self.asked = []
        self._lessons, self._antipatterns = lessons, antipatterns

    def lessons(self, workload_key, hardware_key):
        self.asked.append((workload_key, hardware_key))
        return self._lessons

    def antipatterns(self, workload_key, hardware_key):
        self.asked.append((workload_key, hardware_key))
        return self._antipatterns


WORKLOAD = WorkloadCommand("make -j", "/x", goal=Goal.THROUGHPUT)
HARDWARE = Hardware("cpu", 2, 1024, "vm-tcg", "7.3.4")


def ask(planner, store):
    return propose(planner, store, LIBRARY, workload=WORKLOAD, hardware=HARDWARE, profile=TAIL, iteration=1)


def test_the_node_asks_for_this_workload_and_hardware_and_passes_the_answer_on():
    store = Store([lesson("layered", Outcome.BETTER, 1.2)])
    chosen = ask(plan, store)
    assert store.asked == [(WORKLOAD.key, HARDWARE.key)] * 2
    assert policies(chosen)[0] == "layered"


def test_a_policy_that_failed_and_was_repaired_is_tried_again(tmp_path):
    source = tmp_path / "longest_first.bpf.c"
    source.write_text("broken")
    library = {**LIBRARY, "longest_first": dataclasses.replace(LIBRARY["longest_first"], source=source)}
    failure = Antipattern(
        "longest_first", "key", (), "", HARDWARE.key, "compile", "no", "now", library["longest_first"].source_digest
    )

    def proposed():
        chosen = propose(
            plan,
            Store(antipatterns=[failure]),
            library,
            workload=WORKLOAD,
            hardware=HARDWARE,
            profile=TAIL,
            iteration=1,
        )
        return policies(chosen)

    assert "longest_first" not in proposed()
    source.write_text("repaired")
    assert "longest_first" in proposed()


@pytest.mark.parametrize(
    ("candidate", "error", "text"),
    [
        (CandidatePolicy("nonsense"), PolicyError, "nonsense"),
        (CandidatePolicy("fair", (("slice_us", 1),)), TunableError, "out of range"),
        (CandidatePolicy("fair", (("speed", 1),)), TunableError, "no tunable"),
        (CandidatePolicy("fair", history=((1, 2),)), PolicyError, "'history'"),
        (CandidatePolicy("longest_first", classes=((1, 2),)), PolicyError, "'classes'"),
    ],
)
def test_no_planner_can_propose_what_the_library_cannot_make(candidate, error, text):
    with pytest.raises(error, match=text):
        ask(lambda *_, **__: Plan((candidate,), "because"), Store())
