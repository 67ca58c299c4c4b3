"""`schedagent deploy`, `renew`, `promote`, `status`, `rollback`, `history`, `watch`: requests to schedagentd.

Thin: each asks schedagentd over its socket; errors begin with "schedagentd: " if it was the daemon that refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from schedagent.cli.common import EXIT_FAILED, EXIT_NO, Json, guarded, print_json, say, say_lines, settings
from schedagent.cli.guide.completion import finished_runs
from schedagent.core.errors import UsageError
from schedagent.core.retention.limits import RETENTION

if TYPE_CHECKING:
    from schedagent.client.daemon import DaemonClient
    from schedagent.client.keeper import Metric

Socket = Annotated[Path | None, typer.Option(metavar="PATH", help="Socket of schedagentd, if it is not the usual one.")]
Number = Annotated[
    int, typer.Argument(metavar="NUMBER", help="Number of the deployment (see: schedagent status).", min=1)
]

SHORTEST_KEPT_S = 10.0
"""Three renewals in a shorter one would be more than schedagentd takes of one user."""
METRIC_EVERY_S = 5.0
KEEP_HELP = "Stay and renew the lease until it ends; Ctrl-C rolls back. Exit status 3: it was not good enough."

_NOT_GOOD = ("not shown to do no harm", "no gain shown")
_WISHED = ("rolled back", "replaced", "its process ended")


Accept = Annotated[
    list[str] | None,
    typer.Option(metavar="WHAT", help="cgroup-limits: limits of cgroups end, as the policy keeps none."),
]


def deploy(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE",
            help="A run, whose winner is deployed; or a policy's compiled object, FILE.bpf.o.",
            autocompletion=finished_runs,
        ),
    ],
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of an object: output of `schedagent verify --json`, with the token."),
    ] = None,
    cgroup: Annotated[
        str, typer.Option(metavar="CGROUP", help="Whose tasks are measured, such as /system.slice/build.service.")
    ] = "",
    stage: Annotated[
        Literal["pulse", "canary", "full"],
        typer.Option(help="canary: a cgroup that owns its CPUs; full: if allowed."),
    ] = "pulse",
    lease: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Time until it ends unless it is renewed.")
    ] = 600.0,
    again: Annotated[bool, typer.Option("--again", help="Even if the circuit breaker ended this one before.")] = False,
    pid: Annotated[
        int,
        typer.Option(
            metavar="PID", help="Instead of a cgroup: a process and its descendants.", min=0, show_default=False
        ),
    ] = 0,
    accept: Accept = None,
    keep: Annotated[bool, typer.Option("--keep", help=KEEP_HELP)] = False,
    metric_command: Annotated[
        str, typer.Option(metavar="COMMAND", help="With --keep: prints the workload's own metric.")
    ] = "",
    metric_query: Annotated[
        tuple[str, str], typer.Option(metavar="URL QUERY", help="With --keep: a Prometheus server and an expression.")
    ] = ("", ""),
    metric_better: Annotated[
        Literal["higher", "lower"] | None, typer.Option(help="Whether a higher or a lower metric is better.")
    ] = None,
    metric_every: Annotated[
        float | None,
        typer.Option(min=1, metavar="SECONDS", help=f"Time between two measurements; else {METRIC_EVERY_S:g}."),
    ] = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Run a verified policy on this machine.

    It is in charge for a second at a time, then for longer, if that does nobody harm.

    Example: schedagent deploy 20261130-020455-3fa91c --pid 4711 --keep
    """

    def command() -> int:
        if keep and lease < SHORTEST_KEPT_S:
            raise UsageError(f"a lease of {lease:g} s cannot be kept", f"--lease {SHORTEST_KEPT_S:g} or more")
        metric = _metric(metric_command, metric_query, metric_better, keep, lease)
        if metric is None and metric_every is not None:
            raise UsageError("--metric-every is for a metric", "add --metric-command or --metric-query")
        order = _order(what, report) | {"cgroup": cgroup, "stage": stage, "lease_s": lease}
        order |= {
            name: value
            for name, value in (("again", again), ("pid", pid), ("better", metric_better), ("accept", accept))
            if value
        }
        if metric is not None:
            metric()  # one that cannot be measured is an error before anything is deployed
        deployment = client(socket).ask("deploy", **order)
        if not keep:
            return _show_deployment(deployment, as_json)
        return _keep(client(socket), deployment, lease, as_json, metric, metric_every or METRIC_EVERY_S)

    guarded(command)


