"""`schedagent experiment`: policies beside the default scheduler on something that runs, by pulses on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schedagent import api
from schedagent.cli.common import Json, guarded, settings
from schedagent.cli.guide.completion import policies as offered_policies
from schedagent.cli.optimize import Name, Quiet, follow, several
from schedagent.core.errors import UsageError

if TYPE_CHECKING:
    from schedagent.experiment.spec import Experiment, GuardSource, NumberSource

_SCOPES = "--unit, --cgroup, --container or --pid"
_METRICS = "--metric-query, --metric-command or --metric-log"


def experiment(
    unit: Annotated[str, typer.Option(metavar="NAME", help="A unit of systemd.")] = "",
    cgroup: Annotated[str, typer.Option(metavar="PATH", help="A cgroup, such as /system.slice/db.service.")] = "",
    container: Annotated[str, typer.Option(metavar="NAME", help="A container: its name or id.")] = "",
    pid: Annotated[int | None, typer.Option(min=1, metavar="N", help="A process and its descendants.")] = None,
    metric_query: Annotated[
        tuple[str, str], typer.Option(metavar="URL QUERY", help="Compare a query's number; [$window] is its range.")
    ] = ("", ""),
    metric_command: Annotated[
        str, typer.Option(metavar="COMMAND", help="Compare the number on the last line that it prints.")
    ] = "",
    metric_log: Annotated[
        tuple[str, str],
        typer.Option(metavar="FILE REGEX", help="Compare a log's numbers (a group), or its matching lines a second."),
    ] = ("", ""),
    better: Annotated[str, typer.Option(metavar="[lower|higher]", help="Which way the metric is better.")] = "",
    guard_query: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=QUERY:lower:5%", help="A number that must not get worse by more than a margin."),
    ] = None,
    guard_command: Annotated[
        list[str] | None, typer.Option(metavar="NAME=COMMAND:lower:5%", help="The same, printed by a command.")
    ] = None,
    prometheus: Annotated[
        str, typer.Option(metavar="URL", help="Server of --guard-query, if not that of --metric-query.")
    ] = "",
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Try this policy; else they are planned.", autocompletion=offered_policies),
    ] = None,
    window: Annotated[str, typer.Option(metavar="TIME", help="How long each window is.")] = "20s",
    wash_out: Annotated[
        str, typer.Option(metavar="TIME", help="Left out of each window; else a fifth, at most 5s.")
    ] = "",
    length: Annotated[
        str, typer.Option("--for", metavar="TIME", help="How long it may take, verification not counted.")
    ] = "30min",
    candidates: Annotated[int, typer.Option(min=1, max=8, metavar="N", help="Most policies that are planned.")] = 3,
    name: Name = "",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare policies by pulses on a service that runs.

    It is not restarted. Candidates pass every gate in the micro-VM; then each is in charge of this machine for a window
    at a time, and the default scheduler in between, in pairs of random order. Without a metric, waiting for CPUs is
    compared. Whatever is found, the default scheduler is in charge in the end. See: schedagent help experiments.

    Example: schedagent experiment --unit nginx --policy interactive --for 1h
    """

    def command() -> int:
        from schedagent.run.options import read_name

        wanted = _experiment(
            _scope({"unit": unit, "cgroup": cgroup, "container": container, "pid": str(pid or "")}),
            _metric(metric_query, metric_command, metric_log, better),
            better,
            _guards(several(guard_query), several(guard_command), prometheus or metric_query[0]),
            (window, wash_out, length),
        )
        named, run_name = several(policy), read_name(name)
        return follow(
            lambda progress: api.experiment_on(
                wanted, policies=named, candidates=candidates, name=run_name, settings=settings(), reporter=progress
            ),
            as_json,
            quiet,
        )

    guarded(command)


def _scope(given: dict[str, str]) -> tuple[str, str]:
    named = [(kind, name) for kind, name in given.items() if name]
    if len(named) != 1:
        raise UsageError(f"{len(named) or 'no'} scopes are named", f"name one of {_SCOPES}")
    return named[0]


def _metric(query: tuple[str, str], command: str, log: tuple[str, str], better: str) -> NumberSource:
    from schedagent.experiment.spec import Kind, NumberSource

    given = [NumberSource(Kind.QUERY, query[1], query[0])] if any(query) else []
    given += [NumberSource(Kind.COMMAND, command, str(Path.cwd()))] if command else []
    given += [NumberSource(Kind.LOG, log[1], str(Path(log[0]).absolute()))] if any(log) else []
    if len(given) > 1:
        raise UsageError(f"{len(given)} metrics are named", f"name one of {_METRICS}; others may be guards")
    if better not in ("", "lower", "higher"):
        raise UsageError(f"--better {better!r} is not known", "accepted: lower, higher")
    if given and not better:
        raise UsageError("which way the metric is better is not said", "add: --better lower, or --better higher")
    if better and not given:
        raise UsageError("--better is of no use without a metric", f"name one of {_METRICS}")
    return given[0] if given else NumberSource(Kind.COUNTERS)


def _guards(queries: tuple[str, ...], commands: tuple[str, ...], server: str) -> tuple[GuardSource, ...]:
    from schedagent.experiment.spec import Kind, read_guard

    if queries and not server:
        raise UsageError("--guard-query has no server", "name it: --prometheus http://127.0.0.1:9090")
    given = [(Kind.QUERY, text, server) for text in queries]
    given += [(Kind.COMMAND, text, str(Path.cwd())) for text in commands]
    return tuple(read_guard(kind, text, number, place) for number, (kind, text, place) in enumerate(given, 1))


def _experiment(
    scope: tuple[str, str],
    metric: NumberSource,
    better: str,
    guards: tuple[GuardSource, ...],
    times: tuple[str, str, str],
) -> Experiment:
    from schedagent.core.trials.objective import Direction
    from schedagent.experiment.spec import Experiment, checked, default_wash_out_s, seconds

    window, wash_out, length = times
    window_s = seconds(window, "--window")
    return checked(
        Experiment(
            scope,
            metric,
            Direction(better or "lower"),
            guards,
            window_s,
            seconds(wash_out, "--wash-out") if wash_out else default_wash_out_s(window_s),
            seconds(length, "--for"),
        )
    )
