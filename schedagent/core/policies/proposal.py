"""What a planner asks for before it exists, and the policies that were made of such wishes.

    proposal -> agents.planner.builder.Workshop.make -> CandidatePolicy

There are four ways to a candidate, cheapest first; the last three make a policy that did not come with the program.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Way(StrEnum):
    """How a candidate comes about."""

    CONFIGURE = "configure"
    """Set tunables of a policy of the library."""
    COMPOSE = "compose"
    """Build a policy from the primitives of a spec (core.spec)."""
    PATCH = "patch"
    """Change a policy of the library by a unified diff."""
    GENERATE = "generate"
    """Write BPF C freely."""


class Origin(StrEnum):
    """Where a policy comes from."""

    BUNDLED = "bundled"
    COMPOSED = "composed"
    PATCHED = "patched"
    GENERATED = "generated"

    @classmethod
    def of(cls, way: Way) -> Origin:
        """Return the origin of a policy that was made this way; raise KeyError for CONFIGURE, which makes none."""
        return {Way.COMPOSE: cls.COMPOSED, Way.PATCH: cls.PATCHED, Way.GENERATE: cls.GENERATED}[way]


@dataclass(frozen=True)
class Proposal:
    """What a planner asks for. It comes from a model as likely as not: nothing in it is checked yet.

    Args:
        way: how to make it; decides which of the other fields count.
        policy: configure, patch: name of a policy of the library; compose, generate: name of the new one (a spec that
            names itself otherwise is right).
        tunables: configure: tunable -> value; the others: changes to the defaults of what is made.
        spec: compose: the table of a PolicySpec, see core.spec_reader.
        diff: patch: unified diff against the source of `policy`.
        source: generate: BPF C.
        description: one sentence: what the new policy does.
        reason: one sentence: why it should help.
        expected: one sentence: the effect that is expected.
        refuted_by: one sentence: what measurement would refute that.
    """

    way: Way
    policy: str
    tunables: Mapping[str, int] = field(default_factory=dict)
    spec: Mapping[str, Any] | None = None
    diff: str = ""
    source: str = ""
    description: str = ""
    reason: str = ""
    expected: str = ""
    refuted_by: str = ""


@dataclass(frozen=True)
class MadePolicy:
    """A policy that was composed, patched or generated in some run: two texts, and where they come from.

    Args:
        name: as of any policy of the library, where it may not stand twice.
        way: how it was made; never CONFIGURE.
        parent: the policy of the library that was patched; else empty.
        source: BPF C.
        manifest: TOML, as kernel_bpf.policies.library reads it.
        spec: what it was composed from, the table that core.spec_reader reads; else None.
        run_id: the run that made it; empty if no run did.
        created_at: ISO 8601 UTC time.
    """

    name: str
    way: Way
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

    @property
    def origin(self) -> Origin:
        """How it came about, in the words of the library."""
        return Origin.of(self.way)
