"""`schedagent deploy`, `renew`, `promote`, `status`, `rollback`, `history`, `watch`: asking schedagentd.

Thin: each asks schedagentd over its socket; errors begin with "schedagentd: " if it was the daemon that refused.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from schedagent.cli.common import EXIT_FAILED, EXIT_NO, guarded, print_json, settings

if TYPE_CHECKING:
    from schedagent.client.daemon import DaemonClient
    from schedagent.client.keeper import Metric

Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout.")]
Socket = Annotated[Path | None, typer.Option(help="Socket of schedagentd, if it is not the usual one.")]
Number = Annotated[int, typer.Argument(help="Number of the deployment (see: schedagent status).", min=1)]

SHORTEST_KEPT_S = 10.0
"""Three renewals in a shorter one would be more than schedagentd takes of one user."""
KEEP_HELP = "Stay and renew the lease until it ends; Ctrl-C rolls it back. Exit status 3: the circuit breaker ended it."


def deploy(
    what: Annotated[
        str, typer.Argument(help="A run, whose winner is deployed; or a policy's compiled object, FILE.bpf.o.")
    ],
    report: Annotated[
        Path | None, typer.Option(help="Of an object: what `schedagent verify --json` printed; holds the token.")
    ] = None,
    cgroup: Annotated[str, typer.Option(help="Tasks to begin with, such as /system.slice/build.service.")] = "",
    stage: Annotated[
        Literal["canary", "full"], typer.Option(help="full only where schedagentd allows that.")
    ] = "canary",
    lease: Annotated[float, typer.Option(min=1, help="Seconds until it ends unless it is renewed.")] = 600.0,
    again: Annotated[bool, typer.Option("--again", help="Although the circuit breaker ended this one before.")] = False,
    pid: Annotated[
        int, typer.Option(help="Instead of a cgroup: this process and its descendants.", min=0, show_default=False)
    ] = 0,
    keep: Annotated[bool, typer.Option("--keep", help=KEEP_HELP)] = False,
    metric_command: Annotated[str, typer.Option(help="With --keep: prints the workload's own metric.")] = "",
    metric_query: Annotated[
        tuple[str, str], typer.Option(metavar="URL QUERY", help="With --keep: a Prometheus server and an expression.")
    ] = ("", ""),
    metric_better: Annotated[
        Literal["higher", "lower"] | None, typer.Option(help="Which way the metric is better.")
    ] = None,
    metric_every: Annotated[float, typer.Option(min=1, help="Seconds between two measurements.")] = 5.0,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Run a verified policy on this machine: first for the tasks of one cgroup or process tree."""

    from schedagent.core.errors import UsageError

    def command() -> int:
        if keep and lease < SHORTEST_KEPT_S:
            raise UsageError(f"a lease of {lease:g} s cannot be kept", f"--lease {SHORTEST_KEPT_S:g} or more")
        metric = _metric(metric_command, metric_query, metric_better, keep, lease)
        asked = _wanted(what, report) | {"cgroup": cgroup, "stage": stage, "lease_s": lease}
        for name, value in (("again", again), ("pid", pid), ("better", metric_better)):
            if value:
                asked[name] = value
        if metric is not None:
            metric()  # one that cannot be measured is told before anything is deployed
        told = client(socket).ask("deploy", **asked)
        if not keep:
            return show(told, as_json, render_deployment)
        return _keep(client(socket), told, lease, as_json, metric, metric_every)

    guarded(command)


def _metric(command: str, query: tuple[str, str], better: str | None, keep: bool, lease_s: float) -> Metric | None:
    """Return the metric that was asked for; raise UsageError if what was said of it makes no sense."""
    from schedagent.client.keeper import LONGEST_MEASURE_S, CommandMetric, QueryMetric
    from schedagent.core.errors import UsageError

    if not (command or any(query) or better):
        return None
    if bool(command) == any(query):
        raise UsageError("a metric is one of --metric-command and --metric-query", "give one of them")
    if not better:
        raise UsageError("nobody said which way the metric is better", "add --metric-better higher, or lower")
    if not keep:
        raise UsageError("a metric has to be measured for as long as it runs", "add --keep")
    timeout_s = min(LONGEST_MEASURE_S, lease_s / 3)
    return CommandMetric(command, timeout_s) if command else QueryMetric(*query, timeout_s)


