"""`schedagent optimize`, `resume`, `approve` and `reject`: a run from the command line to its verdict."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schedagent import api
from schedagent.cli.common import EXIT_NO, EXIT_WAITING, Json, guarded, print_json, settings
from schedagent.core.approval import ApprovalRequest, Decision
from schedagent.core.errors import UsageError

if TYPE_CHECKING:
    from schedagent.report.report import Report

LONGEST_S = 7 * 24 * 3600.0
"""Longest budget and longest run."""

Run = Annotated[str, typer.Argument(help="Id of a run that waits (see: schedagent runs list).")]
Digest = Annotated[
    str, typer.Option(metavar="HEX", help="Only if the digest of what waits begins so (8 digits or more).")
]

_SHORTEST_DIGEST = 8


def optimize(
    workload: Annotated[str, typer.Option(metavar="COMMAND", help='What to optimise, for example "make -j".')],
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where to run it.")] = Path(),
    goal: Annotated[
        str, typer.Option(metavar="GOAL", help="makespan (wall time), latency or throughput.")
    ] = "makespan",
    prepare: Annotated[str, typer.Option(metavar="COMMAND", help="Command to run before each trial, untimed.")] = "",
    metric: Annotated[
        str, typer.Option(metavar="REGEX", help="Regular expression whose group is a number in the output.")
    ] = "",
    iterations: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="Most plans to try.")] = 2,
    candidates: Annotated[int, typer.Option(min=1, max=8, metavar="N", help="Most candidates of a plan.")] = 3,
    budget_minutes: Annotated[
        float, typer.Option(min=0.1, max=LONGEST_S / 60, metavar="MINUTES", help="Begin no trial after this long.")
    ] = 30.0,
    timeout: Annotated[
        float, typer.Option(min=1.0, max=LONGEST_S, metavar="SECONDS", help="Longest time of one run of the command.")
    ] = 900.0,
    approve: Annotated[
        str, typer.Option(metavar="STEPS", help="Ask before these steps: plan, deploy, plan,deploy or none.")
    ] = "none",
    as_json: Json = False,
) -> None:
    """Find a scheduling policy that is better for a workload.

    Observe the workload, try policies on it in a micro-VM, and report whether one is better than the default scheduler.
    """

    def command() -> int:
        from schedagent.core.trials.judge import TrialRules
        from schedagent.run.options import RunOptions, read_approve
        from schedagent.run.progress import reporter

        stages = read_approve(approve)
        options = RunOptions(iterations, budget_minutes * 60, candidates, TrialRules(), stages)

        def start() -> Report:
            return api.optimize(
                workload,
                directory=directory,
                goal=goal,
                prepare=prepare,
                metric=metric,
                timeout_s=timeout,
                options=options,
                settings=settings(),
                reporter=reporter(),
            )

        return follow(start, as_json)

    guarded(command)


def resume(
    run: Annotated[str, typer.Argument(help="Id of a run that was cut short (see: schedagent runs list).")],
    as_json: Json = False,
) -> None:
    """Continue a stopped run after its last completed step."""

    def command() -> int:
        from schedagent.run.progress import reporter

        return follow(lambda: api.resume(run, settings=settings(), reporter=reporter()), as_json)

    guarded(command)


def approve(
    run: Run,
    digest: Digest = "",
    because: Annotated[str, typer.Option(metavar="TEXT", help="Why; it is kept with the decision.")] = "",
    as_json: Json = False,
) -> None:
    """Approve what a run waits for, and continue it.

    See what it waits for: schedagent runs show RUN
    """
    _decide_and_continue(run, digest, as_json, True, because)


def reject(
    run: Run,
    because: Annotated[str, typer.Option(metavar="TEXT", help="Why; the next plan takes it into account.")],
    digest: Digest = "",
    as_json: Json = False,
) -> None:
    """Reject what a run waits for, and continue it.

    It continues with another plan, or ends without a token.
    """
    _decide_and_continue(run, digest, as_json, False, because)


def _decide_and_continue(run: str, digest: str, as_json: bool, approved: bool, because: str) -> None:
    def command() -> int:
        from schedagent.approval.approvals import decided_now

        decision = decided_now(approved, because)
        shown_digest = _checked_digest(digest)
        return follow(lambda: _decided(run, decision, shown_digest), as_json)

    guarded(command)


def _checked_digest(digest: str) -> str:
    if digest and (len(digest) < _SHORTEST_DIGEST or set(digest) - set("0123456789abcdef")):
        raise UsageError(f"--digest {digest!r} is not a digest", "see what waits: schedagent runs show RUN")
    return digest


def follow(step: Callable[[], Report], as_json: bool) -> int:
    """Take a run as far as it goes, ask at the terminal when it waits, and show the end; return the exit status."""
    from schedagent.approval.text import commands

    report = step()
    while report.waiting and not as_json:
        show_question(report.waiting)
        decision = _ask(report.run) if sys.stdin.isatty() and sys.stderr.isatty() else None
        if decision is None:
            break
        report = _decided(report.run, decision, report.waiting.digest)
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


def _decided(run: str, decision: Decision, digest: str) -> Report:
    from schedagent.run.lifecycle import decide_run
    from schedagent.run.progress import reporter

    return decide_run(settings(), run, decision, digest, reporter())


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
