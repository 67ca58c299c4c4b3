"""`schedagent observe` and `schedagent profile`: watching work that already runs, and showing what was seen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schedagent.cli.common import Json, guarded, print_json, say, say_lines, settings
from schedagent.core.errors import SetupError, UsageError

if TYPE_CHECKING:
    from schedagent.observing.measure import Observed, Order
    from schedagent.observing.scope import Target

profile_app = typer.Typer(help="Show profiles in the terminal.", no_args_is_help=True, rich_markup_mode=None)

LONGEST_PROFILE_BYTES = 16 << 20
_UNITS = {"": 1.0, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(s|min|m|h)?")
_SCOPES = "--pid, --cgroup, --unit, --container or --system"


def observe(
    pid: Annotated[int | None, typer.Option(min=1, metavar="N", help="A process and its descendants.")] = None,
    cgroup: Annotated[str, typer.Option(metavar="PATH", help="A cgroup, such as /system.slice/db.service.")] = "",
    unit: Annotated[str, typer.Option(metavar="NAME", help="A unit of systemd.")] = "",
    container: Annotated[str, typer.Option(metavar="NAME", help="A container: its name or id.")] = "",
    system: Annotated[bool, typer.Option("--system", help="The whole machine.")] = False,
    length: Annotated[str, typer.Option("--for", metavar="TIME", help="How long: 30s, 5min, at most 1h.")] = "30s",
    tier: Annotated[
        int,
        typer.Option(min=0, max=2, metavar="[0|1|2]", help="0: counters; 1: each command, too; 2: trace switches."),
    ] = 0,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With tier 2: write a trace that ui.perfetto.dev opens.")
    ] = None,
    service: Annotated[
        Path | None, typer.Option("--socket", metavar="PATH", help="Socket of the observer, if not the usual one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Watch work that already runs, without restarting it.

    Nothing is changed. Tiers 0 and 1 read what the kernel shows to everybody; tier 2 traces: as root in this process,
    otherwise through the observer. See: schedagent help observing.

    Example: schedagent observe --unit nginx --for 30s --tier 2
    """

    def command() -> int:
        from schedagent.observing.measure import Order

        chosen = _target(pid or 0, cgroup, unit, container, system)
        if trace and tier < 2:
            raise UsageError("--trace needs single switches, which only tier 2 sees", "add: --tier 2")
        if trace and trace.is_dir():
            raise UsageError(f"{trace} is a folder", "name a file: --trace trace.json")
        observed = _observed(Order(chosen, _seconds(length), tier, tracing=trace is not None), service)
        if trace:
            _write_trace(trace, observed)
        _show(observed, as_json)
        return 0

    guarded(command)


def _target(pid: int, cgroup: str, unit: str, container: str, system: bool) -> Target:
    from schedagent.observing.scope import Target, check, of_container, of_unit

    given = sum(map(bool, (pid, cgroup, unit, container, system)))
    if given != 1:
        raise UsageError(f"{given or 'no'} scopes are named", f"name one of {_SCOPES}")
    if unit:
        return of_unit(unit)
    if container:
        return of_container(container)
    target = Target(pid, cgroup)
    check(target)
    return target


def _seconds(text: str) -> float:
    from schedagent.observing.measure import LONGEST_S, SHORTEST_S

    match = _DURATION.fullmatch(text)
    seconds = float(match[1]) * _UNITS[match[2] or ""] if match else -1.0
    if not SHORTEST_S <= seconds <= LONGEST_S:
        raise UsageError(f"--for {text!r} is no time to watch", f"accepted: {SHORTEST_S:g}s to {LONGEST_S / 3600:g}h")
    return seconds


def _observed(order: Order, service: Path | None) -> Observed:
    """Watch in this process if it may, else through the observer."""
    from kernel_bpf.observe.sched_probe import may_trace
    from schedagent.client import observer
    from schedagent.observing.measure import Observed
    from schedagent.observing.measure import observe as measure

    if order.tier < 2 or (may_trace() and service is None):
        return measure(order)
    path = service or observer.SOCKET
    if not path.exists():
        raise SetupError(
            f"tracing takes root, or the observer, which does not listen on {path}",
            "run it with sudo, use --tier 1, or start it: systemctl start schedagent-observer.socket",
        )
    return Observed(*observer.ask(order.target.pid, order.target.cgroup, order.seconds, order.tracing, path))


def _write_trace(path: Path, observed: Observed) -> None:
    from schedagent.observing.perfetto import chrome_trace

    try:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(chrome_trace(observed.switches, observed.more_switches, observed.profile.scope))
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error.strerror}", "name another file: --trace FILE") from None
    kept, more = len(observed.switches), observed.more_switches
    say(f"{kept} switches are in {path}" + (f"; {more} came later and are not" if more else ""), err=True)


def _show(observed: Observed, as_json: bool) -> None:
    from schedagent.core.host_profile import to_json
    from schedagent.observing.text import summary

    if as_json:
        print_json(to_json(observed.profile))
        return
    say_lines(summary(observed.profile))
    for remark in observed.profile.remarks:
        say(f"  not measured: {remark}")


@profile_app.command("show")
def profile_show(
    profile: Annotated[str, typer.Argument(metavar="FILE|RUN", help="What observe --json printed, or a run's id.")],
) -> None:
    """Show a profile: tasks over time, waits and runs.

    80 columns of plain text. A run's profile holds its workload's tasks over time.

    Example: schedagent profile show nginx.json
    """

    def command() -> int:
        for line in _pages(profile):
            say(line)
        return 0

    guarded(command)


def _pages(profile: str) -> Iterator[str]:
    from schedagent.core.host_profile import read_profile
    from schedagent.observing.drawing import host_pages, run_pages
    from schedagent.run.opening import open_repository

    path = Path(profile)
    if path.is_file():
        with path.open("rb") as file:
            content = file.read(LONGEST_PROFILE_BYTES + 1)
        if len(content) > LONGEST_PROFILE_BYTES:
            raise UsageError(f"{path} is larger than {LONGEST_PROFILE_BYTES >> 20} MiB", "name a profile")
        return host_pages(read_profile(content))
    with open_repository(settings()) as repository:
        seen = repository.profile(repository.run(profile).id)
    if seen is None:
        raise UsageError(f"run {profile} has not observed its workload", "name another run: schedagent runs list")
    return run_pages(seen)
