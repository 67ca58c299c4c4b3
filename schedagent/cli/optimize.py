"""`schedagent optimize`, `resume`, `approve` and `reject`: a run from the command line to its verdict."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from schedagent.approval.text import commands, show_waiting
from schedagent.cli.common import EXIT_NO, EXIT_WAITING, Json, guarded, print_json, settings
from schedagent.core.approval import Decision
from schedagent.core.errors import UsageError

LONGEST_S = 7 * 24 * 3600.0
"""Longest budget and longest run."""

Run = Annotated[str, typer.Argument(help="Id of a run that waits (see: schedagent runs list).")]
Digest = Annotated[
    str, typer.Option("--digest", help="Only if what waits has this digest, or one that begins so (8 digits or more).")
]
Report = Mapping[str, Any]

_SHORTEST_DIGEST = 8


def optimize(
    workload: Annotated[str, typer.Option(help='The command to optimise, for example "make -j".')],
    directory: Annotated[Path, typer.Option("--dir", help="Where to run it.")] = Path(),
    goal: Annotated[str, typer.Option(help="makespan (wall time), latency or throughput.")] = "makespan",
    prepare: Annotated[str, typer.Option(help="Command run before each trial, untimed.")] = "",
    metric: Annotated[str, typer.Option(help="Regular expression whose group is a number in the output.")] = "",
    iterations: Annotated[int, typer.Option(min=1, max=100, help="Most plans to try.")] = 2,
    candidates: Annotated[int, typer.Option(min=1, max=8, help="Most candidates per plan.")] = 3,
    budget_minutes: Annotated[
        float, typer.Option(min=0.1, max=LONGEST_S / 60, help="Begin no new trial after this long.")
    ] = 30.0,
    timeout: Annotated[
        float, typer.Option(min=1.0, max=LONGEST_S, help="Longest time one run may take, in seconds.")
    ] = 900.0,
    approve: Annotated[
        str, typer.Option(help="Wait for your approval of each plan, of the deploy token, plan,deploy or none.")
    ] = "none",
    as_json: Json = False,
) -> None:
    """Observe a workload, try policies on it in the micro-VM, and say whether one is better than the default."""

    def command() -> int:
        from schedagent.core.trials.judge import TrialRules
        from schedagent.run.intake import read_workload
        from schedagent.run.lifecycle import start_run
        from schedagent.run.options import RunOptions, read_approve
        from schedagent.run.progress import reporter

        stages = read_approve(approve)
        job = read_workload(workload, directory, goal, prepare, metric, timeout)
        chosen = RunOptions(iterations, budget_minutes * 60, candidates, TrialRules(), stages)
        return follow(lambda: start_run(settings(), job, chosen, reporter()), as_json)

    guarded(command)


def resume(
    run: Annotated[str, typer.Argument(help="Id of a run that was cut short (see: schedagent runs list).")],
    as_json: Json = False,
) -> None:
    """Go on with a run that was stopped or killed, behind its last finished step."""

    def command() -> int:
        from schedagent.run.lifecycle import resume_run
        from schedagent.run.progress import reporter

        return follow(lambda: resume_run(settings(), run, reporter()), as_json)

    guarded(command)


def approve(
    run: Run,
    digest: Digest = "",
    because: Annotated[str, typer.Option(help="A reason to keep with it.")] = "",
    as_json: Json = False,
) -> None:
    """Approve what a run waits for (see: schedagent runs show RUN), and go on with it."""
    _decide_and_go_on(run, digest, as_json, True, because)


def reject(
    run: Run,
    because: Annotated[str, typer.Option(help="Why: the next plan is made with it, and the report says it.")],
    digest: Digest = "",
    as_json: Json = False,
) -> None:
    """Reject what a run waits for, and go on: to another plan, or to the end without a token."""
    _decide_and_go_on(run, digest, as_json, False, because)


def _decide_and_go_on(run: str, digest: str, as_json: bool, approved: bool, because: str) -> None:
    def command() -> int:
        from schedagent.approval.approvals import decided_now
        from schedagent.run.lifecycle import decide_run
        from schedagent.run.progress import reporter

        decision = decided_now(approved, because)
        wanted = _checked_digest(digest)
        return follow(lambda: decide_run(settings(), run, decision, wanted, reporter()), as_json)

    guarded(command)


def _checked_digest(digest: str) -> str:
    if digest and (len(digest) < _SHORTEST_DIGEST or set(digest) - set("0123456789abcdef")):
        raise UsageError(f"--digest {digest!r} is not a digest", "see what waits: schedagent runs show RUN")
    return digest


def follow(step: Callable[[], Report], as_json: bool) -> int:
    """Take a run as far as it goes, ask at the terminal when it waits, and show the end; return the exit status."""
    from schedagent.run.lifecycle import decide_run
    from schedagent.run.progress import reporter

    report = step()
    while report["waiting"] and not as_json and sys.stdin.isatty() and sys.stderr.isatty():
        show_waiting(report["waiting"])
        decision = _ask(report["run"])
        if decision is None:
            break
        report = decide_run(settings(), report["run"], decision, report["waiting"]["digest"], reporter())
    else:
        if report["waiting"] and not as_json:
            show_waiting(report["waiting"])
    if report["waiting"]:
        if as_json:
            show_report(report, as_json)
        typer.echo(commands(report["run"], report["waiting"]["digest"]), err=True)
        return EXIT_WAITING
    return show_report(report, as_json)


def _ask(run: str) -> Decision | None:
    """Ask at the terminal; None for later."""
    from schedagent.approval.approvals import decided_now

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


def show_report(report: Any, as_json: bool) -> int:
    """Print a run's report and return the exit status that says whether something better was found."""
    if as_json:
        print_json(report)
    else:
        from rich.console import Console

        from schedagent.report.run_report import render

        render(report, Console(emoji=False))
    return 0 if report["best"] else EXIT_NO
