"""Rule 17: an init_task that fails for want of memory is not one that fails at will."""

from __future__ import annotations

import pytest

from schedagent.core.rules import FindingClass
from tests.support.small_policy import check

RECORDS = """
struct record { u64 runs; };
struct {
    __uint(type, BPF_MAP_TYPE_TASK_STORAGE);
    __uint(map_flags, 1);
    __type(key, int);
    __type(value, struct record);
} records SEC(".maps");
struct masked { struct bpf_cpumask __kptr *mask; };
struct {
    __uint(type, BPF_MAP_TYPE_TASK_STORAGE);
    __uint(map_flags, 1);
    __type(key, int);
    __type(value, struct masked);
} masks SEC(".maps");
struct {
    __uint(type, BPF_MAP_TYPE_CGRP_STORAGE);
    __uint(map_flags, 1);
    __type(key, int);
    __type(value, struct record);
} groups SEC(".maps");
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1000);
    __type(key, u64);
    __type(value, u64);
} by_task SEC(".maps");
u64 nr_tasks;
"""
ALLOCATED = "if (!bpf_task_storage_get(&records, p, NULL, 1))\n\treturn -12;\nreturn 0;"
LOOKED_UP = ALLOCATED.replace("NULL, 1", "NULL, 0")
OF_A_USER = "if (p->pid == 4711)\n\treturn -12;\n" + ALLOCATED
COUNTED = "if (__sync_fetch_and_add(&nr_tasks, 1) > 4000)\n\treturn -12;\n" + ALLOCATED
ALWAYS = """
struct record *record = bpf_task_storage_get(&records, p, NULL, 1);

if (record && p->pid != 4711) {
    record->runs = 1;
    return 0;
}
return -12;
"""
EXCHANGED = """
struct masked *masked = bpf_task_storage_get(&masks, p, NULL, 1);
struct bpf_cpumask *mask;

if (!masked)
    return -12;
mask = bpf_cpumask_create();
if (!mask)
    return -12;
mask = bpf_kptr_xchg(&masked->mask, mask);
if (mask)
    bpf_cpumask_release(mask);
return *(void *volatile *)&masked->mask ? 0 : -12;
"""
TAKEN_OUT = EXCHANGED.replace("&masked->mask, mask)", "&masked->mask, NULL)")
REPLACED = """
struct masked *masked = bpf_task_storage_get(&masks, p, NULL, 1);
struct bpf_cpumask *mask;

if (!masked)
    return -12;
%s
mask = bpf_cpumask_create();
if (!mask)
    return -12;
mask = bpf_kptr_xchg(&masked->mask, mask);
if (!mask)
    return 0;
bpf_cpumask_release(mask);
return -22;
"""
ONCE_BEFORE = "mask = bpf_kptr_xchg(&masked->mask, bpf_cpumask_create());\nif (mask)\n\tbpf_cpumask_release(mask);"
KEPT = """
u64 key = (u64)p, value = 0, *kept;

if (bpf_map_update_elem(&by_task, &key, &value, 0))
    return 0;
%s
kept = bpf_map_lookup_elem(&by_task, &key);
if (!kept)
    return -22;
*kept = 1;
return 0;
"""
BEFORE_IT = "if (p->pid == 4711)\n\tnr_tasks = 0;\n" + ALLOCATED


@pytest.mark.parametrize(
    ("init_task", "classes"),
    [
        (ALLOCATED, {FindingClass.HOUSE}),
        (BEFORE_IT, {FindingClass.HOUSE}),
        (LOOKED_UP, {FindingClass.UNSAFE}),
        (OF_A_USER, {FindingClass.HOUSE, FindingClass.UNSAFE}),
        (COUNTED, {FindingClass.HOUSE, FindingClass.UNSAFE}),
        (ALWAYS, {FindingClass.UNSAFE}),
        (EXCHANGED, {FindingClass.HOUSE}),
        (TAKEN_OUT, {FindingClass.HOUSE, FindingClass.UNSAFE}),
        (REPLACED % "", {FindingClass.HOUSE}),
        (REPLACED % ONCE_BEFORE, {FindingClass.UNSAFE}),
        (KEPT % "", {FindingClass.HOUSE}),
        (KEPT % "bpf_map_delete_elem(&by_task, &key);", {FindingClass.UNSAFE}),
        (KEPT % "key++;", {FindingClass.UNSAFE}),
        (
            (KEPT % "").replace("if (bpf_map_update_elem(&by_task, &key, &value, 0))\n    return 0;", ""),
            {FindingClass.UNSAFE},
        ),
    ],
    ids=[
        "no memory",
        "a condition that decides nothing",
        "a look-up",
        "a user",
        "a count",
        "a user, at the same line",
        "a mask that was made",
        "a mask that was taken out",
        "a new record that holds something",
        "a record that it filled twice",
        "what it put into a map",
        "what it deleted again",
        "another key",
        "what it never put there",
    ],
)
def test_which_failing_forks_are_unsafe(tmp_path, init_task, classes):
    checked = check(tmp_path, before=RECORDS, init_task=init_task)
    assert {finding.finding_class for finding in checked.found(17)} >= classes - {FindingClass.HOUSE}
    assert (FindingClass.UNSAFE in {finding.finding_class for finding in checked.found(17)}) == (
        FindingClass.UNSAFE in classes
    )
    assert checked.found(17), "whoever derives a policy from ours falls back instead"


@pytest.mark.parametrize(("flags", "unsafe"), [(1, False), (0, True)])
def test_a_cgroup_without_memory_is_as_a_task(flags, unsafe, tmp_path):
    refuses = f"if (!bpf_cgrp_storage_get(&groups, cgrp, NULL, {flags}))\n\treturn -12;\nreturn 0;"
    classes = {finding.finding_class for finding in check(tmp_path, before=RECORDS, cgroup_init=refuses).found(17)}
    assert classes == {FindingClass.UNSAFE if unsafe else FindingClass.HOUSE}
