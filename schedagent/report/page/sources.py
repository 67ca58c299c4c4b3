"""The policies of a report as text: a source, or what a patch changed in one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kernel_bpf.policies.library import load_library
from repo_store.store import PolicyRepository
from schedagent.core.policies.proposal import DerivedPolicy
from schedagent.report.report import Report


@dataclass(frozen=True)
class PolicyText:
    """One policy.

    Args:
        origin: where its text is from, for people.
        text: BPF C, or the difference to the policy it was made of.
    """

    origin: str
    text: str


def policy_texts(repository: PolicyRepository, report: Report) -> dict[str, PolicyText]:
    """Return the policies that were tried, by name; one that is in the library no longer is left out."""
    bundled = {info.name: info.source for info in load_library().values()}
    derived = {policy.name: policy for policy in repository.derived_policies()}
    texts = {}
    for name in dict.fromkeys(entry.candidate.policy for entry in report.candidates):
        if name in derived:
            texts[name] = _derived_text(derived[name], derived, bundled)
        elif name in bundled:
            texts[name] = PolicyText("bundled, as this version has it", _read(bundled[name]))
    return texts


def _derived_text(
    policy: DerivedPolicy, derived: Mapping[str, DerivedPolicy], bundled: Mapping[str, Path]
) -> PolicyText:
    if policy.parent in derived:
        before = derived[policy.parent].source
    elif policy.parent in bundled:
        before = _read(bundled[policy.parent])
    else:
        return PolicyText(policy.origin.label, policy.source)
    lines = difflib.unified_diff(
        before.splitlines(), policy.source.splitlines(), policy.parent, policy.name, lineterm=""
    )
    return PolicyText(f"{policy.origin.label} from {policy.parent}, the difference", "\n".join(lines))


def _read(source: Path) -> str:
    return source.read_text(encoding="utf-8", errors="replace")
