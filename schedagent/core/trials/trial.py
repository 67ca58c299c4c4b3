"""Trials: one run of the workload, one block of runs, and the verdict over several blocks. Pure; no I/O."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from schedagent.core.trials.usage import Usage

ON_HOST = "host"
"""The lab that is this machine itself; the others are micro-VMs."""

DEFAULT_ARM = ""
"""The arm key of the default scheduler; candidates use CandidatePolicy.key."""


@dataclass(frozen=True)
class Hardware:
    """What results depend on besides the workload.

    Args:
        cpu_model: as /proc/cpuinfo names it on the host.
        cpus: CPUs of the machine the workload ran on.
        memory_mib: its memory.
        lab: where: "vm-tcg", "vm-kvm" or ON_HOST.
        kernel_release: uname -r of the kernel that scheduled.
    """

    cpu_model: str
    cpus: int
    memory_mib: int
    lab: str
    kernel_release: str

    @property
    def key(self) -> str:
        """Stable id of "the same hardware": kernel patch releases of one minor version count as the same."""
        minor = ".".join(self.kernel_release.split(".")[:2])
        parts = [self.cpu_model, self.cpus, self.memory_mib, self.lab, minor]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Sample:
    """One run of the workload, as the harness measured it.

    Args:
        arm: DEFAULT_ARM or the candidate's key.
        value: what is compared: wall time in seconds, or the number the metric expression found; nan if it found none.
        wall_ns: wall time of the run in the lab (CLOCK_MONOTONIC).
        cpu_ns: user + system time of the run and its children.
        exit_status: of the shell; negative for a signal, None if it exceeded its time limit.
        started_at: ISO 8601 UTC time on the host.
        calibration_ns: duration of the fixed calibration probe run just before, under the default scheduler.
        output_tail: end of stdout and stderr.
        policy_exit: why the kernel ejected the policy during the run; empty if it did not.
        values: every named metric and guard of the workload, in base units (seconds, or counts); nan if not found.
        usage: what else the run used; None for samples of versions that did not keep it.
    """

    arm: str
    value: float
    wall_ns: int
    cpu_ns: int
    exit_status: int | None
    started_at: str
    calibration_ns: int
    output_tail: str = ""
    policy_exit: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    usage: Usage | None = None

    @property
    def failure(self) -> str:
        """Why this run cannot be compared; empty if it can."""
        seen_by_lab = self.usage.failure if self.usage else None
        if self.policy_exit:
            return f"the kernel ejected the policy: {self.policy_exit}"
        if seen_by_lab:
            return seen_by_lab
        if self.exit_status is None:
            return "it ran into its time limit"
        if self.exit_status != 0 and seen_by_lab is None:
            return f"it ended with exit status {self.exit_status}"
        if math.isnan(self.value):
            return "its output held no number that --metric could find"
        return ""


@dataclass(frozen=True)
class Block:
    """One run of the default and of each candidate, in random order, next to each other in one machine.

    Args:
        number: position in the trial; 0 is the warm-up and is never compared.
        samples: in the order they ran; exactly one of DEFAULT_ARM.
    """

    number: int
    samples: tuple[Sample, ...]

    def sample(self, arm: str) -> Sample | None:
        """Return the sample of `arm`, None if this arm did not run in this block."""
        return next((sample for sample in self.samples if sample.arm == arm), None)


class Outcome(StrEnum):
    """What can honestly be said of a candidate."""

    BETTER = "better"
    TRADE_OFF = "trade-off"
    WORSE = "worse"
    NO_DIFFERENCE = "no difference"
    NO_USEFUL_GAIN = "no useful gain"
    INCONCLUSIVE = "inconclusive"
    FAILED = "failed"


@dataclass(frozen=True)
class GuardVerdict:
    """One guard, compared with the default scheduler.

    Args:
        name: of the guard.
        ratio: candidate / default; nan if nothing was compared.
        low, high: interval of the ratio, one-sided error as that of the verdict.
        margin: how much worse it may be, as a fraction.
        held: whether the interval shows that it is not worse by more.
    """

    name: str
    ratio: float
    low: float
    high: float
    margin: float
    held: bool


@dataclass(frozen=True)
class Expected:
    """The ratio to expect on hardware, of a trial that was measured in an emulated machine.

    Args:
        ratio, low, high: as those of a verdict.
        utilisation: the ratio if only the use of the CPUs carries over: one bound.
        raw: the ratio as it was measured: the other.
    """

    ratio: float
    low: float
    high: float
    utilisation: float
    raw: float


@dataclass(frozen=True)
class Verdict:
    """The comparison of one candidate with the default scheduler.

    Args:
        outcome: see Outcome.
        ratio: geometric mean of candidate / default over the pairs; nan if nothing was compared.
        low, high: confidence interval of the ratio.
        confidence: of the interval, after correction for several candidates.
        pairs: pairs compared.
        disturbed: pairs left out because the calibration probe showed a disturbed machine.
        reason: one sentence.
        guards: what must not get worse; none if the objective was not reached, or of older versions.
        expected: what carries over to hardware; None where the figures are the hardware's own, or say nothing of it.
    """

    outcome: Outcome
    ratio: float
    low: float
    high: float
    confidence: float
    pairs: int
    disturbed: int
    reason: str
    guards: tuple[GuardVerdict, ...] = ()
    expected: Expected | None = None

    @property
    def claim(self) -> tuple[float, float, float]:
        """Ratio, low and high that the outcome rests on: what is expected on hardware, or else what was measured."""
        figures = self.expected or self
        return figures.ratio, figures.low, figures.high
