"""`schedagent doctor`: what this machine has and lacks."""

from __future__ import annotations

from typing import Annotated

import typer

from schedagent.cli.common import EXIT_FAILED, Json, guarded, print_json, settings


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
        if as_json:
            print_json(examination.to_json(findings))
        else:
            console = open_console()
            console.print(examination.render(findings, console.width if console.is_terminal else 0), soft_wrap=True)
        return 0 if examination.is_ready(findings) else EXIT_FAILED

    guarded(command)
