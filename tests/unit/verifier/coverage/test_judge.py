"""Rule 33: what is held against a policy of which not everything ran."""

from __future__ import annotations

import pytest

from schedagent.core.policies.policy import Standing
from schedagent.core.verification import Severity
from tests.support.small_policy import compiled
from verifier.coverage.guards import guards_of
from verifier.coverage.judge import Ran, judge
from verifier.coverage.probes import Side, place_probes

QUEUES = {7: 3}
VICTIM = """
struct task_struct___named {
    char comm[16];
} __attribute__((preserve_access_index));

static __noinline bool is_victim(struct task_struct *p)
{
    return %s;
}
"""
CHOICE = """
    if (is_victim(p))
        scx_bpf_dsq_insert(p, 8, SLICE, enq_flags);
    else
        scx_bpf_dsq_insert(p, SHARED, SLICE, enq_flags);
"""
INPUTS = {
    "(u32)bpf_get_current_uid_gid() == 1000": "uid",
    "((struct task_struct___named *)p)->comm[0] == 's'": "comm",
    "bpf_ktime_get_ns() > 3600000000000ULL": "time since boot",
    "scx_bpf_nr_cpu_ids() > 2": "cpus",
}


def everything(probes) -> frozenset[int]:
    return frozenset(range(len(probes.probes)))


def judged(image, *, without=lambda _probe: False, gone=lambda _probe: False, standing=Standing.DERIVED, **more):
    """Judge a policy of which all ran but what `without` says, and all may run but what `gone` says."""
    probes = place_probes(image)
    passed = frozenset(number for number, probe in enumerate(probes.probes) if not without(probe))
    kept = frozenset(number for number, probe in enumerate(probes.probes) if not gone(probe))
    ran = Ran(passed, kept, more.pop("entered", QUEUES), more.pop("why", ""))
    return judge(image, probes, ran, standing, **more)


def test_a_policy_of_which_all_ran_has_no_finding(tmp_path):
    judgement = judged(compiled(tmp_path))
    assert judgement.findings == ()
    assert judgement.coverage.summary == "2 of 2 branches ran, 1 of 1 queues were used"


@pytest.mark.parametrize(("condition", "name"), INPUTS.items(), ids=INPUTS.values())
def test_a_branch_that_an_input_decides_has_to_be_seen_on_both_sides(tmp_path, condition, name):
    image = compiled(tmp_path, before=VICTIM % condition, enqueue=CHOICE)
    assert judged(image).findings == ()
    guards = guards_of(image, place_probes(image).codes)
    decided = next(place for place, inputs in guards.items() if name in {given.name for given in inputs})
    judgement = judged(image, without=lambda probe: (probe.function, probe.index, probe.side) == (*decided, Side.TAKEN))
    assert any(name in finding.message and finding.line for finding in judgement.findings), judgement.findings
    assert {finding.severity for finding in judgement.findings} == {Severity.ERROR}
    assert judgement.coverage.never


def test_a_branch_that_no_input_decides_may_stay_unseen(tmp_path):
    body = "u64 slice = scx_bpf_dsq_nr_queued(SHARED) > 5 ? SLICE / 2 : SLICE;"
    body += "scx_bpf_dsq_insert(p, SHARED, slice, enq_flags);"
    image = compiled(tmp_path, enqueue=body)
    for side in (Side.TAKEN, Side.NOT_TAKEN):
        judgement = judged(image, without=lambda probe, side=side: (probe.function, probe.side) == ("t_enqueue", side))
        assert judgement.findings == ()
        assert judgement.coverage.ran < judgement.coverage.branches


