"""The ordered gates a candidate must pass before anything else may run it.

The static gates all run, as far as there is something to read; of the others a candidate stops at the one that it
fails: the later ones are skipped and say so. What fails only for being unfair stops nothing: it may be tried in the
lab, but gets no token. A gate whose VM was lost twice, or whose host was too busy to measure, has neither passed nor
failed: it is skipped too, and so is the rest. Warnings of the static gates are cleared, or not, by what the proving
ground measures.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from kernel_bpf.build.compile import find_clang
from kernel_bpf.build.source import read_source
from kernel_bpf.build.target import KernelTarget, enum_values, features
from schedagent.core.deployment import LARGEST_OBJECT_BYTES
from schedagent.core.errors import BpfError, HostBusy, KernelRejected, PolicyError, UsageError, VmLost
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy, PolicyInfo, Standing
from schedagent.core.rules import (
    ATTACH,
    COMPILE,
    GATES,
    KERNEL,
    LOGIC,
    OVERHEAD,
    PROVING,
    RULES,
    SOURCE,
    FindingClass,
)
from schedagent.core.token import Scope, digest_inputs
from schedagent.core.verification import (
    Coverage,
    Finding,
    GateResult,
    GateStatus,
    KernelResult,
    OracleResult,
    Severity,
    VerificationReport,
    Verified,
    worst_first,
)
from verifier import classes, ejection, shapes, submission
from verifier.coverage import measure
from verifier.coverage.judge import Judgement
from verifier.coverage.trusted import is_composed
from verifier.lab.vm import LabPolicy
from verifier.logic import lacks
from verifier.logic.checks import check_logic
from verifier.microvm import jobs
from verifier.microvm.topology import SHAPED, Topology
from verifier.object.image import BpfImage
from verifier.object.reader import read_object
from verifier.proving.identity import NOTHING_WORN
from verifier.proving.prove import CGROUPS, COVERAGE, ORACLES, PHASES, Depth, phases_at
from verifier.report_cache import ReportCache, digest_subject, verifier_version
from verifier.signer import Signer, longest_lifetime_s
from verifier.source.checks import check_sources
from verifier.steps import GateFailed, Passed, attempt, kernel_words
from verifier.wardrobe import worn_for

log = logging.getLogger(__name__)

STATIC_GATES = (SOURCE, COMPILE, LOGIC)


class Cell(Protocol):
    """Where one policy is loaded and proved; verifier.lab.vm.Cell is the real one."""

    def load(self) -> jobs.LoadAnswer: ...

    def prove(self, depth: Depth, phases: Sequence[str]) -> jobs.ProveAnswer: ...

    def prove_on(self, topology: Topology, depth: Depth) -> jobs.ProveAnswer: ...

    def close(self) -> None: ...


class ProvingGround(Protocol):
    """The part of the lab that the gates need; VmLab is the real one."""

    @property
    def versions(self) -> tuple[str, ...]: ...

    def cell(self, policy: LabPolicy) -> Cell: ...


@dataclass(frozen=True)
class KernelBench:
    """A kernel to verify on: its types, to compile for, and the machine that runs it."""

    ground: ProvingGround
    target: KernelTarget


@dataclass
class Verifier:
    """Takes candidates through all gates.

    Args:
        benches: the kernels; the policy is proved on the first one, and the token is for it.
        cache_dir: where compiled objects are kept.
        signer: signs tokens; None issues none.
        include_dirs: extra header folders for sources from elsewhere.
        depth: how long the proving ground works on a policy.
        scope, cgroup: what tokens allow, see core.token.DeploymentToken.
        static_only: stop after the scheduling logic, without a VM.
        topologies: guests of other shapes that policies are proved on besides the flat one; None for SHAPED, from
            standard depth on, bundled policies from thorough on.
        report_cache: reports of policies that passed before; None proves everything again.
        on_gate: called with each result as it comes.
    """

    benches: tuple[KernelBench, ...]
    cache_dir: Path
    signer: Signer | None = None
    include_dirs: tuple[Path, ...] = ()
    depth: Depth = Depth.STANDARD
    scope: Scope = Scope.FULL
    cgroup: str = ""
    static_only: bool = False
    topologies: tuple[Topology, ...] | None = None
    report_cache: ReportCache | None = None
    on_gate: Callable[[GateResult], None] = field(default=lambda _result: None)

    @property
    def target(self) -> KernelTarget:
        """The kernel that policies are proved on."""
        return self.benches[0].target

    def verify(self, candidate: CandidatePolicy, info: PolicyInfo) -> Verified:
        """Run the gates in order and return the report.

        Raises:
            SetupError: a tool is missing.
        """
        return next(self.verify_all([(candidate, info)]))

    def verify_all(self, submissions: Sequence[tuple[CandidatePolicy, PolicyInfo]]) -> Iterator[Verified]:
        """Run several policies through the gates: the static ones side by side, then each through the machines.

        The machines are taken in turn: two at once on the same CPUs would disturb what both measure. A policy goes
        into its machine when the caller asks for its result, so a caller may stop between two.
        """
        passages = [_Passage(self, candidate, info) for candidate, info in submissions]
        if len(passages) > 1:
            with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
                list(pool.map(_Passage.pass_static, passages))
        for passage in passages:
            yield passage.run()

    def compile(self, info: PolicyInfo) -> PolicyArtifact:
        """Compile a policy for the kernel it is proved on; raise CompileError with clang's own lines."""
        return submission.build(info, self.target, self.include_dirs, self.cache_dir)


