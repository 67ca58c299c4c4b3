"""`schedagent runs`: earlier runs and what they found."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from schedagent.approval.text import commands, show_waiting
from schedagent.cli.common import EXIT_NO, Json, guarded, settings
from schedagent.cli.optimize import show_report

runs_app = typer.Typer(help="Look at earlier runs.", no_args_is_help=True, rich_markup_mode=None)


@runs_app.command("list")
def runs_list(as_json: Json = False) -> None:
    """List runs, newest first."""

    def command() -> int:
        from schedagent.report.listing import show_runs
        from schedagent.run.opening import open_repository

        with open_repository(settings()) as repository:
            show_runs(repository.list_runs(), as_json)
        return 0

    guarded(command)


@runs_app.command("show")
def runs_show(
    run: Annotated[str, typer.Argument(help="Id of the run.")],
    transcript: Annotated[
        bool, typer.Option("--transcript", help="Show what was asked of models instead, and what they answered.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a run found so far."""

    def command() -> int:
        from agents.llm.transcript import transcript_path
        from schedagent.report.model_use import model_use
        from schedagent.report.run_report import build_report
        from schedagent.run.opening import open_repository

        found = settings()
        if transcript:
            return show_transcript(found, run, as_json)
        with open_repository(found) as repository:
            record = repository.run(run)
            used = model_use(transcript_path(found.state_dir, run))
            report = record.report or build_report(repository, run, model=used, complete=False)
        show_report(report, as_json)
        if not as_json and report.get("waiting"):
            show_waiting(report["waiting"])
            typer.echo(commands(run, report["waiting"]["digest"]))
        elif not as_json and record.report is None:
            typer.echo(f"This run is not finished (status: {record.status.value}). Go on: schedagent resume {run}")
        return 0

    guarded(command)


@runs_app.command("replay")
def runs_replay(run: Annotated[str, typer.Argument(help="Id of the run.")], as_json: Json = False) -> None:
    """Run the agents of a recorded run again, on what models answered and machines measured then; for debugging."""

    def command() -> int:
        from schedagent.report.listing import show_replay
        from schedagent.run.lifecycle import replay_run
        from schedagent.run.progress import reporter

        found = replay_run(settings(), run, reporter())
        show_replay(found, as_json)
        return 0 if found["same"] else EXIT_NO

    guarded(command)


def show_transcript(found: Any, run: str, as_json: bool) -> int:
    """Print a run's exchanges with models."""
    from schedagent.report.listing import show_exchanges
    from schedagent.run.lifecycle import read_run_transcript

    show_exchanges(*read_run_transcript(found, run), as_json)
    return 0