def _keep(
    daemon: DaemonClient, told: dict[str, Any], lease_s: float, as_json: bool, metric: Metric | None, every_s: float
) -> int:
    """Keep a deployment; return 0 if it ended as somebody wished, 3 if the circuit breaker did it, else 1.

    Ctrl-C rolls it back: whoever stops watching in person does not want to wait for the lease.
    """
    from schedagent.client.keeper import Keeper

    lease_s = min(lease_s, told["lease_left_s"] or lease_s)  # schedagentd may have made it shorter
    keeper = Keeper(daemon, told["deployment"], lease_s, lambda line: typer.echo(line, err=True), metric, every_s)
    try:
        ended = keeper.run()
    except KeyboardInterrupt:
        typer.echo("stopping: rolling back", err=True)
        ended = keeper.roll_back() or told
    show(ended, as_json, render_deployment)
    return EXIT_NO if ended["tripped"] else 0 if ended["end"] in _WISHED else EXIT_FAILED


_WISHED = ("rolled back", "replaced", "its process ended")


def renew(
    deployment: Number,
    lease: Annotated[float, typer.Option(min=1, help="Seconds from now on.")] = 600.0,
    report: Annotated[Path | None, typer.Option(help="A newer report of `schedagent verify --json`.")] = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Prolong the lease of what runs; with a newer report, beyond the end of the first token."""

    def command() -> int:
        newer = {} if report is None else {name: _read_report(report)[name] for name in ("token", "report_digest")}
        told = client(socket).ask("renew", deployment=deployment, lease_s=lease, **newer)
        return show(told, as_json, render_deployment)

    guarded(command)


def promote(
    deployment: Number,
    stage: Annotated[Literal["wider", "full"], typer.Option(help="How much of it.")] = "full",
    cgroup: Annotated[str, typer.Option(help="For wider: a cgroup around the present one.")] = "",
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Give a policy that proved itself more of the machine."""

    def command() -> int:
        told = client(socket).ask("promote", deployment=deployment, stage=stage, cgroup=cgroup)
        return show(told, as_json, render_deployment)

    guarded(command)


def status(socket: Socket = None, as_json: Json = False) -> None:
    """Say what schedules tasks here: which policy, since when, its stage and lease, and what the kernel says."""
    guarded(lambda: show(client(socket).ask("status"), as_json, render_status))


def rollback(
    deployment: Annotated[int, typer.Argument(help="Number of the deployment; everything if left out.", min=0)] = 0,
    default: Annotated[bool, typer.Option("--default", help="Not to the last known good one either.")] = False,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """End what runs: back to the last known good policy, else to the default scheduler."""

    def command() -> int:
        told = client(socket).ask("rollback", deployment=deployment or 0, to_default=default)
        return show(told, as_json, lambda answer: f"in charge: {answer['in_charge']}")

    guarded(command)


def history(
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    dumps: Annotated[bool, typer.Option("--dumps", help="With what the kernel dumped when one was ejected.")] = False,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """List deployments, newest first, with why they ended."""

    def command() -> int:
        told = client(socket).ask("history", limit=limit, dumps=dumps)["history"]
        return show(told, as_json, render_history)

    guarded(command)


def watch(
    after: Annotated[int, typer.Option(min=-1, help="Also what happened after this event number.")] = -1,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Show what is in charge, then whatever happens, until Ctrl-C."""

    def command() -> int:
        if not as_json:
            show(client(socket).ask("status"), as_json, render_status)
        for event in client(socket).events(after):
            if as_json:
                typer.echo(json.dumps(event))
            else:
                show(event, as_json, render_event)
        return 0

    guarded(command)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (deploy, renew, promote, status, rollback, history, watch):
        app.command()(command)


def client(socket: Path | None) -> DaemonClient:
    """The way to schedagentd."""
    from schedagent.client.daemon import SOCKET, DaemonClient

    return DaemonClient(socket or SOCKET)


def _wanted(what: str, report: Path | None) -> dict[str, Any]:
    """Return what schedagentd wants to know of a run's winner, or of an object and its report."""
    from schedagent.core.errors import UsageError

    if report is not None:
        return deployment_fields(Path(what), report)
    if what.endswith(".o") or Path(what).exists():
        raise UsageError(
            f"an object is deployed with its report, and {what} came alone",
            f"schedagent verify --json {what} > REPORT.json; then add --report REPORT.json",
        )
    from schedagent.approval.handover import handover
    from schedagent.run.opening import open_repository
    from schedagent.service.acting import WiredLab

    found = settings()
    with open_repository(found) as repository:
        asked = handover(repository, what, partial(WiredLab(found).compile, repository, what))
    del asked["digest"]
    return asked


def deployment_fields(file: Path, report: Path) -> dict[str, Any]:
    """Put together what schedagentd wants of a policy: the object, and what its report says was verified.

    Raises:
        UsageError: a file cannot be read, or the two do not belong together.
    """
    import base64
    import hashlib

    from schedagent.core.deployment import LARGEST_OBJECT_BYTES
    from schedagent.core.errors import UsageError

    told = _read_report(report)
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST_OBJECT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    if len(content) > LARGEST_OBJECT_BYTES:
        raise UsageError(f"{file} is larger than {LARGEST_OBJECT_BYTES} bytes")
    digest = hashlib.sha256(content).hexdigest()
    if digest != told["artifact_digest"]:
        raise UsageError(
            f"{report} is about another object ({told['artifact_digest'][:12]}) than {file} ({digest[:12]})",
            f"schedagent verify --json {file} > {report}",
        )
    del told["artifact_digest"]
    return {**told, "object_base64": base64.b64encode(content).decode()}


def _read_report(report: Path) -> dict[str, Any]:
    """Return what a deployment needs of a report; the signed tunables are in its token."""
    from schedagent.core.errors import UsageError
    from schedagent.core.token import decode

    try:
        told = json.loads(report.read_text(encoding="utf-8"))
        token = decode(told["token"])
        policy = told["policy"]
    except OSError as error:
        raise UsageError(f"{report} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{report} is not a report", "schedagent verify --json FILE.bpf.c > REPORT") from None
    return {
        "policy": policy,
        "tunables": dict(token.tunables),
        "report_digest": token.report_digest,
        "token": told["token"],
        "artifact_digest": token.artifact_digest,
    }


def show(told: Any, as_json: bool, render: Any) -> int:
    """Print an answer; names of processes in it are anybody's, and must not steer the terminal."""
    from kernel_bpf.build.source import printable

    if as_json:
        print_json(told)
    else:
        typer.echo(printable(render(told)))
    return 0


def render_status(told: dict[str, Any]) -> str:
    """What `status` prints."""
    lines = [f"in charge: {told['in_charge']}"]
    lines += [render_deployment(told[one]) for one in ("active", "waiting") if told[one]]
    if told["foreign"]:
        named = ", ".join(told["foreign"]["schedulers"]) or "no process known to load one"
        lines.append(f"another sched_ext scheduler is loaded ({named}); to deploy: {told['foreign']['hint']}")
    for name, spread in told["measured"].items():
        lines.append(f"  measured {name}: {spread['mean']:.4g} (mean of {spread['count']})")
    kernel = told["kernel"]
    if kernel["sched_ext"]:
        scope = "all normal tasks" if kernel["switch_all"] else "tasks of policy SCHED_EXT"
        loaded = f", {kernel['ops']} for {scope}" if kernel["ops"] else ""
        lines.append(f"kernel {kernel['release']}: sched_ext is {kernel['state']}{loaded}")
    else:
        lines.append(f"kernel {kernel['release']}: no sched_ext")
    if told["unsaved"]:
        lines.append(f"not yet in the record (is the disk full?): deployments {told['unsaved']}")
    return "\n".join(lines)


def render_deployment(told: dict[str, Any]) -> str:
    """One deployment in two or three lines."""
    tunables = " ".join(f"{name}={value}" for name, value in told["tunables"].items())
    where = told["cgroup"] or (f"process {told['pid']} and its descendants" if told["pid"] else "the whole machine")
    lines = [f"deployment {told['deployment']}: {told['policy']} {tunables}".rstrip()]
    if told["phase"] == "ended":
        lines.append(f"  ended: {told['end']}: {told['detail']}".removesuffix(": "))
        return "\n".join(lines)
    mark = "proven" if told["proven"] else "on probation" if told["phase"] == "running" else told["phase"]
    lines.append(f"  stage {told['stage']} ({where}) for {told['since_s']:.0f} s, {mark}")
    lines.append(f"  lease ends in {told['lease_left_s']:.0f} s, token in {told['token_left_s']:.0f} s")
    if told["next_stage"]:
        wanted = f"{told['next_stage']} {told['next_cgroup']}".rstrip()
        lines.append(f"  next: stage {wanted}; its baseline is being measured")
    return "\n".join(lines)


def render_history(told: list[dict[str, Any]]) -> str:
    """What `history` prints."""
    blocks = []
    for one in told:
        begun = datetime.fromtimestamp(one["created_at"], UTC).isoformat(sep=" ", timespec="seconds")
        blocks.append("\n".join([f"{begun}  {render_deployment(one)}", *one.get("dump", "").splitlines()]))
    return "\n".join(blocks) or "nothing was deployed yet"


def render_event(event: dict[str, Any]) -> str:
    """One event in a line."""
    at = datetime.fromtimestamp(event["at"], UTC).isoformat(sep=" ", timespec="seconds")
    about = f"deployment {event['deployment']}: " if event["deployment"] else ""
    return f"{event['number']:>6}  {at}  {about}{event['kind']}: {event['detail']}".removesuffix(": ")
