"""`schedagent optimize`, `resume`, `approve` and `reject`: a run from the command line to its verdict.

Its options are those of `schedagent compare`, too.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schedagent import api
from schedagent.cli.common import EXIT_NO, EXIT_WAITING, Json, guarded, print_json, settings
from schedagent.cli.guide.completion import approvals, goals, presets, schedulers, unfinished_runs, waiting_runs
from schedagent.core.approval import ApprovalRequest, Decision
from schedagent.core.errors import UsageError

if TYPE_CHECKING:
    from schedagent.core.trials.workload import WorkloadCommand
    from schedagent.report.report import Report
    from schedagent.run.intake import Description
    from schedagent.run.options import RunOptions
    from schedagent.run.preview import Preview
    from schedagent.run.progress import Reporter

DEFAULT_SHELL = "/bin/sh"
MINIMUM_PAIRS, MOST_PAIRS = 6, 20
"""As in schedagent.core.trials, which would take longer to import than most commands take."""

LONGEST_S = 7 * 24 * 3600.0
"""Longest budget and longest run."""

Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="Id of a run that waits (see: schedagent runs list).", autocompletion=waiting_runs
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, only the result.")]
Digest = Annotated[
    str, typer.Option(metavar="HEX", help="Only if the digest of what waits begins so (8 digits or more).")
]

_SHORTEST_DIGEST = 8


Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="COMMAND", help='What to run: "make -j"; or, after --, as it stands: make -j.'),
]
WorkloadOption = Annotated[str | None, typer.Option("--workload", metavar="COMMAND", help="The same, as an option.")]
Directory = Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where to run it.")]
GoalWord = Annotated[
    str,
    typer.Option(
        "--goal",
        metavar="[makespan|latency|throughput]",
        help="Less wall time (the default), a smaller metric, or a larger one.",
        autocompletion=goals,
    ),
]
Prepare = Annotated[
    str, typer.Option("--prepare", metavar="COMMAND", help="Command to run before each trial, untimed.")
]
Metric = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar="REGEX",
        help="Regular expression whose group is a number in the output, or NAME=REGEX:lower or :higher.",
    ),
]
Guard = Annotated[
    list[str] | None,
    typer.Option(
        "--guard", metavar="NAME=REGEX:lower:5%", help="A number that must not get worse by more than a margin."
    ),
]
Objective = Annotated[
    list[str] | None, typer.Option("--objective", metavar="NAME", help="Which of several metrics is compared.")
]
Preset = Annotated[
    str,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="Benchmark whose output it is, or none; else recognised.",
        autocompletion=presets,
    ),
]
Shell = Annotated[str, typer.Option("--shell", metavar="PROGRAM", help="Shell that runs the commands.")]
IgnoreFailure = Annotated[
    bool, typer.Option("--ignore-failure", help="Count runs that end with another status than 0 as well.")
]
SetUp = Annotated[
    str,
    typer.Option("--setup", metavar="COMMAND", help="Command to run once before all runs; what it writes stays."),
]
CleanUp = Annotated[str, typer.Option("--cleanup", metavar="COMMAND", help="Command to run after each run, untimed.")]
WarmUp = Annotated[
    int,
    typer.Option("--warmup", min=1, max=100, metavar="N", help="Runs in a fresh machine before those that count."),
]
MinPairs = Annotated[
    int,
    typer.Option(
        "--min-pairs", min=MINIMUM_PAIRS, max=MOST_PAIRS, metavar="N", help="Fewest pairs that a claim rests on."
    ),
]
Parameter = Annotated[
    list[str] | None,
    typer.Option(
        "--parameter", metavar="NAME=VALUE,VALUE", help="One run for each value; NAME in braces stands for it."
    ),
]
Scheduler = Annotated[
    list[str] | None,
    typer.Option(
        "--scheduler",
        metavar="SCHEDULER",
        help='A policy\'s name, FILE.bpf.c, or a program: "scx_lavd --performance".',
        autocompletion=schedulers,
    ),
]
Include = Annotated[
    list[Path] | None,
    typer.Option("--include", metavar="DIR", help="Folder with headers of a FILE.bpf.c; may be repeated."),
]
Name = Annotated[str, typer.Option("--name", metavar="TEXT", help="Name for the run.")]
Budget = Annotated[
    float,
    typer.Option(
        "--budget-minutes", min=0.1, max=LONGEST_S / 60, metavar="MINUTES", help="Begin no trial after this long."
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", min=1.0, max=LONGEST_S, metavar="SECONDS", help="Longest time of one run of the command."
    ),
]
On = Annotated[
    str,
    typer.Option(
        "--on", metavar="[vm|host|auto]", help="Measure in the micro-VM, on this machine, or there if it can be."
    ),
]
Cpus = Annotated[
    int | None,
    typer.Option("--cpus", min=1, metavar="N", help="CPUs of the micro-VM; else the host's, at most 16."),
]
Memory = Annotated[
    str,
    typer.Option("--memory", metavar="SIZE", help="Memory of the micro-VM, such as 3G; else 1 GiB a CPU, 2 or more."),
]
ExportCsv = Annotated[
    Path | None,
    typer.Option("--export-csv", metavar="FILE", help="Write every run of the command there, a row each."),
]
ExportMarkdown = Annotated[
    Path | None,
    typer.Option("--export-markdown", metavar="FILE", help="Write the same there as a Markdown table."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; run and store nothing.")]


@dataclass(frozen=True)
class Output:
    """What becomes of the result.

    Args:
        csv, markdown: files for every run of the command.
        dry_run, quiet, as_json: as the options of these names.
    """

    csv: Path | None
    markdown: Path | None
    dry_run: bool
    quiet: bool
    as_json: bool


def optimize(
    words: Words = None,
    workload: WorkloadOption = None,
    directory: Directory = Path(),
    goal: GoalWord = "",
    prepare: Prepare = "",
    metric: Metric = None,
    guard: Guard = None,
    objective: Objective = None,
    preset: Preset = "",
    shell: Shell = DEFAULT_SHELL,
    ignore_failure: IgnoreFailure = False,
    setup: SetUp = "",
    cleanup: CleanUp = "",
    warmup: WarmUp = 1,
    min_pairs: MinPairs = MINIMUM_PAIRS,
    parameter: Parameter = None,
    scheduler: Scheduler = None,
    include: Include = None,
    name: Name = "",
    iterations: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="Most plans to try.")] = 2,
    candidates: Annotated[int, typer.Option(min=1, max=8, metavar="N", help="Most candidates of a plan.")] = 3,
    budget_minutes: Budget = 30.0,
    timeout: Timeout = 900.0,
    on: On = "vm",
    cpus: Cpus = None,
    memory: Memory = "",
    approve: Annotated[
        str,
        typer.Option(
            metavar="[none|plan|deploy|plan,deploy]", help="Ask before these steps.", autocompletion=approvals
        ),
    ] = "none",
    export_csv: ExportCsv = None,
    export_markdown: ExportMarkdown = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find a scheduling policy that is better for a workload.

    Observe the workload, try policies on it in a micro-VM, and report whether one is better than the default scheduler.
    A --scheduler of yours is tried first; so are installed scx_ programs that suit the work.

    With --on host candidates pass the gates in the micro-VM, and the command runs on this machine, on its real files:
    each run under a policy is a trial of schedagentd's, and the default scheduler is in charge between them.

    Example: schedagent optimize --prepare "make clean" "make -j"
    """

    def command() -> int:
        from schedagent.core.readings.metric_options import Comparison
        from schedagent.core.trials.judge import TrialRules
        from schedagent.run.intake import Around, Description, command_of
        from schedagent.run.options import RunOptions, read_approve, read_memory, read_name, read_place

        described = Description(
            command_of(words or (), workload),
            directory,
            Comparison(several(metric), several(guard), several(objective), goal, preset),
            Around(prepare, setup, cleanup, shell, ignore_failure),
            timeout,
        )
        options = RunOptions(
            iterations,
            budget_minutes * 60,
            candidates,
            rules=TrialRules(minimum_pairs=min_pairs),
            approve=read_approve(approve),
            cpus=cpus,
            memory_mib=read_memory(memory) if memory else None,
            warmup=warmup,
            name=read_name(name),
            on=read_place(on),
        )
        named = api.naming(several(scheduler), include or (), options=options, settings=settings())
        output = Output(export_csv, export_markdown, dry_run, quiet, as_json)
        return carry_out(described, named, parameter or (), output)

    guarded(command)