def test_an_insert_that_never_ran_is_held_against_it_whatever_decides(tmp_path):
    body = "scx_bpf_dsq_insert(p, scx_bpf_dsq_nr_queued(SHARED) > 500 ? 8 : SHARED, SLICE, enq_flags);"
    lone = (
        """
        if (scx_bpf_dsq_nr_queued(SHARED) > 500) {
            scx_bpf_dsq_insert(p, 8, SLICE, enq_flags);
            scx_bpf_kick_cpu(0, IDLE);
            return;
        }
    """
        + body
    )
    image = compiled(tmp_path, enqueue=lone)
    unseen = [
        judged(image, without=lambda probe, side=side: (probe.function, probe.side) == ("t_enqueue", side)).findings
        for side in (Side.TAKEN, Side.NOT_TAKEN)
    ]
    assert any("scx_bpf_dsq_insert never ran" in finding.message for findings in unseen for finding in findings)


def test_a_fallback_into_a_queue_of_the_kernels_may_stay_unseen(tmp_path):
    body = """
        u64 *kept = bpf_task_storage_get(&marks, p, NULL, 0);

        if (!kept) {
            scx_bpf_dsq_insert(p, GLOBAL, SLICE, enq_flags);
            return;
        }
        scx_bpf_dsq_insert(p, SHARED, SLICE, enq_flags);
        scx_bpf_kick_cpu(0, IDLE);
    """
    image = compiled(tmp_path, before=STORAGE, enqueue=body)
    unseen = [
        judged(image, without=lambda probe, side=side: (probe.function, probe.side) == ("t_enqueue", side)).findings
        for side in (Side.TAKEN, Side.NOT_TAKEN)
    ]
    assert sorted(map(len, unseen)) == [0, 1], "the fallback is excused, the insert into the policy's own queue is not"


STORAGE = """
struct {
    __uint(type, BPF_MAP_TYPE_TASK_STORAGE);
    __uint(map_flags, 1);
    __type(key, int);
    __type(value, u64);
} marks SEC(".maps");
"""


def test_what_the_kernel_proved_to_be_out_of_reach_is_no_matter(tmp_path):
    image = compiled(tmp_path, before=VICTIM % "scx_bpf_nr_cpu_ids() > 2", enqueue=CHOICE)
    taken = [
        probe for probe in place_probes(image).probes if probe.function == "t_enqueue" and probe.side is Side.TAKEN
    ]
    judgement = judged(image, without=lambda probe: probe in taken, gone=lambda probe: probe in taken)
    assert judgement.findings == ()


def test_a_queue_that_no_task_entered_is_held_against_it(tmp_path):
    judgement = judged(compiled(tmp_path), entered={7: 4, 8: 0})
    (finding,) = judgement.findings
    assert finding.message == "no task ever entered queue 8, which the policy created"
    assert (judgement.coverage.queues, judgement.coverage.entered) == (2, 1)


def test_a_callback_that_never_ran_is_held_against_it_unless_it_only_ends_or_describes(tmp_path):
    image = compiled(tmp_path)
    for member, count in (("t_dispatch", 1), ("t_exit", 0)):
        judgement = judged(image, without=lambda probe, member=member: probe.function == member)
        assert len(judgement.findings) == count, member


@pytest.mark.parametrize(
    ("standing", "severities"),
    [(Standing.DERIVED, [Severity.ERROR]), (Standing.FOREIGN, [Severity.NOTE]), (Standing.BUNDLED, [])],
)
def test_who_wrote_it_decides_what_a_finding_means(tmp_path, standing, severities):
    unused = judged(compiled(tmp_path), entered={7: 4, 8: 0}, standing=standing)
    unknown = judged(compiled(tmp_path), why="the copy with probes cannot be run", standing=standing)
    for judgement in (unused, unknown):
        assert [finding.severity for finding in judgement.findings] == severities


def test_what_our_composer_wrote_is_only_noted(tmp_path):
    judgement = judged(compiled(tmp_path), entered={7: 4, 8: 0}, known=True)
    assert [finding.severity for finding in judgement.findings] == [Severity.NOTE]


@pytest.mark.parametrize("unknown", [{"why": "no register is free"}, {"entered": None}], ids=["probes", "queues"])
def test_what_was_not_measured_is_not_proved(tmp_path, unknown):
    judgement = judged(compiled(tmp_path), **unknown)
    (finding,) = judgement.findings
    assert finding.severity is Severity.ERROR
    assert "was not measured" in judgement.coverage.summary