def _metric(command: str, query: tuple[str, str], better: str | None, keep: bool, lease_s: float) -> Metric | None:
    """Return the metric that the options describe; raise UsageError if they make no sense together."""
    from schedagent.client.keeper import LONGEST_MEASURE_S, CommandMetric, QueryMetric

    if not (command or any(query) or better):
        return None
    if bool(command) == any(query):
        raise UsageError("a metric is one of --metric-command and --metric-query", "give one of them")
    if not better:
        raise UsageError("it is not known which way the metric is better", "add --metric-better higher, or lower")
    if not keep:
        raise UsageError("a metric is measured for as long as the policy runs", "add --keep")
    timeout_s = min(LONGEST_MEASURE_S, lease_s / 3)
    return CommandMetric(command, timeout_s) if command else QueryMetric(*query, timeout_s)


def _keep(
    daemon: DaemonClient,
    deployment: dict[str, Any],
    lease_s: float,
    as_json: bool,
    metric: Metric | None,
    every_s: float,
) -> int:
    """Keep a deployment; return 0 if it ended as somebody wished, 3 if the policy was not good enough, else 1.

    Ctrl-C rolls it back: whoever stops watching in person does not want to wait for the lease.
    """
    from schedagent.client.keeper import Keeper

    lease_s = min(lease_s, deployment["lease_left_s"] or lease_s)  # schedagentd may have made it shorter
    keeper = Keeper(daemon, deployment["deployment"], lease_s, partial(say, err=True), metric, every_s)
    try:
        ended = keeper.run()
    except KeyboardInterrupt:
        typer.echo("stopping: rolling back", err=True)
        ended = keeper.roll_back() or deployment
    _show_deployment(ended, as_json)
    _show_restored(daemon)
    return EXIT_NO if ended["tripped"] or ended["end"] in _NOT_GOOD else 0 if ended["end"] in _WISHED else EXIT_FAILED


def _show_restored(daemon: DaemonClient) -> None:
    """Say what schedagentd restored, and that somebody has to keep it."""
    from schedagent.core.errors import SchedagentError
    from schedagent.report.times import duration

    with suppress(SchedagentError):  # it is gone, or busy: what was kept has ended in any case
        active = daemon.ask("status")["active"]
        if active and active.get("restores"):
            number, left = active["deployment"], duration(active["lease_left_s"])
            say(
                f"the last known good policy is in charge again as deployment {number}; its lease ends in {left} unless"
                f" its keeper is still there, or: schedagent renew {number}",
                err=True,
            )