def carry_out(described: Description, options: RunOptions, parameters: Sequence[str], output: Output) -> int:
    """Do the runs that were described, or show what they would be; return the exit status."""
    from schedagent.run.intake import planned_runs

    runs = planned_runs(described, options, parameters)
    exports = _exports(output.csv, output.markdown, len(runs))
    if output.dry_run:
        previews = (api.preview(work, options=of, settings=settings()) for work, of in runs)
        return max(show_preview(preview, output.as_json) for preview in previews)
    return min(follow(functools.partial(_optimised, *run), output.as_json, output.quiet, exports) for run in runs)


def _exports(csv: Path | None, markdown: Path | None, runs: int) -> dict[str, Path]:
    """Return by form the files that runs are written to; refuse before the first run what could not be written."""
    from schedagent.report.page.files import STDOUT

    files = {form: path for form, path in {"csv": csv, "samples": markdown}.items() if path}
    for form, path in files.items():
        folder = path.absolute().parent
        if path == STDOUT:
            raise UsageError(f"{_EXPORTS[form]} - cannot be written: stdout is for the verdict", "name a file")
        if path.is_dir() or not os.access(folder, os.W_OK):
            raise UsageError(f"{_EXPORTS[form]} {path} cannot be written", f"check that {folder} exists and is yours")
        if runs > 1:
            raise UsageError(
                f"{_EXPORTS[form]} takes one run, and --parameter makes {runs}",
                "write each afterwards: schedagent runs report RUN --csv FILE",
            )
    return files


_EXPORTS = {"csv": "--export-csv", "samples": "--export-markdown"}


