"""The form of a report as JSON: what `as_json` fills, and what the schema is generated from.

A field that may be null was not measured, or does not apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from repo_store.records import RunFailure
from schedagent.core.trials.lesson import Insight, Meaning
from schedagent.report.model_use import ModelUse
from schedagent.report.report import IssuedToken


@dataclass(frozen=True)
class WorkloadForm:
    """What was optimised; `metric` is empty if the wall time is compared."""

    key: str
    command: str
    directory: str
    goal: str
    prepare: str
    metric: str


@dataclass(frozen=True)
class HardwareForm:
    """Where it was measured; `lab` is vm-tcg (emulated), vm-kvm or host."""

    key: str
    cpu_model: str
    cpus: int
    memory_mib: int
    lab: str
    kernel_release: str


@dataclass(frozen=True)
class CommandForm:
    """The tasks of one command, together."""

    command: str
    count: int
    cpu_s: float
    cpu_ms_p50: float
    cpu_ms_p95: float
    cpu_ms_max: float
    run_delay_s: float
    voluntary_switches: int
    involuntary_switches: int


@dataclass(frozen=True)
class ProfileForm:
    """What one run under the default scheduler has shown; `parallelism` holds (seconds, runnable tasks)."""

    kind: str
    evidence: tuple[str, ...]
    wall_s: float
    cpu_s: float
    cpus: int
    busy_fraction: float
    parallelism: tuple[tuple[float, int], ...]
    psi_s: Mapping[str, float]
    lost_events: int
    commands: tuple[CommandForm, ...]


@dataclass(frozen=True)
class GateForm:
    """One gate of the verifier."""

    gate: str
    status: str
    detail: str
    seconds: float


@dataclass(frozen=True)
class VerdictForm:
    """The comparison with the default scheduler.

    `ratio` is the geometric mean of candidate / default over the candidate's `pairs`; `low` to `high` is the two-sided
    Student t interval of its logarithm at `confidence`, which is corrected for the number of candidates.
    """

    outcome: str
    ratio: float | None
    low: float | None
    high: float | None
    confidence: float
    pairs: int
    disturbed: int
    reason: str


@dataclass(frozen=True)
class PairForm:
    """What is compared: the values of one block, of the default scheduler and of the candidate."""

    default: float
    candidate: float


@dataclass(frozen=True)
class CandidateForm:
    """One candidate; `pairs` are in the order they were measured, without the warm-up and without disturbed ones."""

    key: str
    policy: str
    tunables: Mapping[str, int]
    origin: str
    reason: str
    expected: str
    refuted_by: str
    gates: tuple[GateForm, ...]
    verdict: VerdictForm | None
    pairs: tuple[PairForm, ...]
    cpu_time_ratio: float | None
    repairs: str


@dataclass(frozen=True)
class SampleForm:
    """One run of the workload; `arm` is default or the key of a candidate, `failure` why it cannot be compared."""

    arm: str
    value: float | None
    wall_s: float
    cpu_s: float
    calibration_ms: float
    started_at: str
    exit_status: int | None
    failure: str


@dataclass(frozen=True)
class BlockForm:
    """One run of each arm, next to each other in one machine; `samples` are in the order they ran."""

    number: int
    warm_up: bool
    samples: tuple[SampleForm, ...]


@dataclass(frozen=True)
class IterationForm:
    """One plan and its trial."""

    reason: str
    learned: str
    candidates: tuple[CandidateForm, ...]
    runs_measured: int
    blocks: tuple[BlockForm, ...]


@dataclass(frozen=True)
class DecisionForm:
    """One decision of a person."""

    stage: str
    iteration: int
    digest: str
    approved: bool
    by: str
    at: str
    because: str


@dataclass(frozen=True)
class ReportForm:
    """The report of a run, as `optimize --json` and `runs show --json` print it.

    `version` grows when a field is renamed or removed; a new field leaves it as it is. While the run is not `complete`,
    the report holds what is known so far.
    """

    version: Literal[1]
    run: str
    started_at: str
    workload: WorkloadForm
    hardware: HardwareForm
    profile: ProfileForm | None
    meaning: Meaning | None
    iterations: tuple[IterationForm, ...]
    best: CandidateForm | None
    outcome: str
    insights: tuple[Insight, ...]
    model: ModelUse | None
    out_of_time: bool
    complete: bool
    failure: RunFailure | None
    verified_by: tuple[str, ...]
    approvals: tuple[DecisionForm, ...]
    waiting: Mapping[str, Any] | None
    deployment: IssuedToken | None
