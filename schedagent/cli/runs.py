"""`schedagent runs`: earlier runs and their results."""

from __future__ import annotations

from typing import Annotated

import typer

from schedagent import api
from schedagent.cli.common import EXIT_NO, Json, guarded, print_json, settings
from schedagent.cli.optimize import show_question, show_report

runs_app = typer.Typer(help="List, show and replay earlier runs.", no_args_is_help=True, rich_markup_mode=None)


@runs_app.command("list")
def runs_list(as_json: Json = False) -> None:
    """List runs, newest first."""

    def command() -> int:
        from schedagent.report.listing import show_runs

        show_runs(api.runs(settings=settings()), as_json)
        return 0

    guarded(command)


def print_report_schema(wanted: bool) -> None:
    """Print the schema of what runs show --json and optimize --json print, and exit."""
    if wanted:
        from schedagent.report.as_json import json_schema

        print_json(json_schema())
        raise typer.Exit


@runs_app.command("show")
def runs_show(
    run: Annotated[str, typer.Argument(help="Id of the run.")],
    transcript: Annotated[
        bool, typer.Option("--transcript", help="Show what it asked models, and their answers, instead.")
    ] = False,
    _schema: Annotated[
        bool,
        typer.Option("--json-schema", is_eager=True, callback=print_report_schema, help="Print the schema of --json."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the result of a run, as far as it is.

    Of a run that waits for an approval, also what it waits for.
    """

    def command() -> int:
        if transcript:
            return show_transcript(run, as_json)
        from schedagent.approval.text import commands
        from schedagent.run.lifecycle import report_of
        from schedagent.run.opening import open_repository

        with open_repository(settings()) as repository:
            report, status = report_of(settings(), repository, run), repository.run(run).status
        show_report(report, as_json)
        if not as_json and report.waiting:
            show_question(report.waiting)
            typer.echo(commands(run, report.waiting.digest))
        elif not as_json and not report.complete and report.failure is None:
            typer.echo(f"This run is not finished (status: {status.value}). Continue it: schedagent resume {run}")
        return 0

    guarded(command)


@runs_app.command("replay")
def runs_replay(run: Annotated[str, typer.Argument(help="Id of the run.")], as_json: Json = False) -> None:
    """Replay a recorded run, to debug its agents.

    They run again on what models answered and what machines measured then.
    """

    def command() -> int:
        from schedagent.report.listing import show_replay
        from schedagent.run.progress import reporter

        comparison = api.replay(run, settings=settings(), reporter=reporter())
        show_replay(comparison, as_json)
        return 0 if comparison["same"] else EXIT_NO

    guarded(command)


def show_transcript(run: str, as_json: bool) -> int:
    """Print a run's exchanges with models."""
    from schedagent.report.listing import show_exchanges

    show_exchanges(*api.transcript(run, settings=settings()), as_json)
    return 0