class _Passage:
    """One candidate on its way through the gates."""

    def __init__(self, verifier: Verifier, candidate: CandidatePolicy, info: PolicyInfo) -> None:
        self._verifier = verifier
        self._candidate = candidate
        self._info = info
        self._built: dict[KernelTarget, Future[PolicyArtifact]] = {}
        self._artifacts: list[PolicyArtifact] = []
        self._kernels: list[KernelResult] = []
        self._worn = NOTHING_WORN
        self._cell: Cell | None = None
        self._image: BpfImage | None = None
        self._limits: tuple[str, ...] = ()
        self._kept: frozenset[str] = frozenset()
        self._lacks = ""
        self._measured: measure.Measured | None = None
        self._proved: jobs.ProveAnswer | None = None
        self._shaped: dict[Topology, tuple[OracleResult, ...]] = {}
        self._gates: list[GateResult] = []
        self._announced = 0
        self._steps: dict[str, Callable[[], Passed]] = {
            KERNEL: self._kernel_verifier,
            ATTACH: self._attach,
            PROVING: self._proving,
            OVERHEAD: self._overhead,
        }

    def pass_static(self) -> None:
        """Run the gates that need no machine, unless they ran: the source is read beside what is made of it."""
        if self._gates:
            return
        with ThreadPoolExecutor(max_workers=1) as beside:
            source = beside.submit(attempt, SOURCE, self._source)
            compiled = attempt(COMPILE, self._compile)
            logic = attempt(LOGIC, self._logic) if self._artifacts else _not_run(LOGIC, compiled)
            for result in (source.result(), compiled, logic):
                self._add(result)

    def run(self) -> Verified:
        try:
            return self._run()
        finally:
            if self._cell:
                self._cell.close()

    def _run(self) -> Verified:
        self.pass_static()
        self._announce()
        cached = self._recall()
        for gate in GATES[len(STATIC_GATES) :]:
            if cached:
                self._gates.append(next(result for result in cached.gates if result.gate == gate))
            else:
                self._pass(gate)
            self._announce()
        report = self._report(cached)
        if report.passed and not report.needs and self._verifier.signer and self._artifacts and self._is_deployable:
            report = replace(report, token=self._sign(report))
            if self._verifier.report_cache and not cached:
                self._verifier.report_cache.store(report)
        return Verified(report, self._artifacts[0] if self._artifacts else None)

    def _pass(self, gate: str) -> None:
        """Run a gate that needs a machine, unless one before it keeps it from being run."""
        failed = next((each for each in self._gates if each.status in _NOT_PASSED and not each.tolerable), None)
        if self._verifier.static_only:
            not_requested = "not run: only the static gates were requested"
            self._add(GateResult(gate, GateStatus.NOT_REQUESTED, not_requested))
        else:
            self._add(_not_run(gate, failed) if failed else attempt(gate, self._steps[gate]))

    def _add(self, result: GateResult) -> None:
        same = any(result.status is GateStatus.FAILED and result.detail == each.detail for each in self._gates)
        self._gates.append(replace(result, detail="for the same reason") if same else result)

    def _announce(self) -> None:
        for result in self._gates[self._announced :]:
            self._verifier.on_gate(result)
        self._announced = len(self._gates)

    def _report(self, cached: VerificationReport | None) -> VerificationReport:
        return VerificationReport(
            policy=self._info.name,
            candidate_key=self._candidate.key,
            artifact_digest=self._artifacts[0].digest if self._artifacts else "",
            kernel_release=self._verifier.target.release,
            gates=tuple(self._gates),
            kernels=cached.kernels if cached else tuple(self._kernels),
            oracles=cached.oracles if cached else self._oracles(),
            verifier_version=verifier_version(),
            subject=self._subject() if self._artifacts else "",
            tunables=tuple(sorted(self._candidate.tunables)),
            declares=tuple(self._info.declares),
            depth="" if self._verifier.static_only else self._verifier.depth.name.lower(),
            reads=tuple(self._info.reads),
            verified_at=cached.verified_at if cached else datetime.now(UTC).isoformat(timespec="seconds"),
            coverage=cached.coverage if cached else self._coverage(),
            lacks=self._lacks,
            needs=self._needs(cached.oracles if cached else self._oracles()),
            topologies=cached.topologies if cached else tuple(map(str, self._shaped)),
        )

    def _standing(self) -> Standing:
        return submission.standing(self._info, self._verifier.include_dirs)

    def _needs(self, oracles: Sequence[OracleResult]) -> tuple[str, ...]:
        """What somebody has to declare or accept before there can be a token; see classes.needed."""
        findings = [finding for result in self._gates for finding in result.findings]
        held = {oracle.name for oracle in oracles if oracle.ok} - {oracle.name for oracle in oracles if not oracle.ok}
        return classes.needed(findings, held, self._info) if findings else ()

    def _coverage(self) -> Coverage | None:
        judgement = self._judgement()
        return judgement.coverage if judgement else None

    def _source(self) -> Passed:
        """The source can be read, keeps the rules that its object no longer shows, and every tunable is accepted."""
        submission.check_name(self._info.name)
        configured = self._info.configured(dict(self._candidate.tunables))
        accepted = f"{len(configured)} tunables accepted"
        if self._info.is_object:
            return Passed(f"a compiled object was given; {accepted}", status=GateStatus.NOT_APPLICABLE)
        sources = [(path.name, read_source(path)) for path in (self._info.source, *self._info.parts)]
        findings = check_sources(
            sources,
            self._verifier.target,
            tunables=self._info.tunables,
            include_dirs=self._verifier.include_dirs,
            cache_dir=self._verifier.cache_dir,
            standing=self._standing(),
        )
        return self._settled(f"{sum(len(text) for _name, text in sources)} bytes; {accepted}", findings)

    def _settled(self, detail: str, findings: Sequence[Finding]) -> Passed:
        """Fail a static gate if there is an error among what is found, as far as it counts for this policy."""
        standing = self._standing()
        settled = classes.settled(findings, standing, self._info.declares)
        errors = [finding for finding in settled if finding.severity is Severity.ERROR]
        if errors:
            broken = ", ".join(str(number) for number in sorted({finding.rule for finding in errors}))
            message = f"{len(errors)} errors, of rule {broken}"
            raise GateFailed(message, settled, tolerable=classes.tolerable(errors, standing))
        warned = sum(finding.severity is Severity.WARNING for finding in settled)
        warnings = f"; {warned} warnings, for the proving ground to clear" if warned else ""
        noted = f"; {len(settled) - warned} notes" if len(settled) > warned else ""
        return Passed(detail + warnings + noted, settled)

    def _compile(self) -> Passed:
        """Compile for every kernel, side by side; for the others than the first, a refusal is their own result."""
        with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
            self._built = {bench.target: pool.submit(self._build, bench.target) for bench in self._verifier.benches}
        self._artifacts = [self._built[self._verifier.target].result()]
        first = self._artifacts[0]
        size = f"{len(first.object_bytes)} bytes for {self._verifier.target.release}"
        if not self._is_deployable:
            size += ", most of them zeros of its arena: to be judged and tried, and too large to be deployed"
        if self._info.is_object:
            return Passed(f"{size}; {first.log}".removesuffix("; "), status=GateStatus.NOT_APPLICABLE)
        return Passed(size)

    @property
    def _is_deployable(self) -> bool:
        return len(self._artifacts[0].object_bytes) <= LARGEST_OBJECT_BYTES

    def _build(self, target: KernelTarget) -> PolicyArtifact:
        return submission.build(self._info, target, self._verifier.include_dirs, self._verifier.cache_dir)

    def _logic(self) -> Passed:
        target = self._verifier.target
        self._image = read_object(self._artifacts[0].object_bytes, self._artifacts[0].inlined)
        self._worn = worn_for(self._image)
        report = check_logic(
            self._image,
            features(target),
            enum_values(target),
            dict(self._candidate.tunables),
            standing=self._standing(),
            reads=self._info.reads,
            accepted_reader=lambda: submission.accepted_reader(target, self._verifier.cache_dir),
            accepted_limits=lambda: submission.accepted_limits(target, self._verifier.cache_dir),
        )
        self._limits, self._kept = report.limits, report.kept
        if self._standing() is Standing.FOREIGN or self._info.rodata:
            given = dict(self._candidate.tunables)
            assumed, handed_over = self._info.rodata, report.handed_over
            self._lacks = lacks.sentence(self._image, report.unfilled, given, assumed, handed_over)
        return self._settled(report.summary, report.findings)

    def _kernel_verifier(self) -> Passed:
        """Give the object to every kernel; the gate fails only if the first one, which the token is for, refuses it.

        One after the other: two emulated machines at once wait for each other's CPUs, and took half as long again.
        """
        results = [self._on_kernel(bench) for bench in self._verifier.benches]
        self._kernels = results
        others = "; ".join(f"{result.release}: {kernel_words(result)}" for result in results[1:])
        answers = kernel_words(results[0]) + (f"; {others}" if others else "")
        if results[0].status is GateStatus.FAILED:
            raise GateFailed(
                results[0].detail, ejection.finding(ejection.rule_of_refusal(results[0].detail), "see the kernel's log")
            )
        if results[0].status is GateStatus.SKIPPED:
            raise VmLost(results[0].detail)
        return Passed(answers)

    def _on_kernel(self, bench: KernelBench) -> KernelResult:
        """Load the policy on one kernel; the first one's machine is kept for the later gates."""
        release = bench.target.release
        try:
            with ExitStack() as stack:
                policy = self._lab_policy(bench.target)
                if bench is self._verifier.benches[0] and self._is_measured():
                    assert self._image is not None, "the logic gate read it"
                    self._measured = measure.measured(policy.artifact.object_bytes, self._image, self._info, self._kept)
                    policy = replace(policy, copy=self._measured.copy)
                cell = bench.ground.cell(policy)
                if bench is self._verifier.benches[0]:
                    self._cell = cell
                else:
                    stack.callback(cell.close)
                answer = cell.load()
        except VmLost as error:
            return KernelResult(release, GateStatus.SKIPPED, error.message)
        except (PolicyError, UsageError, BpfError) as error:
            return KernelResult(release, GateStatus.FAILED, str(error))
        return KernelResult(release, GateStatus.PASSED, "", answer.programs)

    def _lab_policy(self, target: KernelTarget) -> LabPolicy:
        return LabPolicy(self._candidate, self._built[target].result(), self._worn, self._info.reads)

    def _attach(self) -> Passed:
        """Attach and prove in one machine; the later gates judge what it showed."""
        assert self._cell is not None, "the gate before this one opened it"
        started = time.monotonic()
        try:
            self._proved = self._cell.prove(self._verifier.depth, self._phases())
        except KernelRejected as error:
            raise GateFailed(str(error), ejection.finding(ejection.rule_of_exit(str(error)), error.message)) from None
        spent = time.monotonic() - started - sum(self._proved.seconds.values())
        return Passed("state and root/ops confirmed it", seconds=max(0.0, spent))

    def _phases(self) -> list[str]:
        at_this_depth = phases_at(self._verifier.depth, strange=self._is_strange())
        left_out = () if self._claims_limits() else (CGROUPS,)
        phases = [phase.name for phase in at_this_depth if phase.name not in left_out]
        return [*phases, COVERAGE] if self._measured else phases

    def _claims_limits(self) -> bool:
        """Whether it has a callback for a limit of cgroups, and does not declare that it keeps none of that kind."""
        return any(word not in self._info.declares for word in self._limits)

    def _is_measured(self) -> bool:
        """Whether what runs of the policy is measured."""
        return self._is_strange() or self._verifier.depth.value >= Depth.THOROUGH.value

    def _is_strange(self) -> bool:
        """Whether somebody else wrote it: it is neither bundled nor, byte by byte, what our composer writes."""
        standing = submission.standing(self._info, self._verifier.include_dirs)
        return standing is not Standing.BUNDLED and not is_composed(self._info)

    def _proving(self) -> Passed:
        """The flat guest first, then those of other shapes, unless the first shows something unsafe."""
        unfair = None
        try:
            flat = self._proving_flat()
        except GateFailed as failure:
            if not failure.tolerable:
                raise
            flat, unfair = Passed(str(failure), failure.findings), failure
        began = time.monotonic()
        failures = [bad for topology in self._topologies() if (bad := self._proving_on(topology))]
        if failures:
            findings = worst_first([*flat.findings, *(finding for bad in failures for finding in bad.findings)])
            message = shapes.together(flat.detail if unfair else "", failures)
            raise GateFailed(message, findings, tolerable=all(bad.tolerable for bad in failures))
        if unfair:
            raise unfair
        also = f"; proved on {', '.join(map(str, self._shaped))}, too" if self._shaped else ""
        return replace(flat, detail=flat.detail + also, seconds=(flat.seconds or 0.0) + time.monotonic() - began)

    def _topologies(self) -> Sequence[Topology]:
        """The shapes that this policy is proved on besides the flat one."""
        if self._verifier.topologies is not None:
            return self._verifier.topologies
        least = Depth.THOROUGH if self._standing() is Standing.BUNDLED else Depth.STANDARD
        return (SHAPED,) if self._verifier.depth.value >= least.value else ()

    def _proving_on(self, topology: Topology) -> shapes.ShapeFailure | None:
        assert self._cell is not None, "the gates before this one opened it"
        try:
            answer = self._cell.prove_on(topology, self._verifier.depth)
        except KernelRejected as error:
            return shapes.refusal_of(topology, error)
        self._shaped[topology] = shapes.results_of(answer)
        return shapes.failure_of(topology, answer, self._info.declares)

    def _proving_flat(self) -> Passed:
        answer = self._answer()
        oracles = [oracle for oracle in self._flat_oracles() if OVERHEAD not in RULES[oracle.rule].gates]
        if answer.exit_text:
            ejected_for = ejection.finding(ejection.rule_of_exit(answer.exit_text), answer.exit_text)
            raise GateFailed(f"the kernel ejected it: {answer.exit_text}", (*ejected_for, *self._failed(oracles)))
        events = ", ".join(f"{name} {count}" for name, count in answer.events.items() if count) or "none"
        warnings = [finding for result in self._gates for finding in result.findings if finding.cleared_by]
        shown = {oracle.name for oracle in oracles}
        open_warnings = tuple(finding for finding in warnings if finding.cleared_by not in shown)
        if open_warnings:
            names = ", ".join(sorted({finding.cleared_by for finding in open_warnings}))
            raise GateFailed(f"warnings are left that nothing cleared: {names} did not run", open_warnings)
        try:
            judged = self._judge(oracles, f"; kernel events: {events}")
        except GateFailed as unfair:
            if not unfair.tolerable or self._undecided(PROVING):
                judgement = self._judgement()
                never_ran = judgement.findings if judgement else ()
                raise GateFailed(unfair.message, worst_first((*unfair.findings, *never_ran))) from None
            covered = self._covered(Passed(unfair.message, unfair.findings))
            raise GateFailed(unfair.message, covered.findings, tolerable=True) from None
        self._decided(PROVING, "all that is measured here")
        return self._covered(judged)

    def _covered(self, judged: Passed) -> Passed:
        """Fail the gate if something that counts never ran (rule 33); else say what did."""
        judgement = self._judgement()
        if judgement is None:
            return judged
        findings = worst_first((*judgement.findings, *judged.findings))
        errors = [finding for finding in judgement.findings if finding.severity is Severity.ERROR]
        if errors:
            raise GateFailed(f"{len(errors)} errors, of rule {errors[0].rule}: what never ran is not proved", findings)
        return replace(judged, detail=f"{judged.detail}; {judgement.coverage.summary}", findings=findings)

    def _judgement(self) -> Judgement | None:
        """What ran of the policy; None if it was not proved."""
        if self._measured is None or self._proved is None:
            return None
        include_dirs = self._verifier.include_dirs
        return self._measured.judge(self._proved, self._standing(), include_dirs)

    def _overhead(self) -> Passed:
        """What was measured must hold; what could not be measured leaves the gate without a verdict."""
        oracles = [oracle for oracle in self._flat_oracles() if OVERHEAD in RULES[oracle.rule].gates]
        judged = self._judge(oracles, "")
        self._decided(OVERHEAD, "the overhead")
        return judged

    def _decided(self, gate: str, what: str) -> None:
        """Raise HostBusy if an oracle of this gate has no verdict, unless the policy declares not to seek it."""
        mine = self._undecided(gate)
        if mine:
            figures = "; ".join(f"{name}: {why}" for name, why in mine.items())
            raise HostBusy(
                f"this host was too busy to measure {what} ({figures})", "verify again when it has less to do"
            )

    def _undecided(self, gate: str) -> dict[str, str]:
        """The oracles of a gate that have no verdict, with the reason, but for those that need none."""
        undecided = self._answer().undecided.items()
        return {name: why for name, why in undecided if _gate_of(name) == gate and name not in self._info.declares}

    def _judge(self, oracles: Sequence[OracleResult], more: str) -> Passed:
        """Fail the gate unless every oracle holds, or the policy declared that it does not seek what one checks."""
        findings = self._failed(oracles)
        if findings:
            message = "; ".join(f"{finding.where}: {finding.message}" for finding in findings)
            unfair = all(finding.finding_class is FindingClass.UNFAIR for finding in findings)
            raise GateFailed(message, worst_first(findings), tolerable=unfair)
        declared = [oracle.name for oracle in oracles if not oracle.ok]
        exempt = f"; declared not to hold: {', '.join(declared)}" if declared else ""
        names = {oracle.name for oracle in oracles}
        phases = [phase.name for phase in PHASES if names & {info.name for info in phase.oracles}]
        seconds = sum(self._answer().seconds.get(name, 0.0) for name in phases)
        return Passed(f"{len(oracles) - len(declared)} oracles hold{exempt}{more}", seconds=seconds)

    def _failed(self, oracles: Sequence[OracleResult]) -> list[Finding]:
        """One error for each oracle that does not hold and was not declared away."""
        bad = [oracle for oracle in oracles if not oracle.ok and oracle.name not in self._info.declares]
        return [classes.measured(oracle) for oracle in bad]

    def _oracles(self) -> tuple[OracleResult, ...]:
        return (*self._flat_oracles(), *(oracle for results in self._shaped.values() for oracle in results))

    def _flat_oracles(self) -> tuple[OracleResult, ...]:
        return shapes.results_of(self._proved) if self._proved else ()

    def _answer(self) -> jobs.ProveAnswer:
        if self._proved is None:
            raise GateFailed("the proving ground did not run")
        return self._proved

    def _recall(self) -> VerificationReport | None:
        """The report of the same policy, if it passed before; only the static gates were run again."""
        verifier = self._verifier
        if (
            verifier.report_cache is None
            or verifier.static_only
            or any(gate.status in _NOT_PASSED for gate in self._gates)
        ):
            return None
        return verifier.report_cache.recall(self._subject())

    def _subject(self) -> str:
        """Digest of all that the report depends on."""
        kernels = [bench.target.btf_build_id for bench in self._verifier.benches]
        machine = [] if self._verifier.static_only else [*self._verifier.benches[0].ground.versions, find_clang()[1]]
        info = self._info
        policy = [self._artifacts[0].digest, self._candidate.key, info.declares, info.reads, self._standing()]
        shapes_proved = [str(topology) for topology in self._topologies()]
        return digest_subject([*policy, kernels, machine, self._verifier.depth.name, shapes_proved])

    def _sign(self, report: VerificationReport) -> str:
        """Sign what passed, and what of it rests on its submitter's word; our own policies' words are ours."""
        assert self._verifier.signer is not None
        bundled = self._standing() is Standing.BUNDLED
        return self._verifier.signer.issue(
            artifact_digest=report.artifact_digest,
            tunables=self._candidate.tunables,
            inputs_digest=digest_inputs(self._candidate.history, self._candidate.classes),
            kernel_release=self._verifier.target.release,
            btf_build_id=self._verifier.target.btf_build_id,
            report_digest=report.digest,
            depth=report.depth,
            lifetime_s=longest_lifetime_s(report.depth),
            declares=report.declares,
            reads=() if bundled else self._info.reads,
            scope=self._verifier.scope,
            cgroup=self._verifier.cgroup,
        )


_NOT_PASSED = (GateStatus.FAILED, GateStatus.SKIPPED)


def _not_run(gate: str, failed: GateResult) -> GateResult:
    return GateResult(gate, GateStatus.SKIPPED, f"not run, because gate {failed.gate!r} did not pass")


def _gate_of(oracle: str) -> str:
    """The gate that an oracle belongs to; one that this version does not know is in the proving ground."""
    info = ORACLES.get(oracle)
    return OVERHEAD if info and OVERHEAD in RULES[info.rule].gates else PROVING
