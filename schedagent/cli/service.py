"""`schedagent daemon`, `recommendations` and `apply`: the agent service, what it recommends, and acting upon it."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schedagent.cli.common import guarded, print_json, settings
from schedagent.cli.optimize import show_report

if TYPE_CHECKING:
    from schedagent.core.recommendation import ApplyRequest, Recommendation

Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout.")]


def daemon() -> None:
    """Be the agent service: watch this machine, recommend, and do what [daemon] of the settings allows.

    Until Ctrl-C or SIGTERM. Without settings it only measures and recommends: it changes nothing.
    """

    def command() -> int:
        import asyncio
        import signal

        from schedagent.service.loop import serve

        def stop_on(stop: asyncio.Event) -> None:
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)

        found = settings()
        logging.getLogger("schedagent.service").setLevel(logging.INFO)
        logging.getLogger("schedagent.service").info("mode: %s; state: %s", found.daemon.mode, found.state_dir)
        serve(found, stop_on)
        return 0

    guarded(command)


def recommendations(
    everything: Annotated[bool, typer.Option("--all", help="Also those that are through, or out of date.")] = False,
    as_json: Json = False,
) -> None:
    """List what the agent service recommends, newest first, with the evidence."""

    def command() -> int:
        import time

        from schedagent.core.recommendation import Standing
        from schedagent.run.opening import open_repository

        now = time.time()
        with open_repository(settings()) as repository:
            found = [
                one
                for one in repository.service.recommendations()
                if everything or one.at(now) in (Standing.OPEN, Standing.FAILED)
            ]
            requests = repository.service.latest_requests()
            usual = repository.service.baselines()
        if as_json:
            print_json([to_json(one, requests.get(one.id), now) for one in found])
        elif found:
            _show_table(found, requests, now)
        else:
            known = f"what is usual is known for: {', '.join(one.subject for one in usual)}" if usual else _NOTHING_YET
            typer.echo(f"nothing is recommended; {known}")
        return 0

    guarded(command)


def apply(
    recommendation: Annotated[str, typer.Argument(help="Id of a recommendation (see: schedagent recommendations).")],
    cgroup: Annotated[str, typer.Option(help="Where to deploy, if the recommendation does not say.")] = "",
    queue: Annotated[bool, typer.Option("--queue", help="Leave it to the agent service, and return at once.")] = False,
    as_json: Json = False,
) -> None:
    """Act upon a recommendation: optimise its workload in the lab, or deploy its policy through schedagentd."""

    def command() -> int:
        from schedagent.run.opening import open_repository

        found = settings()
        with open_repository(found) as repository:
            one = appliable(repository.service.recommendation(recommendation))
            request = repository.service.ask(_asked(one, cgroup, queue))
            if queue:
                return _queued(found, request, as_json)
            return _apply_now(found, repository, one, request, as_json)

    guarded(command)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (daemon, recommendations, apply):
        app.command()(command)


def appliable(one: Recommendation) -> Recommendation:
    """Return a recommendation that can be acted upon; raise UsageError that says why not otherwise."""
    import time

    from schedagent.core.errors import UsageError
    from schedagent.core.recommendation import Standing

    look = "see what is recommended now: schedagent recommendations"
    match one.at(time.time()):
        case Standing.EXPIRED:
            raise UsageError(f"recommendation {one.id} expired at {moment(one.expires_at)}", look)
        case Standing.WITHDRAWN:
            raise UsageError(f"recommendation {one.id} was withdrawn: {one.note}", look)
        case Standing.APPLIED:
            raise UsageError(f"recommendation {one.id} was applied: {one.note}", look)
    return one


def to_json(one: Recommendation, request: ApplyRequest | None, now: float) -> dict[str, Any]:
    """Return a recommendation as JSON values, with the latest request for it."""
    times = {"since": moment(one.since), "expires_at": moment(one.expires_at)}
    asked = None if request is None else asdict(request)
    return {**asdict(one), **times, "standing": one.at(now).value, "request": asked}


def moment(unix_s: float) -> str:
    """Return a time for people: local, to the minute."""
    return datetime.fromtimestamp(unix_s).astimezone().isoformat(sep=" ", timespec="minutes")


_NOTHING_YET = "nothing is known yet: the agent service (schedagent daemon) needs an hour or more of busy intervals"


def _asked(one: Recommendation, cgroup: str, queue: bool) -> ApplyRequest:
    import time

    from schedagent.approval.approvals import user
    from schedagent.core.errors import UsageError
    from schedagent.core.recommendation import ApplyRequest, Progress, RecommendationKind

    if cgroup and one.kind is not RecommendationKind.DEPLOY:
        raise UsageError("--cgroup is for recommendations to deploy")
    if not (cgroup or one.cgroup) and one.kind is RecommendationKind.DEPLOY:
        raise UsageError(f"recommendation {one.id} names no cgroup", "say where its tasks run: --cgroup /build.slice")
    progress = Progress.QUEUED if queue else Progress.RUNNING
    return ApplyRequest(0, one.id, cgroup, user(), time.time(), progress=progress)


def _queued(settings: Any, request: ApplyRequest, as_json: bool) -> int:
    from schedagent.service.loop import service_lives

    lives = service_lives(settings)
    if as_json:
        print_json({**asdict(request), "service_lives": lives})
    else:
        typer.echo(f"request {request.number} is queued for the agent service")
        if not lives:
            typer.echo("the agent service does not run; start it: schedagent daemon", err=True)
    return 0


def _apply_now(settings: Any, repository: Any, one: Recommendation, request: ApplyRequest, as_json: bool) -> int:
    """Carry a request out in this process; if it is stopped, the service does not go on with it."""
    import time

    from schedagent.cli.deploy import render_deployment, show
    from schedagent.core.recommendation import Progress, RecommendationKind
    from schedagent.run.progress import reporter
    from schedagent.service.acting import Hands, WiredLab
    from schedagent.service.loop import service_lives

    try:
        told = Hands(settings, repository, WiredLab(settings), time.time).carry_out(request.number, reporter())
    except KeyboardInterrupt:
        now = repository.service.request(request.number)
        stopped = replace(now, progress=Progress.FAILED, ended_at=time.time(), note="stopped by its user")
        repository.service.save_request(stopped)
        raise
    if one.kind is RecommendationKind.OPTIMISE:
        return show_report(told, as_json)
    if not service_lives(settings):
        typer.echo("the agent service does not run, so nobody renews the lease: schedagent daemon", err=True)
    return show(told, as_json, render_deployment)


def _show_table(found: list[Recommendation], requests: Any, now: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("id", "what", "why", "evidence", "since", "standing"):
        table.add_column(column, overflow="fold", no_wrap=column in ("id", "since"))
    for one in found:
        request = requests.get(one.id)
        standing = f"{one.at(now).value}{f', {request.progress.value}' if request else ''}\n{one.note}".strip()
        table.add_row(one.id, f"{one.kind.value}: {one.what}", one.why, evidence(one), moment(one.since), standing)
    Console(emoji=False).print(table, markup=False)


def evidence(one: Recommendation) -> str:
    """Say in short what a recommendation rests on."""
    told = one.evidence
    if "run" in told:
        low, high = told["interval"]
        return (
            f"run {told['run']}, trial {told['trial']}: ratio {told['ratio']:.3f} ({low:.3f} to {high:.3f}) in "
            f"{told['pairs']} pairs, {told['lab']}, kernel {told['kernel']}"
        )
    if "baseline_since" in told:
        until = f" to {moment(told['baseline_until'])}" if "baseline_until" in told else ""
        return f"{told['subject']}, baseline {moment(told['baseline_since'])}{until}"
    return f"slot {moment(told['slot'])}" if "slot" in told else ""
