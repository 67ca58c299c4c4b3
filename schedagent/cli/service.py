"""`schedagent daemon`, `recommendations` and `apply`: the agent service, what it recommends, and acting on it."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schedagent.cli.common import Json, guarded, print_json, say, settings

if TYPE_CHECKING:
    from repo_store.store import PolicyRepository
    from schedagent.core.recommendation import ApplyRequest, Recommendation
    from schedagent.core.settings import Settings

_NOTHING_YET = "nothing is known yet: the agent service (schedagent daemon) needs an hour or more of busy intervals"


def daemon() -> None:
    """Run the agent service, which watches and recommends.

    It does what [daemon] of the settings allows, until Ctrl-C or SIGTERM. Without settings it only measures and
    recommends: it changes nothing.

    Example: schedagent daemon
    """

    def command() -> int:
        import asyncio
        import signal

        from schedagent.service.loop import serve

        def stop_on(stop: asyncio.Event) -> None:
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)

        chosen = settings()
        logging.getLogger("schedagent.service").setLevel(logging.INFO)
        logging.getLogger("schedagent.service").info("mode: %s; state: %s", chosen.daemon.mode, chosen.state_dir)
        serve(chosen, stop_on)
        return 0

    guarded(command)


def recommendations(
    everything: Annotated[bool, typer.Option("--all", help="Also those that were applied or are out of date.")] = False,
    as_json: Json = False,
) -> None:
    """List what the agent service recommends, newest first.

    Example: schedagent recommendations --all
    """

    def command() -> int:
        from schedagent.core.recommendation import Standing
        from schedagent.report.recommendations import show_recommendations, to_json
        from schedagent.run.opening import open_repository

        now = time.time()
        with open_repository(settings()) as repository:
            every = repository.service.recommendations()
            requests = repository.service.latest_requests()
            usual = ", ".join(baseline.subject for baseline in repository.service.baselines())
        shown = [entry for entry in every if everything or entry.at(now) in (Standing.OPEN, Standing.FAILED)]
        if as_json:
            print_json([to_json(entry, requests.get(entry.id), now) for entry in shown])
        elif shown:
            show_recommendations(shown, requests, now)
        else:
            known = f"what is usual is known for: {usual}" if usual else _NOTHING_YET
            say(f"nothing is recommended; {known}")
        return 0

    guarded(command)


def apply(
    recommendation: Annotated[
        str, typer.Argument(metavar="ID", help="Id of a recommendation (see: schedagent recommendations).")
    ],
    cgroup: Annotated[
        str, typer.Option(metavar="CGROUP", help="Whose tasks its pulses are judged by; else everybody's.")
    ] = "",
    queue: Annotated[bool, typer.Option("--queue", help="Leave it to the agent service, and return at once.")] = False,
    as_json: Json = False,
) -> None:
    """Apply a recommendation: optimise, or deploy the policy.

    A workload is optimised in the lab; a policy is deployed through schedagentd.

    Example: schedagent apply 3fa91c07 --queue
    """

    def command() -> int:
        from schedagent.report.recommendations import check_appliable
        from schedagent.run.opening import open_repository

        with open_repository(settings()) as repository:
            chosen = repository.service.recommendation(recommendation)
            check_appliable(chosen, time.time())
            request = repository.service.ask(_request(chosen, cgroup, queue))
            if queue:
                return _queued(request, as_json)
            return _apply_now(settings(), repository, request, as_json)

    guarded(command)


def _request(recommendation: Recommendation, cgroup: str, queue: bool) -> ApplyRequest:
    from schedagent.approval.approvals import user
    from schedagent.core.errors import UsageError
    from schedagent.core.recommendation import ApplyRequest, Progress, RecommendationKind

    deploys = recommendation.kind is RecommendationKind.DEPLOY
    if cgroup and not deploys:
        raise UsageError("--cgroup is for recommendations to deploy", "leave it out")
    progress = Progress.QUEUED if queue else Progress.RUNNING
    return ApplyRequest(0, recommendation.id, cgroup, user(), time.time(), progress=progress)


def _queued(request: ApplyRequest, as_json: bool) -> int:
    from schedagent.service.loop import service_lives

    lives = service_lives(settings())
    if as_json:
        print_json({**asdict(request), "service_lives": lives})
    else:
        typer.echo(f"request {request.number} is queued for the agent service")
        if not lives:
            typer.echo("the agent service is not running; start it: schedagent daemon", err=True)
    return 0


def _apply_now(settings: Settings, repository: PolicyRepository, request: ApplyRequest, as_json: bool) -> int:
    """Carry a request out in this process; if it is stopped, the service does not continue it."""
    from schedagent.core.recommendation import Progress
    from schedagent.run.progress import reporter
    from schedagent.service.acting import Hands, WiredLab

    try:
        result = Hands(settings, repository, WiredLab(settings), time.time).carry_out(request.number, reporter())
    except KeyboardInterrupt:
        now = repository.service.request(request.number)
        stopped = replace(now, progress=Progress.FAILED, ended_at=time.time(), note="stopped by its user")
        repository.service.save_request(stopped)
        raise
    return _show_result(settings, result, as_json)


def _show_result(settings: Settings, result: Any, as_json: bool) -> int:
    """Show the report of a run, or the deployment."""
    from schedagent.cli.deploy import show
    from schedagent.cli.optimize import show_report
    from schedagent.report.deployments import render_deployment
    from schedagent.report.report import Report
    from schedagent.service.loop import service_lives

    if isinstance(result, Report):
        return show_report(result, as_json)
    if not service_lives(settings):
        typer.echo("the agent service is not running, so nobody renews the lease: schedagent daemon", err=True)
    return show(result, as_json, render_deployment)
