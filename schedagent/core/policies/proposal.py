"""What a planner asks for before it exists, and the policies derived from such wishes.

    proposal -> agents.planner.builder.PolicyBuilder.make -> CandidatePolicy

A planner has four origins for its candidates, cheapest first; the last three of them make a policy that did not come
with the program. What a person names for a run may have one of two more: a policy that was brought, or another program.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from schedagent.core.policies.program import SchedulerProgram


class Origin(StrEnum):
    """How a candidate, or a policy, came about; only policies are bundled, and only candidates are configured."""

    BUNDLED = "bundled"
    """It came with the program."""
    CONFIGURE = "configure"
    """Tunables of a policy of the library were set."""
    COMPOSE = "compose"
    """A policy was built from the primitives of a spec (core.policies.spec)."""
    PATCH = "patch"
    """A policy of the library was changed by a unified diff."""
    GENERATE = "generate"
    """BPF C was written freely."""
    BROUGHT = "brought"
    """A person brought its source."""
    PROGRAM = "program"
    """A program of this host loads its policy itself (core.policies.program)."""

    @property
    def label(self) -> str:
        """The same as people read it: "patched" of a policy that a patch made."""
        as_they_are = {self.BUNDLED: "bundled", self.PATCH: "patched", self.BROUGHT: "brought", self.PROGRAM: "program"}
        return as_they_are.get(self, f"{self}d")


@dataclass(frozen=True)
class Proposal:
    """What a planner asks for. It comes from a model as likely as not: nothing in it is checked yet.

    Args:
        origin: how to make it; decides which of the other fields count.
        policy: configure, patch: name of a policy of the library; compose, generate, brought: name of the new one (a
            spec that names itself otherwise is right).
        tunables: configure: tunable -> value; the others: changes to the defaults of what is made.
        spec: compose: the table of a PolicySpec, see core.spec_reader.
        diff: patch: unified diff against the source of `policy`.
        source: generate, brought: BPF C.
        manifest: brought: its documentation in TOML.
        path: brought: where it was.
        program: program: what is started.
        description: one sentence: what the new policy does.
        reason: one sentence: why it should help.
        expected: one sentence: the effect that is expected.
        refuted_by: one sentence: what measurement would refute that.
    """

    origin: Origin
    policy: str
    tunables: Mapping[str, int] = field(default_factory=dict)
    spec: Mapping[str, Any] | None = None
    diff: str = ""
    source: str = ""
    description: str = ""
    reason: str = ""
    expected: str = ""
    refuted_by: str = ""
    manifest: str = ""
    path: str = ""
    program: SchedulerProgram | None = None


@dataclass(frozen=True)
class DerivedPolicy:
    """A policy that was composed, patched, generated or brought in some run: two texts, and where they come from.

    Args:
        name: as of any policy of the library, where it may not stand twice.
        origin: how it was made; never CONFIGURE or PROGRAM.
        parent: the policy of the library that was patched; else empty.
        source: BPF C.
        manifest: TOML, as kernel_bpf.policies.library reads it.
        spec: what it was composed from, the table that core.spec_reader reads; else None.
        run_id: the run that made it; empty if no run did.
        created_at: ISO 8601 UTC time.
    """

    name: str
    origin: Origin
    parent: str
    source: str
    manifest: str
    spec: Mapping[str, Any] | None
    run_id: str
    created_at: str

    @property
    def digest(self) -> str:
        """Hex SHA-256 over both texts: what the policy is, whoever made it and when."""
        return hashlib.sha256(json.dumps([self.source, self.manifest]).encode()).hexdigest()