def renew(
    deployment: Number,
    lease: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="Time from now on.")] = 600.0,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Newer output of `schedagent verify --json`.")
    ] = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Prolong the lease of a deployment.

    With a newer report, it may run on after the end of its first token.

    Example: schedagent renew 1 --lease 600
    """

    def command() -> int:
        from schedagent.verification.deployable import newer_token

        token = newer_token(report) if report else {}
        return _show_deployment(client(socket).ask("renew", deployment=deployment, lease_s=lease, **token), as_json)

    guarded(command)


def promote(deployment: Number, accept: Accept = None, socket: Socket = None, as_json: Json = False) -> None:
    """Take a proven canary on to the whole machine, by pulses.

    Example: schedagent promote 1
    """

    def command() -> int:
        accepted = {"accept": accept} if accept else {}
        return _show_deployment(client(socket).ask("promote", deployment=deployment, **accepted), as_json)

    guarded(command)


def status(socket: Socket = None, as_json: Json = False) -> None:
    """Show what schedules tasks on this machine.

    Which policy, since when, its stage and lease, and what the kernel reports. Without schedagentd, only the latter.

    Example: schedagent status --json
    """

    def command() -> int:
        from schedagent.client.local import local_status
        from schedagent.core.errors import DaemonAbsent
        from schedagent.report.deployments import render_local_status, render_status

        try:
            return show(client(socket).ask("status"), as_json, render_status)
        except DaemonAbsent:
            if socket is not None:
                raise
            return show(local_status(), as_json, render_local_status)

    guarded(command)


def rollback(
    deployment: Annotated[
        int,
        typer.Argument(metavar="NUMBER", help="Number of the deployment; all if left out.", min=0, show_default=False),
    ] = 0,
    default: Annotated[bool, typer.Option("--default", help="Not to the last known good policy either.")] = False,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """End what runs, and return to the last known good policy.

    If there is none, return to the default scheduler.

    Example: schedagent rollback
    """

    def command() -> int:
        result = client(socket).ask("rollback", deployment=deployment or 0, to_default=default)
        return show(result, as_json, lambda answer: f"in charge: {answer['in_charge']}")

    guarded(command)


def history(
    limit: Annotated[int, typer.Option(min=1, max=RETENTION["deployments"].count, metavar="N", help="How many.")] = 20,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """List deployments and why they ended, newest first.

    Example: schedagent history --limit 5
    """

    def command() -> int:
        from schedagent.report.deployments import render_history

        answer = client(socket).ask("history", limit=limit)
        recorded = answer.get("recorded", 0)  # a daemon of an older version does not say
        return show(answer["history"], as_json, lambda listed: render_history(listed, recorded))

    guarded(command)


def watch(
    after: Annotated[
        int,
        typer.Option(
            min=-1, metavar="NUMBER", help="Also each event after this one; 0: all; -1: none.", show_default=False
        ),
    ] = -1,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Show what is in charge, then each event, until Ctrl-C.

    Example: schedagent watch
    """

    def command() -> int:
        from schedagent.report.deployments import render_event, render_status

        if not as_json:
            show(client(socket).ask("status"), as_json, render_status)
        for event in client(socket).events(after):
            if as_json:
                typer.echo(json.dumps(event))
            else:
                show(event, as_json, render_event)
        return 0

    guarded(command)


def client(socket: Path | None) -> DaemonClient:
    """Return the way to schedagentd."""
    from schedagent.client.daemon import SOCKET, DaemonClient

    return DaemonClient(socket or SOCKET)


def _order(what: str, report: Path | None) -> dict[str, Any]:
    """Return what schedagentd wants of a run's winner, or of an object and its report."""
    if report is not None:
        from schedagent.verification.deployable import deployment_fields

        return deployment_fields(Path(what), report)
    if what.endswith(".o") or Path(what).exists():
        raise UsageError(
            f"an object is deployed with its report, and {what} came alone",
            f"schedagent verify --json {what} > REPORT.json; then add --report REPORT.json",
        )
    from schedagent.approval.handover import handover
    from schedagent.run.opening import open_repository
    from schedagent.service.acting import WiredLab

    with open_repository(settings()) as repository:
        order = handover(repository, what, partial(WiredLab(settings()).compile, repository, what))
    del order["digest"]
    return order


def _show_deployment(deployment: dict[str, Any], as_json: bool) -> int:
    from schedagent.report.deployments import render_deployment

    return show(deployment, as_json, render_deployment)


def show(answer: Any, as_json: bool, render: Callable[[Any], str]) -> int:
    """Print an answer; names of processes in it are anybody's, and must not steer the terminal."""
    if as_json:
        print_json(answer)
    else:
        say_lines(render(answer))
    return 0
