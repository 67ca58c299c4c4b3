"""What an object lacks without a loader of its own: one sentence."""

from __future__ import annotations

from schedagent.core.policies.rodata import read_rodata
from tests.support.small_policy import check, compiled
from verifier.logic.lacks import sentence

LOADED = """
const volatile u32 nr_domains;
const volatile u64 __SCX_OPS_ENQ_LAST;
const volatile u64 slice_us = 20000;
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 64);
    __type(key, s32);
    __type(value, u64);
} preferred SEC(".maps"), counted SEC(".maps");
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, u64);
} seen SEC(".maps");

SEC("syscall")
int set_domain(void *arguments)
{
    return nr_domains + slice_us + __SCX_OPS_ENQ_LAST;
}
"""
ENQUEUE = """
u32 zero = 0;
s32 pid = p->pid;
u64 one = 1, *known = bpf_map_lookup_elem(&preferred, &pid), *count = bpf_map_lookup_elem(&seen, &zero);

if (count)
    *count += 1;
if (!bpf_map_lookup_elem(&counted, &pid))
    bpf_map_update_elem(&counted, &pid, &one, 0);
scx_bpf_dsq_insert(p, SHARED, known ? SLICE : SLICE / 2, enq_flags);
"""


def test_constants_programs_and_maps_that_only_a_loader_sets_are_named(tmp_path):
    changes = {"before": LOADED, "enqueue": ENQUEUE}
    unfilled = check(tmp_path, **changes).report.unfilled
    assert unfilled == ("preferred",), "the others are written to by the policy itself"
    image = compiled(tmp_path, **changes)
    assert sentence(image, unfilled, ()) == (
        "Without its own loader it lacks 1 constant that is 0 (nr_domains); 1 program that nobody runs "
        "(set_domain); 1 map that nobody fills (preferred); it is judged as it is, with flags 0x0."
    )
    assert "nr_domains" not in sentence(image, unfilled, {"nr_domains"}), "it was set"


def test_many_names_are_cut_and_none_is_said_to_be_none(tmp_path):
    image = compiled(tmp_path)
    assert sentence(image, (), ()) == "It needs no loader of its own; it is judged as it is, with flags 0x0."
    many = sentence(image, [f"map{number}" for number in range(8)], ())
    assert "8 maps that nobody fills (map0, map1, map2, map3, map4 and 3 more)" in many


def test_what_is_assumed_of_a_loader_is_said_and_no_longer_lacking(tmp_path):
    image = compiled(tmp_path, before=LOADED)
    assumed = read_rodata({"rodata": {"nr_domains": 2}, "ops": {"timeout_ms": 5000}}, "it")
    told = sentence(image, (), (), assumed)
    assert told.endswith("; assumed of its loader: nr_domains = 2, timeout_ms = 5000.")
    assert "constant that is 0" not in told


USER_SPACE = """
struct {
    __uint(type, BPF_MAP_TYPE_QUEUE);
    __uint(max_entries, 64);
    __type(value, s32);
} queued SEC(".maps"), dispatched SEC(".maps");
"""
HANDED = "s32 pid = p->pid;\n\nif (bpf_map_push_elem(&queued, &pid, 0))\n\tscx_bpf_dsq_insert(p, SHARED, SLICE, 0);"
TAKEN = "s32 pid;\n\nif (!bpf_map_pop_elem(&%s, &pid))\n\tscx_bpf_dsq_move_to_local(SHARED);"


def test_a_scheduler_in_user_space_is_called_one(tmp_path):
    handed = {"before": USER_SPACE, "enqueue": HANDED}
    assert check(tmp_path, **handed, dispatch=TAKEN % "dispatched").report.handed_over
    assert not check(tmp_path, **handed, dispatch=TAKEN % "queued").report.handed_over, "it takes them itself"
    image = compiled(tmp_path, **handed)
    assert "needs its own program in user space" in sentence(image, (), (), handed_over=True)
