"""The form of a report as JSON: what `as_json` fills, and what the schema is generated from.

A field that may be null was not measured, or does not apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from repo_store.records import RunFailure
from schedagent.core.policies.program import SchedulerProgram
from schedagent.core.trials.lesson import Insight, Meaning
from schedagent.core.trials.usage import MachineCosts, Usage
from schedagent.report.model_use import ModelUse
from schedagent.report.report import IssuedToken


@dataclass(frozen=True)
class WorkloadForm:
    """What was optimised; `metric` is empty if the wall time is compared, `objective` what is compared, for people;
    `running`: no command, but what an experiment is about."""

    key: str
    command: str
    directory: str
    goal: str
    prepare: str
    metric: str
    objective: str
    preset: str
    running: bool


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
    """The comparison with the default scheduler, as it was measured.

    `ratio` is candidate / default over the candidate's `pairs`; `low` to `high` is its interval at `confidence`, which
    is corrected for the number of candidates. A `trade-off` is better, but breaks a guard.
    """

    outcome: Literal["better", "trade-off", "worse", "no difference", "no useful gain", "inconclusive", "failed"]
    ratio: float | None
    low: float | None
    high: float | None
    confidence: float
    pairs: int
    disturbed: int
    reason: str


@dataclass(frozen=True)
class BoundsForm:
    """Between these lies the ratio on hardware: if only the use of the CPUs carries over, or all that was measured."""

    utilisation: float | None
    raw: float | None


@dataclass(frozen=True)
class ExpectedForm:
    """The ratio to expect on hardware, of a trial in an emulated machine."""

    ratio: float | None
    low: float | None
    high: float | None
    bounds: BoundsForm


@dataclass(frozen=True)
class GuardForm:
    """What must not get worse by more than `margin`, a fraction; `held` if the interval shows that it did not."""

    name: str
    ratio: float | None
    low: float | None
    high: float | None
    margin: float
    held: bool


@dataclass(frozen=True)
class ModeForm:
    """One of two clusters of runs; `share` is its part of all runs."""

    runs: int
    median: float
    share: float


@dataclass(frozen=True)
class ArmForm:
    """One value in the `n` runs of one arm; `spread` is the distance of the quartiles, `modes` two clusters or none."""

    median: float
    spread: float
    worst: float
    n: int
    modes: tuple[ModeForm, ...]


@dataclass(frozen=True)
class ValueForm:
    """One value in both arms, in base units: all runs after the warm-up that did not fail, disturbed ones included.

    `unit` is s, fraction or count; null for a number out of the output that is no time.
    """

    unit: str | None
    lower_is_better: bool
    default: ArmForm
    candidate: ArmForm


@dataclass(frozen=True)
class SplitForm:
    """What the difference in wall time consists of, as ratios: `wall_time` is `cpu_time` x `utilisation`.

    T = CPU time / (CPUs x utilisation); `utilisation` is below 1 if the candidate uses the CPUs better.
    """

    wall_time: float
    cpu_time: float
    utilisation: float


@dataclass(frozen=True)
class PairForm:
    """What is compared: the values of one block, of the default scheduler and of the candidate."""

    default: float
    candidate: float


@dataclass(frozen=True)
class CandidateForm:
    """One candidate; `pairs` are in the order they were measured, without the warm-up and without disturbed ones.

    `prediction` is what its planner expected, in words; `expected` the ratio to expect on hardware, null where the
    verdict's is the hardware's own. `values` go by name, what is compared first. Like `split` and `pairs`, they are of
    the blocks that the verdict rests on: those of its own, if it led a race. `program` is null but for a scheduler that
    loads its policy itself, which no gate saw.
    """

    key: str
    policy: str
    tunables: Mapping[str, int]
    origin: str
    reason: str
    prediction: str
    refuted_by: str
    gates: tuple[GateForm, ...]
    verdict: VerdictForm | None
    expected: ExpectedForm | None
    guards: tuple[GuardForm, ...]
    values: Mapping[str, ValueForm]
    split: SplitForm | None
    pairs: tuple[PairForm, ...]
    repairs: str
    program: SchedulerProgram | None


@dataclass(frozen=True)
class SampleForm:
    """One run of the workload; `arm` is default, a candidate's key or a knob, `failure` why it cannot be compared.

    `values` are the numbers that were read from its output; `usage` is null in runs of versions that did not keep it.
    """

    arm: str
    value: float | None
    wall_s: float
    cpu_s: float
    calibration_ms: float
    started_at: str
    exit_status: int | None
    failure: str
    values: Mapping[str, float | None]
    usage: Usage | None


@dataclass(frozen=True)
class BlockForm:
    """One run of each arm, next to each other in one machine; `samples` are in the order they ran."""

    number: int
    warm_up: bool
    samples: tuple[SampleForm, ...]


@dataclass(frozen=True)
class KnobForm:
    """What a knob gave: no claim, so there is no interval; in `value`, `candidate` is the knob's arm.

    `ratio` is as it was measured, `expected` what to expect on hardware of it.
    """

    name: str
    ratio: float
    value: ValueForm
    expected: float | None


@dataclass(frozen=True)
class IterationForm:
    """One plan and its trial; `knobs` are settings that every kernel has, measured beside the candidates."""

    reason: str
    learned: str
    candidates: tuple[CandidateForm, ...]
    runs_measured: int
    blocks: tuple[BlockForm, ...]
    knobs: tuple[KnobForm, ...]


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
    the report holds what is known so far. `name` is what the user called the run, empty if nothing; `costs` are those
    of the emulated machine, null if they were not measured.
    """

    version: Literal[2]
    run: str
    name: str
    started_at: str
    workload: WorkloadForm
    hardware: HardwareForm
    costs: MachineCosts | None
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
