"""A lab and a verifier that follow a script, so that tests drive the real graph, checkpoints and repository.

Everything they are asked to do is a line in the script's log, which outlives the process: tests kill it.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agents.planner.programs import Shelf
from repo_store.store import PolicyRepository
from schedagent.cli.common import guarded
from schedagent.cli.optimize import show_report
from schedagent.core.approval import Decision
from schedagent.core.errors import KernelRejected, VmLost, WorkloadFailed
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import PolicyInfo, Tunable
from schedagent.core.rules import GATES, PROVING
from schedagent.core.settings import Settings
from schedagent.core.token import digest_inputs
from schedagent.core.trials.judge import TrialRules
from schedagent.core.trials.trial import DEFAULT_ARM, Hardware, Sample
from schedagent.core.trials.usage import MachineCosts
from schedagent.core.trials.workload import Observation, TaskRecord, WorkloadCommand
from schedagent.core.verification import Finding, GateResult, GateStatus, Severity, VerificationReport, Verified
from schedagent.report.as_json import to_json
from schedagent.report.report import Report
from schedagent.report.terminal import render
from schedagent.run import opening
from schedagent.run.library import Library, worth_trying
from schedagent.run.lifecycle import drive, report_of
from schedagent.run.nodes import RunNodes, TimeBudget
from schedagent.run.opening import approvals_of, open_models
from schedagent.run.options import RunOptions
from schedagent.run.progress import PlainReporter
from tests.support.paths import FIXTURES
from verifier.signer import Signer

MS = 1_000_000
HARDWARE = Hardware("Scripted CPU", 2, 2048, "vm-tcg", "7.3.4")
WORKLOAD = WorkloadCommand("./batch.sh", "/tmp")
COSTS = MachineCosts(kappa=20.0, lab_switch_ns=60_000.0, host_switch_ns=2000.0)
RULES = TrialRules(maximum_pairs=8)
OPTIONS = RunOptions(iterations=2, budget_s=600, candidates=2, rules=RULES)
SLICE = Tunable("slice_us", "u64", "us", 500, 100_000, 5000, "longer turns")
SOURCE = FIXTURES / "policies" / "correct" / "raw_fifo.bpf.c"
LIBRARY = {
    name: PolicyInfo(name, "d", ("batch-long-tail",), "a", "l", (SLICE,), inputs, SOURCE)
    for name, inputs in {"longest_first": ("history",), "plain": (), "turns": ()}.items()
}
"""A small library of its own: three policies for the work that `long_tail` shows, the name deciding the order."""


UNFAIR = "unfair"
"""A fault of a policy: it is safe, and the proving ground saw that it ignores weights."""


@dataclass(frozen=True)
class Script:
    """What happens in a run.

    Args:
        folder: for state, log and signals.
        hold: "name number": when that call is reached, the process says so in the file `held` and waits to be killed.
        ratios: by policy, the candidate's time / the default's; 1 if not named.
        faults: by policy, what goes wrong with it: a gate's name, "lost while verified", UNFAIR, or, in the trial,
            "exit", "rejected", "ejected", "lost" or "no number".
        default_fails_at: number of the run under the default scheduler that fails; 0 for none.
        blocks_in_time: the time budget is used up once so many blocks are stored.
        signs: whether the verifier signs tokens, with a key of its own.
        model: settings of the model; none: the run goes by rules.
        bundled: the policies that come with the program.
        kernel: release and build id of the kernel that tokens are for.
        costs: what separates the lab from hardware.
        output: what the workload prints when it is observed.
        programs: the schedulers with a loader of their own that are installed; None: none is tried unasked.
    """

    folder: Path
    hold: str = ""
    ratios: Mapping[str, float] = field(default_factory=lambda: {"longest_first": 0.8})
    faults: Mapping[str, str] = field(default_factory=dict)
    default_fails_at: int = 0
    blocks_in_time: int = 1_000_000
    signs: bool = False
    model: Mapping[str, Any] = field(default_factory=dict)
    bundled: Mapping[str, PolicyInfo] = field(default_factory=lambda: LIBRARY)
    workload: WorkloadCommand = WORKLOAD
    options: RunOptions = OPTIONS
    kernel: tuple[str, str] = ("7.3.4", "ab" * 20)
    costs: MachineCosts | None = COSTS
    output: str = ""
    programs: Shelf | None = None

    @property
    def settings(self) -> Settings:
        return Settings(cache_dir=self.folder / "cache", state_dir=self.folder / "state", **self.model)

    @property
    def log(self) -> list[str]:
        """What lab, verifier and repository were asked, in all processes so far."""
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []

    def repository(self) -> Repository:
        return Repository(self.settings.state_dir / "repository.sqlite", self)

    def verifier(self) -> Verifier:
        return Verifier(self)

    def lab(self) -> Lab:
        return Lab(self)

    def reach(self, name: str) -> int:
        """Note a call, wait there if the script says so, and return how often it was reached."""
        with (self.folder / "log").open("a") as file:
            file.write(f"{name}\n")
        number = self.log.count(name)
        if self.hold == f"{name} {number}":
            (self.folder / "held").touch()
            time.sleep(60)
        return number

    def create(self) -> str:
        with self.repository() as repository:
            stored = dataclasses.asdict(self.options)
            return repository.create_run(self.workload, HARDWARE, settings=stored, seed=7)

    def drive(self, run_id: str, *answers: Decision) -> dict:
        """Start or resume the run in this process and return its report as JSON values; arguments as `report`."""
        return to_json(self.report(run_id, *answers))

    def report(self, run_id: str, *answers: Decision) -> Report:
        """Start or resume the run in this process and return its report.

        Args:
            answers: each is given to what the run waits for then, before it continues.
        """
        with self.repository() as repository, (self.folder / "progress").open("a") as progress:
            folder = self.settings.state_dir / "policies"
            library = Library(self.bundled, repository, folder, worth_trying(repository, run_id))
            reporter = PlainReporter(Console(file=progress, emoji=False))
            models = functools.partial(open_models, self.settings, repository, library, reporter)
            clock = ScriptedClock(self)
            agents = (self.lab(), self.verifier(), library, reporter, self.options, models, clock, self.programs)
            nodes = RunNodes(repository, *agents)
            for answer in answers:
                approvals_of(repository, run_id, nodes).decide(answer)
                report = drive(self.settings, nodes, repository, run_id, reporter)
            return report if answers else drive(self.settings, nodes, repository, run_id, reporter)

    def shown(self, run_id: str) -> str:
        """Return the report of a run as a person sees it."""
        console = Console(record=True, width=300, file=io.StringIO())
        with self.repository() as repository:
            render(report_of(self.settings, repository, run_id), console)
        return console.export_text()

    def in_child(self, run_id: str, *answers: Decision) -> None:
        """Do the same as the command line does, in a process of its own; its output goes to the file `output`."""
        output = os.open(self.folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", 1)
        guarded(lambda: show_report(self.report(run_id, *answers), as_json=False))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the program itself, whoever calls it in this process, use this lab, verifier and repository."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(opening, "open_lab", lambda _settings: self.lab())
            patch.setattr(opening, "open_verifier", lambda _settings: self.verifier())
            patch.setattr(opening, "PolicyRepository", lambda _place: self.repository())
            yield


class ScriptedClock(TimeBudget):
    """The real one, which also runs out where the script says."""

    def __init__(self, script: Script) -> None:
        super().__init__(script.options.budget_s)
        self._script = script

    def __call__(self) -> bool:
        return super().__call__() or self._script.log.count("after add_block") >= self._script.blocks_in_time


class Repository(PolicyRepository):
    """The real one; every save is a point at which a script may hold, before and after it."""

    def __init__(self, place: Path, script: Script) -> None:
        super().__init__(place)
        self.script = script


def _held(name: str):
    save = getattr(PolicyRepository, name)

    def held_save(self, *arguments, **options):
        self.script.reach(f"before {name}")
        stored = save(self, *arguments, **options)
        self.script.reach(f"after {name}")
        return stored

    return held_save


for _name in (
    *("save_costs", "save_profile", "save_plan", "save_verification", "add_block"),
    *("save_verdict", "add_antipattern", "ask_approval", "decide_approval", "finish_run"),
    *("save_meaning", "save_repair", "add_insight", "keep_policy"),
):
    setattr(Repository, _name, _held(_name))


@dataclass
class Verifier:
    """Passes every policy for which the script names no gate."""

    script: Script
    on_gate: Callable[[GateResult], None] = lambda _result: None
    include_dirs: tuple = ()
    scope: object = None
    cgroup: str = ""
    depth: object = None
    static_only: bool = False
    report_cache: object = None
    topologies: object = None

    def compile(self, info) -> PolicyArtifact:
        return PolicyArtifact(info.name, info.name.encode(), "source", "btf")

    def verify_all(self, submissions) -> Iterator[Verified]:
        for candidate, info in submissions:
            yield self.verify(candidate, info)

    def verify(self, candidate, info) -> Verified:
        self.script.reach(f"verify {candidate.key}")
        self.script.reach("verify")
        fault = self.script.faults.get(candidate.policy, "")
        closed = GATES.index(fault) if fault in GATES else len(GATES)
        gates = [GateResult(gate, GateStatus.PASSED, "fine") for gate in GATES[:closed]]
        if closed < len(GATES):
            gates.append(GateResult(fault, GateStatus.FAILED, "this was seen"))
        if fault == "lost while verified":
            gates = [*gates[:-1], GateResult(GATES[-1], GateStatus.SKIPPED, "the VM was lost twice")]
        if fault == UNFAIR:
            weights = Finding(22, Severity.ERROR, "weights", "", 0, "a deviation of 0.68")
            place = GATES.index(PROVING)
            gates[place] = GateResult(PROVING, GateStatus.FAILED, "this was seen", 0.1, (weights,), tolerable=True)
        for result in gates:
            self.on_gate(result)
        artifact = self.compile(info)
        report = VerificationReport(info.name, candidate.key, artifact.digest, "7.3.4", tuple(gates))
        return Verified(self._signed(report, candidate) if self.script.signs else report, artifact)

    def _signed(self, report: VerificationReport, candidate) -> VerificationReport:
        if not report.passed:
            return report
        token = Signer(self.script.settings.keys_dir / "signing.key").issue(
            artifact_digest=report.artifact_digest,
            tunables=candidate.tunables,
            inputs_digest=digest_inputs(candidate.history, candidate.classes),
            report_digest=report.digest,
            kernel_release=self.script.kernel[0],
            btf_build_id=self.script.kernel[1],
        )
        return dataclasses.replace(report, token=token)


class Lab:
    """Runs nothing; the time of a run is what the script says, with noise of 1 %."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.environment: dict[str, str] = {}

    @property
    def hardware(self) -> Hardware:
        return HARDWARE

    def pace(self, costs: MachineCosts | None) -> float:
        return costs.kappa if costs else 1.0

    def costs(self) -> MachineCosts | None:
        self._script.reach("costs")
        return self._script.costs

    def observe(self, workload):
        self._script.reach("observe")
        return dataclasses.replace(self._sample(DEFAULT_ARM, 1.0), output_tail=self._script.output), long_tail()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        yield

    @contextmanager
    def session(self, _workload) -> Iterator[Lab]:
        self._script.reach("session")
        yield self

    def run_default(self, beside=None) -> Sample:
        sample = self._sample(DEFAULT_ARM, 1.0)
        if self._script.default_fails_at == self._script.reach("run default"):
            raise WorkloadFailed(
                "the workload failed under the default scheduler: exit status 2\n    its output",
                "fix the command until it works; nothing was changed on this machine",
            )
        return sample

    def run_knob(self, knob, beside) -> Sample:
        return self._sample(knob.key, 1.0)

    def run_candidate(self, policy) -> Sample:
        name, key = policy.candidate.policy, policy.candidate.key
        fault = self._script.faults.get(name, "")
        sample = self._sample(key, self._script.ratios.get(name, 1.0))
        match fault:
            case "lost":
                raise VmLost("the guest said nothing")
            case "rejected":
                raise KernelRejected("init failed")
            case "no number":
                return dataclasses.replace(sample, value=math.nan)
            case "exit":
                return dataclasses.replace(sample, exit_status=1)
            case "ejected":
                return dataclasses.replace(sample, policy_exit="runnable task stall")
        return sample

    def _sample(self, arm: str, ratio: float) -> Sample:
        """Each run has its own wall_ns, so that one counted twice would be seen."""
        serial = self._script.reach("run")
        noise = random.Random(serial).gauss(1, 0.01)
        return Sample(arm, ratio * noise, serial, 0, 0, "2026-01-01T00:00:00", 1000)


def long_tail() -> Observation:
    """Nine short tasks and a long one on two CPUs, as fair sharing runs them, in milliseconds."""
    tasks = [(101 + number, b"200", 200, 2000) for number in range(9)] + [(110, b"1400", 1400, 3200)]
    records = [TaskRecord(100, 100, 1, "sh", b"sh\0batch.sh\0", 0, 3200 * MS, 2 * MS, 0, 12, 0)]
    for pid, argument, cpu_ms, elapsed_ms in tasks:
        line = b"./spin\0" + argument + b"\0"
        delay = (elapsed_ms - cpu_ms) * MS
        records.append(TaskRecord(pid, pid, 100, "spin", line, MS, elapsed_ms * MS, cpu_ms * MS, delay, 1, 90))
    return Observation(3200 * MS, 2, tuple(records), ((0, 10), (1000 * MS, 10)), 100, 0, 0, 0)
