"""Rule 31: cpu.weight, cpu.idle and cpu.max of cgroups, which the kernel hands to a policy that takes them."""

from __future__ import annotations

from schedagent.core.policies.policy import CGROUP_LIMITS, CGROUP_WEIGHTS, Standing
from schedagent.core.verification import Finding, Severity
from verifier.logic.rules.subject import Subject
from verifier.object.image import OpsStruct

RULE = 31

CALLBACKS = {
    "cgroup_set_weight": (CGROUP_WEIGHTS, "cpu.weight"),
    "cgroup_set_idle": (CGROUP_WEIGHTS, "cpu.idle"),
    "cgroup_set_bandwidth": (CGROUP_LIMITS, "cpu.max"),
}
"""Callback -> what the policy cannot keep without it, and the file whose value it brings."""


def known_limits(ops: OpsStruct) -> tuple[str, ...]:
    """Return the kinds of limits that a policy has callbacks for."""
    return tuple(dict.fromkeys(word for member, (word, _file) in CALLBACKS.items() if member in ops.callbacks))


def check(subject: Subject) -> None:
    """Note which limits of cgroups the policy cannot know: a token takes its word, or somebody's, for each kind."""
    if subject.standing is Standing.BUNDLED:
        return
    for word in (CGROUP_WEIGHTS, CGROUP_LIMITS):
        missing = [
            (member, file)
            for member, (kind, file) in CALLBACKS.items()
            if kind == word and member not in subject.ops.callbacks and f"sched_ext_ops.{member}" in subject.features
        ]
        if missing:
            members = ", ".join(member for member, _file in missing)
            files = " and ".join(file for _member, file in missing)
            text = f"without {members} it cannot know {files}: those stop holding for every cgroup of the machine"
            subject.findings.append(Finding(RULE, Severity.NOTE, "", "", 0, text, word=word))
