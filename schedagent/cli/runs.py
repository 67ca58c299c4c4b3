"""`schedagent runs`: earlier runs and their results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from schedagent import api
from schedagent.cli.common import EXIT_NO, Json, guarded, print_json, settings
from schedagent.cli.guide.completion import runs as offered_runs
from schedagent.cli.guide.completion import statuses
from schedagent.cli.optimize import show_question, show_report
from schedagent.core.errors import UsageError

runs_app = typer.Typer(
    help="List, show, compare, replay and delete earlier runs.", no_args_is_help=True, rich_markup_mode=None
)

Run = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.", autocompletion=offered_runs)]


@runs_app.command("list")
def runs_list(
    limit: Annotated[int, typer.Option(min=1, max=100_000, metavar="N", help="Most runs to list.")] = 50,
    status: Annotated[
        str,
        typer.Option(
            metavar="[running|waiting|finished|failed|interrupted]",
            help="Only runs that stand so.",
            autocompletion=statuses,
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """List runs, newest first.

    Example: schedagent runs list --limit 10 --status failed
    """

    def command() -> int:
        from schedagent.report.listing import show_runs

        show_runs(api.runs(limit, status=status, settings=settings()), as_json)
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
    run: Run,
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

    Example: schedagent runs show 20261130-020455-3fa91c
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


@runs_app.command("report")
def runs_report(
    run: Run,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it as one HTML page with plots.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it as Markdown, for an issue; - is stdout.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every run of the workload, a row each; - is stdout.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the same as a Markdown table; - is stdout.")
    ] = None,
) -> None:
    """Print the report of a run, or write it into files.

    The page holds all it needs, plots included, and works without a network. Without an option: Markdown on stdout.

    Example: schedagent runs report 20261130-020455-3fa91c --html report.html
    """

    def command() -> int:
        from schedagent.report.page.files import write_report
        from schedagent.run.lifecycle import report_of
        from schedagent.run.opening import open_repository

        chosen = {"html": html, "markdown": markdown, "csv": csv, "samples": samples}
        files = {kind: path for kind, path in chosen.items() if path} or {"markdown": Path("-")}
        with open_repository(settings()) as repository:
            write_report(repository, report_of(settings(), repository, run), files)
        return 0

    guarded(command)


@runs_app.command("compare")
def runs_compare(
    first: Annotated[str, typer.Argument(metavar="RUN", help="Id of a run.", autocompletion=offered_runs)],
    second: Annotated[str, typer.Argument(metavar="RUN", help="Id of another.", autocompletion=offered_runs)],
    as_json: Json = False,
) -> None:
    """Show two runs side by side, and what can be compared.

    Policies that both tried agree if their intervals overlap.

    Example: schedagent runs compare 20261130-020455-3fa91c 20261201-091500-77aa01
    """

    def command() -> int:
        from schedagent.core.terminal.console import open_console
        from schedagent.report.faces.comparison import compare, render, to_json

        reports = (api.run_report(first, settings=settings()), api.run_report(second, settings=settings()))
        comparison = compare(*reports)
        if as_json:
            print_json(to_json(comparison))
        else:
            render(comparison, *reports, open_console())
        return 0

    guarded(command)


@runs_app.command("replay")
def runs_replay(run: Run, as_json: Json = False) -> None:
    """Replay a recorded run, to debug its agents.

    They run again on what models answered and what machines measured then.

    Example: schedagent runs replay 20261130-020455-3fa91c
    """

    def command() -> int:
        from schedagent.report.listing import show_replay
        from schedagent.run.progress import reporter

        comparison = api.replay(run, settings=settings(), reporter=reporter())
        show_replay(comparison, as_json)
        return 0 if comparison["same"] else EXIT_NO

    guarded(command)


@runs_app.command("delete")
def runs_delete(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Ids of the runs.", autocompletion=offered_runs)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Delete runs with all that they measured.

    All of these or none. A run that a deployment, a proven policy, a recommendation or an approval rests on stays.

    Example: schedagent runs delete 20261130-020455-3fa91c
    """

    def command() -> int:
        if not (yes or _confirmed(runs)):
            typer.echo("nothing was deleted", err=True)
            return EXIT_NO
        api.delete_runs(runs, settings=settings())
        if as_json:
            print_json({"deleted": runs})
        else:
            typer.echo(f"deleted: {' '.join(runs)}")
        return 0

    guarded(command)


def _confirmed(runs: list[str]) -> bool:
    """Ask at the terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("nobody can be asked whether to delete", "add --yes")
    what = f"{len(runs)} run{'s' * (len(runs) != 1)}"
    typer.echo(f"Delete {what} with all that was measured? y(es), n(o): ", nl=False, err=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def show_transcript(run: str, as_json: bool) -> int:
    """Print a run's exchanges with models."""
    from schedagent.report.listing import show_exchanges

    show_exchanges(*api.transcript(run, settings=settings()), as_json)
    return 0
