"""What earlier runs taught: measured verdicts worth repeating or avoiding, and candidates that never got that far.

Words of a model stand beside the numbers, in types of their own, and never take their place.
"""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Insight:
    """What was concluded from trials, in words.

    Args:
        text: one or two sentences.
        evidence: keys of the candidates whose trials it rests on; at least one.
        run_id: the run that drew it.
        created_at: ISO 8601 UTC time.
    """

    text: str
    evidence: tuple[str, ...]
    run_id: str
    created_at: str


@dataclass(frozen=True)
class Meaning:
    """What the numbers of a profile mean, in words: kept beside them, never read as a measurement.

    Args:
        meaning: what the workload does, a few sentences.
        goal: what a scheduler should do for it, one sentence.
    """

    meaning: str
    goal: str
