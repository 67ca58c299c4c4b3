"""The code of cgroups' limits is taken as a whole where a policy has it as it is, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import KernelTarget
from kernel_bpf.policies.library import load_library
from schedagent.core.policies.policy import Standing
from schedagent.core.settings import load_settings
from verifier.logic.taint import rule
from verifier.logic.taint.limits import kept_functions
from verifier.object.image import BpfImage
from verifier.object.reader import read_object
from verifier.submission import accepted_limits

RUNNABLE = "\tcgroup_runnable(p);\n"
QUIESCENT = "\tcgroup_quiescent(p);\n\treturn_budget(p);\n"
JOIN = "join_queue(p, queue, slice, key, enq_flags);"
STOP = "\tvtime_stop(p);\n"


@dataclass(frozen=True)
class Patch:
    """A policy made of a bundled one: old text -> new."""

    name: str
    changes: tuple[tuple[str, str], ...]
    base: str = "fair"

    def source(self) -> str:
        text = load_library()[self.base].source.read_text(encoding="utf-8")
        for old, new in self.changes:
            assert old in text, old
            text = text.replace(old, new, 1)
        return text


def at_the_top(text: str) -> tuple[str, str]:
    return ('#include "bandwidth.bpf.h"\n', f'#include "bandwidth.bpf.h"\n\n{text}\n')


def before(anchor: str, text: str) -> tuple[str, str]:
    return anchor, f"{text}\n{anchor}"


HARMLESS = (
    Patch("another slice", (("slice_us = 5000", "slice_us = 7000"),)),
    Patch("kept longer", (("starvation_ms * NSEC_PER_MSEC", "starvation_ms * NSEC_PER_MSEC / 2"),)),
    Patch("more in quiescent", ((QUIESCENT, f"{QUIESCENT}\tif (p->scx.weight > 100)\n\t\tadvance_clock(vtask_of(p) ?: &(struct vtask){{}});\n"),)),
)  # fmt: skip

HOSTILE = (
    Patch("counts wake-ups among the claims of the root", (before(f"\t{JOIN}", "\tcgroup_claim(ROOT_NODE, 0, 1, 1);"),)),
    Patch("keeps a counter in the totals", (
        before(f"\t{JOIN}", "\tif (cgroup_total())\n\t\tcgroup_total()->clock++;\n"
               "\tif (cgroup_total() && cgroup_total()->clock > 1000000)\n\t\tslice = SLICE_MAX_NS;"),)),
    Patch("never withdraws a claim, so that the sum counts all who ever woke", ((QUIESCENT, "\treturn_budget(p);\n"),)),
    Patch("withdraws only some", ((QUIESCENT, f"\tif (p->scx.weight != 100)\n\t\treturn;\n{QUIESCENT}"),)),
    Patch("withdraws for another task", ((QUIESCENT, "\tcgroup_quiescent(bpf_get_current_task_btf());\n"),)),
    Patch("claims once more as it stops", ((QUIESCENT, f"{QUIESCENT}\tcgroup_runnable(p);\n"),)),
    Patch("claims as it is enqueued", (before(f"\t{JOIN}", "\tcgroup_runnable(p);"),)),
    Patch("claims for another task", ((RUNNABLE, "\tcgroup_runnable(bpf_get_current_task_btf());\n"),)),
    Patch("claims in a function of its own", (
        before("s32 SCX_CALLBACK(fair_select_cpu", "static __noinline void again(struct task_struct *p)\n{\n\tcgroup_runnable(p);\n}\n"),
        before(f"\t{JOIN}", "\tagain(p);"))),
    Patch("never hears that a cgroup goes", (
        ("\tLIMIT_OPS,\n", "\tLIMIT_OPS,\n\t.cgroup_exit = (void *)fair_cgroup_exit,\n"),
        before("LIMIT_CALLBACKS", "void SCX_CALLBACK(fair_cgroup_exit, struct cgroup *cgrp)\n{\n}\n"))),
    Patch("refills budgets as it is dumped", (("\tdump_queues(1);\n", "\tdump_queues(1);\n\tadd_budget(1, 1000);\n"),)),
    Patch("drains budgets in a tracing program", (
        before("LIMIT_CALLBACKS", 'SEC("tp_btf/sched_process_exec")\nint BPF_PROG(seen, struct task_struct *p)\n'
               "{\n\tcharge_budget(p, 1000000);\n\treturn 0;\n}\n"),)),
    Patch("starts its timer anew as a task runs", ((STOP, f"{STOP}\tcreate_limits();\n"),)),
    Patch("gives another meaning to a word of the header", (
        ('#include "bandwidth.bpf.h"\n', '#include "common.bpf.h"\nu64 looked;\n'
         "#define time_before(a, b) (looked++ > 1000000 || (s64)((a) - (b)) < 0)\n"
         '#include "bandwidth.bpf.h"\n'),)),
    Patch("reads when a budget is filled", (
        before(f"\t{JOIN}", "\tif (cgroup_limit_at(1) && cgroup_limit_at(1)->refill > 3600ULL << 30)\n\t\tslice = SLICE_MAX_NS;"),)),
)  # fmt: skip

UID = "BPF_CORE_READ(p, cred, uid.val) == 1000"
GOES_BY_UID = (
    Patch("queue", ((JOIN, f"join_queue(p, queue + ({UID}), slice, key, enq_flags);"),)),
    Patch("key", ((JOIN, f"join_queue(p, queue, slice, key + ({UID} ? NSEC_PER_MSEC : 0), enq_flags);"),)),
    Patch("slice", ((JOIN, f"join_queue(p, queue, {UID} ? SLICE_MIN_NS : slice, key, enq_flags);"),)),
    Patch("whether it is charged", ((STOP, f"{STOP}\tif ({UID})\n\t\tcharge_budget(p, NSEC_PER_MSEC);\n"),)),
    Patch("how much is taken", ((STOP, f"{STOP}\tgranted_slice(p, {UID} ? NSEC_PER_MSEC : 0);\n"),)),
    Patch("whether it is counted", (("\tcgroup_task_init(p);\n", f"\tif ({UID})\n\t\treturn 0;\n\tcgroup_task_init(p);\n"),)),
    Patch("whether its cgroup leads", (("\tlead_charge(p);\n", f"\tif ({UID})\n\t\treturn;\n\tlead_charge(p);\n"),), "interactive"),
)  # fmt: skip


@pytest.fixture(scope="module")
def compiled(real_target: KernelTarget, tmp_path_factory) -> Callable[[Patch], BpfImage]:
    """Returns the object of a patch."""

    def make(patch: Patch) -> BpfImage:
        source = tmp_path_factory.mktemp("patch") / "fair.bpf.c"
        source.write_text(patch.source(), encoding="utf-8")
        artifact = compile_policy(source, "fair", real_target, cache_dir=load_settings().cache_dir)
        return read_object(artifact.object_bytes)

    return make


@pytest.fixture(scope="module")
def kept(real_target: KernelTarget) -> Callable[[BpfImage], frozenset[str]]:
    """Returns what of an object is taken as a whole."""
    return lambda image: kept_functions(image, accepted_limits(image, real_target, load_settings().cache_dir))


def undeclared(image: BpfImage, functions: frozenset[str]) -> set[str]:
    """What the object goes by, as what a model wrote."""
    found_by_name = load_library()["layered"].reads
    return {finding.word.partition(":")[2] for finding in rule.findings(image, Standing.DERIVED, (), functions)} - {
        *found_by_name
    }


@pytest.mark.parametrize("name", ["fair", "layered", "interactive", "longest_first"])
def test_a_bundled_policy_has_it_as_it_is(name, compiled, kept):
    image = compiled(Patch(name, (), name))
    assert {"effective_weight", "cgroup_runnable", "limits_cgroup_exit"} <= kept(image)


@pytest.mark.parametrize("patch", HARMLESS, ids=lambda patch: patch.name)
def test_a_patch_beside_it_goes_by_nothing(patch, compiled, kept):
    image = compiled(patch)
    assert kept(image)
    assert undeclared(image, kept(image)) == set()


@pytest.mark.parametrize("patch", HOSTILE, ids=lambda patch: patch.name)
def test_a_patch_that_touches_it_is_followed_step_by_step(patch, compiled, kept):
    image = compiled(patch)
    assert kept(image) == frozenset()
    assert "counters" in undeclared(image, frozenset())


@pytest.mark.parametrize("patch", GOES_BY_UID, ids=lambda patch: patch.name)
def test_what_is_handed_to_it_decides(patch, compiled, kept):
    image = compiled(patch)
    assert kept(image)
    assert undeclared(image, kept(image)) == {"uid"}
