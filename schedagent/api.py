"""The Python interface: what the command line is made of, as functions that return values.

    import schedagent

    report = schedagent.optimize("make -j", directory="~/src/project", prepare="make clean")
    if report.best and report.best.verdict:
        print(report.best.candidate.policy, report.best.verdict.ratio)

Every function takes the settings that it works with, by default those of the environment and the configuration file,
and raises SchedagentError, whose `message` says what failed and whose `hint` says what to do. Messages name an argument
like the option of the command line that sets it. Functions that take minutes report how far they are to a reporter, by
default to none. Nothing here changes how this machine schedules, unless the options of a run say that it measures on
this machine: workloads and policies run in a micro-VM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.llm.transcript import Exchange
    from kernel_bpf.policies.compose import Composed
    from kernel_bpf.policies.programs import ListedProgram
    from repo_store.records import PolicyMatch, RunRecord
    from schedagent.core.policies.policy import PolicyInfo
    from schedagent.core.policies.spec import PolicySpec
    from schedagent.core.readings.metric_options import Comparison
    from schedagent.core.settings import Settings
    from schedagent.core.trials.workload import WorkloadCommand
    from schedagent.core.verification import GateResult, VerificationReport
    from schedagent.experiment.spec import Experiment
    from schedagent.report.report import Report
    from schedagent.run.intake import Around
    from schedagent.run.options import RunOptions
    from schedagent.run.preview import Preview
    from schedagent.run.progress import Reporter
    from schedagent.verification.files import VerifyOptions


# --- runs ------------------------------------------------------------------------------------------------------------


def optimize(
    workload: str | WorkloadCommand,
    *,
    directory: Path | str = ".",
    goal: str = "",
    prepare: str = "",
    metric: str | Sequence[str] = "",
    guard: str | Sequence[str] = (),
    objective: str | Sequence[str] = "",
    preset: str = "",
    timeout_s: float = 900.0,
    shell: str = "/bin/sh",
    ignore_failure: bool = False,
    setup: str = "",
    cleanup: str = "",
    options: RunOptions | None = None,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
) -> Report:
    """Observe a workload, try policies on it in the micro-VM, and return the report of the run.

    Args:
        workload: the shell command to optimise; the next ones describe it further, up to `cleanup`. Or all of it in
            one object, as an earlier run holds it (`runs()[0].workload`), and they are not looked at.
        directory: where to run it.
        goal: makespan (wall time), latency or throughput; empty for makespan, or for what a preset or metric says.
        prepare: shell command run before each trial, untimed; empty for none.
        metric: regular expression whose group is a number in the output, or NAME=REGEX:lower or :higher; one or
            several; empty for the wall time.
        guard: what must not get worse, NAME=REGEX:lower:5%; one or several.
        objective: the name of the metric that is compared; empty if there is but one.
        preset: the benchmark whose output this is, or none; empty: what it prints decides, unless a goal or a metric
            is given.
        timeout_s: longest time that one run of it may take, in seconds.
        shell: program that runs the commands.
        ignore_failure: whether runs that end with another status than 0 count.
        setup: shell command run once before all runs; empty for none.
        cleanup: shell command run after each run, untimed; empty for none.
        options: what bounds the run, and before which steps it waits for an approval (`decide`).

    Returns:
        The report: its `best` is the winner, or None; its `waiting` what has to be approved, or None.

    Raises:
        UsageError: an argument cannot be used; the message says which and why.
        SchedagentError: it failed; what was measured is kept, and `resume` continues.
        KeyboardInterrupt: the user stopped it; the same holds.
    """
    from schedagent.run.lifecycle import start_run

    comparison = _comparison(metric, guard, objective, goal, preset)
    around = _around(prepare, setup, cleanup, shell, ignore_failure)
    workload, options = _described(workload, directory, comparison, around, timeout_s, options)
    return start_run(_or_default(settings), workload, options, _or_silent(reporter))


def naming(
    schedulers: Sequence[str],
    include: Sequence[Path | str] = (),
    *,
    options: RunOptions | None = None,
    settings: Settings | None = None,
) -> RunOptions:
    """Return the options of a run that tries these schedulers before anything that is planned.

    Args:
        schedulers: names of policies of the library, sources (NAME.bpf.c), or programs that load their policies
            themselves, with their arguments: "scx_lavd --performance".
        include: folders with the headers of those that are sources.
        options: what else bounds the run; with `compare` nothing is planned.

    Raises:
        UsageError: one of them names nothing that can be tried.
    """
    from dataclasses import replace

    from schedagent.run.opening import installed_programs, whole_library
    from schedagent.run.options import RunOptions
    from schedagent.run.schedulers import read_include, read_schedulers

    options = options or RunOptions()
    folders = read_include([Path(folder) for folder in include])
    if not schedulers:
        return replace(options, include=folders)
    named = read_schedulers(schedulers, whole_library(_or_default(settings)), installed_programs())
    return replace(options, schedulers=named, include=folders)


def compare(
    workload: str | WorkloadCommand,
    schedulers: Sequence[str],
    *,
    include: Sequence[Path | str] = (),
    options: RunOptions | None = None,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
    **described: Any,
) -> Report:
    """Measure schedulers that are named beside the default one, and return the report of the run.

    Args:
        workload: the shell command, or all of it in one object.
        schedulers, include: see `naming`.
        options: what bounds the run; one plan is all there is.
        described: what describes the workload further, as `optimize` takes it.

    Raises:
        UsageError, SchedagentError, KeyboardInterrupt: as `optimize`.
    """
    from dataclasses import replace

    from schedagent.run.options import RunOptions

    options = replace(options or RunOptions(), iterations=1, compare=True)
    named = naming(schedulers, include, options=options, settings=settings)
    return optimize(workload, options=named, settings=settings, reporter=reporter, **described)


def experiment_on(
    wanted: Experiment,
    *,
    policies: Sequence[str] = (),
    candidates: int = 3,
    name: str = "",
    settings: Settings | None = None,
    reporter: Reporter | None = None,
) -> Report:
    """Compare policies with the default scheduler on something that runs already, by pulses, and return the report.

    Args:
        wanted: what runs, what is compared, and for how long.
        policies: names of policies of the library, or sources; none: they are planned from what is observed.
        candidates: most of these.
        name: of the run, for people.

    Raises:
        UsageError: something makes no sense, or what is named does not run.
        SetupError: no experiment is possible on this machine.
        SchedagentError: it has stopped, or a number could not be read; `resume` continues.
    """
    from schedagent.experiment.spec import checked
    from schedagent.run.lifecycle import start_run
    from schedagent.run.options import HOST, RunOptions

    checked(wanted).target()
    settings = _or_default(settings)
    options = RunOptions(
        1,
        wanted.for_s,
        candidates,
        name=name,
        on=HOST,
        compare=bool(policies),
        experiment=wanted.to_json(),
    )
    named = naming(policies, options=options, settings=settings)
    return start_run(settings, wanted.workload, named, _or_silent(reporter))


def preview(
    workload: str | WorkloadCommand,
    *,
    directory: Path | str = ".",
    goal: str = "",
    prepare: str = "",
    metric: str | Sequence[str] = "",
    guard: str | Sequence[str] = (),
    objective: str | Sequence[str] = "",
    preset: str = "",
    timeout_s: float = 900.0,
    shell: str = "/bin/sh",
    ignore_failure: bool = False,
    setup: str = "",
    cleanup: str = "",
    options: RunOptions | None = None,
    settings: Settings | None = None,
) -> Preview:
    """Return what `optimize` would do with the same arguments; nothing is run, and no run is stored.

    Raises:
        UsageError: an argument cannot be used; the message says which and why.
        SetupError: the lab cannot be used, as when there is no kernel for it.
    """
    from schedagent.run.preview import preview_run

    comparison = _comparison(metric, guard, objective, goal, preset)
    around = _around(prepare, setup, cleanup, shell, ignore_failure)
    workload, options = _described(workload, directory, comparison, around, timeout_s, options)
    return preview_run(_or_default(settings), workload, options)


def resume(run_id: str, *, settings: Settings | None = None, reporter: Reporter | None = None) -> Report:
    """Continue a run that was cut short, after its last completed step, and return its report.

    Raises:
        UsageError: there is no such run, it is finished, another process works on it, or it was measured on other
            hardware than this.
    """
    from schedagent.run.lifecycle import resume_run

    return resume_run(_or_default(settings), run_id, _or_silent(reporter))


def decide(
    run_id: str,
    *,
    approved: bool,
    because: str = "",
    digest: str = "",
    settings: Settings | None = None,
    reporter: Reporter | None = None,
) -> Report:
    """Approve or reject what a run waits for, in the name of this process's user, and continue the run.

    Args:
        approved: whether the run may do what it asks for.
        because: why; a rejection needs it.
        digest: of what was looked at (`report.waiting.digest`), or how it begins; empty for whatever waits.

    Raises:
        UsageError: it waits for nothing or for something else, the reason cannot be kept; or as `resume`.
    """
    from schedagent.approval.approvals import decided_now
    from schedagent.run.lifecycle import decide_run

    decision = decided_now(approved, because)
    return decide_run(_or_default(settings), run_id, decision, digest, _or_silent(reporter))


def runs(limit: int = 50, *, status: str = "", settings: Settings | None = None) -> list[RunRecord]:
    """Return the latest runs, newest first.

    Args:
        limit: most of them.
        status: only those that stand so: running, waiting, finished, failed or interrupted; empty for all.

    Raises:
        UsageError: there is no such status.
    """
    from repo_store.records import RunStatus
    from schedagent.core.errors import UsageError
    from schedagent.run.stored import open_stored

    if status and status not in list(RunStatus):
        raise UsageError(f"--status {status!r} is not known", f"accepted: {', '.join(RunStatus)}")
    with open_stored(_or_default(settings)) as repository:
        return repository.list_runs(limit, RunStatus(status) if status else None)


def delete_runs(run_ids: Sequence[str], *, settings: Settings | None = None) -> None:
    """Delete runs with all that they measured, all of these or none.

    Raises:
        UsageError: there is no such run, a process works on it, or something rests on it (StillNeeded): a deployment,
            the proof of a policy, a recommendation, an approval that is waited for.
    """
    from schedagent.retention.deletion import delete_runs as delete

    delete(_or_default(settings), run_ids)


def run_report(run_id: str, *, settings: Settings | None = None) -> Report:
    """Return what a run found, so far if it is not finished; raise UsageError if there is no such run."""
    from schedagent.run.lifecycle import report_of
    from schedagent.run.opening import open_repository

    settings = _or_default(settings)
    with open_repository(settings) as repository:
        return report_of(settings, repository, run_id)


def transcript(run_id: str, *, settings: Settings | None = None) -> tuple[Mapping[str, Any], Sequence[Exchange]]:
    """Return what a run asked models and what they answered: the head of its transcript, and the exchanges.

    Raises:
        UsageError: there is no such run, or it asked no model.
        RepositoryError: the transcript is damaged.
    """
    from schedagent.run.lifecycle import read_run_transcript

    return read_run_transcript(_or_default(settings), run_id)


def replay(run_id: str, *, settings: Settings | None = None, reporter: Reporter | None = None) -> Mapping[str, Any]:
    """Run the agents of a recorded run again on what was recorded; needs no network, no machine and no compiler.

    Returns:
        Under "same" whether everything went as it did then, and under "differences" what did not.

    Raises:
        UsageError: there is no such run, or it asked no model.
        ReplayDiverged: something is asked that was not asked then.
    """
    from schedagent.run.lifecycle import replay_run

    return replay_run(_or_default(settings), run_id, _or_silent(reporter))


# --- policies --------------------------------------------------------------------------------------------------------


def verify(
    policy: Path | str,
    *,
    options: VerifyOptions | None = None,
    settings: Settings | None = None,
    on_gate: Callable[[GateResult], None] = lambda _result: None,
) -> VerificationReport:
    """Take a policy through every gate of the verifier and return the report, with a token if it passed them all.

    Args:
        policy: a source FILE.bpf.c, a compiled FILE.bpf.o, or the name of a policy of the library.
        options: tunables, scope, kernel, depth, and what else is to be written.
        on_gate: called with each gate's result as it comes.

    Raises:
        UsageError: the file or an option cannot be used.
        SetupError: a kernel or a tool is missing.
    """
    from schedagent.verification.files import VerifyOptions, verify_file

    return verify_file(_or_default(settings), Path(policy), options or VerifyOptions(), on_gate)


def compose(spec: Path | str | Mapping[str, Any] | PolicySpec) -> Composed:
    """Turn the description of a policy into BPF C and its manifest; nothing is written.

    Args:
        spec: a file, SPEC.toml or SPEC.json; or its content, as a mapping or already read.

    Raises:
        UsageError: the file cannot be read.
        SpecError: the description cannot be composed; names each field that is wrong.
    """
    from kernel_bpf.policies.compose import compose as composed
    from kernel_bpf.policies.spec_file import compose_file
    from schedagent.core.policies.spec import PolicySpec
    from schedagent.core.policies.spec_reader import read_spec

    match spec:
        case PolicySpec():
            return composed(spec)
        case Mapping():
            return composed(read_spec(spec))
        case _:
            return compose_file(Path(spec))


def policies(*, settings: Settings | None = None) -> dict[str, PolicyInfo]:
    """Return all policies of the library by name: the bundled ones, and those that runs have derived."""
    from schedagent.run.opening import whole_library

    return whole_library(_or_default(settings))


def policy(name: str, *, settings: Settings | None = None) -> PolicyInfo:
    """Return one policy of the library; raise UsageError, naming those that exist, if it is not there."""
    from kernel_bpf.policies.library import find_policy

    return find_policy(name, policies(settings=settings))


def programs() -> dict[str, ListedProgram]:
    """Return the schedulers with a loader of their own by name: the well-known ones, and those installed here."""
    from kernel_bpf.policies.programs import list_programs
    from schedagent.run.opening import installed_programs

    return list_programs(installed_programs())


def search_policies(words: str, limit: int = 10, *, settings: Settings | None = None) -> list[PolicyMatch]:
    """Return the policies that fit the words best, by what they are for and what they were good at."""
    from schedagent.run.opening import open_repository

    with open_repository(_or_default(settings)) as repository:
        return repository.search_policies(words, limit)


def _comparison(
    metric: str | Sequence[str], guard: str | Sequence[str], objective: str | Sequence[str], goal: str, preset: str
) -> Comparison:
    from schedagent.core.readings.metric_options import Comparison

    return Comparison(_several(metric), _several(guard), _several(objective), goal, preset)


def _several(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return what was given once, several times, or, empty, not at all."""
    return tuple(filter(None, [given] if isinstance(given, str) else given))


def _around(prepare: str, setup: str, cleanup: str, shell: str, ignore_failure: bool) -> Around:
    from schedagent.run.intake import Around

    return Around(prepare, setup, cleanup, shell, ignore_failure)


def _described(
    workload: str | WorkloadCommand,
    directory: Path | str,
    comparison: Comparison,
    around: Around,
    timeout_s: float,
    options: RunOptions | None,
) -> tuple[WorkloadCommand, RunOptions]:
    """Return the workload, checked if it is described in words, and the options of its run."""
    from schedagent.run.intake import Description, planned_run
    from schedagent.run.options import RunOptions

    options = options or RunOptions()
    if not isinstance(workload, str):
        return workload, options
    return planned_run(Description(workload, Path(directory), comparison, around, timeout_s), options)


def _or_default(settings: Settings | None) -> Settings:
    if settings is not None:
        return settings
    from schedagent.core.settings import load_settings

    return load_settings()


def _or_silent(reporter: Reporter | None) -> Reporter:
    if reporter is not None:
        return reporter
    from schedagent.run.progress import LineReporter

    return LineReporter(lambda _text: None)