def _export(report: Report, files: Mapping[str, Path]) -> None:
    from schedagent.report.page.files import write_report
    from schedagent.run.opening import open_repository

    with open_repository(settings()) as repository:
        write_report(repository, report, files, _EXPORTS)


def _optimised(workload: WorkloadCommand, options: RunOptions, progress: Reporter) -> Report:
    return api.optimize(workload, options=options, settings=settings(), reporter=progress)


def several(given: list[str] | None) -> tuple[str, ...]:
    """Return what an option was given; an empty text is as if it was not."""
    return tuple(filter(None, given or ()))


def resume(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Id of a run that was cut short (see: schedagent runs list).",
            autocompletion=unfinished_runs,
        ),
    ],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Continue a stopped run after its last completed step.

    Example: schedagent resume 20261130-020455-3fa91c
    """

    guarded(lambda: follow(lambda progress: api.resume(run, settings=settings(), reporter=progress), as_json, quiet))


def approve(
    run: Run,
    digest: Digest = "",
    because: Annotated[str, typer.Option(metavar="TEXT", help="Why; it is kept with the decision.")] = "",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Approve what a run waits for, and continue it.

    See what it waits for: schedagent runs show RUN

    Example: schedagent approve 20261130-020455-3fa91c
    """
    _decide_and_continue(run, digest, True, because, as_json, quiet)


def reject(
    run: Run,
    because: Annotated[str, typer.Option(metavar="TEXT", help="Why; the next plan takes it into account.")],
    digest: Digest = "",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Reject what a run waits for, and continue it.

    It continues with another plan, or ends without a token.

    Example: schedagent reject 20261130-020455-3fa91c --because "too risky"
    """
    _decide_and_continue(run, digest, False, because, as_json, quiet)


def _decide_and_continue(run: str, digest: str, approved: bool, because: str, as_json: bool, quiet: bool) -> None:
    def command() -> int:
        from schedagent.approval.approvals import decided_now

        decision = decided_now(approved, because)
        shown_digest = _checked_digest(digest)
        return follow(lambda progress: _decided(run, decision, shown_digest, progress), as_json, quiet)

    guarded(command)


def _checked_digest(digest: str) -> str:
    if digest and (len(digest) < _SHORTEST_DIGEST or set(digest) - set("0123456789abcdef")):
        raise UsageError(f"--digest {digest!r} is not a digest", "see what waits: schedagent runs show RUN")
    return digest


def follow(
    step: Callable[[Reporter], Report], as_json: bool, quiet: bool, exports: Mapping[str, Path] | None = None
) -> int:
    """Take a run as far as it goes, ask at the terminal when it waits, and show the end; return the exit status.

    Args:
        exports: by form, the files to write in the end; see `report.page.files.write_report`.
    """
    from schedagent.approval.text import commands
    from schedagent.run.progress import reporter

    report = step(reporter(quiet=quiet))
    while report.waiting and not as_json:
        show_question(report.waiting)
        decision = _ask(report.run) if sys.stdin.isatty() and sys.stderr.isatty() else None
        if decision is None:
            break
        report = _decided(report.run, decision, report.waiting.digest, reporter(quiet=quiet))
    if exports:
        _export(report, exports)
    if report.waiting is None:
        return show_report(report, as_json)
    if as_json:
        show_report(report, as_json)
    typer.echo(commands(report.run, report.waiting.digest), err=True)
    return EXIT_WAITING


def show_question(request: ApprovalRequest) -> None:
    """Print what a run waits for."""
    from schedagent.approval.approvals import to_json
    from schedagent.approval.text import show_waiting

    show_waiting(to_json(request))


def show_preview(preview: Preview, as_json: bool) -> int:
    """Print what a run would do."""
    from schedagent.run.preview import render_preview, to_json

    if as_json:
        print_json(to_json(preview))
    else:
        typer.echo(render_preview(preview))
    return 0


def _decided(run: str, decision: Decision, digest: str, progress: Reporter) -> Report:
    from schedagent.run.lifecycle import decide_run

    return decide_run(settings(), run, decision, digest, progress)


def _ask(run: str) -> Decision | None:
    """Ask at the terminal; None for later."""
    from schedagent.approval.approvals import decided_now
    from schedagent.approval.text import commands

    try:
        while True:
            answer = _read("Approve? y(es), n(o), or l(ater): ").lower()
            if answer in ("y", "yes"):
                return decided_now(True)
            if answer in ("n", "no"):
                try:
                    return decided_now(False, _read("Because: "))
                except UsageError as error:
                    typer.echo(f"{error.message}: {error.hint}", err=True)
            if answer in ("", "l", "later"):
                return None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(commands(run, "")) from None


def _read(prompt: str) -> str:
    """Read a line; the end of the input counts as an empty one."""
    typer.echo(prompt, err=True, nl=False)
    return sys.stdin.readline().strip()


def show_report(report: Report, as_json: bool) -> int:
    """Print a run's report, and return the exit status that says whether something better was found."""
    if as_json:
        from schedagent.report.as_json import to_json

        print_json(to_json(report))
    else:
        from schedagent.core.terminal.console import open_console
        from schedagent.report.terminal import render

        render(report, open_console())
    return 0 if report.best else EXIT_NO
