"""What earlier runs taught: measured verdicts worth repeating or avoiding, and candidates that never got that far.

Words of a model stand beside the numbers, in types of their own, and never take their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schedagent.core.trials.trial import Outcome


@dataclass(frozen=True)
class Lesson:
    """One verdict of an earlier run on the same workload and hardware.

    Args:
        workload_key, hardware_key: what it was measured on.
        policy, candidate_key, tunables: what was measured.
        outcome, ratio, low, high, pairs: the verdict, with the figures it rests on (see core.trial.Verdict.claim);
            ratio is nan if nothing was compared.
        run_id: the run that measured it.
        at: ISO 8601 UTC time of the verdict.
    """

    workload_key: str
    hardware_key: str
    policy: str
    candidate_key: str
    tunables: tuple[tuple[str, int], ...]
    outcome: Outcome
    ratio: float
    low: float
    high: float
    pairs: int
    run_id: str
    at: str


@dataclass(frozen=True)
class Antipattern:
    """A candidate that failed, so that it is not planned again in the same place.

    Args:
        policy, candidate_key, tunables: the candidate.
        workload_key: the workload it failed on; empty if it failed whatever the workload (a gate of the verifier).
        hardware_key: where.
        gate: the gate or stage that failed: compile, load, stress, trial ...
        reason: what was seen.
        at: ISO 8601 UTC time.
        source_digest: hex SHA-256 of the source that failed: a repaired policy is worth another try.
    """

    policy: str
    candidate_key: str
    tunables: tuple[tuple[str, int], ...]
    workload_key: str
    hardware_key: str
    gate: str
    reason: str
    at: str
    source_digest: str = ""


class Relation(StrEnum):
    """How two arms compare in one metric."""

    BETTER = "better than"
    SAME = "no different from"


@dataclass(frozen=True)
class Claim:
    """What trials are said to show of two arms; `agents.evidence.holds` checks it against their samples.

    Args:
        arm, other: keys of the arms; one may be DEFAULT_ARM.
        relation: how the first compares with the other.
        metric: name of what is compared, see `agents.evidence.metrics`.
        names: of the two arms, for people.
    """

    arm: str
    relation: Relation
    other: str
    metric: str
    names: tuple[str, str]

    def __str__(self) -> str:
        return f"{self.names[0]} is {self.relation} {self.names[1]} in {self.metric}"


@dataclass(frozen=True)
class Insight:
    """What was concluded from trials: claims that their samples bear out, and what a model says of them.

    Args:
        text: one or two sentences of a model's, without figures that nobody measured; its claims, if nothing is left.
        evidence: keys of the candidates whose trials it rests on; at least one.
        run_id: the run that drew it.
        created_at: ISO 8601 UTC time.
        claims: what was checked; none of those that versions before stored, whose words nobody checked.
    """

    text: str
    evidence: tuple[str, ...]
    run_id: str
    created_at: str
    claims: tuple[Claim, ...] = ()

    @property
    def measured(self) -> str:
        """What was checked, in our words; empty if nothing was."""
        return "; ".join(map(str, self.claims))

    @property
    def words(self) -> str:
        """What the model said besides; empty if nothing."""
        return "" if self.text == self.measured else self.text


@dataclass(frozen=True)
class Meaning:
    """What the numbers of a profile mean, in words: kept beside them, never read as a measurement.

    Args:
        meaning: what the workload does, a few sentences.
        goal: what a scheduler should do for it, one sentence.
    """

    meaning: str
    goal: str
