"""`schedagent doctor`: what this machine has and lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from schedagent.cli.common import EXIT_FAILED, Json, guarded, print_json, settings

if TYPE_CHECKING:
    from schedagent.core.trials.usage import MachineCosts


def _latest_costs() -> tuple[MachineCosts, str] | None:
    """What the last run that measured it says of the lab's speed, and its day; None without a repository to read."""
    from schedagent.core.errors import SchedagentError
    from schedagent.run.stored import open_stored

    if not settings().repository_path.is_file():
        return None
    try:
        with open_stored(settings()) as repository:
            latest = repository.latest_costs()
    except SchedagentError:  # whoever opens it for its own sake says what is wrong with it
        return None
    return (latest[0], latest[1][:10]) if latest else None


def doctor(
    bench: Annotated[
        bool, typer.Option("--bench", help="Also start VMs: how long a restore takes, and what emulation costs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check this machine, and show how to fix what it lacks.

    Of each part, it shows what follows from its absence, and the command that provides it.

    Example: schedagent doctor
    """

    def command() -> int:
        from schedagent.core.terminal.console import open_console
        from schedagent.setup import doctor as examination

        findings = examination.examine(settings())
        if bench:
            from schedagent.run.opening import open_lab

            lab = open_lab(settings())
            findings = [*findings, examination.restore_bench(lab), examination.emulation_bench(lab)]
        elif costs := _latest_costs():
            findings = [*findings, examination.emulation(*costs)]
        if as_json:
            print_json(examination.to_json(findings))
        else:
            console = open_console()
            console.print(examination.render(findings, console.width if console.is_terminal else 0), soft_wrap=True)
        return 0 if examination.is_ready(findings) else EXIT_FAILED

    guarded(command)
